"""Density curves against each size run alone and measured by hand, on tiny models."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import strace_lens as sl
from strace_lens.density.phases import find_phases
from strace_lens.model.checks import architecture_of
from strace_lens.model.forward import last_logits
from strace_lens.report.summary import summarize
from strace_lens.traces.edges import EdgeTensors
from strace_lens.traces.masked_run import masked_logits
from strace_lens.traces.rows import MaskedRows
from strace_lens.utils.choices import KINDS
from tests import tiny
from tests.cases import random_ranks

SIZES = (0.02, 0.1, 0.3, 0.7, 1.0)
CONTROLS = ("random", "inverse", "random_inverse")


def trace_of(name: str, length: int = 7, seed: int = 0) -> sl.Trace:
    return sl.extract(sl.token_graph(tiny.bridge(name), tiny.token_ids(length, seed)))


def probabilities(name: str, trace: sl.Trace, kept: EdgeTensors) -> torch.Tensor:
    """The output of one mask, run alone: rank 0 is kept and rank 1 is not."""
    rows = MaskedRows(
        tokens=trace.prompt.tensor,
        shape=trace.shape,
        ranks=kept.map(lambda k: (~k).int()),
        start=torch.zeros(1, dtype=torch.int32),
        stop=torch.ones(1, dtype=torch.int32),
    )
    model = tiny.bridge(name)
    return masked_logits(model, architecture_of(model), [rows])[0].double().softmax(-1)


def with_kinds(kept: EdgeTensors, kinds: tuple[str, ...]) -> EdgeTensors:
    """A mask that also keeps every edge of some kinds."""
    return kept._replace(**{kind: torch.ones_like(getattr(kept, kind)) for kind in kinds})


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "keep"),
    [
        *((name, ()) for name in ["llama", "mistral", "gptj", "gpt2", "gemma2"]),
        *((name, ("attention",)) for name in ["llama", "mistral", "gptj", "gpt2", "gemma2"]),
        ("llama", ("mlp",)),
        ("gpt2", ("residual",)),
        ("gptj", ("residual", "mlp")),
        ("llama", ("residual", "attention", "mlp")),
    ],
)
def test_every_size_and_control_equals_its_mask_run_alone(name, keep):
    trace = trace_of(name)
    curve = sl.density_curve(tiny.bridge(name), trace, sizes=SIZES, seed=3, keep=keep)
    assert curve.keep == keep
    kinds = (*keep, "residual")
    arch = architecture_of(tiny.bridge(name))
    full = last_logits(tiny.bridge(name), arch, trace.prompt.tensor[None])[0].double().softmax(-1)
    order = full.sort(descending=True, stable=True)
    head = order.indices[: int((order.values.cumsum(0) < 0.5).sum()) + 1]
    for row, top in zip(curve.table.to_dict("records"), curve.tops, strict=True):
        k = math.floor(row["size"] * trace.edges)
        assert row["edges"] == k
        first = trace.ranks.map(lambda r, k=k: r < k)
        ours = probabilities(name, trace, with_kinds(first, keep))
        can = [kind for kind in KINDS if kind not in keep]
        held, of = (
            sum(int(getattr(edges, kind).sum()) for kind in can)
            for edges in (first, trace.shape.reachable())
        )
        assert row["ablatable_size"] == pytest.approx(held / of if of else 1)
        gap = (full - ours).abs() / 2
        assert row["tv"] == pytest.approx(float(gap.sum()), abs=2e-6)
        assert row["head_error"] == pytest.approx(float(gap[head].sum()), abs=2e-6)
        assert row["head_error"] + row["tail_error"] == pytest.approx(row["tv"], abs=1e-9)
        assert row["kl"] == pytest.approx(float((full * (full / ours).log()).sum()), abs=2e-5)
        assert row["top1"] == bool(full.argmax() == ours.argmax())
        assert top[0][1] == pytest.approx(float(ours.max()), abs=2e-6)
        assert row["trace_head_mass"] == pytest.approx(float(ours[head].sum()), abs=2e-6)
        if row["refined"]:
            assert all(math.isnan(row[f"{one}_tv"]) for one in CONTROLS)
            continue
        grown = random_ranks(trace.shape, 3, k).map(lambda r, k=k: r < k)
        rest = first.map(torch.logical_not)
        for control, kept in zip(
            CONTROLS, (grown, rest, grown.map(torch.logical_not)), strict=True
        ):
            put_out = probabilities(name, trace, with_kinds(kept, kinds))
            tv = float((full - put_out).abs().sum() / 2)
            assert row[f"{control}_tv"] == pytest.approx(tv, abs=2e-6)
    assert curve.table["refined"].any() or len(can) < 2
    assert curve.table["size"].tolist() == sorted(curve.table["size"])
    assert curve.table["tv"].iloc[-1] < 1e-5
    assert curve.logit_gap < 1e-4


@pytest.mark.parametrize("refine", [0, 1, 4])
def test_no_more_sizes_are_added_than_asked_for(refine):
    model, trace = tiny.bridge("llama"), trace_of("llama")
    curve = sl.density_curve(model, trace, sizes=SIZES, refine=refine)
    table = curve.table
    assert table["refined"].sum() == refine
    assert table[~table["refined"]]["size"].tolist() == list(SIZES)
    fixed = sl.density_curve(model, trace, sizes=SIZES, refine=0).table
    same = table[~table["refined"]].drop(columns="refined").reset_index(drop=True)
    assert same.equals(fixed.drop(columns="refined"))
    with pytest.raises(ValueError, match="refine must be at least 0; got -1"):
        sl.density_curve(model, trace, sizes=SIZES, refine=-1)


def test_composition_columns_count_the_edges_of_the_trace():
    trace = trace_of("llama")
    curve = sl.density_curve(tiny.bridge("llama"), trace, sizes=SIZES, controls=False)
    layer_of = trace.shape.layer_of()
    for row in curve.table.to_dict("records"):
        kept = trace.subgraph(row["size"]).kept
        total = sum(int(k.sum()) for k in kept)
        for kind in ("residual", "attention", "mlp"):
            assert row[kind] == pytest.approx(int(getattr(kept, kind).sum()) / total)
        layers = torch.cat([lo[k] for lo, k in zip(layer_of, kept, strict=True)])
        assert row["mean_layer"] == pytest.approx(float(layers.double().mean()))
    assert curve.table["random_tv"].isna().all()


@pytest.mark.extended
def test_prompts_of_unequal_length_share_passes_and_stay_themselves():
    model = tiny.bridge("llama")
    traces = [trace_of("llama", length, seed) for length, seed in ((5, 1), (9, 2), (3, 3))]
    together = sl.density_curves(model, traces, sizes=SIZES)
    for trace, curve in zip(traces, together, strict=True):
        alone = sl.density_curve(model, trace, sizes=SIZES, memory_budget=1)  # one row a pass
        assert curve.table["refined"].any()
        for column in ("size", "refined", "tv", "kl", "random_tv", "inverse_tv", "nucleus"):
            assert curve.table[column].to_numpy() == pytest.approx(
                alone.table[column].to_numpy(), abs=5e-6, nan_ok=True
            )


def test_the_same_seed_gives_the_same_table_and_another_seed_another_control():
    model, trace = tiny.bridge("llama"), trace_of("llama")
    first, again, other = (
        sl.density_curve(model, trace, sizes=SIZES, seed=seed) for seed in (0, 0, 1)
    )
    assert first.table.equals(again.table)
    assert first.table["tv"].equals(other.table["tv"])
    assert not first.table["random_tv"].equals(other.table["random_tv"])


def test_density_is_the_area_under_the_table():
    curve = sl.density_curve(tiny.bridge("llama"), trace_of("llama"), sizes=SIZES)
    logs = [math.log10(s) for s in curve.table["size"]]
    tv = curve.table["tv"].tolist()
    area = sum((tv[i] + tv[i + 1]) / 2 * (logs[i + 1] - logs[i]) for i in range(len(tv) - 1))
    assert len(tv) > len(SIZES)  # the refined sizes count too
    assert curve.density == pytest.approx(area / (logs[-1] - logs[0]))
    single = sl.density_curve(tiny.bridge("llama"), trace_of("llama"), sizes=[1.0])
    assert math.isnan(single.density)
    assert math.isnan(single.auc_paper)


def test_auc_paper_is_the_area_over_the_sizes_that_whole_edges_give():
    sizes = (1e-5, 1e-3, *SIZES)
    curve = sl.density_curve(tiny.bridge("llama"), trace_of("llama"), sizes=sizes)
    grid = curve.table[curve.table["size"].isin(sizes)]
    assert len(grid) == len(sizes) < len(curve.table)
    logs = [math.log10(k / curve.trace.edges) if k else -8.0 for k in grid["edges"]]
    assert logs[0] == -8.0
    tv = grid["tv"].tolist()
    area = sum((tv[i] + tv[i + 1]) / 2 * (logs[i + 1] - logs[i]) for i in range(len(tv) - 1))
    assert curve.auc_paper == pytest.approx(area)
    summary = summarize(curve, find_phases(curve), sl.phase_ablation(tiny.bridge("llama"), curve))
    assert summary["auc_paper"] == curve.auc_paper


@pytest.mark.parametrize("sizes", [[0.0], [1.5], [0.5, 0.1], [math.nan], []])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes"):
        sl.density_curve(tiny.bridge("llama"), trace_of("llama"), sizes=sizes)


def test_a_trace_of_another_model_is_refused():
    with pytest.raises(ValueError, match="does not fit tiny-gptj"):
        sl.density_curve(tiny.bridge("gptj"), trace_of("llama"), sizes=SIZES)


def test_the_plan_counts_the_rows_that_are_run():
    model, trace = tiny.bridge("llama"), trace_of("llama")
    seen: list[int] = []
    plan = sl.plan(model, 7, sizes=SIZES, memory_budget=200_000)
    options = {"sizes": SIZES, "memory_budget": 200_000}
    sl.density_curve(model, trace, **options, progress=lambda done, *_: seen.append(done))
    # The plan knows the sizes but not which of them come to one mask.
    assert seen[-1] <= plan.rows
    assert 1 < len(seen) <= plan.passes
    fixed = sl.plan(model, 7, sizes=SIZES, refine=0, memory_budget=200_000)
    assert plan.rows == fixed.rows + 12
    assert 1 < fixed.passes < plan.passes
    assert plan.bytes <= 200_000
    assert plan.seconds > 0


def test_a_curve_prints_its_table():
    curve = sl.density_curve(tiny.bridge("llama"), trace_of("llama"), sizes=SIZES)
    assert "random_tv" in repr(curve)
    assert "<table" in curve._repr_html_()
    copy = curve.to_pandas()
    copy["tv"] = 0.0
    assert not curve.table["tv"].eq(0.0).all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        curve.seed = 1  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("llama", ()),
        *(
            pytest.param(*given, marks=pytest.mark.extended)
            for given in [("llama", ("attention",)), ("gemma2", ()), ("gptj", ())]
        ),
    ],
)
def test_a_target_is_measured_at_every_size_as_its_mask_run_alone(name, keep):
    trace, model = trace_of(name), tiny.bridge(name)
    arch = architecture_of(model)
    full = last_logits(model, arch, trace.prompt.tensor[None])[0].double().softmax(-1)
    nothing = trace.ranks.map(torch.zeros_like).map(torch.Tensor.bool)
    empty = probabilities(name, trace, with_kinds(nothing, keep))
    named = [17, 40, 8]
    for target in (17, ([17, 40], 8)):

        def value(p, target=target):
            return p[17] if target == 17 else (p[17] * p[40]).log() / 2 - p[8].log()

        few = {"sizes": SIZES[1:4], "refine": 1, "controls": False}
        curve = sl.density_curve(model, trace, keep=keep, target=target, **few)
        assert curve.target_full == pytest.approx(float(value(full)), abs=1e-5)
        assert curve.target_empty == pytest.approx(float(value(empty)), abs=1e-5)
        for row in curve.table.to_dict("records"):
            kept = trace.ranks.map(lambda r, k=row["edges"]: r < k)
            ours = probabilities(name, trace, with_kinds(kept, keep))
            assert row["target"] == pytest.approx(float(value(ours)), abs=1e-5)
            way = (value(ours) - value(empty)) / (value(full) - value(empty))
            assert row["target_recovered"] == pytest.approx(float(way), abs=1e-3)
            parted = [p[named[:1] if target == 17 else named] for p in (full, ours)]
            (p, q) = (torch.cat([x, 1 - x.sum()[None]]) for x in parted)
            assert row["target_tv"] == pytest.approx(float((p - q).abs().sum() / 2), abs=2e-6)
            assert row["target_tv"] <= row["tv"] + 1e-12


def test_a_target_changes_nothing_else():
    model, trace = tiny.bridge("llama"), trace_of("llama")
    plain, aimed = (sl.density_curve(model, trace, sizes=SIZES, target=t) for t in (None, "Rome"))
    assert aimed.table["target_recovered"].iloc[-1] == pytest.approx(1, abs=1e-4)
    assert plain.table.equals(aimed.table[plain.table.columns])
    assert plain.target is None
    assert plain.target_line == ""
    assert "target" not in plain.table


def test_a_curve_says_what_it_measures_and_what_its_edges_were_ranked_towards(tmp_path):
    model = tiny.bridge("llama")
    graph = sl.token_graph(model, tiny.token_ids(7))
    ranked = {
        target: sl.fisher(model, graph, target=target) for target in (None, "Rome", ("Rome", 8))
    }
    said = {
        (towards, measured): sl.density_curve(model, trace, sizes=SIZES[-1:], target=measured)
        for towards, trace in ranked.items()
        for measured in ranked
    }
    for (towards, measured), curve in said.items():
        line = curve.target_line
        ranked_line = line.rpartition("ranked towards ")[2]
        if towards is measured is None:
            assert line == ""
        elif towards == measured:
            assert ranked_line == "the same"
        else:
            expected = {None: "the whole distribution", "Rome": "'Rome'"}
            other = f"'Rome' against {graph_label(8)!r}"
            assert ranked_line == expected.get(towards, other)
        assert line in repr(curve)
        sl.save(curve, tmp_path / "curve")
        again = sl.load(tmp_path / "curve")
        assert (again.target, again.target_line) == (curve.target, line)
        assert again.table.equals(curve.table)
    assert "measured: the whole distribution; edges ranked towards 'Rome'" in repr(
        said["Rome", None]
    )
    given = sl.fisher(model, graph, target=torch.full((tiny.VOCABULARY,), 1 / tiny.VOCABULARY))
    curve = sl.density_curve(model, given, sizes=SIZES[-2:], target="Rome")
    assert curve.target_line.endswith("ranked towards a given distribution")


def graph_label(token):
    return tiny.tokenizer().convert_ids_to_tokens(token)


def test_traces_of_one_call_are_measured_by_targets_of_their_own():
    model, first, second = tiny.bridge("llama"), trace_of("llama"), trace_of("llama", 5, 1)
    together = sl.density_curves(
        model, [first, second, first], sizes=SIZES, targets=[None, "Rome", (17, 8)]
    )
    assert together[0].target is None
    for curve, trace, target in zip(together[1:], (second, first), ("Rome", (17, 8)), strict=True):
        alone = sl.density_curve(model, trace, sizes=SIZES, target=target)
        assert curve.target_full == pytest.approx(alone.target_full, abs=1e-5)
        assert curve.target_empty == pytest.approx(alone.target_empty, abs=1e-5)
        gap = (curve.table["target"] - alone.table["target"]).abs()
        assert gap.max() < 1e-5
