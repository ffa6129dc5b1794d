"""The compiled kernel gives what torch gives, loads only where it is used, and does without a cache."""

import subprocess
import sys

import pytest
import torch

from gfpl_flwr.core import fit_class_mixtures, gmm_batch

COMPILED = pytest.param(
    "numba",
    marks=pytest.mark.skipif(not gmm_batch._has_numba(), reason='numba (extra "fast") is not installed'),
)
needs_numba = pytest.mark.skipif(not gmm_batch._has_numba(), reason='numba (extra "fast") is not installed')


def relu_classes(sizes, dim, seed=0, dtype=torch.float32):
    """Classes of the given sizes behind a ReLU, a fifth of the units dead."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    parts = [
        (draw(dim) + draw(size, 4) @ draw(4, dim) / 2 + 0.3 * draw(size, dim)).clamp_min(0.0)
        * (torch.rand(dim, generator=generator) > 0.2)
        for size in sizes
    ]
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return torch.cat(parts).to(dtype), labels


def assert_same(one, other, **tolerance):
    for key, value in one.to_tensors().items():
        torch.testing.assert_close(value, other.to_tensors()[key], **tolerance)


@needs_numba
@pytest.mark.parametrize("search", ["fast", "auto"])
@pytest.mark.parametrize("components", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_gives_what_torch_gives(search, components, dtype):
    # Sizes on both sides of the bounds of the search, with an odd dimension, and sizes that four does not divide.
    features, labels = relu_classes([1, 2, 7, 40, 61, 99, 130, 230], 27, dtype=dtype)
    options = {"num_components": components, "search": search, "variance_floor": 1e-4}
    one, other = (fit_class_mixtures(features, labels, kernel=kernel, **options) for kernel in ("numba", "torch"))
    # Both compute in float64, and differ in the order of their sums; in float32 the last bit may be rounded over.
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 3e-7, "atol": 3e-7}
    assert_same(one, other, **tolerance)


@needs_numba
def test_kernel_is_insensitive_to_an_offset():
    features, labels = relu_classes([60, 120], 16, dtype=torch.float64)
    near = fit_class_mixtures(features, labels, kernel="numba")
    far = fit_class_mixtures(features + 1e4, labels, kernel="numba")
    torch.testing.assert_close(far.variances, near.variances, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(far.means, near.means + 1e4, rtol=0.0, atol=1e-8)


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernel_takes_half_precision(dtype):
    features, labels = relu_classes([120], 8)
    bank = fit_class_mixtures(features.to(dtype), labels, kernel="numba")
    exact = fit_class_mixtures(features.to(dtype).double(), labels, kernel="torch")
    assert bank.means.dtype == dtype
    torch.testing.assert_close(bank.means.double(), exact.means, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kernel", [COMPILED, "torch"])
@pytest.mark.parametrize("components", [2, 3])
def test_a_class_does_not_depend_on_the_classes_beside_it(kernel, components):
    features, labels = relu_classes([1, 3, 17, 50, 80, 99, 100, 140, 230], 20, dtype=torch.float64)
    options = {"num_components": components, "kernel": kernel, "min_component_samples": 3}
    together = fit_class_mixtures(features, labels, **options)
    assert together.classes == tuple(range(1, 9))
    for label in together.classes:
        alone = fit_class_mixtures(features[labels == label], labels[labels == label], **options)
        assert_same(alone, together.of_class(label), rtol=1e-9, atol=1e-9)


@needs_numba
def test_a_cache_that_cannot_be_written_does_no_harm(monkeypatch):
    from gfpl_flwr.core import gmm_kernel

    namespace = {}
    # numba has no place to keep the code of a file that does not exist.
    exec(compile("def double(x):\n    return 2 * x", "/nowhere/at/all.py", "exec"), namespace)
    with pytest.raises(RuntimeError, match="cannot cache"):
        gmm_kernel.numba.njit(cache=True)(namespace["double"])
    assert gmm_kernel._compiled(namespace["double"])(21) == 42


def test_numba_is_not_imported_before_it_is_used():
    code = "import gfpl_flwr.core, sys; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_numba_torch_fits_and_numba_is_refused(monkeypatch):
    monkeypatch.setattr(gmm_batch, "_has_numba", lambda: False)
    features, labels = relu_classes([30], 5)
    monkeypatch.setitem(sys.modules, "gfpl_flwr.core.gmm_kernel", None)  # an import of it would fail
    assert len(fit_class_mixtures(features, labels)) == 2
    with pytest.raises(ValueError, match=r'needs the package numba \(extra "fast"\)'):
        fit_class_mixtures(features, labels, kernel="numba")


def test_kernel_is_refused_away_from_the_processor(monkeypatch):
    monkeypatch.setattr(gmm_batch, "_has_numba", lambda: True)
    with pytest.raises(ValueError, match="features on the CPU, they are on meta"):
        gmm_batch.compiled_kernel("numba", 1 << 26, torch.device("meta"))
    assert not gmm_batch.compiled_kernel("auto", 1 << 26, torch.device("meta"))
    assert gmm_batch.compiled_kernel("auto", 1 << 26, torch.device("cpu"))
    assert not gmm_batch.compiled_kernel("auto", (1 << 26) - 1, torch.device("cpu"))
