"""The options of the commands, as annotated types of their parameters, and their parsers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from strace_lens.utils.choices import (
    ABLATIONS,
    CORRUPTIONS,
    DEFAULT_MODEL,
    DEVICE_BUDGET,
    DTYPES,
    EDGE_ABLATIONS,
    ESTIMATOR_SIZE_COUNT,
    ESTIMATORS,
    GRADIENT_BUDGET,
    GROUND_TRUTHS,
    IMPORTANCES,
    KINDS,
    MAPS,
    MEMORY_BUDGET,
    METHODS,
    METRICS,
    RANKED_BY,
    SIZES,
    SPEEDS,
    TASKS,
    WHICH_CONTROLS,
    expect_map,
    expect_speed,
    kinds_to_keep,
)
from strace_lens.utils.disk import parse_object, read_prompt


def completing(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return the completion of an option that takes one name, or several separated by commas."""
    known = sorted(names)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in known if name.startswith(last)]

    return complete


def option(help: str, *names: str, choices: Iterable[str] = (), **settings: Any) -> Any:
    """Declare an option by its help and, if it is not the parameter's, its name."""
    completion = completing(choices) if choices else None
    return typer.Option(*names, help=help, autocompletion=completion, **settings)


# ------------------------------------------------------------------ loading a model

Model = Annotated[
    str,
    option(
        "smollm2 (built in), a Hugging Face name, a local folder or a GGUF file.",
        choices=[DEFAULT_MODEL],
    ),
]
Device = Annotated[
    str | None,
    option("Device, named as in torch. Default: a GPU if there is one, else the CPU."),
]
DeviceMap = Annotated[
    str | None,
    option(
        f"For models larger than one device: {', '.join(MAPS)}, or a .json file that maps the name "
        "of each part to its device.",
        choices=MAPS,
    ),
]
Dtype = Annotated[str, option("float32, bfloat16 or float16.", choices=DTYPES)]
AllowPickle = Annotated[
    bool,
    option(
        "Also read weights saved as a pickle (.bin), which can run code when it is loaded.",
        "--allow-pickle",
    ),
]
Revision = Annotated[
    str | None,
    option(
        "Branch, tag or commit of a Hugging Face model, such as a training checkpoint. "
        "Default: main."
    ),
]

# ------------------------------------------------------------------ tracing

Bos = Annotated[
    bool | None,
    option(
        "Start the prompt with the beginning-of-sequence token, or without it. Default: as the "
        "model's tokenizer does.",
        "--bos/--no-bos",
    ),
]
Estimator = Annotated[
    str,
    option(
        f"How edges are ranked: {', '.join(ESTIMATORS)}. greedy is the paper's method; those after "
        "it give tighter traces and take longer.",
        choices=ESTIMATORS,
    ),
]
Estimators = Annotated[
    str,
    option(
        f"How edges are ranked: {', '.join(ESTIMATORS)}. Several names, separated by commas, are "
        "swept one after the other.",
        choices=ESTIMATORS,
    ),
]
_KEEP = (
    "Kinds of edges that are never ablated: attention, mlp or residual, joined by + if there are "
    "several. none is the paper's definition; attention is what the authors' released evaluation "
    "computes."
)
Keep = Annotated[str, option(_KEEP, choices=["none", *KINDS])]
Keeps = Annotated[
    str,
    option(
        f"{_KEEP} Several choices, separated by commas, are swept one after the other.",
        choices=["none", *KINDS],
    ),
]
Importance = Annotated[
    str,
    option(
        f"Edge importance by which greedy ranks: {', '.join(IMPORTANCES)}; leverage(k) uses the "
        "top k directions of a node's in-edges.",
        choices=IMPORTANCES,
    ),
]
Ablation = Annotated[
    str,
    option(
        "What replaces an ablated edge: zero, mean (over reference text) or resample (its value on "
        "another prompt).",
        choices=ABLATIONS,
    ),
]
Sizes = Annotated[
    str | None,
    option(
        f"Relative sizes, such as 0.001,0.01,0.1. Default: the paper's {len(SIZES)}; for sweep "
        f"--controls all, the {ESTIMATOR_SIZE_COUNT} at which estimators are compared."
    ),
]
Refine = Annotated[
    int,
    option(
        "Add at most this many sizes where the curve changes fast and where head and tail are "
        "restored; 0 measures only the grid.",
        min=0,
    ),
]
Memory = Annotated[
    float | None,
    option(
        "GiB that one pass may take. Default: "
        f"{MEMORY_BUDGET / 2**30:g} for a forward pass on a CPU and {DEVICE_BUDGET / 2**30:g} on a "
        f"GPU; {GRADIENT_BUDGET / 2**30:g} for a pass with gradients."
    ),
]
Json = Annotated[bool, option("Print one JSON object instead of tables.", "--json")]

