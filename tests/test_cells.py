"""losses.py: Eq. 7, 10 and 11 by cell against the plain form in float64, loops and numbers by hand.

What is compared is relative: values by their own size, gradients by their largest element. Where
the float32 of the plain form is itself further from float64 than 1e-6 (a steep rho multiplies the
rounding of d_hat - d), the cell form may be as far as that and no further.
"""

import argparse
import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import losses
from model import upsample

SILOG = {"alpha": 1.0, "lam": 0.85, "eps": 1e-3}
ROBUST = {"alpha": 1.0, "c": 2.0}
NAN, INF = math.nan, math.inf
CANVASES = {  # name: (H, W), (h, w)
    "480x640": ((480, 640), (32, 40)),
    "uneven": ((97, 131), (7, 9)),
    "uneven columns": ((96, 131), (8, 9)),
    "enlarged": ((9, 12), (11, 12)),
    "same": ((9, 12), (9, 12)),
}
HOLES = ["none", "random", "all", "one pixel", "whole pictures", "sparse", "not finite"]
every_map = pytest.mark.parametrize(
    "canvas, holes",
    [("uneven", h) for h in HOLES] + [(c, "random") for c in CANVASES if c != "uneven"],
)
pools = pytest.mark.parametrize("pool", ["batch", "image"])
kernels = pytest.mark.parametrize("kernel", ["cpp", "torch"])


