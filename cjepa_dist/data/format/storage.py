"""Files of a data set that may be elsewhere: a folder, or a URL to which a file's name is added.

    DIR                       the file itself
    http(s)://HOST/DIR        Range requests: what broke off goes on where it was
    pipe:COMMAND DIR          what a shell command prints, `pipe:ssh HOST cat DIR` + /train/000000.tar
    s3://..., gs://..., ...   by fsspec, with its package for the scheme (s3: s3fs)

    shard ──> file in memory ──xxh3 = the manifest's──> descriptor        a manifest ──> bytes

Every read has a time limit. What fails in passing is tried again after a pause that doubles; what the server refuses is an error.
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

PIECE = 1 << 20
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP: ask again later


@dataclass(frozen=True)
class RetryPolicy:
    """Seconds without a byte after which a read has failed; failures in a row, without a byte between, after which to give up."""

    timeout: float = 30.0
    tries: int = 6
    pause: float = 0.5  # seconds before the second try, then twice that, ...


DEFAULT_RETRY = RetryPolicy()


def is_remote(folder: str | Path) -> bool:
    return isinstance(folder, str) and ("://" in folder or folder.startswith("pipe:"))


def read_remote(place: str, patience: RetryPolicy = DEFAULT_RETRY) -> bytes:
    """All of a small remote file. UserError naming it if it cannot be had."""
    return b"".join(stream_remote(place, None, patience))


def download_to_memory(
    place: str, size: int, xxh3: str, patience: RetryPolicy = DEFAULT_RETRY
) -> int:
    """A descriptor of a file in memory (freed when it is closed) with the bytes of a remote one, checked against size and xxh3.

    UserError naming it if it cannot be had, or has other bytes at the second look too.
    """
    descriptor = os.memfd_create("shard")
    try:
        for look in (1, 2):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            digest, length = xxhash.xxh3_64(), 0
            for piece in stream_remote(place, size, patience):
                digest.update(piece)
                length += len(piece)
                view = memoryview(piece)
                while view:
                    view = view[os.write(descriptor, view) :]
            if (length, digest.hexdigest()) == (size, xxh3):
                return descriptor
            if look == 2:
                what = (
                    "its xxh3 is not the manifest's"
                    if length == size
                    else f"it has {length} bytes, the manifest says {size}"
                )
                raise UserError(
                    f"shard {place} is damaged: {what}; restore it, or make the data set again"
                )
    except BaseException:
        os.close(descriptor)
        raise
    raise AssertionError


def stream_remote(place: str, size: int | None, patience: RetryPolicy) -> Iterator[bytes]:
    """The bytes of a remote file in order; `size`, if known, is where an end that comes early is told from the end."""
    done, failures = 0, 0
    while True:
        try:
            with open_remote(place, done, patience) as stream:
                while piece := stream.read(PIECE):
                    yield piece
                    done, failures = done + len(piece), 0
                left = (
                    (getattr(stream, "length", 0) or 0) if size is None else size - done
                )  # HTTPResponse.length: what is still to come
            if left > 0:
                raise ConnectionError(f"it ended {left} bytes early")
            return
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            if (
                isinstance(error, FileNotFoundError | PermissionError)
                or getattr(error, "code", 503) not in PASSING
            ):
                raise UserError(
                    f"{place} cannot be read ({reason}); is it there, and may this machine read it?"
                ) from error
            failures += 1
            if failures >= patience.tries:
                raise UserError(
                    f"{place} cannot be read: {failures} failures in a row, the last: {reason}; is its server up?"
                ) from error
            time.sleep(
                patience.pause * 2 ** (failures - 1) * random.uniform(0.75, 1.25)
            )  # many processes would ask at once


@contextlib.contextmanager
def open_remote(place: str, offset: int, patience: RetryPolicy) -> Iterator[Any]:
    """Something to `read(n)` from, from byte `offset` on. OSError or HTTPException for what may pass."""
    if place.startswith(("http://", "https://")):
        url = urllib.parse.quote(place, safe=":/?&=%+@,~#[]!$'()*;")
        request = urllib.request.Request(
            url, headers={"Range": f"bytes={offset}-"} if offset else {}
        )
        with urllib.request.urlopen(request, timeout=patience.timeout) as response:
            if offset and response.status != 206:
                skip(response, offset)  # a server without ranges sends all of it again
            yield response
    elif place.startswith("pipe:"):
        with PipeReader(place.removeprefix("pipe:"), patience.timeout) as stream:
            skip(stream, offset)
            yield stream
    else:
        from fsspec.core import url_to_fs  # here: local folders and plain servers need none of it

        try:
            system, path = url_to_fs(place)
            with system.open(path, "rb", block_size=16 * PIECE) as stream:
                stream.seek(offset)
                yield stream
        except (ImportError, ValueError) as error:
            raise UserError(f"{place} cannot be read: {error}") from error
        except OSError:
            raise
        except (
            Exception
        ) as error:  # of the scheme's own package: botocore's EndpointConnectionError is no OSError
            raise ConnectionError(f"{type(error).__name__}: {error}") from error


def skip(stream: Any, count: int) -> None:
    while count > 0 and (piece := stream.read(min(count, PIECE))):
        count -= len(piece)


class PipeReader:
    """What a shell command prints, with a time limit on each read. OSError if it prints nothing for so long, or fails."""

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
        piece = os.read(self.process.stdout.fileno(), size)
        if not piece and self.code():
            raise ConnectionError(f"the command failed with exit code {self.process.returncode}")
        return piece

    def code(self) -> int:
        try:
            return self.process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"the command closed its output and goes on for {self.timeout:g} s"
            ) from None

    def __exit__(self, *unused: Any) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def local_copy(folder: str | Path) -> Path:
    """The folder to read the shards of `folder` from."""
    copies = json.loads(os.environ.get("CJEPA_STAGED") or "{}")
    return Path(copies.get(str(Path(folder).resolve()), folder))
