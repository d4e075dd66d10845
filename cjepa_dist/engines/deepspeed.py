"""DeepSpeed's ZeRO as an engine: shards of the optimizer state, of gradients, of weights.

    stage 1: optimizer state       stage 2: gradients too       stage 3: weights too
    checkpoint ──> plain task and optimizer on the CPU ──copy_from_cpu──> DeepSpeed's flat shards
                                                       <──copy_to_cpu───

DeepSpeed's own checkpoints load at one number of processes only. By way of a full copy ours load
at any number, and under the other engines. Weights, gradients and optimizer state are float32;
bfloat16 is torch's autocast, as under DDP.
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
    """Accelerate's plugin without its need for transformers (1.15).

    What it registers is read by models of that library alone.
    """

    def set_deepspeed_weakref(self) -> None:
        self.dschf = None


class DeepSpeedEngine(ShardedEngine):
    """ZeRO 1, 2 or 3 with one optimizer, AdamW or Adam.

    DeepSpeed flattens weights, and Muon needs matrices.
    """

    def create_accelerator(self) -> Accelerator:
        config, loop = self.config, self.loop
        self.stage = int(self.name.removeprefix("zero"))
        if config.optimizer.name == "muon":
            raise UserError(
                f"optimizer.name=muon needs matrices, and engine {self.name} flattens them: "
                "take optimizer.name=adamw, or engine fsdp2"
            )
        try:
            import deepspeed
        except ImportError:
            raise UserError(
                f"engine {self.name} needs DeepSpeed: pip install deepspeed, or take fsdp2"
            ) from None
        from deepspeed.utils import logger

        logger.setLevel(logging.WARNING)
        # DeepSpeed's own calls, twice a step.
        warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
        handlers: list[Any] = []
        if not torch.cuda.is_available():
            # Else DeepSpeed compiles it, for 84 s; gloo does the same.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
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
        if loop.precision == "bf16":
            # DeepSpeed silently switches off an autocast around its forward.
            plugin.deepspeed_config["torch_autocast"] = {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            }
        return make_accelerator("fp32", deepspeed_plugin=plugin, kwargs_handlers=handlers)

    def setup(self, task: nn.Module, restore: Restore) -> dict[str, Any]:
        self.cpu_task, self.task = copy.deepcopy(task), task
        self.cpu_optimizers = build_optimizers(self.cpu_task, self.config.optimizer)
        self.cpu_ema = self.make_ema(dict(self.cpu_task.named_parameters()))
        mean = self.cpu_ema.mean if self.cpu_ema else None
        load = partial(
            load_checkpoint, task=self.cpu_task, optimizers=self.cpu_optimizers, ema_weights=mean
        )
        meta = restore(load)
        task.load_state_dict(self.cpu_task.state_dict())
        return meta

    def wrap(self) -> None:
        accelerator, loop = self.accelerator, self.loop
        if accelerator.distributed_type != DistributedType.DEEPSPEED:
            raise self.wrong_engine(str(accelerator.distributed_type))
        plugin = accelerator.state.deepspeed_plugin
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = (
            loop.global_batch_size // accelerator.num_processes // loop.gradient_accumulation
        )
        self.optimizers = build_optimizers(self.task.to(accelerator.device), self.config.optimizer)
        self.model, _ = accelerator.prepare(self.task, *self.optimizers)
        if self.model.zero_optimization_stage() != self.stage:
            raise self.wrong_engine(f"ZeRO {self.model.zero_optimization_stage()}")
        self.ema = self.make_ema(self.local_parameters())
        self.copy_from_cpu()

    @contextmanager
    def gradient_sync(self, last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss, scale_wrt_gas=False)

    def update(self, step: int | Tensor, lr_ratio: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As of Engine.

        DeepSpeed looks for numbers that are not finite itself. It reads that from the device, and
        then leaves all as it was.
        """
        self.model.step()
        if good := self.model.was_step_applied():
            self.update_means(step)
        norm = torch.as_tensor(
            self.model.get_global_grad_norm(), dtype=torch.float32, device=self.accelerator.device
        )
        return norm, torch.tensor(good)

    def local_parameters(self) -> dict[str, Tensor]:
        """{parameter: what this process holds of it}: all of it, in stage 3 a flat shard."""
        held = "ds_tensor" if self.stage == 3 else "data"
        return {name: getattr(value, held).data for name, value in self.task.named_parameters()}

    def parameter_norm(self) -> float:
        if self.stage < 3:
            return super().parameter_norm()
        squares = [shard.float().square().sum() for shard in self.local_parameters().values()]
        return float(all_reduce(torch.stack(squares).sum()).sqrt())

    def gather_weights(self) -> dict[str, Tensor]:
        with self.ema.swapped() if self.ema else torch.no_grad():
            return self.full_state_dict()

    def full_state_dict(self) -> dict[str, Tensor]:
        """The full state dict, a copy."""
        import deepspeed

        parts = list(self.task.parameters()) if self.stage == 3 else []
        with deepspeed.zero.GatheredParameters(parts, enabled=self.stage == 3):
            return {name: value.detach().clone() for name, value in self.task.state_dict().items()}

    def save(self, writer: CheckpointWriter, *, step: int, meta: dict[str, Any]) -> None:
        writer.save(
            self.cpu_task, self.cpu_optimizers, step=step, meta=meta, ema_weights=self.copy_to_cpu()
        )

    def copy_to_cpu(self) -> dict[str, Tensor] | None:
        """Copy weights and optimizer state to the CPU; returns the running means."""
        from deepspeed.utils import safe_get_full_optimizer_state

        names = [name for name, _ in self.cpu_task.named_parameters()]
        mean = None
        if self.ema:
            full = self.gather_weights()
            mean = {name: full[name].cpu() for name in names}
        self.cpu_task.load_state_dict(self.full_state_dict())
        (state,) = [self.optimizers[0].state[flat] for flat in self.flat_partitions()] or [{}]
        live = dict(self.task.named_parameters())
        for name, value in self.cpu_task.named_parameters():
            if not state:
                continue
            copied = {"step": state["step"].detach().cpu().clone()}
            for key in MOMENTS:
                moment = safe_get_full_optimizer_state(live[name], key)
                copied[key] = moment.view(value.shape).cpu()
            self.cpu_optimizers[0].state[value] = copied
        return mean

    def copy_from_cpu(self) -> None:
        """Copy optimizer state and running means from the CPU into DeepSpeed's shards."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        plain = dict(self.cpu_task.named_parameters())
        states = {
            name: self.cpu_optimizers[0].state.get(value, {}) for name, value in plain.items()
        }
        if self.ema and self.cpu_ema:
            for name, value in self.ema.mean.items():
                full = self.cpu_ema.mean[name]
                value.copy_(self.local_part(full, value) if self.stage == 3 else full)
        step = next(iter(states.values())).get("step")
        if step is None:
            return
        for flat in self.flat_partitions():
            zeros = {key: torch.zeros_like(flat.data) for key in MOMENTS}
            self.optimizers[0].state[flat] = {"step": step.clone().to(flat.device), **zeros}
        if self.stage < 3:
            # Links each parameter with its place in the flat state.
            self.model.optimizer._lazy_init_hp_params_optimizer_state()
        held = self.local_parameters()
        for name, parameter in self.task.named_parameters():
            for key in MOMENTS:
                value = states[name][key].to(self.accelerator.device)
                if self.stage == 3:
                    safe_set_local_optimizer_state(
                        parameter, self.local_part(value, held[name]), key
                    )
                else:
                    safe_set_full_optimizer_state(parameter, value, key)

    def flat_partitions(self) -> list[Tensor]:
        """The flat float32 shards that the optimizer updates."""
        inner = self.model.optimizer
        if self.stage == 3:
            return list(inner.fp32_partitioned_groups_flat)
        return list(inner.single_partition_of_fp32_groups)

    def local_part(self, full: Tensor, like: Tensor) -> Tensor:
        """This process's flat shard of a parameter in stage 3, of the size of `like`.

        The last shard is padded with zeros.
        """
        size, here = like.numel(), self.accelerator
        flat = torch.zeros(size * here.num_processes, dtype=full.dtype, device=like.device)
        flat[: full.numel()] = full.flatten()
        return flat[here.process_index * size : (here.process_index + 1) * size]

    def replicated_tensors(self) -> list[Tensor]:
        return [*(self.task.parameters() if self.stage < 3 else ()), *self.task.buffers()]