def scene(canvas="uneven", holes="random", n=2, seed=0):
    """(d_hat (n,1,h,w), d (n,1,H,W)) float32; d is a smooth surface plus noise, 1-9 m."""
    (H, W), size = CANVASES[canvas]
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(1, 9, (n, 1, *size)))
    d = upsample(coarse, (H, W), "nearest").numpy() * rng.uniform(0.8, 1.2, (n, 1, H, W))
    d_hat = coarse.numpy() * np.exp(rng.normal(0.1, 0.3, coarse.shape))
    if holes == "random":
        d[rng.random(d.shape) < 0.3] = 0
    elif holes == "all":
        d[:] = 0
    elif holes == "one pixel":
        d *= np.arange(d.size).reshape(d.shape) == d.size // 2
    elif holes == "whole pictures":
        d[0], d[1:, :, : H // 2] = 0, 0
    elif holes == "sparse":
        d[rng.random(d.shape) < 0.98] = 0
    elif holes == "not finite":
        for hole in (NAN, INF, -INF, -1.0, -0.0):
            d[rng.random(d.shape) < 0.1] = hole
    return torch.from_numpy(d_hat).float(), torch.from_numpy(d).float()


def with_gradient(loss, d_hat, *others):
    x = d_hat.clone().requires_grad_()
    L = loss(x, *others)
    assert L.requires_grad and L.dtype == x.dtype
    return L.item(), torch.autograd.grad(L, x)[0].double()


def apart(got, expected):
    """How far a (value, gradient) is from the expected one, relative: two numbers."""
    (L, slope), (L_, slope_) = got, expected
    top = slope_.abs().max().item()
    return abs(L - L_) / (abs(L_) or 1), (slope - slope_).abs().max().item() / (top or 1)


def check(cell, plain, d_hat, d):
    """cell(d_hat, d) equals plain(upsampled d_hat, d) in float64 to 1e-6, or as well as plain's
    own float32 does."""

    def full(x, d):
        return plain(upsample(x, d.shape[-2:], "nearest"), d)

    exact = with_gradient(full, d_hat.double(), d.double())
    limits = apart(with_gradient(full, d_hat, d), exact)
    far = apart(with_gradient(cell, d_hat, d), exact)
    assert all(a <= max(1e-6, limit) for a, limit in zip(far, limits)), (far, limits)


def silog_cells(d_hat, d, **flags):
    statistics = losses.cell_statistics(d, d_hat.shape[-2:], flags["eps"])
    return losses.L_silog_cells(d_hat, *statistics, **flags)


# ---------------------------------------------------------------------------------- the statistics


def by_cell(d, size):
    """{(picture, i, j): float64 array of the valid depths} of d (N,1,H,W), cell by cell."""
    d = d.double().numpy()[:, 0]
    _, H, W = d.shape
    found = {}
    for k, v, u in np.ndindex(d.shape):
        z = d[k, v, u]
        if np.isfinite(z) and z > 0:
            cell = k, v * size[0] // H, u * size[1] // W
            found.setdefault(cell, []).append(z)
    return {cell: np.array(z) for cell, z in found.items()}


@every_map
def test_statistics_match_loops(canvas, holes):
    d_hat, d = scene(canvas, holes)
    size = d_hat.shape[-2:]
    n, mean, M2 = losses.cell_statistics(d, size, 1e-3)
    assert n.shape == mean.shape == M2.shape == d_hat.shape
    found = by_cell(d, size)
    assert n.sum() == sum(map(len, found.values()))
    for (k, i, j), z in found.items():
        x = np.log(z + 1e-3)
        assert n[k, 0, i, j] == len(x)
        assert mean[k, 0, i, j].item() == pytest.approx(x.mean(), rel=1e-6, abs=2e-7)
        exact = x.var() * len(x)  # a float32 logarithm is 2.4e-7 off, and so is every deviation
        limit = 2 * math.sqrt(len(x) * exact) * 2.4e-7 + 1e-12
        assert abs(M2[k, 0, i, j].item() - exact) <= limit
    empty = n == 0
    assert not mean[empty].any() and not M2[empty].any()


def test_cells_are_a_view_where_sizes_divide_and_leave_the_truth_alone():
    d = torch.arange(480.0).view(2, 1, 12, 20)
    cells = losses.cells(d, (3, 4))
    assert cells.data_ptr() == d.data_ptr() and cells.shape == (2, 1, 3, 4, 4, 5)
    assert torch.equal(cells[1, 0, 2, :, 3], d[1, 0, 8:12, 15:20])
    cells = losses.cells(d + 1, (5, 4))  # rows 0-2, 3-4, 5-7, 8-9, 10-11
    assert cells.shape == (2, 1, 5, 3, 4, 5) and cells.sum() == (d + 1).sum()
    assert torch.equal(cells[0, 0, 1, :2, 0], d[0, 0, 3:5, :5] + 1) and not cells[:, :, 1, 2].any()


def test_statistics_keep_their_digits_far_from_0():
    """ln d = 9 +- 1e-3: the difference of raw float32 sums would be nothing but rounding."""
    rng = np.random.default_rng(0)
    d = torch.from_numpy(np.exp(9 + 1e-3 * rng.normal(size=(1, 1, 60, 64)))).float()
    _, _, M2 = losses.cell_statistics(d, (4, 4), 1e-3)
    _, _, exact = losses.cell_statistics(d.double(), (4, 4), 1e-3)
    assert (M2 / exact - 1).abs().max() < 1e-3  # what the rounding of the logarithms leaves


# ------------------------------------------------------------------------------------------- Eq. 7


@pools
@every_map
def test_eq7_equals_the_plain_form(canvas, holes, pool):
    flags = SILOG | {"pool": pool}
    d_hat, d = scene(canvas, holes)
    check(
        lambda *maps: silog_cells(*maps, **flags),
        lambda *maps: losses.L_silog(*maps, **flags), d_hat, d,
    )  # fmt: skip


@pools
@pytest.mark.parametrize("flags", [{"lam": 0.0}, {"lam": 1.0}, {"eps": 0.1}, {"alpha": 10.0}])
def test_eq7_equals_the_plain_form_for_every_flag(flags, pool):
    flags = SILOG | flags | {"pool": pool}
    d_hat, d = scene()
    check(
        lambda *maps: silog_cells(*maps, **flags),
        lambda *maps: losses.L_silog(*maps, **flags), d_hat, d,
    )  # fmt: skip


@pools
def test_eq7_edge_cases(pool):
    flags = SILOG | {"pool": pool}
    # one valid pixel: variance 0, by hand
    d = torch.zeros(2, 1, 4, 6)
    d[1, 0, 2, 3] = 4.0
    L = silog_cells(torch.full((2, 1, 2, 2), 2.0), d, **flags)
    assert L.item() == pytest.approx(math.sqrt(0.15) * math.log(4.001 / 2.001), rel=1e-6)
    # no valid pixel: 0 but for the clamp, attached, no slope
    L, slope = with_gradient(lambda x: silog_cells(x, 0 * d, **flags), torch.ones(2, 1, 2, 2))
    assert L == pytest.approx(1e-6) and not slope.any()
    # perfect: the clamp keeps the slope finite
    d = torch.rand(2, 1, 2, 2).repeat_interleave(3, 2) + 1
    L, slope = with_gradient(lambda x: silog_cells(x, d, **flags), d[:, :, ::3])
    assert L < 1e-5 and slope.isfinite().all()
    # a prediction of 0 (the last ReLU)
    L, slope = with_gradient(lambda x: silog_cells(x, d, **flags), torch.zeros(2, 1, 2, 2))
    assert math.isfinite(L) and slope.isfinite().all() and slope.any()


# ------------------------------------------------------------------------------------------ Eq. 10

ALPHAS = [-INF, -2.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, INF]
every_form = pytest.mark.parametrize(  # csrc has the paper's alpha and the square
    "kernel, alpha", [("torch", alpha) for alpha in ALPHAS] + [("cpp", 1.0), ("cpp", 2.0)]
)


@kernels
@pools
@every_map
def test_eq10_equals_the_plain_form(canvas, holes, pool, kernel):
    flags = ROBUST | {"pool": pool}
    d_hat, d = scene(canvas, holes)
    check(
        lambda *maps: losses.L_robust_cells(*maps, **flags, kernel=kernel),
        lambda *maps: losses.L_robust(*maps, **flags), d_hat, d,
    )  # fmt: skip


@every_form
@pools
@pytest.mark.parametrize("c", [0.7, 10.0])
def test_eq10_equals_the_plain_form_for_every_shape(alpha, c, pool, kernel):
    flags = {"alpha": alpha, "c": c, "pool": pool}
    d_hat, d = scene()
    d_hat = d_hat.clamp(max=8.0)  # alpha = inf overflows beyond 13 c
    check(
        lambda *maps: losses.L_robust_cells(*maps, **flags, kernel=kernel),
        lambda *maps: losses.L_robust(*maps, **flags), d_hat, d,
    )  # fmt: skip


@kernels
def test_eq10_by_hand(kernel):
    """alpha = 1, c = 2: e = 0, 2 sqrt(3), hole | -2 sqrt(8), hole, hole -> rho = 0, 1 | 2."""
    d = torch.tensor([[[[9.0, 9.0 - 2 * 3**0.5, NAN, 5 + 2 * 8**0.5, -1.0, INF]]]])
    x = torch.tensor([[[[9.0, 5.0]]]], requires_grad=True)
    L = losses.L_robust_cells(x, d, **ROBUST, pool="batch", kernel=kernel)
    L.backward()
    assert L.item() == pytest.approx(1.0, rel=1e-6)
    expected = [3**0.5 / 4 / 3, -(8**0.5) / 6 / 3]  # e / c^2 / sqrt((e/c)^2 + 1), a third each
    assert x.grad.flatten().tolist() == pytest.approx(expected, rel=1e-6)


@every_form
def test_eq10_survives_any_prediction_in_a_hole(alpha, kernel):
    """At alpha = inf, rho overflows there, and inf * 0 = NaN. Here a cell without truth."""
    d_hat, d = scene("same", "none")
    d[:, :, :4] = NAN
    wild = torch.where(d > 0, d + 0.5, 1e30)
    flags = {"alpha": alpha, "c": 2.0, "pool": "image", "kernel": kernel}
    L, slope = with_gradient(lambda x: losses.L_robust_cells(x, d, **flags), wild)
    L_, slope_ = with_gradient(lambda x: losses.L_robust_cells(x, d, **flags), d.nan_to_num() + 0.5)
    assert L == L_ > 0 and torch.equal(slope, slope_) and slope[d > 0].all()


def test_eq10_rejects_another_batch_and_another_dtype():
    d_hat, d = scene()
    for kernel in ("cpp", "torch"):
        with pytest.raises(ValueError, match="expected"):
            losses.L_robust_cells(d_hat[:1], d, **ROBUST, pool="batch", kernel=kernel)
    with pytest.raises(TypeError, match="d_hat: expected dtype float32, got float64"):
        losses.L_robust_cells(d_hat.double(), d, **ROBUST, pool="batch", kernel="cpp")


def test_the_truth_may_be_overwritten_before_the_backward_pass():
    """The loader uses a batch's memory again: the C++ form keeps nothing of it."""
    d_hat, d = scene()
    flags = ROBUST | {"pool": "batch", "kernel": "cpp"}
    _, expected = with_gradient(lambda x: losses.L_robust_cells(x, d, **flags), d_hat)
    x = d_hat.clone().requires_grad_()
    L = losses.L_robust_cells(x, d, **flags)
    d.fill_(5.0)
    L.backward()
    assert torch.equal(x.grad.double(), expected)


@pools
@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.0, -INF])
@pytest.mark.parametrize("size", [(3, 4), (2, 3)])
def test_gradients_of_the_torch_form(size, alpha, pool):
    rng = np.random.default_rng(3)
    d = torch.from_numpy(rng.uniform(1, 9, (2, 1, 6, 8)))
    d[:, :, ::3, 1::4] = 0
    x = torch.from_numpy(rng.uniform(1, 9, (2, 1, *size))).requires_grad_()
    robust = {"alpha": alpha, "c": 2.0, "pool": pool, "kernel": "torch"}
    assert gradcheck(lambda x: losses.L_robust_cells(x, d, **robust), x)
    assert gradcheck(lambda x: silog_cells(x, d, **SILOG, pool=pool), x)


