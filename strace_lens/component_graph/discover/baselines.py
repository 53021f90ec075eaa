"""Rankings that know nothing of the task: every method has to beat them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.component_graph.experiment import Experiment
from strace_lens.component_graph.run_circuits import check_positions


def random(
    experiment: Experiment, *, seed: int = 0, positions: bool = False
) -> Float[Tensor, "destination source *pos"]:
    """Scores drawn uniformly from (0, 1); no pass is run and the sign means nothing.

    Args:
        experiment: from `make_experiment`.
        seed: the same seed gives the same scores.
        positions: draw one for each token position.

    Raises:
        ValueError: positions over prompts of unequal lengths.
    """
    exists = experiment.graph.exists
    if positions:
        check_positions(experiment.task)
        exists = exists[..., None].expand(*exists.shape, experiment.task.clean.shape[1])
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(exists.shape, generator=generator) * exists
