"""Data sets: what there is, where it comes from, and how it becomes one array per split."""
