"""Ctrl-C at any moment of the command: one line, status 130, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
LINE = "strace-lens: interrupted"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as a terminal sends them")


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Processes inherit an interrupt that is ignored, as in a test run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A console script as pip writes it."""
    path = tmp_path_factory.mktemp("bin") / "strace-lens"
    path.write_text("import sys\nfrom strace_lens.cli import app\nsys.exit(app())\n")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny.hf_model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.extended
@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.parametrize("imported", ["strace_lens.utils.interrupt", "numpy", "torch", "typer"])
def test_an_interrupt_of_the_imports_is_one_line(script, folder, tmp_path, as_module, imported):
    command = ["-m", "strace_lens.cli"] if as_module else [script]
    given = ("trace", "a b c", "--model", folder, "--out", str(tmp_path / "out"))
    process = start(*command, *given, PYTHONPROFILEIMPORTTIME="1")
    assert process.stderr is not None
    # Python tells each import when it is done.
    assert any(line.rpartition("|")[2].strip() == imported for line in process.stderr)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    said = [line for line in stderr.splitlines() if not line.startswith("import time:")]
    assert (process.returncode, stdout, said) == (130, "", [LINE])
    assert not (tmp_path / "out").exists()


@pytest.mark.extended
@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_an_interrupt_of_the_work_is_one_line_and_leaves_nothing(folder, tmp_path, seconds):
    out = tmp_path / "out"
    prompt = " ".join((list(tiny.WORDS) * 9)[:40])  # seconds of work
    process = start(
        *("-m", "strace_lens.cli", "trace", prompt, "--estimator", "learned"),
        *("--model", folder, "--out", str(out)),
    )
    while not out.exists():  # the work begins with it
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout, stderr.splitlines()) == (130, "", [LINE])
    assert not out.exists()


def test_an_interrupt_of_code_that_runs_from_a_string_is_one_line(tmp_path):
    (tmp_path / "strace-lens.py").write_text(
        "from strace_lens.utils.interrupt import interruptible\n"
        "with interruptible():\n"
        "    exec('import time; print(1, flush=True); time.sleep(60)')\n"
    )
    process = start("-m", "strace-lens", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr.splitlines()) == (130, [LINE])


def test_a_script_that_imports_the_package_keeps_its_own_answer(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import signal, strace_lens\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    )
    assert start(str(path), "trace").communicate(timeout=120) == ("True\n", "")


def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path):
    path = tmp_path / "strace-lens"
    path.write_text(
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import strace_lens\n"
        "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)\n"
    )
    assert start(str(path)).communicate(timeout=120) == ("True\n", "")
