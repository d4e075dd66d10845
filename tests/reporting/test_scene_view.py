"""Videos seen from above: what is drawn is what data and model say, in every kind of file."""

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cjepa_dist import rollout
from cjepa_dist.causal.graph import estimate_graph
from cjepa_dist.checkpoint.run import load_task
from cjepa_dist.config import schema
from cjepa_dist.config.schema import GraphConfig
from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split, read_video
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.errors import UserError
from cjepa_dist.reporting import scene_view
from cjepa_dist.reporting.scene.html import scene_data
from cjepa_dist.reporting.scene.image import GAP, HEADER, MARGIN, PANEL, SceneImage, gif_bytes
from cjepa_dist.reporting.scene.video import VIEW_HALF_WIDTH, Video, changed_frames
from cjepa_dist.reporting.tensorboard_images import scene_callback
from data_prep.simulate import motion
from tests.reporting.untrained import save_run

SMALL = {"slots": 7, "slot_dim": 128, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16}


def make_run(root: Path, data: Path, **predictor) -> Path:
    return save_run(
        schema.TrainWorldModel(
            data=str(data),
            run=str(root),
            frameskip=5,
            predictor=schema.PredictorConfig(
                **SMALL, history_frames=3, pred_frames=1, dropout=0.0, **predictor
            ),
        )
    )


@pytest.fixture(scope="module")
def run(small_data, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("scene") / "model", small_data)


@pytest.fixture(scope="module")
def number(run):
    return scene_view.interesting_videos(run, "val", 1)[0]


@pytest.fixture(scope="module")
def scene(run, number):
    return scene_view.load_scene(run, "val", number)


@pytest.fixture(scope="module")
def sample(small_data, number):
    return read_video(small_data, "val", number)


def copy_data(data: Path, out: Path, change, empty_slot=True) -> Path:
    """The data set with each sample changed."""
    manifest = Manifest.load(data)
    with DatasetWriter(
        out,
        encoder=manifest.encoder,
        source=manifest.source,
        dtype=manifest.dtype,
        empty_slot=manifest.empty_slot if empty_slot else None,
    ) as writer:
        for split in ("train", "val"):
            for sample in read_split(data, split):
                writer.split(split).add(change(sample))
    return out


def as_matched(sample):
    """What `cjepa match` knows: positions of the observed frames only."""
    truth = sample.truth
    match = {name: truth[name][:128] for name in ("present", "position")}
    match["slot_object"] = truth["slot_object"]
    return dataclasses.replace(sample, truth=None, match=match)


def test_truth_is_the_simulators(scene, sample):
    truth, slots = sample.truth, Video(sample, Manifest("e", {}, 128, 7, 128, "float16")).slots
    assert [panel.title for panel in scene.panels] == ["Observed", "Truth", "Predicted", "Truth"]
    assert (scene.frames, scene.observed, scene.view) == (160, 128, motion.VIEW_HALF_WIDTH)
    assert VIEW_HALF_WIDTH == motion.VIEW_HALF_WIDTH
    _, factual, _, without = scene.panels
    np.testing.assert_array_equal(factual.position, truth["position"][:, slots])
    np.testing.assert_array_equal(factual.present, truth["present"][:, slots])
    drawn = [(f, slots[i], slots[j]) for f, i, j in factual.contacts.tolist()]
    assert drawn == [tuple(row) for row in truth["contacts"].tolist()]
    ghost = without.ghost
    world = truth["counterfactual_removed"].tolist().index(slots[ghost.index])
    np.testing.assert_array_equal(
        without.position, truth["counterfactual_position"][world][:, slots]
    )
    assert not without.present[:, ghost.index].any()
    np.testing.assert_array_equal(ghost.position, factual.position[:, ghost.index])
    names = [f"{o['color']} {o['shape']}" for o in sample.annotation["object_property"]]
    assert len(scene.objects) == len(names)
    for drawn, known in zip(scene.objects, sample.annotation["object_property"]):
        assert (drawn.shape, drawn.material) == (known["shape"], known["material"])
        assert {known["color"], known["shape"]} <= set(drawn.name.split())


