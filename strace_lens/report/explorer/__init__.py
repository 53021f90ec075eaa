"""The explorer: measured traces as one interactive page that opens from disk."""
