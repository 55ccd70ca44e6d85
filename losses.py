"""Sec. 3.3 Multiple Loss Training: Eq. 7-11.

Depth is in metres. A *hole* is a ground truth that is not finite or not positive; whatever value it
holds changes nothing. Every loss is finite, with a finite gradient, and still attached to the graph
when no pixel is valid (distributed training needs that). All of it runs in float32 under autocast.

    d_hat (N,1,h,w) prediction     d (N,1,h,w) ground truth of the same size
    K (N,4) = fx, fy, cx, cy in pixels of that size, pixel centres at integers
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import litedepth_kernels
import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plumbing.flags import above_0_to_1, any_number, below_1, from_0_to_1, nonnegative, positive

TERMS = ("silog", "grad", "vnl", "robust")


def holes_to_zero(d: Tensor) -> Tensor:
    """The ground truth with 0 in every hole, whatever stood there (NaN, inf, a negative)."""
    return torch.nan_to_num(d, nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)


def masked_mean(x: Tensor, M: Tensor, pool: str = "batch") -> Tensor:
    """Mean of a finite x where M is 1 and not 0; 0, still attached, where it is 1 nowhere.

    pool = "batch": all pixels count alike. "image": every picture of x (N,1,H,W) counts alike, by
    its own masked mean, however few its valid pixels; one without any is left out.
    """
    # A product and count_nonzero: on a CPU torch.where costs 5 times as much, bool.sum() 50 times.
    if pool == "batch":
        return (x * M).sum() / M.count_nonzero().clamp(min=1)
    n = M.sum((1, 2, 3))
    return masked_mean((x * M).sum((1, 2, 3)) / n.clamp(min=1), n > 0)


# ------------------------------------------------------------------------------------------- Eq. 7


def L_silog(
    d_hat: Tensor, d: Tensor, *, alpha: float, lam: float, eps: float, pool: str
) -> Tensor:  # fmt: skip
    """Eq. 7: alpha * sqrt( mean(e^2) - lam * mean(e)^2 ),  e = ln d_hat - ln d.

    eps > 0 (metres) is added inside both logarithms.
    PAPER: silent on alpha, lam and eps; the released code's are 1, 0.85 and 1e-3. It also takes
    the unbiased variance, which for one valid pixel is NaN: here the variance of one pixel is 0.
    PAPER: silent on which pixels share a mean; the released code takes a batch's valid ones alike
    (pool = "batch"), so a LiDAR picture, 2 % valid, weighs a fiftieth of a dense one. "image" gives
    every picture the same weight. Either way e is centred over the batch: a scale that is wrong
    from picture to picture costs in full, only one common to the batch is forgiven by lam.
    """
    d = holes_to_zero(d)
    M = (d > 0).to(d.dtype)
    N = M.count_nonzero()
    e = torch.log(d_hat + eps) - torch.log(d + eps)
    mean = masked_mean(e, M, pool)
    var = masked_mean((e - mean) ** 2, M, pool) * N / (N - 1).clamp(min=1)
    # The clamp keeps the square root's gradient finite when the prediction is perfect.
    return alpha * (var + (1 - lam) * mean**2).clamp(min=1e-12).sqrt()


# ------------------------------------------------------------------------------------ Eq. 8, Fig. 4


def gt_gradient(d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fig. 4, second line: (grad_x, grad_y, M_x, M_y) of the ground truth, each shaped like d.

    Holes become NaN, NaN survives the subtraction, and what is finite afterwards is valid. The last
    column (row) has no right (lower) neighbour: M is False there. The loader computes the same with
    the C++ kernel `masked_gradient`.
    """
    d = holes_to_zero(d)
    d = torch.where(d > 0, d, torch.nan)
    grad_x = nn.functional.pad(d[..., :, 1:] - d[..., :, :-1], (0, 1), value=torch.nan)
    grad_y = nn.functional.pad(d[..., 1:, :] - d[..., :-1, :], (0, 0, 0, 1), value=torch.nan)
    M_x, M_y = torch.isfinite(grad_x), torch.isfinite(grad_y)
    return torch.where(M_x, grad_x, 0.0), torch.where(M_y, grad_y, 0.0), M_x, M_y


