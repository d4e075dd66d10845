"""Released checkpoints in and out: the same numbers, any wrapping, every command on an imported run, and bad files refused in one line."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from cjepa_dist import evaluate, evaluate_graph, rollout
from cjepa_dist.checkpoint.loading import load_checkpoint, newest_checkpoint
from cjepa_dist.checkpoint.run import load_task
from cjepa_dist.checkpoint.writer import CheckpointWriter
from cjepa_dist.config import merge
from cjepa_dist.config.command_line import launch
from cjepa_dist.config.schema import AloeConfig, PredictorConfig, TrainAloe, TrainWorldModel
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots, read_split
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.models.aloe import Aloe
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.tasks.build import build_task
from data_prep import import_pickle
from tests.evaluation.world import make_world
from tests.test_bad_input import fingerprint
from tools import export_checkpoint
from tools.import_checkpoint import __main__ as import_checkpoint

SIZES = PredictorConfig(
    slots=4, slot_dim=8, history_frames=3, pred_frames=1, depth=2, heads=2, mlp_dim=16
)
ALOE_SIZES = AloeConfig(
    slots=4, slot_dim=8, frames=5, width=16, depth=2, heads=2, mlp_dim=32, word_dim=4, head_dim=16
)
OPTIONS, ALOE_OPTIONS = ("heads=2", "slots=4"), ("heads=2", "slots=4", "stride=5")
SCHEMAS = {
    import_checkpoint: import_checkpoint.ImportCheckpoint,
    export_checkpoint: export_checkpoint.ExportCheckpoint,
    import_pickle: import_pickle.ImportPickle,
    rollout: rollout.Rollout,
    evaluate: evaluate.Evaluate,
    evaluate_graph: evaluate_graph.EvaluateGraph,
}
LAYOUTS = ("{}_pixels.mp4", "video_{:05d}.mp4")


@pytest.fixture
def run(capsys):
    """run(module, "key=value", ...) -> (exit code, stdout, the error lines): the command line, without a new process."""

    def call(module, *arguments):
        with pytest.raises(SystemExit) as end:
            launch(SCHEMAS[module], module.main, [str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return end.value.code, printed.out, [line for line in printed.err.splitlines() if line]

    return call


@pytest.fixture
def imported(run, tmp_path):
    """imported(content, "key=value", ...) -> (run folder, stdout) of an import that must succeed."""

    def call(content, *arguments, name="run"):
        torch.save(content, tmp_path / f"{name}.ckpt")
        code, out, errors = run(
            import_checkpoint,
            f"source={tmp_path / name}.ckpt",
            f"out={tmp_path / name}",
            *arguments,
        )
        assert code == 0, errors
        assert not list(tmp_path.glob("*.partial"))
        return tmp_path / name, out

    return call


def released(model):
    """The state dict of a model with every parameter random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.to_reference()


@pytest.fixture(scope="module")
def state():
    return released(SlotPredictor(SIZES))


