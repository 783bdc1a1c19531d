"""MLflow: the numbers, images and the config of a run.

`log.writers=('mlflow',)`; to the server or store of MLFLOW_TRACKING_URI, else to files in workdir/mlruns.
"""

import os
import re
import time
from typing import Any

from simclr_jax import storage

_EXPERIMENT = 'simclr_jax'


class MLflow:
    """A run of MLflow, named as the workdir, in which a run that resumes goes on.

    Raises:
        ImportError: the package is not installed.
    """

    def __init__(self, workdir: str, *, start_step: int = 0, config: dict[str, Any] | None = None):
        uri = os.environ.get('MLFLOW_TRACKING_URI', '')
        if not uri:
            uri = f'file:{os.path.abspath(storage.local_dir(workdir))}/mlruns'
            os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')    # mlflow 3 asks whether it is meant
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        self._metric, self._step = Metric, start_step
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        experiment_id = (experiment.experiment_id if experiment
                         else self._client.create_experiment(_EXPERIMENT))
        self._run_id = self._earlier_run(experiment_id, workdir) if start_step else ''
        if self._run_id:
            self._client.update_run(self._run_id, status='RUNNING')
        else:
            self._run_id = self._client.create_run(
                experiment_id, run_name=os.path.basename(workdir), tags={'workdir': workdir}).info.run_id
            self._client.log_batch(self._run_id, params=[
                Param(name, str(value)[:500]) for name, value in (config or {}).items()])

    def _earlier_run(self, experiment_id: str, workdir: str) -> str:
        quote = '"' if "'" in workdir else "'"
        runs = self._client.search_runs([experiment_id], f'tags.workdir = {quote}{workdir}{quote}', max_results=1)
        return runs[0].info.run_id if runs else ''

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._step, now = step, int(1000 * time.time())
        self._client.log_batch(self._run_id, metrics=[
            # What mlflow takes in a name; in a path of parameters, as a regex has it, there is more.
            self._metric(re.sub(r'[^\w\-. :/]', '_', name), value, now, step) for name, value in metrics.items()])

    def note(self, text: str) -> None:
        """Notes are for log.txt."""

    def image(self, name: str, array: Any) -> None:
        self._client.log_image(self._run_id, array, key=name, step=self._step)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)
