"""A model known by its configuration alone: its architecture and bytes, without its weights.

The model is made of transformers' own modules on torch's meta device, where tensors have shapes and
no values, and is read as a loaded one is. What only a run can tell is told by a run of a small
model with random weights and the same configuration, two layers deep.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from strace_lens.model.architecture import Architecture, Model, UnsupportedModelError, describe
from strace_lens.model.checks import check
from strace_lens.model.gguf_cache import kept_configuration
from strace_lens.model.hold import verb
from strace_lens.model.load import (
    DTYPES,
    ModelNotFoundError,
    locate,
    reason_of,
    tokenizer_of,
    wrapped,
)
from strace_lens.utils.choices import DEFAULT_MODEL as DEFAULT
from strace_lens.utils.progress import quiet

TOKENS_A_WORD = 1.4
"""What a word of English counts as where there is no tokenizer."""

_WORDS = 64
_NARROW = {"vocab_size": _WORDS, "intermediate_size": 64}
_HEADS = 4


@dataclass(frozen=True, eq=False)
class Skeleton:
    """What a configuration says of a model.

    Attributes:
        name: the model's.
        architecture: as `architecture_of` gives it for the loaded model, in all that sets costs.
        dtype: that the weights would be loaded in.
        weights_bytes: of all weights, each tied one once.
        tokenizer: the model's own; None where it cannot be had.
        assumptions: what had to be taken for granted, one sentence each.
    """

    name: str
    architecture: Architecture
    dtype: torch.dtype
    weights_bytes: int
    tokenizer: Any = None
    assumptions: tuple[str, ...] = ()


@verb
def skeleton(
    model: str | Path | Any = DEFAULT, *, dtype: str = "float32", revision: str | None = None
) -> Skeleton:
    """Read a model's architecture off its configuration; no weights are read.

    Args:
        model: as for `load_model`, of which only the configuration (for a GGUF file its metadata)
            and the tokenizer are read; or a configuration of transformers.
        dtype: float32, bfloat16 or float16.
        revision: as for `load_model`.

    Raises:
        ModelNotFoundError: there is no configuration under that name.
        UnsupportedModelError: a model of that configuration cannot be traced.
        ValueError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    tokenizer = None
    if isinstance(model, str | Path):
        name, config, tokenizer = _read(str(model), revision, DTYPES[dtype])
    else:
        name, config = str(model.model_type), model
    assumptions = []
    # Modules draw their values even where they keep none.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _made(name, config, DTYPES[dtype], "meta")
        # Before a bridge is made of it, which on TransformerLens 3.9 adds a bias.
        weights_bytes = sum(p.nbytes for p in made.parameters())
        architecture, small = _described(name, config, made), _small(name, config)
        if small is None:
            live = False  # the costlier answer is the safe one
            assumptions.append(
                "attention is taken to be computed twice: no small model could be made"
            )
        else:
            live = check(small, describe(small)).pattern_is_live
    return Skeleton(
        name=name,
        architecture=dataclasses.replace(architecture, pattern_is_live=live),
        dtype=DTYPES[dtype],
        weights_bytes=weights_bytes,
        tokenizer=tokenizer,
        assumptions=tuple(assumptions),
    )


def skeleton_of(model: Model) -> Skeleton:
    """What the configuration of a loaded model says of it."""
    loaded: Any = model
    return Skeleton(
        name=loaded.cfg.model_name,
        architecture=describe(model, causal_only=False),
        dtype=next(loaded.parameters()).dtype,
        weights_bytes=sum(p.nbytes for p in loaded.parameters()),
        tokenizer=loaded.tokenizer,
    )


def _read(model: str, revision: str | None, dtype: torch.dtype) -> tuple[str, Any, Any]:
    """Name, configuration and tokenizer."""
    from transformers import AutoConfig

    name, source, gguf = locate(model, revision)
    if gguf is not None and (kept := kept_configuration(Path(source, gguf), dtype)) is not None:
        return name, *kept
    file: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    with quiet():
        try:
            config = AutoConfig.from_pretrained(source, **file, **at)
        except (OSError, ValueError, KeyError) as error:
            raise ModelNotFoundError(
                f"cannot read the configuration of {str(Path(source, gguf or ''))!r}: "
                f"{reason_of(error)}"
            ) from error
        try:
            tokenizer = tokenizer_of(source, gguf, revision)
            # A folder that holds none yields an empty one, which makes nothing of any text.
            return name, config, tokenizer if tokenizer("a").input_ids else None
        except (OSError, ValueError, KeyError, ImportError):
            return name, config, None


def _made(name: str, config: Any, dtype: torch.dtype, device: str) -> Any:
    """A model of transformers, with random values on the CPU and with none on the meta device."""
    from transformers import AutoModelForCausalLM

    try:
        with quiet(), torch.device(device):
            made = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=dtype, attn_implementation="eager"
            )
    except ValueError as error:
        raise UnsupportedModelError(f"{name} cannot be traced: {reason_of(error)}") from error
    # A configuration that was never saved does not say of which class its model is.
    made.config.architectures = made.config.architectures or [type(made).__name__]
    return made.eval()


def _described(name: str, config: Any, made: Any) -> Architecture:
    """The architecture of a model without values."""
    try:
        return describe(textless(name, made))
    except UnsupportedModelError as error:
        if not isinstance(error.__cause__, NotImplementedError):
            raise
    # A matrix that holds queries, keys and values, or gates and inputs, is cut up when it is
    # wrapped, which asks for values, whatever they are. One layer of them shows the others.
    one = _of_layers(config, 1)
    block = _made(name, one, next(made.parameters()).dtype, "meta").to_empty(device="cpu")
    return dataclasses.replace(describe(textless(name, block)), layers=config.num_hidden_layers)


def _of_layers(config: Any, count: int) -> Any:
    """The configuration of the first layers alone."""
    fewer = copy.deepcopy(config)
    fewer.num_hidden_layers = count
    for attribute in ("layer_types", "mlp_layer_types", "no_rope_layers", "attention_layers"):
        if getattr(fewer, attribute, None):
            setattr(fewer, attribute, getattr(fewer, attribute)[:count])
    return fewer


def _small(name: str, config: Any) -> Model | None:
    """A narrow model of two layers and random weights; None where the configuration allows none."""
    small = _of_layers(config, 2)
    heads, kv_heads = small.num_attention_heads, getattr(small, "num_key_value_heads", None)
    few = min(_HEADS, heads)
    small.hidden_size = small.hidden_size // heads * few
    small.num_attention_heads = few
    if kv_heads is not None:
        small.num_key_value_heads = few if kv_heads == heads else 1
    for attribute, value in _NARROW.items():
        if getattr(small, attribute, None) is not None:
            setattr(small, attribute, value)
    for attribute in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(small, attribute, None) is not None:
            setattr(small, attribute, 0)
    try:
        return textless(name, _made(name, small, torch.float32, "cpu"))
    # Widths that depend on one another in ways of their own may fail anywhere in the model's code.
    except (ValueError, RuntimeError, AttributeError, KeyError, IndexError, TypeError):
        return None


def textless(name: str, made: Any) -> Model:
    """The bridge around a model of transformers that is never given a text, but token ids."""
    import transformers
    from tokenizers import Tokenizer, models

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special)}, "<unk>"))
    pad, bos, eos, unk = special
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk
    )
    # TransformerLens reads the tokenizer a second time from the folder that it came from.
    with quiet(), tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        return wrapped(name, made, transformers.AutoTokenizer.from_pretrained(folder))
