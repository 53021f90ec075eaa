"""The most memory held, on work whose memory is known."""

from __future__ import annotations

import math
import subprocess
import sys

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


@pytest.mark.extended
@pytest.mark.skipif(not module._RESET.exists(), reason="no /proc/self/clear_refs")
def test_each_work_has_its_own_peak_whatever_ran_before():
    # In a process of its own: in the one that runs the tests, threads that earlier tests started
    # may free memory meanwhile, and the resident set is the whole process's.
    code = "from tests.utils import test_peak_memory as t; t.measured_three_times()"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *peaks, how = out.stdout.splitlines()
    for megabytes, peak in zip((200, 40, 200), peaks, strict=True):
        assert megabytes * 0.9 < float(peak) < megabytes * 1.5 + 10
    assert "resident set" in how


@pytest.mark.extended
def test_where_nothing_can_be_reset_the_peak_is_a_rise_of_the_highest(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_STATUS", tmp_path / "missing")
    hold(50)
    with peak_memory(CPU) as less:
        hold(10)
    with peak_memory(CPU) as more:
        hold(1000)
    assert less.bytes <= 5 * MB  # less than was held before raises nothing
    assert more.bytes > 0
    assert less.how == more.how
    assert "highest resident set" in less.how


def test_a_peak_is_unknown_until_the_work_is_over():
    with peak_memory(CPU) as peak:
        assert math.isnan(peak.bytes)
    assert peak.bytes >= 0


def test_an_error_of_the_work_passes_through():
    with pytest.raises(KeyError), peak_memory(CPU):
        raise KeyError
