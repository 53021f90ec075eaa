"""Models of GGUF files, kept as safetensors in the user's cache folder after their first load.

transformers parses a GGUF file three times and dequantises each weight of it: some fifteen seconds
for the default model, of which reading the same weights from safetensors takes half of one. What is
kept has the weights, the configuration and the tokenizer that the GGUF file gave, to the bit, or it
is not kept. An entry is found by the SHA-256 of the whole file (0.2 seconds for the default's 98
MB), the dtype, and the versions of all that made it. Each dtype has an entry of its own, since for
some architectures transformers dequantises in the dtype that was asked for.

An entry's checksums are compared whenever it is read. One that is torn, foreign or of another
version is made again; where none can be made, the GGUF file is read as if there were no cache. Of
several processes that miss the same entry one makes it, while the others wait for it.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from strace_lens.model.weights import bytes_of
from strace_lens.utils.disk import parse_object, whole_folder, write_whole
from strace_lens.utils.progress import quiet, warn
from strace_lens.utils.user_cache import VARIABLE, cache_folder
from strace_lens.utils.versions import version_of

_FOLDER = "gguf"
_FORMAT = "strace-lens-gguf-cache/2"
_MANIFEST = "manifest.json"
_PROOFS = ".proofs"
_ENTRY = re.compile(rf"(?P<same>[0-9a-f]{{32}}-[a-z0-9]+)-[0-9a-f]{{8}}({re.escape(_PROOFS)})?")
_BLOCK = 2**20
_PATIENCE = 600  # seconds to wait for another process that makes the same entry

# Where a configuration came from, and that its weights were quantised there.
_ORIGIN = {"_name_or_path", "architectures", "quantization_config", "transformers_version"}


def is_kept(path: Path, dtype: torch.dtype) -> bool:
    """Whether a whole entry of a GGUF file is in the cache."""
    return _kept(path, dtype) is not None


def kept_configuration(path: Path, dtype: torch.dtype) -> tuple[Any, Any] | None:
    """The configuration of a GGUF file's model and its tokenizer, from the cache alone.

    transformers needs four seconds to read each of them off the default model's file. None where no
    whole entry is in the cache; none is made.
    """
    kept = _kept(path, dtype)
    if kept is None:
        return None
    from transformers import AutoConfig, AutoTokenizer

    entry, manifest = kept
    try:
        with quiet():
            config = AutoConfig.from_pretrained(entry)
            tokenizer = AutoTokenizer.from_pretrained(entry, **manifest["tokenizer"])
    # Another process may have removed it meanwhile, in which case anything may be missing.
    except Exception:
        return None
    _as_from(path, config, tokenizer)
    return config, tokenizer


def through_cache(
    path: Path, dtype: torch.dtype, dequantise: Callable[[], tuple[Any, Any]]
) -> tuple[Any, Any, Path | None]:
    """The model of a GGUF file and its tokenizer: from the cache, where they are put if need be.

    With them comes the folder for what is proven of the model, which goes when its entry goes; None
    where they were not read from the cache. Where nothing can be kept, a warning says so once and
    how to name another folder.

    Args:
        path: the GGUF file.
        dtype: of the weights.
        dequantise: reads both from the file itself, onto the CPU.
    """
    try:
        root = cache_folder()
        source = None if root is None else _source(path, dtype)
    except RuntimeError as error:
        _tell(Path(f"~ ({VARIABLE})"), path, error)
        return (*dequantise(), None)
    except OSError:  # of the file itself: who reads it says what is wrong with it
        return (*dequantise(), None)
    if root is None or source is None:
        return (*dequantise(), None)
    entry = _entry(root, source)
    if (kept := _read(entry, source, path, dtype)) is not None:
        return kept
    with _alone_with(entry):
        if (kept := _read(entry, source, path, dtype)) is not None:
            return kept
        made = dequantise()
        failure: object = "it was changed or removed as soon as it was written"
        try:
            _write(entry, source, made, dtype)
        # Whatever fails, in transformers too, there is a model to go on with.
        except Exception as error:
            failure = error
        # Also after a failure: a process that could not wait may have been faster.
        kept = _read(entry, source, path, dtype)
    if kept is None:
        _tell(root, path, failure)
    return kept or (*made, None)


def _source(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """All that an entry depends on."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return {
        "sha256": digest,
        "bytes": size,
        "dtype": str(dtype).removeprefix("torch."),
        **{package: version_of(package) for package in ("gguf", "transformers")},
    }


