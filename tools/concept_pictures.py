"""Draws the pictures of docs/concepts as small SVG files: `python -m tools.concept_pictures`.

PICTURES: name ──function──> elements ──> docs/images/concepts/NAME.svg
"""

from __future__ import annotations

from collections.abc import Callable

from cjepa_dist.config.locate import project_root

FOLDER = "docs/images/concepts"
RED, BLUE, GREEN, PURPLE = "#c43c39", "#2a4bd7", "#2b8a3e", "#8126c0"
INK, FAINT, PAPER, EMPTY = "#20242c", "#98a1b0", "#f4f6f9", "#e3e7ee"
WIDTH = 560


def text(
    x: float, y: float, words: str, size: int = 17, color: str = INK, at: str = "middle"
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{at}">{words}</text>'
    )


def box(x: float, y: float, w: float, h: float, fill: str = PAPER, line: str = FAINT) -> str:
    shape = f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6"'
    return f'{shape} fill="{fill}" stroke="{line}" stroke-width="1.5"/>'


def arrow(
    x1: float, y1: float, x2: float, y2: float, color: str = INK, dashed: bool = False
) -> str:
    dash = ' stroke-dasharray="6 5"' if dashed else ""
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" stroke-width="2.5"{dash}'
        ' marker-end="url(#tip)"/>'
    )


def ball(x: float, y: float, color: str, r: float = 15) -> str:
    shine = f'<circle cx="{x - r / 3}" cy="{y - r / 3}" r="{r / 4}" fill="#fff" opacity=".6"/>'
    return f'<circle cx="{x}" cy="{y}" r="{r}" fill="{color}"/>{shine}'


def cube(x: float, y: float, color: str, r: float = 14) -> str:
    return f'<rect x="{x - r}" y="{y - r}" width="{2 * r}" height="{2 * r}" rx="3" fill="{color}"/>'


def ghost(x: float, y: float, color: str, r: float = 15) -> str:
    """Where an object would be, or was."""
    return (
        f'<circle cx="{x}" cy="{y}" r="{r}" fill="none" stroke="{color}" stroke-width="2"'
        ' stroke-dasharray="4 4"/>'
    )


def vector(x: float, y: float, color: str, cells: int = 6, size: float = 15) -> str:
    """A slot: a row of numbers, shown as shades of the object's colour."""
    shades = (0.95, 0.35, 0.7, 0.2, 0.55, 0.85)
    rects = (
        f'<rect x="{x + k * size}" y="{y}" width="{size}" height="{size}" fill="{color}"'
        f' opacity="{shades[k % 6]}" stroke="#fff"/>'
        for k in range(cells)
    )
    return "".join(rects)


def slots() -> tuple[int, list[str]]:
    parts = [text(105, 24, "one frame of a video"), text(400, 24, "its slots")]
    parts += [box(10, 40, 190, 170), ball(60, 90, RED), cube(140, 105, BLUE), ball(90, 170, GREEN)]
    rows = [("red ball", RED), ("blue cube", BLUE), ("green ball", GREEN), ("empty", FAINT)]
    for k, (name, color) in enumerate(rows):
        y = 50 + 42 * k
        parts += [vector(300, y + 3, color, 8), text(438, y + 17, name, 16, at="start")]
    parts += [arrow(212, 125, 282, 125), text(247, 112, "encoder", 15, FAINT)]
    parts.append(text(280, 240, "the same object stays in the same slot, in all frames", 16))
    return 256, parts


def masks() -> tuple[int, list[str]]:
    parts = [text(238, 24, "history (observed)", 16), text(452, 24, "future", 16)]
    for row, (name, color) in enumerate((("red", RED), ("blue", BLUE), ("green", GREEN))):
        y = 44 + 56 * row
        parts.append(text(78, y + 28, name, 17, color, "end"))
        for column in range(4):
            x = 96 + 104 * column + (14 if column == 3 else 0)
            hidden = row == 1 and column in (1, 2)
            if column == 3 or hidden:
                shape = box(x, y, 90, 42, "#fff", color).replace("/>", ' stroke-dasharray="5 4"/>')
                parts += [shape, text(x + 45, y + 28, "?", 22, color)]
            else:
                parts += [box(x, y, 90, 42, EMPTY), vector(x + 10, y + 14, color, 5, 14)]
    parts.append(text(280, 240, "dashed: hidden or future, to be predicted from the rest", 16))
    return 256, parts


