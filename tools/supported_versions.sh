#!/usr/bin/env bash
# Install and test the project with chosen versions of Python and torch: one line per pair.
#
#   bash tools/supported_versions.sh PYTHON:TORCH...     such as 3.10:2.9.1 3.11:2.13.0
#   bash tools/supported_versions.sh --list              the Pythons on this machine
#
# PYTHON is a version, 3.11 or 3.11.7, or the path of an interpreter. Each pair gets a fresh
# environment in a temporary folder, with torch (about 1.5 GB; its CPU build where there is no GPU)
# and `pip install .`. The installed command then simulates, trains and evaluates at a tiny size
# from an empty folder, and a short list of tests runs against the installed package.
#
#   TORCH_INDEX=URL    the package index that torch is taken from
#   KEEP=DIR           keep the environments and logs, in DIR/PYTHON-TORCH
#
# Exit code 1 if a pair failed; the end of its log is then printed.
set -euo pipefail

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$PROJECT/tools/venv.sh"  # PYTHON_IS_SUPPORTED, needs_cuda
FILES=(setup.py pyproject.toml README.md LICENSE cjepa_dist data_prep slurm tools configs tests)
TESTS=(tests/config tests/models tests/training/test_resume.py)
TEST_TOOLS=('pytest>=8,<10' 'pytest-timeout>=2.3,<3' 'hypothesis>=6.100,<7')

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }
die() {
    echo "error: $*" >&2
    exit 2
}

# identify PYTHON: VERSION PATH of an interpreter that can run the project and make environments.
# A name on PATH proves nothing: a version manager's shim may refuse to start.
identify() {
    "$1" -c "import ensurepip, platform
print(platform.python_version() + ' ' + __import__('sys').executable)
$PYTHON_IS_SUPPORTED" 2>/dev/null
}

# list_pythons: those on PATH and of pyenv, each version once.
list_pythons() {
    local name line
    for name in python3 python3.{10..13} "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python; do
        if line=$(identify "$name"); then echo "$line"; fi
    done | sort -k1,1V -u
}

# find_interpreter PYTHON: its path; the newest that fits a version.
find_interpreter() {
    local wanted=$1 version path found=
    if [[ $wanted == */* ]]; then
        version=$(identify "$wanted") && echo "${version#* }"
        return
    fi
    while read -r version path; do
        if [[ $version == "$wanted" || $version == "$wanted".* ]]; then found=$path; fi
    done < <(list_pythons)
    [[ $found ]] && echo "$found"
}

# The project as files, so that building it leaves nothing in the checkout.
copy_project() {
    local target=$1
    mkdir -p "$target"
    tar -C "$PROJECT" --exclude=__pycache__ --exclude='*.egg-info' -cf - "${FILES[@]}" |
        tar -C "$target" -xf -
}

install_pair() {
    local interpreter=$1 torch=$2 folder=$3 pip
    "$interpreter" -m venv "$folder/venv"
    pip=("$folder/venv/bin/python" -m pip install --disable-pip-version-check)
    if [[ ${TORCH_INDEX:-} ]]; then
        "${pip[@]}" --no-deps --index-url "$TORCH_INDEX" "torch==$torch"
    elif [[ $torch != *+* ]] && ! needs_cuda; then
        "${pip[@]}" --no-deps "torch==$torch+cpu" || true  # an index without CPU builds
    fi
    "${pip[@]}" "torch==$torch" "$folder/source[report]" "${TEST_TOOLS[@]}"
}

run_commands() {
    local cjepa=$1/venv/bin/cjepa
    mkdir "$1/empty"
    cd "$1/empty"
    "$cjepa" simulate out=data train=8 val=4 test=0 workers=1
    "$cjepa" train-world-model quickstart data=data run=run contact_share=0 val_windows=16 \
        loop.steps=4 loop.global_batch_size=8 predictor.width=32 predictor.depth=1 \
        predictor.heads=2 predictor.mlp_dim=64
    "$cjepa" evaluate run=run windows=32
    "$cjepa" runs ls .
}

# Without the package beside the tests, they import the installed one.
run_tests() {
    cd "$1/source"
    rm -rf cjepa_dist build
    "$1/venv/bin/python" -m pytest -p no:cacheprovider "${TESTS[@]}"
}

# test_pair INTERPRETER TORCH FOLDER: all of it; writes the step that it is at to FOLDER/step.
test_pair() {
    local folder=$3
    copy_project "$folder/source"
    for step in install commands tests; do
        echo "$step" | tee "$folder/step"
        case $step in
            install) install_pair "$@" ;;
            commands) (run_commands "$folder") ;;
            tests) (run_tests "$folder") ;;
        esac
    done
}

# report_pair PYTHON INTERPRETER TORCH FOLDER: print the line of a pair; returns 1 if it failed.
# To be called without errexit and not in a condition, where bash ignores that of the subshell too.
report_pair() {
    local python=$1 interpreter=$2 torch=$3 folder=$4 began=$SECONDS code versions
    rm -rf "$folder"
    mkdir -p "$folder"
    (
        set -e
        unset PYTHONPATH PIP_CONSTRAINT
        test_pair "$interpreter" "$torch" "$folder"
    ) >"$folder/log" 2>&1
    code=$?
    versions=$("$folder/venv/bin/python" -c 'if True:
        import platform, torch
        print(f"python {platform.python_version()}, torch {torch.__version__}")' 2>/dev/null) ||
        versions="python $python, torch $torch"
    if [[ $code = 0 ]]; then
        echo "$versions: passed, $((SECONDS - began)) s"
        return
    fi
    echo "$versions: FAILED ($(<"$folder/step")), $((SECONDS - began)) s"
    tail -n 30 "$folder/log" | sed 's/^/    /' >&2
    return 1
}

main() {
    local pair python torch interpreter place failed=0
    local -a interpreters=()
    case ${1:-} in
        -h | --help) usage && exit ;;
        --list) list_pythons && exit ;;
        '') usage >&2 && exit 2 ;;
    esac
    for pair in "$@"; do  # a mistake in the last pair shows before the first is installed
        [[ $pair =~ ^.+:[0-9]+\.[0-9]+(\.[0-9]+)?(\+[a-z0-9.]+)?$ ]] ||
            die "$pair is not PYTHON:TORCH, such as 3.11:2.13.0"
        interpreter=$(find_interpreter "${pair%:*}") ||
            die "no Python ${pair%:*} from 3.10 to 3.13 with the venv module was found;" \
                "--list shows which there are"
        interpreters+=("$interpreter")
    done
    if [[ ${KEEP:-} ]]; then
        mkdir -p "$KEEP"
        place=$(realpath "$KEEP")
    else
        place=$(mktemp -d)
        # shellcheck disable=SC2064
        trap "rm -rf '$place'" EXIT
    fi
    for pair in "$@"; do
        python=${pair%:*} torch=${pair##*:} interpreter=${interpreters[0]}
        interpreters=("${interpreters[@]:1}")
        set +e
        report_pair "$python" "$interpreter" "$torch" "$place/${python//\//_}-$torch"
        if [[ $? != 0 ]]; then failed=1; fi
        set -e
        if [[ -z ${KEEP:-} ]]; then rm -rf "${place:?}"/*; fi
    done
    exit $failed
}

main "$@"
