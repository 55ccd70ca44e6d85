"""Eq. 7-11 against hand-computed values, closed forms, loops and the released code."""

import argparse
import math
from itertools import combinations, permutations

import numpy as np
import pytest
import released
import torch
from torch.autograd import gradcheck

import losses
from plumbing.flags import nonnegative, number, positive, probability, whole

SILOG = {"alpha": 1.0, "lam": 0.85, "eps": 1e-3, "pool": "batch"}
ROBUST = {"alpha": 1.0, "c": 2.0, "pool": "batch"}
VNL = {"filter_on": "prediction", "delta_z": 0.1, "cos": 0.867, "near": 0.005, "drop": 0.25}
NO_FILTER = {"filter_on": "prediction", "delta_z": 0.0, "cos": 2.0, "near": 0.0, "drop": 0.0}
PRED = [[1.0, 2.0, 4.0], [3.0, 5.0, 8.0]]  # the printed test vector of Eq. 8 and 10
GT = [[1.0, 1.0, 2.0], [0.0, 4.0, 10.0]]
NAN, INF = math.nan, math.inf


def maps(*values, dtype=torch.float64):
    """Nested lists or arrays (h, w) or (N, h, w) -> tensors (N, 1, h, w)."""
    out = [torch.tensor(np.array(v), dtype=dtype) for v in values]
    return [v.reshape(-1, 1, *v.shape[-2:]) for v in out]


def scene(n=2, h=6, w=8, holes=0.3, seed=0, dtype=torch.float64):
    """A prediction 30 % off and its ground truth, 1-9 m, a share of it holes: both (N,1,h,w)."""
    rng = np.random.default_rng(seed)
    d = rng.uniform(1, 9, (n, h, w))
    d_hat = d * np.exp(rng.normal(0.1, 0.3, d.shape))
    d[rng.random(d.shape) < holes] = 0
    return maps(d_hat, d, dtype=dtype)


def camera(d):
    """A plausible K for maps like d."""
    h, w = d.shape[-2:]
    return torch.tensor([[0.8 * w, 0.8 * w, w / 2 - 0.5, h / 2 - 0.5]]).expand(len(d), 4)


def vnl(d_hat, d, **changes):
    pixels = d[0, 0].numel()
    triplets = losses.draw_triplets(0, 0, pixels, 3 * pixels)
    return losses.L_vnl(d_hat, d, camera(d), triplets, **(VNL | changes))


TERMS = {
    "silog": lambda d_hat, d: losses.L_silog(d_hat, d, **SILOG),
    "grad": lambda d_hat, d: losses.L_grad(d_hat, *losses.gt_gradient(d)),
    "vnl": vnl,
    "vnl_gt": lambda d_hat, d: vnl(d_hat, d, filter_on="gt"),
    "robust": lambda d_hat, d: losses.L_robust(d_hat, d, **ROBUST),
    "adaptive": lambda d_hat, d: losses.AdaptiveRobust(1.0, 2.0, "batch")(d_hat, d),
}


def depth_loss(*flags, seed=0):
    """DepthLoss as train.py builds it from its flags."""
    parser = argparse.ArgumentParser()
    losses.add_arguments(parser)
    args = vars(parser.parse_args(flags))
    weights, dynamic = args.pop("weights"), args.pop("dynamic_weights")
    return losses.DepthLoss(weights, dynamic=dynamic, seed=seed, **args)


def batch_of(d, step=0):
    """The batch of a full-size d (N,1,H,W) whose network gives maps of a quarter of the size."""
    low = d[..., ::4, ::4]
    gt = dict(zip(("grad_x", "grad_y", "M_x", "M_y"), losses.gt_gradient(low)))
    return {"depth": d, "depth_low": low, "K": camera(d), "step": step} | gt


def full(d_hat):
    return d_hat.repeat_interleave(4, 2).repeat_interleave(4, 3)


def arrays(*tensors):
    return [t.squeeze(1).numpy() for t in tensors]


# ------------------------------------------------------------------------------------------- Eq. 7


def test_eq7_by_hand():
    d_hat, d = maps([[math.e, math.e**3, 7.0]], [[1.0, 1.0, 0.0]])  # e = 1, 3 and a hole
    L = losses.L_silog(d_hat, d, alpha=10.0, lam=0.85, eps=1e-12, pool="batch")
    assert L.item() == pytest.approx(10 * math.sqrt(2 + 0.15 * 2**2))  # var 2, mean 2


def test_eq7_epsilon_is_inside_both_logarithms():
    L = losses.L_silog(*maps([[0.0]], [[1.0]]), alpha=1.0, lam=0.0, eps=0.5, pool="batch")
    assert L.item() == pytest.approx(math.log(1.5 / 0.5))


@pytest.mark.parametrize("lam", [0.0, 0.85, 1.0])
def test_eq7_matches_loops_and_pools_the_batch(lam):
    d_hat, d = scene()
    d[0, 0, :4] = 0  # pooled over the batch, the images do not weigh the same
    n, total, squares = 0, 0.0, 0.0
    for z_hat, z in zip(d_hat.flatten().tolist(), d.flatten().tolist()):
        if z > 0:
            e = math.log(z_hat + 1e-3) - math.log(z + 1e-3)
            n, total, squares = n + 1, total + e, squares + e * e
    printed = squares / n - lam / n**2 * total**2
    bessel = (squares / n - (total / n) ** 2) / (n - 1)  # the variance is over n - 1, not n
    L = losses.L_silog(d_hat, d, alpha=1.0, lam=lam, eps=1e-3, pool="batch")
    assert L.item() == pytest.approx(math.sqrt(printed + bessel))
    if lam == 0.85:
        assert L.item() == pytest.approx(released.silog(*arrays(d_hat, d)))


def test_eq7_lambda_is_the_blindness_to_scale():
    d_hat, d = scene()
    blind, half = ({**SILOG, "lam": lam, "eps": 1e-12} for lam in (1.0, 0.5))
    L = losses.L_silog(d_hat, d, **blind)
    assert L > 0.1
    torch.testing.assert_close(losses.L_silog(5 * d_hat, d, **blind), L)
    L = losses.L_silog(7 * d, d, **half)
    assert L.item() == pytest.approx(math.sqrt(0.5) * math.log(7))


