"""Checksums of files, taken once a process: a run opens the same shard again and again.

A file that is written again has another time of change or another inode, and is read again.
"""

from __future__ import annotations

import os

import xxhash

BLOCK_BYTES = 1 << 22
known: dict[tuple[int, int, int, int], str] = {}  # identity of a file -> its xxh3


def checksum_once(descriptor: int) -> str:
    """xxh3 (64 bit, hex) of an open file; it is read only where this process has not done so."""
    found = known.get(identity(descriptor))
    if found is None:
        before = identity(descriptor)
        found = checksum(descriptor)
        if identity(descriptor) == before:  # else somebody writes it
            known[before] = found
    return found


def remember_checksum(descriptor: int, xxh3: str) -> None:
    """Say what the checksum of a file is that this process has just written."""
    known[identity(descriptor)] = xxh3


def identity(descriptor: int) -> tuple[int, int, int, int]:
    about = os.fstat(descriptor)
    return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size


def checksum(descriptor: int) -> str:
    digest, buffer, offset = xxhash.xxh3_64(), memoryview(bytearray(BLOCK_BYTES)), 0
    while count := os.preadv(descriptor, [buffer], offset):
        digest.update(buffer[:count])
        offset += count
    return digest.hexdigest()
