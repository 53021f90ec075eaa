"""Files on disk: text and JSON read strictly, files written whole or not at all."""

from __future__ import annotations

import ast
import errno
import json
import math
import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strace_lens
from strace_lens.utils.disk import (
    JsonError,
    TextFileError,
    lines_of,
    parse_json,
    parse_object,
    read_prompt,
    read_text,
    remove_strays,
    results_folder,
    whole_folder,
    write_whole,
)

# ------------------------------------------------------------------ text

BOM = b"\xef\xbb\xbf"
LINES = "the capital\u2028of\r\n\r\nFrance\u0085\ris\n"


@pytest.mark.parametrize("mark", [b"", BOM])
def test_a_text_is_read_as_it_stands_and_a_bom_is_no_part_of_it(
    tmp_path: Path, mark: bytes
) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(mark + LINES.encode())
    assert read_text(path) == LINES
    assert read_text(str(path)) == LINES
    # Only a newline ends a line: separators within a text belong to it.
    assert lines_of(read_text(path)) == ["the capital\u2028of", "", "France\u0085\ris"]


def test_a_second_bom_belongs_to_the_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(BOM + BOM + b"a")
    assert read_text(path) == "\ufeffa"


@pytest.mark.parametrize(
    ("written", "prompt", "lines"),
    [
        ("a\r\nb\r\n", "a\r\nb", ["a", "b"]),
        ("a\nb\n", "a\nb", ["a", "b"]),
        ("a\nb", "a\nb", ["a", "b"]),
        ("a\n\n", "a\n", ["a", ""]),
        ("a \r", "a \r", ["a "]),
        ("", "", []),
    ],
)
def test_one_line_end_is_taken_off_a_prompt_and_the_others_stay(
    tmp_path: Path, written: str, prompt: str, lines: list[str]
) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(written.encode())
    assert read_prompt(path) == prompt
    assert lines_of(written) == lines


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("ok\ncaf\u00e9".encode("latin-1"), r"line 2: not UTF-8 \(byte 6 is 0xE9\); .*iconv"),
        (b"\xed\xa0\x80", r"line 1: not UTF-8 \(byte 0 is 0xED\)"),  # half of a surrogate pair
        ("ok".encode("utf-16"), "byte order mark of UTF-16.*iconv -f UTF-16"),
        ("ok".encode("utf-16-le"), "binary file .byte 1 is 0."),
        (b"\x80\x02}q\x00.", "binary file .byte 4 is 0."),
    ],
)
@pytest.mark.parametrize("read", [read_text, read_prompt])
def test_what_is_no_utf_8_is_refused_by_file_and_byte(
    tmp_path: Path, data: bytes, message: str, read
) -> None:
    path = tmp_path / "odd name.txt"
    path.write_bytes(data)
    with pytest.raises(TextFileError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ JSON

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=VALUES, ascii_only=st.booleans(), mark=st.booleans())
def test_what_json_can_say_comes_back(value, ascii_only, mark):
    text = "\ufeff" * mark + json.dumps(value, ensure_ascii=ascii_only)
    back = parse_json(text, "here")
    assert back == value
    assert json.dumps(back) == json.dumps(value)  # -0.0 and 0.0, 1 and 1.0 are equal, not the same
    assert parse_json(text.encode(), "here") == value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", r"not JSON \(Expecting"),
        ("", r"not JSON \(Expecting"),
        ("1 2", r"not JSON \(Extra data"),
        ("[NaN]", r"not JSON \(NaN is no JSON number\)"),
        ("[-Infinity]", "-Infinity is no JSON number"),
        ("1e400", "1e400 is larger than any 64-bit number"),
        ("-1e400", "-1e400 is larger than any 64-bit number"),
        (str(2**64), "18446744073709551616 is larger than any 64-bit number"),
        (str(-(2**63) - 1), "-9223372036854775809 is larger than any 64-bit number"),
        ("1" * 10_000, "4300 digits"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (r'"\ud800"', r"half of a surrogate pair, '\\ud800'"),
        (r'{"\udfff": 1}', r"half of a surrogate pair, '\\udfff'"),
        ("[" * 200_000 + "]" * 200_000, "nested too deeply"),
        (r'{"a": ["\ud83d", 1]}', r"half of a surrogate pair, '\\ud83d'"),
        ("[" * 200_000, r"not JSON"),
        (b'"\xff"', r"not UTF-8 \(byte 1"),
    ],
)
def test_everything_else_is_refused_in_one_line_that_says_where(content, reason):
    with pytest.raises(JsonError, match=rf"^file\.json, line 3: .*{reason}") as raised:
        parse_json(content, "file.json, line 3")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("content", ["[1]", "null", '"text"', "3"])
def test_an_object_is_asked_for_and_another_value_is_refused(content):
    assert parse_object('{"a": [1]}', "here") == {"a": [1]}
    with pytest.raises(JsonError, match="here: not a JSON object but a "):
        parse_object(content, "here")


