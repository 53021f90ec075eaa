"""Models whose circuit is known: compiled, trained to one, or linear, each with its true edges."""
