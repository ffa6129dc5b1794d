"""What a node's own configuration says: which site it is, and where its data and its states lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfpl_flwr.config import ConfigError, RunConfig
from gfpl_flwr.flower.hosting import hosted_sites
from gfpl_flwr.site_names import SiteName


@dataclass(frozen=True)
class Node:
    """What a node's own configuration says of one site, with the run's for what it leaves out.

    Attributes:
        site: its ``site`` name, else its ``partition-id``; the number of a hosted site.
        partition_id, num_partitions: which share of a common data set is this site's.
        data_dir, state_dir: folders of this node.
        is_device: whether it has a folder for states of its own, and so keeps every answer: on a network one is lost.
    """

    site: SiteName
    partition_id: int | None
    num_partitions: int
    data_dir: Path
    state_dir: Path
    is_device: bool = False

    @classmethod
    def of(cls, own: Mapping[str, Any], config: RunConfig, place: int = 0) -> "Node":
        """Read Flower's ``node_config``, for one site of the node where it hosts several.

        Raises:
            ConfigError: the node has no identity, or its partition does not exist.
        """
        index = own.get("partition-id")
        if config.sites_per_node > 1:
            if "site" in own:
                raise ConfigError(
                    f"node config: site = {own['site']!r}: leave it out with sites-per-node = "
                    f"{config.sites_per_node}; hosted sites are known by their numbers"
                )
            index = hosted_sites(index, config)[place]
        site = own.get("site", index)
        if not isinstance(site, (int, str)) or isinstance(site, bool):
            raise ConfigError("node config: give site = 'NAME' or partition-id = NUMBER; the site has no identity")
        count = config.num_sites or int(own.get("num-partitions", 0))
        if config.partition != "own" and not (isinstance(index, int) and 0 <= index < count):
            raise ConfigError(
                f"node config: partition-id = {index!r}: must be an integer below num-sites = {count} "
                f"when partition = {config.partition!r}"
            )
        default_state = Path(config.output_dir) / "site-models"
        return cls(
            site=site,
            partition_id=index if isinstance(index, int) else None,
            num_partitions=count,
            data_dir=Path(str(own.get("data-dir", config.data_dir))).expanduser(),
            state_dir=Path(str(own.get("state-dir", config.state_dir or default_state))).expanduser(),
            is_device="state-dir" in own,
        )
