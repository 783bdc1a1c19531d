"""Weights & Biases: the numbers, notes, images and the config of a run, and nothing of the machine.

`log.writers=('wandb',)`; WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE=offline are those of wandb itself. A run
that resumes goes on in the same run of wandb; rows are placed by their step, also those written twice.
"""

import os
import uuid
from typing import Any

from simclr_jax import storage


class WandB:
    """A run of wandb, named as the workdir and with its files in it. ImportError without the package."""

    def __init__(self, workdir: str, *, start_step: int = 0, config: dict[str, Any] | None = None):
        import wandb
        storage.make_dirs(workdir)
        # wandb would also send the console, the git state, the packages and the load of the machine.
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get('WANDB_PROJECT', 'simclr_jax'), dir=storage.local_dir(workdir), config=config,
            name=os.path.basename(workdir), id=_run_id(workdir, start_step),
            resume='allow', settings=wandb.Settings(
                console='off', disable_git=True, disable_code=True, disable_job_creation=True, silent=True,
                x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
                x_save_requirements=False, host='-'))
        self._run.define_metric('*', step_metric='step')
        self._step = start_step

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._step = step
        self._run.log({'step': step, **metrics})

    def note(self, text: str) -> None:
        """Notes are summed up in the run's notes."""
        self._run.notes = f'{self._run.notes}\n{text}' if self._run.notes else text

    def image(self, name: str, array: Any) -> None:
        self._run.log({'step': self._step, name: self._image(array)})

    def close(self) -> None:
        self._run.finish()


def _run_id(workdir: str, start_step: int) -> str:
    """The id kept in the workdir; a run from step 0 is a new one."""
    path = storage.fetch(workdir, 'wandb_id.txt')
    if not start_step or not os.path.exists(path):
        with open(path, 'w') as file:
            file.write(uuid.uuid4().hex[:12])
    with open(path) as file:
        return file.read()
