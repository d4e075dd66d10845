"""Downloads one large file so that a stop at any point loses nothing.

URL, or a file of a folder ──Range, If-Range──> PATH.partial, with PATH.partial.json about its
source, until it has all of its bytes

A file that has changed on the server since the first part was read is begun again.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cjepa_dist.data.format.storage import RETRYABLE_STATUS, RetryPolicy, http_request, is_remote
from cjepa_dist.errors import UserError, without_secrets
from cjepa_dist.runtime.files import write_json

CHUNK_BYTES = 1 << 20
NO_VALIDATOR = "length "  # then this, and the length: the version of what has no ETag and no date
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Unreachable(UserError):
    """A server that gives no file: it is down, refuses, or this machine is offline."""


@dataclass
class Source:
    """Where a file comes from. `bytes` and `sha256`: what is known of it, else None."""

    url: str
    headers: Mapping[str, str]
    bytes: int | None = None
    sha256: str | None = None


@dataclass
class Reply:
    """A stream from byte `start` on; `total`: bytes of the file; `version` changes with it."""

    stream: Any
    start: int
    total: int | None
    version: str


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects that do not leave https once it is there."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if req.type == "https" and not newurl.startswith("https:"):
            raise UserError(f"{req.full_url} leads from https to {newurl:.80}: it is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def transfer(
    source: Source, path: Path, retry: RetryPolicy, progress: Callable[[int], None]
) -> Path:
    """Download to PATH.partial, from where an earlier try stopped, and return that path.

    `progress` gets the number of new bytes. Raises Unreachable after `retry.max_attempts` failures
    in a row, and UserError for a file of another length than it should have.
    """
    partial, note = partial_of(path), partial_of(path).with_suffix(".partial.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    farthest, failures = -1, 0
    while True:
        known = read_note(note, source.url)
        done = partial.stat().st_size if known is not None and partial.exists() else 0
        if done and done == source.bytes:
            return partial
        try:
            with open_source(source, done, known or "", retry.timeout) as reply:
                check_length(source, reply)
                write_json(note, {"url": without_secrets(source.url), "version": reply.version})
                end = copy_stream(reply, partial, progress)
            wanted = source.bytes if source.bytes is not None else reply.total
            if wanted is not None and end < wanted:
                raise ConnectionError(f"it ended {wanted - end} bytes early")
            if wanted is not None and end > wanted:
                partial.unlink()
                raise UserError(f"{source.url} has more than {wanted} bytes, which it should have")
            return partial
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 416 and done:
                if error.headers.get("Content-Range", "") == f"bytes */{done}":
                    return partial  # all of it was there
                partial.unlink()  # the file has become shorter
            elif isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise UserError(
                    f"{partial} cannot be written: {error.strerror}; what is there stays, and the"
                    " same command goes on from it"
                ) from error
            elif getattr(error, "code", 503) not in RETRYABLE_STATUS or isinstance(
                error, FileNotFoundError | PermissionError
            ):
                raise Unreachable(f"{source.url} cannot be read ({error})") from error
            reached = partial.stat().st_size if partial.exists() else 0
            failures = 1 if reached > farthest else failures + 1
            farthest = max(farthest, reached)
            if failures >= retry.max_attempts:
                reason = str(error) or type(error).__name__
                raise Unreachable(
                    f"{source.url} cannot be read: {failures} failures in a row, the last: {reason}"
                ) from error
            time.sleep(retry.initial_delay * 2 ** (failures - 1) * random.uniform(0.75, 1.25))


def partial_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def read_note(note: Path, url: str) -> str | None:
    """The version of the file that a partial one is of; None if it is of something else."""
    try:
        content = json.loads(note.read_bytes())
        return str(content["version"]) if content["url"] == without_secrets(url) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def open_source(source: Source, offset: int, version: str, timeout: float) -> Iterator[Reply]:
    """A stream from `offset` on, or from 0 if the file is no more that of `version`.

    OSError or HTTPException for what may pass.
    """
    if not is_remote(source.url):
        with open(source.url, "rb") as file:
            stat = os.fstat(file.fileno())
            found = f"{stat.st_size} {stat.st_mtime_ns}"
            start = offset if version == found else 0
            file.seek(start)
            yield Reply(file, start, stat.st_size, found)
        return
    request = make_request(source)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if not version.startswith(NO_VALIDATOR):
            request.add_header("If-Range", version)
    opener = urllib.request.build_opener(SafeRedirects)
    with opener.open(request, timeout=timeout) as response:
        tag = response.headers.get("ETag", "")
        found = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
        part = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        length = part[2] if part else response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        found = found or f"{NO_VALIDATOR}{total}"
        if response.status != 206:
            yield Reply(response, 0, total, found)
        elif offset and part and int(part[1]) == offset and found == version:
            yield Reply(response, offset, total, found)
        elif offset:  # another part, or of another version: all of it again
            with open_source(source, 0, "", timeout) as reply:
                yield reply
        else:
            raise http.client.HTTPException("it sent a part of the file, and was asked for all")


def make_request(source: Source) -> urllib.request.Request:
    """A request with the source's headers, which no redirect passes on."""
    if not source.url.startswith(("http://", "https://")):
        raise UserError(f"{source.url} must begin with http:// or https://, or be a folder")
    request = http_request(source.url)
    request.add_header("Accept-Encoding", "identity")
    for name, value in source.headers.items():
        request.add_unredirected_header(name, value)
    return request


def check_length(source: Source, reply: Reply) -> None:
    """UserError if the server says another length than is known."""
    if source.bytes is not None and reply.total not in (None, source.bytes):
        raise UserError(
            f"{source.url} has {reply.total} bytes; it should have {source.bytes}: it is another"
            " file, or the server is wrong; if it is right, correct this with table=FILE"
        )


def copy_stream(reply: Reply, partial: Path, progress: Callable[[int], None]) -> int:
    """Write a stream to its place in the partial file; returns the length of that."""
    with open(partial, "r+b" if partial.exists() else "w+b") as file:
        file.truncate(reply.start)
        file.seek(reply.start)
        while chunk := reply.stream.read1(CHUNK_BYTES):
            file.write(chunk)
            file.flush()
            progress(len(chunk))
        os.fsync(file.fileno())
        return file.tell()


def remote_size(source: Source, retry: RetryPolicy) -> int | None:
    """The length that the server says, None if it does not. Raises Unreachable."""
    if not is_remote(source.url):
        try:
            return os.stat(source.url).st_size
        except OSError as error:
            raise Unreachable(f"{source.url} cannot be read ({error.strerror})") from error
    request, failures = make_request(source), 0
    request.method = "HEAD"
    opener = urllib.request.build_opener(SafeRedirects)
    while True:
        try:
            with opener.open(request, timeout=retry.timeout) as response:
                length = response.headers.get("Content-Length", "")
                return int(length) if length.isdecimal() else None
        except (OSError, http.client.HTTPException) as error:
            code = getattr(error, "code", 503)
            if code in (405, 501):  # a server without HEAD
                return None
            failures += 1
            if code not in RETRYABLE_STATUS or failures >= retry.max_attempts:
                reason = str(error) or type(error).__name__
                raise Unreachable(f"{source.url} cannot be read ({reason})") from error
            time.sleep(retry.initial_delay * 2 ** (failures - 1))
