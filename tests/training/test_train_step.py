"""A recorded step equals the step.

Here its launches are run instead of replayed; tests/test_gpu.py replays them.
"""

import pytest
import torch

from cjepa_dist.config import command_line, schema
from cjepa_dist.data.questions import InMemoryQuestions, VideoQuestions
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.engines.base import Engine
from cjepa_dist.tasks.vqa import VqaTask
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.cuda_graph import CudaGraphStep
from cjepa_dist.training.train_step import TrainStep
from tests.training.test_resume import TINY_ALOE, TINY_WORLD

STEPS = 12


class Replayed(CudaGraphStep):
    """Replay runs the launches anew.

    What a recording may not read (Python's numbers, the host's batch) is hidden from it.
    """

    def record(self, recording):
        owner = self

        class Graph:
            def replay(self):
                owner.run(recording)

        return Graph()


def world(small_data, *extra):
    config = command_line.parse(
        schema.TrainWorldModel,
        [
            f"data={small_data}",
            "run=r",
            *TINY_WORLD,
            "loop.precision=fp32",
            "optimizer.name=adamw",
            *extra,
        ],
    )
    shape = {
        "history_frames": 3,
        "pred_frames": 1,
        "frameskip": config.frameskip,
        "horizon": config.horizon,
    }
    return config, WorldModelTask, InMemoryWindows(small_data, "train", WindowSpec(**shape))


def aloe(small_data, *extra):
    config = command_line.parse(
        schema.TrainAloe,
        [
            f"data={small_data}",
            "run=r",
            *TINY_ALOE,
            "aloe.dropout=0",
            "loop.precision=fp32",
            "optimizer.name=adamw",
            *extra,
        ],
    )
    return (
        config,
        VqaTask,
        VideoQuestions(InMemoryQuestions(small_data, "train", frames=6, stride=20)),
    )


CASES = {
    "baseline": (world, "ctt.invariance.weight=0", "ctt.sufficiency.weight=0"),
    "terms join and grow": (world, "ctt.invariance.ramp=0.4", "ctt.sufficiency.start=0.5"),
    "consistency": (
        world,
        "horizon=3",
        "ctt.consistency.weight=0.1",
        "ctt.consistency.steps=[1,3]",
        "ctt.consistency.ramp=0.3",
    ),
    "schedule and mean": (
        world,
        "optimizer.schedule=cosine",
        "optimizer.warmup_ratio=0.2",
        "optimizer.ema_decay=0.9",
    ),
    "ALOE": (aloe,),
}


@pytest.mark.parametrize("case", CASES)
def test_as_recorded_equals_as_it_is(case, small_data):
    """Losses, metrics, weights, running statistics and means, with the same random draws.

    AdamW, since Muon rounds to bfloat16. The keys' bias has no gradient but rounding, which AdamW
    scales up.
    """
    make, *extra = CASES[case]
    found = {}
    for kind in (TrainStep, Replayed):
        config, task, source = make(small_data, *extra)
        config.loop.steps = STEPS
        torch.manual_seed(0)
        engine = Engine("ddp", config)
        engine.setup(task(config), lambda load: {"step": 0})
        engine.wrap()
        train_step, lines = kind(engine, config, start=0, steps=STEPS), []
        for step in range(STEPS):
            ids = source.sample_ids(0, step * 4, 4)
            result = train_step([source.get_batch(ids, ids)], step)
            assert result.finite
            lines.append({"step_loss": result.loss.item(), **train_step.read_metrics()})
        mean = engine.ema_weights or {}
        found[kind] = (
            lines,
            {**engine.task.state_dict(), **{f"mean {name}": value for name, value in mean.items()}},
        )
    (plain, weights), (recorded, others) = found[TrainStep], found[Replayed]
    for a, b in zip(plain, recorded):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(
            others[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert len(plain) == STEPS and any(key.startswith("loss_") for key in plain[-1])


def test_a_step_that_is_not_finite_counts_for_nothing(small_data):
    config, task, source = world(small_data)
    engine = Engine("ddp", config)
    engine.setup(task(config), lambda load: {"step": 0})
    engine.wrap()
    train_step = Replayed(engine, config, start=0, steps=STEPS)
    for step in range(4):
        batch = source.get_batch(
            source.sample_ids(0, step * 4, 4), source.sample_ids(0, step * 4, 4)
        )
        batch["slots"][0, 0] = float("nan") if step == 2 else batch["slots"][0, 0]
        before = [p.detach().clone() for p in engine.task.parameters()]
        result = train_step([batch], step)
        moved = any(not torch.equal(a, b) for a, b in zip(before, engine.task.parameters()))
        assert bool(result.finite) == moved == (step != 2)
    assert all(value == value for value in train_step.read_metrics().values())
    assert int(train_step.counter) == 4
