"""`python -m data_prep.verify` as a user runs it: one clear line and the right exit code."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.shard_reader import ShardReader
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import file_checksum
from data_prep.import_pickle import ImportPickle
from data_prep.import_pickle import main as import_pickle
from data_prep.verify import Verify, main

ROOT = Path(__file__).resolve().parents[2]


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    scenes = {"train": range(4), "val": range(10, 12)}
    content = {
        split: {f"{scene}_pixels.mp4": random.standard_normal((6, 3, 8)) for scene in chosen}
        for split, chosen in scenes.items()
    }
    (tmp_path / "slots.pkl").write_bytes(pickle.dumps(content))
    import_pickle(ImportPickle(source=str(tmp_path / "slots.pkl"), out=str(tmp_path / "data")))
    return tmp_path / "data"


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 200] ^= (
        1  # within the slots of the first video, so that nothing else is at fault
    )
    path.write_bytes(content)


def test_verify_as_a_command(data):
    good = run("data_prep.verify", f"data={data}")
    assert (
        good.returncode == 0
        and "no faults; videos: train 4, val 2; 2 shards" in good.stdout
        and good.stderr == ""
    )
    flip(data / "train" / "000000.tar")
    damaged = run("data_prep.verify", f"data={data}")
    assert (
        damaged.returncode == 1
        and f"{data}/train/000000.tar: its bytes have changed" in damaged.stdout
    )
    none = run("data_prep.verify", f"data={data}_not")
    assert (
        none.returncode == 2
        and none.stderr.startswith("error: no data set in")
        and none.stderr.count("\n") == 1
    )


def test_verify_names_every_fault(data, capsys):
    flip(data / "val" / "000000.tar")
    os.truncate(data / "train" / "000000.tar", 1000)
    (data / "train" / "more.tar").write_bytes(b"")
    assert main(Verify(data=str(data))) == 1
    lines = capsys.readouterr().out.splitlines()
    for part in (
        "val/000000.tar: its bytes have changed",
        "train/000000.tar is truncated",
        "train/more.tar: extra",
        "3 faults",
    ):
        assert sum(part in line for line in lines) == 1, lines


def test_import_as_a_command_refuses_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/the_code_ran",)

    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"train": {"0_pixels.mp4": Attack()}}))
    refused = run("data_prep.import_pickle", f"source={tmp_path}/x.pkl", f"out={tmp_path}/out")
    assert (
        refused.returncode == 2
        and "posix.system" in refused.stderr
        and refused.stderr.count("\n") == 1
    )
    assert os.listdir(tmp_path) == ["x.pkl"]


# --- repair


@pytest.fixture
def many(tmp_path):
    """12 + 3 videos in 4 + 1 shards, and another folder beside them."""
    with DatasetWriter(tmp_path / "data", encoder="test", source={"seed": 0}, shard_mb=1) as writer:
        for split, scenes in (("train", range(12)), ("val", range(20, 23))):
            for scene in scenes:
                writer.split(split).add(
                    Sample(
                        f"video_{scene:05d}",
                        np.random.default_rng(scene).standard_normal((40, 16, 256)),
                    )
                )
    assert [len(entries) for entries in Manifest.load(tmp_path / "data").splits.values()] == [4, 1]
    return tmp_path / "data"


def truncate(folder):
    os.truncate(folder / "train" / "000001.tar", 5000)


def cut(folder):
    """The first two of three samples, as a valid tar."""
    path = folder / "train" / "000001.tar"
    entry = Manifest.load(folder).splits["train"][1]
    with ShardReader(folder, "train", entry) as shard:
        end = min(extent.offset for extent in shard.members[entry.keys[2]].values()) - 512
    path.write_bytes(path.read_bytes()[:end] + bytes(1024))


def double(folder):
    """Shard 1 holds shard 0's keys, with a manifest that agrees."""
    shutil.copy(folder / "train" / "000000.tar", folder / "train" / "000001.tar")
    manifest = Manifest.load(folder)
    manifest.splits["train"][1] = dataclasses.replace(
        manifest.splits["train"][0], name="000001.tar"
    )
    manifest.save(folder)


def put_nan(folder):
    path, manifest = folder / "train" / "000001.tar", Manifest.load(folder)
    content = bytearray(path.read_bytes())
    at = content.index(b"NUMPY") + 127 + 2 * 80  # the data begin 127 bytes after this
    content[at : at + 2] = np.array([np.nan], np.float16).tobytes()
    path.write_bytes(content)
    manifest.splits["train"][1] = dataclasses.replace(
        manifest.splits["train"][1], xxh3=file_checksum(path)
    )
    manifest.save(folder)


