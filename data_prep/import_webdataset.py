"""Imports slots from webdataset shards that others have made.

    FOLDER/<split>/*.tar, *.tar.gz                 the split is found as import_arrays does
    train-000000.tar                               or by the name of the shard, here train
    https://HOST/{train,val}/{000000..000009}.tar  a URL, as webdataset writes several

    tar ──headers──> {sample: {member: place}} ──"slots.npy", or member=──> videos
                                               ──"questions.json", "json"──> questions, annotations

Names mean what they mean to webdataset: a sample is what is before the first dot of a file's name.
Its tar reader is not used: it ends in silence at a shard that was cut, and reads members whole.
Plain tars are read in place; what is compressed or remote is first copied to a file without a name
beside `out`.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import tempfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from omegaconf import MISSING
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import option
from cjepa_dist.data.format.archive import open_zip, read_members
from cjepa_dist.data.format.dtypes import to_float32, to_native
from cjepa_dist.data.format.manifest_checks import MOST_VIDEO_BYTES
from cjepa_dist.data.format.sample import ANNOTATION, QUESTIONS, SLOTS
from cjepa_dist.data.format.storage import (
    CHUNK_BYTES,
    DEFAULT_RETRY,
    is_remote,
    stream_remote,
)
from cjepa_dist.data.format.tar import Extent, MemberFile
from cjepa_dist.data.format.tar_members import TarError, tar_members
from cjepa_dist.errors import UserError
from data_prep.annotations import SceneMetadata
from data_prep.array_files import MOST_NPY_HEADER, read_npy_header
from data_prep.catalogue import VideoCatalogue
from data_prep.import_arrays import KNOWN_SPLITS, find_split
from data_prep.importer import ImportOptions, import_videos

SUFFIX = re.compile(r"\.(tar|tar\.gz|tgz)$")
MOST_SHARD = 64 << 30  # bytes of a compressed or remote shard, unpacked
MOST_JSON = 16 << 20
MOST_SAMPLES = 10**6


@dataclass
class ImportWebdataset(ImportOptions):
    """Turn webdataset shards of slots, made by others, into slot shards.

    Keys are like 0_pixels or video_00000. A run that was stopped resumes after its last full shard.
    """

    source: str = option(
        MISSING, "folder of .tar or .tar.gz, one such file, or a URL with {braces}", path=True
    )
    member: str = option(
        SLOTS, "member that holds the slots: NAME.npy, or NAME.npz with one array or `slots`"
    )
    split: str = option("", "the split of all videos; empty = by names of folders and shards")


@dataclass(frozen=True)
class Member:
    """A file in a tar, or in a copy of a tar; `label` names it in messages."""

    path: Path
    extent: Extent
    label: str

    def __str__(self) -> str:
        return self.label

    def read_bytes(self, most: int = MOST_JSON) -> bytes:
        """Its bytes. Raises UserError for more than `most`, and if it cannot be read."""
        if self.extent.length > most:
            raise UserError(f"{self.label} has more than {most >> 20} MiB")
        try:
            with open(self.path, "rb") as file:
                return os.pread(file.fileno(), self.extent.length, self.extent.offset)
        except OSError as error:
            raise UserError(f"{self.label} cannot be read: {error.strerror}") from error


def main(config: ImportWebdataset) -> None:
    """Write the data set. UserError for what is no whole tar, and for slots in a pickle."""
    if not config.member.endswith((".npy", ".npz")):
        raise UserError(
            f"member={config.member}: must end in .npy or .npz; pickles (.pth, .pyd) are read by"
            " cjepa import-pickle, from a file of their own"
        )
    catalogue = VideoCatalogue(config.source)
    metadata = SceneMetadata(config.questions, config.annotations)
    facts: dict[str, Any] = {"member": config.member, "split": config.split}
    out = Path(config.out).absolute().parent
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as copies:
            shards = find_shards(config.source)
            for shard in shards:
                add_shard(config, catalogue, metadata, shard, copies, facts)
            local = [shard for shard in shards if isinstance(shard, Path)]
            import_videos(
                config,
                catalogue,
                local,
                "data_prep.import_webdataset",
                metadata=metadata,
                facts=facts,
            )
    except OSError as error:
        raise UserError(f"{config.source}: {error}") from error


def find_shards(source: str) -> list[Path] | list[str]:
    """All shards of a folder, a file, or a URL with braces."""
    if is_remote(source):
        try:
            return expand_urls(source)
        except Exception as error:  # of braceexpand and of its own asserts
            raise UserError(f"source={source:.200}: {error}") from error
    if not (folder := Path(source)).is_dir():
        return [folder]
    found = [path for path in folder.rglob("*") if SUFFIX.search(path.name.lower())]
    found = sorted(path for path in found if not path.name.startswith("._"))  # of macOS
    if not found:
        raise UserError(f"source={folder}: there is no .tar or .tar.gz in it")
    return found


def split_names(config: ImportWebdataset, shard: Path | str) -> tuple[str, ...]:
    """What of a shard's place may name its split: its folders, and its name without a number."""
    *folders, name = str(shard).split("/")
    if isinstance(shard, Path):
        root = Path(config.source)
        folders = list(shard.relative_to(root).parts[:-1]) if root.is_dir() else []
    stem = SUFFIX.sub("", name.lower())
    words = [word for word in re.split(r"[^a-z]+", stem) if word in KNOWN_SPLITS]
    stem = words[0] if words else re.sub(r"[-_.]?\d*$", "", stem)
    return (*folders[-1:], *([stem] if stem else []))


