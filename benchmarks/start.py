"""What a user waits for: from the keystroke to the help text, to the model, and to the first page.

Every line is a process of its own, as a user starts it. The yardstick is a bare script that imports
torch and TransformerLens, loads the weights of the default model from safetensors with transformers
and boots a bridge: whoever works with TransformerLens waits for that much in any case.
Run: python -m benchmarks.start
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import fastest, report

HERE = Path(__file__).resolve().parents[1]
REPEATS = 3
HELP_SECONDS = 0.5
IMPORT_SECONDS = 0.3

PROMPT = (
    "Paris is the capital of France, Tokyo is the capital of Japan, and the capital of Italy is"
)
COMMAND = (sys.executable, "-m", "strace_lens.cli")
TRACE = (*COMMAND, "trace", PROMPT)

BARE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformer_lens.model_bridge import TransformerBridge
hf = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
bridge = TransformerBridge.boot_transformers("bare", hf_model=hf, tokenizer=tokenizer)
bridge.enable_compatibility_mode(no_processing=True)
print(bridge(torch.tensor([tokenizer(sys.argv[2]).input_ids]))[0, -1].argmax())
"""


class Spent(NamedTuple):
    """Seconds that a process took.

    Attributes:
        wall: from its start to its end.
        processor: of all its threads.
    """

    wall: float
    processor: float


def spent(command: Sequence[str], folder: Path, **variables: str) -> Spent:
    """Run a command in a folder to its end; raises CalledProcessError where it fails.

    The environment is this one, with other variables in it.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    kept = {"STRACE_LENS_CACHE": str(folder / "cache"), "PYTHONPATH": str(HERE), **variables}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env={**os.environ, **kept})
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(wall, used)


def main() -> None:
    """Time the start, and the README's trace against the bare script."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)

        def run(*command: str) -> Callable[[], Spent]:
            return lambda: spent(command, folder)

        shown, imported = fastest(
            [run(*COMMAND, "--help"), run(sys.executable, "-c", "import strace_lens")], REPEATS
        )
        report("strace-lens --help", shown, HELP_SECONDS, at_most=True, unit=" s")
        report("import strace_lens", imported, IMPORT_SECONDS, at_most=True, unit=" s")
        spent(TRACE, folder)  # dequantises the default model into the cache of this benchmark
        (weights,) = (folder / "cache").rglob("model.safetensors")
        script = run(sys.executable, "-c", BARE, str(weights.parent), PROMPT)
        bare, trace = fastest([script, run(*TRACE)], REPEATS)
        report("the README's trace, times a bare script that loads", trace / bare, 1.5, True)


if __name__ == "__main__":
    main()
