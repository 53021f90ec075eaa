"""The causal check: its sets of edges, its numbers against masks made by hand, its sentences."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import strace_lens as sl
from strace_lens import causal
from strace_lens.causal import COLUMNS, DRAWS, phase_ablation, read_ablation
from strace_lens.phases import LayerPhase, find_phases
from strace_lens.tables import print_curve
from strace_lens.token_graph.edges import order_of, ranks_of
from strace_lens.token_graph.rows import MaskedRows
from tests import tiny

SEED = 1
ERRORS = ["tv", "head_error", "tail_error"]


def curve_of(trace: sl.Trace) -> sl.DensityCurve:
    sizes = np.linspace(0.02, 1, 50).tolist()
    return sl.density_curve(tiny.bridge("llama"), trace, sizes=sizes, refine=0, controls=False)


@pytest.fixture(scope="module")
def curve() -> sl.DensityCurve:
    """The curve of a tiny model, on a grid fine enough for its few edges."""
    return curve_of(sl.extract(sl.token_graph(tiny.bridge("llama"), tiny.token_ids(8))))


@pytest.fixture(scope="module")
def table(curve) -> pd.DataFrame:
    return phase_ablation(tiny.bridge("llama"), curve, seed=SEED)


@dataclasses.dataclass(frozen=True)
class Part:
    """Which edges may be ablated, as flags over the flat graph, and how many of them at a time."""

    name: str
    edges: Tensor
    count: int

    @property
    def runs(self) -> int:
        return DRAWS if 0 < self.count < int(self.edges.sum()) else 1


def parts_of(curve: sl.DensityCurve) -> list[Part]:
    """The halves of each phase and the whole of it, in the order in which they are run."""
    phases, trace = find_phases(curve), curve.trace
    ranks, layers = trace.ranks.flat(), trace.shape.layer_of().flat()
    parts = []
    for name, phase in (("refinement", phases.tail), ("head", phases.head)):
        assert phase is not None
        inside = (ranks >= phase.first) & (ranks < phase.last)
        early = inside & (layers < trace.shape.layers // 2)
        late = inside & (layers >= trace.shape.layers // 2)
        count = min(int(early.sum()), int(late.sum()))
        parts += [
            Part(f"{name}, early layers", early, count),
            Part(f"{name}, late layers", late, count),
            Part(name, inside, count),
        ]
    return parts


def ablated_sets(curve: sl.DensityCurve, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What each masked run of the check leaves out of the trace: flags over the flat graph."""
    runs: list[MaskedRows] = []
    run = causal.masked_logits

    def recorded(model: Any, architecture: Any, groups: Sequence[MaskedRows], **options: Any):
        runs.extend(groups)
        return run(model, architecture, groups, **options)

    monkeypatch.setattr(causal, "masked_logits", recorded)
    phase_ablation(tiny.bridge("llama"), curve, seed=SEED)
    tail = find_phases(curve).tail
    assert tail is not None
    whole = curve.trace.ranks.flat() < tail.last
    kept = [rows.ranks.flat() == 0 for rows in runs]
    assert all(not (k & ~whole).any() for k in kept)
    return [whole & ~k for k in kept]


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
        tiny.bridge("llama"), trace, sizes=[size], refine=0, controls=False
    ).table
    assert by_hand["edges"].tolist() == [len(kept)]
    return by_hand[ERRORS].iloc[0].tolist()


def test_halves_and_control_lose_equally_many_edges_of_their_own_phase(curve, table, monkeypatch):
    nothing, *runs, everything = ablated_sets(curve, monkeypatch)
    parts = parts_of(curve)
    assert not nothing.any()
    assert len(runs) == sum(part.runs for part in parts)
    assert any(part.runs == 1 for part in parts)  # the smaller half of a phase is ablated whole
    assert int(everything.sum()) == table.set_index("ablated").loc["everything", "edges"]
    for part in parts:
        assert part.count > 0
        sets, runs = runs[: part.runs], runs[part.runs :]
        for gone in sets:
            assert int(gone.sum()) == part.count
            assert not (gone & ~part.edges).any()
        if part.runs > 1:
            assert len({tuple(gone.tolist()) for gone in sets}) > 1
    rows = table.set_index("ablated")
    for part in parts:
        if part.name in rows.index:
            assert rows.loc[part.name, "of"] == int(part.edges.sum())
            assert rows.loc[part.name, "edges"] == part.count


