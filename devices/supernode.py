"""``flower-supernode``, with the same arguments, that ends when it can do nothing more.

In Flower 1.41 an error that is not tried again, such as an expired certificate of the server or an answer 500, ends
a SuperNode's main loop, or its heartbeats alone, after which the server takes the node for absent; and a SuperExec
that it has started for its ClientApps may end. The process lives on, since its Runtime API has a thread of its own,
and what would start it again sees nothing wrong.
"""

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode


def watched(command: list[str]) -> "subprocess.Popen[bytes]":
    """Start a process that may not end before this one."""
    child = subprocess.Popen(command)

    def watch() -> None:
        raise ChildProcessError(f"{command[0]} ended with status {child.wait()}")

    threading.Thread(target=watch, daemon=True).start()
    return child


def end_with_its_thread(ended: threading.ExceptHookArgs) -> None:
    """End the process like somebody who stops it, so that the server knows and lets the node in again at once."""
    threading.__excepthook__(ended)
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # or it is about to end, and signs off
        os.kill(os.getpid(), signal.SIGTERM)


threading.excepthook = end_with_its_thread
start_client_internal.subprocess = SimpleNamespace(Popen=watched)  # type: ignore[assignment,attr-defined]
flower_supernode()
# Flower has said why, has signed the node off where the server could be reached, and would now wait for ever.
sys.stderr.flush()
os._exit(1)
