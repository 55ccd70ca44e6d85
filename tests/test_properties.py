"""Every loss and metric: equal to tests/reference.py on 200 random cases, and the laws it obeys.

A case is a batch of 1 to 4 pictures of 0.3 to 80 m with holes from none to 98 %, LiDAR's scan lines
among them, some pictures all holes; its sizes divide or do not, and its flags are drawn as well.
The tables LOSSES, FEATURES and METRICS say which law holds for what: a loss that is in none of them
fails `test_the_tables_are_complete`.

Tolerances. In float64 the references agree to 1e-9 of the value: a sum of 1e4 numbers is good to
1e-12, and what is left is room for ill-conditioned normals. In float32 an input of 80 m is rounded
to 4e-6 m and a logarithm of it to 2.4e-7, which no form of a loss can undo: 1e-5 of the value plus
that much, in the loss's own unit (`Loss.grain`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import test_distill
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import distill
import evaluate
import losses
from model import upsample

CASES = 200
NAN, INF = math.nan, math.inf
DTYPES = {"float64": torch.float64, "float32": torch.float32}
examples = settings(
    max_examples=25, derandomize=True, deadline=None, database=None, print_blob=False
)
seeds = st.integers(0, 2**32 - 1)
factors = st.floats(0.05, 20.0)  # of scale; depths of 0.3 to 80 m stay within 1 cm and 1.6 km


one_thread = test_distill.one_thread  # fixture: maps this small take longer on two


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


def flags_of(rng: np.random.Generator) -> dict[str, dict]:
    """The flags of Sec. 3.3, drawn at random: {"silog": ..., "robust": ..., "vnl": ..., ...}."""
    pool = str(rng.choice(["image", "batch"]))
    alpha = rng.choice([-INF, -2.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, INF, rng.uniform(-3, 3)])
    return {
        "silog": {
            "alpha": float(rng.choice([1.0, 10.0])), "lam": float(rng.choice([0.0, 0.85, 1.0])),
            "eps": float(rng.choice([1e-6, 1e-3, 0.1])), "pool": pool,
        },
        # at alpha = inf, rho is exponential and beyond 13 c more than a float32 can hold
        "robust": {
            "alpha": float(alpha), "pool": pool,
            "c": 40.0 if alpha == INF else float(rng.choice([0.3, 2.0, 10.0])),
        },
        "adaptive": {"alpha": rng.uniform(0.05, 1.9), "c": rng.uniform(0.2, 3), "pool": pool},
        "vnl": {
            "filter_on": str(rng.choice(["prediction", "gt"])),
            "delta_z": float(rng.choice([0.0, 0.1, 2.0])),
            "cos": float(rng.choice([0.7, 0.867, 1.0])), "near": float(rng.choice([0.005, 0.1])),
            "drop": float(rng.choice([0.0, 0.25, 0.3, 0.5])),
        },
        "weights": tuple(float(x) for x in rng.choice([0.25, 0.6, 1.0, 2.5], 4)),
        "p": rng.uniform(0.5, 2, 4) * rng.choice([-1, 1], 4),
    }  # fmt: skip


def build(seed: int, even: bool = False, holes: str | None = None) -> SimpleNamespace:
    """A case: d_hat and low (N,1,h,w), d (N,1,H,W), K (N,4) at h x w, triplets (3,T), flags.

    All numbers are float32 ones in float64, so that both dtypes see the same. even: cells of one
    size, k x l pixels with k and l odd, and low is the middle pixel of each, as the laws need it.
    """
    rng = np.random.default_rng([6, seed])
    n, h, w = rng.integers(1, 5), *rng.integers(2, 9, 2)
    if even:
        h, w = max(h, 3), max(w, 3)
        H, W = h * rng.choice([1, 3]), w * rng.choice([1, 3])
    elif rng.random() < 0.5:
        H, W = h * rng.integers(1, 4), w * rng.integers(1, 4)
    else:
        H, W = rng.integers(h, 4 * h), rng.integers(w, 4 * w)
    kinds = ["none", "random", "random", "blocks", "lidar", "sparse"]
    kind = holes or str(rng.choice(kinds))
    coarse = depth_of((n, h, w), rng)
    d = reference.enlarge(coarse, (H, W)) * rng.uniform(0.8, 1.2, (n, H, W))
    d = np.where(holes_of(kind, d.shape, rng), 0, d)
    if even:
        low = d[:, H // h // 2 :: H // h, W // w // 2 :: W // w]
    else:
        low = np.where(holes_of(kind, coarse.shape, rng), 0, coarse * rng.uniform(0.9, 1.1))
    off = rng.normal(rng.uniform(-0.5, 0.5), rng.choice([0.02, 0.3]), coarse.shape)
    d_hat = np.clip(coarse * np.exp(off), 0.1, 160)
    maps = [torch.from_numpy(np.array(x)).float().double()[:, None] for x in (d_hat, d, low)]
    focal, centre = rng.uniform(0.6, 1.5, (2, n)) * w, rng.uniform(0.3, 0.7, (2, n))
    K = np.stack([*focal, w * centre[0] - 0.5, h * centre[1] - 0.5], 1)
    triplets = torch.from_numpy(rng.integers(0, h * w, (3, 2 * h * w)))
    names = dict(zip(("d_hat", "d", "low"), maps))
    flags = flags_of(rng)
    return SimpleNamespace(
        **names, K=torch.from_numpy(K).float().double(), triplets=triplets, **flags, seed=seed
    )


def spoilt(case: SimpleNamespace) -> SimpleNamespace:
    """The case with other numbers in the holes of d and low: NaN, inf, -inf, -1, -0 in turns."""
    rng = np.random.default_rng(case.seed)
    junk = torch.tensor([NAN, INF, -INF, -1.0, -0.0], dtype=torch.float64)

    def spoil(d: Tensor) -> Tensor:
        return torch.where(d > 0, d, junk[torch.from_numpy(rng.integers(0, 5, d.shape))])

    return changed(case, d=spoil(case.d), low=spoil(case.low))


def changed(case: SimpleNamespace, **what) -> SimpleNamespace:
    """A copy of the case with other maps or flags; a dict is merged into the one that is there."""
    old = vars(case)
    new = {k: old[k] | v if isinstance(v, dict) else v for k, v in what.items()}
    return SimpleNamespace(**(old | new))


def array(x: Tensor) -> np.ndarray:
    """(N,1,h,w) -> (N,h,w), float64."""
    return x.detach().double().numpy()[:, 0]


# --------------------------------------------------------------------------- Eq. 7-11, the table


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss of d_hat and a case, and what is known of it.

    of, reference: the product's (d_hat as given: its dtype is what is computed in) and ours.
    grain: what float32's rounding of depths may add to it, in its own unit.
    scaled: (case, k) -> the flags for which, with d_hat and d times k, law(k, L) holds.
    moved: "blind" to where a pixel of a cell and a cell of the map is; "sees" it.
    swaps: d_hat and d may change places where there are no holes and no cells.
    exact: how far the product's float64 may be off by itself.
    """

    of: Callable[[SimpleNamespace, Tensor], Tensor]
    reference: Callable[[SimpleNamespace], float]
    grain: Callable[[SimpleNamespace], float]
    scaled: Callable[[SimpleNamespace, float], dict]
    law: Callable[[SimpleNamespace, float, float], float]
    moved: str = "blind"
    swaps: bool = False
    dtypes: tuple[str, ...] = ("float64", "float32")
    exact: Callable[[SimpleNamespace], float] = lambda c: 1e-12


def enlarged(case: SimpleNamespace, d_hat: Tensor) -> Tensor:
    return upsample(d_hat, case.d.shape[-2:], "nearest")


def silog(case: SimpleNamespace, d_hat: Tensor) -> Tensor:
    return losses.L_silog(enlarged(case, d_hat), case.d.to(d_hat), **case.silog)