def test_what_is_observed_and_predicted(scene, sample, run):
    model, truth, without, _ = scene.panels
    seen = truth.present[:128] & model.present[:128]
    assert seen.sum() > 0.9 * truth.present[:128].sum()
    error = np.linalg.norm(model.position[:128] - truth.position[:128], axis=-1)[seen]
    assert error.mean() < 0.5 * scene.radius

    task, config, _ = load_task(run)
    slots = torch.from_numpy(to_float32(sample.slots))[None]
    with torch.no_grad():
        future = task.predictor.rollout(slots, 32, config.frameskip)[0]
    reader, _ = scene_view.open_run(run, "")
    used = Video(sample, Manifest("e", {}, 128, 7, 128, "float16")).slots
    np.testing.assert_allclose(
        model.position[128:], reader.probe(future)[:, used].numpy(), atol=1e-4
    )
    assert model.predicted_from == 128 and without.predicted_from == 15
    # Before the first prediction the world is the observed one, without the removed object.
    others = [i for i in range(len(scene.objects)) if i != without.ghost.index]
    np.testing.assert_array_equal(without.position[:15, others], model.position[:15, others])
    assert not without.present[:, without.ghost.index].any()


def test_edges_are_the_graph_of_the_window(scene, sample, run, small_data):
    task, _, _ = load_task(run)
    frame, video = 100, Video(sample, Manifest.load(small_data))
    slots = torch.from_numpy(to_float32(sample.slots))
    present = torch.zeros(1, 7, dtype=torch.bool)
    present[0, video.slots] = torch.from_numpy(scene.panels[0].present[frame])
    graph = estimate_graph(
        GraphConfig(),
        task.predictor,
        slots[[frame - 10, frame - 5, frame]][None],
        present,
        context=task.graph_context(torch.zeros(1, dtype=torch.int64)),
    )
    expected = graph.adjacency[0].numpy()[video.slots][:, video.slots]
    np.testing.assert_allclose(scene.panels[0].edges[frame], expected, atol=1e-4)
    assert not scene.panels[0].edges[:10].any()  # no whole history yet


def test_a_model_of_single_slots_has_no_edges(small_data, tmp_path, number):
    alone = make_run(tmp_path / "own", small_data, own_slot_only=True)
    panel = scene_view.load_scene(alone, "val", number).panels[0]
    assert not any(panel.edge_strength(frame) for frame in range(160))


def test_removed_object_by_name_and_errors(run, number, sample, scene):
    first = sample.annotation["object_property"][0]
    words = f"{first['shape']} {first['color']} {first['material']}"
    for wanted in (words, str(first["object_id"])):
        found = scene_view.load_scene(run, "val", number, removed=wanted)
        assert found.panels[2].ghost.index == 0
    with pytest.raises(UserError, match=r"removed=pink fits 0 objects .*which has 0 "):
        scene_view.load_scene(run, "val", number, removed="pink")
    with pytest.raises(UserError, match=r"no video 8 in split 'val' .* it has 8, counted from 0"):
        scene_view.load_scene(run, "val", 8)
    with pytest.raises(UserError, match="no split"):
        scene_view.load_scene(run, "tset", 0)
    with pytest.raises(UserError, match="not a run directory"):
        scene_view.load_scene(run / "nothing", "val", 0)


def test_interesting_videos(run, small_data):
    chosen = scene_view.interesting_videos(run, "val", 8)
    assert sorted(chosen) == list(range(8))
    assert chosen[:2] == scene_view.interesting_videos(run, "val", 2)
    scores = []
    for number in chosen:
        truth = read_video(small_data, "val", number).truth
        contact = bool((truth["contacts"][:, 0] >= 128).any())
        scores.append(contact + bool(changed_frames(truth, 15).any()))
    assert scores == sorted(scores, reverse=True) and scores[0] == 2


