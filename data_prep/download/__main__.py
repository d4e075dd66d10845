"""Downloads the public slots, questions and annotations: `python -m data_prep.download out=DIR`.

    public_files.yaml ──what=──> missing files ──mirror=, hub, URL──> PATH.partial
      ──length, sha256, content──> PATH ──unpack──> folder; OUT/downloads.json

What stops goes on where it was. A file that somebody has put in its place is checked and taken.
Proxies: http_proxy, https_proxy, no_proxy. The hub: HF_ENDPOINT, HF_TOKEN.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import option
from cjepa_dist.data.format.journal import lock_folder
from cjepa_dist.data.format.storage import RetryPolicy
from cjepa_dist.errors import ContentError, UserError, without_secrets
from cjepa_dist.runtime.files import free_bytes
from cjepa_dist.runtime.progress import Progress
from data_prep.download.hub import find_on_hub
from data_prep.download.record import Record, check_file, known_digest
from data_prep.download.table import PublicFile, choose, read_table
from data_prep.download.transfer import (
    Source,
    Unreachable,
    partial_of,
    remote_size,
    transfer,
)
from data_prep.download.unpack import unpack_json

SPARE_BYTES = 256 << 20  # left free on the disk


@dataclass
class Download:
    """Download public slots of CLEVRER, its questions and its annotations.

    A download that was stopped goes on where it was. Lengths and checksums are compared with what
    is known of them, and recorded in OUT/downloads.json where nothing is. A machine without the net
    is told which file to put where.
    """

    out: str = option(MISSING, "folder for the files", path=True)
    what: list[str] = option(
        ["videosaur", "questions", "annotations"],
        "groups of files: videosaur and savi (slots, 9 GB each), questions, annotations",
    )
    mirror: str = option(
        "",
        "folder or URL that has the files by the same paths as OUT, such as another OUT; empty ="
        " the public places",
        path=True,
    )
    table: str = option(
        "",
        "YAML file with more files, or with other facts of these: group: {path: {url, bytes,"
        " sha256, ...}}, as data_prep/download/public_files.yaml",
        path=True,
    )
    check: bool = option(False, "also compare the checksums of the files that are there")
    timeout: float = option(30.0, "time without a byte until a read has failed", unit="s", least=1)
    attempts: int = option(
        6, "failures in a row, without a new byte between them, until it gives up", least=1
    )


def main(config: Download) -> None:
    """Download, check and unpack what is missing.

    Raises UserError for a server that cannot be reached, a file that is not what it should be, and
    a disk that has no room for all of them.
    """
    files = choose(read_table(config.table), config.what)
    out = Path(config.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(out)
    try:
        record = Record(out)
        missing = [file for file in files if not is_there(out, file, record, config.check)]
        retry = RetryPolicy(config.timeout, config.attempts)
        try:
            sources = [find_source(file, config.mirror, retry) for file in missing]
            check_room(out, missing, sources)
            for file, source in zip(missing, sources, strict=True):
                fetch(out, file, source, record, retry)
        except Unreachable as error:
            raise UserError(without_net(str(error), out, files)) from error
        for file in files:
            unpack(out, file, record)
    finally:
        os.close(lock)
    print(f"{out}: all files of {', '.join(config.what)}")


def is_there(out: Path, file: PublicFile, record: Record, check: bool) -> bool:
    """Whether a file is there and sound; one that somebody has put there is recorded.

    Raises UserError for one that is not what it should be.
    """
    path, known = out / file.path, record[file.path]
    if not path.is_file():
        return bool(file.unpack and known.get("unpacked") and (out / file.unpack).is_dir())
    size = file.bytes or known.get("bytes")
    stat = path.stat()
    if known and not check and (stat.st_size, stat.st_mtime_ns) == (size, known.get("mtime_ns")):
        return True
    digest, who = known_digest(file, known.get("hub_sha256"), known.get("sha256"))
    try:
        found = check_file(path, file.path, size, digest, who)
    except ContentError as error:
        raise UserError(f"{error}; remove it, and run this again") from error
    facts = {} if known else {"url": "put there by hand", "known_from": who or "nobody"}
    record.write(file.path, bytes=stat.st_size, sha256=found, mtime_ns=stat.st_mtime_ns, **facts)
    if not known:
        print(f"{path} is there already: sha256 {found}, known from {who or 'nobody'}")
    return True


def find_source(file: PublicFile, mirror: str, retry: RetryPolicy) -> Source:
    """Where a file comes from, with its length where the server says it. Raises Unreachable."""
    if file.hub and not mirror:
        source = find_on_hub(file.hub, retry)
    else:
        url = f"{mirror.rstrip('/')}/{file.path}" if mirror else file.url
        source = Source(url, {})
        source.bytes = file.bytes or remote_size(source, retry)
        return source
    if file.bytes and source.bytes not in (None, file.bytes):
        raise UserError(
            f"{source.url} has {source.bytes} bytes; the table says {file.bytes}: it is another"
            " file; correct this with table=FILE"
        )
    source.bytes = file.bytes or source.bytes
    return source


def check_room(out: Path, files: list[PublicFile], sources: list[Source]) -> None:
    """UserError if the files do not fit on the disk; a zip is checked again when it is unpacked."""
    needed = 0
    for file, source in zip(files, sources, strict=True):
        partial = partial_of(out / file.path)
        there = partial.stat().st_size if partial.exists() else 0
        needed += max(0, (source.bytes or file.about_mb * 10**6) - there)
    free = free_bytes(out) - SPARE_BYTES
    if files and needed > free:
        raise UserError(
            f"{out} has room for {max(0, free) / 1e9:.1f} GB, and {needed / 1e9:.1f} GB are to be"
            " downloaded; make room, or choose another out="
        )


def fetch(out: Path, file: PublicFile, source: Source, record: Record, retry: RetryPolicy) -> None:
    """Download one file and record it. UserError if it is wrong at the second attempt too."""
    path, known = out / file.path, record[file.path]
    digest, who = known_digest(file, source.sha256, known.get("sha256"))
    shown, size = without_secrets(source.url), source.bytes
    print(f"{shown}: {size / 1e6:.1f} MB" if size else f"{shown}: length unknown", flush=True)
    partial = partial_of(path)
    before = partial.stat().st_size if partial.exists() else 0
    progress = Progress(max(1, ((size or 0) - before) // 10**6), "MB")
    counted = [0, 0]  # bytes, and those of whole MB that were reported

    def count(new: int) -> None:
        counted[0] += new
        whole = (counted[0] - counted[1]) // 10**6
        if whole:
            counted[1] += whole * 10**6
            progress.add(count=whole)

    for attempt in (1, 2):
        transfer(source, path, retry, count)
        try:
            found = check_file(partial, file.path, size, digest, who)
            break
        except ContentError as error:
            partial.unlink()
            if attempt == 2:
                advice = "the server has something else"
                if who.startswith("downloads.json"):
                    advice = f"it has changed: if you want the new one, remove {record.path}"
                raise UserError(f"{shown}: {error}; {advice}") from error
    partial.with_suffix(".partial.json").unlink(missing_ok=True)
    os.replace(partial, path)
    if not digest:
        print(f"nobody has published the sha256 of {path.name}; recorded: {found}")
    stat = path.stat()
    record.write(
        file.path,
        url=shown,
        bytes=stat.st_size,
        sha256=found,
        mtime_ns=stat.st_mtime_ns,
        known_from=who or "nobody",
        unpacked=None,
        downloaded=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **({"hub_sha256": source.sha256} if source.sha256 else {}),
    )


def unpack(out: Path, file: PublicFile, record: Record) -> None:
    """Unpack a zip, unless this very one is unpacked already."""
    if not file.unpack:
        return
    folder, known = out / file.unpack, record[file.path]
    if known.get("unpacked") == known.get("sha256") and folder.is_dir():
        return
    record.write(file.path, unpacked=None)
    count = unpack_json(out / file.path, folder)
    record.write(file.path, unpacked=known["sha256"])
    print(f"{folder}: {count} files")


def without_net(problem: str, out: Path, files: list[PublicFile]) -> str:
    """What to do where a server is not reached, such as on a machine without the net."""
    lacking = [file for file in files if not (out / file.path).exists()]
    places = "; ".join(f"{public_place(file)} -> {out / file.path}" for file in lacking)
    return (
        f"{problem}; without the net: put these files there and run this again, or name a folder or"
        f" server that has them with mirror=: {places}"
    )


def public_place(file: PublicFile) -> str:
    if not file.hub:
        return file.url
    kind = {"dataset": "datasets/", "space": "spaces/"}.get(file.hub.get("type", ""), "")
    revision = file.hub.get("revision", "main")
    return f"https://huggingface.co/{kind}{file.hub['repo']}/resolve/{revision}/{file.hub['file']}"


if __name__ == "__main__":
    launch(Download, main)
