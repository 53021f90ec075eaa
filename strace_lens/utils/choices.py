"""What can be chosen by name, and what is taken unless told otherwise, without the code behind it.

The command line names these in its help, completes them and refuses others. It reads them here,
because what they name imports torch, which takes seconds. The names are those of the registries, in
the same order; a test compares them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence

# ------------------------------------------------------------------ models

DEFAULT_MODEL = "smollm2"
DTYPES = ("float32", "bfloat16", "float16")

MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that transformers makes by itself."""

MEMORY_BUDGET = 2**27
"""Bytes of a forward pass on a CPU unless said otherwise; larger passes are slower there."""

DEVICE_BUDGET = 2**31
"""Bytes of a forward pass on a GPU, where Python takes as long to start a small pass as a large."""

GRADIENT_BUDGET = 2**31
"""Bytes of a forward and backward pass unless said otherwise: every layer's values stay alive."""

# ------------------------------------------------------------------ traces

SIZES = (
    *(1e-5, 2e-5, 4e-5, 8e-5, 1e-4, 2e-4, 4e-4, 8e-4),
    *(1e-3, 1.2e-3, 1.4e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3),
    *(1e-2, 2e-2, 4e-2, 6e-2, 8e-2, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
)
"""The default grid: relative sizes at which a trace is measured."""

ESTIMATOR_SIZE_COUNT = 30
"""How many sizes `measures.sizes.ESTIMATOR_SIZES` has; NumPy spaces them."""

REFINE = 12
"""How many sizes are added to the grid at the most, unless said otherwise."""

TEXT_SIZES = (1e-5, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)
"""Coarser than the paper's grid and of the same range, so that densities can be compared."""

SMALL = 0.1
"""The size whose predictions are shown beside the model's."""

ESTIMATORS = ("greedy", "scheduled", "fisher", "pruned", "regularized", "learned")
EARLIER_ESTIMATORS = {"anchored": "regularized"}
"""What estimators were called in version 0.1; accepted until 0.3."""

IMPORTANCES = ("l1", "l2", "normf", "proximity", "ifr", "cosine", "leverage", "random")
KINDS = ("residual", "attention", "mlp")
ABLATIONS = ("zero", "mean", "resample")

# ------------------------------------------------------------------ sweeps

BUILTIN = "builtin"
"""The source that stands for the package's own prompts, 13 of each of 8 kinds."""

SPEEDS = ("here", "h100")
SWEEP_ABLATIONS = ("zero", "mean")
WHICH_CONTROLS = ("none", "size", "all")
CORRUPTIONS = ("none", "shuffle", "random")

# ------------------------------------------------------------------ circuits

TASKS = (
    *("ioi", "greater-than", "agreement", "agreement-attractor", "gendered-pronoun"),
    *("docstring", "country-capital", "induction"),
)
GROUND_TRUTHS = (
    *("tracr-reverse", "tracr-fraction-of-previous", "tracr-histogram", "tracr-pair-balance"),
    *("tracr-count", "tracr-sort", "tracr-sort-unique", "tracr-detect-ab", "tracr-shift"),
    *("tracr-count-less-freq", "siit-detect-ab", "siit-pair-balance", "induction-trained"),
    "linear",
)
METRICS = (
    *("logit_difference", "probability_difference", "kl_divergence", "answer_rank", "recovered"),
)
EDGE_ABLATIONS = ("resample", "mean", "mean-over-positions", "zero", "optimal")
"""What an ablated edge carries: see `run_circuits`."""

METHODS = (
    *("edge-patching", "node-patching", "attribution-patching", "eap", "peap", "relp"),
    *("relevance-patching", "eap-ig", "eap-gp", "eap-ig-activations", "clean-corrupted"),
    *("eap-ig-kl",),
    *("acdc", "edge-pruning", "node-pruning", "warm-edge-pruning", "hap", "ensemble"),
    *("bootstrap", "pair-magnitude", "ifr", "strace", "strace-contrast", "random"),
)
RANKED_BY = ("mib", "signed", "absolute")
"""By what edges are ranked: sign for CPR and magnitude for the rest, or one of them for all."""

TESTS = ("sufficiency", "partial necessity", "non-independence", "minimality", "equivalence")
REFERENCES = ("random", "connected")

# ------------------------------------------------------------------ what is refused


def _registered(names: Collection[str], module: str, registry: str) -> Collection[str]:
    """What a registry holds, with what the user added, or the given names if it is not imported."""
    return getattr(sys.modules.get(f"strace_lens.{module}"), registry, names)


def known_methods() -> Collection[str]:
    """The methods of discovery, with those that `method` registered in this process."""
    return _registered(METHODS, "circuits.discover.methods", "METHODS")


def estimator_name(name: str) -> str:
    """The present name of an estimator that is called so now or was in version 0.1.

    Raises:
        ValueError: there is none of that name.
    """
    known = _registered(ESTIMATORS, "traces.estimators", "ESTIMATORS")
    name = EARLIER_ESTIMATORS.get(name, name)
    if name not in known:
        raise ValueError(f"unknown estimator {name!r}; choose from {', '.join(known)}")
    return name


def parse_importance(name: str) -> tuple[str, int | None]:
    """The name of an importance and the number of "leverage(3)", None where none is given.

    Raises:
        ValueError: there is none of that name, or none that takes the number.
    """
    known = _registered(IMPORTANCES, "traces.importance", "IMPORTANCES")
    parts = re.fullmatch(r"(\w+)(?:\((\d+)\))?", name)
    base, k = parts.groups() if parts else (name, None)
    if base not in known or (k is not None and (base != "leverage" or int(k) == 0)):
        raise ValueError(
            f"unknown importance {name!r}; choose from {', '.join(known)} or leverage(k)"
        )
    return base, None if k is None else int(k)


def kinds_to_keep(keep: Sequence[str]) -> tuple[str, ...]:
    """Kinds of edges that are never ablated, each once and in the order of `KINDS`.

    Raises:
        ValueError: a single string, or a kind that is not in `KINDS`.
    """
    if isinstance(keep, str):
        raise ValueError(f"keep takes a sequence of kinds, as ({keep!r},); got the string {keep!r}")
    unknown = [kind for kind in keep if kind not in KINDS]
    if unknown:
        raise ValueError(f"unknown kind of edge {unknown[0]!r}; choose from {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in keep)


def expect_methods(methods: Collection[str]) -> None:
    """Refuse methods of discovery that there are not, and a comparison without one.

    Raises:
        ValueError: no method, or an unknown one.
    """
    known = known_methods()
    for name in methods:
        if name not in known:
            raise ValueError(f"unknown method {name!r}; choose from {', '.join(known)}, or all")
    if not methods:
        raise ValueError(f"no method to compare; choose from {', '.join(known)}, or all")


def _expect(noun: str, name: str, known: Collection[str], otherwise: str) -> None:
    """Refuse a name that there is not where something else may be given instead."""
    if name not in known:
        raise ValueError(
            f"unknown {noun} {name!r}; choose from {', '.join(known)}, or give {otherwise}"
        )


def expect_map(name: str) -> None:
    """Refuse a device map that there is not.

    Raises:
        ValueError: an unknown one.
    """
    _expect("device_map", name, MAPS, "the device of each part by its name")


def expect_speed(name: str) -> None:
    """Refuse the name of a speed that there is not.

    Raises:
        ValueError: an unknown one.
    """
    _expect("speed", name, SPEEDS, "FLOP a second")


def check_sweep_choices(ablation: str, controls: str, corrupt: str) -> None:
    """Refuse what a sweep does not have.

    Raises:
        ValueError: an unknown ablation, unknown controls or an unknown corruption.
    """
    for noun, value, known in (
        ("ablation", ablation, SWEEP_ABLATIONS),
        ("controls", controls, WHICH_CONTROLS),
        ("corruption", corrupt, CORRUPTIONS),
    ):
        if value not in known:
            raise ValueError(f"a sweep has no {noun} {value!r}; choose from {', '.join(known)}")
