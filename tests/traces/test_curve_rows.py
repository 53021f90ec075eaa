"""The random control: what may follow what, and that chance alone decides the rest."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import strace_lens as sl
from strace_lens.model.checks import architecture_of
from strace_lens.traces.ablation import ZERO
from strace_lens.traces.curve_rows import ablatable, curve_rows, most_rows, with_sizes
from strace_lens.traces.edges import UNREACHABLE, EdgeTensors, GraphShape, edge_list, is_complete
from strace_lens.traces.masked_run import masked_logits
from strace_lens.traces.rows import MaskedRows, MaskRows
from strace_lens.utils.choices import KINDS
from tests import tiny
from tests.authors import AUTHORS_CURVES, AUTHORS_RANDOM
from tests.cases import SHAPES, random_ranks


def edges_in_order(ranks: EdgeTensors, shape: GraphShape) -> list[tuple]:
    """(kind, source, target) of each ranked edge, nodes as (level, token)."""
    chosen = ranks.map(lambda x: x != UNREACHABLE)
    edges = edge_list(shape, chosen)
    columns = (edges.source_level, edges.source_token, edges.target_level, edges.target_token)
    rows = torch.stack((edges.kind, *columns), dim=1)[ranks.flat()[chosen.flat()].argsort()]
    return [(KINDS[k], (sl, st), (tl, tt)) for k, sl, st, tl, tt in rows.tolist()]


@settings(max_examples=100)
@given(SHAPES, st.integers(0, 2**31), st.floats(0, 1))
def test_grows_from_the_output_with_residual_and_mlp_edges_first(
    shape: GraphShape, seed: int, share: float
) -> None:
    count = int(share * shape.edges)
    ranks = random_ranks(shape, seed, count)
    order = ranks.flat()
    assert torch.equal(order[order != UNREACHABLE].sort().values, torch.arange(count).int())
    assert is_complete(random_ranks(shape, seed), shape)
    # In-edges of each node that must be taken before any attention edge of that node.
    everything = shape.reachable().map(lambda there: torch.where(there, 0, UNREACHABLE))
    waiting = Counter(
        target for kind, _, target in edges_in_order(everything, shape) if kind != "attention"
    )
    reached = {(shape.levels - 1, shape.tokens - 1)}
    for kind, source, target in edges_in_order(ranks, shape):
        assert target in reached
        if kind == "attention":
            assert waiting[target] == 0
        else:
            waiting[target] -= 1
        reached.add(source)


def test_a_seed_gives_the_same_subgraph_and_another_seed_or_size_others() -> None:
    shape = GraphShape(layers=2, heads=2, tokens=5)
    torch.manual_seed(11)
    first = random_ranks(shape, 7).flat()
    state = torch.get_rng_state()
    assert torch.equal(first, random_ranks(shape, 7).flat())
    assert torch.equal(state, torch.get_rng_state())  # the caller's generator is left alone
    assert not torch.equal(first, random_ranks(shape, 8).flat())
    twenty = random_ranks(shape, 7, 20).flat()
    assert not torch.equal(twenty < 20, first < 20)
    assert set(twenty.tolist()) == {*range(20), UNREACHABLE}


def test_edges_of_a_kind_come_in_uniformly_random_order() -> None:
    shape = GraphShape(layers=1, heads=2, tokens=2)
    draws = 600
    attention, dense = Counter(), Counter()
    for seed in range(draws):
        ranks = random_ranks(shape, seed)
        attention[int(ranks.attention[0, :, 1].flatten().argmin())] += 1
        dense[bool(ranks.mlp[0, 1] < ranks.residual[0, 1, 1])] += 1
    # Four candidates, each Binomial(600, 1/4): mean 150, standard deviation 10.6.
    assert set(attention) == {0, 1, 2, 3}
    assert all(abs(n - draws / 4) < 45 for n in attention.values())
    # Two candidates, each Binomial(600, 1/2): mean 300, standard deviation 12.2.
    assert abs(dense[True] - draws / 2) < 50


def test_nodes_are_drawn_uniformly() -> None:
    """With one head and no MLP, the in-edges of a column's nodes have known chances."""
    shape = GraphShape(layers=2, heads=1, tokens=2, mlp=False)
    # The output is reached, and its residual edge comes first. Then the output and the node below
    # it are drawn with equal chance: the second edge is an attention edge of the output or the
    # residual edge of that node.
    below = sum(int(random_ranks(shape, seed, 2).residual[0, 0, 1]) == 1 for seed in range(600))
    assert abs(below - 300) < 50


