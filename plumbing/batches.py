"""Decoded pairs for batches: out of the pack or from files, in threads, ahead of their use."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plumbing.files import notice, usable_cores
from plumbing.flags import flag, nonnegative, whole
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

READER = 2  # raise it when read_pair or read_teacher decode differently: packs are built anew
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
    """

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
            size = header_of(pair.rgb).size
            depth = read_teacher(path, source.image_size, source.depth_scale, size)
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
    root = resolve(source.data)
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
        lost = sum(path is not None for path in reader.teacher) - int(pack.taught.sum())
        if lost and not reader._unread:  # named when the pack was made, not since
            say(f"teacher_depth: {lost} map(s) could not be read when {pack.path} was made")


def ahead(
    thread: Executor, ring: Sequence[Any], fill: Callable[[Any, int], Any], numbers: Iterable[int]
) -> Iterator[tuple[Any, Any]]:
    """Yields (memory, fill(memory, number)) for every number, filled by `thread` while earlier ones
    are in use: as many ahead as `ring` has pieces of memory beside the one in use. Raises what fill
    does."""
    waiting: deque[tuple[Any, Future]] = deque()
    try:
        for turn, number in enumerate(numbers):
            memory = ring[turn % len(ring)]
            waiting.append((memory, thread.submit(fill, memory, number)))
            if len(waiting) == len(ring):
                memory, filled = waiting.popleft()
                yield memory, filled.result()
        while waiting:
            memory, filled = waiting.popleft()
            yield memory, filled.result()
    finally:  # left early: nothing may go on writing into memory that is used again
        for _, filled in waiting:
            if not filled.cancel():
                filled.exception()
