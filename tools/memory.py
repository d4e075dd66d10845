"""Estimate what a training step needs in memory, before it is allocated.

    python -m tools.memory config=CONFIG.yaml engine=zero2 processes=8

    config ─> task and one micro-batch on the meta device ─> forward, backward, op by op ─> peak
                and, by engine, each process's share of weights, gradients, optimizer ─────> table

Tensors on the meta device have sizes and no content: a model of any size is estimated on any
machine, in seconds. Attention is counted as the CPU computes it, with its weights stored; on a GPU
it is fused and needs less. Not counted: the interpreter and its libraries (about 0.3 GB on a CPU,
0.5 to 1 GB of CUDA context), fragmentation of the allocator, and the copy that a checkpoint makes.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cjepa_dist.clevrer.vocabulary import MAX_TEXT_WORDS
from cjepa_dist.config import command_line, locate, merge
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING, TrainAloe, TrainWorldModel
from cjepa_dist.data.dataset import Batch
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.errors import UserError
from cjepa_dist.optim.optimizers import hidden_matrices
from cjepa_dist.tasks.build import Task, build_task

SHARDING = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp2": 3}  # engine -> ZeRO stage
ENGINES = tuple(SHARDING)
MB = 2**20
END_OF_RUN = 0.99  # part of the run behind us: every loss term counts
# Copies of a weight that an update rule keeps; muon's of hidden matrices, others have adamw's.
STATES_PER_WEIGHT = {"adam": 2, "adamw": 2, "muon": 1}


@dataclass
class EstimateMemory:
    """Memory of one process in training, by what uses it."""

    config: str = option(MISSING, "config of train_world_model or train_aloe", path=True)
    overrides: list[str] = option([], "key=value pairs over the config")
    engine: str = option("ddp", "how processes share the work", choices=ENGINES)
    processes: int = option(1, "processes", least=1, most=4096)
    rows: int = option(24, "ALOE: rows of words (questions and options) a sample", least=1)
    data: str = option(
        "",
        "slot shards, to count the train split that a node keeps in memory; empty = not counted",
        path=True,
    )


class LiveBytes(TorchDispatchMode):
    """Bytes of all living tensors, and their peak.

    Views count once: a storage is counted when an operation first returns it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.seen: dict[int, weakref.ref] = {}

    def track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen[key] = weakref.ref(storage, lambda _: self.release(key, size))
            self.bytes += size
            self.peak = max(self.peak, self.bytes)

    def release(self, key: int, size: int) -> None:
        del self.seen[key]
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.track(leaf)
        return result


def main(config: EstimateMemory) -> None:
    """Print the table."""
    train_config = read_train_config(config)
    found = estimate_memory(
        train_config,
        engine=config.engine,
        processes=config.processes,
        rows=config.rows,
        data=config.data,
    )
    loop = train_config.loop
    samples = loop.global_batch_size // (config.processes * loop.gradient_accumulation)
    share = f"{config.engine}, {config.processes} processes, {samples} samples a pass"
    print(f"{config.config}, {share}, {loop.precision}: MB a process\n")
    for name, size in (*found.items(), ("total", sum(found.values()))):
        print(f"{name:<44}{size / MB:>10,.0f}")


def read_train_config(config: EstimateMemory) -> TrainWorldModel | TrainAloe:
    """The training config. Raises UserError if it is not one, or if the batch does not divide."""
    path = locate.find_config("", config.config)
    content = merge.read_yaml(path)
    arguments = [str(path), *config.overrides, "data=none", "run=none"]
    train_config = (
        command_line.parse(TrainAloe, arguments)
        if "aloe" in content
        else command_line.parse(TrainWorldModel, arguments)
    )
    assert train_config is not None
    loop = train_config.loop
    if loop.precision == "auto":
        loop.precision = "bf16"  # what a GPU uses
    parts = config.processes * loop.gradient_accumulation
    if loop.global_batch_size % parts:
        raise UserError(
            f"loop.global_batch_size={loop.global_batch_size} is not divisible by {parts} "
            "(processes x loop.gradient_accumulation)"
        )
    return train_config


