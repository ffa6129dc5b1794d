"""Inside the mixture fit: expectation-maximisation step by step, and the search over partitions."""

import itertools
import math

import numpy as np
import pytest
import torch

from gfpl_flwr.core.gmm_em import maximise
from gfpl_flwr.core.gmm_starts import improve_partitions, kmeans_starts


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(sizes, dim, seed=0, relu=False):
    """Padded problems of the given sizes, centred."""
    rows = torch.randn(len(sizes), max(sizes), dim, generator=seeded(seed), dtype=torch.float64)
    rows = rows.clamp_min(0.0) if relu else rows
    present = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    mean = (rows * present[..., None]).sum(1, keepdim=True) / torch.tensor(sizes)[:, None, None]
    return (rows - mean) * present[..., None], present


def soft(present, restarts, components, seed=0):
    shares = torch.rand(*present.shape, restarts, components, generator=seeded(seed), dtype=torch.float64).add(0.01)
    return shares / shares.sum(-1, keepdim=True) * present[..., None, None]


def partition_likelihood(rows, labels, floor):
    """Plain log-likelihood of a hard partition: weights, then one Gaussian after the other."""
    total = 0.0
    for label in set(labels):
        part = rows[[mine == label for mine in labels]]
        variance = np.maximum(part.var(0), floor)
        density = -0.5 * (np.log(2 * math.pi * variance) + (part - part.mean(0)) ** 2 / variance)
        total += density.sum() + len(part) * math.log(len(part) / len(rows))
    return total


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dim", [1, 8, 100])
def test_likelihood_rises_at_each_step(dim, relu):
    rows, present = draw([60, 25, 7], dim, relu=relu)
    trace = []
    # Any gain counts, and a loss of anything but rounding would show: tol below zero keeps every problem running.
    maximise(rows, present, soft(present, 4, 3), floor=1e-3, max_iter=40, tol=-math.inf, trace=trace)
    steps = torch.stack(trace)
    assert steps.shape == (40, 3, 4)
    assert (steps.diff(dim=0) >= -1e-10 * steps[1:].abs()).all()
    assert (steps[-1] > steps[0]).all()


def test_one_step_by_hand():
    # Samples -3, -1, 1, 3 with shares 1, 1/2, 1/2, 0 of component 0 and the rest of component 1: counts 2 and 2;
    # means (-3 - 1/2 + 1/2) / 2 = -3/2 and 3/2; mean squares (9 + 1/2 + 1/2) / 2 = 5, so variances 5 - 9/4 = 11/4.
    rows = torch.tensor([-3.0, -1.0, 1.0, 3.0], dtype=torch.float64).view(1, 4, 1)
    present = torch.ones(1, 4, dtype=torch.bool)
    first = torch.tensor([1.0, 0.5, 0.5, 0.0], dtype=torch.float64)
    shares = torch.stack([first, 1 - first], dim=-1).view(1, 4, 1, 2)
    trace = []
    fitted = maximise(rows, present, shares, floor=1e-6, max_iter=1, tol=0.0, trace=trace)
    # E-step: log odds of component 1 for x are ((x + 3/2)^2 - (x - 3/2)^2) / (2 * 11/4) = 12 x / 11.
    odds = torch.sigmoid(12 * rows[0, :, 0] / 11)
    torch.testing.assert_close(fitted.responsibilities[0, :, 0, 1], odds)
    density = lambda x, m: math.exp(-((x - m) ** 2) / 5.5) / math.sqrt(5.5 * math.pi)
    expected = sum(math.log(0.5 * density(x, -1.5) + 0.5 * density(x, 1.5)) for x in (-3, -1, 1, 3)) / 4
    assert trace[0].item() == pytest.approx(expected, rel=1e-13)
    torch.testing.assert_close(fitted.counts[0, 0, 1], odds.sum())
    torch.testing.assert_close(fitted.means[0, 0, 1, 0], (odds * rows[0, :, 0]).sum() / odds.sum())


def test_a_problem_does_not_depend_on_the_problems_beside_it():
    sizes = [50, 12, 33, 4, 50, 20]
    rows, present = draw(sizes, 6)
    shares = soft(present, 3, 2)
    options = {"floor": 1e-4, "max_iter": 60, "tol": 1e-5}
    together = maximise(rows, present, shares, **options)
    for q, size in enumerate(sizes):
        one = (rows[[q], :size], present[[q], :size], shares[[q], :size])
        alone = maximise(*one, **options)
        for mine, other in zip(alone.fields()[:4], together.fields()[:4], strict=True):
            torch.testing.assert_close(mine[0], other[q], rtol=1e-9, atol=1e-9)


def test_kmeans_finds_separated_clusters():
    # Clusters around 0, 100 and 200: any three k-means++ centres in different clusters give the partition.
    rows = torch.tensor([0.0, 1.0, 2.0, 100.0, 101.0, 200.0, 201.0, 202.0, 203.0], dtype=torch.float64)
    rows = (rows - rows.mean()).view(1, 9, 1)
    uniforms = torch.rand(1, 8, 3, generator=seeded(), dtype=torch.float64)
    clusters = kmeans_starts(rows, torch.ones(1, 9, dtype=torch.bool), 3, uniforms)
    groups = [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    for restart in clusters[0]:
        assert [len(set(restart[group].tolist())) for group in groups] == [1, 1, 1]
        assert len(set(restart.tolist())) == 3


@pytest.mark.parametrize("relu", [False, True])
def test_search_ends_where_no_single_move_helps(relu):
    sizes, components, floor = [9, 14, 11], 3, 1e-2
    rows, present = draw(sizes, 5, seed=3, relu=relu)
    start = torch.randint(components, present.shape, generator=seeded(4))
    reached = improve_partitions(rows, present, start, components, floor=floor, smallest=1.0)
    for q, size in enumerate(sizes):
        data, before, after = rows[q, :size].numpy(), start[q, :size].tolist(), reached[q, :size].tolist()
        best = partition_likelihood(data, after, floor)
        assert best >= partition_likelihood(data, before, floor)
        for i, label in itertools.product(range(size), range(components)):
            moved = [*after[:i], label, *after[i + 1 :]]
            if len(set(moved)) == len(set(after)):
                assert partition_likelihood(data, moved, floor) <= best + 1e-3


def test_search_finds_the_best_partition_of_few_points():
    # All 127 splits of 8 points in two. The search is a heuristic and starts once, at random: it must find the best
    # split in most problems.
    floor, trials = 1e-2, 40
    rows, present = draw([8] * trials, 3, seed=5)
    start = torch.randint(2, present.shape, generator=seeded(6))
    reached = improve_partitions(rows, present, start, 2, floor=floor, smallest=1.0)
    found = 0
    for q in range(trials):
        data = rows[q].numpy()
        splits = itertools.product((0, 1), repeat=7)
        best = max(partition_likelihood(data, (0, *split), floor) for split in splits)
        found += partition_likelihood(data, reached[q].tolist(), floor) >= best - 1e-6
    assert found >= 0.75 * trials


def test_search_keeps_the_least_number_of_samples():
    rows, present = draw([20, 13], 6, seed=7, relu=True)
    start = torch.arange(20).remainder(3).expand(2, 20)
    reached = improve_partitions(rows, present, start, 3, floor=1e-6, smallest=4.0)
    for labels, here in zip(reached, present, strict=True):
        assert torch.bincount(labels[here], minlength=3).min() >= 4
    assert not torch.equal(reached, start)
