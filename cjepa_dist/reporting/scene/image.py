"""Draws a Scene with Pillow: an animated GIF, or one frame as PNG.

    Scene ──SceneImage.draw(frame)──> RGB image: panels side by side, time, legend
              └─ draw_panel, three times as large, then reduced: smooth edges
    images ──one palette for all──> GIF

Colours are blended here, not in layers: an object, its trail and its shadow are a few polygons.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cjepa_dist.reporting.scene.scene import Panel, Scene
from cjepa_dist.reporting.scene.shapes import (
    CONTACT_FRAMES,
    TRAIL_FRAMES,
    TRAIL_SHADES,
    contacts_at,
    dashes,
    outline,
    star,
)

SUPERSAMPLING = 3
PANEL, GAP, MARGIN, HEADER, FOOTER = 208, 12, 14, 40, 56  # pixels
FRAME_STEP = 2  # video frames from one image of an animation to the next
MILLISECONDS = 80  # an image is shown for; at FRAME_STEP = 2 that is CLEVRER's 25 frames a second
LAST_IMAGE_MILLISECONDS = 1600
MAX_COLOURS = 255  # of a GIF; one more is transparent, where nothing changes

PAGE, FLOOR, VIEW, BORDER = "#ffffff", "#f1f3f6", "#ffffff", "#cfd5dd"
TEXT, MUTED, PREDICTED, EDGE, CONTACT = "#1f2933", "#6b7280", "#2563eb", "#c2185b", "#f08c00"


class SceneImage:
    """Draws frames of a scene. `scale` multiplies all sizes."""

    def __init__(self, scene: Scene, scale: float = 1.0) -> None:
        self.scene, self.scale = scene, scale
        self.side = self.px(PANEL)
        count = len(scene.panels)
        self.width = self.px(2 * MARGIN + count * PANEL + (count - 1) * GAP)
        self.height = self.px(HEADER + PANEL + FOOTER)

    def px(self, size: float) -> int:
        return round(size * self.scale)

    def font(self, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(size * self.scale)

    def draw(self, frame: int) -> Image.Image:
        """The picture of a frame, RGB."""
        image = self.background.copy()
        draw = ImageDraw.Draw(image)
        for number, panel in enumerate(self.scene.panels):
            left, top = self.px(MARGIN + number * (PANEL + GAP)), self.px(HEADER)
            predicted = 0 <= panel.predicted_from <= frame
            title = (predicted and panel.predicted_title) or panel.title
            colour = PREDICTED if predicted else TEXT
            y = self.px(HEADER - 29)
            draw.text((left, y), title, colour, self.font(13.5), "lm")
            y = self.px(HEADER - 12)
            draw.text((left, y), self.fitting(panel.subtitle), MUTED, self.font(11), "lm")
            image.paste(self.draw_panel(panel, frame), (left, top))
            border = PREDICTED if predicted else BORDER
            box = (left, top, left + self.side - 1, top + self.side - 1)
            draw.rectangle(box, outline=border, width=max(1, self.px(1)))
        self.draw_time(draw, frame)
        return image

    def fitting(self, text: str) -> str:
        """The text, or as much of it as a panel is wide."""
        while self.font(11).getlength(text) > self.side:
            text = text.rstrip(".")[:-1] + ".."
        return text

    @cached_property
    def background(self) -> Image.Image:
        """What is the same in all frames: the page and the legend."""
        image = Image.new("RGB", (self.width, self.height), PAGE)
        draw, at = ImageDraw.Draw(image), self.px(MARGIN)
        y, r = self.px(HEADER + PANEL + FOOTER - 14), self.px(5)
        has_edges = any(panel.edges is not None for panel in self.scene.panels)
        has_contacts = any(panel.contacts is not None for panel in self.scene.panels)
        has_ghost = any(panel.ghost for panel in self.scene.panels)
        has_metal = any(o.material == "metal" for o in self.scene.objects)
        entries = [
            ("line", "influence the model sees", has_edges),
            ("star", "contact", has_contacts),
            ("dashed", "removed object", has_ghost),
            ("metal", "metal", has_metal),
        ]
        for icon, label, shown in entries:
            if not shown or at + self.font(11).getlength(label) + 4 * r > self.width:
                continue
            tile = Image.new("RGB", (8 * r, 8 * r), PAGE)
            self.draw_icon(ImageDraw.Draw(tile), icon, 2.0 * r)
            image.paste(tile.reduce(2), (at - r, y - 2 * r))
            draw.text((at + 3 * r, y), label, MUTED, self.font(11), "lm")
            at += 3 * r + round(self.font(11).getlength(label)) + self.px(18)
        return image

    def draw_icon(self, draw: ImageDraw.ImageDraw, icon: str, r: float) -> None:
        centre = np.array([2 * r, 2 * r])
        if icon == "line":
            self.draw_edge(draw, centre + np.array([[-r, 0.0], [r, 0.0]]), 0.3 * r)
        elif icon == "star":
            draw.polygon([tuple(p) for p in star(centre, 1.1 * r)], CONTACT)
        elif icon == "dashed":
            for dash in dashes(outline("sphere", centre, r)):
                draw.line([tuple(p) for p in dash], MUTED, max(1, round(0.25 * r)))
        else:
            self.draw_object(draw, centre, r, "sphere", "metal", "#8b949e")

    def draw_time(self, draw: ImageDraw.ImageDraw, frame: int) -> None:
        """The time bar, with the end of the observed frames marked, and the frame's number."""
        scene, y = self.scene, self.px(HEADER + PANEL + 16)
        predicted = frame >= scene.observed
        text = f"frame {frame} / {scene.frames}"
        left = self.px(MARGIN) + round(self.font(11).getlength("frame 000 / 000")) + self.px(10)
        right, half = self.width - self.px(MARGIN), self.px(2)

        def x(at: float) -> int:
            return left + round((right - left) * at / max(1, scene.frames - 1))

        draw.text((self.px(MARGIN), y), text, PREDICTED if predicted else TEXT, self.font(11), "lm")
        draw.rectangle((left, y - half, right, y + half), BORDER)
        draw.rectangle((left, y - half, x(min(frame, scene.observed)), y + half), MUTED)
        if scene.observed < scene.frames:
            mark = x(scene.observed)
            if predicted:
                draw.rectangle((mark, y - half, x(frame), y + half), PREDICTED)
            draw.line([(mark, y - 3 * half), (mark, y + 3 * half)], PREDICTED, max(1, half // 2))

    def draw_panel(self, panel: Panel, frame: int) -> Image.Image:
        scene, side = self.scene, self.side * SUPERSAMPLING
        unit = side / float(scene.high[0] - scene.low[0])  # pixels per world unit
        flip = np.array([1.0, -1.0])
        origin = np.array([scene.low[0], scene.high[1]])

        def pixels(position: np.ndarray) -> np.ndarray:
            return (position - origin) * flip * unit

        image = Image.new("RGB", (side, side), FLOOR)
        draw, r = ImageDraw.Draw(image), scene.radius * unit
        if scene.view:
            corners = pixels(np.array([[-scene.view, scene.view], [scene.view, -scene.view]]))
            draw.rectangle(tuple(corners.flatten()), VIEW, BORDER, SUPERSAMPLING)
        position, seen = pixels(panel.position), np.flatnonzero(panel.present[frame]).tolist()
        for i in seen:
            self.draw_trail(draw, position[: frame + 1, i], panel.present[: frame + 1, i], r, i)
        ghost = panel.ghost
        if ghost is not None and ghost.present[frame]:
            o = scene.objects[ghost.index]
            points = outline(o.shape, pixels(ghost.position[frame]), r)
            for dash in dashes(points):
                draw.line([tuple(p) for p in dash], o.colour, round(0.13 * r))
        for i in seen:
            o = scene.objects[i]
            self.draw_object(draw, position[frame, i], r, o.shape, o.material, o.colour)
        # On top, since they are drawn where objects are closest.
        for first, second, strength in panel.edge_strength(frame):
            ends = position[frame][[first, second]]
            self.draw_edge(draw, ends, r * (0.08 + 0.16 * (strength - 0.5)))
        for age, first, second in contacts_at(panel, frame):
            centre = position[frame - age][[first, second]].mean(0)
            size = r * (0.75 - 0.5 * age / CONTACT_FRAMES)
            draw.polygon([tuple(p) for p in star(centre, 1.35 * size)], PAGE)
            draw.polygon([tuple(p) for p in star(centre, size)], CONTACT)
        return image.reduce(SUPERSAMPLING)

    def draw_edge(self, draw: ImageDraw.ImageDraw, ends: np.ndarray, half: float) -> None:
        """A line with round ends, of half width `half`, and a pale rim: objects are dark."""
        for size, colour in ((1.7 * half, PAGE), (half, EDGE)):
            draw.line([tuple(end) for end in ends], colour, round(2 * size))
            for end in ends:
                draw.polygon([tuple(p) for p in outline("sphere", end, 1.6 * size)], colour)

    def draw_trail(
        self, draw: ImageDraw.ImageDraw, path: np.ndarray, present: np.ndarray, r: float, i: int
    ) -> None:
        """The last frames of a path, paler the older; it ends where the object was out of view."""
        colour = self.scene.objects[i].colour
        gone = np.flatnonzero(~present)
        first = max(len(path) - TRAIL_FRAMES, int(gone[-1]) + 1 if len(gone) else 0)
        last, step = len(path) - 1, max(1, TRAIL_FRAMES // TRAIL_SHADES // 2)
        for t in range(first + -first % step, last, step):
            # Few shades: what does not change from image to image makes a GIF small.
            age = ((last - t) * TRAIL_SHADES // TRAIL_FRAMES) / TRAIL_SHADES
            shade = trail_shade(colour, age)
            ends = [tuple(path[t]), tuple(path[min(t + step, last)])]
            draw.line(ends, shade, max(1, round(r * (0.5 - 0.3 * age))))

    def draw_object(
        self,
        draw: ImageDraw.ImageDraw,
        centre: np.ndarray,
        r: float,
        shape: str,
        material: str,
        colour: str,
    ) -> None:
        shadow = outline(shape, centre + np.array([0.07, 0.13]) * r, 1.02 * r)
        draw.polygon([tuple(p) for p in shadow], blend("#000000", VIEW, 0.16))
        draw.polygon([tuple(p) for p in outline(shape, centre, r)], blend(colour, "#000000", 0.72))
        draw.polygon([tuple(p) for p in outline(shape, centre, 0.88 * r)], colour)
        if material == "metal":  # it shines: a bright spot towards the light
            light = centre - 0.26 * r
            for size, strength in ((0.42, 0.8), (0.3, 0.55), (0.16, 0.05)):
                spot = outline("sphere", light, size * r)
                draw.polygon([tuple(p) for p in spot], blend(colour, "#ffffff", strength))


def blend(colour: str, other: str, share: float) -> str:
    """`share` of a colour #rrggbb, the rest of another."""
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(other[1:]))
    mixed = bytes(round(share * a + (1 - share) * b) for a, b in pairs)
    return f"#{mixed.hex()}"


def write_png(scene: Scene, path: Path, frame: int = -1, scale: float = 2.0) -> None:
    """One frame; -1: one in the middle of the predicted frames. Completely or not at all."""
    chosen = (scene.observed + scene.frames) // 2 if frame < 0 else frame
    content = io.BytesIO()
    image = SceneImage(scene, scale).draw(min(chosen, scene.frames - 1))
    image.save(content, "PNG", optimize=True)
    write_bytes(Path(path), content.getvalue())


def write_gif(scene: Scene, path: Path, frames: Sequence[int] = (), scale: float = 1.0) -> None:
    """The animation of `frames` (default: every second), for ever. Completely or not at all."""
    write_bytes(Path(path), gif_bytes(scene, frames, scale)[0])


def gif_bytes(
    scene: Scene, frames: Sequence[int] = (), scale: float = 1.0
) -> tuple[bytes, tuple[int, int]]:
    """A GIF, and its width and height in pixels."""
    drawing = SceneImage(scene, scale)
    chosen = list(frames) or list(range(0, scene.frames, FRAME_STEP))
    images = [drawing.draw(frame) for frame in chosen]
    palette = scene_palette(scene)
    coded = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    steps = [b - a for a, b in zip(chosen, chosen[1:])]
    durations = [MILLISECONDS * step // FRAME_STEP for step in steps] + [LAST_IMAGE_MILLISECONDS]
    content = io.BytesIO()
    coded[0].save(
        content, "GIF", save_all=True, append_images=coded[1:], duration=durations, loop=0
    )
    return content.getvalue(), (drawing.width, drawing.height)


def scene_palette(scene: Scene) -> Image.Image:
    """One palette for all images, so that what does not move does not flicker.

    Made of the colours that are drawn, and of a few between them for smooth edges. A palette by
    frequency loses what is small and short: contacts, trails.
    """
    colours = [PAGE, FLOOR, VIEW, BORDER, TEXT, MUTED, PREDICTED, EDGE, CONTACT]
    colours += [blend(c, PAGE, 0.5) for c in (TEXT, MUTED, PREDICTED, EDGE, CONTACT)]
    colours += [blend("#000000", VIEW, share) for share in (0.08, 0.16)]
    for o in scene.objects:
        dark = blend(o.colour, "#000000", 0.72)
        colours += [o.colour, dark, blend(dark, VIEW, 0.5)]
        colours += [trail_shade(o.colour, shade / TRAIL_SHADES) for shade in range(TRAIL_SHADES)]
        if o.material == "metal":
            colours += [blend(o.colour, "#ffffff", 0.7), blend(o.colour, "#ffffff", 0.3)]
    unique = list(dict.fromkeys(colours))[:MAX_COLOURS]
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in unique for value in bytes.fromhex(colour[1:])])
    return palette


def trail_shade(colour: str, age: float) -> str:
    """The colour of a trail: pale, and paler as `age` goes from 0 to 1."""
    return blend(colour, VIEW, 0.6 - 0.5 * age)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, and its folder where that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)
