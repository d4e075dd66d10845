"""Engines with real gloo processes: each trains as one process does, and resumes another's run.

Float32, dropout 0. The reference is one process. It clips gradients, keeps an EMA of the weights,
has all causal terms and skips a step whose loss is NaN; so do the others. Sums over processes have
another order, hence tolerances: losses 1e-5 of their value, AdamW's moments 1e-4 of the largest in
their tensor, weights and their EMA 1e-4, a twentieth of one step at the peak rate. The keys' bias
is left out: softmax does not see it, so its gradient is rounding, which AdamW turns into steps.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from cjepa_dist.config import command_line, schema
from cjepa_dist.engines.build import build_engine
from cjepa_dist.errors import UserError
from tests.fork_server import PROJECT

WORLD, ALOE = "cjepa_dist.train_world_model", "cjepa_dist.train_aloe"
STEPS = 50
LOOP = (
    "loop.global_batch_size=8",
    "loop.precision=fp32",
    "loop.log_every=2",
    "loop.checkpoint_every=20",
    "loop.keep_checkpoints=9",
    "loop.replica_check_every=5",
    "optimizer.name=adamw",
    "optimizer.lr=0.002",
    "optimizer.schedule=cosine",
    "optimizer.warmup_ratio=0.1",
)
ARGUMENTS = {
    WORLD: (
        *LOOP,
        f"loop.steps={STEPS}",
        "optimizer.max_grad_norm=0.5",
        "optimizer.ema_decay=0.8",
        "horizon=2",
        "val_windows=50",
        "predictor.width=32",
        "predictor.depth=2",
        "predictor.heads=2",
        "predictor.mlp_dim=64",
        "predictor.dropout=0",
        "predictor.predict_change=true",
        "ctt.invariance.weight=0.2",
        "ctt.sufficiency.weight=0.2",
        "ctt.consistency.weight=0.2",
        "ctt.consistency.steps=[1,2]",
    ),
    ALOE: (
        *LOOP,
        "loop.steps=6",
        "aloe.frames=6",
        "stride=20",
        "aloe.width=32",
        "aloe.depth=2",
        "aloe.heads=2",
        "aloe.mlp_dim=64",
        "aloe.dropout=0",
        "aloe.shared_vision=true",
    ),
}
# The first sample of the global batch, whatever the number of processes.
FAULT = {"CJEPA_FAULT": "nan@7:rank0"}
ENGINES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


def environment(**more):
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ACCELERATE_", "FSDP_"))
    }
    return {**kept, "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def train(fork_server, small_data):
    def run(folder, *arguments, module=WORLD, processes=0, launcher=(), env=FAULT):
        """One process without `processes`; a `launcher` is started as a user would."""
        arguments = (f"data={small_data}", f"run={folder}", *ARGUMENTS[module], *arguments)
        if launcher:
            command = [sys.executable, "-m", *launcher, "-m", module, *arguments]
            return subprocess.run(
                command,
                cwd=PROJECT,
                capture_output=True,
                text=True,
                timeout=500,
                env=environment(**env),
            )
        return fork_server.run(
            module, *arguments, environment=environment(**env), timeout=500, processes=processes
        )

    return run


def good(done, engine=None, processes=None):
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    if engine:
        assert (
            f"engine: {engine}, processes: {processes}, device: cpu, precision: fp32" in done.stdout
        )


def losses(run, names=("loss",)):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["step"], line["kind"], name): line[name]
        for line in lines
        for name in names
        if name in line
    }


def weights(run, step):
    """The exported weights (the EMA where there is one); the trained ones and optimizer state."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    state = {}
    for key, value in dcp.FileSystemReader(folder).read_metadata().state_dict_metadata.items():
        if hasattr(value, "size"):
            state[key] = torch.empty(value.size, dtype=value.properties.dtype)
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return {**load_file(folder / "model.safetensors"), **state}


