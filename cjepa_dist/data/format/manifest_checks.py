"""What a manifest may hold: names that we write, numbers in their range, lists of one length.

A manifest may come from anywhere, and what it names is opened, fetched and written. So every field
is checked before anything is done with it. The limits are in docs/reference/shard_format.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from cjepa_dist.data.format.dtypes import storage_dtype

MOST_MANIFEST_BYTES = 256 << 20
MOST_SHARD_BYTES = 1 << 40
MOST_SIZE = 10**6  # of each of frames, slots and slot_dim
MOST_VIDEO_BYTES = 256 << 20
SPLIT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
SHARD_NAME = re.compile(r"[0-9]{6,9}\.tar", re.ASCII)
KEY = re.compile(r"[A-Za-z0-9_-]{1,80}", re.ASCII)
KEYS = re.compile(rf"(?:{KEY.pattern}\n)*", re.ASCII)
XXH3 = re.compile(r"[0-9a-f]{16}", re.ASCII)


class ManifestError(ValueError):
    """A field of a manifest that is not what we write."""


def check_manifest(content: Mapping[str, Any]) -> None:
    """Raises ManifestError naming the first field of a manifest (as JSON) that does not fit."""
    expect(isinstance(content["encoder"], str), "encoder", "is no text")
    expect(isinstance(content["source"], dict), "source", "is no mapping")
    sizes = [content["frames"], content["slots"], content["slot_dim"]]
    for name, size in zip(("frames", "slots", "slot_dim"), sizes):
        check_int(size, 1, MOST_SIZE, name)
    expect(isinstance(content["dtype"], str), "dtype", "is no text")
    size = math.prod(sizes) * storage_dtype(content["dtype"]).itemsize
    expect(size <= MOST_VIDEO_BYTES, "frames x slots x slot_dim", "is more than 256 MiB a video")
    for name in ("empty_slot", "mean", "std"):
        if content.get(name) is not None:
            check_floats(content[name], sizes[2], name)
    expect(isinstance(content["splits"], dict), "splits", "is no mapping")
    for split, entries in content["splits"].items():
        check_split_name(split)
        expect(isinstance(entries, list), f"split {split}", "is no list of shards")
        for entry in entries:
            expect(isinstance(entry, dict), f"split {split}", "holds a shard that is no mapping")
            check_shard(entry, f"split {split}", size, sizes[2])
        names = [entry["name"] for entry in entries]
        expect(len(set(names)) == len(names), f"split {split}", "names a shard twice")


def check_shard(entry: Mapping[str, Any], split: str, video_bytes: int, slot_dim: int) -> None:
    name, keys = entry["name"], entry["keys"]
    if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
        raise ManifestError(f"{split} names a shard {name!r:.80}, not like 000000.tar")
    where = f"{split}, shard {name}"
    check_int(entry["bytes"], 0, MOST_SHARD_BYTES, f"{where}: bytes")
    check_int(entry["samples"], 0, 10**9, f"{where}: samples")
    checksum = entry["xxh3"]
    right = isinstance(checksum, str) and XXH3.fullmatch(checksum) is not None
    expect(right, f"{where}: xxh3", "is not 16 hexadecimal digits")
    expect(isinstance(keys, list), f"{where}: keys", "is no list")
    joined = "".join(f"{key}\n" for key in keys)
    right = KEYS.fullmatch(joined) is not None and joined.count("\n") == len(keys)
    if not right or not all(isinstance(key, str) for key in keys):
        bad = next(key for key in keys if not isinstance(key, str) or not KEY.fullmatch(key))
        raise ManifestError(f"{where} has a key {bad!r:.80}: letters, digits, _ and - are in keys")
    expect(len(keys) * video_bytes <= entry["bytes"], f"{where}: bytes", "is too few for its keys")
    for field in ("mean", "squared_deviations"):
        check_floats(entry[field], slot_dim, f"{where}: {field}")
    check_floats(entry["conversion_error"], 2, f"{where}: conversion_error")
    types = entry["question_types"]
    right = isinstance(types, list) and all(isinstance(letters, str) for letters in types)
    expect(right and len(types) in (0, len(keys)), f"{where}: question_types", "fits no keys")


def check_split_name(name: Any) -> None:
    """Raises ManifestError unless it is a name that a split may have."""
    if not isinstance(name, str) or not SPLIT_NAME.fullmatch(name):
        raise ManifestError(
            f"split name {name!r:.80}: must be 1 to 64 letters, digits and underscores, and begin"
            " with no digit"
        )


def check_int(value: Any, least: int, most: int, name: str) -> None:
    right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    expect(right, name, f"is no number from {least} to {most}")


def check_floats(values: Any, length: int, name: str) -> None:
    right = isinstance(values, list) and len(values) == length
    right = right and all(type(value) in (int, float) and abs(value) < math.inf for value in values)
    expect(right, name, f"is no list of {length} finite numbers")


def expect(right: bool, name: str, problem: str) -> None:
    if not right:
        raise ManifestError(f"{name} {problem}")
