"""Sec. 3.2 (R^2 crop), Eq. 8 / Fig. 4 (masked gradient) and the losses' ground truth: csrc == twin.

Both are also held to oracles that share no code with them: OpenCV, PyTorch, slow loops, hand sums.
"""

from __future__ import annotations

import math
import threading
from types import ModuleType, SimpleNamespace

import cv2
import litedepth_kernels
import numpy as np
import pytest
import torch

import data

both = pytest.mark.parametrize(
    "kernels", [litedepth_kernels, data], ids=["cpp", "python"]
)
LAYOUTS = ["plain", "fortran", "flipped", "every second row", "window", "unaligned", "broadcast"]


def laid_out(a: np.ndarray, layout: str) -> np.ndarray:
    """The numbers of a in another memory layout (of a[:1] repeated, for "broadcast")."""
    if layout == "fortran":
        return np.asfortranarray(a)
    if layout == "flipped":
        return np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1]
    if layout == "every second row":
        return np.repeat(a, 2, axis=0)[::2]
    if layout == "window":
        return np.pad(a, [(2, 1), (1, 3)] + [(0, 0)] * (a.ndim - 2))[2:-1, 1:-3]
    if layout == "unaligned":
        raw = np.empty(a.nbytes + 1, np.uint8)
        out = raw[1:].view(a.dtype).reshape(a.shape)
        out[:] = a
        return out
    if layout == "broadcast":
        return np.broadcast_to(a[:1], a.shape)
    return a


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(a, b)
    assert a.tobytes() == b.tobytes()  # array_equal lets -0.0 pass for 0.0


# Sec. 3.2: R^2 crop ---------------------------------------------------------------------------


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


def crop(
    kernels: ModuleType,
    rgb: np.ndarray,
    depth: np.ndarray,
    affine: np.ndarray,
    size: tuple[int, int],
    canvas: tuple[int, int] = (480, 640),
    net: tuple[int, int] = (128, 160),
    lut: np.ndarray | None = None,
) -> SimpleNamespace:
    """Run r2_crop on outputs full of rubbish; image in grey levels unless a lut is given."""
    image = np.full((3, *net), np.nan, np.float32)
    metres = np.full(canvas, np.nan, np.float32)
    if lut is None:
        lut = np.tile(np.arange(256, dtype=np.float32), (3, 1))
    pad = np.array([-1, -2, -3], np.float32)
    assert kernels.r2_crop(rgb, depth, affine, size, lut, pad, 1000.0, image, metres) is None
    return SimpleNamespace(image=image, metres=metres)


def assert_crop_agrees(*args, **kwargs) -> SimpleNamespace:
    cpp = crop(litedepth_kernels, *args, **kwargs)
    twin = crop(data, *args, **kwargs)
    assert_same_bits(cpp.image, twin.image)
    assert_same_bits(cpp.metres, twin.metres)
    return cpp


