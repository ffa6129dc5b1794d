"""The numbers derived from a run, against values worked out by hand (``Folders.small``)."""

import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfpl_flwr.report.reading import read_run
from gfpl_flwr.report.runs import Failure, Traffic, display_names
from gfpl_flwr.site_names import site_order


def flat(points: list[Any]) -> list[float]:
    return [number for point in points for number in point]


def test_curve_takes_the_retrained_value_and_carries_a_failed_site_on(folders: Any) -> None:
    run = read_run(folders.small())
    # Round 1: sites 0 and 1 have 0.5 and 0.8. Round 2: 0.8 retrained, and 0.7 of the site that failed.
    # Round 3: 0.9 retrained, 0.7 carried on. Weighted by samples, round 3 would be 23 / 30 and not 0.8.
    expected = [(1, 0.65, 0.15, 2), (2, 0.75, 0.05, 2), (3, 0.8, 0.1, 2)]
    assert flat(run.curve()) == pytest.approx(flat(expected))
    assert flat(run.curve("classifier")) == flat(run.curve())


def test_curve_before_retraining_takes_trained_values_only(folders: Any) -> None:
    run = read_run(folders.small())
    # Round 2: 0.6 and 0.7. Round 3: 0.7 and 0.7 carried on.
    expected = [(1, 0.65, 0.15, 2), (2, 0.65, 0.05, 2), (3, 0.7, 0.0, 2)]
    assert flat(run.after_training()) == pytest.approx(flat(expected))
    assert run.tested_phases["retrain"] == {2, 3}


def test_heads_are_kept_apart(folders: Any) -> None:
    run = read_run(folders.small())
    assert run.heads == ("classifier", "etf", "sum")
    # The ETF head of site 0 gets one sample of ten less: 0.8; site 1 keeps 0.7.
    assert run.final_accuracy("etf").by_site == pytest.approx({0: 0.8, 1: 0.7})
    assert run.final_accuracy("sum").mean == 1.0
    with pytest.raises(ValueError, match="run small has no head 'cosine', only classifier, etf, sum"):
        run.curve("cosine")


def test_default_head_is_the_configured_one_or_the_only_one(folders: Any) -> None:
    assert read_run(folders.small("a", head="etf")).head == "etf"
    # Local is configured with "sum" like the run beside it, but has a classifier only.
    assert read_run(folders.local()).head == "classifier"


def test_final_accuracy_uses_the_last_known_and_flags_the_site(folders: Any) -> None:
    run = read_run(folders.small())
    by_site, mean, std = run.final_accuracy()
    assert by_site == pytest.approx({0: 0.9, 1: 0.7})
    assert (mean, std) == pytest.approx((0.8, 0.1))
    assert run.stale_sites == (1,)
    assert run.sites == (0, 1, 2)
    assert run.failures == [
        Failure(2, 3, 3, 1, "no reply within 60 s"),
        Failure(3, 4, 3, 1, "the node is gone"),
    ]


def test_site_that_comes_back_is_no_longer_stale(folders: Any) -> None:
    back = folders.accuracy(2, "train", [0], [4], classifier=[3])
    visits = [folders.visit(1, 1, 1, [folders.failed(0)]), folders.visit(2, 2, 2, [folders.reply(0, back)])]
    run = read_run(folders.write("back", visits))
    assert run.stale_sites == ()
    assert len(run.failures) == 1
    assert flat(run.curve()) == [2, 0.75, 0.0, 1]


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, 1), (0.9, 2), (0.99, 3), (1.0, 3)])
def test_rounds_to_a_share_of_the_final_accuracy(folders: Any, fraction: float, expected: int) -> None:
    # The curve is 0.65, 0.75, 0.8; shares of 0.8: 0.4, 0.72, 0.792, 0.8.
    assert read_run(folders.small()).rounds_to(fraction) == expected


