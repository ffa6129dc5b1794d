"""Files that survive a power cut, and a site's store made of them."""

import pytest
import torch

from gfpl_flwr.flower.files import DamagedFileError, read_tensors, write_atomically, write_tensors


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