def test_nan_is_read_where_it_is_asked_for() -> None:
    assert math.isnan(parse_json("[NaN]", "x", nan=True)[0])
    with pytest.raises(JsonError, match="-Infinity is no JSON number"):
        parse_json("[-Infinity]", "x", nan=True)


PACKAGE = Path(strace_lens.__file__).parent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------ writing


@pytest.mark.parametrize("length", [0, 1, 2**20])
def test_a_file_holds_what_was_written_and_nothing_lies_beside_it(tmp_path, length):
    content = os.urandom(length)
    write_whole(tmp_path / "file", b"old")
    write_whole(str(tmp_path / "file"), content)
    assert (tmp_path / "file").read_bytes() == content
    assert names(tmp_path) == ["file"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    write_whole(tmp_path / ("n" * 255), b"x")
    assert names(tmp_path) == ["n" * 255]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o027])
def test_the_users_umask_decides_who_may_read_a_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "ours", b"x")
        (tmp_path / "theirs").write_bytes(b"x")
    finally:
        os.umask(before)
    ours, theirs = (stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("ours", "theirs"))
    assert ours == theirs == 0o666 & ~umask


def test_file_and_folder_are_flushed_to_the_disk_around_the_renaming(tmp_path, monkeypatch):
    did: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        did.append("folder flushed" if is_folder else "file flushed")
        fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        did.append("renamed")
        replace(source, target)

    monkeypatch.setattr("os.fsync", flush)
    monkeypatch.setattr("os.replace", rename)
    write_whole(tmp_path / "file", b"x")
    assert did == ["file flushed", "renamed", "folder flushed"]


def test_a_full_disk_leaves_the_old_file_and_names_the_new_one(tmp_path, few_bytes):
    write_whole(tmp_path / "file", b"old")
    with pytest.raises(OSError, match=r"cannot write .*/file: File too large") as raised:
        write_whole(tmp_path / "file", bytes(5000))
    assert raised.value.errno == errno.EFBIG
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_an_interrupt_leaves_the_old_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "file", b"old")

    def stop(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_missing_folder_and_a_folder_in_the_way_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot write .*/nowhere/file: No such file"):
        write_whole(tmp_path / "nowhere" / "file", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"cannot write .*/folder: "):
        write_whole(tmp_path / "folder", b"x")
    assert names(tmp_path) == ["folder"]


# ------------------------------------------------------------------ what killed processes leave

_KILLED = """
import os, sys
from strace_lens.utils import disk
os.fsync = lambda _: os.kill(os.getpid(), 9)
disk.write_whole(sys.argv[1], b"never whole")
"""


def killed_write(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_write_left_is_gone_with_the_next_write(tmp_path):
    write_whole(tmp_path / "file", b"old")
    killed_write(tmp_path / "file")
    assert len(names(tmp_path)) == 2
    assert (tmp_path / "file").read_bytes() == b"old"
    write_whole(tmp_path / "another", b"x")
    assert names(tmp_path) == ["another", "file"]


def test_what_a_killed_write_left_is_gone_when_its_folder_is_prepared(tmp_path):
    killed_write(tmp_path / "file")
    with results_folder(tmp_path):
        assert names(tmp_path) == []


def _hold(folder: str, ready, done) -> None:
    def wait(_: int) -> None:
        os.fsync = real
        ready.set()
        done.wait()

    real, os.fsync = os.fsync, wait
    write_whole(Path(folder, "slow"), b"slow")


def test_a_write_that_is_still_going_on_is_left_alone(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), ready, done))
    other.start()
    try:
        assert ready.wait(30)
        write_whole(tmp_path / "quick", b"quick")
        assert len(names(tmp_path)) == 2
    finally:
        done.set()
        other.join(30)
    assert other.exitcode == 0
    assert names(tmp_path) == ["quick", "slow"]
    assert (tmp_path / "slow").read_bytes() == b"slow"


def test_only_our_own_temporaries_are_removed_and_another_machines_after_a_day(tmp_path):
    kept = [".strace-lens-notes.tmp", ".part-0.tmp", ".strace-lens-00000000-1-00000000.tmp"]
    old = ".strace-lens-00000000-1-11111111.tmp"
    for name in (*kept, old):
        (tmp_path / name).touch()
    os.utime(tmp_path / old, (time.time() - 90_000,) * 2)
    remove_strays(tmp_path)
    assert names(tmp_path) == sorted(kept)


# ------------------------------------------------------------------ folders


def tried(folder: Path, files: Sequence[str] = ()) -> None:
    with results_folder(folder, files):
        pytest.fail("the work began")


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    folder = tmp_path / "a" / "b"
    with results_folder(str(folder), ["page.html"], ["c"]):
        assert names(folder) == ["c"]
        assert names(folder / "c") == []
    (folder / "page.html").write_text("old")
    with results_folder(folder, ["page.html"], ["c"]):
        assert (folder / "page.html").read_text() == "old"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_folders_that_were_made_for_nothing_are_removed_again(tmp_path, error):
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "a" / "b"):
        with pytest.raises(error), results_folder(folder, ["page.html"], ["c"]):
            raise error
    assert names(tmp_path) == ["there"]
    assert names(tmp_path / "there") == []


