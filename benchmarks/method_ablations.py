"""What keeps BYOL from collapsing, and what leaks in MoCo v2: the same tiny run without one part.

    python benchmarks/method_ablations.py byol [--steps=250]        # needs matplotlib, for the figure
    python benchmarks/method_ablations.py moco_v2 [--steps=300]

byol: configs/smoke.py:method=byol without its predictor, stop-gradient or moving target; effective rank and
spread over the steps are drawn into docs/collapse.svg. moco_v2: with BatchNorm over 8 groups of the batch, as
on 8 unsynchronised GPUs, and the keys' groups (1) the same as the queries', (2) strided, (3) shuffled; and
with one synchronised group. Prints a table and adds it to benchmarks/method_ablations.json.
"""

import argparse
import pathlib
import tempfile

from runs import ROOT, keep, train

VARIANTS = {
    'byol': {
        'BYOL': (),
        'no predictor': ('--config.predictor.mode=none',),
        'no stop-gradient': ('--config.method.stop_gradient=false',),
        'target = online (EMA 0)': ('--config.method.momentum=0.0', '--config.method.momentum_rises=false'),
        'no predictor, EMA 0': ('--config.predictor.mode=none', '--config.method.momentum=0.0',
                                '--config.method.momentum_rises=false')},
    'moco_v2': {
        name: (f'--config.encoder.norm_groups={groups}', f'--config.method.key_groups={key_groups}')
        for name, groups, key_groups in (
            ('the same 8 groups (leaks)', 8, 'same'), ('8 strided groups', 8, 'strided'),
            ('8 groups, images shuffled', 8, 'shuffled'), ('1 group, synchronised', 1, 'strided'))},
}
# As the recipes were when this was measured: more than one group of BatchNorm needs the larger batch.
SETTINGS = {
    'byol': (),
    'moco_v2': ('--config.batch_size=256', '--config.optimizer.learning_rate=4.0', '--config.method.momentum=0.95',
                '--config.method.queue_size=1024')}
# Metrics of the log, and how they are printed; the contrastive ones are means of the last three rows, which
# are of one batch each.
COLUMNS = {
    'byol': {'regression_loss': '.3g', 'feature_rank': '.1f', 'projection_rank': '.1f',
             'projection_spread': '.3f'},
    'moco_v2': {'contrastive_accuracy': '.3f', 'contrastive_loss': '.2f'},
}
# Okabe & Ito's palette, and line styles for those who print.
STYLES = (('#000000', '-'), ('#D55E00', '--'), ('#0072B2', '-.'), ('#009E73', ':'), ('#CC79A7', (0, (5, 1))))


def draw(runs, path):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout='constrained')
    for (name, run), (colour, line) in zip(runs.items(), STYLES):
        rows = [row for row in run['metrics'] if 'feature_rank' in row]
        for axis, key in zip(axes, ('feature_rank', 'projection_rank', 'projection_spread')):
            axis.plot([row['step'] for row in rows], [row[key] for row in rows], color=colour,
                      linestyle=line, label=name)
    for axis, title in zip(axes, ('effective rank of the features h', 'effective rank of the projections z',
                                  'spread of the projections z (0 to 1)')):
        axis.set(title=title, xlabel='training step', ylim=(0, None))
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def summary(name, run, columns):
    """A row of the table: the last metrics, and the evaluation at the end, in [0, 1]."""
    row = {'variant': name}
    for metric in columns:
        values = [logged[metric] for logged in run['metrics'] if metric in logged]
        values = values[-3:] if metric.startswith('contrastive') else values[-1:]
        row[metric] = sum(values) / len(values)
    return row | {kind: run['results']['pretrained'][kind] for kind in ('knn_accuracy', 'linear_accuracy')}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('method', choices=VARIANTS)
    parser.add_argument('--steps', type=int, help='of a run; default: 250 of BYOL, 300 of MoCo v2')
    parser.add_argument('--workdir', type=pathlib.Path, help='keeps the runs; default: a temporary one')
    arguments = parser.parse_args()
    method, columns = arguments.method, COLUMNS[arguments.method]
    steps = arguments.steps or {'byol': 250, 'moco_v2': 300}[method]
    workdir = arguments.workdir or pathlib.Path(tempfile.mkdtemp())
    runs = {name: train(workdir / str(number), f'--config=configs/smoke.py:method={method}',
                        f'--config.num_train_steps={steps}', '--config.log.every_steps=10', *SETTINGS[method])
            for number, (name, options) in enumerate(VARIANTS[method].items())}
    table = [summary(name, run, columns) for name, run in runs.items()]
    print(f'| variant | {" | ".join(columns)} | kNN % | linear % |\n{"|---" * (len(columns) + 3)}|')
    for row in table:
        shown = [format(row[metric], form) for metric, form in columns.items()]
        print(f'| {row["variant"]} | {" | ".join(shown)} | {100 * row["knn_accuracy"]:.1f} | '
              f'{100 * row["linear_accuracy"]:.1f} |')
    keep('method_ablations', f'{method}, {steps} steps', table)
    if method == 'byol':
        draw(runs, ROOT / 'docs/collapse.svg')


if __name__ == '__main__':
    main()
