"""How closely two sums of a dtype must agree."""

from __future__ import annotations

import pytest
import torch

from strace_lens.model.precision import at_least_single, tolerance


def test_the_tolerance_lies_above_rounding_and_rises_as_the_dtype_narrows() -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    found = [tolerance(dtype) for dtype in dtypes]
    assert found == sorted(found)
    for dtype, allowed in zip(dtypes, found, strict=True):
        assert allowed > 2 * torch.finfo(dtype).eps


def test_products_in_a_lower_precision_are_not_held_to_single_precision() -> None:
    before = torch.get_float32_matmul_precision()
    assert tolerance(torch.float32) < 1e-3
    try:
        torch.set_float32_matmul_precision("high")
        assert tolerance(torch.float32) == tolerance(torch.bfloat16)
        assert tolerance(torch.float64) < 1e-5
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_becomes_single_and_nothing_becomes_narrower(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, 0.5], dtype=dtype)
    wide = at_least_single(x)
    assert wide.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(wide.to(dtype), x)
