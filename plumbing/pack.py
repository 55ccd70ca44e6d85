"""All decoded pairs of a split in a folder of plain .npy files, opened as memory maps.

    <name>/rgb.npy    (N, H, W, 3) u8        <name>/K.npy        (N, 4) f64: fx, fy, cx, cy
    <name>/depth.npy  (N, H, W) u16          <name>/teacher.npy  (N, H, W) u16, where one teaches
    <name>/meta.json  of what it was made, and which pairs could not be read: those have no row

The kernels load nothing beyond a picture's last byte (tests/test_sanitize.py), so the files end
with the last row.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from plumbing.files import UserError, cache_root, locked, progress, why_not_writable
from plumbing.pairs import DataError, Sample

CURE = "--cache DIR takes another folder, --cache none decodes anew in every epoch"


def pack_folder(cache: str, root: Path) -> Path | None:
    """The folder for the packs of the data in `root`, which is made; None = no packs.

    cache: "none"; "auto" = `.litedepth_cache` beside the data or, where nothing can be written
    there, a folder named after root in the user's cache (files.cache_root); else that folder.
    Raises UserError where nothing can be written, unless an explicit folder holds packs already:
    those may be read.
    """
    if cache == "none":
        return None
    if cache != "auto":
        folder = Path(cache).expanduser()
        reason = why_not_writable(folder)
        if reason and not any(folder.glob("*/meta.json")):
            raise UserError(f"--cache {cache}: cannot be written ({reason}); {CURE}")
        return folder
    beside = root / ".litedepth_cache"
    if root.is_dir() and not why_not_writable(beside):
        with suppress(OSError):  # data sets live in repositories, gigabytes of packs must not
            (beside / ".gitignore").write_text("*\n")
        return beside
    full = root.resolve()
    key = hashlib.sha256(str(full).encode(errors="surrogateescape")).hexdigest()[:12]
    folder = cache_root() / "packed" / f"{full.name or 'root'}-{key}"
    if reason := why_not_writable(folder):
        raise UserError(f"neither {beside} nor {folder} can be written ({reason}); {CURE}")
    return folder


def relative(files: Sequence[Path], base: Path) -> list[str]:
    """The files' names from `base`, which they keep when both are moved; the work is done once a
    folder."""

    @functools.cache
    def home(folder: str) -> str:
        return os.path.join(os.path.relpath(folder or os.curdir, base), "")

    return [home(folder) + name for folder, name in map(os.path.split, files)]


def make_stamp(root: Path, files: Sequence[Path], settings: dict) -> str:
    """A hash of all that a pack is made of: names (from `root`), sizes and times of the files, in
    order, and settings (plain JSON values). A file that is not there is part of it as such."""

    def facts(part: Sequence[Path]) -> bytes:
        found = []
        for file, name in zip(part, relative(part, root)):
            try:
                about = os.stat(file)
                found.append([name, about.st_size, about.st_mtime_ns])
            except OSError:
                found.append([name])
        return json.dumps(found).encode()

    stamp = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    with ThreadPoolExecutor(8) as pool:  # a network's disk answers many at a time
        for part in pool.map(facts, [files[k : k + 256] for k in range(0, len(files), 256)]):
            stamp.update(part)
    return stamp.hexdigest()


@dataclass(frozen=True)
class Pack:
    """The pairs of a split that could be read, read-only, a row each; arrays as in the module's
    docstring. A map outlives the file's name: a pack built over this one does no harm.

    taught (N,) bool: the pair has a teacher's map. failed: a pair's number among all of them -> why
    it could not be read, and has no row.
    """

    path: Path
    rgb: np.ndarray
    depth: np.ndarray
    K: np.ndarray
    teacher: np.ndarray | None
    taught: np.ndarray
    failed: dict[int, str]


def row_of(image_size: tuple[int, int], teacher: bool) -> np.dtype:
    """What a pack holds of a pair: its files, and a row of each."""
    fields = [("rgb", "|u1", (*image_size, 3)), ("depth", "<u2", image_size), ("K", "<f8", (4,))]
    return np.dtype(fields + [("teacher", "<u2", image_size)] * teacher)


def open_pack(
    path: Path, stamp: str, count: int, row: np.dtype, read: Callable[[int], Sample], threads: int,
    quiet: bool = False,
) -> Pack:  # fmt: skip
    """The pack in the folder `path`: opened if it has this stamp, else built in its place.

    count: how many pairs; row: row_of them. read(i): pair i; where it raises DataError the pair
    stands in `failed`, and is tried again whenever the pack is opened, for what made it fail
    (permissions, a disk that was away) may leave no trace in the stamp; a pack that lacks a pair
    which can be read by now is built anew.

    Any number of processes may ask for it at once: one builds, the others wait. A build that ends
    early, for whatever reason, leaves the folder as it was; a killed one's remains go with the next
    build of that name. quiet: no bar and no lines. Raises DataError: not one pair can be read;
    UserError: no room, not writable.
    """
    tell = (lambda text: None) if quiet else functools.partial(print, flush=True)
    took = ""
    try:
        pack = _fitting(path, stamp, read)
        if pack is None:
            said = f"cache: another process is packing {path}; waiting for it"
            with locked(path.parent, path.name, lambda: tell(said)):
                pack = _fitting(path, stamp, read)
                if pack is None:
                    start = time.perf_counter()
                    other = " in place of one of other files or settings" * path.exists()
                    tell(f"cache: packing {count} pairs into {path}{other}")
                    _build(path, stamp, count, row, read, threads, quiet)
                    pack = _open(path, stamp)
                    took = f" (built in {time.perf_counter() - start:.1f} s)"
    except OSError as error:  # of the pack's files: those of the pairs are DataErrors
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_room(path.parent, count * row.itemsize, f" ({error.strerror})") from error
        raise UserError(f"{path}: cannot be used ({error.strerror or error}); {CURE}") from error
    tell(f"cache: {path}, {amount(len(pack.rgb) * row.itemsize)}{took}")
    return pack


def amount(n: float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def _fitting(path: Path, stamp: str, read: Callable[[int], Sample]) -> Pack | None:
    """The pack at `path`, if it is whole, has this stamp and lacks no pair that can be read."""
    try:
        pack = _open(path, stamp)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (EOFError, ValueError, LookupError, TypeError):  # what damaged files raise
        return None
    for i in pack.failed if pack else ():
        with suppress(DataError):
            read(i)
            return None
    return pack


def _open(path: Path, stamp: str) -> Pack | None:
    """None: of another stamp, or replaced while it was being opened."""
    text = (path / "meta.json").read_bytes()
    meta = json.loads(text)
    if meta["stamp"] != stamp:
        return None
    # Plain arrays over the maps: every row taken of a numpy.memmap costs microseconds more.
    arrays = {k: np.load(path / f"{k}.npy", mmap_mode="r").view(np.ndarray) for k in meta["files"]}
    if (path / "meta.json").read_bytes() != text:
        return None
    taught = np.array(meta["taught"], np.bool_)
    if {len(array) for array in arrays.values()} != {len(taught)}:
        raise ValueError(f"{path}: files of different lengths")
    failed = {int(i): why for i, why in meta["failed"].items()}
    return Pack(path, **{"teacher": None} | arrays, taught=taught, failed=failed)


def _no_room(folder: Path, need: int, why: str = "") -> UserError:
    return UserError(
        f"{folder}: no room for the decoded pairs{why}: {amount(need)} needed, "
        f"{amount(shutil.disk_usage(folder).free)} free; make room, or: {CURE}"
    )


def _build(
    path: Path, stamp: str, count: int, row: np.dtype, read: Callable[[int], Sample], threads: int,
    quiet: bool,
) -> None:  # fmt: skip
    """The folder is there whole in the end or as it was. The lock is held."""
    need = count * row.itemsize
    unfinished, old = (path.with_name(f".{path.name}.{end}") for end in ("unfinished", "old"))
    _remove(unfinished, old)  # what a killed builder left
    if shutil.disk_usage(path.parent).free < need:
        _remove(path)  # it is of no use any more, and may be in the way
    room = shutil.disk_usage(path.parent)
    if room.total and room.free < need:  # some network file systems know neither
        raise _no_room(path.parent, need)
    try:
        unfinished.mkdir()
        samples = _decoded(read, count, threads)
        if not quiet:
            samples = progress(samples, count, f"packing {amount(need)}")
        _write(unfinished, stamp, row, samples)
        if path.exists():
            os.replace(path, old)
        os.replace(unfinished, path)
    finally:
        _remove(unfinished, old)


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, stamp: str, row: np.dtype, samples: Iterable[Sample | DataError]) -> None:
    """The files of a pack, written in order: through a map, a full disk would kill the process."""
    failed, taught = {}, []
    with ExitStack() as stack:
        files = {k: stack.enter_context(open(folder / f"{k}.npy", "wb")) for k in row.names}
        for name, file in files.items():
            _write_header(file, row[name], 0)  # how many rows there are is known in the end
        for i, sample in enumerate(samples):
            if isinstance(sample, DataError):
                failed[i] = str(sample)
                continue
            taught.append(sample.teacher is not None)
            for name, file in files.items():
                array = getattr(sample, name)
                array = np.zeros(row[name].shape) if array is None else array
                file.write(np.ascontiguousarray(array, row[name].base))
        if not taught:
            raise DataError(f"not one of {len(failed)} pairs can be read; the first: {failed[0]}")
        for name, file in files.items():
            file.seek(0)
            _write_header(file, row[name], len(taught))
        files["meta"] = stack.enter_context(open(folder / "meta.json", "wb"))
        meta = {"stamp": stamp, "files": row.names, "taught": taught, "failed": failed}
        files["meta"].write(json.dumps(meta).encode())
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())  # else a power cut leaves a whole name over missing rows


def _decoded(
    read: Callable[[int], Sample], count: int, threads: int
) -> Iterator[Sample | DataError]:  # fmt: skip
    """The samples in order, or why there is none; some of them ahead of their use."""

    def tried(i: int) -> Sample | DataError:
        try:
            return read(i)
        except DataError as error:
            return error

    ahead = 16 * threads
    with ThreadPoolExecutor(threads, "pack") as pool:
        for first in range(0, count, ahead):
            yield from pool.map(tried, range(first, min(first + ahead, count)))


def _write_header(file: BinaryIO, field: np.dtype, count: int) -> None:
    """Of a .npy file; numpy pads it so that it is as long for any number of rows."""
    about = {"descr": field.base.str, "fortran_order": False, "shape": (count, *field.shape)}
    np.lib.format.write_array_header_1_0(file, about)
