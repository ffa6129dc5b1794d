"""What a site wants computed, and doing it for many sites at once.

A site's half of an algorithm is written for one site, as a generator: where it needs something heavy, it yields a
:class:`Work` and gets the result back. :func:`together` runs the halves of many sites side by side and does equal
kinds of work of all of them at once, so stacking needs no line in an algorithm. A site that fails, fails alone.
"""

import logging
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Generator, Hashable, Sequence
from typing import Any, TypeVar

import torch

from gfpl_flwr.models import is_large
from gfpl_flwr.training.site import Site

logger = logging.getLogger("flwr.gfpl")
T = TypeVar("T")

Steps = Generator["Work", Any, T]
"""A site's half of something: yields work, gets its results, returns a T."""


class Work(ABC):
    """Something that can be computed for many sites at once.

    Attributes:
        site: for which it is done.
        phase: under which its time is noted.
    """

    site: Site
    phase: str

    @abstractmethod
    def kind(self) -> Hashable:
        """Return what must be equal for two pieces of work of one class to be done at once."""

    @classmethod
    @abstractmethod
    def do(cls, works: Sequence[Any]) -> list[Any]:
        """Do work of one kind; return a result or an exception for each."""


def network_kind(site: Site) -> Hashable:
    """Return what must be equal for the models of two sites to run as one network."""
    model = site.model
    shapes = tuple((name, value.shape) for name, value in model.state_dict().items())
    device = next(model.parameters()).device
    # A processor gains nothing from a stack of large models: its core is busy with one.
    alone = site.key if device.type == "cpu" and is_large(model) else None
    return type(model), repr(model), shapes, device, alone


def together(halves: Sequence[Steps[T]], *, at_once: int = 32) -> list[T | Exception]:
    """Run the halves of many sites side by side.

    Args:
        halves: one a site.
        at_once: most pieces of work done as one; more gain nothing and take memory.

    Returns:
        What each half returned, or the exception that ended it.
    """
    outcomes: list[T | Exception | None] = [None] * len(halves)
    waiting: dict[int, Work] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(halves)))
    while answers:
        for index, answer in answers.items():
            try:
                half = halves[index]
                waiting[index] = half.throw(answer) if isinstance(answer, Exception) else half.send(answer)
            except StopIteration as stop:
                outcomes[index] = stop.value
            except Exception as error:
                outcomes[index] = error
        answers = {}
        groups: dict[Hashable, list[int]] = {}
        for index, work in waiting.items():
            groups.setdefault((type(work), work.kind()), []).append(index)
        for indices in groups.values():
            for start in range(0, len(indices), at_once):
                chunk = indices[start : start + at_once]
                answers |= zip(chunk, _do([waiting.pop(index) for index in chunk]), strict=True)
    return outcomes  # type: ignore[return-value]


def alone(half: Steps[T]) -> T:
    """Run the half of one site; its exception is raised."""
    (outcome,) = together([half])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _do(works: list[Work]) -> list[Any]:
    """Do some works at once, or one by one where that fails; note the time each site took."""
    start = time.perf_counter()
    results: list[Any] | None = None
    try:
        found = type(works[0]).do(works)
        device = works[0].site.train.labels.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        results = found
    except Exception as error:
        if len(works) == 1:
            # Where it happened is of use to whoever logs it; what lay in memory there must not outlive it.
            traceback.clear_frames(error.__traceback__)
            results = [error]
        else:
            logger.warning("%d sites could not work as one, they go one by one: %s", len(works), str(error))
    if results is None:
        # Not where the error is at hand: it would keep the memory of the stack, which may be what was missing.
        return [result for work in works for result in _do([work])]
    for work in works:
        work.site.watch.add(work.phase, (time.perf_counter() - start) / len(works))
    return results
