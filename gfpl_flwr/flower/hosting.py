"""One node that hosts several sites: which they are, and how their replies share one message.

With ``sites-per-node = k`` the node with partition-id p hosts the sites ``p k`` to ``min((p + 1) k, num-sites) - 1``,
each of them exactly as if it were a node of its own. ``num-sites`` counts sites; ``num-partitions`` of the node's own
configuration is not looked at.

The reply holds a group of records a site. The group of the node's first site has the names of a lone site's reply,
those of the next ones end in ``.1``, ``.2`` and so on. A site that failed has one record with its reason instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict

from gfpl_flwr.config import ConfigError, RunConfig
from gfpl_flwr.flower.tensors import Size, sizes_of
from gfpl_flwr.flower.wire import ARRAYS, MEASURES, SITE

FAILED = "failed"
_NAMES = (SITE, MEASURES, ARRAYS, FAILED)


@dataclass(frozen=True)
class SiteFailure:
    """A hosted site's word that it could not do its visit.

    Attributes:
        site: its number.
        reason: what went wrong.
    """

    site: int
    reason: str


def hosted_sites(partition_id: object, config: RunConfig) -> range:
    """Return the numbers of the sites that a node hosts.

    Raises:
        ConfigError: it hosts none.
    """
    nodes, each = config.num_nodes, config.sites_per_node
    if not isinstance(partition_id, int) or isinstance(partition_id, bool) or not 0 <= partition_id < nodes:
        raise ConfigError(
            f"node config: partition-id = {partition_id!r}: must be an integer below {nodes}, the nodes that host "
            f"num-sites = {config.num_sites} with sites-per-node = {each}"
        )
    return range(partition_id * each, min((partition_id + 1) * each, config.num_sites))


def join_replies(outcomes: Mapping[int, RecordDict | str]) -> RecordDict:
    """Put the replies of a node's sites into the content of one message.

    Args:
        outcomes: number of every site of the node, in order, to the content of its reply or why there is none.
    """
    joined = RecordDict()
    for place, (site, outcome) in enumerate(outcomes.items()):
        if isinstance(outcome, str):
            outcome = RecordDict({FAILED: ConfigRecord({"site": site, "reason": outcome})})
        for name, record in outcome.items():
            joined[_named(name, place)] = record
    return joined


def split_reply(content: RecordDict, *, sites_per_node: int) -> list[RecordDict]:
    """Take the groups of a node's reply apart; whether a group is sound is for whoever decodes it.

    Args:
        content: of the message.
        sites_per_node: k; with 1 the content is the one group.

    Returns:
        One group a site, in the order of the node's sites, its records named as in a lone site's reply.

    Raises:
        ValueError: a record of no group, or groups that do not follow each other.
    """
    if sites_per_node == 1:
        return [content]
    places = {_named(name, place): (name, place) for place in range(sites_per_node) for name in _NAMES}
    groups: dict[int, RecordDict] = {}
    for key, record in content.items():
        if key not in places:
            raise ValueError(f"record {key[:80]!r} belongs to none of the {sites_per_node} sites of a node")
        name, place = places[key]
        groups.setdefault(place, RecordDict())[name] = record
    if not groups or sorted(groups) != list(range(len(groups))):
        raise ValueError(f"expected the records of a node's sites from the first on, got places {sorted(groups)}")
    return [groups[place] for place in range(len(groups))]


def failure_in(group: RecordDict) -> SiteFailure | None:
    """Return the failure that a group tells of; None where it is a reply.

    Raises:
        ValueError: it tells of a failure, but not how, or not of that alone.
    """
    if FAILED not in group:
        return None
    record = group[FAILED]
    if len(group) != 1 or not isinstance(record, ConfigRecord):
        raise ValueError(f"expected one config record {FAILED!r} and nothing else, got {sorted(group)}")
    site, reason = record.get("site"), record.get("reason")
    if not isinstance(site, int) or isinstance(site, bool) or not isinstance(reason, str):
        raise ValueError(f"a failure must name a site and a reason, got {site!r} and {reason!r}"[:200])
    return SiteFailure(site, reason)


def uploads(content: RecordDict, places: int, *, first: int) -> list[Size]:
    """Measure a node's reply, and what of it is each site's: its records.

    Args:
        content: of the message.
        places: number of its groups.
        first: place whose site also has what frames all of them.

    Returns:
        One size a group; they add up to that of the message.
    """
    sizes = sizes_of(content)
    shares = [sum((sizes.get(_named(name, place), Size()) for name in _NAMES), Size()) for place in range(places)]
    shares[first] += Size(message=len(content.deflate()))
    return shares


def downloads(size: Size, sites: int) -> list[Size]:
    """Split the size of the one message to a node evenly over its sites; the first has what does not divide."""
    share = Size(size.message // sites, size.arrays // sites, size.scalars // sites)
    rest = Size(size.message % sites, size.arrays % sites, size.scalars % sites)
    return [share + rest, *[share] * (sites - 1)]


def _named(name: str, place: int) -> str:
    return f"{name}.{place}" if place else name
