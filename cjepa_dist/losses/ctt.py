"""Causal Transformation Theory (CTT): the losses of invariance and sufficiency, as released and corrected.

    published    batch-mean graph, threshold;  [M0 and i; non-neighbours of k] as one forward of 2B    ──> raw MSE
    per_sample   a graph for each sample;      [M0; M0 and I_b; all but the neighbours of k_b], 3B     ──> error in residual variances
    consistency  f(f(...f(history)))           K forwards of B, one after another                      ──> error in residual variances

Axiom 2: a slot's causal neighbourhood is what its future depends on. So hiding a slot that does not interact changes nothing for the others
(invariance), and the neighbourhood alone predicts the slot as well as everything does (sufficiency).
M0 is the base mask of the step. The first two return sums and counts: the caller reduces the counts over ranks and divides, so N ranks
equal one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cjepa_dist.causal.attention_graph import pairs, published_adjacency
from cjepa_dist.causal.graph import Graph
from cjepa_dist.causal.interventional_graph import without_dropout
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.runtime.random import uniform

STREAM_INVARIANCE, STREAM_SUFFICIENCY = (
    201,
    202,
)  # of `masking.uniform`, apart from masks and estimators


@dataclass(frozen=True)
class CttTerms:
    """Two terms as sum and count, all () float32 tensors: term = sum / count over all ranks, 0 where the count is 0."""

    invariance_sum: Tensor
    invariance_count: Tensor
    sufficiency_sum: Tensor
    sufficiency_count: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)  # means over this batch, detached
    clean: Tensor | None = (
        None  # (B, T, S, D) prediction under M0 with its gradient, where the stacked forward made it
    )


# --- as released -----------------------------------------------------------------------------------------------------


def draw_slots(hidden: Tensor, *, seed: int, step: int | Tensor) -> tuple[Tensor, Tensor]:
    """The slots i (invariance) and k (sufficiency) of a step, two () int64 tensors: uniform over slots visible in every sample.

    `hidden` (B, S) bool. The released losses presume one mask for the batch. Under masks of each sample's own, slots hidden in the fewest
    samples come first, and `published` leaves out the samples where the drawn one is hidden. The same on every rank while the mask is.
    """
    batchwise = torch.zeros(1, dtype=torch.int64, device=hidden.device)
    burden = hidden.float().mean(dim=0)
    first = (
        uniform(seed, step, batchwise, hidden.shape[1], STREAM_INVARIANCE)[0] - 2 * burden
    ).argmax()
    second = (
        uniform(seed, step, batchwise, hidden.shape[1], STREAM_SUFFICIENCY)[0] - 2 * burden
    ).argmax()
    return first, second


def published(
    predictor: SlotPredictor,
    x: Tensor,
    hidden: Tensor,
    clean: Tensor | None = None,
    *,
    threshold: float,
    slot_invariance: int | Tensor,
    slot_sufficiency: int | Tensor,
    mean: Tensor | None = None,
) -> CttTerms:
    """The released losses, number for number: `x` (B, T, S, D), `hidden` (B, S) bool (M0), `clean` (B, T, S, D) the prediction under M0.

    Graph: `mean` (S, S), `published_adjacency` under M0 averaged over the whole batch, all ranks and passes; without it, over `x` alone.
    Invariance: visible j != i with A[j, i] < threshold are held to their clean future while i is hidden too. Sufficiency: every j != k
    with A[k, j] < threshold is hidden, k's future is compared with the truth. A term without such j counts nothing.
    Dropout stays as the caller has it (released: on, different in the passes that are compared). Without `clean` or `mean` one more pass
    gives it. Kept for comparison: rows of A sum to 1 / T_total, so at 4 frames the usual threshold 0.15 makes every pair a non-neighbour.
    """
    frames, slots = predictor.config.history_frames, x.shape[2]
    history, truth = x[:, :frames], x[:, frames:].float()
    if clean is None or mean is None:
        with torch.no_grad():
            z0, maps = predictor(history, hidden, need_attention="last", future_only=True)
        clean = z0 if clean is None else clean
        mean = published_adjacency(maps[-1], frames, slots).mean(dim=0) if mean is None else mean
    target = clean[:, -truth.shape[1] :].detach().float()
    weight, far_from_k = published_choice(
        mean, hidden, threshold, slot_invariance, slot_sufficiency
    )
    index = torch.arange(slots, device=x.device)
    is_i, is_k = index == slot_invariance, index == slot_sufficiency
    masks = torch.cat([hidden | is_i, far_from_k.expand_as(hidden)])
    z1, z2 = predictor(torch.cat([history, history]), masks, future_only=True).float().chunk(2)

    moved = (z1 - target).square().mean(dim=(1, 3))
    missed = ((z2 - truth).square().mean(dim=(1, 3)) * is_k).sum(dim=1)  # (B,)
    some = far_from_k.any().float()
    with torch.no_grad():
        edges = (mean >= threshold) & ~torch.eye(slots, dtype=torch.bool, device=x.device)
        candidates = (
            (~is_i & ~hidden & ~(hidden & is_i).any(dim=1, keepdim=True)).float().sum().clamp_min(1)
        )
        metrics = {
            "non_neighbour_fraction": weight.sum() / candidates,
            "edges_per_slot": edges.float().sum() / slots,
        }
    return CttTerms(
        (weight * moved).sum(), weight.sum(), some * missed.sum(), some * len(x), metrics
    )


def published_choice(
    mean: Tensor,
    hidden: Tensor,
    threshold: float,
    slot_invariance: int | Tensor,
    slot_sufficiency: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Weights (B, S) float of the slots that invariance compares, and the slots (S,) bool that sufficiency hides; `mean` (S, S)."""
    index = torch.arange(len(mean), device=mean.device)
    is_i, is_k = index == slot_invariance, index == slot_sufficiency
    far_from_i = ((mean < threshold) & is_i).any(dim=1) & ~is_i  # j with A[j, i] < threshold
    far_from_k = ((mean < threshold) & is_k[:, None]).any(
        dim=0
    ) & ~is_k  # j with A[k, j] < threshold
    drawn_visible = ~(hidden & is_i).any(dim=1, keepdim=True)
    return (far_from_i & ~hidden & drawn_visible).float(), far_from_k


