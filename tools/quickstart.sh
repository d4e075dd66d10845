#!/usr/bin/env bash
# The environment, then the whole path: simulation, world models, rollouts, ALOE, one report.
#
#   bash tools/quickstart.sh           five minutes on 2 idle cores, after the install
#   FULL=1 bash tools/quickstart.sh    the size whose results mean something: 1.5 to 2.5 hours
#
#   VENV=DIR   another environment than .venv
#   RUNS=DIR   another folder for data and runs than runs/quickstart (runs/full with FULL=1)
#
# Arguments go to the experiment, such as at_once=1 or verbose=true. What it does and its sizes:
# configs/experiment.
# A second run leaves finished jobs alone and resumes interrupted ones. Exit code 0 only if every
# job did its work.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/venv.sh
make_venv report

EXPERIMENT=quickstart
if [[ ${FULL:-0} == 1 ]]; then EXPERIMENT=full; fi
# It prints a line for each job, then a summary, where the report is and how to see the curves.
python -m slurm.run "$EXPERIMENT" runs="${RUNS:-runs/$EXPERIMENT}" "$@"
