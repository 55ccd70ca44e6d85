"""csrc: Sec. 3.2 (R^2 crop), Eq. 8 / Fig. 4 (masked gradient), Eq. 7's cells and Eq. 10 by cell.

r2_batch and masked_gradient equal their slow twin (tests/twin.py) bit for bit, over shapes, memory
layouts, numbers, threads and instruction sets, and write nothing beyond their outputs. Both are
also held to oracles that share no code with them: OpenCV, PyTorch, hand sums. robust_cells is held
to float64 autograd. LITEDEPTH_EXAMPLES: cases a property, 150 if not given.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import litedepth_kernels
import numpy as np
import pytest
import torch
import twin
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional

LOGS = twin.log_table(1000.0, 1e-3)
MODES = ["cell", "nearest", "bilinear"]
ISAS = ["baseline", "avx2", "avx512"]
ISAS = ISAS[: ISAS.index(litedepth_kernels.isa()) + 1]
TINY, LARGEST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
ODD = [0, -0.0, -1, math.nan, -math.nan, math.inf, -math.inf, 1e-45, -1e-45, 1e-39, TINY, LARGEST]
FAR = [math.nan, math.inf, -math.inf, 1e300, -1e300, 1e19, 2.0**31, -(2.0**31), 65536, 5e-324, -0.0]

searched = settings(
    max_examples=int(os.environ.get("LITEDEPTH_EXAMPLES", "150")), derandomize=True,
    deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
kernels = pytest.mark.parametrize("kernels", [litedepth_kernels, twin], ids=["cpp", "twin"])


@pytest.fixture(autouse=True)
def same_isa():
    """Puts the instruction set back."""
    before = litedepth_kernels.isa()
    yield
    litedepth_kernels.set_isa(before)


def unaligned(a: np.ndarray) -> np.ndarray:
    out = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    out[:] = a
    return out


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(a, b)
    assert a.tobytes() == b.tobytes()  # array_equal lets -0.0 pass for 0.0


# Cases ------------------------------------------------------------------------------------------


def sample(H: int, W: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """rgb and depth (one pixel in five a hole)."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
    depth = rng.integers(1, 65536, (H, W), dtype=np.uint16)
    depth[rng.random((H, W)) < 0.2] = 0
    return rgb, depth


def affine_map(
    H: int, W: int, degrees: float = 0.0, flip: bool = False, at: tuple[float, float] = (0, 0)
) -> np.ndarray:
    """Canvas -> source: move by at = (v, u), flip, then rotate about the centre of the source."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (W - 1) / 2, (H - 1) / 2
    rotate = np.array([[cos, sin, x - cos * x - sin * y], [-sin, cos, y + sin * x - cos * y]])
    mirror = np.array([[-1, 0, W - 1], [0, 1, 0], [0, 0, 1]]) if flip else np.eye(3)
    move = np.array([[1, 0, at[1]], [0, 1, at[0]], [0, 0, 1]])
    return rotate @ mirror @ move


def outputs(B: int, canvas: tuple, net: tuple | None, low: tuple) -> dict[str, np.ndarray]:
    """Arrays for r2_batch's results, full of rubbish; net None: no image."""
    out = {name: np.full((B, 1, *low), np.nan, np.float32) for name in twin.MAPS}
    out |= {name: np.full((B, 1, *low), True) for name in ("M_x", "M_y")}
    out["depth"] = np.full((B, 1, *canvas), np.nan, np.float32)
    return out | ({"image": np.full((B, 3, *net), np.nan, np.float32)} if net else {})


