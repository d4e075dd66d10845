"""What jobs ask of their cluster, and trainings that do not fit it. Needs no Slurm."""

import subprocess
from dataclasses import replace

import pytest
import yaml

from cjepa_dist.config import command_line
from cjepa_dist.errors import UserError
from slurm.executors.sbatch import python_of, sbatch_options, sbatch_text
from slurm.experiment import check, plan
from slurm.experiment.check import check_trainings
from slurm.experiment.schema import Cluster, Experiment, cluster_of_stage, read_cluster
from slurm.jobs import gpus
from tests.fork_server import PROJECT

CONFIGS = PROJECT / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
CLUSTERS = sorted(path.stem for path in (CONFIGS / "slurm").glob("*.yaml"))


def jobs_of(tmp_path, experiment="clevrer", *arguments):
    config = str(CONFIGS / "experiment" / f"{experiment}.yaml")
    given = [config, f"runs={tmp_path}", "seed=[0]", *arguments]
    return plan.plan(command_line.parse(Experiment, given))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_shipped_experiment_fits_every_shipped_cluster(tmp_path, experiment):
    jobs = jobs_of(tmp_path, experiment)
    for name in CLUSTERS:
        cluster = read_cluster(name)
        if experiment != "clevrer":  # memory takes a second for each arm; that one is for clusters
            cluster = replace(cluster, gpu_memory_gb=0, memory_gb=0)
        check_trainings(jobs, cluster)


@pytest.mark.parametrize(
    ("cluster", "arguments", "message"),
    [
        ({"nodes": 4, "gpus_per_node": 8}, ["aloe.loop.global_batch_size=256"], "ctt.fraction"),
        ({"nodes": 4, "gpus_per_node": 8}, ["arms.ctt.ctt.fraction=1"], "16 is not divisible by"),
        ({"stages": {"aloe": {"nodes": 32}}}, [], "aloe/baseline/seed_0 on 32 nodes x 1 processes"),
        ({"processes_per_node": 3}, [], "global_batch_size=64 is not divisible by 3 processes"),
        ({"gpus_per_node": 2}, ["aloe.loop.engine=zero3"], "take zero2; change the config, or set"),
        ({}, ["world_model.loop.engine=fsdp2"], "engine fsdp2 shares work between processes"),
        (
            {"gpus_per_node": 1, "gpu_memory_gb": 2},
            ["world_model.loop.global_batch_size=4096"],
            "GB on a GPU, gpu_memory_gb says 2: take a smaller loop.global_batch_size",
        ),
    ],
)
def test_a_training_that_its_cluster_cannot_run_is_refused(tmp_path, cluster, arguments, message):
    jobs = jobs_of(tmp_path, "clevrer", *arguments)
    with pytest.raises(UserError) as error:
        check_trainings(jobs, Cluster(**cluster))
    assert message in str(error.value) and "change the config, or set stages." in str(error.value)


def test_memory_is_estimated_once_for_trainings_that_differ_by_seed(tmp_path):
    check.step_gb.cache_clear()
    jobs = jobs_of(tmp_path, "clevrer", "seed=[0,1,2]", "arms={baseline: {config: full}}")
    jobs = [job for job in jobs if job.name.startswith("world_model/baseline")]
    check_trainings(jobs, Cluster(gpus_per_node=1, gpu_memory_gb=80))
    assert len(jobs) == 3 and check.step_gb.cache_info().misses == 1


def text_of(job, cluster, tmp_path):
    options = sbatch_options(job, cluster, tmp_path, [], [])
    python = python_of(cluster_of_stage(cluster, job.stage))
    return sbatch_text(tmp_path / "submitit", options, python=python)


