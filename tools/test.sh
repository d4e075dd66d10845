#!/usr/bin/env bash
# Lint, types, layering, tests, in the environment that quickstart.sh makes (and the test tools).
#
#   bash tools/test.sh [PYTEST ARGUMENTS]      VENV=DIR uses another environment than .venv
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/venv.sh
make_venv report,test

ruff check .
mypy
lint-imports
python -m pytest "$@"
