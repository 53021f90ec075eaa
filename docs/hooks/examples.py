"""What the examples of all pages printed, kept until something that they depend on changes.

They depend on their own code, on one another (they share a folder, and a page's examples share
their names), on the package, on the hooks, on the tables in docs/ and on the installed versions. So
all of them run again when any of these changes, and none when only the words of a page do.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from markdown_exec._internal.formatters import python as python_blocks

from strace_lens.utils.disk import write_whole

ROOT = Path(__file__).parents[2]
STORE = ROOT / ".examples_cache" / "outputs.json"
READ = ("strace_lens/**/*", "docs/hooks/*.py", "docs/**/*.csv", "constraints.txt")
"""Files that examples run or read, beside the pages themselves."""

_BLOCK = re.compile(r"^```python exec=.*?^```$", re.MULTILINE | re.DOTALL)


class Examples:
    """The examples of one build: run, or taken from the build before where nothing has changed.

    Attributes:
        key: of all that they depend on.
        outputs: what each printed, by its place in the build and its code.
        files: what they wrote and pages show, by name.
        known: whether `outputs` and `files` come from an earlier build.
    """

    def __init__(self, key: str, store: Path = STORE) -> None:
        self.key, self.outputs, self.files, self.known = key, {}, {}, False
        self._store, self._count, self._failed = store, 0, False
        try:
            stored = json.loads(store.read_text("utf-8"))
            if stored["key"] == self.key:
                self.outputs, self.files, self.known = stored["outputs"], stored["files"], True
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, or torn: the examples run

    def instead_of(self, run: Callable[..., str]) -> Callable[..., str]:
        """What runs a block if it has to be run, and gives what the block prints or printed."""

        def printed(code: str, *args: Any, **options: Any) -> str:
            place = f"{self._count}: {hashlib.sha256(code.encode()).hexdigest()}"
            self._count += 1
            if self.known:
                return self.outputs[place]
            try:
                self.outputs[place] = run(code, *args, **options)
            except Exception:
                self._failed = True
                raise
            return self.outputs[place]

        return printed

    def save(self) -> None:
        """Keep what the examples printed and wrote, unless one of them failed."""
        if self.known or self._failed:
            return
        stored = {"key": self.key, "outputs": self.outputs, "files": self.files}
        self._store.parent.mkdir(exist_ok=True)
        write_whole(self._store, json.dumps(stored).encode())


def use(examples: Examples) -> None:
    """Let markdown-exec run blocks through `examples`."""
    python_blocks._run_python = examples.instead_of(python_blocks._run_python)


def key_of(root: Path = ROOT) -> str:
    """A checksum of all that the examples of a checkout depend on."""
    told = hashlib.sha256(sys.version.encode())
    for name in sorted(f"{d.metadata['Name']}=={d.version}" for d in distributions()):
        told.update(name.encode())
    for path in sorted(path for pattern in READ for path in root.glob(pattern) if path.is_file()):
        if "__pycache__" not in path.parts:
            told.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    for page in sorted((root / "docs").rglob("*.md")):
        for block in _BLOCK.findall(page.read_text("utf-8")):
            told.update(page.name.encode() + block.encode())
    return told.hexdigest()
