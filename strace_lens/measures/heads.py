"""Tables of attention heads: one row for each layer and head, whatever is known of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Shaped
from torch import Tensor


def head_table(columns: Mapping[str, Shaped[Tensor, "layer head"]]) -> pd.DataFrame:
    """One row for each head of each layer, in the model's order.

    Args:
        columns: what is known of the heads, by the name of its column.

    Returns:
        The columns `layer` and `head`, from 0, and those given.
    """
    layers, heads = next(iter(columns.values())).shape
    layer, head = np.divmod(np.arange(layers * heads), heads)
    known = {name: values.detach().cpu().flatten().numpy() for name, values in columns.items()}
    return pd.DataFrame({"layer": layer, "head": head, **known})
