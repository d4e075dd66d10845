# Sourced by quickstart.sh and test.sh, never run: a virtual environment with the project in it.
#
#   make_venv EXTRAS     makes $VENV (default .venv) if it is not there, installs `-e .[EXTRAS]`, sets PATH

# The first Python that runs and is new enough. A name on PATH proves nothing: a version manager's shim may refuse to start.
find_python() {
    local name
    for name in python3.12 python3.11 python3.10 python3; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python >= 3.10 with the venv module was found (tried python3.12, python3.11, python3.10, python3); install one, e.g. the packages python3 and python3-venv" >&2
    return 1
}

make_venv() {
    local extras=$1 venv=${VENV:-.venv} python stamp wanted
    if [[ ! -x $venv/bin/python ]]; then
        python=$(find_python) || return 1
        echo "making $venv with $("$python" -V)"
        "$python" -m venv "$venv"
    fi
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $venv has a Python older than 3.10; set VENV to another folder" >&2; return 1; }
    # The stamp says what was installed, so that a second run starts at once and a changed requirement installs again.
    stamp=$venv/.cjepa_dist-${extras//,/-}
    wanted=$(cat setup.py constraints.txt | cksum)
    if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
        echo "installing -e .[$extras] into $venv (about 1.2 GB in all for a CPU build of torch, several GB more with CUDA)"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
        echo "$wanted" >"$stamp"
    fi
    PATH=$(cd "$venv/bin" && pwd):$PATH
    export PATH
}
