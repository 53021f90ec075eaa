"""Measures against hand-worked distributions, exact fractions in plain loops, and scipy."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import distance
from scipy.stats import entropy as scipy_entropy

from strace_lens.measures import distributions as m

INF = math.inf
DTYPES = (torch.float64, torch.float32)


def log_rows(*rows: list[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Rows of probabilities or weights as log-probabilities."""
    weights = torch.tensor(rows, dtype=torch.float64)
    return (weights / weights.sum(-1, keepdim=True)).log().to(dtype)


# ------------------------------------------------------------------ slow oracles on fractions


def fractions(weights: list[int]) -> list[Fraction]:
    total = sum(weights)
    return [Fraction(w, total) for w in weights]


def ordered_nucleus(probs: list[Fraction], level: Fraction) -> list[int]:
    taken: list[int] = []
    for token in sorted(range(len(probs)), key=lambda i: (-probs[i], i)):
        taken.append(token)
        if sum(probs[i] for i in taken) >= level:
            return taken
    raise AssertionError("the whole vocabulary has mass 1")


def slow_shared_nucleus(p: list[Fraction], q: list[Fraction]) -> float:
    best = 0.0
    for level in m.NUCLEI:
        exact = Fraction(str(level))
        if ordered_nucleus(p, exact) == ordered_nucleus(q, exact):
            best = level
    return best


def slow_error(p: list[Fraction], q: list[Fraction], tokens: set[int]) -> float:
    return float(sum((abs(p[i] - q[i]) for i in tokens), Fraction(0)) / 2)


@st.composite
def weight_pairs(draw: st.DrawFn, least: int = 0) -> tuple[list[int], list[int]]:
    """Two integer weightings of one vocabulary: far apart, or equal but for a few tokens.

    Sums stay under 200, so that a mass that misses a level misses it by more than the tolerance.
    """
    vocab = draw(st.integers(1, 9))
    row = st.lists(st.integers(least, 20), min_size=vocab, max_size=vocab).filter(any)
    full = draw(row)
    if draw(st.booleans()):
        return full, draw(row)
    trace = list(full)
    for token in draw(st.lists(st.integers(0, vocab - 1), max_size=2)):
        trace[token] = max(least, trace[token] + draw(st.integers(-1, 1)))
    return full, trace if any(trace) else full


# ------------------------------------------------------------------ distances


def test_distances_of_two_tokens_by_hand():
    full, trace = log_rows([0.5, 0.5]), log_rows([0.25, 0.75])
    assert m.total_variation(full, trace).item() == pytest.approx(0.25)
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert m.kl_divergence(full, trace).item() == pytest.approx(kl)
    js = 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)) + 0.5 * (
        0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    )
    assert m.jensen_shannon(full, trace).item() == pytest.approx(js)
    assert m.entropy(full).item() == pytest.approx(math.log(2))


@given(weight_pairs(), st.data())
def test_named_total_variation_takes_all_other_tokens_as_one(pair, data):
    full, trace = pair
    named = data.draw(st.lists(st.integers(0, len(full) - 1), unique=True))
    p, q = fractions(full), fractions(trace)
    others = sum(p[i] - q[i] for i in range(len(p)) if i not in named)
    expected = (sum(abs(p[i] - q[i]) for i in named) + abs(others)) / 2
    found = m.named_total_variation(log_rows(full), log_rows(trace), named)
    assert found.item() == pytest.approx(float(expected), abs=1e-12)
    assert found.item() <= m.total_variation(log_rows(full), log_rows(trace)).item() + 1e-12


def test_named_tokens_out_of_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="token id 2 lies outside the vocabulary of 2"):
        m.named_total_variation(log_rows([0.5, 0.5]), log_rows([0.5, 0.5]), [0, 2])


def test_disjoint_supports_are_as_far_apart_as_can_be():
    full, trace = log_rows([1, 0, 0]), log_rows([0, 0.5, 0.5])
    assert m.total_variation(full, trace).item() == 1.0
    assert m.jensen_shannon(full, trace).item() == pytest.approx(math.log(2), abs=1e-15)
    assert m.kl_divergence(full, trace).item() == INF
    assert m.entropy(full).item() == 0.0


def test_kl_with_zero_and_underflowing_probabilities():
    # exp(-2000) is 0 in float64: only log-probabilities give the right finite value.
    full, trace = log_rows([0.5, 0.5]), torch.tensor([[0.0, -2000.0]], dtype=torch.float64)
    assert m.kl_divergence(full, trace).item() == pytest.approx(1000 - math.log(2))
    # A token of probability 0 in full costs nothing, whether trace has it or not.
    assert m.kl_divergence(log_rows([1, 0, 0]), log_rows([0.5, 0.5, 0])).item() == pytest.approx(
        math.log(2)
    )
    # A token that only full can produce, however rare there, makes the divergence infinite.
    rare = torch.tensor([[0.0, -800.0]], dtype=torch.float64)
    assert m.kl_divergence(rare, log_rows([1, 0])).item() == INF
    assert m.kl_divergence(log_rows([1, 0]), rare).item() == 0.0


