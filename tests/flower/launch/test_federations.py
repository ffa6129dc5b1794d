"""Federations: what the file says to Flower it says to us, and what is wrong in it is named."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from gfpl_flwr.flower.inprocess import DEFAULT_SITES
from gfpl_flwr.flower.launch import superlink as launch
from gfpl_flwr.flower.launch.federations import Federation, read_federations, select_federation
from gfpl_flwr.flower.launch.local_superlink import LaunchError

SHIPPED = Path(__file__).parents[3] / "pyproject-federation.toml"


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "federations.toml"
        path.write_text(text)
        return path

    return write


def test_the_shipped_file_says_to_flower_what_it_says_to_us() -> None:
    """Flower's own parser is the oracle, for the connection and for the message it makes of the options."""
    from flwr.cli.flower_config import parse_superlink_connection
    from flwr.cli.run.run import _parse_deprecated_options
    from flwr.supercore.utils import simulation_config_from_json

    tables = tomllib.loads(SHIPPED.read_text())["superlink"]
    ours = read_federations(SHIPPED)
    assert select_federation(ours).name == tables.pop("default") == "local"
    assert list(ours) == list(tables)
    for name, table in tables.items():
        if "root-certificates" in table:  # Flower itself takes absolute paths only
            table["root-certificates"] = str(SHIPPED.parent / table["root-certificates"])
        theirs = parse_superlink_connection(table, name)
        federation = ours[name]
        assert (federation.address, federation.insecure) == (theirs.address, theirs.insecure)
        assert federation.root_certificates == (Path(p) if (p := theirs.root_certificates) else None)
        if theirs.options:
            # Flower fills the one default in that it has, the name of its only engine.
            ours_to_flower = simulation_config_from_json({"backend": "ray", **federation.simulation})
            assert ours_to_flower == _parse_deprecated_options(theirs)
        else:
            assert not federation.simulation


def test_the_shipped_local_federations_give_a_site_one_core_and_the_gpu_one_a_fraction() -> None:
    federations = read_federations(SHIPPED)
    assert federations["local"].threads_per_site == federations["local-gpu"].threads_per_site == 1
    assert 0 < federations["local-gpu"].simulation["client_resources_num_gpus"] < 1  # type: ignore[operator]
    assert [name for name, federation in federations.items() if federation.is_local] == ["local", "local-gpu"]


def test_a_number_of_sites_replaces_the_one_of_the_file_only_where_sites_are_simulated() -> None:
    local = Federation("a", ":local:", simulation={"num_supernodes": 20, "verbose": True})
    assert local.simulation_of(3) == {"num_supernodes": 3, "verbose": True, "client_resources_num_cpus": 1}
    assert local.simulation_of(None)["num_supernodes"] == 20
    assert Federation("b", "10.0.0.1:8000").simulation_of(3) == {}
    with pytest.raises(ValueError, match="at least 1 site, got 0"):
        local.simulation_of(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[superlink", "not valid TOML"),
        ("[other]\n", r"no \[superlink\] table"),
        ("[superlink]\ndefault = 'x'\n[superlink.a]\naddress = 'h:1'", r"default is 'x', known: a"),
        ("[superlink]\na = 3", r"superlink\.a must be a table, got 3"),
        ("[superlink.a]\ninsecure = true", r"superlink\.a\.address is missing"),
        ("[superlink.a]\naddress = 'http://h:1'", r"must be host:port or one of :local:.*got 'http://h:1'"),
        ("[superlink.a]\naddress = ':locl:'", r"got ':locl:'"),
        ("[superlink.a]\naddress = 'h:1'\ninsecure = 'yes'", r"a\.insecure must be bool, got 'yes'"),
        ("[superlink.a]\naddress = 'h:1'\ninsecure = true\nroot-certificates = 'c'", "exclude each other"),
        (
            "[superlink.a]\noptions.num-supernode = 3",
            r"a\.options\.num-supernode is not known, allowed: .*num-sup",
        ),
        ("[superlink.a]\noptions.num-supernodes = true", r"num-supernodes must be int, got True"),
        ("[superlink.a]\noptions.num-supernodes = 0", r"num-supernodes must be >= 1, got 0"),
        ("[superlink.a]\noptions.backend.client-resources.num-cpus = 0.5", r"num-cpus must be int, got 0\.5"),
        ("[superlink.a]\noptions.backend.client-resources.num-gpus = nan", r"num-gpus must be >= 0, got nan"),
    ],
)
def test_a_wrong_federation_is_named_with_its_file_and_key(
    written: Callable[[str], Path], text: str, message: str
) -> None:
    path = written(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_federations(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_federation_are_said_on_one_line(
    written: Callable[[str], Path],
) -> None:
    with pytest.raises(ValueError, match=r"cannot read the federations of .*nowhere\.toml"):
        read_federations(Path("nowhere.toml"))
    federations = read_federations(written("[superlink.a]\naddress = 'h:1'\n[superlink.b]\naddress = ':local:'"))
    assert select_federation(federations, "b").is_local
    with pytest.raises(ValueError, match=r"^unknown federation 'c', known: a, b$"):
        select_federation(federations, "c")
    with pytest.raises(ValueError, match="no federation given and no default set, known: a, b"):
        select_federation(federations)


def test_a_relative_certificate_is_looked_for_beside_the_file(written: Callable[[str], Path]) -> None:
    path = written("[superlink.edge]\naddress = 'h:1'\nroot-certificates = 'keys/ca.crt'")
    edge = read_federations(path)["edge"]
    assert edge.root_certificates == path.parent / "keys/ca.crt"
    with (
        pytest.raises(LaunchError, match=r"^federation 'edge': root-certificates is not a file: .*/keys/ca\.crt$"),
        launch.connect(edge, work_dir=path.parent),
    ):
        pass


def test_every_engine_has_as_many_sites_where_nobody_says_how_many():
    assert read_federations(SHIPPED)["local"].simulation["num_supernodes"] == DEFAULT_SITES
