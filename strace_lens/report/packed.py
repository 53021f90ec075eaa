"""Numbers as text in a page: planes of bytes, compressed; `assets/unpack.js` reads them back."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor


def byte_planes(
    values: Int[Tensor, " number"], planes: int | None = None
) -> UInt8[np.ndarray, "plane number"]:
    """The bytes of whole numbers, lowest first, each place a row of its own.

    Planes of similar bytes compress well.

    Args:
        values: none negative.
        planes: bytes of each number; by default three, or four where one needs them.
    """
    if planes is None:
        planes = 3 if int(values.max()) < 2**24 else 4
    shifts = 8 * torch.arange(planes)[:, None]
    return ((values[None] >> shifts) & 0xFF).to(torch.uint8).numpy()


def packed_text(data: bytes) -> str:
    """Bytes as base64 of a zlib stream."""
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")