@pytest.mark.extended
@pytest.mark.parametrize("passage", ["68", "77"])
def test_the_authors_draw_as_many_edges_of_each_kind(passage: str) -> None:
    """Their three draws lie where forty of ours do, but for chance, at every size."""
    tokens = len(AUTHORS_CURVES[passage]["ids"])
    shape = GraphShape(layers=30, heads=9, tokens=tokens)
    for size, theirs in AUTHORS_RANDOM[passage].items():
        edges = int(float(size) * shape.edges)
        ours = np.array([_counts(random_ranks(shape, seed, edges)) for seed in range(40)])
        mean = np.mean([draw["counts"] for draw in theirs], 0)
        spread = ours.std(0) / np.sqrt(len(theirs)) + 0.5
        assert (np.abs(mean - ours.mean(0)) < 4.5 * spread).all(), size


def _counts(ranks: EdgeTensors) -> list[int]:
    """Edges of attention, residual into mid, residual into post, MLP, and into the last token."""
    attention, residual, mlp = ranks.map(lambda r: r != UNREACHABLE)
    last = attention[..., -1, :].sum() + residual[..., -1].sum() + mlp[..., -1].sum()
    counted = (attention.sum(), residual[:, 0].sum(), residual[:, 1].sum(), mlp.sum(), last)
    return [int(n) for n in counted]


SIZES = (0.004, *np.linspace(0.01, 1, 34).tolist())


def masks(groups: Sequence[MaskRows]) -> list[torch.Tensor]:
    """The mask of every row as one flat boolean vector, residual edges of controls kept."""
    every = []
    for group in groups:
        for row in range(len(group)):
            one = group.rows(slice(row, row + 1))
            kept = EdgeTensors(*(one.kept(kind)[0] for kind in EdgeTensors._fields))
            every.append(kept.flat()[one.shape.reachable().flat()])
    return every


@pytest.mark.parametrize("name", ["llama", "mistral", "gptj"])
def test_each_size_finds_its_mask_and_no_mask_is_run_twice(name: str) -> None:
    model = tiny.bridge(name)
    architecture = architecture_of(model)
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(6)))
    rows = curve_rows(architecture, trace, SIZES, controls=True, replacement=ZERO, seed=2)
    run = masks(rows.groups)
    assert len(run) == len(rows) < most_rows(SIZES, controls=True)
    assert len({tuple(mask.tolist()) for mask in run[: len(rows.groups[0])]}) == len(rows.groups[0])
    assert run[rows.full].all()
    reachable = trace.shape.reachable()
    residual = trace.shape.full(False, torch.bool)._replace(residual=reachable.residual)
    always = residual.flat()[reachable.flat()]
    ranks = trace.ranks.flat()[reachable.flat()]
    assert rows.inverse is not None
    assert rows.random is not None
    assert rows.random_inverse is not None
    for i, size in enumerate(SIZES):
        k = trace.edge_count(size)
        own = run[rows.trace[i]]
        # A silent model's trace that reaches no embedding is the empty one; see below.
        assert torch.equal(own, ranks < k) or (architecture.silent_without_input and not own.any())
        assert torch.equal(run[rows.inverse[i]], (ranks >= k) | always)
        grown = random_ranks(trace.shape, 2, k).flat()[reachable.flat()] < k
        assert torch.equal(run[rows.random[i]], grown | always)
        assert torch.equal(run[rows.random_inverse[i]], ~grown | always)


