"""The app's bundle, which Flower sends to every site."""

import io
import re
import zipfile
from pathlib import Path

from gfpl_flwr.flower.launch.control import bundle_app

ROOT = Path(__file__).parents[1]


def test_the_bundle_holds_what_server_and_sites_import_and_stays_small():
    bundle = bundle_app(ROOT)
    assert len(bundle) < 300_000
    names = {name for name in zipfile.ZipFile(io.BytesIO(bundle)).namelist() if not name.startswith(".info/")}
    assert {"pyproject.toml", "client_app.py", "server_app.py"} == {name for name in names if "/" not in name}
    modules = {name for name in names if "/" in name}
    assert all(re.fullmatch(r"gfpl_flwr/.*\.py", name) for name in modules)
    assert not any(re.search(r"report|launch|cli\.py|watch", name) for name in modules)
    # whatever a bundled module imports from the package is in the bundle
    imported = {
        found
        for name in names - {"pyproject.toml"}
        for found in re.findall(r"^\s*from (gfpl_flwr[\w.]*) import", (ROOT / name).read_text(), re.MULTILINE)
    }
    for module in imported:
        path = module.replace(".", "/")
        assert {f"{path}.py", f"{path}/__init__.py"} & modules, f"{module} is imported but not in the bundle"
