"""The table at the end of a run: the trained encoder beside what it scored before any training."""

import time

from simclr_jax.evaluate.accuracies import frozen_accuracies, num_labelled
from simclr_jax.evaluate.evaluators import Run
from simclr_jax.evaluate.features import Encode
from simclr_jax.evaluate.floors import Floors
from simclr_jax.evaluate.results import report_results
from simclr_jax.runlog.writer import MetricWriter


def final_accuracies(run: Run, encode: Encode, floors: Floors, writer: MetricWriter, num_steps: int
                     ) -> dict[str, dict[str, float]]:
    """`floors.of_results` and 'pretrained', `frozen_accuracies` of the trained encoder; all are written down."""
    config, workdir, mesh, train_source, test_source, _ = run
    assert test_source is not None
    results, started = floors.of_results(), time.time()
    results['pretrained'] = frozen_accuracies(encode, train_source, test_source, config, mesh,
                                              linear=config.eval.linear_at_end)
    num_test = num_labelled(test_source)
    report_results(
        writer, workdir, f'{test_source.name}, {test_source.split}: {num_test:,} images, step {num_steps:,}',
        results, evaluation='frozen', num_test=num_test, num_train=num_labelled(train_source), pretrained=workdir,
        step=num_steps, network=config.eval.encoder, data=test_source.name, train_split=train_source.split,
        split=test_source.split, seconds=round(time.time() - started, 1), protocol=config.eval.to_dict())
    return results
