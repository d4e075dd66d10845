"""`python -m data_prep.verify` and `import_pickle` as a user runs them: one clear line, the right exit code."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.import_pickle import ImportPickle
from data_prep.import_pickle import main as import_pickle
from data_prep.verify import Verify, main

ROOT = Path(__file__).resolve().parents[2]


def run(module, *arguments):
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    scenes = {"train": range(4), "val": range(10, 12)}
    content = {split: {f"{scene}_pixels.mp4": random.standard_normal((6, 3, 8)) for scene in chosen} for split, chosen in scenes.items()}
    (tmp_path / "slots.pkl").write_bytes(pickle.dumps(content))
    import_pickle(ImportPickle(source=str(tmp_path / "slots.pkl"), out=str(tmp_path / "data")))
    return tmp_path / "data"


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 200] ^= 1  # within the slots of the first video, so that nothing else is at fault
    path.write_bytes(content)


def test_verify_as_a_command(data):
    whole = run("data_prep.verify", f"data={data}")
    assert whole.returncode == 0 and "whole; videos: train 4, val 2; 2 shards" in whole.stdout and whole.stderr == ""
    flip(data / "train" / "000000.tar")
    spoiled = run("data_prep.verify", f"data={data}")
    assert spoiled.returncode == 1 and f"{data}/train/000000.tar: its bytes have changed" in spoiled.stdout
    none = run("data_prep.verify", f"data={data}_not")
    assert none.returncode == 2 and none.stderr.startswith("error: no data set in") and none.stderr.count("\n") == 1


def test_verify_names_every_fault(data, capsys):
    flip(data / "val" / "000000.tar")
    os.truncate(data / "train" / "000000.tar", 1000)
    (data / "train" / "more.tar").write_bytes(b"")
    assert main(Verify(data=str(data))) == 1
    lines = capsys.readouterr().out.splitlines()
    for part in ("val/000000.tar: its bytes have changed", "train/000000.tar is truncated", "train/more.tar: extra", "3 faults"):
        assert sum(part in line for line in lines) == 1, lines


def test_import_as_a_command_refuses_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/the_code_ran",)

    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"train": {"0_pixels.mp4": Attack()}}))
    refused = run("data_prep.import_pickle", f"source={tmp_path}/x.pkl", f"out={tmp_path}/out")
    assert refused.returncode == 2 and "posix.system" in refused.stderr and refused.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["x.pkl"]
