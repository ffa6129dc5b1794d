"""Run a peer's own program unchanged, on this project's split of MNIST, without what it needs besides torch.

    python -m benchmarks.peer fedproto CHECKOUT FOLDER ARGUMENT ...
    python -m benchmarks.peer pflib CHECKOUT FOLDER ARGUMENT ...

The current folder is where the program writes, FOLDER holds the data as ``benchmarks.speed_peers`` wrote it. What is
replaced, in this process and nowhere else: packages that only draw progress bars or write logs and files
(tensorboardX, tqdm, h5py, calmsize), or that another method needs (cvxpy), do nothing; FedProto's draw of each user's
samples gives the rows of this project's split; and PFLlib's network of 582,000 weights is FedProto's of 22,000, which
FedProto and this project train.
"""

import json
import runpy
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


class Nothing:
    """Takes every call and does nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __getattr__(self, name: str) -> "Nothing":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **options: Any) -> "Nothing":
        """Return nothing that matters."""
        return self

    def __enter__(self) -> "Nothing":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        import numpy as np

        return np.zeros(1)


def unwrapped(values: Iterable[Any]) -> Iterable[Any]:
    """Return what ``tqdm`` is given: no bar is drawn."""
    return values


def stand_in(name: str, **members: Any) -> None:
    """Have ``import name`` find these members."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(members)
    sys.modules[name] = module


def fedproto(checkout: Path, folder: Path) -> Path:
    """Prepare FedProto's program; return its script."""
    stand_in("tensorboardX", SummaryWriter=Nothing)
    stand_in("tqdm", tqdm=unwrapped)
    sys.path[:0] = [str(checkout / "lib"), str(checkout / "lib" / "models")]
    import numpy as np
    import sampling  # type: ignore[import-not-found]

    split = json.loads((folder / "split.json").read_text())
    train, test = ({user: np.array(rows) for user, rows in enumerate(split[part])} for part in ("train", "test"))
    classes = [np.array(labels) for labels in split["classes"]]
    sampling.mnist_noniid = lambda *arguments: (train, classes)
    sampling.mnist_noniid_lt = lambda *arguments: test
    return checkout / "exps" / "federated_main.py"


def pflib(checkout: Path, folder: Path) -> Path:
    """Prepare PFLlib's program; return its script."""
    stand_in("h5py", File=Nothing)
    stand_in("calmsize", size=float)
    stand_in("cvxpy")
    sys.path.insert(0, str(checkout / "system"))
    from flcore.trainmodel import models  # type: ignore[import-not-found]
    from torch import nn

    class Small(nn.Sequential):
        """FedProto's network for MNIST."""

        def __init__(self, **options: Any) -> None:
            super().__init__(
                nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.Dropout2d(),
                nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(320, 50), nn.ReLU(), nn.Dropout(),
            )  # fmt: skip
            self.fc = nn.Linear(50, options["num_classes"])

    models.FedAvgCNN = Small
    return checkout / "system" / "main.py"


def main() -> None:
    """Run the program with the remaining arguments."""
    peer, checkout, folder, *arguments = sys.argv[1:]
    prepare = {"fedproto": fedproto, "pflib": pflib}[peer]
    script = prepare(Path(checkout).resolve(), Path(folder).resolve())
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
