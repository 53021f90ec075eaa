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
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from strace_lens.model.architecture import Model, device_of
from strace_lens.model.gguf_cache import Entry
from strace_lens.utils.manifest import ManifestKind, manifest_of, read_manifest, write_manifest
from strace_lens.utils.versions import version_of

_KIND = ManifestKind(
    format="strace-lens-proof/1",
    noun="proof",
    values=("facts", "pattern_is_live"),
    in_words={},
    way_out="remove it",
)
_PACKAGES = ("strace-lens", "torch", "transformers", "transformer-lens")


@dataclass(frozen=True)
class Proof:
    """A proof that may have been made before.

    Attributes:
        folder: where it is remembered.
        facts: all that its result depends on.
    """

    folder: Path
    facts: Mapping[str, str]

    @staticmethod
    def of(entry: Entry, model: Model) -> Proof:
        """The proof of a model that was read from an entry and is as it was read."""
        facts = _facts(entry, device_of(model))
        # One for each device and TransformerLens, so that two environments do not undo each other.
        name = re.sub(r"[^0-9A-Za-z.]", "-", f"{facts['device']} {facts['transformer-lens']}")
        return Proof(entry.proofs / name, facts)

    def recalled(self) -> bool | None:
        """Whether writes to patterns reached the output; None if this proof was not made before."""
        with suppress(OSError, ValueError):
            said = read_manifest(self.folder, _KIND)
            if said["facts"] == self.facts and isinstance(said["pattern_is_live"], bool):
                return said["pattern_is_live"]
        return None

    def remember(self, pattern_is_live: bool) -> None:
        """Write the result of the proof, where anything can be written."""
        said: dict[str, Any] = {"facts": dict(self.facts), "pattern_is_live": pattern_is_live}
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_manifest(self.folder, manifest_of(_KIND, said))


def _facts(entry: Entry, device: torch.device) -> dict[str, str]:
    known_as = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    )
    return {
        "model": entry.id,  # its weights and their dtype
        "device": str(device),
        "device name": known_as,
        "products": torch.get_float32_matmul_precision(),
        **{name: version_of(name) for name in _PACKAGES},
        "code": _code(),
    }


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
