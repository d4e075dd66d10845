#!/usr/bin/env bash
# Lint, types, layering, tests, in the environment that quickstart.sh makes (and the test tools).
#
#   bash tools/test.sh [PYTEST ARGUMENTS]      VENV=DIR uses another environment than .venv
#
# The tests on a real Slurm (tests/slurm) start one where its programs are and this is root; SLURM_INSTALL=1 has apt-get install them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/venv.sh
make_venv report,test

ruff check .
mypy
lint-imports
python -m pytest "$@"