@contextmanager
def _alone_with(entry: Path) -> Iterator[None]:
    """Keep other processes from making an entry, or one of another version of the same file.

    Nothing is locked where the folder or its file system does not allow it, nor after ten minutes:
    entries are written whole, so the worst that follows is that one is made twice.
    """
    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(entry.with_name(f"{_same(entry)}.lock"), timeout=_PATIENCE)
            stack.enter_context(lock)
        yield


def _same(entry: Path) -> str:
    """The part of an entry's name that all versions of the same file and dtype share."""
    found = _ENTRY.fullmatch(entry.name)
    assert found is not None
    return found["same"]


def _entry(root: Path, source: Mapping[str, Any]) -> Path:
    made_by = hashlib.sha256(json.dumps([_FORMAT, source]).encode()).hexdigest()
    return root / _FOLDER / f"{source['sha256'][:32]}-{source['dtype']}-{made_by[:8]}"


# ------------------------------------------------------------------ reading


def _read(
    entry: Path, source: Mapping[str, Any], path: Path, dtype: torch.dtype
) -> tuple[Any, Any, Path] | None:
    """What an entry holds, as if it had been read from the GGUF file; None if it is not whole."""
    manifest = _manifest(entry, source)
    if manifest is None:
        return None
    try:
        model, tokenizer = _load(entry, manifest["tokenizer"], dtype)
    # Another process may have removed it meanwhile, in which case anything may be missing.
    except Exception:
        return None
    model.name_or_path = str(path.parent)
    _as_from(path, model.config, tokenizer)
    identity = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return model, tokenizer, entry.with_name(entry.name + _PROOFS) / identity[:16]


def _as_from(path: Path, config: Any, tokenizer: Any) -> None:
    """Have what was read from an entry say that it came from the folder of the GGUF file.

    TransformerLens reads a tokenizer again from where it came: nothing may come of that here which
    does not come of it for the GGUF file.
    """
    origin = str(path.parent)
    config._name_or_path = tokenizer.name_or_path = origin
    tokenizer.init_kwargs["name_or_path"] = origin


def _kept(path: Path, dtype: torch.dtype) -> tuple[Path, dict[str, Any]] | None:
    """The entry of a GGUF file and its manifest; None if there is none or it is not whole."""
    try:
        source = _source(path, dtype)
        root = cache_folder()
    except (OSError, RuntimeError):
        return None
    if root is None or (manifest := _manifest(_entry(root, source), source)) is None:
        return None
    return _entry(root, source), manifest