def parity(shared, name):
    fixture = {
        key: torch.from_numpy(value)
        for key, value in np.load(shared / "parity" / f"{name}.npz").items()
    }
    return fixture, {
        key.removeprefix("param/"): value
        for key, value in fixture.items()
        if key.startswith("param/")
    }


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- the released numbers


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["predictor_small", "predictor_long"])
def test_both_settings_from_a_released_file_to_a_rollout(
    name, layout, shared, run, imported, tmp_path
):
    fixture, state = parity(shared, name)
    history, future, skip = (
        int(fixture[key]) for key in ("history_frames", "pred_frames", "frameskip")
    )
    folder, _ = imported(
        {"state_dict": {f"model.predictor.{key}": value for key, value in state.items()}},
        "heads=4",
        "slots=5",
    )
    task, trained, step = load_task(folder)
    assert (
        trained.predictor.history_frames,
        trained.predictor.pred_frames,
        trained.frameskip,
        step,
    ) == (history, future, skip, 0)
    x = fixture["x"][:, :history]
    hidden = torch.zeros(len(x), 5, dtype=torch.bool)
    hidden[:, fixture["mask_indices"]] = True
    with torch.no_grad():
        torch.testing.assert_close(
            task.predictor(x, hidden), fixture["forward_out"], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            task.predictor.predict(x), fixture["inference_out"], atol=1e-5, rtol=0
        )

    videos = fixture["rollout_video"].numpy()
    content = {
        "train": {layout.format(3): videos[0]},
        "validation": {layout.format(10007): videos[1]},
    }
    (tmp_path / "slots.pkl").write_bytes(pickle.dumps(content))
    data, rolled = tmp_path / "data", tmp_path / "rolled"
    assert (
        run(import_pickle, f"source={tmp_path / 'slots.pkl'}", f"out={data}", "dtype=float32")[0]
        == 0
    )
    code, _, errors = run(rollout, f"world_model={folder}", f"data={data}", f"out={rolled}")
    assert code == 0, errors
    assert Manifest.load(rolled).keys("train") == ["video_00003"] and Manifest.load(rolled).keys(
        "val"
    ) == ["video_10007"]
    for split, video, expected in zip(("train", "val"), videos, fixture["rollout_out"].numpy()):
        slots = load_slots(rolled, split)[0]
        assert np.array_equal(slots[:128], video)
        np.testing.assert_allclose(slots[128:], expected, atol=1e-5, rtol=0)
    code, _, errors = run(
        evaluate, f"run={folder}", f"data={data}", "split=val", "draws=10", "windows=64"
    )
    assert code == 0, errors
    assert json.loads((folder / "eval" / "world_model_val.json").read_text())["step"] == 0


