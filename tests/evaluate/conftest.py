import pytest

from simclr_jax.train import pretrain
from tests.evaluate.runs import small_config


@pytest.fixture(scope='session')
def workdir(tmp_path_factory, on_one_device):
    """Of a run of two steps on 128 shapes, with a preprocessing that is not the default one."""
    directory = str(tmp_path_factory.mktemp('run'))
    with on_one_device():
        pretrain(small_config(), directory)
    return directory
