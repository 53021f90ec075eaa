"""Text files as editors of every system write them, and files that are no UTF-8 text."""

from __future__ import annotations

from pathlib import Path

import pytest

from strace_lens.utils.text_files import TextFileError, lines_of, read_prompt, read_text

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
