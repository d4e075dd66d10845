"""What runs were measured on, by seed and video, in pairs: what `cjepa compare` compares."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.data.format.fingerprint import differences
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.paired import compare_pairs, holm, verdict
from cjepa_dist.reporting.runs import EvaluatedRun, short_names
from cjepa_dist.reporting.seeds import arm_and_seed

Runs = dict[str, Path]  # name of the seed: its run
MARGINS = (3.0, 1.0)  # percent of an error, points of an accuracy


@dataclass(frozen=True)
class Measure:
    """Where the sums of each video lie in the results of an evaluation.

    `file`: eval/FILE_<split>.json; `path` to [[sum, count], ...] and `videos` to their names.
    `percent`: an error, compared in percent of the reference; else a share, in points.
    """

    file: str
    path: tuple[str, ...]
    videos: tuple[str, ...]
    percent: bool


def slot_error(part: str, of: str, column: str = "mean") -> Measure:
    """A slot error of the predictor in the results of `cjepa evaluate`."""
    path = (part, "by_video", "predictor", of, column)
    return Measure("world_model", path, (part, "by_video", "videos"), True)


def accuracy(file: str, group: str) -> Measure:
    """A share of right answers, of ALOE or of question programs."""
    return Measure(file, ("videos", "counts", group), ("videos", "scenes"), False)


MEASURES = {
    "colliding": slot_error("one_step", "colliding"),
    "near_miss": slot_error("one_step", "near_miss"),
    "free": slot_error("one_step", "free"),
    "colliding_32": slot_error("rollout", "colliding", "32"),
    "colliding_rollout": slot_error("rollout", "colliding"),
    "free_rollout": slot_error("rollout", "free"),
    "programs_counterfactual": accuracy("symbolic_paired", "counterfactual.option"),
    "programs_predictive": accuracy("symbolic_paired", "predictive.option"),
    "aloe_descriptive": accuracy("vqa", "descriptive.question"),
    "aloe_explanatory": accuracy("vqa", "explanatory.option"),
    "aloe_predictive": accuracy("vqa", "predictive.option"),
    "aloe_counterfactual": accuracy("vqa", "counterfactual.option"),
}


def runs_of_arm(folder: Path) -> Runs:
    """{seed: run} of the runs in a folder, or of the one run that it is; UserError for neither."""
    if (folder / "config.yaml").is_file():
        named = re.match(r"seed_\d+", folder.name)
        return {named[0] if named else "the run": folder}
    runs = {path.name: path for path in sorted(folder.glob("seed_*")) if path.is_dir()}
    if not runs:
        raise UserError(f"{folder} is no run, and holds none named seed_0, seed_1, ...")
    return runs


def compare_arms(
    reference: dict[str, Runs],
    arms: dict[str, Runs],
    split: str,
    *,
    measures: Sequence[str] = (),
    margins: tuple[float, float] = MARGINS,
    draws: int = 10_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A row for every arm and measure, for JSON; p is corrected for the number of rows.

    `reference` has one entry, {name: runs}. `measures`: these, which every run must then have;
    else all that the runs have. `margins` of no difference: of errors in percent, of accuracies in
    points. Raises UserError as `paired_sums` does.
    """
    (base,) = reference.values()
    found = []
    for arm, runs in arms.items():
        for name in measures or MEASURES:
            measure = MEASURES[name]
            pairs = paired_sums(runs, base, measure, split, needed=name in measures)
            if pairs is not None:
                one = compare_pairs(*pairs, percent=measure.percent, draws=draws, seed=seed)
                found.append((arm, name, measure.percent, one))
    corrected = holm([one.p for *_, one in found])
    rows = []
    for (arm, name, percent, one), p in zip(found, corrected):
        margin = margins[0 if percent else 1]
        said = verdict(one, p, margin=margin, lower_is_better=percent)
        unit = "%" if percent else "points"
        row = {"arm": arm, "measure": name, "unit": unit, "margin": margin, "verdict": said}
        rows.append({**row, "p_corrected": p, **asdict(one)})
    return rows


