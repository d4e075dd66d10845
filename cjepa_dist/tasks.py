"""A task turns a batch into a loss: model + losses, and the running statistics that the losses read.

    batch, step ──> task(batch, step) ──> Outcome(loss, metrics, statistics)
                    task.update(statistics summed over ranks), after the step

A task is wrapped whole (DDP synchronises gradients only of what runs inside its forward). Losses are exact under data parallelism:
what they divide by is summed over ranks first, and the gradient average over ranks is undone by multiplying by their number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cjepa_dist import runtime
from cjepa_dist.causal.graph import GraphContext, estimate, residual
from cjepa_dist.config import TermConfig, TrainAloe, TrainWorldModel
from cjepa_dist.data.vocabulary import TYPES
from cjepa_dist.losses import ctt, jepa, vqa
from cjepa_dist.models.aloe import Aloe
from cjepa_dist.models.masking import hidden_slots
from cjepa_dist.models.predictor import SlotPredictor

Batch = dict[str, Tensor]
STATISTICS_DECAY = 0.98
BINS, LOG_NATS = 512, (-7.0, 14.0)  # of the histogram of residuals: each bin is 4 % wide


@dataclass
class Outcome:
    """loss () to minimise; metrics {name: (sum, count)} to be summed over ranks; statistics (n,) to be summed over ranks."""

    loss: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]]
    statistics: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class WorldModelTask(nn.Module):
    """C-JEPA with the losses of its config. Buffers: residual variance (D,), median residual (), the empty slot (D,)."""

    sigma2: Tensor
    tau: Tensor
    updates: Tensor
    empty: Tensor

    def __init__(self, config: TrainWorldModel) -> None:
        super().__init__()
        self.config = config
        self.predictor = SlotPredictor(config.predictor)
        dim = config.predictor.slot_dim
        self.register_buffer("sigma2", torch.ones(dim))
        self.register_buffer("tau", torch.ones(()))
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("empty", torch.zeros(dim))

    def forward(self, batch: Batch, step: int, progress: float = 0.0) -> Outcome:
        """batch slots (B, T, S, D), present (B, T, S), sample (B,); progress in [0, 1) is the part of the run behind us."""
        config, history_frames = self.config, self.config.predictor.history_frames
        x, present, sample = batch["slots"], batch["present"], batch["sample"]
        history = x[:, :history_frames]
        hidden = hidden_slots(config.mask, config.seed, step, sample, x.shape[2])
        weights = {
            "invariance": ramp(config.ctt.invariance, progress) if self.training else 0.0,
            "sufficiency": ramp(config.ctt.sufficiency, progress) if self.training else 0.0,
        }
        z = self.predictor(history, hidden)
        future = jepa.future_loss(z, x, history_frames)
        hidden_count = hidden.sum().float()
        count = self.hidden_share(step, x.device) if self.training else hidden_count.clamp(min=1)
        history_error = jepa.history_loss(z, x, hidden, history_frames, count)
        loss = config.future_weight * future + config.history_weight * history_error
        rows = torch.full_like(future, float(len(x)))
        metrics = {
            "loss_future": (future.detach() * rows, rows),
            "loss_masked_history": (history_error.detach() * count, hidden_count),
        }
        if any(weights.values()):
            loss = loss + self.causal_terms(batch, hidden, z, weights, step, metrics)
        metrics["loss"] = (loss.detach() * rows, rows)
        with torch.no_grad():
            metrics["copy_last_frame"] = ((x[:, history_frames:] - x[:, history_frames - 1 : history_frames]).square().mean() * rows, rows)
            statistics = self.statistics(z, x, present)
        return Outcome(loss, metrics, statistics)

    def hidden_share(self, step: int, device: torch.device) -> Tensor:
        """() hidden slots of the global batch / (processes x accumulation). Masks are functions of the sample: nothing is communicated."""
        loop = self.config.loop
        sample = step * loop.global_batch + torch.arange(loop.global_batch, device=device)
        hidden = hidden_slots(self.config.mask, self.config.seed, step, sample, self.config.predictor.slots)
        return hidden.sum().float().clamp(min=1) / (runtime.world_size() * loop.accumulation)

    def combine(self, means: dict[str, float]) -> float:
        """The validation loss from the means of its parts: a mean of batches' losses would depend on how samples fall into batches."""
        parts = ((self.config.future_weight, "loss_future"), (self.config.history_weight, "loss_masked_history"))
        return sum(weight * means.get(name, 0.0) for weight, name in parts)

    def causal_terms(self, batch: Batch, hidden: Tensor, z: Tensor, weights: dict[str, float], step: int, metrics: dict) -> Tensor:
        config, history_frames = self.config.ctt, self.config.predictor.history_frames
        count = max(1, round(config.fraction * len(hidden)))
        part = {name: value[:count] for name, value in batch.items() if value.ndim and len(value) == len(hidden)}
        x, hidden = part["slots"], hidden[:count]
        present = part["present"][:, history_frames - 1]
        if config.kind == "published":
            slots = ctt.draw_slots(hidden, seed=self.config.seed, step=step)
            terms = ctt.published(
                self.predictor, x, hidden, threshold=config.graph.threshold, slot_invariance=slots[0], slot_sufficiency=slots[1]
            )
        else:
            context = self.graph_context(part["sample"], step)
            graph = estimate(config.graph, self.predictor, x[:, :history_frames], present, context=context, truth=part)
            terms = ctt.per_sample(
                self.predictor, x, hidden, present, graph, self.sigma2,
                margin=config.margin, seed=self.config.seed, step=step, sample=part["sample"],
                z0=z[:count] if self.config.predictor.dropout == 0 else None,  # then the base pass is the clean one
            )  # fmt: skip
        counts = torch.stack([terms.invariance_count, terms.sufficiency_count]).float()
        scale = runtime.world_size() / runtime.all_reduce(counts).clamp(min=1e-6)
        for name, total, n in (("invariance", terms.invariance_sum, counts[0]), ("sufficiency", terms.sufficiency_sum, counts[1])):
            metrics[f"loss_{name}"] = (total.detach(), n)
        metrics.update({name: (value.detach() * count, torch.full_like(counts[0], float(count))) for name, value in terms.metrics.items()})
        return weights["invariance"] * terms.invariance_sum * scale[0] + weights["sufficiency"] * terms.sufficiency_sum * scale[1]

    def statistics(self, z: Tensor, x: Tensor, present: Tensor) -> Tensor:
        """(D + 1 + BINS,): squared residuals summed, their count, a histogram of residuals in nats: sums, so exact over ranks."""
        history_frames = self.config.predictor.history_frames
        seen = (present[:, history_frames - 1 : history_frames] & present[:, history_frames:]).float()
        error = (z[:, history_frames:] - x[:, history_frames:]).float()
        squares = (error.square() * seen[..., None]).sum((0, 1, 2))
        nats = residual(z[:, history_frames:].float(), x[:, history_frames:], self.sigma2)
        place = ((nats.clamp(min=1e-30).log() - LOG_NATS[0]) / (LOG_NATS[1] - LOG_NATS[0]) * BINS).long().clamp(0, BINS - 1)
        histogram = torch.zeros_like(squares[:1]).expand(BINS).scatter_add(0, place.flatten(), seen.amin(1).flatten())
        return torch.cat([squares, seen.sum()[None], histogram])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        """Move the running statistics; `statistics` as from forward, summed over ranks. The first update replaces them."""
        dim = len(self.sigma2)
        decay = STATISTICS_DECAY * (self.updates > 0)
        self.sigma2.lerp_((statistics[:dim] / statistics[dim].clamp(min=1)).clamp(min=1e-8), 1 - decay)
        self.tau.lerp_(median(statistics[dim + 1 :]), 1 - STATISTICS_DECAY * (self.updates > 1))
        self.updates += 1

    def graph_context(self, sample: Tensor, step: int = 0) -> GraphContext:
        return GraphContext(sigma2=self.sigma2, tau=self.tau, empty=self.empty, seed=self.config.seed, step=step, sample=sample)