def test_eq7_one_pixel_has_variance_0_where_the_released_code_gives_nan():
    d_hat, d = maps([[2.0, 9.0]], [[4.0, 0.0]])
    L = losses.L_silog(d_hat, d, alpha=1.0, lam=0.85, eps=1e-3, pool="batch")
    assert L.item() == pytest.approx(math.sqrt(0.15) * math.log(4.001 / 2.001))
    assert math.isnan(released.silog(*arrays(d_hat, d)))


# ------------------------------------------------------------------------------------ Eq. 8, Fig. 4


def test_fig4_masks_and_differences_by_hand():
    for hole in (0.0, NAN, INF, -INF, -1.0):
        d = maps([[1.0, 1.0, 2.0], [hole, 4.0, 10.0]])[0]
        grad_x, grad_y, M_x, M_y = losses.gt_gradient(d)
        assert M_x[0, 0].tolist() == [[True, True, False], [False, True, False]]
        assert M_y[0, 0].tolist() == [[False, True, True], [False, False, False]]
        assert grad_x[0, 0].tolist() == [[0, 1, 0], [0, 6, 0]]
        assert grad_y[0, 0].tolist() == [[0, 3, 8], [0, 0, 0]]


def test_eq8_printed_vector():
    d_hat, d = maps(PRED, GT)
    assert TERMS["grad"](d_hat, d).item() == pytest.approx(5 / 3 + 4 / 2)  # 3.66667
    assert released.gradient(np.array(PRED), np.array(GT)) == pytest.approx(3.75)


def test_eq8_matches_loops():
    d_hat, d = scene(n=3)
    sums, counts = [0.0, 0.0], [0, 0]
    for z_hat, z in zip(*arrays(d_hat, d)):
        for axis, (dy, dx) in enumerate([(0, 1), (1, 0)]):
            for v in range(z.shape[0] - dy):
                for u in range(z.shape[1] - dx):
                    here, there = (v, u), (v + dy, u + dx)
                    if z[here] > 0 and z[there] > 0:
                        e = (z_hat[there] - z_hat[here]) - (z[there] - z[here])
                        sums[axis] += abs(e)
                        counts[axis] += 1
    assert counts[0] != counts[1]
    expected = sums[0] / counts[0] + sums[1] / counts[1]
    assert TERMS["grad"](d_hat, d).item() == pytest.approx(expected)


def test_eq8_masks_the_prediction_too_and_the_released_code_does_not():
    d_hat, d = scene(holes=0.2)
    other = torch.where(losses.holes_to_zero(d) > 0, d_hat, d_hat + 50)
    assert torch.equal(TERMS["grad"](other, d), TERMS["grad"](d_hat, d))
    assert released.gradient(*arrays(other, d)) > released.gradient(*arrays(d_hat, d)) + 1
    # a true prediction is free, released or not, only without holes
    truth = scene(holes=0)[1]
    assert TERMS["grad"](truth, d) == 0 and released.gradient(*arrays(truth, truth)) == 0
    assert released.gradient(*arrays(truth, d)) > 0.5


def test_eq8_released_ground_truth_mixes_holes_into_depths():
    rng = np.random.default_rng(0)
    blocks = [rng.random((48, 64)) >= 0.2 for _ in range(8)]
    low = [released.bilinear_down(5.0 * np.kron(b, np.ones((10, 10))), (32, 40)) for b in blocks]
    low = np.array(low)
    assert np.mean(low == 0) == pytest.approx(0.16, abs=0.015)
    assert np.mean((low > 0) & (low < 4.999)) == pytest.approx(0.069, abs=0.005)  # wrong, unmasked
    ramp = np.mgrid[:7, :9][1] + 10.0 * np.mgrid[:7, :9][0]  # corners stay where they are
    assert released.bilinear_down(ramp, (4, 3)) == pytest.approx(ramp[::2, ::4])
    assert released.bilinear_down(ramp, (2, 7))[0] == pytest.approx(np.arange(7) * 8 / 6)


# ------------------------------------------------------------------------------------------- Eq. 9


def vnl_by_loops(d_hat, d, K, triplets, *, filter_on, delta_z, cos, near, drop):
    w, kept = d.shape[-1], []
    for z_hat, z, (fx, fy, cx, cy) in zip(*arrays(d_hat, d), K.tolist()):
        for pixels in triplets.T.tolist():
            p_hat, p = [], []
            for i in pixels:
                v, u = divmod(i, w)
                ray = np.array([(u - cx) / fx, (v - cy) / fy, 1.0])
                p_hat.append(ray * z_hat[v, u])
                p.append(ray * z[v, u])
            judged = p_hat if filter_on == "prediction" else p
            edges = [q - r for q, r in combinations(judged, 2)]
            if (
                any(q[2] <= 0 for q in p)
                or any(q[2] <= delta_z for q in judged)
                or any(
                    abs(a @ b) > cos * np.linalg.norm(a) * np.linalg.norm(b)
                    for a, b in combinations(edges, 2)
                )
                or not any(all(abs(a[k]) >= near for a in edges) for k in range(3))
            ):
                continue
            n_hat, n = (np.cross(q[1] - q[0], q[2] - q[0]) for q in (p_hat, p))
            kept.append(np.abs(n_hat / np.linalg.norm(n_hat) - n / np.linalg.norm(n)).sum())
    kept = sorted(kept)[int(drop * len(kept)) :]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("filter_on", ["prediction", "gt"])
