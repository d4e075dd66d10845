"""Mutations of valid inputs: bytes, JSON, lines and words. Each takes a random.Random."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]

ODD_NUMBERS = (0, 1, -1, 127, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1)
# Values as JSON text, some of which json.dumps would not write.
ODD_VALUES = [
    "null",
    "true",
    "false",
    "0",
    "-1",
    "0.5",
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "2147483648",
    "1e308",
]
ODD_TEXTS = (
    *('""', '" "', '"\\ud800"', '"\\u0000"', '"../../x"', '"/etc/passwd"', '"é\\n\\r"'),
    *('"pipe:true"', '"http://user:secret@host/x"', '"__proto__"', '"\\u202e"', '"𝒳"'),
)


def odd_json(rng: random.Random) -> str:
    """A JSON value, as text, where another kind of value is expected."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(ODD_VALUES)
    if kind < 7:
        return rng.choice(ODD_TEXTS)
    if kind == 7:
        return rng.choice(("", "-")) + "9" * rng.choice((5, 10, 19, 20, 40, 400, 5000))
    if kind == 8:
        depth = rng.choice((5, 40, 200, 1100, 30000))
        start, end = rng.choice((("[", "]"), ('{"a":', "}")))
        return start * depth + "1" + end * depth
    return '"' + rng.choice(("a", "é", "a b ", "\\u0000")) * rng.choice((10, 300, 20000)) + '"'


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flipped, changed, removed, inserted, repeated, cut or moved bytes; numbers that are odd."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        size = len(found)
        at = rng.randrange(size + 1)
        length = min(rng.choice((1, 2, 4, 8, 16, 64, 512)), size - at)
        kind = rng.randrange(8)
        if kind == 0 and at < size:
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < size:
            found[at] = rng.randrange(256)
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16, 600)))
        elif kind == 4:
            found[at:at] = bytes(found[at : at + length]) * rng.choice((1, 2, 50))
        elif kind == 5:
            del found[at:]
        elif kind == 6:
            start = rng.randrange(size + 1)
            found[at : at + length] = found[start : start + length]
        else:
            width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
            number = rng.choice(ODD_NUMBERS) % (1 << 8 * width)
            found[at : at + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
    return bytes(found)


def nodes(tree: Any) -> list[tuple[Any, Any]]:
    """(holder, key or index) of every value in lists and mappings."""
    found = []
    todo = [tree]
    while todo:
        holder = todo.pop()
        keys = holder if isinstance(holder, dict) else range(len(holder))
        for key in list(keys):
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                todo.append(holder[key])
    return found


def mutate_json(rng: random.Random, content: bytes) -> bytes:
    """Values of other types, fields that are missing, twice or renamed; sometimes odd bytes."""
    tree = [json.loads(content)]
    odd: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = nodes(tree)
        holder, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind < 4:
            holder[key] = f"@odd{len(odd)}@"
            odd.append(odd_json(rng))
        elif kind == 4:
            other, place = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[place])) if holder is not other else None
        elif kind == 5 and holder is not tree:
            del holder[key]
        elif kind == 6 and isinstance(holder, list):
            holder[key:key] = [holder[key]] * rng.choice((1, 2, 300))
        elif isinstance(holder, dict):
            value = holder.pop(key)
            holder[f"{key}{rng.choice(('', '_', 'é', '@twice@'))}"] = value
            if rng.random() < 0.5:
                holder[key] = value
    text = json.dumps(tree[0] if tree else None, ensure_ascii=rng.random() < 0.5)
    for number, value in enumerate(odd):
        text = text.replace(f'"@odd{number}@"', value)
    found = text.replace("@twice@", "").encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, found) if rng.random() < 0.15 else found


