"""The versions a result was made with: they go into every result and every file."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("strace-lens", "transformer-lens", "transformers", "torch", "numpy")


def versions() -> dict[str, str]:
    """Version of Python and of each package that a figure may depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree without an installation
            found[package] = "unknown"
    return found