@pytest.mark.parametrize("size", [(240, 384), (384, 512), (480, 640)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("degrees", [0.0, -2.5, 0.7, 2.5])
def test_sec32_r2_crop_equals_twin(size: tuple[int, int], flip: bool, degrees: float) -> None:
    at = (480 - size[0], (640 - size[1]) // 2)
    lut = np.random.default_rng(1).normal(size=(3, 256)).astype(np.float32)
    affine = affine_map(480, 640, degrees, flip, at)
    assert_crop_agrees(*sample(480, 640), affine, size, lut=lut)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sec32_r2_crop_takes_any_strides(layout: str) -> None:
    rgb, depth = (laid_out(a, layout) for a in sample(37, 53))
    affine = laid_out(affine_map(37, 53, 3.0), layout)
    lut = laid_out(np.random.default_rng(2).random((3, 256), np.float32), layout)
    out = assert_crop_agrees(rgb, depth, affine, (31, 47), (37, 53), (11, 17), lut=lut)
    copies = (np.array(a, order="C") for a in (rgb, depth, affine))
    same = crop(litedepth_kernels, *copies, (31, 47), (37, 53), (11, 17), np.array(lut, order="C"))
    assert_same_bits(out.image, same.image)
    assert_same_bits(out.metres, same.metres)


def test_sec32_r2_crop_equals_twin_on_odd_sizes_and_maps() -> None:
    rng = np.random.default_rng(3)
    for seed in range(150):
        H, W, Hc, Wc, hn, wn = (int(n) for n in rng.integers(1, 40, 6))
        affine = affine_map(H, W, rng.uniform(-180, 180), seed % 2 == 1, rng.normal(0, 20, 2))
        affine[:, :2] *= rng.uniform(0.2, 3)
        size = int(rng.integers(1, Hc + 1)), int(rng.integers(1, Wc + 1))
        assert_crop_agrees(*sample(H, W, seed), affine, size, (Hc, Wc), (hn, wn))


def test_sec32_r2_crop_writes_into_strided_buffers() -> None:
    rgb, depth = sample(30, 40)
    affine, net = affine_map(30, 40, 2.0), (8, 10)
    want = crop(litedepth_kernels, rgb, depth, affine, (20, 30), (30, 40), net)
    batch = np.full((2, 3, 2 * net[0], net[1] + 3), 7, np.float32)
    canvas = np.full((60, 45), 7, np.float32)
    lut = np.tile(np.arange(256, dtype=np.float32), (3, 1))
    pad = np.array([-1, -2, -3], np.float32)
    for kernels in (litedepth_kernels, data):
        image, metres = batch[1, ::-1, ::2, : net[1]], canvas[::-2, 5:]
        kernels.r2_crop(rgb, depth, affine, (20, 30), lut, pad, 1000.0, image, metres)
        np.testing.assert_array_equal(image, want.image)
        np.testing.assert_array_equal(metres, want.metres)
        assert (batch[0] == 7).all() and (batch[1, :, 1::2] == 7).all()
        assert (batch[..., net[1] :] == 7).all()
        assert (canvas[::2] == 7).all() and (canvas[:, :5] == 7).all()
        batch[1, ::-1, ::2, : net[1]] = 7
        canvas[::-2, 5:] = 7


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300, -1e300, 1e10, -1e10, 1e19])
def test_sec32_r2_crop_positions_without_a_source_are_black_and_holes(bad: float) -> None:
    rgb, depth = sample(12, 16)
    for k in range(6):
        affine = affine_map(12, 16, 5.0)
        affine.flat[k] = bad
        out = assert_crop_agrees(rgb, depth, affine, (12, 16), (12, 16), (6, 8))
        if k in (2, 5) or not math.isfinite(bad):
            assert (out.image == 0).all() and (out.metres == 0).all()


@both
@pytest.mark.parametrize(
    ("at", "pixels"),
    [((11.49, 0), 16), ((11.5, 0), 0), ((-11.5, 0), 16), ((-11.51, 0), 0), ((12, 0), 0)]
    + [((0, 15.49), 12), ((0, 15.5), 0), ((0, -15.5), 12), ((0, -15.51), 0), ((0, -16), 0)],
)
def test_sec32_r2_crop_depth_ends_half_a_pixel_beyond_the_source(
    kernels: ModuleType, at: tuple[float, float], pixels: int
) -> None:
    rgb, depth = sample(12, 16)
    depth[:] = 5000
    out = crop(kernels, rgb, depth, affine_map(12, 16, at=at), (12, 16), (12, 16), (12, 16))
    assert (out.metres == 5).sum() == pixels
    assert (out.metres == 0).sum() == 12 * 16 - pixels


@both
def test_sec32_r2_crop_image_fades_to_black_over_one_pixel(kernels: ModuleType) -> None:
    rgb = np.full((4, 6, 3), 200, np.uint8)
    depth = np.zeros((4, 6), np.uint16)
    out = crop(kernels, rgb, depth, affine_map(4, 6, at=(0, -0.75)), (4, 6), (4, 6), (4, 6))
    assert (out.image[:, :, 0] == 50).all() and (out.image[:, :, 1:] == 200).all()
    out = crop(kernels, rgb, depth, affine_map(4, 6, at=(0.75, 0)), (4, 6), (4, 6), (4, 6))
    assert (out.image[:, 3] == 50).all() and (out.image[:, :3] == 200).all()
    out = crop(kernels, rgb, depth, affine_map(4, 6, at=(-1, 0)), (4, 6), (4, 6), (4, 6))
    assert (out.image[:, 0] == 0).all() and (out.image[:, 1:] == 200).all()


@both
def test_sec32_r2_crop_identity_equals_cv2_resize(kernels: ModuleType) -> None:
    rgb, depth = sample(480, 640)
    out = crop(kernels, rgb, depth, affine_map(480, 640), (480, 640))
    want = cv2.resize(rgb, (160, 128), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    assert np.abs(out.image - want).max() <= 1
    np.testing.assert_array_equal(out.metres, depth.astype(np.float32) / np.float32(1000))


@both
@pytest.mark.parametrize("degrees", [-2.5, 1.3])
def test_sec32_r2_crop_rotation_is_close_to_cv2(kernels: ModuleType, degrees: float) -> None:
    rgb, depth = sample(480, 640)
    rgb = cv2.GaussianBlur(rgb, (0, 0), 4)  # cv2 interpolates twice, which costs it fine detail
    rgb = cv2.normalize(rgb, None, 0, 255, cv2.NORM_MINMAX)
    affine = affine_map(480, 640, degrees)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(rgb, affine, (640, 480), flags=flags)
    want = cv2.resize(warped, (160, 128), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    out = crop(kernels, rgb, depth, affine, (480, 640))
    assert np.abs(out.image - want).mean() < 1
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    want = cv2.warpAffine(depth, affine, (640, 480), flags=flags) / 1000
    assert np.isclose(out.metres, want, rtol=1e-6).mean() > 0.99


@both
def test_sec32_r2_crop_flip_is_a_flip(kernels: ModuleType) -> None:
    rgb, depth = sample(480, 640)
    flipped = crop(kernels, rgb, depth, affine_map(480, 640, flip=True), (480, 640))
    want = crop(kernels, rgb[:, ::-1], depth[:, ::-1], affine_map(480, 640), (480, 640))
    np.testing.assert_array_equal(flipped.image, want.image)
    np.testing.assert_array_equal(flipped.metres, want.metres)


@both
def test_sec32_r2_crop_is_a_window_of_the_whole_and_pads_the_rest(kernels: ModuleType) -> None:
    rgb, depth = sample(480, 640)
    size, at = (360, 480), (60, 80)  # a whole number of network pixels: 96 x 120 at (16, 20)
    whole = crop(kernels, rgb, depth, affine_map(480, 640), (480, 640))
    part = crop(kernels, rgb, depth, affine_map(480, 640, at=at), size)
    np.testing.assert_array_equal(part.image[:, :96, :120], whole.image[:, 16:112, 20:140])
    np.testing.assert_array_equal(part.metres[:360, :480], whole.metres[60:420, 80:560])
    assert (part.metres[360:] == 0).all() and (part.metres[:, 480:] == 0).all()
    for c, pad in enumerate((-1, -2, -3)):
        assert (part.image[c, 96:] == pad).all() and (part.image[c, :, 120:] == pad).all()


@both
def test_sec32_r2_crop_network_share_is_rounded_down(kernels: ModuleType) -> None:
    rgb, depth = sample(480, 640)
    image = crop(kernels, rgb, depth, affine_map(480, 640), (384, 512)).image
    assert (image[0, :102, :128] >= 0).all()  # 384 * 128 / 480 = 102.4
    assert (image[0, 102:] == -1).all() and (image[0, :, 128:] == -1).all()
    image = crop(kernels, rgb, depth, affine_map(480, 640), (3, 3)).image
    assert (image[1] == -2).all()  # less than one network pixel


@both
def test_sec32_r2_crop_never_blends_depth(kernels: ModuleType) -> None:
    rgb, depth = sample(480, 640)
    source = set(np.unique(depth.astype(np.float32) / np.float32(1000)))
    affine = affine_map(480, 640, 2.2, True, (10, 20))
    assert set(np.unique(crop(kernels, rgb, depth, affine, (384, 512)).metres)) <= source
    # One hole among equal depths: every canvas pixel is that depth or the hole, and some are holes.
    depth[:] = 4000
    depth[200:203, 300:303] = 0
    metres = crop(kernels, rgb, depth, affine_map(480, 640, 2.2), (480, 640)).metres
    assert set(np.unique(metres)) == {np.float32(0), np.float32(4)}
    assert 4 <= (metres[150:250, 250:350] == 0).sum() <= 16
    assert (crop(kernels, rgb, depth * 0, affine, (480, 640)).metres == 0).all()


def test_sec32_r2_crop_rounds_near_ties_as_the_twin_does() -> None:
    """In tenths of a pixel many values are x.5 but for rounding: another order would show here."""
    rng = np.random.default_rng(12)
    depth = np.zeros((2, 512), np.uint16)
    for tenths in range(1, 10):
        rgb = rng.integers(0, 256, (2, 512, 3), dtype=np.uint8)
        affine = affine_map(2, 512, at=(tenths / 10, 0))
        assert_crop_agrees(rgb, depth, affine, (1, 512), (1, 512), (1, 512))


@both
def test_sec32_r2_crop_rounds_then_colours_each_channel(kernels: ModuleType) -> None:
    rgb = np.array([[[10, 20, 30], [11, 20, 33]]], np.uint8)
    lut = np.random.default_rng(5).random((3, 256), np.float32)
    depth = np.ones((1, 2), np.uint16)
    out = crop(kernels, rgb, depth, affine_map(1, 2), (1, 2), (1, 2), (1, 1), lut)
    # Halfway: 10.5 rounds up to 11, 20, 31.5 rounds up to 32.
    np.testing.assert_array_equal(out.image.ravel(), lut[[0, 1, 2], [11, 20, 32]])


# Eq. 8 / Fig. 4: masked gradient --------------------------------------------------------------


def gradient(kernels: ModuleType, d: np.ndarray) -> list[np.ndarray]:
    """grad_x, grad_y, M_x, M_y."""
    out = [np.full(d.shape, np.nan, np.float32) for _ in range(2)]
    out += [np.full(d.shape, True) for _ in range(2)]
    assert kernels.masked_gradient(d, *out) is None
    return out


def holes(H: int, W: int, seed: int) -> np.ndarray:
    """Depths with every kind of hole, and the smallest and largest depths there are."""
    rng = np.random.default_rng(seed)
    d = rng.uniform(0.1, 40, (H, W)).astype(np.float32)
    odd = [0, -0.0, -1, np.nan, -np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3.4028235e38, 1e-38]
    chosen = rng.random((H, W)) < 0.3
    d[chosen] = rng.choice(np.array(odd, np.float32), chosen.sum())
    return d


@both
def test_eq8_masked_gradient_by_hand(kernels: ModuleType) -> None:
    d = np.array([[1, 1, 2], [0, 4, 10]], np.float32)
    grad_x, grad_y, M_x, M_y = gradient(kernels, d)
    np.testing.assert_array_equal(grad_x, [[0, 1, 0], [0, 6, 0]])
    np.testing.assert_array_equal(M_x, [[True, True, False], [False, True, False]])
    np.testing.assert_array_equal(grad_y, [[0, 3, 8], [0, 0, 0]])
    np.testing.assert_array_equal(M_y, [[False, True, True], [False, False, False]])


@both
@pytest.mark.parametrize("hole", [0.0, -0.0, -3.0, math.nan, math.inf, -math.inf, -1e-45])
def test_eq8_masked_gradient_a_hole_masks_its_four_differences(
    kernels: ModuleType, hole: float
) -> None:
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


@both
def test_eq8_masked_gradient_equals_a_slow_loop(kernels: ModuleType) -> None:
    d = holes(13, 17, 0)
    want = [np.zeros(d.shape, np.float32) for _ in range(2)] + [
        np.zeros(d.shape, bool) for _ in range(2)
    ]
    for axis, (dv, du) in enumerate([(0, 1), (1, 0)]):
        for v in range(13 - dv):
            for u in range(17 - du):
                a, b = d[v, u], d[v + dv, u + du]
                if math.isfinite(a) and math.isfinite(b) and a > 0 and b > 0:
                    want[axis][v, u] = b - a
                    want[axis + 2][v, u] = True
    for a, b in zip(gradient(kernels, d), want):
        assert_same_bits(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eq8_masked_gradient_equals_twin(layout: str) -> None:
    for seed, (H, W) in enumerate([(1, 1), (1, 9), (9, 1), (2, 2), (32, 40), (33, 67), (480, 640)]):
        d = laid_out(holes(H, W, seed), layout)
        for a, b in zip(gradient(litedepth_kernels, d), gradient(data, d)):
            assert_same_bits(a, b)


# Ground truth at the network's resolution ------------------------------------------------------


def down(kernels: ModuleType, metres: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    low = np.full(size, np.nan, np.float32)
    assert kernels.gt_down(metres, low, mode) is None
    return low


@both
def test_gt_down_by_hand(kernels: ModuleType) -> None:
    inf, nan = np.inf, np.nan
    metres = np.array([[1, 2, 0, 5], [3, 0, 0, nan], [0, -1, 7, 9], [inf, 0, 8, 0]], np.float32)
    np.testing.assert_array_equal(down(kernels, metres, (2, 2), "cell"), [[2, 5], [0, 8]])
    np.testing.assert_array_equal(down(kernels, metres, (2, 2), "nearest"), [[0, 0], [0, 0]])
    np.testing.assert_array_equal(down(kernels, metres, (1, 1), "nearest"), [[7]])
    np.testing.assert_array_equal(down(kernels, metres, (2, 2), "bilinear"), [[1, 5], [0, 0]])
    centre = np.array([[0, 1, 2], [3, 8, 0], [6, 7, 9]], np.float32)  # positions 0 and 2
    np.testing.assert_array_equal(down(kernels, centre, (2, 2), "bilinear"), [[0, 2], [6, 9]])
    tall = np.array([[4], [0], [2]], np.float32)
    np.testing.assert_array_equal(down(kernels, tall, (2, 1), "bilinear"), [[4], [2]])
    row = np.array([[4, 0, 0, 2, 6]], np.float32)  # positions 0, 4/3, 8/3, 4
    np.testing.assert_array_equal(down(kernels, row, (1, 4), "bilinear"), [[4, 0, 2, 6]])


@both
@pytest.mark.parametrize("size", [(17, 23, 5, 7), (9, 9, 9, 9), (12, 16, 3, 4), (7, 5, 1, 1)])
def test_gt_down_equals_a_slow_loop(kernels: ModuleType, size: tuple[int, ...]) -> None:
    H, W, h, w = size
    rng = np.random.default_rng(7)
    d = np.where(rng.random((H, W)) < 0.4, 0, rng.uniform(0.1, 40, (H, W))).astype(np.float32)
    cell, nearest, bilinear = (np.zeros((h, w)) for _ in range(3))
    for i in range(h):
        for j in range(w):
            mine = [
                float(d[v, u])
                for v in range(H)
                for u in range(W)
                if v * h // H == i and u * w // W == j and d[v, u] > 0
            ]
            cell[i, j] = sum(mine) / len(mine) if mine else 0
            nearest[i, j] = d[math.floor((i + 0.5) * H / h), math.floor((j + 0.5) * W / w)]
            y = i * (H - 1) / (h - 1) if h > 1 else 0.0
            x = j * (W - 1) / (w - 1) if w > 1 else 0.0
            weights = [
                (max(0, 1 - abs(v - y)) * max(0, 1 - abs(u - x)), float(d[v, u]))
                for v in range(H)
                for u in range(W)
                if d[v, u] > 0
            ]
            total = sum(k for k, _ in weights)
            bilinear[i, j] = sum(k * z for k, z in weights) / total if total > 0 else 0
    np.testing.assert_allclose(down(kernels, d, (h, w), "cell"), cell, rtol=1e-6)
    np.testing.assert_array_equal(down(kernels, d, (h, w), "nearest"), nearest)
    np.testing.assert_allclose(down(kernels, d, (h, w), "bilinear"), bilinear, rtol=1e-6)
    if (h, w) == (H, W):
        for mode in ("cell", "nearest", "bilinear"):
            np.testing.assert_array_equal(down(kernels, d, (h, w), mode), d)


@both
def test_gt_down_bilinear_without_holes_equals_torch(kernels: ModuleType) -> None:
    rng = np.random.default_rng(8)
    for H, W, h, w in [(480, 640, 32, 40), (17, 23, 5, 7), (8, 8, 8, 8), (9, 5, 1, 3)]:
        d = rng.uniform(0.1, 40, (H, W)).astype(np.float32)
        # In double: torch's float32 positions alone would be 1e-5 of the image's width off.
        want = torch.nn.functional.interpolate(
            torch.from_numpy(d.astype(np.float64))[None, None],
            size=(h, w),
            mode="bilinear",
            align_corners=True,
        )
        np.testing.assert_allclose(
            down(kernels, d, (h, w), "bilinear"), want[0, 0], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("mode", ["cell", "nearest", "bilinear"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gt_down_equals_twin(mode: str, layout: str) -> None:
    rng = np.random.default_rng(9)
    sizes = [(480, 640, 32, 40), (17, 23, 5, 7), (1, 1, 1, 1), (64, 64, 64, 64), (40, 3, 40, 1)]
    for _ in range(20):
        H, W = (int(n) for n in rng.integers(1, 60, 2))
        sizes.append((H, W, int(rng.integers(1, H + 1)), int(rng.integers(1, W + 1))))
    for seed, (H, W, h, w) in enumerate(sizes):
        d = laid_out(holes(H, W, seed), layout)
        cpp = down(litedepth_kernels, d, (h, w), mode)
        assert_same_bits(cpp, down(data, d, (h, w), mode))
        assert np.isfinite(cpp).all() and (cpp >= 0).all()


# Errors ----------------------------------------------------------------------------------------


def crop_arguments() -> dict:
    rgb, depth = sample(6, 8)
    return {
        "rgb": rgb,
        "depth": depth,
        "affine": affine_map(6, 8),
        "crop": (6, 8),
        "lut": np.zeros((3, 256), np.float32),
        "pad": np.zeros(3, np.float32),
        "depth_scale": 1000.0,
        "image": np.zeros((3, 3, 4), np.float32),
        "metres": np.zeros((6, 8), np.float32),
    }


def gradient_arguments() -> dict:
    arrays = {name: np.zeros((6, 8), np.float32) for name in ("d", "grad_x", "grad_y")}
    return arrays | {name: np.zeros((6, 8), bool) for name in ("M_x", "M_y")}


def down_arguments() -> dict:
    metres, low = np.zeros((6, 8), np.float32), np.zeros((3, 4), np.float32)
    return {"metres": metres, "low": low, "mode": "cell"}


CALLS = {
    "r2_crop": crop_arguments,
    "masked_gradient": gradient_arguments,
    "gt_down": down_arguments,
}
ARRAYS = [(f, n) for f, make in CALLS.items() for n, a in make().items() if hasattr(a, "dtype")]
OUTPUTS = [(f, n) for f, n in ARRAYS if n in ("image", "low") or n[:2] in ("gr", "M_")]
OUTPUTS.append(("r2_crop", "metres"))


@both
@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_errors_of_every_array(kernels: ModuleType, function: str, name: str) -> None:
    call, good = getattr(kernels, function), CALLS[function]()
    call(**good)
    a = good[name]
    with pytest.raises(TypeError, match=rf"^{name}: expected dtype {a.dtype}, got int64$"):
        call(**good | {name: a.astype(np.int64)})
    if a.dtype.itemsize > 1:
        with pytest.raises(TypeError, match=f"^{name}: expected dtype {a.dtype}, got >"):
            call(**good | {name: a.astype(a.dtype.newbyteorder(">"))})
    longer = (1, *a.shape)
    with pytest.raises(ValueError, match=rf"^{name}: expected \d axes.*") as error:
        call(**good | {name: a.reshape(longer)})
    assert str(longer) in str(error.value)
    with pytest.raises(ValueError, match=rf"^{name}: every side must be in 1..1048576, got shape"):
        call(**good | {name: a[:0]})
    huge = np.lib.stride_tricks.as_strided(a, (*a.shape[:-1], 2**31), (*a.strides[:-1], 0))
    with pytest.raises(
        ValueError, match=rf"^{name}: every side must be .* 2147483648\)$|2147483648"
    ):
        call(**good | {name: huge})


@both
@pytest.mark.parametrize(
    ("function", "name", "shape", "message"),
    [
        ("r2_crop", "rgb", (6, 8, 4), r"rgb: expected shape (6, 8, 3), got (6, 8, 4)"),
        ("r2_crop", "depth", (6, 7), r"depth: expected shape (6, 8), got (6, 7)"),
        ("r2_crop", "affine", (3, 3), r"affine: expected shape (2, 3), got (3, 3)"),
        ("r2_crop", "lut", (3, 255), r"lut: expected shape (3, 256), got (3, 255)"),
        ("r2_crop", "pad", (4,), r"pad: expected shape (3,), got (4,)"),
        ("r2_crop", "image", (4, 3, 4), r"image: expected shape (3, 3, 4), got (4, 3, 4)"),
        ("masked_gradient", "grad_x", (6, 7), r"grad_x: expected shape (6, 8), got (6, 7)"),
        ("masked_gradient", "grad_y", (5, 8), r"grad_y: expected shape (6, 8), got (5, 8)"),
        ("masked_gradient", "M_x", (8, 6), r"M_x: expected shape (6, 8), got (8, 6)"),
        ("masked_gradient", "M_y", (1, 1), r"M_y: expected shape (6, 8), got (1, 1)"),
        ("gt_down", "low", (7, 4), r"low: shape (7, 4) is larger than that of metres, (6, 8)"),
        ("gt_down", "low", (3, 9), r"low: shape (3, 9) is larger than that of metres, (6, 8)"),
    ],
)
def test_errors_of_shapes_print_the_sizes(
    kernels: ModuleType, function: str, name: str, shape: tuple[int, ...], message: str
) -> None:
    good = CALLS[function]()
    with pytest.raises(ValueError) as error:
        getattr(kernels, function)(**good | {name: np.zeros(shape, good[name].dtype)})
    assert str(error.value) == message


@both
@pytest.mark.parametrize(("function", "name"), OUTPUTS)
def test_errors_of_every_output(kernels: ModuleType, function: str, name: str) -> None:
    call, good = getattr(kernels, function), CALLS[function]()
    a = good[name]
    frozen = a.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=f"^{name}: the output array is read-only$"):
        call(**good | {name: frozen})
    for strided in (np.repeat(a, 2, axis=-1)[..., ::2], a[..., ::-1], np.asfortranarray(a)):
        with pytest.raises(ValueError, match=f"^{name}: the rows of an output must be contig") as e:
            call(**good | {name: strided})
        assert str(strided.strides) in str(e.value)
    if a.dtype.itemsize > 1:
        with pytest.raises(ValueError, match=f"^{name}: the output array is not aligned"):
            call(**good | {name: laid_out(a, "unaligned")})


@both
@pytest.mark.parametrize("size", [(0, 8), (6, 0), (7, 8), (6, 9), (-1, 8), (2**40, 1)])
def test_errors_of_the_crop_size(kernels: ModuleType, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError) as error:
        kernels.r2_crop(**crop_arguments() | {"crop": size})
    assert str(error.value) == (
        f"crop: expected 1..6 by 1..8 (the canvas, metres), got ({size[0]}, {size[1]})"
    )


@both
def test_errors_of_the_other_arguments(kernels: ModuleType) -> None:
    for scale in (0.0, -1.0, math.nan, math.inf, 1e39, 1e-60):
        with pytest.raises(ValueError, match="^depth_scale: expected a positive float32, got "):
            kernels.r2_crop(**crop_arguments() | {"depth_scale": scale})
    with pytest.raises(TypeError):
        kernels.r2_crop(**crop_arguments() | {"crop": (6.0, 8.0)})
    with pytest.raises(ValueError) as error:
        kernels.gt_down(**down_arguments() | {"mode": "area"})
    assert str(error.value) == "mode: expected 'cell', 'nearest' or 'bilinear', got 'area'"


def test_kernels_run_in_threads() -> None:
    """Concurrent calls share no state. (That they run at once would be a matter of timing.)"""
    d = holes(240, 320, 11)
    want, wrong = gradient(data, d), []

    def work() -> None:
        for _ in range(20):
            out = gradient(litedepth_kernels, d)
            wrong.extend(a for a, b in zip(out, want) if a.tobytes() != b.tobytes())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_kernels_name_their_version() -> None:
    assert litedepth_kernels.__version__.count(".") == 2
