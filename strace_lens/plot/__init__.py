"""Figures: results in, plotly figures out. Nothing here runs a model or touches the disk."""
