"""Engines: what the processes of a run share, behind one interface, so that the loop is the same for all of them.

    launcher's wish or loop.engine ──> start(config) ──> Engine ──> open (state, checkpoint) ──> wrap ──> check: is it what was asked?
    a step:   sync(last): forward, backward      update(statistics) -> gradient norm, and whether it was finite (else nothing changed)

| engine | each process holds | checkpoint |
| ddp    | everything | torch.distributed.checkpoint, weights and optimizer |
| fsdp2  | its part of each Block's weights, gradients and optimizer state | the same files, written and read by parts |
| zero1  | its part of the optimizer state; zero2 of gradients too, zero3 of weights too | the same files, from a full copy on the CPU |

A checkpoint is the same for all, so a run may go on under another engine, with another number of processes. All use Accelerate and its
plugins, which read the fields of the launcher's YAML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cjepa_dist.checkpoint.loading import load_checkpoint
from cjepa_dist.checkpoint.writer import CheckpointWriter
from cjepa_dist.config import schema
from cjepa_dist.errors import UserError
from cjepa_dist.optim.ema import WeightEma
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.resilience.nonfinite import count_steps_on_device, update_if_finite
from cjepa_dist.runtime.collectives import all_reduce, full_tensor
from cjepa_dist.runtime.device import make_accelerator

Restore = Callable[[Callable[[Path], dict[str, Any]]], dict[str, Any]]


class Engine:
    """One process, or DDP: every process holds everything. The base of the others.

    Use: `open`, `wrap`, then `task` (bare, trained), `model` (to call), `optimizers` (whose rates are set).
    """

    def __init__(self, name: str, config: schema.TrainWorldModel | schema.TrainAloe) -> None:
        self.name, self.config, self.loop = name, config, config.loop
        self.handle = self.accelerator()
        self.average: WeightEma | None = None

    def accelerator(self) -> Accelerator:
        return make_accelerator(self.loop.precision)

    def open(self, task: nn.Module, restore: Restore) -> dict[str, Any]:
        """Put the task where it trains, with its optimizers, and load the checkpoint that `restore` chooses; returns its meta data."""
        self.task = task.to(self.handle.device)
        self.optimizers = build_optimizers(self.task, self.config.optimizer)
        self.average = self.averaging(dict(self.task.named_parameters()))
        meta = restore(
            partial(load_checkpoint, task=self.task, optimizers=self.optimizers, mean=self.mean)
        )
        count_steps_on_device(self.optimizers)
        return meta

    def wrap(self) -> None:
        """What comes between loading and the first step. Raises UserError where something else runs than was asked for."""
        self.model: Any = self.handle.prepare_model(self.task)
        if self.handle.num_processes > 1 and not isinstance(self.model, DistributedDataParallel):
            raise self.not_asked(type(self.model).__name__)
        if isinstance(self.model, DistributedDataParallel):
            self.settle(self.model)

    def settle(self, model: DistributedDataParallel) -> None:
        """Let DDP lay out its buckets for good: it does so after its first backward pass, and another layout is another order of sums.

        Else the first step after a resume sums otherwise than that step of an undisturbed run, which shows from three processes on.
        The order of this pass, the parameters' backwards, is about that of a real one.
        """
        model.reducer.prepare_for_backward([])
        torch.stack([p.sum() for p in self.task.parameters() if p.requires_grad]).sum().mul(
            0.0
        ).backward()
        self.task.zero_grad(set_to_none=True)

    def averaging(self, live: dict[str, Tensor]) -> WeightEma | None:
        return (
            WeightEma(live, self.config.optimizer.ema_decay)
            if self.config.optimizer.ema_decay
            else None
        )

    @property
    def mean(self) -> dict[str, Tensor] | None:
        return self.average.mean if self.average else None

    def autocast(self) -> AbstractContextManager[Any]:
        return self.handle.autocast()

    def sync(self, last: bool) -> AbstractContextManager[Any]:
        """Around the forward and backward pass of a part of the batch; gradients are averaged over processes in the `last` one."""
        return nullcontext() if last else self.handle.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def survey(self, *arguments: Any) -> Any:
        return self.task.survey(*arguments)  # type: ignore[operator]

    def update(
        self, statistics: Tensor | None, step: int | Tensor, share: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Clip, and move weights and statistics (summed here over ranks), unless the gradient is not finite: then nothing changes.

        Returns the gradient's norm () and whether it was finite, () bool; neither is read here. `share`: see `move`.
        """
        norm = full_tensor(
            torch.nn.utils.clip_grad_norm_(
                self.task.parameters(),
                self.config.optimizer.max_grad_norm or math.inf,
                foreach=True,
            )
        )
        good = norm.isfinite()
        means = self.average.mean.values() if self.average else ()
        update_if_finite(
            good, partial(self.move, statistics, step, share), self.task, self.optimizers, means
        )
        for part in self.optimizers:
            part.zero_grad(set_to_none=True)
        return norm, good

    def move(
        self, statistics: Tensor | None, step: int | Tensor, share: Tensor | None = None
    ) -> None:
        """Weights by their optimizers, then what follows them. With `share` () the rate is that part of the groups' own: all updates here
        are proportional to their rate, and one in the device's memory is all that a recorded step can change (step.py)."""
        if share is None:
            for part in self.optimizers:
                part.step()
        else:
            weights = [p.detach() for p in self.task.parameters()]
            before = [weight.clone() for weight in weights]
            for part in self.optimizers:
                part.step()
            torch._foreach_sub_(weights, before)
            torch._foreach_mul_(weights, share)
            torch._foreach_add_(weights, before)
        self.follow(statistics, step)

    def follow(self, statistics: Tensor | None, step: int | Tensor) -> None:
        """What follows the weights: running statistics and means."""
        if statistics is not None:
            self.task.update(all_reduce(statistics))  # type: ignore[operator]
        if self.average:
            self.average.move(step)

    @contextmanager
    def measured(self) -> Iterator[nn.Module]:
        """The task to measure: full weights on every process, the running means where there are any. All ranks enter; inside, none waits
        for another."""
        with self.average.swapped() if self.average else nullcontext():
            yield self.task

    def parameter_norm(self) -> float:
        """The norm of all weights as one vector; all ranks call it."""
        return parameter_norm(self.task)

    def save(self, writer: CheckpointWriter, *, step: int, meta: dict[str, Any]) -> None:
        """A checkpoint as of `Writer.save`; all ranks call it."""
        writer.save(self.task, self.optimizers, step=step, meta=meta, mean=self.mean)

    def replicas(self) -> list[Tensor]:
        """What every process holds alike."""
        return [*self.task.parameters(), *self.task.buffers()]

    def not_asked(self, what: str) -> UserError:
        return UserError(
            f"engine {self.name} was asked for, but {what} runs: start with {STARTS.format(self.name)}"
        )

    def describe(self) -> str:
        handle = self.handle
        name = self.name if handle.num_processes > 1 or self.name != "ddp" else "one process"
        return f"engine: {name}, processes: {handle.num_processes}, device: {handle.device.type}, precision: {self.loop.precision}"


class ShardedEngine(Engine):
    """What FSDP2 and ZeRO have in common: the weights to measure are gathered into a plain copy of the task, kept on the CPU."""

    plain: nn.Module

    def autocast(self) -> AbstractContextManager[Any]:
        return (
            torch.autocast(self.handle.device.type, torch.bfloat16)
            if self.loop.precision == "bf16"
            else nullcontext()
        )

    @contextmanager
    def measured(self) -> Iterator[nn.Module]:
        self.plain.load_state_dict(self.gathered())
        yield self.plain.to(self.handle.device)
        self.plain.cpu()

    def gathered(self) -> dict[str, Tensor]:
        """The full state dict to measure, on every process."""
        raise NotImplementedError


STARTS = "accelerate launch --config_file configs/accelerate/..., or torchrun with loop.engine={}"


@torch.no_grad()
def parameter_norm(task: nn.Module) -> float:
    """The norm of all parameters as one vector; read from the device. All ranks call it (parameters may be sharded)."""
    norm: Any = torch.nn.utils.get_total_norm(task.parameters(), foreach=True)
    return (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()
