"""On a real Slurm: jobs that end, fail, are cancelled, requeued or reach their time limit.

A training that something happens to holds at a step, so that it cannot have ended before.
"""

import json
import subprocess
import sys

import pytest

from slurm.executors.sbatch import LOCAL_FILE_SYSTEMS, file_system
from tests.conftest import skip_or_fail
from tests.fork_server import PROJECT
from tests.slurm.conftest import (
    LIMIT_S,
    RUN,
    TEST_LIMIT_S,
    WORLD,
    background,
    call,
    ended,
    events,
    held,
    ids,
    log,
    queue,
    release,
    run_command,
    submit,
    wait_for_hold,
    write,
)
from tests.training.test_resume import same, weights

pytestmark = [pytest.mark.slow, pytest.mark.serial, pytest.mark.timeout(TEST_LIMIT_S)]


@pytest.fixture(scope="module")
def timed(clean_queue, small_data, tmp_path_factory):
    """A job whose first start holds until Slurm tells it that its time is nearly over.

    It is submitted before the other tests.
    """
    folder = tmp_path_factory.mktemp("timed")
    path = write(
        folder,
        small_data,
        cluster={**held(folder, 3), "minutes": {"world_model": 3}},
        world_model={**WORLD, "loop.steps": 8, "loop.checkpoint_every": 100},
    )
    submit(path, "stage=world_model")
    return folder / "runs"


@pytest.fixture(scope="module")
def requeued(timed, small_data, tmp_path_factory):
    """A job of two nodes on staged data that was requeued; it runs while another test does."""
    folder = tmp_path_factory.mktemp("requeued")
    facts = {"nodes": 2, "scratch": f"{folder}/$SLURMD_NODENAME", "stage_data": True}
    submit(
        write(
            folder,
            small_data,
            cluster={**held(folder, 3), **facts},
            world_model={**WORLD, "loop.steps": 8},
        ),
        "stage=world_model",
    )
    wait_for_hold(folder / "runs", processes=2)
    assert call("scontrol", "requeue", ids(folder / "runs")[RUN]).returncode == 0
    return folder / "runs"


def test_all_stages_with_a_branch_that_fails(requeued, tmp_path, small_data):
    config = "configs/world_model/quickstart"
    arms = {
        "baseline": {"config": f"{config}.yaml"},
        # Only the job can know that the data will not have this split.
        "odd": {"config": f"{config}_ctt.yaml", "train_split": "nowhere"},
    }
    fields = {
        "prepare_fields": {"train": 16, "val": 8, "test": 8},
        "parts": 2,
        "preflight": True,
        "aloe_config": "configs/aloe/quickstart.yaml",
    }
    fields |= {
        "evaluate": {"bootstrap_draws": 10, "videos": 4},
        "evaluate_graph": {
            "windows": 32,
            "bootstrap_draws": 5,
            "estimators": ["attention", "distance"],
        },
    }
    path, runs = (
        write(tmp_path, "", arms=arms, control=f"{config}_own_slot.yaml", **fields),
        tmp_path / "runs",
    )
    shown = submit(path)
    assert (
        "report  <- (evaluate/world_model/baseline/seed_0)" in shown
        and "16 jobs submitted" in shown
    )
    status = ended(runs)
    assert status.returncode == 1 and "11 of 16 jobs done" in status.stdout, status.stdout
    assert "has no split 'nowhere'" in status.stdout
    assert (
        "rollout/odd/seed_0: never started: it needs world_model/odd/seed_0 (failed)"
        in status.stdout
    )
    text = (runs / "report/report.md").read_text()
    assert (
        "# Missing: 5 of 15 jobs" in text
        and "| aloe/odd/seed_0 | CANCELLED | never started" in text
    )
    assert (runs / "aloe/baseline/seed_0/eval/vqa_val.json").is_file() and "descriptive" in text
    assert "nothing to submit" in submit(path, "stage=data")


def test_requeued_on_two_nodes(requeued, small_data, uninterrupted):
    status = ended(requeued)
    assert status.returncode == 0, status.stdout
    assert [event["event"] for event in events(requeued)][-2:] == ["start", "done"]
    assert len([event for event in events(requeued) if event["event"] == "start"]) == 2
    assert json.loads((requeued / RUN / "environment.json").read_text())["processes"] == 2
    assert "resumed from" in log(requeued)
    assert same(weights(requeued / RUN, 8), uninterrupted(8, 2))
    assert len(list(requeued.parent.glob(f"node*/{small_data.name}-*/manifest.json"))) >= 2, (
        "each node has its own copy of the data"
    )
    assert f"data={small_data}" in (requeued / RUN / "command.txt").read_text()


def test_cancelled_and_resumed(timed, tmp_path, small_data, uninterrupted):
    path, runs = (
        write(
            tmp_path,
            small_data,
            cluster=held(tmp_path, 3),
            world_model={**WORLD, "loop.steps": 8},
            graphs=False,
        ),
        tmp_path / "runs",
    )
    submit(path)
    wait_for_hold(runs)
    refused = run_command("submit", path, "world_model.loop.steps=9")
    assert refused.returncode == 2 and "was made with other settings" in refused.stderr
    assert "nothing to submit" in submit(path)
    assert "3 jobs cancelled" in run_command("cancel", runs).stdout
    status = ended(runs)
    assert status.returncode == 1 and f"{RUN}: cancelled" in status.stdout, status.stdout
    assert json.loads((runs / RUN / "resume.json").read_text())["reason"] == "SIGTERM"
    release(runs)
    assert "3 jobs submitted" in run_command("resume", runs).stdout
    status = ended(runs)
    assert status.returncode == 0 and "3 of 3 jobs done" in status.stdout, status.stdout
    assert same(weights(runs / RUN, 8), uninterrupted(8))


