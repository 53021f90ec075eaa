"""The s-Trace wing: a prompt's token graph, its edge importances, traces and masked runs."""
