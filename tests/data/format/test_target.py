"""Where a data set is written: folders of users, links, mount points, and shards that are kept."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.target import is_mount_point
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from tests.data.format.test_shards import sample, write

BIG = np.zeros((512, 16, 64), np.float16)  # 1 MiB: a shard of its own


def test_a_folder_of_the_user_is_not_emptied(tmp_path):
    (tmp_path / "data.partial" / "train").mkdir(parents=True)
    (tmp_path / "data.partial" / "train" / "thesis.tex").write_text("years of work")
    for resume in (None, {"job": 1}):
        with (
            pytest.raises(UserError, match=r"data\.partial holds 'train' and is no unfinished"),
            DatasetWriter(tmp_path / "data", encoder="", source={}, resume=resume) as writer,
        ):
            writer.split("train").add(sample(0))
    assert (tmp_path / "data.partial" / "train" / "thesis.tex").read_text() == "years of work"


def test_a_link_to_an_empty_folder_is_followed(tmp_path):
    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "disk" / "data")
    write(tmp_path / "data")
    assert (tmp_path / "data").is_symlink() and verify_dataset(tmp_path / "data") == []
    assert sorted(os.listdir(tmp_path)) == ["data", "disk"]
    assert os.listdir(tmp_path / "disk") == ["data"]


def test_mount_points_are_known(tmp_path):
    assert is_mount_point(Path("/proc")) and not is_mount_point(tmp_path)


def test_a_mount_point_is_refused_before_the_work(tmp_path):
    """A folder mounted from the same file system, in a mount namespace of its own."""
    isolated = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*isolated, "true"]).returncode:
        pytest.skip("this machine lets nobody make a mount namespace")
    (tmp_path / "my data").mkdir()
    (tmp_path / "disk").mkdir()
    program = (
        "import sys\n"
        "from cjepa_dist.data.format.writer import DatasetWriter\n"
        "with DatasetWriter(sys.argv[1], encoder='', source={}):\n"
        "    print('worked for hours')\n"
    )
    script = 'mount --bind "$0" "$1" && exec "$2" -c "$3" "$1"'
    places = [str(tmp_path / "disk"), str(tmp_path / "my data")]
    command = [*isolated, "sh", "-c", script, *places, sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "is a mount point" in done.stderr and "worked" not in done.stdout, done.stderr


@pytest.mark.parametrize("failure", [ValueError("a bug"), UserError("bad"), KeyboardInterrupt()])
def test_whole_shards_are_kept_whatever_ends_the_run(tmp_path, failure):
    def begin():
        return DatasetWriter(tmp_path / "data", encoder="", source={}, shard_mb=2, resume={"a": 1})

    with pytest.raises(type(failure)), begin() as writer:
        for scene in range(4):
            writer.split("train").add(_big(scene))
        while not writer.split("train").entries:  # the thread that writes works behind
            writer.split("train").pending[0].result()
            writer.split("train").pending.popleft()
        raise failure
    with begin() as writer:
        kept = set(writer.split("train").written_keys)
        assert "video_00000" in kept
        for scene in range(4):
            if _big(scene).key not in kept:
                writer.split("train").add(_big(scene))
    assert Manifest.load(tmp_path / "data").count("train") == 4
    assert verify_dataset(tmp_path / "data") == []


def _big(scene):
    made = sample(scene)
    made.slots = BIG
    return made


def test_a_name_that_is_taken_at_the_end_loses_nothing(tmp_path):
    with (
        pytest.raises(UserError, match="is complete but cannot become"),
        DatasetWriter(tmp_path / "data", encoder="", source={}) as writer,
    ):
        writer.split("train").add(sample(0))
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "file").write_text("somebody came first")
    shutil.rmtree(tmp_path / "data")
    os.rename(tmp_path / "data.partial", tmp_path / "data")
    assert Manifest.load(tmp_path / "data").count("train") == 1


def test_what_was_left_out_is_listed_beside_the_manifest(tmp_path):
    with DatasetWriter(tmp_path / "data", encoder="", source={}) as writer:
        writer.split("train").add(sample(0))
        writer.skipped.append({"scene": 1, "reason": "NaN"})
    lines = (tmp_path / "data" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"scene": 1, "reason": "NaN"}]
    assert verify_dataset(tmp_path / "data") == []
