"""What TensorBoard's own server shows of runs that were stopped and resumed, with both loaders."""

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from cjepa_dist.config import merge, schema
from cjepa_dist.training import logger
from cjepa_dist.training.logger import RunLogger

WAIT_S = 180  # for a state, on however busy a machine
FAST = "Using experimental fast data loading"


class Server:
    """The program `tensorboard` on a port that the system chooses."""

    def __init__(self, folder, log, *options: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
        command += ["--reload_interval", "1", *options]
        with log.open("w") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream)
        self.address = self.wait_for(lambda: re.search(r"http://\S+:\d+", log.read_text()))[0]

    def wait_for(self, look: Callable):
        """What `look` finds, as soon as that is something."""
        end = time.monotonic() + WAIT_S
        while not (found := look()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)
        return found

    def ask(self, path: str, body: dict | None = None, **query: str):
        """The answer to a GET, or to a POST of `body`; None where there is nothing yet."""
        url = f"{self.address}/data/plugin/{path}?{urllib.parse.urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code in (400, 404):  # it has not read the run yet
                return None
            raise

    def points(self, run: str) -> list[tuple[int, float]]:
        """(step, value) of a run's train/loss, as shown."""
        found = self.ask("scalars/scalars", run=run, tag="train/loss") or []
        return [(step, value) for _, step, value in found]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def servers(runs, tmp_path_factory) -> Iterator[dict[str, Server]]:
    """One with each loader, over the same folder, started before there is any run."""
    logs = tmp_path_factory.mktemp("servers")
    made: dict[str, Server] = {}
    try:
        made["default"] = Server(runs, logs / "default")
        made["slow"] = Server(runs, logs / "slow", "--load_fast=false")
        assert FAST in made["default"].log.read_text()
        assert FAST not in made["slow"].log.read_text()
        yield made
    finally:
        for server in made.values():
            server.close()


def train(run, start: int, stop: int, value: float, **options) -> None:
    """Log the steps after `start` up to `stop`, as a training does that is killed then."""
    run.mkdir(exist_ok=True)
    config = merge.build(schema.TrainWorldModel, {"data": "D", "run": str(run), **options})
    writer = RunLogger(run, config, start=start, steps=100)
    for step in range(start + 1, stop + 1):
        writer.log(step, {"loss": value})
    writer.close()


def shows(servers, run: str, expected: list[tuple[int, float]]) -> None:
    """Wait until both servers show exactly these points."""
    for name, server in servers.items():
        server.wait_for(lambda server=server: server.points(run) == expected)
        assert server.points(run) == expected, name


def test_a_resumed_run_shows_no_step_twice(servers, runs):
    """Killed after step 6, resumed from the checkpoint of step 4, and again from that of 2."""
    run = runs / "resumed"
    train(run, 0, 6, 1.0)
    shows(servers, "resumed", [(step, 1.0) for step in range(1, 7)])
    train(run, 4, 8, 2.0)
    first = [(step, 1.0) for step in range(1, 5)]
    shows(servers, "resumed", first + [(step, 2.0) for step in range(5, 9)])
    train(run, 2, 3, 3.0)
    shows(servers, "resumed", [*first[:2], (3, 3.0)])


@pytest.mark.parametrize("before", [True, False], ids=["shown before", "not shown before"])
def test_no_point_vanishes_when_the_clock_goes_back(servers, runs, monkeypatch, before):
    run = runs / f"clock {before}"
    really = time.time
    monkeypatch.setattr(logger.time, "time", lambda: really() + 86_400)
    train(run, 0, 6, 1.0)
    if before:
        shows(servers, run.name, [(step, 1.0) for step in range(1, 7)])
    monkeypatch.setattr(logger.time, "time", really)
    train(run, 4, 8, 2.0)
    expected = [(step, 1.0) for step in range(1, 5)] + [(step, 2.0) for step in range(5, 9)]
    shows(servers, run.name, expected)


def test_hyperparameters_have_all_fields(servers, runs):
    """Lists too, and numbers that a double cannot hold."""
    run, seed = runs / "fields", 2**53 + 1
    train(run, 0, 1, 1.0, seed=seed, mask={"probs": [0.5, 0.25, 0.25]}, plugins=[])
    body = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 99,
    }
    for server in servers.values():
        groups = lambda server=server: (  # noqa: E731
            (server.ask("hparams/session_groups", body) or {}).get("sessionGroups", [])
        )

        def fields(groups=groups):
            found = [group["hparams"] for group in groups()]
            return next((each for each in found if each.get("run") == str(run)), None)

        found = server.wait_for(fields)
        assert found["mask.probs"] == "[0.5, 0.25, 0.25]" and found["plugins"] == "[]"
        assert found["ctt.consistency.steps"] == "[1, 2, 4, 6]"
        assert found["seed"] == str(seed) and found["optimizer.lr"] == 5e-4
        assert found["mask.mode"] == "sample" and found["loop.steps"] == 0
