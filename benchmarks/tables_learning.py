"""The published tables of what was learnt, and of runs that were killed and resumed; see tables.py."""

import re

from table_cells import ROOT, only, read, seeds, small, table, table_of

METHODS = {'simclr': 'SimCLR', 'moco_v2': 'MoCo v2', 'moco_v3': 'MoCo v3', 'byol': 'BYOL', 'simsiam': 'SimSiam',
           'barlow_twins': 'Barlow Twins', 'vicreg': 'VICReg', 'nnclr': 'NNCLR', 'sup_con': 'SupCon (with labels)',
           'instance_discrimination': 'Instance discrimination'}


def recipes():
    """The README's table of recipes, for the page about them."""
    text = (ROOT / 'README.md').read_text()
    return text.partition('<!-- recipes -->\n')[2].partition('<!-- /recipes -->')[0]


# configs/smoke.py


def _encoders(run):
    return [{'name': name, **values} for name, values in read('smoke')[run]['encoders'].items()]


def smoke():
    return table_of(_encoders('smoke'), ('encoder', '{name}'), ('kNN top-1 %', '{knn?:interval}'),
                    ('linear top-1 %', '{linear?:interval}'))


def smoke_linear():
    return table_of(_encoders('linear'), ('`--config.task=linear`, 10 epochs of crops and flips', '{name}'),
                    ('linear top-1 %', '{linear?:interval}'))


def smoke_run():
    run = read('smoke')['smoke']
    versions = ', '.join(f'{name} {version}' for name, version in run['versions'].items())
    wall, used = (f'{run[name] // 60} min {run[name] % 60:02} s' for name in ('seconds', 'cpu_seconds'))
    return (f'{wall}, {used} of processor time; {run["machine"]}; seed {run["seed"]}; {run["date"]}; '
            f'{versions}.\n')


def smoke_log():
    lines = read('smoke')['smoke']['output']
    begin = next(number for number, line in enumerate(lines) if re.match(r'simclr on shapes', line))
    end = next(number for number, line in enumerate(lines) if re.match(r'shapes, test', line))
    kept = [*lines[begin:begin + 2], '...', *lines[end - 4:end + 6]]
    return '```text\n' + '\n'.join(kept).rstrip() + '\n```\n'


def smoke_shortcut():
    runs = read('smoke')
    rows = [{'what': what, 'accuracy': f'{100 * runs[name]["contrastive_accuracy"]:.0f} %',
             **runs[name]['encoders']['pretrained']}
            for name, what in (('smoke', 'crop, flip, colour jitter, grey'),
                               ('no_colour', 'crop and flip alone (`:no_colour`)'))]
    floor = {'what': 'not trained', 'accuracy': '', **runs['smoke']['encoders']['random']}
    return table_of([*rows, floor], ('`configs/smoke.py`', '{what}'), ('contrastive accuracy', '{accuracy}'),
                    ('kNN %', '{knn[0]:.1f %}'), ('linear %', '{linear[0]:.1f %}'))


# Methods


def _equal_compute(what):
    rows = only('equal_compute', what)
    first = rows[0]
    return table_of(
        [row | {'name': METHODS[row['method']]} for row in rows],
        ('', '{name}'), ('steps', '{steps[0]}'), ('seeds', '{steps:count}'), ('kNN %', '{pretrained knn:seeds}'),
        ('linear %', '{pretrained linear:seeds}'), ('effective rank of h', '{feature_rank:mean}'),
        before=[['raw pixels', '', '', f'{100 * first["raw pixels knn"][0]:.1f}', '', ''],
                ['random encoder', '', len(first['random knn']), seeds(first['random knn']),
                 seeds(first['random linear']), '']])


def equal_compute_shapes():
    return _equal_compute('shapes')


def equal_compute_fashion():
    return _equal_compute('fashion')


def equal_compute_search():
    rows = [row | {'name': METHODS[row['method']]} for row in only('equal_compute', 'search')]
    return table_of(rows, ('', '{name}, {variant}'), ('steps', '{steps}'), ('kNN %, held out', '{heldout knn:.1f %}'),
                    ('rank of h', '{feature_rank:.1f}'), ('rank of z', '{projection_rank:.1f}'))


