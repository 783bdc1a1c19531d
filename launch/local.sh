#!/usr/bin/env bash
# Makes a virtual environment, installs simclr_jax, and trains on this machine: configs/smoke.py, or what
# the arguments say. With --dry-run as the first one it only prints the commands.
#   launch/local.sh
#   EXTRAS=tfds launch/local.sh --config=configs/cifar10.py --workdir=runs/cifar10
#   EXTRAS=gpu launch/local.sh --config=configs/folder.py --config.data.source=folder:PATH --workdir=runs/mine
set -euo pipefail
called_in=$PWD
cd "$(dirname "$0")/.."
source launch/common.sh
if [ "${1:-}" = --dry-run ]; then dry_run=yes; shift; fi
source launch/environment.sh
back_to "$called_in"
[[ " $*" == *" --config="* ]] || set -- --config=smoke "$@"
[[ " $*" == *" --workdir="* ]] || set -- "$@" --workdir=runs/smoke
run exec "$python" -m simclr_jax.main "$@"
