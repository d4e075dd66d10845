"""DeepSpeed's ZeRO as an engine: stage 1 shards the optimizer state, 2 the gradients too, 3 the weights too.

    checkpoint ──> plain task and optimizer on the CPU ──push──> DeepSpeed's flat parts       (and back by `pull`)

DeepSpeed's own checkpoints load at one number of processes only; by way of a full copy ours load at any, and under the other engines.
Weights, gradients and optimizer state are float32 and bfloat16 is torch's autocast, as under DDP.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from cjepa_dist.checkpoint.loading import load_checkpoint
from cjepa_dist.checkpoint.writer import CheckpointWriter
from cjepa_dist.engines.base import Restore, ShardedEngine
from cjepa_dist.errors import UserError
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.runtime.collectives import all_reduce
from cjepa_dist.runtime.device import make_accelerator

MOMENTS = ("exp_avg", "exp_avg_sq")


class Plugin(DeepSpeedPlugin):
    """Accelerate's, without its need for transformers (1.15): a registry that only models from there read."""

    def set_deepspeed_weakref(self) -> None:
        self.dschf = None


class DeepSpeedEngine(ShardedEngine):
    """ZeRO 1, 2 or 3 with one optimizer, AdamW or Adam: DeepSpeed flattens weights, and Muon needs matrices."""

    def accelerator(self) -> Accelerator:
        config, loop = self.config, self.loop
        self.stage = int(self.name.removeprefix("zero"))
        if config.optimizer.name == "muon":
            raise UserError(
                f"optimizer.name=muon needs whole matrices; engine {self.name} flattens them: take optimizer.name=adamw, or engine fsdp2"
            )
        try:
            import deepspeed
        except ImportError:
            raise UserError(
                f"engine {self.name} needs DeepSpeed: pip install deepspeed==0.19.8, or take fsdp2"
            ) from None
        from deepspeed.utils import logger

        logger.setLevel(logging.WARNING)
        warnings.filterwarnings(
            "ignore", "`torch.distributed.*` is deprecated", FutureWarning
        )  # DeepSpeed's calls, twice a step
        handlers: list[Any] = []
        if not torch.cuda.is_available():
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
                False  # else it is compiled, 84 s; gloo does the same
            )
            handlers = [InitProcessGroupKwargs(backend="gloo")]
        clip = config.optimizer.max_grad_norm
        plugin = Plugin(
            zero_stage=self.stage,
            gradient_accumulation_steps=loop.gradient_accumulation,
            gradient_clipping=clip,
            zero3_init_flag=False,
        )
        # Accelerate leaves a clip of 0 out, and then DeepSpeed's default is 1.0.
        plugin.deepspeed_config |= {
            "gradient_clipping": clip,
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
        }
        plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        if (
            loop.precision == "bf16"
        ):  # an autocast around DeepSpeed's forward is switched off inside, in silence
            plugin.deepspeed_config["torch_autocast"] = {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            }
        return make_accelerator("fp32", deepspeed_plugin=plugin, kwargs_handlers=handlers)

    def open(self, task: nn.Module, restore: Restore) -> dict[str, Any]:
        self.plain, self.task = copy.deepcopy(task), task
        self.plain_optimizers = build_optimizers(self.plain, self.config.optimizer)
        self.plain_average = self.averaging(dict(self.plain.named_parameters()))
        mean = self.plain_average.mean if self.plain_average else None
        meta = restore(
            partial(load_checkpoint, task=self.plain, optimizers=self.plain_optimizers, mean=mean)
        )
        task.load_state_dict(self.plain.state_dict())
        return meta

    def wrap(self) -> None:
        handle, loop = self.handle, self.loop
        if handle.distributed_type != DistributedType.DEEPSPEED:
            raise self.not_asked(str(handle.distributed_type))
        plugin = handle.state.deepspeed_plugin
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = (
            loop.global_batch_size // handle.num_processes // loop.gradient_accumulation
        )
        self.optimizers = build_optimizers(self.task.to(handle.device), self.config.optimizer)
        self.model, _ = handle.prepare(self.task, *self.optimizers)
        if self.model.zero_optimization_stage() != self.stage:
            raise self.not_asked(f"ZeRO {self.model.zero_optimization_stage()}")
        self.average = self.averaging(self.held())
        self.push()

    @contextmanager
    def sync(self, last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss, scale_wrt_gas=False)

    def update(
        self, statistics: Tensor | None, step: int | Tensor, share: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As of Engine. DeepSpeed looks for numbers that are not finite itself, asks the device, and then leaves all as it was."""
        self.model.step()
        if good := self.model.was_step_applied():
            self.follow(statistics, step)
        norm = torch.as_tensor(
            self.model.get_global_grad_norm(), dtype=torch.float32, device=self.handle.device
        )
        return norm, torch.tensor(good)

    def held(self) -> dict[str, Tensor]:
        """{parameter: what this process holds of it}: all of it, in stage 3 a flat part."""
        return {
            name: getattr(value, "ds_tensor" if self.stage == 3 else "data").data
            for name, value in self.task.named_parameters()
        }

    def parameter_norm(self) -> float:
        if self.stage < 3:
            return super().parameter_norm()
        return float(
            all_reduce(sum(part.float().square().sum() for part in self.held().values())).sqrt()
        )  # type: ignore[arg-type]

    def gathered(self) -> dict[str, Tensor]:
        with self.average.swapped() if self.average else torch.no_grad():
            return self.full()

    def full(self) -> dict[str, Tensor]:
        """The full state dict, a copy."""
        import deepspeed

        parts = list(self.task.parameters()) if self.stage == 3 else []
        with deepspeed.zero.GatheredParameters(parts, enabled=self.stage == 3):
            return {name: value.detach().clone() for name, value in self.task.state_dict().items()}

    def save(self, writer: CheckpointWriter, *, step: int, meta: dict[str, Any]) -> None:
        writer.save(self.plain, self.plain_optimizers, step=step, meta=meta, mean=self.pull())

    def pull(self) -> dict[str, Tensor] | None:
        """Weights and optimizer state into the plain copies; returns the running means."""
        from deepspeed.utils import safe_get_full_optimizer_state

        names = [name for name, _ in self.plain.named_parameters()]
        mean = (
            {name: value.cpu() for name, value in self.gathered().items() if name in names}
            if self.average
            else None
        )
        self.plain.load_state_dict(self.full())
        (state,) = [self.optimizers[0].state[flat] for flat in self.flats()] or [{}]
        live = dict(self.task.named_parameters())
        for name, value in self.plain.named_parameters():
            moments = (
                {key: safe_get_full_optimizer_state(live[name], key) for key in MOMENTS}
                if state
                else {}
            )
            if state:
                kept = {key: moment.view(value.shape).cpu() for key, moment in moments.items()}
                self.plain_optimizers[0].state[value] = {
                    "step": state["step"].detach().cpu().clone(),
                    **kept,
                }
        return mean

    def push(self) -> None:
        """The optimizer state and running means of the plain copies into DeepSpeed's parts."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        plain = dict(self.plain.named_parameters())
        states = {
            name: self.plain_optimizers[0].state.get(value, {}) for name, value in plain.items()
        }
        if self.average and self.plain_average:
            for name, value in self.average.mean.items():
                full = self.plain_average.mean[name]
                value.copy_(self.part(full, value) if self.stage == 3 else full)
        step = next(iter(states.values())).get("step")
        if step is None:
            return
        for flat in self.flats():
            zeros = {key: torch.zeros_like(flat.data) for key in MOMENTS}
            self.optimizers[0].state[flat] = {"step": step.clone().to(flat.device), **zeros}
        if self.stage < 3:
            self.model.optimizer._lazy_init_hp_params_optimizer_state()  # links a parameter with its place in the flat state
        held = self.held()
        for name, parameter in self.task.named_parameters():
            for key in MOMENTS:
                value = states[name][key].to(self.handle.device)
                if self.stage == 3:
                    safe_set_local_optimizer_state(parameter, self.part(value, held[name]), key)
                else:
                    safe_set_full_optimizer_state(parameter, value, key)

    def flats(self) -> list[Tensor]:
        """The flat float32 parts that the optimizer moves."""
        inner = self.model.optimizer
        return list(
            inner.fp32_partitioned_groups_flat
            if self.stage == 3
            else inner.single_partition_of_fp32_groups
        )

    def part(self, full: Tensor, like: Tensor) -> Tensor:
        """This process's flat part of a parameter in stage 3, padded with zeros, of as many numbers as `like`."""
        size, rank = like.numel(), self.handle.process_index
        flat = torch.zeros(size * self.handle.num_processes, dtype=full.dtype, device=like.device)
        flat[: full.numel()] = full.flatten()
        return flat[rank * size : (rank + 1) * size]

    def replicas(self) -> list[Tensor]:
        return [*(self.task.parameters() if self.stage < 3 else ()), *self.task.buffers()]
