"""Trials of estimators over prompts: traces, controls, and the table that compares them."""
