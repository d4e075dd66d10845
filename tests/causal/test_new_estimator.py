"""A graph estimator of a user's own, in a module outside of the package (`plugins=[...]`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs_examples import python_example
from tests.fork_server import PROJECT
from tests.training.test_resume import TINY_WORLD

ESTIMATOR = python_example("add_a_graph_estimator.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current folder of a user, with the module."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_graphs.py").write_text(ESTIMATOR)
    return folder


def run(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def trained(folder: Path, small_data: Path) -> Path:
    """A run that reads its graph from the new estimator."""
    run_dir = folder / "run"
    done = run(
        folder,
        "cjepa_dist.train_world_model",
        *(f"data={small_data}", f"run={run_dir}", *TINY_WORLD, "loop.steps=4", "loop.log_every=1"),
        *("plugins=[my_graphs]", "ctt.graph.estimator=same_speed"),
        *("ctt.invariance.weight=0.1", "ctt.sufficiency.weight=0.1", "ctt.invariance.ramp=0"),
    )
    assert done.returncode == 0, done.stderr
    return run_dir


def test_a_model_trains_with_it(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert train[-1]["edges_per_slot"] > 0 and "loss_invariance" in train[-1]


def test_its_edges_are_evaluated(trained: Path, folder: Path, small_data: Path) -> None:
    """The run's config names the plugin, so the command need not."""
    done = run(
        folder,
        "cjepa_dist.evaluate_graph",
        *(f"run={trained}", f"data={small_data}", "split=val", "windows=40", "bootstrap_draws=5"),
        "estimators=[same_speed,touching,oracle]",
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((trained / "eval" / "graphs_val.json").read_text())
    rows = written["targets"]["contact"]["estimators"]
    assert list(rows) == ["same_speed", "touching", "oracle"]
    assert rows["touching"] == rows["oracle"] and rows["same_speed"]["auroc"]["value"] is not None


def test_it_is_a_rule_of_divergence(trained: Path, folder: Path, small_data: Path) -> None:
    done = run(
        folder,
        "cjepa_dist.evaluate_counterfactual",
        *(
            f"run={trained}",
            f"data={small_data}",
            "videos=2",
            "probe_videos=4",
            "bootstrap_draws=5",
        ),
        *("rules=[free,same_speed]", "figure_worlds=1"),
    )
    assert done.returncode == 0, done.stderr
    assert "same_speed" in (trained / "eval" / "counterfactual_val.json").read_text()


def test_unknown_names_are_refused(folder: Path, small_data: Path) -> None:
    arguments = (f"data={small_data}", f"run={folder / 'other'}", *TINY_WORLD)
    module = "cjepa_dist.train_world_model"
    done = run(folder, module, *arguments, "plugins=[my_graph]")
    assert done.returncode == 2 and "'my_graph'" in done.stderr and "No module" in done.stderr
    done = run(folder, module, *arguments, "plugins=[my_graphs]", "ctt.graph.estimator=same_sped")
    assert done.returncode == 2 and "same_speed, touching" in done.stderr
    done = run(folder, module, *arguments, "ctt.graph.estimator=same_speed")
    assert done.returncode == 2 and "must be one of published" in done.stderr
