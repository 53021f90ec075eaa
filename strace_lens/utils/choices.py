"""The names that can be chosen, and the default values, without the code behind them.

The command line lists these in its help, completes them and refuses others. It reads them here,
because the code that they name imports torch, which takes seconds. The names are those of the
registries, in the same order; a test compares them.
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
"""Default bytes of a forward pass on a CPU, where larger passes are slower."""

DEVICE_BUDGET = 2**31
"""Default bytes of a forward pass on a GPU, where small passes take as long to start as large."""

GRADIENT_BUDGET = 2**31
"""Default bytes of a forward and backward pass, which keeps every layer's values in memory."""

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
"""Default maximum number of sizes that are added to the grid."""

TEXT_SIZES = (1e-5, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)
"""Sizes coarser than the paper's grid, with the same range, so that densities can be compared."""

SMALL = 0.1
"""The size of the trace whose predictions are shown with the model's."""

ESTIMATORS = ("greedy", "scheduled", "fisher", "pruned", "regularized", "learned")
EARLIER_ESTIMATORS = {"anchored": "regularized"}
"""Names of estimators in version 0.1, which are accepted until 0.3."""

IMPORTANCES = ("l1", "l2", "normf", "proximity", "ifr", "cosine", "leverage", "random")
KINDS = ("residual", "attention", "mlp")
ABLATIONS = ("zero", "mean", "resample")

# ------------------------------------------------------------------ sweeps

BUILTIN = "builtin"
"""The name of the package's own prompts, 13 of each of 8 kinds."""

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
"""How edges are ranked: by sign for CPR and magnitude for the rest, or by one of them for all."""

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
    """The current name of an estimator, given that name or the one of version 0.1.

    Raises:
        ValueError: there is no estimator of that name.
    """
    known = _registered(ESTIMATORS, "traces.estimators", "ESTIMATORS")
    name = EARLIER_ESTIMATORS.get(name, name)
    if name not in known:
        raise ValueError(f"unknown estimator {name!r}; choose from {', '.join(known)}")
    return name


def parse_importance(name: str) -> tuple[str, int | None]:
    """The name of an importance and the number, as in "leverage(3)"; None if it has none.

    Raises:
        ValueError: there is no importance of that name, or it takes no such number.
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
    """Refuse unknown methods of discovery, and an empty list of methods.

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
    """Refuse an unknown name; the message says what else may be given instead."""
    if name not in known:
        raise ValueError(
            f"unknown {noun} {name!r}; choose from {', '.join(known)}, or give {otherwise}"
        )


def expect_map(name: str) -> None:
    """Refuse an unknown device map.

    Raises:
        ValueError: an unknown one.
    """
    _expect("device_map", name, MAPS, "the device of each part by its name")


def expect_speed(name: str) -> None:
    """Refuse an unknown name of a speed.

    Raises:
        ValueError: an unknown one.
    """
    _expect("speed", name, SPEEDS, "FLOP a second")


def check_sweep_choices(ablation: str, controls: str, corrupt: str) -> None:
    """Refuse choices that a sweep does not have.

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
