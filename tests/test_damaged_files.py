"""Thousands of damaged files of every format: each is read as it was, or refused by its name.

A file is damaged as disks, transfers and editors do it: bytes changed, taken out, put in or cut
off, lengths and numbers of the header replaced. Others are edited with care: one value of the
header is of another kind, and the checksum is right.
"""

from __future__ import annotations

import json
import random
import re
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import strace_lens as sl
from strace_lens.circuits.graph import ComponentGraph
from strace_lens.files import interchange
from strace_lens.files.interchange import (
    load_importance_circuit,
    load_importances,
    save_importances,
)
from strace_lens.files.result_files import read_result, write_result
from tests import tiny

MUTANTS = 400
MEMORY = 128 * 2**20
GRAPH = ComponentGraph("made", layers=1, heads=2, kv_heads=1)


@dataclass(frozen=True)
class Format:
    """A kind of file, with a small one of it."""

    name: str
    made: Any
    save: Callable[[Any, Path], None]
    load: Callable[[Path], Any]


def formats() -> Iterator[Format]:
    model = tiny.bridge("gpt2")
    trace = sl.extract(sl.token_graph(model, "the capital of"))
    yield Format("trace", trace, sl.save, sl.load)
    curve = sl.density_curve(model, trace, sizes=(0.1, 0.5, 1.0))
    yield Format("curve", curve, sl.save, sl.load)
    values = torch.arange(GRAPH.exists.numel()).view(GRAPH.exists.shape) / 7 - 1
    scores = sl.Scores(GRAPH, values.double() * GRAPH.exists, "eap", "ioi", 2.0, 1.0)
    yield Format("scores", scores, sl.save, sl.load)
    circuit = scores.top(9)
    yield Format("circuit", circuit, sl.save, sl.load)
    yield Format(
        "importances",
        scores,
        save_importances,
        lambda path: load_importances(path, GRAPH, method="eap"),
    )
    yield Format(
        "importance circuit",
        circuit,
        save_importances,
        lambda path: load_importance_circuit(path, GRAPH),
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, tuple[Format, bytes]]:
    path = tmp_path_factory.mktemp("small") / "file"
    found = {}
    for form in formats():
        form.save(form.made, path)
        found[form.name] = form, path.read_bytes()
    return found


NAMES = ["trace", "curve", "scores", "circuit", "importances", "importance circuit"]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The process may take little more memory than it has: a file that claims much is refused."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# ------------------------------------------------------------------ damage


def place(draw: random.Random, content: bytes) -> int:
    """A position in a file, as often in its header as behind it."""
    header = min(len(content), 8 + int.from_bytes(content[:8], "little"))
    return draw.randrange(header if draw.random() < 0.5 else len(content))


def changed_byte(draw: random.Random, content: bytes) -> bytes:
    at = place(draw, content)
    return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]


def replaced_byte(draw: random.Random, content: bytes) -> bytes:
    at = place(draw, content)
    return content[:at] + draw.choice(b'0129-.eE"{}[],: \x00\xff').to_bytes() + content[at + 1 :]


def cut_off(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content))]


def taken_out(draw: random.Random, content: bytes) -> bytes:
    at = place(draw, content)
    return content[:at] + content[at + draw.choice((1, 8, 100)) :]


def put_in(draw: random.Random, content: bytes) -> bytes:
    at = draw.choice((place(draw, content), len(content)))
    return content[:at] + draw.choice((b"\x00", b" ", content[:40], b"[" * 5000)) + content[at:]


def other_number(draw: random.Random, content: bytes) -> bytes:
    """A number of the header is NaN, infinite, large, negative or no number, all lengths right."""
    is_json = content[:1] == b"{"
    end = len(content) if is_json else 8 + int.from_bytes(content[:8], "little")
    header = content[0 if is_json else 8 : end]
    found = draw.choice(list(re.finditer(rb"(?<=[:\[, ])-?\d+(\.\d+)?(e-\d+)?", header)))
    other = draw.choice((b"NaN", b"1e400", b"-1", b"9" * 30, b"1" * 5000, b"null", b"2147483647"))
    header = header[: found.start()] + other + header[found.end() :]
    return header if is_json else len(header).to_bytes(8, "little") + header + content[end:]


def other_length(draw: random.Random, content: bytes) -> bytes:
    length = draw.choice((0, 1, 2**63, 2**64 - 1, 2**31, len(content), draw.randrange(10_000)))
    return length.to_bytes(8, "little") + content[8:]


