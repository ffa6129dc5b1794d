"""What a trained site makes of images and prototypes, as points of the plane through three vertices of the ETF.

Three vertices of a simplex lie in one plane, as an equilateral triangle. Projected features ``mu_hat`` (GFPL,
equation 11) are unit vectors around them, shown by their shadow on that plane: nothing is fitted to draw them.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfpl_flwr import seeding
from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.core.prototypes import GaussianPrototypes
from gfpl_flwr.core.pseudo import sample
from gfpl_flwr.experiments.outcomes import SCENE
from gfpl_flwr.flower.files import read_tensors, write_json
from gfpl_flwr.flower.site_setup import build_site, common_test_of, initial_model, open_dataset, partition_of
from gfpl_flwr.flower.state import SiteStore
from gfpl_flwr.models import DualClassifier
from gfpl_flwr.training import Features, Images

PSEUDO, DIGITS = 60, 4


def write_scene(folder: Path, options: Mapping[str, Any], data_dir: Path) -> None:
    """Write ``scene.json`` into the folder of a finished GFPL run whose sites' models are still there.

    It holds three classes, the vertices of their plane, and three sets of points with their labels: test images of
    the classes as a site sees them that holds all three, pseudo-features sampled from the last fused prototypes
    through the projection of that site, and the same images as a site sees them that holds the fewest of the three.

    Raises:
        ValueError: no site holds three classes, or the run has no projection.
    """
    config, algorithm = parse_run(options)
    dataset = open_dataset(config, data_dir)
    algorithm = algorithm.resolve(config, dataset.num_classes)
    shares = partition_of(config, dataset, config.num_sites)
    held = [sorted(set(dataset.train_labels[torch.as_tensor(share.train)].tolist())) for share in shares]
    knows = next((site for site, classes in enumerate(held) if len(classes) >= 3), None)
    if knows is None:
        raise ValueError("no site holds three classes, there is no plane to show")
    classes = held[knows][:3]
    lacks = min(range(len(held)), key=lambda site: len(set(classes) & set(held[site])))
    rows = common_test_of(config, dataset)
    if rows is None:
        raise ValueError("common-test-shots = 0: there are no images to show")
    chosen = [int(row) for row in rows if int(dataset.test_labels[row]) in classes]
    key = json.loads((folder / "config.json").read_text())["key"]
    first = initial_model(config, algorithm, dataset.image_shape, dataset.num_classes)
    if not isinstance(first, DualClassifier):
        raise ValueError("the run has no projection to show: gfpl.dual-classifier must be true")
    vertices = first.etf.T[classes]
    plane = _plane(vertices)
    points: dict[str, Any] = {}
    for name, place in (("holds", knows), ("lacks", lacks)):
        model = copy.deepcopy(first)
        saved = SiteStore(folder.parent / "site-models", key, place).load(before=1 << 30)
        if saved is None:
            raise ValueError(f"site {place} has no model any more")
        model.load_state_dict(dict(saved.model))
        site = build_site(config, dataset, model, place, place, len(shares), torch.device("cpu"))
        images = Images(dataset.test_images[chosen], dataset.test_labels[chosen], site.test.mean, site.test.std)
        (features,) = Features.do([Features(site, "evaluate", images)])
        points[name] = _shadow(model, features, images.labels, plane) | {"site": place, "classes": held[place]}
        if name == "holds":
            bank = GaussianPrototypes.from_tensors(read_tensors(folder / "prototypes.safetensors")[0])
            bank = bank.rows(torch.isin(bank.labels, torch.tensor(classes)))
            pseudo, labels = sample(bank, per_class=PSEUDO, generator=seeding.generator(config.seed, "scene"))
            points["prototypes"] = _shadow(model, pseudo, labels, plane)
            points["means"] = _shadow(model, bank.means, bank.labels, plane)
    corners = _rounded((vertices - plane[0]) @ plane[1].T)
    write_json(folder / SCENE, {"classes": classes, "vertices": corners, **points})


def _plane(vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Return centre (P,) and orthonormal axes (2, P) of the plane through three vertices (3, P), the first on top."""
    centre = vertices.mean(0)
    up = torch.nn.functional.normalize(vertices[0] - centre, dim=0)
    across = vertices[1] - centre
    return centre, torch.stack([torch.nn.functional.normalize(across - (across @ up) * up, dim=0), up])


@torch.no_grad()
def _shadow(
    model: DualClassifier, features: Tensor, labels: Tensor, plane: tuple[Tensor, Tensor]
) -> dict[str, Sequence[Any]]:
    centre, axes = plane
    return {"points": _rounded((model.projected(features) - centre) @ axes.T), "labels": labels.tolist()}


def _rounded(points: Tensor) -> list[list[float]]:
    return [[round(value, DIGITS) for value in point] for point in points.tolist()]
