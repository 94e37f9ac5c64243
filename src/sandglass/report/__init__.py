"""Run folders -> one table -> one page. Reads results only; computes nothing that a run should have computed."""
