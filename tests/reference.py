"""Eq. 7-14 and Sec. 4.1 written down slowly: loops over pixels, float64, one equation a function.

What test_properties.py holds losses.py, distill.py and evaluate.py against. It is written from the
paper's equations, not from those files: no masks that are multiplied, no batched anything. Where
the paper is silent the rule is the one of README's Choices, and its line says so.

Depth maps are numpy arrays (N, h, w) in metres, features (N, C, h, w), masks (N, h, w). A hole is a
truth that is not finite or not positive. A mean over nothing is 0. o: losses.Loss's numbers.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np

Pixel = tuple[int, int, int]  # picture, row, column
FLOOR = 1e-6  # Choices: sqrt(x) is sqrt(max(x, FLOOR^2)) in Eq. 7, for its slope at 0


def is_known(z: float) -> bool:
    """Whether a depth is one, and no hole."""
    return math.isfinite(z) and z > 0


def known_pixels(d: np.ndarray) -> list[Pixel]:
    """The pixels of d (N, h, w) that are no holes."""
    return [i for i in np.ndindex(d.shape) if is_known(d[i])]


def mean(values: list[float]) -> float:
    """The mean, summed without rounding; 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def pooled_mean(x: dict[Pixel, float], pool: str) -> float:
    """Choices: "batch": over all pixels. "image": over pictures that have any, of their means."""
    if pool == "batch":
        return mean(list(x.values()))
    pictures = sorted({k for k, _, _ in x})
    return mean([mean([x[i] for i in x if i[0] == k]) for k in pictures])


def enlarge(d_hat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, h, w) -> (N, *size): output pixel (v, u) reads (floor(v h / H), floor(u w / W))."""
    (n, h, w), (H, W) = d_hat.shape, size
    out = np.empty((n, H, W))
    for k, v, u in np.ndindex(out.shape):
        out[k, v, u] = d_hat[k, v * h // H, u * w // W]
    return out


# ------------------------------------------------------------------------------------------- Eq. 7


def silog(d_hat: np.ndarray, d: np.ndarray, o: Any) -> float:
    """alpha sqrt( mean(e^2) - lambda mean(e)^2 ), e = ln(d_hat + eps) - ln(d + eps).

    The sum is variance + (1 - lambda) mean^2. Choices: that variance is the unbiased one, N/(N-1)
    times, N counted over the batch, and 0 of a single pixel.
    """
    eps = o.silog_eps
    e = {i: math.log(d_hat[i] + eps) - math.log(d[i] + eps) for i in known_pixels(d)}
    centre, N = pooled_mean(e, o.pool), len(e)
    variance = pooled_mean({i: (v - centre) ** 2 for i, v in e.items()}, o.pool)
    variance = variance * N / (N - 1) if N > 1 else 0.0
    return o.silog_alpha * max(math.sqrt(variance + (1 - o.silog_lambda) * centre**2), FLOOR)


# ------------------------------------------------------------------------------------------- Eq. 8


def masked_gradient(d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fig. 4 for d (N, h, w): differences to the right and to the lower neighbour, 0 where one of
    the two is a hole or is not there, and whether they are."""
    grads, masks = np.zeros((2, *d.shape)), np.zeros((2, *d.shape), bool)
    for k, v, u in known_pixels(d):
        for axis, there in enumerate([(k, v, u + 1), (k, v + 1, u)]):
            if there[1] < d.shape[1] and there[2] < d.shape[2] and is_known(d[there]):
                grads[axis, k, v, u], masks[axis, k, v, u] = d[there] - d[k, v, u], True
    return *grads, *masks


def grad(d_hat: np.ndarray, d: np.ndarray) -> float:
    """Mean of |dx d_hat - dx d| over pairs of neighbours without a hole, and the same along y.

    Choices: M masks both sides; x and y are averaged each over its own pairs.
    """
    dx, dy, M_x, M_y = masked_gradient(d)
    x = [abs(d_hat[k, v, u + 1] - d_hat[k, v, u] - dx[k, v, u]) for k, v, u in np.argwhere(M_x)]
    y = [abs(d_hat[k, v + 1, u] - d_hat[k, v, u] - dy[k, v, u]) for k, v, u in np.argwhere(M_y)]
    return mean(x) + mean(y)


# ------------------------------------------------------------------------------------------- Eq. 9


def point(z: float, v: int, u: int, K: np.ndarray) -> np.ndarray:
    """Pixel (v, u) at depth z, seen by K = fx, fy, cx, cy -> (x, y, z) in metres."""
    fx, fy, cx, cy = K
    return np.array([(u - cx) * z / fx, (v - cy) * z / fy, z])


def cosines(corners: list[np.ndarray]) -> list[float]:
    """Of the three edges of a triplet, taken two by two. As released: 1e-8 m^2 beneath."""
    edges = [b - a for a, b in combinations(corners, 2)]
    return [
        float(a @ b) / (math.sqrt(a @ a) * math.sqrt(b @ b) + 1e-8)
        for a, b in combinations(edges, 2)
    ]


