"""A site's own model on its own disk.

Flower's ``Context.state`` lives in memory, travels with every message and is gone after a restart. A site's model
must outlive all three, so it lies in a folder of the node: one safetensors file a visit, with a checksum, replaced
atomically, the last two kept. A damaged file is reported and the one before it used; with none left the site
starts from the common initial model and says so.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gfpl_flwr.flower.files import DamagedFileError, read_tensors, write_tensors

logger = logging.getLogger("flwr.gfpl")
KEPT = 2
_FILE = re.compile(r"visit-(\d+)\.safetensors")


@dataclass(frozen=True)
class SavedSite:
    """What a site remembers of its last finished visit.

    Attributes:
        visit: index of that visit.
        model: its model's weights and buffers.
    """

    visit: int
    model: Mapping[str, Tensor]


class SiteStore:
    """The folder of one site in one run.

    Args:
        folder: made when something is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _files(self) -> list[tuple[int, Path]]:
        found = []
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                match = _FILE.fullmatch(path.name)
                if match:
                    found.append((int(match[1]), path))
        return sorted(found, reverse=True)

    def load(self, *, before: int) -> SavedSite | None:
        """Return the newest sound state of a visit earlier than ``before``; None for a cold start.

        A later one is passed over: the server asks for a visit again when the reply to it was lost, and the
        result must be the same as the first time.
        """
        for visit, path in self._files():
            if visit >= before:
                continue
            try:
                model, _ = read_tensors(path)
            except (DamagedFileError, OSError) as error:
                logger.warning("%s; the state before it is used", error)
                continue
            return SavedSite(visit, model)
        if before > 1:
            logger.warning("%s holds no sound model: the site starts from the initial one", self.folder)
        return None

    def save(self, state: SavedSite) -> None:
        """Keep the state of a finished visit, and the one before it; drop what is older."""
        write_tensors(self.folder / f"visit-{state.visit}.safetensors", state.model, {"visit": state.visit})
        earlier = [path for visit, path in self._files() if visit < state.visit]
        for path in earlier[KEPT - 1 :]:
            path.unlink(missing_ok=True)
