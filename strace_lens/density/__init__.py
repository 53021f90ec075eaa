"""Density curves of a prompt and their phases."""
