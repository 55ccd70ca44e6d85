"""Sec. 4.1 Dataset and Sec. 3.2 R^2 Crop: from files on disk to batches.

    list_pairs -> check_files -> read_pair                     Sec. 4.1
    open_reader -> Reader                   the decoded pairs, out of the packed cache
    draw(seed, epoch, indices) -> r2_batch: r2_crop, gt_down, masked_gradient     Sec. 3.2, Fig. 4
    Loader.plan, Loader.epoch(n) -> batches
    open_teacher -> open_reader(teacher=...)     depths of another model where the truth has holes
    python data.py --check ROOT                  the data doctor, doctor.py: look before you train

Depth on disk is a 16-bit PNG, `depth_scale` units per metre, 0 = hole (no measurement). In a batch
it is float32 metres, 0 = hole. No hole is ever blended into a depth.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import index as as_index
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import losses
from plumbing.batches import Reader, ahead
from plumbing.files import notice
from plumbing.flags import nonnegative, parse_size, positive, probability, whole
from plumbing.pairs import DataError, Sample
from plumbing.pictures import HOLE, auto_range, colorize, cv2

try:
    import litedepth_kernels
except ImportError as error:
    sys.exit(f"the C++ kernels are not there ({error}): in the root, run pip install ./csrc")

# ------------------------------------------------------------------------- Sec. 4.1, finding pairs


# ----------------------------------------------------------------------- Sec. 4.1, looking at files


# ----------------------------------------------------------------------- Sec. 4.1, reading one pair


# ----------------------------------------------------------- depths of another model, in the holes


# ------------------------------------------------------------------------------ all decoded pairs


# ------------------------------------------------------------------------------------- Sec. 3.2


class Draw(NamedTuple):
    """Everything random about B samples. Place and flip are on the full-resolution canvas."""

    crop: np.ndarray  # (B, 2) int64: h, w
    affine: np.ndarray  # (B, 2, 3) float64: canvas pixel (u, v) -> source pixel (x, y)
    lut: np.ndarray  # (B, 3, 256) float32: grey level -> colour-jittered value, 0..255


class Augment(NamedTuple):
    """The ranges of Sec. 3.2 that `draw` draws from; add_augment_arguments tells what each is."""

    crops: tuple[tuple[int, int], ...]
    rotate_prob: float
    max_angle: float
    flip_prob: float
    gamma: tuple[float, float]
    gamma_unit: bool
    brightness: tuple[float, float]
    channel_gain: tuple[float, float]


def draw(
    seed: int, epoch: int, indices: Sequence[int], size: tuple[int, int], a: Augment | None,
    crop: tuple[int, int] | None = None,
) -> Draw:  # fmt: skip
    """Sec. 3.2: rotate, flip, R^2 crop, colour, in the released order. a = None: the whole picture.

    (seed, epoch, index) decides a sample: workers, batch slots and resumed runs do not matter.
    size: (H, W) of source and canvas. crop: the size that is cut, None = each sample draws its own.
    """
    H, W = size
    n = len(indices)
    level = np.arange(256.0)
    if a is None:
        lut = np.broadcast_to(level.astype(np.float32), (n, 3, 256))
        return Draw(np.tile(np.array(size), (n, 1)), np.tile(np.eye(2, 3), (n, 1, 1)), lut)
    drawn = np.empty((n, 10))
    for row, index in zip(drawn, indices):
        # 1, 2, 3, 4: streams apart
        rng = np.random.default_rng(np.random.SeedSequence((seed, epoch, int(index), 1)))
        angle = rng.uniform(-a.max_angle, a.max_angle) if rng.random() < a.rotate_prob else 0.0
        flip = rng.random() < a.flip_prob
        own = a.crops[rng.integers(len(a.crops))] if a.crops else size
        h, w = crop or own
        place = rng.integers(H - h + 1), rng.integers(W - w + 1)
        gamma, brightness = rng.uniform(*a.gamma), rng.uniform(*a.brightness)
        row[:] = (angle, flip, h, w, *place, gamma, *(brightness * rng.uniform(*a.channel_gain, 3)))
    angle, flip, h, w, top, left, gamma = drawn[:, :7].T
    gains = drawn[:, 7:]

    # canvas -> flipped picture -> rotated picture -> source
    x0, y0 = (W - 1) / 2, (H - 1) / 2
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    a00, a02 = np.where(flip, -1.0, 1.0), np.where(flip, W - 1 - left, left)
    affine = np.empty((n, 2, 3))
    affine[:, 0] = np.stack([cos * a00, sin, x0 + cos * (a02 - x0) + sin * (top - y0)], 1)
    affine[:, 1] = np.stack([-sin * a00, cos, y0 - sin * (a02 - x0) + cos * (top - y0)], 1)

    # PAPER: says "random color enhancement"; the released code raises 0..255 to the power gamma,
    # a strong jitter of brightness. --gamma_unit takes the power on 0..1 instead.
    power = gamma[:, None]
    bent = 255 * (level / 255) ** power if a.gamma_unit else level**power
    lut = np.clip(bent[:, None] * gains[..., None], 0, 255).astype(np.float32)
    return Draw(drawn[:, 2:4].astype(np.int64), affine, lut)


def intrinsics_after(K: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """K (B, 4) = fx, fy, cx, cy of the sources -> of the canvas, by affine (B, 2, 3). A flip
    mirrors the world with the picture; a rotation turns the camera about its axis: only the
    principal point moves."""
    centre = np.linalg.solve(affine[:, :, :2], (K[:, 2:] - affine[:, :, 2])[..., None])
    return np.concatenate([K[:, :2], centre[..., 0]], 1)


# ------------------------------------------------- Sec. 3.2 and Fig. 4, the Python twins of csrc
#
# Slow, readable, and equal to the C++ kernels bit for bit: the same names, arguments and order of
# operations, in double. They write into the caller's arrays.

MAX_SIDE = 1 << 20  # the kernels index with 32 bits; products of two sides must fit in 64
GT_DOWN = ("cell", "nearest", "bilinear")
OVERLAP_WORK = 100_000  # how long numpy looks for a byte that two arrays share; then they do


def _check(name: str, a: np.ndarray, dtype: type, shape: tuple[int | None, ...]) -> None:
    """Raise TypeError (no array, wrong dtype) or ValueError (wrong shape; None: any side)."""
    if not isinstance(a, np.ndarray):
        raise TypeError(f"{name}: expected an array, got {type(a).__name__}")
    if a.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {np.dtype(dtype)}, got {a.dtype}")
    if a.ndim != len(shape):
        raise ValueError(f"{name}: expected {len(shape)} axes, got shape {a.shape}")
    if not all(1 <= n <= MAX_SIDE for n in a.shape):
        raise ValueError(f"{name}: every side must be in 1..{MAX_SIDE}, got shape {a.shape}")
    expected = tuple(n if want is None else want for n, want in zip(a.shape, shape))
    if a.shape != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {a.shape}")


def _check_output(name: str, a: np.ndarray, dtype: type, shape: tuple[int | None, ...]) -> None:
    """As _check, for an array to write: ValueError as well where it is read-only, or its rows are
    strided, not aligned or overlap."""
    _check(name, a, dtype, shape)
    if not a.flags.writeable:
        raise ValueError(f"{name}: the output array is read-only")
    if a.shape[-1] > 1 and a.strides[-1] != a.itemsize:
        raise ValueError(
            f"{name}: the rows of an output must be contiguous, got strides {a.strides} "
            f"of shape {a.shape}"
        )
    if not a.flags.aligned:
        raise ValueError(
            f"{name}: the output array is not aligned, got strides {a.strides} of shape {a.shape}"
        )
    reach = a.itemsize  # from the innermost axis out, each step must lead beyond all before it
    for stride, n in sorted((abs(s), n) for s, n in zip(a.strides, a.shape) if n > 1):
        if stride < reach:
            raise ValueError(
                f"{name}: the output array overlaps itself, got strides {a.strides} "
                f"of shape {a.shape}"
            )
        reach += stride * (n - 1)


def _check_apart(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
    """Raise ValueError where an output shares memory with another argument: the numbers would
    depend on what is written first. Slices between each other's rows share none."""
    others = list(inputs.items())
    for name, out in outputs.items():
        for other, a in others:
            if np.may_share_memory(out, a, OVERLAP_WORK):
                raise ValueError(
                    f"{name}: the output of shape {out.shape} shares memory with {other} "
                    f"of shape {a.shape}"
                )
        others.append((name, out))