# ------------------------------------------------------------------------------------------ Eq. 11

NAMES = ("cell_n", "cell_mean", "cell_M2")


def loss_of(*flags, **cell):
    """DepthLoss as train.py builds it from its flags, or CellLoss where a kernel is given."""
    parser = argparse.ArgumentParser()
    losses.add_arguments(parser)
    args = vars(parser.parse_args(flags))
    weights, dynamic = args.pop("weights"), args.pop("dynamic_weights")
    kind = losses.CellLoss if cell else losses.DepthLoss
    return kind(weights, dynamic=dynamic, seed=0, **args, **cell)


def batch_of(d, size, statistics=True):
    d = torch.where(d.isfinite(), d, 0).clamp(min=0)  # as the loader gives it
    low = losses.cells(d, size).amax((3, 5))
    gt = dict(zip(("grad_x", "grad_y", "M_x", "M_y"), losses.gt_gradient(low)))
    K = torch.tensor([[100.0, 100.0, 60.0, 50.0]]).expand(len(d), 4)
    out = {"depth": d, "depth_low": low, "K": K, "step": 3} | gt
    return out | (dict(zip(NAMES, losses.cell_statistics(d, size, 1e-3))) if statistics else {})


def never(d_hat):
    raise AssertionError("the cell form upsamples nothing")


