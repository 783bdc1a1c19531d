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
    kept = [lines[begin], '...', *lines[end - 4:end + 6]]
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


# benchmarks/learning.py

LEARNING_SETS = {'5,000': '5,000 images', 'whole': '60,000 images'}


def learning():
    """A row of a method and set: the end of the curves on both sides, and the differences seed by seed."""
    runs, lines = {}, []
    for row in only('learning', 'curves'):
        runs.setdefault((row['data'], row['method']), {}).setdefault(row['side'], {})[row['seed']] = row
    for data, method in sorted(runs, key=lambda key: (list(LEARNING_SETS).index(key[0]), list(METHODS).index(key[1]))):
        ours, lightly = (runs[data, method].get(side, {}) for side in ('ours', 'lightly'))
        both = sorted(set(ours) & set(lightly))
        if not both:
            continue
        line = {'name': f'{METHODS[method]}, {LEARNING_SETS[data]}', 'seeds': len(both),
                'steps': ours[both[0]]['step'][-1]}
        for kind in ('knn', 'linear'):
            ends = [[side[seed][kind][-1] for seed in both] for side in (ours, lightly)]
            line |= {kind: ends[0], f'{kind} lightly': ends[1], f'{kind} gap': [a - b for a, b in zip(*ends)]}
        for name, side in (('', ours), (' lightly', lightly)):
            line['seconds' + name] = [side[seed]['processor_seconds'][-1] for seed in both]
            line['first' + name] = [side[seed]['first_step_seconds'] for seed in both]
        lines.append(line)
    return table_of(lines, ('', '{name}'), ('steps', '{steps}'), ('seeds', '{seeds}'), ('kNN %, ours', '{knn:points}'),
                    ('Lightly', '{knn lightly:points}'), ('difference', '{knn gap:points}'),
                    ('linear %, ours', '{linear:points}'), ('Lightly', '{linear lightly:points}'),
                    ('difference', '{linear gap:points}'),
                    ('processor seconds, ours (to the first step)', '{seconds:rounded mean} ({first:rounded mean})'),
                    ('Lightly', '{seconds lightly:rounded mean} ({first lightly:rounded mean})'))


def learning_steps():
    rows = [row | {'name': METHODS[row['method']]} for row in only('learning', 'first steps')]
    return table_of(rows, ('', '{name}'), ('first loss', '{loss:small}'), ('first gradient, ours', '{gradient:small}'),
                    ("Lightly's", "{Lightly's gradient:small}"), ('loss of step 5', '{last loss:small}'),
                    ('of itself', '{last loss of itself:small}'), ('weights then', '{weights:small}'),
                    ('of itself', '{weights of itself:small}'), ('target', '{target?:small}'),
                    ('queue', '{queue?:small}'), ('running statistics', '{statistics:small}'))


def learning_views():
    return table_of(only('learning', 'views'), ('', '{measure}'), ('ours', '{ours:.4f}'), ('Lightly', '{lightly:.4f}'),
                    ('distance', '{distance:.3f}'), ('one in twenty is above', '{chance:.3f}'))


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
