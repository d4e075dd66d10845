"""A copy of the data on a node's own disk: complete, shared by jobs, or one line of error."""

import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from cjepa_dist.data.format.reader import load_slots
from cjepa_dist.errors import UserError
from slurm.jobs.stage_data import stage_dataset
from tests.conftest import skip_or_fail
from tests.fork_server import PROJECT

SHARD = "train/000000.tar"


def test_one_copy_for_all_and_read_from_there(small_data, tmp_path, monkeypatch, capsys):
    data, scratch = tmp_path / "data", tmp_path / "scratch"
    shutil.copytree(small_data, data)
    scratch.mkdir()
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(stage_dataset(data, scratch)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = capsys.readouterr().out
    assert len(set(found)) == 1 and said.count("data staged on") == 1 and said.count("already") == 2
    copy = found[0]
    monkeypatch.setenv("CJEPA_STAGED", json.dumps({str(data): str(copy)}))
    before = load_slots(small_data, "train")
    (data / SHARD).unlink()  # only the copy can be read now
    assert np.array_equal(load_slots(data, "train"), before)
    monkeypatch.delenv("CJEPA_STAGED")
    with pytest.raises(UserError, match=SHARD):
        load_slots(data, "train")


def test_a_copy_that_is_cut_or_half_made_is_made_again(small_data, tmp_path):
    copy = stage_dataset(small_data, tmp_path)
    content = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(content[:-512])
    (tmp_path / f"{copy.name}.partial").mkdir()
    assert stage_dataset(small_data, tmp_path) == copy and (copy / SHARD).read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == [copy.name, f"{copy.name}.lock"]


def test_changed_data_are_another_copy(small_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    first = stage_dataset(data, tmp_path)
    content = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps({**content, "encoder": "another"}))
    assert stage_dataset(data, tmp_path) != first


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            "size=64k",
            r"no room to stage .* MB needed, 0.0\d MB free in .*small on ",
        ),  # seen before a byte is copied
        (
            "size=64m,nr_inodes=5",
            "cannot stage .*: No space left on device",
        ),  # seen while copying: no file more fits
    ],
)
def test_no_room_is_one_line(small_data, tmp_path, size, message):
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "none", place], capture_output=True
    ).returncode:
        skip_or_fail("needs the right to mount a file system")
    try:
        with pytest.raises(UserError, match=message):
            stage_dataset(small_data, place)
        assert not list(place.glob("*.partial"))
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_found_out(tmp_path):
    """The second process has a file system of its own in the folder's place."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        skip_or_fail("needs the right to unshare mounts")
    probe = f"{sys.executable} -m slurm.jobs.preflight_worker runs={tmp_path} wait=1"
    (tmp_path / "rank.sh").write_text(
        f'[ "$RANK" = 0 ] && exec {probe}\n'
        f'exec unshare --mount sh -c "mount -t tmpfs none {tmp_path} && exec {probe}"\n'
    )
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "--no-python",
        "sh",
        str(tmp_path / "rank.sh"),
    ]
    done = subprocess.run(start, cwd=PROJECT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1 and f"error: {tmp_path} is not shared: what " in done.stderr, (
        done.stderr
    )
    assert not (tmp_path / "preflight.json").exists()
