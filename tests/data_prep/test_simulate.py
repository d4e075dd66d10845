"""`python -m data_prep.simulate`: files, determinism, continuing after a stop, bad settings."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cjepa_dist.config.schema import TrainWorldModel
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.errors import UserError
from cjepa_dist.training.run_data import RunData
from data_prep.simulate import __main__ as entry
from data_prep.simulate.settings import Simulate
from data_prep.simulate.video import SimulatedVideo, make_video


def test_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any number of processes gives the same bytes; members and shapes; a second run does nothing.

    Other settings are an error.
    """
    config = Simulate(out=str(tmp_path / "a"), train=20, val=4, test=2, seed=3, workers=1)
    assert entry.main(config) == 0
    assert entry.main(dataclasses.replace(config, out=str(tmp_path / "b"), workers=2)) == 0
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert (
            path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
        ), path
    assert verify_dataset(tmp_path / "a") == []
    manifest = Manifest.load(tmp_path / "a")
    assert (
        manifest.encoder == "simulated-clean-v1"
        and manifest.empty_slot is not None
        and len(manifest.empty_slot) == 128
    )

    train, val = next(read_split(tmp_path / "a", "train")), list(read_split(tmp_path / "a", "val"))
    assert train.key == "video_00000" and [s.key for s in val] == [
        f"video_{10_000 + i:05d}" for i in range(4)
    ]
    assert (
        train.truth is not None
        and "influence" not in train.truth
        and train.slots is not None
        and train.slots.shape == (128, 7, 128)
    )
    for sample in val:
        t = sample.truth
        assert (
            t is not None
            and sample.questions is not None
            and sample.questions["scene_index"] == int(sample.key[-5:])
        )
        n = len(t["counterfactual_removed"])
        expected = {
            "present": (160, 7), "position": (160, 7, 2), "velocity": (160, 7, 2),
            "future_slots": (32, 7, 128), "empty_slot": (128,), "slot_object": (7,),
            "background": (7,), "radius": (), "influence_horizon": (),
            "counterfactual_slots": (n, 160, 7, 128), "counterfactual_position": (n, 160, 7, 2),
            "counterfactual_present": (n, 160, 7),
        }  # fmt: skip
        assert {k: t[k].shape for k in expected} == expected
        assert (
            t["contacts"].shape[1:] == (3,)
            and t["influence"].shape[1:] == (3,)
            and t["counterfactual_contacts"].shape[1:] == (4,)
        )
        assert (t["contacts"][:, 1] < t["contacts"][:, 2]).all()
        for w, slot in enumerate(t["counterfactual_removed"]):
            assert not t["counterfactual_present"][w, :, slot].any()
            c = t["counterfactual_contacts"]
            assert not (c[c[:, 0] == w][:, 2:] == slot).any()
    assert sum(len(s.truth["counterfactual_removed"]) for s in val if s.truth) > 0

    capsys.readouterr()
    assert entry.main(config) == 0
    assert capsys.readouterr().out.strip() == f"{config.out} already holds this data set"
    with pytest.raises(UserError, match=r"another data set: it differs in seed \(3, not 4\)"):
        entry.main(dataclasses.replace(config, seed=4))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds something"):
        entry.main(dataclasses.replace(config, out=str(tmp_path / "c")))
    assert (tmp_path / "c" / "thesis.txt").read_text() == "mine"


def test_the_sealed_split_changes_no_other_and_has_everything(tmp_path: Path) -> None:
    small = Simulate(
        out=str(tmp_path / "a"),
        train=1,
        val=1,
        test=0,
        questions="none",
        counterfactuals="all",
        workers=1,
    )
    assert entry.main(small) == 0
    assert "sealed" not in Manifest.load(tmp_path / "a").source
    assert entry.main(dataclasses.replace(small, out=str(tmp_path / "b"), sealed=2)) == 0
    for split in ("train", "val"):
        name = f"{split}/000000.tar"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    sealed = list(read_split(tmp_path / "b", "sealed"))
    assert [sample.key for sample in sealed] == ["video_20000", "video_20001"]
    val = next(read_split(tmp_path / "b", "val"))
    for sample in sealed:
        assert sample.questions is not None and sample.truth is not None
        assert {"influence", "counterfactual_slots"} <= sample.truth.keys()
        assert not np.array_equal(sample.slots, val.slots)
    config = TrainWorldModel(data=str(tmp_path / "b"), run=str(tmp_path / "run"))
    for field in ("train_split", "val_split"):
        with pytest.raises(UserError, match=f"{field}=sealed: this split judges a study"):
            RunData(tmp_path, dataclasses.replace(config, **{field: "sealed"})).check()


def test_a_stopped_simulation_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete shards (1 MiB, about 3 videos) are kept, not simulated again; equal bytes."""
    config = Simulate(
        out=str(tmp_path / "a"),
        train=12,
        val=2,
        test=0,
        counterfactuals="none",
        influence="none",
        shard_mb=1,
        workers=1,
    )
    assert entry.main(config) == 0
    made: list[tuple[str, int]] = []

    def stopped(config: Simulate, split: str, index: int) -> SimulatedVideo:
        made.append((split, index))
        if len(made) == 11:
            raise KeyboardInterrupt
        return make_video(config, split, index)

    monkeypatch.setattr(entry, "make_video", stopped)
    config = dataclasses.replace(config, out=str(tmp_path / "b"))
    with pytest.raises(KeyboardInterrupt):
        entry.main(config)
    assert not (tmp_path / "b").exists()
    assert entry.main(config) == 0
    assert 14 < len(made) < 11 + 14
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert (
            path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
        ), path


def test_command_line(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The entry point with worker processes, as a user starts it."""
    done = command(
        "data_prep.simulate",
        f"out={tmp_path / 'a'}",
        "train=20",
        "val=0",
        "test=0",
        "questions=none",
        "workers=2",
    )
    assert done.returncode == 0, done.stderr
    assert "20 videos" in done.stdout and "videos/min" in done.stdout
    assert Manifest.load(tmp_path / "a").source["questions"] == []
    done = command("data_prep.simulate", f"out={tmp_path / 'a'}", "train=20", "sed=3")
    assert (
        done.returncode == 2
        and done.stderr.strip() == "error: unknown config key sed; the nearest is seed"
    )


def test_a_video_depends_on_seed_split_and_index_alone() -> None:
    base = Simulate(out="unused", train=5, val=5, test=5)
    other = dataclasses.replace(
        base, train=20_000, val=9, influence="", counterfactuals="none", questions=""
    )
    a, b = make_video(base, "val", 3), make_video(other, "val", 3)
    np.testing.assert_array_equal(a.slots, b.slots)
    assert (
        a.annotation.json()["motion_trajectory"] == b.annotation.json()["motion_trajectory"]
        and b.key == "video_20003"
    )
    for changed in (
        make_video(base, "train", 3),
        make_video(base, "val", 4),
        make_video(dataclasses.replace(base, seed=1), "val", 3),
    ):
        assert not np.array_equal(a.slots, changed.slots)


@pytest.mark.parametrize(
    "bad",
    [
        {"influence": "dev"},
        {"train": 0, "val": 0, "test": 0},
        {"influence_horizon": 60},
        {"encoder": "unknown"},
        {"slot_dim": 16},
        {"plugins": ["no_such_module"]},
    ],
)
def test_wrong_settings_are_refused(bad: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        entry.main(Simulate(**{"out": str(tmp_path / "x"), **bad}))  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
