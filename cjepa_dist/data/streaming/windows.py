"""Windows of frames from a split that does not fit in memory, or is elsewhere (`blocks.py`).

held: shard ──> runs of its videos ──gather(ids)──> slots (B, T, S, D) as stored
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cjepa_dist.data.format.frame_order import runs
from cjepa_dist.data.format.reader import ShardReader, select_shards
from cjepa_dist.data.labels import shard_presence
from cjepa_dist.data.streaming.prefetcher import ShardPrefetcher
from cjepa_dist.data.streaming.shard_sampler import stretches
from cjepa_dist.data.windows import Windows


@dataclass
class Held:
    """A shard's videos in memory: their runs (`phases.py`), present (n, frames, S) bool or None."""

    runs: np.ndarray
    present: np.ndarray | None


class StreamingWindows(Windows, ShardPrefetcher[Held]):
    """All windows of a split (or of its first `videos`), a few shards at a time; `reading` is as of `Blocks`."""

    def __init__(
        self,
        folder: str | Path,
        split: str,
        *,
        history_frames: int,
        pred_frames: int,
        frameskip: int,
        horizon: int = 1,
        videos: int = 0,
        **reading: Any,
    ) -> None:
        super().__init__(
            folder,
            split,
            history_frames=history_frames,
            pred_frames=pred_frames,
            frameskip=frameskip,
            horizon=horizon,
        )
        entries = list(select_shards(self.manifest, split, videos))
        ShardPrefetcher.__init__(
            self,
            folder,
            split,
            entries,
            [len(keys) * self.starts for _, keys in entries],
            **reading,
        )

    def gather(self, ids: np.ndarray, sample: np.ndarray) -> dict[str, torch.Tensor]:
        """The windows `ids` (B,), as `ready` gave them; `sample` (B,) is handed on. Keys as of `Windows.batch`."""
        video, start = np.divmod(ids, self.starts)
        shards = self.lanes.shard(ids)
        gathered = np.empty(len(ids), self.run)
        present = np.empty((len(ids), len(self.steps), self.shape[1]), bool)
        shown = True
        for begin, end in stretches(shards.tolist()):
            held = self.held[int(shards[begin])].result()
            v, s = (
                video[begin:end] - self.lanes.first[shards[begin]] // self.starts,
                start[begin:end],
            )
            gathered[begin:end] = held.runs[self.places(v, s)]
            if held.present is None:
                shown = False
            else:
                present[begin:end] = held.present[v[:, None], s[:, None] + self.steps]
        return self.batch(self.tensor(gathered), present if shown else None, sample)

    def hold(self, content: ShardReader, number: int) -> Held:
        keys = self.entries[number][1]
        slots = content.stack(keys, self.manifest, self.phases)
        return Held(runs(slots, self.run), shard_presence(content, keys, self.manifest))
