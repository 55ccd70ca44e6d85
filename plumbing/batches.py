"""Decoded pairs for batches: out of the pack or from files, in threads, ahead of their use."""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plumbing.files import UserError, notice
from plumbing.pack import Pack, open_pack, place
from plumbing.pairs import DataError, Pair, Sample, header_of, read_pair, read_teacher
from plumbing.pictures import cv2


class Reader:
    """The decoded pairs of one split at image_size: out of `pack`, the packed cache, or from their
    files by `threads` threads, kept in memory while `ram_cache` (GB) has room.

    teacher: the file of another model's depth for each pair or None (see read_teacher); its map is
    a hole wherever the pair has a truth. A file that cannot be read is named once.
    """

    def __init__(
        self, pairs: list[Pair], *, image_size: tuple[int, int],
        intrinsics: tuple[float, ...] | None, depth_scale: float, threads: int, ram_cache: float,
        teacher: list[Path | None] | None = None,
    ) -> None:  # fmt: skip
        if teacher is not None and len(teacher) != len(pairs):
            raise ValueError(f"teacher: {len(teacher)} maps for {len(pairs)} pairs")
        self.pairs, self.image_size, self.intrinsics = pairs, image_size, intrinsics
        self.depth_scale, self.teacher, self.taught = depth_scale, teacher, teacher is not None
        self.failed: dict[str, str] = {}
        self._unread: dict[Path, object] = {}  # teacher's files that were named
        self._known: dict = {}
        self._kept: dict[int, Sample] = {}
        pair_bytes = (5 if teacher is None else 7) * image_size[0] * image_size[1]
        self._room = int(ram_cache * 1e9 / pair_bytes)
        self._pool = ThreadPoolExecutor(max(1, threads), "reader")
        self.pack: Pack | None = None
        cv2.setNumThreads(1)  # one sample a thread; cv2's own pool would fight the network's

    def take(self, indices: Iterable[int]) -> tuple[np.ndarray, list[Sample]]:
        """Which pairs stand for those asked for, each the first readable one from it on, and their
        samples. Raises DataError when not one can be read."""
        # Out of a pack there is nothing to wait for.
        each = map if self.pack is not None else self._pool.map
        found = list(each(self._readable, map(int, indices)))
        return np.array([i for i, _ in found], np.int64), [sample for _, sample in found]

    def _readable(self, index: int) -> tuple[int, Sample]:
        last = None
        for other in range(index, index + len(self.pairs)):
            other %= len(self.pairs)
            try:
                return other, self.sample(other)
            except DataError as error:
                last = str(error)  # setdefault, because two threads may meet the same pair
                if self.failed.setdefault(str(self.pairs[other].rgb), last) is last:
                    notice(f"skipped: {last}")
        raise DataError(f"not one of {len(self.pairs)} pairs can be read; the last: {last}")

    def sample(self, index: int) -> Sample:
        """Pair number `index`; read-only. Raises DataError."""
        pack = self.pack
        if pack is not None:
            if index in pack.failed:
                raise DataError(pack.failed[index])
            teacher = pack.teacher[index] if self.taught and pack.taught[index] else None
            return Sample(pack.rgb[index], pack.depth[index], pack.K[index], teacher)
        sample = self._kept.get(index)
        if sample is None:
            sample = self.decode(index)
            if len(self._kept) < self._room:
                self._kept[index] = sample
        return sample

    def decode(self, index: int) -> Sample:
        """Pair number `index` from its files. Raises DataError."""
        sample = read_pair(self.pairs[index], self.image_size, self.intrinsics, self._known)
        if self.teacher is not None:
            sample = sample._replace(teacher=self._taught(index, sample.depth))
        return sample

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self.pack is not None:
            self.pack.close()

    def _taught(self, index: int, truth: np.ndarray) -> np.ndarray | None:
        """The teacher's map of a pair, a hole where `truth` is not; None = no map to be read."""
        path = self.teacher[index]
        if path is None:
            return None
        try:
            size = header_of(self.pairs[index].rgb).size
            depth = read_teacher(path, self.image_size, self.depth_scale, size)
        except DataError as error:
            if self._unread.setdefault(path, error) is error:  # as in _readable
                notice(f"teacher_depth: {error} (taught by the ground truth alone)")
            return None
        depth[truth > 0] = 0
        return depth


