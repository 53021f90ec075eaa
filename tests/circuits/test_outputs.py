"""What sources write in an untouched run, against the plain matrices, and Outputs' own algebra."""

from __future__ import annotations

import pytest
import torch

from strace_lens.circuits.outputs import join_outputs, read_outputs, source_rows
from strace_lens.circuits.wiring import wiring_of
from tests import oracle
from tests.cases import model_of, relative_error
from tests.circuits.made import NAMES, tiny_task, uneven_task
from tests.circuits.oracle_patching import full_run

TASK = tiny_task()


@pytest.mark.parametrize("name", NAMES)
def test_source_rows_are_what_each_source_adds_to_the_stream(name: str) -> None:
    model, wiring = model_of(name), wiring_of(model_of(name))
    outputs, logits, _ = read_outputs(model, wiring, TASK.clean, TASK.lengths)
    rows = source_rows(model, wiring, outputs)
    assert rows.shape == (wiring.graph.sources, 2, 6, wiring.architecture.d_model)
    for pair in range(2):
        slow = full_run(oracle.plain(name), TASK.clean[pair].tolist())
        assert relative_error(logits[pair, 0], slow.logits[-1]) < 1e-5
        for source, ours in zip(wiring.graph.source_names, rows[:, pair], strict=True):
            assert relative_error(ours, slow.outputs[source]) < 1e-5


def test_logits_are_read_at_the_last_token_or_at_every_one() -> None:
    model, wiring, task = model_of("llama"), wiring_of(model_of("llama")), uneven_task()
    with torch.no_grad():
        full = model(task.clean)
    last = read_outputs(model, wiring, task.clean, task.lengths).logits
    truth = full[torch.arange(3), task.lengths - 1]
    assert last.shape[:2] == (3, 1)
    assert relative_error(last[:, 0], truth) < 1e-6
    every = read_outputs(model, wiring, task.clean, task.lengths, every_position=True).logits
    assert relative_error(every, full) < 1e-6


def test_outputs_are_cut_joined_and_mapped_row_by_row() -> None:
    model, wiring, task = model_of("gpt2"), wiring_of(model_of("gpt2")), tiny_task(4)
    whole = read_outputs(model, wiring, task.clean, task.lengths).outputs
    first, last = (whole.rows(torch.tensor(index)) for index in ([0], [1, 2, 3]))
    back = join_outputs([last, first]).rows(torch.tensor([3, 0, 1, 2]))
    for ours, theirs in zip(
        [back.embed, *back.z, *back.mlp], [whole.embed, *whole.z, *whole.mlp], strict=True
    ):
        assert torch.equal(ours, theirs)
    twice = whole.map(lambda x: 2 * x)
    less = twice.map(torch.sub, whole)
    assert torch.equal(less.z[1], whole.z[1])
    assert torch.equal(less.mlp[2], whole.mlp[2])
    assert torch.equal(less.embed, whole.embed)
    assert not whole.embed.requires_grad
