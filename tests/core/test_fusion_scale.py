"""Fusion of many components: every way to search against a slow reference, ties, extremes and memory."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gfpl_flwr.core import GaussianPrototypes, bhattacharyya, distance, fuse, fusion_closest_pair, fusion_search
from gfpl_flwr.core import fusion_first_fit as first_fit
from gfpl_flwr.core.bhattacharyya import Gaussians

RULES = ["closest_pair", "first_fit"]
MERGES = ["moment", "average"]
SEARCHES = ["whole", "looks", "compiled"]


def use(patch, search):
    """Make even small classes be searched in one way: whole rows, in two looks, or by the compiled loops."""
    if search == "compiled" and fusion_search.kernels() is None:
        pytest.skip("the compiled loops need numba, the extra `fast`")
    for module in (fusion_search, first_fit):
        patch.setattr(module, "COMPILED_FROM_ROWS", 0)
    if search != "compiled":
        for module in (fusion_search, first_fit):
            patch.setattr(module, "kernels", lambda: None)
    patch.setattr(fusion_search, "_FIRST_LOOK_FROM_ROWS", 0 if search == "looks" else 10**9)
    patch.setattr(fusion_search, "_FIRST_LOOK", 2)
    patch.setattr(first_fit, "_REORDER_FROM_ROWS", 1)
    patch.setattr(fusion_closest_pair, "_BLOCK_ROWS", 5)


@pytest.fixture(params=SEARCHES)
def search(request, monkeypatch):
    use(monkeypatch, request.param)
    return request.param


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


def shuffled(bank, seed):
    return rows_of(bank, torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed)))


def assert_same(one, other, **tolerance):
    for key, value in one.to_tensors().items():
        torch.testing.assert_close(value, other.to_tensors()[key], **(tolerance or {"rtol": 0.0, "atol": 0.0}))


# ---- the slow reference: equations 7 and 8 and the words of Algorithm 1, nothing kept from step to step ---------


def plain_distances(means, variances):
    both = variances[:, None] + variances
    shift = (means[:, None] - means) ** 2 / (4 * both)
    return (shift + 0.5 * (both / (2 * (variances[:, None] * variances).sqrt())).log()).sum(-1)


def plain_merge(one, other, merge):
    (a, m, v), (b, n, w) = one, other
    mean, variance = (a * m + b * n) / (a + b), (a * v + b * w) / (a + b)
    if merge == "moment":
        variance = (a * (v + m**2) + b * (w + n**2)) / (a + b) - mean**2
    return a + b, mean, variance


def plain_fuse(bank, limit, rule, merge):
    if rule == "closest_pair":
        bank = bank.canonical()
    waiting = list(zip(bank.counts, bank.means, bank.variances, strict=True))
    pool = waiting if rule == "closest_pair" else []
    while rule == "closest_pair" and len(pool) > 1:
        gaps = plain_distances(torch.stack([p[1] for p in pool]), torch.stack([p[2] for p in pool]))
        i, j = divmod(int(gaps.fill_diagonal_(math.inf).argmin()), len(pool))
        if not gaps[i, j] < limit:
            break
        pool[i] = plain_merge(pool[i], pool[j], merge)
        del pool[j]
    for row in waiting if rule == "first_fit" else []:
        gaps = [float(plain_distances(torch.stack([p[1], row[1]]), torch.stack([p[2], row[2]]))[0, 1]) for p in pool]
        if gaps and min(gaps) < limit:
            near = gaps.index(min(gaps))
            pool[near] = plain_merge(pool[near], row, merge)
        else:
            pool.append(row)
    counts, means, variances = (torch.stack(list(column)) for column in zip(*pool, strict=True))
    return GaussianPrototypes(torch.zeros(len(pool), dtype=torch.int64), counts, means, variances)


@functools.cache
def reference(dim, modes, share, rule, merge):
    bank = draw(40, dim, dim + modes, modes)
    gaps = plain_distances(bank.means, bank.variances)
    limit = float(gaps[gaps > 0].quantile(share))
    return bank, limit, plain_fuse(bank, limit, rule, merge)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("rule", RULES)
# Less than one block of the compiled loops, exactly two, two and a rest.
@pytest.mark.parametrize(("dim", "modes"), [(3, 0), (128, 3), (130, 0), (130, 6)])
def test_reference_agrees(search, dim, modes, rule, merge):
    left = []
    for share in (0.03, 0.5):
        bank, limit, expected = reference(dim, modes, share, rule, merge)
        fused = fuse(bank, threshold=limit, scale="sum", rule=rule, merge=merge)
        assert_same(fused.canonical(), expected.canonical(), rtol=1e-9, atol=1e-9)
        scaled = fuse(bank, threshold=limit / dim, scale="mean", rule=rule, merge=merge)
        assert_same(scaled, fused, rtol=1e-9, atol=1e-9)
        left.append(len(fused))
    assert 40 > left[0] >= left[1] >= 1


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_closest_pair_does_not_depend_on_the_order_of_rows(search, dtype, merge):
    bank = draw(90, 70, 1, modes=5, dtype=dtype)
    bank = GaussianPrototypes.concat([bank, rows_of(bank, slice(20))])  # ties
    left = []
    for threshold in (0.02, 0.1, 0.5):
        fused = fuse(bank, threshold=threshold, merge=merge)
        left.append(len(fused))
        assert_same(fused, fuse(shuffled(bank, 3), threshold=threshold, merge=merge))
    assert left[0] <= 90
    assert left[-1] < 20


@settings(max_examples=60, deadline=None)
@given(
    # A small lattice: equal rows and equal distances are the rule, not the exception.
    st.lists(st.tuples(*[st.integers(1, 3)] * 4), min_size=2, max_size=12),
    st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0, math.inf]),
    st.sampled_from(SEARCHES[: 2 + (fusion_search.kernels() is not None)]),
    st.integers(0, 1000),
)
def test_ties_do_not_depend_on_the_order_of_rows(rows, threshold, search, seed):
    table = torch.tensor(rows, dtype=torch.float64)
    bank = GaussianPrototypes(torch.zeros(len(rows), dtype=torch.int64), table[:, 0], table[:, 1:3], table[:, [3, 3]])
    with pytest.MonkeyPatch.context() as patch:
        use(patch, search)
        assert_same(fuse(bank, threshold=threshold), fuse(shuffled(bank, seed), threshold=threshold))


def test_of_equal_distances_the_lowest_pair_merges_first(search):
    # Means 0, 2, 4, variance 1, one sample each: 4 / 8 = 0.5 to each neighbour. The first two in canonical order
    # become mean 1, variance 2, which is 9 / 12 + 1/2 ln(3 / (2 sqrt 2)) = 0.78 from the third.
    column = torch.tensor([[4.0], [0.0], [2.0]])
    bank = GaussianPrototypes(torch.zeros(3, dtype=torch.int64), torch.ones(3), column, torch.ones(3, 1))
    fused = fuse(bank, threshold=0.7)
    assert [value.flatten().tolist() for value in fused.to_tensors().values()] == [[0, 0], [2, 1], [1, 4], [2, 1]]


@pytest.mark.parametrize("merge", MERGES)
def test_a_merge_may_bring_components_closer_together(search, merge):
    # Of variance 1: the first two are 4 / 8 = 0.5 apart, the third is (1 + 5.76) / 8 = 0.845 from both. Of their
    # merger, mean (1, 0), it is only 5.76 / 8 = 0.72, and with the moment variances (2, 1) another
    # 1/2 ln(3 / (2 sqrt 2)) = 0.0294.
    means = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 2.4]], dtype=torch.float64)
    bank = GaussianPrototypes(torch.zeros(3, dtype=torch.int64), torch.ones(3), means, torch.ones_like(means))
    gaps = plain_distances(bank.means, bank.variances)
    assert gaps[0, 1] < 0.75 < gaps[0, 2]
    assert len(fuse(bank, threshold=0.75, scale="sum", merge=merge)) == 1


@pytest.mark.parametrize("rule", RULES)
def test_thresholds_zero_and_infinity(search, rule):
    bank = draw(40, 70, 2)
    twice = GaussianPrototypes.concat([bank, bank])
    assert_same(fuse(twice, threshold=0.0, rule=rule).canonical(), twice.canonical())
    for merge in MERGES:
        pooled = fuse(bank, threshold=math.inf, rule=rule, merge=merge)
        assert_same(pooled, plain_fuse(bank, math.inf, rule, merge), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_infinite_distances_merge_under_no_finite_threshold(search, rule):
    # (1e160)^2 overflows, so that the first two are infinitely far from each other; the third equals the second.
    means = torch.tensor([[0.0], [1e160], [1e160]], dtype=torch.float64)
    bank = GaussianPrototypes(torch.zeros(3, dtype=torch.int64), torch.ones(3), means, torch.ones_like(means))
    assert fuse(bank, threshold=1e300, rule=rule).canonical().counts.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("dim", [1, 3, 64, 100, 200])
def test_distances_within_a_cap(search, dim):
    bank = draw(23, dim, 4)
    rows = Gaussians.prepare(bank.means, bank.variances)
    exact = distance(bank.means, bank.variances, bank.means, bank.variances)
    caps = exact.quantile(torch.linspace(0, 1, 23, dtype=torch.float64), dim=1).diagonal() * (1 + 1e-9)
    found = fusion_search.Search(bank.means, 23, tiny=False).within(rows, rows, caps)
    torch.testing.assert_close(found, exact.masked_fill(exact > caps, math.inf), rtol=1e-12, atol=0.0)
    assert 0 < int(found.isinf().sum()) < found.numel()
    whole = fusion_search.Search(bank.means, 23, tiny=False).within(rows, rows, torch.full_like(caps, math.inf))
    assert whole.diagonal().eq(0).all()
    assert torch.equal(whole, whole.T)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-300, 300), st.floats(-1e300, 1e300)), min_size=2, max_size=70),
    st.sampled_from(SEARCHES[: 2 + (fusion_search.kernels() is not None)]),
)
def test_extreme_rows_are_symmetric_never_nan_and_zero_on_themselves(rows, search):
    # All coordinates in two rows, so that products of many extreme terms meet.
    mean = torch.tensor([[value for _, value in rows]] * 2 + [[0.0] * len(rows)], dtype=torch.float64)
    power = torch.tensor([float(power) for power, _ in rows], dtype=torch.float64)
    variance = torch.stack([10.0**power, 10.0**-power, torch.ones_like(power)])
    bank = Gaussians.prepare(mean, variance)
    with pytest.MonkeyPatch.context() as patch:
        use(patch, search)
        caps = torch.full((3,), math.inf, dtype=torch.float64)
        found = fusion_search.Search(mean, 3, tiny=bank.tiny).within(bank, bank, caps)
    assert not found.isnan().any()
    assert found.ge(0).all()
    assert torch.equal(found, found.T)
    assert found.diagonal().eq(0).all()
    torch.testing.assert_close(found, distance(mean, variance, mean, variance), rtol=1e-11, atol=0.0)


@pytest.mark.parametrize("exponent", [-150, -75, -20, 20, 75, 150])
def test_extreme_variances_keep_their_distance(search, exponent):
    # Variances v and v (1 + 2^-8): 1/2 ln((2 + e) / (2 sqrt(1 + e))) a coordinate, whatever v is.
    e = 2.0**-8
    variance = torch.full((1, 90), 2.0 ** (3 * exponent), dtype=torch.float64)
    rows = Gaussians(torch.zeros(2, 90, dtype=torch.float64), torch.cat([variance, variance * (1 + e)]))
    caps = torch.full((2,), math.inf, dtype=torch.float64)
    found = fusion_search.Search(rows.means, 2, tiny=rows.tiny).within(rows, rows, caps)
    # ln((2 + e)^2 / (4 (1 + e))) = ln(1 + e^2 / (4 (1 + e))), of which no digit is lost.
    expected = 90 * 0.25 * math.log1p(e * e / (4 * (1 + e)))
    assert found[0, 1].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("modes", [0, 1, 7])
def test_compiled_loops_agree_with_torch(rule, modes, monkeypatch):
    if fusion_search.kernels() is None:
        pytest.skip("the compiled loops need numba, the extra `fast`")
    bank = draw(600, 70, 5, modes)
    compiled = fuse(bank, threshold=0.1, rule=rule)
    for module in (fusion_search, first_fit):
        monkeypatch.setattr(module, "kernels", lambda: None)
    assert_same(compiled, fuse(bank, threshold=0.1, rule=rule), rtol=1e-9, atol=1e-9)


# ---- memory -----------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation's result has."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("rule", RULES)
def test_memory_is_linear_in_the_bank_plus_one_block(search, rule, monkeypatch):
    monkeypatch.setattr(bhattacharyya, "_BLOCK_ELEMENTS", 4000)
    rows, dim = 200, 6
    bank = draw(rows, dim, 13)
    with LargestTensor() as largest:
        fused = fuse(bank, threshold=0.001, rule=rule)
    assert len(fused) > 150
    # The key of the canonical order has 2 D + 2 columns; rows of class 0 may have twice their room.
    assert largest.elements <= max(rows * (2 * dim + 2), 4000)
    assert largest.elements < rows * rows / 4
