"""The fraction of the way from "nothing changes" to the simulator that a model closes."""

import pytest

from cjepa_dist.evaluation.vqa.metrics import QUESTION_GROUPS
from cjepa_dist.reporting.program_table import closed_fraction_table

GROUP = "counterfactual.option"


def result(correct, scenes=40):
    """Each video has 10 options, `correct` of them right in every one."""
    counts = {group: [[0, 0]] * scenes for group in QUESTION_GROUPS}
    counts[GROUP] = [[correct, 10]] * scenes
    return {"videos": {"scenes": list(range(scenes)), "counts": counts}}


@pytest.mark.parametrize(
    ("nothing", "model", "simulator", "cell"),
    [
        (6, 8, 10, "0.50 [0.50, 0.50]"),
        (6, 5, 10, "-0.25 [-0.25, -0.25]"),
        (8, 8, 8, None),  # the simulator is no better than nothing: there is no way to go
    ],
)
def test_the_fraction_closed(nothing, model, simulator, cell):
    found = {
        "base: paired": result(model),
        "base: factual": result(nothing),
        "base: truth": result(simulator),
    }
    lines = closed_fraction_table(found, draws=50, seed=0)
    if cell is None:
        assert lines == []
    else:
        assert any(f"| {cell} |" in line for line in lines)
        assert "privileged" in "".join(lines) and "base: truth" not in "".join(lines)


def test_without_both_controls_there_is_no_fraction():
    found = {"base: paired": result(8), "base: factual": result(6)}
    assert closed_fraction_table(found, draws=5, seed=0) == []
