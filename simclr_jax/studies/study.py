"""--config.task=study: the runs of a grid one after the other, and what they show beside the paper.

DIR/cells/NAME is the workdir of each run, with cell.json once it is finished; DIR/study.md, .csv and .png are
written anew after every run. A study that was killed goes on with the same command: finished cells are
skipped, and the one that was killed resumes from its last checkpoint.
"""

import json
import os
import time
from typing import Any

import jax

from simclr_jax import storage, train
from simclr_jax.config import ConfigDict
from simclr_jax.evaluate.accuracies import frozen_accuracies
from simclr_jax.evaluate.evaluated import make_evaluated
from simclr_jax.evaluate.intervals import wilson_interval
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.runlog.jsonl import read_rows
from simclr_jax.runtime import sharding
from simclr_jax.studies.grid import Cell, Grid, cell_config
from simclr_jax.studies.render import render
from simclr_jax.training import workdir as workdirs

# Metrics of a training step that are kept of the last row of the log.
_OF_THE_LOSS = ('loss', 'contrastive_accuracy', 'contrastive_entropy', 'mined_share', 'probe_accuracy')


def study(config: ConfigDict, workdir: str) -> list[dict[str, Any]]:
    """Runs what is not finished of `config.study.grid`, and renders all of it.

    Returns:
        A record for each cell and seed, see `run_cell`.

    Raises:
        ValueError: the config is no study, a cell sets what it cannot, or its workdir is of another study.
        SystemExit: SIGINT or SIGTERM came; the running cell saved its state first.
    """
    grid = config.study.grid
    if not isinstance(grid, Grid):
        raise ValueError('This config is not a study: give one of configs/studies/, such as '
                         '--config=configs/studies/augmentations.py:scale=tiny.')
    if config.study.num_seeds < 1:
        raise ValueError(f'study.num_seeds is {config.study.num_seeds}: it must be more than 0.')
    chosen = grid.choose([name for name in config.study.only.split(',') if name])
    runs = [(cell, seed, cell_config(config, cell, seed)) for seed in range(config.study.num_seeds)
            for cell in chosen]
    paths = [os.path.join(workdir, 'cells', run_name(cell, seed)) for cell, seed, _ in runs]
    for path, (_, _, one) in zip(paths, runs):          # before any of them takes its hours
        workdirs.check_config(path, one.to_dict(), ignore=train.MAY_DIFFER)
    records = []
    for number, (path, (cell, seed, one)) in enumerate(zip(paths, runs), 1):
        record = os.path.join(path, 'cell.json')        # of a cell that is finished, see `run_cell`
        finished = json.loads(storage.read_bytes(record)) if storage.exists(record) else None
        if not finished and sharding.is_lead():
            print(f'\nCell {number} of {len(runs)}: {run_name(cell, seed)}', flush=True)
        records.append(finished or run_cell(one, cell, seed, path, grid.layers))
        if sharding.is_lead() and (not finished or number == len(runs)):
            render(grid, records, workdir)
    if sharding.is_lead():
        print(f'\n{grid.title}: {os.path.join(workdir, "study.md")}', flush=True)
    return records


def run_name(cell: Cell, seed: int) -> str:
    """The directory of a cell's run: of the first seed the cell's name."""
    return f'{cell.name}_seed{seed}' if seed else cell.name


def run_cell(config: ConfigDict, cell: Cell, seed: int, path: str, layers: tuple[int, ...]) -> dict[str, Any]:
    """Pretrains and evaluates a cell in its workdir `path`, or goes on with it.

    Returns:
        Its record, as written to cell.json: 'place', 'overrides', 'seed'; 'measures' {layer: {metric:
        share}} and 'intervals' of 95 % alike, 'random' (the same of the encoder before training), 'last'
        (of the log), 'seconds'. Or, of a run whose loss was no longer finite, 'failed', the sentence that
        says so.
    """
    start = time.monotonic()
    record = {'place': list(cell.place), 'overrides': dict(cell.overrides), 'seed': seed}
    try:
        results = train.pretrain(config, path)
        if not results:
            raise ValueError(f'{config.data.source} has no labelled split to evaluate a study on: '
                             'set data.test_split.')
        measures = {str(layers[0]): results['pretrained'],
                    **{str(layer): _accuracies_of_layer(config, path, layer) for layer in layers[1:]}}
        if sharding.is_lead():
            num_test = read_rows(path, 'results.jsonl')[-1]['num_test']
            intervals = {layer: {name: wilson_interval(value, num_test) for name, value in values.items()}
                         for layer, values in measures.items()}
            rows = [row for row in read_rows(path, 'metrics.jsonl') if 'loss' in row]
            last = {name: rows[-1][name] for name in _OF_THE_LOSS if rows and name in rows[-1]}
            record |= {'measures': measures, 'intervals': intervals, 'random': results['random'], 'last': last}
    except FloatingPointError as error:
        record |= {'failed': str(error)}
        if sharding.is_lead():
            print(f'{cell.name} failed: {error}', flush=True)
    record['seconds'] = round(time.monotonic() - start, 1)
    if sharding.is_lead():
        storage.write_atomically(os.path.join(path, 'cell.json'), json.dumps(record, indent=1).encode())
    jax.clear_caches()          # or the programs of all cells stay in memory
    return record


def _accuracies_of_layer(config: ConfigDict, path: str, layer: int) -> dict[str, float]:
    """What pretraining reports at its end, of another layer of the same encoder."""
    evaluated = make_evaluated(load_pretrained(path), layer=layer)
    train_source, test_source = train.load_sources(config)
    assert test_source is not None          # or pretraining would have reported nothing
    return frozen_accuracies(evaluated.encode_with(evaluated.pretrained.variables), train_source, test_source, config,
                             evaluated.mesh, linear=config.eval.linear_at_end)
