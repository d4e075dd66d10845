"""Bad input ends in one line that names the place and exit code 2 (1 from verify).

Nothing that was there is changed.
"""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.writer import DatasetWriter
from tests.training.test_resume import TINY_ALOE, TINY_WORLD

OFF = ("ctt.invariance.weight=0", "ctt.sufficiency.weight=0")


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(done, *parts: str, code: int = 2) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.fixture
def copy(small_data, tmp_path):
    shutil.copytree(small_data, tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("module", "arguments", "parts"),
    [
        (
            "cjepa_dist.train_world_model",
            (*TINY_WORLD, "predictor.slots=5"),
            ("7 slots x 128", "predictor.slots x predictor.slot_dim", "5 x 128"),
        ),
        (
            "cjepa_dist.train_world_model",
            (*TINY_WORLD, "loop.global_batch_size=9", "loop.gradient_accumulation=2", *OFF),
            ("loop.global_batch_size=9",),
        ),
        (
            "cjepa_dist.train_world_model",
            (*TINY_WORLD, "ctt.fraction=0.3"),
            ("ctt.fraction=0.3 of the",),
        ),
        (
            "cjepa_dist.train_world_model",
            (*TINY_WORLD, "ctt.consistency.weight=1"),
            ("ctt.consistency.steps", "horizon=1"),
        ),
        (
            "cjepa_dist.train_world_model",
            (*TINY_WORLD, "loop.num_processes=2"),
            ("loop.num_processes=2, but 1 run",),
        ),
        ("cjepa_dist.train_world_model", (*TINY_WORLD, "train_split=tran"), ("tran", "train")),
        ("cjepa_dist.train_aloe", (*TINY_ALOE, "stride=60"), ("6 frames, stride 60",)),
        (
            "cjepa_dist.train_aloe",
            (*TINY_ALOE, "question_types=[predictive]"),
            ("question_types=['predictive']", "group_by_video=true"),
        ),
    ],
)
def test_requests_that_do_not_fit_the_data(module, arguments, parts, command, small_data, tmp_path):
    refused(command(module, f"data={small_data}", f"run={tmp_path / 'run'}", *arguments), *parts)
    assert not (tmp_path / "run").exists()


def test_truncated_shard(command, copy, tmp_path):
    shard = copy / "train" / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:-70_000])
    before = fingerprint(copy)
    refused(
        command(
            "cjepa_dist.train_world_model", f"data={copy}", f"run={tmp_path / 'run'}", *TINY_WORLD
        ),
        "train/000000.tar",
    )
    done = command("data_prep.verify", f"data={copy}")
    assert done.returncode == 1 and "train/000000.tar" in done.stdout + done.stderr
    assert fingerprint(copy) == before and not (tmp_path / "run").exists()


def test_flipped_byte_is_found_and_its_shard_named(command, copy):
    shard = copy / "val" / "000000.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    done = command("data_prep.verify", f"data={copy}")
    assert (
        done.returncode == 1
        and "val/000000.tar" in done.stdout + done.stderr
        and "train/000000.tar" not in done.stdout + done.stderr
    )


def test_unknown_word(command, copy, tmp_path):
    """A data set by another tool, with valid checksums and a word that CLEVRER does not have."""
    out = tmp_path / "words"
    question = {
        "question_id": 7,
        "question": "What is the colour of the cube?",
        "question_type": "descriptive",
        "answer": "red",
    }
    with DatasetWriter(out, encoder="test", source={}) as writer:
        for split in ("train", "val"):
            slots = np.zeros((128, 7, 128), np.float16)
            writer.split(split).add(
                Sample(
                    f"video_0000{split == 'val':d}",
                    slots,
                    {"scene_index": 3},
                    {"scene_index": 3, "questions": [question]},
                )
            )
    refused(
        command("cjepa_dist.train_aloe", f"data={out}", f"run={tmp_path / 'run'}", *TINY_ALOE),
        "colour",
        "question 7",
        "scene 3",
    )


def test_nan_in_a_slot(command, copy, tmp_path):
    tar = copy / "train" / "000000.tar"
    with tarfile.open(tar) as archive:
        member = next(m for m in archive if m.name.endswith(".slots.npy"))
    content = bytearray(tar.read_bytes())
    content[member.offset_data + 200 : member.offset_data + 202] = np.float16(np.nan).tobytes()
    tar.write_bytes(content)
    key = member.name.split(".")[0]
    refused(
        command(
            "cjepa_dist.train_world_model", f"data={copy}", f"run={tmp_path / 'run'}", *TINY_WORLD
        ),
        key,
        "000000.tar",
    )


def test_outputs_are_not_overwritten(command, small_data, tmp_path):
    before = fingerprint(small_data)
    refused(
        command("data_prep.simulate", f"out={small_data}", "train=3", "val=1", "test=1", "seed=1"),
        str(small_data),
    )
    assert fingerprint(small_data) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused(
        command(
            "cjepa_dist.train_world_model",
            f"data={small_data}",
            f"run={tmp_path / 'mine'}",
            *TINY_WORLD,
        ),
        "mine",
    )
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_runs_that_are_not_there(command, small_data, tmp_path):
    for module, *arguments in (
        (
            "cjepa_dist.rollout",
            f"world_model={tmp_path}",
            f"data={small_data}",
            f"out={tmp_path / 'out'}",
        ),
        ("cjepa_dist.evaluate", f"run={tmp_path}"),
        ("cjepa_dist.report", f"runs={tmp_path}"),
        ("data_prep.verify", f"data={tmp_path}"),
    ):
        refused(command(module, *arguments), str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_second_simulation_reuses_the_first(command, small_data):
    before = fingerprint(small_data)
    done = command(
        "data_prep.simulate", f"out={small_data}", "train=16", "val=8", "test=8", "seed=0"
    )
    assert done.returncode == 0 and json.loads((small_data / "manifest.json").read_text())
    assert fingerprint(small_data) == before
