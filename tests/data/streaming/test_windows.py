"""Streaming windows equal those in memory, in the order of the sampler, from few shards at a time.

A missing shard is an error that names it, or its samples are replaced.
"""

import json
import shutil
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.storage import RetryPolicy
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.data.streaming.missing_shards import MissingShards
from cjepa_dist.data.streaming.windows import StreamingWindows
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.errors import UserError
from cjepa_dist.training.data_loader import PrefetchingLoader

VIDEOS, FRAMES, SLOTS, WIDTH = 17, 12, 3, 4
WINDOW = WindowSpec(history_frames=2, pred_frames=1, frameskip=2)
STARTS = FRAMES - 6 + 1


def write(folder, dtype="float16", truth=True):
    """Shards of 3 videos, the last of 2."""
    random = np.random.default_rng(0)
    with DatasetWriter(folder, encoder="test", source={}, dtype=dtype) as writer:
        split = writer.split("train")
        for video in range(VIDEOS):
            present = {"present": random.random((FRAMES + 4, SLOTS)) < 0.8}
            split.add(
                Sample(
                    f"video_{video:05d}",
                    random.standard_normal((FRAMES, SLOTS, WIDTH)),
                    truth=present if truth else None,
                )
            )
            if video % 3 == 2:
                split.submit(split.finish_shard)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("stream") / "data")


@pytest.fixture(scope="module")
def in_memory(data):
    return InMemoryWindows(data, "train", WINDOW)


def batches(source, *, start, stop, batch, rank=0, world=1, seed=0, accumulation=1):
    """The micro-batches of a rank, step by step."""
    loader = PrefetchingLoader(
        source,
        seed=seed,
        start=start,
        stop=stop,
        global_batch_size=batch,
        gradient_accumulation=accumulation,
        rank=rank,
        world_size=world,
        device=torch.device("cpu"),
    )
    return [
        [{name: value.clone() for name, value in part.items()} for part in parts]
        for _, parts in loader
    ]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**63),
    shuffle_shards=st.integers(1, 4),
    shard_groups=st.integers(1, 5),
    workers=st.integers(1, 3),
    world=st.integers(1, 4),
    share=st.integers(1, 9),
    stop=st.integers(0, 10),
)
def test_any_processes_workers_and_stops_read_the_same(
    data, in_memory, seed, shuffle_shards, shard_groups, workers, world, share, stop
):
    batch = world * share
    reading = {"shuffle_shards": shuffle_shards, "shard_groups": shard_groups}
    steps = 2 + (VIDEOS * STARTS) // batch
    stop = min(stop, steps)
    expected_order = StreamingWindows(data, "train", WINDOW, **reading)
    expected = [expected_order.sample_ids(seed, step * batch, batch) for step in range(steps)]
    for rank in range(world):
        part = slice(rank * share, (rank + 1) * share)
        found = []
        for begin, end in ((0, stop), (stop, steps)):  # stopped and resumed
            source = StreamingWindows(data, "train", WINDOW, **reading, workers=workers)
            found += batches(
                source, start=begin, stop=end, batch=batch, rank=rank, world=world, seed=seed
            )
        for step, (content,) in enumerate(found):
            sample = step * batch + np.arange(batch)[part]
            same = in_memory.get_batch(expected[step][part], sample)
            assert content.keys() == same.keys()
            for name, value in same.items():
                assert torch.equal(content[name], value), (name, step, rank)
    seen = np.concatenate(expected)
    positions = np.concatenate(
        [expected_order.sampler.locate(seed, step * batch, batch)[0] for step in range(steps)]
    )
    assert (
        sorted(seen[positions < len(expected_order)]) == list(range(VIDEOS * STARTS))
        and len(expected_order) == VIDEOS * STARTS
    )


def opened(monkeypatch, source):
    """The shards that a dataset reads, in order."""
    names = []
    read = source.read_shard
    monkeypatch.setattr(source, "read_shard", lambda shard: names.append(shard) or read(shard))
    return names


