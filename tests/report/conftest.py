"""Run folders written by hand, with every number small enough to check on paper."""

import json
from pathlib import Path
from typing import Any

import pytest


class Folders:
    """Writes the folders of runs under one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    def accuracy(
        number: int, phase: str, classes: list[int], total: list[int], **correct: list[int]
    ) -> dict[str, Any]:
        return {"round": number, "phase": phase, "classes": classes, "total": total, "correct": correct}

    @staticmethod
    def reply(site: int | str, *entries: dict[str, Any], labels: dict[int, int] | None = None) -> dict[str, Any]:
        held = labels or {}
        return {
            "site": site,
            "status": "ok",
            "bytes_down": 1,
            "bytes_up": 1,
            "seconds": {"train": 0.5},
            "samples": sum(held.values()),
            "labels": {"classes": list(held), "counts": list(held.values())},
            "diagnostics": {"negative_fraction": 0.1},
            "accuracy": list(entries),
        }

    @staticmethod
    def failed(site: int | str, reason: str = "no reply within 60 s") -> dict[str, Any]:
        return {"site": site, "status": "error", "reason": reason}

    @staticmethod
    def visit(number: int, first: int, last: int, sites: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
        return {
            "visit": number,
            "first_round": first,
            "last_round": last,
            "retrain": False,
            "exchange": False,
            "messages": len(sites),
            "bytes_down": 10,
            "bytes_up": 20,
            "array_bytes_down": 0,
            "array_bytes_up": 0,
            "scalars_down": 0,
            "scalars_up": 0,
            "seconds": {"total": 1.0, "wait_for_nodes": 0.0, "sites": 0.9, "aggregate": 0.01},
            "fusion": None,
            "sites": sites,
        } | changes

    def write(self, name: str, visits: list[dict[str, Any]], *, finished: bool = True, **settings: Any) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True)
        config = {
            "algorithm": "gfpl",
            "dataset": "digits",
            "partition": "iid",
            "num-sites": 3,
            "head": "classifier",
        }
        about = {"name": name, "app_version": "0.1.0", "engine": "inprocess", "config": config | settings}
        (folder / "config.json").write_text(json.dumps(about))
        (folder / "rounds.jsonl").write_text("".join(json.dumps(visit) + "\n" for visit in visits))
        if finished:
            summary = {"status": "completed", "reason": None, "seconds": 9.0, "messages": 9}
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    def small(self, name: str = "small", *, finished: bool = True, **settings: Any) -> Path:
        """Three sites, three rounds: site 1 fails from the second visit on, site 2 has no test data.

        Classifier, correct / total:
                  round 1   round 2   round 2 retrained   round 3   round 3 retrained
          site 0   5/10      6/10           8/10            7/10          9/10
          site 1  16/20     14/20           failed          failed        failed
          site 2    0/0       0/0            0/0             0/0           0/0
        """

        def zero(number: int, phase: str, first: int, second: int) -> dict[str, Any]:
            return self.accuracy(
                number, phase, [0, 1], [6, 4], classifier=[first, second], etf=[first - 1, second], sum=[6, 4]
            )

        def one(number: int, hits: int) -> dict[str, Any]:
            return self.accuracy(number, "train", [1], [20], classifier=[hits], etf=[hits], sum=[20])

        def two(number: int, phase: str) -> dict[str, Any]:
            return self.accuracy(number, phase, [0], [0], classifier=[0], etf=[0], sum=[0])

        fusion = {"merge_rate": 0.6, "suppressed_classes": 1, "by_class": {"1": [4, 2], "0": [6, 2]}}
        first = self.visit(
            1,
            1,
            2,
            [
                # Out of order on purpose: the reader sorts.
                self.reply(1, one(1, 16), one(2, 14), labels={1: 40}),
                self.reply(0, zero(1, "train", 3, 2), zero(2, "train", 4, 2), labels={0: 30, 1: 10}),
                self.reply(2, two(1, "train"), two(2, "train"), labels={0: 5}),
            ],
            exchange=True,
            bytes_down=30,
            bytes_up=300,
            array_bytes_up=240,
            scalars_up=60,
            fusion=fusion | {"components_in": 10, "components_out": 4},
            seconds={"total": 2.0},
        )
        second = self.visit(
            2,
            3,
            3,
            [
                self.reply(0, zero(2, "retrain", 5, 3), zero(3, "train", 4, 3), labels={0: 30, 1: 10}),
                self.failed(1),
                self.reply(2, two(2, "retrain"), two(3, "train"), labels={0: 5}),
            ],
            retrain=True,
            exchange=True,
            bytes_down=200,
            bytes_up=300,
            array_bytes_down=160,
            array_bytes_up=240,
            scalars_down=40,
            scalars_up=60,
            fusion=fusion | {"components_in": 8, "components_out": 6, "by_class": {"0": [5, 4], "3": [3, 2]}},
            seconds={"total": 1.5},
        )
        third = self.visit(
            3,
            4,
            3,
            [
                self.reply(0, zero(3, "retrain", 5, 4), labels={0: 30, 1: 10}),
                self.failed(1, "the node is gone"),
                self.reply(2, two(3, "retrain"), labels={0: 5}),
            ],
            retrain=True,
            bytes_down=100,
            array_bytes_down=80,
            scalars_down=20,
            seconds={"total": 0.25},
        )
        return self.write(name, [first, second, third], finished=finished, **settings)

    def local(self, name: str = "local") -> Path:
        """Local on two sites: one visit, two rounds, 30 bytes of bookkeeping, 0.5 then 0.75 on both sites."""
        sites = [
            self.reply(
                site,
                self.accuracy(1, "train", [site], [8], classifier=[4]),
                self.accuracy(2, "train", [site], [8], classifier=[6]),
            )
            for site in (0, 1)
        ]
        return self.write(name, [self.visit(1, 1, 2, sites)], algorithm="local", head="sum")

    def named(self, name: str = "named", **settings: Any) -> Path:
        """Devices with names, and a number among them, out of order; accuracies 1, 2, 3 and 4 of 4."""
        sites = [
            self.reply(site, self.accuracy(1, "train", [0], [4], classifier=[hits]), labels={0: hits})
            for site, hits in (("camera-10", 3), ("camera-2", 2), (7, 1), ("gate", 4))
        ]
        return self.write(name, [self.visit(1, 1, 1, sites)], **settings)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "runs")
