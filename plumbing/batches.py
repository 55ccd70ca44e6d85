"""Decoded pairs for batches: out of the pack or from files, in threads, ahead of their use."""

from __future__ import annotations

import hashlib
import itertools
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plumbing.files import UserError, notice, usable_cores
from plumbing.flags import below_1, flag, nonnegative, whole
from plumbing.pack import Pack, make_stamp, open_pack, pack_folder, relative, row_of
from plumbing.pairs import (
    DataError,
    Pair,
    Sample,
    Source,
    check_files,
    header_of,
    read_pair,
    read_teacher,
    resolve,
)
from plumbing.pictures import cv2

READER = 3  # raise it when read_pair or read_teacher decode differently: packs are built anew
NAMED = 10  # bad pairs that are named one by one


@dataclass(frozen=True)
class Reading:
    """reading"""

    workers: int = flag(0, "loader threads (default 0: one per core)", whole)
    cache: str = flag(
        "auto", "where the decoded pairs are packed once, 1.5 MB each at 480x640 (2.2 with "
        "teacher_depth): reading one takes 0.1 ms instead of 5 (default auto: .litedepth_cache in "
        "the data set's folder, or in your cache folder when that is read-only)",
        metavar="DIR|none",
    )  # fmt: skip
    ram_cache: float = flag(
        4.0, "with --cache none: memory for decoded pairs; what does not fit is decoded anew every "
        "epoch, 5 ms a pair (default 4). Always: for those of the validation split", nonnegative,
        metavar="GB",
    )  # fmt: skip
    skip_bad: bool = flag(False, "leave out pairs that cannot be read instead of stopping")
    extra_share: float = flag(
        0.0, "share of an epoch that is drawn from --extra_data; an epoch is then each pair of "
        "--data and as many others (default: each pair of all)", below_1, metavar="SHARE",
    )  # fmt: skip

    @property
    def threads(self) -> int:
        return self.workers or usable_cores()


class Reader:
    """The decoded pairs of one split at image_size: rows of `pack`, or from their files in threads,
    kept in memory while ram_cache has room.

    pairs: those it reads; of a pack, row i is pairs[i]. teacher: the file of another model's depth
    for each of them or None (see read_teacher); its map is a hole wherever the pair has a truth.
    failed: a picture's file -> why its pair cannot be read; with a pack all of them, and `pairs`
    has none of these; without one those that were met, in whose place the next pair stood.
    own: how many of pairs, the first ones, are --data's (None: all), the others --extra_data's.
    """

    own: int | None = None

    def __init__(
        self, pairs: list[Pair], source: Source, reading: Reading,
        teacher: list[Path | None] | None = None,
    ) -> None:  # fmt: skip
        self.pairs, self.teacher, self.source, self.reading = pairs, teacher, source, reading
        self.failed: dict[str, str] = {}
        self.pack: Pack | None = None
        self._unread: dict[Path, DataError] = {}  # teacher's maps that were named
        self._known: dict = {}
        self._kept: dict[int, Sample] = {}
        row = row_of(source.image_size, bool(teacher))
        self._room = int(reading.ram_cache * 1e9 / row.itemsize)
        self._pool = ThreadPoolExecutor(reading.threads, "reader")
        cv2.setNumThreads(1)  # one sample a thread; cv2's own pool would fight the network's

    def samples(self, indices: Iterable[int]) -> tuple[np.ndarray, list[Sample]]:
        """Which pairs stand for those asked for, and their samples, which are read-only. Without a
        pack and with skip_bad, in place of one that cannot be read stands the next one that can;
        else it is a DataError."""
        # Out of a pack there is nothing to wait for.
        each = map if self.pack is not None else self._pool.map
        found = list(each(self._readable, map(int, indices)))
        return np.array([i for i, _ in found], np.int64), [sample for _, sample in found]

    def sample(self, index: int) -> Sample:
        """Pair number `index`; read-only. Raises DataError."""
        pack = self.pack
        if pack is not None:
            teacher = pack.teacher[index] if pack.taught[index] else None
            return Sample(pack.rgb[index], pack.depth[index], pack.K[index], teacher)
        sample = self._kept.get(index)
        if sample is None:
            sample = self.decode(index)
            if len(self._kept) < self._room:
                self._kept[index] = sample
        return sample

    def decode(self, index: int) -> Sample:
        """Pair number `index` from its files. Raises DataError."""
        pair, source = self.pairs[index], self.source
        sample = read_pair(pair, source.image_size, source.intrinsics, self._known)
        path = self.teacher and self.teacher[index]
        if not path:
            return sample
        try:
            picture = header_of(pair.rgb)
            depth = read_teacher(path, source.image_size, source.depth_scale, picture, sample.depth)
        except DataError as error:
            if self._unread.setdefault(path, error) is error:  # two threads may meet the same map
                notice(f"teacher_depth: {error} (taught by the ground truth alone)")
            return sample
        depth[sample.depth > 0] = 0
        return sample._replace(teacher=depth)

    def close(self) -> None:
        """Lets go of the pack; its files close when the last array taken from them is gone."""
        self._pool.shutdown(cancel_futures=True)
        self.pack = None

    def _readable(self, index: int) -> tuple[int, Sample]:
        count = len(self.pairs)
        for other in range(index, index + count):
            other %= count
            try:
                return other, self.sample(other)
            except DataError as error:
                if not self.reading.skip_bad:
                    raise DataError(f"{error} (--skip_bad goes on without such pairs)") from error
                why = str(error)  # setdefault, because two threads may meet the same pair
                if self.failed.setdefault(str(self.pairs[other].rgb), why) is why:
                    notice(f"skipped: {why}")
        raise DataError(f"not one of {count} pairs can be read; the last: {why}")


