"""Remembered proofs: only for what they were made of, and of no model that is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from strace_lens.model import checks, gguf_cache, proofs, weights
from strace_lens.model import load as models
from strace_lens.model.architecture import UnsupportedModelError
from strace_lens.model.checks import architecture_of
from strace_lens.model.load import load_model
from strace_lens.model.proofs import Proof, proof_file, recalled, remember
from tests import gguf_files


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_files.write_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def filled(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one model and its proof."""
    folder = tmp_path_factory.mktemp("filled") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRACE_LENS_CACHE", str(folder))
        load(gguf)
    return folder


@pytest.fixture
def cache(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = shutil.copytree(filled, tmp_path / "cache")
    monkeypatch.setenv("STRACE_LENS_CACHE", str(folder))
    return folder


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models to whose hook points writes were tried."""
    found: list[str] = []
    real = checks._dead_writes

    def noting(model: Any, arch: Any, tokens: Any) -> Any:
        found.append(arch.name)
        return real(model, arch, tokens)

    monkeypatch.setattr(checks, "_dead_writes", noting)
    return found


def load(path: Path, **options: Any) -> Any:
    return load_model(path, device="cpu", **options)


def proof_files(cache: Path) -> list[Path]:
    return sorted(cache.glob("gguf/*.proofs/*/*"))


def test_what_is_proven_once_is_remembered_and_is_what_a_new_proof_finds(
    gguf: Path, cache: Path, tried: list[str]
) -> None:
    model = load(gguf)
    remembered = architecture_of(model)
    assert tried == []
    (file,) = proof_files(cache)
    file.unlink()
    assert architecture_of(load(gguf)) == remembered == checks.check(model, checks.describe(model))
    assert tried == ["tiny"] * 2
    load(gguf)
    assert len(tried) == 2
    assert proof_files(cache) == [file]


def test_it_does_not_outlive_a_change_of_the_weights_in_memory(
    gguf: Path, cache: Path, tried: list[str]
) -> None:
    model = load(gguf)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    architecture_of(model)
    assert tried == ["tiny"]


def _other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = proofs.version_of
    monkeypatch.setattr(proofs, "version_of", lambda n: "9" if n == "torch" else real(n))


def _other_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    real = proofs.version_of
    monkeypatch.setattr(
        proofs, "version_of", lambda n: "3.0" if n == "transformer-lens" else real(n)
    )


def _other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "_code", lambda: "other")


def _other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs.platform, "machine", lambda: "other")


def _other_products(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert before == "highest"


@pytest.mark.parametrize(
    "change", [_other_versions, _other_bridge, _other_code, _other_machine, _other_products]
)
def test_it_is_made_again_where_anything_else_ran(
    change: Callable[[Any], None],
    gguf: Path,
    cache: Path,
    tried: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change(monkeypatch)
    for _ in range(2):
        load(gguf)
        assert tried == ["tiny"]


@pytest.mark.extended
def test_other_weights_and_other_dtypes_are_proven_apart(
    gguf: Path, cache: Path, tried: list[str], tmp_path: Path
) -> None:
    other = gguf_files.write_llama(tmp_path / "other.gguf", seed=3)
    for _ in range(2):
        load(other)
        load(gguf, dtype="bfloat16")
        load(gguf)
    assert tried == ["other", "tiny"]
    assert len(proof_files(cache)) == 3


def test_devices_are_proven_apart(tmp_path: Path) -> None:
    files = [
        proof_file(tmp_path, torch.nn.Linear(2, 2, device=device)) for device in ("cpu", "meta")
    ]
    assert files[0] != files[1]


def test_a_hash_of_the_code_changes_with_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "inner" / "b.py").write_text("b = 1\n")
    monkeypatch.setattr(proofs, "_rooms", lambda: iter([tmp_path]))
    seen = {proofs._code.__wrapped__()}
    (tmp_path / "inner" / "b.py").write_text("b = 2\n")
    seen.add(proofs._code.__wrapped__())
    (tmp_path / "inner" / "b.py").rename(tmp_path / "inner" / "c.py")
    seen.add(proofs._code.__wrapped__())
    (tmp_path / "d.py").write_text("")
    seen.add(proofs._code.__wrapped__())
    assert len(seen) == 4


def test_the_code_is_that_of_this_room_and_of_transformer_lens() -> None:
    import transformer_lens

    assert list(proofs._rooms()) == [
        Path(checks.__file__).parent,
        Path(transformer_lens.__file__).parent,
    ]


def test_a_proof_is_recalled_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "proof"
    assert recalled(file) is None
    proof = Proof({"attention_scales": (1.0, 0.1), "mlp_scales": (), "live": False}, "1a2b")
    remember(file, proof)
    assert recalled(file) == proof
    assert recalled(file.with_name("other")) is None


def test_the_hash_of_the_weights_is_recalled_with_the_proof(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = weights.weights_hash(load(gguf))
    worked_out: list[Any] = []

    def noting(model: Any) -> str:
        worked_out.append(model)
        return "worked out"

    monkeypatch.setattr(weights, "weights_hash", noting)
    model = load(gguf)
    assert weights.remembered_hash(model) == truth
    assert worked_out == []
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    assert weights.remembered_hash(model) == "worked out"
    assert worked_out == [model]


def test_no_pass_of_the_proof_is_run_again(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "check_sums", None)
    facts = architecture_of(load(gguf))
    assert all(hasattr(facts, name) for name in checks.FROM_A_RUN)
    assert len(facts.attention_scales) == facts.layers


@pytest.mark.parametrize("damage", ["emptied", "cut", "flipped", "a folder"])
def test_a_damaged_proof_is_made_again(
    damage: str, gguf: Path, cache: Path, tried: list[str]
) -> None:
    (file,) = proof_files(cache)
    data = file.read_bytes()
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(
            {
                "emptied": b"",
                "cut": data[: len(data) // 2],
                "flipped": data[:-1] + bytes([data[-1] ^ 1]),
            }[damage]
        )
    assert architecture_of(load(gguf)).pattern_is_live
    assert tried == ["tiny"]


def test_a_bridge_that_computes_something_else_is_refused_all_the_same(
    gguf: Path, cache: Path, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = models.wrapped

    def wrong(*arguments: Any) -> Any:
        bridge: Any = make(*arguments)
        bridge.original_model.model.norm.register_forward_hook(lambda module, given, x: 1.1 * x)
        return bridge

    monkeypatch.setattr(models, "wrapped", wrong)
    with pytest.raises(UnsupportedModelError, match="the bridge is not the model"):
        load(gguf)
    assert tried == []
    for file in proof_files(cache):
        file.unlink()
    with pytest.raises(UnsupportedModelError, match="the bridge is not the model"):
        load(gguf)
    assert tried == ["tiny"]
    assert proof_files(cache) == []  # a model that is refused leaves none


def test_where_nothing_can_be_written_it_is_made_at_every_load(
    gguf: Path, cache: Path, tried: list[str]
) -> None:
    (folder,) = cache.glob("gguf/*.proofs")
    shutil.rmtree(folder)
    folder.write_text("a file")
    for _ in range(2):
        load(gguf)
    assert tried == ["tiny"] * 2


def test_without_the_cache_nothing_is_remembered(
    gguf: Path, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRACE_LENS_CACHE", "off")
    for _ in range(2):
        load(gguf)
    assert tried == ["tiny"] * 2
    assert gguf_cache.cache_folder() is None