def open_reader(
    pairs: list[Pair], *, cache: str, root: Path, name: str, image_size: tuple[int, int],
    intrinsics: tuple[float, ...] | None, depth_scale: float, threads: int, ram_cache: float,
    teacher: list[Path | None] | None = None, quiet: bool = False,
) -> Reader:  # fmt: skip
    """A Reader over the packed cache of `pairs`, which is built where it is not up to date.

    cache: "auto" (beside the set in `root`), a folder, or "none": no pack. name: begins the file's
    name. Raises DataError: no pair can be read, no room, a folder that cannot be written.
    """
    reader = Reader(
        pairs, image_size=image_size, intrinsics=intrinsics, depth_scale=depth_scale,
        threads=threads, ram_cache=ram_cache, teacher=teacher,
    )  # fmt: skip
    try:
        where = place(cache, root)
        if where is None:
            return reader
        cameras = {folder: folder / "intrinsics.json" for folder in {p.folder for p in pairs}}
        cameras = {folder: [path] for folder, path in cameras.items() if path.is_file()}
        files = [[p.rgb, p.depth, *cameras.get(p.folder, [])] for p in pairs]
        for row, path in zip(files, teacher or ()):
            row += [path] if path else []
        # Sets that are mixed differently lie side by side; a set that was moved keeps its pack.
        names = "\n".join(_relative([p.rgb for p in pairs], root))
        digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:8]
        name = f"{name}-{image_size[0]}x{image_size[1]}-{digest}{'-taught' if teacher else ''}"
        reader.pack = open_pack(
            where, name, files, image_size, reader.decode, threads=threads,
            settings={
                "reader": 1,  # raise it when read_pair or read_teacher decode differently
                "intrinsics": intrinsics, "depth_scale": depth_scale if teacher else None,
            },
            teacher=teacher is not None, quiet=quiet,
        )  # fmt: skip
    except UserError as error:
        reader.close()
        raise DataError(str(error)) from error
    pack = reader.pack
    asked = [i for i, path in enumerate(teacher or ()) if path and i not in pack.failed]
    lost = len(asked) - int(pack.taught[asked].sum())
    if lost and not reader._unread and not quiet:  # named when the pack was made, not since
        notice(f"teacher_depth: {lost} map(s) could not be read when {name}.pack was made")
    return reader


def _relative(files: list[Path], root: Path) -> list[str]:
    """os.path.relpath of each, with the work done once a folder."""
    homes: dict[str, str] = {}
    names = []
    for folder, name in (os.path.split(file) for file in files):
        if folder not in homes:
            home = os.path.relpath(folder or os.curdir, root)
            homes[folder] = "" if home == os.curdir else os.path.join(home, "")
        names.append(homes[folder] + name)
    return names


def ahead(
    maker: Executor, ring: Sequence[Any], make: Callable[[Any, int], Any], numbers: Iterable[int]
) -> Iterator[tuple[Any, Any]]:
    """Yields (slot, make(slot, number)) for every number, made by `maker` while earlier ones are in
    use: as many ahead as `ring` has slots beside that of the one in use. Raises what make does."""
    waiting: deque[tuple[Any, Future]] = deque()
    try:
        for turn, number in enumerate(numbers):
            slot = ring[turn % len(ring)]
            waiting.append((slot, maker.submit(make, slot, number)))
            if len(waiting) == len(ring):
                slot, made = waiting.popleft()
                yield slot, made.result()
        while waiting:
            slot, made = waiting.popleft()
            yield slot, made.result()
    finally:  # left early: nothing may go on writing into slots that are used again
        for _, made in waiting:
            made.cancel()
        for _, made in waiting:
            if not made.cancelled():
                made.exception()


# ------------------------------------------------------------------------------------------ memory