def open_reader(
    pairs: list[Pair], source: Source, reading: Reading, teacher: list[Path | None] | None = None,
    quiet: bool = False,
) -> Reader:  # fmt: skip
    """A Reader over the pack of `pairs`, which is built where it is not up to date; without one,
    check_files has looked at them.

    teacher: as in Reader. quiet: no lines (another process says them). Raises DataError: pairs that
    cannot be read, and not skip_bad; UserError: no room, a folder that cannot be written.
    """
    root = resolve(source)
    folder = pack_folder(reading.cache, root)
    if folder is None:
        if not reading.skip_bad:
            check_files(pairs)
        return Reader(pairs, source, reading, teacher)
    maps = [path for path in teacher or () if path]
    cameras = [home / "intrinsics.json" for home in dict.fromkeys(pair.folder for pair in pairs)]
    files = [*(p.rgb for p in pairs), *(p.depth for p in pairs), *maps, *cameras]
    settings = {
        "reader": READER, "image_size": source.image_size, "intrinsics": source.intrinsics,
        "depth_scale": source.depth_scale if teacher else None,
        "depth_orientation": source.depth_orientation,
    }  # fmt: skip
    # Sets that are mixed differently lie side by side.
    names = "\n".join(relative([pair.rgb for pair in pairs], root))
    digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:8]
    size = "x".join(map(str, source.image_size))
    path = folder / f"{source.split}-{size}-{digest}{'-taught' if teacher else ''}"
    reader, row = Reader(pairs, source, reading, teacher), row_of(source.image_size, bool(teacher))
    stamp = make_stamp(root, files, settings)
    reader.pack = open_pack(path, stamp, len(pairs), row, reader.decode, reading.threads, quiet)
    _leave_out(reader, quiet)
    return reader


def _leave_out(reader: Reader, quiet: bool) -> None:
    """The pairs without a row in the pack: named, and DataError, or left out with skip_bad."""
    pack, say = reader.pack, (lambda text: None) if quiet else notice
    failed, count = pack.failed, len(reader.pairs)
    whole = [i for i in range(count) if i not in failed]
    reader.failed = {str(reader.pairs[i].rgb): why for i, why in failed.items()}
    if failed:
        for why in list(failed.values())[:NAMED]:
            say(f"cannot be read: {why}")
        many = f"{len(failed)} of {count} pairs cannot be read"
        if not reader.reading.skip_bad:
            raise DataError(
                f"{many}, the first: {next(iter(failed.values()))} (--skip_bad leaves such pairs "
                f"out; {pack.path} is kept)"
            )
        say(f"--skip_bad: {many} and are left out")
        reader.pairs = [reader.pairs[i] for i in whole]
    if reader.teacher:
        reader.teacher = [reader.teacher[i] for i in whole]


def ahead(
    thread: Executor, ring: Sequence[Any], fill: Callable[[Any, int], Any], numbers: Iterable[int]
) -> Iterator[tuple[Any, Any]]:
    """Yields (memory, fill(memory, number)) for every number, filled by `thread` while earlier ones
    are in use: as many ahead as `ring` has pieces of memory beside the one in use. Raises what fill
    does."""
    waiting: deque[tuple[Any, Future]] = deque()
    try:
        for memory, number in zip(itertools.cycle(ring), numbers):
            waiting.append((memory, thread.submit(fill, memory, number)))
            if len(waiting) == len(ring):
                memory, filled = waiting.popleft()
                yield memory, filled.result()
        for memory, filled in waiting:
            yield memory, filled.result()
    finally:  # left early: nothing may go on writing into memory that is used again
        for _, filled in waiting:
            if not filled.cancel():
                filled.exception()


# ------------------------------------------------------------------------------------------ memory


class BatchMemory:
    """One batch's tensors, allocated once for the largest shapes; smaller ones use their front.

    shapes: name -> (shape, dtype). pinned: for copies to a GPU.
    """

    def __init__(
        self, largest: dict[str, tuple[tuple[int, ...], torch.dtype]], pinned: bool
    ) -> None:
        self._largest, self._pinned = largest, pinned
        self._memory: dict[str, Tensor] = {}
        self._free = None  # the event after which the memory may be written again

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
        return {
            name: self._memory[name].view(-1)[: math.prod(shape)].view(shape)
            for name, (shape, _) in shapes.items()
        }

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the arrays are read-only
            return {k: torch.from_numpy(v).to(device, copy=True) for k, v in arrays.items()}
    except torch.OutOfMemoryError as error:
        need = sum(array.nbytes for array in arrays.values()) / 1e9
        raise UserError(
            f"--data_device cuda: the decoded set takes {need:.1f} GB, which this GPU has not free:"
            " use --data_device cpu, or a smaller --image_size"
        ) from error


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
