"""The thing that runs: the training loop and what it needs."""
