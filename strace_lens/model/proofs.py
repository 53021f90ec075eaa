"""What was proven of a model of the cache of GGUF files, remembered beside it from run to run.

Of the proof that a model can be traced (`checks`), one part takes most of the time: that a write at
each hook point reaches the output, two passes of four rows a layer. Its result is remembered, for
the weights of one entry of the cache on one device and for the code that ran: the versions of torch
and transformers, and every source file of TransformerLens and of this room. All else is proven at
every load: that what is read adds up, and that the model gives the distributions of transformers.
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

import torch

from strace_lens.model.architecture import Model, device_of
from strace_lens.utils.disk import write_whole
from strace_lens.utils.versions import version_of

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


def recalled(proof: Path) -> bool | None:
    """Whether writes to patterns reached the output; None if this was not proven before."""
    with suppress(OSError):
        return {b"live": True, b"dead": False}.get(proof.read_bytes())
    return None


def remember(proof: Path, pattern_is_live: bool) -> None:
    """Write the result of a proof, where anything can be written."""
    with suppress(OSError):
        proof.parent.mkdir(parents=True, exist_ok=True)
        write_whole(proof, b"live" if pattern_is_live else b"dead")


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
