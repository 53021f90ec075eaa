"""What the page is given, unpacked again by the definition of the token graph."""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib

import numpy as np
import pytest
import torch

from strace_lens.report.explorer.pack import pack
from strace_lens.token_graph.edges import order_of
from tests.plot import made
from tests.report.explorer.made import large_curve


def planes(text: str, edges: int) -> np.ndarray:
    data = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    return data.reshape(-1, edges).astype(np.int64)


@pytest.mark.parametrize("most", [1, 50, 10**9])
def test_edges_and_their_importances_come_back(most: int) -> None:
    trace = made.curve().trace
    packed = pack(made.curve(), most)
    order = order_of(trace.ranks)[:most]
    assert packed["packed"] == len(order) == min(most, trace.edges)
    bytes_ = planes(packed["order"], len(order))
    assert (bytes_ * 256 ** np.arange(len(bytes_))[:, None]).sum(0).tolist() == order.tolist()
    low, high = planes(packed["importance"], len(order))
    read = ((low + 256 * high) << 16).astype(np.uint32).view(np.float32)
    assert trace.importance is not None
    np.testing.assert_allclose(read, trace.importance.flat()[order].numpy(), rtol=2**-8)


def test_ids_beyond_three_bytes_are_packed_in_four() -> None:
    curve = large_curve(280)  # 21 million cells
    packed = pack(curve, 1000)
    order = order_of(curve.trace.ranks)[:1000]
    assert int(order.max()) >= 2**24
    bytes_ = planes(packed["order"], 1000)
    assert (bytes_ * 256 ** np.arange(4)[:, None]).sum(0).tolist() == order.tolist()


def test_every_size_is_told_as_the_table_has_it() -> None:
    curve = made.curve()
    packed = json.loads(json.dumps(pack(curve, 10), allow_nan=False))
    for row, told in zip(curve.table.to_dict("records"), packed["sizes"], strict=True):
        for name in ("size", "edges", "tv", "kl", "head_error", "trace_head_mass", "attention"):
            assert told[name] == row[name]
        assert [tuple(token) for token in told["beside"]] == list(row["beside"])
        assert np.sum(told["counts"]) == row["edges"]
    assert packed["levels"][-1] == "blocks.2.hook_resid_post"


def test_what_is_not_there_is_none() -> None:
    curve = made.bare(1)
    trace = dataclasses.replace(curve.trace, importance=None)
    packed = pack(dataclasses.replace(curve, trace=trace), 10)
    assert packed["importance"] is None
    assert packed["density"] is None  # of a single size
    assert packed["sizes"][0]["random_tv"] is None
    assert packed["sizes"][0]["mean_layer"] is None  # of no edges
    assert packed["phases"] == []


def test_packing_is_the_same_every_time() -> None:
    torch.manual_seed(1)
    first = pack(made.curve(), 100)
    torch.manual_seed(2)
    assert pack(made.curve(), 100) == first
