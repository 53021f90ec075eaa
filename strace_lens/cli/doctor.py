"""`strace-lens doctor`: what a bug report needs to say about a machine."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from strace_lens.cli import options as opt
from strace_lens.cli.common import Bar, one_line_errors
from strace_lens.utils.choices import DEFAULT_MODEL
from strace_lens.utils.user_cache import VARIABLE, cache_folder
from strace_lens.utils.versions import version_of, versions

OPTIONAL = {
    "ray": "sweeps with several workers: pip install 'strace-lens[ray]'",
    "tracr-pypi": "compiled models whose circuit is known: pip install 'strace-lens[tracr]'",
    "kaleido": "still images of figures: pip install 'strace-lens[notebooks]'",
}
"""Packages that strace_lens can do without: what each is for, and how to install it."""


def doctor_command(
    as_json: opt.Json = False,
) -> None:
    """Print versions, devices, and which models and optional packages are installed.

    Loads no model and needs no network. Paste the output into a bug report.
    """
    with one_line_errors():
        with Bar() as bar, bar.importing():
            found = examine()
        if as_json:
            print(json.dumps(found))
            return
        for title, lines in found.items():
            print(title)
            for name, detail in lines.items():
                print(f"  {name:<18}{detail}")


def examine() -> dict[str, dict[str, str]]:
    """Look for everything that the behaviour of strace_lens may depend on.

    Returns:
        What was found, by name, under "versions", "devices", "models" and "optional".
    """
    missing = {name: f"not installed ({use})" for name, use in OPTIONAL.items()}
    return {
        "versions": {**versions(), "system": platform.platform()},
        "devices": _devices(),
        "models": _models(),
        "optional": {name: version_of(name, missing[name]) for name in OPTIONAL},
    }


def _devices() -> dict[str, str]:
    import torch  # takes seconds, and the help of the command does without

    found = {"cpu": f"{torch.get_num_threads()} threads"}
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found[f"cuda:{number}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def _models() -> dict[str, str]:
    from strace_lens.model.load import ModelNotFoundError, locate

    file = None
    try:
        default, folder, gguf = locate(DEFAULT_MODEL)
        file = Path(folder, gguf) if gguf else None
    except ModelNotFoundError as error:
        default = str(error)
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    hub = "HF_HUB_OFFLINE is set: only cached models load" if offline else "not blocked"
    return {DEFAULT_MODEL: default, "cache": _cache(file), "Hugging Face hub": hub}


def _cache(file: Path | None) -> str:
    """Where models of GGUF files are kept, and whether the default one is."""
    import torch

    from strace_lens.model.gguf_cache import is_kept

    try:
        folder = cache_folder()
    except RuntimeError as error:
        return f"none: {error}"
    if folder is None:
        return f"off ({VARIABLE} is {os.environ.get(VARIABLE)!r})"
    is_there = file is not None and is_kept(file, torch.float32)
    return f"{folder} ({DEFAULT_MODEL} is {'' if is_there else 'not '}in it)"
