#!/usr/bin/env bash
# Run a command N times while other processes load every core, and say how often it failed.
#
#   tools/repeat_under_load.sh N COMMAND...
#
# Such as: tools/repeat_under_load.sh 5 python -m pytest tests/slurm
# The output of run number i goes to a file that is named at its end. Exit code 1 if a run failed.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,/^set /{s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
runs=$1
shift
logs=$(mktemp -d)
busy=()
trap 'kill "${busy[@]}"' EXIT
for ((core = 0; core < $(nproc); core++)); do
    (while :; do :; done) &
    busy+=($!)
done

failed=0
for ((run = 1; run <= runs; run++)); do
    began=$SECONDS code=0
    "$@" >"$logs/$run.log" 2>&1 || code=$?
    ((code == 0)) || failed=$((failed + 1))
    echo "run $run of $runs: exit code $code after $((SECONDS - began)) s, $logs/$run.log"
done
echo "$failed of $runs runs failed beside ${#busy[@]} busy processes: $*"
((failed == 0))
