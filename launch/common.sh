# shellcheck shell=bash
# Sourced by the other scripts: run COMMAND... prints a command and runs it; where dry_run is set it only
# prints it.
dry_run=''

show() {
    local word line=+ out=2
    for word in "$@"; do
        if [[ $word =~ ^[[:alnum:]_./:=,@%+~-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
    done
    [ -z "$dry_run" ] || out=1
    echo "$line" >&"$out"
}

run() {
    show "$@"
    [ -n "$dry_run" ] || "$@"
}

fail() {
    echo "error: $*" >&2
    exit 1
}

# need_gpus PYTHON: sets $visible to the numbers of the GPUs, or ends with one sentence: jax would train on the
# CPU with a warning.
need_gpus() {
    export visible=${CUDA_VISIBLE_DEVICES:-0}
    [ -z "$dry_run" ] || return 0
    visible=$(XLA_PYTHON_CLIENT_PREALLOCATE=false "$1" -m simclr_jax.runtime.gpus) || exit 1
}
