"""How often a remote shard is asked for: once a machine, whoever reads it and however often."""

from collections import Counter

import pytest

from tests.data.format.test_storage import server
from tests.training.test_resume import ALOE, TINY_ALOE, TINY_WORLD, WORLD


@pytest.mark.parametrize("kind", ["in_memory", "streaming"])
def test_each_shard_is_fetched_once(command, small_data, tmp_path, monkeypatch, kind):
    """By two processes, validation, a second start, an evaluation and another task."""
    monkeypatch.setenv("CJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CJEPA_CACHE_GB", raising=False)
    reading = [f"reading.kind={kind}", "loop.eval_every=4"]
    with server(small_data) as (url, seen):
        for stop in (["loop.stop_at_step=6"], []):
            done = command(
                WORLD,
                f"data={url}",
                f"run={tmp_path}/run",
                *TINY_WORLD,
                *reading,
                *stop,
                processes=2,
            )
            assert done.returncode == 0, done.stderr
        for module, *words in (
            ("cjepa_dist.evaluate", f"run={tmp_path}/run", "bootstrap_draws=5", "windows=32"),
            (ALOE, f"data={url}", f"run={tmp_path}/aloe", *TINY_ALOE, f"reading.kind={kind}"),
        ):
            done = command(module, *words)
            assert done.returncode == 0, done.stderr
        asked = Counter(path for path, *_ in seen if path.endswith(".tar"))
    shards = {f"/{p.relative_to(small_data)}" for p in small_data.glob("*/*.tar")}
    used = {path for path in shards if path.split("/")[1] != "test"}
    assert set(asked) == used and set(asked.values()) == {1}, asked
