"""Real processes and a real Ray cluster: the parts are those of this process, whoever dies."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from strace_lens.corpus.engine import (
    Engine,
    LostWorkersError,
    MissingRayError,
    process_engine,
    ray_engine,
)
from strace_lens.corpus.measure import PromptMemoryError
from strace_lens.corpus.parts import part_paths
from strace_lens.corpus.sweep import sweep
from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.weights import weights_hash
from tests import cases
from tests.corpus.made import model, options, prompts

ray = pytest.importorskip("ray")

MakeEngine = Callable[[Callable[[], Any], int], Engine]
BOTH = pytest.mark.parametrize("made", [ray_engine, process_engine])


@pytest.fixture(autouse=True)
def started(request: pytest.FixtureRequest) -> None:
    """What measures something does so on the cluster; what is refused needs none."""
    if request.node.get_closest_marker("extended"):
        request.getfixturevalue("cluster")


@pytest.fixture(scope="module")
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
@BOTH
def test_workers_prepare_the_sweep_of_a_process_without_a_model(
    made: MakeEngine, alone: dict[str, bytes], tmp_path: Path
) -> None:
    run = sweep(None, prompts(12), tmp_path / "run", options(), engine=made(model, 2))
    assert parts(tmp_path / "run") == alone
    assert run.manifest["weights"] == weights_hash(model())


@pytest.mark.extended
@BOTH
def test_what_a_worker_cannot_load_is_said_as_it_is_here(
    made: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strace_lens.corpus.engine.RETRIES", 1)
    with pytest.raises(UnsupportedModelError, match="no such family"):
        sweep(None, prompts(2), tmp_path / "run", options(), engine=made(unloadable, 1))
    with pytest.raises(LostWorkersError, match="2 workers died as they read the prompts"):
        sweep(None, prompts(2), tmp_path / "run", options(), engine=made(dies_always, 1))
    assert not part_paths(tmp_path / "run")


def test_a_sweep_without_model_and_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model to sweep with; give one, or an engine"):
        sweep(None, prompts(2), tmp_path / "run", options())
    assert not (tmp_path / "run").exists()


@pytest.mark.extended
@BOTH
def test_a_lost_worker_s_prompts_are_done_again(
    made: MakeEngine, alone: dict[str, bytes], tmp_path: Path
) -> None:
    flag = tmp_path / "died"
    engine = made(load_dying(flag), 1)
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


def unloadable() -> Any:
    raise UnsupportedModelError("no such family")


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
    for made in (ray_engine, process_engine):
        with pytest.raises(ValueError, match="workers must be at least 1; got 0"):
            made(model, 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingRayError, match="pip install 'strace-lens\\[ray\\]'"):
        ray_engine(model, 1)
