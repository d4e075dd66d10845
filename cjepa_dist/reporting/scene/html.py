"""A Scene as a piece of a web page: one <figure>, which plays without a network.

    Scene ──scene_data──> JSON ──player.js──> a <canvas> for each panel

Several figures can stand on a page: each brings the style and the script, which start only figures
that are not started yet.
"""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from cjepa_dist.reporting.scene.scene import Panel, Scene
from cjepa_dist.reporting.scene.shapes import CONTACT_FRAMES, TRAIL_FRAMES

SIDE = 1000  # positions are integers: thousandths of the side of a panel
LEGEND = {
    "edges": (
        '<line x1="4" y1="7" x2="18" y2="7" stroke="var(--scene-edge)" stroke-width="3"/>'
        '<circle cx="4" cy="7" r="3" fill="var(--scene-edge)"/>'
        '<circle cx="18" cy="7" r="3" fill="var(--scene-edge)"/>',
        "influence the model sees",
    ),
    "contacts": (
        '<path fill="var(--scene-contact)" d="M11 0l1.4 3.6 3.6-1.5-1.5 3.6 3.5 1.3-3.5 1.3 1.5 '
        '3.6-3.6-1.5L11 14l-1.4-3.6L6 11.9l1.5-3.6L4 7l3.5-1.3L6 2.1l3.6 1.5z"/>',
        "contact",
    ),
    "ghost": (
        '<circle cx="11" cy="7" r="6" fill="none" stroke="currentColor" stroke-width="1.5" '
        'stroke-dasharray="2.6 2"/>',
        "removed object",
    ),
    "metal": (
        '<circle cx="11" cy="7" r="6.5" fill="#8b949e"/><circle cx="9" cy="5" r="2.2" '
        'fill="#fff"/>',
        "metal",
    ),
}


def scene_html(scene: Scene) -> str:
    """A self-contained <figure>: style, data and script inside, nothing is loaded.

    It plays while it is in view; button, slider, click and keys (space, arrows, Home, End) control
    it. Readers who want less motion start it themselves.
    """
    panels = "\n".join(panel_html(scene, panel) for panel in scene.panels)
    mark = 100 * scene.observed / max(1, scene.frames - 1)
    middle = (scene.observed + scene.frames) // 2  # what is shown without motion
    return f"""<figure class="scene" tabindex="0" aria-label="{escape(scene.key)} seen from above">
<style>{package_text("player.css")}</style>
<script type="application/json">{script_json(scene_data(scene))}</script>
<div class="scene-panels" data-count="{len(scene.panels)}">
{panels}
</div>
<div class="scene-controls">
<button type="button" aria-label="play"></button>
<span class="scene-slider" style="--scene-mark: {mark:.2f}%"><input type="range" min="0"
 max="{scene.frames - 1}" value="{middle}" aria-label="frame"></span>
<output class="scene-frame"></output>
</div>
<ul class="scene-legend">{legend_html(scene)}</ul>
<figcaption><b>{escape(scene.key)}</b> {escape(scene.caption)}</figcaption>
<script>{package_text("player.js")}</script>
</figure>"""


def panel_html(scene: Scene, panel: Panel) -> str:
    title = f"{panel.title}, {panel.subtitle}"
    return (
        f'<div><span class="scene-title">{escape(panel.title)}</span>'
        f'<span class="scene-subtitle">{escape(panel.subtitle)}</span>'
        f'<canvas role="img" aria-label="{escape(f"{scene.key}: {title}")}"></canvas></div>'
    )


def legend_html(scene: Scene) -> str:
    shown = {
        "edges": any(panel.edges is not None for panel in scene.panels),
        "contacts": any(panel.contacts is not None for panel in scene.panels),
        "ghost": any(panel.ghost for panel in scene.panels),
        "metal": any(o.material == "metal" for o in scene.objects),
    }
    return "".join(
        f'<li><svg viewBox="0 0 22 14" aria-hidden="true">{LEGEND[name][0]}</svg>'
        f"{LEGEND[name][1]}</li>"
        for name, is_shown in shown.items()
        if is_shown
    )


def scene_data(scene: Scene) -> dict[str, Any]:
    """What player.js reads. Lengths and positions in thousandths of the side; y points down."""
    unit = SIDE / float(scene.high[0] - scene.low[0])
    return {
        "frames": scene.frames,
        "observed": scene.observed,
        "radius": round(scene.radius * unit, 1),
        "view": round(scene.view * unit, 1),
        "trail": TRAIL_FRAMES,
        "contactFrames": CONTACT_FRAMES,
        "objects": [
            {"shape": o.shape, "material": o.material, "colour": o.colour} for o in scene.objects
        ],
        "panels": [panel_data(scene, panel, unit) for panel in scene.panels],
    }


def panel_data(scene: Scene, panel: Panel, unit: float) -> dict[str, Any]:
    def pixels(position: np.ndarray) -> list[Any]:
        from_corner = position - np.array([scene.low[0], scene.high[1]])
        return np.rint(from_corner * np.array([unit, -unit])).astype(int).tolist()

    def path(position: np.ndarray, present: np.ndarray) -> list[Any]:
        return [xy if seen else None for xy, seen in zip(pixels(position), present.tolist())]

    ghost = panel.ghost
    rows = [] if panel.contacts is None else panel.contacts.tolist()
    edges = {
        frame: [[i, j, round(100 * strength)] for i, j, strength in strengths]
        for frame in range(scene.frames)
        if (strengths := panel.edge_strength(frame))
    }
    return {
        "title": panel.title,
        "predictedTitle": panel.predicted_title,
        "predictedFrom": panel.predicted_from,
        "paths": [
            path(panel.position[:, i], panel.present[:, i]) for i in range(len(scene.objects))
        ],
        "edges": edges,
        "contacts": [
            [frame, *pixels(panel.position[frame, [i, j]].mean(0))] for frame, i, j in rows
        ],
        "ghost": ghost and {"index": ghost.index, "path": path(ghost.position, ghost.present)},
    }


def script_json(content: Any) -> str:
    """JSON that cannot end the <script> that it stands in."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def package_text(name: str) -> str:
    return files("cjepa_dist.reporting.scene").joinpath(name).read_text(encoding="utf-8")
