"""Unpacks a zip of JSON files: first beside its folder, then renamed, so that it is whole or not.

A zip from the net can name any path, hold links, and unpack to any size: limits are checked before
the first byte is written.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from pathlib import Path

from cjepa_dist.data.format.archive import check_member, open_zip
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import free_bytes
from cjepa_dist.runtime.progress import Progress

MOST_FILES = 100_000
MOST_FILE_BYTES = 64 << 20
MEMBER = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}/){0,4}[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
OURS_ALONE = "unpacking.txt"  # marks the temporary folder


def unpack_json(path: Path, folder: Path) -> int:
    """Unpack the .json files of a zip to `folder`, which is replaced; returns their number.

    Raises UserError for a damaged zip, one that holds what annotations never do, or a full disk.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        if not (partial / OURS_ALONE).is_file():
            raise UserError(f"{partial} is needed for unpacking, and holds something else")
        shutil.rmtree(partial)
    try:
        with open(path, "rb") as file, open_zip(file) as archive:
            members = checked_members(path, archive)
            needed, free = sum(member.file_size for member in members), free_bytes(folder)
            if needed > free:
                raise UserError(
                    f"{path} unpacks to {needed / 1e9:.1f} GB, and {folder.parent} has"
                    f" {free / 1e9:.1f} GB free; make room and run this again"
                )
            partial.mkdir(parents=True)
            (partial / OURS_ALONE).write_text("being unpacked\n")
            progress = Progress(len(members), "files")
            for member in members:
                target = partial / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))  # checks its CRC
                progress.add(member.file_size)
    except (ValueError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise damaged(path, str(error)) from error
    except Exception as error:
        if type(error).__module__ != "zlib":
            raise
        raise damaged(path, str(error)) from error
    (partial / OURS_ALONE).unlink()
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(partial, folder)
    return len(members)


def checked_members(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The .json files in a zip. ValueError, UserError for anything that may do harm."""
    members = [
        member
        for member in archive.infolist()
        if not member.is_dir() and not member.filename.startswith("__MACOSX/")
    ]
    if len(members) > MOST_FILES:
        raise damaged(path, f"it holds {len(members)} files, more than {MOST_FILES}")
    names: set[str] = set()
    for member in members:
        check_member(member)
        name = member.filename
        link = member.external_attr >> 16 & 0o170000 == 0o120000
        if link or not MEMBER.fullmatch(name) or name.lower() in names:
            raise damaged(path, f"it holds {name!r:.80}, a link, a path that leaves it, or twice")
        if member.file_size > MOST_FILE_BYTES:
            raise damaged(path, f"{name} unpacks to {member.file_size} bytes")
        names.add(name.lower())
    found = [member for member in members if member.filename.endswith(".json")]
    if not found:
        raise damaged(path, "it holds no .json file")
    return found


def damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged, or no zip of annotations: {reason}; remove it and run this again"
    )
