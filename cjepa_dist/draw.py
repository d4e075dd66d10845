"""Draw a video from above: `python -m cjepa_dist.draw run=RUN video=N out=FILE.gif`.

What the world model of RUN observes and predicts, and the world without an object, each beside the
simulator's truth where the data has it. FILE ends in .gif (animation), .png (one frame) or .html (a
page that plays).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import MISSING, option
from cjepa_dist.errors import UserError
from cjepa_dist.reporting import scene_view
from cjepa_dist.reporting.scene.image import FRAME_STEP
from cjepa_dist.reporting.scene_view import Scene
from cjepa_dist.runtime.files import write_text_atomic

ENDINGS = (".gif", ".png", ".html")


@dataclass
class Draw:
    """Draw a video from above, with what a world model predicts in it."""

    run: str = option(MISSING, "run directory of a world model", path=True)
    video: int = option(MISSING, "number of the video in its split, from 0", least=0)
    out: str = option(MISSING, "file to write: .gif, .png or .html", path=True)
    split: str = option("val", "split of the video")
    data: str = option("", "folder of slot shards; empty = that of the run", path=True)
    rollout: str = option(
        "",
        "folder that cjepa rollout made of the data, whose predictions are drawn; empty = "
        "predict now",
        path=True,
    )
    removed: str = option(
        "",
        "object of the world without an object: an id, or words such as 'red cube'; empty = "
        "the one whose removal changes most",
    )
    frames: list[int] = option(
        [],
        "gif: first and last frame, [100,159]; png: one frame, [140]; empty = all, or one in "
        "the middle of the predicted frames",
        least=0,
    )
    scale: float = option(
        1.0, "size; 1 = 208 pixels for a panel of a .gif, 416 of a .png", least=0.25, most=8
    )


def main(config: Draw) -> None:
    out = Path(config.out)
    if out.suffix not in ENDINGS:
        raise UserError(f"out={config.out} must end in {', '.join(ENDINGS)}")
    if out.suffix == ".html" and config.frames:
        raise UserError("frames= is for .gif and .png; a page plays all frames")
    scene = scene_view.load_scene(
        Path(config.run), config.split, config.video, config.data, config.rollout, config.removed
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".html":
        write_text_atomic(out, page(scene))
    elif out.suffix == ".png":
        check_frames(config.frames, scene, (0, 1))
        frame = config.frames[0] if config.frames else -1
        scene_view.write_png(scene, out, frame, 2 * config.scale)
    else:
        check_frames(config.frames, scene, (0, 2))
        first, last = config.frames or (0, scene.frames - 1)
        frames = range(first, last + 1, FRAME_STEP)
        scene_view.write_gif(scene, out, frames, config.scale)
    print(f"wrote {out}: {scene.key}, {out.stat().st_size / 1000:.0f} kB")


def check_frames(frames: Sequence[int], scene: Scene, counts: Sequence[int]) -> None:
    """Raises UserError unless these are as many frames as `counts` allows, in order, of a scene."""
    known = all(0 <= frame < scene.frames for frame in frames)
    if len(frames) not in counts or not known or sorted(frames) != list(frames):
        what = "one frame" if counts[-1] == 1 else "the first and the last frame"
        raise UserError(f"frames={frames} must be {what}, from 0 to {scene.frames - 1}")


def page(scene: Scene) -> str:
    """A whole page with the scene alone."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(scene.key)}</title>
<style>
body {{ max-width: 1100px; margin: 0 auto; padding: 0 16px; background: #fff; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #11151a; }} }}
</style>
</head>
<body>
{scene_view.scene_html(scene)}
</body>
</html>
"""


if __name__ == "__main__":
    launch(Draw, main)
