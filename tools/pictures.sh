#!/usr/bin/env bash
# The pictures of README.md and docs, from the runs of experiment `full` or `quickstart`.
#
#   bash tools/pictures.sh [RUNS] [VIDEO]     default: runs/full, and video 11 of the split val
#
# Writes docs/images/scene.gif and docs/images/errors.png. Look at them before you commit them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/venv.sh
make_venv report

runs=${1:-runs/full}
folder=docs/images
if [[ ! -f $runs/report/world_model.png ]]; then
    echo "error: $runs has no report; make it with: cjepa run full runs=$runs" >&2
    exit 2
fi
cjepa draw run="$runs/world_model/baseline/seed_0" data="$runs/data" video="${2:-11}" \
    out=$folder/scene.gif
cp "$runs/report/world_model.png" $folder/errors.png
size=$(du -ck docs/images | tail -n 1 | cut -f 1)
if ((size > 1500)); then
    echo "error: docs/images has $size kB; keep it under 1500" >&2
    exit 2
fi
