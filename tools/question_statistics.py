"""Compare a data set's questions with the real ones: one Markdown table.

    python -m tools.question_statistics data=DIR [splits=train,val]

    DIR/<split>/*.tar ─questions.json─> statistics(videos) ─> {section: {row: number}} ─┬─> table
                                                              REAL, published ──────────┘

Every number is a mean a video or a share, so sets of any size can be compared. The parser of the
real questions reads from each sentence what an option is (a presence, a collision, an entrance)
and how it names objects.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cjepa_dist.clevrer.parser import parse
from cjepa_dist.clevrer.programs import LITERALS
from cjepa_dist.clevrer.scene import ATTRIBUTES
from cjepa_dist.clevrer.vocabulary import QUESTION_TYPES
from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.errors import UserError

Table = dict[str, dict[str, float]]  # section -> row -> a mean a video, or a share of the section

QUESTIONS, OPTIONS, ANSWERS = "questions a video", "options a video", "descriptive answers a video"
NEGATED, OPTION_KINDS = "negated", "options of explanatory questions"
NAMES = "how these options name objects"
# From the kind of question and option, "not", and whether both name an object alike.
TEXT_ONLY = "right by the best guess from the text"
CORRECT = "correct options of {} questions"
COLOR = "a color"  # the published count is of all eight: about 2,300 each

# The train split of CLEVRER: 10,000 videos (Yi et al., ICLR 2020; the questions are CC0). Names and
# kinds of options were counted in a sample of its explanatory questions.
REAL_VIDEOS = 10_000
REAL_COUNTS: dict[str, dict[str, int]] = {
    QUESTIONS: {
        "descriptive": 109_952,
        "explanatory": 16_799,
        "predictive": 7_179,
        "counterfactual": 18_642,
    },
    OPTIONS: {"correct": 70_836, "wrong": 70_375},
    ANSWERS: {
        "0": 9862,
        "1": 11_079,
        "2": 9292,
        "3": 6525,
        "4": 3173,
        "5": 69,
        "yes": 10_026,
        "no": 9974,
        "rubber": 7311,
        "metal": 7303,
        "sphere": 5648,
        "cylinder": 5635,
        "cube": 5601,
        COLOR: 2300,
    },
}
REAL_CORRECT = {
    "explanatory": {"0": 2743, "1": 3428, "2": 5541, "3": 4320, "4": 767},
    "predictive": {"1": 1},
    "counterfactual": {"0": 169, "1": 7947, "2": 6406, "3": 4120},
}
REAL: Table = {
    section: {row: count / REAL_VIDEOS for row, count in rows.items()}
    for section, rows in REAL_COUNTS.items()
}
for _kind, _rows in REAL_CORRECT.items():
    _total = sum(_rows.values())
    REAL[CORRECT.format(_kind)] = {row: count / _total for row, count in _rows.items()}
REAL |= {
    NEGATED: {"explanatory": 0.5, "counterfactual": 0.5},
    OPTION_KINDS: {"presence": 0.46, "cause_collision": 0.32, "entrance": 0.22},
    NAMES: {
        "color shape": 0.33,
        "color": 0.18,
        "shape": 0.16,
        "material shape": 0.125,
        "color material shape": 0.10,
        "color material": 0.085,
        "material": 0.014,
    },
}


@dataclass
class QuestionStatistics:
    """Statistics of a data set's questions beside those of the real ones, as a Markdown table."""

    data: str = option(MISSING, "folder of slot shards with questions", path=True)
    splits: str = option("train,val", "splits, separated by commas")


def main(config: QuestionStatistics) -> None:
    """Print the table. Raises UserError for a split that is missing or has no questions."""
    Manifest.load(config.data)
    columns = {"real": REAL}
    for split in (name.strip() for name in config.splits.split(",")):
        videos = (
            sample.questions
            for sample in read_split(config.data, split, members=("questions.json",))
        )
        columns[split] = statistics(content["questions"] for content in videos if content)
        if not columns[split]:
            raise UserError(f"split {split!r} of {config.data} has no questions")
    print(markdown_table(columns))


