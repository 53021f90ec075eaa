"""Figures of many prompts: tables of the analyses in, plotly figures out."""
