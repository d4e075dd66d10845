"""Merges the parts of a data set: `python -m data_prep.merge out=DIR parts=DIR.parts`.

    DIR.parts/0 ... DIR.parts/7 ──same settings? each part once? no key twice?
      ──> shards linked, in order, renumbered ──> one manifest

Linked, not copied, where the file system can: the parts may be removed afterwards, the data set
keeps the bytes.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import option
from cjepa_dist.data.format import journal
from cjepa_dist.data.format.fingerprint import dataset_fingerprint, differences, redo_option
from cjepa_dist.data.format.manifest import MANIFEST_NAME, SKIPPED_NAME, Manifest, partial_folder
from cjepa_dist.data.format.statistics import set_statistics
from cjepa_dist.data.format.target import check_target
from cjepa_dist.data.format.writer import check_only_dataset, publish
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import file_checksum, fsync_path

LOST_NAME = "lost.json"  # in PART.bad, which `verify repair=true` puts beside the part


@dataclass
class Merge:
    """Make one data set of the parts that part=i/n made, unless `out` holds it already."""

    out: str = option(MISSING, "folder of slot shards to make", path=True)
    parts: Any = option(MISSING, "folder of parts, or a list of parts: [A,B,...]", path=True)
    redo: bool = redo_option()


def main(config: Merge) -> int:
    """Link the shards and write the manifest; the parts stay unchanged.

    Raises UserError for missing or overlapping parts, and for parts of other data sets.
    """
    parts = sort_parts(find_parts(config.parts))
    merged = merge_manifests(parts)
    out = Path(config.out).absolute()
    if config.redo and (out / MANIFEST_NAME).is_file():
        check_only_dataset(out)
    elif (out / MANIFEST_NAME).exists():
        if found := differences(described(Manifest.load(out)), described(merged)):
            raise UserError(
                f"{out} already holds something else: it differs in {', '.join(found)}; choose"
                " another out=, or set redo=true to replace it"
            )
        print(f"{out} already holds these parts")
        return 0
    else:
        out = check_target(out)
    folder = partial_folder(out)
    lock = journal.claim_folder(folder)
    try:
        journal.remove_files_except(folder, {folder / journal.JOURNAL_NAME})
        for split, entries in merged.splits.items():
            (folder / split).mkdir()
            sources = [
                (part / split / entry.name)
                for part, manifest in parts
                for entry in manifest.splits.get(split, [])
            ]
            for entry, source in zip(entries, sources, strict=True):
                link_shard(source, folder / split / entry.name, entry.bytes, entry.xxh3)
            fsync_path(folder / split)
        left_out = [part / SKIPPED_NAME for part, _ in parts if (part / SKIPPED_NAME).exists()]
        if left_out:
            (folder / SKIPPED_NAME).write_text("".join(path.read_text() for path in left_out))
        publish(merged, folder, out, redo=config.redo)
    finally:
        os.close(lock)
    if lost := merged.source.get("lost"):
        print(f"warning: {sum(lost.values())} videos were lost in repairs of the parts")
    print(
        f"{out}: {len(parts)} parts; "
        + ", ".join(f"{split} {merged.count(split)}" for split in merged.splits)
        + " videos"
    )
    return 0


def described(manifest: Manifest) -> dict[str, Any]:
    """What tells a merged data set from others."""
    return {"settings": manifest.source, **dataset_fingerprint(manifest)}


def find_parts(parts: Any) -> list[Path]:
    """The folders of the parts: those listed, or those in a folder.

    Raises UserError if there is none, or one is not finished.
    """
    if isinstance(parts, (list, tuple)):
        return [Path(str(part)) for part in parts]
    folder = Path(str(parts))
    found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [path for path in found if not (path / LOST_NAME).exists()]  # PART.bad of a repair
    if not found:
        raise UserError(
            f"parts={folder}: there is no part in it; make some with part=i/n out={folder}/i"
        )
    for path in found:
        if path.name.endswith(".partial"):
            raise UserError(f"part {path} is not finished; run its command again, or remove it")
    return found


def sort_parts(folders: list[Path]) -> list[tuple[Path, Manifest]]:
    """Parts 0 .. n-1 with their manifests.

    Raises UserError unless each part is there once, with the same settings and the same shape.
    """
    found: dict[int, tuple[Path, Manifest]] = {}
    expected: dict[str, Any] | None = None
    n = 0
    for folder in folders:
        manifest = Manifest.load(folder)
        which = manifest.source.get("part")
        if not which:
            raise UserError(f"{folder} is no part of a data set: it was not made with part=i/n")
        i, n = parse_part(which, folder)
        if i in found:
            raise UserError(
                f"{folder} and {found[i][0]} overlap: both are part {i}; remove one of them"
            )
        about = {
            "number of parts": n,
            "settings": shared_source(manifest),
            "encoder": manifest.encoder,
            "shape": list(manifest.shape),
            "dtype": manifest.dtype,
            "empty slot": manifest.empty_slot,
        }
        if expected is not None and (differ := differences(expected, about)):
            raise UserError(
                f"{folder} does not belong to {next(iter(found.values()))[0]}:"
                f" they differ in {', '.join(differ)}"
            )
        expected, found[i] = about, (folder, manifest)
    if missing := [i for i in range(n) if i not in found]:
        raise UserError(
            f"{len(missing)} of {n} parts are missing: {', '.join(map(str, missing))};"
            f" make them with part=i/{n}"
        )
    return [found[i] for i in range(n)]


def parse_part(which: Any, folder: Path) -> tuple[int, int]:
    """(i, n) of part "i/n". UserError for anything else, also for more parts than anybody makes."""
    found = (
        re.fullmatch(r"(\d{1,6})/(\d{1,6})", which, re.ASCII) if isinstance(which, str) else None
    )
    if found is None or int(found[1]) >= int(found[2]):
        raise UserError(
            f"{folder}/{MANIFEST_NAME} is damaged: source.part is {which!r:.40}, not i/n; make this"
            " part again"
        )
    return int(found[1]), int(found[2])


def shared_source(manifest: Manifest) -> dict[str, Any]:
    """What all parts have in common; "lost" is what a repair took from one of them."""
    return {name: v for name, v in manifest.source.items() if name not in ("part", "lost")}


def sum_lost(parts: list[tuple[Path, Manifest]]) -> dict[str, int]:
    """Videos that repairs took from the parts, by split."""
    lost: Counter[str] = Counter()
    for _, manifest in parts:
        lost.update(manifest.source.get("lost", {}))
    return dict(lost)


def merge_manifests(parts: list[tuple[Path, Manifest]]) -> Manifest:
    """The manifest of all parts: their shards in order, renumbered; statistics of all of them.

    Raises UserError for a key in two parts.
    """
    first = parts[0][1]
    source, lost = shared_source(first), sum_lost(parts)
    source |= {"lost": lost} if lost else {}
    merged = dataclasses.replace(first, source=source, splits={})
    where: dict[str, Path] = {}
    for folder, manifest in parts:
        for split, entries in manifest.splits.items():
            for entry in entries:
                for key in entry.keys:
                    if key in where:
                        raise UserError(f"{folder} and {where[key]} overlap: both have key {key}")
                    where[key] = folder
                together = merged.splits.setdefault(split, [])
                together.append(dataclasses.replace(entry, name=f"{len(together):06d}.tar"))
    set_statistics(merged)
    return merged


def link_shard(source: Path, target: Path, size: int, xxh3: str) -> None:
    """A hard link to a shard, or a copy on another file system. UserError if it is incomplete."""
    try:
        if source.stat().st_size != size:
            raise UserError(
                f"shard {source} has {source.stat().st_size} bytes, its manifest says {size};"
                " make this part again"
            )
    except OSError as error:
        raise UserError(
            f"shard {source} cannot be read: {error.strerror}; make this part again"
        ) from error
    try:
        os.link(os.path.realpath(source), target)  # not a link to a link, which can change
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        with open(target, "rb") as file:
            os.fsync(file.fileno())
        if file_checksum(target) != xxh3:
            raise UserError(
                f"shard {source} has changed since it was written; make this part again"
            ) from None


if __name__ == "__main__":
    launch(Merge, main)
