"""Causal discovery on slots without a predictor: one summary graph a video, by NOTEARS or DAG-GNN.

    slots (T, S, D) ──> principal components of changes (T, S, K) ──> rows [frame t - lag, frame t]
    ──> DAG over 2 S nodes ──> weights from past j to present i (S, S)

It takes seconds to minutes a video, so it is no estimator for training. The graph is one for the
whole video: it cannot say when j influenced i. AUROC of a window's contacts in the simulated world:
NOTEARS .571 [.522, .608] (264 windows of 16 videos; the intervention `empty` .980 on the same),
DAG-GNN .54 (6 videos); each about 2 s of one core a video.

The methods are gCastle's (extra `summary`). gCastle configures logging, reseeds numpy and torch,
and makes double the default dtype of the process: `restore_global_state` undoes that.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from cjepa_dist.errors import UserError

TAU = 0.3  # smallest weight of an edge, as published for both methods


def summary_graph(
    slots: np.ndarray, method: str, *, lag: int, components: int = 3, seed: int = 0
) -> np.ndarray:
    """Scores (S, S) float32 of a video: [i, j] = |weight| from slot j, `lag` frames ago, to slot i.

    0 on the diagonal. `slots` (T, S, D), T > lag; `method` a name in METHODS. The result depends
    only on the arguments: DAG-GNN's initial weights come from `seed`, NOTEARS draws nothing. Only
    weights from past to present are used, because time orders them; edges within a frame, which
    both methods estimate as well, are ignored. Raises UserError if gCastle is not installed or the
    video is too short.
    """
    if len(slots) <= lag + 1:
        raise UserError(
            f"summary graphs compare frames {lag} apart:"
            f" a video of {len(slots)} frames is too short"
        )
    parts = principal_components(slots.astype(np.float64), components)
    frames = np.concatenate([parts[:-lag], parts[lag:]], axis=1)  # (N, 2 S, K), past before present
    with restore_global_state():
        weights = METHODS[method](import_gcastle(), frames, seed)  # (2 S, 2 S), [from, to]
    count = slots.shape[1]
    scores = weights[:count, count:].T.astype(np.float32)
    np.fill_diagonal(scores, 0.0)
    return scores


def principal_components(slots: np.ndarray, count: int) -> np.ndarray:
    """(T, S, D) -> (T, S, K): principal components of the deviation from each slot's mean.

    Without the mean, the content that identifies an object is gone. Axes and units are the same for
    all slots.
    """
    change = slots - slots.mean(axis=0)
    axes = np.linalg.svd(change.reshape(-1, slots.shape[2]), full_matrices=False)[2][:count]
    parts = change @ axes.T
    return parts / np.maximum(parts.std(axis=(0, 1)), 1e-12)


def notears(castle: Any, frames: np.ndarray, seed: int) -> np.ndarray:
    """Linear, one node a component (Zheng et al. 2018): the largest |weight| of K x K a pair.

    It starts from 0 and ignores `seed`.
    """
    samples, nodes, parts = frames.shape
    # A tolerance for cycles: they can only be among weights that are not used. The default, 1e-8,
    # takes ten times as long.
    model = castle.Notears(lambda1=0.1, h_tol=1e-3, w_threshold=TAU)
    model.learn(frames.reshape(samples, -1))
    return (
        np.abs(np.asarray(model.weight_causal_matrix))
        .reshape(nodes, parts, nodes, parts)
        .max(axis=(1, 3))
    )


def dag_gnn(castle: Any, frames: np.ndarray, seed: int) -> np.ndarray:
    """A variational autoencoder whose nodes are vectors (Yu et al. 2019): one node a slot.

    Five rounds of 20 epochs; the default is 100 of 300.
    """
    model = castle.DAG_GNN(epochs=20, k_max_iter=5, seed=seed, graph_threshold=TAU)
    model.learn(frames)
    # From the encoder, because gCastle returns only the thresholded graph.
    return np.abs(np.sinh(3 * model.encoder.adj_A.detach().cpu().numpy()))


METHODS = {"notears": notears, "dag_gnn": dag_gnn}


def import_gcastle() -> Any:
    """gCastle's algorithms, imported inside `restore_global_state`. Raises UserError if missing."""
    try:
        return importlib.import_module("castle.algorithms")
    except ImportError as error:
        raise UserError(
            f"summary graphs need gCastle ({error}): pip install gcastle, or install the project"
            " with its extra [summary]"
        ) from None


@contextmanager
def restore_global_state() -> Iterator[None]:
    """Restore afterwards what gCastle changes in the process.

    That is logging, the default dtype, the generators of numpy and torch (CPU) and the environment.
    """
    log, dtype, state, variables = (
        logging.getLogger(),
        torch.get_default_dtype(),
        np.random.get_state(),
        dict(os.environ),
    )
    handlers = log.handlers
    with torch.random.fork_rng(devices=[]):
        try:
            # gCastle sets it on import; DAG-GNN needs it on later calls too.
            torch.set_default_dtype(torch.double)
            # If there is a handler, gCastle's basicConfig does nothing.
            log.handlers = [logging.NullHandler()]
            yield
        finally:
            log.handlers = handlers
            torch.set_default_dtype(dtype)
            np.random.set_state(state)
            for name in os.environ.keys() - variables.keys():
                del os.environ[name]
            os.environ.update(variables)
