"""ALOE with its losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cjepa_dist.clevrer.vocabulary import PAD, TYPES
from cjepa_dist.config.schema import TrainAloe
from cjepa_dist.losses import vqa
from cjepa_dist.models.aloe import Aloe
from cjepa_dist.runtime.collectives import all_reduce, world_size
from cjepa_dist.tasks.base import Batch, TaskOutput
from cjepa_dist.tasks.schedule import TermWeights


class VqaTask(nn.Module):
    """ALOE with cross-entropy on descriptive questions and binary cross-entropy on choices.

    `ragged`: what has another number of rows in each batch, the multiple of rows that it may be filled up to, and with what, so that
    nothing changes but what is computed in vain; None: not read here.
    """

    ragged: Mapping[str, Any] = {
        "slots": (16, 0.0), "tokens": (64, PAD), "padding": (64, True), "is_choice": (64, False), "kind": (64, -1), "row_view": (64, 0),
        "label": (64, -1), "question": None, "sample": None,
    }  # fmt: skip

    def __init__(self, config: TrainAloe) -> None:
        super().__init__()
        self.config = config
        self.aloe = Aloe(config.aloe)

    def combine(self, means: dict[str, float]) -> float:
        """The validation loss from the means of its parts."""
        parts = (
            (self.config.descriptive_weight, "loss_descriptive"),
            (self.config.choice_weight, "loss_choice"),
        )
        return sum(weight * means.get(name, 0.0) for weight, name in parts)

    def survey(self, batches: list[Batch], step: int, progress: float) -> Tensor:
        """(2,): the answers and options of the global batch, over all passes and ranks, which the losses divide by."""
        return all_reduce(torch.stack([count_labelled(batch) for batch in batches]).sum(0))

    def terms(self, progress: float) -> TermWeights:
        """None that changes within a run."""
        return TermWeights({})

    def forward(
        self,
        batch: Batch,
        step: int | Tensor,
        progress: float | TermWeights = 0.0,
        survey: Tensor | None = None,
    ) -> TaskOutput:
        """batch as from QuestionSource; without a `survey` it is the whole of what the losses divide by."""
        answers, choices = self.aloe(
            batch["slots"],
            batch["tokens"],
            batch["padding"],
            batch["is_choice"],
            row_view=batch["row_view"],
        )
        is_choice, label = batch["is_choice"], batch["label"]
        mine = count_labelled(batch)
        total, scale = (
            (mine, 1)
            if survey is None
            else (survey, world_size() * self.config.loop.gradient_accumulation)
        )
        answer_label, choice_label = (
            torch.where(is_choice, -1, label),
            torch.where(is_choice, label, -1),
        )
        answer = vqa.answer_loss(answers, answer_label, total[0])
        choice = vqa.choice_loss(choices, choice_label, total[1])
        loss = (
            self.config.descriptive_weight * answer + self.config.choice_weight * choice
        ) * scale
        known = label >= 0
        metrics = {
            "loss": (loss.detach(), torch.ones_like(loss)),
            "loss_descriptive": (answer.detach() * total[0], mine[0]),
            "loss_choice": (choice.detach() * total[1], mine[1]),
        }
        right = known & torch.where(
            is_choice, (choices > 0) == (label > 0), answers.argmax(-1) == label
        )
        for index, name in enumerate(TYPES):  # of answers, or of options
            of_kind = batch["kind"] == index
            metrics[f"accuracy_{name}"] = (
                (right & of_kind).sum().float(),
                (known & of_kind).sum().float(),
            )
        return TaskOutput(loss, metrics)


def count_labelled(batch: Batch) -> Tensor:
    """(2,): rows of a batch with a public answer, of descriptive questions and of choices."""
    known, is_choice = batch["label"] >= 0, batch["is_choice"]
    return torch.stack([(known & ~is_choice).sum(), (known & is_choice).sum()]).float()
