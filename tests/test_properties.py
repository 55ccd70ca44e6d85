"""Every loss and metric: equal to tests/reference.py on random cases, its gradient too, and blind
to what holes hold.

A case is a batch of 1 to 4 pictures of 0.3 to 80 m with holes from none to 98 %, LiDAR's scan lines
among them, some pictures all holes; its sizes divide or do not, and its hyper-parameters are drawn
as well. A loss that is in none of the tables fails `test_the_tables_are_complete`.

Tolerances. In float64 the references agree to 1e-9 of the value: a sum of 1e4 numbers is good to
1e-12, and what is left is room for ill-conditioned normals. In float32 an input of 80 m is rounded
to 4e-6 m and a logarithm of it to 2.4e-7, which no form of a loss can undo: 1e-5 of the value plus
that much, in the loss's own unit (`Case.grain`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import test_losses
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

import distill
import evaluate
import losses
from model import upsample

CASES = 200
NAN, INF = math.nan, math.inf
examples = settings(max_examples=25, derandomize=True, deadline=None, database=None)
seeds = st.integers(0, 2**32 - 1)
one_thread = test_losses.one_thread


# --------------------------------------------------------------------------------------- the cases


def holes_of(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """bool (N, h, w): where the truth says nothing."""
    n, h, w = shape
    holes = np.zeros(shape, bool)
    if kind == "random":
        holes = rng.random(shape) < rng.uniform(0, 0.9)
    elif kind == "blocks":
        for k in range(n):
            v, u = rng.integers(h), rng.integers(w)
            holes[k, v : v + 1 + h // 2, u : u + 1 + w // 2] = True
    elif kind == "lidar":  # a few scan lines, dotted: 2 % and up on a map that is large enough
        lines = rng.random((n, h, 1)) < 0.2
        holes = ~(lines & (rng.random(shape) < rng.uniform(0.1, 0.9)))
    elif kind == "sparse":
        holes = rng.random(shape) < 0.98
    if n > 1 and kind != "none" and rng.random() < 0.4:
        holes[rng.integers(n)] = True
    return holes


def depth_of(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """(N, h, w) metres, 0.3 to 80: slanted surfaces, each pixel 20 % off at most."""
    n, h, w = shape
    v, u = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)
    a, b, c = rng.uniform([[math.log(0.4)], [-1], [-1]], [[math.log(60)], [1], [1]], (3, n))
    log = a[:, None, None] + b[:, None, None] * u + c[:, None, None] * v
    return np.clip(np.exp(log) * rng.uniform(0.8, 1.2, shape), 0.3, 80)


def random_loss(rng: np.random.Generator) -> losses.Loss:
    """Hyper-parameters of Sec. 3.3."""
    alpha = rng.choice([-INF, -2.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, INF, rng.uniform(-3, 3)])
    return losses.Loss(
        weights=tuple(float(x) for x in rng.choice([0.25, 0.6, 1.0, 2.5], 4)),
        pool=str(rng.choice(["image", "batch"])),
        silog_alpha=float(rng.choice([1.0, 10.0])),
        silog_lambda=float(rng.choice([0.0, 0.85, 1.0])),
        silog_eps=float(rng.choice([1e-6, 1e-3, 0.1])),
        robust_alpha=float(alpha),
        # at alpha = inf, rho is exponential and beyond 13 c more than a float32 can hold
        robust_c=40.0 if alpha == INF else float(rng.choice([0.3, 2.0, 10.0])),
        vnl_filter=str(rng.choice(["prediction", "gt"])),
        vnl_delta_z=float(rng.choice([0.0, 0.1, 2.0])),
        vnl_cos=float(rng.choice([0.7, 0.867, 1.0])),
        vnl_near=float(rng.choice([0.005, 0.1])),
        vnl_drop=float(rng.choice([0.0, 0.25, 0.3, 0.5])),
    )


def build(seed: int, even: bool = False, holes: str | None = None) -> SimpleNamespace:
    """A case: d_hat and low (N,1,h,w), d (N,1,H,W), K (N,4) at h x w, triplets (3,T), o, p, alpha.

    All numbers are float32 ones in float64, so that both dtypes see the same. even: cells of one
    size, k x l pixels with k and l odd, and low is the middle pixel of each, as the laws need it.
    """
    rng = np.random.default_rng([6, seed])
    n, h, w = rng.integers(1, 5), *rng.integers(3 if even else 2, 9, 2)
    if even or rng.random() < 0.5:
        H, W = h * rng.choice([1, 3]), w * rng.choice([1, 3] if even else [1, 2, 3])
    else:
        H, W = rng.integers(h, 4 * h), rng.integers(w, 4 * w)
    kind = holes or str(rng.choice(["none", "random", "random", "blocks", "lidar", "sparse"]))
    coarse = depth_of((n, h, w), rng)
    d = reference.enlarge(coarse, (H, W)) * rng.uniform(0.8, 1.2, (n, H, W))
    d = np.where(holes_of(kind, d.shape, rng), 0, d)
    if even:
        low = d[:, H // h // 2 :: H // h, W // w // 2 :: W // w]
    else:
        low = np.where(holes_of(kind, coarse.shape, rng), 0, coarse * rng.uniform(0.9, 1.1))
    off = rng.normal(rng.uniform(-0.5, 0.5), rng.choice([0.02, 0.3]), coarse.shape)
    d_hat = np.clip(coarse * np.exp(off), 0.1, 160)
    focal, centre = rng.uniform(0.6, 1.5, (2, n)) * w, rng.uniform(0.3, 0.7, (2, n))
    K = np.stack([*focal, w * centre[0] - 0.5, h * centre[1] - 0.5], 1)
    maps = (torch.from_numpy(np.array(x)).float().double() for x in (d_hat, d, low, K))
    d_hat, d, low, K = maps
    return SimpleNamespace(
        d_hat=d_hat[:, None], d=d[:, None], low=low[:, None], K=K, seed=seed, o=random_loss(rng),
        triplets=torch.from_numpy(rng.integers(0, h * w, (3, 2 * h * w))),
        p=rng.uniform(0.5, 2, 4) * rng.choice([-1, 1], 4), alpha=rng.uniform(0.05, 1.9),
    )  # fmt: skip


def changed(case: SimpleNamespace, **what) -> SimpleNamespace:
    """A copy of the case with other maps or hyper-parameters."""
    fields = {k: what.pop(k) for k in list(what) if k not in vars(case)}
    given = vars(case) | what
    return SimpleNamespace(**given | {"o": dataclasses.replace(given["o"], **fields)})


def spoilt(case: SimpleNamespace) -> SimpleNamespace:
    """The case with other numbers in the holes of d and low: NaN, inf, -inf, -1, -0 in turns."""
    rng = np.random.default_rng(case.seed)
    junk = torch.tensor([NAN, INF, -INF, -1.0, -0.0], dtype=torch.float64)

    def spoil(d: Tensor) -> Tensor:
        return torch.where(d > 0, d, junk[torch.from_numpy(rng.integers(0, 5, d.shape))])

    return changed(case, d=spoil(case.d), low=spoil(case.low))


def steady(case: SimpleNamespace) -> SimpleNamespace:
    """The case with those triplets only that float32 and float64 must judge alike: none is within
    1e-3 of a threshold of Eq. 9, nor so flat that rounding its corners turns the normal."""
    o, keep = case.o, np.ones(case.triplets.shape[1], bool)
    v, u = np.divmod(case.triplets.numpy(), case.low.shape[-1])
    for k, camera in enumerate(case.K.numpy()):
        for z in (array(case.d_hat)[k, v, u], array(case.low)[k, v, u]):
            p = reference.point(z, v, u, camera)  # (xyz, corner, triplet)
            edges = np.stack([p[:, 1] - p[:, 0], p[:, 2] - p[:, 0], p[:, 2] - p[:, 1]])
            length = np.sqrt((edges**2).sum(1))
            i, j = [0, 0, 1], [1, 2, 2]
            cosine = abs((edges[i] * edges[j]).sum(1) / (length[i] * length[j] + 1e-8))
            area = np.sqrt((np.cross(edges[0], edges[1], axis=0) ** 2).sum(0))
            sure = (abs(cosine - o.vnl_cos) > 1e-3).all(0)
            sure &= (abs(abs(edges) / o.vnl_near - 1) > 1e-3).all((0, 1))
            sure &= (abs(z / max(o.vnl_delta_z, 1e-9) - 1) > 1e-3).all(0)
            sure &= area > 0.05 * length.max(0) * np.sqrt((p**2).sum(0)).max(0)
            keep &= sure | ~(array(case.low)[k, v, u] > 0).all(0)
    return changed(case, triplets=case.triplets[:, torch.from_numpy(keep)])


def array(x: Tensor) -> np.ndarray:
    """(N,1,h,w) -> (N,h,w), float64."""
    return x.detach().double().numpy()[:, 0]


# --------------------------------------------------------------------------- Eq. 7-11, the table


def enlarged(c: SimpleNamespace, d_hat: Tensor) -> Tensor:
    return upsample(d_hat, c.d.shape[-2:], "nearest")


def big(c: SimpleNamespace) -> np.ndarray:
    return reference.enlarge(array(c.d_hat), c.d.shape[-2:])


def batch_of(c: SimpleNamespace, dtype: torch.dtype = torch.float32) -> dict:
    """The loader's batch. K is at full size there: the inverse of what Eq. 9 does with it."""
    size, full = c.low.shape[-2:], c.d.shape[-2:]
    K = torch.from_numpy(reference.intrinsics_at(c.K.numpy(), size, full))
    gt = dict(zip(("grad_x", "grad_y", "M_x", "M_y"), test_losses.gradients(c.low.to(dtype))))
    statistics = losses.cell_statistics(c.d.to(dtype), size, c.o.silog_eps)
    return {
        "depth": c.d.to(dtype), "depth_low": c.low.to(dtype), "K": K.to(dtype),
        "triplets": c.triplets, **gt, **dict(zip(test_losses.NAMES, statistics)),
    }  # fmt: skip