@pytest.mark.parametrize("rule", [{}, {"delta_z": 2.5}, {"cos": 0.7}, {"near": 1.0}, {"drop": 0.0}])
def test_eq9_matches_loops(filter_on, rule):
    d_hat, d = scene(holes=0.1)
    K = torch.tensor([[7.0, 6.0, 3.0, 2.0], [5.0, 8.0, 4.5, 3.5]])
    triplets = losses.draw_triplets(0, 0, 48, 150)
    args = VNL | {"filter_on": filter_on} | rule
    L = losses.L_vnl(d_hat, d, K, triplets, **args)
    assert L.item() == pytest.approx(vnl_by_loops(d_hat, d, K, triplets, **args))


def tilted_plane():
    """The printed vector: slope 0.5 against the plane z = 5, seen by the released camera."""
    fx, fy = 518.85790117450188 * 40 / 640, 519.46961112127485 * 32 / 480
    z = 5 / (1 - 0.5 * (np.arange(40) - 20) / fx)
    d_hat, d = maps(np.broadcast_to(z, (1, 32, 40)), np.full((1, 32, 40), 5.0))
    return d_hat, d, torch.tensor([[fx, fy, 20.0, 16.0]], dtype=torch.float64)


def test_eq9_printed_vector():
    d_hat, d, K = tilted_plane()
    triplets = losses.draw_triplets(0, 0, 1280, 192)
    by_hand = 0.5 / math.sqrt(1.25) + 1 - 1 / math.sqrt(1.25)  # normals (-.5, 0, 1), (0, 0, 1)
    assert by_hand == pytest.approx(0.5527864)
    assert losses.L_vnl(d_hat, d, K, triplets, **VNL).item() == pytest.approx(by_hand)
    assert losses.L_vnl(d, d, K, triplets, **VNL) == 0
    assert losses.L_vnl(0 * d, d, K, triplets, **VNL) == 0  # no triplet is left
    assert released.vnl(*arrays(d_hat, d), triplets.numpy()) == pytest.approx(by_hand)
    assert released.vnl(*arrays(d, d), triplets.numpy()) == 0
    assert released.vnl(*arrays(0 * d, d), triplets.numpy()) == 0


def test_eq9_equals_the_released_code_without_holes():
    d_hat, d = scene(n=3, h=32, w=40, holes=0)
    triplets = losses.draw_triplets(0, 0, 1280, 192)
    L = losses.L_vnl(d_hat, d, tilted_plane()[2].expand(3, 4), triplets, **VNL)
    assert L.item() == pytest.approx(released.vnl(*arrays(d_hat, d), triplets.numpy()))


def test_eq9_leaves_invalid_triplets_out_and_the_released_code_shrinks():
    d_hat, d, K = tilted_plane()
    triplets = losses.draw_triplets(0, 0, 1280, 2000)
    holes = torch.rand(d.shape, generator=torch.Generator().manual_seed(0))
    shrunk = []
    for share in (0.0, 0.3, 0.5, 0.7):
        d_ = torch.where(holes < share, 0.0, d)
        L = losses.L_vnl(d_hat, d_, K, triplets, **VNL)
        assert L.item() == pytest.approx(0.5527864)
        shrunk.append(released.vnl(*arrays(d_hat, d_), triplets.numpy()))
    assert shrunk[0] > 1.5 * shrunk[1] > 2 * shrunk[2] > 3 * shrunk[3] >= 0
    assert shrunk[2] < 0.3 * shrunk[0]


def test_eq9_points_project_back_to_their_pixels():
    K = torch.tensor([[30.0, 20.0, 3.0, 2.0], [25.0, 35.0, 2.5, 1.5]], dtype=torch.float64)
    z = scene(h=4, w=5)[0]
    x, y, depth = losses.back_project(z, K).unbind(1)
    fx, fy, cx, cy = K.unsqueeze(2).unbind(1)
    v, u = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    torch.testing.assert_close(fx * x / depth + cx, u.double().flatten().expand(2, -1))
    torch.testing.assert_close(fy * y / depth + cy, v.double().flatten().expand(2, -1))
    assert torch.equal(depth, z.flatten(1))


def test_eq9_virtual_normal_by_hand():
    corners = torch.tensor(
        [[[0.0, 0, 0], [2, 0, 0], [0, 3, 0]], [[1, 1, 1], [1, 1, 1], [4, 5, 6]]]
    )  # (triplets, corners, xyz): in the plane z = 0, and degenerate
    n = losses.virtual_normal(corners.permute(2, 1, 0)[None])
    assert n[0].T.tolist() == [[0, 0, 1], [0, 0, 0]]


def test_eq9_filter_at_its_thresholds():
    """Each rule at its edge: z > delta_z, |cosine| <= cos, spread >= near."""

    def keeps(*points, delta_z=0.0, cos=1.0, near=0.0):
        p = torch.tensor(points, dtype=torch.float64).T[None, :, :, None]
        return losses._spread(p, delta_z, cos, near).item()

    right = (0, 0, 1), (3, 0, 1), (0, 4, 1)  # cosines 0, 0.6 and 0.8
    assert not keeps(*right, delta_z=1.0) and keeps(*right, delta_z=0.99)
    assert not keeps(*right, cos=0.799) and keeps(*right, cos=0.801)
    for sharp in permutations([(0, 0, 1), (5, 0.5, 1), (0, 1, 1)]):  # one narrow corner, anywhere
        assert not keeps(*sharp, cos=0.9)
    for axis in range(3):  # two axes have an edge of length 0; the third has 0.25, 0.25 and 0.5
        points = np.array([[0.0, 0, 1], [0, 0, 1], [0, 0, 1]])
        points[:, axis] += [0, 0.25, 0.5]
        assert keeps(*points.tolist(), near=0.25)
        assert not keeps(*points.tolist(), near=0.26)
    assert not keeps((0, 0, 1), (0.3, 0, 1), (0.3, 0.3, 1), near=0.25)  # apart, but on no one axis


