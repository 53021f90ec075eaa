"""Errors that say that memory has run out, which say nothing of the prompt that was measured."""

from __future__ import annotations

import gc

import torch

_TEXTS = (
    *("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""In messages of a plain RuntimeError, of torch's CPU allocator and of its libraries."""


class PromptMemoryError(RuntimeError):
    """A prompt that does not fit in memory even on its own."""


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory has run out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def free_memory() -> None:
    """Give back what an attempt that failed has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