def statistics(videos: Iterable[list[dict[str, Any]]]) -> Table:
    """The table of the questions of each video; {} where there are none.

    Questions without public answers count where no answer is needed.
    """
    count: dict[str, Counter[str]] = defaultdict(Counter)
    right: dict[tuple[tuple[str, str], str, bool, bool], list[bool]] = defaultdict(list)
    total = 0
    for questions in videos:
        total += 1
        for question in questions:
            kind, negated = question["question_type"], "not" in question["question"].split()
            count[QUESTIONS][kind] += 1
            if kind == "descriptive":
                answer = str(question.get("answer"))
                count[ANSWERS][COLOR if answer in ATTRIBUTES["color"] else answer] += 1
                continue
            count[NEGATED][kind] += negated
            effect, program = parse(question["question"])
            about, asked = (kind, effect.family), set(object_descriptions(program))
            answers = [choice.get("answer") for choice in question["choices"]]
            count[CORRECT.format(kind)][str(answers.count("correct"))] += 1
            count[OPTIONS].update(answers)
            for choice in question["choices"]:
                form, program = parse(choice["choice"])
                named = object_descriptions(program)
                right[about, form.family, negated, bool(asked & set(named))].append(
                    choice.get("answer") == "correct"
                )
                if kind == "explanatory":
                    count[OPTION_KINDS][form.family] += 1
                    count[NAMES].update(
                        " ".join(name for name in ATTRIBUTES if f"filter_{name}" in words)
                        for words in named
                    )
    if total == 0 or not count:
        return {}
    count[ANSWERS][COLOR] /= len(ATTRIBUTES["color"])  # type: ignore[assignment]
    table = {
        section: {row: n / total for row, n in count[section].items()}
        for section in (QUESTIONS, OPTIONS, ANSWERS)
    }
    for section in (*map(CORRECT.format, QUESTION_TYPES[1:]), OPTION_KINDS, NAMES):
        table[section] = {row: n / count[section].total() for row, n in count[section].items()}
    table[NEGATED] = {
        kind: count[NEGATED][kind] / max(1, count[QUESTIONS][kind])
        for kind in ("explanatory", "counterfactual")
    }
    table[TEXT_ONLY] = {
        kind: majority_accuracy([values for ((of, _), *_), values in right.items() if of == kind])
        for kind in QUESTION_TYPES[1:]
    }
    return table


def object_descriptions(program: list[str]) -> list[tuple[str, ...]]:
    """The pieces of a program that describe one object each.

    For example [("red", "filter_color", "cube", "filter_shape"), ...].
    """
    found: list[tuple[str, ...]] = []
    piece: list[str] = []
    for token in program:
        if token == "unique" and piece:
            found.append(tuple(piece))
        piece = (
            [*piece, token]
            if token in LITERALS or token.removeprefix("filter_") in ATTRIBUTES
            else []
        )
    return found


def majority_accuracy(groups: list[list[bool]]) -> float:
    """Share of options answered rightly by the more frequent answer of each group."""
    return sum(max(sum(g), len(g) - sum(g)) for g in groups) / max(1, sum(map(len, groups)))


def markdown_table(columns: dict[str, Table]) -> str:
    """One table; rows in the order of the real ones, then what they do not have."""
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for section in dict.fromkeys(section for table in columns.values() for section in table):
        lines.append(f"| **{section}** |" + " |" * len(columns))
        rows = dict.fromkeys(row for table in columns.values() for row in table.get(section, {}))
        for row in rows:
            cells = [format_cell(table.get(section), row) for table in columns.values()]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_cell(section: dict[str, float] | None, row: str) -> str:
    return "" if section is None else f"{section.get(row, 0.0):.3f}"


if __name__ == "__main__":
    launch(QuestionStatistics, main)
