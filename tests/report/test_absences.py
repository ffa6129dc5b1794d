"""Every contribution that is missing stands in the report, with its reason and its visits."""

import json
from pathlib import Path

from gfpl_flwr.report import absences, read_run
from gfpl_flwr.report.runs import Run


def run_of(folder: Path, sites: list[list[dict]], notes: list[list[dict]]) -> Run:
    keys = ("bytes", "array_bytes", "scalars")
    traffic = {f"{key}_{way}": 0 for key in keys for way in ("up", "down")} | {"messages": 3}
    lines = [
        {"visit": number, "first_round": number, "last_round": number, "retrain": False, "exchange": False}
        | {"seconds": {"total": 1.0}, "fusion": None, "sites": answers, **traffic}
        | ({"notes": noted} if noted else {})
        for number, (answers, noted) in enumerate(zip(sites, notes, strict=True), start=1)
    ]
    folder.mkdir()
    (folder / "rounds.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"name": folder.name, "config": {"algorithm": "gfpl"}}))
    (folder / "summary.json").write_text(json.dumps({"status": "completed", "reason": None}))
    return read_run(folder)


def failed(site: int | str, reason: str) -> dict:
    return {"site": site, "status": "error", "reason": reason}


def test_missing_contributions_are_joined_by_site_and_reason(tmp_path):
    ok = {"site": 0, "status": "ok"}
    run = run_of(
        tmp_path / "mine",
        [[ok, failed("camera-10", "late")], [ok, failed("camera-10", "late"), failed(2, "disk full")], [ok]],
        [[], [{"site": "camera-2", "note": "its model of visit 1 is lost"}], []],
    )
    assert absences([run]) == [
        "mine: site 2 left out of visit 2: disk full",
        "mine: site camera-10 left out of visits 1, 2: late",
        "mine: site camera-2, visit 2: its model of visit 1 is lost",
    ]


def test_where_everybody_answered_nothing_is_said(tmp_path):
    """Also of a run that was made before anything was noted."""
    assert absences([run_of(tmp_path / "mine", [[{"site": 0, "status": "ok"}]], [[]])]) == []
