"""Sweeps: against prompts one by one, time and memory as they grow, Ray workers, kill -9.

The prompts are the package's own, SmolLM2 traces them. One by one is a sweep of each prompt alone
into a folder of its own, so that both sides keep the same: the curve with its controls and refined
sizes, the use of components, the geometry of the hidden states, the distances to the unigram
distribution (of the prompts of each sweep) and to the output without context, a Parquet part and a
manifest. The model is loaded and proved once for both sides. What a sweep does once is counted:
the hash of the weights, the output without context, its folder.

Memory is the peak of the resident set above what was held before. A batch has at most eight
prompts, so memory may grow up to there, and not beyond. Ratios are of single runs side by side. The
kills are real: a sweep in a process of its own is killed at random moments and started again until
it ends; its parts must be those of an undisturbed sweep to the byte.
Run: python -m benchmarks.sweeps
"""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch

import strace_lens as sl
from benchmarks.common import device, info, report, show, smollm2
from benchmarks.scaling import exponent
from strace_lens.corpus.engine import Engine, process_engine, ray_engine
from strace_lens.corpus.parts import part_paths
from strace_lens.corpus.prompts import CorpusPrompt, sample
from strace_lens.corpus.read import read_corpus
from strace_lens.corpus.setting import Options
from strace_lens.corpus.sweep import sweep
from strace_lens.utils.choices import BUILTIN, SIZES
from strace_lens.utils.peak_memory import peak_memory

PROMPTS, GOAL = 32, 0.6
MEMORY_GOAL = 1.1
RAY_PROMPTS, RAY_GOAL = 16, 1.6
KILLS = 5
SEED = 0


def swept(prompts: Sequence[CorpusPrompt], options: Options, engine: Engine | None = None) -> float:
    """Seconds of a sweep into a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        model = None if engine else smollm2()
        sweep(model, prompts, Path(folder) / "run", options, engine=engine)
        return time.perf_counter() - began


def one_by_one(prompts: Sequence[CorpusPrompt], options: Options) -> float:
    """Seconds of a sweep of each prompt alone."""
    return sum(swept([prompt], options) for prompt in prompts)


def against_one_by_one(prompts: Sequence[CorpusPrompt]) -> None:
    """A sweep's seconds as a share of those one by one."""
    options, cores = Options(), torch.get_num_threads()
    swept(prompts[:2], options)
    alone, together = one_by_one(prompts, options), swept(prompts, options)
    single = dataclasses.replace(options, threads=1)
    processes = swept(prompts, single, process_engine(sl.load_model, cores))
    report(
        f"sweep of {len(prompts)} prompts in {cores} processes against one by one, same outputs "
        "kept, loading included",
        processes / alone,
        GOAL,
        at_most=True,
    )
    info(
        f"one by one {alone:.1f} s; one sweep in this process {together:.1f} s, "
        f"{together / alone:.2f}x; in {cores} processes of one thread {processes:.1f} s"
    )


def scaling() -> None:
    """Seconds for each prompt, and memory, as prompts, tokens and sizes grow, one at a time."""
    text = Path(sl.__file__).with_name("data").joinpath("reference.txt").read_text("utf-8").split()

    def cost(prompts: int, words: int, sizes: Sequence[float]) -> dict[str, float]:
        given = [CorpusPrompt(" ".join(text[i : i + words])) for i in range(prompts)]
        with peak_memory(device()) as peak:
            seconds = swept(given, Options(sizes=tuple(sizes)))
        return {
            "prompts": prompts,
            "words": words,
            "sizes": len(sizes),
            "seconds": seconds,
            "a_prompt": seconds / prompts,
            "peak_mb": peak.bytes / 1e6,
        }

    tables = {
        "prompts": [cost(n, 12, SIZES) for n in (2, 4, 8, 16)],
        "words": [cost(4, n, SIZES) for n in (8, 16, 32, 64)],
        "sizes": [cost(4, 12, SIZES[-n:]) for n in (3, 9, 27)],
    }
    for growing, rows in tables.items():
        info(f"seconds of a sweep as its {growing} grow:")
        show(pd.DataFrame(rows))
        slope = exponent([r[growing] for r in rows], [r["a_prompt"] for r in rows])
        info(f"exponent of seconds a prompt in {growing}: {slope:.2f}")
    above = {row["prompts"]: row["peak_mb"] for row in tables["prompts"]}
    report(
        "peak memory of a sweep of 16 prompts against one of 4",
        above[16] / above[4],
        MEMORY_GOAL,
        at_most=True,
    )


def ray_workers(prompts: Sequence[CorpusPrompt]) -> None:
    """Two workers against one, each with one thread, and against this process with as many."""
    options = Options(threads=1)
    one, two = (swept(prompts, options, ray_engine(sl.load_model, n)) for n in (1, 2))
    here = swept(prompts, Options(threads=2))
    report(
        f"two Ray workers against one, {len(prompts)} prompts, {torch.get_num_threads()} cores, "
        "start of Ray and loading included",
        one / two,
        RAY_GOAL,
    )
    info(
        f"one worker of one thread {one:.1f} s, two {two:.1f} s; this process with two threads "
        f"{here:.1f} s"
    )


def killed(run: Callable[[Path], Sequence[str]], moments: Sequence[float]) -> None:
    """Kill a sweep at each moment after its first part, start it again, compare its parts."""
    with tempfile.TemporaryDirectory() as root:
        whole, torn = Path(root) / "whole", Path(root) / "torn"
        subprocess.run(run(whole), check=True, capture_output=True)
        again = 0
        for moment in moments:
            before = {p: p.stat().st_mtime_ns for p in part_paths(torn)}
            process = subprocess.Popen(
                run(torn), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while process.poll() is None and len(part_paths(torn)) <= len(before):
                time.sleep(0.01)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.wait()
            again += sum(p.stat().st_mtime_ns != t for p, t in before.items())
            info(f"killed {moment:.2f} s after a part was written: {len(part_paths(torn))} parts")
        before = {p: p.stat().st_mtime_ns for p in part_paths(torn)}
        subprocess.run(run(torn), check=True, capture_output=True)
        again += sum(p.stat().st_mtime_ns != t for p, t in before.items())
        pairs = list(zip(part_paths(whole), part_paths(torn), strict=True))
        same = all(a.read_bytes() == b.read_bytes() for a, b in pairs)
        info(
            f"{len(moments)} kills, then resumed: {len(pairs)} parts "
            f"{'equal to the byte' if same else 'THAT DIFFER'}, whole parts done again: {again}"
        )
        if not same or again:
            raise RuntimeError("a resumed sweep is not the undisturbed one")


def command(prompts: Path, out: Path) -> list[str]:
    """A sweep of few sizes by the command line, so that batches take a second or two."""
    sizes = ["--sizes", "0.01,0.1,0.2,0.4,1", "--controls", "none"]
    return [
        sys.executable,
        "-m",
        "strace_lens.cli",
        "sweep",
        str(prompts),
        "--out",
        str(out),
        *sizes,
    ]


def main() -> None:
    """Print every comparison."""
    prompts = sample(read_corpus(BUILTIN), PROMPTS, SEED)
    against_one_by_one(prompts)
    scaling()
    ray_workers(prompts[:RAY_PROMPTS])
    draw = random.Random(SEED)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.txt"
        texts = [" ".join(p.text.split()) for p in read_corpus(BUILTIN)]
        file.write_text("\n".join(texts) + "\n", encoding="utf-8")
        killed(
            lambda out: command(file, out),
            sorted(draw.uniform(0, 3) for _ in range(KILLS)),
        )


if __name__ == "__main__":
    main()