def eq11(c: SimpleNamespace, form: str) -> losses.DepthLoss:
    """Eq. 11 of the case; form: "plain", "dynamic", "cpp" or "torch"."""
    if form in ("cpp", "torch"):
        return losses.CellLoss(c.o, form)
    loss = losses.DepthLoss(dataclasses.replace(c.o, dynamic_weights=form == "dynamic"))
    if form == "dynamic":
        loss.p.data = torch.from_numpy(c.p).float()
    return loss


def learned(c: SimpleNamespace, dtype: torch.dtype) -> losses.AdaptiveRobust:
    """AdaptiveRobust at the case's own alpha, to double precision where it is asked for."""
    adaptive = losses.AdaptiveRobust(dataclasses.replace(c.o, robust_alpha=c.alpha))
    assert adaptive.alpha.item() == pytest.approx(c.alpha, rel=1e-6)
    assert adaptive.c.item() == pytest.approx(c.o.robust_c, rel=1e-6)
    share = (c.alpha - 0.001) / 1.998
    adaptive.to(dtype).latent_alpha.data.fill_(math.log(share) - math.log1p(-share))
    adaptive.log_c.data.fill_(math.log(c.o.robust_c))
    return adaptive


def call(form: str) -> Callable[[SimpleNamespace, Tensor], Tensor]:
    return lambda c, x: eq11(c, form)(x, functools.partial(enlarged, c), batch_of(c))[0]


