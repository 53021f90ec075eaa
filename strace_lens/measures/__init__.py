"""Pure functions of distributions and of curves over sizes."""
