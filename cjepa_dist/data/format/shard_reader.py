"""Reads one shard by its tar headers, checked against the manifest.

One `pread` a header and one for each member that is wanted, so ground truth (which can be far
larger than the slots) costs nothing where it is not needed. What webdataset silently accepts (an
early end, a bad header, a missing sample) is an error that names shard and key.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.data.format.archive import open_zip, read_members
from cjepa_dist.data.format.checked_files import checksum_once
from cjepa_dist.data.format.dtypes import all_finite, storage_dtype
from cjepa_dist.data.format.manifest import Manifest, ShardEntry
from cjepa_dist.data.format.sample import SLOTS
from cjepa_dist.data.format.shard_cache import open_remote_shard
from cjepa_dist.data.format.storage import (
    DEFAULT_RETRY,
    RetryPolicy,
    is_remote,
    join,
    local_copy,
)
from cjepa_dist.data.format.tar import (
    Extent,
    MemberFile,
    parse_npy,
    parse_npy_header,
)
from cjepa_dist.data.format.tar_members import TarError, tar_members
from cjepa_dist.errors import UserError


class ShardReader:
    """An open shard, checked against its manifest entry; a context manager. Reads by offset.

    UserError on opening if the file is missing, has another length, is not a valid tar from end to
    end, or holds other keys than the manifest says.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        entry: ShardEntry,
        *,
        check_bytes: bool = False,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """`check_bytes`: compare its xxh3 with the manifest's, as always for a remote shard.

        Once a process and file: see checked_files.py.
        """
        remote = is_remote(folder)
        place = folder if remote else local_copy(folder)
        self.path = join(place, split, entry.name)
        if remote:
            self.descriptor = open_remote_shard(self.path, entry.bytes, entry.xxh3, retry)
        else:
            try:
                self.descriptor = os.open(self.path, os.O_RDONLY)
            except OSError as error:
                raise UserError(
                    f"shard {self.path} cannot be opened ({error.strerror}); "
                    "restore it or make the data set again"
                ) from error
        try:
            size = os.fstat(self.descriptor).st_size
            if size != entry.bytes:
                what = "truncated" if size < entry.bytes else "longer than written"
                raise UserError(
                    f"shard {self.path} is {what}: {size} bytes, the manifest says "
                    f"{entry.bytes}; run data_prep.verify"
                )
            if check_bytes and not remote and checksum_once(self.descriptor) != entry.xxh3:
                raise UserError(
                    f"shard {self.path} is damaged: its xxh3 is not the manifest's; "
                    "restore it, or make the data set again"
                )
            self.members = self.scan(size)
            self.check_keys(entry.keys)
        except BaseException:
            os.close(self.descriptor)
            raise

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.descriptor)

    def scan(self, size: int) -> dict[str, dict[str, Extent]]:
        """{key: {member: extent}} from the tar headers alone.

        Members may come in any order, and from any tar writer (tar_members.py).
        """
        members: dict[str, dict[str, Extent]] = {}
        try:
            for name, extent in tar_members(self.descriptor, size):
                key, _, member = name.partition(".")
                if member in members.setdefault(key, {}):
                    raise TarError(f"it holds {name} twice")
                members[key][member] = extent
        except TarError as error:
            raise UserError(f"shard {self.path} is damaged {error}; run data_prep.verify") from None
        return members

    def check_keys(self, expected: list[str]) -> None:
        """UserError unless the samples are those of the manifest, in any order.

        Files of no sample, such as a README, do not matter.
        """
        if list(self.members) == expected:
            return
        known = set(expected)
        missing = [key for key in expected if key not in self.members]
        extra = [key for key in self.members if key not in known and SLOTS in self.members[key]]
        problem = ""
        if missing:
            problem = f"lacks key {missing[0]}"
        elif extra:
            problem = f"holds key {extra[0]}, unknown to the manifest"
        elif len(known) < len(expected):
            problem = "has a key twice in the manifest"
        if problem:
            raise UserError(
                f"shard {self.path} {problem}: the manifest says {len(expected)} samples;"
                " run data_prep.verify"
            )

    def read_slots(
        self,
        key: str,
        manifest: Manifest,
        into: np.ndarray | None = None,
        frame_order: np.ndarray | None = None,
    ) -> np.ndarray:
        """Slots (T, S, D) of a video in the stored type.

        Read into `into` if given, the frames in `frame_order` (T,) if given. UserError if their
        shape or type is wrong, or if they are not finite.
        """
        extent = self.members[key].get(SLOTS)
        if extent is None:
            raise UserError(f"shard {self.path}, key {key}: has no {SLOTS}")
        try:
            shape, dtype, start = parse_npy_header(
                os.pread(self.descriptor, min(extent.length, 128), extent.offset)
            )
        except ValueError as error:
            raise UserError(f"shard {self.path}, key {key}: {SLOTS} is damaged ({error})") from None
        if shape != manifest.shape or dtype != storage_dtype(manifest.dtype):
            raise UserError(
                f"shard {self.path}, key {key}: slots are {dtype} {shape}, "
                f"the manifest says {manifest.dtype} {manifest.shape}"
            )
        array = np.empty(shape, dtype) if into is None or frame_order is not None else into
        if (
            start + array.nbytes != extent.length
            or os.preadv(self.descriptor, [array.data], extent.offset + start) != array.nbytes
        ):
            raise UserError(
                f"shard {self.path}, key {key}: {SLOTS} has {extent.length} bytes, "
                f"{start + array.nbytes} expected"
            )
        if not all_finite(array):
            raise UserError(
                f"shard {self.path}, key {key}: a slot holds a value that is not finite "
                "(NaN or infinity)"
            )
        if frame_order is None:
            return array
        # mode="raise" would copy to a buffer first.
        return np.take(array, frame_order, axis=0, out=into, mode="clip")

    def read_videos(
        self, keys: Sequence[str], manifest: Manifest, frame_order: np.ndarray | None = None
    ) -> np.ndarray:
        """Slots (n, T, S, D) of the videos `keys`, as `read_slots`."""
        array = np.empty((len(keys), *manifest.shape), storage_dtype(manifest.dtype))
        for key, video in zip(keys, array):
            self.read_slots(key, manifest, into=video, frame_order=frame_order)
        return array

    def read_bytes(self, key: str, member: str) -> bytes | None:
        """A member as it is stored; None if the sample has none."""
        extent = self.members[key].get(member)
        if extent is None:
            return None
        return os.pread(self.descriptor, extent.length, extent.offset)

    def read_json(self, key: str, member: str, fields: Sequence[str] = ()) -> dict[str, Any] | None:
        """A JSON member; None if the sample has none. UserError if it is damaged.

        `fields`: only these, by `read_json_field`; empty = all.
        """
        content = self.read_bytes(key, member)
        if content is None:
            return None
        if fields:
            return {name: self.read_json_field(key, member, name) for name in fields}
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"shard {self.path}, key {key}: {member} is not JSON ({error})"
            ) from None

    def read_json_field(self, key: str, member: str, name: str) -> Any:
        """One top-level field of a JSON member, without parsing the others; None if absent.

        Most of an annotation is the motion.
        """
        text = (self.read_bytes(key, member) or b"").decode(errors="replace")
        found = re.search(rf'"{name}":\s*', text)
        try:
            return None if found is None else json.JSONDecoder().raw_decode(text, found.end())[0]
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"shard {self.path}, key {key}: {name} in {member} is not JSON ({error})"
            ) from None

    def read_arrays(
        self, key: str, member: str, names: Iterable[str] | None = None
    ) -> dict[str, np.ndarray] | None:
        """The arrays of an npz member, or those of `names` that it has; None without the member.

        UserError if it is damaged (CRC).
        """
        extent = self.members[key].get(member)
        if extent is None:
            return None
        try:
            with open_zip(MemberFile(self.descriptor, extent)) as archive:
                found = archive.namelist()
                wanted = (
                    found
                    if names is None
                    else [f"{name}.npy" for name in names if f"{name}.npy" in found]
                )
                content = read_members(archive, wanted)
                return {name.removesuffix(".npy"): parse_npy(content[name]) for name in wanted}
        except (ValueError, KeyError) as error:
            raise UserError(
                f"shard {self.path}, key {key}: {member} is damaged ({error})"
            ) from None
