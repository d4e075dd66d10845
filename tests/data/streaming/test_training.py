"""Streaming training from the command line.

Stopped and resumed, on two processes, from a server that fails, and with a missing shard.
"""

import json
import re
import shutil

import pytest
import torch

from cjepa_dist.config import command_line, schema
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from cjepa_dist.train_aloe import main as answer
from cjepa_dist.train_world_model import main
from data_prep.simulate.__main__ import main as simulate
from data_prep.simulate.settings import Simulate
from tests.data.format.test_storage import server
from tests.test_protocol import lose
from tests.test_protocol import rolled as rollout
from tests.training.test_resume import ALOE, WORLD, losses, same, weights

TINY = (
    # 24 windows a video: an epoch and a half.
    "predictor.width=32",
    "predictor.depth=1",
    "predictor.heads=2",
    "predictor.mlp_dim=64",
    "loop.steps=36",
    "loop.precision=fp32",
    "loop.global_batch_size=16",
    "loop.checkpoint_every=20",
    "loop.log_every=9",
    "loop.keep_checkpoints=9",
    "val_windows=64",
    "reading.kind=streaming",
    "predictor.dropout=0",
    "frameskip=15",
    "horizon=4",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory, small_data):
    """The small data set in shards of 3 videos."""
    out, manifest = tmp_path_factory.mktemp("streaming") / "world", Manifest.load(small_data)
    with DatasetWriter(
        out, encoder="test", source={}, dtype=manifest.dtype, empty_slot=manifest.empty_slot
    ) as writer:
        for split in ("train", "val"):
            for index, sample in enumerate(
                read_split(small_data, split, ("slots.npy", "json", "truth.npz"))
            ):
                writer.split(split).add(sample)
                if index % 3 == 2:
                    writer.split(split).submit(writer.split(split).finish_shard)
    return out


@pytest.fixture(scope="module")
def uninterrupted(data, command, tmp_path_factory):
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = command(WORLD, f"data={data}", f"run={run}", *TINY)
    assert done.returncode == 0, done.stderr
    return run


def test_resumed_is_uninterrupted_bit_for_bit_from_a_server_that_fails(
    data, uninterrupted, command, tmp_path
):
    """Stopped in mid-epoch; the second part reads by HTTP, with errors, cuts and stalls."""
    run = tmp_path / "stopped"
    assert (
        command(WORLD, f"data={data}", f"run={run}", *TINY, "loop.stop_at_step=13").returncode == 0
    )
    with server(data, [None, 503, "cut", None, "stall", 500, "cut", None, "flip"]) as (url, seen):
        done = command(WORLD, f"data={url}", f"run={run}", *TINY, "reading.timeout=0.5")
    assert done.returncode == 0, done.stderr
    assert {"stall", "cut", "flip"} <= {fault for _, _, fault in seen}
    assert same(weights(run, 36), weights(uninterrupted, 36))
    assert losses(run)[-1] == losses(uninterrupted)[-1]


def test_two_processes_are_one(data, uninterrupted, command, tmp_path):
    done = command(WORLD, f"data={data}", f"run={tmp_path / 'two'}", *TINY, processes=2)
    assert done.returncode == 0, done.stderr
    one, two = losses(uninterrupted), losses(tmp_path / "two")
    assert [line[:2] for line in one] == [line[:2] for line in two]
    assert [line[2] for line in two] == pytest.approx([line[2] for line in one], rel=2e-5)
    lines = [
        json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    ]
    read = [line for line in lines if line["kind"] == "train"][-1]
    assert (
        read["read_mb"] == pytest.approx(read["read_mb_min"] + read["read_mb_max"])
        and read["read_mb_min"] > 0
    )
    assert re.search(r"read by rank 0, 1: [\d.]+, [\d.]+ MB", done.stdout)


