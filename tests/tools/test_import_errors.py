"""Released checkpoints that cannot be imported: every mistake is one line, and nothing is left."""

import os
import pickle

import numpy as np
import pytest
import torch

from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.models.aloe import Aloe
from tests.test_bad_input import fingerprint
from tests.tools.released import ALOE_OPTIONS, ALOE_SIZES, OPTIONS, released
from tools import export_checkpoint
from tools.import_checkpoint import __main__ as import_checkpoint


class Code:
    def __reduce__(self):
        return os.mkdir, ("the_code_ran",)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda s: {**s, "hook": Code()}, OPTIONS, r"needs posix.mkdir: only tensors"),
        (
            lambda s: {"state_dict": s, "model": torch.nn.ReLU()},
            OPTIONS,
            "needs torch.nn.modules.activation.ReLU",
        ),
        (lambda s: [*s.values()], OPTIONS, "holds a list, not a state dict"),
        (
            lambda s: {"a.weight": torch.ones(2)},
            OPTIONS,
            "nor q_in_proj.weight (ALOE); its tensors: a.weight",
        ),
        (lambda s: {"epoch": 1}, OPTIONS, "its tensors: none"),
        (lambda s: s, ("prefix=ema", *OPTIONS), "at prefix=ema; models are at prefix=."),
        (
            lambda s: without(s, "to_out.bias"),
            OPTIONS,
            "lacks to_out.bias (1 parameters are missing)",
        ),
        (
            lambda s: s | {"id_projector.weight": torch.ones(8, 9)},
            OPTIONS,
            "id_projector.weight is (8, 9), by the other",
        ),
        (lambda s: s | {"time_pos_embed": torch.ones(4, 8)}, OPTIONS, "time_pos_embed is (4, 8)"),
        (
            lambda s: s | {"to_out.bias": torch.full((8,), torch.nan)},
            OPTIONS,
            "to_out.bias holds a value that is not finite",
        ),
        (
            lambda s: s | {"transformer.layers.0.norm.weight": torch.ones(8)},
            OPTIONS,
            "has transformer.layers.0.norm.weight, which the",
        ),
        (lambda s: s, ("slots=4",), "slot_dim 8 is no published size: give heads=N"),
        (lambda s: s, ("heads=2",), "slot_dim 8 is no published size: give slots=N"),
        (lambda s: s, ("heads=3", "slots=4"), "predictor.heads=3 must divide"),
        (
            lambda s: s,
            ("history_frames=2", *OPTIONS),
            "2 + 2 frames is no published size: give frameskip=N",
        ),
        (lambda s: s, ("history_frames=4", *OPTIONS), "file's 4 time embeddings, not 4 + 0"),
        (
            lambda s: s | {"time_pos_embed": torch.ones(1, 5, 1, 8)},
            OPTIONS,
            "5 time embeddings are no published setting",
        ),
        (lambda s: s, ("stride=5", *OPTIONS), "holds C-JEPA, which has no stride=5"),
    ],
)
def test_mistakes_are_one_line(change, arguments, message, state, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for zipped in (True, False):
        torch.save(change(dict(state)), "x.ckpt", _use_new_zipfile_serialization=zipped)
        code, _, errors = run(import_checkpoint, "source=x.ckpt", "out=run", *arguments)
        assert code == 2 and len(errors) == 1 and message in errors[0], errors
        assert sorted(os.listdir()) == ["x.ckpt"]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            lambda s: s,
            ("heads=2", "stride=5"),
            "20 positions of frames x slots is no published size: give frames=N or slots=N",
        ),
        (
            lambda s: s,
            ("slots=3", "heads=2", "stride=5"),
            "frames x slots must be the file's 20 positions, not 6 x 3",
        ),
        (
            lambda s: s,
            ("slots=4", "heads=2"),
            "5 frames a video is no published size: give stride=N",
        ),
        (lambda s: s, ("frameskip=5", *ALOE_OPTIONS), "holds ALOE, which has no frameskip=5"),
        (
            lambda s: s | {"text_token": torch.tensor([0.5, 0.5])},
            ALOE_OPTIONS,
            "text_token is [0.5, 0.5], the released",
        ),
        (lambda s: without(s, "CLS"), ALOE_OPTIONS, "lacks CLS"),
        (
            lambda s: without(s, "transformer_encoder.pos_embedding"),
            ALOE_OPTIONS,
            "pos_embedding is missing",
        ),
    ],
)
def test_mistakes_with_aloe_are_one_line(change, arguments, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(change(released(Aloe(ALOE_SIZES))), "x.ckpt")
    code, _, errors = run(import_checkpoint, "source=x.ckpt", "out=run", *arguments)
    assert code == 2 and len(errors) == 1 and message in errors[0], errors
    assert sorted(os.listdir()) == ["x.ckpt"]


def test_damaged_missing_and_foreign_files(state, run, imported, tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save(state, path)
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2):
        path.write_bytes(content[:size])
        code, _, errors = run(
            import_checkpoint, f"source={path}", f"out={tmp_path / 'none'}", *OPTIONS
        )
        assert (
            code == 2 and len(errors) == 1 and "is not a readable torch.save file" in errors[0]
        ), errors
    for protocol in (2, 4):  # a plain pickle
        path.write_bytes(pickle.dumps(Code(), protocol=protocol))
        code, _, errors = run(
            import_checkpoint, f"source={path}", f"out={tmp_path / 'none'}", *OPTIONS
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
        import_checkpoint, f"source={tmp_path / 'run.ckpt'}", f"out={path / 'run'}", *OPTIONS
    )
    assert code == 2 and "x.ckpt/run.partial: Not a directory" in errors[0], errors


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
