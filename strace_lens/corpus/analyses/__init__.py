"""Analyses of a run: each takes a `Run` and gives tables; no model, no disk."""
