"""The Fréchet distance beside the same in 60 digits, singular covariances too; moments in any order and any parts."""

import mpmath
import numpy as np
import pytest

from jax_edm2.evaluation import Distance, Moments, Statistics, frechet_distance


def gathered(features, parts=1):
    parts = [Moments(features.shape[1]) for _ in range(parts)]
    for number, batch in enumerate(np.array_split(features, 7)):
        parts[number % len(parts)].add(batch)
    return sum(parts[1:], parts[0])


def in_60_digits(one, other):
    with mpmath.workdps(60):
        m, n = (mpmath.matrix([[mpmath.mpf(float(x))] for x in each.mean]) for each in (one, other))
        s, t = (mpmath.matrix(each.covariance.tolist()) for each in (one, other))
        values, vectors = mpmath.eigsy(s)
        half = vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T
        values = mpmath.eigsy(half * t * half, eigvals_only=True)
        trace = sum(mpmath.sqrt(max(v, 0)) for v in values)
        apart = m - n
        size = len(one.mean)
        return float((apart.T * apart)[0] + sum(s[i, i] + t[i, i] for i in range(size)) - 2 * trace)


def features(kind, seed, size=12):
    rng = np.random.default_rng(seed)
    count = 6 if kind == "few" else 400
    x = rng.standard_normal((count, size)) @ rng.standard_normal((size, size)) + rng.standard_normal(size)
    if kind == "ill-conditioned":
        x *= np.logspace(0, -6, size)
    if kind == "singular":
        x[:, size // 2 :] = x[:, : size - size // 2]
    if kind == "constant":
        x[:] = x[0]
    return x


@pytest.mark.parametrize("kind", ["plain", "ill-conditioned", "singular", "few", "constant"])
@pytest.mark.parametrize("other", ["plain", "singular"])
def test_distances_are_those_of_60_digits(kind, other):
    one, two = gathered(features(kind, 1)).statistics(), gathered(features(other, 2)).statistics()
    found = frechet_distance(one, two)
    exact = in_60_digits(one, two)
    assert abs(found.value - exact) <= found.error
    assert found.value == pytest.approx(exact, rel=1e-7)  # measured: 2e-8 of the singular, 4e-15 of the others
    back = frechet_distance(two, one)
    assert back.value == pytest.approx(found.value, rel=1e-7)
    assert abs(back.value - exact) <= back.error + found.error  # of rounding that made an eigenvalue less than 0


def test_a_distance_to_itself_is_nothing():
    statistics = gathered(features("plain", 3)).statistics()
    found = frechet_distance(statistics, statistics)
    assert isinstance(found, Distance)
    assert found.value <= found.error < 1e-9 * np.trace(statistics.covariance)


def test_one_dimension():
    one, other = Statistics([1.0], [[4.0]]), Statistics([3.0], [[9.0]])
    assert frechet_distance(one, other).value == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_moments_are_those_of_numpy(parts):
    x = features("plain", 4)
    found = gathered(x, parts).statistics()
    assert found.count == len(x)
    assert found.mean == pytest.approx(x.mean(axis=0), rel=1e-12)
    assert found.covariance == pytest.approx(np.cov(x, rowvar=False), rel=1e-12)


def test_a_batch_that_was_filled_up():
    x = features("plain", 5).astype(np.float32)
    filled, plain = Moments(12), Moments(12)
    filled.add(np.concatenate([x[:10], np.full((6, 12), np.nan, np.float32)]), valid=10)
    plain.add(x[:10])
    assert filled.count == 10
    assert np.array_equal(filled.outer, plain.outer)


def test_what_is_refused():
    moments = Moments(3)
    for bad, text in ((np.zeros((2, 4)), r"must be \[N, 3\], not \[2, 4\]"), (np.full((1, 3), np.inf), "not finite")):
        with pytest.raises(ValueError, match=text):
            moments.add(bad)
    with pytest.raises(ValueError, match="3 of 2 features cannot be valid"):
        moments.add(np.zeros((2, 3)), valid=3)
    with pytest.raises(ValueError, match="0 features have no covariance"):
        moments.statistics()
    with pytest.raises(ValueError, match="of 3 and of 4 numbers do not add up"):
        moments + Moments(4)
    for arguments, text in (
        (([0.0], [[1.0, 2.0]]), r"must be \[D\] and \[D, D\]"),
        (([np.nan], [[1.0]]), "not finite"),
        (([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (([0.0], [[1.0]], 1), "1 features have no covariance"),
    ):
        with pytest.raises(ValueError, match=text):
            Statistics(*arguments)
    good = Statistics([0.0, 0.0], np.eye(2))
    with pytest.raises(ValueError, match="of 2 and of 1 features"):
        frechet_distance(good, Statistics([0.0], [[1.0]]))
    with pytest.raises(ValueError, match="has the eigenvalue -1"):
        frechet_distance(Statistics([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), good)
