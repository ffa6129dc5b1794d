import functools
import gzip
import hashlib
import http.server
import socket
import struct
import sys
import threading
import time
import types

import numpy as np
import pytest
import torch
from PIL import Image

from gfpl_flwr.data import sources
from gfpl_flwr.data.datasets import DatasetNotFoundError, load
from gfpl_flwr.data.sources import CHARACTERS, last_of_each, prepare_femnist

TORCHVISION = ["mnist", "fashion-mnist", "cifar10", "cifar100"]


def idx_files(seed: int) -> dict[str, bytes]:
    """The four files of MNIST in its published format, with 5 training and 3 test images."""
    rng = np.random.default_rng(seed)
    files = {}
    for prefix, size in (("train", 5), ("t10k", 3)):
        images, labels = rng.integers(0, 256, (size, 28, 28), np.uint8), rng.integers(0, 10, size, np.uint8)
        files[f"{prefix}-images-idx3-ubyte"] = struct.pack(">4i", 2051, size, 28, 28) + images.tobytes()
        files[f"{prefix}-labels-idx1-ubyte"] = struct.pack(">2i", 2049, size) + labels.tobytes()
    return files


def check_against_idx(dataset, files):
    images = np.frombuffer(files["train-images-idx3-ubyte"], np.uint8, offset=16).reshape(5, 1, 28, 28)
    labels = np.frombuffer(files["t10k-labels-idx1-ubyte"], np.uint8, offset=8)
    assert np.array_equal(dataset.train_images.numpy(), images)
    assert np.array_equal(dataset.test_labels.numpy(), labels)
    assert dataset.num_classes == 10
    assert len(dataset.class_names) == 10


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("network is unreachable")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", TORCHVISION)
def test_offline_a_missing_data_set_says_where_it_was_looked_for_and_how_to_get_it(tmp_path, no_network, name):
    start = time.monotonic()
    with pytest.raises(DatasetNotFoundError) as caught:
        load(name, tmp_path)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert f"{tmp_path / name}.safetensors" in message
    assert "network access" in message
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_server_that_never_answers_does_not_hang(monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sources, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not sources._answers(f"http://127.0.0.1:{silent.getsockname()[1]}/file")
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_raw_files_under_the_data_folder_need_no_download(tmp_path, no_network, name, folder):
    files = idx_files(0)
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    for file, content in files.items():
        (raw / file).write_bytes(content)
    check_against_idx(load(name, tmp_path), files)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mnist_server(tmp_path, monkeypatch):
    """A local server of MNIST's files, in place of the published one."""
    from torchvision.datasets import MNIST

    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    files, served = idx_files(1), tmp_path / "served"
    served.mkdir()
    resources = []
    for name, content in files.items():
        packed = gzip.compress(content)
        (served / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(served)))
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(MNIST, "resources", resources)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield files, served
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_is_decoded_and_leaves_only_the_prepared_file(tmp_path, mnist_server):
    files, _ = mnist_server
    before = socket.getdefaulttimeout()
    check_against_idx(load("mnist", tmp_path / "data"), files)
    assert socket.getdefaulttimeout() == before
    assert {entry.name for entry in (tmp_path / "data").iterdir()} == {"mnist.safetensors", ".mnist.lock"}


def test_a_download_that_fails_midway_is_one_clear_error(tmp_path, mnist_server):
    _, served = mnist_server
    (served / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    with pytest.raises(DatasetNotFoundError, match=r"The download failed: .*network access") as caught:
        load("mnist", tmp_path / "data")
    assert caught.value.__suppress_context__
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == [".mnist.lock"]


def test_cifars_channels_come_first(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)

    class Published:
        classes = tuple("abcdefghij")

        def __init__(self, root, train, download):
            self.data = pixels if train else pixels[:2]
            self.targets = [0, 9, 3, 3] if train else [1, 2]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Published)
    dataset = load("cifar10", tmp_path)
    assert dataset.image_shape == (3, 32, 32)
    for channel in range(3):
        assert np.array_equal(dataset.train_images[:, channel].numpy(), pixels[..., channel])
    assert dataset.test_labels.tolist() == [1, 2]
    assert dataset.class_names == tuple("abcdefghij")


def test_femnist_without_the_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(DatasetNotFoundError, match=r"femnist\.safetensors.*gfpl-flwr\[hub\]") as caught:
        load("femnist", tmp_path)
    assert caught.value.__suppress_context__


def stub_of_flwr_datasets(monkeypatch, load_split):
    stub = types.ModuleType("flwr_datasets")

    class FederatedDataset:
        def __init__(self, *, dataset, partitioners, shuffle):
            assert dataset == "flwrlabs/femnist"
            assert not shuffle  # the split below depends on the published order

        def load_split(self, split):
            assert split == "train"
            return load_split()

    stub.FederatedDataset = FederatedDataset
    monkeypatch.setitem(sys.modules, "flwr_datasets", stub)


def test_femnist_comes_through_flwr_datasets(tmp_path, monkeypatch):
    stub_of_flwr_datasets(monkeypatch, lambda: femnist_rows({"a": 10, "b": 10}))
    dataset = load("femnist", tmp_path)
    assert (len(dataset.train_images), len(dataset.test_images)) == (16, 4)  # round(0.15 * 10) = 2 a writer
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.train_writers.unique().tolist() == [0, 1]


def test_femnist_that_cannot_be_downloaded_is_one_clear_error(tmp_path, monkeypatch):
    def fail():
        raise ConnectionError("cannot reach the hub\nlong details")

    stub_of_flwr_datasets(monkeypatch, fail)
    with pytest.raises(DatasetNotFoundError, match=r"failed: cannot reach the hub\. Copy") as caught:
        load("femnist", tmp_path)
    assert caught.value.__suppress_context__


def femnist_rows(sizes: dict[str, int]) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    rows = [
        {
            "image": Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)),
            "character": int(rng.integers(62)),
            "writer_id": writer,
        }
        for writer, size in sizes.items()
        for _ in range(size)
    ]
    return [rows[place] for place in rng.permutation(len(rows))]


def test_femnist_keeps_writers_and_gives_each_a_test_split():
    # round(0.15 * 20) = 3, round(0.15 * 7) = 1, round(0.15 * 2) = 0; writers are numbered by name
    sizes, held_out = {"f0002_01": 20, "f0000_14": 7, "f0001_41": 2}, [1, 0, 3]
    rows = femnist_rows(sizes)
    prepared = prepare_femnist(rows)
    tensors = prepared.tensors
    assert torch.bincount(tensors["test_writers"], minlength=3).tolist() == held_out
    assert torch.bincount(tensors["train_writers"]).tolist() == [7 - 1, 2, 20 - 3]
    assert prepared.class_names[10] == "A"
    assert prepared.class_names[36] == "a"
    assert len(CHARACTERS) == 62
    seen = {
        (image.numpy().tobytes(), int(label), int(writer))
        for split in ("train", "test")
        for image, label, writer in zip(
            tensors[f"{split}_images"], tensors[f"{split}_labels"], tensors[f"{split}_writers"], strict=True
        )
    }
    numbers = {name: number for number, name in enumerate(sorted(sizes))}
    assert seen == {(np.asarray(row["image"]).tobytes(), row["character"], numbers[row["writer_id"]]) for row in rows}


def test_the_last_part_of_every_group():
    groups = torch.tensor([7, 3, 7, 7, 3, 7, 9, 7])
    # group 7 has rows 0 2 3 5 7, its fifth is the last; 3 has rows 1 4, at least one; 9 has a single row
    assert last_of_each(groups, 5).nonzero().flatten().tolist() == [4, 7]
