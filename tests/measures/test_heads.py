"""Tables of heads, against a loop."""

from __future__ import annotations

import torch

from strace_lens.measures.heads import head_table


def test_rows_are_the_heads_in_the_order_of_the_model() -> None:
    values, others = torch.arange(6.0).view(3, 2), torch.arange(6).view(3, 2) % 2 == 0
    table = head_table({"score": values, "even": others})
    assert list(table.columns) == ["layer", "head", "score", "even"]
    rows = [(n, h, float(values[n, h]), bool(others[n, h])) for n in range(3) for h in range(2)]
    assert list(table.itertuples(index=False, name=None)) == rows
