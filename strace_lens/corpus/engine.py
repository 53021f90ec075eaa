"""Where the models of a sweep are: in this process, in several processes, or in Ray actors.

An engine prepares a sweep, which needs a model, and then measures its batches, whose rows are
returned in any order. Workers load their models when they get their first task; the tasks of a lost
worker are done again by another.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from multiprocessing import get_context
from typing import Any, Protocol, runtime_checkable

import torch

from strace_lens.corpus.batches import Batch
from strace_lens.corpus.measure import measure_batch
from strace_lens.corpus.parts import Row
from strace_lens.corpus.prepare import Prepared, prepare
from strace_lens.corpus.prompts import CorpusPrompt
from strace_lens.corpus.setting import Options, Setting
from strace_lens.model.architecture import Model
from strace_lens.model.weights import weights_hash
from strace_lens.utils.errors import FixableError

RETRIES = 3
"""How often a worker may die over one batch."""


class MissingRayError(FixableError, ImportError):
    """Ray is not installed."""


class LostWorkersError(FixableError, RuntimeError):
    """Workers died over and over on one task."""


@runtime_checkable
class Workers(Protocol):
    """Those who have the models of a sweep."""

    def prepare(self, prompts: Sequence[CorpusPrompt], options: Options) -> Prepared:
        """All that has to be known of the model before a batch is measured."""
        ...

    def measure(
        self, setting: Setting, batches: Sequence[Batch]
    ) -> Iterator[tuple[Batch, list[Row]]]:
        """Each batch with its rows, in any order."""
        ...


Engine = Callable[[int], AbstractContextManager[Workers]]
"""Given the threads of a worker, sets up the workers of one sweep, and lets them go at its end.

The process that starts the sweep has as many threads itself meanwhile.
"""


def this_process(model: Model) -> Engine:
    """Measure batches one after another with a model that is loaded here."""

    return lambda _: nullcontext(_Here(model))


class _Here:
    """This process as the only worker."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def prepare(self, prompts: Sequence[CorpusPrompt], options: Options) -> Prepared:
        return prepare(self.model, prompts, options)

    def measure(
        self, setting: Setting, batches: Sequence[Batch]
    ) -> Iterator[tuple[Batch, list[Row]]]:
        for batch in batches:
            yield batch, measure_batch(self.model, setting, batch)


def process_engine(load: Callable[[], Model], workers: int) -> Engine:
    """Return an engine that measures batches in several processes on this machine.

    On a CPU, processes of one thread each are faster than one process with as many threads. Results
    are bitwise those of `this_process` with the threads of one worker. Processes are spawned, so a
    script that uses this engine needs an `if __name__ == "__main__"`.

    Args:
        load: loads the model in a process; must be picklable.
        workers: number of processes, each with a model.

    Raises:
        ValueError: fewer than one worker, or, when it runs, a worker that loads other weights.

    Example:
        >>> from strace_lens.corpus.engine import process_engine
        >>> engine = process_engine(sl.load_model, 2)
        >>> options = sl.Options(threads=1)
        >>> run = sl.sweep(None, sl.read_corpus("builtin"), "runs/all", options, engine=engine)
    """
    _check_count(workers)

    @contextmanager
    def run(threads: int) -> Iterator[Workers]:
        fleet = _Processes(load, workers, threads)
        try:
            yield _Several(fleet)
        finally:
            fleet.pool.shutdown(cancel_futures=True)

    return run


