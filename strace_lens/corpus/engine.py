"""Where batches are measured: an engine takes them and gives back their rows, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from strace_lens.corpus.batches import Batch
from strace_lens.corpus.measure import measure_batch
from strace_lens.corpus.rows import Row
from strace_lens.corpus.setting import Setting
from strace_lens.model.architecture import Model

Engine = Callable[[Setting, Sequence[Batch]], Iterator[tuple[Batch, list[Row]]]]


def this_process(model: Model) -> Engine:
    """Measure batches one after another with a model that is loaded here."""

    def run(setting: Setting, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[Row]]]:
        before = torch.get_num_threads()
        torch.set_num_threads(setting.options.threads)
        try:
            for batch in batches:
                yield batch, measure_batch(model, setting, batch)
        finally:
            torch.set_num_threads(before)

    return run
