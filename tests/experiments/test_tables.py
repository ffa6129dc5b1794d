"""Tables say what the outcomes say, by hand."""

import csv
import io
import shutil
import subprocess
from dataclasses import replace

import pytest

from gfpl_flwr.experiments.cells import trained
from gfpl_flwr.experiments.outcomes import Outcome, outcome_of, read_outcomes, write_outcomes
from gfpl_flwr.experiments.sheets import Sheet, latex, markdown, rich_table
from gfpl_flwr.experiments.tables import long_csv, sheets_of, verdicts
from gfpl_flwr.report import read_run


def test_the_table_of_methods_by_hand(two_methods, outcomes):
    accuracy, sites, reach, cost = sheets_of(two_methods.parts[0], outcomes)
    assert accuracy.columns == ["method", "n = 2", "n = 3"]
    # seeds 1, 2: 81, 82 -> 81.5 ± 12.706 * 0.5; seeds 1, 2, 3: 82 ± 4.303 / sqrt(3)
    assert accuracy.rows[0] == ["Local", "81.50 ± 6.35 [2]", "82.00 ± 2.48"]
    # 83, 84 and 83, 84, 88, whose deviation is sqrt(7)
    assert accuracy.rows[1] == ["GFPL", "83.50 ± 6.35 [2]", "85.00 ± 6.57 (99.9)"]
    assert accuracy.notes[0].endswith("over 3 seeds, or as many as stand in square brackets.")
    assert sites.columns == ["method", "n = 2: std", "n = 2, to 99 %", "n = 3: std", "n = 3, to 99 %"]
    assert sites.rows[0] == ["Local", "2.0", "2", "2.0", "2"]
    assert "over 3 seeds" in reach.notes[0]
    assert reach.columns == ["method", "all", "seen", "unseen", "own", "trained"]
    assert reach.rows[0][1:4] == ["40.0 ± 0.0", "90.0 ± 0.0", "10.0 ± 0.0"]
    # two sites: 6 messages, 2 MB up and 1 MB down; 8000 numbers up in two rounds
    assert cost.rows[1] == ["GFPL", "3", "2", "1.00 MB", "500 kB", "3.00 MB", "4.00", "2"]


def test_the_table_of_a_sweep_by_hand(two_methods, outcomes):
    (sheet,) = sheets_of(two_methods.parts[1], outcomes)
    assert sheet.columns == ["P", "n = 3", "n = 3, MB"]
    assert [row[0] for row in sheet.rows] == ["1", "5"]
    assert sheet.rows[0][1:] == ["85.00 ± 6.57", "3.00 ± 0.00"]
    assert len(sheet.notes) == 1


def test_a_sweep_of_one_seed_says_that_nothing_follows_from_it(two_methods, outcomes):
    part = two_methods.only({"seed": ["1"]}).parts[1]
    (sheet,) = sheets_of(part, outcomes)
    assert sheet.notes[1].startswith("Nothing follows from one seed")


def test_what_is_missing_is_a_dash_and_a_page_without_outcomes_is_left_out(two_methods, outcomes):
    part = two_methods.parts[0]
    local = {its.key for its in part.planned if its.cell["method"] == "Local" and its.cell["ways"] == "n = 2"}
    some = {key: outcomes[key] for key in local}
    accuracy, _, reach, cost = sheets_of(part, some)
    assert accuracy.rows == [["Local", "81.50 ± 6.35", "–"], ["GFPL", "–", "– (99.9)"]]
    assert reach.notes[0].startswith("n = 2.")  # the middle of the columns that have something
    assert set(cost.rows[1][1:]) == {"–"}
    assert not list(sheets_of(part, {}))


def test_every_way_of_inference_has_its_row(two_methods, outcomes):
    part = two_methods.parts[0]
    ways = {"classifier": (0.8, 0.01), "etf": (0.7, 0.01)}
    for its in part.planned:
        if its.cell["method"] == "GFPL":
            outcomes[its.key] = replace(outcomes[its.key], accuracy=ways)
    (sheet,) = [sheet for sheet in sheets_of(part, outcomes) if "inference" in sheet.columns]
    assert [row[:3] for row in sheet.rows] == [
        ["GFPL", "classifier", "80.00 ± 0.00 [2]"],
        ["GFPL", "etf", "70.00 ± 0.00 [2]"],
    ]


