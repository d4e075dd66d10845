"""Windows against a plain reading of their definition, frame by frame and pair by pair."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.data.ground_truth import load_truth
from cjepa_dist.data.sampler import sample_ids
from cjepa_dist.data.window_spec import WindowSpec, phase_order, window_views
from cjepa_dist.data.windows import InMemoryWindows, to_device
from cjepa_dist.errors import UserError

VIDEOS, FRAMES, TRUE_FRAMES, SLOTS, WIDTH, RADIUS, HORIZON = 4, 30, 40, 4, 5, 0.1, 4


def write(folder, truth=True, horizon=HORIZON, radius=RADIUS, dtype="float32"):
    random = np.random.default_rng(0)
    truths = []
    with DatasetWriter(folder, encoder="test", source={}, dtype=dtype) as writer:
        for video in range(VIDEOS):
            pairs = [(i, j) for i in range(SLOTS) for j in range(i + 1, SLOTS)]
            contacts = [
                (random.integers(TRUE_FRAMES), *pairs[random.integers(len(pairs))])
                for _ in range(6)
            ]
            influence = [
                (random.integers(TRUE_FRAMES), *random.permutation(SLOTS)[:2]) for _ in range(30)
            ]
            known = {
                "slot_object": np.arange(SLOTS, dtype=np.int8),
                "present": random.random((TRUE_FRAMES, SLOTS)) < 0.9,
                "position": random.uniform(-0.5, 0.5, (TRUE_FRAMES, SLOTS, 2)).astype(np.float32),
                "radius": np.float32(radius),
                "contacts": np.array(
                    contacts + contacts[:1], np.int16
                ),  # a row that is there twice counts once
                "influence": np.array(influence, np.int16).reshape(-1, 3),
                "influence_horizon": np.int64(horizon),
                "future_slots": np.zeros((2, SLOTS, WIDTH), np.float32),
            }
            truths.append(known)
            slots = random.standard_normal((FRAMES, SLOTS, WIDTH)).astype(np.float32)
            writer.split("train").add(
                Sample(f"video_{video:05d}", slots, truth=known if truth else None)
            )
            known["slots"] = slots
    return truths


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows") / "data"
    return folder, write(folder)


def expected(truth, start, history, pred, skip):
    """One window's labels, straight from docs/architecture.md."""
    last, end = start + (history - 1) * skip, start + (history + pred - 1) * skip
    second = start + skip if history > 1 else start
    pair = {
        name: np.zeros((SLOTS, SLOTS), bool)
        for name in ("contact", "contact_new", "near_miss", "influence")
    }
    collides = np.zeros(SLOTS, bool)

    def touch(i, j, after, until):
        return any(after < f <= until and {i, j} == {a, b} for f, a, b in truth["contacts"])

    for i in range(SLOTS):
        for j in range(SLOTS):
            if i == j:
                continue
            pair["contact"][i, j] = touch(i, j, second, end)
            pair["contact_new"][i, j] = touch(i, j, last, end) and not touch(i, j, start, last)
            collides[i] |= touch(i, j, last, end)
            close = any(
                truth["present"][f, i]
                and truth["present"][f, j]
                and np.linalg.norm(truth["position"][f, i] - truth["position"][f, j])
                < 1.5 * 2 * truth["radius"]
                for f in range(last + 1, end + 1)
            )
            pair["near_miss"][i, j] = close and not touch(i, j, start, end)
            pair["influence"][i, j] = any(
                (f, a, b) == (last, i, j) for f, a, b in truth["influence"]
            )
    frames = start + skip * np.arange(history + pred)
    return {
        **pair,
        "collides": collides,
        "present": truth["present"][frames],
        "position": truth["position"][frames],
    }


