"""Sec. 3.2 R^2 Crop (Fig. 2) and Fig. 4's masked gradient: from decoded pairs to batches.

    draw(seed, epoch, indices, ...)      what is random: rotation, flip, crop, colour
    r2_batch(rgb, depth, recipe, ...)    images, depths, masked gradients: readable, on any device
    litedepth_kernels.r2_batch           the same in C++, ten times as fast
    Loader.epoch(n)                      batches
    python data.py --check ROOT          the data doctor, plumbing/doctor.py: look before you train

Depth on disk is a 16-bit PNG, `depth_scale` units per metre, 0 = hole (no measurement). In a batch
it is float32 metres, 0 = hole. No hole is ever blended into a depth.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

import losses
from losses import litedepth_kernels
from plumbing.batches import BatchMemory, Reader, ahead, on_device
from plumbing.files import notice
from plumbing.flags import flag, nonnegative, ordered, parse_size, probability
from plumbing.pairs import DataError, Sample


def parse_crops(text: str) -> tuple[tuple[int, int], ...]:
    """ "240x384,480x640" -> ((240, 384), (480, 640)); "none" -> ()."""
    return () if text == "none" else tuple(parse_size(part) for part in text.split(","))


@dataclass(frozen=True)
class Crop:
    """R^2 crop and augmentation (Sec. 3.2)"""

    crops: tuple[tuple[int, int], ...] = flag(
        "240x384,384x512,480x640", "sizes to choose from at random, in pixels at --image_size; one "
        "size = Table 4's plain random crop, none = no crop", parse_crops, metavar="HxW,HxW,...",
    )  # fmt: skip
    rotate_prob: float = flag(0.5, "share of samples rotated", probability)
    max_angle: float = flag(2.5, "rotation is uniform within this many degrees", nonnegative)
    flip_prob: float = flag(
        0.5, "share mirrored left to right; 0 when sides matter, as in traffic", probability
    )
    gamma: tuple[float, float] = flag(
        "0.9,1.1", "colour: range of the power applied to 0..255; 1,1 = off", ordered,
        metavar="LOW,HIGH",
    )  # fmt: skip
    gamma_unit: bool = flag(
        False, "apply that power to 0..1 instead, a milder jitter (default off, as released)"
    )
    brightness: tuple[float, float] = flag(
        "0.75,1.25", "colour: range of the common gain; 1,1 = off", ordered, metavar="LOW,HIGH"
    )
    channel_gain: tuple[float, float] = flag(
        "0.9,1.1", "colour: range of each channel's own gain; 1,1 = off", ordered,
        metavar="LOW,HIGH",
    )  # fmt: skip
    gt_down: str = flag(
        "cell", "how the truth reaches the 32x40 of Eq. 8 and 9: mean of a cell's valid pixels, "
        "its middle pixel, or the valid ones of four taps (default cell; nearest starves on LiDAR)",
        choices=["cell", "nearest", "bilinear"],
    )  # fmt: skip
    crop_batch: str = flag(
        "size", "crops of several sizes: size = one drawn for a whole batch, nothing to pad and "
        "0.63 of the work; pad = each sample its own, top left in a full canvas, as released "
        "(default size: on val as good)", choices=["size", "pad"],
    )  # fmt: skip
    kernels: str = flag(
        "cpp", "C++, or the readable PyTorch form, ten times slower on a CPU: the same batches",
        choices=["cpp", "torch"],
    )  # fmt: skip


# ------------------------------------------------------------------ Sec. 3.2, what is random


class Views(NamedTuple):
    """How B samples are seen. Canvas: the full-resolution map that a crop lies in, top left."""

    crop: np.ndarray  # (B, 2) int64: h, w, the pixels of the canvas that are filled
    affine: np.ndarray  # (B, 2, 3) float64: canvas pixel (u, v) -> source pixel (x, y)
    lut: np.ndarray  # (B, 3, 256) float32: grey level -> the image's value


def stream(seed: int, epoch: int, number: int, purpose: int) -> np.random.Generator:
    """Random numbers of their own for everything that is drawn: 1 a sample, 2 an epoch's order,
    3 triplets (losses.draw_triplets), 4 a batch's crop size. None depends on threads, workers,
    batch slots or on where a run was resumed."""
    return np.random.default_rng(np.random.SeedSequence((seed, epoch, number, purpose)))


def draw(
    seed: int, epoch: int, indices: Sequence[int], size: tuple[int, int], o: Crop,
    crop: tuple[int, int] | None = None,
) -> Views:  # fmt: skip
    """Sec. 3.2: rotate, flip, R^2 crop, colour, in the released order.

    (seed, epoch, index) decides a sample. size: (H, W) of source and canvas. crop: the size that is
    cut, None = each sample draws its own from o.crops.
    """
    H, W = size
    drawn = np.empty((len(indices), 10))
    for row, index in zip(drawn, indices):
        rng = stream(seed, epoch, int(index), 1)
        angle = rng.uniform(-o.max_angle, o.max_angle) if rng.random() < o.rotate_prob else 0.0
        flip = rng.random() < o.flip_prob
        own = o.crops[rng.integers(len(o.crops))] if o.crops else size
        h, w = crop or own
        corner = rng.integers(H - h + 1), rng.integers(W - w + 1)
        gamma, brightness = rng.uniform(*o.gamma), rng.uniform(*o.brightness)
        gains = brightness * rng.uniform(*o.channel_gain, 3)
        row[:] = (angle, flip, h, w, *corner, gamma, *gains)
    angle, flip, h, w, top, left, gamma = drawn[:, :7].T
    gains = drawn[:, 7:]

    # canvas -> flipped picture -> rotated picture -> source
    x0, y0 = (W - 1) / 2, (H - 1) / 2
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    a00, a02 = np.where(flip, -1.0, 1.0), np.where(flip, W - 1 - left, left)
    affine = np.empty((len(indices), 2, 3))
    affine[:, 0] = np.stack([cos * a00, sin, x0 + cos * (a02 - x0) + sin * (top - y0)], 1)
    affine[:, 1] = np.stack([-sin * a00, cos, y0 - sin * (a02 - x0) + cos * (top - y0)], 1)

    # PAPER: says "random color enhancement"; the released code raises 0..255 to the power gamma,
    # a strong jitter of brightness. --gamma_unit takes the power on 0..1 instead.
    level, power = np.arange(256.0), gamma[:, None]
    bent = 255 * (level / 255) ** power if o.gamma_unit else level**power
    lut = np.clip(bent[:, None] * gains[..., None], 0, 255).astype(np.float32)
    return Views(drawn[:, 2:4].astype(np.int64), affine, lut)


def intrinsics_after(K: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """K (B, 4) = fx, fy, cx, cy of the sources -> of the canvas, by affine (B, 2, 3). A flip
    mirrors the world with the picture; a rotation turns the camera about its axis: only the
    principal point moves."""
    centre = np.linalg.solve(affine[:, :, :2], (K[:, 2:] - affine[:, :, 2])[..., None])
    return np.concatenate([K[:, :2], centre[..., 0]], 1)


def extent(
    crop: tuple[int, int], canvas: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of an image of `size` that a crop fills, from its top left corner.

    All (h, w); crop and canvas at full resolution, numbers or tensors of them.
    PAPER: silent on crops whose share of the network's rows is no whole number (384 of 480 rows are
    102.4 of 128; the released code has 360): what is filled in part counts as padding.
    """
    return crop[0] * size[0] // canvas[0], crop[1] * size[1] // canvas[1]


