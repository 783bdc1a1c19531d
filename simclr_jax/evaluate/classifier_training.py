"""What a linear probe by SGD, fine-tuning and distillation share: labelled crops, loss, loop and accuracies."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax.config import ConfigDict
from simclr_jax.data import batches
from simclr_jax.data.source import Source, labels_of, take_rows
from simclr_jax.evaluate.evaluated import Evaluated
from simclr_jax.evaluate.pretrained import as_imported
from simclr_jax.evaluate.subsets import balanced_rows
from simclr_jax.runlog.writer import MetricWriter
from simclr_jax.runtime import sharding
from simclr_jax.training import schedules
from simclr_jax.training.optimizers import Optimizer, make_optimizer
from simclr_jax.views.from_config import crop_and_flip_of
from simclr_jax.weights.tensors import write_flax


class Tuned(NamedTuple):
    """A network and a classifier on it, trained together."""

    variables: dict         # {'params', 'batch_stats'} of encoder and head
    kernel: jax.Array       # [D, C]
    bias: jax.Array         # [C]

    def test(self, evaluated: Evaluated, source: Source, name: str) -> tuple[dict[str, float], int]:
        """Accuracies on the labelled images of a split, see `accuracies`, and how many these are."""
        found, = evaluated.features(evaluated.encode_with(self.variables), source)
        return accuracies(found.features @ np.asarray(self.kernel) + np.asarray(self.bias), found.labels,
                          name), len(found.labels)

    def write(self, path: str, evaluated: Evaluated, source: str, *, has_classifier: bool = True, **card: Any) -> None:
        """A file that every task reads as `pretrained`; with the classifier if it sits on h."""
        variables, kernel, bias = jax.device_get(self)
        write_flax(path, as_imported(
            evaluated.pretrained, variables=variables, source=source,
            classifier={'kernel': kernel, 'bias': bias} if has_classifier else None,
            card={'recipe': evaluated.config.to_dict(), **card}))


def new_classifier(seed: int, width: int, num_classes: int) -> dict[str, jax.Array]:
    """Kernel [width, num_classes] and bias as tf2/model.py starts them."""
    kernel = 0.01 * jax.random.normal(jax.random.key(seed), (width, num_classes))
    return {'kernel': kernel, 'bias': jnp.zeros(num_classes)}


def optimizer_of(settings: ConfigDict) -> Optimizer:
    """That of a task's block. The classifier of the official code is called head_supervised, which LARS leaves out."""
    name = settings.get('optimizer', 'sgd')
    exclude = ('(^|/)classifier/',) if name == 'lars' else ()
    return make_optimizer(name, momentum=settings.momentum, nesterov=settings.nesterov,
                          weight_decay=settings.weight_decay, exclude=exclude)


def share_of_labels(source: Source, share: float, seed: int) -> Source:
    """The examples of a class-balanced share of the labels, see `balanced_rows`."""
    return take_rows(source, balanced_rows(labels_of(source), share, seed, source.num_classes))


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


def fit(loss: Callable, state: tuple[Any, Any], batches: Iterator[dict],
        rows_of: Callable[[dict], Any], *, settings: ConfigDict, num_steps: int, seed: int,
        mesh: jax.sharding.Mesh, log: Callable[[int, dict], None], name: str) -> tuple[Any, Any]:
    """`state`, what is trained and what else the loss needs, after `num_steps`: a cosine, no warm-up.

    Args:
        loss: (trained, others, rows, labels, key) -> (value, (others, metrics)); labels of -1 do not count.
        batches: numpy, {'label': [B], ...}, the rows of this process.
        rows_of: a batch, sharded over `mesh` -> rows [B, ...], or a tree of such. No gradient ever reaches it.
        settings: of `optimizer_of`; the learning rate of a batch of 256, batch_size and, unless it is linear, scaling.
        name: of the block whose learning rate is to be lowered where the state is not finite any more.

    Raises:
        FloatingPointError: it diverged.
    """
    learning_rate = schedules.make_schedule('warmup_cosine', total_steps=num_steps, peak=(
        schedules.scaled_learning_rate(settings.learning_rate, settings.batch_size,
                                       settings.get('scaling', 'linear'))))
    optimizer = optimizer_of(settings)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=sharding.replicated(mesh))
    def fit_step(state, rows, labels, step):
        trained, others, opt_state = state
        rate, key = learning_rate(step), jax.random.fold_in(jax.random.key(seed), step)
        (value, (others, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(
            trained, others, rows, labels, key)
        updates, opt_state = optimizer(rate).update(gradient, opt_state, trained)
        return (optax.apply_updates(trained, updates), others, opt_state), {
            'loss': value, **metrics, 'learning_rate': rate}

    trained, others = state
    state = jax.device_put((trained, others, optimizer(0.0).init(trained)), sharding.replicated(mesh))
    metrics = None
    for step in range(num_steps):
        batch = sharding.put_batch(mesh, next(batches))
        rows = rows_of(batch)
        jax.block_until_ready(metrics)      # one step ahead is enough; more only fills the memory
        state, metrics = fit_step(state, rows, batch['label'], step)
        log(step + 1, metrics)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state))):
        raise FloatingPointError(f'The training diverged: lower {name}.learning_rate.')
    return state[:2]


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
