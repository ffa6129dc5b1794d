"""Who takes part in a run: the connected nodes, the sites that each of them hosts, and how many must answer."""

import math
import time
from collections.abc import Mapping, Sequence, Set
from typing import Any

from flwr.serverapp import Grid

from gfpl_flwr.config import RunConfig
from gfpl_flwr.flower.hosting import hosted_sites
from gfpl_flwr.site_names import SiteName, site_order

SETTLED_AFTER = 3.0
"""Seconds without a new node after which their number counts as settled."""


class QuorumError(RuntimeError):
    """Too few sites answered; what was computed before is kept and can be resumed."""


class Attendance:
    """The nodes of a run and their sites, as far as the server knows them.

    Attributes:
        expected: number of sites: the configured one, else that of the nodes that have been connected at once.
        sites: node id to the sites that it said, truthfully, it hosts; in the order in which the nodes first did.
        finished: site to the last visit that it answered, in an earlier part of a resumed run too.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.expected = config.num_sites
        self.sites: dict[int, Sequence[SiteName]] = {}
        self.finished: dict[SiteName, int] = {}
        self._titles: dict[int, str] = {}  # node id to the name under which its key was registered

    @property
    def quorum(self) -> int:
        """How many sites must answer; 0.28 of 25 are 7, though the product of the floats is above it."""
        return max(1, math.ceil(self.config.quorum * self.expected - 1e-9))

    def restore(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take over what an earlier part of the run knew, but for its nodes, whose ids may be others now.

        Args:
            lines: of ``rounds.jsonl``, one a visit, in order.
        """
        for line in lines:
            answered = [entry["site"] for entry in line["sites"] if entry["status"] == "ok"]
            self.finished |= dict.fromkeys(answered, int(line["visit"]))
            if not self.config.num_sites:
                self.expected = max(self.expected, int(line.get("expected", len(line["sites"]))))

    def wait(self, grid: Grid) -> list[int]:
        """Wait for every node before the first visit, later only for a quorum: a dead node delays nothing.

        Returns:
            The ids of the nodes that are connected, sorted.

        Raises:
            QuorumError: they are too few when ``node-deadline`` is over.
        """
        start = time.monotonic()
        wanted = self._nodes_of(self.quorum if self.sites else max(1, self.expected))
        nodes, since = sorted(grid.get_node_ids()), start
        while time.monotonic() - start < self.config.node_deadline:
            # Where nobody said how many there will be, nodes may still be on their way.
            settled = self.expected > 0 or time.monotonic() - since >= SETTLED_AFTER
            if len(nodes) >= wanted and settled:
                break
            time.sleep(0.1)
            before, nodes = nodes, sorted(grid.get_node_ids())
            since = since if nodes == before else time.monotonic()
        if not self.config.num_sites:
            self.expected = max(self.expected, len(nodes))
        if len(nodes) < self._nodes_of(self.quorum):
            each = self.config.sites_per_node
            shared = f" / sites-per-node = {self._nodes_of(self.expected)}" if each > 1 else ""
            raise QuorumError(
                f"{len(nodes)} of {self._nodes_of(self.expected) or 'any'} nodes connected within node-deadline = "
                f"{self.config.node_deadline:g} s, quorum = {self.config.quorum:g}; "
                f"in simulation num-supernodes must be num-sites{shared}"
            )
        self._titles |= {node.node_id: node.name for node in grid.get_nodes() if node.name}
        return nodes

    def names(self, node: int) -> Sequence[SiteName]:
        """Return the sites of a node; before it has said which they are, its own name for each."""
        return self.sites.get(node, [f"node {self._titles.get(node, node)}"] * self.config.sites_per_node)

    def hosted(self, site: SiteName, node: int, place: int, connected: Set[int]) -> Sequence[SiteName]:
        """Return the sites of the node that a site is of.

        Nobody but the node itself says which site it is. So a site is the first connected node's that answered as
        it: no other takes its name meanwhile, and a node that has a new id after a restart can once its old one is
        gone.

        Args:
            site: that the node says it is.
            node: its id.
            place: the site's among those of its node.
            connected: ids of the nodes that the visit was sent to.

        Raises:
            ValueError: the node, or its place in it, is another site's; or the site is another node's.
        """
        each = self.config.sites_per_node
        hosted: Sequence[SiteName] = self.sites.get(node, ())
        if not hosted and each == 1:
            hosted = [site]
        elif not hosted:
            if not isinstance(site, int) or not 0 <= site < self.expected:
                raise ValueError(f"says it is site {site}, expected a number below num-sites = {self.expected}")
            hosted = hosted_sites(site // each, self.config)
        if place >= len(hosted):
            raise ValueError(f"says it is site {site}, but its node hosts no more than {len(hosted)} sites")
        if hosted[place] != site:
            raise ValueError(f"says it is site {site}, but it was site {hosted[place]}")
        for earlier, its in self.sites.items():
            if earlier == node:
                break
            if site in its and earlier in connected:
                self.sites.pop(node, None)  # what it took over in the other's absence is the other's again
                raise ValueError(
                    f"says it is site {site}, which is another node's that is connected: two nodes have the same "
                    "partition-id or site, or it came back under a new id and the old one still counts as connected"
                )
        return hosted

    def absent(self, heard: Set[SiteName], count: int) -> list[tuple[SiteName, str]]:
        """Return the sites that were announced and have no node among those that the run knows, each with why.

        Args:
            heard: their names; of nodes that never said which sites they have, the nodes' own.
            count: how many they are: such a node's name stands for several.
        """
        missing = self.expected - count
        if missing <= 0:
            return []
        away = "not connected when the visit began"
        before = sorted(self.finished.keys() - heard, key=site_order)
        if len(before) > missing:
            return [(f"{missing} more", away)]  # the others are those of nodes that have not said which they have
        told: list[tuple[SiteName, str]] = [(site, away) for site in before]
        never = "no node of this site has ever connected"
        missing -= len(before)
        numbers = set(range(self.expected)) - heard - set(before)
        if self.config.partition != "own" and len(numbers) == missing:
            return told + [(site, never) for site in sorted(numbers)]
        return [*told, (f"{missing} more", never)] if missing else told  # their names are known to them alone

    def _nodes_of(self, sites: int) -> int:
        return -(-sites // self.config.sites_per_node)
