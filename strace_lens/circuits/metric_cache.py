"""What circuits of one ranking scored on each pair, so that none of them runs twice.

The curve of a ranking, its bisection, the circuit that is taken from it and what is left when one
of its edges goes share circuits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from strace_lens.circuits.experiment import Experiment
from strace_lens.circuits.run_circuits import circuit_metric, run_known
from strace_lens.model.sparse import has_hooks


@dataclass(frozen=True, eq=False)
class MetricCache:
    """The metric of every circuit that was run on an experiment.

    A circuit's last bits depend on which circuits share its pass. So a cache belongs to one
    ranking: what is measured of a ranking must not depend on those that were measured before it.
    """

    experiment: Experiment
    _metrics: dict[bytes, Float[Tensor, " pair"]] = field(default_factory=dict, repr=False)

    def metrics(
        self,
        masks: Shaped[Tensor, "circuit destination source *pos"],
        like: Shaped[Tensor, "destination source *pos"] | None = None,
    ) -> Float[Tensor, "circuit pair"]:
        """The metric of circuits, each run unless it was before; on a model with hooks all are.

        Args:
            masks: of the circuits.
            like: a circuit that all of them are like in the first blocks, which then do not run
                again.

        Raises:
            ValueError: the model's weights have changed since the experiment was made.
        """
        experiment = self.experiment
        experiment.expect_unchanged()
        seen = {} if has_hooks(experiment.model) else self._metrics
        digests = [_digest(mask) for mask in masks]
        new = {digest: place for place, digest in enumerate(digests) if digest not in seen}
        if new:
            known = None if like is None else run_known(experiment, like)
            values = circuit_metric(experiment, masks[list(new.values())], known=known)
            seen.update(zip(new, values, strict=True))
        return torch.stack([seen[digest] for digest in digests])


def cache_of(experiment: Experiment, cache: MetricCache | None) -> MetricCache:
    """The cache that was given, or an empty one.

    Raises:
        ValueError: it is of another experiment.
    """
    if cache is None:
        return MetricCache(experiment)
    if cache.experiment is not experiment:
        raise ValueError(
            f"the cache is of another experiment, on task {cache.experiment.task.name!r}; make one "
            "with MetricCache(experiment)"
        )
    return cache


def _digest(mask: Shaped[Tensor, "destination source *pos"]) -> bytes:
    """What tells masks apart, weights and token positions included."""
    told = hashlib.blake2b(f"{mask.dtype} {tuple(mask.shape)}".encode(), digest_size=16)
    told.update(mask.cpu().contiguous().numpy().tobytes())
    return told.digest()
