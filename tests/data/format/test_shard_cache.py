"""Remote shards on this machine's disk: fetched once, checked, bounded, and never in the way."""

import fcntl
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import xxhash

from cjepa_dist.data.format import checked_files, shard_cache, storage
from cjepa_dist.data.format.shard_cache import open_remote_shard
from cjepa_dist.errors import UserError
from tests.conftest import skip_or_fail
from tests.data.format.test_storage import QUICK, server
from tests.fork_server import PROJECT

SIZE = 100_000
SHARDS = {f"{n}.tar": np.random.default_rng(n).bytes(SIZE) for n in range(4)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CJEPA_CACHE_GB")
    shard_cache.said.clear()
    return tmp_path / "cache" / "shards"


@pytest.fixture
def url_and_seen(tmp_path):
    folder = tmp_path / "remote"
    folder.mkdir()
    for name, content in SHARDS.items():
        (folder / name).write_bytes(content)
    with server(folder) as found:
        yield found


def read(url, name):
    descriptor = open_remote_shard(
        f"{url}/{name}", SIZE, xxhash.xxh3_64(SHARDS[name]).hexdigest(), QUICK
    )
    try:
        assert os.pread(descriptor, SIZE + 1, 0) == SHARDS[name]
    finally:
        os.close(descriptor)


def cached(folder):
    return {path.name for path in folder.glob("*")}


def place(name):
    return f"{xxhash.xxh3_64(SHARDS[name]).hexdigest()}-{SIZE}.tar"


def fresh_process():
    """What another process knows."""
    checked_files.known.clear()


def test_one_request_whoever_asks(cache, url_and_seen):
    url, seen = url_and_seen
    threads = [threading.Thread(target=read, args=(url, "0.tar")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh_process()
    read(url, "0.tar")
    read(f"{url}/../{url.rpartition('/')[2]}", "0.tar")  # the same bytes at another URL
    assert [path for path, _, _ in seen] == ["/0.tar"]
    assert cached(cache) == {place("0.tar")}
    assert cache.stat().st_mode & 0o777 == 0o700
    assert (cache / place("0.tar")).stat().st_mode & 0o777 == 0o600


def test_two_processes_at_the_same_moment(cache, url_and_seen):
    url, seen = url_and_seen
    code = (
        "from cjepa_dist.data.format.shard_cache import open_remote_shard as o;"
        f"o('{url}/0.tar', {SIZE}, '{place('0.tar')[:16]}')"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0] and len(seen) == 1


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_a_damaged_file_is_fetched_again(cache, url_and_seen, capsys, harm):
    url, seen = url_and_seen
    read(url, "0.tar")
    path = cache / place("0.tar")
    content = bytearray(SHARDS["0.tar"])
    content[SIZE // 2] ^= 1
    path.write_bytes(content if harm == "flip" else content[:-1])
    fresh_process()
    read(url, "0.tar")
    assert len(seen) == 2 and path.read_bytes() == SHARDS["0.tar"]
    assert f"{path} is damaged, and fetched again\n" == capsys.readouterr().err


def test_a_file_is_hashed_once_a_process(cache, url_and_seen, monkeypatch):
    url, _ = url_and_seen
    hashed = []
    whole = checked_files.checksum
    monkeypatch.setattr(
        checked_files, "checksum", lambda descriptor: hashed.append(1) or whole(descriptor)
    )
    for expected in (0, 0, 1, 1):  # what this process has fetched is checked already
        if expected and not hashed:
            fresh_process()
        read(url, "0.tar")
        assert len(hashed) == expected


def test_the_oldest_make_room_but_none_that_is_open(cache, url_and_seen, monkeypatch, capsys):
    url, seen = url_and_seen
    monkeypatch.setenv("CJEPA_CACHE_GB", str(2.5e-9 * SIZE))
    for name in ("0.tar", "1.tar", "0.tar", "2.tar"):
        read(url, name)
    assert cached(cache) == {place("0.tar"), place("2.tar")} and len(seen) == 3
    with open(cache / place("0.tar"), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as whoever reads it holds it
        read(url, "3.tar")
        assert cached(cache) == {place("0.tar"), place("3.tar")}
        monkeypatch.setenv("CJEPA_CACHE_GB", str(1.5e-9 * SIZE))
        read(url, "1.tar")  # no room even without 3.tar
    assert place("0.tar") in cached(cache) and place("1.tar") not in cached(cache)
    assert "CJEPA_CACHE_GB is too small" in capsys.readouterr().err


def test_files_of_others_are_left_alone(cache, url_and_seen, monkeypatch):
    url, _ = url_and_seen
    read(url, "0.tar")
    (cache / "mine.tar").write_bytes(bytes(SIZE))
    monkeypatch.setenv("CJEPA_CACHE_GB", str(1.5e-9 * SIZE))
    read(url, "1.tar")
    assert cached(cache) == {"mine.tar", place("1.tar")}


def test_a_killed_download_is_no_obstacle(cache, url_and_seen):
    """Its partial file is there; its lock file too, which the kernel has released."""
    url, _ = url_and_seen
    read(url, "1.tar")
    for suffix in (".partial", ".lock"):
        path = (cache / place("0.tar")).with_suffix(suffix)
        path.write_bytes(b"part")
        path.chmod(0o600)
    read(url, "0.tar")
    assert cached(cache) == {place("0.tar"), place("1.tar")}


def harm_mode(cache, tmp_path):
    cache.mkdir(parents=True)
    cache.chmod(0o755)


def harm_link(cache, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.parent.mkdir()
    cache.symlink_to(tmp_path / "elsewhere")


def harm_file(cache, tmp_path):
    cache.parent.write_text("")


def harm_planted(cache, tmp_path):
    """A link under the name of a shard, as an attacker would lay it."""
    cache.mkdir(parents=True, mode=0o700)
    (tmp_path / "planted").write_bytes(bytes(SIZE))
    (cache / place("0.tar")).symlink_to(tmp_path / "planted")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (harm_mode, "can be used by others: chmod 700"),
        (harm_link, "is no folder"),
        (harm_file, "(File exists|Not a directory)"),
        (harm_planted, "is a link"),
    ],
)
def test_without_a_cache_it_is_read_into_memory(cache, url_and_seen, tmp_path, capfd, harm, reason):
    harm(cache, tmp_path)
    url, seen = url_and_seen
    read(url, "0.tar")
    read(url, "0.tar")
    said = capfd.readouterr().err
    assert len(seen) == 2 and said.count("\n") == 1
    assert re.search(
        rf"no cache of remote shards \(.*{reason}.*\): they are read into memory", said
    )


def test_a_full_disk(tmp_path, monkeypatch, url_and_seen, capfd):
    place_ = tmp_path / "small"
    place_.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE // 2}", "tmpfs", str(place_)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        skip_or_fail("mounting needs root")
    try:
        monkeypatch.setenv("CJEPA_CACHE", str(place_))
        monkeypatch.delenv("CJEPA_CACHE_GB")
        shard_cache.said.clear()
        url, seen = url_and_seen
        read(url, "0.tar")
        assert "its disk is full" in capfd.readouterr().err and len(seen) == 1
        # What make_room cannot foresee: another process takes the room meanwhile.
        monkeypatch.setattr(shard_cache, "make_room", lambda *unused: None)
        shard_cache.said.clear()
        read(url, "0.tar")
        assert "No space left on device" in capfd.readouterr().err
        assert not list((place_ / "shards").iterdir())
    finally:
        subprocess.run(["umount", str(place_)], check=True)


def test_another_folder_where_the_cache_cannot_be_written(tmp_path, monkeypatch, url_and_seen):
    monkeypatch.delenv("CJEPA_CACHE", raising=False)
    monkeypatch.delenv("CJEPA_CACHE_GB")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    read(url_and_seen[0], "0.tar")
    folder = tmp_path / "tmp" / f"cjepa_dist_{os.getuid()}" / "shards"
    assert cached(folder) == {place("0.tar")}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    read(url_and_seen[0], "0.tar")
    assert cached(tmp_path / "xdg" / "cjepa_dist" / "shards") == {place("0.tar")}


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number(url_and_seen, monkeypatch, text):
    monkeypatch.setenv("CJEPA_CACHE_GB", text)
    with pytest.raises(UserError, match=f"CJEPA_CACHE_GB={text}: must be a number of GB"):
        read(url_and_seen[0], "0.tar")


def test_a_slow_download_says_how_fast_it_is(url_and_seen, monkeypatch, capsys):
    url, _ = url_and_seen
    monkeypatch.setattr(storage, "SAY_AFTER", 0.0)
    read(url.replace("//", "//me:secret@"), "0.tar")
    said = capsys.readouterr().err
    assert said.startswith(f"read {url.replace('//', '//***@')}/0.tar: 0.1 MB in 0 s, ")
    assert said.endswith(" MB/s\n") and "secret" not in said
