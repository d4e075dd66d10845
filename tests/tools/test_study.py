"""tools.study: arms x seeds from one YAML, compared with the first arm, nothing done twice."""

import pytest
import yaml

from tests.fork_server import PROJECT
from tests.training.test_resume import TINY_WORLD
from tools.study import Study


@pytest.mark.slow
def test_arms_are_trained_measured_and_compared(command, small_data, tmp_path):
    small = [*TINY_WORLD, "loop.steps=2", "ctt.invariance.weight=0", "ctt.sufficiency.weight=0"]
    study = {
        "base": "configs/world_model/quickstart.yaml",
        "seeds": [0],
        "arms": {"a": small, "b": [*small, "optimizer.lr=0"]},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    arguments = (
        str(tmp_path / "study.yaml"),
        f"data={small_data}",
        f"out={tmp_path / 'out'}",
        "windows=64",
    )
    done = command("tools.study", *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "table.md").read_text() in done.stdout
    again = command("tools.study", *arguments)
    assert again.returncode == 0 and "train_world_model" not in again.stdout

    study["arms"]["b"] = ["optimizer.rl=0"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    wrong = command(
        "tools.study",
        str(tmp_path / "study.yaml"),
        f"data={small_data}",
        f"out={tmp_path / 'other'}",
    )
    assert (
        wrong.returncode == 2
        and "optimizer.rl" in wrong.stderr
        and not (tmp_path / "other").exists()
    )


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "configs" / "study").glob("*.yaml")), ids=lambda path: path.stem
)
def test_studies_in_configs_parse(path):
    from cjepa_dist.config import command_line, schema

    study = command_line.parse(Study, [str(path), "data=d", "out=o"])
    assert study is not None and len(study.seeds) >= 3
    for settings in study.arms.values():
        command_line.parse(schema.TrainWorldModel, [study.base, *settings, "data=d", "run=r"])
    assert "# Cost: " in path.read_text() and "# Should reach: " in path.read_text()
