"""Where the start of a run goes, from the marks that its processes leave."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from gfpl_flwr.flower import marks
from gfpl_flwr.flower.launch.phases import first_step, phases_of


def written(path: Path, *lines: tuple[str, float, float]) -> Path:
    keys = ("moment", "time", "born")
    path.write_text("".join(json.dumps(dict(zip(keys, line, strict=True))) + "\n" for line in lines))
    return path


def test_phases_lie_between_the_marks_of_one_run(tmp_path):
    """The run began at 100 and ended at 130.

    Flower's process, born at 99, had both apps at 103; of two workers the one born at 107.5 was the first to
    begin a visit, at 112; the ServerApp ended at 126. The run before ended at 98, the one after begins at 132.
    """
    file = written(
        tmp_path / "marks",
        ("apps", 83.0, 79.0),
        ("visit", 90.0, 86.0),
        ("served", 96.0, 79.0),
        ("apps", 103.0, 99.0),
        ("visit", 113.0, 107.25),
        ("visit", 112.0, 107.5),
        ("served", 126.0, 99.0),
        ("apps", 134.0, 131.5),
    )
    assert phases_of(file, begun=100.0, ended=130.0) == {
        "apps": 3.0,
        "ray": 4.5,
        "workers": 4.5,
        "visits": 14.0,
        "ray_end": 4.0,
    }


def test_phases_end_where_the_marks_do(tmp_path):
    file = written(tmp_path / "marks", ("apps", 103.0, 99.0), ("served", 126.0, 99.0))
    assert phases_of(file, begun=100.0, ended=130.0) == {"apps": 3.0}
    assert phases_of(tmp_path / "none", begun=100.0, ended=130.0) == {}


def test_the_line_adds_up_what_came_before_the_first_step_and_names_ray():
    seconds = {"checks": 3.0, "superlink": 0.25, "submit": 0.05, "start": 1.5, "run": 30.0, "shutdown": 1.0}
    seconds |= {"apps": 3.0, "ray": 4.5, "workers": 4.5, "visits": 14.0, "ray_end": 4.0}
    assert first_step(seconds) == (
        "first training step after 16.8 s: imports and checks 3.0, SuperLink 0.2, bundle and request 0.1, "
        "Flower's process 1.5, import of the apps 3.0, Ray's start 4.5, start and imports of Ray's workers 4.5; "
        "Ray with its end 13.0 s"
    )
    assert first_step({"checks": 2.0}) == "first training step after 2.0 s: imports and checks 2.0"


@pytest.mark.parametrize("seconds", [{}, {"submit": 0.1, "start": 1.0, "run": 3.0}, {"checks": 2.0, "run": 3.0}])
def test_no_step_makes_no_line(seconds):
    assert first_step(seconds) == ""


def context() -> Context:
    return Context(1, 1, {}, RecordDict(), {}, 1)


def test_apps_mark_the_first_visit_of_a_process_and_the_end_of_the_server(tmp_path, monkeypatch):
    file = tmp_path / "marks"
    monkeypatch.setenv(marks.MARKS, str(file))
    marks._mark_once.cache_clear()
    visited, client, server = [], ClientApp(), ServerApp()
    client.lifespan()(marks.around_visit)
    server.lifespan()(marks.around_run)

    @client.query()
    def query(message, context):
        visited.append(message)

    @server.main()
    def main(grid, context):
        client(message, context)
        client(message, context)
        raise RuntimeError("no quorum")

    message = Message.__new__(Message)  # a run's identity would be needed to make one
    message.__dict__["_metadata"] = type("Metadata", (), {"message_type": "query"})
    with pytest.raises(RuntimeError, match="no quorum"):
        server(None, context())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(visited) == 2
    assert [line["moment"] for line in lines] == ["visit", "served"]
    assert lines[0]["time"] <= lines[1]["time"] <= time.time()


def test_nothing_is_marked_where_nobody_asked_or_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(marks.MARKS, raising=False)
    marks.mark("apps")
    monkeypatch.setenv(marks.MARKS, str(tmp_path / "no" / "folder"))
    marks.mark("apps")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_a_process_knows_when_it_was_born():
    code = "import time; time.sleep(0.3); from gfpl_flwr.flower.marks import born; print(born())"
    before = time.time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The kernel counts in ticks of a hundredth of a second, and rounds down.
    assert before - 0.05 <= float(done.stdout) <= time.time() - 0.3
