"""`--config.task=report`: a run, or an encoder from a file, on one page."""

import os
import time
from typing import Any

import jax

import simclr_jax
from simclr_jax import storage
from simclr_jax.config import ConfigDict
from simclr_jax.evaluate.pretrained import load_of_task, path_of
from simclr_jax.runlog import jsonl
from simclr_jax.training.workdir import load_config


def report(config: ConfigDict, workdir: str, *, encoder: Any = None) -> str:
    """Writes workdir/report.html, and the figures and their numbers to workdir/report/; returns its path.

    What the run was comes from its workdir, `report.pretrained` or `workdir` itself; `config` says what to
    draw (its `report` block), where the data lie, and which recipe the run is compared with. Of a file of
    weights in `report.pretrained`, `config` also says which data it is shown on; results are those in
    `workdir`. A part that cannot be made is a sentence in its place. `encoder` is the Flax module itself,
    where the config of its run cannot name it.

    Raises:
        FileNotFoundError: there is no such workdir or file.
        ValueError: jinja2, matplotlib or scikit-learn are missing, or a field of `report` will not do.
    """
    settings = config.report
    if settings.max_images < 2 or settings.num_queries < 1:
        raise ValueError(f'report.max_images is {settings.max_images} and report.num_queries '
                         f'{settings.num_queries}: it takes at least 2 and 1.')
    if jax.process_count() > 1:
        raise ValueError('A report is written by one process: run it without --multihost.')
    try:
        from simclr_jax.report import encoder_sections, page, run_sections
    except ImportError as error:
        raise ValueError(f"A report needs {error.name}: pip install 'simclr_jax[report]'.") from error
    path, figures = path_of(settings, workdir), page.Figures(workdir)
    is_run = path == workdir or storage.exists(os.path.join(path, 'config.json'))
    if is_run:
        run = load_config(path)
        pretrained = None if encoder is None else load_of_task(settings, path, 'report', encoder)
        name, notes = (run.get('method') or {}).get('name', 'A run'), jsonl.read_text(path, 'log.txt')
        rows = jsonl.read_rows(path, 'metrics.jsonl')
        sections = {'The run': run_sections.run(path, run, rows),
                    'Curves': run_sections.curves(figures, rows, notes)}
    else:
        pretrained = load_of_task(settings, path, 'report', encoder)
        run, name = pretrained.config.to_dict(), pretrained.source
        sections = {'The encoder': run_sections.file_of_weights(path, run)}
    sections['Evaluation'] = run_sections.evaluation(figures, dict.fromkeys((path, workdir)))
    sections |= encoder_sections.sections(figures, config, path, pretrained)
    if is_run:
        sections['Configuration'] = run_sections.configuration(run, config)
        if notes:
            sections['Notes of the run'] = {'kind': 'notes', 'text': notes}
    text = page.render(
        f'{name} on {(run.get("data") or {}).get("source") or config.data.source or "unknown data"}',
        f'Report of {path}', sections,
        footer=f'Written by simclr_jax {simclr_jax.__version__}, {time.strftime("%Y-%m-%d %H:%M %Z")}. '
               'This page holds all it shows' + ('; figures and numbers are also in report/ beside it.' if figures.names
                                                 else '.'))
    written = os.path.join(workdir, 'report.html')
    storage.write_atomically(written, text.encode())
    size = f'{len(text) / 1e6:.1f} MB' if len(text) >= 1e5 else f'{len(text) / 1e3:.0f} kB'
    beside = f'; figures and numbers in {os.path.join(workdir, "report")}' if figures.names else ''
    print(f'{size} -> {written}{beside}')
    return written
