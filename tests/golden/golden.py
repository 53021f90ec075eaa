"""What the package gives for a few prompts, tasks and runs, kept so that no redesign changes it.

    python tests/golden/golden.py --write    # keep what today's code gives, after a wanted change
    python tests/golden/golden.py            # compare, name every difference, exit 1 on any

Every part is made by the commands, or by verbs of the top of the package, so that modules may move
beneath them. Numbers are kept to eight digits and compared to 1e-5.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from typer.testing import CliRunner

import strace_lens as sl
from strace_lens.cli import app
from tests import tiny

FOLDER = Path(__file__).parent / "tables"
ABSOLUTE = RELATIVE = 1e-5
GRID = "0.01,0.03,0.1,0.2,0.3,0.45,0.7,1"
PROMPTS = {
    "capital": "The capital of France is",
    "italy": "Paris is the capital of France, Tokyo is the capital of Japan, "
    "and the capital of Italy is",
    "code": "for i in range(10):\n    print(",
}
NOT_KEPT = {"seconds", "versions", "memory", "peak_memory", "peak_mb", "version", "files", "bytes"}
"""Fields that differ between machines, versions or folders."""


def command(*arguments: object) -> str:
    """Standard output of a command."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exit_code:
        raise SystemExit(f"strace-lens {arguments} failed: {result.output}")
    return result.stdout


def trace_of(prompt: str) -> object:
    with tempfile.TemporaryDirectory() as out:
        told = command("trace", prompt, "--sizes", GRID, "--json", "--out", out)
    return json.loads(told)


def compare_of(task: str, *options: object) -> object:
    with tempfile.TemporaryDirectory() as out:
        told = command("compare", "--task", task, *options, "--json", "--out", out)
    return json.loads(told)


def tiny_task() -> object:
    """The indirect-object task, made for a tiny random model that cannot do it.

    Without ACDC, whose order of edges that cost nothing is that of their rounding.
    """
    pairs = [
        {
            "clean": f"the {a} of {b} is {c} , the {a} of {d} is",
            "corrupted": f"the {a} of {b} is {c} , the {a} of {b} is",
            "answers": [e],
            "wrong_answers": [c],
        }
        for a, b, c, d, e in (
            ("capital", "France", "Paris", "Japan", "Tokyo"),
            ("capital", "Japan", "Tokyo", "Italy", "Rome"),
            ("city", "England", "London", "France", "Paris"),
            ("capital", "Italy", "Rome", "England", "London"),
        )
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny-llama"
        tiny.hf_model("llama").save_pretrained(model)
        tiny.tokenizer().save_pretrained(model)
        task = Path(folder) / "capitals.jsonl"
        task.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
        return compare_of(
            *(str(task), "--model", model, "--methods", "eap,eap-ig,relp,node-patching,random"),
        )


def sweep_tables() -> object:
    """The tables of `phases` over sixteen prompts and two estimators."""
    with tempfile.TemporaryDirectory() as folder:
        run, out = Path(folder) / "run", Path(folder) / "phases"
        command(
            *("sweep", "builtin", "--limit", 16, "--estimator", "greedy,fisher", "--sizes", GRID),
            *("--refine", 4, "--threads", 2, "--out", run),
        )
        command("phases", run, "--out", out)
        tables = {path.name: pd.read_csv(path) for path in sorted(out.glob("*.csv"))}
        # Of a long table some two hundred rows are kept, evenly spaced.
        return {
            name: table.iloc[:: max(1, len(table) // 200)].to_dict("list")
            for name, table in tables.items()
        }


def tiny_ranks() -> object:
    """The rank that every estimator gives each edge of a tiny model."""
    model = tiny.bridge("llama")
    graph = sl.token_graph(model, tiny.PROMPT)
    return {name: _packed(sl.estimate(model, graph, name).ranks.flat()) for name in sl.ESTIMATORS}


def smollm2_fits() -> object:
    """Total variation along the fitted traces of the default model."""
    model = sl.load_model()
    graph = sl.token_graph(model, PROMPTS["italy"])
    sizes = [float(s) for s in GRID.split(",")]
    return {
        name: sl.density_curve(
            model, sl.estimate(model, graph, name), sizes=sizes, refine=0, controls=False
        )
        .table["tv"]
        .tolist()
        for name in ("fisher", "pruned")
    }


PARTS: dict[str, Callable[[], object]] = {
    "tiny-ranks": tiny_ranks,
    "compare-tiny": tiny_task,
    "compare-tracr-reverse": lambda: compare_of("tracr-reverse"),
    **{f"trace-{name}": lambda prompt=prompt: trace_of(prompt) for name, prompt in PROMPTS.items()},
    "smollm2-fits": smollm2_fits,
    "sweep": sweep_tables,
}
"""What is kept, the quickest first."""


def _packed(values: torch.Tensor) -> str:
    """Whole numbers as text, for values that are compared as a whole."""
    return base64.b64encode(zlib.compress(values.to(torch.int32).numpy().tobytes(), 9)).decode()


def plain(value: object) -> Any:
    """The value as JSON keeps it: numbers to eight digits, what differs by machine left out."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if str(k) not in NOT_KEPT}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.8g}") if math.isfinite(value) else str(value)
    if isinstance(value, np.integer):
        return int(value)
    return value


def differences(kept: Any, now: Any, where: str) -> Iterator[str]:
    """Every place at which two plain values differ, as a line."""
    numbers = isinstance(kept, int | float) and isinstance(now, int | float)
    if isinstance(kept, dict) and isinstance(now, dict):
        for key in sorted(kept.keys() | now.keys()):
            if key not in kept or key not in now:
                yield f"{where}.{key}: only in {'what is kept' if key in kept else 'what is new'}"
            else:
                yield from differences(kept[key], now[key], f"{where}.{key}")
    elif isinstance(kept, list) and isinstance(now, list) and len(kept) == len(now):
        for i, (a, b) in enumerate(zip(kept, now, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif numbers and not isinstance(kept, bool):
        if not math.isclose(kept, now, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            yield f"{where}: {kept} was kept, {now} is new"
    elif kept != now:
        yield f"{where}: {str(kept)[:60]!r} was kept, {str(now)[:60]!r} is new"


def check(name: str) -> list[str]:
    """Every difference between a part as it is kept and as it comes out now."""
    kept = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return list(differences(kept, json.loads(json.dumps(plain(PARTS[name]()))), name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help="all if none is named")
    parser.add_argument("--write", action="store_true", help="keep what comes out now")
    asked = parser.parse_args()
    found = 0
    for name in asked.parts:
        if asked.write:
            FOLDER.mkdir(exist_ok=True)
            text = json.dumps(plain(PARTS[name]()), separators=(",", ":"), sort_keys=True)
            (FOLDER / f"{name}.json").write_text(text + "\n", "utf-8")
            print(f"{name}: written", flush=True)
            continue
        lines = check(name)
        found += len(lines)
        print(f"{name}: {'equal' if not lines else f'{len(lines)} differences'}", flush=True)
        print("".join(f"  {line}\n" for line in lines[:20]), end="", flush=True)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
