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
    "report": 4, "watch": 5, "experiments": 5, "command_line": 5, "cli_devices": 5, "cli": 6,
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
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_package_and_its_command_start_without_torch():
    assert "torch" not in modules_after("import gfpl_flwr.cli, gfpl_flwr.config")


HEAVY = {"sklearn", "ray", "pandas", "matplotlib", "torchvision", "scipy", "numba", "networkx", "sympy"}


@pytest.mark.parametrize(
    "statement",
    [
        "import flwr.supernode.cli.flwr_clientapp, client_app",  # the process of a ClientApp
        "import flwr.superlink.cli.flwr_serverapp, server_app",  # that of a ServerApp
        "import gfpl_flwr.flower.doctor.machine, gfpl_flwr.flower.doctor.server",
    ],
)
def test_a_device_needs_neither_scikit_learn_nor_ray(statement):
    assert not modules_after(statement) & HEAVY


def test_no_process_of_a_node_but_its_app_needs_torch():
    assert not modules_after("import flwr.supernode.cli, flwr.supernode.main, flwr.supercore.cli") & (
        HEAVY | {"torch"}
    )


def test_the_lock_of_devices_has_nothing_for_a_gpu_or_a_laboratory():
    lines = (PACKAGE.parent / "requirements-device.lock").read_text().splitlines()
    names = {line.partition("==")[0] for line in lines if "==" in line and not line.startswith((" ", "#"))}
    assert {"flwr", "numpy", "safetensors", "pillow", "typer", "rich"} <= names
    unwanted = {"ray", "scikit-learn", "pandas", "matplotlib", "scipy", "numba", "torch", "torchvision", "triton"}
    assert not names & unwanted
    assert not [name for name in names if name.startswith(("nvidia", "cuda"))]
    assert all(line.startswith((" ", "#")) or "==" in line for line in lines if line)  # pins, and no address
