"""Sec. 3.2 on the GPU: the whole decoded set resident, augmentation in PyTorch.

    upload(reader, device)             the set's bytes, once: a Resident (10.6 GB for 6,869 pairs)
    r2_batch(rgb, depth, index, ...)   a batch of it, as data.r2_batch makes one
    ResidentLoader(planner, resident)  data.Loader's interface; only what is drawn is sent

What is random is drawn on the host as for the CPU kernels and travels as one small copy a batch.
Nothing here waits for the device or has a shape that depends on values, so the host runs ahead of
it, and torch.compile makes a few kernels of it all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import data
import losses
from plumbing.batches import Reader, ahead
from plumbing.pairs import DataError

SPARE = 2e9  # bytes of a GPU left to the rest; batches of 32 need 0.6 GB (seen on a CPU, float32)


# ------------------------------------------------------------------------------------- Sec. 3.2
#
# The twins of data.py for a batch on any device, in the same order of operations. Positions and
# blending are in affine's dtype. In float64, run op by op, the bits are those of data.py and csrc;
# a compiler that contracts a * b + c into one rounding moves a position by 1e-13 pixels. float32
# moves it by up to 6e-5 at 640 columns: of rotated pictures, 1 depth in 30,000 is its neighbour's
# and 1 image value in 1,000 another grey level. It pays only on GPUs with few float64 units.


def source_position(affine: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Source pixel x, y (B,h,w) of canvas columns u (w,) and rows v (h,) by affine (B,2,3)."""
    a = affine[..., None, None]
    x, y = ((a[:, i, 0] * u + a[:, i, 1] * v[:, None]) + a[:, i, 2] for i in (0, 1))
    return x, y


def crop_image(
    rgb: Tensor, index: Tensor, affine: Tensor, crop: Tensor, lut: Tensor, pad: Tensor, *,
    canvas: tuple[int, int], size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """The image of data.r2_crop for samples `index` (B,) of rgb (N,H,W,3) u8: (B,3,hn,wn) float32,
    in memory channels last. affine (B,2,3), crop (B,2) int64, lut (B,3,256) and pad (3,) float32.
    """
    (_, H, W, _), (Hc, Wc), (hn, wn) = rgb.shape, canvas, size
    at = {"device": rgb.device, "dtype": affine.dtype}
    u = (torch.arange(wn, **at) + 0.5) * (Wc / wn) - 0.5
    v = (torch.arange(hn, **at) + 0.5) * (Hc / hn) - 0.5
    x, y = source_position(affine, u, v)
    touches = (x >= -1) & (x < W) & (y >= -1) & (y < H)  # False for NaN
    x, y = torch.where(touches, x, -1.0), torch.where(touches, y, -1.0)  # -1, -1 reads black
    x0, y0 = x.floor(), y.floor()
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    x0, y0, picture = x0.long(), y0.long(), index[:, None, None]

    def tap(dy: int, dx: int) -> Tensor:  # (B, hn, wn, 3), black outside the source
        yk, xk = y0 + dy, x0 + dx
        inside = (xk >= 0) & (xk < W) & (yk >= 0) & (yk < H)
        level = rgb[picture, yk.clamp(0, H - 1), xk.clamp(0, W - 1)]
        return torch.where(inside[..., None], level, 0).to(affine.dtype)

    top = tap(0, 0) * (1 - fx) + tap(0, 1) * fx
    bot = tap(1, 0) * (1 - fx) + tap(1, 1) * fx
    level = (top * (1 - fy) + bot * fy + 0.5).floor().long()
    slot = torch.arange(len(index), device=rgb.device)[:, None, None, None]
    colour = lut[slot, torch.arange(3, device=rgb.device), level]
    filled = _within(data.extent(crop.unbind(1), canvas, size), size)
    return torch.where(filled[..., None], colour, pad).permute(0, 3, 1, 2)


def crop_depth(
    depth: Tensor, index: Tensor, affine: Tensor, crop: Tensor, canvas: tuple[int, int]
) -> Tensor:  # fmt: skip
    """The depths of data.r2_crop for samples `index` (B,) of depth (N,H,W) int16, the bits of u16:
    (B,1,Hc,Wc) int32 in sensor units, 0 = hole."""
    (_, H, W), (Hc, Wc) = depth.shape, canvas
    u = torch.arange(Wc, device=depth.device, dtype=affine.dtype)
    v = torch.arange(Hc, device=depth.device, dtype=affine.dtype)
    x, y = (at + 0.5 for at in source_position(affine, u, v))
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H) & _within(crop.unbind(1), canvas)
    x, y = (torch.where(inside, at, 0.0).long() for at in (x, y))  # from 0 up, the cast is floor
    raw = depth[index[:, None, None], y, x].int() & 0xFFFF
    return torch.where(inside, raw, 0)[:, None]


