"""tools.question_statistics: a sample of real questions, a set made by hand, the command."""

import subprocess
import sys

import numpy as np
import pytest

from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.writer import DatasetWriter
from tests.fixtures import explanatory_scenes
from tools.question_statistics import (
    ANSWERS,
    COLOR,
    CORRECT,
    NAMES,
    OPTION_KINDS,
    OPTIONS,
    QUESTIONS,
    REAL,
    TEXT_ONLY,
    statistics,
)


def test_of_the_real_sample():
    """The shares of the spec were counted in real questions, these among them."""
    table = statistics(scene["questions"] for scene in explanatory_scenes())
    for section in (OPTION_KINDS, NAMES):
        for row, share in REAL[section].items():
            assert table[section][row] == pytest.approx(share, abs=0.025)
    assert table[TEXT_ONLY]["explanatory"] > 0.57  # a kind of option and "not" tell the answer


def questions(answer):
    """One descriptive question and one with a right and two wrong options."""
    why = "Which of the following is not responsible for the cube's exit?"
    texts = [
        "the presence of the red cube",
        "the blue object's entrance",
        "the collision between the sphere and the red metal cube",
    ]
    choices = [
        {"choice_id": i, "choice": t, "answer": "wrong" if i else "correct"}
        for i, t in enumerate(texts)
    ]
    return {
        "scene_index": 0,
        "questions": [
            {
                "question_id": 0,
                "question": "What color is the moving cube?",
                "question_type": "descriptive",
                "answer": answer,
            },
            {"question_id": 1, "question": why, "question_type": "explanatory", "choices": choices},
        ],
    }


def test_counts():
    table = statistics([questions("red")["questions"], questions("2")["questions"]])
    assert table[QUESTIONS] == {"descriptive": 1.0, "explanatory": 1.0}
    assert table[OPTIONS] == {"correct": 1.0, "wrong": 2.0}
    assert table[ANSWERS] == {COLOR: 0.5 / 8, "2": 0.5}
    assert table[CORRECT.format("explanatory")] == {"1": 1.0}
    assert table[OPTION_KINDS] == {"presence": 1 / 3, "entrance": 1 / 3, "cause_collision": 1 / 3}
    assert table[NAMES] == {
        "color shape": 0.25,
        "color": 0.25,
        "shape": 0.25,
        "color material shape": 0.25,
    }


def test_command(tmp_path):
    with DatasetWriter(tmp_path / "data", encoder="test", source={}) as writer:
        slots = np.zeros((4, 2, 3), np.float16)
        for split, content in (("train", questions("1")), ("val", None)):
            writer.split(split).add(Sample("video_00000", slots, {"scene_index": 0}, content))

    def run(split):
        command = [
            sys.executable,
            "-m",
            "tools.question_statistics",
            f"data={tmp_path / 'data'}",
            f"splits={split}",
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("train")
    assert done.returncode == 0 and done.stdout.splitlines()[0] == "| | real | train |"
    assert "| explanatory | 1.680 | 1.000 |" in done.stdout
    done = run("val")
    assert (
        done.returncode == 2
        and "has no questions" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