def silog_cells(case: SimpleNamespace, d_hat: Tensor) -> Tensor:
    statistics = losses.cell_statistics(case.d.to(d_hat), d_hat.shape[-2:], case.silog["eps"])
    return losses.L_silog_cells(d_hat, *statistics, **case.silog)


def grad(case: SimpleNamespace, d_hat: Tensor) -> Tensor:
    return losses.L_grad(d_hat, *losses.gt_gradient(case.low.to(d_hat)))


def vnl(case: SimpleNamespace, d_hat: Tensor) -> Tensor:
    return losses.L_vnl(d_hat, case.low.to(d_hat), case.K, case.triplets, **case.vnl)


def robust(case: SimpleNamespace, d_hat: Tensor) -> Tensor:
    return losses.L_robust(enlarged(case, d_hat), case.d.to(d_hat), **case.robust)


def robust_cells(case: SimpleNamespace, d_hat: Tensor, kernel: str) -> Tensor:
    return losses.L_robust_cells(d_hat, case.d.to(d_hat), **case.robust, kernel=kernel)


def learned(case: SimpleNamespace, dtype: torch.dtype) -> losses.AdaptiveRobust:
    """AdaptiveRobust at the case's alpha and c, to double precision where it is asked for."""
    model = losses.AdaptiveRobust(**case.adaptive)
    assert model.alpha.item() == pytest.approx(case.adaptive["alpha"], rel=1e-6)
    assert model.c.item() == pytest.approx(case.adaptive["c"], rel=1e-6)
    model.to(dtype)
    share = (case.adaptive["alpha"] - 0.001) / 1.998
    model.latent_alpha.data.fill_(math.log(share) - math.log1p(-share))
    model.log_c.data.fill_(math.log(case.adaptive["c"]))
    return model


def adaptive(case: SimpleNamespace, d_hat: Tensor) -> Tensor:
    return learned(case, d_hat.dtype)(enlarged(case, d_hat), case.d.to(d_hat))


def depth_loss(case: SimpleNamespace, form: str, dynamic: bool) -> losses.DepthLoss:
    """Eq. 11 with the case's flags; form: "plain", "cpp" or "torch"."""
    make = losses.DepthLoss
    if form != "plain":
        make = functools.partial(losses.CellLoss, kernel=form)
    silog, robust, vnl = case.silog, case.robust, case.vnl
    loss = make(
        case.weights, dynamic=dynamic, seed=case.seed, pool=silog["pool"], robust_adaptive=False,
        silog_alpha=silog["alpha"], silog_lambda=silog["lam"], silog_eps=silog["eps"],
        robust_alpha=robust["alpha"], robust_c=robust["c"], vnl_share=0.5,
        vnl_filter=vnl["filter_on"], vnl_delta_z=vnl["delta_z"], vnl_cos=vnl["cos"],
        vnl_near=vnl["near"], vnl_drop=vnl["drop"],
    )  # fmt: skip
    if dynamic:
        loss.p.data = torch.from_numpy(case.p).float()
    return loss


def batch_of(case: SimpleNamespace, dtype: torch.dtype = torch.float32) -> dict:
    """The loader's batch. K is at full size there: the inverse of what Eq. 9 does with it."""
    size, full = case.low.shape[-2:], case.d.shape[-2:]
    K = torch.from_numpy(reference.intrinsics_at(case.K.numpy(), size, full))
    gt = losses.gt_gradient(case.low.to(dtype))
    return {
        "depth": case.d.to(dtype), "depth_low": case.low.to(dtype), "K": K.to(dtype),
        "triplets": case.triplets, "step": 0, **dict(zip(("grad_x", "grad_y", "M_x", "M_y"), gt)),
    }  # fmt: skip


def eq11(case: SimpleNamespace, d_hat: Tensor, form: str, dynamic: bool = False) -> Tensor:
    enlarge = functools.partial(upsample, size=case.d.shape[-2:], mode="nearest")
    loss, _ = depth_loss(case, form, dynamic)(d_hat, enlarge, batch_of(case))
    return loss


def ln_Z_off(alpha: float) -> float:
    """How far 2048 nodes are off: the tails are heavy at alpha = 0 (test_ln_z_is_as_exact_...)."""
    return 1e-12 if alpha > 0.3 else 3e-5


def big(case: SimpleNamespace) -> np.ndarray:
    return reference.enlarge(array(case.d_hat), case.d.shape[-2:])


TERMS = ("L_silog", "L_grad", "L_vnl", "L_robust")  # in the order of Eq. 11's weights


def terms_by_reference(case: SimpleNamespace) -> list[float]:
    return [LOSSES[name].reference(case) for name in TERMS]


def grains(case: SimpleNamespace) -> float:
    """Of Eq. 11: those of its terms, weighted."""
    return sum(w * LOSSES[k].grain(case) for w, k in zip(case.weights, TERMS))


SILOG = {
    "reference": lambda c: reference.silog(big(c), array(c.d), **c.silog),
    # two logarithms of 80 m, and the floor of 1e-6 under the square root
    "grain": lambda c: 1e-6 * c.silog["alpha"],
    "scaled": lambda c, k: {"silog": {"eps": k * c.silog["eps"]}},
    "law": lambda c, k, L: L,
}
ROBUST = {
    "reference": lambda c: reference.robust(big(c), array(c.d), **c.robust),
    "grain": lambda c: 2e-7,  # sqrt(z + 1) - 1 rounds like the 1 does
    "scaled": lambda c, k: {"robust": {"c": k * c.robust["c"]}},
    "law": lambda c, k, L: L,
}
EQ11 = {
    "reference": lambda c: reference.weighted(terms_by_reference(c), c.weights),
    "grain": grains,
    # only the gradient term has a unit: its weight takes the scale back
    "scaled": lambda c, k: {
        "silog": {"eps": k * c.silog["eps"]}, "robust": {"c": k * c.robust["c"]},
        "vnl": {"delta_z": k * c.vnl["delta_z"], "near": k * c.vnl["near"]},
        "weights": (c.weights[0], c.weights[1] / k, *c.weights[2:]),
    },
    "law": lambda c, k, L: L,
    "moved": "sees",
    "dtypes": ("float32",),
}  # fmt: skip
LOSSES: dict[str, Loss] = {
    "L_silog": Loss(silog, **SILOG, swaps=True),
    "L_silog_cells": Loss(silog_cells, **SILOG),
    "L_grad": Loss(
        grad, lambda c: reference.grad(array(c.d_hat), array(c.low)),
        grain=lambda c: 2e-5,
        scaled=lambda c, k: {}, law=lambda c, k, L: k * L, moved="sees", swaps=True,
    ),
    "L_vnl": Loss(
        vnl,
        lambda c: reference.virtual_normals(
            array(c.d_hat), array(c.low), c.K.numpy(), c.triplets.numpy(), **c.vnl
        ),
        grain=lambda c: 1e-5,
        scaled=lambda c, k: {"vnl": {x: k * c.vnl[x] for x in ("delta_z", "near")}},
        law=lambda c, k, L: L, moved="sees",
    ),
    "L_robust": Loss(robust, **ROBUST, swaps=True),
    "L_robust_cells torch": Loss(functools.partial(robust_cells, kernel="torch"), **ROBUST),
    "L_robust_cells cpp": Loss(
        functools.partial(robust_cells, kernel="cpp"), **ROBUST, dtypes=("float32",)
    ),
    "AdaptiveRobust": Loss(
        adaptive, lambda c: reference.adaptive(big(c), array(c.d), **c.adaptive),
        grain=lambda c: 1e-6,  # a sum of logarithms that may cancel
        scaled=lambda c, k: {"adaptive": {"c": k * c.adaptive["c"]}},
        # a density of e k is one k-th as high
        law=lambda c, k, L: L + math.log(k) if (c.d > 0).any() else 0.0, swaps=True,
        exact=lambda c: ln_Z_off(c.adaptive["alpha"]),
    ),
    "DepthLoss": Loss(functools.partial(eq11, form="plain"), **EQ11),
    "CellLoss torch": Loss(functools.partial(eq11, form="torch"), **EQ11),
    "CellLoss cpp": Loss(functools.partial(eq11, form="cpp"), **EQ11),
    "DepthLoss dynamic": Loss(
        functools.partial(eq11, form="plain", dynamic=True),
        **EQ11 | {
            "reference": lambda c: reference.dynamic(terms_by_reference(c), c.weights, c.p),
            "grain": lambda c: 4 * grains(c),  # p is 0.5 at least
        },
    ),
}  # fmt: skip
every_loss = pytest.mark.parametrize("name", LOSSES)
every_form = pytest.mark.parametrize(
    "name, dtype", [(name, dtype) for name, loss in LOSSES.items() for dtype in loss.dtypes]
)