# ------------------------------------------------------------------ one prompt

TABLES = ("short", "full")

Corrupted = Annotated[
    str | None, option("Second prompt for --ablation resample, with the same number of tokens.")
]
Reference = Annotated[
    Path | None, option("Text for --ablation mean. Default: a built-in text.", dir_okay=False)
]
Target = Annotated[
    list[str] | None,
    option(
        "Also measure the probability of this token. Estimators that are fitted rank edges towards "
        "it. Quote it with its leading space: --target ' Rome'."
    ),
]
Against = Annotated[
    list[str] | None,
    option(
        "Measure the logit difference between --target and this token instead: --target ' Rome' "
        "--against ' Paris'. If either option is repeated, mean logits are compared."
    ),
]
Alone = Annotated[
    bool,
    option(
        "Measure only this trace. By default the paper's definition, the same with attention left "
        "in place and a tighter trace are also measured.",
        "--alone",
    ),
]
Table = Annotated[
    str,
    option(
        "short: about ten sizes of each trace, in 80 columns; full: every size and column.",
        choices=TABLES,
    ),
]

# ------------------------------------------------------------------ many prompts

Controls = Annotated[
    str,
    option(
        "Controls to run besides the trace: none; size, a random subgraph and the inverses of "
        "both; all, also those of the estimator, which are a wrong target, a sibling prompt, noise "
        "and another seed.",
        choices=WHICH_CONTROLS,
    ),
]
Words = Annotated[
    str | None,
    option("LOW:HIGH, such as 20:60. Cut each text after a word, to this many tokens."),
]
Corrupt = Annotated[
    str,
    option(
        "Corrupt each text before it is traced: shuffle its words, or replace tokens at random.",
        choices=CORRUPTIONS,
    ),
]
Speed = Annotated[
    str,
    option(
        f"Speed of the device for --dry-run: {' or '.join(SPEEDS)}, or the FLOP per second that "
        "forward passes achieve, such as 4e14."
    ),
]

# ------------------------------------------------------------------ circuits

Task = Annotated[
    str,
    option(
        f"{', '.join(TASKS)}; {', '.join(GROUND_TRUTHS)}, each with its own model whose circuit is "
        "known; a JSONL, JSON or CSV file with the fields clean, corrupted, answers and "
        "wrong_answers, or in a layout of the MIB benchmark; or a Hugging Face data set in one of "
        "these layouts, such as mib-bench/ioi.",
        choices=[*TASKS, *GROUND_TRUTHS],
    ),
]
TaskModel = Annotated[
    str | None,
    option(
        f"A Hugging Face name, a local folder or a GGUF file. Default: {DEFAULT_MODEL} (built in)."
    ),
]
CircuitAblation = Annotated[
    str,
    option(
        f"What an edge outside a circuit carries: {', '.join(EDGE_ABLATIONS)}.",
        choices=EDGE_ABLATIONS,
    ),
]
Metric = Annotated[
    str | None, option(f"{', '.join(METRICS)}. Default: the task's metric.", choices=METRICS)
]
PrependBos = Annotated[
    bool,
    option(
        "Start each prompt of a file with one BOS token even if the tokenizer adds none, as MIB "
        "does.",
        "--prepend-bos",
    ),
]
Methods = Annotated[
    str,
    option(f"Names separated by commas, or all: {', '.join(METHODS)}.", choices=[*METHODS, "all"]),
]
Ranking = Annotated[
    str,
    option(
        "How estimated effects are ranked. mib: by sign for CPR, and by magnitude for CMD, for "
        "circuits and for everything else. signed: by sign, so that edges which hurt the metric "
        "come last. absolute: by magnitude.",
        choices=RANKED_BY,
    ),
]


