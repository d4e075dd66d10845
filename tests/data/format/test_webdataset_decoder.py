"""Our shards in plain webdataset: slots of every stored type."""

import numpy as np
import pytest
import webdataset

from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.reader import load_slots
from cjepa_dist.data.format.webdataset_decoder import decode_slots
from tests.data.format.test_shards import write


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_slots_are_float32_and_other_members_are_decoded(tmp_path, dtype):
    data = write(tmp_path / "data", dtype=dtype)
    shard = str(data / "train" / "000000.tar")
    samples = list(webdataset.WebDataset(shard, shardshuffle=False).decode(decode_slots))
    slots = np.stack([sample["slots.npy"] for sample in samples])
    assert slots.dtype == np.float32
    assert np.array_equal(slots, to_float32(load_slots(data, "train")))
    assert samples[0]["json"]["scene_index"] == 0
