"""`python -m strace_lens.cli` is the command `strace-lens`."""

from strace_lens.cli import app

app()