def distil_fashion():
    names = {'supervised': 'supervised: the student without distillation', 'teacher': 'teacher: pretrained, fine-tuned',
             'student': 'student, distilled'}
    rows = only('distil_fashion')
    return table(['Fashion-MNIST, 600 labels', 'top-1 %'], [[names[key], seeds(rows[key])] for key in names])


def ablations_byol():
    rows = [row | {'variant': row['variant'].replace('EMA', 'momentum')} for row in only('method_ablations', 'byol')]
    return table_of(
        rows, ('', '{variant}'), ('regression loss', '{regression_loss:loss}'), ('rank of h', '{feature_rank:.1f}'),
        ('rank of z', '{projection_rank:.1f}'), ('spread of z', '{projection_spread:.3f}'),
        ('kNN %', '{knn_accuracy:.1f %}'), ('linear %', '{linear_accuracy:.1f %}'))


def ablations_moco():
    return table_of(
        only('method_ablations', 'moco_v2'), ('BatchNorm of the keys', '{variant}'),
        ('contrastive accuracy %', '{contrastive_accuracy:.1f %}'), ('contrastive loss', '{contrastive_loss:.2f}'),
        ('kNN %', '{knn_accuracy:.1f %}'), ('linear %', '{linear_accuracy:.1f %}'))


SMALL_SETS = {'fashion': 'Fashion-MNIST (2,502 and 2,498 images, 10 classes; 235 steps)',
              'openclipart': 'openclipart (1,249 and 1,245, 15; 196)',
              'tuxpaint': 'tuxpaint (359 and 354, 8; 225)'}
CONTENDERS = {'ours': 'configs/folder.py', 'before': 'the same, few_images.below=0',
              'lightly': "Lightly's tutorial"}


def small_sets():
    lines = []
    for row in only('small_sets'):
        if row['contender'] == 'ours':
            lines.append({'set': SMALL_SETS[row['set']], 'name': 'random encoder', 'knn': row['random knn'],
                          'linear': row['random linear']})
        lines.append(row | {'set': '', 'name': CONTENDERS[row['contender']]})
    return table_of(lines, ('set (trained on, held out)', '{set}'), ('contender', '{name}'),
                    ('kNN %', '{knn:points}'), ('linear %', '{linear:points}'),
                    ('processor seconds', '{processor_seconds?:rounded mean}'))


# Reliability


def kill_and_resume():
    return table_of(
        [trial | {'number': number} for number, trial in enumerate(read('kill_and_resume')['trials'])],
        ('trial', '{number}'), ('killed after step', '{killed_after}'), ('resumed from step', '{resumed_from}'),
        ('identical', '{identical:yes}'))


def pod_in_a_box():
    result = read('pod_in_a_box')
    return table_of(
        result['trials'], ('killed', 'process {process}'), ('after step', '{killed_after}'),
        ('resumed from step', '{resumed_from}'),
        (f'bit-identical to the uninterrupted run ({result["arrays"]} arrays)', '{identical:yes}'))


# benchmarks/combinations.py


ENCODERS = {'resnet': 'ResNet', 'vit': 'ViT', 'convnext': 'ConvNeXt'}


def _combinations(have_steps, cell):
    """A line of each method, or of each task, in their order."""
    rows = only('combinations')
    names = dict.fromkeys(name.split()[1] for name in rows if ('steps' in rows[name]) == have_steps)
    return table(['', *ENCODERS.values()],
                 [[name, *(cell(rows[f'{encoder} {name}']) for encoder in ENCODERS)] for name in names])


def combinations():
    def cell(row):
        equal, of = row['resume']
        loss, norm, four = map(small, row['devices'])
        return f'{equal} of {of}; {loss}, {norm}; {four}'

    return _combinations(True, cell)


def combinations_tasks():
    def cell(row):
        files = ', '.join(f'{name} {small(apart)}' for name, apart in row.get('formats', {}).items())
        return row['error'] or f'yes{f" ({files})" if files else ""}'

    return _combinations(False, cell)
