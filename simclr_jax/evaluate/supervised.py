"""What a linear probe by SGD and fine-tuning share: labelled crops, loss, loop and accuracies."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax.config import ConfigDict
from simclr_jax.data import batches
from simclr_jax.data.source import Source
from simclr_jax.runlog.writer import MetricWriter
from simclr_jax.runtime import sharding
from simclr_jax.views.presets import crop_and_flip_of


def labelled_crops(config: ConfigDict, augment: ConfigDict, source: Source, batch_size: int
                   ) -> tuple[Iterator[dict], Callable[[dict], jax.Array]]:
    """Batches {'label': [B], ...} of this process's rows, and (a batch on the devices) -> crops [B, S, S, 3].

    augment: of the run that trained the encoder: the size of the crops, and how crops and flips are drawn.
    """
    crops = {'seed': config.seed, 'image_size': augment.image_size, 'view': crop_and_flip_of(augment)}
    drawn = batches.probe_batches(source, batch_size=batch_size, num_threads=config.data.num_threads, **crops)
    return drawn, batches.make_crops_and_flips(**crops)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy, and top-1 accuracy, of logits [B, C] over the rows with a label; -1 is none."""
    known = labels >= 0
    count = jnp.maximum(known.sum(), 1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
    return (losses * known).sum() / count, (logits.argmax(-1) == labels).sum() / count


def fit(step_function: Callable, state: Any, batches: Iterator[dict], rows_of: Callable[[dict], jax.Array], *,
        num_steps: int, mesh: jax.sharding.Mesh, log: Callable[[int, dict], None], name: str) -> Any:
    """The state after `num_steps` of step_function(state, rows, labels, step) -> (state, metrics).

    Args:
        batches: numpy, the rows of this process.
        rows_of: a batch, sharded over `mesh` -> rows [B, ...].
        name: of the block whose learning rate is to be lowered where the state is not finite any more.

    Raises:
        FloatingPointError: it diverged.
    """
    metrics = None
    for step in range(num_steps):
        batch = sharding.put_batch(mesh, next(batches))
        rows = rows_of(batch)
        jax.block_until_ready(metrics)      # one step ahead is enough; more only fills the memory
        state, metrics = step_function(state, rows, batch['label'], step)
        log(step + 1, metrics)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state))):
        raise FloatingPointError(f'The training diverged: lower {name}.learning_rate.')
    return state


def accuracies(logits: np.ndarray, labels: np.ndarray, name: str = 'linear') -> dict[str, float]:
    """Top-1 of logits [N, C] as 'NAME_accuracy', and of more than 5 classes top-5 as 'NAME_top5_accuracy'."""
    ranked = np.argsort(-logits, axis=-1, kind='stable')[:, :5]
    hits = ranked == labels[:, None]
    top5 = {f'{name}_top5_accuracy': float(hits.any(-1).mean())} if logits.shape[-1] > 5 else {}
    return {f'{name}_accuracy': float(hits[:, 0].mean()), **top5}


def log_to(writer: MetricWriter, *, every: int, offset: int, name: str) -> Callable[[int, dict], None]:
    """(step, metrics) -> a row under NAME_..., every so many steps, its number `offset` further."""

    def log(step: int, metrics: dict) -> None:
        if step % every == 0:
            writer.write(offset + step, {f'{name}_{key}': value for key, value in metrics.items()})

    return log
