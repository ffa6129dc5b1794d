"""One visit on this device with its own data, in a process like Flower's, to know how long it takes and what memory.

The process imports what ``flwr-clientapp`` imports and answers an order as the ClientApp does. It can be held to a
limit: the kernel then refuses it more memory of its own, as a small device would. Pages of files, which are the
libraries and the images, are no such memory: the kernel drops and reads them again as it likes.
"""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gfpl_flwr.config import Scalar

MODULE = "gfpl_flwr.flower.doctor.rehearsal"
ONE_ROUND: dict[str, Scalar] = {"rounds": 2, "gfpl.first-exchange": 1}
"""The first visit is then one round and what is sent after it."""


@dataclass(frozen=True)
class Rehearsal:
    """What a visit took.

    Attributes:
        samples: training images.
        seconds: wall time from the first import to the answer.
        training: of it, the one round of training.
        peak: most memory resident at any time, MB.
        own: of all that was resident at the end, what is no page of a file, MB.
    """

    samples: int
    seconds: float
    training: float
    peak: int
    own: int


def rehearse(options: Mapping[str, Scalar], *, limit: int = 0) -> Rehearsal:
    """Do one visit of one round in a process of its own.

    Args:
        options: of the run; ``data-dir`` is looked into, and the data set prepared there.
        limit: most MB of memory of its own that the process may take; 0: no limit.

    Raises:
        ValueError: the site could not do its visit; the message is its reason.
        RuntimeError: the process died.
    """
    with tempfile.TemporaryDirectory(prefix="gfpl-rehearsal-") as folder:
        flat = {"partition": "own"} | dict(options) | ONE_ROUND | {"state-dir": folder}
        asked = json.dumps({"options": flat, "limit": limit})
        command = [sys.executable, "-m", MODULE, asked]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"the process of the visit died: {last}")
    told = json.loads(done.stdout.splitlines()[-1])
    if "reason" in told:
        raise ValueError(f"the visit failed: {told['reason']}")
    return Rehearsal(**told)


def _child(options: dict[str, Scalar], limit: int) -> dict[str, object]:
    import time

    began = time.monotonic()

    from gfpl_flwr.algorithms import parse_run
    from gfpl_flwr.flower.client import Ask, answer
    from gfpl_flwr.flower.wire import Order, decode_reply, encode_order

    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit * 2**20, limit * 2**20))
    config, algorithm = parse_run(options)
    order = encode_order(Order("rehearsal", algorithm.visits(config)[0], {}))
    site: dict[str, Scalar] = {"site": "rehearsal"} if config.partition == "own" else {"partition-id": 0}
    (outcome,) = answer([Ask(order, options, site)])
    if isinstance(outcome, str):
        return {"reason": outcome}
    reply = decode_reply(outcome).reply
    memory = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    peak, own = (int(memory[name].split()[0]) // 1024 for name in ("VmHWM", "RssAnon"))
    taken = {"seconds": time.monotonic() - began, "training": reply.seconds.get("train", 0.0)}
    return {"samples": reply.samples, "peak": peak, "own": own, **taken}


if __name__ == "__main__":
    print(json.dumps(_child(**json.loads(sys.argv[1]))))
