"""What a removal changes: a predictor whose influence is known, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cjepa_dist import evaluate_removal
from cjepa_dist.causal.graph import GraphContext
from cjepa_dist.checkpoint.run import LoadedRun
from cjepa_dist.config.command_line import parse
from cjepa_dist.config.schema import INTERVENTIONS, TrainWorldModel
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation import removal
from cjepa_dist.tasks.world_model import WorldModelTask
from tests.evaluation.test_graphs import DIM, VIDEOS, size, video

SPEC = WindowSpec(history_frames=3, pred_frames=1, frameskip=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("removal") / "data"
    with DatasetWriter(
        folder, encoder="test", source={}, dtype="float32", empty_slot=np.zeros(DIM)
    ) as writer:
        for index in range(VIDEOS):
            writer.split("val").add(video(index))
    return folder


class OneOther(nn.Module):
    """Predicts for each slot its own last frame plus the sum of the last frames of all slots."""

    config = size()

    def forward(
        self,
        history: Tensor,
        hidden: Tensor,
        future_only: bool = False,
        closed: Tensor | None = None,
    ) -> Tensor:
        gone = hidden if closed is None else hidden | closed
        seen = history[:, -1] * ~gone[..., None]
        future = (seen + seen.sum(dim=1, keepdim=True))[:, None]
        return future if future_only else torch.cat([history, future], dim=1)


def context() -> GraphContext:
    generator = torch.Generator().manual_seed(0)
    sigma2 = torch.rand(DIM, generator=generator) + 0.5
    zero = torch.zeros(DIM)
    return GraphContext(sigma2, torch.tensor(1.0), zero, 0, 0, torch.zeros(1, dtype=torch.int64))


def test_means_of_each_class_are_those_of_loops(data: Path) -> None:
    source = InMemoryWindows(data, "val", SPEC, contact_share=0.5, truth=True)
    given = context()
    result = removal.evaluate_removal(
        OneOther(), source, given, windows=60, batch_size=16, draws=5, margin=0.1
    )
    ids = removal.distinct_windows(source, 0, 60)
    batch = source.get_batch(ids, np.arange(len(ids)))
    last, truth = batch["slots"][:, 2], batch["slots"][:, 3]
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in removal.CLASSES}
    for b in range(len(ids)):
        here = batch["present"][b, 2]
        for i in torch.nonzero(here)[:, 0]:
            for j in torch.nonzero(here)[:, 0]:
                if i == j:
                    continue
                z = last[b, i] + last[b].sum(dim=0)
                moved = (last[b, j].square() / given.sigma2).mean()
                after = ((z - last[b, j] - truth[b, i]).square() / given.sigma2).mean()
                grows = float(after - ((z - truth[b, i]).square() / given.sigma2).mean())
                kind = "other"
                if batch["contact"][b, i, j]:
                    kind = "contact"
                elif batch["near_miss"][b, i, j]:
                    kind = "near_miss"
                found[kind].append((float(moved), grows, float(grows > 0.1)))
    assert set(result["interventions"]) == set(INTERVENTIONS)
    for how in ("hide", "empty", "close"):  # the same for a sum: the empty slot is zero
        for name, rows in found.items():
            cell = result["interventions"][how][name]
            assert cell["pairs"] == len(rows) > 0
            values = [cell[measure]["value"] for measure in removal.MEASURES]
            np.testing.assert_allclose(values, np.mean(rows, axis=0), rtol=1e-4, atol=1e-5)


def test_command_writes_and_prints(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trained = TrainWorldModel(data=str(data), run=str(tmp_path), predictor=size())
    loaded = LoadedRun(WorldModelTask(trained), trained, 12, {"weights": "those of this test"})
    monkeypatch.setattr(evaluate_removal, "load_run", lambda run: loaded)
    words = [f"run={tmp_path}", f"data={data}", "windows=20", "bootstrap_draws=3", "videos=3"]
    config = parse(evaluate_removal.EvaluateRemoval, [*words, "interventions=[empty,swap]"])
    assert config is not None
    evaluate_removal.main(config)
    written = json.loads((tmp_path / "eval" / "removal_val.json").read_text())
    assert written["step"] == 12 and list(written["interventions"]) == ["empty", "swap"]
    assert "| empty | near miss |" in capsys.readouterr().out
    with pytest.raises(UserError, match="simulator's truth"):
        removal.evaluate_removal(
            OneOther(), InMemoryWindows(data, "val", SPEC), context(), windows=4
        )
