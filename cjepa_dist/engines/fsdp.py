"""FSDP2: each process holds a shard of every Block's weights, gradients and optimizer state."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import PartialState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils import _pytree

from cjepa_dist.config.schema import TrainAloe
from cjepa_dist.engines.base import Restore, ShardedEngine
from cjepa_dist.models.transformer import Block
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.runtime.collectives import full_tensor
from cjepa_dist.runtime.device import make_accelerator
from cjepa_dist.tasks.base import TaskOutput


class FsdpEngine(ShardedEngine):
    """PyTorch's fully_shard by Accelerate.

    Each Block is a unit that is gathered when it computes; the rest of the task is another.
    """

    def create_accelerator(self) -> Accelerator:
        for name, value in FSDP2_DEFAULTS.items():
            os.environ.setdefault(name, value)
        from accelerate.utils import FullyShardedDataParallelPlugin

        if not torch.cuda.is_available():
            # Accelerate (1.15) silently ignores plugins on CPU processes; it looks at this type.
            PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
        plugin = FullyShardedDataParallelPlugin()
        config, on_cpu = self.config, not torch.cuda.is_available()
        if isinstance(config, TrainAloe) and config.aloe.shared_vision and on_cpu:
            # There a Block is called once for each length of question, so ranks would not agree.
            plugin.auto_wrap_policy = None
        # float32 here: `autocast` does the rest, weights and sums stay float32.
        return make_accelerator("fp32", fsdp_plugin=plugin)

    def setup(self, task: nn.Module, restore: Restore) -> dict[str, Any]:
        from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

        self.cpu_task = copy.deepcopy(task)
        task = task.to(self.accelerator.device)
        prepared = self.accelerator.prepare(task, *build_optimizers(task, self.config.optimizer))
        self.task, self.optimizers = prepared[0], [part.optimizer for part in prepared[1:]]
        kind = self.accelerator.distributed_type
        if kind != DistributedType.FSDP or not isinstance(self.task, FSDPModule):
            raise self.wrong_engine(str(kind))
        if not all(isinstance(value, DTensor) for value in self.task.parameters()):
            raise self.wrong_engine("a model with weights that are not sharded")
        for module in self.task.modules():  # methods beside forward need the full weights too
            if isinstance(module, Block):
                register_fsdp_forward_method(module, Block.project_kv.__name__)
        register_fsdp_forward_method(self.task, "step_context")
        if TaskOutput not in _pytree.SUPPORTED_NODES:
            # Else FSDP does not find the tensors in it and gathers no gradients for the loss.
            _pytree.register_dataclass(TaskOutput)
        # A block's keys and values are views; nothing writes into them.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        return self.load(restore)

    def wrap(self) -> None:
        self.model = self.task

    @contextmanager
    def gradient_sync(self, last: bool) -> Iterator[None]:
        self.model.set_requires_gradient_sync(last)
        yield

    def gather_weights(self) -> dict[str, Tensor]:
        state = {**self.task.state_dict(), **(self.ema_weights or {})}
        return {name: full_tensor(value.detach()) for name, value in state.items()}

    def replicated_tensors(self) -> list[Tensor]:
        return list(self.task.buffers())


FSDP2_DEFAULTS = {
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block",
}
