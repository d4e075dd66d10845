"""Every config parses under its schema, and its header says what a run costs and should reach."""

from pathlib import Path

import pytest
import yaml

from cjepa_dist.config import command_line, schema
from data_prep.simulate.settings import Simulate

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SCHEMAS = {"world_model": schema.TrainWorldModel, "aloe": schema.TrainAloe, "simulate": Simulate}
FILES = [path for folder in SCHEMAS for path in sorted((CONFIGS / folder).glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_parses_and_states_its_cost(path):
    required = {
        "world_model": ["data=d", "run=r"],
        "aloe": ["data=d", "run=r"],
        "simulate": ["out=o"],
    }[path.parent.name]
    config = command_line.parse(SCHEMAS[path.parent.name], [str(path), *required])
    assert config is not None
    header = "".join(
        line for line in path.read_text().splitlines(keepends=True) if line.startswith("#")
    )
    assert "# Cost: " in header and "# Should reach" in header
    if path.parent.name == "world_model":
        predictor = config.predictor
        assert (predictor.width or predictor.slot_dim) % predictor.heads == 0
        assert sum(config.mask.probs) == pytest.approx(1.0)
    if path.parent.name == "aloe":
        assert (
            max(config.starts - 1, config.eval_start) + (config.aloe.frames - 1) * config.stride
            < 128
        )
        assert config.aloe.width % config.aloe.heads == 0


def test_arms_of_a_comparison_differ_only_in_what_is_compared():
    for size in ("quickstart", "full"):
        base, ctt, own = (
            yaml.safe_load((CONFIGS / "world_model" / f"{size}{arm}.yaml").read_text())
            for arm in ("", "_ctt", "_own_slot")
        )
        assert {k: v for k, v in ctt.items() if k != "ctt"} == base
        assert (
            own.pop("predictor") == {**base.pop("predictor"), "own_slot_only": True} and own == base
        )


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_reads_its_configs(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    words = {"eight": 8, "several": 16, "cpu_": 2}
    assert config.num_processes == next(
        (count for word, count in words.items() if path.stem.startswith(word)), 1
    )
    assert (
        config.num_processes == 1 or not config.use_cpu
    )  # else Accelerate silently starts a single process