def _check_crop(name: str, crop: tuple[int, int], canvas: tuple[int, int]) -> None:
    (h, w), (Hc, Wc) = crop, canvas
    if not (1 <= h <= Hc and 1 <= w <= Wc):
        raise ValueError(
            f"{name}: expected 1..{Hc} by 1..{Wc} (the canvas, metres), got ({h}, {w})"
        )


def _check_scale(depth_scale: float) -> None:
    limits = np.finfo(np.float32)
    if not float(limits.tiny) <= depth_scale <= float(limits.max):
        raise ValueError(f"depth_scale: expected a positive float32, got {depth_scale:f}")


def _source_position(
    affine: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Source pixel (x, y) of canvas positions u (columns) and v (rows), each (rows, columns)."""
    with np.errstate(over="ignore", invalid="ignore"):  # a non-finite position counts as outside
        x, y = ((a[0] * u[None, :] + a[1] * v[:, None]) + a[2] for a in affine)
    return x, y


def _canvas(
    depth: np.ndarray, affine: np.ndarray, crop: tuple[int, int], canvas: tuple[int, int]
) -> np.ndarray:
    """Depth in sensor units on the canvas, float32 (Hc, Wc): the nearest source pixel; 0 where that
    is a hole, outside the source or beyond the crop."""
    (H, W), (h, w) = depth.shape, crop
    x, y = _source_position(affine, np.arange(w, dtype=float), np.arange(h, dtype=float))
    x, y = x + 0.5, y + 0.5
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H)  # False for NaN, and before any cast
    xi, yi = (np.floor(np.where(inside, at, 0)).astype(np.int64) for at in (x, y))
    raw = np.zeros(canvas, np.float32)
    raw[:h, :w] = np.where(inside, depth[yi, xi], 0)
    return raw


def extent(
    crop: tuple[int, int], canvas: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of an image of `size` that a crop fills, from its top left corner.

    All (h, w); crop and canvas at full resolution. What is filled in part counts as padding.
    """
    return crop[0] * size[0] // canvas[0], crop[1] * size[1] // canvas[1]


def network_size(
    crop: tuple[int, int], canvas: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """A crop's share of the network's `size`, to the nearest multiple of 32: 384x512 of 480x640 is
    102.4 rows of 128, so 96, and its pixels are 4 by 4 of the picture's instead of 3.75 by 4."""
    h, w = (max(32, (2 * c * s + 32 * C) // (64 * C) * 32) for c, C, s in zip(crop, canvas, size))
    return h, w


def r2_crop(
    rgb: np.ndarray,
    depth: np.ndarray,
    affine: np.ndarray,
    crop: tuple[int, int],
    lut: np.ndarray,
    pad: np.ndarray,
    depth_scale: float,
    image: np.ndarray,
    metres: np.ndarray,
) -> None:
    """Sec. 3.2, R^2 crop: rotate, flip, crop, resize and colour a sample by one affine map.

    rgb (H, W, 3) uint8 and depth (H, W) uint16 in sensor units, 0 = hole, are the decoded sample.
    affine (2, 3) float64 maps the canvas pixel (u, v) (column, row; centres at integers; full
    resolution) to the source pixel (x, y) = ((a00 u + a01 v) + a02, (a10 u + a11 v) + a12).
    crop (h, w), within the canvas: the pixels that are filled, from the canvas' top left corner.
    lut (3, 256) float32: a channel's grey level -> its value. pad (3,) float32: image beyond the
    crop. depth_scale: sensor units per metre.

    Writes metres (Hc, Wc) float32, the canvas: the nearest source depth, never blended; 0 where
    that is a hole, outside the source or beyond the crop. Writes image (3, hn, wn) float32:
    half-pixel bilinear without antialias, black outside the source, rounded to a grey level,
    then lut.

    PAPER: silent on how crops of several sizes share a batch; as in the released code they keep
    their scale, top left in a full canvas. A network row that a crop fills in part (384 rows are
    102.4 of them; the released code has 360) belongs to the padding.

    Raises TypeError (dtype) and ValueError (shape, crop, depth_scale, output layout, an output in
    the memory of another argument), before anything is written.
    """
    _check("rgb", rgb, np.uint8, (None, None, 3))
    H, W, _ = rgb.shape
    _check("depth", depth, np.uint16, (H, W))
    _check("affine", affine, np.float64, (2, 3))
    _check("lut", lut, np.float32, (3, 256))
    _check("pad", pad, np.float32, (3,))
    _check_output("image", image, np.float32, (3, None, None))
    _check_output("metres", metres, np.float32, (None, None))
    (Hc, Wc), (_, hn, wn) = metres.shape, image.shape
    h, w = (as_index(n) for n in crop)
    _check_crop("crop", (h, w), (Hc, Wc))
    _check_scale(depth_scale)
    given = {"rgb": rgb, "depth": depth, "affine": affine, "lut": lut, "pad": pad}
    _check_apart(given, {"image": image, "metres": metres})

    metres[:] = _canvas(depth, affine, (h, w), (Hc, Wc)) / np.float32(depth_scale)

    rows, cols = extent((h, w), (Hc, Wc), (hn, wn))
    u = (np.arange(cols) + 0.5) * (Wc / wn) - 0.5
    v = (np.arange(rows) + 0.5) * (Hc / hn) - 0.5
    x, y = _source_position(affine, u, v)
    touches = (x >= -1) & (x < W) & (y >= -1) & (y < H)  # at least one tap is in the source
    x, y = np.where(touches, x, -1), np.where(touches, y, -1)
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    black = np.pad(rgb, ((1, 1), (1, 1), (0, 0)))  # its pixel (1, 1) is the source's (0, 0)
    x0, y0 = x0.astype(np.int64) + 1, y0.astype(np.int64) + 1
    p00, p01 = black[y0, x0], black[y0, x0 + 1]
    p10, p11 = black[y0 + 1, x0], black[y0 + 1, x0 + 1]
    top = p00 * (1 - fx) + p01 * fx
    bot = p10 * (1 - fx) + p11 * fx
    val = np.where(touches[..., None], top * (1 - fy) + bot * fy, 0)
    q = np.floor(val + 0.5).astype(np.int64)
    image[:] = pad[:, None, None]
    for c in range(3):
        image[c, :rows, :cols] = lut[c][q[..., c]]


def gt_gradient(d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fig. 4, second line: (grad_x, grad_y, M_x, M_y) of the ground truth, each shaped like d.

    Holes become NaN, NaN survives the subtraction, and what is finite afterwards is valid. The last
    column (row) has no right (lower) neighbour: M is False there. The loader computes the same with
    the C++ kernel `masked_gradient`.
    """
    d = losses.holes_to_zero(d)
    d = torch.where(d > 0, d, torch.nan)
    pad = torch.nn.functional.pad
    grad_x = pad(d[..., :, 1:] - d[..., :, :-1], (0, 1), value=torch.nan)
    grad_y = pad(d[..., 1:, :] - d[..., :-1, :], (0, 0, 0, 1), value=torch.nan)
    M_x, M_y = torch.isfinite(grad_x), torch.isfinite(grad_y)
    return torch.where(M_x, grad_x, 0.0), torch.where(M_y, grad_y, 0.0), M_x, M_y


def masked_gradient(
    d: np.ndarray, grad_x: np.ndarray, grad_y: np.ndarray, M_x: np.ndarray, M_y: np.ndarray
) -> None:
    """Eq. 8 / Fig. 4, masked gradient: forward differences of d and where they are valid.

    d (H, W) float32 in metres; a pixel that is not finite or not above 0 is a hole. Writes, all
    (H, W): grad_x[v, u] = d[v, u + 1] - d[v, u], grad_y[v, u] = d[v + 1, u] - d[v, u] (float32, 0
    where masked), and M_x, M_y (bool): both pixels are depths; False in the last column and row.

    As the paper does it: holes become NaN, NaN survives the subtraction, the mask is isfinite.

    Raises TypeError (dtype) and ValueError (shape, output layout, an output in the memory of
    another argument), before anything is written.
    """
    _check("d", d, np.float32, (None, None))
    for name, grad in (("grad_x", grad_x), ("grad_y", grad_y)):
        _check_output(name, grad, np.float32, d.shape)
    for name, M in (("M_x", M_x), ("M_y", M_y)):
        _check_output(name, M, np.bool_, d.shape)
    _check_apart({"d": d}, {"grad_x": grad_x, "grad_y": grad_y, "M_x": M_x, "M_y": M_y})

    marked = np.where(np.isfinite(d) & (d > 0), d, np.float32(np.nan))
    for axis, grad, M in ((1, grad_x, M_x), (0, grad_y, M_y)):
        beyond = np.full_like(marked.take([0], axis), np.nan)
        diff = np.diff(marked, axis=axis, append=beyond)
        M[:] = np.isfinite(diff)
        grad[:] = np.where(M, diff, np.float32(0))


def gt_down(metres: np.ndarray, low: np.ndarray, mode: str) -> None:
    """Ground truth at the network's resolution (Sec. 3.3: Eq. 8 and 9 compare there).

    metres (H, W) float32; a pixel that is not finite or not above 0 is a hole. Writes low (h, w)
    float32, h <= H and w <= W, 0 = hole:
    "cell": the mean of the depths among the pixels v, u with v h // H == i and u w // W == j;
    "nearest": the pixel at ((i + 0.5) H // h, (j + 0.5) W // w);
    "bilinear": align_corners=True, holes left out and the weights of the other taps renormalised.

    PAPER: silent; the released code resizes bilinearly with the holes' zeros in it, which makes
    false depths beside every hole. "nearest" leaves sparse LiDAR almost no neighbouring pairs.

    Raises TypeError (dtype) and ValueError (shape, mode, output layout, an output in the memory of
    its input), before anything is written.
    """
    _check("metres", metres, np.float32, (None, None))
    _check_output("low", low, np.float32, (None, None))
    (H, W), (h, w) = metres.shape, low.shape
    if h > H or w > W:
        raise ValueError(f"low: shape {low.shape} is larger than that of metres, {metres.shape}")
    if mode not in GT_DOWN:
        raise ValueError(f"mode: expected 'cell', 'nearest' or 'bilinear', got '{mode}'")
    _check_apart({"metres": metres}, {"low": low})
    d = np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))
    if mode == "cell":
        cell = (np.arange(H) * h // H)[:, None] * w + np.arange(W) * w // W
        # bincount adds in row-major order, in double: the order of the C++ sum.
        total = np.bincount(cell.ravel(), d.ravel(), h * w)
        count = np.bincount(cell.ravel(), d.ravel() > 0, h * w)
        low[:] = (total / np.maximum(count, 1)).reshape(h, w)
    elif mode == "nearest":
        rows, cols = (2 * np.arange(h) + 1) * H // (2 * h), (2 * np.arange(w) + 1) * W // (2 * w)
        low[:] = d[np.ix_(rows, cols)]
    else:
        y = np.arange(h) * (H - 1) / max(h - 1, 1)
        x = np.arange(w) * (W - 1) / max(w - 1, 1)
        y0, x0 = y.astype(np.int64), x.astype(np.int64)
        fy, fx = (y - y0)[:, None], x - x0
        total, weights = np.zeros((h, w)), np.zeros((h, w))
        for dy, wy in ((0, 1 - fy), (1, fy)):
            for dx, wx in ((0, 1 - fx), (1, fx)):
                tap = d[np.ix_(np.minimum(y0 + dy, H - 1), np.minimum(x0 + dx, W - 1))]
                total += wy * wx * tap
                weights += wy * wx * (tap > 0)
        low[:] = np.divide(total, weights, out=np.zeros((h, w)), where=weights > 0)


def log_table(depth_scale: float, eps: float) -> np.ndarray:
    """ln(d + eps) of every depth in sensor units, (65536,) float32: Eq. 7's logarithm of k /
    depth_scale metres, so that no kernel needs a logarithm of its own. Entry 0, a hole, is 0.

    Raises ValueError (depth_scale, or an eps that makes a depth's logarithm infinite).
    """
    _check_scale(depth_scale)
    metres = np.arange(1, 1 << 16, dtype=np.float32) / np.float32(depth_scale)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        logs = np.append(0.0, np.log(metres.astype(np.float64) + eps)).astype(np.float32)
    if not np.isfinite(logs).all():
        raise ValueError(f"eps: ln(d + eps) is not finite for some depth d, eps = {eps}")
    return logs


def cell_statistics(
    raw: np.ndarray, logs: np.ndarray, n: np.ndarray, mean: np.ndarray, M2: np.ndarray
) -> None:
    """Eq. 7's statistics of the truth by cell: all pixels of a cell share one prediction.

    raw (H, W), any real type, sensor units, 0 = hole; logs as from log_table. A cell is the
    preimage of a prediction's pixel under the nearest upsample: v h // H == i and u w // W == j.
    Writes, all (h, w) float32, h <= H and w <= W, and 0 for a cell of holes: n, its pixels that are
    depths; mean, of x = logs[raw] over these; M2, the sum of their (x - mean)^2.

    The sums are double, first down each column of the canvas, then along the cell's columns.
    """
    (H, W), (h, w) = raw.shape, n.shape
    x = np.where(raw > 0, logs[raw.astype(np.int64)], np.float32(0)).astype(np.float64)
    terms = np.stack([x, x * x, raw > 0])
    columns = np.zeros((3, h, W))
    for v in range(H):
        columns[:, v * h // H] += terms[:, v]
    sums = np.zeros((3, h, w))
    for u in range(W):
        sums[:, :, u * w // W] += columns[:, :, u]
    S1, S2, N = sums
    some = np.maximum(N, 1)
    n[:] = N
    mean[:] = S1 / some
    M2[:] = np.maximum(S2 - S1 * S1 / some, 0)


def r2_batch(
    rgb: list[np.ndarray] | None,
    depth: list[np.ndarray | None],
    affine: np.ndarray,
    crop: np.ndarray,
    lut: np.ndarray,
    pad: np.ndarray,
    depth_scale: float,
    logs: np.ndarray,
    mode: str,
    threads: int,
    image: np.ndarray | None,
    metres: np.ndarray,
    low: np.ndarray,
    grad_x: np.ndarray,
    grad_y: np.ndarray,
    M_x: np.ndarray,
    M_y: np.ndarray,
    cell_n: np.ndarray,
    cell_mean: np.ndarray,
    cell_M2: np.ndarray,
) -> None:
    """Sec. 3.2 and Fig. 4 for a batch: r2_crop, gt_down, masked_gradient, cell_statistics.

    rgb, depth: B decoded samples as in r2_crop, which may differ in size; affine (B, 2, 3), crop
    (B, 2) int64 and lut (B, 3, 256) are theirs. pad, depth_scale, mode: as in r2_crop and gt_down.
    logs (65536,) float32: log_table(depth_scale, eps of Eq. 7). threads: how many the kernel may
    use; the twin uses one, and the numbers are the same for any.

    Writes image (B, 3, hn, wn) and metres (B, 1, Hc, Wc) as r2_crop does; all others are
    (B, 1, h, w), at the prediction's resolution: low by gt_down, grad_x, grad_y, M_x, M_y by
    masked_gradient of low, cell_n, cell_mean, cell_M2 by cell_statistics.

    rgb and image None: maps of depth only (another model's, by the same affine). A depth None: that
    sample has none, and its maps are 0.

    Raises TypeError (dtype, or no array) and ValueError (shape, length, mode, threads, layout, an
    output in the memory of another argument), before anything is written; the message names the
    sample.
    """
    if (rgb is None) != (image is None):
        raise ValueError("rgb and image: both or neither may be None")
    _check("affine", affine, np.float64, (None, 2, 3))
    B = len(affine)
    _check("crop", crop, np.int64, (B, 2))
    _check("lut", lut, np.float32, (B, 3, 256))
    _check("pad", pad, np.float32, (3,))
    _check_scale(depth_scale)
    _check("logs", logs, np.float32, (1 << 16,))
    if mode not in GT_DOWN:
        raise ValueError(f"mode: expected 'cell', 'nearest' or 'bilinear', got '{mode}'")
    if threads < 1:
        raise ValueError(f"threads: expected 1 or more, got {threads}")
    _check_output("metres", metres, np.float32, (B, 1, None, None))
    canvas = metres.shape[2:]
    _check_output("low", low, np.float32, (B, 1, None, None))
    if low.shape[2] > canvas[0] or low.shape[3] > canvas[1]:
        raise ValueError(
            f"low: shape {low.shape[2:]} is larger than that of metres, {metres.shape[2:]}"
        )
    maps = {"grad_x": grad_x, "grad_y": grad_y, "M_x": M_x, "M_y": M_y}
    maps |= {"cell_n": cell_n, "cell_mean": cell_mean, "cell_M2": cell_M2}
    for name, a in maps.items():
        _check_output(name, a, np.bool_ if name[0] == "M" else np.float32, low.shape)

    given = {"affine": affine, "crop": crop, "lut": lut, "pad": pad, "logs": logs}

    def check_list(name: str, arrays: list, dtype: type, shape: tuple[int | None, ...]) -> None:
        if not isinstance(arrays, Sequence | np.ndarray):
            raise TypeError(f"{name}: expected a list of arrays, got {type(arrays).__name__}")
        if len(arrays) != B:
            raise ValueError(
                f"{name}: expected {B} arrays (the length of affine), got {len(arrays)}"
            )
        for b, a in enumerate(arrays):
            if a is None and name == "depth":
                continue
            _check(f"{name}[{b}]", a, dtype, shape)
            given[f"{name}[{b}]"] = a

    check_list("depth", depth, np.uint16, (None, None))
    for b in range(B):
        _check_crop(f"crop[{b}]", (int(crop[b, 0]), int(crop[b, 1])), canvas)
    if rgb is not None:
        _check_output("image", image, np.float32, (B, 3, None, None))
        check_list("rgb", rgb, np.uint8, (None, None, 3))
        for b in range(B):
            if depth[b] is not None:
                _check(f"depth[{b}]", depth[b], np.uint16, rgb[b].shape[:2])
    pictures = {} if image is None else {"image": image}
    _check_apart(given, {"metres": metres, "low": low} | maps | pictures)

    for b in range(B):
        size = int(crop[b, 0]), int(crop[b, 1])
        at = np.zeros((1, 1), np.uint16) if depth[b] is None else depth[b]
        if rgb is None:
            black, one = np.zeros((*at.shape, 3), np.uint8), np.zeros((3, 1, 1), np.float32)
            picture, out = black, one
        else:
            picture, out = rgb[b], image[b]
            at = np.zeros(picture.shape[:2], np.uint16) if depth[b] is None else depth[b]
        r2_crop(picture, at, affine[b], size, lut[b], pad, depth_scale, out, metres[b, 0])
        gt_down(metres[b, 0], low[b, 0], mode)
        masked_gradient(low[b, 0], grad_x[b, 0], grad_y[b, 0], M_x[b, 0], M_y[b, 0])
        raw = _canvas(at, affine[b], size, canvas)
        cell_statistics(raw, logs, cell_n[b, 0], cell_mean[b, 0], cell_M2[b, 0])


# --------------------------------------------------------------------------------------- batches


class Kernels(NamedTuple):
    """The kernels, all from C++ or all from Python; chosen once, in main."""

    name: str
    r2_crop: object
    gt_down: object
    masked_gradient: object
    r2_batch: object


def kernels(name: str) -> Kernels:
    """ "cpp" (the extension built from csrc) or "python" (the twins above, equal bit for bit)."""
    home = litedepth_kernels if name == "cpp" else sys.modules[__name__]
    return Kernels(name, home.r2_crop, home.gt_down, home.masked_gradient, home.r2_batch)


LOW = ("depth_low", "grad_x", "grad_y", "M_x", "M_y")  # a batch's maps at the prediction's size
CELLS = ("cell_n", "cell_mean", "cell_M2")  # statistics of ln(depth + eps), for Eq. 7


def check_sizes(
    augment: Augment | None, image_size: tuple[int, int], size: tuple[int, int]
) -> None:  # fmt: skip
    """Raises DataError unless pictures, crops and the network's size (h, w) go together."""
    if 4 * image_size[0] < size[0] or 4 * image_size[1] < size[1]:
        raise DataError(
            f"--image_size {image_size[0]}x{image_size[1]} is smaller than the network's "
            f"prediction, {size[0] // 4}x{size[1] // 4}"
        )
    for h, w in augment.crops if augment else ():
        if h > image_size[0] or w > image_size[1]:
            raise DataError(
                f"--crops {h}x{w} is larger than --image_size {image_size[0]}x{image_size[1]}"
            )
        if h * size[0] < image_size[0] * 32 or w * size[1] < image_size[1] * 32:
            raise DataError(f"--crops {h}x{w} is under 32 pixels at the network's scale")


class Plan(NamedTuple):
    """What one batch will be made of: everything but the pixels. B samples of this process."""

    samples: list[Sample]
    index: np.ndarray  # (B,) int64: which pairs
    affine: np.ndarray  # (B, 2, 3) float64: canvas pixel -> source pixel
    crop: np.ndarray  # (B, 2) int64: pixels of the canvas that are filled
    lut: np.ndarray  # (B, 3, 256) float32: grey level -> the network's input (Eq. 1)
    K: np.ndarray  # (B, 4) float32: intrinsics in canvas pixels
    extent: np.ndarray  # (B, 2) int64: rows and columns of the image that are filled
    canvas: tuple[int, int]  # (H, W) of the batch's depths
    size: tuple[int, int]  # (h, w) of its image


class Loader:
    """Batches of augmented samples; one `epoch(n)` at a time.

    A batch is a dictionary of tensors, valid until the next one is asked for (its memory is used
    again):
        image  (B,3,h,w)  float32 RGB, normalised by Eq. 1 with mean and std; 0 beyond the crop
        extent (B,2)      int64 rows and columns of image that the crop fills, from the top left
        depth  (B,1,H,W)  float32 metres on the canvas, 0 = hole or beyond the crop
        depth_low (B,1,h/4,w/4)  the same at the prediction's size, by `gt_down`
        grad_x, grad_y, M_x, M_y (B,1,h/4,w/4)  Eq. 8's gradients (m) and masks of depth_low
        cell_n, cell_mean, cell_M2 (B,1,h/4,w/4)  of ln(depth + silog_eps), see `cell_statistics`
        K      (B,4)      fx, fy, cx, cy in canvas pixels, followed through flip, crop and rotation
        index  (B,)       which pairs
        triplets (3, vnl_share * h/4 * w/4)  Eq. 9's, keyed by (seed, step), see draw_triplets
    With `taught`, for pairs with a map of another model's depth, also teacher_depth and
    teacher_ followed by the eight names after it: the same of that map by the same draw, where the
    truth is a hole; a pair without a map has no teacher's depth.
    crop_batch = "pad": every sample draws its own crop size and lies top left in a canvas of
    image_size and size. "size": one size is drawn for a batch, which is the canvas, and the image
    is that share of `size`, to the nearest multiple of 32; nothing is padded.
    PAPER: silent on how crops of several sizes share a batch; the released code pads.
    The order is keyed by (seed, epoch), a sample by (seed, epoch, index), a batch's size by (seed,
    epoch, batch); none depends on `threads` or `world`. With `world` processes each takes its share
    of every batch of batch_size. A pair that cannot be read is named once, counted in `failed`,
    and replaced by the next one.
    device: where the batches are wanted; for CUDA they lie in pinned memory.
    """

    AHEAD = 2  # batches prepared while the network works

    def __init__(
        self, reader: Reader, *, batch_size: int, seed: int, augment: Augment | None,
        crop_batch: str, image_size: tuple[int, int], size: tuple[int, int],
        mean: Sequence[float], std: Sequence[float], depth_scale: float, silog_eps: float,
        vnl_share: float, gt_down: str, kernels: Kernels, threads: int, rank: int = 0,
        world: int = 1, device: torch.device | None = None,
    ) -> None:  # fmt: skip
        pairs = reader.pairs
        if batch_size > len(pairs):
            if rank == 0:
                notice(f"batch size {len(pairs)}, not {batch_size}: there are no more pairs")
            batch_size = len(pairs)
        if batch_size < world:
            raise DataError(f"a batch of {batch_size} cannot be shared by {world} processes")
        check_sizes(augment, image_size, size)
        self.reader, self.pairs, self.failed = reader, pairs, reader.failed
        self.batch_size, self.seed, self.augment = batch_size, seed, augment
        self.crop_batch = crop_batch if augment and augment.crops else "pad"
        self.image_size, self.size, self.depth_scale = image_size, size, depth_scale
        self.mode, self.kernels, self.threads = gt_down, kernels, max(1, threads)
        self.share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)
        self.logs, self.vnl_share = log_table(depth_scale, silog_eps), vnl_share
        self.device = device or torch.device("cpu")
        self._order: tuple[int, np.ndarray] | None = None  # of the epoch under way
        self._maker = ThreadPoolExecutor(1, "loader")
        self._ring = [Slot(self) for _ in range(self.AHEAD + 1)]  # and the one in use

    def __len__(self) -> int:
        """Batches in an epoch; what does not fill a batch waits for another epoch's order."""
        return len(self.pairs) // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """Pair numbers of one epoch, (len(self), batch_size)."""
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, epoch, 0, 2)))
        order = rng.permutation(len(self.pairs))
        return order[: len(self) * self.batch_size].reshape(len(self), self.batch_size)

    def plan(self, epoch: int, number: int) -> Plan:
        """What this process's share of batch `number` of an epoch is made of. Raises DataError when
        not one pair can be read."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.order(epoch)
        index, samples = self.reader.take(self._order[1][number][self.share])
        crop = None
        if self.crop_batch == "size":
            rng = np.random.default_rng(np.random.SeedSequence((self.seed, epoch, number, 4)))
            crop = self.augment.crops[rng.integers(len(self.augment.crops))]
        canvas, size = self.image_size, self.size
        if crop is not None:
            canvas, size = crop, network_size(crop, self.image_size, self.size)
        random = draw(self.seed, epoch, index, self.image_size, self.augment, crop)
        lut = (random.lut - self.mean[:, None]) / self.std[:, None]
        K = intrinsics_after(np.array([s.K for s in samples]), random.affine)
        filled = np.array([extent(c, canvas, size) for c in random.crop.tolist()])
        return Plan(
            samples, index, random.affine, random.crop, lut, K.astype(np.float32), filled, canvas,
            size,
        )  # fmt: skip

    def triplets(self, epoch: int, number: int, size: tuple[int, int]) -> Tensor:
        """Eq. 9's for a batch whose image is of that size: losses.draw_triplets of its step."""
        pixels = size[0] // 4 * (size[1] // 4)
        step, count = epoch * len(self) + number, losses.triplet_count(pixels, self.vnl_share)
        return losses.draw_triplets(self.seed, step, pixels, count)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yields the batches of an epoch from number `start` on. Raises DataError when not one
        pair can be read."""
        for slot in self._ring:
            slot.allocate()
        numbers = range(start, len(self))
        make = functools.partial(self._make, epoch)
        for slot, tensors in ahead(self._maker, self._ring, make, numbers):
            yield tensors if self.device.type == "cpu" else slot.upload(tensors, self.device)

    def close(self) -> None:
        self._maker.shutdown(cancel_futures=True)
        self.reader.close()

    def _make(self, epoch: int, slot: Slot, number: int) -> dict[str, Tensor]:
        plan = self.plan(epoch, number)
        tensors = slot.view(plan.canvas, plan.size)
        out = {name: tensor.numpy() for name, tensor in tensors.items()}
        truth = [s.depth for s in plan.samples]
        self._fill(out, "", plan, [s.rgb for s in plan.samples], truth, out["image"])
        if self.reader.taught:
            self._fill(out, "teacher_", plan, None, [s.teacher for s in plan.samples], None)
        out["extent"][:], out["K"][:], out["index"][:] = plan.extent, plan.K, plan.index
        out["triplets"][:] = self.triplets(epoch, number, plan.size)
        return tensors

    def _fill(
        self, out: dict[str, np.ndarray], who: str, plan: Plan, rgb: list[np.ndarray] | None,
        depth: list[np.ndarray | None], image: np.ndarray | None,
    ) -> None:  # fmt: skip
        """`image`, and the maps of `depth` under the names that begin with `who`."""
        self.kernels.r2_batch(
            rgb, depth, plan.affine, plan.crop, plan.lut, np.zeros(3, np.float32),
            self.depth_scale, self.logs, self.mode, self.threads, image, out[f"{who}depth"],
            *(out[who + name] for name in (*LOW, *CELLS)),
        )  # fmt: skip


class Slot:
    """One batch's memory, allocated once for the largest canvas; smaller ones use its front."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._memory: dict[str, Tensor] = {}
        self._free = None  # the event after which the memory may be written again
        self._views: dict[tuple, dict[str, Tensor]] = {}

    def _shapes(
        self, canvas: tuple[int, int], size: tuple[int, int]
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:  # fmt: skip
        loader = self._loader
        n = loader.share.stop - loader.share.start
        low = n, 1, size[0] // 4, size[1] // 4
        shapes = {
            "image": ((n, 3, *size), torch.float32), "extent": ((n, 2), torch.int64),
            "K": ((n, 4), torch.float32), "index": ((n,), torch.int64),
            "triplets": ((3, losses.triplet_count(low[2] * low[3], loader.vnl_share)), torch.int64),
        }  # fmt: skip
        for who in ("", "teacher_") if loader.reader.taught else ("",):
            shapes[f"{who}depth"] = ((n, 1, *canvas), torch.float32)
            for name in (*LOW, *CELLS):
                dtype = torch.bool if name in ("M_x", "M_y") else torch.float32
                shapes[who + name] = (low, dtype)
        return shapes

    def allocate(self) -> None:
        """Makes the memory when it is first wanted. In the thread that trains: an operation of
        PyTorch's that is spread over threads, as zeroing is, would give the loader's thread a team
        of its own, and with more of its threads than cores OpenMP lets all sleep between any two
        operations; a backward pass then took 180 ms instead of 70."""
        if not self._memory:
            shapes = self._shapes(self._loader.image_size, self._loader.size)
            pin = self._loader.device.type == "cuda"
            self._memory = {
                name: torch.zeros(shape, dtype=dtype, pin_memory=pin)
                for name, (shape, dtype) in shapes.items()
            }

    def view(self, canvas: tuple[int, int], size: tuple[int, int]) -> dict[str, Tensor]:
        """The batch's tensors for a canvas; waits until what was in them has been copied."""
        if self._free is not None:
            self._free.synchronize()
        key = (*canvas, *size)
        if key not in self._views:
            self._views[key] = {
                name: self._memory[name].view(-1)[: math.prod(shape)].view(shape)
                for name, (shape, _) in self._shapes(canvas, size).items()
            }
        return self._views[key]

    def upload(self, tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Copies of the tensors on a GPU, without waiting for them."""
        copies = {name: t.to(device, non_blocking=True) for name, t in tensors.items()}
        self._free = torch.cuda.Event()
        self._free.record()
        return copies


def batch_picture(
    batch: dict[str, Tensor], mean: Tensor, std: Tensor, shown: int = 6
) -> np.ndarray:
    """A batch as the network sees it, BGR u8: image | depth at 32x40 | grad_x | M_x (Fig. 2, 4),
    and the teacher's depth at 32x40 where there is one.

    Holes are flat grey, everything beyond a crop shows as the mean colour and as holes.
    """
    rows = []
    taught = "teacher_depth_low" in batch
    depths = ["depth_low", "teacher_depth_low"][: 1 + taught]
    near, far = auto_range([batch[k].numpy() for k in depths])
    for i in range(min(shown, len(batch["image"]))):
        image = (batch["image"][i].permute(1, 2, 0) * std + mean).numpy()
        size = (2 * image.shape[1], 2 * image.shape[0])
        tiles = [cv2.cvtColor(image.clip(0, 255).astype(np.uint8), cv2.COLOR_RGB2BGR)]
        tiles.append(colorize(batch["depth_low"][i, 0].numpy(), near, far))
        M_x = batch["M_x"][i, 0].numpy()
        # signed, on a log scale: half a metre and five metres both show
        slope = batch["grad_x"][i, 0].numpy()
        bent = np.sign(slope) * np.log1p(np.abs(slope) / 0.05) / np.log1p(100)
        color = cv2.applyColorMap(
            np.clip(127.5 + 127.5 * bent, 0, 255).astype(np.uint8), cv2.COLORMAP_TWILIGHT_SHIFTED
        )
        color[~M_x] = HOLE
        tiles += [color, cv2.cvtColor(M_x.astype(np.uint8) * 255, cv2.COLOR_GRAY2BGR)]
        if taught:
            tiles.append(colorize(batch["teacher_depth_low"][i, 0].numpy(), near, far))
        tiles = [cv2.resize(t, size, interpolation=cv2.INTER_NEAREST) for t in tiles]
        rows.append(np.concatenate(tiles, 1))
    names = ["image", f"depth {near:g}..{far:g} m", "grad_x, grey = masked", "M_x, black = masked"]
    names += ["teacher depth"] * taught
    width = rows[0].shape[1] // len(names)
    head = np.full((26, rows[0].shape[1], 3), 255, np.uint8)
    for k, name in enumerate(names):
        cv2.putText(head, name, (k * width + 6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40,) * 3, 1)
    return np.concatenate([head, *rows])


# ------------------------------------------------------------------------------------------ flags


def add_data_arguments(parser: argparse.ArgumentParser, split: str) -> argparse._ArgumentGroup:
    """Where the pairs are and how to read them (Sec. 4.1). `split`: the script's default one.
    Returns the group, for flags of the script's own."""
    g = parser.add_argument_group("data (Sec. 4.1)")
    g.add_argument(
        "--data", default="synthetic:512", metavar="ROOT|synthetic:N",
        help="folder with <split>.txt lists or <split>/{rgb,depth}/ folders, or N embedded scenes "
        "rendered once (default synthetic:512)",
    )  # fmt: skip
    g.add_argument(
        "--split", default=split, help=f"which split of the data to use (default {split})"
    )
    g.add_argument(
        "--image_size", default="480x640", type=parse_size, metavar="HxW",
        help="every pair is brought to this size when read: centre crop to the aspect, RGB "
        "area/bilinear, depth nearest, intrinsics follow (default 480x640)",
    )  # fmt: skip
    g.add_argument(
        "--depth_scale", default=1000.0, type=positive,
        help="units of the depth files per metre: 1000 = millimetres, 5000 = TUM, 256 = KITTI "
        "(default 1000)",
    )  # fmt: skip
    g.add_argument(
        "--max_depth", default=40.0, type=positive,
        help="metres at which a prediction is cut before it is scored; the ground truth never is "
        "(default 40, the challenge's range; 80 for driving)",
    )  # fmt: skip
    g.add_argument(
        "--intrinsics", type=parse_intrinsics, metavar="FX,FY,CX,CY",
        help="camera of the pairs whose folder has no intrinsics.json, in pixels at --image_size; "
        "the virtual normals of Eq. 9 need it (default: the Kinect's of the released code, "
        "518.86,519.47,320,240 at 480x640)",
    )  # fmt: skip
    return g


def add_augment_arguments(parser: argparse.ArgumentParser) -> None:
    """Random rotation, flip, R^2 crop and colour (Sec. 3.2), and how batches are made."""
    g = parser.add_argument_group("R^2 crop and augmentation (Sec. 3.2)")
    g.add_argument(
        "--crops", default="240x384,384x512,480x640", type=parse_crops, metavar="HxW,HxW,...",
        help="sizes to choose from at random, in pixels at --image_size; one size = Table 4's "
        "plain random crop, none = no crop (default 240x384,384x512,480x640)",
    )  # fmt: skip
    g.add_argument(
        "--rotate_prob", default=0.5, type=probability, help="share of samples rotated (0.5)"
    )
    g.add_argument(
        "--max_angle", default=2.5, type=nonnegative,
        help="rotation is uniform within this many degrees either way (default 2.5)",
    )  # fmt: skip
    g.add_argument(
        "--flip_prob", default=0.5, type=probability,
        help="share mirrored left to right (default 0.5; 0 when sides matter, as in traffic)",
    )  # fmt: skip
    g.add_argument(
        "--gamma", default="0.9,1.1", type=parse_range, metavar="LOW,HIGH",
        help="colour: range of the power applied to 0..255 (default 0.9,1.1; 1,1 = off)",
    )  # fmt: skip
    g.add_argument(
        "--gamma_unit", action="store_true",
        help="apply that power to 0..1 instead, a milder jitter (default off, as released)",
    )  # fmt: skip
    g.add_argument(
        "--brightness", default="0.75,1.25", type=parse_range, metavar="LOW,HIGH",
        help="colour: range of the common gain (default 0.75,1.25; 1,1 = off)",
    )  # fmt: skip
    g.add_argument(
        "--channel_gain", default="0.9,1.1", type=parse_range, metavar="LOW,HIGH",
        help="colour: range of each channel's own gain (default 0.9,1.1; 1,1 = off)",
    )  # fmt: skip
    g.add_argument(
        "--gt_down", default="cell", choices=["cell", "nearest", "bilinear"],
        help="how the truth reaches the 32x40 of Eq. 8 and 9: mean of a cell's valid pixels, its "
        "middle pixel, or the valid ones of four taps (default cell; nearest starves on LiDAR)",
    )  # fmt: skip
    g.add_argument(
        "--kernels", default="cpp", choices=["cpp", "python"],
        help="C++ kernels or their Python twins, equal bit for bit, 25x slower (default cpp)",
    )  # fmt: skip
    g.add_argument(
        "--crop_batch", default="size", choices=["size", "pad"],
        help="crops of several sizes: size = one drawn for a whole batch, nothing to pad and 0.63 "
        "of the work; pad = each sample its own, top left in a full canvas, as released (default "
        "size: on val as good)",
    )  # fmt: skip
    g.add_argument(
        "--workers", default=0, type=whole, help="loader threads (default 0: one per core)"
    )
    g.add_argument(
        "--cache", default="auto", metavar="DIR|none",
        help="where the decoded pairs are packed once, 1.5 MB each at 480x640 (2.2 with "
        "teacher_depth): reading one takes 0.1 ms instead of 5. Default: .litedepth_cache in the "
        "data set's folder, or in your cache folder when that is read-only",
    )  # fmt: skip
    g.add_argument(
        "--ram_cache", default=4.0, type=nonnegative, metavar="GB",
        help="with --cache none: memory for decoded pairs; what does not fit is decoded anew every "
        "epoch, 5 ms a pair (default 4). Always: for those of the validation split",
    )  # fmt: skip


def parse_range(text: str) -> tuple[float, float]:
    """ "0.9,1.1" -> (0.9, 1.1), ordered and positive."""
    low, _, high = text.partition(",")
    pair = positive(low), positive(high)
    if pair[0] > pair[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH with LOW <= HIGH")
    return pair


def parse_intrinsics(text: str) -> tuple[float, ...]:
    """ "fx,fy,cx,cy" -> four floats; the principal point may lie outside the picture."""
    try:
        fx, fy, cx, cy = (float(v) for v in text.split(","))
    except ValueError:
        fx = fy = cx = cy = math.nan
    if not (0 < fx < math.inf and 0 < fy < math.inf and math.isfinite(cx) and math.isfinite(cy)):
        raise argparse.ArgumentTypeError(f"{text!r} is not fx,fy,cx,cy with positive fx and fy")
    return fx, fy, cx, cy


def parse_crops(text: str) -> tuple[tuple[int, int], ...]:
    """ "240x384,480x640" -> ((240, 384), (480, 640)); "none" -> ()."""
    return () if text == "none" else tuple(parse_size(part) for part in text.split(","))


if __name__ == "__main__":  # python data.py --check ROOT
    import doctor  # up: the script needs it, the module does not

    sys.exit(doctor.run())
