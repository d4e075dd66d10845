"""Windows of frames from a split that does not fit in memory, or is elsewhere.

    position ──Lanes──> ids, the shards of this block and of the next
                             │ threads: open or fetch, compare with xxh3, check
                             v
                        held: shard ──> runs of its videos ──gather(ids)──> slots (B, T, S, D) as stored

In memory are the blocks in use and those that follow, no more; a run that goes on in the middle of an epoch reads these alone. What is
read when depends on nothing but the position, so nothing here has state to save, but the shards that were lost (`lost.py`).
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cjepa_dist.data.dtypes import stored
from cjepa_dist.data.fetch import PATIENT, Patience
from cjepa_dist.data.lanes import Block, Lanes, stretches
from cjepa_dist.data.lost import Lost
from cjepa_dist.data.phases import runs
from cjepa_dist.data.shards import Shard, take
from cjepa_dist.data.truth import shard_presence
from cjepa_dist.data.windows import Windows
from cjepa_dist.errors import UserError


@dataclass
class Held:
    """A shard's videos in memory: their runs (`phases.py`), present (n, frames, S) bool or None."""

    runs: np.ndarray
    present: np.ndarray | None


class StreamingWindows(Windows):
    """All windows of a split (or of its first `videos`), read a block of `shards` shards at a time, the next one beside the steps.

    `lanes`: how many blocks a global batch comes from (`lanes.py`); `workers` threads read. A shard that cannot be read, or is not what
    the manifest says, is a UserError when its turn comes; or `lost` says that the other shards of its block stand in for it.
    """

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
        shards: int = 2,
        lanes: int = 1,
        workers: int = 2,
        patience: Patience = PATIENT,
        lost: Lost | None = None,
    ) -> None:
        super().__init__(folder, split, history_frames=history_frames, pred_frames=pred_frames, frameskip=frameskip, horizon=horizon)
        self.folder, self.split, self.patience, self.lost = folder, split, patience, lost or Lost()
        self.entries = list(take(self.manifest, split, videos))
        self.lanes = Lanes([len(keys) * self.starts for _, keys in self.entries], shards=shards, lanes=lanes)
        self.held: dict[int, Future[Held]] = {}
        self.turn, self.adding, self.bytes_read = threading.Semaphore(workers), threading.Lock(), 0

    def __len__(self) -> int:
        """Samples an epoch."""
        return self.lanes.length

    def order(self, seed: int, position: int, count: int) -> np.ndarray:
        """Ids (count,) of the global batch that begins at `position`."""
        return self.lanes.order(seed, position, count)

    def ready(self, seed: int, position: int, ids: np.ndarray, part: slice) -> np.ndarray:
        """The ids of a process's part of that batch, lost ones replaced, once they are in memory; begins to read what comes next.

        UserError naming a shard that cannot be read, or is damaged.
        """
        blocks, following = self.lanes.blocks(seed, position, len(ids), part)
        now = [shard for block in dict.fromkeys(blocks) for shard in block.shards]
        later = [shard for block in following for shard in block.shards]
        self.held = {shard: held for shard, held in self.held.items() if shard in now or shard in later}
        crossing = len(set(blocks)) > len(following)  # from one block to the next: two are in memory, which is enough
        for shard in now if crossing else now + later:
            if shard not in self.held and not self.lost.at(self.name(shard), position):
                self.held[shard] = self.load(shard)
        return self.replaced(ids[part], blocks, position)

    def replaced(self, ids: np.ndarray, blocks: list[Block], position: int) -> np.ndarray:
        """`ids`, where those of a lost shard are others of their block: a function of which shards are lost, and of nothing else."""
        shards = self.lanes.shard(ids)
        gone = [shard for shard in np.unique(shards).tolist() if not self.there(shard, position)]
        ids = ids.copy()
        for row in np.flatnonzero(np.isin(shards, gone)):
            left = [shard for shard in blocks[row].shards if self.there(shard, position)]
            if not left:
                names = ", ".join(map(self.name, blocks[row].shards))
                raise UserError(f"all shards of a block are lost ({names}): none is left to stand in; restore them or raise reading.shards")
            ends = np.cumsum(self.lanes.sizes[left])
            place = (ids[row] - self.lanes.first[shards[row]]) % ends[-1]
            which = int(np.searchsorted(ends, place, side="right"))
            ids[row] = self.lanes.first[left[which]] + place - (ends[which] - self.lanes.sizes[left[which]])
        return ids

    def there(self, shard: int, position: int) -> bool:
        """Whether a shard of the block in use is in memory, which is waited for; or lost, which is noted."""
        if self.lost.at(self.name(shard), position):
            return False
        try:
            self.held[shard].result()
        except UserError as error:
            self.lost.add(self.name(shard), len(self.entries[shard][1]), position, error)
            return False
        return True

    def gather(self, ids: np.ndarray, sample: np.ndarray) -> dict[str, torch.Tensor]:
        """The windows `ids` (B,), as `ready` gave them; `sample` (B,) is handed on. Keys as of `Windows.batch`."""
        video, start = np.divmod(ids, self.starts)
        shards = self.lanes.shard(ids)
        gathered = np.empty(len(ids), self.run)
        present = np.empty((len(ids), len(self.steps), self.shape[1]), bool)
        shown = True
        for begin, end in stretches(shards.tolist()):
            held = self.held[int(shards[begin])].result()
            v, s = video[begin:end] - self.lanes.first[shards[begin]] // self.starts, start[begin:end]
            gathered[begin:end] = held.runs[self.places(v, s)]
            if held.present is None:
                shown = False
            else:
                present[begin:end] = held.present[v[:, None], s[:, None] + self.steps]
        return self.batch(self.tensor(gathered), present if shown else None, sample)

    def load(self, shard: int) -> Future[Held]:
        """Read a shard beside everything else; a daemon, since a server that stalls must not keep a process from its end."""
        future: Future[Held] = Future()

        def work() -> None:
            with self.turn:
                try:
                    future.set_result(self.read(shard))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=work, name=f"shard {shard}", daemon=True).start()
        return future

    def read(self, shard: int) -> Held:
        entry, keys = self.entries[shard]
        slots = np.empty((len(keys), *self.shape), stored(self.manifest.dtype))
        try:
            with Shard(self.folder, self.split, entry, verified=True, patience=self.patience) as content:
                for video, key in enumerate(keys):
                    content.slots(key, self.manifest, into=slots[video], order=self.phases)
                present = shard_presence(content, keys, self.manifest)
        except OSError as error:  # a disk that fails
            raise UserError(f"shard {self.folder}/{self.name(shard)} cannot be read ({error.strerror}); restore it") from error
        with self.adding:
            self.bytes_read += entry.bytes
        return Held(runs(slots, self.run), present)

    def name(self, shard: int) -> str:
        return f"{self.split}/{self.entries[shard][0].name}"

    def counts(self) -> dict[str, float]:
        """read_mb: bytes of the shards that this process read; lost_samples: of shards that any process lost, where there are any."""
        lost = self.lost.samples()
        return {"read_mb": 1e-6 * self.bytes_read, **({"lost_samples": float(lost)} if lost else {})}