def test_stages_have_their_own_resources_over_the_clusters(tmp_path):
    """The example with typed GPUs, MIG slices, accounts, a container and e-mail."""
    jobs = {job.name: job for job in jobs_of(tmp_path, "clevrer", "parts=4", "preflight=true")}
    cluster = read_cluster("typed_gpus")

    def has(name, *wanted, without=()):
        text = text_of(jobs[name], cluster, tmp_path)
        assert not [part for part in wanted if part not in text], text
        assert not [part for part in without if part in text], text

    has("world_model/ctt/seed_0", "--partition=a100,a100_long", "--gpus-per-node=a100:1")
    has("world_model/ctt/seed_0", "--account=my_project", "--mem=64G", "--time=240")
    has("world_model/ctt/seed_0", "--mpi=none apptainer exec --nv /shared/images/cjepa.sif python")
    has("aloe/ctt/seed_0", "--partition=a100_long\n", "--qos=long", "--mem=128G")
    has("rollout/ctt/seed_0", "--partition=mig", "--gpus-per-node=1g.10gb:1", "--cpus-per-task=4")
    has("data/part_0", "--partition=cpu", without=["--gpus", "--mail"])
    has("report", "--partition=cpu", "--mail-type=END,FAIL", "--mail-user=me@example.org")
    assert sbatch_options(jobs["data/part_0"], cluster, tmp_path, [], [])["array_parallelism"] == 8
    assert sbatch_options(jobs["preflight"], cluster, tmp_path, [], [])["nodes"] == 1
    four = read_cluster("h100_4nodes")
    preflight = sbatch_options(jobs["preflight"], four, tmp_path, [], [])
    assert (preflight["nodes"], preflight["gpus_per_node"]) == (4, 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"stages": {"training": {}}}, "config field stages: 'training' is none of preflight,"),
        ({"stages": {"aloe": {"partitions": "a"}}}, "stages.aloe: unknown config key partitions"),
        ({"stages": {"aloe": {"minutes": 3}}}, "stages.aloe: .* set minutes.aloe of the cluster"),
        ({"stages": {"aloe": {"stage_data": True}}}, "stage_data needs scratch"),
        ({"stages": {"aloe": "long"}}, "stages.aloe: 'long' are no fields"),
    ],
)
def test_stages_that_make_no_sense_are_refused(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message):
        read_cluster(str(tmp_path / "c.yaml"))


def test_a_module_that_cannot_be_loaded_ends_the_job_with_its_line(tmp_path):
    job = jobs_of(tmp_path)[1]
    text = text_of(job, Cluster(modules=["cuda/12.8", "cuda/99"]), tmp_path)
    stubs = 'module() { [ "$2" != cuda/99 ]; }\nsrun() { echo "srun $*"; }\n'
    done = subprocess.run(["bash", "-c", stubs + text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: module load cuda/99 failed")
    loaded = text_of(job, Cluster(modules=["cuda/12.8"]), tmp_path)
    done = subprocess.run(["bash", "-c", stubs + loaded], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("srun --unbuffered"), done


PLAIN = "GPU 0: NVIDIA A100 (UUID: GPU-1)\nGPU 1: NVIDIA A100 (UUID: GPU-2)\n"
SLICE = "  MIG 1g.10gb     Device  {0}: (UUID: MIG-{0})\n"


@pytest.mark.parametrize(
    ("listed", "visible", "count"),
    [
        (PLAIN, {}, 2),
        (PLAIN + SLICE.format(0) + SLICE.format(1), {}, 3),  # the second GPU is cut in two
        (PLAIN, {"CUDA_VISIBLE_DEVICES": "1"}, 1),
        (PLAIN, {"CUDA_VISIBLE_DEVICES": ""}, 0),
        (PLAIN, {"ROCR_VISIBLE_DEVICES": "0,1,2"}, 2),
    ],
)
def test_gpus_of_a_node(tmp_path, monkeypatch, listed, visible, count):
    for name in gpus.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    for name, value in visible.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'EOF'\n{listed}EOF\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gpus.count_gpus() == count


def test_gpus_of_amd(tmp_path):
    """Among the nodes of its driver are the CPUs, with 0."""
    for index, number in enumerate(("0", "4660", "4661", "")):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "gpu_id").write_text(number)
    assert gpus.amd_gpus(tmp_path) == 2