def test_eq9_drops_the_easiest_share_of_what_is_left():
    K = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    d_hat, d = maps([[1.0] * 4, [1.0, 1.1, 1.5, 3.0]], [[1.0] * 4, [1.0] * 4])
    #  (0, 1, 4): loss 0; the others grow with the corner in the second row; the last is invalid
    triplets = torch.tensor([[0, 1, 4], [0, 1, 5], [0, 1, 6], [0, 1, 7], [0, 1, 3]]).T
    each = [losses.L_vnl(d_hat, d, K, t[:, None], **NO_FILTER).item() for t in triplets.T]
    assert 0 == each[0] < each[1] < each[2] < each[3]
    d[..., 0, 3] = 0
    for drop, dropped in [(0.0, 0), (0.2, 0), (0.25, 1), (0.49, 1), (0.5, 2), (0.75, 3)]:
        L = losses.L_vnl(d_hat, d, K, triplets, **(NO_FILTER | {"drop": drop}))
        assert L.item() == pytest.approx(np.mean(each[dropped:4]))


def test_eq9_scale_intrinsics_by_hand():
    K = torch.tensor([[500.0, 480.0, 319.5, 239.5], [600.0, 480.0, 99.5, -0.5]])
    low = losses.scale_intrinsics(K, (480, 640), (32, 40))
    expected = [[31.25, 32.0, 19.5, 15.5], [37.5, 32.0, 5.75, -0.5]]  # a corner stays a corner
    torch.testing.assert_close(low, torch.tensor(expected))


def test_eq9_a_cropped_and_resized_camera_sees_true_planes():
    """Two planes in the room, seen through a crop that is resized to the network's output."""
    K = np.array([500.0, 510.0, 310.0, 250.0])
    x0, y0, H, W, h, w = 200, 90, 240, 384, 16, 24
    planes = np.array([[0.2, -0.1, 1.0], [-0.3, 0.4, 1.0]])
    U = x0 + (np.arange(w) + 0.5) * W / w - 0.5  # where the low pixels lie in the 480x640 picture
    V = (y0 + (np.arange(h) + 0.5) * H / h - 0.5)[:, None]
    rays = np.stack(np.broadcast_arrays((U - K[2]) / K[0], (V - K[3]) / K[1], 1.0), -1)
    d_hat, d = maps(*(4 / (rays @ n) for n in planes))  # n . P = 4 m
    n_hat, n = planes / np.linalg.norm(planes, axis=1, keepdims=True)
    by_hand = np.abs(n_hat - n).sum()

    loss = depth_loss("--weights", "0,0,1,0", "--vnl_share", "1")
    crop = torch.tensor([[K[0], K[1], K[2] - x0, K[3] - y0]])
    batch = {"depth": torch.ones(1, 1, H, W), "depth_low": d, "step": 0}
    L = loss.terms(d_hat, None, batch | {"K": crop})["vnl"]
    assert L.item() == pytest.approx(by_hand, rel=1e-6)
    for wrong in (torch.tensor(K)[None], crop * 0.95, crop + torch.tensor([0.0, 0, 8, 8])):
        L = loss.terms(d_hat, None, batch | {"K": wrong})["vnl"]
        assert abs(L.item() / by_hand - 1) > 1e-3


def test_eq9_triplets_are_a_function_of_seed_and_step():
    draw = losses.draw_triplets
    one = draw(3, 7, 1280, 192)
    assert one.shape == (3, 192) and one.dtype == torch.int64
    assert torch.equal(one, draw(3, 7, 1280, 192))
    for seed, step in [(3, 8), (4, 7), (7, 3), (0, 10)]:
        assert not torch.equal(one, draw(seed, step, 1280, 192))
    for row in draw(0, 0, 10, 5000):  # every pixel, each corner, evenly
        counts = row.bincount()
        assert len(counts) == 10 and 400 < counts.min() and counts.max() < 600


def test_eq9_backward_is_bit_identical_on_two_threads():
    d_hat, d = scene(n=3, h=8, w=10, holes=0, dtype=torch.float32)
    triplets = losses.draw_triplets(0, 0, 80, 20_000)  # every pixel some 750 times
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = []
        for _ in range(8):
            x = d_hat.clone().requires_grad_()
            losses.L_vnl(x, d, camera(d), triplets, **VNL).backward()
            runs.append(x.grad)
    finally:
        torch.set_num_threads(threads)
    assert runs[0].abs().sum() > 0
    assert all(torch.equal(runs[0], run) for run in runs)


# ------------------------------------------------------------------------------------------ Eq. 10

Z = torch.tensor([0.0, 1e-3, 0.3, 1.0, 7.0, 40.0], dtype=torch.float64)  # (e/c)^2
CLOSED = {  # each form as Barron prints it
    2.0: Z / 2,
    1.0: (Z + 1).sqrt() - 1,
    0.0: (Z / 2 + 1).log(),
    -2.0: 2 * Z / (Z + 4),
    -INF: 1 - (-Z / 2).exp(),
    INF: (Z / 2).exp() - 1,
}


@pytest.mark.parametrize("alpha", CLOSED)
def test_eq10_closed_forms(alpha):
    e = 3 * Z.sqrt()
    for sign in (1, -1):
        torch.testing.assert_close(losses.rho(sign * e, alpha, 3.0), CLOSED[alpha])


@pytest.mark.parametrize("alpha, limit", [(1e-7, 0), (-1e-7, 0), (2 - 1e-7, 2), (2 + 1e-7, 2)])
def test_eq10_approaches_its_limits(alpha, limit):
    torch.testing.assert_close(losses.rho(Z.sqrt(), alpha, 1.0), CLOSED[limit], rtol=1e-4, atol=0)


def test_eq10_approaches_its_limits_at_infinity_even_in_float32():
    z = Z[:5].float()
    for alpha in (-INF, INF):
        near = losses.rho(z.sqrt(), math.copysign(1e6, alpha), 1.0)
        torch.testing.assert_close(near, CLOSED[alpha][:5].float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 1.7])
def test_eq10_literal_formula_and_learnable_alpha(alpha):
    b = 2 - alpha
    literal = b / alpha * ((Z / b + 1) ** (alpha / 2) - 1)
    torch.testing.assert_close(losses.rho(Z.sqrt(), alpha, 1.0), literal)
    as_tensor = torch.tensor(alpha, dtype=torch.float64)
    torch.testing.assert_close(losses.rho(Z.sqrt(), as_tensor, 1.0), literal)
    # the "+ 1" that the printed Eq. 10 forgets: without it rho(0) is negative
    assert losses.rho(torch.zeros(()), alpha, 1.0) == 0
    assert b / alpha * (0 ** (alpha / 2) - 1) < 0


