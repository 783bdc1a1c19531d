"""Instance discrimination (Wu et al. 2018): each image is a class, and a memory bank holds what stands for it."""

import jax
import jax.numpy as jnp

from simclr_jax.methods.base import Method
from simclr_jax.methods.parts import check_no_predictor, everywhere, with_probe
from simclr_jax.methods.queue import random_rows
from simclr_jax.models.network import Network, forward_train, init_variables
from simclr_jax.objectives.parts import checked_temperature, l2_normalize


def instance_discrimination(network: Network, *, num_train_steps: int, num_examples: int, temperature: float = 0.07,
                            negatives: int = 4096, memory_momentum: float = 0.5,
                            mesh: jax.sharding.Mesh | None = None) -> Method:
    """Instance discrimination around `network`, as zhirongw/lemniscate.pytorch lib/NCEAverage.py.

    View 1 of an image has to be told to be its row of the memory bank, and not one of m rows drawn from all,
    by noise-contrastive estimation (paper, sec. 3.2). View 2 is not used. The constant Z is n times the mean
    of the first global batch, and stays. Neither the code nor this has the paper's proximal term.

    Args:
        network, num_train_steps: see `Method`.
        num_examples: n, images of the training split, and rows of the bank.
        temperature: tau, more than 0.
        negatives: m, 1 or more, drawn anew for each image, with replacement; n where there are fewer images.
        memory_momentum: of an image's row when its new projection comes in, in [0, 1).
        mesh: the devices that share the batch; every one of them holds the whole bank.

    Raises:
        ValueError: values out of range, or a predictor.
    """
    del num_train_steps
    check_no_predictor(network, 'instance_discrimination')
    if negatives < 1 or not 0 <= memory_momentum < 1:
        raise ValueError(f'method.negatives is {negatives} and method.memory_momentum {memory_momentum}: the first '
                         'must be 1 or more, the second in [0, 1).')
    num_drawn, num_devices = min(negatives, num_examples), mesh.size if mesh else 1

    def init(key, images):
        variables = init_variables(network, key, images)
        bank = random_rows(network, variables, images, jax.random.fold_in(key, 1), num_examples)
        return variables['params'], variables['batch_stats'], {'memory': bank, 'z': jnp.zeros(())}

    def loss(params, batch_stats, method_state, batch, key):
        if 'index' not in batch:
            raise ValueError("method 'instance_discrimination' needs batch['index'], the number of each image in the "
                             'training split: views that were made elsewhere must bring it.')
        output, batch_stats = forward_train(network, params, batch_stats, batch['view1'], key=key,
                                            num_devices=num_devices)
        features, index = l2_normalize(output.projection), batch['index']        # [N, D], [N]
        with jax.named_scope('loss'):
            drawn = jax.random.randint(jax.random.fold_in(key, 1), (len(index), num_drawn), 0, num_examples)
            rows = method_state['memory'][jnp.concatenate([index[:, None], drawn], axis=1)]     # [N, 1 + m, D]
            similarity = jnp.einsum('nd,nkd->nk', features, rows, precision='highest')
            logits, z = similarity / checked_temperature('instance_discrimination', temperature), method_state['z']
            z = jnp.where(z > 0, z, num_examples * jax.lax.stop_gradient(jnp.exp(logits).mean()))
            # log P / (m Pn), where P = exp(logit) / Z, and Pn = 1 / n is the noise: eq. 6 and 7.
            odds = logits - jnp.log(z) - jnp.log(num_drawn / num_examples)
            value = (jax.nn.softplus(-odds[:, 0]) + jax.nn.softplus(odds[:, 1:]).sum(axis=1)).mean()
            own, others = similarity[:, 0], similarity[:, 1:]
            metrics = {'contrastive_accuracy': (own > others.max(axis=1)).mean(dtype=jnp.float32),
                       'positive_similarity': own.mean(), 'negative_similarity': others.mean()}
            return with_probe(value, metrics, output, batch['label'], batch_stats, (features, index, z))

    def after_update(method_state, params, aux, step):
        del params, step
        features, index, z = aux.carry
        features, index, bank = everywhere(features, mesh), everywhere(index, mesh), method_state['memory']
        rows = jnp.arange(len(index))
        # A batch in which an epoch ends may hold an image twice: its last row counts, whatever the device.
        last = jnp.full(num_examples, -1).at[index].max(rows)[index] == rows
        renewed = l2_normalize(memory_momentum * bank[index] + (1 - memory_momentum) * features)
        return {'memory': bank.at[jnp.where(last, index, num_examples)].set(renewed, mode='drop'), 'z': z}

    return Method(init, loss, after_update)