@given(weight_pairs(), st.sampled_from(DTYPES))
@settings(max_examples=150)
def test_distances_against_fractions_and_scipy(pair, dtype):
    p, q = fractions(pair[0]), fractions(pair[1])
    full, trace = log_rows(pair[0], dtype=dtype), log_rows(pair[1], dtype=dtype)
    near = 1e-12 if dtype == torch.float64 else 1e-5
    floats = [float(x) for x in p], [float(x) for x in q]

    tv = m.total_variation(full, trace).item()
    assert tv == pytest.approx(slow_error(p, q, set(range(len(p)))), abs=near)
    assert 0 <= tv <= 1
    js = m.jensen_shannon(full, trace).item()
    assert js == pytest.approx(distance.jensenshannon(*floats) ** 2, abs=near)
    assert js == m.jensen_shannon(trace, full).item()
    assert 0 <= js <= math.log(2)
    kl = m.kl_divergence(full, trace).item()
    assert kl == pytest.approx(float(scipy_entropy(*floats)), abs=near)
    assert kl >= 0
    assert m.entropy(full).item() == pytest.approx(float(scipy_entropy(floats[0])), abs=near)


def test_equal_rows_are_at_distance_zero():
    torch.manual_seed(0)
    rows = torch.randn(5, 300).log_softmax(-1)
    for measure in (m.total_variation, m.kl_divergence, m.jensen_shannon):
        assert measure(rows, rows.clone()).abs().max() < 1e-14
    assert (m.shared_nucleus(rows, rows.clone()) == 0.99).all()
    assert m.top1_agreement(rows, rows.clone()).all()


def test_bounds_hold_to_the_last_bit():
    torch.manual_seed(0)
    full = torch.randn(300, 40, dtype=torch.float64).log_softmax(-1)
    near = (full + 1e-9 * torch.randn_like(full)).log_softmax(-1)
    assert (m.kl_divergence(full, near) >= 0).all()
    assert (m.jensen_shannon(full, near) >= 0).all()
    nothing = torch.full_like(full, -INF)
    left, right = torch.cat([full, nothing], -1), torch.cat([nothing, full.flip(0)], -1)
    assert (m.jensen_shannon(left, right) <= math.log(2)).all()
    assert (m.head_mass((0.01 * full).log_softmax(-1), 0.99) <= 1).all()


def test_half_precision_rows_are_renormalised():
    torch.manual_seed(0)
    logits = torch.randn(2, 1000)
    full, trace = logits.log_softmax(-1).to(torch.bfloat16)
    p, q = (x.double().exp() / x.double().exp().sum() for x in (full, trace))
    assert abs(float(full.double().exp().sum()) - 1) > 1e-5  # the case is not vacuous
    tv = m.total_variation(full[None], trace[None])
    assert tv.dtype == torch.float64
    assert tv.item() == pytest.approx(float((p - q).abs().sum() / 2), abs=1e-14)
    head, tail = m.head_tail_error(full[None], trace[None])
    assert (head + tail).item() == pytest.approx(tv.item(), abs=1e-14)


# ------------------------------------------------------------------ most probable tokens


def test_top1_agreement_gives_ties_to_the_lowest_id():
    full = log_rows([0.4, 0.4, 0.2])
    trace = log_rows([0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.1, 0.45, 0.45])
    assert m.top1_agreement(full, trace).tolist() == [True, False, False]
    tied_with_full = log_rows([0.5, 0.5, 0.0])
    assert m.top1_agreement(full, tied_with_full).tolist() == [True]


# ------------------------------------------------------------------ nuclei


@pytest.mark.parametrize("dtype", DTYPES)
def test_nucleus_and_head_mass_by_hand(dtype):
    full = log_rows([0.2, 0.5, 0.3], [0.0, 0.0, 1.0], dtype=dtype)
    sizes = {p: m.in_nucleus(full, p).sum(-1).tolist() for p in (0.01, 0.5, 0.51, 0.8, 0.81, 0.99)}
    assert sizes == {
        0.01: [1, 1],
        0.5: [1, 1],  # an exact hit reaches the level, in float32 too
        0.51: [2, 1],
        0.8: [2, 1],
        0.81: [3, 1],
        0.99: [3, 1],
    }
    assert m.head_mass(full, 0.51).tolist() == pytest.approx([0.8, 1.0])
    assert m.head_mass(full).tolist() == pytest.approx([0.5, 1.0])