def mutate_lines(rng: random.Random, content: bytes) -> bytes:
    """Lines of JSON: one mutated, cut, removed, empty, repeated or moved."""
    lines = content.splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(7)
        if kind < 3 and lines[at].strip() and lines[at].startswith(b"{"):
            try:
                lines[at] = mutate_json(rng, lines[at]) + b"\n"
            except ValueError:  # it was mutated before
                lines[at] = b"\n"
        elif kind == 3:
            lines[at] = mutate_bytes(rng, lines[at])
        elif kind == 4:
            lines.insert(at, rng.choice((b"\n", b"[]\n", b"1\n", b"null\n", b"\xff\n", b"\0" * 40)))
        elif kind == 5 and len(lines) > 1:
            del lines[at]
        else:
            lines.insert(rng.randrange(len(lines)), lines[at])
    return b"".join(lines)


YAML_PARTS = (
    *("a: &a [x]\n", "b: *a\n", "<<: {x: 1}\n", "? [a, b]\n: c\n", "? {a: b}\n: c\n", "--- \n"),
    *("loop: &l {a: *l}\n", "mask: [1, 2]\n", "loop: 3\n", "x: !!python/object:os.system {}\n"),
    *("loop.steps: 3\n", "loop: {steps: [1]}\n", "seed: !!binary aaaa\n", "run: |\n  a\n  b\n"),
    *("a" * 2000 + ": 1\n", "seed: " + "9" * 5000 + "\n", "- a\n", "[" * 3000, "\t", "%YAML 9\n"),
    *("train_split: \x85\n", "seed: .nan\n", "ctt:\n", "ctt: {}\n", "plugins: [x.y]\n", "{" * 90),
    "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 10)}]\n" for i in range(9)),
    "".join(
        f"m{i}: &m{i} {{{', '.join(f'k{j}: ' + (f'*m{i - 1}' if i else 'x') for j in range(9))}}}\n"
        for i in range(9)
    ),
    "model: &r {depth: *r}\n",
)


def mutate_yaml(rng: random.Random, content: bytes) -> bytes:
    """Lines removed, repeated, indented, given odd values; anchors, tags and deep nesting."""
    lines = content.decode().splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            lines.insert(at, rng.choice(YAML_PARTS))
        elif kind == 1 and at < len(lines):
            name, colon, _ = lines[at].partition(":")
            lines[at] = f"{name}{colon} {rng.choice((odd_json(rng), odd_word(rng)))}\n"
        elif kind == 2 and at < len(lines):
            lines[at] = "  " + lines[at]
        elif kind == 3 and at < len(lines):
            lines.insert(rng.randrange(len(lines)), lines[at])
        elif kind == 4 and at < len(lines):
            del lines[at]
        else:
            return mutate_bytes(rng, "".join(lines).encode("utf-8", "surrogatepass"))
    return "".join(lines).encode("utf-8", "surrogatepass")


WORDS = (
    *("", " ", "0", "-1", "1e3", "1e400", "nan", "inf", "no", "1:30", "null", "~", "~x", "010"),
    *("[", "[1", "[1, [2]]", "{a: 1}", "{", "@x", "${x}", "a #b", "a=b", "=", ".", "a.b", "é", "%"),
    *("[0.5, nan]", "{a: {b: c}}", "1_000", "0x10", "\u0661", "\udcff", "\x00", "9" * 5000),
    *("x" * 5000, "[" * 3000, "../..", "[" + "1," * 5000 + "]", "true", "bf16", "&a [*a]", "!!x"),
)


def odd_word(rng: random.Random) -> str:
    """A word as a shell or a launcher may hand it over."""
    word = rng.choice(WORDS)
    return word if rng.random() < 0.7 else word + rng.choice(WORDS)


def mutate_words(names: Sequence[str]) -> Mutation:
    """Words `name=value` of a few of `names`, a line each; a name is sometimes odd too."""

    def mutate(rng: random.Random, content: bytes) -> bytes:
        lines = content.decode().splitlines()
        for _ in range(rng.choice((1, 1, 2, 5))):
            name = rng.choice(names) if rng.random() < 0.9 else odd_word(rng)
            value = odd_word(rng) if rng.random() < 0.8 else odd_json(rng)
            lines.append(f"{name}={value}")
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    return mutate