def test_memory_holds_two_blocks_and_the_middle_of_an_epoch_reads_no_more(data, monkeypatch):
    source = StreamingWindows(data, "train", WINDOW, shuffle_shards=2, shard_groups=1)
    blocks = source.sampler.epoch_layout(0, 0)[0]
    assert len(blocks) == 3
    names = opened(monkeypatch, source)
    middle = blocks[1].first + 5
    source.prepare(0, middle, source.sample_ids(0, middle, 4), slice(0, 4))
    for loaded in source.loaded.values():
        loaded.result()
    assert set(names[:2]) == set(blocks[1].shards) and set(names[2:]) == set(blocks[2].shards)
    most = 0
    for position in range(0, 3 * len(source), 4):
        ids = source.prepare(0, position, source.sample_ids(0, position, 4), slice(0, 4))
        source.get_batch(ids, ids)
        most = max(most, len(source.loaded))
    assert most == 4 and len(names) <= 4 + 3 * 6


def test_with_shard_groups_each_process_reads_its_share(data):
    read = []
    for rank in range(2):
        source = StreamingWindows(data, "train", WINDOW, shuffle_shards=1, shard_groups=2)
        batches(source, start=0, stop=len(source) // 16, batch=16, rank=rank, world=2)
        for loaded in source.loaded.values():  # the next block is read in the background
            loaded.result()
        read.append(source.read_statistics()["read_mb"])
    total = 1e-6 * sum(entry.bytes for entry in Manifest.load(data).shards("train"))
    # Half of 6 shards, the one that both groups share, and the next one.
    assert max(read) < 0.85 * total


def test_the_next_block_is_read_while_this_one_is_used(data):
    source = StreamingWindows(data, "train", WINDOW, shuffle_shards=2)
    gate, read = threading.Event(), source.read_shard
    blocks = source.sampler.epoch_layout(0, 0)[0]

    def read_later(shard):
        return (shard in blocks[0].shards or gate.wait(20)) and read(shard)

    source.read_shard = read_later  # type: ignore[method-assign]
    ids = source.prepare(0, 0, source.sample_ids(0, 0, 4), slice(0, 4))
    # The next block is not there yet.
    assert source.get_batch(ids, ids)["slots"].shape == (4, 3, SLOTS, WIDTH)
    waiting = {shard for shard, loaded in source.loaded.items() if not loaded.done()}
    assert waiting == set(blocks[1].shards)
    gate.set()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_without_truth(tmp_path, dtype):
    write(tmp_path / "data", dtype, truth=False)
    source, in_memory = (
        kind(tmp_path / "data", "train", WINDOW, videos=8)
        for kind in (StreamingWindows, InMemoryWindows)
    )
    assert len(source) == len(in_memory) == 8 * STARTS
    ids = source.prepare(0, 0, source.sample_ids(0, 0, 8 * STARTS), slice(0, 8 * STARTS))
    found, expected = source.get_batch(ids, ids), in_memory.get_batch(ids, ids)
    assert (
        all(torch.equal(found[name], expected[name]) for name in expected)
        and found["present"].all()
    )
    assert source.sample_names(ids[:2]) == in_memory.sample_names(ids[:2])


def damage(folder, kind, shard):
    path = folder / "train" / f"{shard:06d}.tar"
    if kind == "gone":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-512])
    else:
        content = bytearray(path.read_bytes())
        content[2000] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "says"),
    [("gone", "cannot be opened"), ("truncated", "is truncated"), ("flipped", "its xxh3")],
)
def test_a_missing_shard_is_an_error_that_names_it(data, tmp_path, kind, says):
    shutil.copytree(data, tmp_path / "data")
    damage(tmp_path / "data", kind, 4)
    source = StreamingWindows(tmp_path / "data", "train", WINDOW)
    with pytest.raises(
        UserError,
        match=rf"shard .*train/000004.tar .*{says}.* its 3 samples: "
        r"reading.max_missing_samples=3 \(it is 0\)",
    ):
        batches(source, start=0, stop=len(source) // 8, batch=8)


@pytest.mark.parametrize("world", [1, 2])
def test_missing_samples_are_replaced_the_same_after_a_resume(
    data, tmp_path, in_memory, world, capfd
):
    shutil.copytree(data, tmp_path / "data")
    damage(tmp_path / "data", "flipped", 4)
    damage(tmp_path / "data", "gone", 1)
    steps, batch = 2 * VIDEOS * STARTS // 8, 8

    def run(record, start, stop, rank, max_missing_samples=6):
        source = StreamingWindows(
            tmp_path / "data",
            "train",
            WINDOW,
            shuffle_shards=3,
            missing=MissingShards(record, max_missing_samples),
        )
        found = batches(source, start=start, stop=stop, batch=batch, rank=rank, world=world)
        return [part["slots"] for (part,) in found], source

    uninterrupted = [run(tmp_path / "uninterrupted", 0, steps, rank)[0] for rank in range(world)]
    lines = [json.loads(line) for line in (tmp_path / "uninterrupted").read_text().splitlines()]
    assert {(line["shard"], line["samples"]) for line in lines} == {
        ("train/000001.tar", 3),
        ("train/000004.tar", 3),
    }
    assert (
        "others replace its 3 samples, 6 of reading.max_missing_samples=6" in capfd.readouterr().out
    )
    for rank in range(world):
        part, source = run(tmp_path / "stopped", 0, 7, rank)
        again, source = run(tmp_path / "stopped", 7, steps, rank)
        assert (
            all(map(torch.equal, part + again, uninterrupted[rank]))
            and source.read_statistics()["missing_samples"] == 6
        )
    with pytest.raises(UserError, match=r"reading.max_missing_samples=6 \(it is 5\)"):
        run(tmp_path / "fewer", 0, steps, 0, max_missing_samples=5)

    # Each batch is what it would have been, except for windows of the six missing videos: others
    # of their block replace them.
    order = StreamingWindows(data, "train", WINDOW, shuffle_shards=3)
    replaced = 0
    for step in range(steps):
        ids = order.sample_ids(0, step * batch, batch)
        expected = in_memory.get_batch(ids, ids)["slots"]
        found = torch.cat([uninterrupted[rank][step] for rank in range(world)])
        missing = np.isin(order.sampler.shard_of(ids), [1, 4])
        assert torch.equal(found[~missing], expected[~missing])
        rows = in_memory.get_batch(np.arange(len(in_memory)), np.arange(len(in_memory)))["slots"]
        for row in np.flatnonzero(missing):
            replacement = next(i for i in range(len(rows)) if torch.equal(rows[i], found[row]))
            assert order.sampler.shard_of(np.array([replacement]))[0] not in (1, 4)
            replaced += 1
    assert replaced == pytest.approx(2 * 6 * STARTS, abs=8)


def test_a_restored_shard_stays_missing_where_it_was(data, tmp_path):
    """The record decides, whatever is on disk by now: a resumed run is the same run."""
    record = tmp_path / "missing_shards.jsonl"
    shutil.copytree(data, tmp_path / "data")
    damage(tmp_path / "data", "gone", 2)
    broken = StreamingWindows(
        tmp_path / "data",
        "train",
        WINDOW,
        shuffle_shards=6,
        missing=MissingShards(record, 3),
    )
    first = batches(broken, start=0, stop=12, batch=8)
    shutil.copy(data / "train" / "000002.tar", tmp_path / "data" / "train")
    restored = StreamingWindows(
        tmp_path / "data",
        "train",
        WINDOW,
        shuffle_shards=6,
        missing=MissingShards(record, 3),
    )
    again = batches(restored, start=5, stop=12, batch=8)
    assert all(torch.equal(a["slots"], b["slots"]) for (a,), (b,) in zip(first[5:], again))


def test_a_block_without_a_sample_left_is_an_error(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    damage(tmp_path / "data", "gone", 2)
    source = StreamingWindows(
        tmp_path / "data",
        "train",
        WINDOW,
        shuffle_shards=1,
        missing=MissingShards(None, 99),
    )
    with pytest.raises(UserError, match=r"all shards of a block are missing \(train/000002.tar\)"):
        batches(source, start=0, stop=20, batch=8)


def test_a_stalled_server_is_an_error_in_time(data, tmp_path):
    shutil.copy(data / "manifest.json", tmp_path)
    place = f"pipe:f() {{ case $1 in *json) cat $1;; *) sleep 60;; esac; }}; f {tmp_path}"
    source = StreamingWindows(place, "train", WINDOW, retry=RetryPolicy(0.2, 2, 0.01))
    with pytest.raises(
        UserError,
        match=r"train/00000\d.tar cannot be read: 2 failures in a row, "
        "the last: nothing for 0.2 s",
    ):
        batches(source, start=0, stop=2, batch=8)