# --- corrected -------------------------------------------------------------------------------------------------------


def per_sample(
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
    z0: Tensor | None = None,
) -> CttTerms:
    """Invariance and sufficiency with a graph, a hidden slot I_b and a target k_b of each sample's own.

    `x` (B, T, S, D), `hidden` and `present` (B, S) bool, `sigma2` (D,) residual variance, `sample` (B,) global indices.
    e(a, b) = mean over future frames and d of (a - b)^2 / sigma_d^2. I_b and k_b are drawn among present, visible slots; a sample without
    one is not counted.
    - invariance = sum w e(z1, stop z0) / sum w, w_bj = stop((1 - A[b, j, I_b]) present_j visible_j (j != I_b) [e1_j - e0_j against the
      truth <= margin]): the bracket drops slots that hiding I_b did hurt, whatever the graph says; w is a constant, or A = 1 would be
      rewarded.
    - sufficiency = mean of relu(e2_k - stop e0_k - margin), e2 from the pass that hides all but the slots j with A[b, k_b, j] > 0.5.

    Dropout is off: passes are compared. `z0` is the prediction under M0 without dropout, all frames or the future alone, if the caller has
    it: from the task's own forward where the config's dropout is 0, or from a no-grad pass inside `without_dropout`, the cheapest where it
    is not; two passes are left. Without it all three are one forward of 3B, and `clean` of the result is z0 with its gradient, so a task
    without dropout needs no other forward.
    """
    frames, slots = predictor.config.history_frames, x.shape[2]
    history, truth = x[:, :frames], x[:, frames:].float()
    adjacency = graph.adjacency.detach().float()
    eligible = present & ~hidden
    some = eligible.any(dim=1)
    i_b = draw_eligible_slot(eligible, seed, step, sample, STREAM_INVARIANCE)
    k_b = draw_eligible_slot(eligible, seed, step, sample, STREAM_SUFFICIENCY)
    index = torch.arange(slots, device=x.device)
    is_i, is_k = index == i_b[:, None], index == k_b[:, None]  # (B, S)
    pick = i_b[:, None, None].expand(-1, slots, 1)
    from_i = adjacency.gather(2, pick)[:, :, 0]  # influence of I_b on each j
    neighbour = (
        adjacency.gather(1, k_b[:, None, None].expand(-1, 1, slots))[:, 0] > 0.5
    )  # j that influence k_b

    masks = [hidden | is_i, ~(neighbour | is_k)]
    with without_dropout(predictor):
        if z0 is None:
            clean, z1, z2 = predictor(
                history.repeat(3, 1, 1, 1), torch.cat([hidden, *masks])
            ).chunk(3)
        else:
            clean = z0
            z1, z2 = predictor(
                history.repeat(2, 1, 1, 1), torch.cat(masks), future_only=True
            ).chunk(2)
    base, z1, z2 = (z[:, -truth.shape[1] :].float() for z in (clean.detach(), z1, z2))

    e0, e1, e2 = (normalized_error(z, truth, sigma2) for z in (base, z1, z2))
    allowed = eligible & ~is_i & some[:, None] & (e1 - e0 <= margin)
    weight = ((1 - from_i) * allowed).detach()
    invariance = weight * normalized_error(z1, base, sigma2)
    excess = torch.relu(e2 - e0 - margin) * is_k * some[:, None]
    metrics = {name: value.detach() for name, value in graph_metrics(adjacency, present).items()}
    return CttTerms(
        invariance.sum(), weight.sum(), excess.sum(), some.float().sum(), metrics, clean
    )


