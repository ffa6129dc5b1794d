"""The app's bundle, which Flower sends to every site."""

import io
import re
import shutil
import warnings
import zipfile
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from gfpl_flwr.flower.launch.control import bundle_app

ROOT = Path(__file__).parents[1]


def test_the_bundle_holds_what_server_and_sites_import_and_stays_small():
    bundle = bundle_app(ROOT)
    assert len(bundle) < 200_000  # ten algorithms
    names = {name for name in zipfile.ZipFile(io.BytesIO(bundle)).namelist() if not name.startswith(".info/")}
    assert {"pyproject.toml", "client_app.py", "server_app.py"} == {name for name in names if "/" not in name}
    modules = {name for name in names if "/" in name}
    assert all(re.fullmatch(r"gfpl_flwr/.*\.py", name) for name in modules)
    elsewhere = r"report|launch|doctor|inprocess|supernode|/cli(_devices)?\.py|/command_line|/watch\.py"
    assert not any(re.search(elsewhere, name) for name in modules)
    # whatever a bundled module imports from the package is in the bundle
    imported = {
        found
        for name in names - {"pyproject.toml"}
        for found in re.findall(r"^\s*from (gfpl_flwr[\w.]*) import", (ROOT / name).read_text(), re.MULTILINE)
    }
    for module in imported:
        path = module.replace(".", "/")
        assert {f"{path}.py", f"{path}/__init__.py"} & modules, f"{module} is imported but not in the bundle"


def contents(bundle: bytes) -> dict[str, bytes]:
    """The files of an archive; Flower stores them, here they are compressed."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_bundle_is_flower_s_own_but_no_environment_is_looked_at(tmp_path):
    """Flower's own build is the oracle; it looks at everything, and then leaves ``.venv`` and the like out."""
    app = tmp_path / "app"
    shutil.copytree(ROOT / "gfpl_flwr", app / "gfpl_flwr", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".gitignore", "client_app.py", "server_app.py"):
        shutil.copy(ROOT / name, app)
    (app / "gfpl_flwr" / "link.py").symlink_to(app / "client_app.py")
    for folder in (".venv", ".git", "gfpl_flwr/core/__pycache__"):
        (app / folder).mkdir()
        (app / folder / "module.py").write_text("1\n")
    (app / ".venv" / "pyvenv.cfg").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a library of Flower's
        whole = contents(build_fab_from_disk(app))
    assert contents(bundle_app(app)) == whole
    # An environment that the app's own patterns take in is the one difference: Flower would send it.
    (app / "gfpl_flwr" / "env").mkdir()
    (app / "gfpl_flwr" / "env" / "module.py").write_text("1\n")
    assert contents(bundle_app(app)) != whole
    (app / "gfpl_flwr" / "env" / "pyvenv.cfg").touch()
    assert contents(bundle_app(app)) == whole
