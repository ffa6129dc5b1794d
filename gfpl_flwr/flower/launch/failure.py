"""Why a run of Flower failed, on one line, from what it printed."""

import re

LONGEST_CAUSE = 400

# What Flower raises around the exception that matters, and in place of it.
_WRAPPERS = ("An error was encountered. Ending simulation.", "Simulation Runtime crashed.")
_LABELS = ("Simulation failed with exception: ", "ServerApp failed with exception: ")
_LOG_PREFIX = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) *: ")
_RAISED = re.compile(r"(?P<kind>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")


def plain(text: str) -> str:
    """Return a text without the escape sequences of terminal colours."""
    return re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)


def one_line(text: str) -> str:
    """Return a text without colours, line breaks and repeated blanks."""
    return " ".join(plain(text).split())


def cause_of(log: str, details: str = "") -> str:
    """Return the exception that ended a run, type and message.

    Of a chain of exceptions it is the last, which the app chose to raise, except where that is a wrapper of
    Flower's, which says nothing.

    Args:
        log: what the ServerApp's process printed, tracebacks included.
        details: Flower's status details; used where the log holds no traceback.

    Returns:
        One line of at most :data:`LONGEST_CAUSE` characters; empty where neither says anything.
    """
    raised = [cause for cause in _raised(plain(log)) if not cause.endswith(_WRAPPERS)]
    cause = raised[-1] if raised else one_line(details)
    for label in _LABELS:
        cause = cause.removeprefix(label)
    return cause if len(cause) <= LONGEST_CAUSE else cause[: LONGEST_CAUSE - 1] + "…"


def _raised(log: str) -> list[str]:
    """Return ``Type: message`` of each traceback, in order; a blank line or a log entry ends a message."""
    found: list[str] = []
    lines = iter(log.splitlines())
    for line in lines:
        if line != "Traceback (most recent call last):":
            continue
        # Frames are indented; the first line that is not names the exception.
        raised = next((rest for rest in lines if not rest.startswith(" ")), "")
        match = _RAISED.match(raised)
        if not match:
            continue
        message = [match["message"] or ""]
        for rest in lines:
            if not rest.strip() or _LOG_PREFIX.match(rest):
                break
            message.append(rest)
        # The module of an exception is of no use to the reader.
        kind = match["kind"].rpartition(".")[2]
        found.append(one_line(f"{kind}: {' '.join(message)}").removesuffix(":"))
    return found
