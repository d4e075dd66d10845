"""A split that does not fit in memory, or is remote: a few shards at a time, read ahead.

    position ──ShardSampler──> ids, the shards of this block and of the next
                                 │ threads: open or download, compare with xxh3, check
                                 v
                               loaded: shard ──> what `load_shard` makes of it ──get_batch──> batch
                                                 (streaming/windows.py, streaming/questions.py)

The blocks in use and the next ones are in memory, no more. A run that resumes in the middle of an
epoch reads only these. What is read when depends on the position alone, so nothing here has state
to save, apart from the shards that were missing (`missing_shards.py`).
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
from cjepa_dist.data.format.shard_reader import ShardReader
from cjepa_dist.data.format.storage import DEFAULT_RETRY, RetryPolicy
from cjepa_dist.data.streaming.missing_shards import MissingShards
from cjepa_dist.data.streaming.shard_sampler import ShardBlock, ShardSampler
from cjepa_dist.errors import ContentError, UserError

Loaded = TypeVar("Loaded")


class ShardPrefetcher(Generic[Loaded]):
    """A dataset whose shard s is `entries[s]`, with the keys that are wanted of it.

    Shard s holds `sizes[s]` samples. A block of `shuffle_shards` shards is read at a time, the next
    one while the steps run; a global batch comes from `shard_groups` blocks; `workers` threads
    read. A shard that cannot be read, or is not what the manifest says, is a UserError when its
    samples are due, unless `missing` allows the other shards of its block to replace it.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        entries: Sequence[tuple[ShardEntry, list[str]]],
        sizes: Sequence[int],
        *,
        shuffle_shards: int = 2,
        shard_groups: int = 1,
        workers: int = 2,
        retry: RetryPolicy = DEFAULT_RETRY,
        missing: MissingShards | None = None,
    ) -> None:
        self.folder, self.split, self.entries, self.retry = folder, split, entries, retry
        self.missing = missing or MissingShards()
        self.sampler = ShardSampler(sizes, shuffle_shards=shuffle_shards, shard_groups=shard_groups)
        self.loaded: dict[int, Future[Loaded]] = {}
        self.free_workers, self.bytes_lock = threading.Semaphore(workers), threading.Lock()
        self.bytes_read = 0

    def load_shard(self, shard: ShardReader, number: int) -> Loaded:
        """What is kept in memory of shard `number`; runs in a thread."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Samples in an epoch."""
        return self.sampler.length

    def sample_ids(self, seed: int, position: int, count: int) -> np.ndarray:
        """Ids (count,) of the global batch that begins at `position`."""
        return self.sampler.sample_ids(seed, position, count)

    def prepare(self, seed: int, position: int, ids: np.ndarray, part: slice) -> np.ndarray:
        """Wait until a process's part of that batch is in memory, and start reading what is next.

        Returns its ids, those of missing shards replaced. UserError naming a shard that cannot be
        read or is damaged.
        """
        blocks, following = self.sampler.current_and_next_blocks(seed, position, len(ids), part)
        now = [shard for block in dict.fromkeys(blocks) for shard in block.shards]
        later = [shard for block in following for shard in block.shards]
        self.loaded = {
            shard: loaded for shard, loaded in self.loaded.items() if shard in now or shard in later
        }
        # A batch that reaches from one block into the next has two blocks in memory: enough.
        crossing = len(set(blocks)) > len(following)
        for shard in now if crossing else now + later:
            if shard not in self.loaded and not self.missing.is_missing(
                self.shard_name(shard), position
            ):
                self.loaded[shard] = self.start_reading(shard)
        return self.replace_missing(ids[part], blocks, position)

    def replace_missing(
        self, ids: np.ndarray, blocks: list[ShardBlock], position: int
    ) -> np.ndarray:
        """`ids`, where those of a missing shard are replaced by others of their block.

        A function of which shards are missing, and of nothing else.
        """
        shards = self.sampler.shard_of(ids)
        gone = [s for s in np.unique(shards).tolist() if not self.is_available(s, position)]
        ids = ids.copy()
        for row in np.flatnonzero(np.isin(shards, gone)):
            left = [s for s in blocks[row].shards if self.is_available(s, position)]
            if not left:
                names = ", ".join(map(self.shard_name, blocks[row].shards))
                raise UserError(
                    f"all shards of a block are missing ({names}): no other can replace them; "
                    "restore them or raise reading.shuffle_shards"
                )
            ends = np.cumsum(self.sampler.sizes[left])
            place = (ids[row] - self.sampler.first_id[shards[row]]) % ends[-1]
            which = int(np.searchsorted(ends, place, side="right"))
            shard_begin = ends[which] - self.sampler.sizes[left[which]]
            ids[row] = self.sampler.first_id[left[which]] + place - shard_begin
        return ids

    def is_available(self, shard: int, position: int) -> bool:
        """Whether a shard of the block in use can be read; waits for it, records it if missing."""
        if self.missing.is_missing(self.shard_name(shard), position):
            return False
        try:
            self.loaded[shard].result()
        except ContentError:
            raise  # no shard is lost: others must not replace what is wrong in this one
        except UserError as error:
            samples = len(self.entries[shard][1])
            self.missing.add(self.shard_name(shard), samples, position, error)
            return False
        return True

    def start_reading(self, shard: int) -> Future[Loaded]:
        """Read a shard in a thread: a daemon, since a slow server must not keep a process alive."""
        future: Future[Loaded] = Future()

        def work() -> None:
            with self.free_workers:
                try:
                    future.set_result(self.read_shard(shard))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=work, name=f"shard {shard}", daemon=True).start()
        return future

    def read_shard(self, number: int) -> Loaded:
        entry = self.entries[number][0]
        try:
            with ShardReader(
                self.folder, self.split, entry, check_bytes=True, retry=self.retry
            ) as shard:
                loaded = self.load_shard(shard, number)
        except OSError as error:  # a disk that fails
            raise UserError(
                f"shard {self.folder}/{self.shard_name(number)} cannot be read "
                f"({error.strerror}); restore it"
            ) from error
        with self.bytes_lock:
            self.bytes_read += entry.bytes
        return loaded

    def shard_name(self, shard: int) -> str:
        return f"{self.split}/{self.entries[shard][0].name}"

    def read_statistics(self) -> dict[str, float]:
        """read_mb: of the shards that this process read; missing_samples: of all, if any."""
        missing = self.missing.count_samples()
        return {
            "read_mb": 1e-6 * self.bytes_read,
            **({"missing_samples": float(missing)} if missing else {}),
        }


def prefetcher_options(config: ReadingConfig, run: str | Path) -> dict[str, Any]:
    """The arguments of `ShardPrefetcher` that a run's config gives."""
    record = Path(run) / "missing_shards.jsonl"
    return {
        "shuffle_shards": config.shuffle_shards,
        "shard_groups": config.shard_groups,
        "workers": config.workers,
        "retry": RetryPolicy(config.timeout, config.max_attempts),
        "missing": MissingShards(record, config.max_missing_samples),
    }


def check_in_memory_options(config: ReadingConfig) -> None:
    """Raises UserError for options that have no meaning where a split is read before the steps."""
    if config.max_missing_samples:
        raise UserError(
            f"reading.max_missing_samples={config.max_missing_samples}: a split that is read "
            "before the first step cannot lose a shard later; leave it 0"
        )
