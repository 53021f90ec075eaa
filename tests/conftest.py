"""What every test stands on: shapes checked at run time, one thread, determinism, no hub."""

from __future__ import annotations

import os
from pathlib import Path

# Read when their libraries are first imported, so set before torch, numba and transformers are.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

# Not the user's own cache. The folder outlasts the session, so that no worker of any session after
# the first dequantises the default model.
os.environ.setdefault(
    "STRACE_LENS_CACHE", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "strace-lens")
)

import gc
import resource
import signal
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

# A deadline would assert a timing. In CI the examples are the same every time.
settings.register_profile("tests", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Set up torch and the checks at run time, before a test imports the package.

    A process that hands the tests to workers runs none itself, and they wait for it.
    """
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    gc.disable()  # imports make millions of objects, and no garbage
    import torch

    from tests import run_time_checks

    run_time_checks.install()
    torch.set_num_threads(1)
    # Also fills fresh memory with NaN: a read of it shows.
    torch.use_deterministic_algorithms(True)


def pytest_collection_finish() -> None:
    """Let no collection of garbage look at what the imports made."""
    gc.freeze()
    gc.enable()


SPANNING = {"llama", "gpt2", "gemma2", "gptj", "mixtral", "attention_only", "shortformer"}
"""Tiny models that span the traits by which code branches: grouped queries and biases, learned and
rotary positions, norms after their writers and a window, parallel blocks with a dead pattern,
experts, no MLPs, positions that queries and keys alone see."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-case",
        action="store_true",
        help="of each extended test, run one case (of families, and where marked so, all)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None]:
    """Mark as extended the cases of all tiny models but those that span the traits.

    What the markers leave is then thinned out, if that is asked for.
    """
    from tests import tiny

    others = {*tiny.BRIDGES, *tiny.HOOKED} - SPANNING
    for item in items:
        callspec = getattr(item, "callspec", None)
        values = callspec.params.values() if callspec else ()
        if others.intersection(v for v in values if isinstance(v, str)):
            item.add_marker(pytest.mark.extended)
    yield
    if config.getoption("--one-case"):
        kept = one_case_each(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def one_case_each(items: list[pytest.Item]) -> set[pytest.Item]:
    """One case of each extended function among some tests, and all other tests.

    A checksum of the function's name chooses the case, so that it is the same one every time and
    every tiny model is chosen for some functions. Tests of families, and those marked
    `every_case`, are all there.
    """
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        whole = any(item.get_closest_marker(name) for name in ("families", "every_case"))
        sampled = item.get_closest_marker("extended") and not whole
        cases[item.nodeid.partition("[")[0] if sampled else item.nodeid].append(item)
    return {of[zlib.crc32(name.encode()) % len(of)] for name, of in cases.items()}


@pytest.fixture
def few_bytes() -> Iterator[None]:
    """No file may grow beyond 4,096 bytes, which stops a write as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder that this process may read and not write; root stops being root for the test."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