def value(name: str, case: SimpleNamespace, dtype: str | None = None) -> float:
    """The loss of a case, in the most precise dtype that it has unless told otherwise."""
    return LOSSES[name].of(case, case.d_hat.to(DTYPES[dtype or LOSSES[name].dtypes[0]])).item()


def slope(name: str, case: SimpleNamespace, dtype: str | None = None) -> tuple[float, Tensor]:
    """Value and gradient, the latter shaped like d_hat."""
    x = case.d_hat.to(DTYPES[dtype or LOSSES[name].dtypes[0]], copy=True).requires_grad_()
    L = LOSSES[name].of(case, x)
    return L.item(), torch.autograd.grad(L, x)[0]


def close(name: str, L: float, expected: float, case: SimpleNamespace, times: float = 1.0) -> bool:
    """Whether two values of a loss, in its most precise dtype, are the same but for rounding."""
    if LOSSES[name].dtypes[0] == "float64":
        return L == pytest.approx(expected, rel=1e-9, abs=max(LOSSES[name].exact(case), 1e-11))
    return L == pytest.approx(expected, rel=1e-5, abs=times * LOSSES[name].grain(case))


def steady(case: SimpleNamespace) -> SimpleNamespace:
    """The case with those triplets only that float32 and float64 must judge alike: none is within
    1e-3 of a threshold of Eq. 9, nor so flat that rounding its corners turns the normal."""
    keep = np.ones(case.triplets.shape[1], bool)
    h, w = case.low.shape[-2:]
    v, u = np.divmod(case.triplets.numpy(), w)
    for k, (fx, fy, cx, cy) in enumerate(case.K.tolist()):
        for name in ("d_hat", "low"):
            z = array(getattr(case, name))[k, v, u]
            p = np.stack([(u - cx) * z / fx, (v - cy) * z / fy, z])  # (xyz, corner, triplet)
            edges = np.stack([p[:, 1] - p[:, 0], p[:, 2] - p[:, 0], p[:, 2] - p[:, 1]])
            length = np.sqrt((edges**2).sum(1))
            dots = np.stack([(edges[i] * edges[j]).sum(0) for i, j in ((0, 1), (0, 2), (1, 2))])
            sides = np.stack([length[i] * length[j] for i, j in ((0, 1), (0, 2), (1, 2))])
            cosine = abs(dots / (sides + 1e-8))
            area = np.sqrt((np.cross(edges[0], edges[1], axis=0) ** 2).sum(0))
            known = (array(case.low)[k, v, u] > 0).all(0)
            sure = (abs(cosine - case.vnl["cos"]) > 1e-3).all(0)
            sure &= (abs(abs(edges) / case.vnl["near"] - 1) > 1e-3).all((0, 1))
            sure &= (abs(z / max(case.vnl["delta_z"], 1e-9) - 1) > 1e-3).all(0)
            sure &= area > 0.05 * length.max(0) * np.sqrt((p**2).sum(0)).max(0)
            keep &= sure | ~known
    return changed(case, triplets=case.triplets[:, torch.from_numpy(keep)])


# ------------------------------------------------------------------- Eq. 7-11 and their reference


@functools.lru_cache(None)
def given_case(seed: int, dtype: str) -> tuple[SimpleNamespace, SimpleNamespace]:
    """A case as a dtype can tell it, and the same with other numbers in its holes."""
    c = build(seed) if dtype == "float64" else steady(build(seed))
    return c, spoilt(c)


@functools.lru_cache(None)
def expected(name: str, seed: int, dtype: str) -> float:
    c, _ = given_case(seed, dtype)
    if not name.startswith("DepthLoss"):
        return LOSSES[name].reference(c)
    terms = [expected(term, seed, dtype) for term in TERMS]
    if "dynamic" in name:
        return reference.dynamic(terms, c.weights, c.p)
    return reference.weighted(terms, c.weights)


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
            if dtype == "float32":
                tolerance = {"rel": 1e-5, "abs": loss.grain(c)}
            got = value(name, c, dtype)
            if got != pytest.approx(L, **tolerance):
                wrong.append((seed, got, L))
        told += L != 0
    assert not wrong, f"{len(wrong)} of {2 * CASES}: {wrong[:5]}"
    assert told > CASES * (0.4 if name == "L_vnl" else 0.6)  # a few maps are too small for a plane
    counted("random cases with holes equal to the numpy reference", 2 * CASES)


def test_the_cases_cover_what_they_should():
    cases = [given_case(seed, "float64")[0] for seed in range(CASES)]
    shares, empty, even = [], 0, 0
    for c in cases:
        M = c.d > 0
        shares.append(1 - M.float().mean().item())
        empty += bool((~M.flatten(1).any(1)).any())
        even += not any(x % y for x, y in zip(c.d.shape[-2:], c.d_hat.shape[-2:]))
        assert all(torch.equal(x.float().double(), x) for x in (c.d_hat, c.d, c.low, c.K))
    assert sum(x == 0 for x in shares) > 20 and sum(x > 0.9 for x in shares) > 30
    assert sum(0.05 < x < 0.9 for x in shares) > 80
    assert 30 < empty < 120 and 80 < even < 170
    assert {len(c.d) for c in cases} == {1, 2, 3, 4}
    for flag in ("lam", "eps", "pool"):
        assert len({c.silog[flag] for c in cases}) > 1
    assert len({c.robust["alpha"] for c in cases}) > 9


def test_z_has_its_closed_forms():
    """The reference's own integral: Gauss, Cauchy and Charbonnier, 2 e K_1(1)."""
    assert reference.Z(2.0) == pytest.approx(math.sqrt(2 * math.pi), rel=1e-13)
    assert reference.Z(0.0) == pytest.approx(math.pi * math.sqrt(2), rel=1e-13)
    assert reference.Z(1.0) == pytest.approx(2 * math.e * 0.6019072301972346, rel=1e-13)


def test_ln_z_is_as_exact_as_the_tolerance_says():
    for alpha in (0.003, 0.01, 0.03, 0.1, 0.2, 0.31, 0.5, 1.0, 1.5, 1.9, 1.997):
        log_Z = losses.log_partition(torch.tensor(alpha, dtype=torch.float64)).item()
        assert log_Z == pytest.approx(math.log(reference.Z(alpha)), rel=0, abs=ln_Z_off(alpha))


# ----------------------------------------------------------------------------- Eq. 7-11, their laws


@every_form
@examples
@given(seeds)
def test_what_a_hole_holds_changes_nothing(name, dtype, seed):
    """Not a bit of the value, nor of the gradient."""
    c = build(seed)
    (L, dL), (L_, dL_) = slope(name, c, dtype), slope(name, spoilt(c), dtype)
    assert L == L_ and torch.equal(dL, dL_)


def unseen(c: SimpleNamespace) -> Tensor:
    """bool, shaped like d_hat: where no truth is, in any pixel of the cell (of an even case)."""
    return ~(losses.cells(c.d, c.d_hat.shape[-2:]) > 0).any(5).any(3)


