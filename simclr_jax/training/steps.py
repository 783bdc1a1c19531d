"""What runs on the accelerator: the state at step 0, one training step, and images to features."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from simclr_jax.training.leaves import Leaves, OneByOne
from simclr_jax.training.state import TrainState

OF_ROWS = ('step', 'time', 'images_per_second', 'input_wait_ms', 'input_wait_share')    # what the log adds to a row


def jit_seldom(function: Callable, **options) -> Callable:
    """`jax.jit` for what runs once or seldom: on a CPU it compiles up to six times faster.

    XLA's CPU compiler takes seconds to optimise the drawing of random numbers, once for each shape.
    """
    if jax.default_backend() == 'cpu':
        options['compiler_options'] = {'xla_backend_optimization_level': 0}
    return jax.jit(function, **options)


def make_init_state(method, optimizer: Callable, *, seed: int, image_size: int, channels: int = 3
                    ) -> Callable[[], TrainState]:
    """A function without arguments that returns the state at step 0, a pure function of `seed`."""

    def init_state() -> TrainState:
        images = jnp.zeros((1, image_size, image_size, channels))
        params, batch_stats, method_state = method.init(jax.random.key(seed), images)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, batch_stats=batch_stats,
                          opt_state=optimizer(0.0).init(params), method_state=method_state)

    return init_state


def make_train_step(method, optimizer: Callable, learning_rate: Callable, *, seed: int,
                    prepare: Callable = lambda batch, step: batch,
                    update_metrics: Callable = lambda params, gradients: {}, leaves: Leaves = OneByOne()
                    ) -> Callable:
    """(state, batch) -> (state, metrics), for the caller to jit with shardings and a donated state.

    Args:
        method: three pure functions, see methods/base.py.
        optimizer: learning rate -> optax.GradientTransformation, see optimizers.py. It is rebuilt in every
            trace, so that the learning rate is a function of the state's step and of nothing else.
        learning_rate: step -> float32 scalar.
        seed: with the state's step, it gives the key of whatever the method draws.
        prepare: (batch, step) -> the batch that the method sees, see data/batches.py.
        update_metrics: (params, gradients) -> more metrics, float32.
        leaves: how the gradients and their norm are gone over, see leaves.py.

    Returns:
        A function whose metrics (float32 scalars, but for those of `update_metrics`) are `loss` (what is
        differentiated, unless the method gives another), those of the method, `gradient_norm` and
        `learning_rate`, all of the step that it has just made.
    """

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        rate = learning_rate(state.step)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        # The scopes, and 'loss' in the methods, are what step_breakdown.py tells the parts of a step by.
        with jax.named_scope('views'):
            views = prepare(batch, state.step)
        (loss, aux), gradients = jax.value_and_grad(method.loss, has_aux=True)(
            state.params, state.batch_stats, state.method_state, views, key)
        with jax.named_scope('optimizer'):
            gradients, of_probe = _split_probe(leaves.arranged(gradients))
            updates, opt_state = optimizer(rate).update(gradients, state.opt_state, state.params)
            if of_probe:
                updates = updates | _probe_updates(of_probe)
            params = optax.apply_updates(state.params, updates)
            of_step = {'gradient_norm': leaves.norm(gradients), 'learning_rate': rate,
                       **update_metrics(state.params, gradients)}
            for name, value in aux.metrics.items():
                if name in of_step or name in OF_ROWS:
                    raise ValueError(f"The method gives the metric '{name}', which every step has: "
                                     'give it another name.')
                if jnp.ndim(value) or not jnp.isrealobj(value):
                    raise ValueError(f"The method's metric '{name}' is {jax.typeof(value)}: a metric is a real scalar.")
            metrics = {'loss': loss, **aux.metrics, **of_step}
            state = TrainState(
                step=state.step + 1, params=params, batch_stats=aux.batch_stats, opt_state=opt_state,
                method_state=method.after_update(state.method_state, params, aux, state.step))
        return state, metrics

    return train_step


def _split_probe(gradients: dict) -> tuple[dict, dict]:
    """The gradients with zeros for the online probe, which keeps its optimiser state; and the probe's."""
    if not (isinstance(gradients, dict) and 'probe' in gradients):
        return gradients, {}
    of_probe = {'probe': gradients['probe']}
    return gradients | jax.tree.map(jnp.zeros_like, of_probe), of_probe


def _probe_updates(gradients: dict) -> dict:
    """Gradient descent with a step that no data and no encoder can make unstable.

    The Hessian of softmax regression is at most half the mean squared length of its inputs (Boehning 1992),
    which for D standardised features and a bias is D + 1: a step of 2 / (D + 1) never raises the loss of the
    batch. The official code trains the probe with the optimiser and the rate of all else (tf2/run.py).
    """
    rate = 2 / (gradients['probe']['kernel'].shape[0] + 1)
    return jax.tree.map(lambda gradient: -rate * gradient, gradients)


def make_encode(network, *, layer: int = 0) -> Callable[[dict, jax.Array], jax.Array]:
    """(variables, images [N, H, W, 3]) -> features [N, D] float32, with the running BatchNorm statistics.

    layer: 0 for h, k for the output of head layer k, -1 for the projection z; tracing another
    one raises ValueError. Predictor and probe are not needed: the variables may be a target's.
    """
    bare = network.clone(predictor=None, num_classes=0)

    def encode(variables: dict, images: jax.Array) -> jax.Array:
        layers = bare.apply(variables, images, train=False).layers
        if not -len(layers) <= layer < len(layers):
            raise ValueError(f'layer is {layer}: the head has layers 0 (features) to {len(layers) - 1} '
                             '(projection), which is also -1.')
        return layers[layer]

    return encode