def graphs() -> tuple[int, list[str]]:
    parts = [text(120, 24, "what happens"), text(400, 24, "who influences whom")]
    parts += [box(10, 40, 220, 190), ball(60, 90, RED), arrow(80, 96, 128, 112, RED)]
    parts += [cube(155, 122, BLUE), arrow(174, 132, 210, 152, BLUE), ball(70, 195, GREEN)]
    names = (("red", RED), ("blue", BLUE), ("green", GREEN))
    strong = {(1, 0), (0, 1)}  # the collision moves both
    for j, (name, color) in enumerate(names):
        parts.append(text(365 + 62 * j, 64, name, 15, color))
        parts.append(text(326, 104 + 52 * j, name, 15, color, "end"))
        for i in range(3):
            fill = "#b9c0cb" if i == j else INK if (i, j) in strong else EMPTY
            parts.append(box(338 + 62 * j, 76 + 52 * i, 54, 44, fill))
    parts.append(text(280, 254, "a row is influenced by the columns that are dark", 16))
    return 268, parts


def losses() -> tuple[int, list[str]]:
    parts = []
    for x, title, line in (
        (10, "invariance", "blue is predicted as before"),
        (290, "sufficiency", "blue is predicted as well"),
    ):
        parts += [text(x + 130, 24, title, 18), box(x, 38, 260, 170)]
        parts += [cube(x + 165, 105, BLUE), text(x + 130, 232, line, 16)]
    # Invariance: green has no edge to blue and is hidden.
    parts += [ball(70, 80, RED), arrow(90, 84, 152, 100), ghost(80, 170, GREEN)]
    parts += [text(108, 176, "no edge: hidden", 15, FAINT, "start")]
    # Sufficiency: only what has an edge to blue is seen.
    parts += [ball(350, 80, RED), arrow(370, 84, 432, 100), ghost(350, 170, GREEN)]
    parts += [ghost(392, 170, PURPLE), text(418, 176, "no edge: hidden", 15, FAINT, "start")]
    return 248, parts


def counterfactuals() -> tuple[int, list[str]]:
    parts = []
    for x, title in ((10, "observed"), (200, "without green"), (390, "without red")):
        parts += [text(x + 80, 24, title, 17), box(x, 38, 160, 150)]
    for x in (10, 200):  # red hits blue, which moves on
        parts += [ball(x + 35, 70, RED), arrow(x + 52, 78, x + 76, 90, RED)]
        parts += [ghost(x + 97, 103, BLUE), cube(x + 135, 128, BLUE)]
        parts.append(arrow(x + 107, 110, x + 120, 118, BLUE))
    parts += [ball(45, 160, GREEN), ghost(235, 160, GREEN)]
    parts += [ghost(425, 70, RED), cube(487, 103, BLUE), ball(425, 160, GREEN)]
    parts += [
        text(280, 216, "nothing else changes", 15),
        text(470, 216, "blue stays where it is", 15),
    ]
    parts.append(text(280, 246, "only what the removal reaches is predicted anew", 16))
    return 262, parts


PICTURES: dict[str, Callable[[], tuple[int, list[str]]]] = {
    "slots": slots,
    "masks": masks,
    "graphs": graphs,
    "losses": losses,
    "counterfactuals": counterfactuals,
}


def picture(name: str) -> str:
    """The SVG file of a picture."""
    height, parts = PICTURES[name]()
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="system-ui, sans-serif">'
    )
    tip = (
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="5"'
        ' markerHeight="5" orient="auto"><path d="M0 0L10 5L0 10z" fill="#20242c"/></marker></defs>'
    )
    paper = f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    return "\n".join([head, tip, paper, *parts, "</svg>"]) + "\n"


def main() -> None:
    folder = project_root() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        (folder / f"{name}.svg").write_text(picture(name), encoding="utf-8")


if __name__ == "__main__":
    main()
