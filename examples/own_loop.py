"""SimCLR in a loop of your own, in Flax and optax: python examples/own_loop.py [STEPS]

60 steps show that it runs; it takes hundreds for an encoder that is worth something.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import simclr_jax

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
BATCH = 128
# Smaller crops, as the paper has them, often miss the shape.
VIEW = simclr_jax.View.simclr(strength=0.5, blur=False).replace(
    crop={'probability': 1.0, 'area': (0.5, 1.0)})


class Network(nn.Module):
    """Images to (h, ..., z): the features, and the outputs of the head's layers."""

    @nn.compact
    def __call__(self, images, train):
        resnet = simclr_jax.ResNet(depth=10, width=0.25, stem='cifar', zero_init_last_gamma=False)
        return simclr_jax.ProjectionHead()(resnet(images, train), train)


network = Network()
optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))


@jax.jit
def train_step(variables, opt_state, images, key):
    views = jnp.concatenate(simclr_jax.two_views(images, key, VIEW, image_size=32))

    def loss_of(params):
        outputs, updates = network.apply(
            {**variables, 'params': params}, views, True, mutable=['batch_stats'])
        view1, view2 = jnp.split(outputs[-1], 2)
        loss, metrics = simclr_jax.nt_xent(view1, view2, temperature=0.2)
        return loss, (metrics, updates)

    params = variables['params']
    (loss, (metrics, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return {'params': optax.apply_updates(params, updates), **stats}, opt_state, loss, metrics


@jax.jit
def encode(variables, images):
    return network.apply(variables, images / 255, False)[0]


def knn(variables):
    h1, h2 = (np.concatenate([encode(variables, images)
                              for images in np.split(source.images, len(source) // 500)])
              for source in (train, test))
    return simclr_jax.knn(h1, train.labels, h2, test.labels)


train = simclr_jax.load_source('shapes:4000', 'train')
test = simclr_jax.load_source('shapes:4000', 'test')
untrained = jax.jit(network.init, static_argnums=2)(jax.random.key(0), test.images[:1] / 255, True)
variables, opt_state = untrained, optimizer.init(untrained['params'])
rows, key = np.random.default_rng(0), jax.random.key(1)
for step in range(STEPS):
    images = train.images[rows.choice(len(train), BATCH, replace=False)]
    variables, opt_state, loss, metrics = train_step(
        variables, opt_state, images, jax.random.fold_in(key, step))
    if step % 10 == 0 or step == STEPS - 1:
        print(f'step {step}: loss {loss:.3f}, accuracy {metrics["contrastive_accuracy"]:.3f}')
print(f'kNN trained {knn(variables):.3f} untrained {knn(untrained):.3f}')