def test_eq10_printed_vector():
    d_hat, d = maps(PRED, GT)
    assert losses.L_robust(d_hat, d, **ROBUST).item() == pytest.approx(0.2128990, abs=1e-7)
    assert released.robust(np.array(PRED), np.array(GT)) == pytest.approx(0.2128990, abs=1e-7)


def test_eq10_partition_function_in_closed_form():
    def Z(alpha):
        return losses.log_partition(torch.tensor(alpha, dtype=torch.float64)).exp().item()

    assert Z(1.0) == pytest.approx(2 * math.e * 0.6019072301972346, rel=1e-9)  # K_1(1)
    assert Z(2 - 1e-9) == pytest.approx(math.sqrt(2 * math.pi), rel=1e-7)
    assert Z(1e-9) == pytest.approx(math.pi * math.sqrt(2), rel=1e-7)
    alpha = torch.tensor([0.2, 1.0, 1.8], dtype=torch.float64, requires_grad=True)
    for a in alpha:
        assert gradcheck(losses.log_partition, (a,))


def test_eq10_adaptive_form_starts_as_the_likelihood_of_the_fixed_one():
    d_hat, d = scene()
    L = losses.AdaptiveRobust(1.0, 2.0, "batch")(d_hat, d)
    fixed = losses.L_robust(d_hat, d, alpha=1.0, c=2.0, pool="batch")
    Z = 2 * math.e * 0.6019072301972346
    assert L.item() == pytest.approx(fixed.item() + math.log(2.0) + math.log(Z), rel=1e-6)
    for alpha, c in [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0, 0.0)]:
        with pytest.raises(ValueError, match="0 < alpha < 2, c > 0"):
            losses.AdaptiveRobust(alpha, c, "batch")


def fit(e):
    """alpha and c that the adaptive form learns from residuals e."""
    d = torch.full((1, 1, 1, len(e)), 10.0)
    model = losses.AdaptiveRobust(1.0, 1.0, "batch")
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        L = model(d + e, d)
        L.backward()
        return L

    optimizer.step(closure)
    return 2 * torch.sigmoid(model.latent_alpha).item(), model.log_c.exp().item()


def test_eq10_adaptive_form_learns_the_noise():
    """Residuals are the quantiles of a distribution of known shape and scale."""
    q = (torch.arange(1000) + 0.5) / 1000 - 0.5
    alpha, c = fit(3.0 * math.sqrt(2) * torch.erfinv(2 * q))  # Gaussian: alpha 2, c = sigma
    assert alpha > 1.8 and c == pytest.approx(3.0, rel=0.05)
    alpha, c = fit(0.3 * math.sqrt(2) * torch.tan(math.pi * q))  # Cauchy: alpha 0, its scale/sqrt2
    assert alpha < 0.2 and c == pytest.approx(0.3, rel=0.1)


# ------------------------------------------------------------------------------------------ Eq. 11


def test_eq11_defaults_are_the_papers():
    parser = argparse.ArgumentParser()
    losses.add_arguments(parser)
    assert vars(parser.parse_args([])) == {
        "weights": (1.0, 0.25, 2.5, 0.6), "dynamic_weights": False,
        "silog_alpha": 1.0, "silog_lambda": 0.85, "silog_eps": 1e-3, "pool": "image",
        "robust_alpha": 1.0, "robust_c": 2.0, "robust_adaptive": False,
        "vnl_share": 0.15, "vnl_filter": "prediction", "vnl_delta_z": 0.1, "vnl_cos": 0.867,
        "vnl_near": 0.005, "vnl_drop": 0.25,
    }  # fmt: skip
    assert "--robust_adaptive" in parser.format_help()  # a stray % in a help raises here


