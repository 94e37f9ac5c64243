"""Ways to change test images so that a classifier errs, one file each."""
