"""Eq. 7-11 against hand-computed values, closed forms and the released code; then the form by cells
against the plain one. Random cases against a slow reference: test_properties.py."""

import argparse
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import released
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import losses
from losses import Loss
from model import upsample
from plumbing import flags
from plumbing.files import UserError

BATCH = Loss(pool="batch")  # as released
PRED = [[1.0, 2.0, 4.0], [3.0, 5.0, 8.0]]  # the printed test vector of Eq. 8 and 10
GT = [[1.0, 1.0, 2.0], [0.0, 4.0, 10.0]]
LN_Z_1 = math.log(2 * math.e * 0.6019072301972346)  # alpha = 1: 2 e K_1(1)
NAN, INF = math.nan, math.inf
@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Maps this small take longer on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def arrays(*tensors):
    return [t.squeeze(1).numpy() for t in tensors]


def camera(d):
    """A plausible K for maps like d."""
    h, w = d.shape[-2:]
    return torch.tensor([[0.8 * w, 0.8 * w, w / 2 - 0.5, h / 2 - 0.5]]).expand(len(d), 4)


def gradients(d):
    """Fig. 4's maps of d (N,1,h,w), as the loader gives them."""
    return [torch.from_numpy(x[:, None]).to(d if x.dtype == float else torch.bool)
            for x in reference.masked_gradient(d[:, 0].numpy())]  # fmt: skip


def grad(d_hat, d):
    return losses.L_grad(d_hat, *gradients(d))


# ------------------------------------------------------------------------------------------- Eq. 7


def test_eq7_by_hand():
    d_hat, d = maps([[math.e, math.e**3, 7.0]], [[1.0, 1.0, 0.0]])  # e = 1, 3 and a hole
    L = losses.L_silog(d_hat, d, Loss(silog_alpha=10.0, silog_eps=1e-12, pool="batch"))
    assert L.item() == pytest.approx(10 * math.sqrt(2 + 0.15 * 2**2))  # var 2, mean 2


def test_eq7_equals_the_released_code_where_that_is_a_number():
    d_hat, d = scene()
    d[0, 0, :4] = 0  # pooled over the batch, the pictures do not weigh the same
    L = losses.L_silog(d_hat, d, BATCH)
    assert L.item() == pytest.approx(released.silog(*arrays(d_hat, d)))
    d_hat, d = maps([[2.0, 9.0]], [[4.0, 0.0]])  # one pixel: variance 0
    L = losses.L_silog(d_hat, d, BATCH)
    assert L.item() == pytest.approx(math.sqrt(0.15) * math.log(4.001 / 2.001))
    assert math.isnan(released.silog(*arrays(d_hat, d)))


# ------------------------------------------------------------------------------------------- Eq. 8


def test_eq8_printed_vector():
    assert grad(*maps(PRED, GT)).item() == pytest.approx(5 / 3 + 4 / 2)  # 3.66667
    assert released.gradient(np.array(PRED), np.array(GT)) == pytest.approx(3.75)


def test_eq8_masks_the_prediction_too_and_the_released_code_does_not():
    d_hat, d = scene(holes=0.2)
    other = torch.where(losses.holes_to_zero(d) > 0, d_hat, d_hat + 50)
    assert torch.equal(grad(other, d), grad(d_hat, d))
    assert released.gradient(*arrays(other, d)) > released.gradient(*arrays(d_hat, d)) + 1
    # a true prediction is free, released or not, only without holes
    truth = scene(holes=0)[1]
    assert grad(truth, d) == 0 and released.gradient(*arrays(truth, truth)) == 0
    assert released.gradient(*arrays(truth, d)) > 0.5


# ------------------------------------------------------------------------------------------- Eq. 9


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
    for prediction, L in ((d_hat, by_hand), (d, 0), (0 * d, 0)):  # of 0 m, no triplet is left
        assert losses.L_vnl(prediction, d, K, triplets, Loss()).item() == pytest.approx(L)
        assert released.vnl(*arrays(prediction, d), triplets.numpy()) == pytest.approx(L)


