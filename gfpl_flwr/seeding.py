"""One seed for each purpose, derived from the run's seed.

A site's random numbers depend on ``(seed, site, round, purpose)`` alone: not on the order of sites, not on the
process that happens to host the site, not on what ran there before. Nothing here touches a global generator.
"""

import hashlib

import torch


def derive(seed: int, *keys: int | str) -> int:
    """Derive an independent 63-bit seed: the head of SHA-256 over the seed and the keys.

    Args:
        seed: the run's seed.
        keys: what the random numbers are for, such as ``("site", 3, "round", 12, "shuffle")``.
    """
    text = "\x1f".join([str(seed), *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator seeded with :func:`derive`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *keys))
