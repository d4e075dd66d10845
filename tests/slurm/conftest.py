"""A real Slurm of three nodes on this machine, and experiments that are small enough for it.

tools/slurm_cluster.sh starts and stops the cluster.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from slurm.jobs.job_log import read_events
from tests.conftest import skip_or_fail
from tests.fork_server import PROJECT
from tests.training.test_resume import weights

RUN = "world_model/baseline/seed_0"
TEST_LIMIT_S = 3000  # for a test, which then says what it waited for
LIMIT_S = 1500  # for a state that comes after seconds: the machine may be busy
POLL_S = 0.2

WORLD = {
    "predictor.width": 32,
    "predictor.depth": 1,
    "predictor.mlp_dim": 64,
    "loop.steps": 6,
    "loop.global_batch_size": 8,
    "loop.log_every": 1,
    "loop.checkpoint_every": 2,
    "loop.keep_checkpoints": 99,
    "val_windows": 16,
}
ALOE = {
    "aloe.frames": 6,
    "stride": 20,
    "aloe.width": 32,
    "aloe.depth": 1,
    "aloe.mlp_dim": 64,
    "loop.steps": 2,
    "loop.global_batch_size": 4,
    "loop.log_every": 1,
}


def call(*command, timeout=LIMIT_S):
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=timeout)


def run_command(name, *arguments):
    """`python -m slurm.NAME`, as a user runs it."""
    return call(sys.executable, "-m", f"slurm.{name}", *map(str, arguments))


@contextmanager
def background(name, *arguments):
    """`python -m slurm.NAME` for as long as the block runs: a Popen."""
    command = [sys.executable, "-u", "-m", f"slurm.{name}", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def wait_for(condition, what, seconds=LIMIT_S):
    """Wait for a state; `what` is the message, or makes it, if it does not come."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(POLL_S)
    return found


def queue(*options):
    return call("squeue", "-h", *options).stdout.split()


def submit(path, *arguments):
    done = run_command("submit", path, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def held(folder, *steps):
    """Fields of a cluster on which a training holds: start number i at step `steps[i]`.

    It holds until a signal comes, or `release` is called. Later starts do not.
    """
    holds = [
        f'[ "${{SLURM_RESTART_COUNT:-0}}" != {start} ] || '
        f"export CJEPA_FAULT=hold@{step}:{folder}/hold_{start}"
        for start, step in enumerate(steps)
    ]
    return {"setup": holds}


def wait_for_hold(runs, processes=1, start=0):
    """Until all processes of a start hold, and a checkpoint is on disk."""
    path = runs.parent / f"hold_{start}.waiting"

    def holds():
        assert not {"failed", "done"} & set(kinds(runs)[-1:]), run_command("status", runs).stdout
        return path.exists() and path.read_text().count("\n") >= processes and saved(runs)

    wait_for(holds, lambda: run_command("status", runs).stdout)


def release(runs, start=0):
    (runs.parent / f"hold_{start}").touch()


def events(runs, name=RUN):
    """The events of a job: [{"event": "start" | "stopped" | ..., ...}]."""
    return read_events(runs / ".slurm", name)


def kinds(runs):
    return [event["event"] for event in events(runs)]


def log(runs, name=RUN):
    return (runs / ".slurm" / "logs" / f"{name.replace('/', '.')}.log").read_text()


def saved(runs):
    return sorted((runs / RUN / "checkpoints").glob("step_????????/checksums.json"))


def ids(runs):
    return {
        job["name"]: job["id"]
        for job in json.loads((runs / ".slurm" / "experiment.json").read_text())["jobs"]
    }


def ended(runs):
    """Wait until no job of the experiment is in the queue; its status, for messages."""
    numbers = ",".join(filter(None, ids(runs).values()))
    wait_for(
        lambda: not queue("-j", numbers, "-o", "%A"),
        lambda: f"still in the queue: {run_command('status', runs).stdout}",
    )
    return run_command("status", runs)


def cancel_jobs(numbers):
    """Cancel jobs of the test cluster, and wait until they have left the queue."""
    call("scancel", *numbers)
    wait_for(lambda: not set(numbers) & set(queue("-o", "%A")), f"still there: {numbers}")


@contextmanager
def no_job_left():
    """The block leaves no job behind, whatever happens; jobs of before it may run on."""
    before = set(queue("-o", "%A"))
    try:
        yield
        left = set(queue("-o", "%A")) - before
        assert not left, f"jobs left in the queue: {queue('-o', '%A %j %T')}"
    finally:
        if left := set(queue("-o", "%A")) - before:
            cancel_jobs(left)


@pytest.fixture(scope="module")
def clean_queue(slurm):
    """For jobs that run beside several tests of a module; those tests may not all be selected."""
    assert not queue("-o", "%A")
    yield
    if left := queue("-o", "%A"):
        cancel_jobs(left)
    assert not queue("-o", "%A")


@pytest.fixture(autouse=True)
def clean_up(request):
    """No test leaves a job behind."""
    if "slurm" not in request.fixturenames:
        yield
        return
    with no_job_left():
        yield


def free_base_port(count=20):
    """A port that is free, with the `count` after it; below those of torchrun and of the kernel."""
    for base in range(10000 + os.getpid() % 9000, 19900, count):
        with ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    stack.enter_context(socket.create_server(("", port)))
            except OSError:
                continue
        return base
    raise AssertionError("no free ports")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """Starts the cluster, with which all Slurm commands of this session then work.

    slurm("crash", "node1") calls its script.
    """
    missing = [
        name
        for name in ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "sbatch")
        if not shutil.which(name)
    ]
    if missing:
        skip_or_fail(
            f"no Slurm on this machine ({missing[0]} is missing):"
            " bash tools/slurm_cluster.sh install"
        )
    folder = tmp_path_factory.mktemp("slurm")
    env = {
        **os.environ,
        "BASE_PORT": str(free_base_port()),
        "NODE_CPUS": "6",
        "NODES": "3",
    }

    def script(name, *arguments):
        command = [
            "bash",
            str(PROJECT / "tools" / "slurm_cluster.sh"),
            name,
            str(folder),
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, env=env)

    up = script("up")
    if up.returncode:
        script("down")
        reason = (up.stderr.strip() or up.stdout.strip()).splitlines()[-1]
        skip_or_fail(f"no Slurm can be started here: {reason}")
    os.environ["SLURM_CONF"] = str(folder / "etc" / "slurm.conf")
    yield script
    script("down")
    del os.environ["SLURM_CONF"]


