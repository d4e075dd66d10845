"""A loss that is added from outside the package (docs/how_to/add_a_loss.md)."""

import json

from tests.docs_examples import python_example
from tests.training.test_resume import TINY_WORLD

PLUGIN = python_example("add_a_loss.md")


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def test_a_loss_from_outside_the_package(command, small_data, tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(PLUGIN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = {}
    for weight in ("0", "0.5"):
        run = tmp_path / f"run_{weight}"
        done = command(
            "cjepa_dist.train_world_model",
            *(f"data={small_data}", f"run={run}", *TINY_WORLD, "loop.steps=4", "loop.log_every=1"),
            *("plugins=[my_losses]", f"extra_losses.smooth={weight}"),
        )
        assert done.returncode == 0, done.stderr
        found[weight] = metrics(run)
    first, weighted = found["0"][0], found["0.5"][0]
    assert weighted["loss_smooth"] == first["loss_smooth"] > 0
    assert abs(weighted["loss"] - first["loss"] - 0.5 * first["loss_smooth"]) < 1e-5
    assert found["0"][-1]["loss_smooth"] != found["0.5"][-1]["loss_smooth"]


def test_an_unknown_loss_is_named(command, small_data, tmp_path):
    done = command(
        "cjepa_dist.train_world_model",
        *(f"data={small_data}", f"run={tmp_path / 'run'}", *TINY_WORLD, "extra_losses.other=1"),
    )
    assert done.returncode == 2 and "extra_losses.other" in done.stderr