@every_form
@examples
@given(seeds, st.sampled_from([0.0, 1e-30, 1e4, 1e15, 1e30, 3e38]))
def test_what_is_predicted_in_a_hole_changes_nothing(name, dtype, seed, wild):
    """Of any finite size: not a bit of the value, nor of the gradient, which is 0 there."""
    c = build(seed, even=True, holes="sparse" if seed % 2 else "blocks")
    blind = unseen(c)
    (L, dL), (L_, dL_) = (
        slope(name, changed(c, d_hat=torch.where(blind, x, c.d_hat)), dtype)
        for x in (c.d_hat, wild)
    )
    assert L == L_ and torch.equal(dL, dL_) and not dL_[blind].any()


@every_loss
@examples
@given(seeds, factors, st.integers(-4, 4))
def test_law_of_a_common_scale(name, seed, k, power):
    """What d_hat and d times k make of it; by a power of two where only float32 is at hand, for
    there any other k rounds the depths anew."""
    c, loss = build(seed), LOSSES[name]
    k = 2.0**power if loss.dtypes[0] == "float32" else k
    c = steady(c) if loss.dtypes[0] == "float32" else c
    scaled = changed(c, d_hat=k * c.d_hat, d=k * c.d, low=k * c.low, **loss.scaled(c, k))
    wanted = loss.law(c, k, value(name, c))
    if name == "DepthLoss dynamic":  # the weights of Eq. 11 are inside its first sum
        assert value(name, scaled) == pytest.approx(wanted, rel=1e-5)
    else:
        assert close(name, value(name, scaled), wanted, c)


def shuffled(c: SimpleNamespace, rng: np.random.Generator) -> SimpleNamespace:
    """An even case with its cells in another order, and the pixels of each as well."""
    (n, _, h, w), (H, W) = c.d_hat.shape, c.d.shape[-2:]
    k, m = H // h, W // w
    order = torch.from_numpy(rng.permutation(h * w))
    inside = torch.from_numpy(rng.random((h * w, k * m)).argsort(1))

    def move(x: Tensor) -> Tensor:
        return x.flatten(2)[..., order].view(x.shape)

    d = c.d.view(n, 1, h, k, w, m).transpose(3, 4).reshape(n, 1, h * w, k * m)
    d = d.gather(3, inside.expand(n, 1, -1, -1))[:, :, order]
    d = d.view(n, 1, h, w, k, m).transpose(3, 4).reshape(n, 1, H, W)
    return changed(c, d_hat=move(c.d_hat), low=move(c.low), d=d)


@every_loss
@examples
@given(seeds)
def test_law_of_moved_pixels(name, seed):
    c = build(seed, even=True, holes=None if LOSSES[name].moved == "blind" else "none")
    if LOSSES[name].moved == "sees":
        c = changed(c, vnl={"cos": 0.867, "near": 0.005, "delta_z": 0.0}, weights=(0, 1, 2.5, 0))
    L = value(name, c)
    moved = value(name, shuffled(c, np.random.default_rng(seed)))
    if LOSSES[name].moved == "blind":
        assert close(name, moved, L, c)
    else:
        assert abs(moved - L) > 1e-4 * abs(L) > 0


MIRRORS = {  # what it does to a map, and to fx, fy, cx, cy and (v, u) of a map h x w
    "left-right": (
        lambda x: x.flip(-1),
        lambda K, h, w: K * K.new_tensor([1, 1, -1, 1]) + K.new_tensor([0, 0, w - 1, 0]),
        lambda v, u, h, w: v * w + (w - 1 - u),
    ),
    "up-down": (
        lambda x: x.flip(-2),
        lambda K, h, w: K * K.new_tensor([1, 1, 1, -1]) + K.new_tensor([0, 0, 0, h - 1]),
        lambda v, u, h, w: (h - 1 - v) * w + u,
    ),
    "diagonal": (
        lambda x: x.transpose(-1, -2),
        lambda K, h, w: K[:, [1, 0, 3, 2]],
        lambda v, u, h, w: u * h + v,
    ),
}


@every_loss
@pytest.mark.parametrize("mirror", MIRRORS)
@examples
@given(seeds)
def test_law_of_the_mirror(name, mirror, seed):
    """A mirrored world, seen by a mirrored camera, is as far off."""
    c = build(seed, even=True)
    (h, w), (flip, camera, pixel) = c.low.shape[-2:], MIRRORS[mirror]
    v, u = c.triplets // w, c.triplets % w
    other = changed(
        c, d_hat=flip(c.d_hat), d=flip(c.d), low=flip(c.low), K=camera(c.K, h, w),
        triplets=pixel(v, u, h, w),
    )  # fmt: skip
    if LOSSES[name].dtypes[0] == "float32":
        c, other = steady(c), steady(other)
    assert close(name, value(name, other), value(name, c), c)


def pictures(c: SimpleNamespace, index: list[int]) -> SimpleNamespace:
    """The case made of these pictures of it."""
    return changed(c, **{k: getattr(c, k)[index] for k in ("d_hat", "d", "low", "K")})


@every_loss
@examples
@given(seeds, st.randoms(use_true_random=False))
def test_law_of_the_batch(name, seed, random):
    """Blind to the order of pictures, to pictures without truth where "image" pools, and to having
    every picture twice, but for what Eq. 7's N/(N-1) and the floor of Eq. 9's dropped share say."""
    c = build(seed)
    index = list(range(len(c.d)))
    L = value(name, c)
    random.shuffle(index)
    assert close(name, value(name, pictures(c, index)), L, c)

    c = changed(c, vnl={"drop": 0.0}, silog={"lam": 1.0})
    if "Loss" in name:
        c = changed(c, weights=(0.0, *c.weights[1:]))
    N = int((c.d > 0).sum())
    once, twice = value(name, c), value(name, pictures(c, index * 2))
    if "silog" in name:
        once, twice = (x * math.sqrt((n - 1) / n) if n > 1 else x
                       for x, n in ((once, N), (twice, 2 * N)))  # fmt: skip
    if not ("silog" in name and N < 2):  # both stand on the floor
        assert close(name, twice, once, c)


@every_loss
@examples
@given(seeds)
def test_least_at_the_truth(name, seed):
    """0 there (silog: the floor under its root; a likelihood: its own least), more elsewhere."""
    c = build(seed, even=True)
    low = torch.where(c.low > 0, c.low, c.d_hat)
    true = changed(c, d_hat=low, d=c.low)
    L = value(name, true)
    assert close(name, L, LOSSES[name].reference(true), true)
    if name in ("L_grad", "L_vnl") or name.startswith("L_robust"):
        assert L == 0
    elsewhere = value(name, changed(true, d_hat=c.d_hat))
    assert elsewhere >= L and math.isfinite(elsewhere)
    # (Eq. 8 wants a pair, Eq. 9 a plane, and silog with lambda 1 two pixels that differ)
    if (c.low > 0).all() and name not in ("L_vnl",):
        assert elsewhere > L


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.swaps])
@examples
@given(seeds)
def test_prediction_and_truth_may_change_places(name, seed):
    """Where nothing is a hole: all four look at a difference only."""
    c = build(seed, even=True, holes="none")
    c = changed(c, d=c.low)
    swapped = changed(c, d_hat=c.low, d=c.d_hat, low=c.d_hat)
    assert close(name, value(name, swapped), value(name, c), c)


@examples
@given(seeds)
def test_eq9_prediction_and_truth_change_places_with_the_filter(seed):
    c = build(seed, even=True, holes="none")
    one = changed(c, vnl={"filter_on": "gt"})
    two = changed(c, d_hat=c.low, low=c.d_hat, vnl={"filter_on": "prediction"})
    assert close("L_vnl", value("L_vnl", two), value("L_vnl", one), c)


