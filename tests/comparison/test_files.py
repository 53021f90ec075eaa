"""Results of a comparison on disk: read back as they were, gone on with, never mixed."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from strace_lens.circuits.discover.methods import METHODS
from strace_lens.comparison.compare import compare
from strace_lens.comparison.comparison import Comparison
from strace_lens.comparison.places import FOLDERS
from strace_lens.utils.manifest import NAME, OtherResultsError
from strace_lens.utils.versions import versions
from tests import cases
from tests.circuits.made import tiny_task

NAMES = ("eap", "clean-corrupted", "ifr")


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["strace_lens.comparison.compare"], "_DRAWS", 2)


def run(folder: Path | None, methods: tuple[str, ...] = NAMES, **options: Any) -> Comparison:
    options = {"evaluation": tiny_task(2, 5), "sample": 2, **options}
    model = options.pop("model", None) or cases.model_of("gpt2")
    return compare(model, tiny_task(3, 5), methods, folder=folder, **options)


@functools.cache
def _made(methods: tuple[str, ...]) -> tuple[Path, Comparison]:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder, run(folder, methods)


def made(folder: Path, methods: tuple[str, ...] = ("eap",)) -> Comparison:
    """Fill a folder as a comparison has filled it that was run once for all tests."""
    source, comparison = _made(methods)
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return comparison


def contents(folder: Path, but: str = "timings") -> dict[str, bytes]:
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in sorted(files.items()) if but not in name}


def assert_same(found: Comparison, other: Comparison) -> None:
    for a, b in zip(found.results, other.results, strict=True):
        assert torch.equal(a.scores.values, b.scores.values)
        assert torch.equal(a.circuit.keep, b.circuit.keep)
        assert a.circuit.metadata == b.circuit.metadata
        same = ("method", "faithfulness", "completeness", "minimality", "auroc", "missed")
        same += ("completeness_interval", "minimality_interval")
        assert all(getattr(a, name) == getattr(b, name) for name in same)


@pytest.mark.extended
def test_what_is_done_is_read_back_and_not_run_again(tmp_path: Path, monkeypatch) -> None:
    first = made(tmp_path, NAMES)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*FOLDERS, NAME])
    before = contents(tmp_path, but="nothing")
    module = sys.modules["strace_lens.comparison.compare"]
    monkeypatch.setattr(module, "_discover", lambda *_: pytest.fail("a method ran again"))
    again = run(tmp_path)
    assert_same(again, first)
    assert [r.scores.seconds for r in again.results] == [r.scores.seconds for r in first.results]
    assert [r.peak_mb for r in again.results] == [r.peak_mb for r in first.results]
    assert again.memory == first.memory
    assert contents(tmp_path, but="nothing") == before


@pytest.mark.extended
def test_a_method_more_is_all_that_runs(tmp_path: Path, monkeypatch) -> None:
    made(tmp_path)
    module = sys.modules["strace_lens.comparison.compare"]
    ran, discover = [], module._discover
    monkeypatch.setattr(module, "_discover", lambda s, n: ran.append(n) or discover(s, n))
    assert_same(run(tmp_path), run(None))
    assert ran[:2] == ["clean-corrupted", "ifr"]


@pytest.mark.extended
def test_what_a_method_gives_does_not_depend_on_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A method of the same circuits as the next one, which must run all of them for itself.
    monkeypatch.setitem(METHODS, "eap-before", METHODS["eap"])
    module = sys.modules["strace_lens.circuits.metric_cache"]
    own_metric, ran = module.circuit_metric, []

    def recorded(experiment: Any, masks: torch.Tensor, **options: Any) -> torch.Tensor:
        ran.append(masks.clone())
        return own_metric(experiment, masks, **options)

    monkeypatch.setattr(module, "circuit_metric", recorded)
    run(tmp_path / "alone", ("eap",))
    alone = ran[:]
    run(tmp_path / "together", ("eap-before", "eap"))
    assert len(ran) > 2 * len(alone) > 0
    assert all(map(torch.equal, ran[-len(alone) :], alone))
    files, shared = contents(tmp_path / "alone"), contents(tmp_path / "together")
    assert "measures/eap.json" in files
    assert {name: shared[name] for name in files} == files


@pytest.mark.extended
@pytest.mark.parametrize("place", ["scores", "circuits", "measures", "timings"])
@pytest.mark.parametrize("damage", ["missing", "cut", "of another method", "edited"])
def test_what_is_not_whole_is_done_again(tmp_path: Path, place: str, damage: str) -> None:
    whole = made(tmp_path)
    (path,) = (tmp_path / place).glob("eap.*")
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "of another method":
        path.write_bytes(next((tmp_path / place).glob("random.*")).read_bytes())
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    damaged = path.read_bytes() if path.exists() else None
    assert_same(run(tmp_path, ("eap",)), whole)
    assert path.read_bytes() != damaged


@pytest.mark.extended
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"ranking": "signed"}, "ranking was 'mib' and is 'signed'"),
        ({"ablation": "mean"}, "ablation was 'resample' and is 'mean'"),
        ({"metric": "recovered"}, "metric was 'logit_difference' and is 'recovered'"),
        ({"sample": 3}, "sample was 2 and is 3"),
        ({"minimality": False}, "minimality was True and is False"),
        ({"options": {"eap": {"positions": False}}}, "options: eap was None and is"),
        ({"evaluation": tiny_task(2, 6)}, "circuits are evaluated on are others"),
    ],
)
def test_a_folder_of_another_comparison_is_refused_by_the_difference(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    made(tmp_path)
    before = contents(tmp_path, but="nothing")
    with pytest.raises(OtherResultsError, match=f"holds another comparison: .*{words}.*; name an"):
        run(tmp_path, ("eap",), **change)
    assert contents(tmp_path, but="nothing") == before


def test_a_folder_of_the_format_before_is_refused_with_the_way_out(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / NAME
    older = {**json.loads(path.read_text("utf-8")), "format": "strace-lens-comparison/1"}
    path.write_text(json.dumps(older), "utf-8")
    with pytest.raises(ValueError, match=r"format 'strace-lens-comparison/1' .*; name another fol"):
        run(tmp_path, ("eap",))


def test_other_weights_and_versions_are_other_comparisons(tmp_path: Path, monkeypatch) -> None:
    made(tmp_path)
    model = cases.fresh_bridge("gpt2")
    with torch.no_grad():
        next(iter(model.parameters())).mul_(1.5)
    with pytest.raises(OtherResultsError, match="the same name and other weights"):
        run(tmp_path, ("eap",), model=model)
    older = {**versions(), "torch": "1.0"}
    monkeypatch.setattr(sys.modules["strace_lens.comparison.compare"], "versions", lambda: older)
    with pytest.raises(OtherResultsError, match=r"versions: torch was '.*' and is '1\.0'"):
        run(tmp_path, ("eap",))


def test_results_without_a_manifest_and_an_edited_one_are_refused(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / NAME
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "seed": 4}))
    with pytest.raises(ValueError, match=r"manifest\.json was edited or damaged"):
        run(tmp_path, ("eap",))
    path.unlink()
    with pytest.raises(ValueError, match=r"has results .* but does not say what they were made"):
        run(tmp_path, ("eap",))


def test_a_comparison_that_fails_at_once_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no option"):
        run(tmp_path / "out", ("eap",), options={"eap": {"stops": 3}})
    assert not (tmp_path / "out").exists()


@pytest.mark.extended
def test_overwriting_discards_another_comparison_and_nothing_else(tmp_path: Path) -> None:
    made(tmp_path, NAMES)
    theirs = {"notes.txt", "circuits/mine.safetensors", "measures/mine.json"}
    for name in (*theirs, "compare.html", "compare.csv", "timings.csv", "projection.csv"):
        (tmp_path / name).write_text(name)
    with pytest.raises(
        OtherResultsError, match=r"seed was 0 and is 1; name .* or pass --overwrite"
    ):
        run(tmp_path, ("eap",), seed=1)
    assert_same(run(tmp_path, ("eap",), seed=1, overwrite=True), run(None, ("eap",), seed=1))
    assert_same(run(tmp_path, ("eap",), seed=1), run(None, ("eap",), seed=1))
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    own = {str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/eap.*")}
    drawn = {str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/random.*")}
    assert (len(own), len(drawn)) == (len(FOLDERS), len(FOLDERS))
    assert left == {NAME} | own | drawn | theirs
    assert all((tmp_path / name).read_text() == name for name in theirs)


def test_overwriting_keeps_what_this_comparison_made(tmp_path: Path, monkeypatch) -> None:
    first = made(tmp_path)
    module = sys.modules["strace_lens.comparison.compare"]
    monkeypatch.setattr(module, "_discover", lambda *_: pytest.fail("a method ran again"))
    assert_same(run(tmp_path, ("eap",), overwrite=True), first)


def test_a_comparison_that_fails_before_its_first_result_overwrites_nothing(tmp_path: Path) -> None:
    made(tmp_path)
    before = contents(tmp_path, but="nothing")
    with pytest.raises(ValueError, match="has no option"):
        run(tmp_path, ("eap",), options={"eap": {"stops": 3}}, overwrite=True)
    assert contents(tmp_path, but="nothing") == before


@pytest.mark.extended
def test_overwriting_needs_a_comparison_to_overwrite(tmp_path: Path) -> None:
    path = tmp_path / NAME
    for text, words in (
        ('{"format": "strace-lens-run/2"}', r"is of format 'strace-lens-run/2' .*; name another"),
        ("{", "not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            run(tmp_path, ("eap",), overwrite=True)
        assert contents(tmp_path) == {NAME: text.encode()}
    path.write_text('{"format": "strace-lens-comparison/0"}')
    with pytest.raises(ValueError, match=r"comparison/0' and this version reads .*--overwrite"):
        run(tmp_path, ("eap",))
    first = run(tmp_path, ("eap",), overwrite=True)
    path.unlink()
    assert_same(run(tmp_path, ("eap",), overwrite=True), first)


# ------------------------------------------------------------------ a real kill

COMMAND = ("-m", "strace_lens.cli", "compare", "--task", "linear", "--pairs", "3")


def command(out: Path, methods: str) -> list[str]:
    return [sys.executable, *COMMAND, "--methods", methods, "--out", str(out)]


@pytest.mark.extended
@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_command_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    methods = "eap,eap-ig,edge-patching,acdc,edge-pruning"
    out = tmp_path / "killed"
    with subprocess.Popen(command(out, methods), stdout=subprocess.DEVNULL) as process:
        while not (out / "measures" / "eap-ig.json").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    done = {p.stem for p in (out / "measures").iterdir()}
    assert {"eap", "eap-ig"} <= done < {"eap", "eap-ig", "edge-patching", "acdc", "edge-pruning"}
    assert not (out / "compare.html").exists()
    kept = {name: data for name, data in contents(out).items() if Path(name).stem in done}
    first = (out / "timings" / "eap.json").read_bytes()
    for folder in (out, tmp_path / "whole"):
        subprocess.run(command(folder, methods), check=True, stdout=subprocess.DEVNULL)
    after, whole = contents(out), contents(tmp_path / "whole")
    assert kept.items() <= after.items()
    assert (out / "timings" / "eap.json").read_bytes() == first  # it was not run again
    assert after.keys() == whole.keys()
    assert after["compare.csv"] == whole["compare.csv"]
    for name in methods.split(","):
        found, other = (
            {
                key: value
                for key, value in json.loads(some[f"measures/{name}.json"]).items()
                if key not in ("files", "sha256")
            }
            for some in (after, whole)
        )
        assert found == other
    other = subprocess.run(
        [*command(out, methods), "--seed", "1"], check=False, capture_output=True, text=True
    )
    assert other.returncode == 2
    (line,) = other.stderr.splitlines()
    assert "holds another comparison" in line
    assert contents(out) == after
