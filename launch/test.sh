#!/usr/bin/env bash
# Makes a virtual environment, installs simclr_jax, and runs the tests; arguments go to pytest.
#   launch/test.sh
#   launch/test.sh tests/objectives -k gradient
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
set -x
exec "$python" -m pytest "$@"
