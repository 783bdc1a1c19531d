"""SimCLR, MoCo v2 and BYOL at equal compute: the same data, encoder, optimiser and evaluation.

    python benchmarks/three_methods.py --config=configs/smoke.py --steps=500
    python benchmarks/three_methods.py --config=configs/fashion_mnist.py --steps=235 -- \
        --config.data.dir=TFDS_DIR

Trains CONFIG:method=NAME for each method with `python -m simclr_jax.main`. SimCLR takes `--steps` steps;
the others as many as cost the same number of FLOPs, counted in the traced training step (matrix
products and convolutions, forward and backward, target network included). What follows `--` goes to
every run. Prints a table with the floors and adds it to benchmarks/three_methods.json.
"""

import argparse
import pathlib
import runpy
import tempfile

import jax
import jax.numpy as jnp
from runs import ROOT, keep, train

from simclr_jax.inspect.hlo import count_flops
from simclr_jax.runtime import sharding
from simclr_jax.train import build

METHODS = ('simclr', 'moco_v2', 'byol')


def step_flops(config):
    """FLOPs of one training step."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    # Ten classes, as both data sets; the other two numbers are the schedule's and change no FLOPs.
    _, init_state, train_step, _ = build(config, mesh, num_classes=10, num_examples=10_000, num_steps=1000)
    size = config.augment.image_size
    view = jax.ShapeDtypeStruct((config.batch_size, size, size, 3), jnp.float32)
    batch = {'view1': view, 'view2': view, 'label': jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)}
    return count_flops(jax.make_jaxpr(train_step)(jax.eval_shape(init_state), batch).jaxpr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--config', default='configs/smoke.py')
    parser.add_argument('--steps', type=int, default=500)
    parser.add_argument('--methods', nargs='+', default=METHODS)
    parser.add_argument('--workdir', type=pathlib.Path, help='keeps the runs; default: a temporary one')
    parser.add_argument('more', nargs='*')
    arguments = parser.parse_args()
    workdir = arguments.workdir or pathlib.Path(tempfile.mkdtemp())
    flops = {name: step_flops(runpy.run_path(ROOT / arguments.config)['get_config'](f'method={name}'))
             for name in ('simclr', *arguments.methods)}
    table = []
    for method in arguments.methods:
        steps = round(arguments.steps * flops['simclr'] / flops[method])
        # Measurements between would be billed to the training; the table has its own at the end.
        run = train(workdir / method, f'--config={arguments.config}:method={method}',
                    f'--config.num_train_steps={steps}', '--config.eval.knn_every_epochs=0', *arguments.more)
        health = [row for row in run['metrics'] if 'feature_rank' in row][-1]
        table.append({
            'method': method, 'steps': steps, 'gflops_per_step': flops[method] / 1e9,
            'seconds': run['seconds'],
            **{f'{encoder} {kind}': row.get(f'{kind}_accuracy') for encoder, row in run['results'].items()
               for kind in ('knn', 'linear')},
            'feature_rank': health['feature_rank'], 'projection_spread': health['projection_spread']})
    print_table(arguments.config, table)
    keep('three_methods', arguments.config, table)


def print_table(title, table):
    print(f'\n{title}\n| method | steps | GFLOPs a step | kNN % | linear % | random kNN % | '
          'random linear % | raw pixels kNN % | feature rank |\n|---|---|---|---|---|---|---|---|---|')
    for row in table:
        shares = [row.get(name) for name in ('pretrained knn', 'pretrained linear', 'random knn',
                                             'random linear', 'raw pixels knn')]
        print(f'| {row["method"]} | {row["steps"]} | {row["gflops_per_step"]:.1f} | '
              + ' | '.join('' if share is None else f'{100 * share:.1f}' for share in shares)
              + f' | {row["feature_rank"]:.1f} |')


if __name__ == '__main__':
    main()
