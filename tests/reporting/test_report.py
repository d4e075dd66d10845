"""evaluate and report on real run folders, made by saving untrained tasks as the loop would."""

import json
from pathlib import Path

import pytest

from cjepa_dist import evaluate, report
from cjepa_dist.config import schema
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.vqa import metrics
from cjepa_dist.reporting import seeds, vqa_tables
from cjepa_dist.reporting.runs import EvaluatedRun, collect_runs
from tests.evaluation.world import make_world
from tests.reporting.untrained import ALOE, PREDICTOR, save_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    data = make_world(root / "data", train=6, val=6)
    own = schema.TrainWorldModel(
        data=str(data),
        run=str(root / "own"),
        predictor=schema.PredictorConfig(**PREDICTOR, own_slot_only=True),
    )
    model = schema.TrainWorldModel(
        data=str(data), run=str(root / "model"), predictor=schema.PredictorConfig(**PREDICTOR)
    )
    save_run(own), save_run(model)
    with DatasetWriter(
        root / "rolled",
        encoder="toy",
        source={"kind": "rollout", "world_model": model.run, "step": 7, "data": str(data)},
        dtype="float32",
    ) as writer:
        for split in ("train", "val"):
            for sample in read_split(data, split):
                writer.split(split).add(sample)
    for seed, name in enumerate(("first", "second")):
        save_run(
            schema.TrainAloe(
                data=str(root / "rolled"),
                run=str(root / name),
                seed=seed,
                starts=4,
                aloe=schema.AloeConfig(**ALOE),
            ),
            done=name == "first",
        )
    return root


def test_world_models_are_compared_by_shared_readers(tmp_path):
    """A mean over the readers of all world models, paired by the world models' seeds."""
    accuracy = {
        ("a", 0, "r0"): 0.5,
        ("a", 0, "r1"): 0.7,
        ("a", 1, "r0"): 0.4,
        ("a", 1, "r1"): 0.6,
        ("b", 0, "r0"): 0.9,
        ("b", 0, "r1"): 0.9,
    }
    for (arm, seed, reader), value in {
        **accuracy,
        ("b", 1, "r0"): 0.5,
        ("b", 1, "r1"): 0.7,
        ("b", 1, "r2"): 0.0,
    }.items():
        path = tmp_path / arm / f"seed_{seed}" / reader / "vqa_val.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"accuracy": {"counterfactual.option": {"accuracy": value}}}))
    text = "\n".join(seeds.shared_readers_section(str(tmp_path), "val", draws=50, seed=0))
    assert "a mean over r0, r1;" in text and "| a | 2 | 55.0 ± 7.1 |" in text
    assert "| b | 2 | 75.0 ± 21.2 | +20.0 [" in text and "(+30.0, +10.0)" in text
    assert seeds.shared_readers_section("", "val", draws=50, seed=0) == []


def measure(root, name, **more):
    assert (
        evaluate.main(
            evaluate.Evaluate(
                run=str(root / name), bootstrap_draws=10, windows=64, videos=4, **more
            )
        )
        == 0
    )


def test_report_of_two_arms(runs, tmp_path, capsys):
    measure(runs, "model", own_slot=str(runs / "own"))
    for name in ("first", "second"):
        measure(runs, name)
    found = json.loads((runs / "first" / "eval" / "vqa_val.json").read_text())
    assert (
        found["step"] == 7
        and found["start"] == 3
        and found["starts"]["first_frames"] == [0, 1, 2, 3]
    )
    assert len(json.loads((runs / "first" / "eval" / "submission_val.json").read_text())) == 6
    capsys.readouterr()

    named = f"{runs / 'first'},{runs / 'second'}"
    assert report.main(report.Report(runs=named, out=str(tmp_path), bootstrap_draws=10)) == 0
    text = (tmp_path / "report.md").read_text()
    wanted_lines = (
        "## World models",
        "own slot only",
        "## VQA",
        "Differences against first",
        "VideoSAUR, 4 hidden",
        "| majority |",
    )
    for wanted in wanted_lines:
        assert wanted in text, wanted
    assert "graphs_val.json is missing" in text and "second has not reached its end" in text
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("vqa.png", "world_model.png"))
    with pytest.raises(UserError, match="incomplete"):
        report.main(report.Report(runs=named, out=str(tmp_path), bootstrap_draws=10, strict=True))


