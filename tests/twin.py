"""The slow twin of csrc's r2_batch and masked_gradient: numpy, one sentence of the paper after the
other, and the same bits. The kernels' tests compare with it; nothing else needs it.

Every operation is in double and in the order in which the kernels do it. Arguments are not checked.
"""

from __future__ import annotations

import numpy as np

MAPS = ("depth_low", "grad_x", "grad_y", "M_x", "M_y", "cell_n", "cell_mean", "cell_M2")


def source_position(
    affine: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Source pixel (x, y) of canvas positions u (columns) and v (rows), each (rows, columns)."""
    with np.errstate(over="ignore", invalid="ignore"):  # a non-finite position counts as outside
        x, y = ((a[0] * u[None, :] + a[1] * v[:, None]) + a[2] for a in affine)
    return x, y


def canvas(
    depth: np.ndarray, affine: np.ndarray, crop: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Depth (H, W) in sensor units on the canvas, float32 (Hc, Wc) = size: the nearest source
    pixel; 0 where that is a hole, outside the source or beyond the crop (h, w)."""
    (H, W), (h, w) = depth.shape, crop
    x, y = source_position(affine, np.arange(w, dtype=float), np.arange(h, dtype=float))
    x, y = x + 0.5, y + 0.5
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H)  # False for NaN, and before any cast
    xi, yi = (np.floor(np.where(inside, at, 0)).astype(np.int64) for at in (x, y))
    raw = np.zeros(size, np.float32)
    raw[:h, :w] = np.where(inside, depth[yi, xi], 0)
    return raw


