"""One graph a video by causal discovery on the slots alone, no predictor: NOTEARS and DAG-GNN, from gCastle (extra `summary`).

    slots (T, S, D) ──> principal components of what changes (T, S, K) ──> rows [frame t - lag, frame t] ──> DAG over 2 S nodes
                                                                           weights from past j to present i ──> (S, S)

Offline: seconds to minutes a video, so no estimator of training. One graph for the whole video holds for its slots in that video's order,
and cannot say when j influenced i. AUROC of a window's contacts in the simulated world: NOTEARS .571 [.522, .608] (264 windows of 16
videos; `empty` .980 on the same), DAG-GNN .54 (6 videos); about 2 s of one core a video each.

gCastle configures logging, reseeds numpy and torch and makes double the default dtype of the whole process: `contained` undoes that.
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

TAU = 0.3  # weight of an edge: the threshold of both published methods


def summary_graph(
    slots: np.ndarray, method: str, *, lag: int, components: int = 3, seed: int = 0
) -> np.ndarray:
    """Raw scores (S, S) float32 of a video: [i, j] = |weight| with which slot j, `lag` frames ago, enters slot i; 0 on the diagonal.

    `slots` (T, S, D), T > lag; `method` a name in METHODS. A function of its arguments: DAG-GNN's initial weights come from `seed`, NOTEARS
    draws nothing. Only weights from past to present are read, because time orders them. Edges within a frame are estimated beside them, as
    the acyclic graph that both methods demand, and ignored. Raises UserError if gCastle is not installed or the video is too short.
    """
    if len(slots) <= lag + 1:
        raise UserError(
            f"summary graphs compare frames {lag} apart: a video of {len(slots)} frames is too short"
        )
    parts = principal(slots.astype(np.float64), components)
    frames = np.concatenate([parts[:-lag], parts[lag:]], axis=1)  # (N, 2 S, K), past before present
    with contained():
        weights = METHODS[method](library(), frames, seed)  # (2 S, 2 S), [from, to]
    count = slots.shape[1]
    scores = weights[:count, count:].T.astype(np.float32)
    np.fill_diagonal(scores, 0.0)
    return scores


def principal(slots: np.ndarray, count: int) -> np.ndarray:
    """(T, S, D) -> (T, S, K): components of the deviation from each slot's mean, which drops who it is; the same axes and units for all."""
    change = slots - slots.mean(axis=0)
    axes = np.linalg.svd(change.reshape(-1, slots.shape[2]), full_matrices=False)[2][:count]
    parts = change @ axes.T
    return parts / np.maximum(parts.std(axis=(0, 1)), 1e-12)


def notears(castle: Any, frames: np.ndarray, seed: int) -> np.ndarray:
    """Linear, one node a component (Zheng et al. 2018): the largest |weight| of K x K for each pair. Takes no seed: it starts from 0."""
    samples, nodes, parts = frames.shape
    # Cycles lighter than this tolerance can only be among weights that nobody reads; the default, 1e-8, takes ten times as long.
    model = castle.Notears(lambda1=0.1, h_tol=1e-3, w_threshold=TAU)
    model.learn(frames.reshape(samples, -1))
    return (
        np.abs(np.asarray(model.weight_causal_matrix))
        .reshape(nodes, parts, nodes, parts)
        .max(axis=(1, 3))
    )


def dag_gnn(castle: Any, frames: np.ndarray, seed: int) -> np.ndarray:
    """A variational autoencoder whose nodes are vectors (Yu et al. 2019): one node a slot. Five rounds of 20 epochs, not 100 of 300."""
    model = castle.DAG_GNN(epochs=20, k_max_iter=5, seed=seed, graph_threshold=TAU)
    model.learn(frames)
    return np.abs(
        np.sinh(3 * model.encoder.adj_A.detach().cpu().numpy())
    )  # gCastle hands out the thresholded graph only


METHODS = {"notears": notears, "dag_gnn": dag_gnn}


def library() -> Any:
    """gCastle's algorithms. Raises UserError where it is not installed. To be called inside `contained`."""
    try:
        return importlib.import_module("castle.algorithms")
    except ImportError as error:
        raise UserError(
            f"summary graphs need gCastle ({error}): pip install gcastle, or install the project with its extra [summary]"
        ) from None


@contextmanager
def contained() -> Iterator[None]:
    """Put back afterwards what gCastle changes in the process: logging, default dtype, generators of numpy and torch (CPU), a variable."""
    log, dtype, state, variables = (
        logging.getLogger(),
        torch.get_default_dtype(),
        np.random.get_state(),
        dict(os.environ),
    )
    handlers = log.handlers
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_default_dtype(
                torch.double
            )  # on import, gCastle sets it; DAG-GNN needs it on later calls too
            log.handlers = [
                logging.NullHandler()
            ]  # with a handler there, gCastle's basicConfig does nothing
            yield
        finally:
            log.handlers = handlers
            torch.set_default_dtype(dtype)
            np.random.set_state(state)
            for name in os.environ.keys() - variables.keys():
                del os.environ[name]
            os.environ.update(variables)
