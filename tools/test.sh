#!/usr/bin/env bash
# Lint, types, layering, tests, in the environment that quickstart.sh makes (and the test tools).
#
#   bash tools/test.sh [PYTEST ARGUMENTS]      VENV=DIR uses another environment than .venv
#
# The tests on a real Slurm (tests/slurm) start one where its programs are and this is root; SLURM_INSTALL=1, as in CI, has apt-get install them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/venv.sh
make_venv report,test

if [[ ${SLURM_INSTALL:-0} = 1 ]] && ! said=$(bash tools/slurm_cluster.sh install 2>&1); then
    echo "no Slurm can be installed here, so tests/slurm leave out what needs one: $(tail -n 1 <<<"$said")"
elif [[ $EUID != 0 ]] || ! command -v slurmctld >/dev/null; then
    echo "no Slurm here (or not root), so tests/slurm leave out what needs one; as root on Debian or Ubuntu SLURM_INSTALL=1 installs it"
fi

ruff check .
mypy
lint-imports
python -m pytest "$@"
