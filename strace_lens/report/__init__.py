"""Pages and tables: what a reader sees of a result."""
