"""Attention of packed views against attention of each view alone, gradients included."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dslight.components.vision_encoders.views_attention import attention


@pytest.mark.parametrize("lengths", [[7], [4, 4, 4], [3, 8, 1], [4, 4, 2, 4, 4, 2, 4, 4, 2]])
def test_packed_views_attend_as_each_does_alone(lengths):
    generator = torch.Generator().manual_seed(0)
    packed = [torch.randn(1, 2, sum(lengths), 8, generator=generator, requires_grad=True) for _ in range(3)]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    found, _ = attention(nn.Module(), *packed, None, scaling=0.3, cu_seq_lens_q=bounds)
    parts = zip(*(x.split(lengths, dim=2) for x in packed), strict=True)
    expected = torch.cat([F.scaled_dot_product_attention(*part, scale=0.3) for part in parts], 2).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    weights = torch.randn(expected.shape, generator=generator)
    ours, theirs = (torch.autograd.grad((each * weights).sum(), packed) for each in (found, expected))
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_of_a_gpu_attends_alike(dtype):
    lengths = [64, 64, 30, 1, 200]
    packed = [torch.randn(1, 4, sum(lengths), 64, device="cuda", dtype=dtype) for _ in range(3)]
    bounds = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    found, _ = attention(nn.Module(), *packed, None, scaling=0.125, cu_seq_lens_q=bounds, max_length_q=200)
    parts = zip(*(x.split(lengths, dim=2) for x in packed), strict=True)
    expected = torch.cat([F.scaled_dot_product_attention(*part, scale=0.125) for part in parts], 2).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
