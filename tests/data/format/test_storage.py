"""Remote shards: an HTTP server that fails, stalls and sends wrong bytes; pipes; fsspec."""

import http.server
import os
import threading
from contextlib import contextmanager

import fsspec
import numpy as np
import pytest
import xxhash
from moto.server import ThreadedMotoServer

from cjepa_dist.data.format.reader import load_slots
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.storage import (
    RetryPolicy,
    download_to_memory,
    read_remote,
    recorded_place,
)
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError

BYTES = np.random.default_rng(0).bytes(3_000_000)
XXH3 = xxhash.xxh3_64(BYTES).hexdigest()
QUICK = RetryPolicy(timeout=0.3, max_attempts=4, initial_delay=0.01)


@contextmanager
def server(folder, faults=(), ranges=True):
    """Serve `folder`; yields (URL, requests).

    Request k gets faults[k], if any: a status, "stall", "cut" or "flip" (kept for a shard).
    """
    waiting, seen = list(faults), []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            fault = waiting[0] if waiting else None
            if fault == "flip" and not self.path.endswith(".tar"):
                fault = None  # only shards have a checksum
            elif waiting:
                waiting.pop(0)
            begin = (
                int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
                if ranges
                else 0
            )
            path = os.path.join(folder, self.path.lstrip("/"))
            seen.append((self.path, begin, fault))
            if isinstance(fault, int) or not os.path.isfile(path):
                self.send_error(fault or 404)
                return
            with open(path, "rb") as file:
                body = bytearray(file.read()[begin:])
            if fault == "flip":
                body[len(body) // 2] ^= 1
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault in ("cut", "stall") else body)
            if fault == "stall":
                self.connection.settimeout(60)
                self.connection.recv(1)  # returns when the reader has lost patience and left
            self.close_connection = fault in ("cut", "stall")

        def log_message(self, *unused):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", seen
        httpd.shutdown()


def fetched(place, retry=QUICK, xxh3=XXH3):
    descriptor = download_to_memory(place, len(BYTES), xxh3, retry)
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shard.tar").write_bytes(BYTES)
    return tmp_path


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", [None, 503, 429, "stall", "cut", "flip"])
def test_temporary_faults_are_retried(folder, fault, ranges):
    with server(folder, [fault], ranges) as (url, seen):
        assert fetched(f"{url}/shard.tar") == BYTES
    assert len(seen) == (1 if fault is None else 2)
    if ranges and fault in ("stall", "cut"):
        assert 0 < seen[1][1] <= len(BYTES) // 2, "it did not resume where it stopped"


def test_progress_resets_the_attempts(folder):
    """Many interruptions after some bytes each are no error; many without a byte are."""
    with server(folder, ["cut"] * 9) as (url, seen):
        assert fetched(f"{url}/shard.tar") == BYTES and len(seen) == 10
    with server(folder, [503] * 9) as (url, seen):
        with pytest.raises(
            UserError,
            match=r"shard.tar cannot be read: 4 failures in a row, the last: HTTP Error 503",
        ):
            fetched(f"{url}/shard.tar")
        assert len(seen) == 4


@pytest.mark.parametrize("status", [403, 404])
def test_refusals_are_not_retried(folder, status):
    with server(folder, [status] * 9) as (url, seen):
        with pytest.raises(UserError, match=rf"shard.tar cannot be read \(HTTP Error {status}"):
            fetched(f"{url}/shard.tar")
        assert len(seen) == 1


def test_other_bytes_than_the_manifests_are_an_error(folder):
    with server(folder) as (url, seen):
        with pytest.raises(UserError, match=r"shard .*shard.tar is damaged: its xxh3"):
            fetched(f"{url}/shard.tar", xxh3="0" * 16)
        assert len(seen) == 2  # a second attempt, in case the network changed them
    with server(folder, ["flip", "flip"]) as (url, _), pytest.raises(UserError, match="damaged"):
        fetched(f"{url}/shard.tar")


def test_a_small_file_that_is_cut_off_is_read_again(folder):
    with server(folder, ["cut"]) as (url, seen):
        assert read_remote(f"{url}/shard.tar", QUICK) == BYTES and len(seen) == 2


def test_no_server(folder):
    with server(folder) as (url, _):
        pass
    with pytest.raises(UserError, match="failures in a row"):
        fetched(f"{url}/shard.tar")


def test_pipes(folder):
    assert fetched(f"pipe:cat {folder}/shard.tar") == BYTES
    half = (
        f"test -e {folder}/once && cat {folder}/shard.tar "
        f"|| (touch {folder}/once; head -c 1000 {folder}/shard.tar; exit 1)"
    )
    assert fetched(f"pipe:{half}") == BYTES  # the second time it resumes after the first thousand
    with pytest.raises(UserError, match="the command failed with exit code 1"):
        fetched(f"pipe:cat {folder}/absent.tar 2>/dev/null")
    with pytest.raises(UserError, match=r"nothing for 0\.2 s"):
        fetched("pipe:sleep 100000", RetryPolicy(0.2, 2, 0.01))


def test_fsspec():
    with fsspec.open("memory://bucket/shard.tar", "wb") as file:
        file.write(BYTES)
    assert fetched("memory://bucket/shard.tar") == BYTES
    with pytest.raises(UserError, match=r"absent\.tar cannot be read"):
        fetched("memory://bucket/absent.tar")
    with pytest.raises(
        UserError, match=r"nosuch://bucket/shard\.tar cannot be read: Protocol not known"
    ):
        fetched("nosuch://bucket/shard.tar")


def test_s3(tmp_path, monkeypatch):
    """By s3fs from a server of moto's: a data set, what is not there, and no server."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    slots = write_data(tmp_path / "data")
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        store = fsspec.filesystem("s3")
        store.mkdir("bucket")
        store.put(str(tmp_path / "data"), "bucket/data", recursive=True)
        assert np.array_equal(load_slots("s3://bucket/data", "train"), slots)
        with pytest.raises(UserError, match=r"s3://bucket/absent/manifest\.json cannot be read"):
            load_slots("s3://bucket/absent", "train")
        with pytest.raises(UserError, match="bucket does not exist"):
            fetched("s3://nobody/shard.tar")
    finally:
        server.stop()
    with pytest.raises(UserError, match="failures in a row, the last: EndpointConnectionError"):
        fetched("s3://bucket/data/train/000000.tar", RetryPolicy(2.0, 2, 0.01))


def write_data(folder):
    slots = np.random.default_rng(0).standard_normal((3, 4, 2, 5)).astype(np.float32)
    with DatasetWriter(folder, encoder="test", source={}, dtype="float32") as writer:
        for video, content in enumerate(slots):
            writer.split("train").add(Sample(f"video_{video:05d}", content))
    return slots


def test_a_data_set_by_url(tmp_path):
    slots = write_data(tmp_path / "data")
    with server(tmp_path, [503, None, "cut"]) as (url, _):
        assert np.array_equal(load_slots(f"{url}/data", "train"), slots)
    assert np.array_equal(load_slots(f"pipe:cat {tmp_path}/data", "train"), slots)
    with (
        server(tmp_path) as (url, _),
        pytest.raises(UserError, match=r"absent/manifest.json cannot be read \(HTTP Error 404"),
    ):
        load_slots(f"{url}/absent", "train")


def test_a_url_is_recorded_as_it_is_without_its_password(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recorded_place("https://me:secret@host/data//x") == "https://host/data//x"
    assert recorded_place("pipe:ssh host cat /data") == "pipe:ssh host cat /data"
    assert recorded_place("data") == str(tmp_path.resolve() / "data")
