"""Inside the mixture fit: expectation-maximisation step by step, and the search over partitions."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from gfpl_flwr.core.gmm_batch import EFFORTS, level
from gfpl_flwr.core.gmm_em import Space, assign, maximise, padded
from gfpl_flwr.core.gmm_search import improve_partitions
from gfpl_flwr.core.gmm_starts import axis_start, even_draws, kmeans_starts, lloyd


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problems(rows, sizes, floor=1e-6):
    return padded(rows, torch.tensor(sizes), torch.full((len(sizes),), floor, dtype=torch.float64))[0]


def draw(sizes, dim, seed=0, relu=False, floor=1e-6):
    """Centred problems of the given sizes; what stands on the padding must not matter."""
    rows = torch.randn(len(sizes), max(sizes), dim, generator=seeded(seed), dtype=torch.float64)
    return problems(rows.clamp_min(0.0) if relu else rows, sizes, floor)


def soft(data, restarts, components, seed=0):
    """Random responsibilities of the components 1 to K - 1, shape (Q, R, K - 1, L)."""
    shape = (len(data.sizes), restarts, components, data.present.shape[1])
    shares = torch.rand(shape, generator=seeded(seed), dtype=torch.float64).add(0.01)
    return (shares / shares.sum(2, keepdim=True) * data.present[:, None, None])[:, :, 1:]


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
    data = draw([60, 25, 7], dim, relu=relu, floor=1e-3)
    trace = []
    # Any gain counts, and a loss of anything but rounding would show: tol below zero keeps every problem running.
    maximise(data, soft(data, 4, 3), max_iter=40, tol=-math.inf, trace=trace)
    steps = torch.stack(trace)
    assert steps.shape == (40, 3, 4)
    assert (steps.diff(dim=0) >= -1e-10 * steps[1:].abs()).all()
    assert (steps[-1] > steps[0]).all()


def test_one_step_by_hand():
    # Samples -3, -1, 1, 3 with shares 1, 1/2, 1/2, 0 of component 0 and the rest of component 1: counts 2 and 2;
    # means (-3 - 1/2 + 1/2) / 2 = -3/2 and 3/2; mean squares (9 + 1/2 + 1/2) / 2 = 5, so variances 5 - 9/4 = 11/4.
    data = problems(torch.tensor([-3.0, -1.0, 1.0, 3.0], dtype=torch.float64).view(1, 4, 1), [4])
    shares = torch.tensor([0.0, 0.5, 0.5, 1.0], dtype=torch.float64).view(1, 1, 1, 4)
    trace = []
    fitted = maximise(data, shares, max_iter=1, tol=0.0, trace=trace)
    # E-step: log odds of component 1 for x are ((x + 3/2)^2 - (x - 3/2)^2) / (2 * 11/4) = 12 x / 11.
    odds = torch.sigmoid(12 * data.rows[0, :, 0] / 11)
    density = lambda x, m: math.exp(-((x - m) ** 2) / 5.5) / math.sqrt(5.5 * math.pi)
    expected = sum(math.log(0.5 * density(x, -1.5) + 0.5 * density(x, 1.5)) for x in (-3, -1, 1, 3)) / 4
    assert trace[0].item() == pytest.approx(expected, rel=1e-13)
    torch.testing.assert_close(fitted.counts[0, 0], torch.stack([4 - odds.sum(), odds.sum()]))
    means = (odds * data.rows[0, :, 0]).sum() / odds.sum()
    torch.testing.assert_close(fitted.means[0, 0, :, 0], torch.stack([-means, means]))
    assert assign(data, fitted)[0, 0].tolist() == [0, 0, 1, 1]


def test_steps_are_those_of_scikit_learn():
    # From the same start, with a floor that no variance reaches: after T steps the parameters are the same.
    data = draw([70], 6, seed=9, floor=1e-12)
    shares = soft(data, 1, 3, seed=2)
    first = maximise(data, shares, max_iter=1, tol=0.0)
    peer = GaussianMixture(
        3,
        covariance_type="diag",
        reg_covar=0.0,
        tol=0.0,
        max_iter=7,
        weights_init=(first.counts[0, 0] / 70).numpy(),
        means_init=first.means[0, 0].numpy(),
        precisions_init=first.variances[0, 0].reciprocal().numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that seven steps are not enough, which is what is asked of it
        peer.fit(data.rows[0].numpy())
    ours = maximise(data, shares, max_iter=8, tol=-math.inf)
    np.testing.assert_allclose(ours.means[0, 0], peer.means_, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.variances[0, 0], peer.covariances_, rtol=1e-9)
    np.testing.assert_allclose(ours.counts[0, 0] / 70, peer.weights_, rtol=1e-9)


def test_every_restart_ends_by_itself():
    data = draw([40], 5)
    shares = soft(data, 6, 3)
    together = maximise(data, shares, max_iter=60, tol=1e-4)
    for r in range(6):
        alone = maximise(data, shares[:, [r]], max_iter=60, tol=1e-4)
        torch.testing.assert_close(alone.means[:, 0], together.means[:, r], rtol=1e-9, atol=1e-9)


def test_a_problem_does_not_depend_on_the_problems_beside_it():
    sizes = [50, 12, 33, 4, 50, 20]
    data = draw(sizes, 6, floor=1e-4)
    shares = soft(data, 3, 2)
    together = maximise(data, shares, max_iter=60, tol=1e-5)
    starts = axis_start(data, 3), kmeans_starts(data, 3, 5)
    for q, size in enumerate(sizes):
        one = problems(data.rows[[q], :size], [size], 1e-4)
        alone = maximise(one, shares[[q], :, :, :size], max_iter=60, tol=1e-5)
        for key in ("counts", "means", "variances", "log_likelihood"):
            torch.testing.assert_close(getattr(alone, key)[0], getattr(together, key)[q], rtol=1e-9, atol=1e-9)
        assert torch.equal(axis_start(one, 3)[0], starts[0][q, :size])
        assert torch.equal(kmeans_starts(one, 3, 5)[0], starts[1][q, :, :size])


def test_axis_start_splits_the_widest_cluster_first():
    # Blobs at -100, 0 and 10 on a diagonal: the first cut is at the mean of all, -30, the second at that of {0, 10}.
    line = torch.tensor([-101.0, -99.0, -1.0, 1.0, 9.0, 11.0], dtype=torch.float64)
    data = problems(line[None, :, None] * torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64), [6])
    first = axis_start(data, 2)[0].tolist()
    assert first in ([0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0])
    second = axis_start(data, 3)[0].tolist()
    assert [second[0] == second[1], second[2] == second[3], second[4] == second[5]] == [True] * 3
    assert len(set(second)) == 3


def test_axis_start_of_equal_samples_is_one_cluster():
    assert axis_start(problems(torch.full((1, 5, 3), 2.5), [5]), 4).unique().tolist() == [0]


def test_lloyd_lowers_the_squared_distances_and_puts_the_largest_cluster_first():
    data = draw([80, 31], 4, seed=11)
    clusters = torch.randint(3, (2, 5, 80), generator=seeded(12))

    def spread(q, r, partition):
        here = data.rows[q, : int(data.sizes[q])]
        names = partition[q, r, : len(here)]
        return sum(((here[names == k] - here[names == k].mean(0)) ** 2).sum().item() for k in names.unique().tolist())

    better = lloyd(data, clusters, 3)
    for q, r in itertools.product(range(2), range(5)):
        assert spread(q, r, better) < spread(q, r, clusters)
    # Clusters of 1, 2 and 4 samples where nothing moves: the names go by size.
    still = problems(torch.tensor([0.0, 50, 51, 100, 101, 102, 103]).view(1, 7, 1), [7])
    named = lloyd(still, torch.tensor([0, 1, 1, 2, 2, 2, 2]).view(1, 1, 7), 3)
    assert named[0, 0].tolist() == [2, 1, 1, 0, 0, 0, 0]


def test_draws_fill_the_square_evenly():
    # 64 cells of a square grid, 640 points: chance would leave counts with a spread of sqrt(10), 3.2.
    cells = (even_draws(640, 2) * 8).long()
    counts = torch.bincount(cells[:, 0] * 8 + cells[:, 1], minlength=64)
    assert counts.min() >= 7
    assert counts.max() <= 13
    # K = 1: steps of 1 / golden ratio from 1/2.
    assert even_draws(2, 1)[:, 0].tolist() == pytest.approx(
        [0.5 + 0.6180339887498949 - 1, 0.5 + 1.2360679774997898 - 1]
    )


def test_search_is_thorough_where_samples_are_few():
    assert [level("auto", n, 2) for n in (3, 49, 50, 99, 100, 9999)] == [2, 2, 1, 1, 0, 0]
    assert [level("auto", n, 3) for n in (112, 113, 224, 225)] == [2, 1, 1, 0]
    assert [level("auto", 1, 1), level("fast", 3, 2), level("thorough", 9999, 2)] == [0, 0, len(EFFORTS) - 1]


def test_kmeans_finds_separated_clusters():
    # Clusters around 0, 100 and 200: any three k-means++ centres in different clusters give the partition.
    rows = torch.tensor([0.0, 1.0, 2.0, 100.0, 101.0, 200.0, 201.0, 202.0, 203.0], dtype=torch.float64)
    clusters = kmeans_starts(problems(rows.view(1, 9, 1), [9]), 3, 8)
    groups = [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    for restart in clusters[0]:
        assert [len(set(restart[group].tolist())) for group in groups] == [1, 1, 1]
        assert len(set(restart.tolist())) == 3


@pytest.mark.parametrize("relu", [False, True])
def test_search_ends_where_no_single_move_helps(relu):
    sizes, components, floor = [9, 14, 11], 3, 1e-2
    problem = draw(sizes, 5, seed=3, relu=relu, floor=floor)
    rows = problem.rows
    start = torch.randint(components, problem.present.shape, generator=seeded(4))
    reached = improve_partitions(problem, start, components, smallest=1.0)
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
    problem = draw([8] * trials, 3, seed=5, floor=floor)
    rows = problem.rows
    start = torch.randint(2, problem.present.shape, generator=seeded(6))
    reached = improve_partitions(problem, start, 2, smallest=1.0)
    found = 0
    for q in range(trials):
        data = rows[q].numpy()
        splits = itertools.product((0, 1), repeat=7)
        best = max(partition_likelihood(data, (0, *split), floor) for split in splits)
        found += partition_likelihood(data, reached[q].tolist(), floor) >= best - 1e-6
    assert found >= 0.75 * trials


def test_search_keeps_the_least_number_of_samples():
    problem = draw([20, 13], 6, seed=7, relu=True)
    start = torch.arange(20).remainder(3).expand(2, 20)
    reached = improve_partitions(problem, start, 3, smallest=4.0)
    for labels, here in zip(reached, problem.present, strict=True):
        assert torch.bincount(labels[here], minlength=3).min() >= 4
    assert not torch.equal(reached, start)


def test_memory_of_a_chunk_is_given_out_once():
    space = Space()
    first, second = space.take(3, 4).fill_(1.0), space.take(2, 4).fill_(2.0)
    third = space.take(50).fill_(3.0)  # more than is left: memory of its own
    assert [part.unique().tolist() for part in (first, second, third)] == [[1.0], [2.0], [3.0]]
    space.reset()
    assert space.take(2, 2).data_ptr() == first.data_ptr()


def test_memory_that_is_used_again_leaves_no_trace():
    sizes, space = [30, 9, 30, 17, 12, 30], Space()
    rows = torch.randn(6, 30, 4, generator=seeded(13), dtype=torch.float64)
    floor = torch.full((6,), 1e-6, dtype=torch.float64)
    shares = soft(problems(rows, sizes), 2, 2)
    clean = maximise(problems(rows, sizes), shares, max_iter=80, tol=1e-6)
    for _ in range(2):
        space.reset()
        space.take(1000).fill_(math.nan)
        space.reset()
        used = maximise(
            padded(rows, torch.tensor(sizes), floor, space=space)[0], shares, max_iter=80, tol=1e-6, space=space
        )
        torch.testing.assert_close(used.means, clean.means, rtol=1e-12, atol=1e-12)
