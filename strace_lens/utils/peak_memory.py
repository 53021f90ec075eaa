"""The peak memory of a piece of work, above what was held before it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class Peak:
    """The peak of a piece of work, filled in when the work is over.

    Attributes:
        bytes: Most memory held, less what was held before; NaN if the system does not report it.
        how: How it was measured, as a phrase that follows "measured".
    """

    bytes: float = math.nan
    how: str = "not at all: this system does not tell"


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the work inside, on the device that it runs on.

    On a GPU this is torch's own count of allocated bytes; on Linux, the resident set of this
    process, whose high-water mark is reset first; elsewhere, how much the work raised the highest
    resident set of the process so far, which is zero if earlier work needed more.
    """
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = float(torch.cuda.max_memory_allocated(device) - before)
        peak.how = "by what torch had allocated on the GPU"
        return
    resets = _reset_high_water_mark()
    before = _resident("VmRSS") if resets else _highest_resident()
    yield peak
    peak.bytes = (_resident("VmHWM") if resets else _highest_resident()) - before
    if resets:
        peak.how = "by the resident set of the process, its high-water mark reset before each"
    elif not math.isnan(peak.bytes):
        peak.how = (
            "by how far each raised the highest resident set of the process; 0 is not nothing"
        )


def _reset_high_water_mark() -> bool:
    """Return freed memory to the system and reset the high-water mark, where that is possible."""
    if not _STATUS.exists():
        return False
    # glibc keeps freed memory, which would then not count for the next piece of work.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _RESET.write_text("5")  # man 5 proc
    except OSError:
        return False
    return True


def _resident(field: str) -> float:
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(f"{field}:"))
    return 1024.0 * int(line.split()[1])


def _highest_resident() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(highest if sys.platform == "darwin" else 1024 * highest)
