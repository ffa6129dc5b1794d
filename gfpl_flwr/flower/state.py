"""A site's own model, and its last answer, on its own disk.

Flower's ``Context.state`` lives in memory, travels with every message and is gone after a restart. A site's model
must outlive all three, so it lies in a folder of the node: one safetensors file a visit, with a manifest (run, site,
visit, order) and a checksum over all of it, written beside, flushed and renamed, the last two kept. A damaged file is
reported and the one before it used; with none left the site starts from the common initial model and says so.

The answer lies in the same file as the model that it came with. So a visit that is asked for again, because the first
answer was lost on its way or the server was restarted, is answered from the disk: it trains once.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from gfpl_flwr.flower.files import DamagedFileError, read_tensors, write_tensors
from gfpl_flwr.flower.tensors import decode_tensors, encode_tensors
from gfpl_flwr.flower.wire import ARRAYS, MEASURES, SITE, Order
from gfpl_flwr.site_names import SiteName

logger = logging.getLogger("flwr.gfpl")
KEPT = 2
_FILE = re.compile(r"visit-(\d+)\.safetensors")
_REPLY = "reply."
"""Begins the names of the tensors of the answer; the others are the model's."""


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
        state_dir: the node's folder of states.
        run: key of the run.
        site: name or number of the site.
    """

    def __init__(self, state_dir: Path, run: str, site: SiteName) -> None:
        self.folder = state_dir / run / f"site-{site}"
        self._names = {"run": run, "site": site}

    def reserve(self, model: Mapping[str, Tensor]) -> None:
        """Make the folder, and see that a model fits into it: before the work, not after it.

        Raises:
            OSError: it cannot be made, or there is no room; names folder, bytes free and bytes needed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        room = os.statvfs(self.folder)
        free, needed = room.f_bavail * room.f_frsize, 2 * sum(tensor.nbytes for tensor in model.values())
        if free < needed:
            told = f"state-dir {self.folder} has {free / 1e6:.2f} MB free, the model needs {needed / 1e6:.2f} MB"
            raise OSError(ENOSPC, told)
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise PermissionError(f"state-dir {self.folder} cannot be written by user {os.geteuid()}")

    def load(self, *, before: int) -> SavedSite | None:
        """Return the newest sound model of a visit earlier than ``before``; None for a cold start.

        A later one is passed over: a server that was restarted may ask for an earlier visit with another order, and
        the site must begin where it began the first time.
        """
        for visit, path in self._files():
            if visit >= before:
                continue
            try:
                tensors, _ = self._read(path)
            except (DamagedFileError, OSError) as error:
                logger.warning("%s; the state before it is used", error)
                continue
            return SavedSite(visit, {name: value for name, value in tensors.items() if not name.startswith(_REPLY)})
        if before > 1:
            logger.warning("%s holds no sound model: the site starts from the initial one", self.folder)
        return None

    def answer_to(self, order: Order) -> RecordDict | None:
        """Return the content of the reply to this very order; None where it was not finished yet."""
        path = self._path(order.visit.index)
        try:
            tensors, facts = self._read(path)
        except FileNotFoundError:
            return None
        except (DamagedFileError, OSError) as error:
            logger.warning("%s; the visit is done again", error)
            return None
        if facts["order"] != digest(order):
            return None
        logger.info("visit %d was finished before: its answer is on the disk", order.visit.index)
        kept = facts["reply"]
        return RecordDict(
            {
                SITE: ConfigRecord(dict(kept[SITE])),
                MEASURES: MetricRecord(dict(kept[MEASURES])),
                ARRAYS: encode_tensors({name: tensors[_REPLY + name] for name in kept[ARRAYS]}),
            }
        )

    def save(self, order: Order, model: Mapping[str, Tensor], reply: RecordDict) -> None:
        """Keep what a finished visit left, and what the one before it did; drop what is older.

        Args:
            order: that was carried out.
            model: the site's weights and buffers after it.
            reply: content of the message that answers it.
        """
        visit = order.visit.index
        arrays = decode_tensors(reply.array_records[ARRAYS])
        tensors = dict(model) | {_REPLY + name: tensor for name, tensor in arrays.items()}
        # Pairs, not tables: the order of entries is part of what travels.
        kept = {
            SITE: list(reply.config_records[SITE].items()),
            MEASURES: list(reply.metric_records[MEASURES].items()),
            ARRAYS: list(arrays),
        }
        manifest = self._names | {"visit": visit, "order": digest(order), "reply": kept}
        write_tensors(self._path(visit), tensors, manifest)
        earlier = [path for number, path in self._files() if number < visit]
        for path in earlier[KEPT - 1 :]:
            path.unlink(missing_ok=True)

    def _path(self, visit: int) -> Path:
        return self.folder / f"visit-{visit}.safetensors"

    def _files(self) -> list[tuple[int, Path]]:
        found = []
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                match = _FILE.fullmatch(path.name)
                if match:
                    found.append((int(match[1]), path))
        return sorted(found, reverse=True)

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read a state; one of another site or run that was copied here is none."""
        tensors, facts = read_tensors(path)
        of = {name: facts.get(name) for name in self._names}
        if of != self._names or path != self._path(int(facts.get("visit", -1))):
            raise DamagedFileError(f"{path} is the state of {of}, visit {facts.get('visit')}")
        return tensors, facts


def digest(order: Order) -> str:
    """Return what tells one order from every other: its fields and every bit of its tensors, as a SHA-256."""
    visit = order.visit
    fields = [order.run, visit.index, visit.first_round, visit.last_round, visit.download, visit.upload]
    found = hashlib.sha256(json.dumps(fields).encode())
    for name, array in sorted(encode_tensors(order.tensors).items()):
        found.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.data)
    return found.hexdigest()
