"""What is drawn for a prompt: seeded by its own text, so that no other prompt changes it."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from strace_lens.measures.distributions import in_nucleus


def generator_for(text: str, seed: int) -> np.random.Generator:
    """A random generator that depends on a text and a seed alone."""
    entropy = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(entropy[:16])])


def next_token(
    logits: Float[Tensor, " vocab"],
    temperature: float,
    top_p: float,
    generator: np.random.Generator,
) -> int:
    """The token that goes on: the most probable one, or one drawn from the nucleus.

    As in transformers, logits are divided by the temperature first and the nucleus is that of the
    tempered distribution. Source: Holtzman et al., The curious case of neural text degeneration,
    2020.

    Args:
        logits: at the last token.
        temperature: 0 takes the most probable token, of equal ones the one of the lowest id.
        top_p: the smallest set of most probable tokens that holds this much probability is drawn
            from; 1 draws from all.
        generator: one number of it is used, none at temperature 0.
    """
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.detach().cpu().double()
    # The largest logit goes first, so that a low temperature overflows to certainty.
    log_probs = ((logits - logits.max()) / temperature).log_softmax(-1)
    probabilities = log_probs.exp()
    if top_p < 1:
        probabilities = probabilities.where(in_nucleus(log_probs, top_p), torch.zeros(()).double())
    cumulative = probabilities.cumsum(-1)
    drawn = torch.tensor(generator.random(), dtype=torch.float64) * cumulative[-1]
    return int(torch.searchsorted(cumulative, drawn, right=True))