def add_shard(
    config: ImportWebdataset,
    catalogue: VideoCatalogue,
    metadata: SceneMetadata,
    shard: Path | str,
    copies: BinaryIO,
    facts: dict[str, Any],
) -> None:
    """Add the videos of a shard. Copies it to the end of `copies` if it can't be read in place."""
    names = split_names(config, shard)
    path, start, size = place_of(shard, copies, facts)
    for key, members in read_samples(path, start, size, str(shard)).items():
        *groups, last = key.split("/")
        slots = members.get(config.member.lower())
        if slots is None:
            other = any(name.endswith(("npy", "npz", "pth", "pyd", "pkl")) for name in members)
            if other:
                has = ", ".join(sorted(members))[:100]
                catalogue.faults.add(f"{shard}, {key}", f"has no {config.member}; it has {has}")
            continue
        split = config.split or find_split(Path(str(shard)), names, groups)
        try:
            read, shape, dtype = open_slots(slots)
        except (ValueError, OSError, UserError) as error:
            catalogue.faults.add(slots.label, " ".join(str(error).split())[:300])
            continue
        video = catalogue.add(split, last, shape, dtype, read)
        if video is not None:
            annotation, questions = members.get(ANNOTATION), members.get(QUESTIONS)
            metadata.add_stored(video.scene, annotation, questions, catalogue.faults)


def place_of(shard: Path | str, copies: BinaryIO, facts: dict[str, Any]) -> tuple[Path, int, int]:
    """(file, first byte, end) of a shard as a plain tar."""
    copied = Path(f"/proc/self/fd/{copies.fileno()}")
    if isinstance(shard, str):
        digest = xxhash.xxh3_64()
        start = copies.seek(0, os.SEEK_END)
        for chunk in stream_remote(shard, None, DEFAULT_RETRY):
            digest.update(chunk)
            copies.write(chunk)
            if copies.tell() - start > MOST_SHARD:
                raise UserError(f"{shard} has more than {MOST_SHARD >> 30} GiB")
        facts.setdefault("fetched", []).append(digest.hexdigest())
        path, end = copied, copies.tell()
    else:
        path, start, end = shard, 0, shard.stat().st_size
    copies.flush()
    with open(path, "rb") as file:
        if os.pread(file.fileno(), 2, start) != b"\x1f\x8b":
            return path, start, end
        packed = MemberFile(file.fileno(), Extent(start, end - start))
        return copied, *unpack(io.BufferedReader(packed, CHUNK_BYTES), copies, str(shard))


