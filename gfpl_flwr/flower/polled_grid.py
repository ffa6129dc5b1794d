"""What both grids of this package share: messages are sent, then their replies are asked for until they are there."""

import time
from collections.abc import Iterable
from typing import ClassVar

from flwr.app import Message
from flwr.serverapp import Grid


class PolledGrid(Grid):
    """A grid whose ``pull_messages`` returns the replies that are there, and may be called again for the others."""

    can_lose: ClassVar[bool] = False
    """Whether a message or its reply can be lost on the way."""
    pause: ClassVar[float] = 0.0
    """Seconds between two pulls, of a grid whose pull waits for nothing."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies that came before the timeout, in seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            came = list(self.pull_messages(waiting))
            waiting -= {message.metadata.reply_to_message_id for message in came}
            replies += came
            time.sleep(self.pause)
        return replies
