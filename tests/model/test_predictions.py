"""The tokens that a model and its traces predict, against dictionaries built token by token."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from strace_lens.measures.distributions import in_nucleus
from strace_lens.model.predictions import (
    TOP,
    TopToken,
    most_probable,
    paired_top_tokens,
    top_tokens,
)


def text(token: int) -> str:
    return f"<{token}>"


@given(seed=st.integers(0, 10_000), vocab=st.integers(TOP, 30), head=st.floats(0.1, 0.9))
def test_each_token_of_either_is_shown_once_with_both_probabilities(seed, vocab, head):
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(3, vocab, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    full, traces = both[:1], both[1:]
    by_model = sorted(range(vocab), key=lambda t: -float(full[0, t]))
    nucleus, mass = [], 0.0
    while mass < head - 1e-9:
        nucleus.append(by_model[len(nucleus)])
        mass += float(full[0, nucleus[-1]].exp())

    (in_head,) = in_nucleus(full, head)
    found = paired_top_tokens(full[0], traces, in_head, most_probable(traces), text)
    for trace, rows in zip(traces, found, strict=True):
        own = sorted(range(vocab), key=lambda t: -float(trace[t]))[:TOP]
        shown = [t for t in by_model if t in by_model[:TOP] or t in own]
        assert rows == tuple(
            TopToken(text(t), float(full[0, t].exp()), float(trace[t].exp()), t in nucleus)
            for t in shown
        )
    masses = traces.exp().masked_fill(~in_head, 0.0).sum(-1)
    torch.testing.assert_close(masses, traces[:, nucleus].exp().sum(-1))


def test_the_top_tokens_fall_and_a_tie_goes_to_the_lower_id():
    log_probs = torch.tensor([[0.1, 0.2, 0.2, 0.1, 0.1, 0.3]]).log()
    (top,) = top_tokens(log_probs, most_probable(log_probs), text)
    assert [t for t, _ in top] == ["<5>", "<1>", "<2>", "<0>", "<3>"]
