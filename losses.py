"""Sec. 3.3 Multiple Loss Training: Eq. 7-11.

Depth is in metres. A *hole* is a ground truth that is not finite or not positive; whatever value it
holds changes nothing. Every loss is finite, with a finite gradient, and still attached to the graph
when no pixel is valid (distributed training needs that). All of it runs in float32 under autocast.

    d_hat (N,1,h,w) prediction     d (N,1,h,w) ground truth of the same size
    K (N,4) = fx, fy, cx, cy in pixels of that size, pixel centres at integers
    o: the hyper-parameters, a `Loss`

First the equations as printed, then Eq. 7 and 10 by cells: the same numbers, 20 times faster.
`depth_loss` is where one of the two forms is chosen.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from plumbing.files import UserError, notice
from plumbing.flags import (
    above_0_to_1,
    any_number,
    below_1,
    flag,
    from_0_to_1,
    nonnegative,
    positive,
    several,
)

try:
    import litedepth_kernels

    if litedepth_kernels.__version__ < "0.2":  # the tree was updated, the build was not
        raise ImportError(f"version {litedepth_kernels.__version__} is too old")
except ImportError as error:
    sys.exit(f"the C++ kernels are not there ({error}): in the root, run pip install ./csrc")

TERMS = ("silog", "grad", "vnl", "robust")
Enlarge = Callable[[Tensor], Tensor]  # the network's last resize, (N,1,h,w) -> (N,1,H,W)


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


def L_silog(d_hat: Tensor, d: Tensor, o: Loss) -> Tensor:
    """Eq. 7: alpha * sqrt( mean(e^2) - lambda * mean(e)^2 ),  e = ln d_hat - ln d.

    silog_eps > 0 (metres) is added inside both logarithms.
    PAPER: silent on alpha, lambda and eps; the released code's are 1, 0.85 and 1e-3. It also takes
    the unbiased variance, which for one valid pixel is NaN: here the variance of one pixel is 0.
    PAPER: silent on which pixels share a mean; the released code takes a batch's valid ones alike
    (pool = "batch"), so a LiDAR picture, 2 % valid, weighs a fiftieth of a dense one. "image" gives
    every picture the same weight. Either way e is centred over the batch: a scale that is wrong
    from picture to picture costs in full, only one common to the batch is forgiven by lambda.
    """
    d = holes_to_zero(d)
    M = (d > 0).to(d.dtype)
    N = M.count_nonzero()
    e = torch.log(d_hat + o.silog_eps) - torch.log(d + o.silog_eps)
    mean = masked_mean(e, M, o.pool)
    var = masked_mean((e - mean) ** 2, M, o.pool) * N / (N - 1).clamp(min=1)
    # The clamp keeps the square root's gradient finite when the prediction is perfect.
    return o.silog_alpha * (var + (1 - o.silog_lambda) * mean**2).clamp(min=1e-12).sqrt()


# ------------------------------------------------------------------------------------ Eq. 8, Fig. 4


def L_grad(d_hat: Tensor, grad_x: Tensor, grad_y: Tensor, M_x: Tensor, M_y: Tensor) -> Tensor:
    """Eq. 8: mean over valid pixels of M_x |dx d_hat - dx d| + M_y |dy d_hat - dy d|.

    grad_x .. M_y are the ground truth's differences and where they are valid (Fig. 4; see
    data.masked_gradient), all shaped like d_hat; the last column of x and the last row of y are not
    read. The mask covers prediction and ground truth alike; x and y are averaged each over its own
    valid positions.
    PAPER: so Eq. 8 says; the released code clears the ground truth's invalid differences first and
    then masks by them, hence masks nothing: beside every hole the prediction is pulled flat.
    """
    dx = d_hat[..., :, 1:] - d_hat[..., :, :-1] - grad_x[..., :, :-1]
    dy = d_hat[..., 1:, :] - d_hat[..., :-1, :] - grad_y[..., :-1, :]
    return masked_mean(dx.abs(), M_x[..., :, :-1]) + masked_mean(dy.abs(), M_y[..., :-1, :])


# ------------------------------------------------------------------------------------------- Eq. 9


def back_project(z: Tensor, K: Tensor) -> Tensor:
    """Depth (N,1,h,w) and K (N,4) -> points (N, 3, h*w) in metres, x right, y down, z forward."""
    h, w = z.shape[-2:]
    fx, fy, cx, cy = K.to(z)[:, :, None, None, None].unbind(1)
    u = torch.arange(w, device=z.device)
    v = torch.arange(h, device=z.device)[:, None]
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


def L_vnl(d_hat: Tensor, d: Tensor, K: Tensor, triplets: Tensor, o: Loss) -> Tensor:
    """Eq. 9: mean | n_hat - n |_1 over virtual planes through three points each.

    triplets: (3, count) pixel numbers, the same for every picture (`draw_triplets`). One counts
    when its three ground truths are valid and, judged on the prediction (vnl_filter "prediction",
    Sec. 3.3) or the ground truth ("gt", the original paper's way), it `spans_a_plane`. The smallest
    vnl_drop share of those is left out.
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
    # A hole is 0 in both, and 0 exceeds no vnl_delta_z.
    keep = spans_a_plane(p_hat if o.vnl_filter == "prediction" else p, o)
    loss = (virtual_normal(p_hat) - virtual_normal(p)).abs().sum(1)
    loss = torch.where(keep, loss, torch.inf).flatten().sort().values
    rank, n = torch.arange(loss.numel(), device=d.device), keep.sum()
    hard = (rank >= (o.vnl_drop * n).long()) & (rank < n)
    return masked_mean(torch.where(hard, loss, 0.0), hard)


def virtual_normal(p: Tensor) -> Tensor:
    """(N, 3, 3 corners, triplets) -> unit normals (N, 3, triplets); 0 for a degenerate triplet."""
    n = torch.linalg.cross(p[:, :, 1] - p[:, :, 0], p[:, :, 2] - p[:, :, 0], dim=1)
    # Contiguous, along the last axis: along another one it takes 12 times as long on a CPU.
    length = torch.linalg.vector_norm(n.movedim(1, -1).contiguous(), dim=-1).unsqueeze(1)
    return n / torch.where(length > 0, length, 0.01)


@torch.no_grad()
def spans_a_plane(p: Tensor, o: Loss) -> Tensor:
    """Which triplets of p (N, 3, 3 corners, count) do, bool (N, count): every z exceeds vnl_delta_z
    (m), no two edges have |cosine| above vnl_cos, and at least one of x, y, z differs by vnl_near
    (m) or more along all three edges."""
    a, b, c = p.unbind(2)
    edges = torch.stack([b - a, c - a, c - b], 2)
    length = edges.square().sum(1).sqrt()
    cosine = (edges * edges.roll(1, 2)).sum(1) / (length * length.roll(1, 1) + 1e-8)
    apart = (edges.abs() >= o.vnl_near).all(2).any(1)
    return (p[:, 2] > o.vnl_delta_z).all(1) & (cosine.abs() <= o.vnl_cos).all(1) & apart


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


def L_robust(d_hat: Tensor, d: Tensor, o: Loss) -> Tensor:
    """Eq. 10: mean of rho over valid pixels (`pool` as in Eq. 7), e = d_hat - d in metres."""
    d = holes_to_zero(d)
    M = (d > 0).to(d.dtype)
    # M twice: whatever is predicted in a hole, rho must not overflow there, for inf * 0 is NaN.
    return masked_mean(rho((d_hat - d) * M, o.robust_alpha, o.robust_c), M, o.pool)


class AdaptiveRobust(nn.Module):
    """Eq. 10's adaptive form, which Sec. 3.3 compares with: alpha in (0, 2) and c > 0 are learned.

    Negative log-likelihood rho(e, alpha, c) + ln c + ln Z(alpha); without the partition function Z
    the loss would be minimal at alpha = 0 whatever the data. Starts at robust_alpha and robust_c;
    UserError where that is out of range.
    """

    def __init__(self, o: Loss) -> None:
        super().__init__()
        if not 0.001 < o.robust_alpha < 1.999:
            raise UserError(
                f"--robust_adaptive starts within 0 < alpha < 2: --robust_alpha {o.robust_alpha:g}"
            )
        share = (o.robust_alpha - 0.001) / 1.998  # of the open interval (0.001, 1.999)
        self.o = o
        self.latent_alpha = nn.Parameter(torch.tensor(math.log(share / (1 - share))))
        self.log_c = nn.Parameter(torch.tensor(math.log(o.robust_c)))

    @property
    def alpha(self) -> Tensor:
        return 0.001 + 1.998 * torch.sigmoid(self.latent_alpha)

    @property
    def c(self) -> Tensor:
        return self.log_c.exp()

    def forward(self, d_hat: Tensor, d: Tensor) -> Tensor:
        alpha = self.alpha
        learned = dataclasses.replace(self.o, robust_alpha=alpha, robust_c=self.c)
        taught = (holes_to_zero(d) > 0).any()  # an empty batch teaches alpha and c nothing
        log_Z = torch.where(taught, self.log_c + log_partition(alpha), 0.0)
        return L_robust(d_hat, d, learned) + log_Z


def log_partition(alpha: Tensor, nodes: int = 2048) -> Tensor:
    """ln of the integral of exp(-rho(x, alpha, 1)) over the real line, differentiable in alpha."""
    t = (torch.arange(nodes, dtype=torch.float64, device=alpha.device) + 0.5) / nodes - 0.5
    x = math.sqrt(2) * torch.tan(math.pi * t)  # makes the heaviest tail (alpha -> 0) a constant
    log_dx = math.log(math.sqrt(2) * math.pi / nodes) + torch.log1p(x**2 / 2)
    return torch.logsumexp(log_dx - rho(x, alpha.double(), 1.0), 0).to(alpha.dtype)


# ------------------------------------------------------------------------------------------ Eq. 11


class DepthLoss(nn.Module):
    """Eq. 11: L_depth = w1 L_silog + w2 L_grad + w3 L_vnl + w4 L_robust.

    o.weights: (w1, w2, w3, w4); a term of weight 0 is not computed. o.dynamic_weights: the weights
    become parameters, L = sum_i [ w_i L_i / (2 p_i^2) + ln(1 + p_i^2) ], p_i = 1 at the start.
    Raises UserError for a learned alpha and c of weight 0.
    PAPER: gives no formula; this is the released code's (Liebel & Koerner), on top of the w_i.
    """

    def __init__(self, o: Loss) -> None:
        super().__init__()
        self.o, self.w = o, dict(zip(TERMS, o.weights))
        if o.robust_adaptive and not self.w["robust"]:  # DDP allows no unused parameter
            raise UserError("--robust_adaptive needs a robust weight above 0 in --weights")
        self.adaptive = AdaptiveRobust(o) if o.robust_adaptive else None
        used = sum(w > 0 for w in o.weights)
        self.p = nn.Parameter(torch.ones(used)) if o.dynamic_weights else None

    def silog(self, d_hat: Tensor, enlarge: Enlarge, batch: dict) -> Tensor:
        """Eq. 7 at the ground truth's size."""
        return L_silog(enlarge(d_hat), batch["depth"], self.o)

    def robust(self, d_hat: Tensor, enlarge: Enlarge, batch: dict) -> Tensor:
        """Eq. 10 at the ground truth's size."""
        if self.adaptive:
            return self.adaptive(enlarge(d_hat), batch["depth"])
        return L_robust(enlarge(d_hat), batch["depth"], self.o)

    def terms(self, d_hat: Tensor, enlarge: Enlarge, batch: dict) -> dict[str, Tensor]:
        """The unweighted terms, in the order of Eq. 11. d_hat (N,1,h,w) as the network gives it,
        the size of Eq. 8 and 9; enlarge: to that of the ground truth; batch: see data.Loader."""
        out = {}
        if self.w["silog"]:
            out["silog"] = self.silog(d_hat, enlarge, batch)
        if self.w["grad"]:
            out["grad"] = L_grad(d_hat, *(batch[k] for k in ("grad_x", "grad_y", "M_x", "M_y")))
        if self.w["vnl"]:
            K = scale_intrinsics(batch["K"], batch["depth"].shape[-2:], d_hat.shape[-2:])
            out["vnl"] = L_vnl(d_hat, batch["depth_low"], K, batch["triplets"], self.o)
        if self.w["robust"]:
            out["robust"] = self.robust(d_hat, enlarge, batch)
        return out

    def forward(
        self, d_hat: Tensor, enlarge: Enlarge, batch: dict
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """-> (loss, {name: detached term or weight}); always float32."""
        with torch.autocast(d_hat.device.type, enabled=False):
            terms = self.terms(d_hat.float(), enlarge, batch)
            weights = {k: self.w[k] for k in terms}
            if self.p is not None:
                weights = {k: 0.5 * self.w[k] / p**2 for k, p in zip(terms, self.p)}
            loss = sum(weights[k] * terms[k] for k in terms)
            if self.p is not None:
                loss = loss + torch.log1p(self.p**2).sum()
        report = {**terms, **{f"w_{k}": torch.as_tensor(w) for k, w in weights.items()}}
        if self.adaptive:
            report |= {"robust_alpha": self.adaptive.alpha, "robust_c": self.adaptive.c}
        return loss, {k: v.detach() for k, v in report.items()}


# ----------------------------------------------------------------------- Eq. 7, 10 and 11 by cells
#
# A *cell* is the preimage of one output pixel under the nearest upsample, floor(v*h/H): all of it
# shares one prediction. Eq. 7 then needs three numbers of a cell and Eq. 10 one pass over d; the
# upsampled prediction, and with it every full-size map of the backward pass, is never made. Values
# and gradients are those of L_silog and L_robust above on the upsampled d_hat.


def to_cells(d: Tensor, size: tuple[int, int]) -> Tensor:
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
    loader's cell_n, cell_mean and cell_M2.
    """
    d = to_cells(holes_to_zero(d), size)
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


def L_silog_cells(d_hat: Tensor, n: Tensor, mean: Tensor, M2: Tensor, o: Loss) -> Tensor:
    """Eq. 7 from d_hat (N,1,h,w) and `cell_statistics`, which must have been given silog_eps.

    With e the mean error of a cell: mean(e) = sum w n e and var(e) = sum w (n (e - mean)^2 + M2),
    w a pixel's weight. Centred: the raw sums of e and e^2 lose half the digits of a float32.
    """
    w, N = pixel_weight(n, o.pool), n.sum()
    e = torch.log(d_hat + o.silog_eps) - mean
    m = (w * n * e).sum()
    var = (w * (n * (e - m) ** 2 + M2)).sum() * N / (N - 1).clamp(min=1)
    return o.silog_alpha * (var + (1 - o.silog_lambda) * m**2).clamp(min=1e-12).sqrt()


class RobustCells(torch.autograd.Function):
    """`robust_cells` by the C++ kernel, with its own gradient: float32 on the CPU, alpha 1 or 2.
    d is not kept: the loader writes the next batch into its memory."""

    @staticmethod
    def forward(ctx, d_hat: Tensor, d: Tensor, alpha: float, c: float) -> tuple[Tensor, Tensor]:
        total, slope, n = out = [torch.empty_like(d_hat).contiguous() for _ in range(3)]
        arrays = [x.detach().numpy() for x in (d_hat, d, *out)]
        threads = torch.get_num_threads()
        litedepth_kernels.robust_cells(*arrays[:2], alpha, c, threads, *arrays[2:])
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(n)
        return total, n

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        return grad * ctx.saved_tensors[0], None, None, None


def robust_cells(d_hat: Tensor, d: Tensor, alpha: float, c: float) -> tuple[Tensor, Tensor]:
    """d_hat (N,1,h,w), d (N,1,H,W) -> by cell the sum of rho over valid pixels and their number,
    (N,1,h,w) each; for any device, dtype, alpha and compiler."""
    d = to_cells(holes_to_zero(d), d_hat.shape[-2:])
    M = (d > 0).to(d.dtype)
    total = rho((d_hat[:, :, :, None, :, None] - d) * M, alpha, c) * M
    return total.sum((3, 5)), M.sum((3, 5))


def L_robust_cells(d_hat: Tensor, d: Tensor, o: Loss, kernel: str) -> Tensor:
    """Eq. 10 of d_hat (N,1,h,w) and d (N,1,H,W); kernel: "cpp" (CPU, float32), which knows the two
    usual alphas and leaves the others to PyTorch, or "torch"."""
    by_cell = RobustCells.apply if kernel == "cpp" and o.robust_alpha in (1, 2) else robust_cells
    total, n = by_cell(d_hat, d, o.robust_alpha, o.robust_c)
    return (pixel_weight(n, o.pool) * total).sum()


class CellLoss(DepthLoss):
    """DepthLoss by cells, for a last resize that is nearest: the same numbers to rounding. kernel:
    see L_robust_cells. robust_adaptive learns from single pixels and has no cells: DepthLoss."""

    def __init__(self, o: Loss, kernel: str) -> None:
        super().__init__(o)
        self.kernel = kernel

    def silog(self, d_hat: Tensor, enlarge: Enlarge, batch: dict) -> Tensor:
        """Eq. 7 from the batch's statistics; nothing is enlarged."""
        return L_silog_cells(d_hat, *(batch[k] for k in ("cell_n", "cell_mean", "cell_M2")), self.o)

    def robust(self, d_hat: Tensor, enlarge: Enlarge, batch: dict) -> Tensor:
        """Eq. 10 cell by cell; nothing is enlarged."""
        return L_robust_cells(d_hat, batch["depth"], self.o, self.kernel)


# --------------------------------------------------------------------------------- hyper-parameters


def parse_weights(text: str) -> tuple[float, ...]:
    """"1,0.25,2.5,0.6" -> four floats >= 0, at least one of them positive."""
    weights = several(4, nonnegative, "four weights >= 0: 1,0.25,2.5,0.6")(text)
    if not any(weights):
        raise argparse.ArgumentTypeError(f"{text!r}: one of the four weights must be above 0")
    return weights


@dataclasses.dataclass(frozen=True)
class Loss:
    """losses (Sec. 3.3)"""

    weights: tuple[float, ...] = flag(
        "1,0.25,2.5,0.6", "Eq. 11: weights of silog, gradient, virtual normal and robust loss; 0 "
        "leaves a term out, so the other rows of Table 5 are 1,0,0,0 / 1,.25,0,0 / 1,.25,2.5,0",
        parse_weights, metavar="W1,W2,W3,W4",
    )  # fmt: skip
    dynamic_weights: bool = flag(
        False, "last row of Table 5: learn the weights, on top of --weights (default off; the "
        "paper found the fixed ones slightly better)",
    )  # fmt: skip
    loss_form: str = flag(
        "cells", "Eq. 7 and 10 by cells, the pixels that share one prediction under the nearest "
        "resize, or as printed, pixel by pixel: equal to 1e-6 and 20 times slower (default cells; "
        "plain is taken where there are no cells: --upsample bilinear, --robust_adaptive)",
        choices=["cells", "plain"],
    )  # fmt: skip
    pool: str = flag(
        "image", "Eq. 7 and 10: every picture counts alike, however few its valid pixels, or every "
        "valid pixel of a batch does, as released (default image: sets that mix sparse LiDAR with "
        "dense depth need it, for others it makes little difference)", choices=["image", "batch"],
    )  # fmt: skip
    silog_alpha: float = flag("1", "Eq. 7: alpha", positive)
    silog_lambda: float = flag(
        "0.85", "Eq. 7: lambda, 1 = blind to a global scale, 0 = plain log RMSE", from_0_to_1
    )
    silog_eps: float = flag("0.001", "Eq. 7: metres inside the log", positive)
    robust_alpha: float = flag(
        "1", "Eq. 10: shape; 2 = L2, 1 = Charbonnier, 0 = Cauchy, -2 = Geman-McClure, -inf = "
        "Welsch (default 1; others than 1 and 2 take longer on a CPU)", any_number,
    )  # fmt: skip
    robust_c: float = flag(
        "2", "Eq. 10: scale in metres; smaller errors are treated as squared ones", positive
    )
    robust_adaptive: bool = flag(
        False, "Sec. 3.3: learn alpha and c, starting from the two flags above; its weight in "
        "--weights must not be 0 (default off; the paper found the fixed form better; the released "
        "config uses weight 0.4 with it)",
    )  # fmt: skip
    vnl_share: float = flag(
        "0.15", "Eq. 9: triplets drawn per image as a share of the map's pixels, one at least "
        "(default 0.15: 192)", above_0_to_1,
    )  # fmt: skip
    vnl_filter: str = flag(
        "prediction", "Eq. 9: where triplets are judged (default prediction, Sec. 3.3; gt = "
        "original VNL)", choices=["prediction", "gt"],
    )  # fmt: skip
    vnl_delta_z: float = flag(
        "0.1", "Eq. 9: a triplet's depths must exceed this many metres", nonnegative
    )
    vnl_cos: float = flag(
        "0.867", "Eq. 9: largest |cosine| between two edges of a triplet", above_0_to_1
    )
    vnl_near: float = flag(
        "0.005", "Eq. 9: metres that all edges must span along x, y or z", nonnegative
    )
    vnl_drop: float = flag(
        "0.25", "Eq. 9: share of the easiest triplets left out (default 0.25; 0 = the printed "
        "mean)", below_1,
    )  # fmt: skip


def depth_loss(o: Loss, nearest: bool, cpp: bool) -> DepthLoss:
    """Eq. 11 in the form that o.loss_form asks for; here, once, it is chosen. nearest: whether the
    network's last resize is. cpp: whether the C++ kernel can serve (CPU, not compiled)."""
    if o.loss_form == "cells" and nearest and not o.robust_adaptive:
        return CellLoss(o, "cpp" if cpp else "torch")
    if o.loss_form == "cells":
        notice(
            "--upsample bilinear has no cells, and --robust_adaptive learns from single pixels: "
            "the plain losses are used, slower by far"
        )
    return DepthLoss(o)
