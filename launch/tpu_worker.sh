#!/usr/bin/env bash
# What launch/tpu_pod.sh calls on every worker of its slices:
#   launch/tpu_worker.sh install
#   launch/tpu_worker.sh run --config=... --workdir=...
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$HOME/simclr_jax_venv running=$HOME/simclr_jax.pid

stop_earlier() {        # what a broken connection left running saves, and frees the chips
    local pid seconds
    pid=$(cat "$running" 2> /dev/null) || return 0
    for ((seconds = 0; seconds < 100; seconds++)); do
        grep -q simclr_jax "/proc/$pid/cmdline" 2> /dev/null || return 0
        if [ "$seconds" = 0 ]; then kill -TERM "$pid"; fi
        if [ "$seconds" = 90 ]; then kill -KILL "$pid"; fi
        sleep 1
    done
}

case ${1:-} in
    install)
        # uv brings a Python of its own: those of many TPU images are older than 3.11.
        PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
        python3 -m uv venv --quiet --allow-existing --python 3.12 "$venv"
        python3 -m uv pip install --quiet --python "$venv" --constraint constraints.txt '.[tpu,tfds,gcs]' ;;
    run)
        shift
        stop_earlier
        echo $$ > "$running"
        exec "$venv/bin/python" -m simclr_jax.main --multihost "$@" ;;
    *)
        echo 'error: install, or run ARGUMENTS...' >&2
        exit 1 ;;
esac