def silog_cells(c: SimpleNamespace, x: Tensor) -> Tensor:
    statistics = losses.cell_statistics(c.d.to(x), x.shape[-2:], c.o.silog_eps)
    return losses.L_silog_cells(x, *statistics, c.o)


def robust_cells(kernel: str) -> Callable[[SimpleNamespace, Tensor], Tensor]:
    return lambda c, x: losses.L_robust_cells(x, c.d.to(x), c.o, kernel)


def ln_Z_off(alpha: float) -> float:
    """How far 2048 nodes are off: the tails are heavy at alpha = 0."""
    return 1e-12 if alpha > 0.3 else 3e-5


@dataclasses.dataclass(frozen=True)
class Case:
    """of, reference: the product's loss (d_hat's dtype is what is computed in) and ours. grain:
    what float32's rounding of depths may add to it. exact: how far its float64 may be off."""

    of: Callable[[SimpleNamespace, Tensor], Tensor]
    reference: Callable[[SimpleNamespace], float]
    grain: Callable[[SimpleNamespace], float]
    double: bool = True
    exact: Callable[[SimpleNamespace], float] = lambda c: 1e-12


def terms_by_reference(c: SimpleNamespace) -> list[float]:
    return [LOSSES[name].reference(c) for name in ("L_silog", "L_grad", "L_vnl", "L_robust")]


