"""A run's progress is read from its log, and from nothing that a site says."""

import logging

import pytest
from flwr.supercore.logger import ConsoleHandler

from gfpl_flwr.flower.progress import Progress

TOLD = [
    Progress(1, 5, 0, 4),
    Progress(2, 5, 3, 4, 0.4167, 0.0884),
    Progress(5, 5, 4, 4, 1.0, 0.0, done=True),
    Progress(3, 5, 4, 4, done=True),
]


@pytest.mark.parametrize("progress", TOLD, ids=str)
@pytest.mark.parametrize("colored", [True, False])
@pytest.mark.parametrize("timestamps", [True, False])
def test_what_was_logged_is_read(progress, colored, timestamps):
    handler = ConsoleHandler(colored=colored, timestamps=timestamps)
    record = logging.LogRecord("flwr.gfpl", logging.INFO, "", 0, "%s", (progress,), None)
    assert Progress.parse(handler.format(record) + "\n") == progress
    assert Progress.parse(str(progress)) == progress


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
@pytest.mark.parametrize("colored", [True, False])
def test_a_reason_that_reads_like_progress_is_none(level, colored):
    handler = ConsoleHandler(colored=colored)
    for reason in ("boom visit 4/4: 4/4 sites, done", "INFO :      visit 4/4: 4/4 sites, done"):
        message = f"site 1 left out of this visit: {reason}"
        record = logging.LogRecord("flwr.gfpl", level, "", 0, message, (), None)
        assert Progress.parse(handler.format(record)) is None


@pytest.mark.parametrize(
    "line", ["", "visit 1/5", "visit 1/5: 4/4 sites, done, or so", "visit 1/5: 4/4 sites\nvisit"]
)
def test_other_lines_are_none(line):
    assert Progress.parse(line) is None
