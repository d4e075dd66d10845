"""One copy a node: real processes map one file and leave nothing behind, even when killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cjepa_dist.data import shared_memory
from cjepa_dist.data.questions import InMemoryQuestions
from tests.fork_server import PROJECT

WORKER = """
import sys, time
import numpy as np
from cjepa_dist.data import shared_memory
from pathlib import Path
folder, name, together = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
shared_memory.SHARED_MEMORY = folder / "shm"
def append(file, word):
    with open(folder / file, "a") as log: log.write(word + "\\n")
def fill(array):
    append("log", "filled")
    while (folder / "begun").read_text().count("begun") < together:
        time.sleep(0.01)
    array[...] = np.arange(array.size).reshape(array.shape)
append("begun", "begun")
array = shared_memory.shared_array(name, (500, 1000), "float32", fill)
assert array[3, 4] == 3004 and not array.flags.writeable
print("here", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path):
    """start(name) is a process that holds the array `name`; killed at the end if it still runs.

    It goes on filling the array until so many processes as `together` have begun.
    """
    (tmp_path / "shm").mkdir()
    running = []

    def one(name="slots", together=1):
        command = [sys.executable, "-c", WORKER, str(tmp_path), name, str(together)]
        environment = {**os.environ, "LOCAL_WORLD_SIZE": "2"}
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        running.append(process)
        return process

    yield one
    for process in running:
        if process.returncode is None:
            process.kill()
            process.communicate()


def files(tmp_path):
    return sorted(path.suffix for path in (tmp_path / "shm").iterdir())


def test_processes_that_start_together_fill_it_once(start, tmp_path):
    processes = [start(together=3) for _ in range(3)]
    assert [process.stdout.readline() for process in processes] == ["here\n"] * 3
    assert (tmp_path / "log").read_text() == "filled\n"
    assert sum(path.stat().st_size for path in (tmp_path / "shm").iterdir()) == 4 * 500 * 1000
    for process in processes:
        assert files(tmp_path) == ["", ".lock"], "removed while somebody needs it"
        process.communicate("")
        assert process.returncode == 0
    assert files(tmp_path) == []


def test_what_killed_processes_left_is_removed_by_the_next(start, tmp_path):
    process = start("one")
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert files(tmp_path) == ["", ".lock"]
    other = start("another")
    other.stdout.readline()
    assert files(tmp_path) == ["", ".lock"] and (tmp_path / "log").read_text() == "filled\nfilled\n"
    other.communicate("")
    assert files(tmp_path) == []


def test_killed_while_it_fills(start, tmp_path):
    process = start(together=2)
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = start()
    assert (
        again.stdout.readline() == "here\n" and (tmp_path / "log").read_text() == "filled\nfilled\n"
    )


def test_without_memory_each_process_has_its_own(tmp_path, monkeypatch, capsys):
    def full(*unused):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    array = shared_memory.shared_array("x", (5, 2), "float32", lambda array: array.fill(3))
    assert array[4, 1] == 3 and array.flags.writeable
    assert "no room for one copy a node" in capsys.readouterr().out and not list(tmp_path.iterdir())


def planted(path, mode=0o600, size=40):
    path.write_bytes(b"\xff" * size)
    path.chmod(mode)


def linked(path):
    planted(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("suffix", ["", ".lock", ".partial"])
@pytest.mark.parametrize("plant", [linked, lambda path: planted(path, 0o644), "of another user"])
def test_a_file_laid_under_its_name_is_not_used(tmp_path, monkeypatch, capsys, suffix, plant):
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    made = shared_memory.shared_array("x", (10,), "float32", lambda array: array.fill(1))
    assert not made.flags.writeable
    (path,) = [path for path in tmp_path.iterdir() if not path.suffix]
    assert path.stat().st_mode & 0o777 == 0o600
    for file in tmp_path.iterdir():
        file.unlink()
    place = path.with_suffix(suffix) if suffix else path
    if callable(plant):
        plant(place)
    else:
        if os.getuid():
            pytest.skip("only root can make a file of another user")
        planted(place)
        os.chown(place, 12345, 12345)
    array = shared_memory.shared_array("x", (10,), "float32", lambda array: array.fill(2))
    assert (array == 2).all()
    if suffix != ".partial":
        assert "each process has its own copy" in capsys.readouterr().out
    elsewhere = tmp_path / "elsewhere"
    assert not elsewhere.exists() or elsewhere.read_bytes() == b"\xff" * 40


def test_a_file_of_another_size_is_not_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    shared_memory.shared_array("x", (10,), "float32", lambda array: array.fill(1))
    (path,) = [path for path in tmp_path.iterdir() if not path.suffix]
    os.truncate(path, 8)  # reading past the end of a map is a SIGBUS
    array = shared_memory.shared_array("x", (10,), "float32", lambda array: array.fill(2))
    assert (array == 2).all() and "has 8 bytes, not 40" in capsys.readouterr().out


def test_an_error_while_it_fills_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")

    def fail(array):
        raise KeyError("shard")

    with pytest.raises(KeyError):
        shared_memory.shared_array("x", (10,), "float32", fail)
    assert not list(tmp_path.iterdir())
    assert shared_memory.shared_array("x", (10,), "float32", lambda array: array.fill(2))[9] == 2


def test_questions_share_their_slots(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    settings = {"frames": 4, "stride": 9, "eval_start": 1}
    alone = InMemoryQuestions(small_data, "val", **settings)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    together = InMemoryQuestions(small_data, "val", **settings)
    assert not together.slots.flags.writeable and len(list(tmp_path.iterdir())) == 2
    found, expected = (each.get_batch([3, 1], [0, 1]) for each in (together, alone))
    assert all(found[name].equal(expected[name]) for name in expected)
