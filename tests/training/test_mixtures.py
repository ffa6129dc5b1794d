"""Mixtures of many sites in one call are to the bit those of each site alone."""

import torch

from gfpl_flwr.core.gmm import fit_class_mixtures, relative_floor
from gfpl_flwr.training import ClassMixtures

OPTIONS = {"num_components": 2, "max_iter": 100, "tol": 1e-3, "min_samples": 5, "min_component_samples": 5}


def work(key: int, sizes: dict[int, int], *, dim: int = 50) -> ClassMixtures:
    generator = torch.Generator().manual_seed(key)
    labels = torch.cat([torch.full((size,), label) for label, size in sizes.items()] or [torch.empty(0).long()])
    noise = torch.randn(len(labels), dim, generator=generator)
    features = (noise + labels[:, None] * 0.3 + (torch.arange(len(labels)) % 2)[:, None]).relu()
    return ClassMixtures(None, "prototypes", features, labels, relative_floor(features), OPTIONS)


def test_one_call_for_many_sites_equals_a_call_for_each():
    works = [
        work(0, {0: 100, 3: 99}),
        work(1, {1: 100, 2: 37, 4: 3}),
        work(2, {}),
        work(3, {9: 12}),
        work(4, {0: 101, 9: 250}),
    ]
    for its, bank in zip(works, ClassMixtures.do(works), strict=True):
        expected = fit_class_mixtures(its.features, its.labels, variance_floor=its.floor, **OPTIONS)
        for name, values in expected.to_tensors().items():
            assert torch.equal(getattr(bank, name), values), name


def test_only_calls_with_the_same_options_are_made_as_one():
    assert work(0, {0: 9}).kind() == work(1, {1: 20}).kind()
    assert work(0, {0: 9}).kind() != work(0, {0: 9}, dim=3).kind()
    other = ClassMixtures(None, "prototypes", torch.rand(9, 50), torch.zeros(9).long(), 0.1, OPTIONS | {"tol": 1.0})
    assert work(0, {0: 9}).kind() != other.kind()


def test_small_classes_of_correlated_features_have_the_same_bits_alone_and_beside_others():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        works = []
        for key in range(5):
            sizes = torch.randint(13, 18, (3,), generator=generator)
            labels = torch.arange(3).repeat_interleave(sizes)
            spread = torch.randn(8, 50, generator=generator)
            noise = torch.randn(len(labels), 8, generator=generator) @ spread
            features = (noise + 3 * torch.randn(3, 50, generator=generator)[labels]).relu()
            works.append(ClassMixtures(None, f"site {key}", features, labels, 1e-6, OPTIONS))
        for its, bank in zip(works, ClassMixtures.do(works), strict=True):
            (expected,) = ClassMixtures.do([its])
            for name, values in expected.to_tensors().items():
                assert torch.equal(getattr(bank, name), values), name
