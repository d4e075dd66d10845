"""Shards: what is written is read back, the same samples give the same bytes, damage is named."""

import dataclasses
import errno
import os
import shutil

import numpy as np
import pytest
import webdataset

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots, read_split
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.shard_reader import ShardReader
from cjepa_dist.data.format.split_writer import SplitWriter
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import file_checksum

FRAMES, SLOTS, WIDTH = 6, 3, 8


def sample(scene, dtype=np.float32):
    values = np.random.default_rng(scene).standard_normal((FRAMES, SLOTS, WIDTH)).astype(dtype)
    questions = {
        "scene_index": scene,
        "video_filename": f"video_{scene:05d}.mp4",
        "questions": [{"question_id": 0}],
    }
    truth = {
        "radius": np.float32(0.2),
        "contacts": np.array([[3, 0, 1]], np.int16),
        "future_slots": values[:2],
    }
    return Sample(
        f"video_{scene:05d}", values, {"scene_index": scene, "collision": []}, questions, truth
    )


def write(out, train=5, val=2, shard_mb=256, dtype="float16"):
    with DatasetWriter(
        out, encoder="test", source={"seed": 0}, dtype=dtype, shard_mb=shard_mb
    ) as writer:
        for name, scenes in (("train", range(train)), ("val", range(100, 100 + val))):
            for scene in scenes:
                writer.split(name).add(sample(scene))
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole") / "data")


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "data")


def shard_of(folder, split="train"):
    return folder / split / "000000.tar"


def replace_slots(folder, key, array):
    """Rewrite a shard with other slots for one key, and adapt the manifest to it."""
    path = shard_of(folder)
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    with webdataset.TarWriter(str(path), mtime=0) as tar:
        for entry in samples:
            if entry["__key__"] == key:
                entry["slots.npy"] = array
            tar.write(
                {
                    name: value
                    for name, value in entry.items()
                    if name == "__key__" or not name.startswith("__")
                }
            )
    refresh(folder)


def refresh(folder):
    manifest, path = Manifest.load(folder), shard_of(folder)
    entry = manifest.splits["train"][0]
    manifest.splits["train"][0] = dataclasses.replace(
        entry, bytes=path.stat().st_size, xxh3=file_checksum(path)
    )
    manifest.save(folder)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_comes_back(tmp_path, dtype):
    folder = write(tmp_path / "data", dtype=dtype)
    samples = list(read_split(folder, "train"))
    assert [s.key for s in samples] == [f"video_{scene:05d}" for scene in range(5)]
    for scene, found in enumerate(samples):
        expected = sample(scene)
        assert found.slots.dtype == dtype
        assert np.array_equal(found.slots, expected.slots.astype(dtype))
        assert found.annotation == expected.annotation and found.questions == expected.questions
        assert found.truth["contacts"].tolist() == [[3, 0, 1]] and found.truth[
            "radius"
        ] == np.float32(0.2)
        assert found.truth["future_slots"].dtype == dtype
    array = load_slots(folder, "train")
    assert array.dtype == dtype and np.array_equal(array, np.stack([s.slots for s in samples]))
    assert np.array_equal(load_slots(folder, "train", videos=2), array[:2])
    assert verify_dataset(folder) == []