def spans(corners: list[np.ndarray]) -> list[float]:
    """The shortest of the three edges along x, y and z each, in metres."""
    edges = [abs(b - a) for a, b in combinations(corners, 2)]
    return [min(float(edge[axis]) for edge in edges) for axis in range(3)]


def normal(corners: list[np.ndarray]) -> np.ndarray:
    """The unit normal of the plane through three points, 0 where they span none."""
    a, b, c = corners
    (px, py, pz), (qx, qy, qz) = b - a, c - a
    n = np.array([py * qz - pz * qy, pz * qx - px * qz, px * qy - py * qx])
    length = math.sqrt(n @ n)
    return n / length if length > 0 else n


def virtual_normals(
    d_hat: np.ndarray, d: np.ndarray, K: np.ndarray, triplets: np.ndarray, o: Any
) -> float:
    """Mean of |n_hat - n|_1 over the triplets that count; K (N, 4), triplets (3, count).

    Sec. 3.3: judged on the prediction, or, as in the original, on the ground truth. Choices: a
    triplet with a hole does not count; the easiest floor(drop * N) of the N that do are left out.
    """
    w, apart = d.shape[2], []
    for k in range(len(d)):
        for triplet in triplets.T.tolist():
            at = [divmod(pixel, w) for pixel in triplet]
            if not all(is_known(d[k, v, u]) for v, u in at):
                continue
            p_hat = [point(d_hat[k, v, u], v, u, K[k]) for v, u in at]
            p = [point(d[k, v, u], v, u, K[k]) for v, u in at]
            judged = p_hat if o.vnl_filter == "prediction" else p
            too_close = any(corner[2] <= o.vnl_delta_z for corner in judged)
            on_a_line = any(abs(c) > o.vnl_cos for c in cosines(judged))
            too_near = all(span < o.vnl_near for span in spans(judged))
            if not (too_close or on_a_line or too_near):
                apart.append(float(sum(abs(normal(p_hat) - normal(p)))))
    left_out = math.floor(Fraction(str(o.vnl_drop)) * len(apart))
    return mean(sorted(apart)[left_out:])


# ------------------------------------------------------------------------------------------ Eq. 10


def rho(e: float, alpha: float, c: float) -> float:
    """Barron's loss, with the + 1 that the paper's Eq. 10 lacks, and its limits as he prints them.

    log1p and expm1 are ln(1 + x) and exp(x) - 1 with all their digits.
    """
    z = (e / c) ** 2
    if alpha == 2:
        return z / 2
    if alpha == 0:
        return math.log1p(z / 2)
    if alpha == -math.inf:
        return -math.expm1(-z / 2)
    if alpha == math.inf:
        return math.expm1(z / 2)
    power = math.expm1(alpha / 2 * math.log1p(z / abs(alpha - 2)))  # (...)^(alpha/2) - 1
    return abs(alpha - 2) / alpha * power


def robust(d_hat: np.ndarray, d: np.ndarray, o: Any) -> float:
    """Mean of rho(d_hat - d), metres, over valid pixels."""
    rhos = {i: rho(d_hat[i] - d[i], o.robust_alpha, o.robust_c) for i in known_pixels(d)}
    return pooled_mean(rhos, o.pool)


def adaptive(d_hat: np.ndarray, d: np.ndarray, o: Any) -> float:
    """Negative log likelihood of the density exp(-rho(e, alpha, c)) / (c Z(alpha)); 0 where no
    pixel is valid."""
    if not known_pixels(d):
        return 0.0
    return robust(d_hat, d, o) + math.log(o.robust_c) + math.log(Z(o.robust_alpha))


@functools.lru_cache(None)
def Z(alpha: float) -> float:
    """The integral of exp(-rho(x, alpha, 1)) over the line: x = sinh(t), trapezoid rule in t, which
    converges like exp(-1/step) for an integrand that falls like exp(-|t|) or faster."""
    step = 1 / 64
    return step * math.fsum(
        math.exp(-rho(math.sinh(i * step), alpha, 1.0)) * math.cosh(i * step)
        for i in range(-40 * 64, 40 * 64 + 1)
    )


# ------------------------------------------------------------------------------------------ Eq. 11


def weighted(terms: list[float], w: list[float]) -> float:
    """sum w_i L_i."""
    return sum(w_i * L_i for w_i, L_i in zip(w, terms))


def dynamic(terms: list[float], w: list[float], p: list[float]) -> float:
    """sum 0.5 / p_i^2 w_i L_i + ln(1 + p_i^2); Choices: as released, the paper has no formula."""
    return sum(
        0.5 / p_i**2 * w_i * L_i + math.log(1 + p_i**2) for w_i, L_i, p_i in zip(w, terms, p)
    )


def intrinsics_at(K: np.ndarray, size: tuple[int, int], to: tuple[int, int]) -> np.ndarray:
    """K (N, 4) of a picture `size` -> resized to `to`; pixel i covers i - 1/2 .. i + 1/2."""
    (H, W), (h, w) = size, to
    return np.array([
        [fx * w / W, fy * h / H, (cx + 0.5) * w / W - 0.5, (cy + 0.5) * h / H - 0.5]
        for fx, fy, cx, cy in K
    ])  # fmt: skip


