"""Where batches are measured: an engine takes them and gives back their rows, in any order.

With the Ray engine actors hold a model each and measure batches; a lost worker's are done again.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from strace_lens.corpus.batches import Batch
from strace_lens.corpus.measure import measure_batch
from strace_lens.corpus.parts import Row
from strace_lens.corpus.setting import Setting
from strace_lens.model.architecture import Model
from strace_lens.model.weights import weights_hash
from strace_lens.utils.errors import FixableError

Engine = Callable[[Setting, Sequence[Batch]], Iterator[tuple[Batch, list[Row]]]]

RETRIES = 3
"""How often a worker may die over one batch."""


class MissingRayError(FixableError, ImportError):
    """Ray is not installed."""


class LostWorkersError(FixableError, RuntimeError):
    """Workers died over and over on one batch."""


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


def ray_engine(
    load: Callable[[], Model],
    workers: int,
    *,
    address: str | None = None,
) -> Engine:
    """Measure batches on a Ray cluster.

    Results are those of `this_process` to the bit: every worker has as many threads, and batches
    are the same.

    Args:
        load: loads the model in a worker; must be picklable.
        workers: actors, each with a model, and with a GPU where the cluster has as many.
        address: of a running cluster; by default one is started on this machine.

    Raises:
        MissingRayError: Ray is not installed.
        ValueError: fewer than one worker, or, when it runs, a worker that loads other weights.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingRayError("the Ray engine needs ray: pip install 'strace-lens[ray]'")
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")

    def run(setting: Setting, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[Row]]]:
        ray: Any = importlib.import_module("ray")

        threads = setting.options.threads
        started = not ray.is_initialized()
        if started:
            # A cluster of our own may give more processors away than there are: bits depend on the
            # threads of a worker, not on how many processors carry them.
            own = {} if address else {"num_cpus": workers * threads, "include_dashboard": False}
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        try:
            yield from _measured(load, workers, setting, batches)
        finally:
            if started:
                ray.shutdown()

    return run


def _measured(
    load: Callable[[], Model], workers: int, setting: Setting, batches: Sequence[Batch]
) -> Iterator[tuple[Batch, list[Row]]]:
    ray: Any = importlib.import_module("ray")

    gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= workers else 0.0
    make = ray.remote(num_cpus=setting.options.threads, num_gpus=gpus)(Worker).remote
    shared = ray.put(setting)
    waiting = [(batch, 0) for batch in reversed(batches)]
    running: dict[Any, tuple[Any, Batch, int]] = {}

    def start(worker: Any) -> None:
        if waiting:
            batch, lost = waiting.pop()
            running[worker.measure.remote(batch)] = worker, batch, lost

    for _ in range(min(workers, len(batches))):
        start(make(load, shared))
    while running:
        (done, *_), _ = ray.wait(list(running))
        worker, batch, lost = running.pop(done)
        try:
            rows: list[Row] = ray.get(done)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            if lost == RETRIES:
                numbers, reason = ", ".join(map(str, batch.numbers)), str(error).strip()
                raise LostWorkersError(
                    f"{RETRIES + 1} workers died over prompts {numbers} "
                    f"({reason.splitlines()[0]}); what is done is kept: run the sweep again, with "
                    "fewer workers or a smaller memory budget"
                ) from error
            waiting.append((batch, lost + 1))
            start(make(load, shared))
            continue
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None  # without the worker's own traceback
        start(worker)
        yield batch, rows


class Worker:
    """A process with a model of its own."""

    def __init__(self, load: Callable[[], Model], setting: Setting) -> None:
        torch.set_num_threads(setting.options.threads)
        self.setting, self.model = setting, load()
        self.same = weights_hash(self.model) == setting.weights

    def measure(self, batch: Batch) -> list[Row]:
        """The rows of a batch; refused if the model loaded here has other weights than the run's.

        An actor whose constructor fails is taken for one that died, so it is not refused there.
        """
        if not self.same:
            raise ValueError(
                "a worker loads a model of other weights than the sweep was given; load the same"
            )
        return measure_batch(self.model, self.setting, batch)
