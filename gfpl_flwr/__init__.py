"""Generative Federated Prototype Learning (GFPL) on Flower.

This module imports nothing: Flower's command line and ``gfpl --help`` import it, and both must answer at once.
"""

__version__ = "0.1.0"
