"""Which traces a trial makes for each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from strace_lens.token_graph.estimators import ESTIMATORS


@dataclass(frozen=True)
class Job:
    """A trace to make for each prompt.

    Attributes:
        estimator: a key of `ESTIMATORS`.
        seed: of the estimator.
        target: "own", the prompt's own output, or "wrong", another prompt's.
    """

    estimator: str
    seed: int
    target: str

    @property
    def start(self) -> Job | None:
        """The job whose trace this one starts from, if any."""
        start = ESTIMATORS[self.estimator].start
        return None if start is None else Job(start, self.seed, self.target)

    @property
    def steps(self) -> int:
        """Steps of progress that it counts for."""
        return max(1, ESTIMATORS[self.estimator].steps)

    def path(self, folder: Path, index: int) -> Path:
        """Where the trace for the prompt of an index is saved."""
        name = f"{index:03d}-{self.estimator}-{self.seed}-{self.target}.safetensors"
        return folder / "traces" / name


def jobs_of(estimators: Sequence[str], seeds: int) -> list[Job]:
    """Every trace that a prompt needs, what others start from before them.

    What fits nothing draws nothing and has no target: one trace. The wrong target has one seed.
    """
    jobs: dict[Job, None] = {}
    for name in estimators:
        fitted = ESTIMATORS[name].steps > 0
        for seed in range(seeds if fitted else 1):
            for target in ("own", "wrong") if fitted and seed == 0 else ("own",):
                jobs |= dict.fromkeys(reversed(list(_back_to_first(Job(name, seed, target)))))
    return list(jobs)


def _back_to_first(job: Job | None) -> Iterator[Job]:
    while job is not None:
        yield job
        job = job.start
