import sys

import numpy as np
import pytest

from gfpl_flwr.data.hub import as_partitioner
from gfpl_flwr.data.partitions import SCHEMES, partition_labels


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(ValueError, match=r"pip install 'gfpl-flwr\[hub\]'"):
        as_partitioner("iid", 3, seed=0)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_partitioner_gives_the_rows_of_the_scheme(scheme):
    pytest.importorskip("flwr_datasets", reason="extra hub is not installed")
    datasets = pytest.importorskip("datasets")
    names, writers = np.array(["cat", "dog", "emu", "fox"]), np.arange(400) % 12
    labels = np.random.default_rng(0).integers(0, 4, 400)
    table = datasets.Dataset.from_dict(
        {"row": list(range(400)), "animal": names[labels].tolist(), "who": writers.tolist()}
    )
    options = {"shots": 5, "tail_ratio": 3.0}
    partitioner = as_partitioner(scheme, 5, seed=1, label_column="animal", writer_column="who", **options)
    partitioner.dataset = table
    assert partitioner.num_partitions == 5
    empty = np.empty(0, np.int64)
    expected = partition_labels(
        labels, empty, 5, num_classes=4, scheme=scheme, seed=1, train_writers=writers, test_writers=empty,
        **options
    )  # fmt: skip
    for site, rows in enumerate(expected):
        assert partitioner.load_partition(site)["row"][:] == rows.train.tolist()
    with pytest.raises(ValueError, match="partition_id must be 0 to 4, got 5"):
        partitioner.load_partition(5)