def test_the_table_is_that_of_masks_made_by_hand(curve, table, monkeypatch):
    nothing, *runs, everything = ablated_sets(curve, monkeypatch)
    rows = table.set_index("ablated")
    for name, gone in (("nothing", nothing), ("everything", everything)):
        assert rows.loc[name, ERRORS].tolist() == pytest.approx(
            errors_by_hand(curve, gone), abs=2e-6
        )
        assert rows.loc[name, [c for c in COLUMNS if c[:6] == "random"]].isna().all()
    errors = {}
    for part in parts_of(curve):
        errors[part.name] = np.array([errors_by_hand(curve, gone) for gone in runs[: part.runs]])
        runs = runs[part.runs :]
    for phase in ("refinement", "head"):
        halves = [f"{phase}, {half} layers" for half in ("early", "late")]
        spread = np.max([np.ptp(errors[name], axis=0) for name in (*halves, phase)], axis=0)
        assert (spread > 1e-4).any()
        for name in halves:
            for columns, expected in (
                (ERRORS, errors[name].mean(0)),
                ([f"random_{c}" for c in ERRORS], errors[phase].mean(0)),
                ([f"{c}_spread" for c in ERRORS], spread),
            ):
                assert rows.loc[name, columns].tolist() == pytest.approx(expected, abs=4e-6)


def test_a_seed_gives_the_same_table_and_another_one_other_draws(curve, table):
    model = tiny.bridge("llama")
    assert table.equals(phase_ablation(model, curve, seed=SEED))
    other = phase_ablation(model, curve, seed=SEED + 1)
    halves = table["ablated"].str.contains("layers")
    assert (other["random_tv"] != table["random_tv"])[halves].all()
    assert other[["ablated", "of", "edges"]].equals(table[["ablated", "of", "edges"]])


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
        assert row[ERRORS].tolist() == rows.loc["nothing", ERRORS].tolist()
        assert row["tv_spread"] == 0
    assert read_ablation(table)[0] == (
        f"The refinement has no edges in the {empty} layers to be compared."
    )


def test_a_curve_that_restores_nothing_has_no_table_and_no_sentences(curve):
    short = dataclasses.replace(curve, table=curve.table.iloc[:3])
    empty = phase_ablation(tiny.bridge("llama"), short)
    assert empty.columns.tolist() == list(COLUMNS)
    assert len(empty) == 0
    assert read_ablation(empty) == read_ablation(pd.DataFrame()) == []


def made(**changes: dict[str, float]) -> pd.DataFrame:
    """A table whose refinement and head are alike; `changes` are made to rows by short names."""
    names = {
        "early_refinement": "refinement, early layers",
        "late_refinement": "refinement, late layers",
        "early_head": "head, early layers",
        "late_head": "head, late layers",
        "everything": "everything",
    }
    row = {
        **{"of": 3000, "edges": 1200, "tv": 0.3, "head_error": 0.1, "tail_error": 0.2},
        **{"random_tv": 0.3, "random_head_error": 0.1, "random_tail_error": 0.2},
        **{"tv_spread": 0.03, "head_error_spread": 0.02, "tail_error_spread": 0.02},
    }
    rows = [{"ablated": "nothing", "of": 0, "edges": 0, **dict.fromkeys(ERRORS, 0.01)}]
    for short, name in names.items():
        rows.append({"ablated": name, **row, **changes.get(short, {})})
    rows[-1] = {
        "ablated": "everything",
        **{"of": 9000, "edges": 9000, "tv": 0.8, "head_error": 0.4, "tail_error": 0.4},
        **changes.get("everything", {}),
    }
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


ALIKE = "compared with edges from all layers, both cannot be told apart."
TOGETHER = "the early ones cannot be told apart and the late ones matter {}."


