"""Causal Transformation Theory (CTT): losses of invariance, sufficiency and consistency.

    published     a mean graph of the batch, cut at a threshold; hide i, or the non-neighbours of k
                  [M0 and i; non-neighbours of k], one forward of 2B ──> mean squared error
    per sample    a graph for each sample; take out I_b, or all but the neighbours of k_b
                  [M0; M0 without I_b; M0 without non-neighbours of k_b], one forward of 3B
                  ──> error in variances
    consistency   f(f(...f(history))), K forwards of B one after another ──> error in variances

Axiom 2: the causal neighbourhood of a slot is what its future depends on. So taking out a slot that
does not interact changes nothing for the others (invariance), and the neighbourhood alone predicts
the slot as well as all slots do (sufficiency). M0 are the hidden slots of the step, the base mask:
they are hidden in every pass, so that two passes differ in the intervention and in nothing else.
Errors in variances are divided by the residual variance of the predictor. The first two return sums
and counts: the caller reduces the counts over ranks and divides, so N ranks equal one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cjepa_dist.causal.attention_graph import present_pairs, published_adjacency
from cjepa_dist.causal.graph import Graph
from cjepa_dist.causal.interventions import World, draw_replacement_slots, intervene, stack
from cjepa_dist.config.schema import InvarianceConfig, SufficiencyConfig
from cjepa_dist.models.dropout import without_dropout
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.runtime.random import uniform

# Streams of `runtime.random.uniform`: every purpose has its own number.
STREAM_INVARIANCE, STREAM_SUFFICIENCY = 201, 202


@dataclass(frozen=True)
class CttTerms:
    """Two terms as sums and counts, () float32 each.

    A term is sum / count over all ranks, 0 where the count is 0.
    """

    invariance_sum: Tensor
    invariance_count: Tensor
    sufficiency_sum: Tensor
    sufficiency_count: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)  # means over this batch, detached
    # (B, T, S, D) prediction under M0; with its gradient where the stacked forward made it
    base_prediction: Tensor | None = None


# --- as released ----------------------------------------------------------------------------------


def draw_batch_slots(hidden: Tensor, *, seed: int, step: int | Tensor) -> tuple[Tensor, Tensor]:
    """The slots i (invariance) and k (sufficiency) of a step, two () int64 tensors.

    They are uniform over slots that are visible in every sample; `hidden` (B, S) bool. The released
    losses assume one mask for the batch. With a mask for each sample, slots hidden in the fewest
    samples come first, and `published_terms` leaves out samples in which the slot is hidden. All
    ranks draw the same slots if they pass the same `hidden`.
    """
    batchwise = torch.zeros(1, dtype=torch.int64, device=hidden.device)
    hidden_share = hidden.float().mean(dim=0)
    slots = hidden.shape[1]
    for_invariance = uniform(seed, step, batchwise, slots, STREAM_INVARIANCE)[0]
    for_sufficiency = uniform(seed, step, batchwise, slots, STREAM_SUFFICIENCY)[0]
    return (
        (for_invariance - 2 * hidden_share).argmax(),
        (for_sufficiency - 2 * hidden_share).argmax(),
    )


def published_terms(
    predictor: SlotPredictor,
    x: Tensor,
    hidden: Tensor,
    base_prediction: Tensor | None = None,
    *,
    threshold: float,
    invariance_slot: int | Tensor,
    sufficiency_slot: int | Tensor,
    mean_adjacency: Tensor | None = None,
) -> CttTerms:
    """The released losses, exactly: slots `x` (B, T, S, D), `hidden` (B, S) bool (M0).

    `base_prediction` (B, T, S, D): the prediction under M0. `mean_adjacency` (S, S): the mean of
    `published_adjacency` under M0 over the whole batch, all ranks and passes; without it, over `x`.
    Invariance: with slot i hidden too, visible j != i with A[j, i] < threshold keep the prediction
    that they have under M0. Sufficiency: every j != k with A[k, j] < threshold is hidden, and the
    future of k is compared with the truth. A term without such j counts nothing.

    Dropout stays as the caller has it (released: on, and different in the passes that are
    compared). If `base_prediction` or `mean_adjacency` is missing, one more pass computes it. Kept
    for comparison: rows of A sum to 1 / T_total, so with 4 frames and the usual threshold 0.15
    every pair is a pair of non-neighbours.
    """
    frames, slots = predictor.config.history_frames, x.shape[2]
    history, truth = x[:, :frames], x[:, frames:].float()
    if base_prediction is None or mean_adjacency is None:
        with torch.no_grad():
            z0, maps = predictor(history, hidden, need_attention="last", future_only=True)
        if base_prediction is None:
            base_prediction = z0
        if mean_adjacency is None:
            mean_adjacency = published_adjacency(maps[-1], frames, slots).mean(dim=0)
    target = base_prediction[:, -truth.shape[1] :].detach().float()
    weight, far_from_k = select_published_slots(
        mean_adjacency, hidden, threshold, invariance_slot, sufficiency_slot
    )
    index = torch.arange(slots, device=x.device)
    is_i, is_k = index == invariance_slot, index == sufficiency_slot
    masks = torch.cat([hidden | is_i, far_from_k.expand_as(hidden)])
    z1, z2 = predictor(torch.cat([history, history]), masks, future_only=True).float().chunk(2)

    change = (z1 - target).square().mean(dim=(1, 3))
    error = ((z2 - truth).square().mean(dim=(1, 3)) * is_k).sum(dim=1)  # (B,)
    some = far_from_k.any().float()
    with torch.no_grad():
        not_self = ~torch.eye(slots, dtype=torch.bool, device=x.device)
        edges = (mean_adjacency >= threshold) & not_self
        candidates = ~is_i & ~hidden & ~(hidden & is_i).any(dim=1, keepdim=True)
        metrics = {
            "non_neighbour_fraction": weight.sum() / candidates.float().sum().clamp_min(1),
            "edges_per_slot": edges.float().sum() / slots,
        }
    return CttTerms(
        (weight * change).sum(), weight.sum(), some * error.sum(), some * len(x), metrics
    )


def select_published_slots(
    mean_adjacency: Tensor,
    hidden: Tensor,
    threshold: float,
    invariance_slot: int | Tensor,
    sufficiency_slot: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """The slots that invariance compares (B, S), float weights, and that sufficiency hides (S,)."""
    index = torch.arange(len(mean_adjacency), device=mean_adjacency.device)
    is_i, is_k = index == invariance_slot, index == sufficiency_slot
    far = mean_adjacency < threshold
    far_from_i = (far & is_i).any(dim=1) & ~is_i  # j with A[j, i] < threshold
    far_from_k = (far & is_k[:, None]).any(dim=0) & ~is_k  # j with A[k, j] < threshold
    i_is_visible = ~(hidden & is_i).any(dim=1, keepdim=True)
    return (far_from_i & ~hidden & i_is_visible).float(), far_from_k


# --- corrected ------------------------------------------------------------------------------------


def per_sample_terms(
    predictor: SlotPredictor,
    x: Tensor,
    hidden: Tensor,
    present: Tensor,
    graph: Graph,
    sigma2: Tensor,
    *,
    margin: float,
    seed: int,
    step: int | Tensor,
    sample: Tensor,
    invariance: InvarianceConfig | None = None,
    sufficiency: SufficiencyConfig | None = None,
    empty: Tensor | None = None,
    base_prediction: Tensor | None = None,
) -> CttTerms:
    """Invariance and sufficiency with a graph, a slot I_b and a slot k_b for each sample.

    `x` (B, T, S, D), `hidden` and `present` (B, S) bool, `sigma2` (D,) residual variance, `sample`
    (B,) global indices. I_b (taken out for invariance) and k_b (predicted for sufficiency) are
    drawn among present, visible slots; a sample without one is not counted. What takes a slot out
    is `invariance.intervention` and `sufficiency.intervention` (`causal/interventions.py`; `empty`
    (D,) is the empty slot). With e(a, b) = mean over future frames and d of (a - b)^2 / sigma_d^2:

    - invariance = sum w d / sum w, with w_bj = stop(1 - A[b, j, I_b]) for present, visible j != I_b
      with e1_j - e0_j <= margin (errors against the truth). The last condition drops slots whose
      prediction gets worse without I_b, whatever the graph says. w is a constant: otherwise A = 1
      would lower the loss. d is, by `invariance.target`, e(z1, stop z0) for `clean`, e(z1, truth)
      for `truth`, e(z0, stop z1) for `removed`.
    - sufficiency = mean of relu(e2_k - stop e0_k - margin), with e2 from the pass without the slots
      j whose A[b, k_b, j] <= 0.5.

    The slots of M0 are hidden in all three passes. Dropout is off, because passes are compared.
    `base_prediction` is z0, the prediction under M0 without dropout, of all frames or only the
    future, if the caller has it; `removed` needs it with its gradient. Then two passes are left.
    Without it, all three are one forward of 3B, and the result's `base_prediction` is z0 with its
    gradient.
    """
    invariance, sufficiency = invariance or InvarianceConfig(), sufficiency or SufficiencyConfig()
    frames, slots = predictor.config.history_frames, x.shape[2]
    history, truth = x[:, :frames], x[:, frames:].float()
    adjacency = graph.adjacency.detach().float()
    eligible = present & ~hidden
    some = eligible.any(dim=1)
    i_b = draw_sample_slots(eligible, seed, step, sample, STREAM_INVARIANCE)
    k_b = draw_sample_slots(eligible, seed, step, sample, STREAM_SUFFICIENCY)
    index = torch.arange(slots, device=x.device)
    is_i, is_k = index == i_b[:, None], index == k_b[:, None]  # (B, S)
    column, row = i_b[:, None, None].expand(-1, slots, 1), k_b[:, None, None].expand(-1, 1, slots)
    influence_of_i = adjacency.gather(2, column)[:, :, 0]  # of I_b on each j
    neighbour_of_k = adjacency.gather(1, row)[:, 0] > 0.5  # j that influence k_b

    others = None
    if invariance.intervention == "swap":
        others = draw_replacement_slots(history, present, seed, step, sample)
    without_i = intervene(
        history, hidden, is_i, invariance.intervention, empty=empty, replacement=others
    )
    far_from_k = ~(neighbour_of_k | is_k)
    neighbours_only = intervene(history, hidden, far_from_k, sufficiency.intervention, empty=empty)
    with without_dropout(predictor):
        if base_prediction is None:
            worlds = stack([World(history, hidden), without_i, neighbours_only])
            base_prediction, z1, z2 = worlds.predict(predictor).chunk(3)
        else:
            worlds = stack([without_i, neighbours_only])
            z1, z2 = worlds.predict(predictor, future_only=True).chunk(2)
    future = slice(-truth.shape[1], None)
    z_base = base_prediction[:, future].float()
    z0, z1, z2 = z_base.detach(), z1[:, future].float(), z2[:, future].float()

    e0, e1, e2 = (normalized_error(z, truth, sigma2) for z in (z0, z1, z2))
    candidates = ((1 - influence_of_i) * (eligible & ~is_i & some[:, None])).detach()
    weight = candidates * (e1.detach() - e0 <= margin)
    if invariance.target == "truth":
        distance = e1
    elif invariance.target == "removed":
        distance = normalized_error(z_base, z1.detach(), sigma2)
    else:
        distance = normalized_error(z1, z0, sigma2)
    excess = torch.relu(e2 - e0 - margin) * is_k * some[:, None]
    metrics = {
        name: value.detach() for name, value in adjacency_metrics(adjacency, present).items()
    }
    # Of the pairs that the graph calls no neighbours; their classes: `cjepa evaluate-graph`.
    metrics["invariance_dropped"] = 1 - weight.sum() / candidates.sum().clamp_min(1e-6)
    return CttTerms(
        (weight * distance).sum(),
        weight.sum(),
        excess.sum(),
        some.float().sum(),
        metrics,
        base_prediction,
    )


def consistency_loss(
    predictor: SlotPredictor, x: Tensor, sigma2: Tensor, weights: Mapping[int, float | Tensor]
) -> Tensor:
    """Axioms 2 and 5 over several steps, (): sum over k of weights[k] / k * e(rollout, truth).

    e compares the k-th prediction f^k(history) of a rollout, in residual variances, with the truth;
    it is a mean over slots. `x` (B, T_h + K T_p, S, D), with K the largest k whose weight is above
    0. f predicts T_p frames with nothing hidden and reads its own predictions after the first, with
    gradients through all of them. Dropout is off, as in a rollout.
    """
    frames, step = predictor.config.history_frames, predictor.config.pred_frames
    sequence, total = x[:, :frames], torch.zeros((), device=x.device)
    counted = [k for k, weight in weights.items() if isinstance(weight, Tensor) or weight]
    with without_dropout(predictor):
        for k in range(1, max(counted) + 1):
            prediction = predictor.predict(sequence[:, -frames:]).to(x.dtype)
            sequence = torch.cat([sequence, prediction], dim=1)
            if k in counted:
                start = frames + (k - 1) * step
                truth = x[:, start : start + step].float()
                error = normalized_error(prediction.float(), truth, sigma2).mean()
                total = total + weights[k] / k * error
    return total


def normalized_error(a: Tensor, b: Tensor, sigma2: Tensor) -> Tensor:
    """Mean over frames and d of (a - b)^2 / sigma_d^2: (B, T_p, S, D), same, (D,) -> (B, S)."""
    return ((a - b).square() / sigma2.float()).mean(dim=(1, 3))


def draw_sample_slots(
    eligible: Tensor, seed: int, step: int | Tensor, sample: Tensor, stream: int
) -> Tensor:
    """One eligible slot of each sample, uniformly, (B,) int64; any slot where none is eligible.

    A function of (seed, step, sample); `eligible` (B, S) bool.
    """
    draw = uniform(seed, step, sample, eligible.shape[1], stream)
    return torch.where(eligible, draw, -1.0).argmax(dim=1)


def adjacency_metrics(adjacency: Tensor, present: Tensor) -> dict[str, Tensor]:
    """Share of pairs of present slots that are no edge, and edges into a present slot.

    A share near 1, or S - 1 edges a slot: the graph does not tell neighbours from others.
    """
    pairs = present_pairs(present)
    edges = ((adjacency > 0.5) & pairs).float().sum()
    return {
        "non_neighbour_fraction": 1 - edges / pairs.float().sum().clamp_min(1),
        "edges_per_slot": edges / present.float().sum().clamp_min(1),
    }