class VqaTask(nn.Module):
    """ALOE with cross-entropy on descriptive questions and binary cross-entropy on choices."""

    def __init__(self, config: TrainAloe) -> None:
        super().__init__()
        self.config = config
        self.aloe = Aloe(config.aloe)

    def combine(self, means: dict[str, float]) -> float:
        """The validation loss from the means of its parts."""
        parts = ((self.config.descriptive_weight, "loss_descriptive"), (self.config.choice_weight, "loss_choice"))
        return sum(weight * means.get(name, 0.0) for weight, name in parts)

    def forward(self, batch: Batch, step: int, progress: float = 0.0) -> Outcome:
        """batch as from QuestionSource, with total_descriptive and total_choice: rows in the global batch."""
        answers, choices = self.aloe(batch["slots"], batch["tokens"], batch["padding"], batch["is_choice"], row_view=batch["row_view"])
        is_choice, label = batch["is_choice"], batch["label"]
        scale = runtime.world_size() * self.config.loop.accumulation if self.training else 1  # the totals are the global batch's
        answer_label, choice_label = torch.where(is_choice, -1, label), torch.where(is_choice, label, -1)
        answer = vqa.answer_loss(answers, answer_label, batch["total_descriptive"])
        choice = vqa.choice_loss(choices, choice_label, batch["total_choice"])
        loss = (self.config.descriptive_weight * answer + self.config.choice_weight * choice) * scale
        known = label >= 0
        metrics = {
            "loss": (loss.detach(), torch.ones_like(loss)),
            "loss_descriptive": (answer.detach() * batch["total_descriptive"], (known & ~is_choice).sum().float()),
            "loss_choice": (choice.detach() * batch["total_choice"], (known & is_choice).sum().float()),
        }
        right = known & torch.where(is_choice, (choices > 0) == (label > 0), answers.argmax(-1) == label)
        for index, name in enumerate(TYPES):  # of answers, or of options
            of_kind = batch["kind"] == index
            metrics[f"accuracy_{name}"] = ((right & of_kind).sum().float(), (known & of_kind).sum().float())
        return Outcome(loss, metrics)


def median(histogram: Tensor) -> Tensor:
    """() nats: the median of a histogram over LOG_NATS, interpolated within its bin."""
    below = histogram.cumsum(0)
    half = below[-1] / 2
    bin = (below < half).sum().clamp(max=BINS - 1)
    part = (half - (below[bin] - histogram[bin])) / histogram[bin].clamp(min=1)
    return (LOG_NATS[0] + (LOG_NATS[1] - LOG_NATS[0]) / BINS * (bin + part)).exp()


def build(config: TrainWorldModel | TrainAloe) -> WorldModelTask | VqaTask:
    return VqaTask(config) if isinstance(config, TrainAloe) else WorldModelTask(config)


def ramp(term: TermConfig, progress: float) -> float:
    """Weight of a term at a point of the run: 0 before `start`, full after `ramp` more."""
    if not term.weight or progress < term.start:
        return 0.0
    return term.weight * (min(1.0, (progress - term.start) / term.ramp) if term.ramp else 1.0)