def grains(c: SimpleNamespace) -> float:
    terms = ("L_silog", "L_grad", "L_vnl", "L_robust")
    return sum(w * LOSSES[k].grain(c) for w, k in zip(c.o.weights, terms))


SILOG = {
    "reference": lambda c: reference.silog(big(c), array(c.d), c.o),
    # two logarithms of 80 m, and the floor of 1e-6 under the square root
    "grain": lambda c: 1e-6 * c.o.silog_alpha,
}
ROBUST = {
    "reference": lambda c: reference.robust(big(c), array(c.d), c.o),
    "grain": lambda c: 2e-7,  # sqrt(z + 1) - 1 rounds like the 1 does
}
VNL = {
    "reference": lambda c: reference.virtual_normals(
        array(c.d_hat), array(c.low), c.K.numpy(), c.triplets.numpy(), c.o
    ),
    "grain": lambda c: 1e-5,
}
EQ11 = {
    "reference": lambda c: reference.weighted(terms_by_reference(c), c.o.weights),
    "grain": grains, "double": False,
}
LOSSES = {
    "L_silog": Case(lambda c, x: losses.L_silog(enlarged(c, x), c.d.to(x), c.o), **SILOG),
    "L_silog_cells": Case(silog_cells, **SILOG),
    "L_grad": Case(
        lambda c, x: losses.L_grad(x, *test_losses.gradients(c.low.to(x))),
        lambda c: reference.grad(array(c.d_hat), array(c.low)), lambda c: 2e-5,
    ),
    "L_vnl": Case(lambda c, x: losses.L_vnl(x, c.low.to(x), c.K, c.triplets, c.o), **VNL),
    "L_robust": Case(lambda c, x: losses.L_robust(enlarged(c, x), c.d.to(x), c.o), **ROBUST),
    "L_robust_cells torch": Case(robust_cells("torch"), **ROBUST),
    "L_robust_cells cpp": Case(robust_cells("cpp"), **ROBUST, double=False),
    "AdaptiveRobust": Case(
        lambda c, x: learned(c, x.dtype)(enlarged(c, x), c.d.to(x)),
        lambda c: reference.adaptive(
            big(c), array(c.d), dataclasses.replace(c.o, robust_alpha=c.alpha)
        ),
        grain=lambda c: 1e-6,  # a sum of logarithms that may cancel
        exact=lambda c: ln_Z_off(c.alpha),
    ),
    "DepthLoss": Case(call("plain"), **EQ11),
    "DepthLoss dynamic": Case(
        call("dynamic"), lambda c: reference.dynamic(terms_by_reference(c), c.o.weights, c.p),
        grain=lambda c: 4 * grains(c), double=False,  # p is 0.5 at least
    ),
    "CellLoss torch": Case(call("torch"), **EQ11),
    "CellLoss cpp": Case(call("cpp"), **EQ11),
}  # fmt: skip
DOUBLE = [name for name, loss in LOSSES.items() if loss.double]
every_form = pytest.mark.parametrize(
    "name, dtype", [(k, torch.float32) for k in LOSSES] + [(k, torch.float64) for k in DOUBLE]
)


