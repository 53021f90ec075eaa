"""The explorer's page as a file, and what it is given; `test_explorer_browser` opens it."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import strace_lens as sl
from strace_lens.cli import app
from strace_lens.report.explorer import pack
from strace_lens.report.lens import pack_lens
from strace_lens.traces.edges import order_of
from tests.cases import random_ranks
from tests.plot import made
from tests.report.made import large_curve, large_lens


def results_of(page: str, part: str) -> list[dict]:
    (text,) = re.findall(r'<script id="results" type="application/json">(.*?)</script>', page)
    return json.loads(text)[part]


def results(page: str) -> list[dict]:
    return results_of(page, "results")


def test_the_page_needs_nothing_from_anywhere() -> None:
    page = sl.explorer([made.curve()])
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\"'\s<]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"\$[a-z]", page)  # no place of the template was left open


@pytest.mark.extended
def test_64_tokens_of_smollm2_take_less_than_8_mb() -> None:
    curve = large_curve()
    page = sl.explorer([curve], lenses=[large_lens()])
    assert results(page)[0]["packed"] == curve.trace.edges == 549_027
    assert len(page.encode()) < 8e6


def test_a_long_trace_is_drawn_up_to_its_share() -> None:
    page = sl.explorer([made.curve(), made.curve("gpt2")], most_edges=101)
    assert [r["packed"] for r in results(page)] == [50, 50]
    assert [r["edges"] for r in results(page)] == [
        made.curve().trace.edges,
        made.curve("gpt2").trace.edges,
    ]


def in_ways() -> list[sl.DensityCurve]:
    """One trace measured in two ways, and another trace of the same prompt."""
    curve = made.curve()
    shuffled = dataclasses.replace(
        curve.trace, ranks=random_ranks(curve.trace.shape, 1), importance=None
    )
    reread = dataclasses.replace(curve.trace, ranks=curve.trace.ranks.map(torch.clone))
    return [
        curve,
        dataclasses.replace(curve, trace=reread, keep=("attention",)),
        dataclasses.replace(curve, trace=shuffled),
    ]


def test_ways_of_one_prompt_share_the_edges_of_the_same_trace() -> None:
    page = sl.explorer(
        in_ways(), names=["as defined", "attention kept", "shuffled"], most_edges=200
    )
    first, second, third = results(page)
    assert [r["packed"] for r in (first, second, third)] == [100, 100, 100]  # of two traces
    assert (second["order"], second["importance"]) == (0, None)
    assert first["importance"] is not None
    assert isinstance(third["order"], str)


def test_names_are_of_one_prompt_and_as_many_as_curves() -> None:
    with pytest.raises(ValueError, match="2 names for 3 curves; give one for each"):
        sl.explorer(in_ways(), names=["a", "b"])
    with pytest.raises(ValueError, match="one prompt and one model; leave out names"):
        sl.explorer([made.curve(), made.curve("gpt2")], names=["a", "b"])


def test_text_of_a_prompt_cannot_leave_the_data() -> None:
    hostile = "</script><script>alert(1)</script>"
    page = sl.explorer([made.with_token(hostile)])
    assert hostile not in page
    assert results(page)[0]["tokens"][-1] == hostile


def test_the_title_is_the_text_of_the_prompt() -> None:
    page = sl.explorer([made.other_scripts()])
    title = "Trace of tiny-llama: \u2068日本 שלום 👩‍👩‍👧 e\u0301 is\u2069"
    assert f"<title>{title}</title>" in page
    assert f"<h1>{title}</h1>" in page


def test_nothing_to_explore_is_refused() -> None:
    with pytest.raises(ValueError, match="give at least one"):
        sl.explorer([])
    with pytest.raises(ValueError, match="most_edges must be at least one a curve; got 1"):
        sl.explorer([made.curve(), made.curve("gpt2")], most_edges=1)


def test_the_command_reads_files_and_folders(tmp_path) -> None:
    sl.save(made.curve(), tmp_path / "a.safetensors")
    (tmp_path / "b").mkdir()
    sl.save(made.curve("gpt2"), tmp_path / "b" / "trace.safetensors")
    page = tmp_path / "new" / "page.html"
    named = [str(tmp_path / "a.safetensors"), str(tmp_path / "b"), "--out", str(page)]
    done = CliRunner().invoke(app, ["report", *named])
    assert done.exit_code == 0, done.output
    assert "2 traces" in done.stdout
    assert page.read_text() == sl.explorer([made.curve(), made.curve("gpt2")])


def test_a_page_may_have_as_long_a_name_as_files_can_have(tmp_path) -> None:
    sl.save(made.curve(), tmp_path / "a.safetensors")
    for length in (250, 255):
        page = tmp_path / f"{'n' * (length - 5)}.html"
        done = CliRunner().invoke(
            app, ["report", str(tmp_path / "a.safetensors"), "--out", str(page)]
        )
        assert done.exit_code == 0, done.output
        assert page.read_text() == sl.explorer([made.curve()])


def test_a_longer_name_of_a_page_is_refused_in_one_line_before_anything_is_read(tmp_path) -> None:
    name = f"{'n' * 295}.html"
    named = [str(tmp_path / "there is none"), "--out", str(tmp_path / name)]
    done = CliRunner().invoke(app, ["report", *named])
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "File name too long" in line
    assert name in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.mkdir(), "holds no trace.safetensors"),
        (lambda path: (path / "parts").mkdir(parents=True), "strace-lens phases"),
        (lambda path: path.write_bytes(b"{}"), "truncated or foreign"),
        (lambda path: sl.save(made.curve().trace, path), "no curve of strace-lens/3"),
    ],
)
def test_the_command_refuses_what_is_no_curve(tmp_path, make, reason) -> None:
    make(tmp_path / "given")
    page = tmp_path / "page.html"
    named = [str(tmp_path / "given"), "--out", str(page)]
    done = CliRunner().invoke(app, ["report", *named])
    assert done.exit_code == 2
    assert reason in done.stderr
    assert not page.exists()


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


@pytest.mark.extended
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
    for row, tokens, told in zip(
        curve.table.to_dict("records"), curve.top_tokens, packed["sizes"], strict=True
    ):
        for name in ("size", "edges", "tv", "kl", "head_error", "trace_head_mass", "attention"):
            assert told[name] == row[name]
        assert [tuple(token) for token in told["top_tokens"]] == list(tokens)
        assert np.sum(told["counts"]) == row["edges"]
    assert packed["levels"][-1] == "blocks.2.hook_resid_post"
    whole = curve.trace.shape.reachable()
    assert packed["reachable"][1] == [int(layer.sum()) for layer in whole.attention]


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


def test_a_lens_is_of_the_prompt_and_the_model_of_its_curve() -> None:
    lens = made.lens()
    assert results_of(sl.explorer([made.curve()], lenses=[lens]), "lenses")[0]["target"]
    for other in (made.curve("gpt2"), other_weights(made.curve())):
        with pytest.raises(ValueError, match="read it from the graph of that trace"):
            sl.explorer([other], lenses=[lens])
    with pytest.raises(ValueError, match="2 lenses for 1 curves; give one for all"):
        sl.explorer([made.curve()], lenses=[lens, lens])


def other_weights(curve: sl.DensityCurve) -> sl.DensityCurve:
    metadata = {**curve.trace.metadata, "weights": "0" * 64}
    return dataclasses.replace(curve, trace=dataclasses.replace(curve.trace, metadata=metadata))


def test_attention_is_packed_to_a_few_thousandths() -> None:
    lens = made.lens()
    packed = pack_lens(lens)
    steps = np.frombuffer(zlib.decompress(base64.b64decode(packed["attention"])), np.uint8)
    seen = np.tril(np.ones(lens.pattern.shape[-2:], dtype=bool))
    truth = lens.pattern.numpy()[..., seen].ravel()
    assert np.abs((steps / 255) ** 2 - truth).max() <= 1 / 255
    assert truth.max() == 1  # the first token attends to itself alone
    assert steps.max() == 255
