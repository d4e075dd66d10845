"""A decoder of slots for users of webdataset, who would get bfloat16 as its bits in uint16.

webdataset.WebDataset(path, shardshuffle=False).decode(decode_slots)   # "slots.npy": float32
"""

from __future__ import annotations

import numpy as np

from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.sample import SLOTS
from cjepa_dist.data.format.tar import parse_npy


def decode_slots(member: str, content: bytes) -> np.ndarray | None:
    """Slots (T, S, D) float32 of any stored type; None for other members, which webdataset decodes.

    Raises ValueError if the member is damaged.
    """
    if member.lstrip(".") != SLOTS:
        return None
    return to_float32(parse_npy(content))
