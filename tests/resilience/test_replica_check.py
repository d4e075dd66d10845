"""Checksums of replicas."""

import torch

from cjepa_dist.resilience.replica_check import tensor_checksum


def test_any_single_change_alters_the_checksum():
    tensors = [
        torch.randn(3, 4),
        torch.randn(5).bfloat16(),
        torch.arange(6),
        torch.tensor(True),
        torch.randn(4, 4).T,
    ]
    before = tensor_checksum(tensors)
    assert torch.equal(before, tensor_checksum([value.clone() for value in tensors]))
    for index, value in enumerate(tensors):
        changed = [other.clone() for other in tensors]
        one = (
            changed[index].view(-1)
            if value.is_contiguous()
            else changed[index].contiguous().view(-1)
        )
        one[0] = ~one[0] if value.dtype == torch.bool else one[0] + 1
        if not value.is_contiguous():
            changed[index] = one.view(value.shape)
        assert not torch.equal(before, tensor_checksum(changed)), index
    assert not torch.equal(before, tensor_checksum([tensors[0].flip(0) * 1.0000001, *tensors[1:]]))
