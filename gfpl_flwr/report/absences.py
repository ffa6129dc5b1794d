"""Which sites were left out of which visits, and why; and what else the server noted of a site."""

from collections.abc import Iterable, Sequence

from gfpl_flwr.report.runs import Run, display_names
from gfpl_flwr.site_names import SiteName, site_order


def absences(runs: Sequence[Run]) -> list[str]:
    """List every missing contribution with the reason that the server recorded, and every note.

    Args:
        runs: in the order in which they are listed.

    Returns:
        One line for each site and reason of a run, with the visits in which that happened; none where every site
        answered every visit.
    """
    lines = []
    for run, name in zip(runs, display_names(runs), strict=True):
        missing = ((failure.site, failure.reason, failure.visit) for failure in run.failures)
        noted = ((site, note, visit.visit) for visit in run.visits for site, note in visit.notes)
        lines += [f"{name}: site {site} left out of {visits}: {why}" for site, why, visits in _grouped(missing)]
        lines += [f"{name}: site {site}, {visits}: {note}" for site, note, visits in _grouped(noted)]
    return lines


def _grouped(entries: Iterable[tuple[SiteName, str, int]]) -> list[tuple[SiteName, str, str]]:
    """Join the visits of equal words about a site."""
    visits: dict[tuple[SiteName, str], list[int]] = {}
    for site, words, visit in entries:
        visits.setdefault((site, words), []).append(visit)
    ordered = sorted(visits, key=lambda key: (site_order(key[0]), visits[key]))
    return [(site, words, _visits(visits[site, words])) for site, words in ordered]


def _visits(numbers: Sequence[int]) -> str:
    return f"visit {numbers[0]}" if len(numbers) == 1 else f"visits {', '.join(map(str, numbers))}"
