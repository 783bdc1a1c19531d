"""MoCo's leak through BatchNorm: may a query's group of images be normalised together with its keys?

    python benchmarks/moco_leak.py [--steps=300]

Trains configs/smoke.py:method=moco_v2 with BatchNorm over 8 groups of the batch, as on 8 unsynchronised
GPUs, and the keys' groups (1) the same as the queries', (2) strided, (3) shuffled; and with one
synchronised group. Prints contrastive accuracy against kNN and writes benchmarks/moco_leak.json.
"""

import argparse
import pathlib
import tempfile

from runs import keep, train

VARIANTS = {'the same 8 groups (leaks)': (8, 'same'), '8 strided groups': (8, 'strided'),
            '8 groups, images shuffled': (8, 'shuffled'), '1 group, synchronised': (1, 'strided')}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--workdir', type=pathlib.Path, help='keeps the runs; default: a temporary one')
    arguments = parser.parse_args()
    workdir = arguments.workdir or pathlib.Path(tempfile.mkdtemp())
    table = []
    for number, (name, (groups, key_groups)) in enumerate(VARIANTS.items()):
        run = train(workdir / str(number), '--config=configs/smoke.py:method=moco_v2',
                    f'--config.num_train_steps={arguments.steps}', f'--config.encoder.norm_groups={groups}',
                    f'--config.method.key_groups={key_groups}', '--config.eval.knn_every_epochs=0')
        rows = [row for row in run['metrics'] if 'contrastive_accuracy' in row]
        # A batch is 256 queries: the mean of the last rows is less noisy.
        accuracy, loss = (sum(row[key] for row in rows[-3:]) / 3
                          for key in ('contrastive_accuracy', 'contrastive_loss'))
        table.append({'key groups': name, 'contrastive_accuracy': accuracy, 'loss': loss,
                      **{kind: run['results']['pretrained'][kind]
                         for kind in ('knn_accuracy', 'linear_accuracy')}})
    print('| BatchNorm of the keys | contrastive accuracy % | contrastive loss | kNN % | linear % |'
          '\n|---|---|---|---|---|')
    for row in table:
        print(f'| {row["key groups"]} | {100 * row["contrastive_accuracy"]:.1f} | {row["loss"]:.2f} | '
              f'{100 * row["knn_accuracy"]:.1f} | {100 * row["linear_accuracy"]:.1f} |')
    keep('moco_leak', f'{arguments.steps} steps', table)


if __name__ == '__main__':
    main()