def test_shared_nucleus_by_hand():
    full = log_rows([0.5, 0.3, 0.2])
    cases = {
        (0.5, 0.3, 0.2): 0.99,
        (0.51, 0.29, 0.2): 0.99,
        (0.45, 0.35, 0.2): 0.99,  # not shared at 0.5 (one token against two), yet at 0.99
        (0.6, 0.1, 0.3): 0.5,  # the second token differs
        (0.4, 0.1, 0.5): 0.0,
        (0.5, 0.25, 0.25): 0.99,  # a tie goes to the lower id, as in full
    }
    values = m.shared_nucleus(full, log_rows(*map(list, cases)))
    assert values.tolist() == list(cases.values())
    # In full, token 1 comes before token 0; in the trace the two tie, so token 0 comes first.
    assert m.shared_nucleus(log_rows([0.3, 0.4, 0.3]), log_rows([0.4, 0.4, 0.2])).item() == 0.0


@pytest.mark.extended
@given(weight_pairs(), st.sampled_from(DTYPES))
@settings(max_examples=400)
def test_shared_nucleus_against_exact_lists(pair, dtype):
    full, trace = log_rows(pair[0], dtype=dtype), log_rows(pair[1], dtype=dtype)
    expected = slow_shared_nucleus(fractions(pair[0]), fractions(pair[1]))
    assert m.shared_nucleus(full, trace).item() == expected
    assert m.shared_nucleus(trace, full).item() == expected


def sorted_shared_nucleus(full: torch.Tensor, trace: torch.Tensor) -> float:
    """The definition by sorting both rows whole."""
    order, mass = [], []
    for row in (full, trace):
        ids = np.argsort(-row.numpy(), kind="stable")
        probs = row.double().exp().numpy()
        order.append(ids)
        mass.append((probs / probs.sum())[ids].cumsum())
    for level in reversed(m.NUCLEI):
        full_size, trace_size = (int((x < level - m.MASS_TOLERANCE).sum()) + 1 for x in mass)
        if full_size == trace_size and (order[0][:full_size] == order[1][:full_size]).all():
            return level
    return 0.0


def test_shared_nucleus_of_many_tokens_against_whole_sorts():
    torch.manual_seed(0)
    logits = torch.randn(1, 4000) * 4
    logits[:, ::7] = logits[:, :1]  # many tokens that tie, as in a real vocabulary
    noise = torch.logspace(-9, 0, 60)[:, None] * torch.randn(60, 4000)
    full, trace = logits.log_softmax(-1), (logits + noise).log_softmax(-1)
    found = m.shared_nucleus(full, trace).tolist()
    assert found == [sorted_shared_nucleus(full[0], row) for row in trace]
    assert len(set(found)) >= 5  # the noise reaches most levels


@pytest.mark.extended
@given(weight_pairs(), st.sampled_from((0.05, 0.5, 0.9)))
@settings(max_examples=150)
def test_head_and_tail_against_exact_lists(pair, level):
    p, q = fractions(pair[0]), fractions(pair[1])
    full, trace = log_rows(pair[0]), log_rows(pair[1])
    nucleus = set(ordered_nucleus(p, Fraction(str(level))))
    head, tail = m.head_tail_error(full, trace, p=level)
    assert head.item() == pytest.approx(slow_error(p, q, nucleus), abs=1e-12)
    assert tail.item() == pytest.approx(slow_error(p, q, set(range(len(p))) - nucleus), abs=1e-12)
    assert (head + tail).item() == pytest.approx(m.total_variation(full, trace).item(), abs=1e-14)
    assert m.in_nucleus(full, level).sum(-1).item() == len(nucleus)
    mass = float(sum(p[i] for i in nucleus))
    assert m.head_mass(full, level).item() == pytest.approx(mass, abs=1e-12)


def test_head_takes_the_lower_id_of_a_tie():
    head, tail = m.head_tail_error(log_rows([1, 1]), log_rows([3, 1]))
    assert (head.item(), tail.item()) == pytest.approx((0.125, 0.125))
    head, tail = m.head_tail_error(log_rows([1, 1, 2]), log_rows([3, 1, 0]), p=0.75)
    assert (head.item(), tail.item()) == pytest.approx((0.25 + 0.25, 0.0))