class BatchMemory:
    """One batch's tensors, allocated once for the largest shapes; smaller ones use their front.

    shapes: name -> (shape, dtype). pinned: for copies to a GPU.
    """

    def __init__(self, largest: dict[str, tuple[tuple[int, ...], torch.dtype]], pinned: bool) -> None:
        self._largest, self._pinned = largest, pinned
        self._memory: dict[str, Tensor] = {}
        self._free = None  # the event after which the memory may be written again
        self._views: dict[tuple, dict[str, Tensor]] = {}

    def allocate(self) -> None:
        """Makes the memory when it is first wanted. In the thread that trains: an operation of
        PyTorch's that is spread over threads, as zeroing is, would give the loader's thread a team
        of its own, and with more of its threads than cores OpenMP lets all sleep between any two
        operations; a backward pass then took 180 ms instead of 70."""
        if not self._memory:
            self._memory = {
                name: torch.zeros(shape, dtype=dtype, pin_memory=self._pinned)
                for name, (shape, dtype) in self._largest.items()
            }

    def view(self, shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Tensor]:
        """The tensors of these shapes; waits until what was in them has been copied."""
        if self._free is not None:
            self._free.synchronize()
        key = tuple(shape for shape, _ in shapes.values())
        if key not in self._views:
            self._views[key] = {
                name: self._memory[name].view(-1)[: math.prod(shape)].view(shape)
                for name, (shape, _) in shapes.items()
            }
        return self._views[key]

    def upload(self, tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Copies of the tensors on a GPU, without waiting for them."""
        copies = {name: t.to(device, non_blocking=True) for name, t in tensors.items()}
        self._free = torch.cuda.Event()
        self._free.record()
        return copies


def upload(pack: Pack | None, device: torch.device) -> dict[str, Tensor]:
    """The whole packed set on `device`: rgb u8, depth and teacher as int16, the bits of their u16
    (PyTorch has next to no operations for uint16). Raises UserError: no pack, no room."""
    if pack is None:
        raise UserError("--data_device cuda uploads the packed cache: not with --cache none")
    arrays = {"rgb": pack.rgb, "depth": pack.depth.view(np.int16)}
    if pack.teacher is not None:
        arrays["teacher"] = pack.teacher.view(np.int16)
    try:
        resident = {}
        for name, array in arrays.items():
            dtype = torch.uint8 if name == "rgb" else torch.int16
            resident[name] = torch.empty(array.shape, dtype=dtype, device=device)
            for first in range(0, len(array), 256):  # without a second copy of the set in memory
                part = torch.from_numpy(array[first : first + 256].copy())
                resident[name][first : first + 256].copy_(part)
    except torch.OutOfMemoryError as error:
        need = sum(array.nbytes for array in arrays.values()) / 1e9
        raise UserError(
            f"--data_device cuda: the decoded set takes {need:.1f} GB, which this GPU has not free: "
            "use --data_device cpu, or a smaller --image_size"
        ) from error
    return resident


def on_device(
    samples: list[Sample], index: np.ndarray, device: torch.device,
    resident: dict[str, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """-> rgb (B,H,W,3) u8, depth (B,H,W) int32 and teacher, as depth, or None, on `device`: of
    `samples`, or of a resident set's pairs number `index` (B,)."""
    if resident is not None:
        at = torch.from_numpy(index).to(device)
        depth, teacher = (
            resident[k][at].int() & 0xFFFF if k in resident else None for k in ("depth", "teacher")
        )
        return resident["rgb"][at], depth, teacher
    rgb = torch.from_numpy(np.stack([s.rgb for s in samples])).to(device)
    depth = torch.from_numpy(np.stack([s.depth for s in samples]).astype(np.int32)).to(device)
    teacher = None
    if any(s.teacher is not None for s in samples):
        maps = [np.zeros_like(s.depth) if s.teacher is None else s.teacher for s in samples]
        teacher = torch.from_numpy(np.stack(maps).astype(np.int32)).to(device)
    return rgb, depth, teacher