@pytest.mark.parametrize(
    ("name", "silent"), [("mistral", True), ("mixtral", True), ("llama", False), ("gpt2", False)]
)
def test_only_models_without_biases_are_silent_without_input(name: str, silent: bool) -> None:
    model = tiny.bridge(name)
    architecture = architecture_of(model)
    assert architecture.silent_without_input == silent
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(6)))
    shape, ranks = trace.shape, trace.ranks
    reads_embedding = min(int(ranks.attention[0].min()), int(ranks.residual[0, 0].min()))
    assert reads_embedding > 1
    stop = torch.tensor([0, 1, reads_embedding, reads_embedding + 1], dtype=torch.int32)
    rows = MaskedRows(trace.prompt.tensor, shape, ranks, torch.zeros_like(stop), stop)
    empty, one, last, first = masked_logits(model, architecture, [rows])
    assert torch.equal(empty, last) == silent
    if silent:
        assert torch.equal(empty, one)
    assert not torch.equal(last, first)


KEEPS = [keep for n in range(1, 4) for keep in itertools.combinations(KINDS, n)]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("name", ["llama", "mistral", "gptj"])
def test_kinds_that_are_kept_are_in_every_mask(name: str, keep: tuple[str, ...]) -> None:
    model = tiny.bridge(name)
    architecture = architecture_of(model)
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(6)))
    options = {"replacement": ZERO, "seed": 2, "keep": keep}
    rows = curve_rows(architecture, trace, SIZES, controls=True, **options)
    run = masks(rows.groups)
    assert len(run) == len(rows)
    reachable = trace.shape.reachable()
    there = reachable.flat()

    def of(kinds: Sequence[str]) -> torch.Tensor:
        whole = {kind: torch.full_like(x, kind in kinds) for kind, x in reachable._asdict().items()}
        return EdgeTensors(**whole).flat()[there]

    always, beside = of(keep), of((*keep, "residual"))
    ranks = trace.ranks.flat()[there]
    assert run[rows.full].all()
    assert {tuple(mask.tolist()) for mask in run[: len(rows.groups[0])]} == {
        tuple(((ranks < trace.edge_count(size)) | always).tolist()) for size in (*SIZES, 1.0)
    }
    for i, size in enumerate(SIZES):
        k = trace.edge_count(size)
        own = (ranks < k) | always
        assert torch.equal(run[rows.trace[i]], own)
        assert int(ablatable(rows.counts[i], keep)) == int((own & ~always).sum())
        grown = random_ranks(trace.shape, 2, k).flat()[there] < k
        assert torch.equal(run[rows.inverse[i]], (ranks >= k) | beside)
        assert torch.equal(run[rows.random[i]], grown | beside)
        assert torch.equal(run[rows.random_inverse[i]], ~grown | beside)


@pytest.mark.parametrize("keep", [(), ("attention",), ("residual", "mlp")])
def test_sizes_are_added_without_a_mask_run_twice(keep: tuple[str, ...]) -> None:
    model = tiny.bridge("llama")
    architecture = architecture_of(model)
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(6)))
    options = {"replacement": ZERO, "seed": 2, "keep": keep, "controls": False}
    coarse, added = SIZES[::3], [s for s in SIZES if s not in SIZES[::3]]
    grown = with_sizes(
        curve_rows(architecture, trace, coarse, **options), architecture, trace, added
    )
    at_once = curve_rows(architecture, trace, SIZES, **options)
    assert len(grown) == len(at_once)
    ours, theirs = masks(grown.groups), masks(at_once.groups)
    for mine, whole in zip(grown.trace.tolist(), at_once.trace.tolist(), strict=True):
        assert torch.equal(ours[mine], theirs[whole])
    assert torch.equal(grown.counts, at_once.counts)


def test_an_unknown_kind_is_refused() -> None:
    model = tiny.bridge("llama")
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(6)))
    with pytest.raises(ValueError, match="unknown kind of edge 'heads'; choose from residual"):
        sl.density_curve(model, trace, keep=("heads",))
    with pytest.raises(ValueError, match="keep takes a sequence of kinds"):
        sl.density_curve(model, trace, keep="attention")
