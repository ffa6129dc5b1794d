"""How a worker process begins: it leaves Ctrl-C to the one that started it, and ends with it however that ends."""

import multiprocessing
import os
import signal
import threading


def begin_worker() -> None:
    """Ignore Ctrl-C, and end when the process that started this one is gone, killed too.

    A pool's worker would otherwise go on with its work, or wait for more for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
