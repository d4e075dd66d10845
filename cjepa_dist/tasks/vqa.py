"""ALOE as a task: cross-entropy of descriptive answers, binary cross-entropy of choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cjepa_dist.clevrer.vocabulary import PAD, QUESTION_TYPES
from cjepa_dist.config.schema import TrainAloe
from cjepa_dist.data.dataset import Batch
from cjepa_dist.losses import vqa
from cjepa_dist.models.aloe import Aloe
from cjepa_dist.runtime.collectives import all_reduce, world_size
from cjepa_dist.tasks.base import EVALUATION, StepContext, TaskOutput, Weights


class VqaTask(nn.Module):
    """ALOE with its two losses.

    `ragged`: the inputs whose number of rows changes from batch to batch: the multiple of rows
    that they may be padded to and the value of the padding, which changes no result. None: an
    input that is not read here.
    """

    ragged: Mapping[str, Any] = {
        "slots": (16, 0.0),
        "tokens": (64, PAD),
        "padding": (64, True),
        "is_choice": (64, False),
        "kind": (64, -1),
        "row_view": (64, 0),
        "label": (64, -1),
        "question": None,
        "sample": None,
    }

    def __init__(self, config: TrainAloe) -> None:
        super().__init__()
        self.config = config
        self.aloe = Aloe(config.aloe)

    def validation_loss(self, means: dict[str, float]) -> float:
        """The loss of a validation from the means of its parts."""
        config = self.config
        parts = {
            "loss_descriptive": config.descriptive_weight,
            "loss_choice": config.choice_weight,
        }
        return sum(weight * means.get(name, 0.0) for name, weight in parts.items())

    def term_weights(self, progress: float) -> dict[str, float]:
        """No weight changes within a run."""
        return {}

    def step_context(self, batches: list[Batch], step: int | Tensor, weights: Weights) -> Any:
        """Counts the answers and options of the global batch, which the losses divide by."""
        counts = torch.stack([count_labelled(batch) for batch in batches]).sum(0)
        return StepContext(step, denominators=all_reduce(counts))

    def forward(self, batch: Batch, context: StepContext = EVALUATION) -> TaskOutput:
        """`batch` as from InMemoryQuestions. Without denominators it is the global batch itself."""
        config = self.config
        answers, choices = self.aloe(
            batch["slots"],
            batch["tokens"],
            batch["padding"],
            batch["is_choice"],
            row_view=batch["row_view"],
        )
        is_choice, label = batch["is_choice"], batch["label"]
        own, total, scale = count_labelled(batch), context.denominators, 1
        if total is None:
            total = own
        else:
            scale = world_size() * config.loop.gradient_accumulation
        answer = vqa.answer_loss(answers, torch.where(is_choice, -1, label), total[0])
        choice = vqa.choice_loss(choices, torch.where(is_choice, label, -1), total[1])
        loss = (config.descriptive_weight * answer + config.choice_weight * choice) * scale
        metrics = {
            "loss": (loss.detach(), torch.ones_like(loss)),
            "loss_descriptive": (answer.detach() * total[0], own[0]),
            "loss_choice": (choice.detach() * total[1], own[1]),
        }
        known = label >= 0
        right = torch.where(is_choice, (choices > 0) == (label > 0), answers.argmax(-1) == label)
        for index, name in enumerate(QUESTION_TYPES):  # of answers, or of options
            of_type = batch["kind"] == index
            metrics[f"accuracy_{name}"] = (
                (known & right & of_type).sum().float(),
                (known & of_type).sum().float(),
            )
        return TaskOutput(loss, metrics)


def count_labelled(batch: Batch) -> Tensor:
    """(2,) float: rows of a batch with a public answer, of descriptive questions and of choices."""
    known, is_choice = batch["label"] >= 0, batch["is_choice"]
    return torch.stack([(known & ~is_choice).sum(), (known & is_choice).sum()]).float()
