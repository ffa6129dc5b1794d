"""On a CUDA device the mathematics gives what it gives on the processor."""

import math

import pytest
import torch

from gfpl_flwr.core import (
    GaussianPrototypes,
    directions_of,
    distance,
    fit_class_mixtures,
    fuse,
    hybrid_loss,
    log_likelihood,
    sample,
    simplex_etf,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bank(dtype):
    labels = torch.arange(12) % 3
    means = torch.randn(12, 6, generator=seeded(), dtype=dtype)
    variances = torch.rand(12, 6, generator=seeded(1), dtype=dtype) + 0.1
    return GaussianPrototypes(labels, torch.arange(1, 13), means, variances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", ["closest_pair", "first_fit"])
@pytest.mark.parametrize("threshold", [0.0, 0.4, math.inf])
def test_fusion(dtype, rule, threshold):
    here = fuse(bank(dtype), threshold=threshold, rule=rule)
    there = fuse(bank(dtype).to(device="cuda"), threshold=threshold, rule=rule)
    assert there.means.is_cuda
    for key, value in here.to_tensors().items():
        torch.testing.assert_close(there.to_tensors()[key].cpu(), value)


def test_distance():
    rows = bank(torch.float64)
    here = distance(rows.means, rows.variances, rows.means, rows.variances)
    means, variances = rows.means.cuda(), rows.variances.cuda()
    torch.testing.assert_close(distance(means, variances, means, variances).cpu(), here)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("components", [1, 2, 3])
def test_mixture_fit(dtype, components):
    # Separated blobs: both devices must find the same ones.
    side = (torch.arange(300) % 3)[:, None] * 20.0
    features = (side + torch.randn(300, 8, generator=seeded(2))).to(dtype)
    labels = torch.arange(300) // 150
    options = {"num_components": components, "min_component_samples": 5}
    here = fit_class_mixtures(features, labels, generator=seeded(3), **options)
    for generator in (seeded(3), torch.Generator("cuda").manual_seed(3)):
        there = fit_class_mixtures(features.cuda(), labels.cuda(), generator=generator, **options)
        likelihood = log_likelihood(there, features.cuda(), labels.cuda())
        assert likelihood >= log_likelihood(here, features, labels) - 1e-3
        assert there.means.is_cuda
        assert there.means.dtype == dtype


def test_sampling_and_frame_take_generators_of_both_devices():
    rows = bank(torch.float32).to(device="cuda")
    for generator in (seeded(4), torch.Generator("cuda").manual_seed(4)):
        features, labels = sample(rows, per_class=5, generator=generator)
        assert features.is_cuda
        assert labels.is_cuda
        assert features.shape == (15, 6)
        assert simplex_etf(4, 6, generator=generator).device.type == generator.device.type


def test_loss():
    etf = simplex_etf(4, 6, generator=seeded(5))
    logits, projected = torch.randn(7, 4, generator=seeded(6)), torch.randn(7, 6, generator=seeded(7))
    labels = torch.arange(7) % 4
    here = hybrid_loss(logits, directions_of(projected), labels, etf, dr_weight=1.0)
    there = hybrid_loss(logits.cuda(), directions_of(projected.cuda()), labels.cuda(), etf.cuda(), dr_weight=1.0)
    torch.testing.assert_close(there.cpu(), here)
