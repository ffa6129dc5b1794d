"""Fusion of sites one after the other, and of shards: what a server does that never holds all replies."""

import math
import weakref

import pytest
import torch

from gfpl_flwr.core import GaussianPrototypes, fuse
from gfpl_flwr.core.fusion import FirstFit

RULES = ["closest_pair", "first_fit"]


def draw(rows, dim, seed, modes=0, dtype=torch.float64):
    """Rows around modes half a unit apart, or each by itself; the coordinates differ in what they tell."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(rows, dim, generator=generator, dtype=dtype)
    if modes:
        centres = 3 * torch.randn(modes, dim, generator=generator, dtype=dtype)
        means = 0.3 * means + centres[torch.randint(modes, (rows,), generator=generator)]
    means = means * torch.linspace(0.2, 1.5, dim, dtype=dtype)
    variances = torch.rand(rows, dim, generator=generator, dtype=dtype) + 0.2
    counts = torch.randint(1, 60, (rows,), generator=generator)
    return GaussianPrototypes(torch.zeros(rows, dtype=torch.int64), counts, means, variances)


def rows_of(bank, index):
    return GaussianPrototypes(*(value[index] for value in bank.to_tensors().values()))


def assert_same(one, other, **tolerance):
    for key, value in one.to_tensors().items():
        torch.testing.assert_close(value, other.to_tensors()[key], **(tolerance or {"rtol": 0.0, "atol": 0.0}))


def sums(bank):
    """Count, sum and sum of squares of the samples behind a bank of one class: what moments add up to."""
    counts, means, variances = (value.double() for value in (bank.counts, bank.means, bank.variances))
    first = counts[:, None] * means
    return counts.sum(), first.sum(0), (counts[:, None] * (variances + means**2)).sum(0)


@pytest.mark.parametrize(("modes", "threshold"), [(0, 0.05), (4, 0.4)])
def test_a_stream_of_sites_is_fused_as_the_joined_bank(modes, threshold):
    # 400 rows: more than the first room, than reordering and than compiled loops ask for.
    bank = draw(400, 70, 6, modes)
    labels = torch.arange(400) % 7 // 6  # six of seven rows are of class 0
    bank = GaussianPrototypes(labels, bank.counts, bank.means, bank.variances)
    whole = fuse(bank, threshold=threshold, rule="first_fit")
    for site_rows in (1, 3, 50):
        fusion = FirstFit(threshold=threshold)
        for start in range(0, 400, site_rows):
            fusion.add(rows_of(bank, slice(start, start + site_rows)))
        assert len(fusion) == len(whole)
        assert_same(fusion.result(), whole)
    assert len(whole) > 250 if modes == 0 else len(whole) < 20, len(whole)


def test_a_stream_keeps_no_bank():
    fusion = FirstFit(threshold=1.0)
    bank = draw(4, 3, 7)
    seen = weakref.ref(bank.means)
    fusion.add(bank)
    del bank
    assert seen() is None


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.4, math.inf])
@pytest.mark.parametrize("rule", RULES)
def test_shards_fused_first_conserve_count_mean_and_second_moment(rule, threshold):
    bank = draw(60, 9, 8, modes=3)
    shards = [fuse(rows_of(bank, slice(i, i + 20)), threshold=threshold, rule=rule) for i in range(0, 60, 20)]
    fused = fuse(GaussianPrototypes.concat(shards), threshold=threshold, rule=rule)
    for before, after in zip(sums(bank), sums(fused), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    if threshold == math.inf:
        assert_same(fused, fuse(bank, threshold=threshold, rule=rule), rtol=1e-11, atol=1e-11)


def test_float32_shards_lose_nothing_between_servers():
    banks = [draw(50, 9, seed, modes=3, dtype=torch.float32) for seed in (9, 10)]
    top = FirstFit(threshold=0.4)
    for bank in banks:
        shard = FirstFit(threshold=0.4)
        shard.add(bank)
        top.add(shard.result(dtype=torch.float64))
    expected = sums(GaussianPrototypes.concat(banks))
    for before, after in zip(expected, sums(top.result(dtype=torch.float64)), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_dtype_and_order_of_a_stream():
    fusion = FirstFit(threshold=0.0)
    fusion.add(GaussianPrototypes.empty(3, dtype=torch.float32))
    assert (len(fusion), fusion.result().dim) == (0, 3)
    late = draw(2, 3, 11, dtype=torch.float32)
    fusion.add(GaussianPrototypes(late.labels + 5, late.counts, late.means, late.variances))
    early = draw(2, 3, 12, dtype=torch.float32)
    fusion.add(early)
    result = fusion.result()
    assert result.labels.tolist() == [0, 0, 5, 5]
    assert torch.equal(result.means, torch.cat([early.means, late.means]))  # of float32, to the bit
    assert fusion.result(dtype=torch.float64).means.dtype == torch.float64


def test_a_stream_names_what_is_wrong():
    with pytest.raises(ValueError, match="add at least one bank"):
        FirstFit(threshold=1.0).result()
    fusion = FirstFit(threshold=1.0)
    fusion.add(draw(2, 3, 0))
    with pytest.raises(ValueError, match="expected D = 3 on cpu, got D = 4 on cpu"):
        fusion.add(draw(2, 4, 0))
    with pytest.raises(ValueError, match="threshold must be a number >= 0, got -1"):
        FirstFit(threshold=-1)
    with pytest.raises(ValueError, match="merge must be one of"):
        FirstFit(threshold=1.0, merge="x")
