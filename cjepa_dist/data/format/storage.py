"""Reads files of a data set from a folder, or from a URL to which a file's name is added.

    DIR                       the file itself
    http(s)://HOST/DIR        Range requests; a broken download resumes where it stopped
    pipe:COMMAND DIR          the output of a shell command: `pipe:ssh HOST cat DIR` + /train/0.tar
    s3://..., gs://..., ...   by fsspec, with its package for the scheme (s3: s3fs)

    shard ──> file in memory ──xxh3 = the manifest's──> descriptor        a manifest ──> bytes

Every read has a timeout. What fails for a moment is tried again after a delay that doubles; what
the server refuses is an error.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import select
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from cjepa_dist.errors import UserError

CHUNK_BYTES = 1 << 20
RETRYABLE_STATUS = (408, 425, 429, 500, 502, 503, 504)  # HTTP: ask again later


@dataclass(frozen=True)
class RetryPolicy:
    """When a remote read has failed, and when to give up.

    A read fails after `timeout` seconds without a byte. `max_attempts` failures in a row, without a
    byte between them, are an error.
    """

    timeout: float = 30.0
    max_attempts: int = 6
    initial_delay: float = 0.5  # seconds before the second attempt, then twice that, ...


DEFAULT_RETRY = RetryPolicy()


def is_remote(folder: str | Path) -> bool:
    return isinstance(folder, str) and ("://" in folder or folder.startswith("pipe:"))


def read_remote(url: str, retry: RetryPolicy = DEFAULT_RETRY) -> bytes:
    """All of a small remote file. UserError naming it if it cannot be read."""
    return b"".join(stream_remote(url, None, retry))


def download_to_memory(url: str, size: int, xxh3: str, retry: RetryPolicy = DEFAULT_RETRY) -> int:
    """Download a file to memory and check size and xxh3; returns its descriptor.

    Closing the descriptor frees the memory. UserError naming the file if it cannot be read, or if
    its bytes are wrong at the second attempt too.
    """
    descriptor = os.memfd_create("shard")
    try:
        for attempt in (1, 2):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            digest, length = xxhash.xxh3_64(), 0
            for chunk in stream_remote(url, size, retry):
                digest.update(chunk)
                length += len(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(descriptor, view) :]
            if (length, digest.hexdigest()) == (size, xxh3):
                return descriptor
            if attempt == 2:
                what = (
                    "its xxh3 is not the manifest's"
                    if length == size
                    else f"it has {length} bytes, the manifest says {size}"
                )
                raise UserError(
                    f"shard {url} is damaged: {what}; restore it, or make the data set again"
                )
    except BaseException:
        os.close(descriptor)
        raise
    raise AssertionError


def stream_remote(url: str, size: int | None, retry: RetryPolicy) -> Iterator[bytes]:
    """The bytes of a remote file in order; `size`, if known, tells an early end from the end."""
    done, failures = 0, 0
    while True:
        try:
            with open_remote(url, done, retry) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
                    done, failures = done + len(chunk), 0
                # HTTPResponse.length: the bytes still to come.
                left = (getattr(stream, "length", 0) or 0) if size is None else size - done
            if left > 0:
                raise ConnectionError(f"it ended {left} bytes early")
            return
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            if (
                isinstance(error, FileNotFoundError | PermissionError)
                or getattr(error, "code", 503) not in RETRYABLE_STATUS
            ):
                raise UserError(
                    f"{url} cannot be read ({reason}); is it there, and may this machine read it?"
                ) from error
            failures += 1
            if failures >= retry.max_attempts:
                raise UserError(
                    f"{url} cannot be read: {failures} failures in a row, the last: {reason}; "
                    "is its server up?"
                ) from error
            # Random, or many processes would ask at the same moment.
            delay = retry.initial_delay * 2 ** (failures - 1) * random.uniform(0.75, 1.25)
            time.sleep(delay)


@contextlib.contextmanager
def open_remote(url: str, offset: int, retry: RetryPolicy) -> Iterator[Any]:
    """A stream from byte `offset` on. OSError or HTTPException for what may pass."""
    if url.startswith(("http://", "https://")):
        url = urllib.parse.quote(url, safe=":/?&=%+@,~#[]!$'()*;")
        request = urllib.request.Request(
            url, headers={"Range": f"bytes={offset}-"} if offset else {}
        )
        with urllib.request.urlopen(request, timeout=retry.timeout) as response:
            if offset and response.status != 206:
                skip_bytes(response, offset)  # a server without ranges sends all of it again
            yield response
    elif url.startswith("pipe:"):
        with PipeReader(url.removeprefix("pipe:"), retry.timeout) as stream:
            skip_bytes(stream, offset)
            yield stream
    else:
        from fsspec.core import url_to_fs  # here: local folders and plain servers need none of it

        try:
            system, path = url_to_fs(url)
            with system.open(path, "rb", block_size=16 * CHUNK_BYTES) as stream:
                stream.seek(offset)
                yield stream
        except (ImportError, ValueError) as error:
            raise UserError(f"{url} cannot be read: {error}") from error
        except OSError:
            raise
        except Exception as error:
            # Of the scheme's own package: botocore's EndpointConnectionError is no OSError.
            raise ConnectionError(f"{type(error).__name__}: {error}") from error


def skip_bytes(stream: Any, count: int) -> None:
    while count > 0 and (chunk := stream.read(min(count, CHUNK_BYTES))):
        count -= len(chunk)


class PipeReader:
    """The output of a shell command. OSError if it fails, or is silent for `timeout` seconds."""

    def __init__(self, command: str, timeout: float) -> None:
        self.command, self.timeout = command, timeout

    def __enter__(self) -> PipeReader:
        self.process = subprocess.Popen(
            self.command,
            shell=True,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], self.timeout)[0]:
            raise TimeoutError(f"nothing for {self.timeout:g} s")
        chunk = os.read(self.process.stdout.fileno(), size)
        if not chunk and self.exit_code():
            raise ConnectionError(f"the command failed with exit code {self.process.returncode}")
        return chunk

    def exit_code(self) -> int:
        try:
            return self.process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"the command closed its output and still runs after {self.timeout:g} s"
            ) from None

    def __exit__(self, *unused: Any) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def local_copy(folder: str | Path) -> Path:
    """The folder to read the shards of `folder` from: its copy on this node, if a job made one."""
    copies = json.loads(os.environ.get("CJEPA_STAGED") or "{}")
    return Path(copies.get(str(Path(folder).resolve()), folder))
