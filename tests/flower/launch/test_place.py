"""What is known of a run's place at once, and what is left of a SuperLink that fails."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gfpl_flwr.flower.launch import local_superlink
from gfpl_flwr.flower.launch.federations import Federation
from gfpl_flwr.flower.launch.local_superlink import LaunchError, marked_processes
from gfpl_flwr.flower.launch.place import Place, choose, demo_runs, opened
from gfpl_flwr.flower.launch.superlink import SuperLink

LOCAL = Place("flower", Federation("local", ":local:"), Path("/nowhere"))


def use(action: Callable[[SuperLink], object]) -> None:
    with opened(LOCAL) as link:
        assert link
        action(link)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_place_is_known_without_torch_and_flower():
    code = "import sys; from gfpl_flwr.flower.launch.place import choose; choose('flower', 'local-gpu')\n"
    code += "print({'torch', 'flwr', 'ray', 'sklearn', 'matplotlib'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_in_this_process_there_is_no_superlink_and_nothing_is_left(temporary):
    with opened(choose("inprocess")) as link:
        assert link is None
    assert list(temporary.iterdir()) == []


def test_the_log_of_a_superlink_that_fails_is_where_the_error_says(temporary, monkeypatch):
    monkeypatch.setattr(local_superlink, "_START", "import sys; print('port taken'); sys.exit(3)")
    with pytest.raises(LaunchError, match="exit status 3: port taken") as caught:
        use(lambda link: link.control)
    named = re.search(r"all of it in (\S+)\)$", str(caught.value))
    assert named
    assert Path(named[1]).read_text() == "port taken\n"
    assert Path(named[1]).is_relative_to(temporary)


def test_any_loss_of_the_superlink_names_the_folder_of_its_logs(temporary):
    with pytest.raises(LaunchError, match=r"^lost \(its logs are in \S+\)$") as caught, opened(LOCAL):
        raise LaunchError("lost")
    folder = Path(str(caught.value).split()[-1].rstrip(")"))
    assert (folder / "superlink.log").exists()


def test_a_mistake_found_while_the_superlink_starts_leaves_nothing(temporary):
    homes = []

    def check(link: SuperLink) -> None:
        assert link.local
        homes.append(link.local.home)
        raise ValueError("rounds = 0")

    with pytest.raises(ValueError, match="rounds"):
        use(check)
    (home,) = homes
    assert marked_processes(home) == []
    assert not home.exists()
    assert list(temporary.iterdir()) == []


def test_the_demo_runs_gfpl_and_local_on_the_same_sites():
    gfpl, local = demo_runs(Path("/out"), Path("/data"))
    assert (
        (gfpl.pop("algorithm"), local.pop("algorithm")) == (gfpl.pop("name"), local.pop("name")) == ("gfpl", "local")
    )
    assert gfpl == local
    assert (gfpl["dataset"], gfpl["output-dir"], gfpl["data-dir"]) == ("digits", "/out", "/data")
