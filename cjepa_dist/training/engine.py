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

import copy
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import PartialState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree

from cjepa_dist import config as schema
from cjepa_dist import runtime
from cjepa_dist.errors import UserError
from cjepa_dist.models.attention import Block
from cjepa_dist.tasks import Outcome
from cjepa_dist.training import checkpoint
from cjepa_dist.training.average import Average
from cjepa_dist.training.meter import parameter_norm
from cjepa_dist.training.optimizer import optimizers
from cjepa_dist.training.skip import guarded, prepare

Restore = Callable[[Callable[[Path], dict[str, Any]]], dict[str, Any]]


class Engine:
    """One process, or DDP: every process holds everything. The base of the others.

    Use: `open`, `wrap`, then `task` (bare, trained), `model` (to call), `optimizers` (whose rates are set).
    """

    def __init__(self, name: str, config: schema.TrainWorldModel | schema.TrainAloe) -> None:
        self.name, self.config, self.loop = name, config, config.loop
        self.handle = self.accelerator()
        self.average: Average | None = None

    def accelerator(self) -> Accelerator:
        return runtime.accelerator(self.loop.precision)

    def open(self, task: nn.Module, restore: Restore) -> dict[str, Any]:
        """Put the task where it trains, with its optimizers, and load the checkpoint that `restore` chooses; returns its meta data."""
        self.task = task.to(self.handle.device)
        self.optimizers = optimizers(self.task, self.config.optimizer)
        self.average = self.averaging(dict(self.task.named_parameters()))
        meta = restore(partial(checkpoint.load, task=self.task, optimizers=self.optimizers, mean=self.mean))
        prepare(self.optimizers)
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
        torch.stack([p.sum() for p in self.task.parameters() if p.requires_grad]).sum().mul(0.0).backward()
        self.task.zero_grad(set_to_none=True)

    def averaging(self, live: dict[str, Tensor]) -> Average | None:
        return Average(live, self.config.optimizer.ema) if self.config.optimizer.ema else None

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

    def update(self, statistics: Tensor | None, step: int | Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Clip, and move weights and statistics (summed here over ranks), unless the gradient is not finite: then nothing changes.

        Returns the gradient's norm () and whether it was finite, () bool; neither is read here. `share`: see `move`.
        """
        norm = runtime.whole(torch.nn.utils.clip_grad_norm_(self.task.parameters(), self.config.optimizer.clip or math.inf, foreach=True))
        good = norm.isfinite()
        means = self.average.mean.values() if self.average else ()
        guarded(good, partial(self.move, statistics, step, share), self.task, self.optimizers, means)
        for part in self.optimizers:
            part.zero_grad(set_to_none=True)
        return norm, good

    def move(self, statistics: Tensor | None, step: int | Tensor, share: Tensor | None = None) -> None:
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
            self.task.update(runtime.all_reduce(statistics))  # type: ignore[operator]
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

    def save(self, writer: checkpoint.Writer, *, step: int, meta: dict[str, Any]) -> None:
        """A checkpoint as of `Writer.save`; all ranks call it."""
        writer.save(self.task, self.optimizers, step=step, meta=meta, mean=self.mean)

    def replicas(self) -> list[Tensor]:
        """What every process holds alike."""
        return [*self.task.parameters(), *self.task.buffers()]

    def not_asked(self, what: str) -> UserError:
        return UserError(f"engine {self.name} was asked for, but {what} runs: start with {STARTS.format(self.name)}")

    def describe(self) -> str:
        handle = self.handle
        name = self.name if handle.num_processes > 1 or self.name != "ddp" else "one process"
        return f"engine: {name}, processes: {handle.num_processes}, device: {handle.device.type}, precision: {self.loop.precision}"


class Sharded(Engine):
    """What FSDP2 and ZeRO have in common: the weights to measure are gathered into a plain copy of the task, kept on the CPU."""

    plain: nn.Module

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.handle.device.type, torch.bfloat16) if self.loop.precision == "bf16" else nullcontext()

    @contextmanager
    def measured(self) -> Iterator[nn.Module]:
        self.plain.load_state_dict(self.gathered())
        yield self.plain.to(self.handle.device)
        self.plain.cpu()

    def gathered(self) -> dict[str, Tensor]:
        """The full state dict to measure, on every process."""
        raise NotImplementedError


class Fsdp2(Sharded):
    """PyTorch's fully_shard by Accelerate: each Block a unit that is gathered when it computes, the rest of the task another."""

    def accelerator(self) -> Accelerator:
        for name, value in FSDP2_DEFAULTS.items():
            os.environ.setdefault(name, value)
        from accelerate.utils import FullyShardedDataParallelPlugin

        if not torch.cuda.is_available():
            # Accelerate keeps its plugins from CPU processes, in silence (1.15): it looks at this word alone.
            PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
        plugin = FullyShardedDataParallelPlugin()
        if isinstance(self.config, schema.TrainAloe) and self.config.aloe.shared_vision and not torch.cuda.is_available():
            plugin.auto_wrap_policy = None  # there a Block is called as often as the lengths of this process's questions ask for
        return runtime.accelerator("fp32", fsdp_plugin=plugin)  # `autocast` does the rest: weights and sums stay float32

    def open(self, task: nn.Module, restore: Restore) -> dict[str, Any]:
        from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

        self.plain = copy.deepcopy(task)
        task = task.to(self.handle.device)
        prepared = self.handle.prepare(task, *optimizers(task, self.config.optimizer))
        self.task, self.optimizers = prepared[0], [part.optimizer for part in prepared[1:]]
        if self.handle.distributed_type != DistributedType.FSDP or not isinstance(self.task, FSDPModule):
            raise self.not_asked(str(self.handle.distributed_type))
        if not all(isinstance(value, DTensor) for value in self.task.parameters()):
            raise self.not_asked("a model with weights that are not sharded")
        for module in self.task.modules():  # what is called beside forward needs the weights too
            if isinstance(module, Block):
                register_fsdp_forward_method(module, "keys")
        register_fsdp_forward_method(self.task, "survey")
        if Outcome not in _pytree.SUPPORTED_NODES:  # else the tensors in it are not found, and gradients not gathered before the loss's
            _pytree.register_dataclass(Outcome)
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # `keys` does; nothing writes into it
        self.average = self.averaging(dict(self.task.named_parameters()))
        meta = restore(partial(checkpoint.load, task=self.task, optimizers=self.optimizers, mean=self.mean))
        prepare(self.optimizers)
        return meta

    def wrap(self) -> None:
        self.model = self.task

    @contextmanager
    def sync(self, last: bool) -> Iterator[None]:
        self.model.set_requires_gradient_sync(last)
        yield

    def gathered(self) -> dict[str, Tensor]:
        return {name: runtime.whole(value.detach()) for name, value in {**self.task.state_dict(), **(self.mean or {})}.items()}

    def replicas(self) -> list[Tensor]:
        return list(self.task.buffers())


FSDP2_DEFAULTS = {"FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block"}
STARTS = "accelerate launch --config_file configs/accelerate/..., or torchrun with loop.engine={}"


def start(config: schema.TrainWorldModel | schema.TrainAloe) -> Engine:
    """The engine that the launcher or loop.engine asks for.

    Raises UserError where they disagree, a launcher is missing, another number of processes runs, or the optimizer does not fit.
    """
    from cjepa_dist.training.zero import Zero

    loop, launched = config.loop, launcher_wish()
    if launched and loop.engine not in ("auto", launched):
        raise UserError(f"the launcher asks for engine {launched}, loop.engine for {loop.engine}: leave one of them out")
    name = launched or (loop.engine if loop.engine != "auto" else "ddp")
    if (loop.engine != "auto" or launched) and "WORLD_SIZE" not in os.environ:
        raise UserError(f"engine {name} was asked for, but this is one process on its own: start with {STARTS.format(name)}")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", loop.precision):
        raise UserError(f"the launcher asks for mixed_precision {precision}, loop.precision for {loop.precision}: change one of them")
    if config.optimizer.ema >= 1:
        raise UserError(f"optimizer.ema={config.optimizer.ema}: must be below 1")
    check_fit(name, config)
    kind = Fsdp2 if name == "fsdp2" else Zero if name.startswith("zero") else Engine
    engine = kind(name, config)
    running = engine.handle.num_processes
    for source, asked in (("loop.processes", loop.processes), ("WORLD_SIZE", int(os.environ.get("WORLD_SIZE", "0")))):
        if asked and running != asked:
            raise UserError(
                f"{source}={asked}, but {running} run: start with torchrun --nproc_per_node {asked}; "
                "accelerate launch --cpu starts one process whatever its --num_processes"
            )
    return engine


def check_fit(name: str, config: schema.TrainWorldModel | schema.TrainAloe) -> None:
    """Raises UserError for what an engine that gathers weights module by module cannot do, naming one that can."""
    if isinstance(config, schema.TrainAloe):
        if name == "zero3":
            raise UserError(
                "ALOE calls its blocks as often as its questions need, and engine zero3 wants each as often everywhere: take zero2"
            )
        return
    causal = config.ctt.invariance.weight > 0 or config.ctt.sufficiency.weight > 0
    if causal and config.ctt.kind == "per_sample" and config.ctt.graph.estimator == "gradient" and name in ("fsdp2", "zero3"):
        raise UserError(f"ctt.graph.estimator=gradient cannot differentiate through what engine {name} gathers: take ddp, zero1 or zero2")
    if causal and config.loop.accumulation > 1 and name == "zero3":
        raise UserError(
            "loop.accumulation with causal terms looks ahead outside of the pass that engine zero3 gathers for: take zero2 or fsdp2"
        )


def launcher_wish() -> str:
    """The engine in the environment that `accelerate launch` made; "" where it names none."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UserError("the launcher asks for FSDP 1: set fsdp_version: 2 in its fsdp_config, as configs/accelerate does")
        return "fsdp2"
    return ""