def extent(
    crop: tuple[int, int], canvas: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of an image of `size` that a crop of the canvas fills, rounded down."""
    return crop[0] * size[0] // canvas[0], crop[1] * size[1] // canvas[1]


def r2_crop(
    rgb: np.ndarray, affine: np.ndarray, crop: tuple[int, int], lut: np.ndarray,
    size: tuple[int, int], image: np.ndarray,
) -> None:  # fmt: skip
    """Sec. 3.2, R^2 crop: rotate, flip, crop, resize and colour a picture by one affine map.

    rgb (H, W, 3) uint8. affine (2, 3) float64 maps the canvas pixel (u, v) to the source pixel
    (x, y) = ((a00 u + a01 v) + a02, (a10 u + a11 v) + a12). crop (h, w): what is filled of the
    canvas, (Hc, Wc) = size, from its top left corner. lut (3, 256): a channel's grey level -> its
    value. Writes image (3, hn, wn) float32: half-pixel bilinear without antialias, black outside
    the source, rounded to a grey level, then lut; 0 beyond the crop.
    """
    (H, W, _), (_, hn, wn), (Hc, Wc) = rgb.shape, image.shape, size
    rows, cols = extent(crop, size, (hn, wn))
    u = (np.arange(cols) + 0.5) * (Wc / wn) - 0.5
    v = (np.arange(rows) + 0.5) * (Hc / hn) - 0.5
    x, y = source_position(affine, u, v)
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
    image[:] = 0
    for c in range(3):
        image[c, :rows, :cols] = lut[c][q[..., c]]


def masked_gradient(
    d: np.ndarray, grad_x: np.ndarray, grad_y: np.ndarray, M_x: np.ndarray, M_y: np.ndarray
) -> None:
    """Eq. 8 / Fig. 4, masked gradient: forward differences of d and where they are valid.

    d (H, W) float32 in metres; a pixel that is not finite or not above 0 is a hole. Writes, all
    (H, W): grad_x[v, u] = d[v, u + 1] - d[v, u], grad_y[v, u] = d[v + 1, u] - d[v, u] (float32, 0
    where masked), and M_x, M_y (bool): both pixels are depths; False in the last column and row.

    As the paper does it: holes become NaN, NaN survives the subtraction, the mask is isfinite.
    """
    marked = np.where(np.isfinite(d) & (d > 0), d, np.float32(np.nan))
    for axis, grad, M in ((1, grad_x, M_x), (0, grad_y, M_y)):
        beyond = np.full_like(marked.take([0], axis), np.nan)
        diff = np.diff(marked, axis=axis, append=beyond)
        M[:] = np.isfinite(diff)
        grad[:] = np.where(M, diff, np.float32(0))


def column_sums(terms: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """terms (k, H, W) summed in double by cell, (k, h, w) = size: the pixels v, u with
    v h // H == i and u w // W == j. First down each column, then along the cell's columns."""
    (k, H, W), (h, w) = terms.shape, size
    columns, sums = np.zeros((k, h, W)), np.zeros((k, h, w))
    for v in range(H):
        columns[:, v * h // H] += terms[:, v]
    for u in range(W):
        sums[:, :, u * w // W] += columns[:, :, u]
    return sums


def gt_down(metres: np.ndarray, low: np.ndarray, mode: str) -> None:
    """Ground truth at the network's resolution (Sec. 3.3: Eq. 8 and 9 compare there).

    metres (H, W) float32, 0 = hole. Writes low (h, w) float32, h <= H and w <= W, 0 = hole:
    "cell": the mean of the depths of each cell;
    "nearest": the pixel at ((i + 0.5) H // h, (j + 0.5) W // w);
    "bilinear": align_corners=True, holes left out and the weights of the other taps renormalised.
    """
    (H, W), (h, w) = metres.shape, low.shape
    if mode == "cell":
        total, count = column_sums(np.stack([metres, metres > 0]), (h, w))
        low[:] = total / np.maximum(count, 1)
    elif mode == "nearest":
        rows, cols = (2 * np.arange(h) + 1) * H // (2 * h), (2 * np.arange(w) + 1) * W // (2 * w)
        low[:] = metres[np.ix_(rows, cols)]
    else:
        y = np.arange(h) * (H - 1) / max(h - 1, 1)
        x = np.arange(w) * (W - 1) / max(w - 1, 1)
        y0, x0 = y.astype(np.int64), x.astype(np.int64)
        fy, fx = (y - y0)[:, None], x - x0
        total, weights = np.zeros((h, w)), np.zeros((h, w))
        for dy, wy in ((0, 1 - fy), (1, fy)):
            for dx, wx in ((0, 1 - fx), (1, fx)):
                tap = metres[np.ix_(np.minimum(y0 + dy, H - 1), np.minimum(x0 + dx, W - 1))]
                total += wy * wx * tap
                weights += wy * wx * (tap > 0)
        low[:] = np.divide(total, weights, out=np.zeros((h, w)), where=weights > 0)


def log_table(depth_scale: float, eps: float) -> np.ndarray:
    """ln(d + eps) of every depth in sensor units, (65536,) float32: Eq. 7's logarithm of k /
    depth_scale metres, so that no kernel needs a logarithm of its own. Entry 0, a hole, is 0."""
    metres = np.arange(1, 1 << 16, dtype=np.float32) / np.float32(depth_scale)
    return np.append(0.0, np.log(metres.astype(np.float64) + eps)).astype(np.float32)


def cell_statistics(
    raw: np.ndarray, logs: np.ndarray, n: np.ndarray, mean: np.ndarray, M2: np.ndarray
) -> None:
    """Eq. 7's statistics of the truth by cell: all pixels of a cell share one prediction.

    raw (H, W), any real type, sensor units, 0 = hole; logs as from log_table. Writes, all (h, w)
    float32 and 0 for a cell of holes: n, its pixels that are depths; mean, of x = logs[raw] over
    these; M2, the sum of their (x - mean)^2.
    """
    x = np.where(raw > 0, logs[raw.astype(np.int64)], np.float32(0)).astype(np.float64)
    S1, S2, N = column_sums(np.stack([x, x * x, raw > 0]), n.shape)
    some = np.maximum(N, 1)
    n[:] = N
    mean[:] = S1 / some
    M2[:] = np.maximum(S2 - S1 * S1 / some, 0)


def r2_batch(
    rgb: list[np.ndarray] | None, depth: list[np.ndarray | None], affine: np.ndarray,
    crop: np.ndarray, lut: np.ndarray, depth_scale: float, logs: np.ndarray, mode: str,
    threads: int, out: dict[str, np.ndarray],
) -> None:  # fmt: skip
    """All of the above for a batch, with the kernel's arguments; `threads` is for its likes."""
    size = out["depth"].shape[2:]
    for b, raw in enumerate(depth):
        h_w = int(crop[b, 0]), int(crop[b, 1])
        if rgb is not None:
            r2_crop(rgb[b], affine[b], h_w, lut[b], size, out["image"][b])
        if raw is None:
            raw = np.zeros((1, 1), np.uint16)
        raw = canvas(raw, affine[b], h_w, size)
        metres = out["depth"][b, 0]
        metres[:] = raw / np.float32(depth_scale)
        low, *gradient, n, mean, M2 = (out[name][b, 0] for name in MAPS)
        gt_down(metres, low, mode)
        masked_gradient(low, *gradient)
        cell_statistics(raw, logs, n, mean, M2)
