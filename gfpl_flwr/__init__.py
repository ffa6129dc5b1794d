"""Generative Federated Prototype Learning (GFPL) on Flower.

This module imports next to nothing: Flower's command line and ``gfpl --help`` import it, and both must answer at
once.
"""

import os

# Without it Intel's matrix products add in an order that depends on where in memory a matrix lies, so that a site's
# last bits would depend on the sites that train beside it. Read at the first product of a process.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

__version__ = "0.1.0"
