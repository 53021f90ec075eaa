"""Methods of circuit discovery compared on tasks."""