@kernels
@pytest.mark.parametrize("holes", ["random", "whole pictures", "all", "one pixel"])
@pytest.mark.parametrize(
    "flags",
    ["", "--pool batch", "--dynamic_weights", "--weights 1,0,0,0", "--weights 0,0,0,1",
     "--weights 0,1,1,0", "--robust_alpha 2 --robust_c 0.5 --silog_lambda 0.5"],
)  # fmt: skip
def test_eq11_equals_the_plain_form(flags, holes, kernel):
    d_hat, d = scene(holes=holes)
    batch = batch_of(d, d_hat.shape[-2:])
    plain, cell = loss_of(*flags.split()), loss_of(*flags.split(), kernel=kernel)

    def full(x):
        return upsample(x, d.shape[-2:], "nearest")

    expected = with_gradient(lambda x: plain(x, full, batch)[0], d_hat)
    assert max(apart(with_gradient(lambda x: cell(x, never, batch)[0], d_hat), expected)) < 1e-6
    terms, terms_ = plain(d_hat, full, batch)[1], cell(d_hat, never, batch)[1]
    assert list(terms) == list(terms_)
    for k, v in terms.items():
        torch.testing.assert_close(terms_[k], v, rtol=1e-6, atol=1e-7)


@kernels
def test_eq11_takes_the_statistics_of_the_batch_else_makes_them(kernel):
    d_hat, d = scene()
    with_, without = (batch_of(d, d_hat.shape[-2:], statistics=k) for k in (True, False))
    loss = loss_of(kernel=kernel)
    L, report = loss(d_hat, never, with_)
    assert torch.equal(L, loss(d_hat, never, without)[0])
    _, other = loss(d_hat, never, with_ | {"cell_mean": with_["cell_mean"] + 1})
    assert other["silog"] != report["silog"] and other["robust"] == report["robust"]


