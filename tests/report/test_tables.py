"""Tables: each cell against the hand-computed runs of ``conftest``."""

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from gfpl_flwr.report import formatting, read_run, tables


def cells(table: Table) -> list[list[str]]:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def headers(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1234, "1.23 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_400, "999 kB"),
        (999_600, "1.00 MB"),
        (139_776_000, "140 MB"),
        (2_500_000_000, "2.50 GB"),
        (7_000_000_000_000_000, "7000 TB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert formatting.human_bytes(count) == text


@given(st.integers(0, 10**15))
def test_human_bytes_is_within_half_a_percent_and_short(count: int) -> None:
    number, unit = formatting.human_bytes(count).split()
    scale = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert float(number) * scale == pytest.approx(count, rel=0.005)
    assert len(number) <= 4


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0.00"), (0.5, "0.50"), (8.06, "8.1"), (1203.6, "1204")])
def test_human_seconds(seconds: float, text: str) -> None:
    assert formatting.human_seconds(seconds) == text


def test_comparison_has_one_row_a_run(folders: Any) -> None:
    runs = [read_run(folders.small(finished=False)), read_run(folders.local())]
    table = tables.comparison(runs)
    assert [" ".join(header.split()) for header in headers(table)] == [
        "run",
        "accuracy (%), mean ± std over sites",
        "rounds to 99 %",
        "messages",
        "up",
        "down",
        "time (s)",
    ]
    # Accuracy 0.8 ± 0.1 over sites 0.9 and 0.7 (site 1 stale); 620 B up, 330 B down; 2 + 1.5 + 0.25 s.
    # Local: 0.75 on both sites, reached in round 2; 20 B up, 10 B down. Only the data are shared.
    assert str(table.title) == "digits, iid"
    assert cells(table) == [
        ["small (unfinished)\ngfpl\n3 sites", "80.00 ± 10.00 *", "3", "9", "620 B", "330 B", "3.8"],
        ["local\n2 sites", "75.00 ± 0.00", "2", "2", "20 B", "10 B", "1.0"],
    ]
    assert "* a site whose last reply failed" in str(table.caption)
    assert "*" not in str(tables.comparison(runs[1:]).caption)


def test_comparison_says_shared_settings_once(folders: Any) -> None:
    first, second = read_run(folders.small("a")), read_run(folders.small("b"))
    table = tables.comparison([first, second])
    assert str(table.title) == "gfpl · digits, iid · 3 sites"
    assert [row[0] for row in cells(table)] == ["a", "b"]
    other = read_run(folders.small("c", dataset="mnist"))
    table = tables.comparison([first, other])
    assert str(table.title) == "gfpl · 3 sites"
    assert [row[0] for row in cells(table)] == ["a\ndigits, iid", "c\nmnist, iid"]


def test_comparison_tells_what_was_exchanged_and_when(folders: Any) -> None:
    exchange = {"exchange": True, "array_bytes_up": 8}
    site = [folders.reply(0)]
    runs = {
        # Exchanges after rounds 2 and 3; nothing but bookkeeping before.
        "small": folders.small(),
        "local": folders.local(),
        "once": folders.write("once", [folders.visit(1, 1, 4, site, **exchange)]),
        # The server sends a model first, for round 1.
        "model": folders.write("model", [folders.visit(1, 1, 1, site, **exchange, array_bytes_down=8)]),
        "later": folders.write("later", [folders.visit(1, 1, 3, site, **exchange, array_bytes_down=8)]),
        "down-only": folders.write("down-only", [folders.visit(1, 3, 4, site, array_bytes_down=8, retrain=True)]),
    }
    said = {name: str(tables.comparison([read_run(path)]).caption) for name, path in runs.items()}
    assert said["small"].splitlines()[0] == "small: 2 exchanges, the first after round 2"
    assert said["local"] == "local: sent no tensors"
    assert said["once"] == "once: 1 exchange, after round 4"
    assert said["later"] == "later: 1 exchange, after round 3, tensors to the sites before round 1"
    assert said["model"] == "model: 1 exchange, after round 1, tensors to the sites before round 1"
    assert said["down-only"] == "down-only: tensors to the sites before round 3"


@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit_the_terminal_with_every_number_whole(folders: Any, width: int) -> None:
    long = {"dataset": "folder:/photos/of/the/parts/on/the/belt", "partition": "n-way-k-shot"}
    runs = [
        read_run(folders.small("gfpl")),
        read_run(folders.small("a-name-of-forty-letters-" + "x" * 16, finished=False, **long)),
    ]
    for table in (tables.comparison(runs), tables.visits(runs[0]), tables.heads(runs[0])):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(table)
        text = console.export_text()
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        for row in cells(table):
            for cell in row[1:]:
                assert cell in text
        # Headers break at the places that were chosen for them.
        for header in headers(table):
            assert all(line in text for line in header.splitlines())


def test_markdown_has_the_same_cells(folders: Any) -> None:
    runs = [read_run(folders.small("a|b")), read_run(folders.local())]
    lines = tables.markdown(runs).splitlines()
    assert lines[:2] == ["digits, iid", ""]
    assert lines[2] == (
        "| run | algorithm | sites | accuracy (%), mean ± std over sites | rounds to 99 % | messages "
        "| up | down | time (s) |"
    )
    assert lines[3] == "| :--- | :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[4].startswith("| a\\|b | gfpl | 3 sites | 80.00 ± 10.00 * | 3 |")
    assert lines[5].split(" | ")[3:] == [*cells(tables.comparison(runs))[1][1:-1], "1.0 |"]
    assert lines[6:] == [
        "",
        "- a|b: 2 exchanges, the first after round 2; local: sent no tensors",
        "- \\* a site whose last reply failed counts with its last known accuracy",
    ]


def test_csv_is_exact(folders: Any) -> None:
    runs = [read_run(folders.small()), read_run(folders.write("early", [], finished=False))]
    first, early = csv.DictReader(io.StringIO(tables.csv(runs)))
    assert float(first["accuracy_mean"]) == pytest.approx(0.8, abs=1e-12)
    assert float(first["accuracy_std"]) == pytest.approx(0.1, abs=1e-12)
    numbers = (
        "rounds_to_99",
        "exchanges",
        "first_tensors_round",
        "messages",
        "bytes_up",
        "bytes_down",
        "array_bytes_up",
        "scalars_down",
        "failures",
    )
    assert [first[name] for name in numbers] == ["3", "2", "2", "9", "620", "330", "480", "60", "2"]
    assert (early["status"], early["accuracy_mean"], early["rounds_to_99"], early["sites"]) == (
        "unfinished",
        "",
        "",
        "3",
    )


def test_visits_shows_fusion_accuracy_and_failures(folders: Any) -> None:
    table = tables.visits(read_run(folders.small()))
    assert headers(table)[2:] == [
        "replies",
        "up",
        "down",
        "fused",
        "trained\n(%)",
        "retrained\n(%)",
        "time\n(s)",
    ]
    # Rounds 2 and 3, trained: 0.65 and 0.70; retrained 0.75 and 0.80. The last visit only retrains.
    assert cells(table) == [
        ["1", "1–2", "3/3", "300 B", "30 B", "10 → 4", "65.00", "75.00", "2.0"],
        ["2", "3", "2/3", "300 B", "200 B", "8 → 6", "70.00", "80.00", "1.5"],
        ["3", "retrain", "2/3", "20 B", "100 B", "–", "–", "–", "0.25"],
    ]


def test_visits_without_retraining_has_no_column_for_it(folders: Any) -> None:
    table = tables.visits(read_run(folders.local()))
    assert "retrained\n(%)" not in headers(table)
    assert cells(table) == [["1", "1–2", "2/2", "20 B", "10 B", "–", "75.00", "1.0"]]


def test_heads_side_by_side(folders: Any) -> None:
    # etf: site 0 by round 4/10, 7/10, 8/10 and site 1 0.8, 0.7, 0.7: means 0.6, 0.7, 0.75; 99 % in round 3.
    assert cells(tables.heads(read_run(folders.small(head="etf")))) == [
        ["classifier", "80.00 ± 10.00", "70.00", "90.00", "3"],
        ["etf *", "75.00 ± 5.00", "70.00", "80.00", "3"],
        ["sum", "100.00 ± 0.00", "100.00", "100.00", "1"],
    ]


def test_run_without_any_visit_still_has_tables(folders: Any) -> None:
    run = read_run(folders.write("early", [], finished=False))
    assert cells(tables.comparison([run])) == [["early (unfinished)", "–", "–", "0", "0 B", "0 B", "0.00"]]
    assert cells(tables.visits(run)) == []
    assert cells(tables.heads(run)) == []
    assert "early" in tables.markdown([run])


def test_tables_of_no_runs_are_empty() -> None:
    assert cells(tables.comparison([])) == []
    assert tables.markdown([]).count("\n") == 2
    assert tables.csv([]) == "run\n"


def test_names_are_not_read_as_markup(folders: Any) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.comparison([read_run(folders.small("[red]x"))]))
    assert "[red]x" in console.export_text()
