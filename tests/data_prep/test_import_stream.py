"""Imports of any size: little memory, stops at any point, each type on disk, parts."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cjepa_dist.data.format.dtypes import to_float32, to_storage_dtype
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots, read_split
from cjepa_dist.data.format.split_writer import OpenShard
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.data.questions import InMemoryQuestions
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.errors import UserError
from data_prep import annotations
from data_prep.import_pickle import ImportPickle, main
from data_prep.merge import Merge
from data_prep.merge import main as merge
from data_prep.pickle import reader
from tests.data_prep.pickles import dump, public, video
from tools.bench.data_import import write_pickle

ROOT = Path(__file__).resolve().parents[2]
VIDEOS = 23


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A pickle of 23 videos of CLEVRER's size: a 1 MiB shard holds 2 in float32, 4 in float16."""
    path = tmp_path_factory.mktemp("source") / "slots.pkl"
    write_pickle(path, VIDEOS)
    return path


@pytest.fixture(scope="module")
def complete(source):
    main(ImportPickle(source=str(source), out=str(source.parent / "complete"), shard_mb=1))
    return source.parent / "complete"


def assert_same(folder, complete):
    names = sorted(p.relative_to(complete) for p in complete.rglob("*"))
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == names
    for name in names:
        assert (complete / name).is_dir() or (folder / name).read_bytes() == (
            complete / name
        ).read_bytes(), name


# --- memory

