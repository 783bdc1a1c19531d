# Sourced by the other scripts, in the root of the repository: makes .venv, installs simclr_jax into it,
# and sets $python. PYTHON names another interpreter than python3, EXTRAS more extras (gpu, tpu).
PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: simclr_jax needs Python 3.11 or newer; $PYTHON is $("$PYTHON" --version 2>&1). Set PYTHON=/path/to/python3.11." >&2
    exit 1
fi
venv=${VENV:-.venv}
python=$venv/bin/python
wanted=$(cat setup.py constraints.txt | cksum)${EXTRAS:-}
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
    "$PYTHON" -m venv "$venv"
    (set -x; "$python" -m pip install --quiet --constraint constraints.txt --editable ".[test${EXTRAS:+,$EXTRAS}]")
    echo "$wanted" > "$venv/installed"
fi
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
