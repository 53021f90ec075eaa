"""Layer phases of made-up corpora against loops over prompts, sizes and components."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from strace_lens.corpus.analyses.layer_phases import (
    head_and_tail,
    head_and_tail_means,
    phase_diagram,
)
from strace_lens.corpus.run_folder import Run
from strace_lens.measures.intervals import interval
from tests.corpus.synthetic import synthetic_run

RUN = synthetic_run(prompts=6, layers=5, heads=3)
SIZES = RUN.grid.tolist()


def cell(table, size: float, layer: int) -> dict:
    (row,) = table[(table["size"] == size) & (table["layer"] == layer)].to_dict("records")
    return row


def test_the_diagram_by_hand() -> None:
    table = phase_diagram(RUN)
    layer_of = RUN.components["layer"].to_numpy()
    errors = RUN.sizes.set_index(["prompt", "size"])
    for s, size in list(enumerate(SIZES))[::3]:
        for layer in (0, 2, 4):
            present, gains, added = [], {"head": [], "tail": []}, []
            for p in range(6):
                here = RUN.usage[p, s]
                new = here - RUN.usage[p, s - 1] if s else here
                mine = layer_of == layer
                present.append(here[mine].sum() / RUN.reachable[p][mine].sum())
                share = new[mine].sum() / new.sum() if new.sum() else 0
                added += [share] if new.sum() else []
                for part, into in gains.items():
                    error = errors[f"{part}_error"]
                    fall = error[p, SIZES[s - 1]] - error[p, size] if s else 0
                    into.append(fall * share)
            row = cell(table, size, layer)
            assert row["present"] == pytest.approx(np.mean(present))
            assert row["added"] == pytest.approx(np.mean(added) if added else math.nan, nan_ok=True)
            assert row["prompts"] == len(added)
            for part, values in gains.items():
                assert row[f"{part}_gain"] == pytest.approx(np.mean(values), abs=1e-12)


def test_gains_add_up_to_the_fall_in_error() -> None:
    big = synthetic_run(prompts=4, layers=8, heads=8, sizes=(0.02, 0.1, 0.3, 1.0))
    table = phase_diagram(big)
    assert (table["prompts"] == 4).all()  # every size adds edges to every trace
    for part in ("head", "tail"):
        mean = big.sizes.groupby("size")[f"{part}_error"].mean()
        sums = table.groupby("size")[f"{part}_gain"].sum()
        np.testing.assert_allclose(sums, -mean.diff().fillna(0), atol=1e-12)
        assert sums.sum() == pytest.approx(mean.iloc[0] - mean.iloc[-1])


@pytest.mark.parametrize("keep", [("attention",), ("residual", "mlp")])
def test_gains_are_shared_out_over_ablatable_edges(keep: tuple[str, ...]) -> None:
    plain, table = phase_diagram(RUN), phase_diagram(kept(RUN, *keep))
    assert plain["ablatable_present"].equals(plain["present"])
    assert table[["present", "added"]].equals(plain[["present", "added"]])
    components = RUN.components
    free = ~components["kind"].isin(keep).to_numpy()
    errors = RUN.sizes.set_index(["prompt", "size"])["head_error"]
    for s, size in list(enumerate(SIZES))[1::4]:
        for layer in (0, 3):
            mine = free & (components["layer"] == layer).to_numpy()
            present, gains = [], []
            for p in range(6):
                new = RUN.usage[p, s] - RUN.usage[p, s - 1]
                share = new[mine].sum() / new[free].sum() if new[free].sum() else 0
                gains.append((errors[p, SIZES[s - 1]] - errors[p, size]) * share)
                present.append(RUN.usage[p, s][mine].sum() / RUN.reachable[p][mine].sum())
            row = cell(table, size, layer)
            assert row["head_gain"] == pytest.approx(np.mean(gains), abs=1e-12)
            assert row["ablatable_present"] == pytest.approx(np.mean(present))


def test_where_every_kind_is_kept_no_layer_gains() -> None:
    table = phase_diagram(kept(RUN, "attention", "mlp", "residual"))
    assert table["ablatable_present"].isna().all()
    assert (table[["head_gain", "tail_gain"]] == 0).all(axis=None)


def test_a_size_that_adds_nothing_gains_nothing() -> None:
    same = RUN.usage.copy()
    same[:, 20] = same[:, 19]
    still = phase_diagram(replace(RUN, usage=same))
    here = still[still["size"] == SIZES[20]]
    assert here["added"].isna().all()
    assert (here[["head_gain", "tail_gain", "prompts"]] == 0).all(axis=None)


def edges_between(run: Run, p: int, start: float, stop: float) -> list[tuple[str, int]]:
    """Kind and layer of every edge that the trace of one size adds to that of another."""
    grid = run.grid.tolist()
    new = run.usage[p, grid.index(stop)].astype(int)
    if start:
        new = new - run.usage[p, grid.index(start)]
    rows = run.components.to_dict("records")
    return [(c["kind"], c["layer"]) for c, n in zip(rows, new, strict=True) for _ in range(n)]


def depth(edges: list[tuple[str, int]], last: int, blocks: bool = False) -> float:
    layers = [layer for kind, layer in edges if not (blocks and kind == "residual")]
    return float(np.mean(layers)) / last if layers else math.nan


def smallest_from_which(run: Run, p: int, part: str, threshold: float) -> float:
    mass = run.prompts["head_mass"][p]
    mass = mass if part == "head" else 1 - mass
    found = math.nan
    rows = run.sizes[run.sizes["prompt"] == p].sort_values("size", ascending=False)
    for size, error in zip(rows["size"], rows[f"{part}_error"], strict=True):
        if error >= threshold * mass:
            break
        found = size
    return found


@pytest.mark.parametrize("threshold", [0.1, 0.4])
def test_head_and_tail_edge_by_edge(threshold: float) -> None:
    table = head_and_tail(RUN, threshold)
    assert table["prompt"].tolist() == list(range(6))
    for row in table.to_dict("records"):
        p = row["prompt"]
        head_size = smallest_from_which(RUN, p, "head", threshold)
        tail_size = max(head_size, smallest_from_which(RUN, p, "tail", threshold))
        assert (row["head_size"], row["tail_size"]) == (head_size, tail_size)
        for part, size in (("head", head_size), ("tail", tail_size)):
            assert row[f"{part}_not_yet_at"] == max(s for s in (0.0, *SIZES) if s < size)
        parts = {
            "head": edges_between(RUN, p, 0, head_size),
            "tail": edges_between(RUN, p, head_size, tail_size) if tail_size > head_size else [],
        }
        for part, edges in parts.items():
            attention = [kind == "attention" for kind, _ in edges]
            assert row[f"{part}_edges"] == len(edges)
            expected = {
                "depth": depth(edges, 4),
                "block_depth": depth(edges, 4, blocks=True),
                "attention": np.mean(attention) if edges else math.nan,
            }
            for name, value in expected.items():
                assert row[f"{part}_{name}"] == pytest.approx(value, nan_ok=True)
        for name, blocks in (("depth", False), ("block_depth", True)):
            gap = depth(parts["head"], 4, blocks) - depth(parts["tail"], 4, blocks)
            assert row[f"{name}_gap"] == pytest.approx(gap, nan_ok=True)
            whole = depth(edges_between(RUN, p, 0, 1.0), 4, blocks)
            assert row[f"graph_{name}"] == pytest.approx(whole)


def kept(run: Run, *kinds: str) -> Run:
    options = {**run.manifest["options"], "keep": list(kinds)}
    return replace(run, manifest={**run.manifest, "options": options})


@pytest.mark.parametrize("keep", [(), ("attention",), ("attention", "mlp")])
def test_ablatable_edges_are_those_of_the_other_kinds(keep: tuple[str, ...]) -> None:
    for row in head_and_tail(kept(RUN, *keep)).to_dict("records"):
        p, head_size, tail_size = row["prompt"], row["head_size"], row["tail_size"]
        graph = [e for e in edges_between(RUN, p, 0, 1.0) if e[0] not in keep]
        head = [e for e in edges_between(RUN, p, 0, head_size) if e[0] not in keep]
        tail = [e for e in edges_between(RUN, p, head_size, tail_size) if e[0] not in keep]
        tail = tail if tail_size > head_size else []
        expected = {
            "head_ablatable_edges": len(head),
            "tail_ablatable_edges": len(tail),
            "head_ablatable_size": max(1, len(head)) / len(graph),
            "tail_ablatable_size": max(1, len(head) + len(tail)) / len(graph),
            "head_ablatable_depth": depth(head, 4),
            "tail_ablatable_depth": depth(tail, 4),
            "graph_ablatable_depth": depth(graph, 4),
            "ablatable_depth_gap": depth(head, 4) - depth(tail, 4),
            "head_ablatable_depth_vs_graph": depth(head, 4) - depth(graph, 4),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, nan_ok=True), name
        if not keep:
            assert row["head_ablatable_depth"] == row["head_depth"]
            assert row["head_ablatable_edges"] == row["head_edges"]


def test_nothing_is_ablatable_where_every_kind_is_kept() -> None:
    table = head_and_tail(kept(RUN, "attention", "mlp", "residual"))
    assert (
        table[[n for n in table if n.endswith(("ablatable_size", "ablatable_depth"))]]
        .isna()
        .all(axis=None)
    )
    assert table["head_ablatable_edges"].eq(0).all()


@pytest.mark.parametrize("keep", [(), ("attention",)])
def test_the_tail_refinement_beside_draws_from_what_is_left(keep: tuple[str, ...]) -> None:
    """The null by kind is what random draws of as many edges of each kind have on average."""
    draw = np.random.default_rng(0)
    compared = 0
    for row in head_and_tail(kept(RUN, *keep)).to_dict("records"):
        if not row["tail_edges"] > 0:
            assert math.isnan(row["tail_depth_vs_left"])
            continue
        p = row["prompt"]
        left = edges_between(RUN, p, row["head_size"], 1.0)
        tail = edges_between(RUN, p, row["head_size"], row["tail_size"])
        share = [np.mean([kind == "attention" for kind, _ in edges]) for edges in (tail, left)]
        assert row["tail_attention_vs_left"] == pytest.approx(share[0] - share[1])
        for name, without in (("tail_depth_vs_left", ()), ("tail_ablatable_depth_vs_left", keep)):
            mine = [edge for edge in tail if edge[0] not in without]
            if not mine:
                assert math.isnan(row[name])
                continue
            drawn = []
            for kind in {kind for kind, _ in mine}:
                of_kind = np.array([layer for k, layer in left if k == kind])
                count = sum(k == kind for k, _ in mine)
                drawn.append(
                    [draw.choice(of_kind, count, replace=False).sum() for _ in range(4000)]
                )
            null = np.sum(drawn, axis=0) / len(mine) / 4
            spread = 5 * null.std() / math.sqrt(len(null)) + 1e-12
            assert row[name] == pytest.approx(depth(mine, 4) - null.mean(), abs=spread)
            compared += 1
    assert compared > 3


def test_some_tails_have_edges_and_some_have_none() -> None:
    edges = head_and_tail(RUN)["tail_edges"]
    assert (edges > 0).any()
    assert (edges == 0).any()


def unrestored() -> Run:
    """A run whose second prompt never restores its tail, its third not even its head."""
    sizes = RUN.sizes.copy()
    sizes.loc[sizes["prompt"] == 2, "head_error"] = 0.5
    sizes.loc[sizes["prompt"].isin([1, 2]), "tail_error"] = 0.4
    return replace(RUN, sizes=sizes)


def test_what_is_not_restored_is_nan() -> None:
    table = head_and_tail(unrestored()).set_index("prompt")
    tail = [name for name in table if name.startswith("tail_") or name.endswith("gap")]
    assert len(tail) == 15
    assert table.loc[1, tail].isna().all()
    assert table.loc[1, "head_edges"] > 0
    graph = ["graph_depth", "graph_block_depth", "graph_ablatable_depth"]
    assert table.loc[2].drop(graph).isna().all()
    assert table.loc[2, graph].notna().all()


def test_a_restored_tail_without_a_head_is_none() -> None:
    sizes = RUN.sizes.copy()
    sizes.loc[sizes["prompt"] == 0, "head_error"] = 0.5
    row = head_and_tail(replace(RUN, sizes=sizes)).iloc[0]
    assert math.isnan(row["tail_size"])
    assert math.isnan(row["tail_edges"])


def test_means_are_of_the_prompts_that_have_the_quantity() -> None:
    run = unrestored()
    table, found = head_and_tail(run), head_and_tail_means(run).set_index("quantity")
    around = ["prompt", "head_not_yet_at", "tail_not_yet_at"]
    assert found.index.tolist() == list(table.columns.drop(around))
    for quantity, row in found.iterrows():
        values = table[quantity].dropna().to_numpy()
        assert row["prompts"] == len(values)
        if quantity.endswith("_size"):
            expected = np.prod(values) ** (1 / len(values))
            low, high = (math.exp(float(end)) for end in interval(np.log(values)))
        else:
            expected = values.mean()
            low, high = (float(end) for end in interval(values))
        assert [row["mean"], row["low"], row["high"]] == pytest.approx([expected, low, high])
    assert found.loc["head_size", "prompts"] == 5
    assert found.loc["tail_size", "prompts"] == 4


def test_one_prompt_has_no_intervals() -> None:
    found = head_and_tail_means(synthetic_run(prompts=1))
    assert found["mean"].notna().any()
    assert found[["low", "high"]].isna().all(axis=None)


def test_a_threshold_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\); got 1.5"):
        head_and_tail(RUN, 1.5)
