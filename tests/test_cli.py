"""The `gfpl` command as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from gfpl_flwr.cli import app


def gfpl(*words: str) -> Result:
    """Call the command in this process, which saves importing torch for every call."""
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "120", "GFPL_COMMAND": " ".join(["gfpl", *words])})


def settings(**changes) -> list[str]:
    small = {"num-sites": 3, "rounds": 3, "gfpl.first-exchange": 2, "gfpl.pseudo-per-class": 10} | changes
    return [word for key, value in small.items() for word in ("-c", f"{key}={value}")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The current folder, in which a GFPL run and a Local run were made."""
    folder = tmp_path_factory.mktemp("user")
    before = Path.cwd()
    os.chdir(folder)
    for algorithm in ("gfpl", "local"):
        done = gfpl("run", "--engine", "inprocess", "--name", algorithm, *settings(algorithm=algorithm))
        assert done.exit_code == 0, done.stderr
    yield folder
    os.chdir(before)


def test_a_run_leaves_its_files_and_prints_its_table(folder):
    run = folder / "runs" / "gfpl"
    names = {path.name for path in run.iterdir()}
    assert {
        "config.json",
        "rounds.jsonl",
        "summary.json",
        "prototypes.safetensors",
        "accuracy.png",
        "communication.png",
    } <= names
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    facts = json.loads((run / "config.json").read_text())
    assert facts["engine"] == "inprocess"
    assert facts["command"].startswith("gfpl run --engine inprocess --name gfpl")
    assert (run / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_compares_runs(folder):
    done = gfpl("report", "runs/gfpl", "runs/local", "--format", "csv")
    assert done.exit_code == 0, done.stderr
    header, *rows = done.stdout.strip().splitlines()
    assert len(rows) == 2
    assert "accuracy" in header
    table = gfpl("report", "runs/gfpl", "runs/local")
    assert table.exit_code == 0, table.stderr
    assert "local" in table.stdout


def test_data_shows_who_holds_what(folder):
    done = gfpl("data", "--num-sites", "3")
    assert done.exit_code == 0, done.stderr
    assert "digits" in done.stdout


def test_config_lists_every_key(folder):
    done = gfpl("config")
    assert done.exit_code == 0, done.stderr
    for key in ("rounds", "gfpl.threshold", "gfpl.first-exchange"):
        assert key in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "-c", "rouns=3"], 2, "unknown key rouns: did you mean rounds?"),
        (["run", "-c", "rounds=three"], 2, "rounds = 'three': must be an integer >= 1"),
        (["run", "--engine", "warp"], 2, "--engine warp: must be one of flower, inprocess"),
        (["run", "nowhere"], 2, "unknown federation 'nowhere', known: local"),
        (["run", "--engine", "inprocess", "local"], 2, "a federation (local) needs --engine flower"),
        (["run", "-c", "dataset=mnits"], 2, "mnits"),
        (["run", "-c", "rounds=5"], 2, "gfpl.first-exchange = 30: must be <= rounds = 5"),
        (["run", "-c", "rounds=40", "-c", "shots=500"], 2, "n-way-k-shot"),
        (["run", "-c", "device=tpu"], 2, "device = 'tpu': must be one of auto, cpu, cuda"),
        (
            ["run", "--engine", "inprocess", "--resume", "gone", *settings()],
            2,
            "holds no run to resume",
        ),
        (["run", "--engine", "inprocess", "--name", "gfpl", *settings()], 2, "already holds a run"),
        (["run", "-c", "name=bob's"], 2, "-c name=bob's: No closing quotation"),
        (["run", "-c", "rounds 3"], 2, "'rounds' is not KEY=VALUE"),
        (["run", "-c", "batch-size=1", "-c", "model=resnet18"], 2, "batch-size = 1: must be >= 2 with resnet18"),
        (["run", "-c", "class-names=a,b"], 2, "class-names = 'a,b': only for folder: data, not 'digits'"),
        (["demo", "--engine", "warp"], 2, "--engine warp: must be one of flower, inprocess"),
        (["report", "runs/nothing"], 2, "runs/nothing"),
        (["report", "runs/gfpl", "--format", "docx"], 2, "must be table, markdown or csv"),
    ],
)
def test_a_mistake_costs_one_line_and_starts_nothing(folder, words, code, message):
    before = sorted(folder.rglob("rounds.jsonl"))
    done = gfpl(*words)
    assert done.exit_code == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert sorted(folder.rglob("rounds.jsonl")) == before


def test_a_missing_data_set_says_where_it_was_looked_for_and_how_to_get_it(folder, tmp_path, monkeypatch):
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # a port nobody listens on: no network
    done = gfpl("run", "--engine", "inprocess", "-c", "dataset=mnist", "--data-dir", str(tmp_path))
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert str(tmp_path / "mnist.safetensors") in done.stderr


def test_the_command_is_installed_and_exits_with_its_status(tmp_path):
    words = [sys.executable, "-c", "from gfpl_flwr.cli import main; main()", "run", "-c", "rounds=0"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: rounds = 0: must be an integer >= 1\n"


@pytest.mark.parametrize("command", [[], ["run"], ["demo"], ["report"], ["data"], ["config"]])
def test_help_imports_nothing_heavy(command):
    """Each of these takes up to seconds to import."""
    code = "import sys\nfrom gfpl_flwr.cli import main\ntry:\n    main()\nfinally:\n    print(*sys.modules)"
    words = [sys.executable, "-c", code, *command, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    usage, modules = done.stdout.strip().rsplit("\n", 1)
    assert " ".join(["Usage: -c", *command]) in usage
    heavy = {"torch", "torchvision", "flwr", "ray", "sklearn", "scipy", "numpy", "matplotlib", "PIL"}
    assert heavy.isdisjoint(modules.split())


def test_a_run_says_how_long_its_start_took(folder):
    done = gfpl("run", "--engine", "inprocess", "--name", "timed", *settings())
    assert done.exit_code == 0, done.stderr
    summary = json.loads((folder / "runs" / "timed" / "summary.json").read_text())
    checks = summary["launch_seconds"]["checks"]
    assert 0 < checks < 60
    assert f"timed: first training step after {checks:.1f} s: imports and checks {checks:.1f}\n" in done.stderr


def test_folders_may_be_given_as_options_too(folder, tmp_path):
    done = gfpl("run", "--engine", "inprocess", "--name", "x", *settings(**{"output-dir": tmp_path / "there"}))
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "there" / "x" / "rounds.jsonl").exists()


def test_a_run_resumes_from_its_checkpoint(folder):
    words = ["run", "--engine", "inprocess", "--name", "torn", *settings()]
    assert gfpl(*words).exit_code == 0
    run = folder / "runs" / "torn"
    whole = (run / "rounds.jsonl").read_text()
    (run / "rounds.jsonl").write_text(whole + '{"visit": 9, "torn')
    resumed = gfpl("run", "--engine", "inprocess", "--resume", "torn")  # its options are remembered
    assert resumed.exit_code == 0, resumed.stderr
    assert (run / "rounds.jsonl").read_text() == whole
