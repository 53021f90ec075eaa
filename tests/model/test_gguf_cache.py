"""The cache of GGUF files: what the file gives to the bit, whole or made again, in nobody's way."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
from filelock import FileLock

from strace_lens.model import gguf_cache
from strace_lens.model import load as models
from strace_lens.model.checks import architecture_of
from strace_lens.model.gguf_cache import cache_folder, is_kept
from strace_lens.model.load import load_model
from strace_lens.model.prompts import own_tokenizer, tokenize
from strace_lens.model.skeleton import skeleton
from strace_lens.model.weights import weights_hash
from tests import gguf_files

FILES = (
    *("config.json", "generation_config.json", gguf_cache._MANIFEST, "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
)
IDS = torch.tensor([[5, 60, 7, 200, 31, 262]])


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_files.write_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, which is not there yet."""
    folder = tmp_path / "a cache"
    use(folder, monkeypatch)
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the GGUF files that were parsed and dequantised."""
    found: list[str] = []
    real = models._from_transformers

    def noting(source: str, name: str | None, *rest: Any) -> Any:
        found.append(str(name))
        return real(source, name, *rest)

    monkeypatch.setattr(models, "_from_transformers", noting)
    return found


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_cache, "_told", set())


def use(folder: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRACE_LENS_CACHE", str(folder))


def load(path: Path, dtype: str = "float32") -> Any:
    return load_model(path, device="cpu", dtype=dtype)


def without_cache(path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str = "float32") -> Any:
    with monkeypatch.context() as patch:
        use("off", patch)
        return load(path, dtype)


def entries(cache: Path) -> list[Path]:
    folder = cache / "gguf"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [entry for entry in found if entry.suffix not in (".proofs", ".lock")]


def only_entry(cache: Path) -> Path:
    (entry,) = entries(cache)
    return entry


def kept(path: Path) -> bool:
    return is_kept(path, torch.float32)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)


# ------------------------------------------------------------------ what is kept


@pytest.mark.parametrize(
    ("adds_bos", "dtype"),
    [
        *((adds, "float32") for adds in (False, True, None)),  # of the tokenizer
        *((True, dtype) for dtype in ("bfloat16", "float16")),  # of the weights
    ],
)
def test_first_and_later_loads_give_what_the_file_gives_to_the_bit(
    adds_bos: bool | None, dtype: str, cache: Path, reads: list[str], tmp_path: Path, monkeypatch
) -> None:
    path = gguf_files.write_llama(tmp_path / "my llama.gguf", adds_bos=adds_bos)
    truth = without_cache(path, monkeypatch, dtype)
    assert reads == ["my llama.gguf"]
    for _ in range(2):
        model = load(path, dtype)
        assert weights_hash(model) == weights_hash(truth)
        assert torch.equal(logits(model), logits(truth))
        assert {p.dtype for p in model.parameters()} == {models.DTYPES[dtype]}
        assert repr(model.cfg) == repr(truth.cfg)
        assert architecture_of(model) == architecture_of(truth)
        assert architecture_of(model).name == "my llama"
        ours, theirs = (m.original_model.config.to_dict() for m in (model, truth))
        assert {k: v for k, v in theirs.items() if ours.get(k) != v}.keys() <= {
            *("architectures", "quantization_config", "transformers_version")
        }
        for text in (gguf_files.TEXT, "", "the</s>the <s>", "\u2014 in"):
            for read in (lambda m: m.tokenizer, own_tokenizer):
                assert read(model)(text).input_ids == read(truth)(text).input_ids
        for bos in (False, True):
            assert tokenize(model, architecture_of(model), gguf_files.TEXT, bos=bos) == tokenize(
                truth, architecture_of(truth), gguf_files.TEXT, bos=bos
            )
        assert model.tokenizer.name_or_path == truth.tokenizer.name_or_path
        assert model.tokenizer.special_tokens_map == truth.tokenizer.special_tokens_map
    assert reads == ["my llama.gguf"] * 2  # without a cache, and the first time with one


@pytest.mark.extended
def test_a_change_of_weights_in_memory_does_not_reach_the_cache(
    gguf: Path, cache: Path, reads: list[str]
) -> None:
    load(gguf)
    model = load(gguf)
    before = weights_hash(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert weights_hash(model) != before
    assert weights_hash(load(gguf)) == before
    assert len(reads) == 1


def test_another_file_under_the_same_name_is_another_model(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf_files.write_llama(tmp_path / "x.gguf", seed=1)
    first = load(path)
    stamp = path.stat().st_mtime_ns
    gguf_files.write_llama(path, seed=2)
    os.utime(path, ns=(stamp, stamp))  # of equal size and time
    second = load(path)
    assert weights_hash(second) != weights_hash(first)
    assert weights_hash(second) == weights_hash(without_cache(path, monkeypatch))
    assert len(entries(cache)) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_skeleton_is_the_same_from_the_cache_and_from_the_file(
    dtype: str, gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gguf_cache.kept_configuration(gguf, models.DTYPES[dtype]) is None
    truth = skeleton(gguf, dtype=dtype)
    load(gguf, dtype)
    config, _ = gguf_cache.kept_configuration(gguf, models.DTYPES[dtype]) or (None, None)
    assert config is not None
    assert config._name_or_path == str(gguf.parent)
    reads_no_file = "transformers.modeling_gguf_pytorch_utils.load_gguf_checkpoint"
    monkeypatch.setattr(reads_no_file, None)
    told = skeleton(gguf, dtype=dtype)
    for name in ("name", "architecture", "dtype", "weights_bytes", "assumptions"):
        assert getattr(told, name) == getattr(truth, name)
    for text in (gguf_files.TEXT, ""):
        assert told.tokenizer(text).input_ids == truth.tokenizer(text).input_ids
    assert told.tokenizer.name_or_path == truth.tokenizer.name_or_path


def test_no_configuration_is_read_from_a_damaged_entry(gguf: Path, cache: Path) -> None:
    load(gguf)
    flipped(only_entry(cache) / "config.json")
    assert gguf_cache.kept_configuration(gguf, torch.float32) is None


def test_what_does_not_read_back_as_it_was_is_not_kept(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, truth = gguf_cache._load, without_cache(gguf, monkeypatch)

    def one_bit_off(*arguments: Any) -> Any:
        model, tokenizer = real(*arguments)
        with torch.no_grad():
            next(model.parameters()).view(torch.int32)[3, 3] ^= 1
        return model, tokenizer

    monkeypatch.setattr(gguf_cache, "_load", one_bit_off)
    with pytest.warns(UserWarning, match=r"embed_tokens.weight does not read back as it was"):
        assert weights_hash(load(gguf)) == weights_hash(truth)
    assert entries(cache) == []


def test_with_a_device_map_the_file_itself_is_read(
    gguf: Path, cache: Path, reads: list[str]
) -> None:
    load_model(gguf, device_map={"": "cpu"})
    assert reads == ["tiny.gguf"]
    assert not cache.exists()


# ------------------------------------------------------------------ entries that are not whole


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])  # the last one of a manifest is a line end


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def zeroed(file: Path) -> None:
    """As a power failure may leave it."""
    file.write_bytes(bytes(file.stat().st_size))


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def replaced_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = (truncated, emptied, zeroed, flipped, Path.unlink, replaced_by_a_folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_entry_with_a_damaged_file_is_made_again(
    damage: Any, gguf: Path, cache: Path, reads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights_hash(load(gguf))
    entry, whole = only_entry(cache), cache.parent / "whole"
    assert sorted(file.name for file in entry.iterdir()) == sorted(FILES)
    shutil.copytree(entry, whole)
    for name in FILES:
        assert kept(gguf)
        damage(entry / name)
        assert not kept(gguf)
        if name == "model.safetensors":  # the others go the same way, and loading takes a while
            assert weights_hash(load(gguf)) == before
            assert len(reads) == 2
        else:
            shutil.rmtree(entry)
            shutil.copytree(whole, entry)
    assert kept(gguf)
    assert only_entry(cache) == entry
    assert capsys.readouterr() == ("", "")


def test_every_byte_and_block_of_a_large_file_counts(tmp_path: Path) -> None:
    path, block, size = tmp_path / "file", 2**20, 3 * 2**20 + 12345
    whole = bytes(torch.randint(256, (size,), generator=torch.manual_seed(0)).tolist())
    path.write_bytes(whole)
    before = gguf_cache._checksum(path)
    assert gguf_cache._checksum(path) == before
    wrong = [whole[:block] + whole[2 * block :], whole[block : 2 * block] + whole[:block]]
    wrong += [wrong[1] + whole[2 * block :], whole[:block] + bytes(block) + whole[2 * block :]]
    for place in (0, 7, block - 1, block, 2 * block + 77, 3 * block - 1, 3 * block, size - 1):
        data = bytearray(whole)
        data[place] ^= 128
        wrong.append(bytes(data))
    for data in wrong:
        path.write_bytes(data)
        assert gguf_cache._checksum(path) != before


def _of_another_file(manifest: dict[str, Any]) -> None:
    manifest["source"]["sha256"] = "0" * 64


def _listing_less(manifest: dict[str, Any]) -> None:
    del manifest["files"]["config.json"]


@pytest.mark.parametrize("change", [_of_another_file, _listing_less, dict.clear])
def test_an_entry_with_a_foreign_manifest_is_made_again(
    change: Any, gguf: Path, cache: Path, reads: list[str]
) -> None:
    load(gguf)
    path = only_entry(cache) / gguf_cache._MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    assert not kept(gguf)
    load(gguf)
    assert len(reads) == 2
    assert kept(gguf)
    assert json.loads(path.read_text())["source"]["bytes"] == gguf.stat().st_size


def test_a_file_in_the_place_of_an_entry_is_replaced(gguf: Path, cache: Path) -> None:
    load(gguf)
    entry = only_entry(cache)
    shutil.rmtree(entry)
    entry.write_text("not a folder")
    load(gguf)
    assert kept(gguf)


def test_an_entry_that_vanishes_while_it_is_read_is_no_error(
    gguf: Path, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(gguf)
    real, calls = gguf_cache._load, []

    def vanishing(entry: Path, *rest: Any) -> Any:
        calls.append(entry)
        if len(calls) == 1:
            shutil.rmtree(entry)
        return real(entry, *rest)

    monkeypatch.setattr(gguf_cache, "_load", vanishing)
    load(gguf)
    assert len(reads) == 2
    assert kept(gguf)


@pytest.mark.extended
def test_entries_of_other_versions_of_the_same_file_are_removed(
    gguf: Path, cache: Path, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(gguf_files.write_llama(tmp_path / "other.gguf", seed=5))
    others = set(entries(cache))
    load(gguf, "bfloat16")
    (half,) = set(entries(cache)) - others
    load(gguf)
    (old,) = set(entries(cache)) - others - {half}
    mine = cache / "gguf" / "my notes"
    mine.mkdir()
    real = gguf_cache.version_of
    monkeypatch.setattr(
        gguf_cache, "version_of", lambda name: "9.9" if name == "transformers" else real(name)
    )
    assert not kept(gguf)
    load(gguf)
    assert len(reads) == 4
    (new,) = set(entries(cache)) - others - {half, mine}
    assert new != old
    assert set(entries(cache)) == {*others, half, mine, new}
    left = {entry.stem for entry in (cache / "gguf").glob("*.proofs")}
    assert left == {entry.name for entry in (*others, half, new)}


# ------------------------------------------------------------------ folders


def loads_with_one_warning(path: Path, truth: Any, said: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert weights_hash(load(path)) == weights_hash(truth)
    (message,) = (str(w.message) for w in caught if "cannot be kept" in str(w.message))
    assert said in message
    assert "\n" not in message
    assert 'set STRACE_LENS_CACHE to a folder that can be written, or to "off"' in message


def test_a_file_instead_of_a_folder_is_told_once(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, file = without_cache(gguf, monkeypatch), tmp_path / "file"
    file.write_text("mine")
    for named in (file, file / "within"):
        use(named, monkeypatch)
        assert not kept(gguf)
        loads_with_one_warning(gguf, truth, f"the model of tiny.gguf cannot be kept in {named} (")
    assert file.read_text() == "mine"


def test_a_home_that_is_not_there_is_told_once(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = without_cache(gguf, monkeypatch)
    use("~no-such-user/cache", monkeypatch)
    assert not kept(gguf)
    loads_with_one_warning(gguf, truth, "home")


def test_too_little_room_is_told_once(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = without_cache(gguf, monkeypatch)
    real = shutil.disk_usage

    def full(path: Any) -> Any:
        return real(path)._replace(free=1000)

    monkeypatch.setattr(gguf_cache.shutil, "disk_usage", full)
    loads_with_one_warning(gguf, truth, "MiB free are needed")
    assert entries(cache) == []


def test_a_disk_that_fills_up_is_told_once_and_nothing_is_left(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    truth = without_cache(gguf, monkeypatch)
    request.getfixturevalue("few_bytes")
    loads_with_one_warning(gguf, truth, f"cannot be kept in {cache} (")
    assert entries(cache) == []


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may read."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def test_a_read_only_folder_is_told_once(
    public: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    path = gguf_files.write_llama(public / "tiny.gguf")
    truth = without_cache(path, monkeypatch)
    folder = request.getfixturevalue("read_only_folder")
    use(folder, monkeypatch)
    loads_with_one_warning(path, truth, f"cannot be kept in {folder} (")
    assert list(folder.iterdir()) == []


def test_a_cache_of_another_user_is_read(
    public: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    path = gguf_files.write_llama(public / "tiny.gguf")
    use(public / "cache", monkeypatch)
    before = weights_hash(load(path))
    request.getfixturevalue("read_only_folder")  # no longer root, if it was root that wrote
    assert weights_hash(load(path)) == before
    assert len(reads) == 1


@pytest.mark.parametrize("value", ["", " ", "0", "off", "OFF"])
def test_without_a_cache_nothing_is_written(
    value: str, gguf: Path, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    use(value, monkeypatch)
    assert cache_folder() is None
    assert not kept(gguf)
    if value == "off":
        for _ in range(2):
            load(gguf)
        assert len(reads) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_relative_folder_is_one_of_the_working_folder(
    gguf: Path, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    use("here/models", monkeypatch)
    for _ in range(2):
        load(gguf)
    assert len(reads) == 1
    assert cache_folder() == tmp_path / "here" / "models"
    assert only_entry(tmp_path / "here" / "models").is_dir()


def test_without_the_variable_it_is_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STRACE_LENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == Path(platformdirs.user_cache_dir("strace-lens"))
    monkeypatch.setenv("STRACE_LENS_CACHE", "~/models")
    assert cache_folder() == Path.home() / "models"


# ------------------------------------------------------------------ several processes


def _load_and_tell(path: str, start: Any, told: Any, reads: list[str]) -> None:
    start.wait()
    reads.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = weights_hash(load(Path(path)))
    told.put((len(reads), found, [str(w.message) for w in caught if "kept" in str(w.message)]))


@pytest.mark.extended
@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_fill_it_at_once_do_no_harm(
    damaged: bool, gguf: Path, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = weights_hash(without_cache(gguf, monkeypatch))
    if damaged:
        load(gguf)
        flipped(only_entry(cache) / "model.safetensors")
    context = multiprocessing.get_context("fork")
    start, told = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=_load_and_tell, args=(str(gguf), start, told, reads))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    # One of them makes the entry; the others wait for it.
    found = sorted(told.get(timeout=120) for _ in workers)
    assert found == [(0, truth, []), (0, truth, []), (1, truth, [])]
    for worker in workers:
        worker.join(60)
    assert kept(gguf)
    assert weights_hash(load(gguf)) == truth
    assert only_entry(cache).is_dir()


def test_who_has_waited_long_enough_makes_it_too(
    gguf: Path, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may hold the lock for ever: on another machine, or stopped."""
    truth = weights_hash(load(gguf))
    entry = only_entry(cache)
    flipped(entry / "model.safetensors")
    monkeypatch.setattr(gguf_cache, "_PATIENCE", 0.1)
    (lock,) = entry.parent.glob("*.lock")
    reads.clear()
    with FileLock(lock):
        assert weights_hash(load(gguf)) == truth
        assert weights_hash(load(gguf)) == truth
    assert len(reads) == 1