def terms_by_hand(d_hat, batch, seed=0):
    """The four unweighted terms of a batch_of(), flag by flag."""
    d, low = batch["depth"], batch["depth_low"]
    h, w = low.shape[-2:]
    fx, fy, cx, cy = camera(d).unbind(1)
    K = torch.stack([fx / 4, fy / 4, (cx - 1.5) / 4, (cy - 1.5) / 4], 1)
    triplets = losses.draw_triplets(seed, batch["step"], h * w, h * w // 2)
    return {
        "silog": losses.L_silog(full(d_hat), d, alpha=3.0, lam=0.5, eps=0.01, pool="batch"),
        "grad": TERMS["grad"](d_hat, low),
        "vnl": losses.L_vnl(
            d_hat, low, K, triplets, filter_on="gt", delta_z=1.5, cos=0.9, near=0.5, drop=0.4
        ),
        "robust": losses.L_robust(full(d_hat), d, alpha=0.5, c=0.7, pool="batch"),
    }


FLAGS = (
    "--silog_alpha 3 --silog_lambda 0.5 --silog_eps 0.01 --robust_alpha 0.5 --robust_c 0.7 "
    "--vnl_share 0.5 --vnl_filter gt --vnl_delta_z 1.5 --vnl_cos 0.9 --vnl_near 0.5 --vnl_drop 0.4 "
    "--pool batch"
).split()


def picture():
    """d_hat (2,1,12,16) and a batch whose ground truth is 48x64."""
    d = scene(h=48, w=64, holes=0.2, dtype=torch.float32)[1]
    return scene(h=12, w=16, seed=1, dtype=torch.float32)[0], batch_of(d, step=5)


@pytest.mark.parametrize("w", [(1, 0.25, 2.5, 0.6), (1, 0, 0, 0), (0, 0.25, 0, 2), (0, 0, 3, 0)])
def test_eq11_is_the_weighted_sum_of_the_weighed_terms(w):
    d_hat, batch = picture()
    loss = depth_loss("--weights", ",".join(map(str, w)), *FLAGS)
    L, report = loss(d_hat, full, batch)
    by_hand = terms_by_hand(d_hat, batch)
    used = {k: v for k, v in zip(by_hand, w) if v}
    assert L.item() == pytest.approx(sum(v * by_hand[k].item() for k, v in used.items()))
    assert set(report) == set(used) | {f"w_{k}" for k in used}
    for k, v in used.items():
        assert report[k].item() == pytest.approx(by_hand[k].item())
        assert report[f"w_{k}"].item() == pytest.approx(v)


def test_eq11_triplets_follow_seed_and_step():
    d_hat, batch = picture()
    losses_ = []
    for seed, step in [(0, 5), (0, 5), (1, 5), (0, 6)]:
        loss = depth_loss("--weights", "0,0,1,0", *FLAGS, seed=seed)
        L = loss(d_hat, full, batch | {"step": step})[0]
        by_hand = terms_by_hand(d_hat, batch | {"step": step}, seed)["vnl"]
        assert L.item() == pytest.approx(by_hand.item())
        losses_.append(L.item())
    assert losses_[0] == losses_[1] and len(set(losses_)) == 3


def test_eq11_dynamic_weights_printed_vector(monkeypatch):
    loss = depth_loss("--weights", "1,1,1,1", "--dynamic_weights")
    ones = dict.fromkeys(losses.TERMS, torch.ones(()))
    monkeypatch.setattr(loss, "terms", lambda *_: ones)
    nothing = torch.ones(1)
    assert loss(nothing, nothing, {})[0].item() == pytest.approx(4.7725887)
    assert released.dynamic([1] * 4, [1] * 4, [1] * 4) == pytest.approx(4.7725887)


@pytest.mark.parametrize("w", [(1, 0.25, 2.5, 0.6), (0, 0.25, 0, 2)])
def test_eq11_dynamic_weights_by_hand(w):
    d_hat, batch = picture()
    loss = depth_loss("--weights", ",".join(map(str, w)), "--dynamic_weights", *FLAGS)
    terms = {k: (v, t.item()) for (k, t), v in zip(terms_by_hand(d_hat, batch).items(), w) if v}
    assert loss.p.tolist() == [1.0] * len(terms)
    p = [0.7, 1.3, -1.9, 2.2][: len(terms)]
    loss.p.data = torch.tensor(p)
    d_hat.requires_grad_()
    L, report = loss(d_hat, full, batch)
    wi, Li = zip(*terms.values())
    assert L.item() == pytest.approx(released.dynamic(Li, wi, p))
    L.backward()
    slope = [-w * L / q**3 + 2 * q / (1 + q**2) for w, L, q in zip(wi, Li, p)]
    assert loss.p.grad.tolist() == pytest.approx(slope, rel=1e-5, abs=1e-6)
    for k, q in zip(terms, p):
        assert report[f"w_{k}"].item() == pytest.approx(terms[k][0] / (2 * q**2))
    assert not any(v.requires_grad for v in report.values())


def test_eq11_adaptive_robust_takes_the_place_of_the_fixed_one():
    d_hat, batch = picture()
    loss = depth_loss("--weights", "0,0,0,0.4", "--robust_adaptive", "--robust_c", "0.7")
    L, report = loss(d_hat, full, batch)
    fixed = losses.L_robust(full(d_hat), batch["depth"], alpha=1.0, c=0.7, pool="image").item()
    nll = fixed + math.log(0.7) + math.log(2 * math.e * 0.6019072301972346)
    assert L.item() == pytest.approx(0.4 * nll, rel=1e-5)
    assert {n for n, _ in loss.named_parameters()} == {"adaptive.latent_alpha", "adaptive.log_c"}


def test_eq11_reports_what_the_adaptive_robust_loss_has_learned():
    d_hat, batch = picture()
    flags = "--robust_adaptive --robust_alpha 0.6 --robust_c 0.7".split()
    loss = depth_loss(*flags)
    report = loss(d_hat, full, batch)[1]
    assert report["robust_alpha"].item() == pytest.approx(0.6)
    assert report["robust_c"].item() == pytest.approx(0.7)
    loss.adaptive.latent_alpha.data.fill_(1.0)
    loss.adaptive.log_c.data.fill_(-1.0)
    report = loss(d_hat, full, batch)[1]
    by_hand = 0.001 + 1.998 / (1 + math.exp(-1))
    assert report["robust_alpha"].item() == pytest.approx(by_hand)
    assert report["robust_c"].item() == pytest.approx(math.exp(-1))
    assert not report["robust_alpha"].requires_grad and not report["robust_c"].requires_grad
    assert not {"robust_alpha", "robust_c"} & depth_loss()(d_hat, full, batch)[1].keys()


def test_eq11_adaptive_robust_needs_a_weight():
    with pytest.raises(ValueError, match="robust_adaptive needs a robust weight above 0"):
        depth_loss("--weights", "1,0.25,2.5,0", "--robust_adaptive")


@pytest.mark.parametrize(
    "flag, good, bad",
    [
        ("silog_alpha", "1e-3 10", "0 -1 inf"),
        ("silog_lambda", "0 0.85 1", "-0.1 1.1 inf"),
        ("silog_eps", "1e-6 1", "0 -1e-3 inf"),
        ("robust_alpha", "-inf -2 0 1 2 3.5 inf", ""),
        ("robust_c", "0.01 2", "0 -2 inf"),
        ("vnl_share", "0.001 1", "0 -0.1 1.01 inf"),
        ("vnl_delta_z", "0 0.1", "-0.1 inf"),
        ("vnl_cos", "0.5 1", "0 -0.5 1.01"),
        ("vnl_near", "0 0.005", "-0.1 inf"),
        ("vnl_drop", "0 0.25 0.99", "-0.1 1 1.5"),
    ],
)
def test_flags_take_numbers_that_mean_something(flag, good, bad, capsys):
    parser = argparse.ArgumentParser()
    losses.add_arguments(parser)
    for text in good.split():
        assert getattr(parser.parse_args([f"--{flag}={text}"]), flag) == float(text)
    for text in [*bad.split(), "nan", "x", ""]:
        with pytest.raises(SystemExit):
            parser.parse_args([f"--{flag}={text}"])
        assert f"argument --{flag}: {text!r} is not a" in capsys.readouterr().err


def test_argparse_types():
    assert number("-3.5", -4, 1, "x") == -3.5
    assert (positive("2"), nonnegative("0"), probability("1")) == (2, 0, 1)
    assert whole("12") == 12 and isinstance(whole("0"), int)
    for kind, texts in {
        positive: ("0", "-1", "inf", "nan", "a", "", "1,2"),
        nonnegative: ("-1e-9", "inf", "nan", "a"),
        probability: ("-0.1", "1.1", "nan"),
        whole: ("-1", "1.5", "", "a", "1e3", "\u00b2"),
    }.items():
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError, match=" is not a"):
                kind(text)