def compare(run, reference, step, loss=1e-5, moment=1e-4, weight=1e-4):
    """Losses of all lines up to `step`, and everything in its checkpoint."""
    expected, got = (losses(each, ("loss", "parameter_norm")) for each in (reference, run))
    for key in (
        key for key in expected if key[0] <= step and (key[1] == "train" or key[0] == step)
    ):
        assert got[key] == pytest.approx(expected[key], rel=loss), key
    expected, got = weights(reference, step), weights(run, step)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        if value.is_floating_point():
            tolerance = (
                moment * value.abs().max().item() if name.startswith("optimizer") else weight
            )
            one, other = value.clone(), got[name].clone()
            if name.endswith("attention.qkv.bias"):
                one.view(3, -1)[1] = other.view(3, -1)[1] = 0
            torch.testing.assert_close(
                other, one, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
        else:
            assert torch.equal(got[name], value), name


@pytest.fixture(scope="module")
def reference(train, tmp_path_factory):
    run = tmp_path_factory.mktemp("reference") / "run"
    good(train(run))
    assert (
        json.loads((run / "checkpoints" / f"step_{STEPS:08d}" / "meta.json").read_text())["skipped"]
        == 1
    )
    return run


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_equal_one(engine, reference, train, tmp_path):
    run = tmp_path / "run"
    good(train(run, f"loop.engine={engine}", processes=2), engine, 2)
    compare(run, reference, STEPS)
    assert (
        json.loads((run / "checkpoints" / f"step_{STEPS:08d}" / "meta.json").read_text())["skipped"]
        == 1
    )


CHAINS = {
    "ddp": (("ddp", 4), ("ddp", 2), ("ddp", 1), ("ddp", 4)),
    "fsdp2": (("fsdp2", 4), ("fsdp2", 2), ("fsdp2", 1), ("fsdp2", 4)),
    "zero, and across engines": (
        ("zero3", 4),
        ("zero1", 2),
        ("auto", 0),
        ("zero3", 2),
        ("fsdp2", 2),
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("chain", CHAINS)
def test_elastic_resume(chain, reference, train, tmp_path):
    """Stopped, then resumed with other processes or under another engine: the same run."""
    run, links = tmp_path / "run", CHAINS[chain]
    for index, (engine, processes) in enumerate(links):
        stop = (
            STEPS if index + 1 == len(links) else STEPS * (index + 1) // len(links) // 2 * 2
        )  # where lines are written anyway
        done = train(run, f"loop.engine={engine}", f"loop.stop_at_step={stop}", processes=processes)
        good(done)
        assert ("resumed from" in done.stdout) == (index > 0)
    compare(run, reference, STEPS)


OTHERS = {
    "aloe": (ALOE, ()),
    "published": (
        WORLD,
        (
            "loop.stop_at_step=6",
            "ctt.kind=published",
            "ctt.graph.threshold=0.035",
            "mask.mode=batch",
            "ctt.fraction=0.5",
        ),
    ),
}


@pytest.fixture(scope="module", params=OTHERS)
def other(request, train, tmp_path_factory):
    """Another model or other causal terms, on one process in one pass."""
    run = tmp_path_factory.mktemp("other") / "run"
    module, arguments = OTHERS[request.param]
    good(train(run, *arguments, module=module, env={}))
    return run, module, arguments


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero2"])
def test_other_losses_and_accumulation(engine, other, train, tmp_path):
    """On two processes in two passes each, so with the survey that the causal terms need."""
    reference, module, arguments = other
    run = tmp_path / "run"
    good(
        train(
            run,
            *arguments,
            "loop.gradient_accumulation=2",
            f"loop.engine={engine}",
            module=module,
            processes=2,
            env={},
        ),
        engine,
        2,
    )
    compare(
        run, reference, 6, moment=1e-3 if module == ALOE else 1e-4
    )  # a ReLU of ALOE's may be on one side of 0 or the other


# The first of two processes, as a launcher says; the other is never started.
OF_TWO = {
    **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
}
ZERO1 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}


@pytest.mark.parametrize(
    ("extra", "launched", "expected"),
    [
        (
            ("loop.engine=fsdp2",),
            {},
            "engine fsdp2 was asked for, but this is one process on its own",
        ),
        ((), ZERO1, "engine zero1 was asked for, but this is one process on its own"),
        (
            ("loop.engine=fsdp2",),
            ZERO1,
            "the launcher asks for engine zero1, loop.engine for fsdp2",
        ),
        ((), {"ACCELERATE_USE_FSDP": "true"}, "FSDP 1"),
        (
            (),
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            "mixed_precision bf16, loop.precision for fp32",
        ),
        (("optimizer.name=muon",), {**ZERO1, **OF_TWO}, "take optimizer.name=adamw"),
        (("optimizer.ema_decay=1",), {}, "must be below 1"),
        (
            ("ctt.graph.estimator=gradient", "loop.engine=fsdp2"),
            OF_TWO,
            "take ddp, zero1 or zero2",
        ),
        (
            ("loop.gradient_accumulation=2", "loop.engine=zero3"),
            OF_TWO,
            "take zero2 or fsdp2",
        ),
    ],
)
def test_what_cannot_be_as_asked_is_an_error(extra, launched, expected, monkeypatch):
    for key in set(os.environ) - set(environment()):
        monkeypatch.delenv(key)
    for key, value in launched.items():
        monkeypatch.setenv(key, value)
    config = command_line.parse(
        schema.TrainWorldModel, ["data=d", "run=r", *ARGUMENTS[WORLD], *extra]
    )
    with pytest.raises(UserError, match=expected):
        build_engine(config)


@pytest.mark.slow
def test_launcher_that_falls_back_is_an_error(train, tmp_path):
    """`accelerate launch --cpu --num_processes 2` starts one process, in silence."""
    run, launcher = (
        tmp_path / "run",
        ("accelerate.commands.launch", "--cpu", "--num_processes", "2"),
    )
    done = train(run, "loop.num_processes=2", launcher=launcher)
    assert done.returncode != 0 and "error: loop.num_processes=2, but 1 run" in done.stderr, (
        done.stderr[-3000:]
    )
    assert not run.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "engine"), [("cpu_two", "ddp"), ("cpu_fsdp2", "fsdp2"), ("cpu_zero2", "zero2")]
)
def test_accelerate_launch_and_bfloat16(name, engine, reference, train, tmp_path):
    """The shipped YAML files, as a user takes them; bf16 losses are near those in float32."""
    launcher = (
        "accelerate.commands.launch",
        "--config_file",
        f"configs/accelerate/{name}.yaml",
        "--main_process_port",
        "0",
    )
    run = tmp_path / "run"
    done = train(
        run,
        "loop.stop_at_step=2",
        "loop.num_processes=2",
        "loop.precision=bf16",
        launcher=launcher,
        env={},
    )
    good(done)
    assert f"engine: {engine}, processes: 2, device: cpu, precision: bf16" in done.stdout
    ((key, loss),) = losses(run).items()
    assert loss == pytest.approx(losses(reference)[key], rel=0.02) and loss != pytest.approx(
        losses(reference)[key], rel=1e-6
    )
    assert json.loads((run / "environment.json").read_text())["engine"] == engine


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero1"])
def test_a_replica_that_changed_is_found(engine, train, tmp_path):
    """Under ZeRO each step makes the weights anew: a change shows only before the next step."""
    run, step = tmp_path / "run", 3 if engine == "ddp" else 5
    env = {"CJEPA_FAULT": f"replica@{step}:rank1"}
    done = train(run, f"loop.engine={engine}", "loop.stop_at_step=9", processes=2, env=env)
    assert (
        done.returncode != 0 and "the replicas of the weights differ after step 5" in done.stderr
    ), done.stderr[-3000:]


@pytest.mark.slow
def test_muon_under_fsdp2(train, tmp_path):
    """Newton-Schulz steps round to bfloat16: losses within 1e-4, weights within one step."""
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = (
        "optimizer.name=muon",
        "loop.stop_at_step=20",
        "ctt.invariance.weight=0",
        "ctt.sufficiency.weight=0",
        "ctt.consistency.weight=0",
    )
    good(train(one, *arguments))
    good(train(two, *arguments, "loop.engine=fsdp2", processes=2), "fsdp2", 2)
    compare(two, one, 20, loss=1e-4, moment=5e-2, weight=2e-3)
