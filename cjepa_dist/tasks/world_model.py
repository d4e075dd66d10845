"""A task turns a batch into a loss: model + losses, and the running statistics that the losses read.

    batch, step ──> task(batch, step) ──> Outcome(loss, metrics, statistics)
                    task.update(statistics summed over ranks), after the step

A task is wrapped whole (DDP synchronises gradients only of what runs inside its forward). Losses are exact under data parallelism:
what they divide by is summed over ranks first, and the gradient average over ranks is undone by multiplying by their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cjepa_dist.causal.attention_graph import published_adjacency
from cjepa_dist.causal.graph import GraphContext, estimate
from cjepa_dist.causal.interventional_graph import residual, without_dropout
from cjepa_dist.config.schema import TermConfig, TrainWorldModel
from cjepa_dist.losses import ctt, jepa
from cjepa_dist.losses.ctt import CttTerms
from cjepa_dist.models.masking import hidden_slots
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.runtime.collectives import all_reduce, world_size
from cjepa_dist.tasks import collapse
from cjepa_dist.tasks.base import Batch, TaskOutput
from cjepa_dist.tasks.residuals import BINS, LOG_RANGE, STATISTICS_DECAY, histogram_median
from cjepa_dist.tasks.schedule import TermWeights, ramp


@dataclass(frozen=True)
class LossDenominators:
    """Of the whole batch of a step, all passes and ranks: what the causal terms divide by, (2,), and the released graph (S, S)."""

    counts: Tensor
    adjacency: Tensor | None


class WorldModelTask(nn.Module):
    """C-JEPA with the losses of its config. Buffers: residual variance (D,), median residual (), the empty slot (D,)."""

    ragged: Mapping[str, Any] = {}  # see VqaTask
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

    def forward(
        self,
        batch: Batch,
        step: int | Tensor,
        progress: float | TermWeights = 0.0,
        survey: LossDenominators | None = None,
    ) -> TaskOutput:
        """batch slots (B, T, S, D), present (B, T, S), sample (B,); progress in [0, 1) is the part of the run behind us, or what `terms`
        makes of it.

        T is T_h + horizon T_p. `survey` as from `survey`, where the batch of this step is more than one pass.
        """
        config, history_frames = self.config, self.config.predictor.history_frames
        window = history_frames + config.predictor.pred_frames
        x, present, sample = (
            batch["slots"][:, :window],
            batch["present"][:, :window],
            batch["sample"],
        )
        history = x[:, :history_frames]
        hidden = hidden_slots(config.mask, config.seed, step, sample, x.shape[2])
        weights = self.weights(progress)
        maps = None
        if weights and config.ctt.kind == "published":  # its graph is this very pass
            z, maps = self.predictor(history, hidden, need_attention="last")
        else:
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
        if weights:
            adjacency = None if maps is None else self.mean_adjacency(maps[-1])
            terms = self.causal_terms(
                self.part(batch),
                self.chosen(z),
                adjacency if survey is None else survey.adjacency,
                step,
            )
            loss = loss + self.weighted(terms, weights, survey, metrics)
        if steps := self.consistency_weights(progress):
            term = ctt.consistency(self.predictor, self.chosen(batch["slots"]), self.sigma2, steps)
            metrics["loss_consistency"] = (term.detach() * rows, rows)
            loss = loss + config.ctt.consistency.weight * term
        metrics["loss"] = (loss.detach() * rows, rows)
        with torch.no_grad():
            metrics["copy_last_frame"] = (
                (x[:, history_frames:] - x[:, history_frames - 1 : history_frames]).square().mean()
                * rows,
                rows,
            )
            statistics = self.statistics(z, x, present)
            ahead = slice(history_frames, None)
            moments = (
                None
                if self.training
                else collapse.collapse_moments(
                    z[:, ahead], x[:, ahead], present[:, ahead.start : window]
                )
            )
        return TaskOutput(loss, metrics, statistics, moments)

    def terms(self, progress: float) -> TermWeights:
        """What counts at a point of the run."""
        steps = {
            f"consistency_{k}": weight
            for k, weight in self.consistency_weights(progress).items()
            if weight
        }
        return TermWeights({**self.weights(progress), **steps})

    def weights(self, progress: float | TermWeights) -> dict[str, float | Tensor]:
        """Weights of the terms that need a graph, {} when all are 0 or in evaluation."""
        if isinstance(progress, TermWeights):
            return progress.chosen(("invariance", "sufficiency"))
        found: dict[str, float | Tensor] = {
            name: ramp(getattr(self.config.ctt, name), progress)
            for name in ("invariance", "sufficiency")
        }
        return found if self.training and any(found.values()) else {}

    def consistency_weights(self, progress: float | TermWeights) -> dict[int, float | Tensor]:
        """How far each number of predictions in a row counts at this point of the run, 0 to 1; {} when none does or in evaluation."""
        term = self.config.ctt.consistency
        if isinstance(progress, TermWeights):
            return {
                k: progress.values[name]
                for k in sorted(term.steps)
                if (name := f"consistency_{k}") in progress.values
            }
        found: dict[int, float | Tensor] = {
            k: ramp(TermConfig(1.0, term.start + i * term.ramp, term.ramp), progress)
            for i, k in enumerate(sorted(term.steps))
        }
        return found if self.training and term.weight and any(found.values()) else {}

    def hidden_share(self, step: int | Tensor, device: torch.device) -> Tensor:
        """() hidden slots of the global batch / (processes x accumulation). Masks are functions of the sample: nothing is communicated."""
        parts = world_size() * self.config.loop.gradient_accumulation
        return self.global_hidden(step, device).sum().float().clamp(min=1) / parts

    def global_hidden(self, step: int | Tensor, device: torch.device) -> Tensor:
        """(global batch, S) bool: the masks of all ranks."""
        batch = self.config.loop.global_batch_size
        sample = step * batch + torch.arange(batch, device=device)
        return hidden_slots(
            self.config.mask, self.config.seed, step, sample, self.config.predictor.slots
        )

    def combine(self, means: dict[str, float]) -> float:
        """The validation loss from the means of its parts: a mean of batches' losses would depend on how samples fall into batches."""
        parts = (
            (self.config.future_weight, "loss_future"),
            (self.config.history_weight, "loss_masked_history"),
        )
        return sum(weight * means.get(name, 0.0) for weight, name in parts)

    def chosen(self, values: Tensor) -> Tensor:
        """The rows (b, ...) of values (B, ...) on which causal terms are computed: `fraction` of them, spread evenly."""
        if (fraction := self.config.ctt.fraction) >= 1:
            return values
        edges = [math.floor(round(fraction * row, 6)) for row in range(len(values) + 1)]
        rows = [row for row in range(len(values)) if edges[row + 1] > edges[row]] or [0]
        stride = rows[1] - rows[0] if len(rows) > 1 else len(values)
        if rows == list(range(rows[0], len(values), stride)):
            return values[rows[0] :: stride]
        return values[torch.tensor(rows, device=values.device)]

    def part(self, batch: Batch) -> Batch:
        return {
            name: self.chosen(value)
            for name, value in batch.items()
            if value.ndim and len(value) == len(batch["sample"])
        }

    def mean_adjacency(self, last: Tensor) -> Tensor:
        """The released graph (S, S): of attention (B, heads, N, N), a mean over the batch of all ranks."""
        frames, slots = self.config.predictor.history_frames, self.config.predictor.slots
        mean = published_adjacency(self.chosen(last), frames, slots).detach().float().mean(dim=0)
        return all_reduce(mean) / world_size()

    def drawn_slots(self, step: int | Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The slots i and k of the released losses: from the masks of the global batch, so every rank and pass draws the same."""
        return ctt.draw_slots(self.global_hidden(step, device), seed=self.config.seed, step=step)

    def causal_terms(
        self, part: Batch, z: Tensor, adjacency: Tensor | None, step: int | Tensor
    ) -> CttTerms:
        """Invariance and sufficiency on `part` of a batch; z (b, T, S, D) its prediction, `adjacency` (S, S) for the released losses."""
        config, frames = self.config.ctt, self.config.predictor.history_frames
        x, sample = part["slots"][:, : frames + self.config.predictor.pred_frames], part["sample"]
        hidden = hidden_slots(self.config.mask, self.config.seed, step, sample, x.shape[2])
        if config.kind == "published":
            i, k = self.drawn_slots(step, x.device)
            threshold = config.graph.threshold
            return ctt.published(
                self.predictor,
                x,
                hidden,
                z,
                threshold=threshold,
                slot_invariance=i,
                slot_sufficiency=k,
                mean=adjacency,
            )
        present = part["present"][:, frames - 1]
        context = self.graph_context(sample, step)
        graph = estimate(
            config.graph, self.predictor, x[:, :frames], present, context=context, truth=part
        )
        if (
            self.config.predictor.dropout
        ):  # the terms compare passes without it; else the base pass is the clean one
            with torch.no_grad(), without_dropout(self.predictor):
                z = self.predictor(x[:, :frames], hidden, future_only=True)
        return ctt.per_sample(
            self.predictor, x, hidden, present, graph, self.sigma2,
            margin=config.margin, seed=self.config.seed, step=step, sample=sample,
            z0=z,
        )  # fmt: skip

    def weighted(
        self,
        terms: CttTerms,
        weights: dict[str, float | Tensor],
        survey: LossDenominators | None,
        metrics: dict,
    ) -> Tensor:
        """The terms as part of the loss: what they divide by is of the global batch, from `survey` or summed here over ranks."""
        counts = torch.stack([terms.invariance_count, terms.sufficiency_count]).float()
        total = all_reduce(counts) if survey is None else survey.counts
        scale = world_size() * self.config.loop.gradient_accumulation / total.clamp(min=1e-6)
        for name, value, n in (
            ("invariance", terms.invariance_sum, counts[0]),
            ("sufficiency", terms.sufficiency_sum, counts[1]),
        ):
            metrics[f"loss_{name}"] = (value.detach(), n)
        count = torch.ones_like(counts[0])
        metrics.update({name: (value.detach(), count) for name, value in terms.metrics.items()})
        return (
            weights["invariance"] * terms.invariance_sum * scale[0]
            + weights["sufficiency"] * terms.sufficiency_sum * scale[1]
        )

    @torch.no_grad()
    def survey(self, batches: list[Batch], step: int, progress: float) -> LossDenominators | None:
        """What the causal terms divide by, over all passes of a step and all ranks; None where no term needs it or there is one pass.

        A count depends on predictions, so it takes one more forward of everything, without gradient: the price of accumulation.
        """
        if len(batches) == 1 or not self.weights(progress):
            return None
        config, frames = self.config.ctt, self.config.predictor.history_frames
        parts = [self.part(batch) for batch in batches]
        hidden = [
            hidden_slots(
                self.config.mask, self.config.seed, step, part["sample"], part["slots"].shape[2]
            )
            for part in parts
        ]
        if config.kind == "published":
            maps = [
                self.predictor(
                    part["slots"][:, :frames], mask, need_attention="last", future_only=True
                )[1][-1]
                for part, mask in zip(parts, hidden)
            ]
            adjacency = torch.stack(
                [
                    published_adjacency(
                        last, frames, last.shape[-1] // (frames + self.config.predictor.pred_frames)
                    )
                    for last in maps
                ]
            )
            mean = all_reduce(adjacency.float().mean(dim=(0, 1))) / world_size()
            i, k = self.drawn_slots(step, mean.device)
            choices = [
                ctt.published_choice(mean, mask, config.graph.threshold, i, k) for mask in hidden
            ]
            counts = torch.stack(
                [
                    torch.stack([weight.sum(), far.any() * float(len(weight))])
                    for weight, far in choices
                ]
            ).sum(0)
            return LossDenominators(all_reduce(counts), mean)
        counts = torch.zeros(2, device=self.sigma2.device)
        for part, mask in zip(parts, hidden):
            with without_dropout(self.predictor):
                z = self.predictor(part["slots"][:, :frames], mask)
            terms = self.causal_terms(part, z, None, step)
            counts += torch.stack([terms.invariance_count, terms.sufficiency_count])
        return LossDenominators(all_reduce(counts), None)

    def statistics(self, z: Tensor, x: Tensor, present: Tensor) -> Tensor:
        """(D + 1 + BINS,): squared residuals summed, their count, a histogram of residuals in nats: sums, so exact over ranks."""
        history_frames = self.config.predictor.history_frames
        seen = (
            present[:, history_frames - 1 : history_frames] & present[:, history_frames:]
        ).float()
        error = (z[:, history_frames:] - x[:, history_frames:]).float()
        squares = (error.square() * seen[..., None]).sum((0, 1, 2))
        nats = residual(z[:, history_frames:].float(), x[:, history_frames:], self.sigma2)
        place = (
            ((nats.clamp(min=1e-30).log() - LOG_RANGE[0]) / (LOG_RANGE[1] - LOG_RANGE[0]) * BINS)
            .long()
            .clamp(0, BINS - 1)
        )
        histogram = (
            torch.zeros_like(squares[:1])
            .expand(BINS)
            .scatter_add(0, place.flatten(), seen.amin(1).flatten())
        )
        return torch.cat([squares, seen.sum()[None], histogram])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        """Move the running statistics; `statistics` as from forward, summed over ranks. The first update replaces them."""
        dim = len(self.sigma2)
        decay = STATISTICS_DECAY * (self.updates > 0)
        self.sigma2.lerp_(
            (statistics[:dim] / statistics[dim].clamp(min=1)).clamp(min=1e-8), 1 - decay
        )
        self.tau.lerp_(
            histogram_median(statistics[dim + 1 :]), 1 - STATISTICS_DECAY * (self.updates > 1)
        )
        self.updates += 1

    def graph_context(self, sample: Tensor, step: int | Tensor = 0) -> GraphContext:
        return GraphContext(
            sigma2=self.sigma2,
            tau=self.tau,
            empty=self.empty,
            seed=self.config.seed,
            step=step,
            sample=sample,
        )