def test_folders_that_hold_a_file_are_kept_when_the_work_ends_in_an_error(tmp_path):
    with pytest.raises(IsADirectoryError), results_folder(tmp_path / "a", [], ["c", "d"]):
        [write_whole(tmp_path / "a" / "c" / name, b"x") for name in ("file", "../d")]
    assert names(tmp_path / "a" / "c") == ["file"]


def test_a_read_only_folder_is_refused_by_name(read_only_folder):
    with pytest.raises(PermissionError, match=rf"cannot write to the folder {read_only_folder}: "):
        tried(read_only_folder)
    with pytest.raises(PermissionError, match=r"cannot make the folder .*/within: "):
        tried(read_only_folder / "within")
    with pytest.raises(PermissionError, match=rf"cannot write {read_only_folder}/file: "):
        write_whole(read_only_folder / "file", b"x")


@pytest.mark.parametrize("below", ["", "folder", "folder/of/results"])
def test_a_file_in_the_way_is_named(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"folder .*: .*/file is a file$"):
        tried(tmp_path / "file" / below)


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(
        IsADirectoryError, match=r"cannot write .*/page\.html: there is a folder named so"
    ):
        tried(tmp_path, ["table.csv", "page.html"])


def test_a_full_disk_is_seen_beforehand(tmp_path, few_bytes):
    with pytest.raises(OSError, match=rf"cannot write to the folder {tmp_path}: File too large"):
        tried(tmp_path)
    assert names(tmp_path) == []


# ------------------------------------------------------------------ whole folders


def fill(path: Path, content: bytes) -> None:
    with whole_folder(path) as folder:
        (folder / "a").write_bytes(content)
        (folder / "b").write_bytes(b"b")
        (folder / "b").chmod(0o600)


@pytest.mark.parametrize("before", ["nothing", "file", "empty", "filled"])
def test_a_folder_appears_whole_in_the_place_of_what_was_there(tmp_path, before):
    path = tmp_path / "folder"
    if before == "file":
        path.write_bytes(b"file")
    elif before != "nothing":
        path.mkdir()
        (path / "old").write_bytes(b"old")
    if before == "empty":
        (path / "old").unlink()
    with whole_folder(path) as folder:
        (folder / "new").write_bytes(b"new")
        assert not (path / "new").exists()
    assert names(tmp_path) == ["folder"]
    assert names(path) == ["new"]


def test_the_files_of_a_whole_folder_get_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    fill(tmp_path / "folder", b"a")
    usual = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    for name in "ab":
        assert stat.S_IMODE((tmp_path / "folder" / name).stat().st_mode) == usual


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_of_a_folder_whose_filling_fails_nothing_is_left(tmp_path, error):
    fill(tmp_path / "folder", b"first")
    with pytest.raises(error), whole_folder(tmp_path / "folder") as folder:  # noqa: PT012
        (folder / "a").write_bytes(b"second")
        raise error
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "a").read_bytes() == b"first"


_KILLED_FOLDER = """
import os, sys
from strace_lens.utils import disk
os.fsync = lambda _: os.kill(os.getpid(), 9)
with disk.whole_folder(sys.argv[1]) as folder:
    (folder / "a").write_bytes(b"never whole")
"""


def test_what_a_killed_filling_left_is_gone_with_the_next_one(tmp_path):
    fill(tmp_path / "folder", b"first")
    killed = [sys.executable, "-c", _KILLED_FOLDER, str(tmp_path / "folder")]
    assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    assert (tmp_path / "folder" / "a").read_bytes() == b"first"
    fill(tmp_path / "another", b"x")
    assert names(tmp_path) == ["another", "folder"]


# ------------------------------------------------------------------ every writer of the package

_WRITERS = {
    *("write_text", "write_bytes", "write_html", "write_image", "savefig", "save_file"),
    *("to_parquet", "to_json", "to_pickle", "to_excel", "write_json"),
}
_MEANT = {
    "utils/disk.py": {"open"},
    "utils/peak_memory.py": {"write_text"},
}  # the latter into /proc


def writes(tree: ast.AST) -> Iterator[str]:
    """Names of the calls that write to a file of the given path."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        words = [
            a.value
            for a in (*call.args, *(k.value for k in call.keywords))
            if isinstance(a, ast.Constant) and isinstance(a.value, str)
        ]
        opens = name == "open" and any(
            re.fullmatch(r"[rwxa+bt]*[wxa+][rwxa+bt]*", w) for w in words
        )
        if name in _WRITERS or opens or (name == "to_csv" and call.args):
            yield name


def test_every_file_of_the_package_is_written_whole():
    found = {
        path.relative_to(PACKAGE).as_posix(): set(writes(ast.parse(path.read_text("utf-8"))))
        for path in PACKAGE.rglob("*.py")
    }
    assert {path: names for path, names in found.items() if names} == _MEANT
