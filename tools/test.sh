#!/usr/bin/env bash
# Format, lint, types, layers and tests, in the environment that tools/venv.sh makes.
#
#   bash tools/test.sh [PYTEST ARGUMENTS]       the fast tier: all tests that are not marked `slow`
#   bash tools/test.sh all [PYTEST ARGUMENTS]   everything, as in CI
#
#   VENV=DIR     another environment than .venv
#   WORKERS=N    tests side by side, each on a core of its own (default: one a core, 4 at most)
#   CI=true      a test that is skipped has failed
#
# The tests on a real Slurm, in `all`, start one where its programs are installed and this is root.
# SLURM_INSTALL=1, as in CI, installs them with apt-get. CHROMIUM_INSTALL=1 does so with the browser
# in which pages are looked at.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/venv.sh

extras=report,test tier=(-m "not slow")
if [[ ${1:-} = all ]]; then
    extras=report,test,docs tier=()
    shift
fi
make_venv "$extras"

if [[ ${#tier[@]} = 0 ]]; then
    if [[ ${SLURM_INSTALL:-0} = 1 ]] && ! message=$(bash tools/slurm_cluster.sh install 2>&1); then
        echo "Slurm cannot be installed here: $(tail -n 1 <<<"$message")"
    elif [[ $EUID != 0 ]] || ! command -v slurmctld >/dev/null; then
        echo "no Slurm here (or not root), its tests are skipped;" \
            "as root on Debian or Ubuntu SLURM_INSTALL=1 installs it"
    fi
    if [[ ${CHROMIUM_INSTALL:-0} = 1 ]] && ! command -v chromedriver >/dev/null; then
        { apt-get update -qq && apt-get install -y -qq chromium chromium-driver; } &>/dev/null ||
            echo "Chromium cannot be installed here"
    fi
fi

ruff format --check .
ruff check .
mypy
lint-imports
workers=$(nproc)
# tests/tiers.py says what runs side by side and in which order.
exec python -m pytest -n "${WORKERS:-$((workers < 4 ? workers : 4))}" \
    ${tier[@]+"${tier[@]}"} "$@"