def test_released_aloe(shared, imported):
    fixture, state = parity(shared, "aloe_small")
    folder, _ = imported(
        {"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
        *ALOE_OPTIONS,
    )
    task, trained, _ = load_task(folder)
    assert (trained.aloe.frames, trained.aloe.slots, trained.stride) == (5, 4, 5)
    with torch.no_grad():
        answers = task.aloe.answer_logits(
            fixture["in/cls_video_emb"], fixture["in/cls_q_tokens"], fixture["in/cls_q_pad_mask"]
        )
        slots = fixture["in/mc_video_emb"][fixture["in/mc_flag"]]
        choices = task.aloe.choice_logits(
            slots, fixture["in/mc_q_tokens"], fixture["in/mc_q_pad_mask"]
        )
    torch.testing.assert_close(answers, fixture["out/cls_answer_logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(choices, fixture["out/mc_answer_logits"], atol=1e-5, rtol=0)


def test_published_sizes_need_no_options(imported):
    def settings(model):
        _, config, _ = load_task(imported(model.to_reference(), name=f"run{id(model)}")[0])
        return config

    paper, followup = (
        settings(
            SlotPredictor(PredictorConfig(history_frames=h, pred_frames=p, depth=1, mlp_dim=8))
        )
        for h, p in ((6, 10), (3, 1))
    )
    assert (paper.predictor.history_frames, paper.predictor.pred_frames, paper.frameskip) == (
        6,
        10,
        2,
    )
    assert (
        followup.predictor.history_frames,
        followup.predictor.pred_frames,
        followup.frameskip,
    ) == (3, 1, 5)
    assert all(
        (c.predictor.heads, c.predictor.slots, c.predictor.slot_dim) == (16, 7, 128)
        for c in (paper, followup)
    )
    aloe = settings(Aloe(AloeConfig(depth=1, mlp_dim=8)))
    assert (aloe.aloe.heads, aloe.aloe.frames, aloe.aloe.slots, aloe.stride) == (8, 25, 7, 5)


# --- wrapping, and back


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {
            "state_dict": {f"module.{k}": torch.nn.Parameter(v) for k, v in state.items()},
            "epoch": 30,
            "name": "x",
        },
        lambda state: {
            "model": {f"model.predictor.{k}": v for k, v in state.items()}
            | {"model.encoder.weight": torch.ones(2)}
        },
        lambda state: {
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
            "weights": {"net": state},
        },
    ],
)
def test_wrappings_and_export(wrap, state, run, imported, tmp_path):
    folder, _ = imported(wrap(state), *OPTIONS)
    assert same(load_task(folder)[0].predictor.to_reference(), state)
    code, out, errors = run(export_checkpoint, f"run={folder}", f"out={tmp_path / 'out.ckpt'}")
    assert code == 0 and "history_frames=3" in out and "heads=2" in out, errors
    content = torch.load(tmp_path / "out.ckpt", weights_only=True)
    assert list(content) == ["state_dict"] and same(content["state_dict"], state)
    again, _ = imported(content, *OPTIONS, name="again")
    assert same(
        load_task(again)[0].predictor.state_dict(), load_task(folder)[0].predictor.state_dict()
    )
    assert (
        run(export_checkpoint, f"run={folder}", f"out={tmp_path / 'out.ckpt'}")[0] == 2
    )  # it is there


def test_one_of_several_models(state, run, imported, tmp_path):
    other = {name: value + 1 for name, value in state.items()}
    both = {**state, "ema": other}
    torch.save(both, tmp_path / "both.ckpt")
    code, _, errors = run(
        import_checkpoint, f"source={tmp_path / 'both.ckpt'}", f"out={tmp_path / 'run'}", *OPTIONS
    )
    assert code == 2 and "several models: choose one of prefix=., prefix=ema" in errors[0]
    for prefix, expected in ((".", state), ("ema", other)):
        folder, _ = imported(both, f"prefix={prefix}", *OPTIONS, name=f"run{len(prefix)}")
        assert same(load_task(folder)[0].predictor.to_reference(), expected)


def test_aloe_there_and_back_and_evaluated(run, imported, tmp_path):
    state = released(Aloe(ALOE_SIZES))
    make_world(tmp_path / "data")
    folder, _ = imported(state, *ALOE_OPTIONS, f"data={tmp_path / 'data'}")
    assert run(export_checkpoint, f"run={folder}", f"out={tmp_path / 'out.ckpt'}")[0] == 0
    assert same(torch.load(tmp_path / "out.ckpt", weights_only=True)["state_dict"], state)
    code, _, errors = run(evaluate, f"run={folder}", "starts=main", "draws=10")
    assert code == 0 and (folder / "eval" / "submission_val.json").exists(), errors


def test_options_that_the_released_layout_lacks(run, tmp_path):
    for number, config in enumerate(
        (
            TrainWorldModel(
                data="",
                run="",
                predictor=PredictorConfig(slot_dim=8, width=16, heads=2, depth=1, norm_first=True),
            ),
            TrainAloe(
                data="", run="", aloe=AloeConfig(width=16, heads=2, depth=1, shared_vision=True)
            ),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        config_path, task = folder / "config.yaml", build_task(config)
        merge.save_yaml(config, config_path)
        CheckpointWriter(folder / "checkpoints", keep=1).save(
            task, build_optimizers(task, config.optimizer), step=1, meta={}
        )
        code, _, errors = run(export_checkpoint, f"run={folder}", f"out={tmp_path / 'x.ckpt'}")
        expected = ("predictor.width=16, predictor.norm_first=True", "aloe.shared_vision=True")[
            number
        ]
        assert (
            code == 2 and len(errors) == 1 and f"the released layout has no {expected}" in errors[0]
        )
        assert sorted(os.listdir(tmp_path)) == [str(n) for n in range(number + 1)]


# --- what evaluate_graph reads


def test_statistics_are_measured_on_data(state, run, imported, tmp_path):
    data = make_world(tmp_path / "data")
    folder, out = imported(state, "heads=2", f"data={data}", "windows=150")
    assert "residuals of 150 windows" in out and "empty slot from the manifest" in out
    task, trained, _ = load_task(folder)
    assert trained.predictor.slots == 4 and trained.data == str(data)
    torch.testing.assert_close(task.empty, torch.tensor(Manifest.load(data).empty_slot))

    slots = torch.from_numpy(load_slots(data, "train"))  # all 12 x 109 windows, written out
    windows = torch.stack([slots[:, s : s + 20 : 5] for s in range(109)], 1).flatten(0, 1)
    present = torch.from_numpy(
        np.stack([s.truth["present"][0] for s in read_split(data, "train")])
    ).repeat_interleave(109, 0)
    with torch.no_grad():
        square = (task.predictor.predict(windows[:, :3])[:, 0] - windows[:, 3]).square()[present]
    torch.testing.assert_close(task.sigma2, square.mean(0), rtol=0.1, atol=0)
    torch.testing.assert_close(
        task.tau, (square / task.sigma2 / 2).sum(-1).median(), rtol=0.1, atol=0
    )
    code, _, errors = run(
        evaluate_graph, f"run={folder}", f"data={data}", "windows=40", "draws=3", "samples=2"
    )
    assert code == 0, errors
    restored = build_task(trained)  # as training would go on with it
    assert (
        load_checkpoint(
            newest_checkpoint(folder / "checkpoints"),
            restored,
            build_optimizers(restored, trained.optimizer),
        )["step"]
        == 0
    )
    assert same(restored.state_dict(), task.state_dict())


def test_without_data_it_says_so(state, run, imported):
    folder, out = imported(state, *OPTIONS)
    assert "residuals were not measured" in out and "data=DIR measures them" in out
    code, _, errors = run(evaluate, f"run={folder}")
    assert code == 2 and len(errors) == 1 and "imported; give data=DIR" in errors[0]


# --- refusals


class Code:
    def __reduce__(self):
        return os.mkdir, ("the_code_ran",)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda s: {**s, "hook": Code()}, OPTIONS, r"needs posix.mkdir: only tensors"),
        (lambda s: {"state_dict": s, "model": torch.nn.ReLU()}, OPTIONS, "needs torch.nn.modules.activation.ReLU"),
        (lambda s: [*s.values()], OPTIONS, "holds a list, not a state dict"),
        (lambda s: {"a.weight": torch.ones(2)}, OPTIONS, "nor q_in_proj.weight (ALOE); its tensors: a.weight"),
        (lambda s: {"epoch": 1}, OPTIONS, "its tensors: none"),
        (lambda s: s, ("prefix=ema", *OPTIONS), "at prefix=ema; models are at prefix=."),
        (lambda s: without(s, "to_out.bias"), OPTIONS, "lacks to_out.bias (1 parameters are missing)"),
        (lambda s: s | {"id_projector.weight": torch.ones(8, 9)}, OPTIONS, "id_projector.weight is (8, 9), by the other"),
        (lambda s: s | {"time_pos_embed": torch.ones(4, 8)}, OPTIONS, "time_pos_embed is (4, 8)"),
        (lambda s: s | {"to_out.bias": torch.full((8,), torch.nan)}, OPTIONS, "to_out.bias holds a value that is not finite"),
        (lambda s: s | {"transformer.layers.0.norm.weight": torch.ones(8)}, OPTIONS, "has transformer.layers.0.norm.weight, which the"),
        (lambda s: s, ("slots=4",), "slot_dim 8 is no published size: give heads=N"),
        (lambda s: s, ("heads=2",), "slot_dim 8 is no published size: give slots=N"),
        (lambda s: s, ("heads=3", "slots=4"), "predictor.heads=3 must divide"),
        (lambda s: s, ("history_frames=2", *OPTIONS), "2 + 2 frames is no published size: give frameskip=N"),
        (lambda s: s, ("history_frames=4", *OPTIONS), "file's 4 time embeddings, not 4 + 0"),
        (lambda s: s | {"time_pos_embed": torch.ones(1, 5, 1, 8)}, OPTIONS, "5 time embeddings are no published setting"),
        (lambda s: s, ("stride=5", *OPTIONS), "holds C-JEPA, which has no stride=5"),
    ],
)  # fmt: skip
def test_refused_in_one_line(change, arguments, message, state, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for zipped in (True, False):
        torch.save(change(dict(state)), "x.ckpt", _use_new_zipfile_serialization=zipped)
        code, _, errors = run(import_checkpoint, "source=x.ckpt", "out=run", *arguments)
        assert code == 2 and len(errors) == 1 and message in errors[0], errors
        assert sorted(os.listdir()) == ["x.ckpt"]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda s: s, ("heads=2", "stride=5"), "20 positions of frames x slots is no published size: give frames=N or slots=N"),
        (lambda s: s, ("slots=3", "heads=2", "stride=5"), "frames x slots must be the file's 20 positions, not 6 x 3"),
        (lambda s: s, ("slots=4", "heads=2"), "5 frames a video is no published size: give stride=N"),
        (lambda s: s, ("frameskip=5", *ALOE_OPTIONS), "holds ALOE, which has no frameskip=5"),
        (lambda s: s | {"text_token": torch.tensor([0.5, 0.5])}, ALOE_OPTIONS, "text_token is [0.5, 0.5], the released"),
        (lambda s: without(s, "CLS"), ALOE_OPTIONS, "lacks CLS"),
        (lambda s: without(s, "transformer_encoder.pos_embedding"), ALOE_OPTIONS, "pos_embedding is missing"),
    ],
)  # fmt: skip
def test_aloe_refused_in_one_line(change, arguments, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(change(released(Aloe(ALOE_SIZES))), "x.ckpt")
    code, _, errors = run(import_checkpoint, "source=x.ckpt", "out=run", *arguments)
    assert code == 2 and len(errors) == 1 and message in errors[0], errors
    assert sorted(os.listdir()) == ["x.ckpt"]


def test_files_that_are_none(state, run, imported, tmp_path):
    whole = tmp_path / "x.ckpt"
    torch.save(state, whole)
    content = whole.read_bytes()
    for size in (0, 10, len(content) // 2):
        whole.write_bytes(content[:size])
        code, _, errors = run(
            import_checkpoint, f"source={whole}", f"out={tmp_path / 'none'}", *OPTIONS
        )
        assert (
            code == 2 and len(errors) == 1 and "is not a readable torch.save file" in errors[0]
        ), errors
    for protocol in (2, 4):  # a plain pickle
        whole.write_bytes(pickle.dumps(Code(), protocol=protocol))
        code, _, errors = run(
            import_checkpoint, f"source={whole}", f"out={tmp_path / 'none'}", *OPTIONS
        )
        assert (
            code == 2
            and len(errors) == 1
            and "weights_only" not in errors[0]
            and not os.path.exists("the_code_ran")
        ), errors
    for missing in (tmp_path / "nothing.ckpt", tmp_path):
        code, _, errors = run(
            import_checkpoint, f"source={missing}", f"out={tmp_path / 'none'}", *OPTIONS
        )
        assert code == 2 and len(errors) == 1 and "cannot be read" in errors[0], errors
    assert not (tmp_path / "none").exists()

    folder, _ = imported(state, *OPTIONS)
    before = fingerprint(folder)
    code, _, errors = run(
        import_checkpoint, f"source={tmp_path / 'run.ckpt'}", f"out={folder}", *OPTIONS
    )
    assert code == 2 and "exists already" in errors[0] and fingerprint(folder) == before
    code, _, errors = run(
        import_checkpoint, f"source={tmp_path / 'run.ckpt'}", f"out={whole / 'run'}", *OPTIONS
    )
    assert code == 2 and "cannot be written" in errors[0]


def test_help_lists_fields(run):
    for module, schema in (
        (import_checkpoint, import_checkpoint.ImportCheckpoint),
        (export_checkpoint, export_checkpoint.ExportCheckpoint),
    ):
        code, out, _ = run(module, "--help")
        assert code == 0 and all(f"\n  {name}\n" in out for name in schema.__dataclass_fields__)


def test_data_of_another_shape(state, run, tmp_path):
    with DatasetWriter(tmp_path / "data", encoder="test", source={}) as writer:
        writer.split("train").add(Sample("video_00000", np.zeros((30, 4, 9), np.float32)))
    torch.save(state, tmp_path / "x.ckpt")
    arguments = (
        f"source={tmp_path / 'x.ckpt'}",
        f"out={tmp_path / 'run'}",
        f"data={tmp_path / 'data'}",
        "heads=2",
    )
    code, _, errors = run(import_checkpoint, *arguments)
    assert (
        code == 2
        and "has 4 slots x 9, the model of" in errors[0]
        and not (tmp_path / "run").exists()
    )


def test_as_modules(command, state, tmp_path):
    """`python -m`, as a user would."""
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    done = command(
        "tools.import_checkpoint",
        f"source={tmp_path / 'x.ckpt'}",
        f"out={tmp_path / 'run'}",
        *OPTIONS,
    )
    assert done.returncode == 0, done.stderr
    done = command(
        "tools.export_checkpoint", f"run={tmp_path / 'run'}", f"out={tmp_path / 'back.ckpt'}"
    )
    assert done.returncode == 0 and same(
        torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"], state
    ), done.stderr
