"""Reads files of a data set from a folder, or from a URL to which a file's name is added.

    DIR                       the file itself
    http(s)://HOST/DIR        Range requests; a broken download resumes where it stopped
    pipe:COMMAND DIR          the output of a shell command: `pipe:ssh HOST cat DIR` + /train/0.tar
    s3://..., gs://..., ...   by fsspec, with its package for the scheme (s3: s3fs)

    shard ──> open file ──xxh3 = the manifest's──> used (shard_cache.py)   a manifest ──> bytes

The names that are added come from a manifest: they are those that we write, and nothing else, so
that none of them is more than a name to a shell, a server or a file system. A read ends at the size
that was promised. `user:password@` of a URL goes to its server, and into no message.

Every read has a timeout. What fails for a moment is tried again after a delay that doubles; what
the server refuses is an error.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import netrc
import os
import random
import re
import select
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from cjepa_dist.config.command_line import given_commands
from cjepa_dist.errors import UserError, one_line, without_secrets

CHUNK_BYTES = 1 << 20
SAY_AFTER, SAY_EVERY = 3.0, 10.0  # s: a download that takes longer is said
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", re.ASCII)
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


def recorded_place(folder: str | Path) -> str:
    """A place of data as files record it: absolute; a URL as it is, without user and password."""
    return without_secrets(str(folder), "") if is_remote(folder) else str(Path(folder).resolve())


def join(folder: str | Path, *names: str) -> str:
    """A file in a folder or URL. UserError for a name that is not one that we write."""
    for name in names:
        if not FILE_NAME.fullmatch(name):
            raise UserError(
                f"{folder}: its manifest names a file {name!r:.80}; names have at most 80 letters,"
                " digits, '_', '-' and '.', and begin with none of '-' and '.'"
            )
    return "/".join((str(folder), *names))


distrusted: dict[str, str] = {}  # shell commands that a file names as a place of data: which file


def distrust(folder: object, whose: str) -> None:
    """Never run `folder` if it is a shell command that the user of this process has not given.

    For what was read from a file, such as a run's config or a manifest: `whose`.
    """
    if isinstance(folder, str) and folder.startswith("pipe:"):
        distrusted[folder] = whose


def check_command(url: str) -> None:
    """Raises UserError for a shell command that nobody but a file has given."""
    for folder, whose in distrusted.items():
        ours = url == folder or url.startswith(f"{folder}/")
        if ours and folder not in given_commands:
            raise UserError(
                f"{whose} names a shell command as the place of its data ({folder:.80}), which is"
                " not run: if you trust it, give it yourself, as data= (or probe_data=)"
            )


def read_remote(url: str, retry: RetryPolicy = DEFAULT_RETRY, most: int = 1 << 30) -> bytes:
    """All of a small remote file, of at most `most` bytes. UserError if it cannot be read."""
    content = bytearray()
    for chunk in stream_remote(url, None, retry):
        content += chunk
        if len(content) > most:
            raise UserError(f"{url} has more than {most} bytes: it is not what it should be")
    return bytes(content)


def download_to_memory(url: str, size: int, xxh3: str, retry: RetryPolicy = DEFAULT_RETRY) -> int:
    """Download a file to memory as `download` does; returns its descriptor.

    Closing the descriptor frees the memory.
    """
    descriptor = os.memfd_create("shard")
    try:
        download(url, size, xxh3, retry, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def download(url: str, size: int, xxh3: str, retry: RetryPolicy, descriptor: int) -> None:
    """Download a file into an open file, and check size and xxh3; says how fast if that takes long.

    UserError naming the file if it cannot be read, or if its bytes are wrong at the second attempt
    too.
    """
    for _ in range(2):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        digest, length, began = xxhash.xxh3_64(), 0, time.monotonic()
        due = began + SAY_EVERY
        for chunk in stream_remote(url, size, retry):
            digest.update(chunk)
            length += len(chunk)
            if length > size:
                break
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
            if time.monotonic() > due and length < size:
                say_rate(url, length, size, time.monotonic() - began)
                due = time.monotonic() + SAY_EVERY
        if (length, digest.hexdigest()) == (size, xxh3):
            if (seconds := time.monotonic() - began) > SAY_AFTER:
                say_rate(url, length, size, seconds)
            return
    if length == size:
        what = "its xxh3 is not the manifest's"
    else:
        found = f"more than {size}" if length > size else f"{length}"
        what = f"it has {found} bytes, the manifest says {size}"
    raise UserError(f"shard {url} is damaged: {what}; restore it, or make the data set again")


def say_rate(url: str, length: int, size: int, seconds: float) -> None:
    """A line on stderr: how much of a file has come, and how fast."""
    of = "" if length == size else f"{1e-6 * length:.1f} of "
    rate = 1e-6 * length / max(seconds, 1e-3)
    text = f"read {url}: {of}{1e-6 * size:.1f} MB in {seconds:.0f} s, {rate:.3g} MB/s"
    print(one_line(without_secrets(text)), file=sys.stderr, flush=True)


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
        request = http_request(url)
        if offset:
            request.add_header("Range", f"bytes={offset}-")
        with urllib.request.urlopen(request, timeout=retry.timeout) as response:
            if offset and response.status != 206:
                skip_bytes(response, offset)  # a server without ranges sends all of it again
            yield response
    elif url.startswith("pipe:"):
        check_command(url)
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


def http_request(url: str) -> urllib.request.Request:
    """A request for a URL; `user:password@` becomes a header, which no redirect passes on.

    Without it, user and password of the server in ~/.netrc, or in the file that NETRC names.
    UserError for what is no URL.
    """
    try:
        parts = urllib.parse.urlsplit(urllib.parse.quote(url, safe=":/?&=%+@,~#[]!$'()*;"))
        login, _, place = parts.netloc.rpartition("@")
        _ = parts.port
        request = urllib.request.Request(parts._replace(netloc=place).geturl())
    except ValueError as error:
        raise UserError(f"{url} is no URL: {error}") from None
    if not place:
        raise UserError(f"{url} is no URL: it names no server")
    words = ""
    if login:
        user, _, password = login.partition(":")
        words = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password)}"
    elif known := netrc_login(parts.hostname or ""):
        words = ":".join(known)
    if words:
        token = base64.b64encode(words.encode(errors="surrogateescape")).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def netrc_login(host: str) -> tuple[str, str] | None:
    """(user, password) of a server by the user's netrc file. UserError if that cannot be read."""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        found = netrc.netrc(path).authenticators(host)
    except FileNotFoundError:
        return None
    except (netrc.NetrcParseError, OSError, ValueError) as error:
        # Not its own message, which may show a word of the file.
        line = getattr(error, "lineno", None)
        where = f"line {line}" if line else getattr(error, "strerror", None) or "not text"
        raise UserError(f"{path} cannot be read ({where}): mend it, or unset NETRC") from None
    return None if found is None else (found[0] or found[1] or "", found[2] or "")


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
    try:
        copies = json.loads(os.environ.get("CJEPA_STAGED") or "{}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"environment variable CJEPA_STAGED is not JSON: {error}") from None
    place = copies.get(str(Path(folder).resolve()), folder) if isinstance(copies, dict) else None
    if not isinstance(place, (str, Path)):
        raise UserError("environment variable CJEPA_STAGED is no mapping of folders to copies")
    return Path(place)