def consistency(
    predictor: SlotPredictor, x: Tensor, sigma2: Tensor, weights: Mapping[int, float | Tensor]
) -> Tensor:
    """Axioms 2 and 5 over several steps: sum over k of weights[k] / k * e(f^k(history), truth k predictions ahead), a mean over slots, ().

    `x` (B, T_h + K T_p, S, D) with K the largest k of a weight above 0; f predicts T_p frames with nothing hidden and reads its own
    predictions from then on, with gradients through all of them. e in residual variances as `error`; dropout is off, as in a rollout.
    """
    frames, ahead = predictor.config.history_frames, predictor.config.pred_frames
    sequence, total = x[:, :frames], torch.zeros((), device=x.device)
    counted = [k for k, weight in weights.items() if isinstance(weight, Tensor) or weight]
    with without_dropout(predictor):
        for k in range(1, max(counted) + 1):
            following = predictor.predict(sequence[:, -frames:]).to(x.dtype)
            sequence = torch.cat([sequence, following], dim=1)
            if k in counted:
                begin = frames + (k - 1) * ahead
                total = (
                    total
                    + weights[k]
                    / k
                    * normalized_error(
                        following.float(), x[:, begin : begin + ahead].float(), sigma2
                    ).mean()
                )
    return total


def normalized_error(a: Tensor, b: Tensor, sigma2: Tensor) -> Tensor:
    """Mean over frames and dimensions of (a - b)^2 / sigma_d^2: (B, T_p, S, D) twice, (D,) -> (B, S), in residual variances."""
    return ((a - b).square() / sigma2.float()).mean(dim=(1, 3))


def draw_eligible_slot(
    eligible: Tensor, seed: int, step: int | Tensor, sample: Tensor, stream: int
) -> Tensor:
    """One eligible slot of each sample, uniformly, (B,) int64; any slot where none is eligible. A function of (seed, step, sample)."""
    return torch.where(
        eligible, uniform(seed, step, sample, eligible.shape[1], stream), -1.0
    ).argmax(dim=1)


def graph_metrics(adjacency: Tensor, present: Tensor) -> dict[str, Tensor]:
    """Share of pairs of present slots that are no edge, and edges into a present slot: a graph near 1.000 or S - 1 decides nothing."""
    both = pairs(present)
    edges = ((adjacency > 0.5) & both).float().sum()
    return {
        "non_neighbour_fraction": 1 - edges / both.float().sum().clamp_min(1),
        "edges_per_slot": edges / present.float().sum().clamp_min(1),
    }
