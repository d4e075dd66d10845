"""Compare runs: `python -m cjepa_dist.report runs=RUN_A,RUN_B [out=DIR]`.

    ALOE run ──config.data──> manifest of its rollout ──source──> world model run
    eval/*.json, metrics.jsonl, scenes ──> DIR/report.html, to look at: one file, no network
                                       └─> DIR/report.md, vqa.png, world_model.png: the tables

Runs of world models may be named too. `reader_results=DIR` adds the answers of shared readers:
ALOEs that were trained once on the simulator's own worlds and then answered from the rollout of
every world model (DIR/<arm>/seed_<n>/<reader>/vqa_<split>.json, written with `shared_readers=`).
The report names every result that is missing; `strict=true` makes that an error.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from cjepa_dist.config import command_line
from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.config.schema import MISSING
from cjepa_dist.config.values import convert
from cjepa_dist.errors import UserError
from cjepa_dist.reporting.html_report import html_report, plot_sections
from cjepa_dist.reporting.markdown_report import markdown_report, table_sections, write_pictures
from cjepa_dist.reporting.provenance import provenance_section
from cjepa_dist.reporting.results import collect_results
from cjepa_dist.reporting.summary import summary_lines, summary_text
from cjepa_dist.runtime.files import write_text_atomic


@dataclass
class Report:
    """Plots, scenes and tables of runs, beside their controls and published numbers."""

    runs: str = option(
        MISSING,
        "run directories of ALOE (or world models): a,b or, for a name with a comma,"
        ' ["a,1",b]; differences are against the first',
        path=True,
    )
    out: str = option("report", "folder for report.html, report.md and its pictures", path=True)
    reader_results: str = option(
        "",
        "folder with the results of shared readers on every rollout; empty = none",
        path=True,
    )
    split: str = option("val", "split whose results to show")
    graphs: bool = option(True, "name the world models whose graphs were not evaluated")
    scenes: int = option(
        3, "videos drawn from above, by the first world model", unit="videos", least=0
    )
    head: str = option(
        "",
        "file with Markdown that comes first, such as a list of jobs that failed; empty = none",
        path=True,
    )
    bootstrap_draws: int = option(2000, "bootstrap draws for differences", least=2)
    seed: int = option(0, "seed of the bootstrap", least=0, most=MAX_SEED)
    strict: bool = option(False, "exit with 2 when a result is missing, after writing the report")


def main(config: Report) -> int:
    paths = run_folders(config.runs)
    results = collect_results(paths, config.split, config.graphs)
    head = read_head(config.head)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    summary = summary_lines(results)
    sections = plot_sections(results)
    table_text = table_sections(
        results, config.reader_results, draws=config.bootstrap_draws, seed=config.seed
    )
    runs = [*results.aloes, *results.world_models]
    provenance = "\n".join(provenance_section(runs, config.runs, config.split))
    pictures = write_pictures(sections, out)
    text = markdown_report(results, summary, head, table_text, pictures, provenance)
    write_text_atomic(out / "report.md", text)
    page = html_report(
        results,
        summary,
        sections,
        head=head,
        table_text=table_text,
        provenance=provenance,
        scenes=config.scenes,
        command=f"cjepa report runs={shlex.quote(config.runs)} split={config.split}",
    )
    write_text_atomic(out / "report.html", page)
    write_text_atomic(out / "summary.txt", summary_text(results))
    for line in results.warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(f"wrote {out / 'report.html'}, {out / 'report.md'}")
    if results.warnings and config.strict:
        missing = len(results.warnings)
        raise UserError(f"the report is incomplete: {missing} result(s) missing, see {out}")
    return 0


def run_folders(text: str) -> list[Path]:
    """The folders that `runs=` names: a list as of other fields, one folder, or some with commas.

    Raises UserError where there are none, or where a comma could mean both.
    """
    if text.startswith("["):
        names = convert(text, list[str], {"path": True}, "runs")
    else:
        names = [part.strip() for part in text.split(",") if part.strip()]
        if len(names) > 1 and Path(text).is_dir():
            if all(Path(name).is_dir() for name in names):
                listed = json.dumps([text], ensure_ascii=False)
                raise UserError(
                    f"runs={text} may be one folder or {len(names)}: write runs={listed}"
                    f" or runs=[{text}]"
                )
            names = [text]
    if not names:
        raise UserError("runs= names no run directory")
    return [Path(os.path.expanduser(name)) for name in names]


def read_head(path: str) -> str:
    """The text of `head=`, "" without one. Raises UserError if it cannot be read."""
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"head={path} cannot be read: {error.strerror}") from error


if __name__ == "__main__":
    command_line.launch(Report, main)
