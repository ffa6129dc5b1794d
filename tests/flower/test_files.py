"""Files that survive a power cut, and a site's store made of them."""

import pytest
import torch

from gfpl_flwr.flower.files import DamagedFileError, read_tensors, write_atomically, write_tensors
from gfpl_flwr.flower.state import SavedSite, SiteStore


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3, 4), value), "steps": torch.tensor(7)}


def test_tensors_and_facts_come_back(tmp_path):
    path = tmp_path / "deep" / "state.safetensors"
    write_tensors(path, tensors(), {"visit": 3, "name": "x"})
    back, facts = read_tensors(path)
    assert facts == {"visit": 3, "name": "x"}
    for name, tensor in tensors().items():
        assert torch.equal(back[name], tensor)
    assert [p.name for p in path.parent.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("cut", [0, 5, 60, -1])
def test_a_torn_file_is_found_out(tmp_path, cut):
    path = tmp_path / "state.safetensors"
    write_tensors(path, tensors(), {"visit": 3})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedFileError, match=r"state\.safetensors is damaged"):
        read_tensors(path)


def test_a_flipped_bit_is_found_out(tmp_path):
    path = tmp_path / "state.safetensors"
    write_tensors(path, tensors(), {"visit": 3})
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedFileError, match="checksum"):
        read_tensors(path)


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "facts.json"
    write_atomically(path, b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


def test_a_store_remembers_the_last_two_visits(tmp_path):
    store = SiteStore(tmp_path)
    assert store.load(before=1) is None
    for visit in range(1, 5):
        store.save(SavedSite(visit, tensors(visit)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["visit-3.safetensors", "visit-4.safetensors"]
    saved = store.load(before=5)
    assert saved is not None
    assert saved.visit == 4
    assert saved.model["w"][0, 0] == 4


def test_a_visit_asked_for_again_starts_where_it_started_before(tmp_path):
    store = SiteStore(tmp_path)
    for visit in (1, 2):
        store.save(SavedSite(visit, tensors(visit)))
    again = store.load(before=2)
    assert again is not None
    assert again.visit == 1


def test_a_damaged_state_is_reported_and_the_one_before_it_used(tmp_path, caplog):
    store = SiteStore(tmp_path)
    for visit in (1, 2):
        store.save(SavedSite(visit, tensors(visit)))
    (tmp_path / "visit-2.safetensors").write_bytes(b"\0" * 100)
    with caplog.at_level("WARNING", logger="flwr.gfpl"):
        saved = store.load(before=3)
    assert saved is not None
    assert saved.visit == 1
    assert "visit-2.safetensors is damaged" in caplog.text


def test_a_site_that_lost_everything_says_so(tmp_path, caplog):
    with caplog.at_level("WARNING", logger="flwr.gfpl"):
        assert SiteStore(tmp_path / "gone").load(before=4) is None
    assert "starts from the initial one" in caplog.text
