"""Small runs with made-up but consistent numbers, for the analyses and their figures."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from strace_lens.corpus.run_folder import Run, components_frame
from strace_lens.measures.sizes import auc_paper, density
from strace_lens.utils.choices import SIZES

KINDS = ("narrative", "code", "list")


def synthetic_run(
    prompts: int = 8,
    sizes: Sequence[float] = SIZES,
    layers: int = 4,
    heads: int = 2,
    seed: int = 0,
    name: str = "made-up",
    geometry: bool = True,
    texts: Sequence[str] | None = None,
    added: Sequence[float] = (),
) -> Run:
    """A run whose curves are falling sigmoids in log10 s, whose parts add up as a sweep's do.

    `added` are sizes that each prompt has besides those of the grid.
    """
    draw = np.random.default_rng(seed)
    grid = np.sort([*sizes, *added])
    refined = ~np.isin(grid, sizes)
    components = components_frame(layers, heads, 2, True)
    kinds = components["kind"].to_numpy()
    order = draw.random((prompts, len(components)))
    about, rows, usage, reachable = [], [], [], []
    for p in range(prompts):
        tokens = int(draw.integers(6, 20))
        whole = np.where(kinds == "attention", tokens * (tokens + 1) // 2, tokens)
        last = components["layer"].to_numpy() == layers - 1
        whole = np.where(last, np.where(kinds == "attention", tokens, 1), whole)
        edges = np.floor(grid * whole.sum() * (1 + 1e-12)).astype(int)
        used = np.stack([_fill(whole, order[p], k) for k in edges])
        middle, entropy = draw.uniform(-2, -0.5), draw.uniform(0.5, 4)
        tv = 0.97 / (1 + np.exp(4 * (np.log10(grid) - middle)))
        tv[-1] = 0.0
        head_mass = draw.uniform(0.5, 0.7)
        share = draw.uniform(0.3, 0.6)
        text = texts[p] if texts is not None else f"prompt {p} of run {seed}"
        about.append(
            {
                "prompt": p,
                "text": text,
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
                "tokens": tokens,
                "edges": int(whole.sum()),
                "entropy": entropy,
                "head_mass": head_mass,
                "density": density(grid, tv),
                "auc_paper": auc_paper((edges / whole.sum())[~refined], tv[~refined]),
                "logit_gap": 1e-5,
                "next": " next" if p % 4 else None,
                "loss": draw.uniform(0, 6) if p % 4 else np.nan,
                "top": [(" the", 0.6), (" a", 0.1)],
                "unigram_tv": draw.uniform(0.7, 0.9),
                "no_context_tv": draw.uniform(0.7, 0.9),
                "label_kind": KINDS[p % len(KINDS)],
            }
        )
        by_kind = {
            kind: used[:, kinds == kind].sum(1) / np.maximum(1, edges)
            for kind in ("residual", "attention", "mlp")
        }
        mean_layer = np.full(len(grid), np.nan)
        there = edges > 0
        mean_layer[there] = (used @ components["layer"].to_numpy())[there] / edges[there]
        rows.append(
            pd.DataFrame(
                {
                    "prompt": p,
                    "size": grid,
                    "edges": edges,
                    "tv": tv,
                    "kl": 3 * tv,
                    "js": tv * np.log(2),
                    "head_error": share * tv,
                    "tail_error": (1 - share) * tv,
                    "top1": tv < 0.3,
                    "nucleus": np.select([tv < 0.02, tv < 0.1, tv < 0.3], [0.99, 0.8, 0.5], 0.0),
                    "random_tv": np.where(grid < 1, 0.98, 0.0),
                    "inverse_tv": np.minimum(1, grid * 50),
                    "random_inverse_tv": np.minimum(1, grid * 20),
                    "ablatable_size": edges / whole.sum(),
                    **by_kind,
                    "mean_layer": mean_layer,
                    "trace_head_mass": head_mass - share * tv / 2,
                    "unigram_tv": 0.6 + 0.2 * (1 - tv),
                    "no_context_tv": 0.5 + 0.3 * (1 - tv),
                    "top": [[(" the", 0.6)]] * len(grid),
                }
            )
        )
        usage.append(used)
        reachable.append(whole)
    width = 6 if geometry else 0
    far = every_tv(rows)[:, ~refined, None]
    final = draw.normal(size=(prompts, 1, width)) * (1 - far) + draw.normal(size=(1, 1, width))
    every, counts = pd.concat(rows, ignore_index=True), np.stack(usage)
    of_grid = np.tile(~refined, prompts)
    rest = every[~of_grid].assign(usage=list(counts[:, refined].reshape(-1, len(components))))
    layer = np.arange(layers if geometry else 0)
    return Run(
        name=name,
        model="made-up model",
        manifest={"sizes": list(sizes), "head": 0.5, "options": {"seed": seed}, "versions": {}},
        prompts=pd.DataFrame(about),
        failures=pd.DataFrame({"prompt": [], "text": [], "error": []}),
        sizes=every[of_grid].reset_index(drop=True),
        refined=rest.reset_index(drop=True),
        usage=counts[:, ~refined],
        reachable=np.stack(reachable),
        components=components,
        geometry={
            "cosine": 1 - far * (layer + 1) / layers,
            "l2": 10 * far * (layer + 1),
            "cka": 1 - far * (layer + 1) / (2 * layers),
            "velocity": 1.0 + layer + far,
            "curvature": np.where(layer == 0, np.nan, 1.2 + 0.1 * far),
        },
        path={
            "velocity": np.tile(1.0 + layer, (prompts, 1)),
            "curvature": np.tile(np.where(layer == 0, np.nan, 1.2), (prompts, 1)),
        },
        final_states=final.astype(np.float32),
    )


def controlled_run(
    estimator: str,
    prompts: int = 8,
    seeds: int = 1,
    number: int = 0,
    sizes: Sequence[float] = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.8),
    name: str | None = None,
) -> Run:
    """A run of an estimator over shared prompts, with random numbers for its controls.

    The last prompt has no sibling.
    """
    texts = [f"shared {i}" for i in range(prompts)]
    run = synthetic_run(prompts, sizes, seed=number, name=name or estimator, texts=texts)
    draw = np.random.default_rng(number)
    rows = []
    for prompt in range(prompts):
        for seed in range(seeds):
            start = draw.integers(0, len(sizes) + 1)  # from which size on it is connected
            for role in ("own", "wrong", "sibling", "noise"):
                if (role == "wrong" and seed) or (role == "sibling" and prompt == prompts - 1):
                    continue
                right = draw.integers(0, len(sizes) + 1)  # from which size on top-1 is
                passes = {"forward": int(draw.integers(9)), "backward": int(draw.integers(9))}
                for i, size in enumerate(sizes):
                    row = {"prompt": prompt, "size": size, "role": role, "seed": seed}
                    row |= {"tv": draw.random(), "top1": bool(i >= right)}
                    if role == "own":
                        row |= {"path_share": draw.random(), "compute": draw.random()}
                        row |= {"connected": bool(i >= start)}
                    if role in ("own", "wrong"):
                        row |= passes
                    rows.append(row)
    controls = pd.DataFrame(rows).astype({"connected": "boolean"})
    options = {**run.manifest["options"], "estimator": estimator, "controls": "all"}
    manifest = {**run.manifest, "options": options}
    return dataclasses.replace(run, manifest=manifest, controls=controls)


def every_tv(rows: Sequence[pd.DataFrame]) -> np.ndarray:
    """Total variation at every size, a row a prompt."""
    return np.stack([frame["tv"].to_numpy() for frame in rows])


def _fill(whole: np.ndarray, order: np.ndarray, edges: int) -> np.ndarray:
    """Take so many edges, component after component."""
    used, left = np.zeros_like(whole), edges
    for place in np.argsort(order):
        used[place] = min(left, whole[place])
        left -= used[place]
    return used