def network_size(
    crop: tuple[int, int], canvas: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """A crop's share of the network's `size`, to the nearest multiple of 32: 384x512 of 480x640 is
    102.4 rows of 128, so 96, and its pixels are 4 by 4 of the picture's instead of 3.75 by 4.

    PAPER: says 384x512, which does not fit the network's grid; the released code has 360x512.
    """
    h, w = (max(32, (2 * c * s + 32 * C) // (64 * C) * 32) for c, C, s in zip(crop, canvas, size))
    return h, w


# ------------------------------------------- Sec. 3.2, Fig. 2 and 4: R^2 crop, masked gradient
#
# The readable form, for a batch on any device. csrc/ has the fast one, in the same order of
# operations: image, depth, gradients and masks are the same bits, cell statistics equal to 1e-6.


def r2_batch(
    rgb: Tensor, depth: Tensor, teacher: Tensor | None, recipe: Recipe, depth_scale: float,
    eps: float, gt_down: str,
) -> dict[str, Tensor]:  # fmt: skip
    """R^2 crop of a batch and all that the losses need of it: a batch of `Loader`, but for what is
    in the recipe itself.

    rgb (B,H,W,3) u8; depth (B,H,W) int32 in sensor units, depth_scale a metre, 0 = hole; teacher:
    as depth, by another model, or None. eps: of Eq. 7. gt_down: see there.
    """
    views, canvas, size = recipe.views, recipe.canvas, recipe.size
    out = {"image": crop_image(rgb, views, canvas, size)}
    for who, own in (("", depth), ("teacher_", teacher)):
        if own is None:
            continue
        # A tensor, because CUDA divides by a number as a product with its rounded reciprocal.
        metres = crop_depth(own, views, canvas) / torch.full((), depth_scale, device=own.device)
        low = lower(metres, (size[0] // 4, size[1] // 4), gt_down)
        out |= {f"{who}depth": metres, f"{who}depth_low": low}
        out |= zip((f"{who}{name}" for name in GRADIENTS), masked_gradient(low))
        cells = losses.cell_statistics(metres.double(), low.shape[-2:], eps)
        out |= zip((f"{who}{name}" for name in CELLS), (x.float() for x in cells))
    return out


GRADIENTS = ("grad_x", "grad_y", "M_x", "M_y")
CELLS = ("cell_n", "cell_mean", "cell_M2")


def source_position(affine: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Source pixel x, y (B,h,w) of canvas columns u (w,) and rows v (h,) by affine (B,2,3)."""
    a = affine[..., None, None]
    x, y = ((a[:, i, 0] * u + a[:, i, 1] * v[:, None]) + a[:, i, 2] for i in (0, 1))
    return x, y


def crop_image(
    rgb: Tensor, views: Views, canvas: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Rotate, flip, crop, resize, colour rgb (B,H,W,3) u8 by one affine map: (B,3,*size) float32.

    Half-pixel bilinear without antialias, black outside the source, rounded to a grey level, then
    the view's table; 0 (after Eq. 1 the mean colour) beyond the crop.
    """
    (B, H, W, _), (Hc, Wc), (hn, wn) = rgb.shape, canvas, size
    crop, affine, lut = views
    at = {"device": rgb.device, "dtype": affine.dtype}
    u = (torch.arange(wn, **at) + 0.5) * (Wc / wn) - 0.5
    v = (torch.arange(hn, **at) + 0.5) * (Hc / hn) - 0.5
    x, y = source_position(affine, u, v)
    touches = (x >= -1) & (x < W) & (y >= -1) & (y < H)  # one tap at least is in the source
    x, y = torch.where(touches, x, -1.0), torch.where(touches, y, -1.0)  # -1, -1 reads black
    x0, y0 = x.floor(), y.floor()
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    black = pad(rgb, (0, 0, 1, 2, 1, 2))  # its pixel (1, 1) is the source's (0, 0)
    x0, y0 = x0.long() + 1, y0.long() + 1
    b = torch.arange(B, device=rgb.device)[:, None, None]
    top = black[b, y0, x0] * (1 - fx) + black[b, y0, x0 + 1] * fx
    bottom = black[b, y0 + 1, x0] * (1 - fx) + black[b, y0 + 1, x0 + 1] * fx
    level = (top * (1 - fy) + bottom * fy + 0.5).floor().long()
    colour = lut[b[..., None], torch.arange(3, device=rgb.device), level]
    filled = within(extent(crop.unbind(1), canvas, size), size)[..., None]
    return torch.where(filled, colour, 0.0).permute(0, 3, 1, 2)


def crop_depth(depth: Tensor, views: Views, canvas: tuple[int, int]) -> Tensor:
    """The same map for depth (B,H,W) in sensor units: (B,1,Hc,Wc) float32, the nearest source pixel
    and never a blend; 0 where that is a hole, outside the source or beyond the crop."""
    (B, H, W), (Hc, Wc) = depth.shape, canvas
    crop, affine, _ = views
    at = {"device": depth.device, "dtype": affine.dtype}
    x, y = source_position(affine, torch.arange(Wc, **at), torch.arange(Hc, **at))
    x, y = x + 0.5, y + 0.5
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H) & within(crop.unbind(1), canvas)
    x, y = (torch.where(inside, at, 0.0).long() for at in (x, y))  # from 0 up, the cast is floor
    nearest = depth[torch.arange(B, device=depth.device)[:, None, None], y, x]
    return torch.where(inside, nearest, 0).float()[:, None]


def within(extent: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """(B,h,w) bool: the pixels of maps of `size` in their first rows and columns, (B,) each."""
    (rows, columns), (h, w) = (n[:, None, None] for n in extent), size
    v, u = torch.arange(h, device=rows.device)[:, None], torch.arange(w, device=rows.device)
    return (v < rows) & (u < columns)


def masked_gradient(d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fig. 4, second line: (grad_x, grad_y, M_x, M_y) of a ground truth (B,1,h,w), shaped like it.

    As the paper does it: holes (not finite, or not above 0) become NaN, NaN survives the
    subtraction, and what is finite afterwards is valid; gradients are 0 where masked. The last
    column (row) has no right (lower) neighbour: M is False there.
    """
    d = torch.where(d.isfinite() & (d > 0), d, torch.nan)
    grad_x = pad(d[..., :, 1:] - d[..., :, :-1], (0, 1), value=torch.nan)
    grad_y = pad(d[..., 1:, :] - d[..., :-1, :], (0, 0, 0, 1), value=torch.nan)
    M_x, M_y = torch.isfinite(grad_x), torch.isfinite(grad_y)
    return torch.where(M_x, grad_x, 0.0), torch.where(M_y, grad_y, 0.0), M_x, M_y


def lower(metres: Tensor, size: tuple[int, int], gt_down: str) -> Tensor:
    """Ground truth (B,1,H,W) at the prediction's size (Sec. 3.3: Eq. 8 and 9 compare there):
    (B,1,h,w) float32, 0 = hole.

    "cell": the mean of the depths among the pixels v, u with v h // H == i and u w // W == j;
    "nearest": the pixel at ((i + 0.5) H // h, (j + 0.5) W // w);
    "bilinear": align_corners=True, holes left out and the weights of the other taps renormalised.

    PAPER: silent; the released code resizes bilinearly with the holes' zeros in it, which makes
    false depths beside every hole. "nearest" leaves sparse LiDAR almost no neighbouring pairs.
    """
    (H, W), (h, w), device = metres.shape[-2:], size, metres.device
    if gt_down == "cell":
        pixels = losses.to_cells(metres, size)
        total, n = pixels.sum((3, 5), dtype=torch.float64), (pixels > 0).sum((3, 5))
        return (total / n.clamp(min=1)).float()
    rows, columns = (torch.arange(n, device=device) for n in size)
    if gt_down == "nearest":
        rows, columns = (2 * rows + 1) * H // (2 * h), (2 * columns + 1) * W // (2 * w)
        return metres[:, :, rows[:, None], columns]
    # Quotients that must be exact: a tap just beside a hole decides alone.
    y = (rows * (H - 1)).double() / torch.full((), max(h - 1, 1), device=device)
    x = (columns * (W - 1)).double() / torch.full((), max(w - 1, 1), device=device)
    y0, x0, fy, fx = y.long(), x.long(), (y - y.floor())[:, None], x - x.floor()
    total = weights = 0
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            tap = metres[:, :, (y0 + dy).clamp(max=H - 1)[:, None], (x0 + dx).clamp(max=W - 1)]
            total = total + wy * wx * tap
            weights = weights + wy * wx * (tap > 0)
    return torch.where(weights > 0, total / torch.where(weights > 0, weights, 1), 0).float()


def log_table(depth_scale: float, eps: float) -> np.ndarray:
    """ln(d + eps) of every depth in sensor units, (65536,) float32: Eq. 7's logarithm of k /
    depth_scale metres, so that the kernel needs no logarithm of its own. Entry 0, a hole, is 0."""
    metres = np.arange(1, 1 << 16, dtype=np.float32) / np.float32(depth_scale)
    return np.append(0.0, np.log(metres.astype(np.float64) + eps)).astype(np.float32)


# ----------------------------------------------------------------------------------------- batches


class Recipe(NamedTuple):
    """What one batch is made of, but for its pixels. B samples of this process."""

    samples: list[Sample]
    index: np.ndarray  # (B,) int64: which pairs
    views: Views  # with Eq. 1 in the colour tables
    K: np.ndarray  # (B, 4) float32: intrinsics in canvas pixels
    extent: np.ndarray  # (B, 2) int64: rows and columns of the image that are filled
    canvas: tuple[int, int]  # (H, W) of the batch's depths
    size: tuple[int, int]  # (h, w) of its image
    triplets: Tensor  # (3, count) int64: Eq. 9's


def check_sizes(o: Crop, image_size: tuple[int, int], size: tuple[int, int]) -> None:
    """Raises DataError unless pictures, crops and the network's size (h, w) go together."""
    (H, W), (h, w) = image_size, size
    if 4 * H < h or 4 * W < w:
        raise DataError(
            f"--image_size {H}x{W} is smaller than the network's prediction, {h // 4}x{w // 4}"
        )
    for ch, cw in o.crops:
        if ch > H or cw > W:
            raise DataError(f"--crops {ch}x{cw} is larger than --image_size {H}x{W}")
        if ch * h < H * 32 or cw * w < W * 32:
            raise DataError(f"--crops {ch}x{cw} is under 32 pixels at the network's scale")


class Loader:
    """Batches of augmented samples; one `epoch(n)` at a time.

    A batch is a dictionary of tensors on the network's device, valid until the next one is asked
    for (its memory is used again):
        image  (B,3,h,w)  float32 RGB, normalised by Eq. 1 with mean and std; 0 beyond the crop
        extent (B,2)      int64 rows and columns of image that the crop fills, from the top left
        depth  (B,1,H,W)  float32 metres on the canvas, 0 = hole or beyond the crop
        depth_low (B,1,h/4,w/4)  the same at the prediction's size, see `lower`
        grad_x, grad_y, M_x, M_y (B,1,h/4,w/4)  Eq. 8's gradients (m) and masks of depth_low
        cell_n, cell_mean, cell_M2 (B,1,h/4,w/4)  see losses.cell_statistics
        K      (B,4)      fx, fy, cx, cy in canvas pixels, followed through flip, crop and rotation
        index  (B,)       which pairs
        triplets (3, vnl_share * h/4 * w/4)  Eq. 9's, keyed by (seed, step), see draw_triplets
    Where another model's depth maps teach, also teacher_depth and teacher_ followed by the eight
    names after it: the same of that map by the same draw, where the truth is a hole; a pair without
    a map has no teacher's depth.

    network: its size, mean, std and device. crop.crop_batch = "pad": every sample draws its own
    crop size and lies top left in a canvas of image_size and size. "size": one size is drawn for a
    batch, which is the canvas, and the image is that share of `size`, to the nearest multiple of
    32; nothing is padded.
    PAPER: silent on how crops of several sizes share a batch; the released code pads.
    The order is keyed by (seed, epoch), a sample by (seed, epoch, index), a batch's size by (seed,
    epoch, batch); none depends on threads or on share = (rank, world), how many processes share
    every batch. With --extra_share an epoch is all of reader.own and that share of the others.
    resident: the whole packed set on the device, see batches.on_device.
    """

    AHEAD = 2  # batches prepared while the network works

    def __init__(
        self, reader: Reader, network: torch.nn.Module, crop: Crop, loss: losses.Loss,
        batch_size: int, seed: int, share: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        part, self._own, self._drawn = reader.reading.extra_share, len(reader.pairs), 0
        if part and reader.own not in (None, len(reader.pairs)):
            self._own, self._drawn = reader.own, round(reader.own * part / (1 - part))
        (rank, world), pairs = share, self._own + self._drawn
        if batch_size > pairs:
            if rank == 0:
                notice(f"batch size {pairs}, not {batch_size}: there are no more pairs")
            batch_size = pairs
        if batch_size < world:
            raise DataError(f"a batch of {batch_size} cannot be shared by {world} processes")
        check_sizes(crop, reader.source.image_size, network.size)
        self.reader, self.pairs, self.crop, self.loss = reader, reader.pairs, crop, loss
        self.batch_size, self.seed = batch_size, seed
        self.share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.image_size, self.size = reader.source.image_size, network.size
        self.depth_scale = reader.source.depth_scale
        self.mean, self.std = (x.cpu().numpy() for x in (network.mean, network.std))
        self.device, self.resident = network.mean.device, None
        self.logs = log_table(self.depth_scale, loss.silog_eps)
        self._order: tuple[int, np.ndarray] | None = None  # of the epoch under way
        self._thread = ThreadPoolExecutor(1, "loader")
        pinned, largest = self.device.type == "cuda", self._shapes(self.image_size, self.size)
        self._ring = [BatchMemory(largest, pinned) for _ in range(self.AHEAD + 1)]

    def __len__(self) -> int:
        """Batches in an epoch; what does not fill a batch waits for another epoch's order."""
        return (self._own + self._drawn) // self.batch_size

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self.reader.close()

    def order(self, epoch: int) -> np.ndarray:
        """Pair numbers of one epoch, (len(self), batch_size)."""
        rng = stream(self.seed, epoch, 0, 2)
        order = rng.permutation(self._own)
        if self._drawn:  # of the other pairs as many, all of them before one comes again
            others = self._own + rng.permutation(len(self.pairs) - self._own)
            order = rng.permutation(np.r_[order, np.resize(others, self._drawn)])
        return order[: len(self) * self.batch_size].reshape(len(self), self.batch_size)

    def recipe(self, epoch: int, number: int) -> Recipe:
        """Of this process's share of batch `number` of an epoch. Raises DataError when a pair
        cannot be read (see batches.Reader)."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.order(epoch)
        index, samples = self.reader.samples(self._order[1][number][self.share])
        canvas, size, crop = self.image_size, self.size, None
        if self.crop.crop_batch == "size" and self.crop.crops:
            pick = stream(self.seed, epoch, number, 4).integers(len(self.crop.crops))
            canvas = crop = self.crop.crops[pick]
            size = network_size(crop, self.image_size, self.size)
        views = draw(self.seed, epoch, index, self.image_size, self.crop, crop)
        K = intrinsics_after(np.array([s.K for s in samples]), views.affine).astype(np.float32)
        # Eq. 1, I_n = (I_r - m) / s, once for all pixels of a colour
        views = views._replace(lut=(views.lut - self.mean[:, None]) / self.std[:, None])
        filled = np.array([extent(c, canvas, size) for c in views.crop.tolist()])
        pixels = size[0] // 4 * (size[1] // 4)
        count = losses.triplet_count(pixels, self.loss.vnl_share)
        triplets = losses.draw_triplets(self.seed, epoch * len(self) + number, pixels, count)
        return Recipe(samples, index, views, K, filled, canvas, size, triplets)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yields the batches of an epoch from number `start` on."""
        cpp = self.crop.kernels == "cpp" and self.resident is None
        for memory in self._ring if cpp else ():
            memory.allocate()
        make = functools.partial(self._by_kernels if cpp else self._recipe, epoch)
        for memory, made in ahead(self._thread, self._ring, make, range(start, len(self))):
            if not cpp:  # in this thread: one of PyTorch's in the loader's has an OpenMP team
                yield self._by_pytorch(made)
            elif self.device.type == "cuda":
                yield memory.upload(made, self.device)
            else:
                yield made

    def _recipe(self, epoch: int, _: BatchMemory, number: int) -> Recipe:
        return self.recipe(epoch, number)

    def _by_kernels(self, epoch: int, memory: BatchMemory, number: int) -> dict[str, Tensor]:
        """A batch by the C++ kernel, into memory that is used again."""
        recipe = self.recipe(epoch, number)
        tensors = memory.view(self._shapes(recipe.canvas, recipe.size))
        out = {name: tensor.numpy() for name, tensor in tensors.items()}
        for name in ("K", "extent", "index"):
            out.pop(name)[:] = getattr(recipe, name)
        out.pop("triplets")[:] = recipe.triplets.numpy()
        maps = {k.removeprefix("teacher_"): out.pop(k) for k in tuple(out) if k[:8] == "teacher_"}
        how = self.depth_scale, self.logs, self.crop.gt_down, self.reader.reading.threads
        crop, affine, lut = recipe.views
        rgb, depth, teacher = ([s[i] for s in recipe.samples] for i in (0, 1, 3))
        litedepth_kernels.r2_batch(rgb, depth, affine, crop, lut, *how, out)
        if maps:
            litedepth_kernels.r2_batch(None, teacher, affine, crop, lut, *how, maps)
        return tensors

    def _by_pytorch(self, recipe: Recipe) -> dict[str, Tensor]:
        """The same batch by `r2_batch`, above, on the network's device."""
        rgb, depth, teacher = on_device(recipe.samples, recipe.index, self.device, self.resident)
        views = Views(*(torch.from_numpy(x).to(self.device) for x in recipe.views))
        out = {
            name: torch.from_numpy(getattr(recipe, name)).to(self.device)
            for name in ("K", "extent", "index")
        }  # fmt: skip
        out["triplets"] = recipe.triplets.to(self.device)
        how = self.depth_scale, self.loss.silog_eps, self.crop.gt_down
        return out | r2_batch(rgb, depth, teacher, recipe._replace(views=views), *how)

    def _shapes(
        self, canvas: tuple[int, int], size: tuple[int, int]
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:  # fmt: skip
        """Of a batch's tensors, by name."""
        n, (h, w) = self.share.stop - self.share.start, (size[0] // 4, size[1] // 4)
        floats, whole = torch.float32, torch.int64
        shapes = {
            "image": ((n, 3, *size), floats), "extent": ((n, 2), whole), "K": ((n, 4), floats),
            "index": ((n,), whole),
            "triplets": ((3, losses.triplet_count(h * w, self.loss.vnl_share)), whole),
        }  # fmt: skip
        for who in ("", "teacher_") if self.reader.teacher is not None else ("",):
            shapes[f"{who}depth"] = ((n, 1, *canvas), floats)
            for name in ("depth_low", *GRADIENTS, *CELLS):
                dtype = torch.bool if name in ("M_x", "M_y") else floats
                shapes[who + name] = ((n, 1, h, w), dtype)
        return shapes


if __name__ == "__main__":  # python data.py --check ROOT
    from plumbing import doctor

    sys.exit(doctor.run())
