"""`match` on annotations that are not as CLEVRER's: one line that names scene and field."""

import copy

import numpy as np
import pytest

from cjepa_dist.errors import UserError
from data_prep.slot_matching import AnnotatedScene, ObjectProbe, initial_probe
from tests.data_prep.test_import_checks import ANNOTATION


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda a: a["object_property"][0].update(color="Red"), "color"),
        (lambda a: a["object_property"][0].pop("shape"), "shape"),
        (lambda a: a["object_property"][1].update(object_id=0), "occurs twice"),
        (lambda a: a["object_property"].pop(), "object_id 1 is not in object_property"),
        (
            lambda a: a["motion_trajectory"][0]["objects"][0].update(location=[np.nan, 0]),
            "location",
        ),
        (lambda a: a["motion_trajectory"][0].pop("objects"), "objects"),
    ],
)
def test_scene_and_field_are_named(change, field):
    annotation = copy.deepcopy(ANNOTATION)
    change(annotation)
    with pytest.raises(UserError, match=rf"annotation of scene 2 is not sound: .*{field}"):
        AnnotatedScene.from_annotation(annotation)


def test_no_annotation_is_no_fault():
    assert AnnotatedScene.from_annotation({}) is None


def test_scenes_without_an_object_in_view():
    annotation = copy.deepcopy(ANNOTATION)
    for entry in annotation["motion_trajectory"][0]["objects"]:
        entry["inside_camera_view"] = False
    scene = AnnotatedScene.from_annotation(annotation)
    assert scene is not None
    slots = np.zeros((1, 3, 8), np.float32)
    with pytest.raises(UserError, match="no object of the annotations is in view"):
        initial_probe([(slots, scene)])
    targets = scene.targets.shape[-1]
    probe = ObjectProbe(np.zeros((9, targets)), np.ones(targets), np.ones(targets))
    assert probe.assign(slots, scene, 0.5).tolist() == [-1, -1]
