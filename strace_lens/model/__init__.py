"""What a TransformerLens model is: loaded, described, proved, run."""
