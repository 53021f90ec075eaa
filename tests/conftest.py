"""What every test stands on: shapes checked at run time, one thread, determinism, no hub."""

from __future__ import annotations

import os

# Read when their libraries are first imported, so set before torch, numba and transformers are.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Beartype checks each annotation of the package, jaxtyping the shapes in them. The hook sees only
# modules that are imported after it: conftest itself must not import strace_lens above this line.
install_import_hook("strace_lens", "beartype.beartype")

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)  # also fills fresh memory with NaN: a read of it shows

# A deadline would assert a timing. In CI the examples are the same every time.
settings.register_profile("tests", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("tests")


SPANNING = {"llama", "gpt2", "gemma2", "gptj", "mixtral", "attention_only", "shortformer"}
"""Tiny models that span the traits by which code branches: grouped queries and biases, learned and
rotary positions, norms after their writers and a window, parallel blocks with a dead pattern,
experts, no MLPs, positions that queries and keys alone see."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases of every other tiny model as extended: `make test-all` runs them."""
    from tests import tiny

    others = {*tiny.BRIDGES, *tiny.HOOKED} - SPANNING
    for item in items:
        callspec = getattr(item, "callspec", None)
        values = callspec.params.values() if callspec else ()
        if others.intersection(v for v in values if isinstance(v, str)):
            item.add_marker(pytest.mark.extended)
