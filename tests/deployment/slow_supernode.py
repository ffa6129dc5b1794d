"""``slow_supernode.py FILE ARGUMENTS``: ``flower-supernode`` that confirms its second order once a file is there."""

import sys
import time
from pathlib import Path
from typing import Any

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

released = Path(sys.argv.pop(1))
pull_objects = start_client_internal.pull_objects
orders = 0


def pull_slowly(*arguments: Any, **named: Any) -> Any:
    """Pull the parts of an order, which is confirmed when this returns."""
    global orders
    orders += 1
    pulled = pull_objects(*arguments, **named)
    while orders == 2 and not released.exists():
        time.sleep(0.1)
    return pulled


start_client_internal.pull_objects = pull_slowly
flower_supernode()
