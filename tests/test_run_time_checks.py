"""The checks at run time: what is nested is checked as what is not, however often it is made."""

from __future__ import annotations

import concurrent.futures
import time

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor

checked = jaxtyping.jaxtyped(typechecker=beartype)  # as the hook decorates each function


@checked
def added(left: Float[Tensor, "a b"], right: Float[Tensor, "b"]) -> Float[Tensor, "a b"]:
    return left + right


def adder(right: Tensor, wait: float = 0.0):
    """A function made anew by each call."""

    @checked
    def nested(left: Float[Tensor, "a b"], times: int = 1) -> Float[Tensor, "a b"]:
        time.sleep(wait)
        return left + times * right

    return nested


@pytest.mark.parametrize("function", [lambda x: added(x, torch.ones(3)), adder(torch.ones(3))])
def test_shapes_and_types_of_arguments_and_results_are_checked(function) -> None:
    assert function(torch.zeros(2, 3)).tolist() == [[1.0] * 3] * 2
    for wrong in (torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64), [[0.0]]):
        with pytest.raises(TypeCheckError, match="parameters"):
            function(wrong)


def test_the_result_of_a_nested_function_is_checked_against_its_arguments() -> None:
    for _ in range(2):
        with pytest.raises(TypeCheckError, match="return value"):
            adder(torch.ones(2, 1, 3))(torch.zeros(2, 3))
    assert adder(torch.ones(3))(torch.zeros(2, 3)).shape == (2, 3)


def test_each_function_made_runs_its_own_values() -> None:
    one, two = adder(torch.ones(3)), adder(torch.full((3,), 2.0))
    with pytest.raises(TypeCheckError):
        one(torch.zeros(3))  # refused, and not the function that runs next
    assert two(torch.zeros(1, 3), times=2).tolist() == [[4.0] * 3]
    assert one(torch.zeros(1, 3)).tolist() == [[1.0] * 3]
    with pytest.raises(TypeError, match="unexpected keyword"):
        one(torch.zeros(1, 3), others=2)


def test_nested_functions_call_each_other_and_themselves() -> None:
    def countdown(label: str):
        @checked
        def step(number: int) -> list[str]:
            return [f"{label}{number}", *step(number - 1)] if number else []

        return step

    @checked
    def both(number: int) -> list[str]:
        return countdown("a")(number) + countdown("b")(number)

    assert both(2) == ["a2", "a1", "b2", "b1"]
    with pytest.raises(TypeCheckError):
        both("2")


def test_threads_run_their_own_functions() -> None:
    adders = [adder(torch.full((1,), float(value)), wait=0.001) for value in range(16)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        sums = pool.map(lambda one: one(torch.zeros(1, 1)).item(), adders)
        assert list(sums) == list(range(16))


def test_the_package_is_checked() -> None:
    from strace_lens.measures.distributions import total_variation

    with pytest.raises(TypeCheckError):
        total_variation(torch.ones(2, 3), torch.ones(3, 2))
