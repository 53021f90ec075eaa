"""What was proven of a model of the cache of GGUF files, remembered beside it from run to run.

The proof that a model can be traced (`checks`) takes nine passes, two of them of four rows a layer.
What it found is remembered, with the hash of the weights, for one entry of the cache on one device
and for the code that ran: the versions of torch and transformers, and every source file of
TransformerLens and of this room. That the model gives the distributions of transformers is proven
at every load.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from strace_lens.model.architecture import Model, device_of
from strace_lens.utils.disk import write_whole
from strace_lens.utils.versions import version_of


class Proof(NamedTuple):
    """What is known of a model without running it.

    Attributes:
        facts: of its architecture, those of `checks.FROM_A_RUN`.
        weights: their hash (`weights.weights_hash`).
    """

    facts: dict[str, Any]
    weights: str


_PACKAGES = ("strace-lens", "torch", "transformers", "transformer-lens")


def proof_file(folder: Path, model: Model) -> Path:
    """The file of a proof, named after all that its result depends on.

    Args:
        folder: of the proofs of this model, whose weights are as they were read.
        model: the model.
    """
    device = device_of(model)
    if device.type == "cuda":
        named = torch.cuda.get_device_name(device)
    else:
        named = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    facts = [
        *(str(device), named, torch.get_float32_matmul_precision(), _code()),
        *(version_of(name) for name in _PACKAGES),
    ]
    return folder / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def recalled(file: Path) -> Proof | None:
    """What was proven before; None if nothing was or the file is not as it was written."""
    with suppress(OSError):
        checksum, _, told = file.read_bytes().partition(b"\n")
        if checksum == _checksum(told):
            facts, weights = json.loads(told)
            lists = {name: tuple(x) for name, x in facts.items() if isinstance(x, list)}
            return Proof(facts | lists, weights)
    return None


def remember(file: Path, proof: Proof) -> None:
    """Write what was proven, where anything can be written."""
    told = json.dumps(proof).encode()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, _checksum(told) + b"\n" + told)


def _checksum(told: bytes) -> bytes:
    return hashlib.sha256(told).hexdigest().encode()


@functools.cache
def _code() -> str:
    """A hash of the source files of this room and of TransformerLens."""
    digest = hashlib.sha256()
    for folder in _rooms():
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder)} {file.stat().st_size};".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _rooms() -> Iterator[Path]:
    yield Path(__file__).parent
    found = importlib.util.find_spec("transformer_lens")
    if found is not None and found.origin is not None:
        yield Path(found.origin).parent
