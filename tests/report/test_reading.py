"""The reader: torn and damaged files, and wrong values by file, line and key."""

from pathlib import Path
from typing import Any

import pytest

from gfpl_flwr.report.reading import read_run


def test_torn_last_line_is_left_out_with_a_note(folders: Any) -> None:
    folder = folders.small(finished=False)
    path = folder / "rounds.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (1, 40, len(lines[-1]) - 2):
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        run = read_run(folder)
        assert [visit.visit for visit in run.visits] == [1, 2]
        assert run.status == "unfinished"
        assert run.notes[0] == "rounds.jsonl: line 3 was cut while it was written and is left out"
        assert "summary.json is missing" in run.notes[1]
        # Without the last reply, round 3 has the trained 0.7 of site 0 and 0.7 carried on.
        assert run.final_accuracy().mean == pytest.approx(0.7)


def test_line_cut_inside_a_character_is_torn_too(folders: Any) -> None:
    path = folders.local() / "rounds.jsonl"
    path.write_bytes(path.read_bytes() + '{"reason": "é'.encode()[:-1])
    assert len(read_run(path.parent).visits) == 1


def test_failed_run_keeps_its_reason(folders: Any) -> None:
    folder = folders.small()
    (folder / "summary.json").write_text('{"status": "failed", "reason": "no quorum in visit 4"}')
    run = read_run(folder)
    assert (run.status, run.reason) == ("failed", "no quorum in visit 4")


def test_damaged_line_elsewhere_names_file_and_line(folders: Any) -> None:
    path = folders.small() / "rounds.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:50], lines[2]]) + "\n")
    with pytest.raises(ValueError, match=r"rounds\.jsonl, line 2: expected one JSON object, got"):
        read_run(path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes_up": None}, "line 1: expected int for 'bytes_up', got None"),
        ({"bytes_up": -1}, "line 1: expected 'bytes_up' >= 0, got -1"),
        ({"messages": True}, "line 1: expected int for 'messages', got True"),
        ({"retrain": 1}, "line 1: expected bool for 'retrain', got 1"),
        ({"first_round": 9}, "line 1: expected 1 <= first_round <= last_round \\+ 1, got 9 and 2"),
        ({"seconds": {}}, "line 1: 'total' is missing"),
        ({"fusion": 3}, "line 1: expected dict for 'fusion', got 3"),
        ({"sites": [7]}, "line 1: expected one object per site in 'sites', got 7"),
        ({"sites": [{"site": 4}]}, "line 1, site 4: 'status' is missing"),
        ({"sites": [{"site": "gate"}]}, "line 1, site gate: 'status' is missing"),
        ({"sites": [{"site": " "}]}, "line 1: expected a number or a name for 'site', got ' '"),
        ({"sites": [{"site": -1}]}, "line 1: expected 'site' >= 0, got -1"),
        ({"sites": [{"site": True}]}, "line 1: expected int or str for 'site', got True"),
        ({"sites": [{"site": 1.5}]}, "line 1: expected int or str for 'site', got 1.5"),
    ],
)
def test_wrong_value_names_line_and_key(folders: Any, change: dict[str, Any], message: str) -> None:
    folder = folders.write("wrong", [folders.visit(1, 1, 2, []) | change])
    with pytest.raises(ValueError, match=message):
        read_run(folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"round": 2}, "site 0: expected rounds up to 1, got accuracy of 2"),
        ({"phase": "test"}, "site 0: expected phase train or retrain or received, got 'test'"),
        ({"total": [6]}, "site 0: expected 2 numbers for 'total', got 1"),
        ({"correct": {"etf": [1, 2, 3]}}, "site 0: expected 2 numbers for 'etf', got 3"),
        (
            {"correct": {"etf": [7, 0]}},
            r"site 0: expected at most \(6, 4\) correct in round 1, etf has \(7, 0\)",
        ),
    ],
)
def test_wrong_accuracy_names_the_site(folders: Any, entry: dict[str, Any], message: str) -> None:
    good = folders.accuracy(1, "train", [0, 1], [6, 4], classifier=[1, 1])
    folder = folders.write("wrong", [folders.visit(1, 1, 1, [folders.reply(0, good | entry)])])
    with pytest.raises(ValueError, match=message):
        read_run(folder)


def test_not_a_run_folder_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not the folder of a run: it has no config\.json and no rounds\.jsonl"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="there is no such folder"):
        read_run(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"it has no rounds\.jsonl"):
        read_run(tmp_path)
    (tmp_path / "rounds.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"config\.json: 'name' is missing"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: expected one JSON object, got \[1\]"):
        read_run(tmp_path)