def put_shape(folder):
    with DatasetWriter(f"{folder}_other", encoder="test", source={}) as writer:
        for key in Manifest.load(folder).splits["train"][1].keys:
            writer.split("train").add(Sample(key, np.zeros((80, 8, 256))))
    os.replace(f"{folder}_other/train/000000.tar", folder / "train" / "000001.tar")
    manifest = Manifest.load(folder)
    manifest.splits["train"][1] = dataclasses.replace(
        Manifest.load(f"{folder}_other").splits["train"][0], name="000001.tar"
    )
    manifest.save(folder)
    shutil.rmtree(f"{folder}_other")


@pytest.mark.parametrize(
    ("harm", "message", "lost"),
    [
        (truncate, "train/000001.tar is truncated", 3),
        (cut, "train/000001.tar is truncated", 3),
        (
            lambda folder: flip(folder / "train" / "000001.tar"),
            "train/000001.tar: its bytes have changed",
            3,
        ),
        (
            lambda folder: (folder / "train" / "000001.tar").unlink(),
            "train/000001.tar cannot be opened",
            3,
        ),
        (
            lambda folder: (folder / "train" / "000009.tar").write_bytes(b"x"),
            "train/000009.tar: extra",
            0,
        ),
        (lambda folder: (folder / "notes").mkdir(), "notes: extra", 0),
        (double, "train/000001.tar: key video_00000 is also in train/000000.tar", 3),
        (put_nan, "train/000001.tar, key video_00003: a slot holds a value that is not finite", 3),
        (put_shape, "train/000001.tar, key video_00003: slots are float16 (80, 8, 256)", 3),
    ],
)
def test_each_fault_is_named_and_repaired(many, capsys, harm, message, lost):
    harm(many)
    before = {p: p.read_bytes() for p in many.rglob("*.tar")}
    kept = [*range(12)] if not lost else [0, 1, 2, *range(6, 12)]
    assert main(Verify(data=str(many))) == 1
    assert message in capsys.readouterr().out
    assert {p: p.read_bytes() for p in many.rglob("*.tar")} == before, "looking changes nothing"
    assert main(Verify(data=str(many), repair=True)) == 0
    told = capsys.readouterr().out
    assert message in told and (
        f"lost: {lost} of 12 samples of train (video_0000" in told
        if lost
        else "lost: no sample" in told
    )
    assert verify_dataset(many) == [] and Manifest.load(many).keys("train") == [
        f"video_{scene:05d}" for scene in kept
    ]
    slots = load_slots(many, "train").astype(np.float64)
    np.testing.assert_allclose(
        Manifest.load(many).mean, slots.mean((0, 1, 2)), rtol=1e-9, atol=1e-12
    )
    aside = many.with_name("data.bad")
    assert len(Manifest.load(aside).keys("train")) == 12
    everything = {p.name: p.read_bytes() for folder in (many, aside) for p in folder.rglob("*.tar")}
    assert everything == {p.name: content for p, content in before.items()}, "nothing is deleted"
    assert (
        sum(
            len(keys)
            for shards in json.loads((aside / "lost.json").read_text()).values()
            for keys in shards.values()
        )
        == lost
    )
    assert Manifest.load(many).source == (
        {"seed": 0, "lost": {"train": 3}} if lost else {"seed": 0}
    )
    assert (
        main(Verify(data=str(many), repair=True)) == 0 and not many.with_name("data.bad1").exists()
    )


def test_a_data_set_without_a_good_shard_is_left_alone(data):
    for split in ("train", "val"):
        flip(data / split / "000000.tar")
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="no shard is good, so nothing was changed"):
        main(Verify(data=str(data), repair=True))
    assert {
        p: p.read_bytes() for p in data.rglob("*") if p.is_file()
    } == before and not data.with_name("data.bad").exists()


def test_a_lost_split_and_several_processes(many, capsys):
    flip(many / "val" / "000000.tar")
    flip(many / "train" / "000003.tar")
    assert [f.text for f in verify_dataset(many, processes=2)] == [
        f.text for f in verify_dataset(many)
    ]
    assert main(Verify(data=str(many), repair=True, processes=2)) == 0
    assert "lost: 3 of 12 samples of train" in capsys.readouterr().out
    repaired = Manifest.load(many)
    assert [*repaired.splits] == ["train"] and verify_dataset(many) == []
    slots = load_slots(many, "train").astype(np.float64)
    np.testing.assert_allclose(repaired.std, slots.std((0, 1, 2)), rtol=1e-12)


def test_shards_are_read_by_plain_webdataset(many):
    urls = [str(path) for path in sorted((many / "train").glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in read] == Manifest.load(many).keys("train")
    assert np.array_equal(
        np.stack([sample["slots.npy"] for sample in read]), load_slots(many, "train")
    )
    assert [sample["json"]["scene_index"] for sample in read] == list(range(12))