def slope(name: str, c: SimpleNamespace, dtype: torch.dtype | None = None) -> tuple[float, Tensor]:
    """Value and gradient, in the most precise dtype that the loss has unless told otherwise."""
    dtype = dtype or (torch.float64 if LOSSES[name].double else torch.float32)
    x = c.d_hat.to(dtype, copy=True).requires_grad_()
    L = LOSSES[name].of(c, x)
    return L.item(), torch.autograd.grad(L, x)[0]


# ------------------------------------------------------------------- Eq. 7-11 and their reference


@functools.lru_cache(None)
def given_case(seed: int, dtype: torch.dtype) -> tuple[SimpleNamespace, SimpleNamespace]:
    """A case as a dtype can tell it, and the same with other numbers in its holes."""
    c = build(seed) if dtype == torch.float64 else steady(build(seed))
    return c, spoilt(c)


@functools.lru_cache(None)
def expected(name: str, seed: int, dtype: torch.dtype) -> float:
    return LOSSES[name].reference(given_case(seed, dtype)[0])


@every_form
def test_equals_the_reference(name, dtype, counted):
    """On all cases, each with other numbers in its holes as well."""
    loss, wrong, told = LOSSES[name], [], 0
    plain = {"L_silog_cells": "L_silog", "L_robust_cells": "L_robust", "CellLoss": "DepthLoss"}
    same = plain.get(name.split()[0], name)  # the cell forms are the same number
    for seed in range(CASES):
        L = expected(same, seed, dtype)
        for c in given_case(seed, dtype):
            tolerance = {"rel": 1e-9, "abs": loss.exact(c)}
            if dtype == torch.float32:
                tolerance = {"rel": 1e-5, "abs": loss.grain(c)}
            got = loss.of(c, c.d_hat.to(dtype)).item()
            if got != pytest.approx(L, **tolerance):
                wrong.append((seed, got, L))
        told += L != 0
    assert not wrong, f"{len(wrong)} of {2 * CASES}: {wrong[:5]}"
    assert told > CASES * (0.4 if name == "L_vnl" else 0.6)  # a few maps are too small for a plane
    counted("random cases with holes equal to the numpy reference", 2 * CASES)


def test_z_has_its_closed_forms_and_ln_z_is_as_exact_as_the_tolerance_says():
    """The reference's own integral: Gauss, Cauchy and Charbonnier, 2 e K_1(1)."""
    assert reference.Z(2.0) == pytest.approx(math.sqrt(2 * math.pi), rel=1e-13)
    assert reference.Z(0.0) == pytest.approx(math.pi * math.sqrt(2), rel=1e-13)
    assert reference.Z(1.0) == pytest.approx(math.exp(test_losses.LN_Z_1), rel=1e-13)
    for alpha in (0.003, 0.01, 0.03, 0.1, 0.2, 0.31, 0.5, 1.0, 1.5, 1.9, 1.997):
        log_Z = losses.log_partition(torch.tensor(alpha, dtype=torch.float64)).item()
        assert log_Z == pytest.approx(math.log(reference.Z(alpha)), rel=0, abs=ln_Z_off(alpha))


@every_form
@examples
@given(seeds, st.sampled_from([0.0, 1e-30, 1e4, 1e15, 1e30, 3e38]))
def test_holes_change_nothing(name, dtype, seed, wild):
    """Neither what the truth holds there nor what is predicted, of any finite size: not a bit of
    the value, nor of the gradient, which is 0 there."""
    c = build(seed, even=True, holes="sparse" if seed % 2 else "blocks")
    unseen = ~(losses.to_cells(c.d, c.d_hat.shape[-2:]) > 0).any(5).any(3)
    L, dL = slope(name, c, dtype)
    for other in (spoilt(c), changed(c, d_hat=torch.where(unseen, wild, c.d_hat))):
        L_, dL_ = slope(name, other, dtype)
        assert L == L_ and torch.equal(dL, dL_) and not dL_[unseen].any()


