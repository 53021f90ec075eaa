"""The bytes that tensors hold while some code runs, counted at every operation of torch."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations inside the context make, and the most alive at once.

    What an operation takes and gives back within itself is not seen, nor is memory of NumPy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {_storage(x)._cdata for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
        result = func(*args, **kwargs)
        for made in tree_leaves(result):
            if torch.is_tensor(made):
                self._count(_storage(made), given)
        return result

    def _count(self, storage: Any, given: set[int]) -> None:
        key = storage._cdata
        if key in self._seen or key in given:
            return
        self._seen[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._seen.pop(key)


def _storage(tensor: torch.Tensor) -> Any:
    return tensor.untyped_storage()
