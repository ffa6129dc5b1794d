"""What a site is called, and the order of sites wherever they are listed or summed."""

import re

SiteName = int | str
"""A partition's number in a simulation; the name that a device was given."""


def site_order(site: SiteName) -> tuple[bool, tuple[int | str, ...], str]:
    """Return the sort key of a site: numbers, then names, ``camera-2`` before ``camera-10``."""
    if isinstance(site, int):
        return False, (site,), ""
    # Text and digits alternate, so that like is compared with like; the name itself tells 1 from 01.
    parts = re.split(r"(\d+)", site)
    return True, tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), site
