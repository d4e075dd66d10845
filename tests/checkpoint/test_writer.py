"""Checkpoints: in the background, on a full disk, and which of them are kept."""

import errno
import json
import os
import stat
import threading

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from cjepa_dist.checkpoint import integrity
from cjepa_dist.checkpoint.loading import load_checkpoint, newest_checkpoint
from cjepa_dist.checkpoint.writer import CheckpointWriter
from cjepa_dist.errors import UserError
from cjepa_dist.resilience.disk_full import disk_full_as_user_error


def best_folder(checkpoints):
    """The folder that best.json names; it must exist."""
    if not (checkpoints / "best.json").exists():
        return None
    name = json.loads((checkpoints / "best.json").read_text())["folder"]
    assert (checkpoints / name).is_dir()
    return name


def test_a_checkpoint_in_the_background_is_of_its_step(tmp_path, monkeypatch):
    """The weights change while it is written; an error of the writer is raised by the next save."""
    model = nn.Linear(3, 3)
    parts = [torch.optim.AdamW(model.parameters())]
    model(torch.ones(3)).sum().backward()
    parts[0].step()
    go_on, really = threading.Event(), dcp.save
    monkeypatch.setattr(
        dcp, "save", lambda *args, **kwargs: (go_on.wait(30), really(*args, **kwargs))
    )
    with CheckpointWriter(tmp_path, keep=3, background=True) as writer:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        writer.save(model, parts, step=1, meta={})
        assert newest_checkpoint(tmp_path) is None
        parts[0].step()
        go_on.set()
        writer.wait()
        after = nn.Linear(3, 3)
        load_checkpoint(newest_checkpoint(tmp_path), after, [torch.optim.AdamW(after.parameters())])
        assert all(torch.equal(value, before[name]) for name, value in after.state_dict().items())
        assert not torch.equal(after.weight, model.weight)

        monkeypatch.setattr(
            dcp,
            "save",
            lambda *args, **kwargs: (_ for _ in ()).throw(
                OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            ),
        )
        writer.save(model, parts, step=2, meta={})
        with pytest.raises(UserError, match="no space left for a checkpoint"):
            writer.save(model, parts, step=3, meta={})
        assert integrity.checkpoint_steps(tmp_path) == [1]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("other", [FULL, RuntimeError("Connection closed by peer")])
def test_a_full_disk_is_reported_by_the_checkpoint_that_filled_it(tmp_path, monkeypatch, other):
    """A line of metrics fails, or another rank is gone, while that checkpoint is still written."""
    model, met = nn.Linear(3, 3), threading.Event()
    parts = [torch.optim.AdamW(model.parameters())]

    def fill(*args, checkpoint_id, **kwargs):
        (checkpoint_id / "half").touch()
        met.wait(30)
        raise FULL

    with pytest.raises(
        UserError,
        match=r"no space left for a checkpoint in \S+: it needs about \d+ bytes, \d+ are free",
    ):
        with (
            disk_full_as_user_error(tmp_path),
            CheckpointWriter(tmp_path, keep=3, background=True) as writer,
        ):
            writer.save(model, parts, step=1, meta={})
            writer.wait()
            monkeypatch.setattr(dcp, "save", fill)
            writer.save(model, parts, step=2, meta={})
            met.set()
            raise other
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"] and newest_checkpoint(
        tmp_path
    )


def test_retention(tmp_path):
    model = nn.Linear(2, 2)
    parts = [torch.optim.AdamW(model.parameters())]

    def save(step, best=None, keep=2):
        CheckpointWriter(tmp_path, keep=keep).save(
            model, parts, step=step, meta={"best": best and {"step": best, "loss": 0.5}}
        )
        return integrity.checkpoint_steps(tmp_path)

    assert best_folder(tmp_path) is None
    save(1)
    assert save(2, best=2) == [1, 2] and best_folder(tmp_path) == "step_00000002"
    save(3, best=2)
    save(4, best=2)
    assert save(5, best=2) == [2, 4, 5]
    assert save(6, best=6) == [5, 6] and best_folder(tmp_path) == "step_00000006"
    # 6 is damaged, so the run was resumed from 5: 6 stays until something newer is whole.
    assert save(6, best=5, keep=1) == [5, 6]
    (tmp_path / "step_00000006" / "meta.json").write_text("{}")
    assert newest_checkpoint(tmp_path).name == "step_00000005"
    writer = CheckpointWriter(tmp_path, keep=2, damaged=[6])
    writer.save(model, parts, step=5, meta={})
    assert integrity.checkpoint_steps(tmp_path) == [5, 6] and best_folder(tmp_path) is None
    writer.save(model, parts, step=7, meta={})
    assert integrity.checkpoint_steps(tmp_path) == [5, 7]  # damaged ones are none of the two


def test_a_damaged_checkpoint_is_replaced_when_the_new_one_is_whole(tmp_path):
    model, record = nn.Linear(2, 2), tmp_path / "last_checkpoint.json"
    parts = [torch.optim.AdamW(model.parameters())]
    folder = tmp_path / "checkpoints"
    CheckpointWriter(folder, keep=2).save(model, parts, step=6, meta={})
    (folder / "step_00000006" / "meta.json").write_text("{}")
    with CheckpointWriter(folder, keep=2, record=record, damaged=[6]) as writer:
        writer.save(model, parts, step=6, meta={})
        writer.save(model, parts, step=8, meta={})
    assert integrity.verify_checkpoint(folder / "step_00000006") is None
    assert json.loads(record.read_text()) == {"step": 8}
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000006", "step_00000008"]


@pytest.mark.parametrize("mask", [0o022, 0o007, 0o077])
def test_all_files_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        model = nn.Linear(2, 2)
        parts = [torch.optim.AdamW(model.parameters())]
        best = {"step": 1, "loss": 0.5}
        writer = CheckpointWriter(tmp_path / "c", keep=2, record=tmp_path / "c" / "last.json")
        writer.save(model, parts, step=1, meta={"best": best})
    finally:
        os.umask(before)
    for path in (tmp_path / "c").rglob("*"):
        expected = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == expected & ~mask, path
    assert (tmp_path / "c" / "step_00000001" / "model.safetensors").is_file()


def test_a_folder_that_refuses_is_a_user_error(tmp_path):
    model = nn.Linear(2, 2)
    parts = [torch.optim.AdamW(model.parameters())]
    (tmp_path / "checkpoints").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot be written in \S+checkpoints: .*: \S+"):
        CheckpointWriter(tmp_path / "checkpoints", keep=2).save(model, parts, step=1, meta={})


def test_a_checkpoint_of_another_update_rule_is_refused(tmp_path):
    """Before, Muon had all matrices: such a run does not go on with fresh moments in silence."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    before = [torch.optim.Muon(matrices), torch.optim.AdamW(vectors)]
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(model, before, step=1, meta={})
    path = newest_checkpoint(tmp_path)
    load_checkpoint(path, model, [torch.optim.Muon(matrices), torch.optim.AdamW(vectors)])
    now = [torch.optim.Muon(matrices[:1]), torch.optim.AdamW([*vectors, matrices[1]])]
    with pytest.raises(UserError, match=r"for 1\.weight: .* another rule"):
        load_checkpoint(path, model, now)
