"""Imports go down only, and the heavy packages stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gfpl_flwr"
FLOORS = {
    "config": 0, "dataset_settings": 0, "seeding": 0,
    "site_names": 0, "core": 0, "models": 1, "data": 1, "training": 2, "algorithms": 3, "flower": 4,
    "report": 4, "watch": 5, "command_line": 5, "cli_devices": 5, "cli": 6,
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def own_part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_points_up(path):
    part = own_part(path)
    if part == "__init__":
        assert imports(path) <= {"os"}
        return
    for module in imports(path):
        if module.startswith("gfpl_flwr."):
            other = part_of(module)
            if other in FLOORS:
                assert FLOORS[other] <= FLOORS[part], f"{part} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_flower_folder_imports_flwr(path):
    if own_part(path) != "flower":
        assert not {module for module in imports(path) if module.split(".")[0] == "flwr"}


def test_core_is_mathematics_only():
    allowed = {
        "torch",
        "gfpl_flwr",
        "math",
        "__future__",
        "dataclasses",
        "collections",
        "typing",
        "functools",
        "itertools",
        "types",
    }
    for path in (PACKAGE / "core").glob("*.py"):
        compiled = {"numpy", "numba"} if "kernel" in path.stem else set()
        assert {module.split(".")[0] for module in imports(path)} <= allowed | compiled, path


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_package_and_its_command_start_without_torch():
    assert "torch" not in modules_after("import gfpl_flwr.cli, gfpl_flwr.config")


def test_a_device_needs_neither_scikit_learn_nor_ray():
    loaded = modules_after("import gfpl_flwr.flower.client")
    assert not loaded & {"sklearn", "ray", "pandas", "matplotlib", "torchvision", "scipy"}
