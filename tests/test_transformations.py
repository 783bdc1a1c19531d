"""Which of JAX's transformations hold for each public function, with and without the compiled loops of a CPU.

The table in docs/transformations.md is what these tests find: `python tests/test_transformations.py --update`
writes it anew, and a test compares it.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import simclr_jax
from simclr_jax.models.cpu import loops
from simclr_jax.objectives.margin import margin_triplet
from simclr_jax.objectives.nt_logistic import nt_logistic
from tests.encoders import OneBlock

DOCUMENT = pathlib.Path(__file__).parent.parent / 'docs' / 'transformations.md'
HEADER = """# JAX transformations of the public functions

Each entry is what `tests/test_transformations.py` finds, on one CPU device with the compiled loops; written by
`python tests/test_transformations.py --update`. `hessian` is a Hessian-vector product, forward over reverse, and
reverse over reverse (a gradient penalty); `export` is `jax.export` for CPU, TPU and CUDA with `serialize`, of
the function and of its gradient; `shard_map` maps the function over the devices, one batch each.

Beside them: `jax.grad` outside `jit` of arrays whose type holds an Explicit sharding needs `jax.set_mesh`, as it
does for `jnp.sum`. `simclr_views`, `moco_views` and `byol_views` are `two_views` by a preset, and that is `augment`
of each image, whose row is of a view with the operations of all three. `load_encoder`, kNN and the other evaluations
take and give numpy arrays: they are for no transformation.

"""


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def network():
    encoder = OneBlock(width=4)
    init = jax.jit(encoder.init, static_argnums=2)
    with jax.ensure_compile_time_eval():                            # the same arrays within any trace
        return encoder, init(jax.random.key(0), np.zeros((1, 4, 4, 3), np.float32), True)


def encode(images, train):
    encoder, variables = network()
    features, _ = encoder.apply(variables, images, train, mutable=['batch_stats'])
    return jnp.sin(features).sum()


def project(features):
    head = simclr_jax.ProjectionHead()
    variables = jax.eval_shape(lambda: head.init(jax.random.key(0), draw(4, 6), True))
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), variables)
    layers, _ = head.apply(variables, features, True, mutable=['batch_stats'])
    return jnp.sin(layers[-1]).sum()


def views(images):
    view = simclr_jax.View().replace(crop={'probability': 1.0}, flip={'probability': 0.5})
    return sum(made.sum() for made in simclr_jax.two_views(images, KEY, view, image_size=6))


def view_of(image):
    view = simclr_jax.View.moco().replace(solarize={'probability': 0.2}, blur={'kernel_fraction': 0.6})
    return simclr_jax.augment(image, KEY, view, image_size=6).sum()


def lars_step(kernel):
    optimizer, params = simclr_jax.lars(0.5, weight_decay=0.01), {'kernel': kernel}
    updates, _ = optimizer.update({'kernel': jnp.sin(kernel)}, optimizer.init(params), params)
    return updates['kernel'].sum()


IMAGES = np.random.default_rng(0).random((4, 8, 8, 3)).astype(np.float32)
KEY = jax.random.key(0)
# name: (a function of one array to a scalar, the array)
FUNCTIONS = {
    'nt_xent': (lambda z: simclr_jax.nt_xent(z, z[::-1] + 1, temperature=0.5)[0], draw(4, 3)),
    'info_nce': (lambda z: simclr_jax.info_nce(unit(z), unit(z + 1), unit(2 * z[:3]), temperature=0.5)[0], draw(4, 3)),
    'nt_logistic': (lambda z: nt_logistic(z, z * z, temperature=0.5)[0], draw(4, 3)),
    'margin_triplet': (lambda z: margin_triplet(z, z * z, margin=0.5)[0], draw(4, 3)),
    'cosine_regression': (lambda z: simclr_jax.cosine_regression(z, z * z).mean(), draw(4, 3)),
    'ResNet(train=False)': (lambda images: encode(images, False), IMAGES),
    'ResNet(train=True)': (lambda images: encode(images, True), IMAGES),
    'ProjectionHead(train=True)': (project, draw(4, 6)),
    'two_views': (views, IMAGES[:2]),
    'augment': (view_of, IMAGES[0]),
    'eval_crop': (lambda image: simclr_jax.eval_crop(image, image_size=6, proportion=0.875).sum(), IMAGES[0]),
    'lars': (lars_step, draw(4, 3)),
    'warmup_cosine': (lambda step: simclr_jax.warmup_cosine(step, peak=0.5, warmup_steps=2, total_steps=9).sum(),
                      np.float32([1, 3, 5])),
    'epoch_cosine': (lambda step: simclr_jax.epoch_cosine(step, peak=0.5, steps_per_epoch=2, num_epochs=4).sum(),
                     np.float32([1, 3, 5])),
}
# For no transformation: they take or give data, runs, meshes and other objects of the host.
OF_THE_HOST = {'Encoder', 'View', 'config', 'knn', 'linear_probe', 'load_encoder', 'load_source', 'make_mesh',
               'pretrain'}


@functools.cache
def compiled(f):
    return jax.jit(f)


@functools.cache
def gradient(f):
    return jax.jit(jax.grad(f))


def of_shard_map(f, x):
    mesh = jax.make_mesh((len(jax.devices()),), ('devices',), axis_types=(AxisType.Auto,))
    mean = jax.shard_map(lambda x: jax.lax.pmean(f(x[0]), 'devices'), mesh=mesh, in_specs=P('devices'), out_specs=P())
    return jax.jit(jax.value_and_grad(mean))(np.stack([x] * len(jax.devices())))


def of_export(f, x):
    exported = jax.export.export(jax.jit(jax.value_and_grad(f)), platforms=('cpu', 'tpu', 'cuda'))(x)
    value, slope = jax.export.deserialize(exported.serialize()).call(x)
    np.testing.assert_allclose(value, compiled(f)(x), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(slope, gradient(f)(x), rtol=1e-3, atol=1e-4)


def of_debug_nans(f, x):
    with jax.debug_nans(True):
        return gradient(f)(x)


def of_vmap(f, x):
    both = jax.jit(jax.vmap(f))(np.stack([x, 0.5 * x]))
    np.testing.assert_allclose(both, [compiled(f)(x), compiled(f)(0.5 * x)], rtol=1e-4, atol=1e-4)


def of_jvp(f, x):
    along = jax.jit(lambda x: jax.jvp(f, (x,), (x,))[1])(x)
    np.testing.assert_allclose(along, jnp.vdot(gradient(f)(x), x), rtol=1e-3, atol=1e-3)


def of_hessian(f, x):
    slope = jax.grad(f)
    forward, reverse = jax.jit(lambda x: (jax.jvp(slope, (x,), (x,))[1],
                                          jax.grad(lambda y: jnp.vdot(slope(y), x))(x)))(x)
    np.testing.assert_allclose(forward, reverse, rtol=1e-3, atol=1e-3 * (1 + np.abs(forward).max()))


TRANSFORMATIONS = {
    'jit': lambda f, x: compiled(f)(x),
    'vmap': of_vmap,
    'grad': lambda f, x: gradient(f)(x),
    'jvp': of_jvp,
    'hessian': of_hessian,
    'remat': lambda f, x: jax.jit(jax.grad(jax.checkpoint(f)))(x),
    'scan': lambda f, x: jax.jit(lambda x: jax.lax.scan(lambda _, x: (0, f(x)), 0, jnp.stack([x, x])))(x),
    'shard_map': of_shard_map,
    'export': of_export,
    'debug_nans': of_debug_nans,
}


def row(name):
    """The table's line of a function; the words of an error follow it."""
    cells, errors = [], []
    for transformation, run in TRANSFORMATIONS.items():
        try:
            jax.block_until_ready(run(*FUNCTIONS[name]))
            cells.append('yes')
        except Exception as error:                                  # whatever it is, the table says so
            cells.append('no')
            errors.append(f'{transformation}: {error!r}')
    return f'| `{name}` | {" | ".join(cells)} |', errors


