"""Experiments of many runs: what each of them is, doing those that are missing, and their tables and figures."""
