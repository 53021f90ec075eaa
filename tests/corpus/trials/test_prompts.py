"""Files of prompts: what is read, and each way a line can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strace_lens.corpus.trials.prompts import TrialPrompt, cases, read_prompts
from strace_lens.model.prompts import PromptError
from tests import tiny

WORDS = " ".join(tiny.WORDS[:5])
OTHER = " ".join(tiny.WORDS[5:10])
GOOD = json.dumps({"prompt": WORDS})
LAST = json.dumps({"prompt": OTHER})


def write(folder: Path, *lines: str) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_lines_are_read_with_their_defaults(tmp_path) -> None:
    lines = [
        {"prompt": "a", "kind": "k", "sibling": "b", "wrong": 2},
        {"prompt": "c\u2028d"},  # a line separator inside a string is no end of a line
        {"prompt": "e"},
    ]
    text = [json.dumps(line, ensure_ascii=False) for line in lines]
    assert read_prompts(write(tmp_path, *text, "", "")) == [
        TrialPrompt("a", kind="k", sibling="b", wrong=2),
        TrialPrompt("c\u2028d", wrong=2),
        TrialPrompt("e", wrong=0),
    ]


def test_the_prompts_of_the_benchmark_are_good() -> None:
    prompts = read_prompts(Path(__file__).parents[3] / "benchmarks" / "prompts.jsonl")
    assert len(prompts) >= 16
    assert len({p.kind for p in prompts}) >= 8
    assert all(p.sibling is not None for p in prompts)
    # Each output is the wrong target of one prompt.
    assert sorted(p.wrong for p in prompts) == list(range(len(prompts)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "is empty"),
        (["\n \n"], "is empty"),
        ([GOOD, "{", LAST], "line 2: not JSON"),
        ([GOOD, "", LAST], "line 2: not JSON"),
        ([GOOD, '["a"]'], "line 2: not a JSON object but a list"),
        ([GOOD, "[" * 100_000], "line 2: not JSON .nested more than"),
        ([GOOD, '{"wrong": 1e400}'], "line 2: not JSON .1e400 is larger"),
        ([GOOD, '{"prompt": "a \\ud800"}'], "line 2: not JSON .half of a surrogate pair"),
        (['{"kind": "k"}', GOOD], 'line 1: the key "prompt" is missing'),
        ([GOOD, '{"prompt": 3}'], "line 2: 'prompt' must be of type str; got 3"),
        ([GOOD, '{"prompt": "a", "wrong": true}'], "line 2: 'wrong' must be of type int"),
        ([GOOD, '{"prompt": "a", "siblings": "b"}'], "line 2: unknown key 'siblings'; known are"),
        ([GOOD, '{"prompt": "a", "wrong": 2}'], "line 2: 'wrong' must be one of the lines 0 to 1"),
        ([GOOD, '{"prompt": "a", "wrong": -1}'], "line 2: 'wrong' must be one of the lines 0 to 1"),
        ([GOOD, '{"prompt": "a", "wrong": 1}'], "line 2: 'wrong' is 1 .*itself"),
        ([GOOD, GOOD], "line 1: 'wrong' is 1 .*itself"),
        ([GOOD], "line 1: a single prompt"),
        (['{"prompt": "a", "wrong": 0}'], "line 1: a single prompt"),
    ],
)
def test_a_line_that_will_not_do_is_named(tmp_path, lines, message) -> None:
    with pytest.raises(ValueError, match=rf"prompts.jsonl(, )?.*{message}"):
        read_prompts(write(tmp_path, *lines))


def test_prompts_and_their_controls_are_tokenized_alike() -> None:
    model = tiny.bridge("llama")
    prompts = [TrialPrompt(WORDS, wrong=1, kind="k", sibling=OTHER), TrialPrompt(OTHER, wrong=0)]
    for bos, tokens in ((True, 6), (False, 5), (None, 5)):
        first, second = cases(model, prompts, bos)
        assert (first.index, first.kind, second.index) == (0, "k", 1)
        assert len(first.prompt.ids) == tokens
        assert first.sibling == second.prompt == first.wrong
        assert second.wrong == first.prompt
        assert second.sibling is None


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([], ValueError, "no prompts"),
        ([TrialPrompt(WORDS, 0)], ValueError, "line 1: a single prompt"),
        ([TrialPrompt(WORDS, 1), TrialPrompt(OTHER, 1)], ValueError, "line 2: 'wrong' is 1"),
        ([TrialPrompt(WORDS, 1), TrialPrompt(" ", 0)], PromptError, "line 2: the prompt is empty"),
        (
            [TrialPrompt(WORDS, 1, sibling=WORDS + " of"), TrialPrompt(OTHER, 0)],
            PromptError,
            "line 1: the sibling has 7 tokens, the prompt 6; give texts of equal token length",
        ),
    ],
)
def test_prompts_that_a_model_cannot_run_are_named(prompts, error, message) -> None:
    with pytest.raises(error, match=message):
        cases(tiny.bridge("llama"), prompts, True)


def test_a_bom_and_windows_line_ends_are_no_part_of_the_prompts(tmp_path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\r\n{LAST}\r\n\r\n".encode())
    assert [one.prompt for one in read_prompts(path)] == [WORDS, OTHER]
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"prompts\.jsonl, line 1: not UTF-8"):
        read_prompts(path)
