"""What the paper's study would cost: ten models of 7 to 14B, 5,000 passages, both ways of ablation.

Nothing is run and no weight is read: `plan_sweep` adds up what each sweep takes, from the shapes
of ten models as their makers published them. Which ten the paper used is not told by our sources
beyond their families, so these stand for them.
Run: python -m benchmarks.replication [--models Llama-2-7B Qwen3-8B] [--workers 8] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import transformers as tf

import strace_lens as sl
from strace_lens.cli.dry_run import duration
from strace_lens.cli.options import parse_speed
from strace_lens.corpus.plan import SweepPlan, plan_sweep
from strace_lens.density.cost import as_text

PASSAGES, TOKENS = 5000, 52
"""Passages of 40 words, at 1.3 tokens a word."""

ESTIMATORS = ("greedy", "fisher")
KEEPS: tuple[tuple[str, ...], ...] = ((), ("attention",))
BUDGET = 2**33
"""Bytes of a pass: 8 GiB, which leaves room beside the weights of 14B on a device of 80 GiB."""


def _shape(
    layers: int, width: int, heads: int, kv_heads: int, inner: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Llama-2-7B": (tf.LlamaConfig, _shape(32, 4096, 32, 32, 11_008, 32_000)),
    "Llama-3.1-8B": (tf.LlamaConfig, _shape(32, 4096, 32, 8, 14_336, 128_256)),
    "Mistral-7B": (tf.MistralConfig, _shape(32, 4096, 32, 8, 14_336, 32_768)),
    "OLMo-2-7B": (tf.Olmo2Config, _shape(32, 4096, 32, 32, 11_008, 100_352)),
    "OLMo-2-13B": (tf.Olmo2Config, _shape(40, 5120, 40, 40, 13_824, 100_352)),
    "Qwen2.5-7B": (tf.Qwen2Config, _shape(28, 3584, 28, 4, 18_944, 152_064)),
    "Qwen3-8B": (tf.Qwen3Config, _shape(36, 4096, 32, 8, 12_288, 151_936, head_dim=128)),
    "Qwen3-14B": (tf.Qwen3Config, _shape(40, 5120, 40, 8, 17_408, 151_936, head_dim=128)),
    "Gemma-3-12B": (
        tf.Gemma3TextConfig,
        _shape(48, 3840, 16, 8, 15_360, 262_208, head_dim=256, tie_word_embeddings=True),
    ),
    "Phi-3-medium-14B": (tf.Phi3Config, _shape(40, 5120, 40, 10, 17_920, 32_064)),
}
"""Configurations of the ten models, in the shapes that their makers published."""


def replication(names: Sequence[str], workers: int, speed: str | float) -> dict[str, SweepPlan]:
    """The plan of the sweeps of each of some models."""
    options = sl.Options(memory_budget=BUDGET, gradient_budget=BUDGET, refine=0)
    return {
        name: plan_sweep(
            kind(**shape),
            [TOKENS] * PASSAGES,
            options,
            estimators=ESTIMATORS,
            keep=KEEPS,
            dtype="bfloat16",
            speed=speed,
            workers=workers,
        )
        for name, (kind, shape) in MODELS.items()
        if name in names
    }


def main() -> None:
    """Print a line for each model and the sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--speed", default="h100")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    plans = replication(given.models, given.workers, parse_speed(given.speed))
    total = {
        "flops": sum(plan.flops for plan in plans.values()),
        "seconds": sum(plan.seconds for plan in plans.values()),
        "disk_bytes": sum(plan.disk_bytes for plan in plans.values()),
        "rows": sum(plan.rows for plan in plans.values()),
        "most_bytes": max(plan.weights_bytes + plan.peak_bytes for plan in plans.values()),
    }
    if given.json:
        each = {name: plan.to_dict() for name, plan in plans.items()}
        print(json.dumps({"models": each, "total": total}))
        return
    print(f"{PASSAGES:,} passages of {TOKENS} tokens; {next(iter(plans.values())).speed}")
    print("model              weights    beside them     rows    FLOP      time        disk")
    for name, plan in plans.items():
        print(
            f"{name:<17} {as_text(plan.weights_bytes):>9} {as_text(plan.peak_bytes):>12} "
            f"{plan.rows:>11,} {plan.flops:.1e} {duration(plan.seconds):>11} "
            f"{as_text(plan.disk_bytes):>9}"
        )
    print(
        f"all: {total['rows']:,} rows, {total['flops']:.1e} FLOP, {duration(total['seconds'])} "
        f"on {given.workers}, {as_text(total['disk_bytes'])} on disk"
    )


if __name__ == "__main__":
    main()
