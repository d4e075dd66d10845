"""Values arrive as they were typed: text verbatim, numbers in decimal, and within their range."""

import ast
import dataclasses
import importlib
import os
import re
import sys
import typing
from pathlib import Path

import pytest

from cjepa_dist.config import command_line, locate, merge, schema, yaml_text
from cjepa_dist.config.fields import MAX_SEED, leaf_fields
from cjepa_dist.errors import UserError, describe_refusal, one_line
from data_prep.merge import Merge
from slurm.experiment.schema import Cluster, Experiment

TEXTS = [
    *("008", "010", "2026_11_30", "1e3", "no", "null", "???", "1:30", "0x10", "2026-11-30"),
    *("a #b", '"a #b"', "'x'", "[x", "[x]", "{x", "@x", "${c}", "$(c)", "x=y", "- a", "a: b", "&a"),
    *("*a", "!t", "%d", "a\\b", "\\${c}", "a  b", " a ", "é", "a\nb", "\x1b[3m", "\udcff", "~"),
]
TINY = [
    *("predictor.depth=1", "predictor.mlp_dim=32", "predictor.heads=2", "loop.steps=2"),
    *("loop.global_batch_size=4", "val_windows=4"),
]


def world_model(*arguments):
    return command_line.parse(schema.TrainWorldModel, ["data=d", "run=r", *arguments])


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_verbatim_and_survives_a_file(text, tmp_path):
    config = world_model(f"train_split={text}")
    assert config.train_split == text
    merge.save_yaml(config, tmp_path / "config.yaml")
    assert merge.build(schema.TrainWorldModel, merge.read_yaml(tmp_path / "config.yaml")) == config


