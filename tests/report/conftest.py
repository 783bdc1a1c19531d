from tests.evaluate.conftest import workdir  # noqa: F401
