"""Fixtures of several folders."""

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest

# Before torch is imported, for this process and all that it starts: OpenMP's threads would
# otherwise wait for each other at full load, which takes most of the time of such small models on
# a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Tests of servers that fail need their requests, and none may write into the user's own cache.
os.environ["CJEPA_CACHE_GB"] = "0"

import torch

from tests.fork_server import ForkServer
from tests.tiers import Tiers, in_ci

# A busy machine must not fail a test: examples take as long as they take. In CI they are the same
# each time, so that a change is not blamed for what chance has found.
hypothesis.settings.register_profile(
    "project",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=in_ci(),
    database=None if in_ci() else hypothesis.settings().database,
)
hypothesis.settings.load_profile("project")
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Tiers(config), "tiers")


def skip_or_fail(reason: str) -> NoReturn:
    """Skip a test that this machine lacks something for; in CI (CI=true) fail it."""
    if in_ci():
        pytest.fail(f"in CI nothing may be missing: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def command(fork_server: ForkServer) -> Callable[..., subprocess.CompletedProcess[str]]:
    """command("module", "key=value", ..., processes=1) runs an entry point as a user would.

    The result has returncode, stdout, stderr.
    """

    def run(
        module: str, *arguments: str, processes: int = 0, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "0"}
        return fork_server.run(
            module, *arguments, environment=environment, timeout=timeout, processes=processes
        )

    return run


@pytest.fixture(scope="session")
def small_data(
    tmp_path_factory: pytest.TempPathFactory,
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> Path:
    """A simulated data set of 16 + 8 + 8 videos with questions and truth; read-only.

    Made once: the first of several workers makes it, and the others wait.
    """
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if parallel else base
    out = folder / "small_data"
    with open(folder / "small_data.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "manifest.json").is_file():
            done = command("data_prep.simulate", f"out={out}", "train=16", "val=8", "test=8")
            assert done.returncode == 0, done.stderr
    return out
