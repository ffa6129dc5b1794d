"""``flower-supernode``, with the same arguments, that ends when it can do nothing more.

A SuperNode of Flower 1.41 has a Runtime API with a thread of its own, with which the process lives on, and what would
start it again sees nothing wrong, when

- its main loop has ended, by an error that is not tried again when it asks for messages, such as an expired
  certificate of the server or an answer 500, or before it began;
- its heartbeats have, by such an answer: the server takes the node for absent;
- it waits for the reply of a ClientApp that has ended without one, for instance when somebody stopped it;
- the SuperExec that it has started for its ClientApps has ended.

And where Flower gives up when a TLS handshake takes too long, as on a poor line, it tries again.

It runs where the rest of the package is not, such as in the container of a SuperNode, and imports none of it.
"""

import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import httpx
from flwr.common.constant import Status
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli import flower_supernode
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

get_messages = InMemoryNodeState.get_messages_legacy


def get_messages_while_somebody_works(state: InMemoryNodeState, *, is_reply: bool | None = None, **named: Any) -> Any:
    """Get messages; an error, which ends the main loop, where replies are waited for and nobody is at work on one."""
    # Asked first: a ClientApp sends its reply before it says that it is done.
    working = state.get_tasks(statuses=[Status.PENDING, Status.STARTING, Status.RUNNING])
    messages = get_messages(state, is_reply=is_reply, **named)
    if is_reply and not messages and not working:
        raise ChildProcessError("the ClientApp has ended without a reply")
    return messages


def patient_invoker() -> RetryInvoker:
    """Flower's rules for what is tried again; it finds the word "ssl" in a handshake that takes too long as well."""
    invoker = make_simple_http_retry_invoker()
    gives_up = cast(Callable[[Exception], bool], invoker.should_giveup)
    invoker.should_giveup = lambda error: not isinstance(error, httpx.TimeoutException) and gives_up(error)
    return invoker


def watched(command: list[str]) -> "subprocess.Popen[bytes]":
    """Start a process that may not end before this one."""
    child = subprocess.Popen(command)

    def watch() -> None:
        raise ChildProcessError(f"{command[0]} ended with status {child.wait()}")

    threading.Thread(target=watch, daemon=True).start()
    return child


def end_with_its_thread(ended: threading.ExceptHookArgs) -> None:
    """End the process like somebody who stops it, so that the server knows and lets the node in again at once."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # or it is about to end, and signs off
        threading.__excepthook__(ended)
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run a SuperNode until it ends; this does not return."""
    InMemoryNodeState.get_messages_legacy = get_messages_while_somebody_works  # type: ignore[assignment,method-assign]
    start_client_internal.subprocess = SimpleNamespace(Popen=watched)  # type: ignore[assignment,attr-defined]
    fleet_http_connection.make_simple_http_retry_invoker = patient_invoker  # type: ignore[attr-defined]
    threading.excepthook = end_with_its_thread
    try:
        flower_supernode()
    except Exception:
        traceback.print_exc()
    # Flower has signed the node off where it could reach the server, and would now wait for its Runtime API for ever.
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
