"""Reads one video of a data set as a Scene, with what a world model sees and predicts in it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.causal.graph import estimate_graph
from cjepa_dist.causal.video_rollout import RolloutInput, RolloutPredictor
from cjepa_dist.config.schema import GraphConfig
from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.windows import PRESENT_DISTANCE
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.position_probe import PositionProbe
from cjepa_dist.evaluation.world_model import FUTURE_FRAMES
from cjepa_dist.reporting.scene.scene import Ghost, Panel, Scene, drawn_objects
from cjepa_dist.reporting.scene.video import Video
from cjepa_dist.runtime.device import native_precision
from cjepa_dist.tasks.world_model import WorldModelTask

UNKNOWN_RADIUS = 0.05  # of what is drawn, for data that does not say how large objects are


class SceneReader:
    """Draws videos with one world model and one probe from slots to positions."""

    def __init__(self, task: WorldModelTask, probe: PositionProbe, *, graph_every: int = 1) -> None:
        """`graph_every`: frames from one estimated graph to the next; it holds in between."""
        self.task, self.probe, self.graph_every = task, probe, graph_every
        self.device = task.sigma2.device
        # The first frame that can be predicted.
        self.first_frame = task.config.predictor.history_frames * task.config.frameskip

    @torch.no_grad()
    def draw(self, video: Video, removed: str = "") -> Scene:
        """The scene of a video; the task must be in eval mode. `removed`: see `load_scene`.

        Raises UserError where the slots are not those of the model, or no object fits `removed`.
        """
        size = self.task.config.predictor
        key = video.sample.key
        video.manifest.check_slots(size.slots, size.slot_dim, f"video {key}", "the world model")
        slots, world, slot = self.predict(video, removed)
        empty = video.manifest.empty_slot
        panels = [self.factual_panel(video, slots, empty)]
        if truth := video.truth_panel(len(slots)):
            panels.append(truth)
        objects = drawn_objects(video.object_ids, video.known)
        if world is not None:
            name = f"without the {objects[video.slots.tolist().index(slot)].name}"
            panels += self.panels_without(video, slot, world, name, panels, empty)
        low, high, view = video.limits(np.concatenate([p.position[p.present] for p in panels]))
        radius = video.radius or UNKNOWN_RADIUS * float(high[0] - low[0])
        error = f"{self.probe.rmse / radius:.2f} of an object's radius"
        return Scene(
            key=video.sample.key,
            caption=(
                f"Seen from above. The model observes {video.observed} frames and predicts the "
                f"next {len(slots) - video.observed}. Positions are read from slots by a probe "
                f"with an error of {error}."
            ),
            objects=objects,
            panels=tuple(panels),
            frames=len(slots),
            observed=video.observed,
            radius=radius,
            low=low,
            high=high,
            view=view,
        )

    def predict(self, video: Video, removed: str) -> tuple[Tensor, Tensor | None, int]:
        """Slots (T, S, D), observed and predicted; those of a world without a slot; that slot.

        From the rollout's worlds.npz, or predicted now. No world (None, -1) where the data does
        not say what its empty slot is. Raises UserError for an unknown object.
        """
        sample = video.sample
        assert sample.slots is not None
        slots = to_float32(np.asarray(sample.slots))
        wanted = [video.slot_of(removed)] if removed else video.removable_slots(self.first_frame)
        if len(slots) > video.observed:  # a rollout
            worlds = sample.worlds
        else:
            slots, worlds = self.roll_out(video, slots, wanted)
        if worlds is None or not len(worlds["removed"]):
            return torch.from_numpy(slots), None, -1
        known = worlds["removed"].tolist()
        if removed and wanted[0] not in known:
            raise UserError(f"the rollout has no world of {sample.key} without {removed!r}")
        # The removal that is predicted to change most, of those wanted (or of all, if none is).
        frames_changed = (len(slots) - worlds["diverged"].astype(int)).sum(1)
        choices = [w for w, s in enumerate(known) if s in wanted] or list(range(len(known)))
        w = max(choices, key=lambda w: int(frames_changed[w]))
        return torch.from_numpy(slots), torch.from_numpy(to_float32(worlds["slots"][w])), known[w]

    def roll_out(
        self, video: Video, slots: np.ndarray, removed: list[int]
    ) -> tuple[np.ndarray, dict[str, np.ndarray] | None]:
        """Slots with the predicted frames after them, and the worlds without slots `removed`."""
        empty = video.manifest.empty_slot
        predictor = RolloutPredictor(
            self.task.predictor,
            self.task.graph_context(torch.zeros(0, dtype=torch.long, device=self.device)),
            None if empty is None else torch.tensor(empty, device=self.device),
            frameskip=self.task.config.frameskip,
            future_frames=FUTURE_FRAMES,
            mode="future" if empty is None else "counterfactual",
            divergence="paired",
            graph=GraphConfig(),
            bf16=native_precision() == "bf16",
        )
        return predictor([RolloutInput(slots, removed)])[0]

    def factual_panel(self, video: Video, slots: Tensor, empty: list[float] | None) -> Panel:
        position, present = self.decode(video, slots, empty)
        return Panel(
            title="Observed",
            subtitle="model",
            position=position,
            present=present,
            edges=self.edges(video, slots, present, empty),
            predicted_from=video.observed,
            predicted_title="Predicted",
        )

    def panels_without(
        self,
        video: Video,
        slot: int,
        world: Tensor,
        name: str,
        factual: list[Panel],
        empty: list[float] | None,
    ) -> list[Panel]:
        """The predicted world without the object in a slot, and the simulated one if there is."""
        index = video.slots.tolist().index(slot)
        position, present = self.decode(video, world, empty)
        present[:, index] = False
        ghosts = [Ghost(index, p.position[:, index], p.present[:, index]) for p in factual]
        panel = Panel(
            title="Predicted",
            subtitle=name,
            position=position,
            present=present,
            edges=self.edges(video, world, present, empty),
            ghost=ghosts[0],
            predicted_from=self.first_frame,
        )
        truth = video.truth_without(slot, len(world), name, ghosts[-1])
        return [panel] + ([truth] if truth else [])

    def decode(
        self, video: Video, slots: Tensor, empty: list[float] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Position (T, n, 2) and in view (T, n) of the objects, read from slots (T, S, D)."""
        used = slots[:, video.slots]
        if empty is None:
            present = video.recorded_presence(len(slots))
        else:
            distance = (used - torch.tensor(empty)).square().mean(-1)
            present = (distance > PRESENT_DISTANCE).numpy()
        position = self.probe(used).numpy()
        return position, present & np.isfinite(position).all(-1)

    def edges(
        self, video: Video, slots: Tensor, present: np.ndarray, empty: list[float] | None
    ) -> np.ndarray:
        """(T, n, n): the interventional graph of the window of history that ends at each frame.

        0 at the first frames, which have no whole history.
        """
        config = self.task.config
        steps = torch.arange(config.predictor.history_frames) * config.frameskip
        first = int(steps[-1])
        last = torch.arange(first, len(slots), self.graph_every)
        windows = slots[(last - first)[:, None] + steps].to(self.device)
        in_slots = torch.zeros(len(last), slots.shape[1], dtype=torch.bool)
        in_slots[:, video.slots] = torch.from_numpy(present[last])
        graph = estimate_graph(
            GraphConfig(intervention="hide" if empty is None else "empty"),
            self.task.predictor,
            windows,
            in_slots.to(self.device),
            context=self.task.graph_context(torch.arange(len(last), device=self.device)),
        )
        adjacency = graph.adjacency.float().cpu().numpy()[:, video.slots][:, :, video.slots]
        edges = np.zeros((len(slots), *adjacency.shape[1:]), np.float32)
        edges[first:] = adjacency.repeat(self.graph_every, 0)[: len(slots) - first]
        return edges
