"""The lens of a prompt against the tables of `readout` and `logit_attribution`, read one by one."""

from __future__ import annotations

import pytest
import torch

from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.traces import lens as module
from strace_lens.traces.graph import token_graph
from strace_lens.traces.lens import SHOWN, WRITTEN, read_lens
from strace_lens.traces.readout import logit_attribution, readout
from tests import cases, tiny
from tests.cases import NAMES, model_of
from tests.traces.test_readout import added, by_hand

TOKENS = tiny.token_ids(7)
PAIR = (3, 5)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_are_read_as_the_tables_say(name: str) -> None:
    graph = token_graph(model_of(name), TOKENS)
    lens = read_lens(model_of(name), graph)
    for position in (0, 3, 6):
        table = readout(model_of(name), graph, position=position, tokens=SHOWN)
        nodes = table[table["kind"] == "node"]
        ids, values = lens.ids[:, position].flatten(), lens.probabilities[:, position].flatten()
        assert [lens.words[i] for i in ids.tolist()] == list(nodes["token"])
        assert values.tolist() == pytest.approx(nodes["value"].tolist(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_heads_and_mlps_write_what_the_tables_say(name: str) -> None:
    graph = token_graph(model_of(name), TOKENS)
    lens, shape = read_lens(model_of(name), graph), graph.shape
    table = readout(model_of(name), graph, tokens=WRITTEN).set_index("name")
    for layer in range(shape.layers):
        writers = [f"a{layer}.h{head}" for head in range(shape.heads)] + [f"m{layer}"] * shape.mlp
        for column, writer in enumerate(writers):
            rows = table.loc[writer].sort_values(["effect", "order"])
            assert list(rows["effect"]) == ["promoted"] * WRITTEN + ["suppressed"] * WRITTEN
            assert lens.added[layer, column].tolist() == pytest.approx(
                rows["value"].tolist(), abs=1e-5
            )
            # Tokens whose logits agree to rounding may stand in another order.
            words = {lens.words[i] for i in lens.written[layer, column].tolist()}
            assert words == set(rows["token"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", [None, PAIR])
def test_the_logit_is_divided_as_the_table_says(name: str, target) -> None:
    graph = token_graph(model_of(name), TOKENS)
    lens, shape = read_lens(model_of(name), graph, target), graph.shape
    table = logit_attribution(model_of(name), graph, target, by_token=True)
    heads = table[table["kind"] == "attention"]["contribution"]
    assert lens.heads.flatten().tolist() == pytest.approx(heads.tolist(), abs=1e-5)
    mlps = table[table["kind"] == "mlp"]["contribution"]
    assert lens.mlps.tolist() == pytest.approx(mlps.tolist(), abs=1e-5)
    assert lens.heads.shape == (shape.layers, shape.heads, shape.tokens)
    without_cap = table.loc[table["kind"] != "soft cap", "contribution"].sum()
    assert float(lens.logits[-1]) == pytest.approx(without_cap, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_logit_of_a_node_is_that_of_the_weights(name: str) -> None:
    graph = token_graph(model_of(name), TOKENS)
    lens = read_lens(model_of(name), graph)
    nodes, top = graph.activations.nodes[:, -1].double(), int(graph.activations.logits.argmax())
    *_, constant = by_hand(name, nodes[-1])
    for node, ours in zip(nodes, lens.logits.tolist(), strict=True):
        truth = added(name, node, nodes[-1]) + constant
        assert ours == pytest.approx(float(truth[top] - truth.mean()), abs=1e-4)


def test_of_a_long_prompt_the_last_rows_of_attention_are_kept(monkeypatch) -> None:
    graph = token_graph(model_of("gpt2"), TOKENS)
    whole = graph.activations.pattern
    assert torch.equal(read_lens(model_of("gpt2"), graph).pattern, whole)
    monkeypatch.setattr(module, "MOST_ATTENTION", 10)
    assert torch.equal(read_lens(model_of("gpt2"), graph).pattern, whole[:, :, -1:])


def test_a_model_whose_logits_come_from_elsewhere_is_refused() -> None:
    model = cases.fresh_bridge("llama")
    graph = token_graph(model, TOKENS)
    graph.activations.logits.add_(torch.linspace(0, 1, len(graph.activations.logits)))
    with pytest.raises(UnsupportedModelError, match="do not give them"):
        read_lens(model, graph)
