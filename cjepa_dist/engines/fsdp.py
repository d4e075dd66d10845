"""FSDP2 as an engine."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import PartialState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils import _pytree

from cjepa_dist.checkpoint.loading import load_checkpoint
from cjepa_dist.config import schema
from cjepa_dist.engines.base import Restore, ShardedEngine
from cjepa_dist.models.transformer import Block
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.resilience.nonfinite import count_steps_on_device
from cjepa_dist.runtime.collectives import full_tensor
from cjepa_dist.runtime.device import make_accelerator
from cjepa_dist.tasks.base import TaskOutput


class FsdpEngine(ShardedEngine):
    """PyTorch's fully_shard by Accelerate: each Block a unit that is gathered when it computes, the rest of the task another."""

    def accelerator(self) -> Accelerator:
        for name, value in FSDP2_DEFAULTS.items():
            os.environ.setdefault(name, value)
        from accelerate.utils import FullyShardedDataParallelPlugin

        if not torch.cuda.is_available():
            # Accelerate keeps its plugins from CPU processes, in silence (1.15): it looks at this word alone.
            PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
        plugin = FullyShardedDataParallelPlugin()
        if (
            isinstance(self.config, schema.TrainAloe)
            and self.config.aloe.shared_vision
            and not torch.cuda.is_available()
        ):
            plugin.auto_wrap_policy = None  # there a Block is called as often as the lengths of this process's questions ask for
        return make_accelerator(
            "fp32", fsdp_plugin=plugin
        )  # `autocast` does the rest: weights and sums stay float32

    def open(self, task: nn.Module, restore: Restore) -> dict[str, Any]:
        from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

        self.plain = copy.deepcopy(task)
        task = task.to(self.handle.device)
        prepared = self.handle.prepare(task, *build_optimizers(task, self.config.optimizer))
        self.task, self.optimizers = prepared[0], [part.optimizer for part in prepared[1:]]
        if self.handle.distributed_type != DistributedType.FSDP or not isinstance(
            self.task, FSDPModule
        ):
            raise self.not_asked(str(self.handle.distributed_type))
        if not all(isinstance(value, DTensor) for value in self.task.parameters()):
            raise self.not_asked("a model with weights that are not sharded")
        for module in self.task.modules():  # what is called beside forward needs the weights too
            if isinstance(module, Block):
                register_fsdp_forward_method(module, "keys")
        register_fsdp_forward_method(self.task, "survey")
        if (
            TaskOutput not in _pytree.SUPPORTED_NODES
        ):  # else the tensors in it are not found, and gradients not gathered before the loss's
            _pytree.register_dataclass(TaskOutput)
        warnings.filterwarnings(
            "ignore", "FSDP2-wrapped module .* returned a view"
        )  # `keys` does; nothing writes into it
        self.average = self.averaging(dict(self.task.named_parameters()))
        meta = restore(
            partial(load_checkpoint, task=self.task, optimizers=self.optimizers, mean=self.mean)
        )
        count_steps_on_device(self.optimizers)
        return meta

    def wrap(self) -> None:
        self.model = self.task

    @contextmanager
    def sync(self, last: bool) -> Iterator[None]:
        self.model.set_requires_gradient_sync(last)
        yield

    def gathered(self) -> dict[str, Tensor]:
        return {
            name: full_tensor(value.detach())
            for name, value in {**self.task.state_dict(), **(self.mean or {})}.items()
        }

    def replicas(self) -> list[Tensor]:
        return list(self.task.buffers())


FSDP2_DEFAULTS = {
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block",
}
