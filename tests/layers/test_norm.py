"""RMSNorm with a weight for each head."""

import torch

from ridgeline.layers import HeadRMSNorm


def test_each_head_has_its_own_mean_and_weight():
    norm = HeadRMSNorm(2, 3, eps=0.5, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    x = torch.tensor([[[3.0, -3.0, 3.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    scale = (9 + 0.5) ** -0.5
    expected = torch.tensor([[[3.0, -6.0, 9.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(norm(x), expected * torch.tensor([[[scale], [1.0]]]).double())


def test_the_result_has_the_dtype_of_the_input():
    x = torch.randn(4, 2, 8)
    norm = HeadRMSNorm(2, 8)  # fp32 weights, as under autocast
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert norm(x).dtype == torch.float32
