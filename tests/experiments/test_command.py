"""`gfpl table` as a user types it."""

import pytest
from typer.testing import CliRunner

from gfpl_flwr.cli import app
from gfpl_flwr.experiments.command import write as write_results


def gfpl(*words: str):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200", "GFPL_COMMAND": " ".join(["gfpl", *words])})


def test_without_a_name_it_lists_the_experiments():
    done = gfpl("table")
    assert done.exit_code == 0, done.stderr
    assert "table1" in done.stdout
    assert "fig7" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tabel1"], "unknown experiment 'tabel1': known are defaults, fig2"),
        (["table1", "--dataset", "imagenet"], "dataset 'imagenet' is unknown: known are CIFAR10, CIFAR100, FEMNIST"),
        (["table1", "--only", "method=FedSGD"], "method 'FedSGD' is unknown: known are FeSEM, FedAvg"),
        (["table1", "--only", "ways"], "--only ways: must be AXIS=VALUE"),
        (["table1", "-c", "round=3"], "unknown key 'round'"),
        (["table1", "-c", "seed=3"], "--only seed=N chooses among them"),
        (["table1", "-c", "cohort=3"], "unknown key 'cohort'"),
        (["none.toml"], "none.toml"),
    ],
)
def test_what_is_unknown_is_said_before_anything_is_run(tmp_path, words, told):
    done = gfpl("table", *words, "--output-dir", str(tmp_path / "out"), "--data-dir", str(tmp_path))
    assert done.exit_code == 2
    assert told in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_is_not_there_is_said_before_anything_is_run(write, tmp_path):
    path = write(('dataset = "digits"', 'dataset = "mine"'))
    done = gfpl("table", str(path), "--output-dir", str(tmp_path / "out"), "--data-dir", str(tmp_path))
    assert done.exit_code == 2
    assert "unknown data set 'mine'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_is_missing(write, tmp_path, data_dir):
    words = ["table", str(write()), "--dry", "--seeds", "1", "--dataset", "digits"]
    done = gfpl(*words, "--output-dir", str(tmp_path / "out"), "--data-dir", str(data_dir))
    assert done.exit_code == 0, done.stderr
    # four cells of two methods, and one more of the sweep: the other is one of the four
    assert "small: 5 runs, 0 done, 5 to do" in done.stderr
    assert "Digits, Local, n = 2, seed 1" in done.stderr


def test_runs_that_failed_are_told_and_the_rest_is_shown(write, tmp_path, data_dir):
    path = write(('GFPL = { algorithm = "gfpl" }', 'GFPL = { algorithm = "gfpl", learning-rate = 1e30 }'))
    words = ["--only", "part=methods", "--only", "ways=n = 2", "--seeds", "1", "--jobs", "1"]
    done = gfpl("table", str(path), *words, "--output-dir", str(tmp_path / "out"), "--data-dir", str(data_dir))
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "1 runs failed, see above; the same command tries them again"
    assert "lower learning-rate" in done.stderr
    assert "| Local" in (tmp_path / "out" / "small" / "methods.md").read_text()


@pytest.mark.slow
def test_what_is_written_is_all_that_is_done_and_a_changed_experiment_stands_apart(write, tmp_path, data_dir):
    words = ["table", str(write()), "--only", "part=methods", "--seeds", "1", "--jobs", "1"]
    words += ["--output-dir", str(tmp_path / "out"), "--data-dir", str(data_dir)]
    one = gfpl(*words, "--only", "method=Local", "--only", "ways=n = 2")
    assert one.exit_code == 0, one.stderr
    two = gfpl(*words, "--only", "method=Local", "--only", "ways=n = 3")
    assert two.exit_code == 0, two.stderr
    assert "n = 2" not in two.stdout  # it is printed as asked for
    table = (tmp_path / "out" / "small" / "methods.md").read_text()
    (row,) = [line for line in table.splitlines() if line.startswith("| Local")][:1]
    assert row.count("–") == 0  # and written with what was done before

    short = gfpl(*words, "--only", "method=Local", "--only", "ways=n = 2", "--rounds", "1")
    assert short.exit_code == 0, short.stderr
    assert "with rounds = 1" in short.stdout
    assert (tmp_path / "out" / "small" / "methods.md").read_text() == table
    assert "with rounds = 1" in (tmp_path / "out" / "small-rounds-1" / "methods.md").read_text()


def test_damaged_outcomes_are_put_aside_by_name_and_written_anew(two_methods, outcomes, tmp_path, capsys):
    write_results(two_methods, outcomes, tmp_path)
    path = tmp_path / "outcomes.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-300])
    write_results(two_methods, outcomes, tmp_path)
    assert path.read_text() == whole
    assert (tmp_path / "outcomes.damaged").read_text() == whole[:-300]
    assert "outcomes.jsonl, line" in capsys.readouterr().err