@pytest.mark.parametrize(
    "text", ["1,1,1", "1,1,1,1,1", "", "a,b,c,d", "1;1;1;1", "-1,0,0,1", "0,0,0,0", "nan,1,1,1",
             "inf,1,1,1"],
)  # fmt: skip
def test_eq11_parse_weights_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="four weights"):
        losses.parse_weights(text)


def test_eq11_parse_weights():
    assert losses.parse_weights("1,.25, 0,2e-1") == (1.0, 0.25, 0.0, 0.2)


# ------------------------------------------------------------------------------- Eq. 7-11 together


@pytest.mark.parametrize("term", ["silog", "grad", "vnl", "vnl_gt", "robust"])
def test_eq7_to_eq10_gradients(term):
    d_hat, d = scene(n=2, h=3, w=4, holes=0.2)
    assert gradcheck(lambda x: TERMS[term](x, d), (d_hat.requires_grad_(),))


@pytest.mark.parametrize("alpha", [-INF, -2.0, 0.0, 0.5, 1.0, 2.0])
def test_eq10_gradients(alpha):
    d_hat, d = scene(n=1, h=3, w=4, holes=0.2)
    c = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    learned = [torch.tensor(0.6, dtype=torch.float64, requires_grad=True)] if alpha == 0.5 else []
    assert gradcheck(
        lambda x, c, *a: losses.L_robust(x, d, alpha=a[0] if a else alpha, c=c, pool="batch"),
        (d_hat.requires_grad_(), c, *learned),
    )


