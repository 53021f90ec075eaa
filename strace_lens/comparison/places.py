"""Where the results of a comparison lie in its folder."""

from __future__ import annotations

CIRCUITS, SCORES, MEASURES, TIMINGS = FOLDERS = ("circuits", "scores", "measures", "timings")
"""Folders within, with a file a method."""

PAGE, TABLE, PROJECTION = "compare.html", "compare.csv", "projection.csv"
TIMES = "timings.csv"  # of its own, so that the same results are the same files
"""What the command writes beside them, of all methods together."""
