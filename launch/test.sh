#!/usr/bin/env bash
# Makes a virtual environment, installs simclr_jax, and runs the tests; arguments go to pytest. With
# --dry-run as the first one it only prints the commands.
#   launch/test.sh
#   launch/test.sh tests/objectives -k gradient
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
if [ "${1:-}" = --dry-run ]; then dry_run=yes; shift; fi
EXTRAS=test${EXTRAS:+,$EXTRAS}
source launch/environment.sh
if [ $# = 0 ]; then        # the whole: lint and types first
    run "$python" -m ruff check .
    run "$python" -m pyright --pythonpath "$python"
fi
# Two files at a time; the slowest come first (conftest.py).
run exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