@examples
@given(seeds, factors, st.sampled_from([0.0, 0.3, 0.85, 1.0]))
def test_eq7_law_of_a_wrong_scale(seed, k, lam):
    """Of d_hat + eps: L^2 = alpha^2 ( var + (1 - lam) (mean + ln k)^2 ); lam = 1 is blind to it."""
    c = build(seed)
    c = changed(c, silog={"alpha": 1.0})
    var = value("L_silog", changed(c, silog={"lam": 1.0})) ** 2
    d_hat, d, eps = big(c), array(c.d), c.silog["eps"]
    e = {i: math.log((d_hat[i] + eps) / (d[i] + eps)) for i in reference.known_pixels(d)}
    shift = reference.pooled_mean(e, c.silog["pool"]) + (math.log(k) if e else 0.0)
    wanted = max(math.sqrt(var + (1 - lam) * shift**2), 1e-6) if e else 1e-6
    for name in ("L_silog", "L_silog_cells"):
        wrong = changed(c, silog={"lam": lam}, d_hat=k * (c.d_hat + eps) - eps)
        L = value(name, wrong)
        assert L == pytest.approx(wanted, rel=1e-8, abs=2e-12)
        assert value(name, changed(wrong, silog={"lam": 0.9 * lam})) >= L * (1 - 1e-12)
        alpha = value(name, changed(wrong, silog={"alpha": 10.0}))
        assert alpha == pytest.approx(10 * L, rel=1e-12)


@examples
@given(seeds, factors, st.floats(-100, 100))
def test_eq8_laws_of_its_own(seed, k, metres):
    """Blind to a constant; homogeneous along a ray from the truth; convex."""
    c = build(seed)
    L = value("L_grad", c)
    assert close("L_grad", value("L_grad", changed(c, d_hat=c.d_hat + metres)), L, c)
    assert close("L_grad", value("L_grad", changed(c, low=c.low + 200 * (c.low > 0))), L, c)
    truth = torch.where(c.low > 0, c.low, 0.0)
    ray = changed(c, d_hat=truth + k * (c.d_hat - truth))
    assert close("L_grad", value("L_grad", ray), k * L, c)
    other = changed(c, d_hat=c.d_hat.flip(2))
    middle = changed(c, d_hat=(c.d_hat + other.d_hat) / 2)
    assert value("L_grad", middle) <= (L + value("L_grad", other)) / 2 + 1e-9


@examples
@given(seeds, factors)
def test_eq9_laws_of_its_own(seed, k):
    """At most 2 sqrt(3), two opposite normals; blind to the prediction's own scale but for the
    filter; every triplet counts once, in any order of its corners."""
    c = build(seed)
    L = value("L_vnl", c)
    assert 0 <= L <= 2 * math.sqrt(3)
    gt = changed(c, vnl={"filter_on": "gt"})
    scaled = changed(gt, d_hat=k * c.d_hat)
    assert close("L_vnl", value("L_vnl", scaled), value("L_vnl", gt), c)
    rng = np.random.default_rng(seed)
    corners = torch.from_numpy(rng.random(c.triplets.shape).argsort(0))
    order = torch.from_numpy(rng.permutation(c.triplets.shape[1]))
    turned = changed(c, triplets=c.triplets.gather(0, corners)[:, order])
    assert close("L_vnl", value("L_vnl", turned), L, c)
    drops = [value("L_vnl", changed(c, vnl={"drop": x})) for x in (0.0, 0.25, 0.5, 0.9)]
    assert all(b >= a * (1 - 1e-12) or b == 0 for a, b in itertools.pairwise(drops))


@examples
@given(
    st.floats(-50, 50), st.floats(0.05, 20), st.floats(0.05, 20),
    st.one_of(st.sampled_from([-INF, -2.0, 0.0, 1.0, 2.0]), st.floats(-4, 3)),
)  # fmt: skip
def test_eq10_laws_of_rho(e, c, k, alpha):
    """rho(k e; k c) = rho(e; c), even, 0 at 0 only, growing in |e|, and in alpha."""

    def rho(e, alpha=alpha, c=c):
        return losses.rho(torch.tensor(e, dtype=torch.float64), alpha, c).item()

    L = rho(e)
    assert L == pytest.approx(reference.rho(e, alpha, c), rel=1e-9, abs=1e-15)
    assert rho(k * e, c=k * c) == pytest.approx(L, rel=1e-9, abs=1e-15)
    assert rho(-e) == L and rho(0.0) == 0 and L >= 0
    assert rho(1.01 * e) >= L and (abs(e) < 1e-6 * c or L > 0)
    assert rho(e, alpha=alpha + 0.1) >= L * (1 - 1e-9) - 1e-15
    assert L <= (e / c) ** 2 / 2 * (1 + 1e-9) if alpha <= 2 else L >= (e / c) ** 2 / 2 * (1 - 1e-9)
    assert alpha != -INF or L <= 1


@pytest.mark.parametrize("name", ["L_silog", "L_robust", "AdaptiveRobust"])
@examples
@given(seeds)
def test_pools_are_one_where_pictures_have_as_many_pixels(name, seed):
    c = build(seed, even=True, holes="none")
    one, two = (
        changed(c, silog=how, robust=how, adaptive=how)
        for how in ({"pool": "image"}, {"pool": "batch"})
    )
    assert close(name, value(name, one), value(name, two), c)
    # and with "image", a picture weighs what it weighs however few its pixels are
    half = changed(one, d=torch.where(torch.arange(c.d.shape[3]) < 1, c.d, 0.0))
    if name == "L_robust" and len(c.d) > 1:
        alone = [value(name, pictures(half, [k])) for k in range(len(c.d))]
        assert value(name, half) == pytest.approx(np.mean(alone), rel=1e-9)


# ------------------------------------------------------------------------------ Eq. 7-11, gradients

DOUBLE = [name for name, loss in LOSSES.items() if "float64" in loss.dtypes]
TAME = {"vnl": {"cos": 0.867, "near": 0.005, "delta_z": 0.1}, "silog": {"eps": 1e-3}}


def small(seed: int) -> SimpleNamespace:
    """An even case of few pixels with holes, away from Eq. 9's thresholds."""
    c = build(seed, even=True, holes=["random", "blocks", "lidar"][seed % 3])
    return steady(changed(c, **TAME))


@pytest.mark.parametrize("name", DOUBLE)
@pytest.mark.parametrize("seed", range(4))
def test_gradcheck(name, seed):
    c = small(seed)
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name].of(c, x), (c.d_hat.clone().requires_grad_(),)
    )


@pytest.mark.parametrize("seed", range(4))
def test_gradcheck_of_a_learned_alpha_and_c(seed):
    c = small(seed)
    model = learned(c, torch.float64)

    def loss(latent, log_c, x):
        state = {"latent_alpha": latent, "log_c": log_c}
        return torch.func.functional_call(model, state, (enlarged(c, x), c.d))

    inputs = [model.latent_alpha, model.log_c, c.d_hat.clone().requires_grad_()]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("form", ["plain", "torch"])
@pytest.mark.parametrize("seed", range(4))
def test_gradcheck_of_eq11(form, seed):
    """In the prediction and in the weights, in double: `forward` itself always is float32."""
    c = small(seed)
    loss, batch = depth_loss(c, form, dynamic=True).double(), batch_of(c, torch.float64)

    def weighed(x, p):
        terms = loss.terms(x, lambda x: enlarged(c, x), batch)
        return sum(0.5 * w / q**2 * L for w, q, L in zip(c.weights, p, terms.values()))

    x = c.d_hat.clone().requires_grad_()
    assert torch.autograd.gradcheck(weighed, (x, loss.p))

    def forward(p):
        call = (c.d_hat, lambda x: enlarged(c, x), batch_of(c))
        return torch.func.functional_call(loss, {"p": p}, call)[0]

    assert torch.autograd.gradcheck(forward, (loss.p,))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in DOUBLE])
