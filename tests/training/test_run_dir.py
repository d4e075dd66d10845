"""Which fields of a run may change when it is resumed, and what stands in its directory's way."""

import copy
import os

import pytest

from cjepa_dist.checkpoint.resume import CHANGEABLE_FIELDS, CHANGES_ORDER, may_change
from cjepa_dist.config import fields, merge, schema
from cjepa_dist.errors import UserError
from cjepa_dist.training.run_dir import check_run_dir, config_value, lock_run_dir, open_run_dir

SCHEMAS = (schema.TrainWorldModel, schema.TrainAloe)


def config_of(kind, run):
    return merge.build(kind, {"data": "D", "run": str(run)})


def another(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {**value, "x": 1.0}
    one = {list: [1], str: "2"}.get(type(value), 1)
    return value + one


def change(config, *names):
    """Another value for each of these fields."""
    config = copy.deepcopy(config)
    for name in names:
        *tables, leaf = name.split(".")
        owner = config_value(config, ".".join(tables)) if tables else config
        setattr(owner, leaf, another(getattr(owner, leaf)))
    return config


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_field_may_change_or_is_refused_by_name(kind, tmp_path):
    config = config_of(kind, tmp_path)
    open_run_dir(tmp_path, config, {})
    names = [name for name, _ in fields.leaf_fields(kind)]
    refused = [name for name in names if not may_change(name)]
    for name in names:
        if name in refused:
            with pytest.raises(UserError, match=f"was started with {name}=.*, not "):
                check_run_dir(tmp_path, change(config, name))
        else:
            check_run_dir(tmp_path, change(config, name))
    with pytest.raises(UserError) as caught:
        check_run_dir(tmp_path, change(config, *names))
    assert all(f"{name}=" in str(caught.value) for name in refused)
    assert {"seed", "optimizer.lr", "loop.steps", "loop.global_batch_size"} <= set(refused)
    assert not {name for name in refused if name.startswith(("reading.", "loop.engine", "data"))}


def test_the_table_of_what_may_change_names_fields_that_exist():
    names = {name for kind in SCHEMAS for name, _ in fields.leaf_fields(kind)}
    tables = {f"{name.split('.')[0]}." for name in names if "." in name}
    assert CHANGEABLE_FIELDS.keys() <= names | tables and names >= set(CHANGES_ORDER)
    assert all(CHANGEABLE_FIELDS.values())
    for name in ("loop.cuda_graph", "loop.gradient_accumulation", "loop.num_processes", "data"):
        assert may_change(name), name


def test_another_order_of_samples_is_said(tmp_path, capsys):
    config = config_of(schema.TrainWorldModel, tmp_path)
    open_run_dir(tmp_path, config, {})
    other = copy.deepcopy(config)
    other.reading.kind, other.loop.log_every = "streaming", 1
    check_run_dir(tmp_path, other)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "reading.kind=streaming, before in_memory: " in said
    assert "another order" in said


def in_a_file(folder):
    (folder / "file").write_text("")
    return folder / "file" / "run"


def over_a_file(folder):
    (folder / "run").write_text("")
    return folder / "run"


@pytest.mark.parametrize(
    "place", [in_a_file, over_a_file, lambda _: "/proc/run", lambda _: "/x" * 3000]
)
def test_a_run_directory_that_cannot_be_made_is_a_user_error(place, tmp_path):
    run = tmp_path / place(tmp_path)
    with pytest.raises(UserError, match=f"{str(run)[:40]}.*: .* mend that, or choose another run"):
        with lock_run_dir(run):
            pass


def test_a_run_directory_without_permission_is_a_user_error(tmp_path):
    """As a user without the rights of root would see it."""
    run, modes = tmp_path / "run", {}
    run.mkdir()
    run.chmod(0o500)
    for path in (tmp_path, *tmp_path.parents):
        if not path.stat().st_mode & 0o001:  # pytest's own folders are for their owner only
            modes[path] = path.stat().st_mode
            path.chmod(0o755)
    try:
        if not os.geteuid():
            os.seteuid(65534)
        with pytest.raises(UserError, match=r"run/\.lock.*: Permission denied"):
            with lock_run_dir(run):
                pass
    finally:
        if not os.getuid():
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)
        run.chmod(0o700)
