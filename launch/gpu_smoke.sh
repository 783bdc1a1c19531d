#!/usr/bin/env bash
# The quick proof on a machine with a GPU: which device it is, a training run of a few steps with the data set
# on the device (no tensorflow is needed), and the loss benchmark.
#   launch/gpu_smoke.sh
#   launch/gpu_smoke.sh --no-install      # $PYTHON (python3) as it is: jax, flax, optax and orbax are there
#   launch/gpu_smoke.sh --dry-run         # prints the commands
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
while [ $# -gt 0 ]; do
    case $1 in
        --no-install) NO_INSTALL=1; shift ;;
        --dry-run) dry_run=yes; shift ;;
        *) fail "no option $1: there are --no-install and --dry-run." ;;
    esac
done
EXTRAS=${EXTRAS:-gpu}
source launch/environment.sh
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}       # without an installation too

need_gpus "$python"
run "$python" -c 'import jax; print(jax.devices())'

if [ -n "$dry_run" ]; then workdir=WORKDIR; else workdir=$(mktemp -d); trap 'rm -rf "$workdir"' EXIT; fi
run "$python" -m simclr_jax.main --config=configs/smoke.py:smoke --workdir="$workdir"
run "$python" benchmarks/nt_xent.py
