"""A real local Ray cluster: the same parts as in this process, whatever happens to a worker."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from strace_lens.corpus.engine import LostWorkersError, MissingRayError, ray_engine
from strace_lens.corpus.measure import PromptMemoryError
from strace_lens.corpus.parts import part_paths
from strace_lens.corpus.sweep import sweep
from tests import cases
from tests.corpus.made import model, options, prompts

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests: starting it takes longer than they do.

    Ray's workers give way to every other process by default, here to all other tests.
    """
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def dies_once(flag: str) -> Any:
    """Loads the model and kills its process when it is first run, once for each flag."""
    loaded = model()
    real = loaded.run_with_hooks

    def run(*args: Any, **kwargs: Any) -> Any:
        if not Path(flag).exists():
            Path(flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    loaded.run_with_hooks = run
    return loaded


def dies_always() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in part_paths(folder)}


def load_dying(flag: Path) -> Callable[[], Any]:
    return functools.partial(dies_once, str(flag))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone") / "run"
    sweep(model(), prompts(12), folder, options())
    return parts(folder)


@pytest.mark.extended
def test_two_workers_write_the_same_bytes(alone: dict[str, bytes], tmp_path: Path) -> None:
    sweep(model(), prompts(12), tmp_path / "run", options(), engine=ray_engine(model, 2))
    assert len(alone) >= 2
    assert parts(tmp_path / "run") == alone


@pytest.mark.extended
def test_a_lost_worker_s_prompts_are_done_again(alone: dict[str, bytes], tmp_path: Path) -> None:
    flag = tmp_path / "died"
    engine = ray_engine(load_dying(flag), 1)
    sweep(model(), prompts(12), tmp_path / "run", options(), engine=engine)
    assert flag.exists()
    assert parts(tmp_path / "run") == alone


@pytest.mark.extended
def test_a_worker_that_always_dies_ends_the_sweep_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strace_lens.corpus.engine.RETRIES", 1)
    with pytest.raises(
        LostWorkersError, match=r"2 workers died over prompts 0, 1 .*what is done is kept"
    ):
        sweep(model(), prompts(2), tmp_path / "run", options(), engine=ray_engine(dies_always, 1))


def other_weights() -> Any:
    loaded = cases.fresh_bridge("llama")
    next(loaded.parameters()).data.mul_(0.5)
    return loaded


def without_memory() -> Any:
    """Loads the model, which never finds the memory to run."""
    loaded = model()

    def run(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("no room")

    loaded.run_with_hooks = run
    return loaded


@pytest.mark.extended
def test_a_worker_with_other_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a worker loads a model of other weights") as raised:
        sweep(model(), prompts(2), tmp_path, options(), engine=ray_engine(other_weights, 1))
    assert "Traceback" not in str(raised.value)
    assert not part_paths(tmp_path)


@pytest.mark.extended
def test_a_prompt_without_memory_ends_the_sweep_and_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(PromptMemoryError, match=r"prompt 0 \(\d tokens\) does not fit"):
        sweep(model(), prompts(2), tmp_path, options(), engine=ray_engine(without_memory, 1))
    assert not part_paths(tmp_path)
    assert len(sweep(model(), prompts(2), tmp_path, options()).prompts) == 2


def test_no_workers_and_no_ray_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1; got 0"):
        ray_engine(model, 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingRayError, match="pip install 'strace-lens\\[ray\\]'"):
        ray_engine(model, 1)
