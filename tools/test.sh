#!/usr/bin/env bash
# Format, lint, types, layers and tests, in the environment that tools/venv.sh makes.
#
#   bash tools/test.sh [PYTEST ARGUMENTS]      VENV=DIR uses another environment than .venv
#
# The tests on a real Slurm (tests/slurm) start one where its programs are installed and this is
# root. SLURM_INSTALL=1, as in CI, installs them with apt-get.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/venv.sh
make_venv report,test

if [[ ${SLURM_INSTALL:-0} = 1 ]] && ! message=$(bash tools/slurm_cluster.sh install 2>&1); then
    echo "Slurm cannot be installed here, its tests are skipped: $(tail -n 1 <<<"$message")"
elif [[ $EUID != 0 ]] || ! command -v slurmctld >/dev/null; then
    echo "no Slurm here (or not root), its tests are skipped;" \
        "as root on Debian or Ubuntu SLURM_INSTALL=1 installs it"
fi

ruff format --check .
ruff check .
mypy
lint-imports
python -m pytest "$@"