def _manifest(entry: Path, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of an entry, if it is of this source and all of its files are as written."""
    try:
        manifest = parse_object((entry / _MANIFEST).read_bytes(), entry)
        whole = manifest["source"] == source and manifest["files"] == _files(entry)
    except (OSError, ValueError, KeyError):
        return None
    return manifest if whole else None


def _load(entry: Path, flags: Mapping[str, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            entry, dtype=dtype, attn_implementation="eager", use_safetensors=True
        )
        return model.eval(), AutoTokenizer.from_pretrained(entry, **flags)


def _files(entry: Path) -> dict[str, list[Any]]:
    """Bytes and checksum of each file of an entry but its manifest."""
    return {
        file.name: [file.stat().st_size, _checksum(file)]
        for file in sorted(entry.iterdir())
        if file.name != _MANIFEST
    }


def _checksum(file: Path) -> str:
    """A hash of the sums of a file's words, by blocks of a megabyte, and of what is left over.

    It reads 540 MB in 0.2 seconds, a fourth of the time of SHA-256. It is there to notice a byte
    that changed and a block that is missing, empty or elsewhere, not what is changed on purpose.
    """
    digest = hashlib.sha256()
    block = bytearray(_BLOCK)
    words = np.frombuffer(block, np.uint64)
    with open(file, "rb") as opened:
        while (count := opened.readinto(block)) == _BLOCK:
            digest.update(words.sum().tobytes())
    digest.update(block[:count])
    return digest.hexdigest()


# ------------------------------------------------------------------ writing


def _write(
    entry: Path, source: Mapping[str, Any], made: tuple[Any, Any], dtype: torch.dtype
) -> None:
    """Write an entry whole or not at all, and remove those of other versions of the same file."""
    model, tokenizer = made
    entry.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(parameter.nbytes for parameter in model.parameters())
    # As much again is left to others.
    if shutil.disk_usage(entry.parent).free < 2 * needed:
        raise OSError(errno.ENOSPC, f"{2 * needed / 2**20:.0f} MiB free are needed there")
    given = ("add_bos_token", "add_eos_token")
    flags = {name: tokenizer.init_kwargs[name] for name in given if name in tokenizer.init_kwargs}
    with whole_folder(entry) as folder:
        with quiet():
            _as_if_never_quantised(model, dtype).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        _expect_same(made, _load(folder, flags, dtype))
        manifest = {"source": source, "tokenizer": flags, "files": _files(folder)}
        write_whole(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())
    ours = _same(entry)
    for other in sorted(entry.parent.iterdir()):
        found = _ENTRY.fullmatch(other.name)
        if found and found["same"] == ours and not other.name.startswith(entry.name):
            shutil.rmtree(other, ignore_errors=True)


def _as_if_never_quantised(model: Any, dtype: torch.dtype) -> Any:
    """A model with the same weights, which transformers agrees to save."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    # Modules draw their values even where they keep none.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _expect_same(made: tuple[Any, Any], again: tuple[Any, Any]) -> None:
    """Refuse an entry that differs in anything from what it was made of."""
    for ours, theirs in zip(_facts(*made), _facts(*again), strict=True):
        if ours != theirs:
            raise ValueError(f"its {ours[0]} does not read back as it was")


def _facts(model: Any, tokenizer: Any) -> Iterator[tuple[str, object]]:
    """All that can be told of a model and its tokenizer, each with its name."""
    config = model.config.to_dict()
    yield "configuration", _plain({k: v for k, v in config.items() if k not in _ORIGIN})
    yield "generation configuration", _plain(model.generation_config.to_dict())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    yield "list of tensors", [(k, t.dtype, tuple(t.shape)) for k, t in tensors.items()]
    for name, tensor in tensors.items():
        yield name, _digest(tensor)
    yield "vocabulary", tokenizer.backend_tokenizer.to_str()
    for name in ("special_tokens_map", "chat_template", "padding_side", "model_max_length"):
        yield f"tokenizer's {name}", getattr(tokenizer, name)
    yield "beginning of sequence", tokenizer("a").input_ids


def _plain(value: dict[str, Any]) -> str:
    """A dictionary as text, with tuples and lists as the same."""
    return json.dumps(value, sort_keys=True, default=str)


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(bytes_of(tensor.detach().contiguous().reshape(-1))).hexdigest()


_told: set[Path] = set()


def _tell(root: Path, path: Path, reason: object) -> None:
    """Warn, once a folder, that nothing is kept in it."""
    if root in _told:
        return
    _told.add(root)
    said = (str(reason).strip() or repr(reason)).splitlines()[0]
    warn(
        f"the model of {path.name} cannot be kept in {root} ({said}), so every load dequantises it "
        f'anew; set {VARIABLE} to a folder that can be written, or to "off"'
    )
