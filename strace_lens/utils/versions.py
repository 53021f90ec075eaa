"""The versions a result was made with: they go into every result and every file."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("strace-lens", "transformer-lens", "transformers", "torch", "numpy")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree without an installation
        return "unknown"


VERSION = _version("strace-lens")
"""Of this package; pyproject.toml is where it is set."""


def versions() -> dict[str, str]:
    """Version of Python and of each package that a figure may depend on."""
    return {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}}
