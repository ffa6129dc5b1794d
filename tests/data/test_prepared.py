import threading

import pytest
import torch
from safetensors.torch import save_file

from gfpl_flwr.data.prepared import preparing, read_prepared, write_prepared


def test_what_is_written_is_read(tmp_path, small_tensors):
    path = tmp_path / "new" / "small.safetensors"
    write_prepared(path, small_tensors, {"name": "small"})
    tensors, metadata = read_prepared(path)
    assert metadata == {"name": "small"}
    assert tensors.keys() == small_tensors.keys()
    assert all(torch.equal(tensors[name], small_tensors[name]) for name in tensors)
    assert [entry.name for entry in path.parent.iterdir()] == ["small.safetensors"]


def test_a_missing_tensor_is_named(tmp_path, small_tensors):
    del small_tensors["test_labels"]
    save_file(small_tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors lacks tensor test_labels; it has test_images"):
        read_prepared(tmp_path / "x.safetensors")


def test_a_wrong_dtype_is_named(tmp_path, small_tensors):
    small_tensors["train_labels"] = small_tensors["train_labels"].int()
    save_file(small_tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: train_labels must be int64, it is I32"):
        read_prepared(tmp_path / "x.safetensors")


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_a_truncated_file_is_said_to_be_so(tmp_path, small_tensors, size):
    path = tmp_path / "x.safetensors"
    write_prepared(path, small_tensors, {})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"x\.safetensors cannot be read, it is truncated") as caught:
        read_prepared(path)
    assert caught.value.__suppress_context__


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path, small_tensors):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot write the prepared data set .*file/x\.safetensors"):
        write_prepared(tmp_path / "file" / "x.safetensors", small_tensors, {})
    with (
        pytest.raises(ValueError, match=r"cannot write the prepared data set"),
        preparing(tmp_path / "file" / "x.safetensors"),
    ):
        pass


def test_a_failed_write_leaves_nothing_behind(tmp_path, small_tensors, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ValueError, match="disk full"):
        write_prepared(tmp_path / "x.safetensors", small_tensors, {})
    assert list(tmp_path.iterdir()) == []


def test_readers_see_a_whole_file_while_others_write(tmp_path, small_tensors):
    path = tmp_path / "x.safetensors"
    versions = [{**small_tensors, "train_images": torch.full((6, 1, 4, 4), n).byte()} for n in range(4)]
    write_prepared(path, versions[0], {})

    def write(version):
        for _ in range(10):
            write_prepared(path, version, {})

    threads = [threading.Thread(target=write, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        images = read_prepared(path)[0]["train_images"]
        assert len(images.unique()) == 1  # all bytes of one version
    for thread in threads:
        thread.join()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_one_process_at_a_time_prepares(tmp_path):
    pytest.importorskip("fcntl", reason="file locks are POSIX")
    path, order = tmp_path / "x.safetensors", []
    entered = threading.Event()

    def other():
        entered.set()
        with preparing(path):
            order.append("second")

    with preparing(path):
        thread = threading.Thread(target=other)
        thread.start()
        entered.wait()
        thread.join(timeout=0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
