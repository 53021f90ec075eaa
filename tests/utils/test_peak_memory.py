"""The most memory held, on work whose memory is known."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from strace_lens.utils import peak_memory as module
from strace_lens.utils.peak_memory import peak_memory

CPU = torch.device("cpu")
MB = 10**6


def hold(megabytes: int) -> int:
    """Hold and touch so much memory for a moment, half of it in small pieces."""
    whole = torch.ones(megabytes * MB // 8)
    pieces = [torch.ones(12_500) for _ in range(10 * megabytes)]
    return len(whole) + len(pieces)


def measured_three_times() -> None:
    """Print what was measured of three pieces of work, after each other in one process."""
    for megabytes in (200, 40, 200):
        with peak_memory(CPU) as peak:
            hold(megabytes)
        print(peak.bytes / MB)
    print(peak.how)


def rises_measured() -> None:
    """Print what is measured of two pieces of work where the high-water mark cannot be reset."""
    module._STATUS = Path("missing")
    hold(50)
    highest = int(module._highest_resident() / MB)  # a new process inherits its parent's
    for megabytes in (10, highest + 200):
        with peak_memory(CPU) as peak:
            hold(megabytes)
        print(peak.bytes / MB)
    print(peak.how)


def printed_by(function: Callable[[], None]) -> list[str]:
    """What a function of this module prints in a process of its own.

    The resident set is the whole process's: in the one that runs the tests, threads that earlier
    tests started may free memory meanwhile, and earlier tests may have held more.
    """
    code = f"from tests.utils import test_peak_memory as t; t.{function.__name__}()"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return out.stdout.splitlines()


@pytest.mark.extended
@pytest.mark.skipif(not module._RESET.exists(), reason="no /proc/self/clear_refs")
def test_each_work_has_its_own_peak_whatever_ran_before():
    *peaks, how = printed_by(measured_three_times)
    for megabytes, peak in zip((200, 40, 200), peaks, strict=True):
        assert megabytes * 0.9 < float(peak) < megabytes * 1.5 + 10
    assert "resident set" in how


@pytest.mark.extended
def test_where_nothing_can_be_reset_the_peak_is_a_rise_of_the_highest():
    less, more, how = printed_by(rises_measured)
    assert float(less) <= 5  # less than was held before raises nothing
    assert float(more) > 150
    assert "highest resident set" in how


def test_a_peak_is_unknown_until_the_work_is_over():
    with peak_memory(CPU) as peak:
        assert math.isnan(peak.bytes)
    assert peak.bytes >= 0


def test_an_error_of_the_work_passes_through():
    with pytest.raises(KeyError), peak_memory(CPU):
        raise KeyError
