"""A result says what it came from."""

import shutil
import tomllib
from pathlib import Path

import gfpl_flwr
from gfpl_flwr.flower.provenance import NO_PART, continued, provenance, sources


def test_a_run_names_packages_sources_and_processor():
    found = provenance()
    assert found.keys() == {"python", "torch", "flwr", "numpy", "sources", "processor"}
    assert all(found.values())


def test_a_run_that_was_resumed_names_what_was_different():
    first = {"torch": "1", "sources": "a"}
    again = continued(first, {"torch": "1", "sources": "b"})
    assert again == {"torch": "1", "sources": "a, then b"}
    assert continued(again, {"torch": "1", "sources": "b"}) == again
    on_gpu = continued(again, {"torch": "1", "sources": "b", "gpu": "g"})
    assert on_gpu["gpu"] == "none, then g"
    assert continued({"torch": "1"}, {"torch": "1", "sources": "b"}) == {"torch": "1"}  # unknown, and so it stays
    assert continued(on_gpu, {"torch": "1", "sources": "b"})["gpu"] == "none, then g, then none"


def test_the_sources_are_those_that_a_server_has_too():
    app = tomllib.loads((Path(gfpl_flwr.__file__).parents[1] / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    left_out = {name.removeprefix("gfpl_flwr/").removesuffix("/**") for name in app["fab-exclude"]}
    assert set(NO_PART) == left_out - {".gitignore"}


def test_every_change_of_the_sources_changes_their_digits(tmp_path):
    copied = tmp_path / "elsewhere"
    shutil.copytree(Path(gfpl_flwr.__file__).parent, copied)
    assert sources(copied) == sources()
    (copied / "core" / "losses.py").write_text((copied / "core" / "losses.py").read_text() + "\n")
    changed = sources(copied)
    assert changed != sources()
    (copied / "report" / "more.py").write_text("x = 1")
    assert sources(copied) == changed
    (copied / "core" / "losses.py").rename(copied / "core" / "loss.py")
    assert sources(copied) not in (changed, sources())
