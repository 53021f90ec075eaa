"""Results to and from disk."""
