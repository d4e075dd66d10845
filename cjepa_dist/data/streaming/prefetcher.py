"""A split that does not fit in memory, or is elsewhere: its shards in the order of `lanes.py`, a few at a time.

    position ──Lanes──> ids, the shards of this block and of the next
                             │ threads: open or fetch, compare with xxh3, check
                             v
                        held: shard ──> what `hold` makes of it ──gather(ids)──> batch     (stream.py, question_stream.py)

In memory are the blocks in use and those that follow, no more; a run that goes on in the middle of an epoch reads these alone. What is
read when depends on nothing but the position, so nothing here has state to save, but the shards that were lost (`lost.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from cjepa_dist.config.schema import ReadingConfig
from cjepa_dist.data.format.manifest import ShardEntry
from cjepa_dist.data.format.reader import ShardReader
from cjepa_dist.data.format.storage import DEFAULT_RETRY, RetryPolicy
from cjepa_dist.data.streaming.missing_shards import MissingShards
from cjepa_dist.data.streaming.shard_sampler import ShardBlock, ShardSampler
from cjepa_dist.errors import UserError

Held = TypeVar("Held")


class ShardPrefetcher(Generic[Held]):
    """A source whose shard s is entry `entries[s]`, with its keys that are wanted, and holds `sizes[s]` samples.

    It is read a block of `shards` shards at a time, the next one beside the steps; `lanes`: how many blocks a global batch comes from
    (`lanes.py`); `workers` threads read. A shard that cannot be read, or is not what the manifest says, is a UserError when its turn
    comes; or `lost` says that the other shards of its block stand in for it.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        entries: Sequence[tuple[ShardEntry, list[str]]],
        sizes: Sequence[int],
        *,
        shards: int = 2,
        lanes: int = 1,
        workers: int = 2,
        patience: RetryPolicy = DEFAULT_RETRY,
        lost: MissingShards | None = None,
    ) -> None:
        self.folder, self.split, self.entries, self.patience, self.lost = (
            folder,
            split,
            entries,
            patience,
            lost or MissingShards(),
        )
        self.lanes = ShardSampler(sizes, shards=shards, lanes=lanes)
        self.held: dict[int, Future[Held]] = {}
        self.turn, self.adding, self.bytes_read = threading.Semaphore(workers), threading.Lock(), 0

    def hold(self, content: ShardReader, number: int) -> Held:
        """What is kept of shard `number`; runs in a thread."""
        raise NotImplementedError

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
        self.held = {
            shard: held for shard, held in self.held.items() if shard in now or shard in later
        }
        crossing = len(set(blocks)) > len(
            following
        )  # from one block to the next: two are in memory, which is enough
        for shard in now if crossing else now + later:
            if shard not in self.held and not self.lost.at(self.name(shard), position):
                self.held[shard] = self.load(shard)
        return self.replaced(ids[part], blocks, position)

    def replaced(self, ids: np.ndarray, blocks: list[ShardBlock], position: int) -> np.ndarray:
        """`ids`, where those of a lost shard are others of their block: a function of which shards are lost, and of nothing else."""
        shards = self.lanes.shard(ids)
        gone = [shard for shard in np.unique(shards).tolist() if not self.there(shard, position)]
        ids = ids.copy()
        for row in np.flatnonzero(np.isin(shards, gone)):
            left = [shard for shard in blocks[row].shards if self.there(shard, position)]
            if not left:
                names = ", ".join(map(self.name, blocks[row].shards))
                raise UserError(
                    f"all shards of a block are lost ({names}): none is left to stand in; restore them or raise reading.shuffle_shards"
                )
            ends = np.cumsum(self.lanes.sizes[left])
            place = (ids[row] - self.lanes.first[shards[row]]) % ends[-1]
            which = int(np.searchsorted(ends, place, side="right"))
            ids[row] = (
                self.lanes.first[left[which]]
                + place
                - (ends[which] - self.lanes.sizes[left[which]])
            )
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
        entry = self.entries[shard][0]
        try:
            with ShardReader(
                self.folder, self.split, entry, verified=True, patience=self.patience
            ) as content:
                held = self.hold(content, shard)
        except OSError as error:  # a disk that fails
            raise UserError(
                f"shard {self.folder}/{self.name(shard)} cannot be read ({error.strerror}); restore it"
            ) from error
        with self.adding:
            self.bytes_read += entry.bytes
        return held

    def name(self, shard: int) -> str:
        return f"{self.split}/{self.entries[shard][0].name}"

    def counts(self) -> dict[str, float]:
        """read_mb: bytes of the shards that this process read; lost_samples: of shards that any process lost, where there are any."""
        lost = self.lost.samples()
        return {
            "read_mb": 1e-6 * self.bytes_read,
            **({"lost_samples": float(lost)} if lost else {}),
        }


def prefetcher_options(config: ReadingConfig, run: str | Path) -> dict[str, Any]:
    """The arguments of `ShardPrefetcher` that a run's config gives."""
    return {
        "shards": config.shuffle_shards,
        "lanes": config.shard_groups,
        "workers": config.workers,
        "patience": RetryPolicy(config.timeout, config.max_attempts),
        "lost": MissingShards(Path(run) / "replaced.jsonl", config.max_missing_samples),
    }


def check_in_memory_options(config: ReadingConfig) -> None:
    """Raises UserError for what has no meaning where a split is in memory before the first step."""
    if config.max_missing_samples:
        raise UserError(
            f"reading.max_missing_samples={config.max_missing_samples}: a split that is read before the first step has no fault later; leave it 0"
        )
