"""Mutations of tars, zips and pickles that keep the container readable, and so get further."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import cache

from cjepa_dist.data.format.tar import BLOCK_BYTES, tar_buffers, tar_end
from tools.fuzz.mutations import Mutation, mutate_bytes, mutate_json

TAR_FIELDS = {  # of a header: first byte, length
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 155),
}
TAR_TEXTS = (
    *(b"", b"\0", b"0", b"7" * 11, b"-0000000001", b"\x80" + b"\0" * 3 + b"\xff" * 8, b"xyz"),
    *(b"1", b"5", b"x", b"g", b"L", b"K", b"S", b"2", b"../../x", b"/x", b"\xff\xfe", b"0o17"),
    *(b"00000000200\0", b"a.slots.npy", b"video_00000.json", b"video_00000.slots.npy", b".", b"./"),
)
PAX = (
    *(b"path=x\n", b"size=1\n", b"size=-1\n", b"size=99999999999999999999\n", b"path=\xff\n"),
    *(b"size=\xd9\xa1\n", b"GNU.sparse.size=1\n", b"path=video_00000.slots.npy\n", b"=\n", b"x"),
)
MOST_BOMB = 300 << 20  # bytes that a small deflated member unpacks to


def mutate_tar(rng: random.Random, content: bytes) -> bytes:
    """Headers that are changed and have the right checksum again; members changed, moved, twice."""
    kind = rng.randrange(10)
    if kind == 0:
        return mutate_bytes(rng, content)
    if kind < 5:
        return change_header(rng, bytearray(content))
    members = tar_contents(content)
    at = rng.randrange(len(members))
    name, inside = members[at]
    if kind < 8:
        members[at] = name, member_mutation(name)(rng, inside)
    elif kind == 8:
        members.insert(rng.randrange(len(members)), rng.choice(members))
    else:
        rng.shuffle(members)
        del members[rng.randrange(len(members)) :]
    return make_tar(members)


def member_mutation(name: str) -> Mutation:
    if name.endswith(".json"):
        return mutate_json
    return mutate_zip if name.endswith(".npz") else mutate_npy


def tar_contents(content: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [(m.name, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]


def make_tar(members: list[tuple[str, bytes]]) -> bytes:
    found = b"".join(bytes(b) for name, part in members for b in tar_buffers(name, [part]))
    return found + tar_end(len(found))


def change_header(rng: random.Random, content: bytearray) -> bytes:
    """A field of one header, its checksum made right; or pax records and long names before it."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        starts = [member.offset for member in archive]
    at = rng.choice(starts)
    if rng.random() < 0.3:
        record = rng.choice(PAX)
        if rng.random() < 0.8:
            record = b"%d %s" % (len(record) + len(str(len(record) + 3)) + 1, record)
        if rng.random() < 0.2:
            record = mutate_bytes(rng, record)
        header = bytearray(b"".join(tar_buffers("pax", [record])))
        header[156:157] = rng.choice((b"x", b"g", b"L", b"K"))
        set_checksum(header, 0)
        content[at:at] = header
        return bytes(content)
    first, length = TAR_FIELDS[rng.choice(list(TAR_FIELDS))]
    new = rng.choice(TAR_TEXTS)[:length]
    content[at + first : at + first + length] = new.ljust(length, b"\0")
    if rng.random() < 0.2:
        content[at + rng.randrange(BLOCK_BYTES)] = rng.randrange(256)
    set_checksum(content, at)
    return bytes(content)


def set_checksum(content: bytearray, at: int) -> None:
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + BLOCK_BYTES])


NPY_PARTS = (
    (b"<f2", b"|O8"), (b"<f2", b">f2"), (b"<f4", b"<c8"), (b"<f", b"|V"), (b"<f4", b"<f16"),
    (b"<f2", b"<M8"), (b"False", b"True"), (b"(2,", b"(-2,"), (b"(2,", b"(99999999999999999999,"),
    (b"(2,", b"(0,"), (b"(2,", b"(True,"), (b"(2,", b"(1.5,"), (b"'<f2'", b"[('a','<f2')]"),
    (b"'descr'", b"'shape'"), (b"(", b"(" * 120), (b"2, ", b"2" * 4000), (b"{", b"-" * 2000 + b"{"),
)  # fmt: skip


def mutate_npy(rng: random.Random, content: bytes) -> bytes:
    """Another dtype, order or shape in the header, with the right length; or odd bytes."""
    if rng.random() < 0.5:
        return mutate_bytes(rng, content)
    length = int.from_bytes(content[8:10], "little")
    header, data = content[10 : 10 + length], content[10 + length :]
    for old, new in rng.sample(NPY_PARTS, 2):
        header = header.replace(old, new, 1)
    if rng.random() < 0.3:
        header = mutate_bytes(rng, header)
    major = rng.choice((1, 1, 1, 2, 3, 9))
    size = len(header).to_bytes(2 if major == 1 else 4, "little")
    return content[:6] + bytes((major, 0)) + size + header + data