def test_a_missing_shard(data, command, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    shard = tmp_path / "data" / "train" / "000002.tar"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 4
    shard.write_bytes(content)
    arguments = [f"data={tmp_path / 'data'}", f"run={tmp_path / 'run'}", *TINY]
    done = command(WORLD, *arguments)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: shard ")
    assert (
        "train/000002.tar is damaged" in done.stderr
        and "reading.max_missing_samples=3 (it is 0)" in done.stderr
    )
    done = command(WORLD, *arguments, "reading.max_missing_samples=3")
    assert done.returncode == 0 and "3 of reading.max_missing_samples=3" in done.stdout, done.stderr
    (line,) = [
        json.loads(line)
        for line in (tmp_path / "run" / "missing_shards.jsonl").read_text().splitlines()
    ]
    assert line["shard"] == "train/000002.tar" and line["samples"] == 3 and "xxh3" in line["reason"]
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["missing_samples"] for line in lines if line["kind"] == "train"][-1] == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            ["contact_share=0.3"],
            "contact_share needs the ground truth of the whole split in memory: "
            "set reading.kind=in_memory",
        ),
        (
            ["ctt.graph.estimator=oracle", "ctt.invariance.weight=1"],
            "ctt.graph.estimator=oracle needs the ground truth",
        ),
        (["reading.kind=in_memory", "reading.max_missing_samples=3"], "cannot lose a shard later"),
        pytest.param(
            ["reading.kind=device"],
            "needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_does_not_stream_is_refused(data, tmp_path, change, says):
    config = command_line.parse(
        schema.TrainWorldModel, [f"data={data}", f"run={tmp_path / 'run'}", *TINY, *change]
    )
    with pytest.raises(UserError, match=says):
        main(config)


QUESTIONS = (
    "aloe.frames=6",
    "stride=20",
    "aloe.width=32",
    "aloe.depth=1",
    "aloe.heads=2",
    "aloe.mlp_dim=64",
    "aloe.dropout=0",
    "loop.steps=18",
    "loop.precision=fp32",
    "loop.global_batch_size=4",
    "loop.checkpoint_every=9",
    "loop.log_every=9",
    "loop.keep_checkpoints=9",
    "reading.kind=streaming",
    "group_by_video=true",
    "aloe.shared_vision=true",
    "protocol=counterfactual",
    "unnegated_fraction=0.5",
    "reading.shard_groups=2",
    "reading.shuffle_shards=1",
)


@pytest.fixture(scope="module")
def rolled(tmp_path_factory):
    """12 videos in shards of 2, rolled out by the simulator; in some no slot holds an object."""
    root = tmp_path_factory.mktemp("questions")
    simulate(
        Simulate(
            out=str(root / "plain"),
            train=12,
            val=4,
            test=0,
            counterfactual_splits="train,val",
            influence="none",
            workers=1,
        )
    )
    rollout(root / "plain", root / "rolled", lose, videos=2)
    return root / "rolled"


@pytest.fixture(scope="module")
def answered(rolled, command, tmp_path_factory):
    run = tmp_path_factory.mktemp("aloe") / "uninterrupted"
    done = command(ALOE, f"data={rolled}", f"run={run}", *QUESTIONS)
    assert done.returncode == 0, done.stderr
    assert (
        re.search(r"val: \d of \d+ counterfactual questions excluded", done.stdout)
        and "read by rank 0: " in done.stdout
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["questions_without_world"] for line in lines if line["kind"] == "train"][-1] > 0
    return run


def test_questions_resumed_are_uninterrupted_bit_for_bit_from_a_server_that_fails(
    rolled, answered, command, tmp_path
):
    run = tmp_path / "stopped"
    assert (
        command(ALOE, f"data={rolled}", f"run={run}", *QUESTIONS, "loop.stop_at_step=7").returncode
        == 0
    )
    with server(rolled, [None, 503, "cut", None, "stall", 500, "flip"]) as (url, seen):
        done = command(ALOE, f"data={url}", f"run={run}", *QUESTIONS, "reading.timeout=0.5")
    assert done.returncode == 0, done.stderr
    assert {"stall", "cut", "flip"} <= {fault for _, _, fault in seen}
    assert same(weights(run, 18), weights(answered, 18)) and losses(run)[-1] == losses(answered)[-1]


def test_questions_on_two_processes_are_those_on_one(rolled, answered, command, tmp_path):
    done = command(ALOE, f"data={rolled}", f"run={tmp_path / 'two'}", *QUESTIONS, processes=2)
    assert done.returncode == 0, done.stderr
    one, two = losses(answered), losses(tmp_path / "two")
    assert [line[2] for line in two] == pytest.approx([line[2] for line in one], rel=2e-5)
    assert re.search(r"read by rank 0, 1: [\d.]+, [\d.]+ MB", done.stdout)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            ["blind=true"],
            "blind=true shows slots of other videos, which a stream does not hold: "
            "set reading.kind=in_memory",
        ),
        (["reading.kind=in_memory", "reading.max_missing_samples=3"], "cannot lose a shard later"),
        (["reading.kind=device"], "reading.kind=device is for world models"),
    ],
)
def test_what_of_questions_does_not_stream_is_refused(rolled, tmp_path, change, says):
    config = command_line.parse(
        schema.TrainAloe, [f"data={rolled}", f"run={tmp_path / 'run'}", *QUESTIONS, *change]
    )
    with pytest.raises(UserError, match=says):
        answer(config)


def test_a_missing_shard_of_questions(rolled, command, tmp_path):
    shutil.copytree(rolled, tmp_path / "data")
    (tmp_path / "data" / "train" / "000002.tar").unlink()
    arguments = [
        f"data={tmp_path / 'data'}",
        f"run={tmp_path / 'run'}",
        *QUESTIONS,
        "reading.shuffle_shards=2",
    ]
    done = command(ALOE, *arguments)
    assert (
        done.returncode == 2
        and "train/000002.tar cannot be opened" in done.stderr
        and "reading.max_missing_samples=2 (it is 0)" in done.stderr
    )
    done = command(ALOE, *arguments, "reading.max_missing_samples=2")
    assert done.returncode == 0 and "2 of reading.max_missing_samples=2" in done.stdout, done.stderr