@pytest.mark.parametrize("term", ["silog", "robust"])
def test_eq7_eq10_can_weigh_pictures_alike(term):
    """pool="image" is "batch" on a set where each picture's pixels are repeated to one number."""

    def loss(d_hat, d, pool):
        if term == "silog":
            N = (d > 0).sum().item()  # lam = 1 and the biased variance: one square root, no N
            L = losses.L_silog(d_hat, d, **{**SILOG, "lam": 1.0, "pool": pool})
            return L * math.sqrt((N - 1) / N)
        return losses.L_robust(d_hat, d, **{**ROBUST, "pool": pool})

    counts = (6, 2, 0, 3)
    d_hat, d = scene(n=4, h=2, w=3, holes=0)
    for picture, count in zip(d, counts):
        picture.flatten()[count:] = 0
    d_hat[1] *= 3
    d_hat.requires_grad_()
    L = loss(d_hat, d, "image")
    rows = [
        x[i, 0].flatten()[:count].repeat(12 * 50 // count)
        for x in (d_hat, d)
        for i, count in enumerate(counts)
        if count
    ]
    alike = [torch.stack(half)[:, None, None] for half in (rows[:3], rows[3:])]
    torch.testing.assert_close(L, loss(*alike, "batch"))
    assert abs(L - loss(d_hat, d, "batch")).item() > 0.05 * L
    (slope,) = torch.autograd.grad(L, d_hat)
    assert torch.isfinite(slope).all() and not slope[2].any() and slope[1].any()


def test_eq7_centres_over_the_batch_however_it_is_pooled():
    """A scale that differs from picture to picture costs in full, a common one 1 - lam of it."""
    d = torch.full((2, 1, 4, 4), 2.0)
    apart = torch.stack([d[0] * math.e, d[1] / math.e])
    for pool in ("batch", "image"):
        blind = {**SILOG, "lam": 1.0, "eps": 1e-12, "pool": pool}
        assert losses.L_silog(3 * d, d, **blind) < 1e-4
        assert losses.L_silog(apart, d, **blind).item() == pytest.approx(math.sqrt(32 / 31))


def value_and_gradient(term, d_hat, d):
    x = d_hat.clone().requires_grad_()
    L = TERMS[term](x, d)
    assert L.requires_grad
    return L.detach(), torch.autograd.grad(L, x)[0]


@pytest.mark.parametrize("hole", [NAN, INF, -INF, -1.0, -0.0])
@pytest.mark.parametrize("term", TERMS)
def test_eq7_to_eq10_are_blind_to_holes(term, hole):
    d_hat, d = scene(dtype=torch.float32)
    M = d > 0
    assert torch.equal(losses.holes_to_zero(torch.where(M, d, hole)), d)
    L, slope = value_and_gradient(term, d_hat, d)
    L_, slope_ = value_and_gradient(term, d_hat, torch.where(M, d, hole))
    assert torch.equal(L, L_) and torch.equal(slope, slope_)
    assert slope[M].abs().sum() > 0 and not slope[~M].any()
    # nor do they look at what is predicted there (the filter of Eq. 9 sees valid triplets only)
    L_, slope_ = value_and_gradient(term, torch.where(M, d_hat, 3 * d_hat + 1), d)
    assert torch.equal(L, L_) and torch.equal(slope, slope_)


@pytest.mark.parametrize("alpha", [INF, 50.0, 2.0, 1.0, -INF])
def test_eq10_survives_any_prediction_in_a_hole(alpha):
    """At alpha = inf, rho overflows there, and inf * 0 = NaN."""
    d_hat, d = scene(dtype=torch.float32)
    d_hat = d + 0.5
    wild = torch.where(d > 0, d_hat, 1e4)
    args = {**ROBUST, "alpha": alpha}
    plain, x = losses.L_robust(d_hat, d, **args), wild.requires_grad_()
    L = losses.L_robust(x, d, **args)
    L.backward()
    assert L.isfinite() and torch.equal(L, plain)
    assert x.grad.isfinite().all() and not x.grad[d == 0].any() and x.grad[d > 0].all()


def test_eq10_adaptive_form_survives_any_prediction_in_a_hole():
    d_hat, d = scene(dtype=torch.float32)
    x = torch.where(d > 0, d_hat, 1e30).requires_grad_()  # its square overflows
    model = losses.AdaptiveRobust(1.0, 2.0, "batch")
    L = model(x, d)
    L.backward()
    assert torch.equal(L, model(d_hat, d))
    assert x.grad.isfinite().all() and all(p.grad.isfinite() for p in model.parameters())


def hard_cases():
    """name -> (d_hat, d) 24x32, float32."""
    d_hat, d = scene(h=24, w=32, holes=0, dtype=torch.float32)
    one = torch.zeros_like(d)
    one[1, 0, 8, 12] = 3.0
    wild = d.clone()
    wild[:, :, ::3], wild[:, :, 1::5], wild[..., ::7], wild[..., 3::4] = NAN, INF, -2.0, -INF
    wild[0, 0, 8, 12] = 1e-30
    return {
        "no valid pixel": (d_hat, 0 * d),
        "all NaN": (d_hat, torch.full_like(d, NAN)),
        "one valid pixel": (d_hat, one),
        "a zero prediction": (0 * d_hat, d),
        "a tiny prediction": (1e-12 * d_hat, d),
        "a constant prediction": (0 * d_hat + 2, d),
        "a perfect prediction": (d.clone(), d),
        "a perfect prediction and one pixel": (one + 1, one),
        "NaN, inf and negative depths": (d_hat, wild),
        "a zero prediction, no valid pixel": (0 * d_hat, 0 * d),
    }


CASES = hard_cases()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("term", TERMS)
def test_eq7_to_eq10_stay_finite_and_attached(term, case):
    d_hat, d = CASES[case]
    L, slope = value_and_gradient(term, d_hat, d)
    assert L.isfinite() and slope.isfinite().all()
    if case in ("no valid pixel", "all NaN"):
        assert abs(L) < 1e-5 and not slope.any()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("flags", ["", "--dynamic_weights", "--dynamic_weights --robust_adaptive"])
def test_eq11_stays_finite_and_attached(flags, case):
    d_hat, d = CASES[case]
    x = d_hat[..., ::4, ::4].clone().requires_grad_()
    loss = depth_loss("--vnl_share", "1", *flags.split())
    L, report = loss(x, full, batch_of(d))
    assert L.requires_grad and L.isfinite()
    L.backward()
    for slope in (x.grad, *(p.grad for p in loss.parameters())):  # None would break DDP
        assert slope.isfinite().all()
    assert all(v.isfinite() for v in report.values())


def test_eq10_adaptive_form_learns_nothing_from_an_empty_batch():
    d_hat, _ = scene(dtype=torch.float32)
    model = losses.AdaptiveRobust(1.0, 2.0, "batch")
    L = model(d_hat, 0 * d_hat)
    L.backward()
    assert L == 0 and model.latent_alpha.grad == 0 and model.log_c.grad == 0


@pytest.mark.parametrize("latent", [-1e4, 1e4])
def test_eq10_adaptive_form_keeps_alpha_strictly_between_0_and_2(latent):
    d_hat, d = scene(dtype=torch.float32)
    model = losses.AdaptiveRobust(1.0, 2.0, "batch")
    model.latent_alpha.data.fill_(latent)
    L = model(d_hat.requires_grad_(), d)
    L.backward()
    assert L.isfinite() and d_hat.grad.isfinite().all()
    assert model.latent_alpha.grad.isfinite() and model.log_c.grad.isfinite()


def test_eq9_maps_too_small_for_a_triplet():
    d_hat, d = scene(h=8, w=8, dtype=torch.float32)
    x = d_hat[..., ::4, ::4].clone().requires_grad_()  # 2x2 pixels, a share of 0.15: no triplet
    L, report = depth_loss()(x, full, batch_of(d))
    L.backward()
    assert L.isfinite() and report["vnl"].isfinite() and x.grad.isfinite().all()


@pytest.mark.parametrize("share, count", [("0.001", 1), ("0.01", 1), ("0.15", 28), ("1", 192)])
def test_eq9_draws_one_triplet_at_least(share, count, monkeypatch):
    drawn, draw = [], losses.draw_triplets
    monkeypatch.setattr(losses, "draw_triplets", lambda *a: drawn.append(a) or draw(*a))
    d_hat, batch = picture()
    depth_loss("--vnl_share", share)(d_hat, full, batch)
    assert drawn == [(0, 5, 192, count)]


@pytest.mark.parametrize("flags", ["", "--dynamic_weights --robust_adaptive"])
def test_eq11_is_float32_under_autocast(flags, monkeypatch):
    d_hat, batch = picture()
    loss = depth_loss(*flags.split())
    terms = loss.terms

    def outside_autocast(*args):
        assert not torch.is_autocast_enabled("cpu")  # on the CPU, no operation would tell
        return terms(*args)

    monkeypatch.setattr(loss, "terms", outside_autocast)
    plain, _ = loss(d_hat, full, batch)
    half = d_hat.bfloat16()
    rounded, _ = loss(half.float(), full, batch)
    assert plain.dtype == torch.float32 and not torch.equal(plain, rounded)
    with torch.autocast("cpu", torch.bfloat16):
        L, report = loss(d_hat, full, batch)
        assert L.dtype == torch.float32 and torch.equal(L, plain)
        assert all(v.dtype == torch.float32 for v in report.values())
        L, _ = loss(half, full, batch)
        assert L.dtype == torch.float32 and torch.equal(L, rounded)
