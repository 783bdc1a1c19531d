"""What keeps BYOL from collapsing: the same tiny run without its predictor, stop-gradient or moving target.

    python benchmarks/collapse.py [--steps=250]       # needs matplotlib, for the figure

Trains configs/smoke.py:method=byol and its ablations, and draws effective rank and spread over the steps
into docs/collapse.svg. Prints a table and writes benchmarks/collapse.json.
"""

import argparse
import pathlib
import tempfile

import matplotlib.pyplot as plt
from runs import ROOT, keep, train

VARIANTS = {
    'BYOL': (),
    'no predictor': ('--config.predictor.mode=none',),
    'no stop-gradient': ('--config.method.stop_gradient=false',),
    'target = online (EMA 0)': ('--config.method.momentum=0.0', '--config.method.momentum_rises=false'),
    'no predictor, EMA 0': ('--config.predictor.mode=none', '--config.method.momentum=0.0',
                            '--config.method.momentum_rises=false'),
}
# Okabe & Ito's palette, and line styles for those who print.
STYLES = (('#000000', '-'), ('#D55E00', '--'), ('#0072B2', '-.'), ('#009E73', ':'), ('#CC79A7', (0, (5, 1))))


def draw(runs, path):
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--steps', type=int, default=250)
    parser.add_argument('--workdir', type=pathlib.Path, help='keeps the runs; default: a temporary one')
    arguments = parser.parse_args()
    workdir = arguments.workdir or pathlib.Path(tempfile.mkdtemp())
    runs = {name: train(workdir / str(number), '--config=configs/smoke.py:method=byol',
                        f'--config.num_train_steps={arguments.steps}', '--config.log.every_steps=10',
                        '--config.eval.knn_every_epochs=0', *options)
            for number, (name, options) in enumerate(VARIANTS.items())}
    table = []
    for name, run in runs.items():
        last = [row for row in run['metrics'] if 'feature_rank' in row][-1]
        table.append({'variant': name, **{key: last[key] for key in (
            'regression_loss', 'feature_rank', 'projection_rank', 'projection_spread')},
            **{kind: run['results']['pretrained'][kind] for kind in ('knn_accuracy', 'linear_accuracy')}})
    print('| variant | regression loss | feature rank | projection rank | projection spread | kNN % | '
          'linear % |\n|---|---|---|---|---|---|---|')
    for row in table:
        print(f'| {row["variant"]} | {row["regression_loss"]:.3g} | {row["feature_rank"]:.1f} | '
              f'{row["projection_rank"]:.1f} | {row["projection_spread"]:.3f} | '
              f'{100 * row["knn_accuracy"]:.1f} | {100 * row["linear_accuracy"]:.1f} |')
    keep('collapse', f'{arguments.steps} steps', table)
    draw(runs, ROOT / 'docs/collapse.svg')


if __name__ == '__main__':
    main()
