"""How closely two ways to the same number must agree, given the dtype that a model computes in."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = 2e-2
_SINGLE = 1e-4
_DOUBLE = 1e-6


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative difference that rounding alone explains, between sums of a dtype.

    Single precision agrees to about 1e-6 where no fact is wrong, and double precision to about
    1e-7, because some models compute their norms and patterns in single precision whatever their
    dtype. Half precision rounds the residual stream itself. Where torch has been allowed to take
    matrix products in a lower precision, single precision is held to no more than half precision.
    """
    if dtype == torch.float64:
        return _DOUBLE
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return _SINGLE
    return _HALF


def at_least_single(x: Tensor) -> Tensor:
    """The tensor in single precision if it is in half; single and double stay as they are."""
    return x if x.dtype == torch.float64 else x.float()
