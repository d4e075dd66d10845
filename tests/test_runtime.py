"""What loop.precision=auto becomes, and that a run keeps it."""

import pytest

from cjepa_dist import config as schema
from cjepa_dist import runtime
from cjepa_dist.training.folder import settle_precision


@pytest.mark.parametrize(("given", "launched", "device", "found"), [
    ("auto", "no", "bf16", "bf16"), ("auto", "no", "fp32", "fp32"), ("auto", "bf16", "fp32", "bf16"), ("fp32", "no", "bf16", "fp32"),
])  # fmt: skip
def test_precision(given, launched, device, found, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monkeypatch.setattr(runtime, "native_precision", lambda: device)
    config = schema.parse(schema.TrainWorldModel, ["data=d", f"run={tmp_path}", f"loop.precision={given}"])
    settle_precision(tmp_path, config)
    assert config.loop.precision == found


def test_a_run_goes_on_as_it_began(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "native_precision", lambda: "fp32")
    config = schema.parse(schema.TrainWorldModel, ["data=d", f"run={tmp_path}", "loop.precision=bf16"])
    schema.save(config, tmp_path / "config.yaml")
    config.loop.precision = "auto"
    settle_precision(tmp_path, config)
    assert config.loop.precision == "bf16"