def test_eq11_on_another_models_depth_maps():
    """distill.py's second call: the batch with teacher_* in the truth's place."""
    d_hat, d = scene()
    size, (_, taught) = d_hat.shape[-2:], scene(seed=9)
    batch = batch_of(d, size)
    batch |= {f"teacher_{k}": v for k, v in batch_of(taught, size).items() if k not in "K step"}
    renamed = {k[8:]: v for k, v in batch.items() if k.startswith("teacher_")}
    assert set(NAMES) <= set(renamed)
    loss = loss_of(kernel="cpp")
    L, _ = loss(d_hat, never, batch | renamed)
    assert torch.equal(L, loss(d_hat, never, batch_of(taught, size))[0])
    assert L != loss(d_hat, never, batch)[0]


@kernels
def test_eq11_is_float32_under_autocast(kernel):
    d_hat, d = scene()
    batch, loss = batch_of(d, d_hat.shape[-2:]), loss_of(kernel=kernel)
    half = d_hat.bfloat16().requires_grad_()
    plain, _ = loss(half.detach().float(), never, batch)
    with torch.autocast("cpu", torch.bfloat16):
        L, report = loss(half, never, batch)
    L.backward()
    assert L.dtype == torch.float32 and torch.equal(L, plain)
    assert half.grad.dtype == torch.bfloat16 and half.grad.any()
    assert all(v.dtype == torch.float32 for v in report.values())


@kernels
@pytest.mark.parametrize("holes", ["all", "one pixel", "not finite"])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1.0])
def test_eq11_stays_finite_and_attached(scale, holes, kernel):
    d_hat, d = scene(holes=holes)
    batch = batch_of(d, d_hat.shape[-2:])
    L, slope = with_gradient(
        lambda x: loss_of("--vnl_share", "1", kernel=kernel)(x, never, batch)[0], scale * d_hat
    )
    assert math.isfinite(L) and slope.isfinite().all()
    assert bool(slope.any()) == (holes != "all")


def test_eq9_takes_the_triplets_of_the_batch_else_draws_them():
    d_hat, d = scene()
    batch, loss = batch_of(d, d_hat.shape[-2:]), loss_of("--weights", "0,0,1,0", kernel="cpp")
    drawn = losses.draw_triplets(0, 3, 63, int(0.15 * 63))
    L = loss(d_hat, never, batch)[0]
    assert torch.equal(loss(d_hat, never, batch | {"triplets": drawn})[0], L)
    assert loss(d_hat, never, batch | {"triplets": drawn.flip(1) * 0})[0] != L


class Recorder(TorchDispatchMode):
    """Names of the operations that run, those on booleans as indices with a mark."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.startswith("index") and any(
            torch.is_tensor(i) and i.dtype == torch.bool for i in pytree.tree_leaves(args[1:])
        ):
            name += " by a mask"
        self.seen.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("canvas", ["uneven", "480x640"])
def test_the_torch_form_never_waits_for_a_gpu(canvas):
    """Nothing in it needs a value on the host, in either direction, nor a size that depends on
    one: neither its forward nor its backward pass stops the queue of a GPU."""
    d_hat, d = scene(canvas)
    size = d_hat.shape[-2:]
    batch = batch_of(d, size) | {"triplets": losses.draw_triplets(0, 0, size[0] * size[1], 99)}
    for name in NAMES:
        del batch[name]
    x, loss = d_hat.requires_grad_(), loss_of("--dynamic_weights", kernel="torch")
    with Recorder() as recorder:
        recorder.seen = set()
        loss(x, never, batch)[0].backward()
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "lift_fresh",
             "index by a mask", "index_put by a mask", "index_put_ by a mask"}  # fmt: skip
    assert len(recorder.seen) > 30 and not recorder.seen & waits


def test_what_has_no_cell_form():
    with pytest.raises(ValueError, match="robust_adaptive has no cell form: use the plain form"):
        loss_of("--robust_adaptive", kernel="cpp")
    with pytest.raises(ValueError, match="kernel: expected 'cpp' or 'torch', got 'fast'"):
        loss_of(kernel="fast")