@pytest.mark.parametrize("seed", range(8))
def test_gradient_in_float32_is_that_of_the_terms_in_float64(name, seed):
    """What has no double: the C++ kernel, and Eq. 11, a weighted sum of what has been checked."""
    c = small(seed)
    w = [1.0] if name.startswith("L_robust") else list(c.weights)
    if "dynamic" in name:
        w = [0.5 / q**2 * x for x, q in zip(w, c.p)]
    terms = ["L_robust"] if len(w) == 1 else TERMS
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


@dataclasses.dataclass(frozen=True)
class Distance:
    """A distance of features. of: (F_s, F_t, M, tau); blind: what of F_s (and F_t) it does not see;
    top: its largest value; digits: relative tolerance in float64."""

    of: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    reference: Callable[[SimpleNamespace], float]
    blind: tuple[str, ...] = ()
    alike: bool = False
    swaps: bool = True
    top: float = INF
    digits: float = 1e-9


def numpy_features(c: SimpleNamespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return c.F_s.numpy(), c.F_t.numpy(), c.M.numpy()[:, 0] > 0


PAIRS = {"blind": ("length", "rotation", "sign")}
FEATURES: dict[str, Distance] = {
    "L_affinity l1": Distance(
        lambda s, t, M, tau: distill.L_affinity(s, t, M, "l1"),
        lambda c: reference.affinity(*numpy_features(c), "l1"), **PAIRS, top=2,
    ),
    "L_affinity mse": Distance(
        lambda s, t, M, tau: distill.L_affinity(s, t, M, "mse"),
        lambda c: reference.affinity(*numpy_features(c), "mse"), **PAIRS, top=4,
    ),
    "L_affinity_gram": Distance(
        lambda s, t, M, tau: distill.L_affinity_gram(s, t, M),
        lambda c: reference.affinity(*numpy_features(c), "mse"), **PAIRS, top=4,
        digits=1e-6,  # it ends in float32
    ),
    "L_l2": Distance(
        lambda s, t, M, tau: distill.L_l2(s, t, M),
        lambda c: reference.l2(*numpy_features(c)), blind=("common shift",), alike=True,
    ),
    "L_channel": Distance(
        distill.L_channel, lambda c: reference.channel(*numpy_features(c), c.tau),
        blind=("shift",), alike=True, swaps=False,
    ),
}  # fmt: skip
every_distance = pytest.mark.parametrize("name", FEATURES)


def distance(name: str, c: SimpleNamespace, dtype: torch.dtype = torch.float64) -> float:
    return FEATURES[name].of(c.F_s.to(dtype), c.F_t.to(dtype), c.M.to(dtype), c.tau).item()


def alike(name: str, got: float, wanted: float) -> bool:
    return got == pytest.approx(wanted, rel=FEATURES[name].digits, abs=1e-13)


@every_distance
@pytest.mark.parametrize("dtype", DTYPES)
def test_distance_equals_the_reference(name, dtype, counted):
    wrong, told = [], 0
    tolerance = {"rel": FEATURES[name].digits, "abs": 1e-13}
    if dtype == "float32":
        # an inner product of unit features is rounded to 1e-7; a square of it to that squared, or
        # to 1e-7 of itself; features of 10 and their logarithms to 1e-6
        tolerance = {"rel": 1e-5, "abs": 2e-6 if name == "L_channel" else 3e-7}
    for seed in range(CASES):
        c = feature_case(seed, FEATURES[name].alike)
        got, wanted = distance(name, c, DTYPES[dtype]), FEATURES[name].reference(c)
        if got != pytest.approx(wanted, **tolerance):
            wrong.append((seed, got, wanted))
        told += wanted > 1e-3
    assert not wrong, f"{len(wrong)} of {CASES}: {wrong[:5]}"
    assert told > CASES / 2
    counted("random cases with holes equal to the numpy reference", CASES)


@every_distance
@examples
@given(seeds)
def test_distance_laws(name, seed):
    """Order of positions and of pictures, pictures twice, no difference, bounds, symmetry."""
    c, known = feature_case(seed, FEATURES[name].alike), FEATURES[name]
    rng = np.random.default_rng(seed)
    d = distance(name, c)
    assert 0 <= d <= known.top or abs(d) < 1e-12

    order = torch.from_numpy(rng.permutation(c.M[0].numel()))
    moved = {k: x.flatten(2)[..., order].view(x.shape) for k, x in vars(c).items() if k != "tau"}
    assert alike(name, distance(name, changed(c, **moved)), d)
    index = torch.from_numpy(np.repeat(rng.permutation(len(c.M)), 2))
    twice = {k: x[index] for k, x in vars(c).items() if k != "tau"}
    assert alike(name, distance(name, changed(c, **twice)), d)

    assert abs(distance(name, changed(c, F_t=c.F_s))) < 1e-12
    back = distance(name, changed(c, F_s=c.F_t, F_t=c.F_s))
    if known.swaps:
        assert alike(name, back, d)
    elif d > 0.01 and c.M.sum() > 20:
        assert abs(back - d) > 1e-4 * d

    other = torch.where(c.M > 0, c.F_s, 1e30)  # whose square is more than a float32 can hold
    one, two = (distance(name, changed(c, F_s=x), torch.float32) for x in (c.F_s, other))
    assert one == two


@every_distance
@examples
@given(seeds)
def test_what_a_distance_does_not_see(name, seed):
    c = feature_case(seed, FEATURES[name].alike)
    rng = np.random.default_rng(seed)
    C = c.F_s.shape[1]
    axis = torch.from_numpy(rng.normal(size=C))
    turn = torch.eye(C).double() - 2 * torch.outer(axis, axis) / (axis @ axis)  # Householder's
    shift = torch.from_numpy(rng.uniform(-1e3, 1e3, (len(c.M), C, 1, 1)))
    stretch = torch.from_numpy(rng.uniform(0.5, 5, c.M.shape))
    changes = {
        "length": changed(c, F_s=c.F_s * stretch),
        "rotation": changed(c, F_s=torch.einsum("ij,njhw->nihw", turn, c.F_s)),
        "sign": changed(c, F_s=-c.F_s),
        "shift": changed(c, F_s=c.F_s + shift),
        "common shift": changed(c, F_s=c.F_s + 1, F_t=c.F_t + 1),
    }
    d = distance(name, c)
    for what, other in changes.items():
        if what == "common shift" and name != "L_l2":
            continue
        if what in FEATURES[name].blind:
            # 1e-8 under the root of a length is not nothing for features of 0.01; a shift of 1e3
            # costs three digits
            assert distance(name, other) == pytest.approx(d, rel=1e-4, abs=1e-6), what
        elif d > 0.01 and c.M.sum() > 10 and C > 2:
            assert abs(distance(name, other) - d) > 1e-6 * d, what


@examples
@given(seeds, factors)
def test_l2_is_of_degree_2_and_mse_at_most_twice_l1(seed, k):
    c = feature_case(seed, True)
    scaled = changed(c, F_s=k * c.F_s, F_t=k * c.F_t)
    assert distance("L_l2", scaled) == pytest.approx(k**2 * distance("L_l2", c), rel=1e-9)
    l1, mse = distance("L_affinity l1", c), distance("L_affinity mse", c)
    assert l1**2 - 1e-12 <= mse <= 2 * l1 + 1e-12 or (c.M.flatten(1).any(1)).sum() > 1
    assert mse <= 2 * l1 + 1e-12


@examples
@given(seeds, st.sampled_from([1e-3, 1e-2, 1.0, 100.0]))
def test_channel_wise_at_any_temperature(seed, tau):
    """Holes weigh nothing however low tau makes the logits of valid positions."""
    c = changed(feature_case(seed, True), tau=tau)
    c = changed(c, F_s=c.F_s - 30, F_t=c.F_t - 30)
    wanted = reference.channel(*numpy_features(c), tau)
    assert distance("L_channel", c) == pytest.approx(wanted, rel=1e-7, abs=1e-12 * max(tau, 1) ** 2)


@pytest.mark.parametrize("name", [name for name in FEATURES if name != "L_affinity_gram"])
@pytest.mark.parametrize("seed", range(4))
def test_gradcheck_of_a_distance(name, seed):
    c = feature_case(seed, FEATURES[name].alike)
    inputs = [x.clone().requires_grad_() for x in (c.F_s, c.F_t)]
    assert torch.autograd.gradcheck(
        lambda s, t: FEATURES[name].of(s, t, c.M, c.tau), inputs, atol=1e-7
    )


@pytest.mark.parametrize("seed", range(20))
def test_gradient_of_the_gram_form_is_that_of_the_pairs(seed):
    c, slopes = feature_case(seed, False), []
    for name in ("L_affinity mse", "L_affinity_gram"):
        inputs = [x.clone().requires_grad_() for x in (c.F_s, c.F_t)]
        L = FEATURES[name].of(*inputs, c.M, c.tau)
        slopes.append(torch.cat([g.flatten() for g in torch.autograd.grad(L, inputs)]))
    assert (slopes[1] - slopes[0]).abs().max() <= 1e-6 * slopes[0].abs().max() + 1e-12


# ------------------------------------------------------------------------------------------ Eq. 13


class Maps(nn.Module):
    """Stands for a network: its prediction and features are given."""

    def __init__(self, d_hat: Tensor, F: list[Tensor]) -> None:
        super().__init__()
        self.d_hat, self.F = d_hat, F
        self.register_buffer("mean", torch.full((3,), 127.5))
        self.register_buffer("std", torch.full((3,), 127.5))

    def features(self, image: Tensor, normalized: bool) -> tuple[Tensor, list[Tensor]]:
        return self.d_hat, self.F

    def normalize(self, image: Tensor) -> Tensor:
        return (image - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)

    def enlarge(self, d_hat: Tensor, size: tuple[int, int]) -> Tensor:
        return upsample(d_hat, size, "nearest")


@pytest.mark.parametrize("method", ["structure mse", "structure l1", "l2", "channel"])
def test_eq13_equals_the_reference(method):
    """Three levels, the coarser ones a half and a quarter of the prediction's size."""
    how, _, affinity = method.partition(" ")
    wrong = []
    for seed in range(CASES if affinity != "l1" else CASES // 4):  # mse differs in its form only
        rng = np.random.default_rng([13, seed])
        c, junk = given_case(seed, "float32")
        n, factor = len(c.d), 1
        if not any(x % 4 for x in c.low.shape[-2:]):
            factor = 4
        elif not any(x % 2 for x in c.low.shape[-2:]):
            factor = 2
        sizes = [tuple(x // f for x in c.low.shape[-2:]) for f in (factor, min(factor, 2), 1)]
        levels = []
        for size in sizes:
            C_s, C_t = rng.integers(1, 6, 2)
            C_t = C_t if how == "structure" else C_s
            shapes = (n, C_s, *size), (n, C_t, *size)
            levels.append([torch.from_numpy(rng.normal(size=s)).float() for s in shapes])
        F_s, F_t = map(list, zip(*levels))
        w_d, tau = float(rng.choice([0.01, 10.0])), 4.0
        objective = distill.Distill(
            Maps(c.d_hat.float(), F_s), depth_loss(c, "plain", False), Maps(None, F_t),
            method=how, affinity=affinity or "mse", w_d=w_d, tau=tau, w_t=1.0,
        )  # fmt: skip
        image = {"image": torch.zeros(n, 3, 8, 8), "extent": torch.full((n, 2), 8)}
        L, terms = objective(batch_of(junk) | image)
        distances = []
        for size, f_s, f_t in zip(sizes, F_s, F_t):
            M = reference.coarse_mask(array(c.low), size)
            maps = f_s.double().numpy(), f_t.double().numpy(), M
            if how == "structure":
                distances.append(reference.affinity(*maps, affinity))
            elif size == sizes[-1] and f_s is F_s[-1]:
                distances.append(
                    reference.l2(*maps) if how == "l2" else reference.channel(*maps, tau)
                )
        wanted = reference.distilled(expected("DepthLoss", seed, "float32"), distances, w_d)
        grain = LOSSES["DepthLoss"].grain(c) + 3e-6 * w_d
        if L.item() != pytest.approx(wanted, rel=1e-5, abs=grain):
            wrong.append((seed, L.item(), wanted))
    assert not wrong, f"{len(wrong)}: {wrong[:5]}"


# ---------------------------------------------------------------------------- Sec. 4.1, the metrics

METRICS = {  # law of a common scale, law of swapping prediction and truth
    "si_rmse": ("blind", True), "rmse": ("times k", True), "log10": ("blind", True),
    "rel": ("blind", False), "delta1": ("blind", True), "delta2": ("blind", True),
    "delta3": ("blind", True),
}  # fmt: skip


def picture(seed: int, tame: bool = False) -> tuple[np.ndarray, np.ndarray, float]:
    """(prediction, truth, max_depth): 0.3 to 80 m with holes, float32 or float64; the prediction
    has zeros, and depths beyond max_depth. tame: without either, and always a valid pixel."""
    rng = np.random.default_rng([4, seed])
    shape = 1, *rng.integers(1, 20, 2)
    d = depth_of(shape, rng)
    d_hat = d * np.exp(rng.normal(rng.uniform(-0.3, 0.3), rng.choice([0.02, 0.4]), shape))
    holes = holes_of(str(rng.choice(["none", "random", "blocks", "lidar", "sparse"])), shape, rng)
    if tame:
        holes[0, 0, 0] = False
    else:
        d_hat[rng.random(shape) < 0.1 * (rng.random() < 0.3)] = 0
        d[rng.random(shape) < 0.05] = rng.choice([0.001, 0.0005, 0.0011])  # 1 mm is a hole as well
        holes |= rng.random() < 0.1
    d[holes] = rng.choice([0, NAN, INF, -INF, -1.0])
    dtype = rng.choice([np.float32, np.float64])
    return d_hat[0].astype(dtype), d[0].astype(dtype), 1e9 if tame else float(rng.choice([10, 40]))


def off(name: str, got: float, wanted: float, log_scale: float = 5.0) -> bool:
    """Whether a metric is not what it should be.

    1e-9 of itself; si-RMSE besides: its mean(g^2) - mean(g)^2 is rounded to 1e-15 g^2, and a root
    makes of x + y at most sqrt(x) + sqrt(y).
    """
    if math.isnan(wanted) or math.isnan(got):
        return math.isnan(wanted) != math.isnan(got)
    slack = 1e-15 * log_scale**2 / max(wanted, 1e-9) if name == "si_rmse" else 1e-14
    return got != pytest.approx(wanted, rel=1e-9, abs=min(slack, 1e-7))


def test_metrics_equal_the_reference(counted):
    wrong, empty, rows = [], 0, []
    tally = evaluate.Tally(40)
    for seed in range(CASES):
        d_hat, d, top = picture(seed)
        got, wanted = evaluate.metrics(d_hat, d, top), reference.metrics(d_hat, d, top)
        assert got.keys() == wanted.keys() == set(evaluate.METRICS) == METRICS.keys()
        aligned = evaluate.median_aligned(d_hat, d, top)
        np.testing.assert_allclose(aligned, reference.median_aligned(d_hat, d, top), rtol=1e-6)
        aligned = (
            evaluate.metrics(aligned, d, top),
            reference.metrics(reference.median_aligned(d_hat, d, top), d, top),
        )
        for kind, (a, b) in {"raw": (got, wanted), "aligned": aligned}.items():
            # a float32 prediction times a scale is rounded to float32
            if kind == "raw" or d_hat.dtype == np.float64:
                wrong += [(seed, kind, k, a[k], b[k]) for k in a if off(k, a[k], b[k])]
        empty += math.isnan(wanted["rel"])
        tally.add(str(seed), "s", d_hat, d)
        rows.append(reference.metrics(d_hat, d, 40))
    assert not wrong, f"{len(wrong)}: {wrong[:5]}"
    assert 10 < empty < CASES / 2
    whole, ours = reference.dataset(rows), tally.mean()
    assert all(not off(k, ours[k], whole[k]) for k in METRICS)
    assert ours["images"] == sum(math.isfinite(row["rel"]) for row in rows)
    assert tally.empty == CASES - ours["images"]
    counted("random cases with holes equal to the numpy reference", CASES)


def test_a_millimetre_is_a_hole_in_every_dtype():
    """float32 has 1 mm a little above, float64 a little below: neither says anything."""
    for dtype in (np.float32, np.float64):
        for scale, raw in ((1000, 1), (5000, 5), (10_000, 10), (256 * 125, 32)):
            d = np.array([[raw]], dtype) / dtype(scale)
            assert not evaluate.known(d).any(), (dtype, scale)
            assert evaluate.known(d + dtype(1e-4)).all()
    assert not evaluate.known(np.array([[1]], np.float32).astype(np.float64) / 1000).any()


@examples
@given(seeds, st.sampled_from([0.0, 5e-4, 1e-3, -1.0, NAN, INF, -INF]))
def test_metrics_do_not_see_holes_nor_the_order_of_pixels(seed, junk):
    d_hat, d, top = picture(seed)
    M = evaluate.known(d)
    before = evaluate.metrics(d_hat, d, top)
    for wild in (NAN, INF, -INF, 0.0, 1e30):
        other = evaluate.metrics(np.where(M, d_hat, wild), np.where(M, d, junk), top)
        assert all(other[k] == v or math.isnan(v) for k, v in before.items())
        a, b = (
            evaluate.median_aligned(np.where(M, d_hat, x), np.where(M, d, junk), top)[M]
            for x in (wild, 1.0)
        )
        assert np.array_equal(a, b)
    order = np.random.default_rng(seed).permutation(d.size)
    moved = evaluate.metrics(d_hat.ravel()[order][None], d.ravel()[order][None], top)
    assert not any(off(k, moved[k], v) for k, v in before.items())
    twice = evaluate.metrics(np.tile(d_hat, 2), np.tile(d, 2), top)
    assert not any(off(k, twice[k], v) for k, v in before.items())


@examples
@given(seeds, factors)
def test_laws_of_the_metrics(seed, k):
    """Away from the cuts at 1 mm and max_depth."""
    d_hat, d, top = (np.asarray(x, np.float64) for x in picture(seed, tame=True))
    d_hat, M = d_hat + 0.05, evaluate.known(d)
    d = np.where(M, d, 0)
    m = evaluate.metrics(d_hat, d, top)
    scaled = evaluate.metrics(k * d_hat, k * d, top)
    for name, (law, swaps) in METRICS.items():
        wanted = m[name] * (k if law == "times k" else 1)
        assert name.startswith("delta") or not off(name, scaled[name], wanted), name
        back = evaluate.metrics(np.where(M, d, 1), np.where(M, d_hat, 0), top)[name]
        if swaps:
            assert not off(name, back, m[name]), name
        elif m[name] > 0.02:
            assert abs(back - m[name]) > 1e-4 * m[name]
    # only si-RMSE is blind to a scale of the prediction alone
    wrong = evaluate.metrics(k * d_hat, d, top)
    assert not off("si_rmse", wrong["si_rmse"], m["si_rmse"])
    g = np.log(d_hat[M] / d[M])
    log10 = np.mean(np.abs(g + math.log(k))) / math.log(10)
    assert wrong["log10"] == pytest.approx(log10, rel=1e-9)
    # orders and inequalities
    assert 0 <= m["delta1"] <= m["delta2"] <= m["delta3"] <= 1
    rms_log = math.sqrt(np.mean(g**2))
    assert m["si_rmse"] <= rms_log * (1 + 1e-9)
    assert m["log10"] * math.log(10) <= rms_log * (1 + 1e-9)  # Jensen
    assert abs(np.mean(g)) <= m["log10"] * math.log(10) * (1 + 1e-9)
    assert m["si_rmse"] ** 2 + np.mean(g) ** 2 == pytest.approx(rms_log**2, rel=1e-9)
    assert np.mean(np.abs(d_hat - d)[M]) <= m["rmse"] * (1 + 1e-9)
    assert m["rel"] >= np.mean(np.abs(g)) - np.mean(g**2)  # |e^g - 1| >= |g| - g^2
    # a true prediction, and one that is true but for a scale
    true = evaluate.metrics(np.where(M, d, 7), d, top)
    assert [true[x] for x in METRICS] == [0, 0, 0, 0, 1, 1, 1]
    assert evaluate.metrics(np.where(M, k * d, 7), d, top)["si_rmse"] < 1e-6


@examples
@given(seeds, factors)
def test_laws_of_median_alignment(seed, k):
    """Blind to the prediction's scale, gives the truth's median, and does nothing twice."""
    d_hat, d, top = picture(seed, tame=True)
    d_hat, M = d_hat.astype(np.float64), evaluate.known(d)
    once = evaluate.median_aligned(d_hat, d, top)
    np.testing.assert_allclose(evaluate.median_aligned(k * d_hat, d, top), once, rtol=1e-12)
    np.testing.assert_allclose(evaluate.median_aligned(once, d, top), once, rtol=1e-12)
    assert np.median(once[M]) == pytest.approx(np.median(d[M].astype(float)), rel=1e-12)
    raw, aligned = (evaluate.metrics(x, d, top)["si_rmse"] for x in (d_hat, once))
    assert not off("si_rmse", aligned, raw)


@examples
@given(st.integers(0, CASES - 1), st.integers(1, 6), st.randoms(use_true_random=False))
def test_laws_of_the_mean_over_pictures(first, count, random):
    """Blind to their order, to pictures without truth, and to having each twice."""

    def mean(seeds):
        tally = evaluate.Tally(40)
        for seed in seeds:
            tally.add(str(seed), "s", *picture(seed)[:2])
        return tally.mean()

    order = list(range(first, first + count))
    m = mean(order)
    random.shuffle(order)
    assert not any(off(k, mean(order)[k], m[k]) for k in METRICS)
    twice = mean(order + order)
    assert not any(off(k, twice[k], m[k]) for k in METRICS) and twice["images"] == 2 * m["images"]
    kept = [s for s in order if evaluate.known(picture(s)[1]).any()]
    assert m["images"] == len(kept) and not any(off(k, mean(kept)[k], m[k]) for k in METRICS)


@examples
@given(st.floats(0, 2), st.floats(1e-4, 10), st.floats(1e-4, 1), st.floats(1.01, 100))
def test_eq14_laws(si_rmse, runtime, C, k):
    score = evaluate.score(si_rmse, runtime, C)
    assert score == pytest.approx(reference.score(si_rmse, runtime, C), rel=1e-12)
    assert evaluate.score(si_rmse, k * runtime, C) == pytest.approx(score / k, rel=1e-12)
    assert evaluate.score(si_rmse, runtime, k * C) == pytest.approx(score / k, rel=1e-12)
    assert evaluate.score(si_rmse + 0.05, runtime, C) == pytest.approx(score / 2, rel=1e-12)
    assert evaluate.score(0, 1 / C, C) == pytest.approx(1, rel=1e-12)


# ----------------------------------------------------------------------------------------- no holes


def test_the_tables_are_complete():
    """Each loss, distance and metric of the product stands in a table above."""
    ours = [
        name
        for module in (losses, distill)
        for name, x in inspect.getmembers(module)
        if getattr(x, "__module__", None) == module.__name__
        and (name.startswith("L_") or inspect.isclass(x) and issubclass(x, nn.Module))
    ]
    assert len(ours) == 14
    known = {name.split()[0] for name in itertools.chain(LOSSES, FEATURES)} | {"Distill"}
    assert set(ours) == known and set(evaluate.METRICS) == METRICS.keys()
