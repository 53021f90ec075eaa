"""Errors that a command says in one line, besides those of values and files."""

from __future__ import annotations


class FixableError(Exception):
    """An error that whoever started the work can mend; the message says how."""
