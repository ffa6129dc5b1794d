"""Replies that come too late or once too often: looked out for, used in no visit."""

import time
from collections.abc import Set

from flwr.app import Message


class Overdue:
    """Messages whose replies are still outstanding though nobody waits for them any more."""

    def __init__(self) -> None:
        self._owed: dict[str, tuple[int, int, float]] = {}  # message id to visit, node and when it was given up
        self._answered: set[tuple[int, int]] = set()  # visits and nodes of which a reply has come

    @property
    def message_ids(self) -> Set[str]:
        """Ids of the messages."""
        return self._owed.keys()

    def add(self, message_id: str, *, visit: int, node: int) -> None:
        """Look out for the reply to a message, from now on."""
        self._owed[message_id] = visit, node, time.monotonic()

    def add_answered(self, message_id: str, *, visit: int, node: int) -> None:
        """The same for a message to a node that has answered another one of the same visit."""
        self.add(message_id, visit=visit, node=node)
        self._answered.add((visit, node))

    def repeated(self, visit: int) -> Set[str]:
        """Return the ids of a visit's messages to nodes that have answered another one of it."""
        return {name for name, (its, node, _) in self._owed.items() if its == visit and (its, node) in self._answered}

    def note(self, message: Message) -> tuple[int, str] | None:
        """Say whose late reply this is; None where it tells nothing new.

        Returns:
            The node, and one line for the record.
        """
        answered = message.metadata.reply_to_message_id
        visit, node, given_up = self._owed[answered]
        del self._owed[answered]
        if is_flowers_word(message, node):
            return None
        if (visit, node) in self._answered:
            return None
        self._answered.add((visit, node))
        what = "an error" if message.has_error() else "a reply"
        return (
            node,
            f"{what} to visit {visit} came {time.monotonic() - given_up:.0f} s after it was given up; not used",
        )


def is_flowers_word(message: Message, node: int) -> bool:
    """Return whether a reply is Flower's own: the message has expired, its node is gone, or its reply cannot be had.

    Args:
        message: that came.
        node: to which the message went that it answers.
    """
    return message.has_error() and message.metadata.src_node_id != node