def test_text_in_a_file_is_verbatim(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("run: 008\ndata: 1e3\ntrain_split: no  # a comment\nval_split: 'a #b'\n")
    config = command_line.parse(schema.TrainWorldModel, [str(path)])
    assert (config.run, config.data, config.train_split) == ("008", "1e3", "no")
    assert config.val_split == "a #b"


def test_home_and_equals_signs_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = world_model("run=~/x=1/y", "data=https://h/~u", "train_split=~/x")
    assert config.run == f"{tmp_path}/x=1/y" and config.data == "https://h/~u"
    assert config.train_split == "~/x"  # no path
    assert command_line.parse(Merge, ["out=o", "parts=[~/a,b]"]).parts == [f"{tmp_path}/a", "b"]
    assert command_line.parse(Merge, ["out=o", "parts=[~"]).parts == "[~"


def test_a_config_path_may_hold_an_equals_sign(tmp_path, monkeypatch):
    folder = tmp_path / "lr=1"
    folder.mkdir()
    (folder / "a=b.yaml").write_text("seed: 7\n")
    assert world_model(str(folder / "a=b.yaml")).seed == 7
    monkeypatch.chdir(folder)
    assert world_model("./a=b.yaml").seed == world_model("a=b.yaml").seed == 7
    (folder / "seed=3").write_text("seed: 7\n")
    assert world_model("seed=3").seed == 3  # begins with a field


def test_numbers_are_decimal_and_lists_hold_text():
    config = world_model("seed=010", "optimizer.lr=1e-3", "mask.probs=[0, 1.]", "plugins=[]")
    assert (config.seed, config.optimizer.lr, config.mask.probs) == (10, 1e-3, [0.0, 1.0])
    found = command_line.parse(schema.TrainAloe, ["data=d", "run=r", "question_types=[010, no]"])
    assert found.question_types == ["010", "no"]
    config = world_model(
        "predictor={depth: 3, heads: 4}", "extra_losses={a.b: 1}", "loop.profile=no"
    )
    assert (config.predictor.depth, config.extra_losses) == (3, {"a.b": 1.0})
    assert world_model("extra_losses.a.b=1").extra_losses == {"a.b": 1.0}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optimizer.lr=nan", "optimizer.lr='nan': must be a finite number"),
        ("optimizer.lr=-.inf", "must be a finite number"),
        ("loop.epochs=1e999", "must be a finite number"),
        ("loop.epochs=inf", "must be a finite number"),
        ("predictor.dropout=2", "must be at most 1"),
        ("mask.probs=[0.5,nan]", r"mask.probs\[1\]='nan': must be a finite"),
        ("mask.probs=[0.5,1.5]", r"mask.probs\[1\]=1.5: must be at most 1"),
        ("ctt.consistency.steps=[0]", "must be at least 1"),
        (f"seed={2**63}", "must be at most 9223372036854775807"),
        ("seed=-1", "must be at least 0"),
        ("seed=" + "9" * 5000, "must be a whole number"),
        ("seed=1e3", "must be a whole number"),
        ("seed=1_000", "must be a whole number"),
        ("seed=true", "must be a whole number"),
        ("seed=\u0661", "must be a whole number"),
        ("loop.profile=maybe", "must be true or false"),
        ("mask.probs=[0.7, 0.2", "must be a list, such as"),
        ("mask.probs=0.7", "must be a list, such as"),
        ("mask.probs={a: 1}", "must be a list, such as"),
        ("mask.probs=" + "[" * 100_000, "nested too deeply"),
        ("predictor=[1]", "must be a mapping"),
        ("extra_losses=1", "must be a mapping"),
        ("extra_losses.a=x", "extra_losses.a='x': must be a number"),
        ("train_split=a\0b", "must not hold the character NUL"),
        ("run=", "missing: run="),
    ],
)
def test_what_does_not_fit_is_one_line(argument, message):
    with pytest.raises(UserError, match=message) as caught:
        world_model(argument)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not valid YAML: expected"),
        (b"seed: 1\nseed: 2", "key 'seed' is there twice"),
        (b"seed:", "seed=None: has no value"),
        (b"seed: ~", "seed=None: has no value"),
        (b"- 1", "must hold key: value pairs"),
        (b"\xff", "not valid YAML"),
        (b"a: " + b"[" * 100_000, "nested too deeply"),
        (b"a: " + b"x" * (yaml_text.MOST_BYTES + 1), "more than 16 MiB"),
        (b"? [a]\n: 1", "not valid YAML"),
        (b"mask: 3", "must be a mapping"),
    ],
)
def test_files_that_do_not_fit_are_one_line(content, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        world_model(str(path))


def schemas():
    """Every dataclass with config fields, in all modules."""
    root = locate.project_root()
    for path in [*(root / "cjepa_dist").rglob("*.py"), *(root / "slurm").rglob("*.py")] + [
        path for name in ("data_prep", "tools") for path in (root / name).rglob("*.py")
    ]:
        source = path.read_text()
        if "= option(" not in source or path.name == "fields.py":
            continue
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        names = [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
        yield from (getattr(importlib.import_module(module), name) for name in names)


def test_every_number_has_a_range():
    checked = 0
    for found in filter(dataclasses.is_dataclass, schemas()):
        hints = typing.get_type_hints(found)
        for field in dataclasses.fields(found):
            if "meaning" in field.metadata and re.search(
                r"\b(int|float)\b", str(hints[field.name])
            ):
                where = f"{found.__name__}.{field.name}"
                assert field.metadata["least"] is not None, where
                assert field.metadata["most"] is not None, where
                checked += 1
                if field.name == "seed":
                    assert (field.metadata["least"], field.metadata["most"]) == (0, MAX_SEED), where
    assert checked > 100


@pytest.mark.parametrize("found", [schema.TrainWorldModel, schema.TrainAloe, Cluster, Experiment])
def test_defaults_are_in_their_ranges(found):
    required = {name: "x" for name, field in leaf_fields(found) if name in ("data", "run", "runs")}
    given = merge.masked(dataclasses.asdict(merge.build(found, required)))
    assert dataclasses.asdict(merge.build(found, given)) == given


def test_fields_that_take_anything_keep_text(tmp_path):
    config = command_line.parse(
        Experiment,
        ["runs=r", "arms.a.train_split=008", "arms.a.ctt.fraction=[0.5,1]", "arms.b.config=[x"],
    )
    assert config.arms["a"] == {"train_split": "008", "ctt": {"fraction": ["0.5", "1"]}}
    assert config.arms["b"] == {"config": "[x"}


def test_a_password_of_a_url_is_not_written_and_not_shown(tmp_path):
    config = world_model("data=https://me:secret@host/data")
    assert config.data == "https://me:secret@host/data"
    merge.save_yaml(config, tmp_path / "config.yaml")
    assert "data: https://host/data" in (tmp_path / "config.yaml").read_text()
    error = UserError(f"{config.data}/manifest.json: no; s3://k:a@b/c@x/d")
    assert str(error) == "https://***@host/data/manifest.json: no; s3://***@b/c@x/d"


def test_messages_are_one_line_of_printable_text():
    assert one_line("a  b\n  c\x1b[3m\udcff é") == r"a  b c\x1b[3m\udcff é"


def test_what_the_file_system_refuses_is_one_line(command, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("n" * 300, "file/x"):
        done = command("data_prep.simulate", f"out={tmp_path / name}", "train=1", "val=0", "test=0")
        lines = done.stderr.strip().splitlines()
        assert done.returncode == 2 and len(lines) == 1 and name in lines[0], done.stderr


def test_other_failures_of_the_file_system_keep_their_traceback():
    assert describe_refusal(OSError(5, "I/O error", "x")) == ""
    assert "ulimit -n" in describe_refusal(OSError(24, "Too many open files"))


def test_a_run_may_have_any_name(command, small_data, tmp_path):
    """Not Unicode, with what a shell, YAML or a terminal would take for something else."""
    run = tmp_path / os.fsdecode(b"run \xff=[\x1b ${c}")
    done = command("cjepa_dist.train_world_model", f"data={small_data}", f"run={run}", *TINY)
    assert done.returncode == 0, done.stderr
    done = command(
        "cjepa_dist.evaluate", f"run={run}", "windows=8", "videos=1", "bootstrap_draws=2"
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


def test_names_that_are_no_text_can_be_used(command, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a \xff=[\x1b"))
    done = command("data_prep.simulate", f"out={folder}", "train=1", "val=0", "test=0", "workers=1")
    assert done.returncode == 0, done.stderr
    assert (folder / "manifest.json").is_file()
    done = command("data_prep.verify", f"data={folder}")
    assert done.returncode == 0, done.stderr
    assert sys.getfilesystemencoding() == "utf-8"