# ------------------------------------------------------------------------------ Eq. 7-11, gradients


def small(seed: int) -> SimpleNamespace:
    """An even case of few pixels with holes, away from Eq. 9's thresholds."""
    c = build(seed, even=True, holes=["random", "blocks", "lidar"][seed % 3])
    return steady(changed(c, vnl_cos=0.867, vnl_near=0.005, vnl_delta_z=0.1, silog_eps=1e-3))


@pytest.mark.parametrize("name", DOUBLE)
@pytest.mark.parametrize("seed", range(4))
def test_gradcheck(name, seed):
    c = small(seed)
    assert gradcheck(lambda x: LOSSES[name].of(c, x), (c.d_hat.clone().requires_grad_(),))


@pytest.mark.parametrize("seed", range(4))
def test_gradcheck_of_a_learned_alpha_and_c(seed):
    c = small(seed)
    adaptive = learned(c, torch.float64)

    def loss(latent, log_c):
        state = {"latent_alpha": latent, "log_c": log_c}
        return torch.func.functional_call(adaptive, state, (enlarged(c, c.d_hat), c.d))

    assert gradcheck(loss, (adaptive.latent_alpha, adaptive.log_c))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in DOUBLE])
@pytest.mark.parametrize("seed", range(8))
def test_gradient_in_float32_is_that_of_the_terms_in_float64(name, seed):
    """What has no double: the C++ kernel, and Eq. 11, a weighted sum of what has been checked."""
    c = small(seed)
    terms, w = ("L_silog", "L_grad", "L_vnl", "L_robust"), c.o.weights
    if name.startswith("L_robust"):
        terms, w = ["L_robust"], [1.0]
    elif "dynamic" in name:
        w = [0.5 / q**2 * x for x, q in zip(w, c.p)]
    exact = sum(x * slope(term, c)[1] for x, term in zip(w, terms))
    assert (slope(name, c)[1] - exact).abs().max() <= 1e-5 * exact.abs().max()


# -------------------------------------------------------------------- Eq. 12 and Table 6, the table


def feature_case(seed: int, alike: bool) -> SimpleNamespace:
    """F_s and F_t (N,C,h,w), as many channels if alike, M (N,1,h,w) with holes, tau."""
    rng = np.random.default_rng([12, seed])
    n, h, w = rng.integers(1, 5), *rng.integers(1, 7, 2)
    C_s, C_t = rng.integers(1, 9, 2)
    kinds = ["none", "random", "random", "blocks", "lidar"]
    M = ~holes_of(str(rng.choice(kinds)), (n, h, w), rng)
    F_s = rng.normal(size=(n, C_s, h, w)) * rng.choice([0.3, 3.0])
    F_t = rng.normal(size=(n, C_s if alike else C_t, h, w)) * rng.choice([0.3, 3.0])
    if alike and rng.random() < 0.3:
        F_t = F_s + 0.1 * F_t
    F_s, F_t = (torch.from_numpy(x).float().double() for x in (F_s, F_t))
    M = torch.from_numpy(M)[:, None].double()
    return SimpleNamespace(F_s=F_s, F_t=F_t, M=M, tau=float(rng.choice([0.5, 1.0, 4.0])))


def on_arrays(of: Callable, *more: str) -> Callable[[SimpleNamespace], float]:
    """A reference of (F_s, F_t, M, more) as a function of a case."""
    return lambda c: of(c.F_s.numpy(), c.F_t.numpy(), c.M.numpy()[:, 0] > 0, *more)