LIMITED = """
import resource, sys
from data_prep.import_pickle import ImportPickle, main
import torch  # what a large library takes by itself is no matter of the file
def of(name):
    status = open("/proc/self/status")
    return next(int(line.split()[1]) << 10 for line in status if line.startswith(name))
resource.setrlimit(resource.RLIMIT_DATA, (of("VmData") + (150 << 20), resource.RLIM_INFINITY))
before = of("VmRSS")
main(ImportPickle(source=sys.argv[1], out=sys.argv[2], shard_mb=32))
print("grew by", of("VmHWM") - before)
"""


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_pickle_larger_than_the_memory_it_may_have(tmp_path, kind):
    """400 MB with 150 MB of memory; in the torch file each video is a view of one storage."""
    path = tmp_path / "slots.pkl"
    if kind == "numpy":
        write_pickle(path, 870)
    else:
        slots = torch.zeros(870, 128, 7, 128)
        torch.save(
            {"train": {f"video_{scene:05d}.mp4": slots[scene] for scene in range(870)}}, path
        )
        del slots
    assert path.stat().st_size > 395e6
    limited = [sys.executable, "-c", LIMITED, str(path), str(tmp_path / "out")]
    done = subprocess.run(
        limited,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 150 << 20
    assert Manifest.load(tmp_path / "out").count("train") == 870


def test_reading_a_table_of_contents_reads_no_array(source):
    with reader.open_pickle(source) as content:
        arrays = list(content["train"].values())
        assert len(arrays) == VIDEOS and all(
            a.shape == (128, 7, 128) and a.content.memory is None for a in arrays
        )
        assert reader.read_array(source, arrays[5])[0, 0, 0] == np.float32(0.005)


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    write_pickle(tmp_path / "x.pkl", 2)
    with reader.open_pickle(tmp_path / "x.pkl") as content:
        os.truncate(tmp_path / "x.pkl", 500_000)
        with pytest.raises(UserError, match=r"x\.pkl is not a readable pickle .* ends early"):
            reader.read_array(tmp_path / "x.pkl", content["train"]["1_pixels.mp4"])


def test_questions_are_read_entry_by_entry(tmp_path, monkeypatch):
    made = [
        {"scene_index": i, "video_filename": "ä" * (i % 7), "questions": [{"question": "?" * i}]}
        for i in range(60)
    ]
    monkeypatch.setattr(annotations, "CHUNK_CHARACTERS", 37)
    for indent in (None, 1):
        (tmp_path / "q.json").write_text(json.dumps(made, indent=indent, ensure_ascii=False) + "\n")
        joined = annotations.SceneMetadata(str(tmp_path / "q.json"), "")
        assert [joined.questions(i) for i in range(60)] == made and joined.questions(60) is None
    for spoiled in (
        json.dumps(made)[:-1],
        json.dumps(made) + "x",
        json.dumps(made).replace("}, {", "} {", 1),
    ):
        (tmp_path / "q.json").write_text(spoiled)
        with pytest.raises(UserError, match=r"q\.json is not JSON"):
            annotations.SceneMetadata(str(tmp_path / "q.json"), "")


# --- stops

KILLED = """
import os, sys
from data_prep.import_pickle import ImportPickle, main
from data_prep.pickle import reader
read, left = reader.read_array, int(sys.argv[3])
def read_array(path, placeholder):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), int(sys.argv[4]))
    return read(path, placeholder)
reader.read_array = read_array
main(ImportPickle(source=sys.argv[1], out=sys.argv[2], shard_mb=1))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_import_leaves_full_shards_and_resumes(source, complete, tmp_path, how, capsys):
    out = tmp_path / "out"
    for after in (19, 3):  # the second run is killed too, further on
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(source), str(out), str(after), str(int(how))],
            cwd=ROOT,
            capture_output=True,
            timeout=200,
        )
        assert killed.returncode == -how and not out.exists()
    main(ImportPickle(source=str(source), out=str(out), shard_mb=1))
    assert "resumes after" in capsys.readouterr().out
    assert_same(out, complete)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("stop", [0, 1, 4, 9, VIDEOS - 1])
def test_an_interrupt_anywhere(source, complete, tmp_path, monkeypatch, stop, capsys):
    read, calls = reader.read_array, []

    def array(path, placeholder):
        calls.append(placeholder)
        if len(calls) == stop + 1:
            raise KeyboardInterrupt
        return read(path, placeholder)

    monkeypatch.setattr(reader, "read_array", array)
    config = ImportPickle(source=str(source), out=str(tmp_path / "out"), shard_mb=1)
    with pytest.raises(KeyboardInterrupt):
        main(config)
    assert not (tmp_path / "out").exists()
    kept = len(list((tmp_path / "out.partial").rglob("*.tar")))
    main(config)
    assert_same(tmp_path / "out", complete)
    assert len(calls) <= stop + 1 + VIDEOS - 4 * max(0, kept - 1), "full shards are not read again"
    capsys.readouterr()
    main(config)
    assert "already holds this import" in capsys.readouterr().out


def test_a_full_disk_keeps_full_shards(source, complete, tmp_path, monkeypatch):
    """The writing thread fails; what it has not written does not count as a full shard."""
    write, left = OpenShard.write, [int(3.5 * 2**20)]  # bytes

    def full(shard, piece):
        left[0] -= memoryview(piece).nbytes
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(shard, piece)

    config = ImportPickle(source=str(source), out=str(tmp_path / "out"), shard_mb=1)
    with monkeypatch.context() as patch:
        patch.setattr(OpenShard, "write", full)
        with pytest.raises(UserError, match=r"no space left .* resumes after the last full shard"):
            main(config)
    kept = (tmp_path / "out.partial" / "journal.jsonl").read_text().splitlines()
    assert 2 < len(kept) < 7
    main(config)
    assert_same(tmp_path / "out", complete)


def test_a_stop_after_the_last_video_and_a_torn_journal(source, complete, tmp_path, monkeypatch):
    config = ImportPickle(source=str(source), out=str(tmp_path / "out"), shard_mb=1)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(config)
    journal = tmp_path / "out.partial" / "journal.jsonl"
    lines = journal.read_text()
    assert len(lines.splitlines()) == 1 + 6
    journal.write_text(lines[:-20])
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(config)
    main(config)
    assert_same(tmp_path / "out", complete)


def test_a_shard_that_is_not_what_the_journal_says_is_named(source, tmp_path, monkeypatch):
    config = ImportPickle(source=str(source), out=str(tmp_path / "out"), shard_mb=1)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(config)
    os.truncate(tmp_path / "out.partial" / "train" / "000002.tar", 100)
    with pytest.raises(UserError, match=r"000002\.tar is not what .*journal\.jsonl says; remove"):
        main(config)


def test_another_source_does_not_go_on_from_what_is_there(tmp_path, monkeypatch):
    path = tmp_path / "slots.pkl"
    config = ImportPickle(source=str(path), out=str(tmp_path / "out"), shard_mb=1)
    write_pickle(path, 9)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(config)
    assert len(list((tmp_path / "out.partial").rglob("*.tar"))) == 3
    dump(
        path,
        {
            "train": {
                f"{scene}_pixels.mp4": np.full((128, 7, 128), scene, np.float32)
                for scene in range(5)
            }
        },
    )
    main(config)
    assert (
        np.array_equal(load_slots(tmp_path / "out", "train")[:, 0, 0, 1], np.arange(5))
        and verify_dataset(tmp_path / "out") == []
    )


# --- types, frames, parts


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("frames", [128, 160])
def test_types_on_disk(tmp_path, dtype, frames, capsys):
    exact = {
        scene: np.random.default_rng(scene).standard_normal((frames, 3, 8)).astype(np.float32)
        for scene in range(3)
    }
    path = dump(
        tmp_path / "slots.pkl",
        {"train": {f"video_{scene:05d}.mp4": slots for scene, slots in exact.items()}},
    )
    main(ImportPickle(source=str(path), out=str(tmp_path / "out"), dtype=dtype))
    manifest, stored = Manifest.load(tmp_path / "out"), load_slots(tmp_path / "out", "train")
    assert (
        manifest.dtype == dtype
        and manifest.frames == frames
        and verify_dataset(tmp_path / "out") == []
    )
    rounded = (
        torch.from_numpy(np.stack(list(exact.values()))).to(getattr(torch, dtype)).float().numpy()
    )
    assert np.array_equal(to_float32(stored), rounded)
    np.testing.assert_allclose(
        manifest.mean, rounded.astype(np.float64).mean((0, 1, 2)), rtol=1e-12
    )
    error = rounded - np.stack(list(exact.values()))
    rms, lost = (np.sqrt(np.mean(x.astype(np.float64) ** 2)) for x in (rounded, error))
    assert (
        f"conversion to {dtype}: RMS error {lost / rms:.2e},"
        f" largest {np.abs(error).max() / rms:.2e}" in capsys.readouterr().out
    )
    windows = InMemoryWindows(
        tmp_path / "out", "train", WindowSpec(history_frames=2, pred_frames=1, frameskip=5)
    )
    batch = windows.get_batch(np.array([7]), np.array([0]))
    assert batch["slots"].dtype == getattr(torch, dtype) and np.array_equal(
        batch["slots"][0].float().numpy(), rounded[0, 7:18:5]
    )


def test_questions_are_asked_of_bfloat16_too(small_data, tmp_path):
    with DatasetWriter(tmp_path / "out", encoder="test", source={}, dtype="bfloat16") as writer:
        for sample in read_split(small_data, "val"):
            writer.split("val").add(
                dataclasses.replace(sample, slots=to_float32(sample.slots), truth=None)
            )
    exact, rounded = (
        InMemoryQuestions(folder, "val", frames=25, stride=5, eval_start=3)
        for folder in (small_data, tmp_path / "out")
    )
    a, b = (source.get_batch(np.arange(40), np.arange(40)) for source in (exact, rounded))
    assert torch.equal(a["slots"].bfloat16(), b["slots"])
    assert torch.equal(a["tokens"], b["tokens"])


def test_narrow_rounds_to_nearest_even_and_keeps_what_is_stored():
    values = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32) * np.float32(
        10.0
    ) ** np.arange(-3, 2)
    for given in (
        values,
        values.astype(">f4"),
        values.astype(np.float64),
        values[::2],
        values.astype(np.float16),
    ):
        assert np.array_equal(to_storage_dtype(given, "float16"), given.astype(np.float16))
    bits = to_storage_dtype(values, "bfloat16")
    assert (
        bits.dtype == np.uint16
        and to_storage_dtype(bits, "bfloat16") is not None
        and np.array_equal(to_storage_dtype(to_float32(bits), "bfloat16"), bits)
    )
    assert np.array_equal(to_float32(bits), torch.from_numpy(values).bfloat16().float().numpy())
    assert np.abs(to_float32(bits) / values - 1).max() <= 2.0**-8


def test_merged_imported_parts_equal_one_import(tmp_path):
    path = dump(tmp_path / "slots.pkl", public())
    for i in range(2):
        main(ImportPickle(source=str(path), out=str(tmp_path / "parts" / str(i)), part=f"{i}/2"))
    main(ImportPickle(source=str(path), out=str(tmp_path / "complete")))
    merge(Merge(out=str(tmp_path / "merged"), parts=str(tmp_path / "parts")))
    merged, complete = Manifest.load(tmp_path / "merged"), Manifest.load(tmp_path / "complete")
    assert merged.source == complete.source and [*merged.splits] == [*complete.splits]
    for split in complete.splits:
        assert merged.keys(split) == complete.keys(split)
        assert np.array_equal(
            load_slots(tmp_path / "merged", split), load_slots(tmp_path / "complete", split)
        )
    assert np.array_equal(load_slots(tmp_path / "merged", "train")[0], video(0).astype(np.float16))