@pytest.mark.parametrize(("history", "pred", "skip"), [(3, 1, 4), (3, 2, 2), (1, 1, 4), (2, 3, 3)])
def test_windows_are_as_defined(data, history, pred, skip):
    folder, truths = data
    source = InMemoryWindows(
        folder,
        "train",
        WindowSpec(history_frames=history, pred_frames=pred, frameskip=skip),
        truth=True,
    )
    starts = FRAMES - (history + pred) * skip + 1
    assert len(source) == VIDEOS * starts
    ids = np.random.default_rng(1).permutation(len(source))
    batch = source.get_batch(ids, ids + 7)
    assert batch["slots"].dtype == torch.float32 and batch["slots"].is_contiguous()
    assert batch["sample"].tolist() == (ids + 7).tolist() and batch["sample"].dtype == torch.int64
    assert ("influence" in batch) == (pred * skip == HORIZON)
    seen = dict.fromkeys(("contact", "contact_new", "near_miss", "influence", "collides"), 0)
    for row, window in enumerate(ids):
        video, start = divmod(int(window), starts)
        frames = start + skip * np.arange(history + pred)
        assert np.array_equal(batch["slots"][row].numpy(), truths[video]["slots"][frames])
        for name, value in expected(truths[video], start, history, pred, skip).items():
            if name in batch:
                assert np.array_equal(batch[name][row].numpy(), value), (name, video, start)
                seen[name] = seen.get(name, 0) + int(value.sum())
    assert all(seen[name] for name in seen if name in batch), (
        "the data does not exercise every label"
    )


