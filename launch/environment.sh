# shellcheck shell=bash
# Sourced by the other scripts, in the root of the repository and after common.sh: makes .venv, installs
# simclr_jax into it, and sets $python. PYTHON names another interpreter than python3, EXTRAS the extras of
# pyproject.toml that are wanted, as in EXTRAS=tfds,report; with NO_INSTALL=1, $python is PYTHON as it is.
PYTHON=${PYTHON:-python3}
if [ -n "${NO_INSTALL:-}" ]; then
    python=$PYTHON
else
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        fail "simclr_jax needs Python 3.11 or newer; $PYTHON is $("$PYTHON" --version 2>&1). Set PYTHON=/path/to/python3.11."
    fi
    venv=${VENV:-.venv}
    python=$venv/bin/python
    wanted=$(cat setup.py pyproject.toml constraints.txt simclr_jax/data/_crop.c simclr_jax/models/cpu/_*.{cc,h} | cksum)" ${EXTRAS:-}"
    if ! grep -qxF "$wanted" "$venv/installed" 2> /dev/null; then
        run "$PYTHON" -m venv "$venv"
        # For the isolated build too: the loops are compiled with the headers of the jaxlib that they will run with.
        export PIP_CONSTRAINT=$PWD/constraints.txt PIP_BUILD_CONSTRAINT=$PWD/constraints.txt
        run "$python" -m pip install --quiet --constraint constraints.txt --editable ".${EXTRAS:+[$EXTRAS]}"
        [ -n "$dry_run" ] || echo "$wanted" >> "$venv/installed"
    fi
fi
# back_to DIRECTORY: paths of the program's options are relative to where the script was called, as with simclr_jax.
back_to() {
    [ "$1" != "$PWD" ] || return 0
    if [[ $python == */* && $python != /* ]]; then python=$PWD/$python; fi
    export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}       # without an installation too
    cd "$1" || exit
}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
