"""The command line: typed, checked, and every mistake named."""

import sys

import pytest

from cjepa_dist.config import command_line, fields, merge, schema
from cjepa_dist.errors import UserError

REQUIRED = ["data=d", "run=r"]


def test_layers_win_in_order(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("frameskip: 2\npredictor: {depth: 3}\n")
    config = command_line.parse(
        schema.TrainWorldModel, [str(path), *REQUIRED, "predictor.depth=4", "mask.probs=[0,1]"]
    )
    assert (
        config.frameskip,
        config.predictor.depth,
        config.predictor.heads,
        config.mask.probs,
    ) == (2, 4, 16, [0.0, 1.0])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("ctt.invarience.weight=1", "nearest is ctt.invariance.weight"),
        ("predictr.depth=1", "nearest is predictor"),
        ("predictor.dept=1", "nearest is predictor.depth"),
        ("loop.steps=many", "loop.steps"),
        ("loop.global_batch_size=0", "at least 1"),
        ("loop.precision=fp8", "one of auto, bf16, fp32"),
        ("missing.yaml", "missing.yaml does not exist"),
        ("--verbose", "arguments are"),
    ],
)
def test_mistakes_are_named(argument, message):
    with pytest.raises(UserError, match=message):
        command_line.parse(schema.TrainWorldModel, [*REQUIRED, argument])


def test_missing_fields_are_listed():
    with pytest.raises(UserError, match=r"data=\.\.\., run=\.\.\."):
        command_line.parse(schema.TrainWorldModel, [])


def test_help_lists_every_field(command):
    for module, config in (
        ("cjepa_dist.train_world_model", schema.TrainWorldModel),
        ("cjepa_dist.train_aloe", schema.TrainAloe),
    ):
        shown = command(module, "--help")
        assert shown.returncode == 0
        for key, field in fields.leaf_fields(config):
            assert f"  {key}\n" in shown.stdout and field.metadata["meaning"] in shown.stdout


def test_saved_config_reads_back(tmp_path):
    config = command_line.parse(schema.TrainAloe, [*REQUIRED, "aloe.depth=2", "blind=true"])
    merge.save_yaml(config, tmp_path / "config.yaml")
    assert merge.build(schema.TrainAloe, merge.read_yaml(tmp_path / "config.yaml")) == config


def test_error_is_one_line_and_exit_code_2(command, tmp_path):
    done = command(
        "cjepa_dist.train_world_model", f"data={tmp_path}/nowhere", f"run={tmp_path}/run"
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and "nowhere" in done.stderr
    assert not (tmp_path / "run").exists()


def test_plugins_are_imported_before_values_are_checked(tmp_path, monkeypatch):
    (tmp_path / "adds_a_name.py").write_text(
        "from cjepa_dist.config import schema\nschema.GRAPH_ESTIMATORS.append('added')\n"
    )
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = list(schema.GRAPH_ESTIMATORS)
    try:
        config = command_line.parse(
            schema.TrainWorldModel,
            [*REQUIRED, "plugins=[adds_a_name]", "ctt.graph.estimator=added"],
        )
        assert config.ctt.graph.estimator == "added"
    finally:
        schema.GRAPH_ESTIMATORS[:] = names
    for module, cause in (("broken_plugin", "ZeroDivisionError"), ("missing", "No module named")):
        with pytest.raises(UserError, match=f"plugins: .*{module}.*{cause}"):
            command_line.parse(schema.TrainAloe, [*REQUIRED, f"plugins=[{module}]"])
