"""``flower-supernode`` that takes some seconds to confirm an order: ``slow_supernode.py SECONDS ARGUMENTS``."""

import sys
import time
from typing import Any

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

seconds = float(sys.argv.pop(1))
pull_objects = start_client_internal.pull_objects


def pull_slowly(*arguments: Any, **named: Any) -> Any:
    """Pull the parts of an order, which is confirmed when this returns."""
    pulled = pull_objects(*arguments, **named)
    time.sleep(seconds)
    return pulled


start_client_internal.pull_objects = pull_slowly
flower_supernode()
