"""Our side of train_step.py, a program that takes turns: `train_step_ours.py '{"task": ...}'`.

The contender "plain" does without our compiled loops for a CPU: the plain Flax form, as XLA makes it.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import sys
from unittest import mock

from turns import keep_freed_memory, peak_resident, reset_peak, seconds_a_call, serve, timed

keep_freed_memory()

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
if importlib.util.find_spec('rich') is None:            # shows progress, which nobody sees here
    for name in ('', '.console', '.progress', '.table'):
        sys.modules[f'rich{name}'] = mock.MagicMock()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.extend.core import ClosedJaxpr  # noqa: E402

from simclr_jax import config as recipes, train
from simclr_jax.data import loading  # noqa: E402
from simclr_jax.evaluate.accuracies import frozen_accuracies  # noqa: E402
from simclr_jax.inspect import hlo as facts
from simclr_jax.models.building import make_network  # noqa: E402
from simclr_jax.models.cpu import loops
from simclr_jax.models.cpu.convolution import convolve
from simclr_jax.runtime import sharding
from simclr_jax.training import steps


def make_config(spec):
    """The recipe of `spec`; see RECIPE in train_step.py for its numbers."""
    config = recipes.base_config()
    config.batch_size, config.num_train_steps = spec['batch'], spec['max_steps']
    config.encoder.dtype = spec['dtype']
    if spec['vit']:
        config.encoder.update({'name': 'vit', 'arguments': {'size': spec['vit'], 'patch': 16}})
    else:
        config.encoder.update({name: spec[name] for name in ('depth', 'width', 'stem')})
    recipes.use_method(config, 'simclr', num_layers=spec['head_layers'], out_dim=spec['out_dim'])
    config.method.temperature = spec['temperature']
    config.augment = recipes.augment_config(image_size=spec['size'], strength=0.5, blur=False)
    config.augment.crop.update({'law': 'uniform', 'area': tuple(spec['area']),
                                'aspect': tuple(spec['aspect'])})
    config.augment.jitter.update({name: spec[name] for name in ('brightness', 'contrast', 'saturation',
                                                                'hue')})
    config.optimizer.update({'name': 'sgd', 'learning_rate': spec['rate'], 'scaling': 'linear',
                             'momentum': spec['momentum'], 'weight_decay': spec['decay']})
    config.eval.update({'online_probe': False, 'crop_proportion': 1.0, 'batch_size': 2000,
                        'knn_k': spec['knn_k'], 'knn_temperature': spec['knn_temperature']})
    return config


class Training:
    """The real step on one device: on prepared views, or with a data set and its views made there."""

    def __init__(self, spec):
        self.config, self.mesh = make_config(spec), sharding.make_mesh(jax.devices()[:1])
        self.batch_size, num_examples = spec['batch'], 1000 * spec['batch']
        if spec['augmented']:
            self.train_source, self.test_source = (
                loading.load_source(f'arrays:{spec["data"]}', split) for split in ('train', 'test'))
            num_examples = self.train_source.num_examples
        # A quarter of a step more, so that no rounding of epochs moves the last step of the warm-up.
        self.config.schedule.warmup_epochs = (spec['warmup'] + 0.25) * spec['batch'] / num_examples
        self.inputs = train.make_inputs(self.config, form='memory' if spec['augmented'] else 'views')
        network, self.init_state, self.train_step, self.shardings = train.build(
            self.config, self.mesh, num_examples=num_examples, num_classes=10, num_steps=spec['max_steps'],
            inputs=self.inputs)
        self.encode = jax.jit(steps.make_encode(network))

    def start(self):
        """Data, state, and the first step."""
        if hasattr(self, 'train_source'):
            self.batches = self.inputs.batches(self.train_source, self.mesh)
        else:
            views = np.random.default_rng(0).random(
                (2, self.batch_size, *2 * [self.config.augment.image_size], 3), np.float32)
            batch = sharding.put_batch(self.mesh, {'view1': views[0], 'view2': views[1],
                                                   'label': np.zeros(self.batch_size, np.int32)})
            self.batches = iter(lambda: batch, None)
        self.state = steps.jit_seldom(self.init_state, out_shardings=self.shardings)()
        self.run(1)

    def run(self, count):
        """The loss of the last of `count` steps."""
        for _ in range(count):
            self.state, metrics = self.train_step(self.state, next(self.batches))
        return float(metrics['contrastive_loss'])

    def turn(self, count):
        answer = timed(lambda: self.run(count))
        return answer | {'peak': device_peak() or peak_resident()}

    def accuracy(self):
        encode = functools.partial(self.encode, self.state.variables())
        return {'knn': frozen_accuracies(encode, self.train_source, self.test_source, self.config, self.mesh,
                               linear=False)['knn_accuracy']}

    def roofline(self):
        """What the compiled step asks for, and how fast this device copies."""
        program = self.train_step.lower(self.state, next(self.batches)).compile()
        cost = program.cost_analysis() or {}
        return {'xla_flops': cost.get('flops'), 'bytes': cost.get('bytes accessed'),
                'loops_counted_once': facts.has_loops(program.as_text()),
                'copied_bytes_a_second': copy_rate()}


def device_peak():
    """Bytes of device memory in use at most, 0 where the device does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)