def unpack(file: io.BufferedReader, copies: BinaryIO, label: str) -> tuple[int, int]:
    """Unpack a gzip file to the end of `copies`: its first byte there, and its end."""
    start = copies.seek(0, os.SEEK_END)
    try:
        with gzip.GzipFile(fileobj=file) as content:
            while chunk := content.read(CHUNK_BYTES):
                copies.write(chunk)
                if copies.tell() - start > MOST_SHARD:
                    raise UserError(f"{label} unpacks to more than {MOST_SHARD >> 30} GiB")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{label} cannot be unpacked: {error}") from error
    copies.flush()
    return start, copies.tell()


def read_samples(path: Path, start: int, end: int, label: str) -> dict[str, dict[str, Member]]:
    """{key: {member: place}} of a tar, by webdataset's rule for names, whatever their order."""
    samples: dict[str, dict[str, Member]] = {}
    with open(path, "rb") as file:
        try:
            for name, extent in tar_members(file.fileno(), end, start):
                key, member = base_plus_ext(name)
                if key is None or name.startswith("__") or key.rpartition("/")[2] == "":
                    continue
                found = samples.setdefault(key, {})
                if member.lower() in found:
                    raise TarError(f"it holds {name} twice")
                found[member.lower()] = Member(path, extent, f"{label}, {name}"[:300])
                if len(samples) > MOST_SAMPLES:
                    raise TarError(f"it holds more than {MOST_SAMPLES} samples")
        except TarError as error:
            raise UserError(f"shard {label} is no whole tar: {error}") from None
    return samples


def open_slots(member: Member) -> tuple[Any, tuple[int, ...], str]:
    """(read, shape, dtype) of slots; only their header is read. ValueError for no array."""
    if member.extent.length > MOST_VIDEO_BYTES + MOST_NPY_HEADER:
        raise ValueError(f"has more than {MOST_VIDEO_BYTES >> 20} MiB, and is no video")
    with open(member.path, "rb") as file:
        whole = io.BufferedReader(MemberFile(file.fileno(), member.extent), MOST_NPY_HEADER)
        inner = ""
        try:
            if member.label.endswith(".npz"):
                with open_zip(whole) as archive:
                    names = archive.namelist()
                    inner = "slots.npy" if "slots.npy" in names else names[0] if names else ""
                    if not inner or (len(names) > 1 and inner != "slots.npy"):
                        raise ValueError(f"holds {len(names)} arrays, none of them named slots")
                    content = read_members(archive, [inner], MOST_VIDEO_BYTES + MOST_NPY_HEADER)
                    shape, _, dtype = read_npy_header(io.BytesIO(content[inner]))
            else:
                shape, _, dtype = read_npy_header(whole)
        except (ValueError, OSError):
            raise
        except Exception as error:  # of numpy's parser: tokenize, ast, ...
            raise ValueError(f"is no array: {type(error).__name__}") from error
    bits = dtype == np.uint16  # of bfloat16, which .npy does not know
    return partial(read_slots, member, inner), shape, "bfloat16" if bits else dtype.name


def read_slots(member: Member, inner: str) -> np.ndarray:
    """The slots of a member that `open_slots` has checked; UserError if they are damaged."""
    content = member.read_bytes(MOST_VIDEO_BYTES + MOST_NPY_HEADER)
    try:
        if inner:
            with open_zip(io.BytesIO(content)) as archive:
                content = read_members(archive, [inner], MOST_VIDEO_BYTES + MOST_NPY_HEADER)[inner]
        file = io.BytesIO(content)
        shape, fortran, dtype = read_npy_header(file)
        array = np.frombuffer(content, dtype, offset=file.tell())
        array = to_native(array.reshape(shape, order="F" if fortran else "C"))
        return to_float32(array) if array.dtype == np.uint16 else array
    except Exception as error:
        raise UserError(f"{member.label} is damaged: {type(error).__name__}: {error}") from error


if __name__ == "__main__":
    launch(ImportWebdataset, main)
