"""A result says what it came from."""

import shutil
from pathlib import Path

import gfpl_flwr
from gfpl_flwr.flower.provenance import provenance, sources


def test_a_run_names_packages_sources_and_processor():
    found = provenance()
    assert found.keys() == {"python", "torch", "flwr", "numpy", "sources", "processor"}
    assert all(found.values())


def test_every_change_of_the_sources_changes_their_digits(tmp_path):
    copied = tmp_path / "elsewhere"
    shutil.copytree(Path(gfpl_flwr.__file__).parent, copied)
    assert sources(copied) == sources()
    (copied / "core" / "losses.py").write_text((copied / "core" / "losses.py").read_text() + "\n")
    changed = sources(copied)
    assert changed != sources()
    (copied / "core" / "losses.py").rename(copied / "core" / "loss.py")
    assert sources(copied) not in (changed, sources())
