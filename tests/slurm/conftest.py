"""A real Slurm of three nodes on this machine, and experiments that are small enough for it.

tools/slurm_cluster.sh starts and stops the cluster.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.fork_server import PROJECT
from tests.training.test_resume import weights

RUN = "world_model/baseline/seed_0"

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


def call(*command, timeout=300):
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


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.5)
    return found


def queue(*options):
    return call("squeue", "-h", *options).stdout.split()


def submit(path, *arguments):
    done = run_command("submit", path, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def paused(steps):
    """Fields of a cluster on which each step takes two seconds, and no CPU."""
    return {
        "environment": {
            "OMP_NUM_THREADS": "1",
            "CJEPA_FAULT": ",".join(f"pause@{step}" for step in range(steps)),
        }
    }


def events(runs, name=RUN):
    """The events of a job: [{"event": "start" | "stopped" | ..., ...}]."""
    lines = (
        (runs / ".slurm" / "events" / f"{name.replace('/', '.')}.jsonl").read_text().splitlines()
    )
    return [json.loads(line) for line in lines]


def log(runs, name=RUN):
    return (runs / ".slurm" / "logs" / f"{name.replace('/', '.')}.log").read_text()


def saved(runs):
    return sorted((runs / RUN / "checkpoints").glob("step_????????/checksums.json"))


def wait_for_checkpoints(*folders):
    wait_for(
        lambda: all(saved(runs) for runs in folders),
        180,
        lambda: "\n".join(run_command("status", runs).stdout for runs in folders),
    )


def ids(runs):
    return {
        job["name"]: job["id"]
        for job in json.loads((runs / ".slurm" / "experiment.json").read_text())["jobs"]
    }


def ended(runs, seconds=300):
    """Wait until no job of the experiment is in the queue; its status, for messages."""
    numbers = ",".join(filter(None, ids(runs).values()))
    wait_for(
        lambda: not queue("-j", numbers, "-o", "%A"),
        seconds,
        lambda: f"still in the queue: {run_command('status', runs).stdout}",
    )
    return run_command("status", runs)


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
        pytest.skip(
            f"no Slurm on this machine ({missing[0]} is missing):"
            " bash tools/slurm_cluster.sh install"
        )
    folder = tmp_path_factory.mktemp("slurm")
    env = {
        **os.environ,
        "BASE_PORT": str(20000 + os.getpid() % 10000),
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
        pytest.skip(f"no Slurm can be started here: {reason}")
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