@cache
def bomb(size: int) -> bytes:
    """A .npy of `size` zero bytes, deflated: (raw deflate stream)."""
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }\n" % size
    npy = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [press.compress(npy)]
    parts += [press.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join(parts) + press.flush()


def zip_entries(content: bytes) -> tuple[list[int], list[int]]:
    """Where the local and the central headers of a zip begin."""
    return find_all(content, b"PK\3\4"), find_all(content, b"PK\1\2")


def find_all(content: bytes, mark: bytes) -> list[int]:
    found = [content.find(mark)]
    while found[-1] >= 0:
        found.append(content.find(mark, found[-1] + 1))
    return found[:-1]


def mutate_zip(rng: random.Random, content: bytes) -> bytes:
    """Members that are changed and have the right CRC; sizes and places that lie; bombs."""
    kind = rng.randrange(10)
    if kind < 2:
        return mutate_bytes(rng, content)
    if kind < 6:
        return rebuild_zip(rng, content)
    found = bytearray(content)
    local, central = zip_entries(content)
    if not central:
        return mutate_bytes(rng, content)
    at = rng.choice(central)
    if kind == 6:  # two members at one place
        found[at + 42 : at + 46] = struct.pack("<I", rng.choice((*local, len(found), 1 << 31)))
    elif kind == 7:  # sizes, packed and unpacked; the latter by zip64 where it is all ones
        field = at + rng.choice((20, 24))
        size = rng.choice((0, 1, 1 << 20, MOST_BOMB, (1 << 32) - 2, (1 << 32) - 1))
        found[field : field + 4] = struct.pack("<I", size)
    elif kind == 8:  # flags, method, lengths of name and extra field
        field = at + rng.choice((8, 10, 28, 30, 32))
        found[field : field + 2] = struct.pack("<H", rng.choice((0, 1, 8, 9, 12, 14, 99, 0xFFFF)))
    else:  # the end record: entries, size and place of the contents
        field = content.rfind(b"PK\5\6") + rng.choice((8, 10, 12, 16))
        found[field : field + 4] = struct.pack("<I", rng.choice((0, 1, 1 << 27, (1 << 32) - 1)))
    return bytes(found)


def rebuild_zip(rng: random.Random, content: bytes) -> bytes:
    """The same members, one of them mutated, or a bomb in its place."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    at = rng.randrange(len(members))
    name, inside = members[at]
    inner = {"npy": mutate_npy, "pkl": mutate_pickle}.get(name.rpartition(".")[2], mutate_bytes)
    is_bomb = rng.random() < 0.02
    members[at] = name, b"" if is_bomb else inner(rng, inside)
    if rng.random() < 0.2:
        members.append((rng.choice(("", "../x.npy", "a" * 300, "é.npy", name, "/")), inside))
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as new:
        warnings.simplefilter("ignore")  # zipfile's: a name that is there twice
        for place, (title, part) in enumerate(members):
            info = zipfile.ZipInfo(title or "x", (1980, 1, 1, 0, 0, 0))
            info.compress_type = rng.choice((0, 8)) if place == at else 0
            new.writestr(info, part)
    found = buffer.getvalue()
    return put_bomb(found, at) if is_bomb else found


def put_bomb(content: bytes, member: int) -> bytes:
    """A zip whose empty member `member` holds a bomb instead; its CRC is not right."""
    packed = bomb(MOST_BOMB)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info = archive.infolist()[member]
    buffer = bytearray(content)
    end = len(info.filename.encode()) + info.header_offset + 30
    local, central = zip_entries(content)
    header = central[member]
    for at, first in ((local[member], 18), (header, 20)):
        buffer[at + first : at + first + 8] = struct.pack("<II", len(packed), MOST_BOMB + 80)
    for at, first in ((local[member], 8), (header, 10)):
        buffer[at + first : at + first + 2] = struct.pack("<H", 8)
    for at in central:
        place = struct.unpack("<I", buffer[at + 42 : at + 46])[0]
        if place > info.header_offset:
            buffer[at + 42 : at + 46] = struct.pack("<I", place + len(packed))
    mark = content.rfind(b"PK\5\6") + 16
    start = struct.unpack("<I", buffer[mark : mark + 4])[0]
    buffer[mark : mark + 4] = struct.pack("<I", start + len(packed))
    buffer[end:end] = packed
    return bytes(buffer)


# Opcodes that a hostile pickle is made of.
OPCODES = (
    *(b"(", b")", b"]", b"}", b"\x8f", b"N", b"\x88", b"\x89", b"0", b"1", b"2", b"a", b"e", b"s"),
    *(b"u", b"t", b"l", b"d", b"\x85", b"\x86", b"\x87", b"\x90", b"\x91", b"R", b"b", b"Q"),
    *(b"\x94",),
    *(b"\x93", b"\x81", b"\x92", b"o", b"ios\nsystem\n", b"cos\nsystem\n", b"\x82\1", b"\x97"),
    *(b"K\0", b"M\xff\xff", b"J\xff\xff\xff\xff", b"I01\n", b"I-9\n", b"Fnan\n", b"Finf\n"),
    *(b"L5L\n",),
    *(b"\x8a\x08" + b"\xff" * 8, b"\x8a\xff" + b"\x7f" * 255, b"L" + b"9" * 5000),
    *(b"\x8b\xff\xff\xff\x7f",),
    *(b"h\0", b"h\1", b"q\0", b"r\xff\xff\xff\xff", b"p99999999999\n", b"g0\n", b"j\0\0\0\0"),
    *(b"X\xff\xff\xff\xff", b"\x8e" + b"\xff" * 8, b"\x8d" + b"\0" * 8, b"\x96\0\0\1\0\0\0\0\0"),
    *(b"\x8c\1a", b"\x8c\2\xed\xa0", b"C\1a", b"U\1\xff", b"S'\\xff'\n", b"S'\n", b"Px\n"),
    *(b"V\\ud800\n",),
    *(b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n"),
    *(b"cnumpy.core.multiarray\nscalar\n", b"cnumpy.core.numeric\n_frombuffer\n"),
    *(b"c_codecs\nencode\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch.storage\n_load_from_bytes\n"),
    *(b"c__builtin__\nset\n", b"c__builtin__\nbytearray\n", b"ccollections\ndefaultdict\n"),
    *(b"\x8c\2f4", b"\x8c\x02O8", b"\x8c\3i99", b"\x8c\1<", b"\x8c\6latin1", b"\x8c\7storage"),
    *(b"G\x7f\xf8" + b"\0" * 6, b"\x95" + b"\xff" * 8, b"\x80\xff", b"\x80\2", b"."),
)  # fmt: skip
BOMBS = (
    b")" + b"\x85" * 30000 + b".",  # tuples in tuples
    b"}" + b")" + b"\x85" * 3000 + b"Ns.",  # as a key
    b"]" + b"2\x86" * 200 + b".",  # pairs of itself, 2^200 when walked
    b"}" + b"N" + b"2\x86" * 80 + b"Ns.",
    b"]\x94h\0a.",  # a list that holds itself
    b"(" * 100000 + b".",
    b"\x8c\1a\x94" + b"h\0" * 20000 + b".",
    b"\x80\4]" + b"\x94(" + b"h\0" * 5000 + b"e" + b"(" + b"h\0" * 5000 + b"e.",
)


def opcodes_of(content: bytes) -> list[bytes]:
    """The opcodes of a pickle, each with its argument; the whole as one if it is damaged."""
    try:
        starts = [at for _, _, at in pickletools.genops(content)]
    except (ValueError, IndexError, EOFError, UnicodeDecodeError):
        return [content]
    ends = [*starts[1:], len(content)]
    return [content[a:b] for a, b in zip(starts, ends)]  # type: ignore[misc]


def mutate_pickle(rng: random.Random, content: bytes) -> bytes:
    """Opcodes moved, repeated, removed, put in; programs of odd opcodes alone; bombs; odd bytes."""
    kind = rng.randrange(10)
    if kind < 2:
        return mutate_bytes(rng, content)
    if kind == 2:
        return rng.choice(BOMBS)
    if kind == 3:
        return b"".join(rng.choices(OPCODES, k=rng.randrange(1, 40))) + b"."
    parts = opcodes_of(content)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(parts))
        action = rng.randrange(5)
        if action == 0:
            parts.insert(at, rng.choice(OPCODES))
        elif action == 1:
            parts[at] = rng.choice(OPCODES)
        elif action == 2 and len(parts) > 1:
            del parts[at]
        elif action == 3:
            parts.insert(rng.randrange(len(parts)), parts[at])
        else:
            parts[at : at + 4] = reversed(parts[at : at + 4])
    return b"".join(parts)


def mutate_torch(rng: random.Random, content: bytes) -> bytes:
    """A torch.save file of either layout, or a plain pickle."""
    mutate: Callable[[random.Random, bytes], bytes]
    mutate = mutate_zip if content.startswith(b"PK") else mutate_pickle
    return mutate(rng, content)


def mutate_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Another header, with the right length; or odd bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, content)
    length = int.from_bytes(content[:8], "little")
    header = mutate_json(rng, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def pickled(content: object, protocol: int) -> bytes:
    return pickle.dumps(content, protocol)
