"""Every partition as a ``flwr_datasets`` partitioner, for users of that package (extra ``hub``)."""

from typing import TYPE_CHECKING, Any

import numpy as np

from gfpl_flwr.data.partitions import partition_labels

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


def as_partitioner(
    scheme: str,
    num_sites: int,
    *,
    seed: int,
    label_column: str = "label",
    writer_column: str | None = None,
    **options: Any,
) -> "Partitioner":
    """Wrap a scheme as a ``flwr_datasets`` partitioner of one split.

    A partitioner sees a single split, so a site gets training rows only; one for the test split is a
    partitioner of its own.

    Args:
        scheme: see :func:`~gfpl_flwr.data.partitions.partition`.
        num_sites: number of partitions.
        seed: at least 0.
        label_column: column of the classes; its values are numbered in sorted order.
        writer_column: column of the people, needed by the scheme ``writers``.
        **options: see :class:`~gfpl_flwr.data.partitions.Options`.

    Raises:
        ValueError: when the package is not installed; later, what the partition raises.
    """
    try:
        from flwr_datasets.partitioner import Partitioner
    except ImportError:
        raise ValueError("as_partitioner needs the package flwr-datasets: pip install 'gfpl-flwr[hub]'") from None

    class SchemePartitioner(Partitioner):  # type: ignore[misc]
        """Rows of a site, computed when the first partition is asked for."""

        def __init__(self) -> None:
            super().__init__()
            self._rows: list[np.ndarray[Any, np.dtype[np.int64]]] | None = None

        @property
        def num_partitions(self) -> int:
            return num_sites

        def load_partition(self, partition_id: int) -> Any:
            if not 0 <= partition_id < num_sites:
                raise ValueError(f"partition_id must be 0 to {num_sites - 1}, got {partition_id}")
            if self._rows is None:
                classes, labels = np.unique(np.asarray(self.dataset[label_column]), return_inverse=True)
                writers = None
                if writer_column is not None:
                    _, writers = np.unique(np.asarray(self.dataset[writer_column]), return_inverse=True)
                sites = partition_labels(
                    labels.astype(np.int64),
                    np.empty(0, np.int64),
                    num_sites,
                    num_classes=len(classes),
                    scheme=scheme,
                    seed=seed,
                    train_writers=writers,
                    test_writers=None if writers is None else writers[:0],
                    **options,
                )
                self._rows = [site.train for site in sites]
            return self.dataset.select(self._rows[partition_id])

    return SchemePartitioner()