def test_bytes_by_round_charge_a_download_to_the_round_it_retrains(folders: Any) -> None:
    # Visit 1: 30 down for round 1, 300 up after round 2. Visit 2: 200 down retrain round 2, 300 up after
    # round 3. Visit 3: 100 down retrain round 3, 20 up with the accuracy.
    expected = [Traffic(1, 0, 30), Traffic(2, 300, 230), Traffic(3, 620, 330)]
    run = read_run(folders.small())
    assert run.cumulative_bytes() == expected
    assert run.exchange_rounds == (2, 3)


def test_totals_and_first_arrays(folders: Any) -> None:
    run = read_run(folders.small())
    assert run.totals._asdict() == {
        "messages": 9,
        "bytes_up": 620,
        "bytes_down": 330,
        "array_bytes_up": 480,
        "array_bytes_down": 240,
        "scalars_up": 120,
        "scalars_down": 60,
        "seconds": 3.75,
    }
    assert run.first_array_round == 2
    assert read_run(folders.local()).first_array_round is None


def test_arrays_sent_down_before_training_count_from_the_first_round(folders: Any) -> None:
    visit = folders.visit(1, 1, 1, [folders.reply(0)], array_bytes_down=8, array_bytes_up=8, exchange=True)
    assert read_run(folders.write("averaging", [visit])).first_array_round == 1


def test_merges_by_visit_and_class(folders: Any) -> None:
    first, second = read_run(folders.small()).merges
    assert (first.visit, first.round, first.rate) == (1, 2, pytest.approx(0.6))  # (10 - 4) / 10
    assert first.by_class == {0: (6, 2), 1: (4, 2)}
    assert list(first.by_class) == [0, 1]
    assert (second.rate, second.by_class) == (0.25, {0: (5, 4), 3: (3, 2)})
    assert first.suppressed_classes == 1


def test_labels_by_site(folders: Any) -> None:
    assert read_run(folders.small()).labels == {0: {0: 30, 1: 10}, 1: {1: 40}, 2: {0: 5}}


def test_sites_are_numbers_then_names_in_the_order_that_people_count(folders: Any) -> None:
    run = read_run(folders.named())
    assert run.sites == (7, "camera-2", "camera-10", "gate")
    # Hits of four: 1, 2, 3, 4.
    by_site, mean, std = run.final_accuracy()
    assert list(by_site.items()) == [(7, 0.25), ("camera-2", 0.5), ("camera-10", 0.75), ("gate", 1.0)]
    # Deviations from 0.625: 0.375, 0.125, 0.125, 0.375; mean square 0.078125.
    assert (mean, std) == pytest.approx((0.625, 0.078125**0.5))
    assert list(run.labels) == list(run.sites)
    assert [reply.site for reply in run.visits[0].sites] == list(run.sites)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 99) | st.text("ab01", min_size=1), unique=True, max_size=8))
def test_any_sites_can_be_sorted_and_the_order_is_total(sites: list[int | str]) -> None:
    ordered = sorted(sites, key=site_order)
    assert ordered == sorted(reversed(sites), key=site_order)
    numbers = [site for site in sites if isinstance(site, int)]
    assert ordered[: len(numbers)] == sorted(numbers)


def test_failed_site_with_a_name_is_stale(folders: Any) -> None:
    entry = folders.accuracy(1, "train", [0], [4], classifier=[3])
    visits = [
        folders.visit(1, 1, 1, [folders.reply("gate", entry), folders.reply(0, entry)]),
        folders.visit(2, 2, 2, [folders.failed("gate", "rebooted"), folders.reply(0)]),
    ]
    run = read_run(folders.write("devices", visits))
    assert run.stale_sites == ("gate",)
    assert run.failures == [Failure(2, 2, 2, "gate", "rebooted")]