@pytest.fixture(scope="session")
def uninterrupted(small_data, tmp_path_factory, command):
    """uninterrupted(steps, processes=1, field=value, ...) -> final weights of a run, made once."""
    made = {}

    def run(steps, processes=1, **fields):
        key = steps, processes, *fields.items()
        if key not in made:
            folder = tmp_path_factory.mktemp("uninterrupted")
            given = [
                f"{name}={value}"
                for name, value in {**WORLD, "loop.steps": steps, **fields}.items()
            ]
            module, cores = "cjepa_dist.train_world_model", os.sched_getaffinity(0)
            # A job has one core, and so one thread: more would sum in another order.
            os.sched_setaffinity(0, {max(cores)})
            try:
                arguments = [
                    "configs/world_model/quickstart.yaml",
                    *given,
                    f"data={small_data}",
                    f"run={folder}",
                ]
                done = command(module, *arguments, processes=processes if processes > 1 else 0)
            finally:
                os.sched_setaffinity(0, cores)
            assert done.returncode == 0, done.stderr
            made[key] = weights(folder, steps)
        return made[key]

    return run


def write(folder: Path, data: Path, *, cluster=None, **fields) -> Path:
    """Writes the configs of an experiment and its cluster; returns the path of the first.

    The runs go to folder/runs.
    """
    facts = yaml.safe_load((PROJECT / "configs" / "slurm" / "test.yaml").read_text())
    (folder / "cluster.yaml").write_text(yaml.safe_dump({**facts, **(cluster or {})}))
    content = {
        "cluster": str(folder / "cluster.yaml"),
        "runs": str(folder / "runs"),
        "data": str(data),
        "arms": {"baseline": {"config": "configs/world_model/quickstart.yaml"}},
        "world_model": WORLD,
        "aloe": ALOE,
        "blind": False,
        **fields,
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(content))
    return folder / "experiment.yaml"


@pytest.fixture
def experiment(tmp_path, small_data):
    """experiment(cluster={field: value}, field=value, ...) -> path of its config.

    Its runs go to tmp_path/runs.
    """
    return lambda **fields: write(tmp_path, small_data, **fields)