def L_grad(d_hat: Tensor, grad_x: Tensor, grad_y: Tensor, M_x: Tensor, M_y: Tensor) -> Tensor:
    """Eq. 8: mean over valid pixels of M_x |dx d_hat - dx d| + M_y |dy d_hat - dy d|.

    grad_x .. M_y come from `gt_gradient` or from the loader, all shaped like d_hat. The mask covers
    prediction and ground truth alike; x and y are averaged each over its own valid positions.
    PAPER: so Eq. 8 says; the released code clears the ground truth's invalid differences first and
    then masks by them, hence masks nothing: beside every hole the prediction is pulled flat.
    """
    dx = d_hat[..., :, 1:] - d_hat[..., :, :-1] - grad_x[..., :, :-1]
    dy = d_hat[..., 1:, :] - d_hat[..., :-1, :] - grad_y[..., :-1, :]
    return masked_mean(dx.abs(), M_x[..., :, :-1]) + masked_mean(dy.abs(), M_y[..., :-1, :])


# ------------------------------------------------------------------------------------------- Eq. 9


def back_project(z: Tensor, K: Tensor) -> Tensor:
    """Depth (N,1,h,w) and K (N,4) -> points (N, 3, h*w) in metres, x right, y down, z forward."""
    n, _, h, w = z.shape
    fx, fy, cx, cy = (k.view(n, 1, 1, 1) for k in K.to(z).unbind(1))
    u = torch.arange(w, device=z.device, dtype=z.dtype).view(1, 1, 1, w)
    v = torch.arange(h, device=z.device, dtype=z.dtype).view(1, 1, h, 1)
    return torch.cat([(u - cx) * z / fx, (v - cy) * z / fy, z], 1).flatten(2)


def triplet_count(pixels: int, share: float) -> int:
    """How many triplets a map of so many pixels gets: `share` of them, one at least."""
    return max(1, int(share * pixels))


