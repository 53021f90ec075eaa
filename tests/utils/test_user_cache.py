"""How long things took, in the user's cache folder: what is damaged or unwritable is no error."""

from __future__ import annotations

from pathlib import Path

import pytest

from strace_lens.utils.user_cache import last_seconds, remember_seconds


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRACE_LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_last_time_is_remembered() -> None:
    assert last_seconds("load a") is None
    for seconds in (3.0, 1.25):
        remember_seconds("load a", seconds)
        remember_seconds("load b", 2 * seconds)
    assert last_seconds("load a") == 1.25
    assert last_seconds("load b") == 2.5


def test_only_the_latest_hundred_are_kept() -> None:
    for number in range(103):
        remember_seconds(f"load {number}", 1.0)
    remembered = [number for number in range(103) if last_seconds(f"load {number}") is not None]
    assert remembered == list(range(3, 103))


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"load a": "x", "b": -1}', b"\xff\xfe{"])
def test_a_damaged_file_is_made_again(cache: Path, content: bytes) -> None:
    cache.mkdir()
    (cache / "seconds.json").write_bytes(content)
    assert last_seconds("load a") is None
    assert last_seconds("b") is None
    remember_seconds("load a", 4.0)
    assert last_seconds("load a") == 4.0


def test_where_nothing_can_be_kept_nothing_fails(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file in the way")
    remember_seconds("load a", 1.0)
    assert last_seconds("load a") is None
    monkeypatch.setenv("STRACE_LENS_CACHE", "off")
    remember_seconds("load a", 1.0)
    assert last_seconds("load a") is None
