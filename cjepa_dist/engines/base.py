"""Engines: how the processes of a run share its work, behind one interface.

    launcher or loop.engine ──> build_engine(config) ──> Engine
    setup (task on the device, checkpoint loaded) ──> wrap ──> checked: does it run as asked?
    a step:  step_context, then for each pass  gradient_sync(last): forward, backward,  then update

| engine | what each process holds | checkpoint |
|---|---|---|
| ddp | everything | torch.distributed.checkpoint: weights and optimizer |
| fsdp2 | its shard of each Block's weights, gradients and optimizer state | the same, by shards |
| zero1 | its shard of the optimizer state | the same, from a full copy on the CPU |
| zero2, zero3 | ... of gradients too; of weights too | the same, from a full copy on the CPU |

All checkpoints have one format, so a run may go on under another engine and with another number of
processes. All engines use Accelerate and its plugins, which read the launcher's YAML.
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
from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.data.dataset import Batch
from cjepa_dist.errors import UserError
from cjepa_dist.optim.ema import WeightEma
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.resilience.nonfinite import count_steps_on_device, update_if_finite
from cjepa_dist.runtime.collectives import full_tensor
from cjepa_dist.runtime.device import make_accelerator
from cjepa_dist.tasks.base import StepContext, Weights

Restore = Callable[[Callable[[Path], dict[str, Any]]], dict[str, Any]]


class Engine:
    """One process, or DDP: every process holds everything. The base of the others.

    After `setup` and `wrap`: `task` is the bare module that is trained, `model` the module to
    call, `optimizers` those whose learning rates are set.
    """

    def __init__(self, name: str, config: TrainConfig) -> None:
        self.name, self.config, self.loop = name, config, config.loop
        self.accelerator = self.create_accelerator()
        self.ema: WeightEma | None = None

    def create_accelerator(self) -> Accelerator:
        """The Accelerate handle of this process."""
        return make_accelerator(self.loop.precision)

    def setup(self, task: nn.Module, restore: Restore) -> dict[str, Any]:
        """Move the task to its device, make its optimizers, and load what `restore` chooses.

        Returns the checkpoint's meta data.
        """
        self.task = task.to(self.accelerator.device)
        self.optimizers = build_optimizers(self.task, self.config.optimizer)
        return self.load(restore)

    def load(self, restore: Restore) -> dict[str, Any]:
        """Load what `restore` chooses into the task, its optimizers and the EMA."""
        self.ema = self.make_ema(dict(self.task.named_parameters()))
        load = partial(
            load_checkpoint,
            task=self.task,
            optimizers=self.optimizers,
            ema_weights=self.ema_weights,
        )
        meta = restore(load)
        count_steps_on_device(self.optimizers)
        return meta

    def wrap(self) -> None:
        """Make `model` of the loaded task.

        Raises UserError where something else runs than was asked for.
        """
        self.model: Any = self.accelerator.prepare_model(self.task)
        wrapped = isinstance(self.model, DistributedDataParallel)
        if self.accelerator.num_processes > 1 and not wrapped:
            raise self.wrong_engine(type(self.model).__name__)
        if wrapped:
            self.fix_bucket_order(self.model)

    def fix_bucket_order(self, model: DistributedDataParallel) -> None:
        """Let DDP lay out its gradient buckets now; it does so after its first backward pass.

        Another layout is another order of sums: the first step after a resume would differ from
        that step of an undisturbed run, which shows from three processes on. The order in which
        this pass reaches the parameters is about that of a real one.
        """
        model.reducer.prepare_for_backward([])
        sums = torch.stack([p.sum() for p in self.task.parameters() if p.requires_grad])
        sums.sum().mul(0.0).backward()
        self.task.zero_grad(set_to_none=True)

    def make_ema(self, weights: dict[str, Tensor]) -> WeightEma | None:
        """The running mean of `weights`, where the config asks for one."""
        decay = self.config.optimizer.ema_decay
        return WeightEma(weights, decay) if decay else None

    @property
    def ema_weights(self) -> dict[str, Tensor] | None:
        """{parameter: running mean}, None without EMA."""
        return self.ema.mean if self.ema else None

    def autocast(self) -> AbstractContextManager[Any]:
        """Around a forward pass: the precision of the run."""
        return self.accelerator.autocast()

    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Around a pass; gradients are averaged over processes in the `last` pass of a step."""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def step_context(
        self, batches: list[Batch], step: int | Tensor, weights: Weights
    ) -> StepContext:
        """What the passes of a step share, see `WorldModelTask.step_context`."""
        return self.task.step_context(batches, step, weights)  # type: ignore[operator]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a pass."""
        loss.backward()

    def update(self, step: int | Tensor, lr_ratio: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Clip the gradient, then move weights and their means; nothing if it is not finite.

        `lr_ratio` as of `apply_update`. Returns the gradient's norm () and whether it was finite,
        () bool; neither is read from the device here.
        """
        limit = self.config.optimizer.max_grad_norm or math.inf
        parameters = self.task.parameters()
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True))
        finite = norm.isfinite()
        apply = partial(self.apply_update, step, lr_ratio)
        means = self.ema.mean.values() if self.ema else ()
        update_if_finite(finite, apply, self.task, self.optimizers, means)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return norm, finite

    def apply_update(self, step: int | Tensor, lr_ratio: Tensor | None = None) -> None:
        """Step the optimizers, then update the means of the weights.

        With `lr_ratio` () the learning rate is that part of the one in the parameter groups. All
        updates here are proportional to their rate, and a recorded step can change only what lies
        in the device's memory (training/cuda_graph.py).
        """
        if lr_ratio is None:
            for optimizer in self.optimizers:
                optimizer.step()
        else:
            weights = [p.detach() for p in self.task.parameters()]
            before = [weight.clone() for weight in weights]
            for optimizer in self.optimizers:
                optimizer.step()
            torch._foreach_sub_(weights, before)
            torch._foreach_mul_(weights, lr_ratio)
            torch._foreach_add_(weights, before)
        self.update_means(step)

    def update_means(self, step: int | Tensor) -> None:
        """Update the means of the weights, where there are any."""
        if self.ema:
            self.ema.update(step)

    @contextmanager
    def evaluation_task(self) -> Iterator[nn.Module]:
        """The task to evaluate, with all weights, or their running means, on every process.

        All ranks enter; inside none waits for another.
        """
        with self.ema.swapped() if self.ema else nullcontext():
            yield self.task

    @torch.no_grad()
    def parameter_norm(self) -> float:
        """The norm of all weights as one vector; all ranks call it."""
        norm = torch.nn.utils.get_total_norm(self.task.parameters(), foreach=True)
        return full_tensor(norm).item()

    def save(self, writer: CheckpointWriter, *, step: int, meta: dict[str, Any]) -> None:
        """Write a checkpoint, as `CheckpointWriter.save`; all ranks call it."""
        writer.save(self.task, self.optimizers, step=step, meta=meta, ema_weights=self.ema_weights)

    def replicated_tensors(self) -> list[Tensor]:
        """What must be equal on all processes."""
        return [*self.task.parameters(), *self.task.buffers()]

    def wrong_engine(self, found: str) -> UserError:
        """The error that something else runs than was asked for."""
        hint = LAUNCH_HINT.format(self.name)
        return UserError(f"engine {self.name} was asked for, but {found} runs: start with {hint}")

    def describe(self) -> str:
        """One line for the log."""
        here = self.accelerator
        name = self.name if here.num_processes > 1 or self.name != "ddp" else "one process"
        return (
            f"engine: {name}, processes: {here.num_processes}, device: {here.device.type}, "
            f"precision: {self.loop.precision}"
        )


class ShardedEngine(Engine):
    """What FSDP2 and ZeRO have in common: `cpu_task`, a full copy of the task to evaluate."""

    cpu_task: nn.Module

    def autocast(self) -> AbstractContextManager[Any]:
        if self.loop.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.accelerator.device.type, torch.bfloat16)

    @contextmanager
    def evaluation_task(self) -> Iterator[nn.Module]:
        self.cpu_task.load_state_dict(self.gather_weights())
        yield self.cpu_task.to(self.accelerator.device)
        self.cpu_task.cpu()

    def gather_weights(self) -> dict[str, Tensor]:
        """The full state dict to evaluate, on every process."""
        raise NotImplementedError


LAUNCH_HINT = (
    "accelerate launch --config_file configs/accelerate/..., or torchrun with loop.engine={}"
)
