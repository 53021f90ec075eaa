"""Made-up results of a trial for the tests of its figures and page."""

from __future__ import annotations

import functools
import math

import numpy as np
import pandas as pd

import strace_lens as sl
from strace_lens.corpus.trials.phase_table import phase_table
from strace_lens.corpus.trials.phases import TrialPhases
from strace_lens.token_graph.edges import KINDS

SIZES = (0.0001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.8)
NAMES = ("greedy", "pruned", "learned")
LAYERS = 3
REACHABLE = 41


@functools.cache
def trials(prompts: int = 4, names: tuple[str, ...] = NAMES) -> sl.Trials:
    """Random numbers in every column; the smallest size holds no edge."""
    draw = np.random.default_rng(0)
    runs, traces = [], []
    for prompt in range(prompts):
        for name in names:
            about = {"prompt": prompt, "kind": f"kind {prompt % 2}", "tokens": 9, "edges": 100}
            key = {**about, "estimator": name, "seed": 0}
            for target in ("own", "wrong"):
                cost = {"forward": 1, "backward": 2, "seconds": 0.5}
                facts = {"density": draw.random(), "top1_size": draw.choice(SIZES), **cost}
                traces.append({**key, "target": target, **facts})
            for role in ("own", "wrong", "sibling", "noise"):
                for size in SIZES:
                    row = {**key, "role": role, "size": size, "tv": draw.random(), "top1": True}
                    if role == "own":
                        shares = draw.dirichlet([1, 1, 1]) if size > SIZES[0] else [math.nan] * 3
                        row |= dict(zip(KINDS, shares, strict=True))
                        row |= {"head_error": draw.random(), "tail_error": draw.random()}
                        row |= {"compute": draw.random(), "path_share": 1.0, "connected": True}
                    runs.append(row)
    return sl.Trials(pd.DataFrame(runs).astype({"connected": "boolean"}), pd.DataFrame(traces))


@functools.cache
def phases(prompts: int = 4, names: tuple[str, ...] = NAMES) -> TrialPhases:
    """Random phases; prompt 0 has no head subgraph with the last estimator."""
    draw = np.random.default_rng(1)
    facts, layers = [], []
    for prompt in range(prompts):
        for name in names:
            sizes = np.sort(draw.choice(SIZES[1:], 4, replace=False))
            kinds = ("residual", "attention", "mlp", "depth", "block_depth")
            row = {
                **{"prompt": prompt, "kind": "", "estimator": name},
                "construction_start": sizes[0],
                "construction_stop": sizes[1],
                **{f"construction_{what}": draw.random() for what in ("tv", "pace")},
                "refinement_pace": draw.random(),
                **{"head_size": sizes[2], "tail_size": sizes[3], "head_edges": 5, "tail_edges": 6},
                **{f"{p}_{d}": draw.random() for p in ("head", "tail") for d in kinds[3:]},
                **{"depth_gap": draw.normal(), "block_depth_gap": draw.normal()},
                **{"graph_depth": 0.48, "graph_block_depth": 0.49},
                **{f"{k}_{s:g}": draw.random() for k in kinds for s in (0.01, 0.05, 0.2)},
            }
            if prompt == 0 and name == names[-1]:
                row |= {c: math.nan for c in row if c.startswith(("head_", "tail_"))}
                row |= {"depth_gap": math.nan, "block_depth_gap": math.nan}
            facts.append(row)
            for size in SIZES:
                for layer in range(LAYERS):
                    counts = draw.integers(0, 9, 3) if size > SIZES[0] else [0, 0, 0]
                    edges = dict(zip(KINDS, counts, strict=True)) | {"reachable": REACHABLE}
                    key = {"prompt": prompt, "estimator": name, "size": size, "layer": layer}
                    layers.append({**key, **edges})
    made = {"model": "made-up", "trial": {"ablation": "zero"}, "versions": {"torch": "2"}}
    return TrialPhases(pd.DataFrame(facts), pd.DataFrame(layers), made)


def means(prompts: int = 4, names: tuple[str, ...] = NAMES) -> pd.DataFrame:
    """The table of the phases."""
    return phase_table(phases(prompts, names).prompts)


def no_phases() -> TrialPhases:
    """The same without any phase."""
    made = phases()
    missing = [
        c
        for c in made.prompts
        if c.startswith(("construction", "refinement", "head_", "tail_")) or c.endswith("gap")
    ]
    return TrialPhases(made.prompts.assign(**dict.fromkeys(missing, math.nan)), made.layers)
