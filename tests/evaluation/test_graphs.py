"""Edge metrics from shards: controls bound the estimators; the command writes JSON and a figure."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cjepa_dist import evaluate_graph
from cjepa_dist.causal.graph import GraphContext
from cjepa_dist.checkpoint.run import LoadedRun
from cjepa_dist.config.command_line import parse
from cjepa_dist.config.schema import PredictorConfig, TrainWorldModel
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation import graphs
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.reporting import tables
from cjepa_dist.tasks.world_model import WorldModelTask

VIDEOS, FRAMES, SLOTS, DIM, RADIUS, HORIZON = 6, 128, 4, 8, 0.17, 5


def video(index: int) -> Sample:
    """Discs on straight lines that pass through each other: overlaps begin with a contact."""
    generator = np.random.default_rng(index)
    velocity = np.broadcast_to(generator.normal(0, 0.02, (SLOTS, 2)), (160, SLOTS, 2))
    position = generator.uniform(-1, 1, (SLOTS, 2)) + np.cumsum(velocity, 0)
    position = np.abs((position + 1) % 4 - 2) - 1  # folded back into the box
    close = np.linalg.norm(position[:, :, None] - position[:, None], axis=-1) < 2 * RADIUS
    begins = close & ~np.roll(close, 1, axis=0)
    begins[0] = False
    frame, i, j = np.nonzero(begins)
    contacts = np.stack([frame, i, j], 1)[i < j].astype(np.int16)
    before = [
        (f - d, *pair)
        for f, a, b in contacts
        for d in range(1, HORIZON + 1)
        for pair in ((a, b), (b, a))
        if f >= d
    ]
    present = np.ones((160, SLOTS), bool)
    present[:, -1] = index % 2 == 0
    slots = np.concatenate(
        [position, velocity, generator.normal(0, 0.1, (160, SLOTS, DIM - 4))], -1
    ).astype(np.float32)
    truth = {
        "slot_object": np.arange(SLOTS, dtype=np.int8),
        "background": np.zeros(SLOTS, bool),
        "present": present,
        "position": position.astype(np.float32),
        "velocity": velocity.astype(np.float32),
        "radius": np.float32(RADIUS),
        "contacts": contacts,
        "influence": np.array(before, np.int16).reshape(-1, 3),
        "influence_horizon": np.int64(HORIZON),
    }
    return Sample(f"video_{index:05d}", slots[:FRAMES], {"scene_index": index}, None, truth)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs") / "data"
    with DatasetWriter(
        folder, encoder="test", source={}, dtype="float32", empty_slot=np.zeros(DIM)
    ) as writer:
        for split in ("train", "val"):
            for index in range(VIDEOS):
                writer.split(split).add(video(index))
    return folder


def size() -> PredictorConfig:
    return PredictorConfig(
        slots=SLOTS, slot_dim=DIM, history_frames=3, pred_frames=1, depth=2, heads=2, mlp_dim=16
    )


@pytest.fixture(scope="module")
def table(data: Path) -> dict:
    torch.manual_seed(0)
    source = InMemoryWindows(
        data,
        "val",
        WindowSpec(history_frames=3, pred_frames=1, frameskip=5),
        contact_share=0.5,
        truth=True,
    )
    context = GraphContext(
        torch.ones(DIM),
        torch.tensor(0.01),
        torch.zeros(DIM),
        0,
        0,
        torch.zeros(1, dtype=torch.int64),
    )
    return graphs.evaluate_graphs(
        SlotPredictor(size()), source, context, windows=150, batch_size=32, draws=20
    )


def test_table_is_whole_and_json(table: dict) -> None:
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert set(table["targets"]) == {"contact", "contact_new", "influence"}
    assert (
        100 < table["windows"] <= 150
        and 0.2 < table["windows_with_contact"] / table["windows"] < 0.9
    )
    for target in table["targets"].values():
        assert set(target["estimators"]) == set(graphs.ESTIMATORS) and 0 < target["base_rate"] < 0.5
        for row in target["estimators"].values():
            for cell in row.values():
                assert cell["value"] is None or cell["low"] - 1e-6 <= cell["high"]


def test_controls_bracket_the_estimators(table: dict) -> None:
    target = table["targets"]["contact"]
    rows = target["estimators"]
    oracle, empty, full = rows["oracle"], rows["empty"], rows["full"]
    assert (
        oracle["auroc"]["value"] == oracle["f1"]["value"] == oracle["near_miss_auroc"]["value"] == 1
        and oracle["shd"]["value"] == 0
    )
    assert full["auroc"]["value"] == empty["auroc"]["value"] == 0.5
    assert full["auprc"]["value"] == pytest.approx(target["base_rate"], abs=1e-5)
    assert abs(rows["shuffled"]["auroc"]["value"] - 0.5) < 0.2
    assert rows["distance"]["auroc"]["value"] > 0.75  # these contacts ARE proximity
    assert rows["extrapolated_distance"]["auroc"]["value"] > 0.75


def test_markdown_has_a_line_for_each(table: dict) -> None:
    text = tables.graph_table(table)
    assert all(f"| {name} |" in text for name in graphs.ESTIMATORS) and "base rate" in text


def test_needs_truth(data: Path) -> None:
    source = InMemoryWindows(data, "val", WindowSpec(history_frames=3, pred_frames=1, frameskip=5))
    context = GraphContext(
        torch.ones(DIM),
        torch.tensor(0.01),
        torch.zeros(DIM),
        0,
        0,
        torch.zeros(1, dtype=torch.int64),
    )
    with pytest.raises(UserError, match="simulator's truth"):
        graphs.evaluate_graphs(SlotPredictor(size()), source, context)


def test_a_repeated_window_is_measured_once(data: Path) -> None:
    source = InMemoryWindows(
        data,
        "val",
        WindowSpec(history_frames=3, pred_frames=1, frameskip=5),
        contact_share=0.9,
        truth=True,
    )
    assert source.window_ids is not None
    ids = graphs.distinct_windows(source, 0, 400)
    assert len(set(source.window_ids[ids])) == len(ids) <= 400
    assert set(graphs.window_videos(source, ids)) <= set(range(VIDEOS))


def test_entry_point_writes_table_and_picture(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trained = TrainWorldModel(data=str(data), run=str(tmp_path), predictor=size())
    loaded = LoadedRun(WorldModelTask(trained), trained, 12, {"weights": "those of this test"})
    monkeypatch.setattr(evaluate_graph, "load_run", lambda run: loaded)
    rows = ["attention", "interventional:swap"]
    if importlib.util.find_spec("castle"):  # extra `summary`
        rows.append("summary:notears")
    arguments = [
        f"run={tmp_path / 'run'}",
        f"out={tmp_path / 'elsewhere'}",
        f"data={data}",
        "split=val",
        "videos=3",
        "windows=40",
        "bootstrap_draws=5",
        "figure_windows=2",
        f"estimators=[{','.join(rows)}]",
    ]
    config = parse(evaluate_graph.EvaluateGraph, arguments)
    assert config is not None
    evaluate_graph.main(config)
    written = json.loads((tmp_path / "elsewhere" / "graphs_val.json").read_text())
    assert (
        written["step"] == 12
        and written["videos"] <= 3
        and list(written["targets"]["contact"]["estimators"]) == rows
    )
    assert (tmp_path / "elsewhere" / "graphs_val.png").read_bytes()[:4] == b"\x89PNG"
    shown = capsys.readouterr().out
    assert all(f"| {name} |" in shown for name in rows) and set(written["summary_seconds"]) == set(
        rows[2:]
    )


@pytest.mark.parametrize(
    "name", ["astrology", "attention:hide", "interventional:poke", "summary", "summary:tea_leaves"]
)
def test_unknown_estimator_is_named(name: str) -> None:
    with pytest.raises(UserError, match=name):
        evaluate_graph.check_names(["attention", name])