def test_head_takes_the_lower_ids_of_many_ties():
    full, trace = torch.zeros(1, 5000), torch.zeros(1, 5000)
    trace[:, 1000:] = -INF
    head, tail = m.head_tail_error(full.log_softmax(-1), trace.log_softmax(-1))
    assert (head.item(), tail.item()) == pytest.approx((0.55, 0.25), abs=1e-6)
    assert m.shared_nucleus(full.log_softmax(-1), full.log_softmax(-1)).item() == 0.99


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_level_outside_0_to_1_is_refused(p):
    row = log_rows([0.5, 0.5])
    for call in (
        lambda: m.in_nucleus(row, p),
        lambda: m.head_mass(row, p),
        lambda: m.head_tail_error(row, row, p),
    ):
        with pytest.raises(ValueError, match=r"p must lie in \(0, 1\); got"):
            call()


# ------------------------------------------------------------------ batches

PAIR_MEASURES = {
    "total_variation": m.total_variation,
    "kl_divergence": m.kl_divergence,
    "jensen_shannon": m.jensen_shannon,
    "top1_agreement": m.top1_agreement,
    "shared_nucleus": m.shared_nucleus,
    "head_error": lambda full, trace: m.head_tail_error(full, trace)[0],
    "tail_error": lambda full, trace: m.head_tail_error(full, trace)[1],
}


@pytest.mark.parametrize("name", PAIR_MEASURES)
def test_a_batch_equals_its_rows(name):
    measure = PAIR_MEASURES[name]
    torch.manual_seed(1)
    full = torch.randn(1, 2, 50).log_softmax(-1)
    trace = (full + 0.3 * torch.randn(4, 2, 50)).log_softmax(-1)
    batch = measure(full, trace)
    assert batch.shape == (4, 2)
    for i in range(4):
        for j in range(2):
            alone = measure(full[0, j], trace[i, j])
            assert alone.shape == ()
            assert alone.item() == pytest.approx(batch[i, j].item(), abs=1e-14)
    one_each = measure(full.expand(4, 2, 50), trace)
    assert torch.allclose(one_each.double(), batch.double(), atol=1e-14, rtol=0)
    no_rows = measure(full[0, 0], trace[:, 0])
    assert torch.allclose(no_rows.double(), batch[:, 0].double(), atol=1e-14, rtol=0)


@pytest.mark.parametrize("name", PAIR_MEASURES)
def test_inputs_are_left_as_they_were(name):
    torch.manual_seed(2)
    full, trace = torch.randn(2, 1, 20, dtype=torch.float64).log_softmax(-1)
    before = full.clone(), trace.clone()
    PAIR_MEASURES[name](full, trace)
    assert torch.equal(full, before[0])
    assert torch.equal(trace, before[1])


@pytest.mark.parametrize("name", PAIR_MEASURES)
def test_rows_that_are_no_distributions_are_refused(name):
    good = log_rows([0.5, 0.5, 0.0])
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    nan = torch.tensor([[0.0, math.nan, 1.0]], dtype=torch.float64)
    for full, trace in ((good, logits), (logits, good), (good, nan), (nan, good)):
        with pytest.raises(ValueError, match="row"):
            PAIR_MEASURES[name](full, trace)


# ------------------------------------------------------------------ checks


def test_rows_of_log_softmax_are_accepted_in_every_dtype():
    logits = torch.zeros(2, 49152)
    logits[1] = torch.linspace(-20, 20, 49152)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        m.entropy(logits.log_softmax(-1).to(dtype))
    m.entropy(torch.tensor([0.0, -INF]))


def test_an_error_says_what_is_wrong_and_where():
    good = [math.log(0.5), math.log(0.5)]
    for bad, words in (
        ([0.0, math.nan], r"row \(1,\) hold NaN"),
        ([INF, -INF], r"row \(1,\) hold \+inf"),
        ([0.0, 0.0], r"row \(1,\) sum to 2, not to 1 within 0\.0001; pass the output of log_so"),
        ([-INF, -INF], r"row \(1,\) sum to 0, not"),
        ([0.5, 0.5], r"row \(1,\) sum to 3\.29744, not"),  # probabilities, not their logarithms
    ):
        with pytest.raises(ValueError, match=words):
            m.entropy(torch.tensor([good, bad]))
    with pytest.raises(ValueError, match="the only row sum to 2"):
        m.entropy(torch.zeros(2))
    with pytest.raises(ValueError, match=r"shape \(0, 3\) hold no values"):
        m.entropy(torch.zeros(0, 3))


def test_unequal_shapes_are_refused():
    """Here the run-time type check refuses some of them first; without it each is a ValueError."""
    pair = log_rows([0.5, 0.5])
    for call in (
        lambda: m.total_variation(pair, log_rows([0.5, 0.25, 0.25])),
        lambda: m.total_variation(pair.expand(3, 2), pair.expand(2, 2)),
        lambda: m.shared_nucleus(pair.expand(3, 2), pair),
    ):
        with pytest.raises((ValueError, TypeError), match=r"shape|dimension|one a size|jaxtyping"):
            call()