def test_eq9_equals_the_released_code_without_holes():
    d_hat, d = scene(n=3, h=32, w=40, holes=0)
    triplets = losses.draw_triplets(0, 0, 1280, 192)
    L = losses.L_vnl(d_hat, d, tilted_plane()[2].expand(3, 4), triplets, Loss())
    assert L.item() == pytest.approx(released.vnl(*arrays(d_hat, d), triplets.numpy()))


def test_eq9_leaves_invalid_triplets_out_and_the_released_code_shrinks():
    d_hat, d, K = tilted_plane()
    triplets = losses.draw_triplets(0, 0, 1280, 2000)
    holes = torch.rand(d.shape, generator=torch.Generator().manual_seed(0))
    shrunk = []
    for share in (0.0, 0.3, 0.5, 0.7):
        d_ = torch.where(holes < share, 0.0, d)
        assert losses.L_vnl(d_hat, d_, K, triplets, Loss()).item() == pytest.approx(0.5527864)
        shrunk.append(released.vnl(*arrays(d_hat, d_), triplets.numpy()))
    assert shrunk[0] > 1.5 * shrunk[1] > 2 * shrunk[2] > 3 * shrunk[3] >= 0


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

    loss = losses.DepthLoss(Loss(weights=(0, 0, 1, 0)))
    crop = torch.tensor([[K[0], K[1], K[2] - x0, K[3] - y0]])
    triplets = losses.draw_triplets(0, 0, h * w, h * w)
    batch = {"depth": torch.ones(1, 1, H, W), "depth_low": d, "triplets": triplets}
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
    shares = ((1280, 0.15), (1280, 1.0), (192, 0.01), (4, 0.15))
    assert [losses.triplet_count(*x) for x in shares] == [192, 1280, 1, 1]


def test_eq9_backward_is_bit_identical_on_two_threads():
    d_hat, d = scene(n=3, h=8, w=10, holes=0, dtype=torch.float32)
    triplets = losses.draw_triplets(0, 0, 80, 4_000)  # every pixel some 150 times
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = []
        for _ in range(4):
            x = d_hat.clone().requires_grad_()
            losses.L_vnl(x, d, camera(d), triplets, Loss()).backward()
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


def test_eq10_printed_vector():
    L = losses.L_robust(*maps(PRED, GT), BATCH)
    assert L.item() == pytest.approx(0.2128990, abs=1e-7)
    assert released.robust(np.array(PRED), np.array(GT)) == pytest.approx(0.2128990, abs=1e-7)


def test_eq10_adaptive_form_starts_as_the_likelihood_of_the_fixed_one():
    d_hat, d = scene()
    L = losses.AdaptiveRobust(BATCH)(d_hat, d)
    fixed = losses.L_robust(d_hat, d, BATCH)
    assert L.item() == pytest.approx(fixed.item() + math.log(2.0) + LN_Z_1, rel=1e-6)
    for alpha in (0.0, 2.0, -1.0, INF):
        with pytest.raises(UserError, match="0 < alpha < 2: --robust_alpha"):
            losses.AdaptiveRobust(Loss(robust_alpha=alpha))


# ------------------------------------------------------------------------------------------ Eq. 11

ODD = Loss(
    silog_alpha=3.0, silog_lambda=0.5, silog_eps=0.01, robust_alpha=0.5, robust_c=0.7,
    vnl_filter="gt", vnl_delta_z=1.5, vnl_cos=0.9, vnl_near=0.5, vnl_drop=0.4, pool="batch",
)  # fmt: skip
NAMES = ("cell_n", "cell_mean", "cell_M2")


def full(d_hat):
    return d_hat.repeat_interleave(4, 2).repeat_interleave(4, 3)


