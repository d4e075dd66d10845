#!/usr/bin/env bash
# The main job, end to end: simulate -> world models -> errors and graphs -> rollouts -> ALOE -> accuracies -> one table.
#
#   bash tools/quickstart.sh           at most 12 minutes on 2 cores after the install
#   FULL=1 bash tools/quickstart.sh    the size whose table means something: a bit over two hours on 2 cores
#
#   VENV=DIR      another environment than .venv
#   RUNS=DIR      another folder for data and runs than runs/quickstart (runs/full with FULL=1)
#   ACCELERATE=F  another configs/accelerate/*.yaml than cpu.yaml (one_gpu.yaml where torch sees a GPU)
#
# A stage whose output is complete and whose command and settings have not changed is not done again; one that was interrupted goes on.
# Sizes are in configs/, not here. Exit code 0 only if every stage did its work.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/venv.sh
make_venv report

if [[ ${FULL:-0} == 1 ]]; then SIZE=full RUNS=${RUNS:-runs/full}; else SIZE=quickstart RUNS=${RUNS:-runs/quickstart}; fi
CORES=$(nproc)
if [[ -z ${ACCELERATE:-} ]]; then
    ACCELERATE=configs/accelerate/cpu.yaml
    if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then ACCELERATE=configs/accelerate/one_gpu.yaml; fi
fi
PROCESSES=$(sed -n 's/^num_processes: *//p' "$ACCELERATE")
mkdir -p "$RUNS/.stages"

# stage NAME OUTPUT COMMAND...: run the command unless it was run before, as it is now, and OUTPUT is there.
# What "as it is now" means is one checksum: the command, the YAML files in it, and all stages before this one.
HISTORY=""
stage() {
    local name=$1 output=$2 stamp key argument began=$SECONDS
    shift 2
    stamp=$RUNS/.stages/${name//[ \/]/_}
    key=$(
        echo "$HISTORY $*"
        for argument in "$@"; do if [[ $argument == configs/*.yaml ]]; then cat "$argument"; fi; done
    )
    key=$(cksum <<<"$key")
    HISTORY="$HISTORY $key"
    if [[ -e $output && -f $stamp ]]; then
        if [[ $(<"$stamp") == "$key" ]]; then
            echo "== $name: done before ($output)"
            return
        fi
        if [[ $output == */manifest.json || $output == */done.json ]]; then
            echo "error: $output was made with other settings than today's; remove $RUNS or set RUNS to another folder" >&2
            exit 2
        fi
    fi
    echo "== $name"
    "$@"
    if [[ ! -e $output ]]; then
        echo "error: stage '$name' ended without an error, but $output is not there" >&2
        exit 1
    fi
    echo "$key" >"$stamp"
    echo "== $name: $((SECONDS - began)) s"
}
# The loop checks that so many processes run: some launchers start one, whatever they were told, in silence.
launch() {
    accelerate launch --config_file "$ACCELERATE" --num_cpu_threads_per_process "$(((CORES + PROCESSES - 1) / PROCESSES))" \
        -m "$@" loop.num_processes="$PROCESSES"
}

stage "simulate" "$RUNS/data/manifest.json" python -m data_prep.simulate "configs/simulate/$SIZE.yaml" out="$RUNS/data"

for arm in baseline ctt own_slot; do
    yaml=configs/world_model/$SIZE${arm:+_$arm}.yaml
    if [[ $arm == baseline ]]; then yaml=configs/world_model/$SIZE.yaml; fi
    stage "train world model $arm" "$RUNS/world_model/$arm/done.json" \
        launch cjepa_dist.train_world_model "$yaml" data="$RUNS/data" run="$RUNS/world_model/$arm"
done
for arm in baseline ctt; do
    run=$RUNS/world_model/$arm
    stage "evaluate world model $arm" "$run/eval/world_model_val.json" \
        python -m cjepa_dist.evaluate run="$run" split=val own_slot="$RUNS/world_model/own_slot"
    stage "evaluate graph $arm" "$run/eval/graphs_val.json" \
        python -m cjepa_dist.evaluate_graph run="$run" data="$RUNS/data" split=val
    stage "roll out $arm" "$RUNS/rollout/$arm/manifest.json" \
        python -m cjepa_dist.rollout world_model="$run" data="$RUNS/data" out="$RUNS/rollout/$arm"
done

arms=(baseline ctt)
if [[ $SIZE == full ]]; then arms=(baseline blind ctt); fi  # the control says whether ALOE looks at the slots at all
aloe_runs=""
for arm in "${arms[@]}"; do
    options=(data="$RUNS/rollout/$arm" run="$RUNS/aloe/$arm")
    if [[ $arm == blind ]]; then options=(data="$RUNS/rollout/baseline" run="$RUNS/aloe/blind" blind=true); fi
    stage "train ALOE $arm" "$RUNS/aloe/$arm/done.json" launch cjepa_dist.train_aloe "configs/aloe/$SIZE.yaml" "${options[@]}"
    stage "evaluate ALOE $arm" "$RUNS/aloe/$arm/eval/vqa_val.json" python -m cjepa_dist.evaluate run="$RUNS/aloe/$arm" split=val
    aloe_runs+=${aloe_runs:+,}$RUNS/aloe/$arm
done
stage "report" "$RUNS/report/report.md" python -m cjepa_dist.report runs="$aloe_runs" out="$RUNS/report" strict=true

echo
cat "$RUNS/report/report.md"
echo
echo "report: $RUNS/report/report.md and the pictures beside it"
echo "curves: $(dirname "$(command -v tensorboard)")/tensorboard --logdir $RUNS"
