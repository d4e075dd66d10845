"""Which checkpoint a command takes: damaged ones are passed over, unreadable ones are not."""

import json
import os
import shutil

import pytest

from cjepa_dist.checkpoint.integrity import checkpoint_steps, choose_checkpoint, verify_checkpoint
from cjepa_dist.checkpoint.loading import newest_checkpoint
from cjepa_dist.checkpoint.resume import LAST_CHECKPOINT, choose_resume_point, tidy
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import file_checksum

FILES = ("meta.json", "model.safetensors", "__0_0.distcp", ".metadata")


@pytest.fixture
def run(tmp_path):
    """A run directory with whole checkpoints of steps 350 and 700."""
    for step in (350, 700):
        path = tmp_path / "checkpoints" / f"step_{step:08d}"
        path.mkdir(parents=True)
        for name in FILES:
            (path / name).write_text(f"{name} of {step}")
        checksums = {name: file_checksum(path / name) for name in FILES}
        (path / "checksums.json").write_text(json.dumps(checksums))
    (tmp_path / LAST_CHECKPOINT).write_text('{"step": 700}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 700, "kind": "train"}\n')
    return tmp_path


def content(run):
    return {path: path.is_dir() or os.readlink(path) if path.is_symlink() else path.read_bytes()
            for path in run.rglob("*") if path.is_symlink() or path.is_file()}  # fmt: skip


def newest(run):
    return run / "checkpoints" / "step_00000700"


def flip_a_bit(run):
    file = newest(run) / "__0_0.distcp"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


def lose_a_file(run):
    (newest(run) / "meta.json").unlink()


def lose_checksums(run):
    (newest(run) / "checksums.json").unlink()


def rewrite_checksums(text):
    return lambda run: (newest(run) / "checksums.json").write_bytes(text)


REST = b'"meta.json": "00", "model.safetensors": "00", ".metadata": "00"}'
DAMAGES = [
    flip_a_bit,
    lose_a_file,
    lose_checksums,
    *map(
        rewrite_checksums,
        (
            b"",
            b"{}",
            b"[1]",
            b"null",
            b'{"meta.json"',
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"meta.json": 1, "model.safetensors": [], ".metadata": {}}',
            b'{"../../metrics.jsonl": "00", ' + REST,
            b'{"meta.json\\u0000": "00", ' + REST,
        ),
    ),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_ones_are_passed_over(run, damage, capsys):
    damage(run)
    assert choose_resume_point(run)[:2] == (350, (700,))
    assert capsys.readouterr().out.count("step_00000700 is damaged (") == 1
    assert newest_checkpoint(run / "checkpoints").name == "step_00000350"


def test_with_none_whole_the_run_stops_and_says_how_to_go_on(run):
    for step in (350, 700):
        (run / "checkpoints" / f"step_{step:08d}" / "model.safetensors").write_text("changed")
    before = content(run)
    message = r"is whole \(step 700: model.safetensors changed; step 350: .* remove "
    with pytest.raises(UserError, match=message):
        choose_resume_point(run)
    assert content(run) == before


def as_link(path, target):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)


# Real errors of the system: /proc/self/mem opens, and its first byte is an I/O error.
REFUSALS = {
    "I/O error": lambda run: as_link(newest(run) / "__0_0.distcp", "/proc/self/mem"),
    "I/O error of checksums": lambda run: as_link(newest(run) / "checksums.json", "/proc/self/mem"),
    "a loop of links": lambda run: as_link(newest(run) / "meta.json", newest(run) / "meta.json"),
    "a file on a disk that is away": lambda run: as_link(newest(run) / ".metadata", "/no/such/x"),
    "the checkpoint on one": lambda run: as_link(newest(run), "/no/such/step"),
    "all of them on one": lambda run: as_link(run / "checkpoints", "/no/such/folder"),
    "no folder": lambda run: as_link(run / "checkpoints", "/dev/null"),
}


@pytest.mark.parametrize("refuse", REFUSALS.values(), ids=REFUSALS)
def test_unreadable_is_not_damaged(run, refuse, capsys):
    refuse(run)
    before = content(run)
    for look in (choose_resume_point, lambda run: newest_checkpoint(run / "checkpoints")):
        with pytest.raises(UserError, match=r"cannot be read: .*may be whole"):
            look(run)
    assert content(run) == before and "damaged" not in capsys.readouterr().out


def test_a_file_of_somebody_else_is_not_damaged(run):
    """Mode 0600 of another owner; a process with the rights of root looks as nobody does."""
    # pytest's own folders are for their owner only
    parents = [path for path in (run, *run.parents) if not path.stat().st_mode & 0o001]
    modes = [path.stat().st_mode for path in parents]
    (newest(run) / "model.safetensors").chmod(0 if os.geteuid() else 0o600)
    try:
        for path in parents:
            path.chmod(0o755)
        if not os.geteuid():
            os.seteuid(65534)
        with pytest.raises(UserError, match=r"model.safetensors cannot be read: Permission denied"):
            choose_checkpoint(run / "checkpoints")
    finally:
        if not os.getuid():
            os.seteuid(0)
        for path, mode in zip(parents, modes):
            path.chmod(mode)
        (newest(run) / "model.safetensors").chmod(0o600)


def empty(folder):
    for path in folder.iterdir():
        shutil.rmtree(path)


@pytest.mark.parametrize("lose", [shutil.rmtree, empty])
@pytest.mark.parametrize("record", ['{"step": 700}', "", "{}", "[]"])
def test_a_run_that_wrote_checkpoints_does_not_begin_anew(run, lose, record):
    """The folder of checkpoints is empty or gone: a disk that is not mounted looks like that."""
    (run / LAST_CHECKPOINT).write_text(record)
    lose(run / "checkpoints")
    before = content(run)
    with pytest.raises(UserError, match=r"has no checkpoint, but this run wrote one of step .*:"):
        choose_resume_point(run)
    assert content(run) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(run):
    (run / LAST_CHECKPOINT).unlink()
    empty(run / "checkpoints")
    assert choose_resume_point(run) is None
    (run / "checkpoints" / "step_00000350.partial").mkdir()
    assert choose_resume_point(run) is None


def test_a_missing_newest_checkpoint_is_said(run, capsys):
    shutil.rmtree(newest(run))
    assert choose_resume_point(run)[:2] == (350, ())
    assert "wrote a checkpoint of step 700, which is not in" in capsys.readouterr().out


def test_only_what_we_write_is_tidied(run):
    """Half-written checkpoints go; folders of the user with a like name do not."""
    folder = run / "checkpoints"
    for name in ("step_00000800.partial", "step_00000700.replaced.partial"):
        (folder / name).mkdir()
    for name in ("mine.partial", "step_best.partial", "step_1.partial"):
        (folder / name).mkdir()
    tidy(run, 700)
    left = {path.name for path in folder.iterdir()}
    assert left == {"step_00000350", "step_00000700"} | {
        "mine.partial", "step_best.partial", "step_1.partial"
    }  # fmt: skip


def test_other_names_are_no_checkpoints(tmp_path):
    for name in ("step_abcdefgh", "step_123", "step_00000001.bak", "step_123456789"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_00000009").write_text("a file")
    assert checkpoint_steps(tmp_path) == [123456789]
    assert "is missing" in verify_checkpoint(tmp_path / "step_123")