def test_dry_run_and_errors_queue_nothing(timed, tmp_path, small_data):
    before = queue("-o", "%A")
    path = write(tmp_path, small_data)
    shown = submit(path, "dry_run=true")
    assert (
        "#SBATCH --signal=USR2@60" in shown
        and "#SBATCH --requeue" in shown
        and "to start at" in shown
        and "<- world_model/" in shown
    )
    for cluster, message in (
        ({"partition": "gpus"}, "unknown partition gpus: this cluster has high, low"),
        ({"account": "nobody", "nodes": 8}, "Slurm would not take this job"),
        ({"gpus_per_node": 8}, "Slurm would not take this job"),
        ({"nodes": 9}, "loop.global_batch_size=8 is not divisible by 9 processes"),
        ({"partitoin": "low"}, "unknown config key partitoin; the nearest is partition"),
    ):
        done = run_command("submit", write(tmp_path, small_data, cluster=cluster))
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )
    assert not (tmp_path / "runs").exists() and set(queue("-o", "%A")) <= set(before)


def test_a_folder_that_nodes_cannot_see_is_found_out_before_anything_is_queued(
    timed, tmp_path, small_data
):
    """As from a login node, which no node of the cluster is."""
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        skip_or_fail("needs the right to unshare mounts and the host name")
    path, before = write(tmp_path, small_data), queue("-o", "%A")

    def elsewhere(first):
        submission = f"{sys.executable} -m slurm.submit {path} dry_run=true"
        command = f"hostname login && {first} && exec {submission}"
        return call("unshare", "--uts", "--mount", "sh", "-c", command)

    (tmp_path / "runs").mkdir()
    done = elsewhere(f"mount -t tmpfs none {tmp_path / 'runs'}")
    assert (
        done.returncode == 2
        and f"{tmp_path / 'runs'} is not shared: it lies on tmpfs of login" in done.stderr
    ), done.stderr
    assert done.stderr.count("\n") == 1 and set(queue("-o", "%A")) <= set(before)
    if file_system(tmp_path)[0] in LOCAL_FILE_SYSTEMS:
        done = elsewhere("true")
        assert done.returncode == 0 and f"warning: {tmp_path / 'runs'} lies on" in done.stdout, (
            done.stderr
        )
    assert "lies on" not in submit(path, "dry_run=true")


def test_preflight(timed, tmp_path, small_data):
    """2 x 2 processes over gloo; and GPUs that are only links to /dev/null: nothing trains."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir(), bad.mkdir()
    write(good, small_data, cluster={"nodes": 2, "processes_per_node": 2})
    path = write(bad, small_data, cluster={"gpus_per_node": 2})
    with background(
        "preflight", f"cluster={good / 'cluster.yaml'}", f"runs={good / 'runs'}"
    ) as first:
        with background(
            "preflight", f"cluster={bad / 'cluster.yaml'}", f"runs={bad / 'runs'}"
        ) as second:
            submit(path, "stage=world_model", f"runs={bad / 'untried'}")
            said = first.communicate(timeout=LIMIT_S)[0]
            wrong = second.communicate(timeout=LIMIT_S)[0]
    assert first.returncode == 0, said
    found = json.loads((good / "runs" / "preflight.json").read_text())
    assert (
        found["processes"] == 4
        and len(found["nodes"]) == 2
        and found["all_reduce_gb_per_s"] > 0
        and '"processes": 4' in said
    )
    assert (
        second.returncode == 1 and "shows 0 GPUs to its processes, gpus_per_node says 2" in wrong
    ), wrong
    status = ended(bad / "untried")
    assert status.returncode == 1 and "has 0 GPUs, gpus_per_node says 2" in status.stdout, (
        status.stdout
    )


def test_plain_sbatch(timed, tmp_path, small_data):
    fields = [f"{key}={value}" for key, value in WORLD.items()]
    options = [
        "--gpus-per-node=0",
        "--cpus-per-task=1",
        "--time=60",
        "--wait",
        f"--output={tmp_path / 'log'}",
    ]
    command = [
        "cjepa_dist.train_world_model",
        "configs/world_model/quickstart.yaml",
        *fields,
        f"data={small_data}",
        f"run={tmp_path / 'run'}",
    ]
    done = call(
        "env",
        f"PYTHON={sys.executable}",
        "sbatch",
        *options,
        str(PROJECT / "slurm" / "train.sbatch"),
        *command,
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    assert (tmp_path / "run" / "done.json").is_file()


def test_time_limit(timed, tmp_path, small_data, uninterrupted):
    """The job is requeued before each limit; its weights are those of a run without limits.

    On a busy machine a start may take too long to come to its first step.
    """
    status = ended(timed)
    assert status.returncode == 0, status.stdout
    stops = [event for event in events(timed) if event["event"] == "stopped"]
    assert (
        stops
        and all(stop["reason"] == "SIGUSR2" for stop in stops)
        and events(timed)[-1]["restart"] == len(stops)
    )
    assert "resumed from" in log(timed)
    assert same(weights(timed / RUN, 8), uninterrupted(8))