def _within(extent: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """(B,h,w) bool: the pixels of pictures of `size` in their first rows and columns, (B,) each."""
    (rows, columns), (h, w) = (n[:, None, None] for n in extent), size
    v, u = torch.arange(h, device=rows.device)[:, None], torch.arange(w, device=rows.device)
    return (v < rows) & (u < columns)


def gt_down(metres: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """data.gt_down for metres (B,1,H,W) float32 with 0 = hole: (B,1,h,w) float32."""
    (H, W), (h, w), device = metres.shape[-2:], size, metres.device
    if mode == "cell":
        pixels = losses.to_cells(metres, size)
        total, count = pixels.sum((3, 5), dtype=torch.float64), (pixels > 0).sum((3, 5))
        return (total / count.clamp(min=1)).float()
    rows, columns = (torch.arange(n, device=device) for n in size)
    if mode == "nearest":
        rows, columns = (2 * rows + 1) * H // (2 * h), (2 * columns + 1) * W // (2 * w)
        return metres[:, :, rows[:, None], columns]
    if mode != "bilinear":
        raise ValueError(f"mode: expected 'cell', 'nearest' or 'bilinear', got '{mode}'")

    def position(k: Tensor, n: int, N: int) -> tuple[Tensor, Tensor]:  # whole part, fraction
        # A quotient that must be exact: a tap just beside a hole decides alone.
        at = (k * (N - 1)).double() / torch.full((), max(n - 1, 1), device=device).double()
        return at.long(), at - at.floor()

    (y0, fy), (x0, fx) = position(rows, h, H), position(columns, w, W)
    fy = fy[:, None]
    total = weights = 0
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            tap = metres[:, :, (y0 + dy).clamp(max=H - 1)[:, None], (x0 + dx).clamp(max=W - 1)]
            total = total + wy * wx * tap
            weights = weights + wy * wx * (tap > 0)
    return torch.where(weights > 0, total / torch.where(weights > 0, weights, 1), 0).float()


def cell_statistics(
    raw: Tensor, logs: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """data.cell_statistics for raw (B,1,H,W) int32 with 0 = hole and logs (65536,) float32, as from
    data.log_table: n, mean and M2, (B,1,h,w) float32 each. The double sums run in another order
    than there, so that a result may end on another last bit."""
    raw = losses.to_cells(raw, size)
    x = torch.where(raw > 0, logs[raw], 0.0).double()
    n, S1, S2 = (raw > 0).sum((3, 5)), x.sum((3, 5)), (x * x).sum((3, 5))
    some = n.clamp(min=1)
    return n.float(), (S1 / some).float(), (S2 - S1 * S1 / some).clamp(min=0).float()


def depth_maps(
    depth: Tensor, index: Tensor, affine: Tensor, crop: Tensor, logs: Tensor, *,
    depth_scale: float, canvas: tuple[int, int], low: tuple[int, int], mode: str,
) -> dict[str, Tensor]:  # fmt: skip
    """Everything of a batch that is made of depths; `low`: the prediction's size. See r2_batch."""
    raw = crop_depth(depth, index, affine, crop, canvas)
    # A tensor, because CUDA divides by a number as a product with its rounded reciprocal.
    metres = raw.float() / torch.full((), depth_scale, device=depth.device)
    down = gt_down(metres, low, mode)
    out = {"depth": metres, **dict(zip(data.LOW, (down, *data.gt_gradient(down))))}
    return out | dict(zip(data.CELLS, cell_statistics(raw, logs, low)))


def r2_batch(
    rgb: Tensor, depth: Tensor, teacher: Tensor | None, index: Tensor, affine: Tensor, crop: Tensor,
    lut: Tensor, pad: Tensor, logs: Tensor, *, depth_scale: float, canvas: tuple[int, int],
    size: tuple[int, int], mode: str,
) -> dict[str, Tensor]:  # fmt: skip
    """Sec. 3.2 for a batch: data.r2_batch on tensors of any device.

    rgb (N,H,W,3) u8 and depth, teacher (N,H,W) int16, the bits of u16: the whole set; index (B,)
    int64: which of it. affine (B,2,3), crop (B,2) int64, lut (B,3,256) float32, pad (3,) and logs
    (65536,) float32, depth_scale and mode: as in data.r2_batch. canvas (Hc,Wc), size (hn,wn): of
    the batch's depths and image; the prediction's size is a quarter of `size`.

    Returns the batch of data.Loader but for extent, K, index and triplets: image, depth, depth_low,
    grad_x, grad_y, M_x, M_y, cell_n, cell_mean, cell_M2, and with a teacher the same of it (all but
    the image) under names that begin with teacher_.
    """
    how = {
        "depth_scale": depth_scale, "canvas": canvas, "low": (size[0] // 4, size[1] // 4),
        "mode": mode,
    }  # fmt: skip
    out = {"image": crop_image(rgb, index, affine, crop, lut, pad, canvas=canvas, size=size)}
    out |= depth_maps(depth, index, affine, crop, logs, **how)
    if teacher is not None:
        maps = depth_maps(teacher, index, affine, crop, logs, **how)
        out |= {f"teacher_{name}": value for name, value in maps.items()}
    return out


# ------------------------------------------------------------------------------ the resident set


class Resident:
    """A decoded set in a device's memory: 5 bytes a pixel, 7 with a teacher's depth.

    rgb (N,H,W,3) u8, depth (N,H,W) u16 in file units, 0 = hole, and teacher, the same of another
    model (all holes where a pair has none), or None: arrays, memory-mapped ones too. Raises
    DataError when a GPU has no room.

    Depths are int16 tensors of the same bits: PyTorch has next to no operations for uint16, int32
    would double their size, and `.int() & 0xFFFF` costs nothing inside a fused kernel.
    """

    CHUNK = 1 << 28  # bytes a copy; its staging memory is pinned and used again

    def __init__(
        self, rgb: np.ndarray, depth: np.ndarray, teacher: np.ndarray | None, device: torch.device
    ) -> None:  # fmt: skip
        if not len(rgb) == len(depth) == len(depth if teacher is None else teacher):
            raise ValueError("rgb, depth and teacher are not of equally many pairs")
        self.device = device
        need = sum(a.nbytes for a in (rgb, depth, teacher) if a is not None)
        if device.type == "cuda":
            free, whole = torch.cuda.mem_get_info(device)
            check_room(need, free, whole)
        with tqdm(
            total=need, unit="B", unit_scale=True, desc="uploading the set", mininterval=0.5,
            disable=device.type != "cuda",
        ) as bar:  # fmt: skip
            self.rgb = self._upload(rgb, bar)
            self.depth = self._upload(depth, bar)
            self.teacher = None if teacher is None else self._upload(teacher, bar)

    def __len__(self) -> int:
        return len(self.rgb)

    def _upload(self, array: np.ndarray, bar: tqdm) -> Tensor:
        rows = max(1, self.CHUNK // (array.nbytes // len(array)))
        dtype = torch.uint8 if array.dtype == np.uint8 else torch.int16
        there = torch.empty(array.shape, dtype=dtype, device=self.device)
        staging = torch.empty(
            (min(rows, len(array)), *array.shape[1:]), dtype=dtype,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        for first in range(0, len(array), rows):
            part = array[first : first + rows]
            into = staging[: len(part)]
            into.numpy().view(array.dtype)[:] = part
            there[first : first + rows].copy_(into)  # waits: staging may be written again
            bar.update(part.nbytes)
        return there


def upload(reader: Reader, device: torch.device) -> Resident:
    """The packed set of a reader on `device`. Raises DataError: no pack, no room."""
    pack = reader.pack
    if pack is None:
        raise DataError("--data_device cuda uploads the packed cache: not with --cache none")
    return Resident(pack.rgb, pack.depth, pack.teacher, device)


def check_room(need: float, free: float, whole: float) -> None:
    """Raises DataError unless a set of `need` bytes leaves SPARE of the `free` ones of a GPU."""
    if need + SPARE > free:
        raise DataError(
            f"--data_device cuda: the decoded set takes {need / 1e9:.1f} GB and the network "
            f"{SPARE / 1e9:.0f} GB, but {free / 1e9:.1f} of the GPU's {whole / 1e9:.1f} GB are "
            "free: use --data_device cpu, or a smaller --image_size"
        )


# --------------------------------------------------------------------------------------- batches


class Part(NamedTuple):
    """Where an array lies in a parcel."""

    name: str
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Parcel:
    """Page-locked memory for the small arrays of a batch, which go to the device in one copy."""

    ALIGN = 16  # bytes; a view as another dtype must begin at a multiple of its size

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory = self._allocate(0)
        self._free = None  # the event after which the memory may be written again

    def _allocate(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def fill(self, arrays: dict[str, np.ndarray]) -> list[Part]:
        """Writes the arrays, once what was there before has been copied."""
        if self._free is not None:
            self._free.synchronize()
        parts, end = [], 0
        for name, array in arrays.items():
            parts.append(Part(name, end, array.shape, torch.from_numpy(array[:0]).dtype))
            end += -(-array.nbytes // self.ALIGN) * self.ALIGN
        if end > len(self._memory):
            self._memory = self._allocate(end)
        memory = self._memory.numpy()
        for part, array in zip(parts, arrays.values()):
            memory[part.start : part.start + array.nbytes] = array.reshape(-1).view(np.uint8)
        return parts

    def send(self, parts: list[Part]) -> dict[str, Tensor]:
        """The arrays as tensors on the device, without waiting for them."""
        if self.device.type == "cuda":
            there = self._memory.to(self.device, non_blocking=True)
            self._free = torch.cuda.Event()
            self._free.record()
        else:
            there = self._memory.to(self.device, copy=True)
        out = {}
        for name, start, shape, dtype in parts:
            size = dtype.itemsize * int(np.prod(shape))
            out[name] = there[start : start + size].view(dtype).view(shape)
        return out


class ResidentLoader:
    """Batches out of a Resident, on its device; used as data.Loader is, and equal to its batches.

    planner: a data.Loader for the CPU over the same pairs, which decides order, shares and draws;
    none of its own batches is made. batch: r2_batch, or torch.compile(r2_batch, dynamic=False); not
    with a mode that makes CUDA graphs, which would copy the whole set into the graph's memory at
    every call. close() closes the planner.
    """

    AHEAD = 4  # plans made while the device works; 0.1 MB each at batch 32

    def __init__(
        self, planner: data.Loader, resident: Resident,
        batch: Callable[..., dict[str, Tensor]] = r2_batch,
    ) -> None:  # fmt: skip
        if len(resident) != len(planner.pairs):
            raise ValueError(f"{len(resident)} resident pairs for {len(planner.pairs)} planned")
        self.planner, self.resident = planner, resident
        self.pairs, self.batch_size = planner.pairs, planner.batch_size
        self.failed, self.order = planner.failed, planner.order
        self._pad = torch.zeros(3, device=resident.device)  # the mean colour, after Eq. 1
        self._logs = torch.from_numpy(planner.logs).to(resident.device)
        self._batch = batch
        self._maker = ThreadPoolExecutor(1, "planner")
        self._ring = [Parcel(resident.device) for _ in range(self.AHEAD + 1)]

    def __len__(self) -> int:
        return len(self.planner)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yields the batches of an epoch from number `start` on. Raises DataError."""
        plan, numbers = functools.partial(self._plan, epoch), range(start, len(self))
        for parcel, planned in ahead(self._maker, self._ring, plan, numbers):
            yield self._make(parcel, *planned)

    def close(self) -> None:
        self._maker.shutdown(cancel_futures=True)
        self.planner.close()

    def _plan(
        self, epoch: int, parcel: Parcel, number: int
    ) -> tuple[list[Part], tuple[int, int], tuple[int, int]]:
        plan = self.planner.plan(epoch, number)
        names = ("index", "affine", "crop", "lut", "K", "extent")
        arrays = {name: np.ascontiguousarray(getattr(plan, name)) for name in names}
        arrays["triplets"] = self.planner.triplets(epoch, number, plan.size).numpy()
        return parcel.fill(arrays), plan.canvas, plan.size

    def _make(
        self, parcel: Parcel, parts: list[Part], canvas: tuple[int, int], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        sent, whole = parcel.send(parts), self.resident
        kept = {name: sent[name] for name in ("K", "extent", "index", "triplets")}
        return kept | self._batch(
            whole.rgb, whole.depth, whole.teacher, sent["index"], sent["affine"], sent["crop"],
            sent["lut"], self._pad, self._logs, depth_scale=self.planner.depth_scale, canvas=canvas,
            size=size, mode=self.planner.mode,
        )  # fmt: skip
