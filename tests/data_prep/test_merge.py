"""Merged parts equal the complete data set; missing, overlapping and foreign parts are refused."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.shard_reader import ShardReader
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.errors import UserError
from data_prep.merge import Merge
from data_prep.merge import main as merge
from data_prep.partition import select_part
from data_prep.simulate.__main__ import main as simulate
from data_prep.simulate.settings import Simulate

SIZES = {
    "train": 5,
    "val": 3,
    "test": 0,
    "workers": 1,
    "questions": "val",
    "influence": "none",
    "counterfactuals": "none",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    simulate(Simulate(out=str(folder / "complete"), **SIZES))
    for i in range(3):
        simulate(Simulate(out=str(folder / "parts" / str(i)), part=f"{i}/3", **SIZES))
    return folder


@pytest.fixture
def parts(made, tmp_path):
    return shutil.copytree(made / "parts", tmp_path / "parts")


def contents(folder):
    """{split: {key: {member: bytes}}}, in order."""
    found = {}
    for split, entries in Manifest.load(folder).splits.items():
        for entry in entries:
            with ShardReader(folder, split, entry) as shard:
                for key, members in shard.members.items():
                    read = {
                        name: os.pread(shard.descriptor, extent.length, extent.offset)
                        for name, extent in members.items()
                    }
                    found.setdefault(split, []).append((key, read))
    return found


def test_merged_parts_equal_the_complete_data_set(made, parts, tmp_path, capsys):
    out = tmp_path / "out"
    assert merge(Merge(out=str(out), parts=str(parts))) == 0
    assert contents(out) == contents(made / "complete") and verify_dataset(out) == []
    merged, complete = Manifest.load(out), Manifest.load(made / "complete")
    np.testing.assert_allclose(merged.mean, complete.mean, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(merged.std, complete.std, rtol=1e-12)
    assert {**dataclasses.asdict(merged), "mean": 0, "std": 0, "splits": 0} == {
        **dataclasses.asdict(complete),
        "mean": 0,
        "std": 0,
        "splits": 0,
    }
    assert (out / "train" / "000001.tar").stat().st_ino == (
        parts / "1" / "train" / "000000.tar"
    ).stat().st_ino, "linked, not copied"
    merge(Merge(out=str(out), parts=[str(parts / str(i)) for i in (2, 0, 1)]))
    assert "already holds these parts" in capsys.readouterr().out
    shutil.rmtree(parts)
    assert verify_dataset(out) == []
    assert (
        simulate(Simulate(out=str(out), **SIZES)) == 0
        and "already holds this data set" in capsys.readouterr().out
    )


def copy(parts):
    shutil.copytree(parts / "1", parts / "3")


def renumbered(parts):
    """Part 1's videos as part 2: no number is there twice, but keys are."""
    shutil.rmtree(parts / "2")
    shutil.copytree(parts / "1", parts / "2")
    manifest = Manifest.load(parts / "2")
    manifest.source["part"] = "2/3"
    manifest.save(parts / "2")


def another(parts):
    shutil.rmtree(parts / "1")
    simulate(Simulate(out=str(parts / "1"), part="1/3", seed=1, **SIZES))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda parts: shutil.rmtree(parts / "1"), "1 of 3 parts are missing: 1; make"),
        (copy, "overlap: both are part 1"),
        (renumbered, "overlap: both have key video_"),
        (another, "does not belong to .*: they differ in settings"),
        (
            lambda parts: os.truncate(parts / "1" / "train" / "000000.tar", 5000),
            r"1/train/000000\.tar has 5000 bytes",
        ),
        (
            lambda parts: (parts / "1" / "train" / "000000.tar").unlink(),
            r"1/train/000000\.tar cannot be read",
        ),
        (lambda parts: (parts / "1").rename(parts / "1.partial"), "is not finished"),
        (lambda parts: shutil.rmtree(parts), "there is no part in it"),
    ],
)
def test_gaps_overlaps_and_damage_are_refused(parts, tmp_path, harm, message):
    harm(parts)
    with pytest.raises(UserError, match=message):
        merge(Merge(out=str(tmp_path / "out"), parts=str(parts)))
    assert not (tmp_path / "out").exists()


def test_a_complete_data_set_is_no_part(made, tmp_path):
    with pytest.raises(UserError, match="is no part"):
        merge(Merge(out=str(tmp_path / "out"), parts=[str(made / "complete")]))


@pytest.mark.parametrize("part", ["1/999999999", "x/3", "3/3", "-1/3", "1", 7, ["1/3"], "1/3/3"])
def test_a_part_is_a_number_of_few(parts, tmp_path, part):
    manifest = Manifest.load(parts / "1")
    manifest.source["part"] = part
    manifest.save(parts / "1")
    with pytest.raises(UserError, match=r"1/manifest\.json is damaged: source\.part"):
        merge(Merge(out=str(tmp_path / "out"), parts=str(parts)))


def test_a_shard_that_is_a_link_is_merged_as_a_file(made, parts, tmp_path):
    shard = parts / "1" / "train" / "000000.tar"
    shard.rename(tmp_path / "elsewhere.tar")
    shard.symlink_to(tmp_path / "elsewhere.tar")
    merge(Merge(out=str(tmp_path / "out"), parts=str(parts)))
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert contents(tmp_path / "out") == contents(made / "complete")


def test_shares():
    for length in (8, 9, 17):
        assert [x for i in range(8) for x in select_part(list(range(length)), f"{i}/8")] == list(
            range(length)
        )
    for bad in ("8/8", "1", "-1/2", "a/b"):
        with pytest.raises(UserError, match="i/n with 0 <= i < n"):
            select_part([0], bad)
    with pytest.raises(UserError, match="only 1 videos"):
        select_part([0], "0/2")
