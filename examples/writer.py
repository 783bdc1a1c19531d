"""A writer of your own: it gets every row of numbers, every note and every image of a run.

    python examples/writer.py WORKDIR

In a config: `log.writers = ('examples.writer:Csv',)`; the call is Csv(workdir, start_step=..., config=...).
"""

import csv
import os
import sys

import simclr_jax


class Csv:
    """The loss of each row, in workdir/loss.csv."""

    def __init__(self, workdir, *, start_step=0, config=None):
        os.makedirs(workdir, exist_ok=True)
        self._file = open(os.path.join(workdir, 'loss.csv'), 'a' if start_step else 'w')
        self._rows = csv.writer(self._file)

    def write(self, step, metrics):
        if 'loss' in metrics:
            self._rows.writerow([step, metrics['loss']])

    def note(self, text): ...

    def image(self, name, array): ...

    def close(self):        # optional
        self._file.close()


if __name__ == '__main__':
    config = simclr_jax.config.smoke(simclr_jax.config.base_config())
    config.num_train_steps, config.log.every_steps = 4, 2
    simclr_jax.pretrain(config, sys.argv[1], writers=[Csv(sys.argv[1])])
    print(open(os.path.join(sys.argv[1], 'loss.csv')).read())
