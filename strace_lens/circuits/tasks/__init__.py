"""Tasks: generators that need no download, and the reader of a user's own pairs."""
