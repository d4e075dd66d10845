"""Checks slot shards against their manifest, and repairs a damaged data set.

    DIR ──verify_dataset──> faults, one line each
      ──repair=true──> DIR: the good shards and their manifest
                  └──> DIR.bad: the bad files, the old manifest, lost.json

Exit code 0: no faults, or repaired. 1: faults. 2: no data set, or no good shard.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import option
from cjepa_dist.data.format.manifest import MANIFEST_NAME, Manifest
from cjepa_dist.data.format.statistics import set_statistics
from cjepa_dist.data.format.verify import Fault, verify_dataset
from cjepa_dist.errors import UserError


@dataclass
class Verify:
    """Check a folder of slot shards: every file, checksum, key, shape and value."""

    data: str = option(MISSING, "folder of slot shards", path=True)
    processes: int = option(
        0, "processes; 0 = one per core that this process may use", least=0, most=4096
    )
    repair: bool = option(
        False, "move damaged files to DATA.bad and leave a data set of the good shards"
    )


def main(config: Verify) -> int:
    """Print the faults and a summary; returns 1 if faults remain."""
    folder = Path(config.data).absolute()
    faults = verify_dataset(folder, config.processes or len(os.sched_getaffinity(0)))
    for fault in faults:
        print(fault.text)
    manifest = Manifest.load(folder)
    if faults and config.repair:
        print(repair(folder, faults))
        manifest = Manifest.load(folder)
    size = sum(entry.bytes for entries in manifest.splits.values() for entry in entries)
    shards = sum(len(entries) for entries in manifest.splits.values())
    videos = ", ".join(f"{name} {manifest.count(name)}" for name in manifest.splits)
    verdict = (
        f"{len(faults)} faults" + (", repaired" if config.repair else "") if faults else "no faults"
    )
    print(
        f"{config.data}: {verdict}; videos: {videos}; {shards} shards, {size / 1e6:.1f} MB,"
        f" slots {manifest.shape} {manifest.dtype}"
    )
    return 1 if faults and not config.repair else 0


def repair(folder: Path, faults: list[Fault]) -> str:
    """Make `folder` a data set of its good shards. Nothing is deleted. Returns what was lost.

    The manifest is replaced first. If the repair stops after that, the bad files are extra files,
    and the next repair moves them. Raises UserError if no shard is good.
    """
    manifest, bad = Manifest.load(folder), {fault.path for fault in faults}
    splits, lost = {}, {}
    for split, entries in manifest.splits.items():
        good = [entry for entry in entries if folder / split / entry.name not in bad]
        if good:
            splits[split] = good
        if dropped := {
            entry.name: entry.keys for entry in entries if folder / split / entry.name in bad
        }:
            lost[split] = dropped
    if not splits:
        raise UserError(
            f"{folder}: no shard is good, so nothing was changed;"
            " restore the data set or make it again"
        )
    aside = unused_path(folder.with_name(f"{folder.name}.bad"))
    aside.mkdir()
    shutil.copy2(folder / MANIFEST_NAME, aside / MANIFEST_NAME)
    (aside / "lost.json").write_text(json.dumps(lost, indent=1))
    counts = {split: sum(map(len, shards.values())) for split, shards in lost.items()}
    before = manifest.source.get("lost", {})
    total = {split: before.get(split, 0) + counts.get(split, 0) for split in {**before, **counts}}
    source = {**manifest.source, "lost": total} if total else manifest.source
    repaired = dataclasses.replace(manifest, splits=splits, source=source)
    set_statistics(repaired)
    repaired.save(folder)
    for path in sorted(bad):
        if path.exists():
            (aside / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, aside / path.relative_to(folder))
    for split in manifest.splits.keys() - splits.keys():
        if (folder / split).is_dir():
            (folder / split).rmdir()
    losses = [
        f"{counts[split]} of {manifest.count(split)} samples of {split}{abbreviate_keys(shards)}"
        for split, shards in lost.items()
    ]
    where = f"{sum(map(len, lost.values()))} shards moved to {aside}"
    return f"{where}; lost: {'; '.join(losses) or 'no sample'}; lost.json there names all keys"


def unused_path(path: Path) -> Path:
    """`path`, or the first of path1, path2, ... that does not exist."""
    return next(
        p for i in itertools.count() if not (p := path.with_name(f"{path.name}{i or ''}")).exists()
    )


def abbreviate_keys(shards: dict[str, list[str]], count: int = 5) -> str:
    """ " (video_00003, ...)": the first keys of the shards."""
    keys = [key for named in shards.values() for key in named]
    return f" ({', '.join(keys[:count])}{', ...' if len(keys) > count else ''})"


if __name__ == "__main__":
    launch(Verify, main)
