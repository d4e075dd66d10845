"""Compare runs: `python -m cjepa_dist.report runs=RUN_A,RUN_B [out=DIR]`.

    ALOE run ──config.data──> manifest of its rollout ──source──> world model run
    eval/*.json of both ──> DIR/report.md, DIR/vqa.png, DIR/world_model.png

Runs of world models may be named too. `reader_results=DIR` adds the answers of shared readers:
ALOEs that were trained once on the simulator's own worlds and then answered from the rollout of
every world model (DIR/<arm>/seed_<n>/<reader>/vqa_<split>.json, written with `shared_readers=`).
The report names every result that is missing; `strict=true` makes that an error.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cjepa_dist.config import command_line
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING
from cjepa_dist.errors import UserError
from cjepa_dist.reporting import figures, tables, vqa_tables
from cjepa_dist.reporting.provenance import provenance_section
from cjepa_dist.reporting.runs import collect_runs, optional_results
from cjepa_dist.reporting.seeds import seeds_section, shared_readers_section
from cjepa_dist.reporting.tables import Results
from cjepa_dist.runtime.files import write_text_atomic


@dataclass
class Report:
    """Tables and pictures of runs, beside published numbers."""

    runs: str = option(
        MISSING,
        "run directories of ALOE (or world models), separated by commas; differences are against "
        "the first",
    )
    out: str = option("report", "folder for report.md and the pictures")
    reader_results: str = option(
        "", "folder with the results of shared readers on every rollout; empty = none"
    )
    split: str = option("val", "split whose results to show")
    graphs: bool = option(True, "name the world models whose graphs were not evaluated")
    bootstrap_draws: int = option(2000, "bootstrap draws for differences", least=2)
    seed: int = option(0, "seed of the bootstrap")
    strict: bool = option(False, "exit with 2 when a result is missing, after writing the report")


def main(config: Report) -> int:
    paths = [Path(part.strip()) for part in config.runs.split(",") if part.strip()]
    if not paths:
        raise UserError("runs= names no run directory")
    warnings: list[str] = []
    aloes, world_models = collect_runs(paths, config.split, config.graphs, warnings)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    vqa = {run.name: run.results["vqa"] for run in aloes if "vqa" in run.results}
    models, graphs = (
        {run.name: run.results[kind] for run in world_models if kind in run.results}
        for kind in ("world_model", "graphs")
    )
    counterfactual = {
        run.name: result
        for run in world_models
        for result in optional_results(run, f"counterfactual_{config.split}")
    }
    symbolic: Results = {}
    symbolic_runs = []
    for run in world_models:
        results = optional_results(run, f"symbolic_*_{config.split}")
        symbolic |= {f"{run.name}: {result['rollout']}": result for result in results}
        if results:
            symbolic_runs.append(replace(run, results={"vqa": results[0]}))
    bootstrap: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.seed}
    sections = [
        f"# Report, split {config.split}\n",
        *(f"> **Warning:** {line}\n" for line in warnings),
        *seeds_section(world_models, "world_model", **bootstrap),
        *seeds_section(aloes, "vqa", **bootstrap),
        *seeds_section(symbolic_runs, "vqa", title="Question programs on rollouts", **bootstrap),
        *shared_readers_section(config.reader_results, config.split, **bootstrap),
        *tables.world_model_tables(models),
        *tables.graph_tables(graphs),
        *tables.counterfactual_tables(counterfactual),
        *vqa_tables.accuracy_table(vqa),
        *vqa_tables.difference_table(vqa, **bootstrap),
        *vqa_tables.accuracy_table(symbolic, "Question programs on events decoded from rollouts"),
        *vqa_tables.difference_table(symbolic, **bootstrap),
        *vqa_tables.published_table(vqa),
    ]
    if vqa:
        figures.plot_accuracy(vqa, out / "vqa.png")
        sections.append("![VQA accuracy by question type](vqa.png)\n")
    if models:
        figures.plot_world_models(models, out / "world_model.png")
        sections.append("![Errors of the world models](world_model.png)\n")
    sections += provenance_section([*aloes, *world_models], config.runs, config.split)
    path = out / "report.md"
    write_text_atomic(path, "\n".join(sections))
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(f"wrote {path}")
    if warnings and config.strict:
        raise UserError(f"the report is incomplete: {len(warnings)} result(s) missing, see {path}")
    return 0


if __name__ == "__main__":
    command_line.launch(Report, main)