def draw_triplets(seed: int, step: int, pixels: int, count: int) -> Tensor:
    """(3, count) pixel numbers below `pixels`, with replacement; the same for a (seed, step)."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, step, 0, 3)))
    return torch.from_numpy(rng.integers(0, pixels, (3, count)))


def scale_intrinsics(K: Tensor, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """K (N,4) of a picture `size` (H, W) -> of the same view at `to` (h, w); half-pixel centres."""
    sy, sx = to[0] / size[0], to[1] / size[1]
    fx, fy, cx, cy = K.unbind(1)
    return torch.stack([fx * sx, fy * sy, (cx + 0.5) * sx - 0.5, (cy + 0.5) * sy - 0.5], 1)


def L_vnl(
    d_hat: Tensor, d: Tensor, K: Tensor, triplets: Tensor, *,
    filter_on: str, delta_z: float, cos: float, near: float, drop: float,
) -> Tensor:  # fmt: skip
    """Eq. 9: mean | n_hat - n |_1 over virtual planes through three points each.

    A triplet counts when its three ground truths are valid and, judged on the prediction
    (`filter_on` = "prediction", Sec. 3.3) or the ground truth ("gt", the original paper's way),
    every z exceeds delta_z (m), no two edges have |cosine| above `cos`, and at least one of x, y, z
    differs by `near` (m) or more along all three edges. The smallest `drop` share is left out.
    PAPER: Eq. 9 averages all; the released code drops the easiest 25 % and counts invalid triplets
    as zeros, so its loss shrinks with the share of holes. Here they are left out.
    """
    d = holes_to_zero(d)
    # What is predicted in a hole counts for nothing; its cross product might overflow, and the
    # gradient of what is left out would be 0 * inf = NaN.
    P_hat = back_project(torch.where(d > 0, d_hat, 0.0), K)
    P = back_project(d, K)
    pick = triplets.to(d.device).flatten()

    def corners(x: Tensor) -> Tensor:  # (N, C, h*w) -> (N, C, 3 corners, triplets)
        # gather: on a CPU its backward gives the same bits on any threads, that of x[..., pick]
        # does not. On CUDA it adds with atomics: equal from run to run only up to rounding.
        n, c, _ = x.shape
        return x.gather(2, pick.expand(n, c, -1)).view(n, c, *triplets.shape)

    p_hat, p = corners(P_hat), corners(P)
    keep = (p[:, 2] > 0).all(1)
    keep &= _spread(p_hat if filter_on == "prediction" else p, delta_z, cos, near)
    loss = (virtual_normal(p_hat) - virtual_normal(p)).abs().sum(1)
    loss = torch.where(keep, loss, torch.inf).flatten().sort().values
    rank, n = torch.arange(loss.numel(), device=d.device), keep.sum()
    hard = (rank >= (drop * n).long()) & (rank < n)
    return masked_mean(torch.where(hard, loss, 0.0), hard)


def virtual_normal(p: Tensor) -> Tensor:
    """(N, 3, 3 corners, triplets) -> unit normals (N, 3, triplets); 0 for a degenerate triplet."""
    n = torch.linalg.cross(p[:, :, 1] - p[:, :, 0], p[:, :, 2] - p[:, :, 0], dim=1)
    # Contiguous, along the last axis: along another one it takes 12 times as long on a CPU.
    length = torch.linalg.vector_norm(n.movedim(1, -1).contiguous(), dim=-1).unsqueeze(1)
    return n / torch.where(length > 0, length, 0.01)


@torch.no_grad()
def _spread(p: Tensor, delta_z: float, cos: float, near: float) -> Tensor:
    """Which triplets of p (N, 3, 3 corners, triplets) span a plane: bool (N, triplets)."""
    a, b, c = p.unbind(2)
    edges = torch.stack([b - a, c - a, c - b], 2)
    length = edges.square().sum(1).sqrt()
    cosine = (edges * edges.roll(1, 2)).sum(1) / (length * length.roll(1, 1) + 1e-8)
    apart = (edges.abs() >= near).all(2).any(1)
    return (p[:, 2] > delta_z).all(1) & (cosine.abs() <= cos).all(1) & apart


# ------------------------------------------------------------------------------------------ Eq. 10


def rho(e: Tensor, alpha: float | Tensor, c: float | Tensor) -> Tensor:
    """Eq. 10, Barron's general loss: |a-2|/a * ( ((e/c)^2 / |a-2| + 1)^(a/2) - 1 ).

    alpha: any float, its limits 0 (Cauchy), 2 (L2), -inf (Welsch) and +inf included, or a tensor
    strictly inside (0, 2). At +inf it is exponential: beyond 13 c it overflows float32.
    PAPER: Eq. 10 lacks the "+ 1", without which it is negative at e = 0. At the paper's alpha = 1,
    c = 2 it is sqrt((e/2)^2 + 1) - 1 (Charbonnier), not "a simple L2 loss"; that is alpha = 2.
    """
    z = (e / c) ** 2
    if not isinstance(alpha, Tensor):
        if alpha == 0:
            return torch.log1p(z / 2)
        if alpha == 1:  # the general form below to rounding, at half the cost
            return torch.sqrt(z + 1) - 1
        if alpha == 2:
            return z / 2
        if math.isinf(alpha):
            return torch.expm1(z / 2) if alpha > 0 else -torch.expm1(-z / 2)
    b = abs(alpha - 2)
    return b / alpha * torch.expm1(alpha / 2 * torch.log1p(z / b))


def L_robust(
    d_hat: Tensor, d: Tensor, *, alpha: float | Tensor, c: float | Tensor, pool: str
) -> Tensor:  # fmt: skip
    """Eq. 10 averaged over valid pixels (`pool` as in Eq. 7), e = d_hat - d in metres."""
    d = holes_to_zero(d)
    M = (d > 0).to(d.dtype)
    # M twice: whatever is predicted in a hole, rho must not overflow there, for inf * 0 is NaN.
    return masked_mean(rho((d_hat - d) * M, alpha, c), M, pool)


class AdaptiveRobust(nn.Module):
    """The adaptive form that Sec. 3.3 compares with: alpha in (0, 2) and c > 0 are learned.

    Negative log-likelihood rho(e, alpha, c) + ln c + ln Z(alpha); without the partition function Z
    the loss would be minimal at alpha = 0 whatever the data. Starts at the given alpha and c.
    """

    def __init__(self, alpha: float, c: float, pool: str) -> None:
        super().__init__()
        self.pool = pool
        if not 0.001 < alpha < 1.999 or c <= 0:
            raise ValueError(f"adaptive robust loss starts in 0 < alpha < 2, c > 0: {alpha}, {c}")
        share = (alpha / 2 - 0.0005) / 0.999  # of the open interval (0.001, 1.999)
        self.latent_alpha = nn.Parameter(torch.tensor(math.log(share / (1 - share))))
        self.log_c = nn.Parameter(torch.tensor(math.log(c)))

    @property
    def alpha(self) -> Tensor:
        return 2 * (0.0005 + 0.999 * torch.sigmoid(self.latent_alpha))

    @property
    def c(self) -> Tensor:
        return self.log_c.exp()

    def forward(self, d_hat: Tensor, d: Tensor) -> Tensor:
        alpha = self.alpha
        taught = (holes_to_zero(d) > 0).any()  # an empty batch teaches alpha and c nothing
        nll = L_robust(d_hat, d, alpha=alpha, c=self.c, pool=self.pool)
        return nll + torch.where(taught, self.log_c + log_partition(alpha), 0.0)


def log_partition(alpha: Tensor, nodes: int = 2048) -> Tensor:
    """ln of the integral of exp(-rho(x, alpha, 1)) over the real line, differentiable in alpha."""
    t = (torch.arange(nodes, dtype=torch.float64, device=alpha.device) + 0.5) / nodes - 0.5
    x = math.sqrt(2) * torch.tan(math.pi * t)  # makes the heaviest tail (alpha -> 0) a constant
    log_dx = math.log(math.sqrt(2) * math.pi / nodes) + torch.log1p(x**2 / 2)
    return torch.logsumexp(log_dx - rho(x, alpha.double(), 1.0), 0).to(alpha.dtype)


# ------------------------------------------------------------------------ Eq. 7 and 10 in cell form
#
# A *cell* is the preimage of one output pixel under the nearest upsample, floor(v*h/H): all of it
# shares one prediction. Eq. 7 then needs three numbers of a cell and Eq. 10 one pass over d; the
# upsampled prediction, and with it every full-size map of the backward pass, is never made. Values
# and gradients are those of L_silog and L_robust above on the upsampled d_hat.


def cells(d: Tensor, size: tuple[int, int]) -> Tensor:
    """d (N,1,H,W) as (N,1,h,k,w,l): the k x l pixels of each of the h x w cells, size = (h, w).

    A view where H and W are multiples; elsewhere cells differ in size and 0, a hole, fills up the
    smaller ones.
    """
    (H, W), (h, w) = d.shape[-2:], size
    if H % h or W % w:
        d = nn.functional.pad(d, (0, 1, 0, 1))
        for axis, (few, many) in enumerate(((h, H), (w, W)), 2):
            first = (torch.arange(few + 1, device=d.device) * many + few - 1) // few
            pixel = first[:-1, None] + torch.arange(-(-many // few), device=d.device)
            d = d.index_select(axis, torch.where(pixel < first[1:, None], pixel, many).flatten())
    return d.unflatten(3, (w, -1)).unflatten(2, (h, -1))


def cell_statistics(
    d: Tensor, size: tuple[int, int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Per cell of d (N,1,H,W) over its valid pixels: (n, mean, M2) of ln(d + eps), (N,1,h,w) each.

    n: how many; M2: sum of squared deviations from their mean. All 0 in a cell without any. The
    loader computes the same with the C++ kernel `r2_batch`.
    """
    d = cells(holes_to_zero(d), size)
    M = (d > 0).to(d.dtype)
    x, axes = torch.log(d + eps), (3, 5)
    n = M.sum(axes)
    mean = (x * M).sum(axes) / n.clamp(min=1)
    return n, mean, (((x - mean[:, :, :, None, :, None]) * M) ** 2).sum(axes)


def pixel_weight(n: Tensor, pool: str) -> Tensor:
    """What a valid pixel of each picture weighs in `masked_mean`, (N,1,1,1); n (N,1,h,w): how many
    there are by cell. The weights of all valid pixels sum to 1, or to 0 when there are none."""
    N = n.sum((1, 2, 3), keepdim=True)
    if pool == "batch":
        return (1 / N.sum().clamp(min=1)).expand_as(N)
    return 1 / (N.clamp(min=1) * N.count_nonzero().clamp(min=1))


def L_silog_cells(
    d_hat: Tensor, n: Tensor, mean: Tensor, M2: Tensor, *,
    alpha: float, lam: float, eps: float, pool: str,
) -> Tensor:  # fmt: skip
    """Eq. 7 from d_hat (N,1,h,w) and `cell_statistics`, which must have been given the same eps.

    With e the mean error of a cell: mean(e) = sum w n e and var(e) = sum w (n (e - mean)^2 + M2),
    w a pixel's weight. Centred: the raw sums of e and e^2 lose half the digits of a float32.
    """
    w, N = pixel_weight(n, pool), n.sum()
    e = torch.log(d_hat + eps) - mean
    m = (w * n * e).sum()
    var = (w * (n * (e - m) ** 2 + M2)).sum() * N / (N - 1).clamp(min=1)
    return alpha * (var + (1 - lam) * m**2).clamp(min=1e-12).sqrt()


class RobustCells(torch.autograd.Function):
    """The C++ kernel `robust_cells` with its own gradient: d_hat (N,1,h,w), d (N,1,H,W), both
    float32 on the CPU -> by cell the sum of rho over valid pixels and their number, (N,1,h,w)
    each. d is not kept. Raises ValueError (sizes) and TypeError (dtypes)."""

    @staticmethod
    def forward(ctx, d_hat: Tensor, d: Tensor, alpha: float, c: float) -> tuple[Tensor, Tensor]:
        total, slope, n = out = [torch.empty_like(d_hat).contiguous() for _ in range(3)]
        given = [x.detach().numpy() for x in (d_hat, d)]
        threads = torch.get_num_threads()
        litedepth_kernels.robust_cells(*given, alpha, c, threads, *(x.numpy() for x in out))
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(n)
        return total, n

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        return grad * ctx.saved_tensors[0], None, None, None


def robust_cells(d_hat: Tensor, d: Tensor, alpha: float, c: float) -> tuple[Tensor, Tensor]:
    """RobustCells in PyTorch, for any device, dtype and compiler."""
    if len(d_hat) != len(d):
        raise ValueError(f"d: expected {len(d_hat)} pictures, got {len(d)}")
    d = cells(holes_to_zero(d), d_hat.shape[-2:])
    M = (d > 0).to(d.dtype)
    total = rho((d_hat[:, :, :, None, :, None] - d) * M, alpha, c) * M
    return total.sum((3, 5)), M.sum((3, 5))


def L_robust_cells(
    d_hat: Tensor, d: Tensor, *, alpha: float, c: float, pool: str, kernel: str
) -> Tensor:  # fmt: skip
    """Eq. 10 of d_hat (N,1,h,w) and d (N,1,H,W); kernel: "cpp" (CPU, float32) or "torch"."""
    by_cell = RobustCells.apply if kernel == "cpp" else robust_cells
    total, n = by_cell(d_hat, d, alpha, c)
    return (pixel_weight(n, pool) * total).sum()


# ------------------------------------------------------------------------------------------ Eq. 11


class DepthLoss(nn.Module):
    """Eq. 11: L_depth = w1 L_silog + w2 L_grad + w3 L_vnl + w4 L_robust.

    weights: (w1, w2, w3, w4); a term of weight 0 is not computed. dynamic: the weights become
    parameters, L = sum_i [ w_i L_i / (2 p_i^2) + ln(1 + p_i^2) ], p_i = 1 at the start.
    PAPER: gives no formula; this is the released code's (Liebel & Koerner), on top of the w_i.
    """

    def __init__(
        self, weights: tuple[float, ...], *, dynamic: bool, seed: int,
        silog_alpha: float, silog_lambda: float, silog_eps: float,
        robust_alpha: float, robust_c: float, robust_adaptive: bool,
        vnl_share: float, vnl_filter: str, vnl_delta_z: float, vnl_cos: float,
        vnl_near: float, vnl_drop: float, pool: str,
    ) -> None:  # fmt: skip
        super().__init__()
        if silog_eps <= 0:
            raise ValueError(f"silog_eps must be positive (a prediction may be 0), got {silog_eps}")
        self.w, self.seed = dict(zip(TERMS, weights)), seed
        self.silog = {"alpha": silog_alpha, "lam": silog_lambda, "eps": silog_eps, "pool": pool}
        self.robust = {"alpha": robust_alpha, "c": robust_c, "pool": pool}
        if robust_adaptive and not self.w["robust"]:  # DDP allows no unused parameter either
            raise ValueError("robust_adaptive needs a robust weight above 0")
        self.adaptive = AdaptiveRobust(**self.robust) if robust_adaptive else None
        self.vnl_share = vnl_share
        self.vnl = {
            "filter_on": vnl_filter, "delta_z": vnl_delta_z, "cos": vnl_cos,
            "near": vnl_near, "drop": vnl_drop,
        }  # fmt: skip
        used = sum(w > 0 for w in self.w.values())
        self.p = nn.Parameter(torch.ones(used)) if dynamic else None

    def terms(
        self, d_hat: Tensor, enlarge: Callable[[Tensor], Tensor], batch: dict
    ) -> dict[str, Tensor]:
        """The unweighted terms. d_hat (N,1,h,w) as the network gives it, enlarge: its last resize,
        to the (N,1,H,W) of the ground truth; batch: see data.Loader."""
        d, out = batch["depth"], {}
        d_full = enlarge(d_hat) if self.w["silog"] or self.w["robust"] else None
        if self.w["silog"]:
            out["silog"] = L_silog(d_full, d, **self.silog)
        out |= self.low_terms(d_hat, batch)
        if self.w["robust"]:
            out["robust"] = (
                self.adaptive(d_full, d) if self.adaptive else L_robust(d_full, d, **self.robust)
            )
        return out

    def low_terms(self, d_hat: Tensor, batch: dict) -> dict[str, Tensor]:
        """Those of Eq. 8 and 9, at the prediction's own size."""
        out = {}
        if self.w["grad"]:
            out["grad"] = L_grad(d_hat, *(batch[k] for k in ("grad_x", "grad_y", "M_x", "M_y")))
        if self.w["vnl"]:
            h, w = d_hat.shape[-2:]
            K = scale_intrinsics(batch["K"], batch["depth"].shape[-2:], (h, w))
            triplets = batch.get("triplets")  # the loader draws the same, ahead of time
            if triplets is None:
                count = triplet_count(h * w, self.vnl_share)
                triplets = draw_triplets(self.seed, batch["step"], h * w, count)
            out["vnl"] = L_vnl(d_hat, batch["depth_low"], K, triplets, **self.vnl)
        return out

    def forward(
        self, d_hat: Tensor, enlarge: Callable[[Tensor], Tensor], batch: dict
    ) -> tuple[Tensor, dict]:
        """-> (loss, {name: detached term or weight}); always float32."""
        with torch.autocast(d_hat.device.type, enabled=False):
            terms = self.terms(d_hat.float(), enlarge, batch)
            if self.p is None:
                weights = {k: self.w[k] for k in terms}
                loss = sum(weights[k] * terms[k] for k in terms)
            else:
                weights = {k: 0.5 * self.w[k] / p**2 for k, p in zip(terms, self.p)}
                loss = sum(weights[k] * terms[k] for k in terms) + torch.log1p(self.p**2).sum()
        report = {k: v.detach() for k, v in terms.items()}
        report |= {f"w_{k}": torch.as_tensor(v).detach() for k, v in weights.items()}
        if self.adaptive:
            report["robust_alpha"] = self.adaptive.alpha.detach()
            report["robust_c"] = self.adaptive.c.detach()
        return loss, report


class CellLoss(DepthLoss):
    """DepthLoss in cell form, for a last resize that is nearest: the same numbers to rounding.

    kernel: "cpp" or "torch", see L_robust_cells. The statistics of Eq. 7 are a batch's cell_n,
    cell_mean and cell_M2 where it has them (made with this silog_eps), else made here. Raises
    ValueError for robust_adaptive, whose partition function has no cell form here.
    """

    def __init__(self, *args, kernel: str, **flags) -> None:
        super().__init__(*args, **flags)
        if self.adaptive:
            raise ValueError("robust_adaptive has no cell form: use the plain form, DepthLoss")
        if kernel not in ("cpp", "torch"):
            raise ValueError(f"kernel: expected 'cpp' or 'torch', got {kernel!r}")
        self.robust["kernel"] = kernel

    def terms(
        self, d_hat: Tensor, enlarge: Callable[[Tensor], Tensor], batch: dict
    ) -> dict[str, Tensor]:
        """As DepthLoss.terms; enlarge is not called."""
        d, out = batch["depth"], {}
        if self.w["silog"]:
            if "cell_n" in batch:
                statistics = [batch[k] for k in ("cell_n", "cell_mean", "cell_M2")]
            else:
                statistics = cell_statistics(d, d_hat.shape[-2:], self.silog["eps"])
            out["silog"] = L_silog_cells(d_hat, *statistics, **self.silog)
        out |= self.low_terms(d_hat, batch)
        if self.w["robust"]:
            out["robust"] = L_robust_cells(d_hat, d, **self.robust)
        return out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of Sec. 3.3."""
    g = parser.add_argument_group("losses (Sec. 3.3)")
    g.add_argument(
        "--weights", default="1,0.25,2.5,0.6", type=parse_weights, metavar="W1,W2,W3,W4",
        help="Eq. 11: weights of silog, gradient, virtual normal and robust loss; 0 leaves a term "
        "out, so the rows of Table 5 are 1,0,0,0 / 1,.25,0,0 / 1,.25,2.5,0 / the default "
        "1,0.25,2.5,0.6",
    )  # fmt: skip
    g.add_argument(
        "--dynamic_weights", action="store_true",
        help="last row of Table 5: learn the weights, on top of --weights (default off; the paper "
        "found the fixed ones slightly better)",
    )  # fmt: skip
    g.add_argument(
        "--pool", default="image", choices=["image", "batch"],
        help="Eq. 7 and 10: every picture counts alike, however few its valid pixels, or every "
        "valid pixel of a batch does, as released (default image: sets that mix sparse LiDAR with "
        "dense depth need it, for others it makes little difference)",
    )  # fmt: skip
    g.add_argument("--silog_alpha", type=positive, default=1.0, help="Eq. 7: alpha (default 1)")
    g.add_argument(
        "--silog_lambda", type=from_0_to_1, default=0.85,
        help="Eq. 7: lambda, 1 = blind to a global scale, 0 = plain log RMSE (default 0.85)",
    )  # fmt: skip
    g.add_argument(
        "--silog_eps", type=positive, default=1e-3,
        help="Eq. 7: metres inside the log (default 0.001)",
    )  # fmt: skip
    g.add_argument(
        "--robust_alpha", type=any_number, default=1.0,
        help="Eq. 10: shape; 2 = L2, 1 = Charbonnier, 0 = Cauchy, -2 = Geman-McClure, -inf = "
        "Welsch (default 1)",
    )  # fmt: skip
    g.add_argument(
        "--robust_c", type=positive, default=2.0,
        help="Eq. 10: scale in metres; smaller errors are treated as squared ones (default 2)",
    )  # fmt: skip
    g.add_argument(
        "--robust_adaptive", action="store_true",
        help="Sec. 3.3: learn alpha and c, starting from the two flags above; its weight in "
        "--weights must not be 0 (default off; the paper found the fixed form better; the released "
        "config uses weight 0.4 with it)",
    )  # fmt: skip
    g.add_argument(
        "--vnl_share", type=above_0_to_1, default=0.15,
        help="Eq. 9: triplets drawn per image as a share of the map's pixels, one at least "
        "(default 0.15: 192)",
    )  # fmt: skip
    g.add_argument(
        "--vnl_filter", default="prediction", choices=["prediction", "gt"],
        help="Eq. 9: where triplets are judged (default prediction, Sec. 3.3; gt = original VNL)",
    )  # fmt: skip
    g.add_argument(
        "--vnl_delta_z", type=nonnegative, default=0.1,
        help="Eq. 9: a triplet's depths must exceed this many metres (default 0.1)",
    )  # fmt: skip
    g.add_argument(
        "--vnl_cos", type=above_0_to_1, default=0.867,
        help="Eq. 9: largest |cosine| between two edges of a triplet (default 0.867)",
    )  # fmt: skip
    g.add_argument(
        "--vnl_near", type=nonnegative, default=0.005,
        help="Eq. 9: metres that all edges must span along x, y or z (default 0.005)",
    )  # fmt: skip
    g.add_argument(
        "--vnl_drop", type=below_1, default=0.25,
        help="Eq. 9: share of the easiest triplets left out (default 0.25; 0 = the printed mean)",
    )  # fmt: skip


def parse_weights(text: str) -> tuple[float, ...]:
    """ "1,0.25,2.5,0.6" -> four floats >= 0, at least one of them positive."""
    try:
        weights = tuple(float(v) for v in text.split(","))
    except ValueError:
        weights = ()
    if len(weights) != 4 or not all(0 <= w < math.inf for w in weights) or not any(weights):
        raise argparse.ArgumentTypeError(f"{text!r} is not four weights >= 0: 1,0.25,2.5,0.6")
    return weights

