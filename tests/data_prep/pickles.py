"""Small videos of slots, and pickles of them, for the tests of the importers."""

import pickle

import numpy as np

SHAPE = (6, 3, 8)


def video(scene, dtype=np.float32):
    return np.random.default_rng(scene).standard_normal(SHAPE).astype(dtype)


def public(layout="{}_pixels.mp4"):
    return {
        "train": {layout.format(scene): video(scene) for scene in (2, 0, 11)},
        "validation": {layout.format(scene): video(scene) for scene in (10000,)},
        "test": {layout.format(scene): video(scene) for scene in (15000,)},
    }


def dump(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path