FEATURES = {  # the product's (F_s, F_t, M, tau) and ours; whether channels must be as many; digits
    "L_affinity l1": (
        lambda s, t, M, tau: distill.L_affinity(s, t, M, "l1"),
        on_arrays(reference.affinity, "l1"), False, 1e-9,
    ),
    "L_affinity mse": (
        lambda s, t, M, tau: distill.L_affinity(s, t, M, "mse"),
        on_arrays(reference.affinity, "mse"), False, 1e-9,
    ),
    "L_affinity_gram": (  # which ends in float32
        lambda s, t, M, tau: distill.L_affinity_gram(s, t, M),
        on_arrays(reference.affinity, "mse"), False, 1e-6,
    ),
    "L_l2": (
        lambda s, t, M, tau: distill.L_l2(s, t, M), on_arrays(reference.l2), True, 1e-9,
    ),
    "L_channel": (
        distill.L_channel, lambda c: on_arrays(reference.channel, c.tau)(c), True, 1e-9,
    ),
}  # fmt: skip
every_distance = pytest.mark.parametrize("name", FEATURES)


def distance(name: str, c: SimpleNamespace, dtype: torch.dtype = torch.float64) -> float:
    return FEATURES[name][0](c.F_s.to(dtype), c.F_t.to(dtype), c.M.to(dtype), c.tau).item()


@every_distance
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_distance_equals_the_reference(name, dtype, counted):
    _, ours, alike, digits = FEATURES[name]
    wrong, told, tolerance = [], 0, {"rel": digits, "abs": 1e-13}
    if dtype == torch.float32:
        # an inner product of unit features is rounded to 1e-7; a square of it to that squared, or
        # to 1e-7 of itself; features of 10 and their logarithms to 1e-6
        tolerance = {"rel": 1e-5, "abs": 2e-6 if name == "L_channel" else 3e-7}
    for seed in range(CASES):
        c = feature_case(seed, alike)
        got, wanted = distance(name, c, dtype), ours(c)
        if got != pytest.approx(wanted, **tolerance):
            wrong.append((seed, got, wanted))
        told += wanted > 1e-3
    assert not wrong, f"{len(wrong)} of {CASES}: {wrong[:5]}"
    assert told > CASES / 2
    counted("random cases with holes equal to the numpy reference", CASES)


@pytest.mark.parametrize("name", [name for name in FEATURES if name != "L_affinity_gram"])
@pytest.mark.parametrize("seed", range(4))
def test_gradcheck_of_a_distance(name, seed):
    of, _, alike, _ = FEATURES[name]
    c = feature_case(seed, alike)
    inputs = [x.clone().requires_grad_() for x in (c.F_s, c.F_t)]
    assert gradcheck(lambda s, t: of(s, t, c.M, c.tau), inputs, atol=1e-7)


# ------------------------------------------------------------------------------------------ Eq. 13


class Maps(nn.Module):
    """Stands for a network: its prediction and features are given."""

    def __init__(self, d_hat: Tensor, F: list[Tensor]) -> None:
        super().__init__()
        self.d_hat, self.F = d_hat, F
        self.mean = self.std = torch.full((3,), 127.5)

    def features(self, image: Tensor, normalized: bool) -> tuple[Tensor, list[Tensor]]:
        return self.d_hat, self.F

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def enlarge(self, d_hat: Tensor, size: tuple[int, int]) -> Tensor:
        return upsample(d_hat, size, "nearest")