def test_node_that_never_said_its_site_is_a_failure_and_not_a_site(folders: Any) -> None:
    entry = folders.accuracy(1, "train", [0], [4], classifier=[3])
    visit = folders.visit(1, 1, 1, [folders.reply("node 1", entry), folders.failed("node 4711")])
    run = read_run(folders.write("unknown", [visit]))
    assert run.sites == ("node 1",)  # a name that answers is a site, whatever it looks like
    assert run.stale_sites == ()
    assert [failure.site for failure in run.failures] == ["node 4711"]


@pytest.mark.parametrize("refused_first", [False, True])
def test_refused_second_reply_leaves_the_site_fresh(folders: Any, refused_first: bool) -> None:
    entry = folders.accuracy(1, "train", [0], [4], classifier=[3])
    replies = [folders.reply(0, entry), folders.failed(0, "a second reply of the same site")]
    visit = folders.visit(1, 1, 1, replies[::-1] if refused_first else replies)
    run = read_run(folders.write("twice", [visit]))
    assert run.stale_sites == ()
    assert len(run.failures) == 1


def test_finished_run_has_no_notes(folders: Any) -> None:
    run = read_run(folders.small())
    assert (run.status, run.reason, run.notes) == ("completed", "", ())


def test_run_killed_before_its_first_visit(folders: Any) -> None:
    run = read_run(folders.write("early", [], finished=False))
    assert (run.curve(), run.cumulative_bytes(), run.rounds_to(), run.sites, run.last_round) == (
        [],
        [],
        None,
        (),
        0,
    )
    assert run.final_accuracy().by_site == {}
    assert run.totals.messages == 0


def test_equal_names_are_numbered(folders: Any) -> None:
    run, other = read_run(folders.small()), read_run(folders.local())
    assert display_names([run, other, run]) == ["small (1)", "local", "small (2)"]


@settings(max_examples=40, deadline=None)
@given(
    hits=st.lists(st.lists(st.none() | st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_curve_equals_carrying_forward_by_hand(hits: list[list[int | None]], seed: int) -> None:
    """``hits[r][s]`` of 9 samples in round r + 1 at site s, None where the site failed."""
    from_disk = []
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "config.json").write_text(json.dumps({"name": "random", "config": {}}))
        with (Path(root) / "rounds.jsonl").open("w") as file:
            for number, row in enumerate(hits, start=1):
                sites = [
                    {"site": s, "status": "late"}
                    if hit is None
                    else {"site": s, "status": "ok", "accuracy": [_entry(number, hit)]}
                    for s, hit in enumerate(row)
                ]
                random.Random(seed).shuffle(sites)
                file.write(json.dumps(_bare_visit(number, sites)) + "\n")
        from_disk = read_run(root)
    known: dict[int, float] = {}
    expected = []
    for number, row in enumerate(hits, start=1):
        known |= {s: hit / 9 for s, hit in enumerate(row) if hit is not None}
        if any(hit is not None for hit in row):
            values = list(known.values())
            expected.append((number, statistics.fmean(values), statistics.pstdev(values), len(values)))
    assert flat(from_disk.curve()) == pytest.approx(flat(expected), abs=1e-12)
    if expected:
        assert from_disk.final_accuracy()[1:] == pytest.approx(expected[-1][1:3], abs=1e-12)
    assert len(from_disk.failures) == sum(hit is None for row in hits for hit in row)
    assert from_disk.stale_sites == tuple(s for s, hit in enumerate(hits[-1]) if hit is None)


def _entry(number: int, hit: int) -> dict[str, Any]:
    return {"round": number, "phase": "train", "classes": [0], "total": [9], "correct": {"classifier": [hit]}}


def _bare_visit(number: int, sites: list[dict[str, Any]]) -> dict[str, Any]:
    keys = (
        "messages",
        "bytes_up",
        "bytes_down",
        "array_bytes_up",
        "array_bytes_down",
        "scalars_up",
        "scalars_down",
    )
    settings_ = {
        "visit": number,
        "first_round": number,
        "last_round": number,
        "retrain": False,
        "exchange": False,
    }
    return settings_ | dict.fromkeys(keys, 0) | {"seconds": {"total": 0}, "sites": sites}
