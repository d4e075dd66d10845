"""A real Slurm of two nodes on this machine (tools/slurm_cluster.sh), and experiments small enough for it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import PROJECT

WORLD = {
    "predictor.width": 32, "predictor.depth": 1, "predictor.mlp_dim": 64, "loop.steps": 6, "loop.global_batch": 8, "loop.log_every": 1,
    "loop.checkpoint_every": 2, "loop.keep": 99, "val_windows": 16,
}  # fmt: skip
ALOE = {
    "aloe.frames": 6, "stride": 20, "aloe.width": 32, "aloe.depth": 1, "aloe.mlp_dim": 64, "loop.steps": 2, "loop.global_batch": 4,
    "loop.log_every": 1,
}  # fmt: skip


def call(*command, timeout=300):
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=timeout)


def ours(name, *arguments):
    """slurm.submit and its like, as a user runs them."""
    return call(sys.executable, "-m", f"slurm.{name}", *map(str, arguments))


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.5)
    return found


def queue(*options):
    return call("squeue", "-h", *options).stdout.split()


def ids(runs):
    return {job["name"]: job["id"] for job in json.loads((runs / ".slurm" / "experiment.json").read_text())["jobs"]}


def ended(runs, seconds=300):
    """Wait until no job of the experiment is in the queue; its status, for messages."""
    numbers = ",".join(filter(None, ids(runs).values()))
    wait_for(lambda: not queue("-j", numbers, "-o", "%A"), seconds, lambda: f"still in the queue: {ours('status', runs).stdout}")
    return ours("status", runs)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """Starts the cluster; every Slurm command of this session then talks to it."""
    missing = [name for name in ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
    if missing and os.environ.get("SLURM_INSTALL") != "1":
        pytest.skip(f"no Slurm on this machine ({missing[0]} is missing): with SLURM_INSTALL=1 and root, apt-get gets it")
    folder = tmp_path_factory.mktemp("slurm")
    script = ["bash", str(PROJECT / "tools" / "slurm_cluster.sh")]
    env = {**os.environ, "BASE_PORT": str(20000 + os.getpid() % 10000), "NODE_CPUS": "2"}
    up = subprocess.run([*script, "up", str(folder)], capture_output=True, text=True, env=env)
    if up.returncode:
        subprocess.run([*script, "down", str(folder)], capture_output=True, env=env)
        pytest.skip(f"no Slurm can be started here: {(up.stderr.strip() or up.stdout.strip()).splitlines()[-1]}")
    os.environ["SLURM_CONF"] = str(folder / "etc" / "slurm.conf")
    yield folder
    subprocess.run([*script, "down", str(folder)], capture_output=True, env=env)
    del os.environ["SLURM_CONF"]


def write(folder: Path, data: Path, *, cluster=None, **fields) -> Path:
    """Both YAML files of an experiment whose runs go to folder/runs; the path of the experiment's."""
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
    """experiment(cluster={field: value}, field=value, ...) -> path of its YAML; its runs go to tmp_path/runs."""
    return lambda **fields: write(tmp_path, small_data, **fields)
