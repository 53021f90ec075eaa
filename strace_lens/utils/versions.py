"""The versions that a result was made with; every result and every file holds them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("strace-lens", "transformer-lens", "transformers", "torch", "numpy")


def version_of(package: str, missing: str = "unknown") -> str:
    """Return the version of an installed package, or `missing` if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return missing


VERSION = version_of("strace-lens")
"""The version of this package, which pyproject.toml sets."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of each package that a result may depend on."""
    return {"python": platform.python_version(), **{p: version_of(p) for p in _PACKAGES}}