def estimate_memory(
    config: TrainWorldModel | TrainAloe,
    *,
    engine: str = "ddp",
    processes: int = 1,
    rows: int = 24,
    data: str = "",
) -> Mapping[str, int]:
    """Bytes of one process, by what uses them."""
    with torch.device("meta"):
        task = build_task(config)
    size = config.loop.global_batch_size // (processes * config.loop.gradient_accumulation)
    weights = sum(p.nbytes for p in task.parameters())
    optimizer = optimizer_bytes(task, config.optimizer.name)
    stage = SHARDING[engine] if processes > 1 else 0
    batch, precision = meta_batch(config, size, rows), config.loop.precision
    step = peak_bytes(task, batch, precision, keep_gradients=True) - weights
    if stage >= 2:  # gradients go to their owners during the backward pass
        activations = peak_bytes(task, batch, precision, keep_gradients=False) - weights
        step = min(step, activations + weights // processes)
    found = {
        "weights": weights // processes if stage == 3 else weights,
        "optimizer": optimizer // processes if stage else optimizer,
        "activations, gradients, temporary tensors": step,
    }
    if engine == "ddp" and processes > 1:
        found["gradient buckets"] = weights
    if stage == 3:
        found["gathered weights, two blocks"] = 2 * largest_block_bytes(task)
    if data:
        found["slots of the train split"] = train_split_bytes(config, data)
    return found


def train_split_bytes(config: TrainWorldModel | TrainAloe, data: str) -> int:
    """Bytes of the slots that a node keeps in memory: the split, or two blocks when streaming."""
    manifest = Manifest.load(data)
    videos, reading = manifest.count(config.train_split), config.reading
    if reading.kind == "streaming":
        largest = max(entry.samples for entry in manifest.shards(config.train_split))
        videos = min(videos, 2 * reading.shuffle_shards * reading.shard_groups * largest)
    numbers = manifest.frames * manifest.slots * manifest.slot_dim * videos
    return numbers * getattr(torch, manifest.dtype).itemsize


def meta_batch(config: TrainWorldModel | TrainAloe, size: int, rows: int) -> Batch:
    """A micro-batch of `size` samples on the meta device."""
    with torch.device("meta"):
        if isinstance(config, TrainAloe):
            aloe, count = config.aloe, size * rows
            return {
                "slots": torch.zeros(size, aloe.frames, aloe.slots, aloe.slot_dim),
                "tokens": torch.zeros(count, MAX_TEXT_WORDS, dtype=torch.int64),
                "padding": torch.zeros(count, MAX_TEXT_WORDS, dtype=torch.bool),
                "is_choice": torch.zeros(count, dtype=torch.bool),
                "kind": torch.zeros(count, dtype=torch.int64),
                "row_view": torch.zeros(count, dtype=torch.int64),
                "label": torch.zeros(count, dtype=torch.int64),
            }
        model = config.predictor
        frames, slots = model.history_frames + config.horizon * model.pred_frames, model.slots
        return {
            "slots": torch.zeros(size, frames, slots, model.slot_dim),
            "present": torch.ones(size, frames, slots, dtype=torch.bool),
            "position": torch.zeros(size, frames, slots, 2),
            "sample": torch.zeros(size, dtype=torch.int64),
            "contact": torch.zeros(size, slots, slots, dtype=torch.bool),
            "influence": torch.zeros(size, slots, slots, dtype=torch.bool),
        }


def peak_bytes(task: Task, batch: Batch, precision: str, *, keep_gradients: bool) -> int:
    """The most bytes alive in one forward and backward pass, weights included.

    A gradient leaves as soon as it is complete, unless they are kept.
    """
    for parameter in task.parameters():
        parameter.grad = None
        if not keep_gradients:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    live = LiveBytes()
    for tensor in (*task.parameters(), *batch.values()):
        live.track(tensor)
    with live, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        context = task.step_context([batch], 0, task.term_weights(END_OF_RUN))
        task(batch, context).loss.backward()
    return live.peak


def optimizer_bytes(task: nn.Module, name: str) -> int:
    """Bytes that the update rule keeps for all weights."""
    hidden = {id(p) for group in hidden_matrices(task) for p in group["params"]}
    return sum(
        p.nbytes * STATES_PER_WEIGHT["adamw" if name == "muon" and id(p) not in hidden else name]
        for p in task.parameters()
    )


def largest_block_bytes(task: nn.Module) -> int:
    """Bytes of the largest transformer block, which is gathered as one."""
    lists = [module for module in task.modules() if isinstance(module, nn.ModuleList)]
    sizes = [sum(p.nbytes for p in block.parameters()) for blocks in lists for block in blocks]
    return max(sizes, default=0)


if __name__ == "__main__":
    command_line.launch(EstimateMemory, main)