def test_worlds_that_change_too_early_do_not_count():
    position = np.zeros((2, 40, 3, 2), np.float32)
    position[0, 5:, 1] = position[1, 20:, 1] = 1.0
    present = np.ones((2, 40, 3), bool)
    truth = {
        "position": np.zeros((40, 3, 2), np.float32),
        "present": present[0],
        "radius": np.float32(0.1),
        "counterfactual_position": position,
        "counterfactual_present": present,
    }
    assert changed_frames(truth, 15).tolist() == [0, 20]
    assert changed_frames(truth, 5).tolist() == [35, 20]


def test_a_rollout_is_drawn_as_it_is(run, small_data, tmp_path, number, scene):
    folder = tmp_path / "rolled"
    rollout.main(
        rollout.Rollout(
            data=str(small_data),
            out=str(folder),
            world_model=str(run),
            mode="counterfactual",
            splits=["val"],
            all_objects=True,
        )
    )
    found = scene_view.load_scene(run, "val", number, rollout=str(folder))
    assert [panel.title for panel in found.panels] == [panel.title for panel in scene.panels]
    for ours, theirs in zip(found.panels, scene.panels):
        np.testing.assert_allclose(ours.position, theirs.position, atol=0.02)  # stored as float16
    assert (found.frames, found.observed) == (160, 128)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"]["future_frames"] == 32


def test_data_without_a_simulator(small_data, tmp_path):
    matched = copy_data(small_data, tmp_path / "matched", as_matched)
    run = make_run(tmp_path / "run", matched)
    scene = scene_view.load_scene(run, "val", 0)
    assert [panel.title for panel in scene.panels] == ["Observed", "Predicted"]
    assert scene.panels[1].ghost is not None and scene.view == 0 and scene.radius > 0
    assert scene_view.interesting_videos(run, "val", 3) == [0, 1, 2]

    unknown = copy_data(small_data, tmp_path / "unknown", as_matched, empty_slot=False)
    scene = scene_view.load_scene(make_run(tmp_path / "run2", unknown), "val", 0)
    assert [panel.title for panel in scene.panels] == ["Observed"]
    scene_view.write_png(scene, tmp_path / "one.png")

    bare = copy_data(
        small_data, tmp_path / "bare", lambda s: dataclasses.replace(s, truth=None, questions=None)
    )
    with pytest.raises(UserError, match=r"does not say where its objects are .* cjepa match"):
        scene_view.load_scene(make_run(tmp_path / "run3", bare), "val", 0)


def centre_pixel(scene, panel: int, frame: int, index: int) -> tuple[int, int]:
    """Where the centre of an object is in an image of scale 1."""
    unit = PANEL / (scene.high[0] - scene.low[0])
    x, y = scene.panels[panel].position[frame, index] - [scene.low[0], scene.high[1]]
    left = MARGIN + panel * (PANEL + GAP)
    return round(left + x * unit), round(HEADER - y * unit)


def test_objects_are_where_they_are(scene):
    truth = scene.panels[1]
    checked = 0
    for frame in (0, 64, 150):
        image = SceneImage(scene).draw(frame)
        for i in np.flatnonzero(truth.present[frame]):
            gaps = np.linalg.norm(truth.position[frame] - truth.position[frame, i], axis=-1)
            others = np.delete(gaps[truth.present[frame]], 0) if len(gaps) > 1 else gaps
            if scene.objects[i].material == "metal" or (others[others > 0] < 0.5).any():
                continue  # a highlight, an edge or a star may be on top
            colour = tuple(bytes.fromhex(scene.objects[i].colour[1:]))
            assert image.getpixel(centre_pixel(scene, 1, frame, i)) == colour
            checked += 1
    assert checked


def test_gif(scene, tmp_path):
    path = tmp_path / "folder" / "video.gif"
    scene_view.write_gif(scene, path)
    assert path.stat().st_size < 500_000
    assert [p.name for p in path.parent.iterdir()] == ["video.gif"]
    with Image.open(path) as image:
        assert image.n_frames == 80 and image.info["loop"] == 0
        drawing = SceneImage(scene)
        assert image.size == (drawing.width, drawing.height)
        image.seek(75)
        drawn = np.asarray(image.convert("RGB"), int)
    assert np.abs(drawn - np.asarray(drawing.draw(150), int)).mean() < 2.5
    parts = gif_bytes(scene, range(100, 110, 2))[0]
    assert parts == gif_bytes(scene, range(100, 110, 2))[0]  # nothing is random
    assert Image.open(io.BytesIO(parts)).n_frames == 5