def paired_sums(
    arm: Runs,
    reference: Runs,
    measure: Measure,
    split: str,
    *,
    needed: bool = False,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Sums and counts (N, V, 2) of the seeds that both have, and of the same videos.

    None where a run was not measured so, unless it is `needed`. Raises UserError, naming the runs,
    where they were measured on other data, windows or videos, or share no seed.
    """
    if not (seeds := [seed for seed in arm if seed in reference]):
        raise UserError(
            f"no seed in common: {', '.join(map(str, arm.values()))} and"
            f" {', '.join(map(str, reference.values()))}"
        )
    sides = []
    first: tuple[Path, list[Any], Any] | None = None
    for runs in (arm, reference):
        rows = []
        for seed in seeds:
            result = read_result(runs[seed], measure.file, split, needed)
            sums = None if result is None else look_up(result, measure.path)
            if result is None or sums is None:
                if needed:
                    raise UserError(
                        f"{runs[seed]}: its {measure.file}_{split}.json does not have"
                        f" {'.'.join(measure.path)}; evaluate it again"
                    )
                return None
            videos = look_up(result, measure.videos)
            data = result.get("fingerprint", {}).get("data")
            if first is None:
                first = (runs[seed], videos, data)
            elif videos != first[1] or (measure.percent and differences(data, first[2])):
                raise UserError(
                    f"{runs[seed]} and {first[0]} were evaluated on other data or videos: evaluate"
                    " them with the same data, split and number of videos"
                )
            rows.append(sums)
        sides.append(np.array(rows, dtype=np.float64))
    return sides[0], sides[1]


def read_result(run: Path, file: str, split: str, needed: bool) -> dict[str, Any] | None:
    """A result of an evaluation; None without one. Raises UserError where it cannot be read."""
    path = run / "eval" / f"{file}_{split}.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if needed:
            raise UserError(f"{path} is missing: evaluate this run first") from None
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); evaluate again") from error


def look_up(result: Any, path: tuple[str, ...]) -> Any:
    """An entry of nested tables; None where there is none."""
    for name in path:
        result = result.get(name) if isinstance(result, dict) else None
    return result


def comparison_table(reference: str, rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: the rows of `compare_arms`."""
    arms = list(dict.fromkeys([reference, *(row["arm"] for row in rows)]))
    names = dict(zip(arms, short_names([Path(arm) for arm in arms])))
    lines = [
        f"Reference: {names[reference]}. Intervals of 95 % over seeds and videos;"
        f" p after Holm's correction for {len(rows)} comparisons.",
        "",
        "| arm | measure | difference | 95 % | p | said | by seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        by_seed = ", ".join(f"{one:+.1f}" for one in r["by_seed"])
        lines.append(
            f"| {names[r['arm']]} | {r['measure'].replace('_', ' ')}"
            f" | {r['difference']:+.2f} {r['unit']} | [{r['low']:+.2f}, {r['high']:+.2f}]"
            f" | {r['p_corrected']:.3f} | {r['verdict']} | {by_seed} |"
        )
    return lines


def paired_section(
    runs: list[EvaluatedRun], split: str, *, seed: int, title: str = "World models"
) -> list[str]:
    """The arms of runs in <arm>/seed_<n>, each against the first; [] for single seeds.

    Where they cannot be paired, the line that says why.
    """
    arms: dict[Path, Runs] = {}
    for run in runs:
        if place := arm_and_seed(run.path.resolve()):
            arms.setdefault(place[0], {})[place[1]] = run.path
    if len(arms) < 2 or max(map(len, arms.values())) < 2:
        return []
    named = dict(zip(short_names(list(arms)), arms.values()))
    reference = next(iter(named))
    others = {name: runs for name, runs in named.items() if name != reference}
    try:
        rows = compare_arms({reference: named[reference]}, others, split, seed=seed)
    except UserError as error:
        return [f"## {title}, paired over seeds and videos\n", f"{error}", ""]
    if not rows:
        return []
    return [
        f"## {title}, paired over seeds and videos\n",
        *comparison_table(reference, rows),
        "",
    ]
