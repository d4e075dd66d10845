"""The sentences of a report: what is claimed, and what is not."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cjepa_dist.reporting import results as results_module
from cjepa_dist.reporting.results import ReportResults, collect_results
from cjepa_dist.reporting.summary import summary_lines


def error(value, low, high):
    return {"colliding": {"mean": {"slot_mse": value, "slot_mse_ci": [low, high]}}}


def errors(predictor, own_slot):
    methods = {"copy": error(0.08, 0.07, 0.09), "own_slot": own_slot, "predictor": predictor}
    return {"base": {"one_step": {"methods": methods}}}


def area(value, low, high):
    return {"near_miss_auroc": {"value": value, "low": low, "high": high}}


def graphs(ours, distance):
    estimators = {"interventional:empty": ours, "distance": distance}
    return {"base": {"targets": {"contact": {"estimators": estimators}}}}


def answers(group, value, low, high, **baselines):
    accuracy = {group: {"accuracy": value, "ci": [low, high]}}
    given = {name: {group: number} for name, number in baselines.items()}
    return {"accuracy": accuracy, "baselines": given}


def programs(value, low, high):
    return answers("counterfactual.option", value, low, high, chance=0.5)


def aloe(name, *, blind=False):
    return SimpleNamespace(name=name, config=SimpleNamespace(blind=blind))


def descriptive(value, low, high):
    return answers("descriptive.question", value, low, high, majority_by_kind=0.36)


CASES = [
    (dict(errors=errors(error(0.02, 0.018, 0.022), error(0.04, 0.03, 0.05))), True),
    # below the control's value, but the intervals meet
    (dict(errors=errors(error(0.03, 0.025, 0.036), error(0.04, 0.035, 0.05))), False),
    (dict(graphs=graphs(area(0.9, 0.89, 0.91), area(0.85, 0.84, 0.86))), True),
    (dict(graphs=graphs(area(0.87, 0.85, 0.89), area(0.86, 0.84, 0.88))), False),
    (dict(symbolic={"base: factual": (0.8, 0.78, 0.82), "base: paired": (0.85, 0.83, 0.87)}), True),
    (dict(symbolic={"base: factual": (0.8, 0.78, 0.82), "base: paired": (0.84, 0.8, 0.86)}), False),
    (dict(vqa={"seeing": (0.7, 0.68, 0.72), "blind": (0.46, 0.44, 0.48)}), True),
    # better than the majority answer, but not than an ALOE without the right slots
    (dict(vqa={"seeing": (0.45, 0.43, 0.47), "blind": (0.44, 0.42, 0.46)}), False),
]


@pytest.mark.parametrize(("given", "clear"), CASES)
def test_only_what_is_clear_of_all_controls_is_claimed(given, clear):
    given = dict(given)
    for name, make in (("symbolic", programs), ("vqa", descriptive)):
        if name in given:
            given[name] = {run: make(*cell) for run, cell in given[name].items()}
    runs = {"world_models": [SimpleNamespace(name="base")]}
    runs["aloes"] = [aloe("blind", blind=True), aloe("seeing")]
    (line,) = summary_lines(ReportResults("val", **runs, **given))
    assert line.endswith("Clear of all controls." if clear else "no claim.")


def test_without_results_nothing_is_said():
    assert summary_lines(ReportResults("val")) == []


def test_seeds_are_compared_by_worlds_that_a_model_predicts(monkeypatch, tmp_path):
    """By name `factual`, where nothing changes, comes before `paired`."""
    run = results_module.EvaluatedRun(Path(tmp_path), "base", None)
    (tmp_path / "eval").mkdir()
    for rollout in ("factual", "paired", "truth"):
        path = tmp_path / "eval" / f"symbolic_{rollout}_val.json"
        path.write_text(f'{{"rollout": "{rollout}"}}')
    monkeypatch.setattr(results_module, "collect_runs", lambda *arguments: ([], [run]))
    found = collect_results([tmp_path], "val")
    assert [run.results["vqa"]["rollout"] for run in found.symbolic_runs] == ["paired"]
    assert set(found.symbolic) == {"base: factual", "base: paired", "base: truth"}