def test_what_is_missing_is_said(runs, tmp_path):
    (tmp_path / "config.yaml").write_text("")
    warnings: list[str] = []
    aloes, world_models = collect_runs([runs / "own"], "test", True, warnings)
    assert not aloes and [run.path for run in world_models] == [runs / "own"]
    assert any(
        "world_model_test.json is missing; make it with: python -m cjepa_dist.evaluate run=" in line
        for line in warnings
    )
    assert any("graphs_test.json is missing" in line for line in warnings)
    without_graphs: list[str] = []
    collect_runs([runs / "own"], "test", False, without_graphs)
    assert without_graphs == [line for line in warnings if "graphs_test.json" not in line]
    with pytest.raises(UserError, match="not a run directory"):
        collect_runs([runs / "nowhere"], "test", True, warnings)


def test_evaluate_refuses_a_control_that_sees_others(runs):
    with pytest.raises(UserError, match="own_slot_only"):
        measure(runs, "own", own_slot=str(runs / "model"))


def test_differences_are_paired_by_video():
    def arm(correct):
        counts = {group: [[c, 4] for c in correct] for group in metrics.QUESTION_GROUPS}
        accuracy = {group: {"count": 4 * len(correct)} for group in metrics.QUESTION_GROUPS}
        return {
            "videos": {"scenes": list(range(len(correct))), "counts": counts},
            "accuracy": accuracy,
        }

    base = [1, 3, 2, 0, 1, 3, 2, 2]
    lines = vqa_tables.difference_table(
        {"a": arm(base), "b": arm([c + 1 for c in base])}, draws=50, seed=0
    )
    # One more right in every video: the difference is the same whichever videos are drawn. It is
    # not marked even so: two single runs differ by their seeds too.
    assert "| overall | +25.0 [+25.0, +25.0] |" in lines and "*" not in "".join(lines)
    assert (
        vqa_tables.accuracy_difference(arm(base), arm(base[:4]), "overall.question", 5, 0)
        == "other videos"
    )


def test_runs_in_arm_and_seed_folders_are_compared_over_seeds():
    def run(arm, seed, right):
        results = {
            "vqa": {
                "accuracy": {
                    "overall.question": {"accuracy": right},
                    "predictive.option": {"accuracy": None},
                }
            }
        }
        return EvaluatedRun(
            Path(f"/runs/aloe/{arm}/seed_{seed}"), "", schema.TrainAloe(data="", run=""), results
        )

    runs = [run("base", 0, 0.4), run("base", 1, 0.6), run("ctt", 1, 0.65), run("ctt", 0, 0.45)]
    bootstrap = {"draws": 50, "seed": 0}
    text = "\n".join(seeds.seeds_section([*runs, run("lone", 0, 0.5)], "vqa", **bootstrap))
    assert (
        text.startswith("## VQA over seeds")
        and "overall.question | difference [95 %] (by seed) |\n" in text
    )
    assert "| base | 2 | 50.0 ± 14.1 |" in text and "| lone | 1 | 50.0 | +10.0 |" in text
    assert "| ctt | 2 | 55.0 ± 14.1 | +5.0 [+5.0, +5.0] (+5.0, +5.0) |" in text
    assert not seeds.seeds_section(runs[:1], "vqa", **bootstrap)
    assert not seeds.seeds_section(runs, "world_model", **bootstrap)


def test_a_run_whose_name_has_a_comma(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "c", "[x"):
        (tmp_path / name).mkdir()
    for text, names in (
        ("a,b", ["a,b"]),
        ('["a,b",c]', ["a,b", "c"]),
        ("[a,b]", ["a", "b"]),
        ("c, d", ["c", "d"]),
        ("./[x", ["./[x"]),
        ("~/a,c", ["~/a", "c"]),
    ):
        assert report.run_folders(text) == [Path(name).expanduser() for name in names]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r'may be one folder or 2: write runs=\["a,b"\] or runs='):
        report.run_folders("a,b")
    for text in ("", ",", "[]"):
        with pytest.raises(UserError, match="names no run directory"):
            report.run_folders(text)
    with pytest.raises(UserError, match="must be a list"):
        report.run_folders("[a")