def test_presence_needs_no_labels(data, tmp_path):
    source = InMemoryWindows(
        data[0], "train", WindowSpec(history_frames=2, pred_frames=1, frameskip=2), videos=3
    )
    labelled = InMemoryWindows(
        data[0],
        "train",
        WindowSpec(history_frames=2, pred_frames=1, frameskip=2),
        videos=3,
        truth=True,
    )
    batch = source.get_batch(np.arange(5), np.arange(5))
    assert set(batch) == {"slots", "present", "sample"}
    assert (
        torch.equal(batch["present"], labelled.get_batch(np.arange(5), np.arange(5))["present"])
        and not batch["present"].all()
    )
    write(tmp_path / "plain", truth=False)
    plain = InMemoryWindows(
        tmp_path / "plain", "train", WindowSpec(history_frames=2, pred_frames=1, frameskip=2)
    )
    # There is neither ground truth nor an empty slot to compare with.
    assert plain.get_batch(np.arange(5), np.arange(5))["present"].all()
    plain.empty = plain.get_batch(np.arange(1), np.arange(1))["slots"][0, 0, 2]
    assert not plain.get_batch(np.arange(1), np.arange(1))["present"][0, 0, 2]
    assert source.num_videos == 3 and source.shape == (FRAMES, SLOTS, WIDTH)
    assert np.array_equal(source.read_video(2), data[1][2]["slots"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_on_a_device_a_batch_is_the_same(tmp_path, dtype):
    write(tmp_path / "data", dtype=dtype)
    settings = dict(
        spec=WindowSpec(history_frames=2, pred_frames=1, frameskip=2), truth=True, contact_share=0.5
    )
    host, device = (
        InMemoryWindows(tmp_path / "data", "train", **settings, device=d)
        for d in (None, torch.device("cpu"))
    )
    ids = np.random.default_rng(0).permutation(len(host))
    found, expected = device.get_batch(ids, ids), host.get_batch(ids, ids)
    assert found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )
    assert device.device_views.dtype == found["slots"].dtype == getattr(torch, dtype)
    assert device.device_views.data_ptr() != host.slots.ctypes.data
    assert (
        InMemoryWindows(tmp_path / "data", "train", **settings, device=torch.device("meta"))
        .get_batch(ids, ids)["slots"]
        .is_meta
    )


def test_all_values_are_widened_exactly():
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(
        256, 256
    )  # all of float16 and bfloat16 there are, NaN and infinity too
    exact = (bits.astype(np.uint32) << 16).view(np.float32)  # bfloat16 is the upper half of float32
    half = bits.view(np.float16)
    for array, wide in ((half, half.astype(np.float32)), (bits, exact), (exact, exact)):
        assert np.array_equal(to_float32(array), wide, equal_nan=True) and np.array_equal(
            to_float32(array[:2, 5:9]), wide[:2, 5:9], equal_nan=True
        )
    for values, wide in (
        (torch.from_numpy(half), half),
        (torch.from_numpy(bits).view(torch.bfloat16), exact),
    ):
        found = to_device({"slots": values}, torch.device("cpu"))["slots"]
        assert found.dtype == torch.float32 and np.array_equal(
            found.numpy(), wide.astype(np.float32), equal_nan=True
        )


@given(
    videos=st.integers(1, 4),
    slots=st.integers(1, 3),
    width=st.integers(1, 5),
    length=st.integers(1, 5),
    frameskip=st.integers(1, 6),
    more=st.integers(0, 13),
    dtype=st.sampled_from([np.float16, np.float32, np.uint16]),
)
def test_a_window_is_one_piece_of_memory(videos, slots, width, length, frameskip, more, dtype):
    frames = length * frameskip + more
    plain = (
        np.arange(videos * frames * slots * width)
        .astype(dtype)
        .reshape(videos, frames, slots, width)
    )
    order = phase_order(frames, frameskip)
    found = window_views(
        np.ascontiguousarray(plain[:, order]), np.dtype((np.void, length * plain[0, 0].nbytes))
    )
    video, start = (index.ravel() for index in np.indices((videos, more + 1)))
    gathered = (
        found[video * frames + np.argsort(order)[start]]
        .view(dtype)
        .reshape(-1, length, slots, width)
    )
    for v, s, window in zip(video, start, gathered):
        assert np.array_equal(window, plain[v, s : s + length * frameskip : frameskip])


def test_an_epoch_holds_each_window_once(data):
    source = InMemoryWindows(
        data[0], "train", WindowSpec(history_frames=2, pred_frames=1, frameskip=2)
    )
    first = source.get_batch(sample_ids(3, 0, len(source), len(source)), np.arange(len(source)))[
        "slots"
    ]
    rows = {row.numpy().tobytes() for row in first}
    assert len(rows) == len(source)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_contact_share(data, share):
    folder, _ = data
    settings = dict(spec=WindowSpec(history_frames=3, pred_frames=1, frameskip=4), truth=True)
    plain = InMemoryWindows(folder, "train", **settings)
    source = InMemoryWindows(folder, "train", contact_share=share, **settings)
    natural = (
        plain.get_batch(np.arange(len(plain)), np.arange(len(plain)))["collides"]
        .any(1)
        .float()
        .mean()
        .item()
    )
    found = (
        source.get_batch(np.arange(len(source)), np.arange(len(source)))["collides"]
        .any(1)
        .float()
        .mean()
        .item()
    )
    assert found == pytest.approx(max(share, natural), abs=0.01)
    assert set(np.unique(source.window_ids)) == set(range(len(plain)))
    hidden = InMemoryWindows(folder, "train", contact_share=share, **{**settings, "truth": False})
    assert np.array_equal(hidden.window_ids, source.window_ids) and hidden.labels is None


def test_clear_errors(data, tmp_path):
    spec = WindowSpec(history_frames=3, pred_frames=1, frameskip=4)
    with pytest.raises(UserError, match=r"= 32 frames, the videos in .* have 30"):
        InMemoryWindows(data[0], "train", WindowSpec(history_frames=6, pred_frames=2, frameskip=4))
    with pytest.raises(UserError, match="contact_share"):
        InMemoryWindows(data[0], "train", spec, contact_share=1.0)
    write(tmp_path / "bare", truth=False)
    assert len(InMemoryWindows(tmp_path / "bare", "train", spec))
    for wish in ({"truth": True}, {"contact_share": 0.5}):
        with pytest.raises(UserError, match="video_00000: has no truth"):
            InMemoryWindows(tmp_path / "bare", "train", spec, **wish)


def test_load_truth_stacks_whole_videos(data):
    folder, truths = data
    loaded = load_truth(folder, "train", 3)
    assert loaded["present"].shape == (3, TRUE_FRAMES, SLOTS) and loaded["position"].shape == (
        3,
        TRUE_FRAMES,
        SLOTS,
        2,
    )
    assert loaded["future_slots"].shape == (3, 2, SLOTS, WIDTH) and loaded["slot_object"].shape == (
        3,
        SLOTS,
    )
    assert [rows.tolist() for rows in loaded["contacts"]] == [
        t["contacts"].tolist() for t in truths[:3]
    ]
    assert set(load_truth(folder, "train", names=("radius",))) == {"radius"}
