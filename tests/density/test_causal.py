"""The causal check: its sets of edges, its numbers against masks made by hand, its sentences."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens.density import causal
from strace_lens.density.causal import COLUMNS, phase_ablation, phase_ablations, read_ablation
from strace_lens.density.causal_draws import DRAWS
from strace_lens.density.phases import LayerPhase, Phases, find_phases
from strace_lens.report.summary import summarize
from strace_lens.report.tables import print_curve
from strace_lens.report.trace import trace_report
from strace_lens.traces.edges import EdgeTensors, keep_text, order_of, ranks_of
from strace_lens.traces.rows import MaskedRows
from tests import cases, tiny

SEED = 1
ERRORS = ["tv", "head_error", "tail_error"]


def curve_of(trace: sl.Trace, keep: Sequence[str] = ()) -> sl.DensityCurve:
    sizes = np.linspace(0.02, 1, 50).tolist()
    return sl.density_curve(
        tiny.bridge("llama"), trace, sizes=sizes, refine=0, controls=False, keep=keep
    )


@pytest.fixture(scope="module")
def curve() -> sl.DensityCurve:
    """The curve of a tiny model, on a grid fine enough for its few edges."""
    return curve_of(sl.extract(sl.token_graph(tiny.bridge("llama"), tiny.token_ids(8))))


@pytest.fixture(scope="module")
def table(curve) -> pd.DataFrame:
    return phase_ablation(tiny.bridge("llama"), curve, seed=SEED)


KEEPS = [(), ("attention",), ("residual",)]


@pytest.fixture(scope="module", params=KEEPS, ids=keep_text)
def kept(request) -> sl.DensityCurve:
    """Curves of one trace that keep different kinds of edges."""
    trace = sl.extract(sl.token_graph(tiny.bridge("llama"), tiny.token_ids(8)))
    return curve_of(trace, keep=request.param)


Runs = list[list[Tensor]]
"""What rows of the check leave out of the trace, over the flat graph: nothing and everything, then
what each step of the refinement's search has run, and of the head's."""


def recorded(curve: sl.DensityCurve, monkeypatch: pytest.MonkeyPatch) -> tuple[pd.DataFrame, Runs]:
    """The table, and what each masked row of the check leaves out."""
    rows: list[MaskedRows] = []
    steps: list[Runs] = []
    run, graded = causal.masked_logits, causal._graded

    def record(model: Any, architecture: Any, groups: Sequence[MaskedRows], **options: Any):
        rows.extend(groups)
        return run(model, architecture, groups, **options)

    def record_steps(*given: Any):
        steps.append([])
        return (yield from stepped(graded(*given), steps[-1]))

    monkeypatch.setattr(causal, "masked_logits", record)
    monkeypatch.setattr(causal, "_graded", record_steps)
    table = phase_ablation(tiny.bridge("llama"), curve, seed=SEED)
    tail = find_phases(curve).tail
    assert tail is not None
    whole = curve.trace.ranks.flat() < tail.last
    assert all(row.keep == curve.keep for row in rows)
    masks = [row.ranks.flat() == 0 for row in rows]
    assert all(not (k & ~whole).any() for k in masks)
    runs = [whole & ~k for k in masks]
    left = {tuple(gone.nonzero().flatten().tolist()): gone for gone in runs}
    asked = [[left[tuple(sorted(x.tolist()))] for x in sets] for of in steps for sets in of]
    assert sum(map(len, asked)) == len(runs) - 2
    return table, [runs[:2], *asked]


def stepped(search: Any, steps: Runs) -> Any:
    """A search that notes what it asks for."""
    try:
        wanted = next(search)
        while True:
            steps.append(wanted)
            wanted = search.send((yield wanted))
    except StopIteration as done:
        return done.value


def part_of(curve: sl.DensityCurve, name: str) -> Tensor:
    """The edges of a half of a phase that can be ablated, edge by edge."""
    phases, shape = find_phases(curve), curve.trace.shape
    phase = phases.tail if name.startswith("refinement") else phases.head
    assert phase is not None
    kinds, layers = kinds_and_layers(curve)
    early = name.endswith("early layers")
    return torch.tensor(
        [
            phase.first <= rank < phase.last
            and kind not in curve.keep
            and (layer < shape.layers // 2) == early
            for rank, kind, layer in zip(curve.trace.ranks.flat(), kinds, layers, strict=True)
        ]
    )


def kinds_and_layers(curve: sl.DensityCurve) -> tuple[list[str], list[int]]:
    shape = curve.trace.shape
    counts = [math.prod(s) for s in shape.tensor_shapes]
    kinds = [k for k, n in zip(EdgeTensors._fields, counts, strict=True) for _ in range(n)]
    return kinds, shape.layer_of().flat().tolist()


def strata(curve: sl.DensityCurve, edges: Tensor) -> Counter[tuple[str, int]]:
    """How many edges of each kind there are in each layer."""
    kinds, layers = kinds_and_layers(curve)
    return Counter((kinds[i], layers[i]) for i in edges.nonzero().flatten().tolist())


Drawn = tuple[list[Tensor], list[Tensor]]


def drawn_sets(table: pd.DataFrame, runs: Runs) -> dict[str, Drawn]:
    """The sets of each half, and of its control, of which the table holds the errors."""
    rows, found = table.set_index("ablated"), {}
    refinement, head = (sets for sets in runs if len(sets) > 2)  # the others look for the number
    left = [*refinement, *head]
    for phase in ("refinement", "head"):
        for half in ("early", "late"):
            name = f"{phase}, {half} layers"
            single = 1 if rows.loc[name, "edges"] in (0, rows.loc[name, "of"]) else DRAWS
            found[name] = left[:single], left[single : single + DRAWS]
            left = left[single + DRAWS :]
    assert not left
    return found


def errors_by_hand(curve: sl.DensityCurve, gone: Tensor) -> list[float]:
    """The errors of the trace at the end of refinement without some edges, by the density curve."""
    tail = find_phases(curve).tail
    assert tail is not None
    order = order_of(curve.trace.ranks)
    kept = order[: tail.last]
    kept, out = kept[~gone[kept]], kept[gone[kept]]
    reranked = ranks_of(torch.cat([kept, order[tail.last :], out]), curve.trace.shape)
    trace = dataclasses.replace(curve.trace, ranks=reranked)
    size = (len(kept) + 0.5) / trace.edges
    by_hand = sl.density_curve(
        tiny.bridge("llama"), trace, sizes=[size], refine=0, controls=False, keep=curve.keep
    ).table
    assert by_hand["edges"].tolist() == [len(kept)]
    return by_hand[ERRORS].iloc[0].tolist()


def test_halves_lose_their_own_edges_and_controls_as_many_others(kept, monkeypatch):
    table, runs = recorded(kept, monkeypatch)
    (nothing, everything), *_ = runs
    tail = find_phases(kept).tail
    assert tail is not None
    kinds, _ = kinds_and_layers(kept)
    can_go = (kept.trace.ranks.flat() < tail.last) & ~torch.tensor([k in kept.keep for k in kinds])
    assert not nothing.any()
    assert torch.equal(everything, can_go)
    rows = table.set_index("ablated")
    assert rows.loc["everything", ["of", "edges"]].tolist() == 2 * [int(can_go.sum())]
    assert (table["keep"] == keep_text(kept.keep)).all()
    for name, (sets, controls) in drawn_sets(table, runs).items():
        part = part_of(kept, name)
        assert rows.loc[name, "of"] == int(part.sum())
        for gone in sets:
            assert int(gone.sum()) == rows.loc[name, "edges"]
            assert not (gone & ~part).any()
        assert len({tuple(gone.tolist()) for gone in sets}) == len(sets)
        for i, control in enumerate(controls):
            gone = sets[i % len(sets)]
            assert not (control & (gone | ~can_go)).any()
            others = strata(kept, can_go & ~gone)
            wanted = {where: min(n, others[where]) for where, n in strata(kept, gone).items()}
            assert strata(kept, control) == Counter(wanted)
        sizes = [int(control.sum()) for control in controls]
        assert rows.loc[name, "matched_edges"] == pytest.approx(np.mean(sizes))


@pytest.mark.extended
def test_the_table_is_that_of_masks_made_by_hand(kept, monkeypatch):
    table, runs = recorded(kept, monkeypatch)
    rows = table.set_index("ablated")
    for name, gone in zip(("nothing", "everything"), runs[0], strict=True):
        expected = errors_by_hand(kept, gone)
        assert rows.loc[name, ERRORS].tolist() == pytest.approx(expected, abs=2e-6)
        assert rows.loc[name, [c for c in COLUMNS if c[:7] == "matched"]].isna().all()
    for name, of_half in drawn_sets(table, runs).items():
        for prefix, sets in zip(("", "matched_"), of_half, strict=True):
            errors = np.array([errors_by_hand(kept, gone) for gone in sets])
            expected = pd.DataFrame(errors, columns=ERRORS)
            for column in ERRORS:
                assert rows.loc[name, prefix + column] == pytest.approx(
                    expected[column].mean(), abs=4e-6
                )
            for column in ERRORS[1:]:
                ends = rows.loc[name, [f"{prefix}{column}_low", f"{prefix}{column}_high"]]
                assert ends.tolist() == pytest.approx(
                    [expected[column].min(), expected[column].max()], abs=4e-6
                )


def test_the_number_is_halved_until_the_output_is_left(kept, monkeypatch):
    table, runs = recorded(kept, monkeypatch)
    rows = table.set_index("ablated")
    limit = 0.9 * rows.loc["everything", "tv"]
    halved = []
    for phase in ("refinement", "head"):
        early, late = (rows.loc[f"{phase}, {half} layers"] for half in ("early", "late"))
        count, most = early["edges"], min(early["of"], late["of"])
        assert late["edges"] == count
        if count == most:
            continue
        halved.append(phase)
        numbers = [most]
        while numbers[-1] // 2 >= max(8, most / 100):
            numbers.append(numbers[-1] // 2)
        assert count in numbers
        if count != numbers[-1]:
            assert max(early["matched_tv"], late["matched_tv"]) < limit
            assert min(early["tv"], late["tv"]) < limit
        # Some control of the next larger number was run, and it destroys the output.
        larger = numbers[numbers.index(count) - 1]
        probes = [gone for sets in runs[1:] for gone in sets if count < int(gone.sum()) <= larger]
        assert max(errors_by_hand(kept, gone)[0] for gone in probes) >= limit
    assert halved or kept.keep == ("attention",)


def planted() -> tuple[Any, sl.DensityCurve, Phases]:
    """A model in which one head of the first layer all but alone writes, and a trace of it.

    Its head subgraph holds the edges of that head and as many edges of the later layers; the
    refinement adds the rest. Residual edges are kept.
    """
    hf = tiny.BRIDGES["llama"]()
    width = hf.config.hidden_size // hf.config.num_attention_heads
    with torch.no_grad():
        for number, layer in enumerate(hf.model.layers):
            layer.self_attn.o_proj.weight[:, width if number == 0 else 0 :] *= 1e-3
            layer.mlp.down_proj.weight *= 1e-3
    model = cases.bridge_of(hf, "planted")
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(8)))
    wrote = torch.zeros_like(trace.ranks.attention, dtype=torch.bool)
    wrote[0, 0] = True
    wrote &= trace.shape.reachable().attention
    first = EdgeTensors(
        wrote, *(torch.zeros_like(x, dtype=torch.bool) for x in trace.ranks[1:])
    ).flat()
    order = order_of(trace.ranks)
    mine = order[first[order]]
    later = order[trace.shape.layer_of().flat()[order] > 0]
    later = later[later < trace.ranks.attention.numel()][: len(mine)]
    rest = order[~torch.isin(order, torch.cat([mine, later]))]
    reranked = ranks_of(torch.cat([mine, later, rest]), trace.shape)
    trace = dataclasses.replace(trace, ranks=reranked)
    sizes = [(2 * len(mine) + 0.5) / trace.edges, 1.0]
    curve = sl.density_curve(
        model, trace, sizes=sizes, refine=0, controls=False, keep=("residual",)
    )
    tail = find_phases(curve).tail
    head = find_phases(curve).head
    assert head is not None
    assert tail is not None
    assert head.last == 2 * len(mine)
    # Head and tail are restored at once; a later end leaves other edges to draw a control from.
    tail = dataclasses.replace(tail, last=trace.edges)
    return model, curve, dataclasses.replace(find_phases(curve), tail=tail)


def test_a_half_that_alone_matters_is_found_and_its_control_does_nothing(monkeypatch):
    model, curve, phases = planted()
    monkeypatch.setattr(causal, "find_phases", lambda _: phases)
    table = phase_ablation(model, curve, seed=SEED)
    rows = table.set_index("ablated")
    early, late = (rows.loc[f"head, {half} layers"] for half in ("early", "late"))
    assert early["of"] == early["edges"] == early["matched_edges"] == late["edges"] > 0
    assert early["head_error"] > 0.05
    assert early["tv"] == pytest.approx(rows.loc["everything", "tv"], abs=5e-3)
    assert early["matched_tv"] == pytest.approx(rows.loc["nothing", "tv"], abs=5e-3)
    assert late["tv"] == pytest.approx(rows.loc["nothing", "tv"], abs=5e-3)
    _, head = read_ablation(table)
    assert "the early edges matter more, which supports, on this prompt" in head
    assert "the early edges matter more and the late ones cannot be told apart." in head
    assert head.startswith(f"With residual edges in place, without {early['edges']} early edges")


def test_a_seed_gives_the_same_table_and_another_one_other_draws(curve, table):
    model = tiny.bridge("llama")
    assert table.equals(phase_ablation(model, curve, seed=SEED))
    other = phase_ablation(model, curve, seed=SEED + 1)
    halves = table["ablated"].str.contains("layers")
    assert (other["matched_tv"] != table["matched_tv"])[halves].all()
    assert other[["ablated", "of"]].equals(table[["ablated", "of"]])


@pytest.mark.parametrize(
    ("early", "late", "empty"),
    [(0, 3, "early"), (3, 0, "late"), (0, 0, "early and late")],
)
def test_a_phase_without_edges_in_a_half_ablates_none_and_compares_none(
    curve, monkeypatch, early, late, empty
):
    trace = curve.trace
    layers = trace.shape.layer_of().flat()
    order = order_of(trace.ranks)
    is_early = layers[order] < trace.shape.layers // 2
    tail = torch.cat([order[is_early][:early], order[~is_early][:late]])
    head = order[~torch.isin(order, tail)]
    reranked = dataclasses.replace(trace, ranks=ranks_of(torch.cat([tail, head]), trace.shape))
    short = dataclasses.replace(curve, trace=reranked)
    found = find_phases(curve)
    assert found.head is not None

    def phase(name: str, first: int, last: int) -> LayerPhase:
        assert found.head is not None
        return dataclasses.replace(found.head, name=name, first=first, last=last)

    count = len(tail)
    phases = dataclasses.replace(
        found,
        head=phase("head subgraph", count, count + 60),
        tail=phase("tail refinement", 0, count),
    )
    monkeypatch.setattr(causal, "find_phases", lambda _: phases)
    table = phase_ablation(tiny.bridge("llama"), short)
    rows = table.set_index("ablated")
    for half, of in (("early", early), ("late", late)):
        row = rows.loc[f"refinement, {half} layers"]
        assert (row["of"], row["edges"]) == (of, 0)
        assert row[ERRORS].tolist() == pytest.approx(rows.loc["nothing", ERRORS].tolist(), abs=1e-6)
        assert row["matched_edges"] == 0
        assert row["matched_tv"] == pytest.approx(row["tv"], abs=1e-6)
    assert read_ablation(table)[0] == (
        f"The refinement has no edges to ablate in the {empty} layers."
    )


def test_curves_that_share_passes_have_the_tables_of_each_alone(curve, table, monkeypatch):
    """One of another prompt, one that keeps a kind of edges, and one without a table."""
    model, passes, run = tiny.bridge("llama"), [], causal.masked_logits
    trace = sl.extract(sl.token_graph(model, tiny.token_ids(6)))
    short = dataclasses.replace(curve, table=curve.table.iloc[:3])
    curves = [curve, short, curve_of(curve.trace, keep=("attention",)), curve_of(trace)]
    alone = [phase_ablation(model, one, seed=SEED) for one in curves]

    def count(*given: Any, **options: Any):
        passes.append(given)
        return run(*given, **options)

    monkeypatch.setattr(causal, "masked_logits", count)
    tables = phase_ablations(model, curves, seed=SEED)
    rounds = len(passes)
    for one, own in zip(tables, alone, strict=True):
        pd.testing.assert_frame_equal(one, own, atol=1e-6, check_exact=False)
    passes.clear()
    for one in curves:
        phase_ablation(model, one, seed=SEED)
    assert rounds < len(passes)
    assert phase_ablations(model, []) == []


def test_a_curve_that_restores_nothing_has_no_table_and_no_sentences(curve):
    short = dataclasses.replace(curve, table=curve.table.iloc[:3])
    empty = phase_ablation(tiny.bridge("llama"), short)
    assert empty.columns.tolist() == list(COLUMNS)
    assert len(empty) == 0
    assert read_ablation(empty) == read_ablation(pd.DataFrame()) == []


def drawn(name: str, mean: float, spread: float = 0.01) -> dict[str, float]:
    """The columns of an error whose draws spread evenly about a mean."""
    return {name: mean, f"{name}_low": mean - spread, f"{name}_high": mean + spread}


def made(keep: str = "none", **changes: dict[str, float]) -> pd.DataFrame:
    """A table whose refinement and head are alike; `changes` are made to rows by short names."""
    names = {
        "early_refinement": "refinement, early layers",
        "late_refinement": "refinement, late layers",
        "early_head": "head, early layers",
        "late_head": "head, late layers",
        "everything": "everything",
    }
    row = {
        **{"of": 1200, "edges": 1200, "tv": 0.3, "matched_edges": 1200, "matched_tv": 0.3},
        **{k: v for p in ("", "matched_") for k, v in drawn(f"{p}head_error", 0.1).items()},
        **{k: v for p in ("", "matched_") for k, v in drawn(f"{p}tail_error", 0.2).items()},
    }
    rows = [{"ablated": "nothing", "of": 0, "edges": 0, **dict.fromkeys(ERRORS, 0.01)}]
    for short, name in names.items():
        rows.append({"ablated": name, **row, **changes.get(short, {})})
    rows[-1] = {
        "ablated": "everything",
        **{"of": 9000, "edges": 9000, "tv": 0.8, "head_error": 0.4, "tail_error": 0.4},
        **changes.get("everything", {}),
    }
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).assign(keep=keep)


@pytest.mark.parametrize(
    ("half", "error", "verdict", "beside"),
    [
        (
            "late",
            0.25,
            "the late edges matter more, which supports",
            "the early edges cannot be told apart and the late ones matter more.",
        ),
        (
            "early",
            0.25,
            "the early edges matter more, which contradicts",
            "the early edges matter more and the late ones cannot be told apart.",
        ),
        (
            "late",
            0.15,
            "the early edges matter more, which contradicts",
            "the early edges cannot be told apart and the late ones matter less.",
        ),
        ("late", 0.219, "cannot be told apart, which leaves open whether", "both cannot be told"),
        ("early", 0.181, "cannot be told apart, which leaves open whether", "both cannot be told"),
    ],
)
def test_the_refinement_is_judged_by_the_tail_beyond_its_draws(half, error, verdict, beside):
    # The head's error of the same row would say the opposite: it must not be looked at.
    changed = drawn("tail_error", error) | drawn("head_error", 0.9 - 3 * error)
    refinement, head = read_ablation(made(**{f"{half}_refinement": changed}))
    assert "Without 1,200 early edges of the refinement the tail error is" in refinement
    assert verdict in refinement
    assert "late layers refine the tail. Without other edges of the trace, as many" in refinement
    assert f"compared with these, {beside}" in refinement
    assert "cannot be told apart" in head


@pytest.mark.parametrize(
    ("half", "verdict"),
    [
        ("early", "the early edges matter more, which supports, on this prompt, that early layers"),
        ("late", "the late edges matter more, which contradicts, on this prompt, that early"),
    ],
)
def test_the_head_is_judged_by_the_head(half, verdict):
    refinement, head = read_ablation(made(**{f"{half}_head": drawn("head_error", 0.13)}))
    assert verdict in head
    assert "early layers build the head. Without" in head
    assert "cannot be told apart" in refinement


def test_each_half_is_compared_with_its_own_control():
    table = made(
        early_head=drawn("matched_head_error", 0.03), late_head=drawn("matched_head_error", 0.3)
    )
    assert read_ablation(table)[1] == (
        "Without 1,200 early edges of the head subgraph the head error is 0.1 (0.09 to 0.11), "
        "without as many late ones 0.1 (0.09 to 0.11): early and late edges cannot be told apart, "
        "which leaves open whether early layers build the head. Without other edges of the trace, "
        "as many of the same kinds in the same layers, it is 0.03 (0.02 to 0.04) and 0.3 (0.29 to "
        "0.31): compared with these, the early edges matter more and the late ones matter less."
    )


def test_errors_whose_draws_overlap_do_not_differ_and_tiny_differences_are_none():
    table = made(early_refinement=drawn("tail_error", 0.25, 0.04))
    refinement, _ = read_ablation(table)
    assert "is 0.25 (0.21 to 0.29), without as many late ones 0.2 (0.19 to 0.21): early" in (
        refinement
    )
    assert "early and late edges cannot be told apart" in refinement
    apart = made(
        early_refinement=drawn("tail_error", 0.205, 0), late_refinement=drawn("tail_error", 0.2, 0)
    )
    refinement, _ = read_ablation(apart)
    assert "is 0.2, without as many late ones 0.2: early and late edges cannot be" in refinement


def test_a_number_below_that_of_the_halves_is_told():
    few = {"edges": 150, "matched_edges": 150}
    _, head = read_ablation(made(early_head=few, late_head=few))
    assert head.startswith(
        "Without 150 early edges of the head subgraph (of twice as many, one draw destroys the "
        "output) the head error is"
    )


def test_a_control_of_fewer_edges_is_told_and_not_compared_if_too_few():
    _, head = read_ablation(made(early_head={"matched_edges": 1150}))
    assert "Without other edges of the trace, 1,150 and 1,200 (there are no more) of" in head
    _, head = read_ablation(made(early_head={"matched_edges": 1000.4}))
    assert head.endswith(
        "The trace has too few other edges of the same kinds in the same layers to compare them "
        "with: 1,000 and 1,200."
    )


def test_kinds_of_edges_that_stay_in_place_are_told():
    refinement, head = read_ablation(made("attention+mlp"))
    start = "With attention and MLP edges in place, without 1,200 early edges of the"
    assert refinement.startswith(f"{start} refinement the tail error")
    assert head.startswith(f"{start} head subgraph the head error")


def test_a_control_that_destroys_the_output_resolves_nothing():
    gone = {"matched_tv": 0.73} | drawn("head_error", 0.3)
    refinement, head = read_ablation(made(late_head=gone))
    assert head == (
        "Ablation of the head subgraph resolves nothing: even without 1,200 other edges of the "
        "trace, of the kinds and layers of its late half, the output is destroyed (TV 0.730; 0.800 "
        "without the whole trace), which leaves open whether early layers build the head."
    )
    assert "cannot be told apart" in refinement
    # 0.73 is no more than nine tenths of what ablating everything leaves on another prompt.
    _, head = read_ablation(made(late_head=gone, everything={"tv": 0.99}))
    assert "resolves nothing" not in head


def test_halves_that_both_destroy_the_output_resolve_nothing():
    both = made(early_refinement={"tv": 0.8}, late_refinement={"tv": 0.75})
    refinement, _ = read_ablation(both)
    assert "even without 1,200 early edges or as many late ones the output is" in refinement
    one = made(early_refinement={"tv": 0.8} | drawn("tail_error", 0.4))
    assert "the early edges matter more" in read_ablation(one)[0]


def test_80_columns_have_room_for_the_table_of_a_large_trace(curve, capsys):
    large = {"of": 1_234_567, "edges": 1_234_567}
    print_curve(curve, find_phases(curve), made(early_refinement=large, everything=large))
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.strip().startswith("refinement, early")]
    assert row.split()[2:] == [*("1,234,567", "0.300", "0.100", "0.200", "0.300", "0.100", "0.200")]
    assert len(row.rstrip()) <= 80
    (nothing,) = [line.split() for line in lines if line.strip().startswith("nothing")]
    assert nothing == ["nothing", "0", "0.010", "0.010", "0.010", *3 * "-"]
    assert not any("…" in line for line in lines)


def test_the_sentences_are_in_every_result(curve, table, capsys):
    told = read_ablation(table)
    assert len(told) == 2
    phases = find_phases(curve)
    found = json.loads(json.dumps(summarize(curve, phases, table), allow_nan=False))
    assert found["phase_ablation_reading"] == told
    assert [row["edges"] for row in found["phase_ablation"]] == table["edges"].tolist()
    print_curve(curve, phases, table)
    shown = " ".join(capsys.readouterr().out.split())
    page = trace_report(curve, phases, table)
    for sentence in told:
        assert sentence in shown
        assert f"<p>{sentence}</p>" in page
