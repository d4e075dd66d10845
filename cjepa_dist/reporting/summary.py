"""The report in a few sentences: what was trained, and what it shows beside its controls.

ReportResults ──> training_lines: a line for each run
              └─> summary_lines: errors, graph, counterfactual options, descriptive questions

A sentence claims something only where the 95 % interval of the model lies clear of that of every
control. Otherwise it says that this size of run does not show it. All sentences are of the first
world model and the first ALOE, the reference of the experiment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cjepa_dist.config.schema import TrainWorldModel
from cjepa_dist.reporting.results import CONTROL_ROLLOUTS, ReportResults
from cjepa_dist.reporting.runs import EvaluatedRun
from cjepa_dist.reporting.tables import METHOD_LABELS

MAX_WARNINGS = 5  # in the text that a run ends with
Cell = tuple[str, float, float, float]  # name, value, low and high end of its interval


def summary_lines(results: ReportResults) -> list[str]:
    """One sentence for each question that the results answer; at most four."""
    sentences = (error_sentence, graph_sentence, counterfactual_sentence, descriptive_sentence)
    return [text for sentence in sentences if (text := sentence(results))]


def error_sentence(results: ReportResults) -> str:
    """Slot error of one step on objects that collide, against all baselines; lower is better."""
    for name, result in results.errors.items():
        methods = result["one_step"]["methods"]
        cells = {
            method: by_class["colliding"]["mean"]
            for method, by_class in methods.items()
            if by_class.get("colliding", {}).get("mean", {}).get("slot_mse") is not None
        }
        if "predictor" not in cells or len(cells) < 2:
            continue
        model = error_cell(name, cells.pop("predictor"))
        controls = [error_cell(METHOD_LABELS[m], cell) for m, cell in cells.items()]
        clear = all(model[3] < control[2] for control in controls)
        return compare("Slot error on colliding objects", model, controls, clear, show=decimals)
    return ""


def error_cell(name: str, cell: dict[str, Any]) -> Cell:
    return name, cell["slot_mse"], *cell["slot_mse_ci"]


def graph_sentence(results: ReportResults) -> str:
    """How well edges tell contacts from near misses, against distance; higher is better."""
    for name, result in results.graphs.items():
        target = result["targets"].get("contact", {})
        metric = "near_miss_auroc"
        cells = {
            key: value[metric]
            for key, value in target.get("estimators", {}).items()
            if value.get(metric, {}).get("low") is not None
        }
        ours = next((key for key in cells if key.startswith("interventional:empty")), None)
        if ours is None or "distance" not in cells:
            continue
        model, control = (
            (title, cells[key]["value"], cells[key]["low"], cells[key]["high"])
            for title, key in ((f"{name}, interventional graph", ours), ("distance", "distance"))
        )
        clear = model[2] > control[3]
        return compare("Edges on near misses, AUROC", model, [control], clear, show=decimals)
    return ""


def counterfactual_sentence(results: ReportResults) -> str:
    """Options of counterfactual questions by programs, against "nothing changes" and chance."""
    for run in results.world_models:
        found = {
            key.removeprefix(f"{run.name}: "): value
            for key, value in results.symbolic.items()
            if key.startswith(f"{run.name}: ")
        }
        control = found.get("factual")
        predicted = [value for name, value in found.items() if name not in CONTROL_ROLLOUTS]
        if control is None or not predicted:
            continue
        group = "counterfactual.option"
        model = accuracy_cell(run.name, predicted[0], group)
        nothing = accuracy_cell("nothing changes", control, group)
        if model is None or nothing is None:
            continue
        chance = 100 * control["baselines"]["chance"][group]
        controls = [nothing, ("chance", chance, chance, chance)]
        clear = all(model[2] > cell[3] for cell in controls)
        title = "Counterfactual options by question programs, %"
        return compare(title, model, controls, clear, show=percent)
    return ""


def descriptive_sentence(results: ReportResults) -> str:
    """Descriptive questions by ALOE, against the majority answer and an ALOE without the slots."""
    group = "descriptive.question"
    seeing = [run for run in results.aloes if not getattr(run.config, "blind", False)]
    blind = [run for run in results.aloes if getattr(run.config, "blind", False)]
    for run in seeing:
        result = results.vqa.get(run.name)
        model = accuracy_cell(run.name, result, group) if result else None
        if result is None or model is None:
            continue
        controls: list[Cell] = []
        for other in blind:
            cell = accuracy_cell("slots of other videos", results.vqa.get(other.name, {}), group)
            controls += [cell] if cell else []
        majority = result["baselines"]["majority_by_kind"][group]
        if majority is not None:
            controls.append(("majority answer", *[100 * majority] * 3))  # type: ignore[arg-type]
        clear = all(model[2] > cell[3] for cell in controls)
        title = "Descriptive questions answered by ALOE, %"
        return compare(title, model, controls, clear, show=percent)
    return ""


def accuracy_cell(name: str, result: dict[str, Any], group: str) -> Cell | None:
    cell = result.get("accuracy", {}).get(group, {})
    if cell.get("accuracy") is None or not cell.get("ci"):
        return None
    return name, 100 * cell["accuracy"], 100 * cell["ci"][0], 100 * cell["ci"][1]


def compare(
    title: str, model: Cell, controls: list[Cell], clear: bool, show: Callable[[float], str]
) -> str:
    """The sentence: the model's value with its interval, each control's, and what follows."""
    name, value, low, high = model
    others = ", ".join(f"{control[0]} {show(control[1])}" for control in controls)
    verdict = "Clear of all controls" if clear else "Not clear of the controls: no claim"
    return f"{title}: {show(value)} [{show(low)}, {show(high)}] ({name}); {others}. {verdict}."


def decimals(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"


def percent(value: float) -> str:
    return f"{value:.1f}"


def training_lines(results: ReportResults) -> list[str]:
    """A line for each run: what was trained, and for how long."""
    return [training_line(run) for run in [*results.world_models, *results.aloes]]


def training_line(run: EvaluatedRun) -> str:
    loop = run.config.loop
    kind, unit = "ALOE", "questions"
    if isinstance(run.config, TrainWorldModel):
        kind, unit = "world model", "windows"
    elif run.config.group_by_video:
        unit = "videos"
    return f"{kind} {run.name}: {loop.steps} steps of {loop.global_batch_size} {unit}"


def summary_text(results: ReportResults) -> str:
    """The text that a run ends with: what was trained, then the sentences."""
    lines = [*training_lines(results), "", *summary_lines(results)]
    lines += [f"warning: {line}" for line in results.warnings[:MAX_WARNINGS]]
    if more := len(results.warnings) - MAX_WARNINGS:
        lines += [f"and {more} warnings more, in the report"] if more > 0 else []
    return "\n".join(lines) + "\n"
