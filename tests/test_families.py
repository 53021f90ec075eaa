"""Masks and single edges of every further family against its own Hugging Face modules.

Run by `make test-families`, with both versions of TransformerLens. The families of `tiny` whose
layers are made of an attention and an MLP module run here too; the others, `BY_HAND`, have forward
passes written out by hand in `oracle_hugging_face`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.checks import architecture_of
from strace_lens.model.load import load_model
from strace_lens.traces.masked_run import masked_logits
from tests import cases, oracle_hooks, tiny
from tests.cases import relative_error, rows
from tests.families import FAMILIES, family, hf_family

pytestmark = pytest.mark.families

SHORT = tiny.token_ids(6)  # longer than every sliding window
TOKENS = tiny.token_ids(8, seed=2)

_PARTS = "the parts of hook_attn_out do not add up to it"
REFUSED = {
    "falcon_grouped": "TransformerLens cannot wrap it",
    "deepseek_v2": r"multi-head latent \(MLA\)",
    "deepseek_v3": r"multi-head latent \(MLA\)",
}
if tiny.HAS_HOOKED_TRANSFORMER:  # the bridge of 3.9
    REFUSED |= {
        "cohere": "the bridge is not the model",
        "cohere2": "the bridge is not the model",
        "hunyuan": "the bridge is not the model",
        "olmo3": _PARTS,
        "exaone4": _PARTS,
    }
BY_HAND = {"gpt2", "gptj", "opt", "bloom", "granite", "olmo_clipped"}
NAMES = [n for n in [*tiny.BRIDGES, *FAMILIES] if n not in {*REFUSED, *BY_HAND, *cases.REFUSED}]


def model_of(name: str) -> Any:
    return tiny.bridge(name) if name in tiny.BRIDGES else family(name)


def ours(name: str, tokens: list[int], masks: list[Any]) -> torch.Tensor:
    model = model_of(name)
    shape = oracle_hooks.graph_shape(name, len(tokens))
    return masked_logits(model, architecture_of(model), rows(tokens, shape, masks))


@pytest.mark.parametrize("name", NAMES)
def test_with_every_edge_the_oracle_is_the_hugging_face_model(name: str) -> None:
    everything = oracle_hooks.graph_shape(name, len(TOKENS)).full(1.0, torch.bool)
    found = oracle_hooks.masked_logits(name, TOKENS, [everything])
    with torch.no_grad():
        truth = hf_family(name)(torch.tensor([TOKENS])).logits[:, -1]
    assert relative_error(found, truth) < 1e-5
    assert relative_error(ours(name, TOKENS, [everything]), truth) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_zeroing_any_one_edge_equals_the_hugging_face_modules(name: str) -> None:
    shape = oracle_hooks.graph_shape(name, len(SHORT))
    masks = cases.single_edge_drops(shape)
    truth = oracle_hooks.masked_logits(name, SHORT, masks)
    assert relative_error(ours(name, SHORT, masks), truth) < 1e-5
    full = oracle_hooks.masked_logits(name, SHORT, [shape.full(1.0, torch.bool)])
    moved = (truth - full).abs().amax(-1) > 1e-4 * full.abs().max()
    # Edges outside a window carry nothing, and few lie inside a chunk of Llama 4.
    assert moved.double().mean() > (0.2 if name == "llama4" else 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_random_masks_equal_the_hugging_face_modules(name: str) -> None:
    shape = oracle_hooks.graph_shape(name, len(TOKENS))
    masks = [cases.random_mask(shape, d, seed) for d in (0.0, 0.3, 0.7, 0.9) for seed in range(3)]
    truth = oracle_hooks.masked_logits(name, TOKENS, masks)
    assert relative_error(ours(name, TOKENS, masks), truth) < 2e-5


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """When one of these is no longer refused, it belongs among the tested."""
    hf_family(name).save_pretrained(tmp_path / name)
    tiny.tokenizer().save_pretrained(tmp_path / name)
    with pytest.raises(UnsupportedModelError, match=f"^{name} .*{REFUSED[name]}"):
        load_model(tmp_path / name, device="cpu")
