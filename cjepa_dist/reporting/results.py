"""Everything that a report shows, read once: the runs and the results of their evaluations."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from cjepa_dist.reporting.runs import EvaluatedRun, collect_runs, optional_results
from cjepa_dist.reporting.tables import Results

# Worlds that no model predicts: nothing but the object goes; the simulator's own.
CONTROL_ROLLOUTS = ("factual", "truth")


@dataclass
class ReportResults:
    """The runs of a report and their results on one split, by the name of the run.

    `symbolic` has the answers of question programs by "RUN: ROLLOUT", where ROLLOUT says how the
    worlds were made; `symbolic_runs` are the world models with the first of these that is no
    control, to compare over seeds. `warnings`
    name what is missing.
    """

    split: str
    aloes: list[EvaluatedRun] = field(default_factory=list)
    world_models: list[EvaluatedRun] = field(default_factory=list)
    vqa: Results = field(default_factory=dict)
    errors: Results = field(default_factory=dict)
    graphs: Results = field(default_factory=dict)
    counterfactual: Results = field(default_factory=dict)
    symbolic: Results = field(default_factory=dict)
    symbolic_runs: list[EvaluatedRun] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def collect_results(paths: list[Path], split: str, graphs: bool = True) -> ReportResults:
    """The results of runs, and of the world models behind ALOE runs.

    With `graphs` every world model should have an evaluation of its graphs. Raises UserError if a
    path is no run directory.
    """
    found = ReportResults(split)
    found.aloes, found.world_models = collect_runs(paths, split, graphs, found.warnings)
    found.vqa = {run.name: run.results["vqa"] for run in found.aloes if "vqa" in run.results}
    found.errors, found.graphs = (
        {run.name: run.results[kind] for run in found.world_models if kind in run.results}
        for kind in ("world_model", "graphs")
    )
    for run in found.world_models:
        for result in optional_results(run, f"counterfactual_{split}", found.warnings):
            found.counterfactual[run.name] = result
        answers = optional_results(run, f"symbolic_*_{split}", found.warnings)
        found.symbolic |= {f"{run.name}: {result['rollout']}": result for result in answers}
        if predicted := [result for result in answers if result["rollout"] not in CONTROL_ROLLOUTS]:
            found.symbolic_runs.append(replace(run, results={"vqa": predicted[0]}))
    return found