def test_manifest(whole):
    manifest = Manifest.load(whole)
    assert (
        manifest.shape == (FRAMES, SLOTS, WIDTH)
        and manifest.count("train") == 5
        and manifest.dtype == "float16"
    )
    array = load_slots(whole, "train").astype(np.float64)
    np.testing.assert_allclose(manifest.mean, array.mean((0, 1, 2)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(manifest.std, array.std((0, 1, 2)), rtol=1e-12)


def test_same_samples_same_bytes(whole, tmp_path):
    again = write(tmp_path / "again")
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        assert path.read_bytes() == (again / path.relative_to(whole)).read_bytes()


def test_only_the_members_that_are_asked_for(whole):
    found = next(read_split(whole, "val", ("json",)))
    assert found.annotation == {"scene_index": 100, "collision": []}
    assert found.slots is None and found.questions is None and found.truth is None


def test_one_field_of_a_json_member(whole, copy):
    """As by parsing everything; what follows the field may be anything."""

    def fields(folder, *names):
        entry = Manifest.load(folder).shards("val")[0]
        with ShardReader(folder, "val", entry) as shard:
            return [shard.read_json_field(entry.keys[0], "json", name) for name in names]

    assert fields(whole, "scene_index", "collision", "no_such") == [100, [], None]
    path = next((copy / "val").iterdir())
    path.write_bytes(
        path.read_bytes().replace(
            b'{"scene_index":100,"collision":[]}', b'{"scene_index":100,"collision":[}}'
        )
    )
    assert fields(copy, "scene_index") == [100]
    with pytest.raises(UserError, match="video_00100: collision in json is not JSON"):
        fields(copy, "collision")


def test_any_webdataset_user_can_read_it(whole):
    decoded = next(iter(webdataset.WebDataset(str(shard_of(whole)), shardshuffle=False).decode()))
    assert decoded["__key__"] == "video_00000" and decoded["json"]["scene_index"] == 0
    assert np.array_equal(decoded["slots.npy"], load_slots(whole, "train")[0])
    assert decoded["truth.npz"]["contacts"].tolist() == [[3, 0, 1]]


def test_shards_are_split_by_size(tmp_path):
    writer = SplitWriter(tmp_path, "train", "float16", shard_bytes=8000)
    for scene in range(7):
        writer.add(sample(scene))
    entries = writer.close()
    assert len(entries) > 1 and [k for e in entries for k in e.keys] == [
        f"video_{scene:05d}" for scene in range(7)
    ]
    for entry in entries:
        path = tmp_path / "train" / entry.name
        assert path.stat().st_size == entry.bytes and file_checksum(path) == entry.xxh3


# --- what is there is never harmed


def test_a_folder_that_holds_something_is_refused(whole):
    before = shard_of(whole).read_bytes()
    with pytest.raises(UserError, match="already holds"):
        write(whole)
    assert shard_of(whole).read_bytes() == before


def test_an_error_leaves_nothing(tmp_path):
    with (
        pytest.raises(RuntimeError),
        DatasetWriter(tmp_path / "data", encoder="", source={}) as writer,
    ):
        writer.split("train").add(sample(0))
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_an_error_of_the_user(tmp_path):
    with (
        pytest.raises(UserError, match="no space left"),
        DatasetWriter(tmp_path / "data", encoder="", source={}) as writer,
    ):
        writer.split("train").add(sample(0))
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_run_left_is_removed_but_not_what_a_live_one_writes(tmp_path):
    (tmp_path / "data.partial" / "train").mkdir(parents=True)
    (tmp_path / "data.partial" / "train" / "000000.tar").write_bytes(b"half")
    (tmp_path / "data.partial" / "journal.jsonl").write_text("")
    with DatasetWriter(tmp_path / "data", encoder="", source={}) as writer:
        writer.split("train").add(sample(0))
        with pytest.raises(UserError, match="another process"):
            write(tmp_path / "data")
    assert verify_dataset(tmp_path / "data") == [] and os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (np.full((FRAMES, SLOTS, WIDTH), np.nan), "not finite"),
        (np.full((FRAMES, SLOTS, WIDTH), 1e6), "too large for float16"),
        (np.zeros((FRAMES, SLOTS + 1, WIDTH)), "those before were"),
        (np.zeros((SLOTS, WIDTH)), "must be"),
        (None, "must be"),
    ],
)
def test_bad_slots_are_refused_when_written(tmp_path, slots, message):
    writer = SplitWriter(tmp_path, "train")
    writer.add(sample(0))
    with pytest.raises(UserError, match=message) as caught:
        writer.add(Sample("video_00001", slots))
    assert "video_00001" in str(caught.value)
    writer.close()


def test_bad_keys_and_names_are_refused(tmp_path):
    writer = SplitWriter(tmp_path, "train")
    writer.add(sample(0))
    with pytest.raises(UserError, match="twice"):
        writer.add(sample(0))
    with pytest.raises(UserError, match="key must be"):
        writer.add(Sample("a.b", sample(0).slots))
    with pytest.raises(UserError, match="dtype"):
        SplitWriter(tmp_path, "train", "int8")
    with (
        pytest.raises(UserError, match="not one video"),
        DatasetWriter(tmp_path / "empty", encoder="", source={}),
    ):
        pass


# --- damage: reading names the shard, and so does verify


def truncate(folder):
    os.truncate(shard_of(folder), 3000)


def cut_between_samples(folder):
    """End the first shard after two samples: a valid tar of the manifest's size, only keys tell."""
    path = shard_of(folder)
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))[:2]
    with webdataset.TarWriter(str(path), mtime=0) as tar:
        for entry in samples:
            tar.write(
                {
                    name: value
                    for name, value in entry.items()
                    if name == "__key__" or not name.startswith("__")
                }
            )
    refresh(folder)