def batch_of(d, size=None, eps=1e-3):
    """The loader's batch of a full-size d (N,1,H,W), for maps of `size`, else a quarter of d's."""
    size = size or tuple(s // 4 for s in d.shape[-2:])
    d = losses.holes_to_zero(d)
    low = losses.to_cells(d, size).amax((3, 5))
    out = dict(zip(("grad_x", "grad_y", "M_x", "M_y"), gradients(low)))
    out |= dict(zip(NAMES, losses.cell_statistics(d, size, eps)))
    triplets = losses.draw_triplets(0, 0, size[0] * size[1], size[0] * size[1])
    return out | {"depth": d, "depth_low": low, "K": camera(d), "triplets": triplets}


def picture():
    """d_hat (2,1,12,16) and a batch whose ground truth is 48x64."""
    d = scene(h=48, w=64, holes=0.2, dtype=torch.float32)[1]
    return scene(h=12, w=16, seed=1, dtype=torch.float32)[0], batch_of(d)


def terms_by_hand(d_hat, batch):
    """The four unweighted terms of `picture` with ODD's numbers."""
    d, low = batch["depth"], batch["depth_low"]
    fx, fy, cx, cy = camera(d).unbind(1)
    K = torch.stack([fx / 4, fy / 4, (cx - 1.5) / 4, (cy - 1.5) / 4], 1)
    return {
        "silog": losses.L_silog(full(d_hat), d, ODD), "grad": grad(d_hat, low),
        "vnl": losses.L_vnl(d_hat, low, K, batch["triplets"], ODD),
        "robust": losses.L_robust(full(d_hat), d, ODD),
    }  # fmt: skip


@pytest.mark.parametrize("w", [(1, 0.25, 2.5, 0.6), (0, 0.25, 0, 2)])
def test_eq11_is_the_weighted_sum_of_the_weighed_terms(w):
    d_hat, batch = picture()
    L, report = losses.DepthLoss(dataclasses.replace(ODD, weights=w))(d_hat, full, batch)
    by_hand = terms_by_hand(d_hat, batch)
    used = {k: v for k, v in zip(by_hand, w) if v}
    assert L.item() == pytest.approx(sum(v * by_hand[k].item() for k, v in used.items()))
    assert list(report) == [*used, *(f"w_{k}" for k in used)]
    for k, v in used.items():
        assert report[k].item() == pytest.approx(by_hand[k].item())
        assert report[f"w_{k}"].item() == pytest.approx(v)


@pytest.mark.parametrize("w", [(1, 0.25, 2.5, 0.6), (0, 0.25, 0, 2)])
def test_eq11_dynamic_weights_by_hand(w):
    d_hat, batch = picture()
    loss = losses.DepthLoss(dataclasses.replace(ODD, weights=w, dynamic_weights=True))
    terms = {k: (v, t.item()) for (k, t), v in zip(terms_by_hand(d_hat, batch).items(), w) if v}
    assert loss.p.tolist() == [1.0] * len(terms)
    p = [0.7, 1.3, -1.9, 2.2][: len(terms)]
    loss.p.data = torch.tensor(p)
    L, report = loss(d_hat.requires_grad_(), full, batch)
    wi, Li = zip(*terms.values())
    assert L.item() == pytest.approx(released.dynamic(Li, wi, p))
    L.backward()
    slope = [-w * L / q**3 + 2 * q / (1 + q**2) for w, L, q in zip(wi, Li, p)]
    assert loss.p.grad.tolist() == pytest.approx(slope, rel=1e-5, abs=1e-6)
    for k, q in zip(terms, p):
        assert report[f"w_{k}"].item() == pytest.approx(terms[k][0] / (2 * q**2))
    assert not any(v.requires_grad for v in report.values())


def test_eq11_dynamic_weights_printed_vector(monkeypatch):
    loss = losses.DepthLoss(Loss(weights=(1, 1, 1, 1), dynamic_weights=True))
    monkeypatch.setattr(loss, "terms", lambda *_: dict.fromkeys(losses.TERMS, torch.ones(())))
    assert loss(torch.ones(1), None, {})[0].item() == pytest.approx(4.7725887)
    assert released.dynamic([1] * 4, [1] * 4, [1] * 4) == pytest.approx(4.7725887)


def test_eq11_adaptive_robust_takes_the_place_of_the_fixed_one_and_is_reported():
    d_hat, batch = picture()
    loss = losses.DepthLoss(Loss(weights=(0, 0, 0, 0.4), robust_adaptive=True, robust_c=0.7))
    L, report = loss(d_hat, full, batch)
    fixed = losses.L_robust(full(d_hat), batch["depth"], Loss(robust_c=0.7)).item()
    assert L.item() == pytest.approx(0.4 * (fixed + math.log(0.7) + LN_Z_1), rel=1e-5)
    assert {n for n, _ in loss.named_parameters()} == {"adaptive.latent_alpha", "adaptive.log_c"}
    assert report["robust_alpha"] == pytest.approx(1) and report["robust_c"] == pytest.approx(0.7)
    loss.adaptive.latent_alpha.data.fill_(1.0)
    loss.adaptive.log_c.data.fill_(-1.0)
    report = loss(d_hat, full, batch)[1]
    assert report["robust_alpha"] == pytest.approx(0.001 + 1.998 / (1 + math.exp(-1)))
    assert report["robust_c"] == pytest.approx(math.exp(-1))
    assert not any(v.requires_grad for v in report.values())


def test_eq11_adaptive_robust_needs_a_weight():
    with pytest.raises(UserError, match="--robust_adaptive needs a robust weight above 0"):
        losses.DepthLoss(Loss(weights=(1, 0.25, 2.5, 0), robust_adaptive=True))


# -------------------------------------------------------------------------------- hyper-parameters


def parsed(*argv):
    parser = flags.Parser()
    flags.add(parser, Loss)
    return flags.take(parser.parse_args(argv), Loss)


def test_defaults_are_the_papers():
    assert parsed() == Loss() and dataclasses.asdict(Loss()) == {
        "weights": (1.0, 0.25, 2.5, 0.6), "dynamic_weights": False, "loss_form": "cells",
        "silog_alpha": 1.0, "silog_lambda": 0.85, "silog_eps": 1e-3, "pool": "image",
        "robust_alpha": 1.0, "robust_c": 2.0, "robust_adaptive": False,
        "vnl_share": 0.15, "vnl_filter": "prediction", "vnl_delta_z": 0.1, "vnl_cos": 0.867,
        "vnl_near": 0.005, "vnl_drop": 0.25,
    }  # fmt: skip


def test_flags_take_numbers_that_mean_something(capsys):
    for name, good, bad in (
        ("silog_alpha", "1e-3 10", "0 -1 inf"), ("silog_lambda", "0 0.85 1", "-0.1 1.1 inf"),
        ("silog_eps", "1e-6 1", "0 -1e-3 inf"), ("robust_alpha", "-inf -2 0 1 2 3.5 inf", ""),
        ("robust_c", "0.01 2", "0 -2 inf"), ("vnl_share", "0.001 1", "0 -0.1 1.01 inf"),
        ("vnl_delta_z", "0 0.1", "-0.1 inf"), ("vnl_cos", "0.5 1", "0 -0.5 1.01"),
        ("vnl_near", "0 0.005", "-0.1 inf"), ("vnl_drop", "0 0.25 0.99", "-0.1 1 1.5"),
    ):  # fmt: skip
        for text in good.split():
            assert getattr(parsed(f"--{name}={text}"), name) == float(text)
        for text in [*bad.split(), "nan", "x", ""]:
            with pytest.raises(SystemExit):
                parsed(f"--{name}={text}")
            assert f"argument --{name}: {text!r} is not a" in capsys.readouterr().err


def test_weights_are_four_and_not_all_0():
    assert losses.parse_weights("1,.25, 0,2e-1") == (1.0, 0.25, 0.0, 0.2)
    for text in ("1,1,1", "1,1,1,1,1", "", "a,b,c,d", "1;1;1;1", "-1,0,0,1", "0,0,0,0", "nan,1,1,1",
                 "inf,1,1,1"):  # fmt: skip
        with pytest.raises(argparse.ArgumentTypeError, match="four weights|is not a number"):
            losses.parse_weights(text)


def test_the_form_is_chosen_once_and_said(capsys):
    """Cells wherever there are cells; the plain form where there are none."""
    for cpp, kernel in ((True, "cpp"), (False, "torch")):
        loss = losses.depth_loss(Loss(), nearest=True, cpp=cpp)
        assert type(loss) is losses.CellLoss and loss.kernel == kernel
    plain = losses.depth_loss(Loss(loss_form="plain"), nearest=False, cpp=True)
    assert type(plain) is losses.DepthLoss and not capsys.readouterr().err
    for o, nearest, why in (
        (Loss(), False, "--upsample bilinear has no cells"),
        (Loss(robust_adaptive=True), True, "--robust_adaptive learns from single pixels"),
    ):
        assert type(losses.depth_loss(o, nearest, cpp=True)) is losses.DepthLoss
        said = capsys.readouterr().err
        assert why in said and "the plain losses are used" in said


# ---------------------------------------------------------------------- Eq. 7-11: holes, edge cases


def with_gradient(loss, d_hat, *others):
    x = d_hat.clone().requires_grad_()
    L = loss(x, *others)
    assert L.requires_grad and L.dtype == x.dtype
    return L.item(), torch.autograd.grad(L, x)[0]


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
FORMS = {
    "plain": losses.DepthLoss(Loss()), "cpp": losses.CellLoss(Loss(), "cpp"),
    "torch": losses.CellLoss(Loss(), "torch"),
    "dynamic": losses.DepthLoss(Loss(
        dynamic_weights=True, robust_adaptive=True, vnl_filter="gt", pool="batch"
    )),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_eq11_stays_finite_and_attached(form, case):
    d_hat, d = CASES[case]
    x, loss = d_hat[..., ::4, ::4].clone().requires_grad_(), FORMS[form]
    L, report = loss(x, full, batch_of(d))
    L.backward()
    for slope in (x.grad, *(p.grad for p in loss.parameters())):  # None would break DDP
        assert slope.isfinite().all()
    assert L.isfinite() and all(v.isfinite() for v in report.values())


@pytest.mark.parametrize("form", ["plain", "cpp"])
def test_eq11_is_float32_under_autocast(form, monkeypatch):
    d_hat, batch = picture()
    loss, half = FORMS[form], d_hat.bfloat16().requires_grad_()
    terms = loss.terms

    def outside_autocast(*args):
        assert not torch.is_autocast_enabled("cpu")  # on the CPU, no operation would tell
        return terms(*args)

    monkeypatch.setattr(loss, "terms", outside_autocast)
    rounded = loss(half.detach().float(), full, batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        L, report = loss(half, full, batch)
    L.backward()
    assert L.dtype == torch.float32 and torch.equal(L, rounded)
    assert half.grad.dtype == torch.bfloat16 and half.grad.any()
    assert all(v.dtype == torch.float32 for v in report.values())


# -------------------------------------------------------------------------------- the form by cells

kernels = pytest.mark.parametrize("kernel", ["cpp", "torch"])


def surface(canvas=(97, 131), size=(7, 9)):
    """(d_hat (2,1,*size), d (2,1,*canvas)) float32; d is a smooth surface plus noise, 1-9 m, with
    holes of every kind."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(1, 9, (2, 1, *size)))
    d = upsample(coarse, canvas, "nearest").numpy() * rng.uniform(0.8, 1.2, (2, 1, *canvas))
    d_hat = coarse.numpy() * np.exp(rng.normal(0.1, 0.3, coarse.shape))
    for hole in (0.0, NAN, INF, -INF, -1.0, -0.0):
        d[rng.random(d.shape) < 0.06] = hole
    return torch.from_numpy(d_hat).float(), torch.from_numpy(d).float()


def apart(got, expected):
    """How far a (value, gradient) is from the expected one, relative: the value by its own size,
    the gradient by its largest element."""
    (L, slope), (L_, slope_) = got, expected
    top = slope_.abs().max().item()
    return abs(L - L_) / (abs(L_) or 1), (slope.double() - slope_).abs().max().item() / (top or 1)


def test_statistics_keep_their_digits_far_from_0():
    """ln d = 9 +- 1e-3: the difference of raw float32 sums would be nothing but rounding."""
    rng = np.random.default_rng(0)
    d = torch.from_numpy(np.exp(9 + 1e-3 * rng.normal(size=(1, 1, 60, 64)))).float()
    M2, exact = (losses.cell_statistics(x, (4, 4), 1e-3)[2] for x in (d, d.double()))
    assert (M2 / exact - 1).abs().max() < 1e-3  # what the rounding of the logarithms leaves


@kernels
def test_eq10_by_cells_by_hand(kernel):
    """alpha = 1, c = 2: e = 0, 2 sqrt(3), hole | -2 sqrt(8), hole, hole -> rho = 0, 1 | 2."""
    d = torch.tensor([[[[9.0, 9.0 - 2 * 3**0.5, NAN, 5 + 2 * 8**0.5, -1.0, INF]]]])
    x = torch.tensor([[[[9.0, 5.0]]]], requires_grad=True)
    L = losses.L_robust_cells(x, d, BATCH, kernel)
    L.backward()
    assert L.item() == pytest.approx(1.0, rel=1e-6)
    expected = [3**0.5 / 4 / 3, -(8**0.5) / 6 / 3]  # e / c^2 / sqrt((e/c)^2 + 1), a third each
    assert x.grad.flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_the_cpp_kernel_serves_the_two_usual_alphas(monkeypatch):
    kernel, calls = losses.litedepth_kernels.robust_cells, []
    spy = SimpleNamespace(robust_cells=lambda *given: (calls.append(given[2]), kernel(*given)))
    monkeypatch.setattr(losses, "litedepth_kernels", spy)
    for alpha in (1.0, 2.0, 0.5, -INF):
        for form in ("cpp", "torch"):
            losses.L_robust_cells(*surface(), Loss(robust_alpha=alpha), form)
    assert calls == [1.0, 2.0]


def test_the_truth_may_be_overwritten_before_the_backward_pass():
    """The loader uses a batch's memory again: the C++ form keeps nothing of it."""
    d_hat, d = surface()
    _, expected = with_gradient(lambda x: losses.L_robust_cells(x, d, BATCH, "cpp"), d_hat)
    x = d_hat.clone().requires_grad_()
    L = losses.L_robust_cells(x, d, BATCH, "cpp")
    d.fill_(5.0)
    L.backward()
    assert torch.equal(x.grad, expected)


def never(d_hat):
    raise AssertionError("the cell form enlarges nothing")


@kernels
@pytest.mark.parametrize("o", [
    BATCH, Loss(dynamic_weights=True), Loss(weights=(0, 1, 1, 0)),
    Loss(weights=(1, 0, 0, 1), robust_alpha=-2.0, robust_c=0.5),
])  # fmt: skip
@pytest.mark.parametrize("sizes", [((97, 131), (7, 9)), ((9, 12), (11, 12))])  # some cells empty
def test_eq11_by_cells_equals_the_plain_form(o, sizes, kernel):
    d_hat, d = surface(*sizes)
    batch = batch_of(d, d_hat.shape[-2:])
    plain, cell = losses.DepthLoss(o), losses.CellLoss(o, kernel)

    def enlarge(x):
        return upsample(x, d.shape[-2:], "nearest")

    L, slope = with_gradient(lambda x: plain(x, enlarge, batch)[0], d_hat)
    got = with_gradient(lambda x: cell(x, never, batch)[0], d_hat)
    assert max(apart(got, (L, slope.double()))) < 1e-6
    terms, terms_ = plain(d_hat, enlarge, batch)[1], cell(d_hat, never, batch)[1]
    assert list(terms) == list(terms_)
    for k, v in terms.items():
        torch.testing.assert_close(terms_[k], v, rtol=1e-6, atol=1e-7)


@kernels
def test_eq11_by_cells_takes_the_statistics_of_the_batch(kernel):
    d_hat, d = surface()
    batch, loss = batch_of(d, d_hat.shape[-2:]), losses.CellLoss(Loss(), kernel)
    _, report = loss(d_hat, never, batch)
    _, other = loss(d_hat, never, batch | {"cell_mean": batch["cell_mean"] + 1})
    assert other["silog"] != report["silog"] and other["robust"] == report["robust"]


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


def test_the_torch_form_never_waits_for_a_gpu():
    """Nothing in it needs a value on the host, in either direction, nor a size that depends on
    one: neither its forward nor its backward pass stops the queue of a GPU."""
    d_hat, d = surface()
    batch = batch_of(d, d_hat.shape[-2:])
    loss = losses.CellLoss(Loss(dynamic_weights=True), "torch")
    with Recorder() as recorder:
        recorder.seen = set()
        loss(d_hat.requires_grad_(), never, batch)[0].backward()
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "lift_fresh",
             "index by a mask", "index_put by a mask", "index_put_ by a mask"}  # fmt: skip
    assert len(recorder.seen) > 30 and not recorder.seen & waits
