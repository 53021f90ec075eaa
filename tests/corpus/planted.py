"""Runs in which the paper's claims hold by construction, or fail by construction."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from strace_lens.corpus.run_folder import Run
from strace_lens.measures.sizes import density
from tests.corpus.synthetic import synthetic_run

LAYERS = 4


def planted_run(hold: bool, prompts: int = 12, name: str = "planted", model: str = "one") -> Run:
    """A run for which claims 1 to 5 all hold, or all do not.

    Where they hold, TV stays high up to 1e-4, falls steeply up to about 1e-2 and slowly after; the
    head is there at 3e-3 and lies in the first layer; then come edges of the last layer's
    attention; prompts of higher entropy fall later; sparse outputs are near the unigram
    distribution. Where they do not, TV falls along one straight line, the head is there at 0.4 and
    lies in the last layers, then come early edges that are no attention, entropy goes with an
    earlier fall, and sparse outputs are far from the unigram distribution.
    """
    run = synthetic_run(prompts=prompts, layers=LAYERS, heads=2, seed=3, geometry=False)
    log, entropy = np.log10(run.grid), run.prompts["entropy"].to_numpy()
    later = 0.4 * (entropy - entropy.mean()) / np.ptp(entropy) * (1 if hold else -1)
    if hold:
        tv = np.stack([np.interp(log - x, [-4, -2, 0], [0.95, 0.2, 0]) for x in later])
    else:
        tv = np.stack([np.interp(log, [-5, 0], [0.5 + x, 0]) for x in later])
    head_from, tail_from = (3e-3, 0.1) if hold else (0.4, 0.6)
    mass = run.prompts["head_mass"].to_numpy()
    sizes = np.tile(run.grid, prompts)
    per_row = np.repeat(mass, len(log))
    reachable = run.reachable * 1000  # so that the smallest traces hold edges
    usage = np.stack([_usage(run, whole, head_from, hold) for whole in reachable])
    table = run.sizes.assign(
        edges=usage.sum(-1).reshape(-1),
        tv=tv.reshape(-1),
        top1=sizes >= head_from,
        head_error=np.where(sizes >= head_from, 0.0, 0.5 * per_row),
        tail_error=np.where(sizes >= tail_from, 0.0, 0.5 * (1 - per_row)),
        unigram_tv=0.3 if hold else 0.9,
        no_context_tv=0.3 if hold else 0.9,
    )
    about = run.prompts.assign(
        density=[density(run.grid, curve) for curve in tv],
        edges=reachable.sum(1),
        unigram_tv=0.7,
        no_context_tv=0.7,
    )
    return dataclasses.replace(
        run,
        name=name,
        model=model,
        prompts=about,
        sizes=table,
        usage=usage,
        reachable=reachable,
    )


def _usage(run: Run, whole: np.ndarray, head_from: float, hold: bool) -> np.ndarray:
    """Edges by component at each size: those of the head subgraph first, then the others."""
    layer = run.components["layer"].to_numpy()
    attention = (run.components["kind"] == "attention").to_numpy()
    early = np.argsort(layer, kind="stable")
    if hold:
        orders = early, np.lexsort((-layer, ~attention))
    else:
        orders = early[::-1], np.lexsort((layer, attention))
    counts = np.floor(run.grid * whole.sum() * (1 + 1e-12)).astype(np.int64)
    of_head = int(head_from * whole.sum() * (1 + 1e-12))
    used = np.zeros((len(counts), len(whole)), dtype=np.int64)
    for row, count in zip(used, counts, strict=True):
        row += _fill(whole, orders[0], min(count, of_head))
        row += _fill(whole - row, orders[1], count - int(row.sum()))
    return used


def _fill(whole: np.ndarray, order: np.ndarray, edges: int) -> np.ndarray:
    used = np.zeros_like(whole)
    for place in order:
        used[place] = min(edges - used.sum(), whole[place])
    return used


def with_density(run: Run, values: np.ndarray, **changed: object) -> Run:
    """The run with other densities of its prompts."""
    prompts: pd.DataFrame = run.prompts.assign(density=values)
    return dataclasses.replace(run, prompts=prompts, **changed)


def with_options(run: Run, **options: object) -> Run:
    """The run as a sweep with these options would have named them."""
    manifest = {**run.manifest, "options": {**run.manifest["options"], **options}}
    return dataclasses.replace(run, manifest=manifest)