@pytest.mark.parametrize('name', FUNCTIONS)
def test_the_table_of_transformations_says_what_holds(name, monkeypatch):
    if loops.are_built():
        monkeypatch.setattr(jax, 'device_count', lambda: 1)         # as on one device: with the loops, and branches
    line, errors = row(name)
    assert line in DOCUMENT.read_text().splitlines(), errors


def test_the_table_has_every_public_function():
    named = {name.partition('(')[0] for name in FUNCTIONS} | OF_THE_HOST | {'simclr_views', 'moco_views', 'byol_views'}
    assert named - {'nt_logistic', 'margin_triplet'} == {*simclr_jax.__all__}


def test_nothing_is_compiled_twice_outside_jit():
    compiled = []
    listener = lambda event, _, **__: compiled.append(event) if 'backend_compile' in event else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        z, image = draw(4, 3), IMAGES[0]
        encoder, variables = network()
        calls = [function for name, (function, _) in FUNCTIONS.items() if 'ResNet' not in name]
        inputs = [array for name, (_, array) in FUNCTIONS.items() if 'ResNet' not in name]
        everything = [
            *(functools.partial(f, x) for f, x in zip(calls, inputs)),
            lambda: jax.grad(lambda z: simclr_jax.nt_xent(z, z[::-1] + 1, temperature=0.5)[0])(z),
            lambda: encoder.apply(variables, IMAGES, False),
            lambda: simclr_jax.eval_crop(image, image_size=6, proportion=0.875)]
        for call in everything:
            jax.block_until_ready(call())
        assert compiled                                             # the count can tell
        compiled.clear()
        for call in everything:
            jax.block_until_ready(call())
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


if __name__ == '__main__' and '--update' in sys.argv:
    table = [f'| function | {" | ".join(TRANSFORMATIONS)} |', f'|---|{"---|" * len(TRANSFORMATIONS)}']
    for name in FUNCTIONS:
        line, errors = row(name)
        print(line, *errors, sep='\n', flush=True)
        table.append(line)
    DOCUMENT.write_text(HEADER + '\n'.join(table) + '\n')