def copy_rate():
    """Bytes read and written in a second by a program that reads an array and writes another."""
    on_cpu = jax.default_backend() == 'cpu'
    x = jnp.zeros((1 << 26 if on_cpu else 1 << 28,), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    jax.block_until_ready(add(x))
    return 2 * x.nbytes / seconds_a_call(lambda count: repeat(add, (x,), count), 0.5)


def matmul(side, dtype):
    """FLOP/s of a square matrix product."""
    a, b = (jax.random.normal(jax.random.key(seed), (side, side), dtype) for seed in (0, 1))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, b))
    return {'flops': 2 * side ** 3 / seconds_a_call(lambda count: repeat(product, (a, b), count), 0.3)}


def repeat(function, arguments, count):
    """Calls it; on a CPU one after the other, on an accelerator as its queue takes them."""
    wait_each = jax.default_backend() == 'cpu'
    for _ in range(count):
        result = function(*arguments)
        if wait_each:
            jax.block_until_ready(result)
    jax.block_until_ready(result)


# ---------------------------------------------------------------------------------------------------
# Single convolutions


@functools.lru_cache(maxsize=1)
def layer_program(kind, images, kernel, stride, dtype):
    """(a jitted function, its arguments) of one convolution, or of one of its gradients."""
    keys, pads = jax.random.split(jax.random.key(0), 3), ((kernel[0] // 2,) * 2,) * 2
    x = jax.random.normal(keys[0], images, dtype)
    w = 0.1 * jax.random.normal(keys[1], kernel, dtype)

    def forward(x, w):
        return convolve(x, w, stride=stride, padding=pads)

    def kernel_gradient(x, w, g):
        return jax.vjp(lambda w: forward(x, w), w)[1](g)

    def input_gradient(x, w, g):
        return jax.vjp(lambda x: forward(x, w), x)[1](g)

    out = jax.eval_shape(forward, x, w)
    g = jax.random.normal(keys[2], out.shape, out.dtype)
    function, arguments = {'forward': (forward, (x, w)), 'kernel gradient': (kernel_gradient, (x, w, g)),
                           'input gradient': (input_gradient, (x, w, g))}[kind]
    program = jax.jit(function)
    jax.block_until_ready(program(*arguments))
    return program, arguments


def layer(kind, images, kernel, stride, dtype, budget):
    program, arguments = layer_program(kind, tuple(images), tuple(kernel), stride, dtype)
    return {'seconds': seconds_a_call(lambda count: repeat(program, arguments, count), budget)}


def convolutions(jaxpr):
    """(images, kernel, stride) of every convolution of a jaxpr, in order."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'conv_general_dilated':
            x, w = (variable.aval.shape for variable in equation.invars)
            yield x, w, equation.params['window_strides'][0]
        for value in equation.params.values():
            if isinstance(value, ClosedJaxpr):
                yield from convolutions(value.jaxpr)


def trace(spec):
    """{'flops' of a step, 'convolutions' of the encoder}, of the plain form."""
    training = Training(spec | {'augmented': False})
    batch = dataclasses.replace(training.inputs, transfer='float32').abstract_batch(training.mesh)
    step = training.train_step.trace(jax.eval_shape(training.init_state), batch)
    network = make_network(encoder=training.config.encoder.to_dict(), head={'mode': 'none'})
    images = jnp.zeros((2 * spec['batch'], spec['size'], spec['size'], 3))
    variables = jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), images[:1])
    forward = jax.make_jaxpr(functools.partial(network.apply, train=False))(variables, images)
    return {'flops': facts.count_flops(step.jaxpr.jaxpr), 'convolutions': list(convolutions(forward.jaxpr))}


def main():
    spec = json.loads(sys.argv[1])
    plain = spec['contender'] == 'plain' or spec['task'] == 'trace'
    os.environ[loops.SWITCH] = 'off' if plain else ''
    if spec['task'] == 'trace':
        return serve(trace(spec), {})
    device = jax.devices()[0]
    ready = {'backend': jax.default_backend(), 'device': device.device_kind,
             'versions': {'python': sys.version.split()[0], 'jax': jax.__version__}}
    if spec['task'] == 'layers':
        return serve(ready, {'layer': layer})
    training = Training(spec)
    training.start()
    reset_peak()
    shapes = [leaf.shape for leaf in jax.tree.leaves(training.state.params)]
    serve(ready | {'shapes': sorted(map(sorted, shapes))}, {
        'steps': training.turn, 'matmul': matmul, 'roofline': training.roofline,
        'accuracy': training.accuracy})


if __name__ == '__main__':
    main()