# ---------------------------------------------------------------------- Eq. 12, Table 6 and Eq. 13


def places(M: np.ndarray) -> list[list[tuple[int, int]]]:
    """Of each picture of M (N, h, w) the positions that count; pictures without any left out."""
    found = [[(v, u) for v, u in np.ndindex(m.shape) if m[v, u]] for m in M]
    return [[k, at] for k, at in enumerate(found) if at]


def unit(f: np.ndarray) -> np.ndarray:
    """f (C,) at length 1. Choices: 1e-8 under the root, for the slope of a feature of zeros."""
    return f / math.sqrt(math.fsum(x * x for x in f.tolist()) + 1e-8)


def affinity(F_s: np.ndarray, F_t: np.ndarray, M: np.ndarray, distance: str) -> float:
    """Mean over pairs (i, j) of positions of |a_ij^s - a_ij^t|, or of its square, a_ij = f_i . f_j.

    Choices: over valid positions; over pairs, not H x W; then over pictures that have any.
    """
    pictures = []
    for k, at in places(M):
        s, t = ([unit(F[k, :, v, u]) for v, u in at] for F in (F_s, F_t))
        apart = [
            float(s_i @ s_j) - float(t_i @ t_j) for s_i, t_i in zip(s, t) for s_j, t_j in zip(s, t)
        ]
        pictures.append(mean([abs(x) if distance == "l1" else x * x for x in apart]))
    return mean(pictures)


def l2(F_s: np.ndarray, F_t: np.ndarray, M: np.ndarray) -> float:
    """Mean over channels and valid positions of (F_s - F_t)^2, then over pictures."""
    return mean([
        mean([float(x) ** 2 for v, u in at for x in F_s[k, :, v, u] - F_t[k, :, v, u]])
        for k, at in places(M)
    ])  # fmt: skip


def channel(F_s: np.ndarray, F_t: np.ndarray, M: np.ndarray, tau: float) -> float:
    """tau^2 KL(softmax(F_t / tau) || softmax(F_s / tau)), each over the valid positions of one
    channel; mean over channels, then over pictures."""

    def log_softmax(x: list[float]) -> list[float]:
        top = max(x)
        log_sum = top + math.log(math.fsum(math.exp(v - top) for v in x))
        return [v - log_sum for v in x]

    pictures = []
    for k, at in places(M):
        divergences = []
        for c in range(F_s.shape[1]):
            q, p = (log_softmax([float(F[k, c, v, u]) / tau for v, u in at]) for F in (F_s, F_t))
            divergences.append(math.fsum(math.exp(b) * (b - a) for a, b in zip(q, p)))
        pictures.append(tau**2 * mean(divergences))
    return mean(pictures)


def coarse_mask(d: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """d (N, h, w), holes and all -> bool (N, *size): Choices: valid where any pixel below is."""
    (n, h, w), (rows, cols) = d.shape, size
    M = np.zeros((n, rows, cols), bool)
    for k, v, u in known_pixels(d):
        M[k, v * rows // h, u * cols // w] = True
    return M


def distilled(L_depth: float, distances: list[float], w_d: float) -> float:
    """Eq. 13: L_depth + w_d L_distill, L_distill the sum over levels."""
    return L_depth + w_d * sum(distances)


# ---------------------------------------------------------------------------------------- Sec. 4.1


def millimetres(d_hat: np.ndarray, d: np.ndarray, max_depth: float) -> list[tuple[float, float]]:
    """(prediction, truth) of one picture, (h, w) in metres each, at its valid pixels: a truth of
    more than 1 mm. The prediction is cut to 1 mm .. max_depth; NaN where it is not finite."""
    pairs = []
    for i in np.ndindex(d.shape):
        truth = float(d[i]) * 1000
        if math.isfinite(truth) and truth > 1 + 1e-7:  # 1 mm, as float32 rounds it, is a hole
            z = float(d_hat[i])
            cut = min(max(z, 0.001), max_depth) if math.isfinite(z) else math.nan
            pairs.append((cut * 1000, truth))
    return pairs


def metrics(d_hat: np.ndarray, d: np.ndarray, max_depth: float) -> dict[str, float]:
    """si-RMSE, RMSE (m), log10, REL, delta1..3 of one picture; NaN where nothing can be said."""
    names = ("si_rmse", "rmse", "log10", "rel", "delta1", "delta2", "delta3")
    pairs = millimetres(d_hat, d, max_depth)
    if not pairs or any(math.isnan(p) for p, _ in pairs):
        return dict.fromkeys(names, math.nan)
    g = [math.log(p) - math.log(t) for p, t in pairs]
    centre = mean(g)
    return {
        "si_rmse": math.sqrt(mean([(x - centre) ** 2 for x in g])),
        "rmse": math.sqrt(mean([(p - t) ** 2 for p, t in pairs])) / 1000,
        "log10": mean([abs(math.log10(p) - math.log10(t)) for p, t in pairs]),
        "rel": mean([abs(p - t) / t for p, t in pairs]),
        **{
            f"delta{k}": mean([float(max(p / t, t / p) < 1.25**k) for p, t in pairs])
            for k in (1, 2, 3)
        },
    }
