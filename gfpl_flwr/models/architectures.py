"""The two extractors of the paper: a small convolutional network and ResNet-18."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from gfpl_flwr.models.dropout import Dropout

FEATURE_DIMS = {"cnn": 50, "resnet18": 512}
"""D of each architecture."""

DROPOUT = {"cnn": 0.5, "resnet18": 0.0}
"""Share of the features dropped before the classifier, as in FedProto's networks: half in its CNN, none in ResNet."""

M = TypeVar("M", bound=nn.Module)


def seeded_init(build: Callable[[], M], seed: int) -> M:
    """Build a module whose initial weights depend on the seed alone.

    torch's layers draw their initial weights from the processor's global generator, which is therefore set for the
    time of ``build`` and restored afterwards; those of GPUs are left set, and nothing here draws from them. Every
    site builds the same initial model from the broadcast seed, so that no weight travels (GFPL, section 3.1, has the
    server send the initial model once).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def build_extractor(architecture: str, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build an untrained extractor that maps images (B, channels, H, W) to features (B, D).

    Args:
        architecture: a key of :data:`FEATURE_DIMS`.
        image_shape: channels, height and width in pixels.

    Raises:
        ValueError: an unknown architecture, or images too small for it.
    """
    if architecture == "cnn":
        return _cnn(*image_shape)
    if architecture == "resnet18":
        return _resnet18(image_shape[0])
    raise ValueError(f"model {architecture!r} is unknown; known: {', '.join(FEATURE_DIMS)}")


def _cnn(channels: int, height: int, width: int) -> nn.Module:
    """FedProto's MNIST network up to its 50-dimensional features (arXiv 2105.00243, its code's ``CNNMnist``).

    Its 5 x 5 kernels need 16 pixels a side; smaller images such as scikit-learn's 8 x 8 digits get padded
    3 x 3 kernels, all else being equal.
    """
    if min(height, width) < 4:
        raise ValueError(f"the cnn needs images of at least 4 x 4 pixels, these are {height} x {width}")
    kernel, padding = (5, 0) if min(height, width) >= 16 else (3, 1)

    def after(side: int) -> int:
        return (side + 2 * padding - kernel + 1) // 2

    return nn.Sequential(
        nn.Conv2d(channels, 10, kernel, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, kernel, padding=padding),
        Dropout(20, 0.5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20 * after(after(height)) * after(after(width)), FEATURE_DIMS["cnn"]),
        nn.ReLU(),
    )


def _resnet18(channels: int) -> nn.Module:
    """torchvision's ResNet-18 without its last layer, untrained; 32 x 32 images leave it as one pixel of 512.

    torchvision is imported here, so that a device that runs the cnn needs none.
    """
    from torchvision.models import resnet18

    network: nn.Module = resnet18(weights=None)
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    network.fc = nn.Identity()
    return network
