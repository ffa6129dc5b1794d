"""What a check says: that it passed, or what to do."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: one word for what was looked at.
        passed: whether all is well.
        found: what was seen, on one line.
        remedy: what to do where it is not well.
    """

    check: str
    passed: bool
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'}  {self.check:<11} {self.found}" + (
            f"\n      {'':<11} {self.remedy}" if self.remedy and not self.passed else ""
        )


Check = Callable[[], Iterable[Finding]]


def carried_out(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """Carry checks out one after the other; what a check did not foresee is a finding as well.

    Args:
        checks: the word for each, and what to call.
    """
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # whatever a package raises: the other checks have their say all the same
            yield Finding(name, False, " ".join(str(error).split()) or type(error).__name__, "see the message")
