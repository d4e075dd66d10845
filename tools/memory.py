"""What a training step will need in memory, before it is allocated: `python -m tools.memory config=CONFIG.yaml engine=zero2 processes=8`.

    config ──> task and one micro-batch on the meta device ──> forward, backward ──> bytes alive, op by op ──> peak
                                                               and, by engine, what each process holds of weights, gradients, optimizer

Tensors on the meta device have sizes and no content: a model of any size is estimated on any machine, in seconds. Attention is counted as
the CPU computes it (its weights are stored); on a GPU it is fused, so the truth is below. Not counted: the interpreter and its libraries
(about 0.3 GB on a CPU, 0.5 to 1 GB of CUDA context), the allocator's fragments, and what a checkpoint copies.
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
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.errors import UserError
from cjepa_dist.tasks.build import build_task

ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
MB = 2**20
END_OF_RUN = 0.99  # part of the run behind us: every term of the loss is on
STATES_PER_WEIGHT = {
    "adam": 2,
    "adamw": 2,
    "muon": 1,
}  # copies of a weight that an update rule keeps; muon's are of matrices, the rest has adamw's


@dataclass
class EstimateMemory:
    """Memory of one process in training, by what holds it."""

    config: str = option(MISSING, "config of train_world_model or train_aloe")
    set: list[str] = option([], "key=value pairs over the config")
    engine: str = option("ddp", "how processes share the work", choices=ENGINES)
    processes: int = option(1, "processes", least=1)
    rows: int = option(24, "ALOE: rows of words (questions and options) a sample", least=1)
    data: str = option(
        "", "folder of slot shards, whose train split is held, once a node; empty = not counted"
    )


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors alive, and their peak. Views count once: a storage is counted when an op first returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: dict[int, weakref.ref] = {}

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen[key] = weakref.ref(storage, lambda _: self.forget(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def forget(self, key: int, size: int) -> None:
        del self.seen[key]
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return result


def main(config: EstimateMemory) -> None:
    trained = read_train_config(config)
    found = estimate_memory(
        trained,
        engine=config.engine,
        processes=config.processes,
        rows=config.rows,
        data=config.data,
    )
    samples = trained.loop.global_batch_size // (
        config.processes * trained.loop.gradient_accumulation
    )
    of = f"{config.engine}, {config.processes} processes, {samples} samples a pass, {trained.loop.precision}"
    print(f"{config.config}, {of}: MB a process\n")
    for name, size in found.items():
        print(f"{name:<44}{size / MB:>10,.0f}")
    print(f"{'total':<44}{sum(found.values()) / MB:>10,.0f}")


def read_train_config(config: EstimateMemory) -> TrainWorldModel | TrainAloe:
    """The training config. Raises UserError where it is none, or the batch does not divide."""
    path = locate.find_config("", config.config)
    content = merge.read_yaml(path)
    arguments = [str(path), *config.set, "data=none", "run=none"]
    trained = (
        command_line.parse(TrainAloe, arguments)
        if "aloe" in content
        else command_line.parse(TrainWorldModel, arguments)
    )
    assert trained is not None
    if trained.loop.precision == "auto":
        trained.loop.precision = "bf16"  # what a GPU takes
    parts = config.processes * trained.loop.gradient_accumulation
    if trained.loop.global_batch_size % parts:
        raise UserError(
            f"loop.global_batch_size={trained.loop.global_batch_size} is not divisible by {parts} (processes x loop.gradient_accumulation)"
        )
    return trained


def estimate_memory(
    config: TrainWorldModel | TrainAloe,
    *,
    engine: str = "ddp",
    processes: int = 1,
    rows: int = 24,
    data: str = "",
) -> Mapping[str, int]:
    """Bytes of one process, by what holds them."""
    with torch.device("meta"):
        task = build_task(config)
    size = config.loop.global_batch_size // (processes * config.loop.gradient_accumulation)
    weights = sum(p.nbytes for p in task.parameters())
    optimizer = optimizer_bytes(task, config.optimizer.name)
    sharded = (
        {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp2": 3}[engine] if processes > 1 else 0
    )
    content, precision = meta_batch(config, size, rows), config.loop.precision
    step = peak_bytes(task, content, precision, keep_gradients=True) - weights
    if sharded >= 2:  # gradients go to their owners as they come
        step = min(
            step,
            peak_bytes(task, content, precision, keep_gradients=False)
            - weights
            + weights // processes,
        )
    found = {
        "weights": weights // processes if sharded == 3 else weights,
        "optimizer": optimizer // processes if sharded else optimizer,
        "activations, gradients, temporary tensors": step,
    }
    if engine == "ddp" and processes > 1:
        found["buckets of gradients"] = weights
    if sharded == 3:
        found["gathered weights, two blocks"] = 2 * largest_block_bytes(task)
    if data:
        manifest = Manifest.load(data)
        videos = manifest.count(config.train_split)
        if config.reading.kind == "streaming":
            shard = max(entry.samples for entry in manifest.shards(config.train_split))
            videos = min(
                videos, 2 * config.reading.shuffle_shards * config.reading.shard_groups * shard
            )
        numbers = manifest.frames * manifest.slots * manifest.slot_dim * videos
        found["slots of the train split"] = (
            numbers * torch.empty(0, dtype=getattr(torch, manifest.dtype)).element_size()
        )
    return found


def meta_batch(config: TrainWorldModel | TrainAloe, size: int, rows: int) -> dict[str, Tensor]:
    """A micro-batch of `size` samples on the meta device."""
    with torch.device("meta"):
        if isinstance(config, TrainAloe):
            model, count = config.aloe, size * rows
            integers = {
                name: torch.zeros(count, dtype=torch.int64)
                for name in ("kind", "row_view", "label")
            }
            return {
                "slots": torch.zeros(size, model.frames, model.slots, model.slot_dim),
                "tokens": torch.zeros(count, MAX_TEXT_WORDS, dtype=torch.int64),
                "padding": torch.zeros(count, MAX_TEXT_WORDS, dtype=torch.bool),
                "is_choice": torch.zeros(count, dtype=torch.bool),
                **integers,
            }
        sizes, frames = (
            config.predictor,
            config.predictor.history_frames + config.horizon * config.predictor.pred_frames,
        )
        pairs = {
            name: torch.zeros(size, sizes.slots, sizes.slots, dtype=torch.bool)
            for name in ("contact", "influence")
        }
        return {
            "slots": torch.zeros(size, frames, sizes.slots, sizes.slot_dim),
            "present": torch.ones(size, frames, sizes.slots, dtype=torch.bool),
            "position": torch.zeros(size, frames, sizes.slots, 2),
            "sample": torch.zeros(size, dtype=torch.int64),
            **pairs,
        }


def peak_bytes(
    task: Any, content: dict[str, Tensor], precision: str, *, keep_gradients: bool
) -> int:
    """Bytes alive at most in one forward and backward pass, weights included; gradients leave as they come unless they are kept."""
    for parameter in task.parameters():
        parameter.grad = None
        if not keep_gradients:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    live = LiveBytes()
    for tensor in (*task.parameters(), *content.values()):
        live.note(tensor)
    with live, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        context = task.step_context([content], 0, task.term_weights(END_OF_RUN))
        task(content, context).loss.backward()
    return live.peak


def optimizer_bytes(task: nn.Module, name: str) -> int:
    """Bytes that the update rule keeps for all weights."""
    return sum(
        p.nbytes
        * (STATES_PER_WEIGHT[name] if name != "muon" or p.ndim == 2 else STATES_PER_WEIGHT["adamw"])
        for p in task.parameters()
    )


def largest_block_bytes(task: nn.Module) -> int:
    """Bytes of the largest transformer block: what is gathered at a time."""
    blocks = [
        block for module in task.modules() if isinstance(module, nn.ModuleList) for block in module
    ]
    return max((sum(p.nbytes for p in block.parameters()) for block in blocks), default=0)


if __name__ == "__main__":
    command_line.launch(EstimateMemory, main)