@pytest.mark.parametrize("method", ["structure mse", "structure l1", "l2", "channel"])
def test_eq13_equals_the_reference(method):
    """Three levels, the coarser ones a half and a quarter of the prediction's size."""
    how, _, affinity = method.partition(" ")
    ours = {"structure": reference.affinity, "l2": reference.l2, "channel": reference.channel}[how]
    more, wrong = {"structure": [affinity], "l2": [], "channel": [4.0]}[how], []
    for seed in range(CASES // 4):
        rng = np.random.default_rng([13, seed])
        c, junk = given_case(seed, torch.float32)
        (h, w), levels, distances = c.low.shape[-2:], [], []
        for part in (4, 2, 1):
            part = part if h % part == w % part == 0 else 1
            C_s, C_t = rng.integers(1, 6, 2)
            shape = h // part, w // part
            F_s = rng.normal(size=(len(c.d), C_s, *shape)).astype(np.float32)
            F_t = rng.normal(size=(len(c.d), C_t if affinity else C_s, *shape)).astype(np.float32)
            M = reference.coarse_mask(array(c.low), shape)
            distances.append(ours(F_s.astype(float), F_t.astype(float), M, *more))
            levels.append((torch.from_numpy(F_s), torch.from_numpy(F_t)))
        F_s, F_t = map(list, zip(*levels))
        o = distill.Distillation(
            method=how, affinity=affinity or "mse", w_d=float(rng.choice([0.01, 10.0]))
        )
        objective = distill.Distill(
            Maps(c.d_hat.float(), F_s), eq11(c, "plain"), Maps(None, F_t), o
        )
        image = {"image": torch.zeros(1, 3, 8, 8), "extent": torch.full((1, 2), 8)}
        L, _ = objective(batch_of(junk) | image)
        distances = distances if how == "structure" else distances[-1:]
        wanted = reference.distilled(expected("DepthLoss", seed, torch.float32), distances, o.w_d)
        if L.item() != pytest.approx(wanted, rel=1e-5, abs=grains(c) + 3e-6 * o.w_d):
            wrong.append((seed, L.item(), wanted))
    assert not wrong, f"{len(wrong)}: {wrong[:5]}"


# ---------------------------------------------------------------------------- Sec. 4.1, the metrics


def picture(seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """(prediction, truth, max_depth): 0.3 to 80 m with holes, float32 or float64; the prediction
    has zeros, and depths beyond max_depth."""
    rng = np.random.default_rng([4, seed])
    shape = 1, *rng.integers(1, 20, 2)
    d = depth_of(shape, rng)
    d_hat = d * np.exp(rng.normal(rng.uniform(-0.3, 0.3), rng.choice([0.02, 0.4]), shape))
    holes = holes_of(str(rng.choice(["none", "random", "blocks", "lidar", "sparse"])), shape, rng)
    d_hat[rng.random(shape) < 0.1 * (rng.random() < 0.3)] = 0
    d[rng.random(shape) < 0.05] = rng.choice([0.001, 0.0005, 0.0011])  # 1 mm is a hole as well
    d[holes | (rng.random() < 0.1)] = rng.choice([0, NAN, INF, -INF, -1.0])
    dtype = rng.choice([np.float32, np.float64])
    return d_hat[0].astype(dtype), d[0].astype(dtype), float(rng.choice([10, 40]))


def off(name: str, got: float, wanted: float) -> bool:
    """Whether a metric is not what it should be: 1e-9 of itself; si-RMSE besides, whose mean(g^2) -
    mean(g)^2 is rounded to 1e-15 g^2 and the root of it to that of it."""
    if math.isnan(wanted) or math.isnan(got):
        return math.isnan(wanted) != math.isnan(got)
    slack = min(2.5e-14 / max(wanted, 1e-9), 1e-7) if name == "si_rmse" else 1e-14
    return got != pytest.approx(wanted, rel=1e-9, abs=slack)


def test_metrics_equal_the_reference(counted):
    wrong, empty = [], 0
    for seed in range(CASES):
        d_hat, d, top = picture(seed)
        got, wanted = evaluate.metrics(d_hat, d, top), reference.metrics(d_hat, d, top)
        assert got.keys() == wanted.keys() == set(evaluate.METRICS)
        wrong += [(seed, k, got[k], wanted[k]) for k in got if off(k, got[k], wanted[k])]
        empty += math.isnan(wanted["rel"])
    assert not wrong, f"{len(wrong)}: {wrong[:5]}"
    assert 10 < empty < CASES / 2
    counted("random cases with holes equal to the numpy reference", CASES)


# ----------------------------------------------------------------------------------------- no holes


def test_the_tables_are_complete():
    """Each loss and distance of the product stands in a table above."""
    ours = {
        name
        for module in (losses, distill)
        for name, x in inspect.getmembers(module)
        if getattr(x, "__module__", None) == module.__name__
        and (name.startswith("L_") or inspect.isclass(x) and issubclass(x, nn.Module))
    }
    assert len(ours) == 14
    assert ours == {name.split()[0] for name in (*LOSSES, *FEATURES)} | {"Distill"}