def ray_engine(
    load: Callable[[], Model],
    workers: int,
    *,
    address: str | None = None,
) -> Engine:
    """Return an engine that measures batches on a Ray cluster.

    Results are bitwise those of `this_process`: every worker has as many threads, and batches are
    the same. The process that starts the sweep needs no model and no GPU: a worker tokenizes the
    prompts and hashes the weights.

    Args:
        load: loads the model in a worker; must be picklable.
        workers: number of actors, each with a model, and with a GPU if the cluster has enough.
        address: address of a running cluster; by default one is started on this machine.

    Raises:
        MissingRayError: Ray is not installed.
        ValueError: fewer than one worker, or, when it runs, a worker that loads other weights.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingRayError("the Ray engine needs ray: pip install 'strace-lens[ray]'")
    _check_count(workers)

    @contextmanager
    def run(threads: int) -> Iterator[Workers]:
        ray: Any = importlib.import_module("ray")

        started = not ray.is_initialized()
        if started:
            # A cluster of our own may give more processors away than there are: bits depend on the
            # threads of a worker, not on how many processors carry them.
            own = {} if address else {"num_cpus": workers * threads, "include_dashboard": False}
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        try:
            yield _Several(_Actors(ray, load, workers, threads))
        finally:
            if started:
                ray.shutdown()

    return run


def _check_count(workers: int) -> None:
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")


class _LostError(Exception):
    """A worker died; the message says how."""


@runtime_checkable
class _Fleet(Protocol):
    """Several of `Worker`, each of which does one thing at a time."""

    count: int

    def share(self, setting: Setting) -> Any:
        """The setting as it is given to every worker."""
        ...

    def ask(self, method: str, *arguments: Any) -> Any:
        """Have a worker that is free, or a new one, do something; what stands for its answer."""
        ...

    def first(self, asked: Sequence[Any]) -> Any:
        """Wait until one of them is answered; that one."""
        ...

    def answer(self, asked: Any) -> Any:
        """What was answered; raises its error where it failed, `_LostError` if the worker died."""
        ...


class _Several:
    """The workers of a fleet, which do again what a lost one was asked."""

    def __init__(self, fleet: _Fleet) -> None:
        self.fleet = fleet

    def prepare(self, prompts: Sequence[CorpusPrompt], options: Options) -> Prepared:
        for lost in range(RETRIES + 1):
            try:
                return self.fleet.answer(self.fleet.ask("prepare", prompts, options))
            except _LostError as error:
                if lost == RETRIES:
                    raise _too_often("as they read the prompts", error) from error
        raise AssertionError

    def measure(
        self, setting: Setting, batches: Sequence[Batch]
    ) -> Iterator[tuple[Batch, list[Row]]]:
        fleet = self.fleet
        shared = fleet.share(setting) if batches else None
        waiting = [(batch, 0) for batch in reversed(batches)]
        running: dict[Any, tuple[Batch, int]] = {}
        while waiting or running:
            while waiting and len(running) < fleet.count:
                batch, lost = waiting.pop()
                running[fleet.ask("measure", shared, batch)] = batch, lost
            done = fleet.first(list(running))
            batch, lost = running.pop(done)
            try:
                rows: list[Row] = fleet.answer(done)
            except _LostError as error:
                if lost == RETRIES:
                    numbers = ", ".join(map(str, batch.numbers))
                    raise _too_often(f"over prompts {numbers}", error) from error
                waiting.append((batch, lost + 1))
            else:
                yield batch, rows


def _too_often(when: str, reason: _LostError) -> LostWorkersError:
    return LostWorkersError(
        f"{RETRIES + 1} workers died {when} ({reason}); what is done is kept: run the sweep again, "
        "with fewer workers or a smaller memory budget"
    )


class _Actors:
    """Workers of a Ray cluster that is running."""

    def __init__(self, ray: Any, load: Callable[[], Model], count: int, threads: int) -> None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= count else 0.0
        make = ray.remote(num_cpus=threads, num_gpus=gpus)(Worker).remote
        self.ray, self.count = ray, count
        self.started = lambda: make(load, threads)
        self.free: list[Any] = []
        self.busy: dict[Any, Any] = {}

    def share(self, setting: Setting) -> Any:
        return self.ray.put(setting)

    def ask(self, method: str, *arguments: Any) -> Any:
        worker = self.free.pop() if self.free else self.started()
        asked = getattr(worker, method).remote(*arguments)
        self.busy[asked] = worker
        return asked

    def first(self, asked: Sequence[Any]) -> Any:
        (done, *_), _ = self.ray.wait(list(asked))
        return done

    def answer(self, asked: Any) -> Any:
        errors, worker = self.ray.exceptions, self.busy.pop(asked)
        try:
            answer = self.ray.get(asked)
        except (errors.RayActorError, errors.OutOfMemoryError) as error:
            raise _LostError(str(error).strip().splitlines()[0]) from error
        except errors.RayTaskError as error:
            raise (error.cause or error) from None  # without the worker's own traceback
        self.free.append(worker)
        return answer


class _Processes:
    """Workers in processes of this machine; when one dies, all are started anew."""

    def __init__(self, load: Callable[[], Model], count: int, threads: int) -> None:
        self.count = count
        self.started = lambda: ProcessPoolExecutor(
            count, mp_context=get_context("spawn"), initializer=_begin, initargs=(load, threads)
        )
        self.pool = self.started()
        self.pools: dict[Future[Any], ProcessPoolExecutor] = {}

    def share(self, setting: Setting) -> Setting:
        return setting

    def ask(self, method: str, *arguments: Any) -> Future[Any]:
        try:
            asked = self.pool.submit(_done, method, *arguments)
        except BrokenExecutor:  # a worker has died since the last answer
            self.pool = self.started()
            asked = self.pool.submit(_done, method, *arguments)
        self.pools[asked] = self.pool
        return asked

    def first(self, asked: Sequence[Future[Any]]) -> Future[Any]:
        finished, _ = wait(asked, return_when=FIRST_COMPLETED)
        return next(one for one in asked if one in finished)

    def answer(self, asked: Future[Any]) -> Any:
        pool = self.pools.pop(asked)
        try:
            return asked.result()
        except BrokenExecutor as error:
            if pool is self.pool:  # the others that were asked of it are lost too
                self.pool = self.started()
            raise _LostError(str(error)) from error


_own: list[Worker] = []
"""The worker that a process of `_Processes` is."""


def _begin(load: Callable[[], Model], threads: int) -> None:
    _own[:] = [Worker(load, threads)]


def _done(method: str, *arguments: Any) -> Any:
    return getattr(_own[0], method)(*arguments)


class Worker:
    """A process with a model of its own."""

    def __init__(self, load: Callable[[], Model], threads: int) -> None:
        torch.set_num_threads(threads)
        self.load = load
        self.weights: str | None = None

    @cached_property
    def model(self) -> Model:
        """The model, loaded when it is first asked for.

        An actor whose constructor fails is taken for one that died, so nothing is loaded there.
        """
        return self.load()

    def prepare(self, prompts: Sequence[CorpusPrompt], options: Options) -> Prepared:
        """All that has to be known of the model before a batch is measured."""
        prepared = prepare(self.model, prompts, options)
        self.weights = prepared.setting.weights
        return prepared

    def measure(self, setting: Setting, batch: Batch) -> list[Row]:
        """The rows of a batch; refused if this model has other weights than the run's."""
        self.weights = self.weights or weights_hash(self.model)
        if self.weights != setting.weights:
            raise ValueError(
                "a worker loads a model of other weights than the sweep was given; load the same"
            )
        return measure_batch(self.model, setting, batch)
