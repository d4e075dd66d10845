"""Says what a data set holds: `python -m data_prep.info data=FOLDER_OR_URL`.

    manifest.json ──> splits, sizes, how it was made ──┐
    names in the first shard of each split ────────────┴──> lines

Only the manifest and one shard of each split are opened; `cjepa verify` reads everything.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import option
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.shard_reader import ShardReader

LETTERS = {"d": "descriptive", "e": "explanatory", "p": "predictive", "c": "counterfactual"}
NAMES = {
    "json": "annotations",
    "questions.json": "questions",
    "truth.npz": "ground truth",
    "worlds.npz": "counterfactual worlds",
    "match.npz": "matches",
}


@dataclass
class Info:
    """Print what a data set holds: splits, shapes, questions, ground truth, how it was made."""

    data: str = option(MISSING, "folder or URL of slot shards", path=True)


def main(config: Info) -> None:
    """Print it. UserError if there is no data set."""
    print("\n".join(describe_dataset(config.data)))


def describe_dataset(folder: str) -> list[str]:
    """Lines about a data set. Raises UserError if it cannot be read."""
    manifest = Manifest.load(folder)
    entries = [entry for shards in manifest.splits.values() for entry in shards]
    size = sum(entry.bytes for entry in entries)
    lines = [
        f"{folder}: {len(entries)} shards, {size / 1e6:.1f} MB",
        f"videos of {manifest.frames} frames, {manifest.slots} slots, {manifest.slot_dim}"
        f" {manifest.dtype} numbers a slot, by encoder {manifest.encoder}",
        *(describe_split(folder, split, manifest) for split in manifest.splits),
        *describe_source(manifest.source),
    ]
    if lost := manifest.source.get("lost"):
        lines.append(f"lost in a repair: {json.dumps(lost)}")
    return lines


def describe_split(folder: str, split: str, manifest: Manifest) -> str:
    """The videos of a split, its questions, and the members of the first video."""
    shards = manifest.shards(split)
    text = f"  {split}: {manifest.count(split)} videos in {len(shards)} shards"
    letters: Counter[str] = Counter()
    for entry in shards:
        for types in entry.question_types:
            letters.update(types)
    if letters:
        kinds = ", ".join(f"{letters[k]} {name}" for k, name in LETTERS.items() if letters[k])
        text += f"; questions: {kinds}"
    if shards and shards[0].keys:
        with ShardReader(folder, split, shards[0]) as shard:
            members = shard.members[shards[0].keys[0]]
        held = [NAMES[name] for name in NAMES if name in members]
        text += f"; its first video has {', '.join(held) or 'slots only'}"
    return text


def describe_source(source: dict[str, Any]) -> list[str]:
    """How the data set was made, and of what: a line for each data set behind it."""
    lines: list[str] = []
    of: Any = source
    indent = ""
    while isinstance(of, dict) and of:
        plain = {n: v for n, v in of.items() if not isinstance(v, (dict, list)) and v != ""}
        about = ", ".join(f"{name}={value}" for name, value in plain.items() if name != "made_by")
        lines.append(f"{indent}made by {of.get('made_by', 'an unknown program')}: {about:.400}")
        of, indent = of.get("of") or of.get("data_source"), indent + "  of: "
    return lines


if __name__ == "__main__":
    launch(Info, main)
