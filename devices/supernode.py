"""``flower-supernode``, with the same arguments, that ends when it can do nothing more.

In Flower 1.41 an error that is not tried again, such as an expired certificate of the server or an answer 500, ends
a SuperNode's main loop, or its heartbeats alone, after which the server takes the node for absent. The process lives
on, since its Runtime API has a thread of its own, and what would start it again sees nothing wrong.
"""

import os
import signal
import sys
import threading

from flwr.supernode.cli import flower_supernode


def end_with_its_thread(ended: threading.ExceptHookArgs) -> None:
    """End the process like somebody who stops it, so that the server knows and lets the node in again at once."""
    threading.__excepthook__(ended)
    os.kill(os.getpid(), signal.SIGTERM)


threading.excepthook = end_with_its_thread
flower_supernode()
# Flower has said why, has signed the node off where the server could be reached, and would now wait for ever.
sys.stderr.flush()
os._exit(1)
