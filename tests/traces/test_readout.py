"""Direct logit attribution and readouts against norms and unembeddings written out by hand."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.targets import TargetError
from strace_lens.traces.graph import token_graph
from strace_lens.traces.readout import logit_attribution, readout
from tests import cases, oracle, tiny
from tests.cases import NAMES, model_of

TOKENS = tiny.token_ids(9)
ASKED, OTHER = 3, 5


def by_hand(name: str, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gain over scale at a stream, the unembedding and the constant logits, of two families."""
    hf = tiny.hf_model(name)
    norm = hf.model.norm if name == "llama" else hf.transformer.ln_f
    eps = norm.variance_epsilon if name == "llama" else norm.eps
    centred = stream if name == "llama" else stream - stream.mean()
    scale = (centred.pow(2).mean() + eps).sqrt()
    bias = getattr(norm, "bias", None)
    unembed = hf.lm_head.weight.detach().double()
    constant = unembed @ bias.detach().double() if bias is not None else torch.zeros(len(unembed))
    return norm.weight.detach().double() / scale, unembed, constant


def added(name: str, write: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """Logits that a write adds to those of a stream, at the stream's scale."""
    gain, unembed, _ = by_hand(name, stream)
    write = write.double() if name == "llama" else write.double() - write.double().mean()
    return unembed @ (gain * write)


@pytest.mark.parametrize("name", NAMES)
def test_contributions_add_up_to_the_logit_difference(name: str) -> None:
    model = model_of(name)
    graph = token_graph(model, TOKENS)
    logits = graph.activations.logits.double()
    for by_token in (False, True):
        table = logit_attribution(model, graph, (ASKED, OTHER), by_token=by_token)
        truth = float(logits[ASKED] - logits[OTHER])
        assert table["contribution"].sum() == pytest.approx(truth, abs=1e-4)
    one = logit_attribution(model, graph, ASKED)["contribution"].sum()
    assert one == pytest.approx(float(logits[ASKED] - logits.mean()), abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_contribution_is_that_of_the_weights(name: str) -> None:
    graph = token_graph(model_of(name), TOKENS)
    table = logit_attribution(model_of(name), graph, (ASKED, OTHER), by_token=True)
    stream = graph.activations.nodes[-1, -1].double()
    found = table.set_index(["name", "position"])["contribution"]
    for level, slow in enumerate(oracle.edge_vectors(name, TOKENS)):
        layer, sublayer = divmod(level, graph.shape.sublayers)
        if sublayer == 0:
            for head, of_head in enumerate(slow.attention):
                for position, write in enumerate(of_head[-1]):
                    truth = added(name, write, stream)
                    ours = found[f"a{layer}.h{head}", position]
                    assert ours == pytest.approx(float(truth[ASKED] - truth[OTHER]), abs=1e-5)
        else:
            truth = added(name, slow.mlp[0][-1], stream)
            (ours,) = table.loc[table["name"] == f"m{layer}", "contribution"]
            assert ours == pytest.approx(float(truth[ASKED] - truth[OTHER]), abs=1e-5)


def test_heads_are_the_sums_of_the_tokens_that_they_read() -> None:
    graph = token_graph(model_of("llama"), TOKENS)
    whole = logit_attribution(model_of("llama"), graph)
    parts = logit_attribution(model_of("llama"), graph, by_token=True)
    summed = parts.groupby("name", sort=False)["contribution"].sum()
    assert list(summed.index) == list(whole["name"])
    assert summed.to_numpy() == pytest.approx(whole["contribution"].to_numpy(), abs=1e-5)


def test_by_default_the_most_probable_token_is_asked_for() -> None:
    graph = token_graph(model_of("llama"), TOKENS)
    top = int(graph.activations.logits.argmax())
    asked = logit_attribution(model_of("llama"), graph, top)
    pd.testing.assert_frame_equal(logit_attribution(model_of("llama"), graph), asked)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_node_says_what_the_model_says(name: str) -> None:
    model = model_of(name)
    graph = token_graph(model, TOKENS)
    table = readout(model, graph, tokens=4)
    last = table[(table["kind"] == "node")].tail(4)
    truth = graph.activations.logits.softmax(-1).topk(4)
    assert last["value"].to_numpy() == pytest.approx(truth.values.numpy(), rel=1e-3)
    assert list(last["order"]) == [0, 1, 2, 3]
    assert table.groupby("name").size().max() == 8  # of heads and MLPs, both effects


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("position", [-1, 4])
def test_a_readout_is_that_of_the_weights(name: str, position: int) -> None:
    model = model_of(name)
    graph = token_graph(model, TOKENS)
    table = readout(model, graph, position=position, tokens=3)
    nodes = graph.activations.nodes[:, position].double()
    gain, unembed, constant = by_hand(name, nodes[1])
    centred = nodes[1] if name == "llama" else nodes[1] - nodes[1].mean()
    truth = (unembed @ (gain * centred) + constant).softmax(-1).topk(3)
    of_node = table[table["name"] == "blocks.0.hook_resid_mid"]
    assert of_node["value"].to_numpy() == pytest.approx(truth.values.numpy(), rel=1e-3)
    logits = added(name, oracle.edge_vectors(name, TOKENS)[1].mlp[0][position], nodes[-1])
    logits = logits - logits.mean()
    for effect, largest in (("promoted", True), ("suppressed", False)):
        rows = table[(table["name"] == "m0") & (table["effect"] == effect)]
        truth = logits.topk(3, largest=largest).values
        assert rows["value"].to_numpy() == pytest.approx(truth.numpy(), abs=1e-4)


def test_bad_input_is_refused_by_name() -> None:
    model = cases.fresh_bridge("llama")
    graph = token_graph(model, TOKENS)
    with pytest.raises(ValueError, match="position 9 lies outside the prompt of 9 tokens"):
        readout(model, graph, position=9)
    with pytest.raises(ValueError, match="tokens must lie in"):
        readout(model, graph, tokens=0)
    with pytest.raises(TargetError, match="lies outside the vocabulary"):
        logit_attribution(model, graph, 10**6)
    with torch.no_grad():
        model.ln_final.weight.mul_(2.0)
    with pytest.raises(ValueError, match="read it anew"):
        logit_attribution(model, graph)


def test_a_model_whose_logits_come_from_elsewhere_is_refused() -> None:
    model = cases.fresh_bridge("llama")
    graph = token_graph(model, TOKENS)
    graph.activations.logits.add_(torch.linspace(0, 1, len(graph.activations.logits)))
    with pytest.raises(UnsupportedModelError, match="do not give them"):
        logit_attribution(model, graph)