def arguments(
    B: int = 3, size: tuple[int, int] = (37, 53), canvas: tuple[int, int] | None = None,
    net: tuple[int, int] = (11, 17), low: tuple[int, int] = (5, 7), mode: str = "cell",
    seed: int = 0, degrees: float = 0.0, flip: bool = False, crop: tuple[int, int] | None = None,
    at: tuple[float, float] = (0, 0), threads: int = 1, grey: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of r2_batch, all samples by the same map. grey: the image in grey levels."""
    canvas = canvas or size
    pairs = [sample(*size, seed + b) for b in range(B)]
    levels = np.tile(np.arange(256, dtype=np.float32), (B, 3, 1))
    colours = np.random.default_rng(seed).normal(size=levels.shape).astype(np.float32)
    return {
        "rgb": [rgb for rgb, _ in pairs],
        "depth": [depth for _, depth in pairs],
        "affine": np.stack([affine_map(*size, degrees, flip, at)] * B),
        "crop": np.array([crop or canvas] * B, np.int64),
        "lut": levels if grey else colours,
        "depth_scale": 1000.0,
        "logs": LOGS,
        "mode": mode,
        "threads": threads,
        "out": outputs(B, canvas, net, low),
    }


def run(module: Any, args: dict[str, Any], **changes) -> dict[str, np.ndarray]:
    """r2_batch on copies of the outputs, which are returned."""
    args = args | {"out": {name: a.copy() for name, a in args["out"].items()}} | changes
    assert module.r2_batch(**args) is None
    return args["out"]


def assert_agree(args: dict[str, Any], **changes) -> dict[str, np.ndarray]:
    cpp, slow = (run(module, args, **changes) for module in (litedepth_kernels, twin))
    for name, a in cpp.items():
        assert_same_bits(a, slow[name])
        assert not np.isnan(a).any(), name
    return cpp


def crop(module: Any, rgb: np.ndarray, depth: np.ndarray, affine: np.ndarray, **sizes):
    """(image in grey levels, depth in metres) of one sample."""
    args = arguments(1, depth.shape, grey=True, low=(1, 1), **sizes)
    out = run(module, args | {"rgb": [rgb], "depth": [depth], "affine": affine[None]})
    return out["image"][0], out["depth"][0, 0]


# Sec. 3.2, R^2 crop: the kernel is the twin ------------------------------------------------------


@pytest.mark.parametrize("degrees, flip", [(0.0, False), (0.0, True), (-2.5, True)])
@pytest.mark.parametrize("size", [(240, 384), (384, 512), (480, 640)])
def test_sec32_batch_equals_twin_at_the_papers_sizes(size, degrees: float, flip: bool) -> None:
    at = (480 - size[0], (640 - size[1]) // 2)
    assert_agree(arguments(
        1, (480, 640), net=(128, 160), low=(32, 40), crop=size, degrees=degrees, flip=flip, at=at,
    ))  # fmt: skip


def test_batch_without_images_or_depths() -> None:
    args = arguments(4, degrees=1.5)
    whole = run(litedepth_kernels, args)
    maps = {"rgb": None, "out": {k: a for k, a in args["out"].items() if k != "image"}}
    for name, a in run(litedepth_kernels, args | maps).items():
        assert_same_bits(a, whole[name])
    args["depth"][1] = args["depth"][3] = None
    part = assert_agree(args)
    assert_same_bits(part.pop("image"), whole["image"])
    for name, a in part.items():
        assert_same_bits(a[[0, 2]], whole[name][[0, 2]])
        assert not a[[1, 3]].any()


def test_sec32_image_rounds_near_ties_as_the_twin_does() -> None:
    """In tenths of a pixel many values are x.5 but for rounding: another order would show here."""
    for tenths in range(1, 10):
        args = arguments(1, (2, 512), (1, 512), (1, 512), (1, 1), seed=tenths)
        args["affine"][0] = affine_map(2, 512, at=(tenths / 10, 0))
        assert_agree(args)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300, -1e10, 65536.0, 1e19])
def test_sec32_positions_without_a_source_are_black_and_holes(bad: float) -> None:
    for degrees in (0.0, 5.0):
        args = arguments(6, degrees=degrees, grey=True)
        for k in range(6):
            args["affine"][k].flat[k] = bad
        out = assert_agree(args)
        for k in (2, 5):
            assert not out["image"][k].any() and not out["depth"][k].any()
            assert not out["cell_n"][k].any()


@pytest.mark.parametrize("degrees", [0.0, 2.5])
def test_batch_reads_mapped_files_to_their_last_byte(tmp_path: Path, degrees: float) -> None:
    """A map ends with its page here: one byte more would be a bus error."""
    rgb, depth = sample(64, 64)  # 12,288 and 8,192 bytes: whole pages
    for name, a in (("rgb", rgb), ("depth", depth)):
        a.tofile(tmp_path / name)
    rgb = np.memmap(tmp_path / "rgb", np.uint8, "r", shape=(64, 64, 3))
    depth = np.memmap(tmp_path / "depth", np.uint16, "r", shape=(64, 64))
    for flip in (False, True):
        args = arguments(1, (64, 64), net=(32, 32), low=(8, 8), degrees=degrees, flip=flip)
        assert_agree(args | {"rgb": [rgb], "depth": [depth]})


# Sec. 3.2, R^2 crop: other oracles ---------------------------------------------------------------


@kernels
@pytest.mark.parametrize(
    ("at", "pixels"),
    [((11.49, 0), 16), ((11.5, 0), 0), ((-11.5, 0), 16), ((-11.51, 0), 0), ((12, 0), 0)]
    + [((0, 15.49), 12), ((0, 15.5), 0), ((0, -15.5), 12), ((0, -15.51), 0), ((0, -16), 0)],
)
def test_sec32_depth_ends_half_a_pixel_beyond_the_source(kernels, at, pixels: int) -> None:
    rgb, depth = sample(12, 16)
    depth[:] = 5000
    _, metres = crop(kernels, rgb, depth, affine_map(12, 16, at=at))
    assert (metres == 5).sum() == pixels and (metres == 0).sum() == 12 * 16 - pixels


@kernels
def test_sec32_image_fades_to_black_over_one_pixel(kernels) -> None:
    rgb, depth = np.full((4, 6, 3), 200, np.uint8), np.zeros((4, 6), np.uint16)
    image, _ = crop(kernels, rgb, depth, affine_map(4, 6, at=(0, -0.75)), net=(4, 6))
    assert (image[:, :, 0] == 50).all() and (image[:, :, 1:] == 200).all()
    image, _ = crop(kernels, rgb, depth, affine_map(4, 6, at=(0.75, 0)), net=(4, 6))
    assert (image[:, 3] == 50).all() and (image[:, :3] == 200).all()
    image, _ = crop(kernels, rgb, depth, affine_map(4, 6, at=(-1, 0)), net=(4, 6))
    assert (image[:, 0] == 0).all() and (image[:, 1:] == 200).all()


@kernels
def test_sec32_identity_equals_cv2_resize(kernels) -> None:
    rgb, depth = sample(480, 640)
    image, metres = crop(kernels, rgb, depth, affine_map(480, 640), net=(128, 160))
    want = cv2.resize(rgb, (160, 128), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    assert np.abs(image - want).max() <= 1
    np.testing.assert_array_equal(metres, depth.astype(np.float32) / np.float32(1000))


@kernels
def test_sec32_rotation_is_close_to_cv2(kernels) -> None:
    rgb, depth = sample(480, 640)
    rgb = cv2.GaussianBlur(rgb, (0, 0), 4)  # cv2 interpolates twice, which costs it fine detail
    rgb = cv2.normalize(rgb, None, 0, 255, cv2.NORM_MINMAX)
    affine, inverse = affine_map(480, 640, -2.5), cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(rgb, affine, (640, 480), flags=cv2.INTER_LINEAR | inverse)
    want = cv2.resize(warped, (160, 128), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    image, metres = crop(kernels, rgb, depth, affine, net=(128, 160))
    assert np.abs(image - want).mean() < 1
    want = cv2.warpAffine(depth, affine, (640, 480), flags=cv2.INTER_NEAREST | inverse) / 1000
    assert np.isclose(metres, want, rtol=1e-6).mean() > 0.99


@kernels
def test_sec32_flip_is_a_flip(kernels) -> None:
    rgb, depth = sample(48, 64)
    flipped = crop(kernels, rgb, depth, affine_map(48, 64, flip=True), net=(12, 16))
    want = crop(kernels, rgb[:, ::-1], depth[:, ::-1], affine_map(48, 64), net=(12, 16))
    for a, b in zip(flipped, want):
        np.testing.assert_array_equal(a, b)


@kernels
def test_sec32_crop_is_a_window_of_the_whole_and_the_rest_is_0(kernels) -> None:
    rgb, depth = sample(480, 640)
    size, at = (360, 480), (60, 80)  # a whole number of network pixels: 96 x 120 at (16, 20)
    rgb |= 1
    image, metres = crop(kernels, rgb, depth, affine_map(480, 640), net=(128, 160))
    part, low = crop(kernels, rgb, depth, affine_map(480, 640, at=at), crop=size, net=(128, 160))
    np.testing.assert_array_equal(part[:, :96, :120], image[:, 16:112, 20:140])
    np.testing.assert_array_equal(low[:360, :480], metres[60:420, 80:560])
    assert not low[360:].any() and not low[:, 480:].any()
    assert not part[:, 96:].any() and not part[:, :, 120:].any()


@kernels
def test_sec32_network_share_is_rounded_down(kernels) -> None:
    rgb, depth = sample(480, 640)
    rgb |= 1
    image, _ = crop(kernels, rgb, depth, affine_map(480, 640), crop=(384, 512), net=(128, 160))
    assert image[:, :102, :128].all()  # 384 * 128 / 480 = 102.4
    assert not image[:, 102:].any() and not image[:, :, 128:].any()
    image, _ = crop(kernels, rgb, depth, affine_map(480, 640), crop=(3, 3), net=(128, 160))
    assert not image.any()  # less than one network pixel


@kernels
def test_sec32_depth_is_never_blended(kernels) -> None:
    rgb, depth = sample(48, 64)
    source = set(np.unique(depth.astype(np.float32) / np.float32(1000)))
    affine = affine_map(48, 64, 2.2, True, (1, 2))
    assert set(np.unique(crop(kernels, rgb, depth, affine, crop=(38, 51))[1])) <= source
    # One hole among equal depths: every canvas pixel is that depth or the hole, and some are holes.
    depth[:] = 4000
    depth[20:23, 30:33] = 0
    metres = crop(kernels, rgb, depth, affine_map(48, 64, 2.2))[1]
    assert set(np.unique(metres)) == {np.float32(0), np.float32(4)}
    assert 4 <= (metres[15:30, 25:40] == 0).sum() <= 16


@kernels
def test_sec32_colour_comes_after_rounding_for_each_channel(kernels) -> None:
    args = arguments(1, (1, 2), net=(1, 1), low=(1, 1))
    args["rgb"] = [np.array([[[10, 20, 30], [11, 20, 33]]], np.uint8)]
    image = run(kernels, args)["image"]
    # Halfway: 10.5 rounds up to 11, 20, 31.5 rounds up to 32.
    np.testing.assert_array_equal(image.ravel(), args["lut"][0, [0, 1, 2], [11, 20, 32]])


# Eq. 7's cells and the ground truth at 32x40 -----------------------------------------------------


def test_eq7_log_table_is_the_logarithm_of_metres_plus_eps() -> None:
    assert LOGS.dtype == np.float32 and LOGS.shape == (65536,) and LOGS[0] == 0
    for k in (1, 7, 999, 1000, 1001, 40000, 65535):
        assert LOGS[k] == np.float32(math.log(float(np.float32(k) / np.float32(1000)) + 1e-3))
    assert twin.log_table(5000.0, 0.0)[5000] == 0


@kernels
@pytest.mark.parametrize("low", [(32, 32), (7, 11), (1, 1)])
def test_eq7_cells_and_gt_down_equal_plain_sums(kernels, low: tuple[int, int]) -> None:
    H, W, (h, w) = 96, 128, low
    args = arguments(1, (H, W), low=low, crop=(70, 101))
    out = run(kernels, args)
    d = out["depth"][0, 0].astype(np.float64)
    rows, cols = np.arange(H) * h // H, np.arange(W) * w // W
    n, mean, M2, cell = (np.zeros(low) for _ in range(4))
    for i, j in np.ndindex(low):
        mine = d[np.ix_(rows == i, cols == j)]
        mine = mine[mine > 0]
        x = np.log(mine + 1e-3)
        n[i, j] = x.size
        if x.size:
            mean[i, j], M2[i, j], cell[i, j] = x.mean(), x.var() * x.size, mine.mean()
    assert 0 < n.sum() < 70 * 101
    np.testing.assert_array_equal(out["cell_n"][0, 0], n)
    np.testing.assert_allclose(out["cell_mean"][0, 0], mean, rtol=1e-6, atol=1e-7)
    # logs are rounded to float32: 24 bits of numbers up to 11
    np.testing.assert_allclose(out["cell_M2"][0, 0], M2, rtol=1e-6, atol=3e-6)
    np.testing.assert_allclose(out["depth_low"][0, 0], cell, rtol=1e-6)


def down(module: Any, depth: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """depth_low of whole metres, nothing but the ground truth's resolution changed."""
    args = arguments(1, depth.shape, low=size, mode=mode) | {"depth_scale": 1.0}
    return run(module, args | {"depth": [np.array(depth, np.uint16)]})["depth_low"][0, 0]


@kernels
def test_gt_down_by_hand(kernels) -> None:
    metres = np.array([[1, 2, 0, 5], [3, 0, 0, 0], [0, 0, 7, 9], [0, 0, 8, 0]])
    np.testing.assert_array_equal(down(kernels, metres, (2, 2), "cell"), [[2, 5], [0, 8]])
    np.testing.assert_array_equal(down(kernels, metres, (2, 2), "nearest"), [[0, 0], [0, 0]])
    np.testing.assert_array_equal(down(kernels, metres, (1, 1), "nearest"), [[7]])
    np.testing.assert_array_equal(down(kernels, metres, (2, 2), "bilinear"), [[1, 5], [0, 0]])
    centre = np.array([[0, 1, 2], [3, 8, 0], [6, 7, 9]])  # positions 0 and 2
    np.testing.assert_array_equal(down(kernels, centre, (2, 2), "bilinear"), [[0, 2], [6, 9]])
    row = np.array([[4, 0, 0, 2, 6]])  # positions 0, 4/3, 8/3, 4
    np.testing.assert_array_equal(down(kernels, row, (1, 4), "bilinear"), [[4, 0, 2, 6]])
    for mode in MODES:
        np.testing.assert_array_equal(down(kernels, metres, (4, 4), mode), metres)


@kernels
@pytest.mark.parametrize("size", [(480, 640, 32, 40), (17, 23, 5, 7), (9, 5, 1, 3)])
def test_gt_down_without_holes_equals_torch(kernels, size: tuple[int, ...]) -> None:
    H, W, h, w = size
    d = np.random.default_rng(8).integers(1, 9000, (H, W))
    # In double: torch's float32 positions alone would be 1e-5 of the image's width off.
    x = torch.from_numpy(d.astype(np.float64))[None, None]
    want = functional.interpolate(x, (h, w), mode="bilinear", align_corners=True)[0, 0]
    np.testing.assert_allclose(down(kernels, d, (h, w), "bilinear"), want, rtol=1e-6)
    want = functional.interpolate(x, (h, w), mode="nearest-exact")[0, 0]
    np.testing.assert_array_equal(down(kernels, d, (h, w), "nearest"), want)
    if H % h == W % w == 0:
        want = functional.adaptive_avg_pool2d(x, (h, w))[0, 0]
        np.testing.assert_allclose(down(kernels, d, (h, w), "cell"), want, rtol=1e-6)


# Eq. 8 / Fig. 4: masked gradient -----------------------------------------------------------------


def gradient(module: Any, d: np.ndarray) -> list[np.ndarray]:
    """grad_x, grad_y, M_x, M_y."""
    out = [np.full(d.shape, np.nan, np.float32) for _ in range(2)]
    out += [np.full(d.shape, True) for _ in range(2)]
    assert module.masked_gradient(d, *out) is None
    return out


def some(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> np.ndarray:
    """Float32 depths and the like, a share of them odd: holes, limits, what is no number."""
    a = rng.uniform(0.1, 40, shape).astype(np.float32)
    chosen = rng.random(shape) < share
    a[chosen] = rng.choice(np.array(ODD, np.float32), chosen.sum())
    return a


@kernels
def test_eq8_masked_gradient_by_hand(kernels) -> None:
    d = np.array([[1, 1, 2], [0, 4, 10]], np.float32)
    grad_x, grad_y, M_x, M_y = gradient(kernels, d)
    np.testing.assert_array_equal(grad_x, [[0, 1, 0], [0, 6, 0]])
    np.testing.assert_array_equal(M_x, [[True, True, False], [False, True, False]])
    np.testing.assert_array_equal(grad_y, [[0, 3, 8], [0, 0, 0]])
    np.testing.assert_array_equal(M_y, [[False, True, True], [False, False, False]])


@kernels
@pytest.mark.parametrize("hole", [0.0, -0.0, -3.0, math.nan, math.inf, -math.inf, -1e-45])
def test_eq8_a_hole_masks_its_four_differences(kernels, hole: float) -> None:
    d = np.arange(1, 21, dtype=np.float32).reshape(4, 5)
    d[1, 2] = hole
    grad_x, grad_y, M_x, M_y = gradient(kernels, d)
    want_x, want_y = np.ones((4, 5), bool), np.ones((4, 5), bool)
    want_x[:, -1] = want_y[-1] = False
    want_x[1, 1] = want_x[1, 2] = want_y[0, 2] = want_y[1, 2] = False
    np.testing.assert_array_equal(M_x, want_x)
    np.testing.assert_array_equal(M_y, want_y)
    np.testing.assert_array_equal(grad_x, 1.0 * want_x)
    np.testing.assert_array_equal(grad_y, 5.0 * want_y)


# Eq. 10 by cell ----------------------------------------------------------------------------------


def robust(d_hat: np.ndarray, d: np.ndarray, alpha=1.0, c=2.0, threads=1) -> list[np.ndarray]:
    """rho, slope, count."""
    out = [np.full(d_hat.shape, -7, np.float32) for _ in range(3)]
    assert litedepth_kernels.robust_cells(d_hat, d, alpha, c, threads, *out) is None
    return out


def robust_by_autograd(d_hat: np.ndarray, d: np.ndarray, alpha: float, c: float):
    """(rho, slope, count, size of the slope's terms) by cell, from Eq. 10 pixel by pixel, float64.
    """
    (N, _, h, w), (H, W) = d_hat.shape, d.shape[2:]
    rows, columns = torch.arange(H) * h // H, torch.arange(W) * w // W
    M = torch.from_numpy(np.isfinite(d) & (d > 0))
    near = torch.from_numpy(d_hat).double()[:, :, rows][:, :, :, columns]
    e = torch.where(M, near - torch.from_numpy(np.where(M, d, 0)).double(), 0).requires_grad_()
    z = (e / c) ** 2
    rho = (z + 1).sqrt() - 1 if alpha == 1 else z / 2
    (slope,) = torch.autograd.grad(rho.sum(), e)
    cell = ((torch.arange(N)[:, None, None] * h + rows[:, None]) * w + columns).flatten()
    return [
        torch.zeros(N * h * w, dtype=torch.float64).index_add(0, cell, x.flatten()).view(N, 1, h, w)
        for x in (rho.detach(), slope, M.double(), slope.abs())
    ]


@st.composite
def robust_cases(draw: Callable) -> tuple[np.ndarray, np.ndarray, float, float, int]:
    rng, N = np.random.default_rng(draw(seeds)), draw(st.integers(1, 3))
    d = some(rng, (N, 1, draw(sides), draw(sides)), draw(shares))
    d[(d < 1e-3) | (d > 1e3)] = draw(st.sampled_from([0, -1, math.nan, math.inf]))
    d_hat = rng.uniform(0, 40, (N, 1, draw(sides), draw(sides))).astype(np.float32)
    scale = draw(st.sampled_from([2.0, 0.5, 30.0]))
    return d_hat, d, draw(st.sampled_from([1.0, 2.0])), scale, draw(st.integers(1, 4))


sides = st.integers(-4, 40).map(lambda n: max(n, 1))
widths = sides | st.sampled_from([64, 97, 131, 260])
seeds = st.integers(0, 2**32 - 1)
shares = st.sampled_from([0.0, 0.1, 0.5, 1.0])


@searched
@given(robust_cases())
def test_eq10_cells_equal_autograd_in_float64(case) -> None:
    """On any canvas, whatever a hole holds. Compared relative to the sum of sizes."""
    *maps, alpha, c, threads = case
    rho, slope, count = robust(*maps, alpha, c, threads)
    rho_, slope_, count_, size = (x.numpy() for x in robust_by_autograd(*maps, alpha, c))
    np.testing.assert_array_equal(count, count_)
    assert (abs(rho - rho_) <= 2e-6 * rho_ + 1e-12).all()
    assert (abs(slope - slope_) <= 2e-6 * size + 1e-12).all()


def test_eq10_printed_vector() -> None:
    """pred and gt of the released code, alpha = 1, c = 2: a mean of 0.2128990 over 5 pixels."""
    pred = np.array([[[[1, 2, 4], [3, 5, 8]]]], np.float32)
    gt = np.array([[[[1, 1, 2], [0, 4, 10]]]], np.float32)
    rho, slope, count = robust(pred, gt)
    assert rho.sum() / count.sum() == pytest.approx(0.2128990, abs=1e-7)
    rho, slope, count = robust(pred, gt, alpha=2.0)
    np.testing.assert_array_equal(rho, [[[[0, 0.125, 0.5], [0, 0.125, 0.5]]]])
    np.testing.assert_array_equal(slope, [[[[0, 0.25, 0.5], [0, 0.25, -0.5]]]])
    np.testing.assert_array_equal(count, [[[[1, 1, 1], [0, 1, 1]]]])


def test_eq10_keeps_its_digits_near_0_and_far_away() -> None:
    d = np.full((1, 1, 1, 1), 1.0, np.float32)
    for e in (2**-20, 2**-12, 1.0, 1e3, 1e9, 1e18):
        d_hat = np.float32(1 + e).reshape(d.shape)
        e = float(d_hat.item()) - 1.0
        rho, slope, _ = (x.item() for x in robust(d_hat, d))
        assert rho == pytest.approx((e / 2) ** 2 / (math.sqrt((e / 2) ** 2 + 1) + 1), rel=1e-6)
        assert slope == pytest.approx(e / 4 / math.sqrt((e / 2) ** 2 + 1), rel=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_eq10_shows_a_network_that_has_diverged_but_not_under_holes(alpha: float) -> None:
    for wrong in (math.nan, math.inf, -math.inf):
        d_hat = np.full((1, 1, 1, 1), wrong, np.float32)
        rho, slope, _ = robust(d_hat, np.ones((1, 1, 2, 2), np.float32), alpha)
        assert not np.isfinite(rho) and not np.isfinite(slope)
        assert not any(a.any() for a in robust(d_hat, np.zeros((1, 1, 2, 2), np.float32), alpha))


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("isa", ISAS)
def test_eq10_has_the_same_bits_for_any_threads_isa_and_layout(isa: str, alpha: float) -> None:
    rng = np.random.default_rng(6)
    d_hat, d = some(rng, (3, 1, 41, 47), 0.0), some(rng, (3, 1, 480, 640), 0.3)
    litedepth_kernels.set_isa("baseline")
    want = robust(d_hat, d, alpha)
    litedepth_kernels.set_isa(isa)
    for threads in (1, 2, 5):
        for a, b in zip(robust(d_hat, d, alpha, threads=threads), want):
            assert a.tobytes() == b.tobytes()
    for other in (d[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1], unaligned(d)):
        for a, b in zip(robust(np.asfortranarray(d_hat), other, alpha), want):
            assert a.tobytes() == b.tobytes()


# Any case there is, by hypothesis ----------------------------------------------------------------


@st.composite
def layouts(draw: Callable, a: np.ndarray) -> np.ndarray:
    """The numbers of a in any layout: axes in any order, steps of several elements, some flipped,
    odd bytes between, rubbish around; now and then one row in place of all."""
    order = draw(st.permutations(range(a.ndim)))
    steps = [draw(st.integers(1, 3)) for _ in order]
    ways = [draw(st.sampled_from([1, 1, -1])) for _ in order]
    strides, reach = [0] * a.ndim, a.itemsize
    for k in order:
        strides[k] = reach * steps[k] + draw(st.sampled_from([0, 0, 1, 5]))
        reach += strides[k] * (a.shape[k] - 1)
    start = draw(st.sampled_from([0, 1, 8]))
    for k, way in enumerate(ways):
        if way < 0:
            start += strides[k] * (a.shape[k] - 1)
            strides[k] *= -1
        if a.shape[k] == 1:  # numpy gives such an axis any stride
            strides[k] = draw(st.sampled_from([0, 2**62, -(2**63), strides[k]]))
    if ways[0] > 0 and draw(st.integers(0, 9)) == 9:
        strides[0] = 0
    memory = np.resize(np.array([0xA5, 0x7F, 0xC0, 0xFF, 1], np.uint8), reach + 16)
    out = np.ndarray(a.shape, a.dtype, memory, start, strides)
    out[...] = a
    return out


@st.composite
def affines(draw: Callable, size: tuple[int, int]) -> np.ndarray:
    """Maps into a picture of this size: straight, turned by a little or by anything, flipped, onto
    pixels' borders, and some with numbers far away."""
    kind = draw(st.sampled_from(["straight", "turned", "turned", "any", "far"]))
    small = st.sampled_from([2.0**-4, 2.0**-7, 0.1, 0.025, 1e-5, 4e-9, 1e-12]) | st.floats(0, 0.12)
    ways = st.sampled_from([1, 1, -1])
    affine = np.zeros((2, 3))
    for k in range(2):
        way, slope = draw(ways), draw(small)
        affine[k, k] = way * (1.0 if kind == "straight" else 1 + draw(ways) * slope)
        if kind != "straight":
            affine[k, 1 - k] = draw(ways) * (slope if draw(st.booleans()) else draw(small))
        if kind == "any":
            affine[k, :2] = draw(st.floats(-3, 3)), draw(st.floats(-3, 3))
        at = st.sampled_from([0.0, 0.0, 0.5, -0.5, 0.5 - 1e-10]) | st.floats(-5, 5)
        affine[k, 2] = draw(at | st.floats(-45, 45)) + (size[1 - k] - 1 if way < 0 else 0)
    if kind == "far":
        affine.flat[draw(st.integers(0, 5))] = draw(st.sampled_from(FAR))
    return affine


@st.composite
def batches(draw: Callable) -> dict[str, Any]:
    rng, B = np.random.default_rng(draw(seeds)), draw(st.integers(1, 4))
    canvas = draw(sides), draw(widths)
    inside = st.tuples(*(st.just(n) | st.integers(1, n) for n in canvas))
    rgb, depth, affine = [], [], []
    for _ in range(B):
        H, W = draw(st.just(canvas) | st.tuples(sides, widths))
        raw = rng.integers(0, 65536, (H, W), dtype=np.uint16)
        raw[rng.random((H, W)) < draw(shares)] = draw(st.sampled_from([0, 65535]))
        rgb.append(draw(layouts(rng.integers(0, 256, (H, W, 3), dtype=np.uint8))))
        depth.append(None if draw(st.integers(0, 5)) == 5 else draw(layouts(raw)))
        affine.append(draw(affines((H, W))))
    net = (draw(sides), draw(sides)) if draw(st.booleans()) else None
    return {
        "rgb": rgb if net else None, "depth": depth,
        "affine": draw(layouts(np.stack(affine))),
        "crop": draw(layouts(np.array([draw(inside) for _ in range(B)], np.int64))),
        "lut": draw(layouts(some(rng, (B, 3, 256), draw(shares)))),
        "depth_scale": draw(st.sampled_from([1000.0, 256.0, 0.37, 1e-30, 1e30])),
        "logs": LOGS[:: draw(st.sampled_from([1, -1]))],
        "mode": draw(st.sampled_from(MODES)), "threads": draw(st.sampled_from([1, 2, 3, 64])),
        "out": outputs(B, canvas, net, draw(inside)),
    }  # fmt: skip


@searched
@given(batches(), st.sampled_from(ISAS))
def test_any_batch_has_the_twins_bits_and_touches_nothing_else(case: dict, isa: str) -> None:
    want = run(twin, case)
    litedepth_kernels.set_isa(isa)
    around, out = {}, {}
    for name, a in case["out"].items():  # in the middle of memory that must stay as it is
        around[name] = np.full(a.nbytes + 64, 0x5A, np.uint8)
        out[name] = around[name][32:-32].view(a.dtype).reshape(a.shape)
    read = [a for a in (*(case["rgb"] or []), *case["depth"]) if a is not None]
    before = [a.copy() for a in read]
    litedepth_kernels.r2_batch(**case | {"out": out})
    for name, a in out.items():
        assert a.tobytes() == want[name].tobytes(), name
        assert (around[name][:32] == 0x5A).all() and (around[name][-32:] == 0x5A).all()
    assert all(np.array_equal(a, b) for a, b in zip(read, before))


@searched
@given(st.data(), st.sampled_from(ISAS))
def test_eq8_masked_gradient_equals_the_papers_nan_form(data, isa: str) -> None:
    litedepth_kernels.set_isa(isa)
    rng = np.random.default_rng(data.draw(seeds))
    d = some(rng, (data.draw(sides), data.draw(widths)), data.draw(shares))
    d = data.draw(layouts(d))
    for a, b in zip(gradient(litedepth_kernels, d), gradient(twin, d)):
        assert_same_bits(a, b)


# Threads, forks and exits ------------------------------------------------------------------------


def test_kernels_may_be_called_by_several_threads_at_once() -> None:
    jobs = [arguments(6, degrees=1.0 * k, threads=3, seed=k) for k in range(3)]
    want = [run(litedepth_kernels, args, threads=1) for args in jobs]
    wrong = []

    def work(k: int) -> None:
        for _ in range(15):
            for name, a in run(litedepth_kernels, jobs[k]).items():
                if a.tobytes() != want[k][name].tobytes():
                    wrong.append((k, name))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


SCRIPT = """
import os, sys, threading
sys.path[:0] = {path!r}
from test_kernels import arguments, litedepth_kernels, run

args = arguments(8, threads=3)
want = run(litedepth_kernels, args, threads=1)
def same():
    out = run(litedepth_kernels, args)
    return all(a.tobytes() == want[name].tobytes() for name, a in out.items())
def started():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 3

assert same()
for end in (os._exit, sys.exit):  # a child, and its child, run threads of their own
    child = os.fork()
    if child == 0:
        ok = same() and started() == 3
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if same() and started() == 3 else 3)
        ok = ok and os.waitpid(grandchild, 0)[1] == 0 and same()
        end(0 if ok else 3)
    assert os.waitpid(child, 0)[1] == 0
assert same()
threading.Thread(target=lambda: [same() for _ in range(50)]).start()  # on as the script ends
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_pool_survives_forks_and_ends_with_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(path=sys.path)], capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# Errors ------------------------------------------------------------------------------------------


def refusal(kind: type, call: Callable, *args, **kwargs) -> str:
    with pytest.raises(kind) as error:
        call(*args, **kwargs)
    return str(error.value)


def batch_refusal(kind: type, args: dict[str, Any], **changes) -> str:
    """What r2_batch says; no output may have changed. `out_x=a`: a in the place of out["x"]."""
    renamed = {k[4:]: a for k, a in changes.items() if k.startswith("out_")}
    changes = {k: a for k, a in changes.items() if not k.startswith("out_")}
    out = args["out"] | renamed
    before = {name: np.array(a) for name, a in out.items()}
    said = refusal(kind, litedepth_kernels.r2_batch, **args | {"out": out} | changes)
    for name, a in before.items():
        assert np.array(out[name]).tobytes() == a.tobytes(), name
    return said


@pytest.mark.parametrize("name", ["affine", "crop", "lut", "logs", "image", "depth", *twin.MAPS])
def test_errors_of_every_array(name: str) -> None:
    args = arguments(2)
    written = name in args["out"]
    a = args["out"][name] if written else args[name]

    def says(kind: type, value: object) -> str:
        return batch_refusal(kind, args, **{f"out_{name}" if written else name: value})

    assert says(TypeError, a.astype(complex)) == f"{name}: expected dtype {a.dtype}, got complex128"
    if a.itemsize > 1:
        swapped = a.astype(a.dtype.newbyteorder(">"))
        assert says(TypeError, swapped).startswith(f"{name}: expected dtype {a.dtype}, got >")
    assert says(TypeError, [1]) == f"{name}: expected an array, got list"
    assert says(ValueError, a[None]).startswith(f"{name}: expected shape ")
    refused = says(ValueError, np.concatenate([a, a[:1]]))  # a longer affine: all else is too short
    assert refused.startswith("crop: " if name == "affine" else f"{name}: expected shape (")
    if written:
        frozen = a.copy()
        frozen.flags.writeable = False
        assert says(ValueError, frozen) == f"{name}: the output array is read-only"
        for bad in (a[..., ::-1], np.asfortranarray(a), np.repeat(a, 2, 2)[:, :, ::2]):
            start = f"{name}: an output must lie in C order and aligned, got strides {bad.strides}"
            assert says(ValueError, bad).startswith(start)
        if a.itemsize > 1:
            assert "aligned" in says(ValueError, unaligned(a))


def test_errors_name_the_sample_and_the_sizes() -> None:
    args = arguments(3)
    rgb, depth = args["rgb"], args["depth"]
    far = np.lib.stride_tricks.as_strided(np.zeros(9, np.uint16), (37, 53), (2**26, 2))
    big, out = np.zeros((3, 1, 38, 7), np.float32), args["out"]
    few = {name: a for name, a in out.items() if name not in ("grad_y", "cell_n")}
    same = np.zeros(out["grad_x"].size + 1, np.float32)
    one, two = same[:-1].reshape(3, 1, 5, 7), same[1:].reshape(3, 1, 5, 7)
    masks = rgb[1].reshape(-1)[-105:].view(bool).reshape(3, 1, 5, 7)
    for changes, said in (
        ({"rgb": rgb[:2]}, "rgb: expected 3 arrays (the length of affine), got 2"),
        ({"depth": [depth[0], depth[1][:, 1:], depth[2]]},
         "depth[1]: expected shape (37, 53), got (37, 52)"),
        ({"rgb": [*rgb[:2], rgb[2][..., :2]]},
         "rgb[2]: expected shape (any, any, 3), got (37, 53, 2)"),
        ({"rgb": [rgb[0][:0], *rgb[1:]]},
         "rgb[0]: every side must be in 1..1048576, got shape (0, 53, 3)"),
        ({"depth": [far] * 3}, "depth[0]: spans more than 2 GB"),
        ({"out_depth_low": big},
         "depth_low: shape (38, 7) is larger than that of depth, (37, 53)"),
        ({"out_cell_M2": big}, "cell_M2: expected shape (3, 1, 5, 7), got (3, 1, 38, 7)"),
        ({"mode": "area"}, "mode: expected 'cell', 'nearest' or 'bilinear', got 'area'"),
        ({"threads": 0}, "threads: expected 1 or more, got 0"),
        ({"rgb": None}, "out: unknown 'image' (rgb is None)"),
        ({"out_grad_x": one, "out_grad_y": two}, "grad_y: the output of shape (3, 1, 5, 7) shares "
         "memory with grad_x of shape (3, 1, 5, 7)"),
        ({"out_M_x": masks}, "M_x: the output of shape (3, 1, 5, 7) shares memory with rgb[1] of "
         "shape (37, 53, 3)"),
    ):  # fmt: skip
        assert batch_refusal(ValueError, args, **changes) == said
    assert batch_refusal(ValueError, args | {"out": few}) == "out: missing 'grad_y' 'cell_n'"
    for size in ((0, 8), (38, 8), (5, 54), (-1, 8), (2**40, 1)):
        said = batch_refusal(ValueError, args, crop=np.array([(5, 5), size, (5, 5)]))
        assert said == f"crop[1]: expected 1..37 by 1..53 (the canvas, depth), got {size}"
    for scale in (0.0, math.nan, math.inf, 1e31):
        said = batch_refusal(ValueError, args, depth_scale=scale)
        assert said == f"depth_scale: expected 1e-30..1e30 sensor units per metre, got {scale!r}"


def test_errors_of_the_other_kernels() -> None:
    d, (grad_x, grad_y, M_x, M_y) = np.ones((6, 8), np.float32), gradient(twin, np.ones((6, 8)))
    call = litedepth_kernels.masked_gradient
    said = refusal(ValueError, call, d, grad_x, grad_y[:5], M_x, M_y)
    assert said == "grad_y: expected shape (6, 8), got (5, 8)"
    said = refusal(ValueError, call, d, d, grad_y, M_x, M_y)
    assert said == "grad_x: the output of shape (6, 8) shares memory with d of shape (6, 8)"
    d_hat, d = np.ones((2, 1, 7, 9), np.float32), np.ones((2, 1, 97, 131), np.float32)
    said = refusal(ValueError, robust, d_hat, d[:1])
    assert said == "d: expected shape (2, 1, any, any), got (1, 1, 97, 131)"
    rho, slope, count = robust(d_hat, d)
    call = litedepth_kernels.robust_cells
    said = refusal(ValueError, call, d_hat, d, 1.0, 2.0, 1, rho[:1], slope, count)
    assert said == "rho: expected shape (2, 1, 7, 9), got (1, 1, 7, 9)"
    said = refusal(ValueError, robust, d_hat, d, 1.5)
    assert said == "alpha: 1 or 2; others take the PyTorch form"
    assert refusal(ValueError, robust, d_hat, d, c=0.0).startswith("c: expected 1e-30..1e30 metr")
    said = refusal(ValueError, litedepth_kernels.set_isa, "sse9")
    assert said == f"name: this processor runs {str(ISAS)[1:-1]}, got 'sse9'"


def test_kernels_name_their_version() -> None:
    project = Path(__file__).resolve().parent.parent / "csrc" / "pyproject.toml"
    assert f'version = "{litedepth_kernels.__version__}"' in project.read_text()
