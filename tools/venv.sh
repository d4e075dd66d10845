# The project's environment, for quickstart.sh, test.sh and you:
#
#   source tools/venv.sh && make_venv EXTRAS     or     bash tools/venv.sh EXTRAS
#
# makes a virtual environment if it is not there, installs `-e .[EXTRAS]`, and sets PATH.
#
#   VENV=DIR           another folder than .venv
#   VENV=active        the virtual or conda environment that is active; it keeps what it has, as far
#                      as the ranges in setup.py admit, and constraints.txt is not used
#   TORCH_INDEX=URL    the package index that torch is taken from
#
# Without an NVIDIA GPU and without Slurm, torch's CPU build is taken where the package index has
# it. Without a network, put all wheels into a folder: PIP_FIND_LINKS=FOLDER PIP_NO_INDEX=1.

# The first Python that runs and is new enough. A name on PATH proves nothing: a version manager's
# shim may refuse to start.
PYTHON_IS_SUPPORTED='import sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 14))'
find_python() {
    local name
    for name in python3.12 python3.13 python3.11 python3.10 python3; do
        if "$name" -c "import ensurepip; $PYTHON_IS_SUPPORTED" >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python from 3.10 to 3.13 with the venv module was found;" \
        "install one, e.g. the packages python3 and python3-venv" >&2
    return 1
}

# A login node of a cluster often has no GPU, though its jobs will.
needs_cuda() { nvidia-smi -L 2>/dev/null | grep -q GPU || command -v sbatch >/dev/null; }

# install PYTHON ARGUMENTS...: pip install, which shows its progress.
install() {
    local python=$1
    shift
    if ! "$python" -m pip install --disable-pip-version-check "$@"; then
        echo "error: pip could not install the project, see above. Without a network: put all" \
            "wheels into a folder and set PIP_FIND_LINKS=FOLDER PIP_NO_INDEX=1 (--no-index)" >&2
        return 1
    fi
}

# The build of torch that fits this machine, unless there is one already.
install_torch() {
    local python=$1 version
    version=$(sed -n 's/^torch==//p' constraints.txt)
    if "$python" -c "import torch" 2>/dev/null; then
        return
    elif [[ -n ${TORCH_INDEX:-} ]]; then
        install "$python" --no-deps --index-url "$TORCH_INDEX" "torch==$version"
    elif ! needs_cuda; then  # an index without CPU builds: the next step takes plain torch
        "$python" -m pip install --disable-pip-version-check --no-deps "torch==$version+cpu" \
            2>/dev/null || true
    fi
}

make_venv() {
    local extras=$1 venv=${VENV:-.venv} python stamp wanted constraints=(-c constraints.txt)
    if [[ $venv == active ]]; then
        venv=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} constraints=()
        if [[ -z $venv ]]; then
            echo "error: VENV=active, but no virtual or conda environment is active" >&2
            return 1
        fi
    elif [[ ! -x $venv/bin/python ]]; then
        python=$(find_python) || return 1
        echo "making $venv with $("$python" -V)"
        "$python" -m venv "$venv" || return 1
    fi
    python=$venv/bin/python
    if ! "$python" -c "$PYTHON_IS_SUPPORTED"; then
        echo "error: the Python in $venv is not one of 3.10 to 3.13; set VENV to another folder" >&2
        return 1
    fi
    # The stamp says what was installed: a second run starts at once, and a changed requirement
    # installs again.
    stamp=$venv/.cjepa_dist-${extras//,/-}
    wanted=$(cat setup.py constraints.txt | cksum)
    if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
        echo "installing -e .[$extras] into $venv" \
            "(about 1.2 GB in all with torch's CPU build, several GB more with CUDA)"
        install_torch "$python" || return 1
        install "$python" "${constraints[@]}" -e ".[$extras]" || return 1
        echo "$wanted" >"$stamp"
    fi
    PATH=$(cd "$venv/bin" && pwd):$PATH
    export PATH
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    cd "$(dirname "$0")/.."
    make_venv "${1:-report}"
    if [[ ${VENV:-} != active ]]; then echo "now: source ${VENV:-.venv}/bin/activate"; fi
fi