def test_verdicts_are_paired_over_seeds(two_methods, outcomes):
    found = {(column, method): gap for _, column, method, gap in verdicts(two_methods.parts[0], outcomes)}
    assert found["n = 2", "Local"].mean == pytest.approx(2.0)
    assert found["n = 2", "Local"].sign == 1  # two points with both seeds
    assert found["n = 3", "Local"].mean == pytest.approx(3.0)
    assert found["n = 3", "Local"].sign == 0  # 2, 2 and 5: 3 ± 4.3


def test_verdicts_can_be_on_what_others_have_after_local_training(two_methods, outcomes):
    part = two_methods.parts[0]
    found = {(column, method): gap for _, column, method, gap in verdicts(part, outcomes, trained)}
    assert found["n = 2", "Local"].mean == pytest.approx(12.0)  # of these outcomes 10 less than at the end


def test_the_csv_has_a_row_for_each_run_and_exact_numbers(two_methods, outcomes):
    rows = list(csv.DictReader(io.StringIO(long_csv(two_methods.parts[0], outcomes))))
    assert len(rows) == 10
    first = rows[0]
    assert (first["method"], first["ways"], first["seed"]) == ("Local", "n = 2", "1")
    assert float(first["accuracy"]) == 0.81
    assert (first["bytes_up"], first["scalars_up"], first["components_out"]) == ("2000000", "8000", "10")


SHEET = Sheet("a-b", "50 % & more_of ~this", ["x", "λ ± 1"], [["a|b", "–"], ["10³", "1 → 2"]], ["one note #1"])


def test_markdown_keeps_cells_apart():
    lines = markdown(SHEET).splitlines()
    assert lines[2:6] == ["| x | λ ± 1 |", "| :--- | ---: |", "| a\\|b | – |", "| 10³ | 1 → 2 |"]
    assert lines[-1] == "- one note #1"


def test_latex_escapes_what_it_must():
    text = latex(SHEET)
    assert "50 \\% \\& more\\_of \\textasciitilde{}this" in text
    assert "x & $\\lambda$ $\\pm$ 1 \\\\" in text
    assert "10$^3$ & 1 $\\to$ 2 \\\\" in text
    assert text.count("{") == text.count("}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, which is not installed")
def test_latex_compiles(tmp_path):
    head = "\\documentclass{article}\\usepackage{booktabs}\\usepackage[utf8]{inputenc}\\begin{document}\n"
    (tmp_path / "table.tex").write_text(head + latex(SHEET) + "\\end{document}\n")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "table.tex"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()[-2000:]


def test_the_terminals_table_has_every_cell():
    table = rich_table(SHEET)
    assert [str(column.header) for column in table.columns] == ["x", "λ ± 1"]
    assert table.row_count == 2


# ---- outcomes --------------------------------------------------------------------------------------------------


def test_outcomes_come_back_as_they_were_and_in_one_order(tmp_path, outcomes):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    write_outcomes(one, outcomes.values())
    write_outcomes(other, reversed(list(outcomes.values())))
    assert one.read_bytes() == other.read_bytes()
    found = read_outcomes(one)
    assert found.keys() == outcomes.keys()
    write_outcomes(other, found.values())
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("line", ["no json", "[]", '{"key": "x"}'])
def test_a_line_that_is_no_outcome_is_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"bad.jsonl, line 1: expected the outcome of a run"):
        read_outcomes(path)


def test_an_outcome_takes_its_numbers_from_the_files_of_a_run(federate):
    path = federate(common_test_shots=5, common_test_every=2)
    run = read_run(path)
    found = outcome_of(run, key="k", options={"seed": 7})
    assert isinstance(found, Outcome)
    mean, std = found.accuracy["classifier"]
    assert (mean, std) == pytest.approx(run.final_accuracy("classifier")[1:], abs=1e-5)
    assert found.curve[-1][0] == 4
    assert [merge[0] for merge in found.merges] == [2, 3, 4]
    sent = [visit.traffic["scalars_up"] for visit in run.visits]
    assert found.up[2] == run.totals.scalars_up == sum(sent)
    assert found.exchanges == 3 == len(sent) - sent.count(0)
    assert [round for round, _ in found.common["all"]] == [2, 4]
    # ten classes of five images: what is seen and what is unseen make up all, site by site
    assert 0 <= found.final("unseen") <= found.final("all") <= found.final("seen") <= 1
