"""All decoded pairs of a split in one memory-mapped file."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import mmap
import os
import re
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from plumbing.files import UserError, cache_root, locked, why_not_writable

FORMAT = 1  # raise it when the layout changes: packs of another number are built anew


MAGIC = b"LiteDepth pack "


PAGE = 4096


FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")}


CURE = "--cache DIR takes another folder, --cache none decodes anew in every epoch"


Read = Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]]


def place(cache: str, root: Path) -> Path | None:
    """The folder for the packs of the data in `root`; None = no packs.

    cache: "none"; "auto" = `.litedepth_cache` beside the data or, where nothing can be written
    there, a folder named after root in the user's cache (synthetic.cache_root); else that folder.
    The folder is made. Raises UserError where nothing can be written, unless an explicit folder
    holds packs already: those may be read.
    """
    if cache == "none":
        return None
    if cache != "auto":
        folder = Path(cache).expanduser()
        reason = why_not_writable(folder)
        if reason and not any(folder.glob("*.pack")):
            raise UserError(f"--cache {cache}: cannot be written ({reason}); {CURE}")
        return folder
    beside = root / ".litedepth_cache"
    if root.is_dir() and not why_not_writable(beside):
        ignore = beside / ".gitignore"
        with suppress(OSError):  # data sets live in repositories, gigabytes of packs must not
            if not ignore.exists():
                ignore.write_text("*\n")
        return beside
    full = root.resolve()
    key = hashlib.sha256(str(full).encode(errors="surrogateescape")).hexdigest()[:12]
    folder = cache_root() / "packed" / f"{full.name or 'root'}-{key}"
    reason = why_not_writable(folder)
    if reason:
        raise UserError(f"neither {beside} nor {folder} can be written ({reason}); {CURE}")
    return folder


class Pack:
    """The pairs of one pack file, read-only.

    path, bytes: the file and its length; size: (H, W); stamp: of what it was made (make_stamp).
    rgb (N, H, W, 3) u8, depth (N, H, W) u16 with 0 = hole, teacher as depth or None: maps of the
    file. K (N, 4) f64. taught (N,) bool: has a teacher's map. failed: number of a pair -> why it
    could not be read; its rows are 0. settings: of open_pack.

    A map outlives the file's name, so a pack built over this one does no harm. Pickled by path;
    unpickling raises UserError where another pack stands there by now. The pixels themselves are
    not checked: that would read the whole file. All else is, so that no number in the file leads
    out of it. Raises OSError, UserError.
    """

    def __init__(self, path: Path, stamp: str | None = None) -> None:
        self.path = Path(os.path.abspath(path))
        with open(self.path, "rb") as f:
            head = f.read(PAGE)
            self.bytes = f.seek(0, 2)
            header = _header(head, self.bytes)
            f.seek(header["tail"])
            tail = f.read(header["tail_bytes"])
            if hashlib.sha256(tail).hexdigest() != header["tail_sha256"]:
                raise UserError("its list of pairs has changed")
            self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        self.stamp: str = header["stamp"]
        if stamp is not None and stamp != self.stamp:
            raise UserError(f"{self.path}: built anew from other files since it was opened; rerun")
        n, H, W = header["shape"]
        self.failed, self.settings = _about(tail[33 * n :], n)
        self.size, self._len = (H, W), n
        at, _ = _layout(n, self.size, header["teacher"])

        def view(name: str, dtype: str, *shape: int) -> np.ndarray:
            return np.ndarray((n, H, W, *shape), dtype, self._map, at[name])

        self.rgb, self.depth = view("rgb", "u1", 3), view("depth", "<u2")
        self.teacher = view("teacher", "<u2") if header["teacher"] else None
        self.K = np.frombuffer(tail, "<f8", 4 * n).reshape(n, 4)
        whole = np.array([i not in self.failed for i in range(n)])
        bounds = np.isfinite(self.K).all(1) & (self.K[:, :2] > 0).all(1)
        flags = np.frombuffer(tail, np.uint8, n, 32 * n)
        if not bounds[whole].all() or flags.max() > 1:  # a bool of another value is none
            raise UserError("its list of pairs cannot be")
        self.taught = flags.view(np.bool_)

    def __len__(self) -> int:
        return self._len

    def __reduce__(self) -> tuple:
        return Pack, (self.path, self.stamp)

    def close(self) -> None:
        """Lets go of the maps; the file closes when the last array taken from them is gone."""
        self.rgb = self.depth = self.teacher = self._map = None


def _header(head: bytes, length: int) -> dict:
    """The header's values, checked; length: the file's. Raises UserError.

    A checksum tells damage from what was written, not who wrote it: sizes and places are compared
    with the file's length as well.
    """
    if len(head) < PAGE:
        raise UserError(f"cut short: {length} bytes")
    if not head.startswith(MAGIC):
        raise UserError("its header is none")
    version, _, rest = head.partition(b"\n")
    if version != MAGIC + b"%d" % FORMAT:
        raise UserError("of another version")
    checksum, _, body = rest.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise UserError("its header has changed")
    try:
        header = json.loads(body)
        numbers = *header["shape"], header["tail"], header["tail_bytes"], header["bytes"]
        fine = len(numbers) == 6 and all(type(v) is int for v in numbers) and min(numbers) > 0
        fine = fine and type(header["teacher"]) is bool
        fine = fine and all(type(header[key]) is str for key in ("stamp", "tail_sha256"))
    except (ValueError, LookupError, TypeError, RecursionError):
        fine = False
    if not fine:
        raise UserError("its header holds no layout")
    n, H, W, tail, tail_bytes, whole = numbers
    if whole != length:
        raise UserError(f"{length} bytes long instead of {whole}")
    if (
        tail != _layout(n, (H, W), header["teacher"])[1]
        or whole != tail + _up(tail_bytes) + PAGE
        or tail_bytes < 33 * n
    ):
        raise UserError("its parts do not lie where they should")
    return header


def _about(text: bytes, n: int) -> tuple[dict[int, str], dict]:
    """`failed` and `settings` of a pack of n pairs, out of its tail. Raises UserError."""
    try:
        about = json.loads(text)
        failed = {int(i): why for i, why in about["failed"].items()}
        fine = all(0 <= i < n and type(why) is str for i, why in failed.items())
        fine = fine and type(about["settings"]) is dict
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        fine = False
    if not fine:
        raise UserError("its list of pairs is none")
    return failed, about["settings"]


def _up(n: int) -> int:
    return -(-n // PAGE) * PAGE


def _layout(n: int, size: tuple[int, int], teacher: bool) -> tuple[dict[str, int], int]:
    """Where rgb, depth and teacher of n pairs begin in the file, and where their tail does."""
    at, end = {}, PAGE
    for name, each in (("rgb", 3), ("depth", 2), ("teacher", 2))[: 2 + teacher]:
        at[name] = end
        end += _up(n * each * size[0] * size[1])
    return at, end


def make_stamp(
    where: Path, files: Sequence[Sequence[Path]], settings: dict, threads: int = 8
) -> str:
    """A hash of all that a pack is made of: names, sizes and times of the files, in order; settings
    (plain JSON values).

    Names count from `where`: data moved together with the packs beside it need no new ones. A file
    that is not there is part of the stamp as such.
    """
    base = os.path.abspath(where)
    homes: dict[str, str] = {}

    def facts(path: str) -> list:
        folder, name = os.path.split(path)
        if folder not in homes:
            try:
                homes[folder] = os.path.relpath(folder or os.curdir, base)
            except ValueError:  # Windows: on another drive
                homes[folder] = os.path.abspath(folder)
        try:
            about = os.stat(path)
        except OSError:
            return [homes[folder], name]
        return [homes[folder], name, about.st_size, about.st_mtime_ns]

    def lines(part: Sequence[Sequence[Path]]) -> list:
        about = functools.cache(facts)  # a scene's pairs share the file of its camera
        return [[about(os.fspath(path)) for path in pair] for pair in part]

    parts = [files[k : k + 256] for k in range(0, len(files), 256)]
    stamp = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    with ThreadPoolExecutor(threads) as pool:  # a network's disk answers many at a time
        for found in pool.map(lines, parts):
            stamp.update(json.dumps(found).encode())
    return stamp.hexdigest()


def open_pack(
    where: Path, name: str, files: Sequence[Sequence[Path]], size: tuple[int, int], read: Read, *,
    settings: dict, teacher: bool, threads: int, quiet: bool = False,
    say: Callable[[str], None] = print,
) -> Pack:  # fmt: skip
    """The pack `<where>/<name>.pack` of these pairs: opened if it is of just these, else built.

    files: for every pair all files it is made from; their names, sizes and times and `settings`
    (JSON values: whatever else read depends on) decide whether a pack fits. A pack that does not
    fit is replaced: a name should say what differs on purpose, such as split and size.
    read(i) -> rgb (H, W, 3) u8, depth (H, W) u16, K (4,), teacher's map (H, W) u16 or None. A pair
    for which it raises ValueError stands in `failed`; read is asked about it again whenever the
    pack is opened, for what made it fail (permissions, a disk that was away) may leave no trace in
    the stamp. teacher: the pack has room for teacher's maps.

    Any number of processes may ask for it at once: one builds, the others wait for that. quiet: no
    bar and no lines. Raises UserError: not one pair is readable, no room, not writable. A build
    that ends early, for whatever reason, leaves the folder as it was; a killed one's remains go
    with the next build of that name.
    """
    if not files:
        raise UserError(f"{where / name}: there are no pairs to pack")
    path = where / f"{name}.pack"
    settings = json.loads(json.dumps({**settings, "image_size": size, "teacher": teacher}))
    stamp = make_stamp(where, files, settings)
    tell = (lambda text: None) if quiet else say

    def waiting() -> None:
        tell(f"cache: another process is packing {path}; waiting for it")

    pack, _ = _look(path, stamp, settings, read, threads)
    took = ""
    if pack is None:
        try:
            with ExitStack() as held:
                with _writing():
                    where.mkdir(parents=True, exist_ok=True)
                    held.enter_context(locked(where, name, waiting))
                pack, why = _look(path, stamp, settings, read, threads)
                if pack is None:
                    if why:
                        tell(f"note: {path} {why}: packed anew")
                    start = time.perf_counter()
                    _build(path, stamp, len(files), size, read, settings, teacher, threads, quiet)
                    took = f" (built in {time.perf_counter() - start:.1f} s)"
                    pack = Pack(path, stamp)
        except _WriteError as error:
            raise UserError(f"{path}: cannot be written ({error}); {CURE}") from error
    lost = f", {len(pack.failed)} of {len(pack)} pairs unreadable" if pack.failed else ""
    tell(f"cache: {path}, {amount(pack.bytes)}{lost}{took}")
    return pack


def amount(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def _look(
    path: Path, stamp: str, settings: dict, read: Read, threads: int
) -> tuple[Pack | None, str]:
    """The pack at `path` if it is of this stamp; else None, and what is wrong with that file."""
    try:
        pack = Pack(path)
    except FileNotFoundError:
        return None, ""
    except UserError as error:
        return None, f"cannot be used ({error})"
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); {CURE}") from error
    if pack.stamp != stamp:
        keys = settings.keys() | pack.settings.keys()
        other = sorted(k for k in keys if settings.get(k) != pack.settings.get(k))
        return None, f"is of other settings ({', '.join(other)})" if other else "is of other files"

    def readable(i: int) -> bool:
        try:
            read(i)
        except ValueError:
            return False
        return True

    with ThreadPoolExecutor(threads) as pool:
        if any(list(pool.map(readable, pack.failed))):
            return None, "lacks pairs that can be read by now"
    return pack, ""


class _WriteError(Exception):
    """The folder or the disk refuses; kept apart from an OSError of `read`."""


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _WriteError(error.strerror or str(error)) from error


def _build(
    path: Path, stamp: str, n: int, size: tuple[int, int], read: Read, settings: dict,
    teacher: bool, threads: int, quiet: bool,
) -> None:  # fmt: skip
    """Packs n pairs into `path`, which is there whole in the end or as it was. The lock is held."""
    H, W = size
    at, tail = _layout(n, size, teacher)
    K, taught, failed = np.zeros((n, 4), "<f8"), np.zeros(n, np.bool_), {}
    mine = re.compile(re.escape(f".{path.stem}.") + "[0-9a-f]{32}[.]part")
    part = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.part")
    pool, turn = ThreadPoolExecutor(threads, "pack"), threading.Lock()

    def write(offset: int, content: np.ndarray | bytes) -> None:
        left = memoryview(content).cast("B")
        with turn:  # decoding is what takes the time
            try:
                f.seek(offset)
                while left:
                    left = left[f.write(left) :]
            except OSError as error:
                if error.errno in FULL:
                    raise _no_room(f, path, tail, error) from error
                raise _WriteError(error.strerror or str(error)) from error

    def pack(i: int) -> None:
        try:
            rgb, depth, K[i], map_ = read(i)
        except ValueError as error:
            failed[i] = str(error)
            return
        maps = {"rgb": (rgb, "u1", (H, W, 3)), "depth": (depth, "<u2", (H, W))}
        if teacher and map_ is not None:
            maps["teacher"] = map_, "<u2", (H, W)
            taught[i] = True
        for name, (array, dtype, shape) in maps.items():
            if array.dtype != dtype or array.shape != shape:
                raise TypeError(
                    f"{name} of pair {i}: expected {np.dtype(dtype)} {shape}, got {array.dtype} "
                    f"{array.shape}"
                )
            write(at[name] + i * array.nbytes, np.ascontiguousarray(array))

    f = None
    try:
        with _writing():
            for old in path.parent.iterdir():  # what killed builders left
                if mine.fullmatch(old.name):
                    old.unlink()
            f = open(part, "xb", buffering=0)
        _reserve(f, path, tail + 33 * n + 2 * PAGE)
        tty = sys.stderr.isatty()  # a log, which is read later, gets a line now and then
        with tqdm(
            total=n, desc=f"packing {n} pairs, {amount(tail)}", unit="pair", leave=False,
            disable=quiet, mininterval=0.1 if tty else 30, delay=0 if tty else 10,
        ) as bar:  # fmt: skip
            for job in as_completed([pool.submit(pack, i) for i in range(n)]):
                job.result()
                bar.update()
        if len(failed) == n:
            raise UserError(f"not one of {n} pairs can be read; the last: {failed[n - 1]}")
        about = {"settings": settings, "failed": {str(i): failed[i] for i in sorted(failed)}}
        ending = K.tobytes() + taught.tobytes() + json.dumps(about).encode()
        header = {
            "stamp": stamp, "shape": [n, H, W], "teacher": teacher, "tail": tail,
            "tail_bytes": len(ending), "tail_sha256": hashlib.sha256(ending).hexdigest(),
            "bytes": tail + _up(len(ending)) + PAGE,
        }  # fmt: skip
        version = MAGIC + b"%d\n" % FORMAT
        body = json.dumps(header).encode().ljust(PAGE - len(version) - 65)
        write(tail, ending.ljust(header["bytes"] - tail, b"\0"))
        write(0, version + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        with _writing():
            f.truncate(header["bytes"])
            os.fsync(f.fileno())  # else a power cut leaves a whole header over missing pictures
            f.close()
            os.replace(part, path)
    finally:
        pool.shutdown(cancel_futures=True)
        if f is not None:
            f.close()
        with suppress(OSError):
            part.unlink()


def _reserve(f: BinaryIO, path: Path, need: int) -> None:
    """Takes the room for a whole pack before the work begins. Raises UserError, _WriteError."""
    with _writing():
        room = shutil.disk_usage(path.parent)
        if room.free < need and path.exists():
            path.unlink()  # it is of no use any more (_look), and its room may be enough
            room = shutil.disk_usage(path.parent)
    if 0 < room.total and room.free < need:
        raise _no_room(f, path, need, None)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(f.fileno(), 0, need)
    except OSError as error:
        if error.errno in FULL:
            raise _no_room(f, path, need, error) from error
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise _WriteError(error.strerror) from error


def _no_room(f: BinaryIO, path: Path, need: int, error: OSError | None) -> UserError:
    """The message for a disk that cannot take `need` bytes; f: what is written of them so far."""
    why = f" ({error.strerror})" if error else ""
    free = "unknown"
    with suppress(OSError):
        taken = 512 * getattr(os.fstat(f.fileno()), "st_blocks", 0)  # freed again in a moment
        free = amount(shutil.disk_usage(path.parent).free + taken)
    return UserError(
        f"{path.parent}: no room for the decoded pairs{why}: {amount(need)} needed, {free} free; "
        f"make room, or: {CURE}"
    )
