"""Flower's side of the package: the only folder that imports flwr."""