def cut_without_end(folder):
    """Ends the file at a header, where webdataset stops in silence."""
    path = shard_of(folder)
    content = path.read_bytes()
    os.truncate(path, content.index(b"video_00002."))
    refresh(folder)


def spoil_header(folder):
    path = shard_of(folder)
    content = bytearray(path.read_bytes())
    content[content.index(b"video_00002.") + 124] ^= 1
    path.write_bytes(content)


def remove(folder):
    shard_of(folder).unlink()


def put_nan(folder):
    array = np.zeros((FRAMES, SLOTS, WIDTH), np.float16)
    array[1, 2, 3] = np.nan
    replace_slots(folder, "video_00003", array)


def put_shape(folder):
    replace_slots(folder, "video_00003", np.zeros((FRAMES, SLOTS, WIDTH + 1), np.float16))


def put_dtype(folder):
    replace_slots(folder, "video_00003", np.zeros((FRAMES, SLOTS, WIDTH), np.float32))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, "truncated"),
        (cut_between_samples, "lacks key video_00002"),
        (cut_without_end, "without the tar's end mark"),
        (spoil_header, "after video_00001"),
        (remove, "cannot be opened"),
        (put_nan, "key video_00003: a slot holds a value that is not finite"),
        (put_shape, "key video_00003: slots are float16"),
        (put_dtype, "key video_00003: slots are float32"),
    ],
)
def test_damage_is_named_by_reading_and_by_verify(copy, harm, message):
    harm(copy)
    for read in (lambda: load_slots(copy, "train"), lambda: list(read_split(copy, "train"))):
        with pytest.raises(UserError, match=message) as caught:
            read()
        assert str(shard_of(copy)) in str(caught.value)
    faults = [fault.text for fault in verify_dataset(copy)]
    assert any(message in fault and str(shard_of(copy)) in fault for fault in faults)
    assert len(load_slots(copy, "val")) == 2


def test_a_flipped_byte_is_found_anywhere(copy):
    path = shard_of(copy)
    content = path.read_bytes()
    for place in np.linspace(0, len(content) - 1, 23).astype(int):
        spoiled = bytearray(content)
        spoiled[place] ^= 4
        path.write_bytes(spoiled)
        assert any(fault.path == path and "xxh3" in fault.text for fault in verify_dataset(copy))
    path.write_bytes(content)
    assert verify_dataset(copy) == []


def test_extra_files_and_doubled_keys_are_found(copy):
    (copy / "train" / "000007.tar").write_bytes(b"")
    (copy / "notes.txt").write_text("")
    manifest = Manifest.load(copy)
    manifest.splits["val"] += manifest.splits["train"]
    shutil.copy(shard_of(copy), copy / "val" / "000000.tar")
    manifest.splits["val"] = manifest.splits["val"][1:]
    manifest.save(copy)
    faults = [fault.text for fault in verify_dataset(copy)]
    assert any("000007.tar: extra" in f for f in faults) and any(
        "notes.txt: extra" in f for f in faults
    )
    assert any("key video_00000 is also in train/000000.tar" in f for f in faults)


def test_damaged_truth_and_json_are_found(copy):
    path = shard_of(copy)
    content = path.read_bytes()
    content = content.replace(
        b'{"scene_index":3,"collision":[]}', b'{"scene_index":3,"collision":[}}'
    )
    start = content.index(b"contacts.npy", content.index(b"video_00001.truth"))
    spoiled = bytearray(content)
    spoiled[start + 140] ^= 1
    path.write_bytes(spoiled)
    refresh(copy)
    faults = [fault.text for fault in verify_dataset(copy)]
    assert len(faults) == 2
    assert (
        "video_00001: truth.npz is damaged" in faults[0]
        and "video_00003: json is not JSON" in faults[1]
    )


def test_no_data_set_and_damaged_manifests(tmp_path, copy):
    with pytest.raises(UserError, match="no data set"):
        Manifest.load(tmp_path / "none")
    (tmp_path / "half.partial").mkdir()
    with pytest.raises(UserError, match="unfinished"):
        Manifest.load(tmp_path / "half")
    for content in (
        "{",
        "[]",
        '{"version": 9}',
        '{"version": 1}',
        '{"version": 1, "splits": {}, "colour": 1}',
    ):
        (copy / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=r"manifest\.json"):
            Manifest.load(copy)


def test_missing_splits_and_too_many_videos(whole):
    with pytest.raises(UserError, match="no split 'test'; it has train, val"):
        load_slots(whole, "test")
    with pytest.raises(UserError, match="has 5"):
        load_slots(whole, "train", videos=6)