def test_html_is_self_contained(scene):
    hostile = dataclasses.replace(scene, key="</script><b>&", caption="<img src=x onerror=alert()>")
    text = scene_view.scene_html(hostile)
    assert "<img" not in text and "</script><b>" not in text
    plain = scene_view.scene_html(scene)
    assert not re.search(r"(src|href)\s*=|url\(|https?://|@import", plain)
    found = re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    data = json.loads(found[1])
    assert data == json.loads(json.dumps(scene_data(scene)))
    for panel, drawn in zip(scene.panels, data["panels"]):
        seen = [[xy is not None for xy in path] for path in drawn["paths"]]
        np.testing.assert_array_equal(np.array(seen).T, panel.present)
    assert len(text) < 120_000


@pytest.mark.parametrize("width,dark", [(1280, False), (390, True)])
def test_page_plays(browser, scene, tmp_path, width, dark):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    page = tmp_path / "page.html"
    figures = scene_view.scene_html(scene) * 2
    page.write_text(
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<body>{figures}</body>"
    )
    assert browser.open(page, width, dark) == []
    wait = WebDriverWait(browser.driver, 60)
    frame = "Number(document.querySelectorAll('figure input')[0].value)"
    before = browser.evaluate(frame)
    wait.until(lambda _: browser.evaluate(frame) != before)  # it plays by itself
    browser.driver.find_element(By.CSS_SELECTOR, "figure button").click()
    assert browser.evaluate("document.querySelector('figure button').ariaLabel") == "play"
    browser.driver.execute_script(
        "const s = document.querySelector('figure input'); s.value = 140;"
        "s.dispatchEvent(new Event('input'))"
    )
    figure = browser.driver.find_element(By.CSS_SELECTOR, "figure")
    titles = [e.text for e in figure.find_elements(By.CSS_SELECTOR, ".scene-title")]
    assert titles == ["Predicted", "Truth", "Predicted", "Truth"]
    figure.find_element(By.CSS_SELECTOR, "input").send_keys(Keys.ARROW_RIGHT)
    assert browser.evaluate(frame) == 141
    assert figure.find_element(By.CSS_SELECTOR, "output").text == "frame 141"
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    colours = browser.evaluate(
        "[...document.querySelectorAll('canvas')].map(c => new Set(new Uint32Array(c.getContext"
        "('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size)"
    )
    assert len(colours) == 8 and min(colours) > 10
    assert browser.driver.get_log("browser") == []


class Recorder:
    def __init__(self):
        self.animations = []

    def add_animation(self, step, name, gif, size):
        self.animations.append((step, name, gif, size))


def test_tensorboard_animation_changes_nothing(run, small_data):
    task, config, _ = load_task(run)
    task.train()
    windows = InMemoryWindows(small_data, "val", WindowSpec(3, 1, 5))
    weights = {name: value.clone() for name, value in task.state_dict().items()}
    random, logger = torch.random.get_rng_state(), Recorder()
    draw = scene_callback(config, windows)
    draw(logger, 7, task)
    draw(logger, 9, task)
    assert torch.equal(random, torch.random.get_rng_state()) and task.training
    assert all(torch.equal(value, weights[name]) for name, value in task.state_dict().items())
    (step, name, gif, size), second = logger.animations
    assert (step, name, second[0]) == (7, "scene/from_above", 9) and gif == second[2]
    with Image.open(io.BytesIO(gif)) as image:
        assert image.size == size and image.n_frames == 32


def test_tensorboard_has_no_animation_without_positions(small_data, tmp_path, run):
    bare = copy_data(
        small_data, tmp_path / "bare", lambda s: dataclasses.replace(s, truth=None, questions=None)
    )
    _, config, _ = load_task(run)
    config.data = str(bare)
    assert scene_callback(config, InMemoryWindows(bare, "val", WindowSpec(3, 1, 5))) is None
    shutil.rmtree(bare)