DAMAGE = (changed_byte, replaced_byte, cut_off, taken_out, put_in, other_number, other_length)


def read_or_refused(form: Format, path: Path) -> bool:
    """Whether a file is refused by its name, in a line; else it must be read as it was."""
    try:
        back = form.load(path)
    except (ValueError, OSError) as error:
        refusal = str(error)
    else:
        assert written(form, back, path) == written(form, form.load(original(form, path)), path)
        return False
    assert str(path) in refusal
    assert "\n" not in refusal
    return True


def written(form: Format, value: Any, path: Path) -> bytes:
    form.save(value, path.with_name("again"))
    return path.with_name("again").read_bytes()


def original(form: Format, path: Path) -> Path:
    """The undamaged file, under the name of the damaged one in a folder of its own."""
    beside = path.parent / "original" / path.name
    beside.parent.mkdir(exist_ok=True)
    form.save(form.made, beside)
    return beside


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_as_it_was_or_refused(small, tmp_path, name, little_memory):
    form, content = small[name]
    draw, path, refused = random.Random(name), tmp_path / "damaged", Counter[bool]()
    for number in range(MUTANTS):
        damaged = DAMAGE[number % len(DAMAGE)](draw, content)
        path.write_bytes(damaged)
        refused[damaged == content or read_or_refused(form, path)] += 1
    assert refused[True] > 0.9 * MUTANTS  # spaces in JSON and the like are no damage


# ------------------------------------------------------------------ edited with care


def leaves(value: Any, *path: str | int) -> Iterator[tuple[str | int, ...]]:
    """Paths to every value of some JSON, those of how a result was made left out."""
    if path:
        yield path
    if isinstance(value, dict | list) and path[-1:] != ("metadata",):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, *path, key)


def of_another_kind(value: Any) -> Iterator[Any]:
    yield None
    yield "false" if isinstance(value, bool | int | float) else 2.5
    yield [] if isinstance(value, dict) else {}
    if isinstance(value, bool):
        yield int(value)
    elif isinstance(value, int | float):
        yield True


def edits(facts: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    for path in leaves(facts):
        value = facts
        for key in path:
            value = value[key]
        for other in of_another_kind(value):
            yield path, other


def edited(facts: dict[str, Any], path: tuple[str | int, ...], other: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(facts))
    value = copy
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = other
    return copy


@pytest.mark.parametrize("name", ["trace", "curve", "scores", "circuit"])
def test_a_value_of_another_kind_is_refused_though_the_checksum_is_right(small, tmp_path, name):
    form, content = small[name]
    path = tmp_path / "edited"
    path.write_bytes(content)
    _, arrays, facts = read_result(path, (name,))
    chosen = list(edits(facts))
    for where, other in random.Random(name).sample(chosen, min(len(chosen), 60)):
        write_result(path, name, arrays, edited(facts, where, other))
        assert read_or_refused(form, path), f"{where} may be {other!r}"


@pytest.mark.parametrize("name", ["importances", "importance circuit"])
def test_a_value_of_another_kind_in_an_importance_file_is_refused(small, tmp_path, name):
    """Without a checksum, as other programs write it; what is not read may be anything."""
    form, content = small[name]
    path = tmp_path / "edited"
    facts = json.loads(content)
    del facts[interchange._OURS]
    path.write_text(json.dumps(facts))
    assert not read_or_refused(form, path)
    used = {"importances": "score", "importance circuit": "in_graph"}[name]
    known = {"cfg", "nodes", "edges", "n_layers", "n_heads", "parallel_attn_mlp", used}
    chosen = [(p, o) for p, o in edits(facts) if p[-1] in known and p[:-1][:1] != ("nodes",)]
    for where, other in random.Random(name).sample(chosen, 60):
        path.write_text(json.dumps(edited(facts, where, other)))
        assert read_or_refused(form, path), f"{where} may be {other!r}"


@pytest.mark.parametrize("field", ["layers", "heads", "tokens", "kv_heads"])
@pytest.mark.parametrize("name", ["trace", "scores"])
def test_a_graph_of_a_claimed_size_is_not_made(small, tmp_path, name, field, little_memory):
    form, content = small[name]
    path = tmp_path / "edited"
    path.write_bytes(content)
    _, arrays, facts = read_result(path, (name,))
    graph = "graph" if "graph" in facts else "shape"
    if field in facts[graph]:
        write_result(path, name, arrays, edited(facts, (graph, field), 2**31 - 1))
        assert read_or_refused(form, path)