@pytest.mark.parametrize(
    ("half", "error", "verdict", "beside"),
    [
        ("late", 0.25, "the late edges matter more, which supports", TOGETHER.format("more")),
        (
            "early",
            0.25,
            "the early edges matter more, which contradicts",
            "the early ones matter more and the late ones cannot be told apart.",
        ),
        ("late", 0.15, "the early edges matter more, which contradicts", TOGETHER.format("less")),
        ("late", 0.219, "cannot be told apart, which leaves open whether", ALIKE),
        ("early", 0.181, "cannot be told apart, which leaves open whether", ALIKE),
    ],
)
def test_the_refinement_is_judged_by_the_tail_beyond_the_spread(half, error, verdict, beside):
    # The head's error of the same row would say the opposite: it must not be looked at.
    changed = {"tail_error": error, "head_error": 0.9 - 3 * error}
    refinement, head = read_ablation(made(**{f"{half}_refinement": changed}))
    assert "1,200 early edges of the refinement the tail error is" in refinement
    assert verdict in refinement
    assert "late layers refine the tail; compared" in refinement
    assert beside in refinement
    assert "cannot be told apart" in head


@pytest.mark.parametrize(
    ("half", "verdict"),
    [
        ("early", "the early edges matter more, which supports, on this prompt, that early layers"),
        ("late", "the late edges matter more, which contradicts, on this prompt, that early"),
    ],
)
def test_the_head_is_judged_by_the_head(half, verdict):
    refinement, head = read_ablation(made(**{f"{half}_head": {"head_error": 0.13}}))
    assert verdict in head
    assert "early layers build the head; compared" in head
    assert "cannot be told apart" in refinement


def test_errors_within_the_spread_of_the_draws_do_not_differ():
    apart = {"tail_error": 0.25}
    wide = {"tail_error_spread": 0.06}
    table = made(early_refinement=apart | wide, late_refinement=wide)
    refinement, _ = read_ablation(table)
    assert "cannot be told apart" in refinement
    assert "(draws spread over 0.06)" in refinement


def test_a_control_that_destroys_the_output_resolves_nothing():
    gone = {"random_tv": 0.73, "head_error": 0.3}
    refinement, head = read_ablation(made(early_head=gone, late_head=gone))
    assert head == (
        "Ablation of the head subgraph resolves nothing: without 1,200 of its edges from all "
        "layers the output is destroyed (TV 0.730, 0.800 without any edge), which leaves open "
        "whether early layers build the head."
    )
    assert "cannot be told apart" in refinement
    # 0.73 is no more than nine tenths of what ablating everything leaves on another prompt.
    _, head = read_ablation(made(early_head=gone, late_head=gone, everything={"tv": 0.99}))
    assert "resolves nothing" not in head


def test_halves_that_both_destroy_the_output_resolve_nothing():
    both = made(early_refinement={"tv": 0.8}, late_refinement={"tv": 0.75})
    refinement, _ = read_ablation(both)
    assert "without 1,200 of its early or as many of its late edges the output is" in refinement
    one = made(early_refinement={"tv": 0.8, "tail_error": 0.4})
    assert "the early edges matter more" in read_ablation(one)[0]


def test_a_terminal_has_room_for_the_table_of_a_large_trace(curve, capsys):
    large = {"of": 1_234_567, "edges": 1_234_567, "head_error_spread": 1e-5}
    print_curve(curve, curve.phases(), made(early_refinement=large, everything=large))
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.split() for line in lines if line.strip().startswith("refinement, early")]
    assert row[3:] == [
        *("1,234,567", "1,234,567", "0.300", "0.100", "0.200", "0.100", "0.200"),
        *("0.000", "0.020"),
    ]
    (nothing,) = [line.split() for line in lines if line.strip().startswith("nothing")]
    assert nothing == ["nothing", "0", "0", "0.010", "0.010", "0.010", *4 * "-"]
    assert not any("…" in line for line in lines)


def test_the_sentences_are_in_every_result(curve, table, capsys):
    told = read_ablation(table)
    assert len(told) == 2
    phases = curve.phases()
    found = json.loads(json.dumps(sl.summarize(curve, phases, table), allow_nan=False))
    assert found["phase_ablation_reading"] == told
    assert [row["edges"] for row in found["phase_ablation"]] == table["edges"].tolist()
    print_curve(curve, phases, table)
    shown = " ".join(capsys.readouterr().out.split())
    page = sl.trace_report(curve, phases, table)
    for sentence in told:
        assert sentence in shown
        assert f"<p>{sentence}</p>" in page
