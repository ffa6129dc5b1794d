"""Experiments and measurements; not shipped to devices."""
