"""The dataset of all windows of a split that does not fit in memory, or is remote.

loaded: shard ──> windows of its videos ──get_batch(ids)──> slots (B, T, S, D) as stored
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cjepa_dist.data.format.reader import select_shards
from cjepa_dist.data.format.shard_reader import ShardReader
from cjepa_dist.data.ground_truth import read_presence
from cjepa_dist.data.streaming.prefetcher import ShardPrefetcher
from cjepa_dist.data.streaming.shard_sampler import equal_ranges
from cjepa_dist.data.window_spec import WindowSpec, window_views
from cjepa_dist.data.windows import WindowDataset


@dataclass
class LoadedVideos:
    """A shard's videos in memory: `window_views` of them, and present (n, frames, S) bool."""

    views: np.ndarray
    present: np.ndarray | None


class StreamingWindows(WindowDataset, ShardPrefetcher[LoadedVideos]):
    """All windows of a split (or of its first `videos`), a few shards at a time.

    `reading`: the options of `ShardPrefetcher`.
    """

    def __init__(
        self, folder: str | Path, split: str, spec: WindowSpec, *, videos: int = 0, **reading: Any
    ) -> None:
        super().__init__(folder, split, spec)
        entries = list(select_shards(self.manifest, split, videos))
        sizes = [len(keys) * self.windows_per_video for _, keys in entries]
        ShardPrefetcher.__init__(self, folder, split, entries, sizes, **reading)

    def get_batch(self, ids: np.ndarray, sample: np.ndarray) -> dict[str, torch.Tensor]:
        """The windows `ids` (B,) that `prepare` returned; keys as in `WindowDataset.make_batch`."""
        video, start = np.divmod(ids, self.windows_per_video)
        shards = self.sampler.shard_of(ids)
        windows = np.empty(len(ids), self.window_dtype)
        present = np.empty((len(ids), len(self.frame_offsets), self.shape[1]), bool)
        has_presence = True
        for begin, end in equal_ranges(shards.tolist()):
            loaded = self.loaded[int(shards[begin])].result()
            first_video = self.sampler.first_id[shards[begin]] // self.windows_per_video
            v, s = video[begin:end] - first_video, start[begin:end]
            windows[begin:end] = loaded.views[self.view_index(v, s)]
            if loaded.present is None:
                has_presence = False
            else:
                present[begin:end] = loaded.present[v[:, None], s[:, None] + self.frame_offsets]
        return self.make_batch(self.to_tensor(windows), present if has_presence else None, sample)

    def load_shard(self, shard: ShardReader, number: int) -> LoadedVideos:
        keys = self.entries[number][1]
        slots = shard.read_videos(keys, self.manifest, self.frame_order)
        views = window_views(slots, self.window_dtype)
        return LoadedVideos(views, read_presence(shard, keys, self.manifest))
