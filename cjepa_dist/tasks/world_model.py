"""C-JEPA as a task: prediction errors, causal terms, and the statistics that those read.

slots (B, T, S, D) ──predictor, some slots hidden──> prediction ──> errors of future, of history
                                                         └──> causal terms on part of the batch
step_context: masks of the global batch, drawn once a step; with gradient accumulation also
              what the causal terms divide by, which takes one more forward of everything
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cjepa_dist.causal.attention_graph import published_adjacency
from cjepa_dist.causal.graph import GraphContext, estimate_graph
from cjepa_dist.config.schema import TermConfig, TrainWorldModel
from cjepa_dist.data.dataset import Batch
from cjepa_dist.losses import ctt, jepa
from cjepa_dist.losses.ctt import CttTerms
from cjepa_dist.losses.extra import extra_loss
from cjepa_dist.models.dropout import without_dropout
from cjepa_dist.models.masking import draw_hidden_slots
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.runtime.collectives import all_reduce, world_size
from cjepa_dist.tasks.base import EVALUATION, StepContext, TaskOutput, Weights
from cjepa_dist.tasks.collapse import collapse_moments
from cjepa_dist.tasks.residuals import Residuals
from cjepa_dist.tasks.schedule import ramp

GRAPH_TERMS = ("invariance", "sufficiency")  # the terms that read a graph


class WorldModelTask(nn.Module):
    """C-JEPA with the losses of its config.

    Buffers: residual variance `sigma2` (D,), median residual `tau` (), how often the two were
    measured, `updates` (); the `empty` slot (D,).
    """

    ragged: Mapping[str, Any] = {}  # no input changes its shape, see VqaTask
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

    # --- once a step --------------------------------------------------------------------------

    def term_weights(self, progress: float) -> dict[str, float]:
        """The terms beside the prediction errors that count at this point of the run, by name.

        Both terms that read a graph, if one of them counts; `consistency_<k>`, 0 to 1, for each
        number k of predictions in a row that counts.
        """
        config = self.config.ctt
        graph = {name: ramp(getattr(config, name), progress) for name in GRAPH_TERMS}
        found = graph if any(graph.values()) else {}
        term = config.consistency
        for index, k in enumerate(sorted(term.steps) if term.weight else ()):
            one = TermConfig(1.0, term.start + index * term.ramp, term.ramp)
            if weight := ramp(one, progress):
                found[f"consistency_{k}"] = weight
        return found

    @torch.no_grad()
    def step_context(
        self, batches: list[Batch], step: int | Tensor, weights: Weights
    ) -> StepContext:
        """What the passes of a step share; all ranks call it with their `batches`.

        What the causal terms divide by depends on predictions, so where there is more than one
        pass it takes another forward of them all: the price of accumulation.
        """
        masks = self.draw_global_masks(batches, step)
        context = StepContext(step, weights, masks)
        if len(batches) == 1 or "invariance" not in weights:
            return context
        parts = [self.causal_rows_of(batch) for batch in batches]
        if self.config.ctt.kind == "published":
            counts, adjacency = self.published_counts(parts, context)
            return StepContext(step, weights, masks, all_reduce(counts), adjacency)
        counts = torch.zeros(2, device=self.sigma2.device)
        for part in parts:
            hidden = self.hidden_of(part, context)
            with without_dropout(self.predictor):
                prediction = self.predictor(self.history_of(part), hidden)
            terms = self.graph_terms(part, hidden, prediction, context)
            counts += torch.stack([terms.invariance_count, terms.sufficiency_count])
        return StepContext(step, weights, masks, all_reduce(counts))

    def published_counts(self, parts: list[Batch], context: StepContext) -> tuple[Tensor, Tensor]:
        """(2,) what the published terms divide by on this rank, and their global graph (S, S)."""
        config, predictor = self.config, self.config.predictor
        hidden = [self.hidden_of(part, context) for part in parts]
        attention = [
            self.predictor(self.history_of(part), mask, need_attention="last", future_only=True)[1]
            for part, mask in zip(parts, hidden)
        ]
        frames = predictor.history_frames
        each = [
            published_adjacency(
                layers[-1], frames, layers[-1].shape[-1] // (frames + predictor.pred_frames)
            )
            for layers in attention
        ]
        mean = all_reduce(torch.stack(each).float().mean(dim=(0, 1))) / world_size()
        i, k = self.published_slots(context)
        choices = [
            ctt.select_published_slots(mean, mask, config.ctt.graph.threshold, i, k)
            for mask in hidden
        ]
        counts = [
            torch.stack([weight.sum(), far.any() * float(len(weight))]) for weight, far in choices
        ]
        return torch.stack(counts).sum(0), mean

    def draw_global_masks(self, batches: list[Batch], step: int | Tensor) -> Tensor:
        """(global batch, S) bool: the hidden slots of all samples of a step, on every rank."""
        sample = batches[0]["sample"]
        if self.parts > 1:  # else this batch is the global one
            size = self.config.loop.global_batch_size
            sample = step * size + torch.arange(size, device=sample.device)
        return self.draw_masks(step, sample)

    @property
    def parts(self) -> int:
        """How many batches make up the global one: processes x passes."""
        return world_size() * self.config.loop.gradient_accumulation

    def draw_masks(self, step: int | Tensor, sample: Tensor) -> Tensor:
        """(B, S) bool for global sample indices (B,)."""
        config = self.config
        return draw_hidden_slots(config.mask, config.seed, step, sample, config.predictor.slots)

    # --- once a pass --------------------------------------------------------------------------

    def forward(self, batch: Batch, context: StepContext = EVALUATION) -> TaskOutput:
        """`batch`: slots (B, T, S, D), present (B, T, S), sample (B,), with T = T_h + horizon T_p.

        Without masks in `context` the batch is evaluated: its masks are those of step 0.
        """
        config, frames = self.config, self.config.predictor.history_frames
        window = frames + config.predictor.pred_frames
        x, present = batch["slots"][:, :window], batch["present"][:, :window]
        hidden, weights = self.hidden_of(batch, context), context.weights
        attention = None
        if "invariance" in weights and config.ctt.kind == "published":
            # The published graph is the attention of this very pass.
            z, attention = self.predictor(x[:, :frames], hidden, need_attention="last")
        else:
            z = self.predictor(x[:, :frames], hidden)

        future = jepa.future_loss(z, x, frames)
        count = self.hidden_count(hidden, context)
        history = jepa.history_loss(z, x, hidden, frames, count)
        loss = config.future_weight * future + config.history_weight * history
        rows = torch.full_like(future, float(len(x)))
        metrics = {
            "loss_future": (future.detach() * rows, rows),
            "loss_masked_history": (history.detach() * count, hidden.sum().float()),
        }
        if "invariance" in weights:
            adjacency = context.adjacency
            if attention is not None and adjacency is None:
                adjacency = self.mean_adjacency(attention[-1])
            terms = self.graph_terms(
                self.causal_rows_of(batch),
                self.causal_rows(hidden),
                self.causal_rows(z),
                context,
                adjacency,
            )
            loss = loss + self.weighted_terms(terms, context, metrics)
        if steps := consistency_weights(weights):
            slots = self.causal_rows(batch["slots"])
            term = ctt.consistency_loss(self.predictor, slots, self.sigma2, steps)
            metrics["loss_consistency"] = (term.detach() * rows, rows)
            loss = loss + config.ctt.consistency.weight * term
        for name, weight in config.extra_losses.items():
            term = extra_loss(name, self.predictor, x, z, hidden)
            metrics[f"loss_{name}"] = (term.detach() * rows, rows)
            loss = loss + weight * term
        metrics["loss"] = (loss.detach() * rows, rows)

        with torch.no_grad():
            last, truth = x[:, frames - 1 : frames], x[:, frames:]
            metrics["copy_last_frame"] = ((truth - last).square().mean() * rows, rows)
            moments = None
            if not self.training:
                moments = collapse_moments(z[:, frames:], truth, present[:, frames:])
        return TaskOutput(loss, metrics, moments)

    def hidden_of(self, batch: Batch, context: StepContext) -> Tensor:
        """(B, S) bool: the hidden slots of a batch, taken from the masks of its step."""
        if context.masks is None:
            return self.draw_masks(context.step, batch["sample"])
        if self.parts == 1:
            return context.masks
        first = context.step * self.config.loop.global_batch_size
        return context.masks.index_select(0, batch["sample"] - first)

    def history_of(self, batch: Batch) -> Tensor:
        """(B, T_h, S, D)."""
        return batch["slots"][:, : self.config.predictor.history_frames]

    def hidden_count(self, hidden: Tensor, context: StepContext) -> Tensor:
        """() what the error of the hidden history divides by.

        In training the hidden slots of the global batch over processes and passes.
        """
        if context.masks is None:
            return hidden.sum().float().clamp(min=1)
        return context.masks.sum().float().clamp(min=1) / self.parts

    def graph_terms(
        self,
        part: Batch,
        hidden: Tensor,
        z: Tensor,
        context: StepContext,
        adjacency: Tensor | None = None,
    ) -> CttTerms:
        """Invariance and sufficiency on the rows `part` of a batch.

        hidden (b, S) and z (b, T, S, D) are its masks and prediction; `adjacency` (S, S) is the
        global graph of the published losses.
        """
        config, frames = self.config.ctt, self.config.predictor.history_frames
        x = part["slots"][:, : frames + self.config.predictor.pred_frames]
        if config.kind == "published":
            i, k = self.published_slots(context)
            return ctt.published_terms(
                self.predictor,
                x,
                hidden,
                z,
                threshold=config.graph.threshold,
                invariance_slot=i,
                sufficiency_slot=k,
                mean_adjacency=adjacency,
            )
        present, sample = part["present"][:, frames - 1], part["sample"]
        graph = estimate_graph(
            config.graph,
            self.predictor,
            x[:, :frames],
            present,
            context=self.graph_context(sample, context.step),
            truth=part,
        )
        if self.config.predictor.dropout:
            # The terms compare passes without dropout; else the base pass is already clean.
            learns = torch.is_grad_enabled() and config.invariance.target == "removed"
            with torch.set_grad_enabled(learns), without_dropout(self.predictor):
                z = self.predictor(x[:, :frames], hidden, future_only=True)
        return ctt.per_sample_terms(
            self.predictor,
            x,
            hidden,
            present,
            graph,
            self.sigma2,
            margin=config.margin,
            seed=self.config.seed,
            step=context.step,
            sample=sample,
            invariance=config.invariance,
            sufficiency=config.sufficiency,
            empty=self.empty,
            base_prediction=z,
        )

    def weighted_terms(
        self, terms: CttTerms, context: StepContext, metrics: dict[str, tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Invariance and sufficiency as a part of the loss (); adds their `metrics`.

        They divide by the counts of the global batch: of the context, or summed here over ranks.
        """
        counts = torch.stack([terms.invariance_count, terms.sufficiency_count]).float()
        total = all_reduce(counts) if context.denominators is None else context.denominators
        scale = self.parts / total.clamp(min=1e-6)
        metrics["loss_invariance"] = (terms.invariance_sum.detach(), counts[0])
        metrics["loss_sufficiency"] = (terms.sufficiency_sum.detach(), counts[1])
        one = torch.ones_like(counts[0])
        metrics.update({name: (value.detach(), one) for name, value in terms.metrics.items()})
        weights = context.weights
        return (
            weights["invariance"] * terms.invariance_sum * scale[0]
            + weights["sufficiency"] * terms.sufficiency_sum * scale[1]
        )

    def published_slots(self, context: StepContext) -> tuple[Tensor, Tensor]:
        """The slots i and k of the published losses, from the masks of the global batch.

        So every rank and pass draws the same.
        """
        assert context.masks is not None  # every training step has them
        return ctt.draw_batch_slots(context.masks, seed=self.config.seed, step=context.step)

    def mean_adjacency(self, last: Tensor) -> Tensor:
        """The published graph (S, S), from attention (B, heads, N, N) of the global batch."""
        frames, slots = self.config.predictor.history_frames, self.config.predictor.slots
        each = published_adjacency(self.causal_rows(last), frames, slots).detach()
        return all_reduce(each.float().mean(dim=0)) / world_size()

    def causal_rows(self, values: Tensor) -> Tensor:
        """The rows (b, ...) of values (B, ...) that the causal terms are computed on.

        `ctt.fraction` of them, spread evenly over the batch.
        """
        if (fraction := self.config.ctt.fraction) >= 1:
            return values
        edges = [math.floor(round(fraction * row, 6)) for row in range(len(values) + 1)]
        rows = [row for row in range(len(values)) if edges[row + 1] > edges[row]] or [0]
        stride = rows[1] - rows[0] if len(rows) > 1 else len(values)
        if rows == list(range(rows[0], len(values), stride)):
            return values[rows[0] :: stride]
        return values[torch.tensor(rows, device=values.device)]

    def causal_rows_of(self, batch: Batch) -> Batch:
        """The same rows of every tensor of a batch."""
        size = len(batch["sample"])
        return {
            name: self.causal_rows(value)
            for name, value in batch.items()
            if value.ndim and len(value) == size
        }

    # --- after a step, and for those that measure ---------------------------------------------

    @torch.no_grad()
    def set_residuals(self, measured: Residuals) -> None:
        """The unit of the causal terms and the threshold of graphs, from here on."""
        self.sigma2.copy_(measured.sigma2)
        self.tau.copy_(measured.tau)
        self.updates += 1

    def validation_loss(self, means: dict[str, float]) -> float:
        """The loss of a validation from the means of its parts.

        A mean of the batches' losses would depend on how samples fall into batches.
        """
        future = self.config.future_weight * means.get("loss_future", 0.0)
        return future + self.config.history_weight * means.get("loss_masked_history", 0.0)

    def graph_context(self, sample: Tensor, step: int | Tensor = 0) -> GraphContext:
        """What a graph estimator needs beside the window, for samples (B,)."""
        return GraphContext(
            sigma2=self.sigma2,
            tau=self.tau,
            empty=self.empty,
            seed=self.config.seed,
            step=step,
            sample=sample,
        )


def consistency_weights(weights: Weights) -> dict[int, float | Tensor]:
    """The weight of each number of predictions in a row, from the weights of all terms."""
    names = (name for name in weights if name.startswith("consistency_"))
    found = {int(name.removeprefix("consistency_")): weights[name] for name in names}
    return dict(sorted(found.items()))
