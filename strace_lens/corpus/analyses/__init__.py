"""Analyses of a run: each takes a `Run` and gives a table; no model, no disk.

Where an analysis draws, `seed` is that of its bootstrap over prompts and `resamples` how often
prompts are drawn. Columns `low` and `high` are the ends of a 95 % percentile bootstrap interval
over prompts, NaN for a single prompt, unless the function says otherwise.
"""