# ------------------------------------------------------------------ parsing


def budgets(memory: float | None) -> tuple[int | None, int]:
    """Return the budgets, in bytes, of a forward pass (None: by device) and one with gradients."""
    if memory is None:
        return None, GRADIENT_BUDGET
    if not memory > 0:
        raise ValueError(f"memory_budget must be positive; got {memory:g} GiB")
    return int(memory * 2**30), int(memory * 2**30)


def parse_keep(text: str) -> tuple[str, ...]:
    """Parse kinds of edges joined by "+" or ",", as in attention+mlp; "none" means none."""
    given = [part.strip() for part in re.split("[+,]", text)]
    return () if given == ["none"] else kinds_to_keep(given)


def parse_target(
    target: Sequence[str] | None, against: Sequence[str] | None
) -> str | tuple[list[str], list[str]] | None:
    """Return what --target and --against ask for together; None where neither is given."""
    if not target and not against:
        return None
    if not target:
        raise ValueError("--against needs a --target to compare with, such as --target ' Rome'")
    if against:
        return list(target), list(against)
    if len(target) > 1:
        raise ValueError(
            f"--target was given {len(target)} times, which is a set to compare with another; "
            "add --against, or give one token"
        )
    return target[0]


def parse_device_map(text: str | None) -> str | dict[str, str | int] | None:
    """Return the name of a device map, or the device map that a .json file holds."""
    if text is None or not text.endswith(".json"):
        if text is not None:
            expect_map(text)
        return text
    found = parse_object(Path(text).read_bytes(), text)
    if not found or not all(type(value) in (str, int) for value in found.values()):
        raise ValueError(f"{text} must hold one object, with the device of each part by its name")
    return found


def parse_sizes(text: str | None) -> tuple[float, ...] | None:
    """Parse relative sizes separated by commas and sort them; None stays None."""
    if text is None:
        return None
    try:
        sizes = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"--sizes takes numbers separated by commas; got {text!r}") from None
    for size in sizes:
        if not 0 < size <= 1:
            raise ValueError(f"sizes must lie in (0, 1]; got {size}")
    return tuple(sizes)


def parse_speed(text: str) -> str | float:
    """Return a name in `SPEEDS`, or a number of FLOP per second."""
    try:
        return float(text)
    except ValueError:
        expect_speed(text)
        return text


def parse_words(text: str | None) -> tuple[int, int] | None:
    """Parse LOW:HIGH; None stays None."""
    if text is None:
        return None
    try:
        low, high = (int(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(f"--words takes LOW:HIGH in tokens, as 20:60; got {text!r}") from None
    return low, high


def parse_names(text: str) -> list[str]:
    """Parse names separated by commas and drop repetitions."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def expect_choice(value: str, choices: Iterable[str], what: str) -> None:
    """Refuse a value that is not one of the choices."""
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}; choose from {', '.join(choices)}")


def prompt_text(
    given: str | None, file: Path | None, what: str = "a prompt", name: str = "--prompt-file"
) -> str:
    """Return the text that is given, directly or in a file: one of the two."""
    if (given is None) == (file is None):
        raise ValueError(f"give either {what} or {name}, one of the two")
    return (given or "") if file is None else read_prompt(file)
