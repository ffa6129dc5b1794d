"""What a site keeps on its disk: its model and its last answer, sound or told to be damaged."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.base import Reply, Visit
from gfpl_flwr.flower import state
from gfpl_flwr.flower.inprocess import InProcessGrid
from gfpl_flwr.flower.state import SiteStore, digest
from gfpl_flwr.flower.wire import Order, SiteReply, decode_reply, encode_order, encode_reply
from gfpl_flwr.training import Counts
from gfpl_flwr.training.descent import Descent


def model(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2, 3), float(value)), "n": torch.tensor([int(value)])}


def order(visit: int, value: float = 0.0, run: str = "run") -> Order:
    return Order(run, Visit(visit, visit, visit, download=True, upload=True), {"means": torch.tensor([value])})


def answer(visit: int) -> RecordDict:
    counts = Counts(visit, "train", torch.tensor([3, 0, 5]), {"classifier": torch.tensor([1, 0, 5])})
    tensors = {
        "means": torch.tensor([[0.1, float("nan")]]),
        "labels": torch.tensor([visit]),
        "none": torch.empty(0, 4),
    }
    reply = Reply(tensors, 8, [counts], {"loss": 0.1 + 0.2, "classes": 3.0}, {"train": 1e-3})
    return encode_reply(SiteReply("camera-3", "run", visit, reply, {0: 3, 2: 5}, visit - 1))


def store_at(folder: Path, visits: range) -> SiteStore:
    store = SiteStore(folder, "run", "camera-3")
    for visit in visits:
        store.save(order(visit), model(visit), answer(visit))
    return store


def test_a_store_remembers_the_last_two_visits(tmp_path):
    assert SiteStore(tmp_path, "run", "camera-3").load(before=1) is None
    store = store_at(tmp_path, range(1, 5))
    assert sorted(p.name for p in store.folder.iterdir()) == ["visit-3.safetensors", "visit-4.safetensors"]
    saved = store.load(before=5)
    assert saved is not None
    assert saved.visit == 4
    assert saved.model.keys() == {"w", "n"}
    assert torch.equal(saved.model["w"], model(4)["w"])


def test_a_visit_asked_for_again_starts_where_it_started_before(tmp_path):
    again = store_at(tmp_path, range(1, 3)).load(before=2)
    assert again is not None
    assert again.visit == 1


def test_an_answer_comes_back_as_it_was_to_the_last_bit(tmp_path):
    store = store_at(tmp_path, range(1, 3))
    for visit in (1, 2):
        again, first = store.answer_to(order(visit)), answer(visit)
        assert again is not None
        assert again.object_id == first.object_id  # Flower's own hash of everything that would travel
    assert store.answer_to(order(3)) is None


@pytest.mark.parametrize(
    "other",
    [
        order(2, 0.5),
        Order("run", Visit(2, 2, 3, download=True, upload=True), order(2).tensors),
        Order("run", Visit(2, 2, 2, download=True, upload=True), {"mean": torch.tensor([0.0])}),
        Order("run", Visit(2, 2, 2, download=True, upload=True), {"means": torch.tensor([[0.0]])}),
    ],
    ids=["other numbers", "other rounds", "another name", "another shape"],
)
def test_another_order_for_the_same_visit_is_not_answered_from_the_disk(tmp_path, other):
    store = store_at(tmp_path, range(1, 3))
    assert digest(other) != digest(order(2))
    assert store.answer_to(order(2)) is not None
    assert store.answer_to(other) is None


@pytest.mark.parametrize("damage", ["torn", "zeros", "one bit of the model", "one bit of the answer", "empty"])
def test_a_damaged_state_is_reported_and_the_one_before_it_used(tmp_path, caplog, damage):
    store = store_at(tmp_path, range(1, 3))
    path = store.folder / "visit-2.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "torn":
        data = data[: len(data) // 2]
    elif damage == "zeros":
        data = bytearray(len(data))
    elif damage == "empty":
        data = bytearray()
    else:
        of_model, of_answer = torch.full((2, 3), 2.0), torch.tensor([0.1])
        data[data.rindex((of_model if "model" in damage else of_answer).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with caplog.at_level("WARNING", logger="flwr.gfpl"):
        saved = store.load(before=3)
        assert store.answer_to(order(2)) is None
    assert saved is not None
    assert saved.visit == 1
    assert "visit-2.safetensors is damaged" in caplog.text


def test_a_site_that_lost_everything_says_so(tmp_path, caplog):
    with caplog.at_level("WARNING", logger="flwr.gfpl"):
        assert SiteStore(tmp_path, "gone", 0).load(before=4) is None
    assert "starts from the initial one" in caplog.text


def test_a_state_that_was_copied_from_another_site_or_visit_is_not_used(tmp_path, caplog):
    store = store_at(tmp_path, range(1, 2))
    other = SiteStore(tmp_path, "run", "camera-4")
    other.folder.mkdir(parents=True)
    (other.folder / "visit-1.safetensors").write_bytes((store.folder / "visit-1.safetensors").read_bytes())
    (store.folder / "visit-2.safetensors").write_bytes((store.folder / "visit-1.safetensors").read_bytes())
    with caplog.at_level("WARNING", logger="flwr.gfpl"):
        assert other.load(before=2) is None
        saved = store.load(before=3)
    assert saved is not None
    assert saved.visit == 1
    assert "is the state of" in caplog.text


def test_a_write_that_is_cut_off_anywhere_leaves_the_state_before(tmp_path, monkeypatch):
    """Also when the power fails between the bytes and the name: the temporary file is no state."""
    store = store_at(tmp_path, range(1, 2))

    def cut(_from: Path, _to: Path) -> None:
        raise SystemExit(9)

    monkeypatch.setattr(Path, "replace", cut)
    monkeypatch.setattr(Path, "unlink", lambda _path, **_more: None)  # a dead process tidies nothing up
    with pytest.raises(SystemExit):
        store.save(order(2), model(2), answer(2))
    monkeypatch.undo()
    assert any("partial" in path.name for path in store.folder.iterdir())
    saved = store.load(before=9)
    assert saved is not None
    assert saved.visit == 1
    store.save(order(2), model(2), answer(2))
    assert store.load(before=9).visit == 2


def test_the_bytes_are_flushed_before_the_name_and_the_folder_after_it(tmp_path, monkeypatch):
    """A file system may write a name before the bytes behind it; only the order of the calls prevents that."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flush(descriptor: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append("folder" if target.is_dir() else "bytes")
        fsync(descriptor)

    def rename(source: Path, target: Path) -> Path:
        steps.append("name")
        return replace(source, target)

    monkeypatch.setattr("os.fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    store_at(tmp_path, range(1, 2))
    assert steps == ["bytes", "name", "folder"]


def test_a_folder_without_room_is_said_before_any_work(tmp_path, monkeypatch):
    store = SiteStore(tmp_path, "run", 0)
    store.reserve(model(1))

    def nearly_full(_path: Path) -> Any:
        return type("Room", (), {"f_bavail": 10, "f_frsize": 1})

    monkeypatch.setattr(state.os, "statvfs", nearly_full)
    with pytest.raises(OSError, match=r"state-dir .*site-0 has 0.00 MB free, the model needs 0.00 MB"):
        store.reserve(model(1))


# ---- through the ClientApp ----------------------------------------------------------------------------------


def ask(flat: dict[str, Any], visit: Visit, tensors: Any = None, **node: Any) -> Message:
    """Send one visit to a process that has just started and knows nothing."""
    grid = InProcessGrid([{"partition-id": 1} | {key.replace("_", "-"): value for key, value in node.items()}], flat)
    message = Message(encode_order(Order("run", visit, tensors or {})), next(iter(grid.get_node_ids())), "train")
    (reply,) = grid.send_and_receive([message])
    assert not reply.has_error(), reply.error.reason
    return reply


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """The rounds for which a model was trained or retrained, as it happens."""
    rounds: list[int] = []
    do = Descent.do.__func__

    def counted(cls, works):
        rounds.extend(work.round for work in works)
        return do(cls, works)

    monkeypatch.setattr(Descent, "do", classmethod(counted))
    return rounds


def test_a_device_answers_again_also_where_its_model_is_not_needed(small, trained, tmp_path):
    """Where a site takes over a new model in each round a device keeps its answer, and a simulated site nothing."""
    flat = small | {"algorithm": "fedavg"}
    first = parse_run(flat)[1].visits(parse_run(flat)[0])[0]
    ask(flat, first)
    ask(flat, first)
    assert trained == [1, 1]
    assert not list(Path(flat["output-dir"]).rglob("visit-*.safetensors"))
    one = ask(flat, first, state_dir=str(tmp_path / "state"))
    again = ask(flat, first, state_dir=str(tmp_path / "state"))
    assert trained == [1, 1, 1]
    assert again.content.object_id == one.content.object_id


def test_a_visit_that_is_delivered_twice_trains_once(small, trained):
    first, second = parse_run(small)[1].visits(parse_run(small)[0])[:2]
    one = ask(small, first)
    assert trained == [1, 2]
    again = ask(small, first)
    assert trained == [1, 2]
    assert again.content.object_id == one.content.object_id
    handed_down = decode_reply(one.content).reply.tensors
    ask(small, second, handed_down)
    done = len(trained)
    assert done > 2
    ask(small, second, handed_down)
    ask(small, first)  # the one before is kept as well
    assert len(trained) == done
    other = {name: tensor.clone() for name, tensor in handed_down.items()}
    other["means"] += 1
    ask(small, second, other)  # not the same order: it has to be done
    assert len(trained) == 2 * done - 2
