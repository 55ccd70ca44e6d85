"""Files read and written whole or not at all, locks, and a line for the user."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import re
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def git_state() -> dict[str, str | bool | None]:
    """{"commit", "dirty"} of these files' repository; None where git or the repository is not."""

    def git(*command: str) -> str | None:
        here = Path(__file__).resolve().parent
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *command], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def cache_root() -> Path:
    """$LITEDEPTH_CACHE, else $XDG_CACHE_HOME/litedepth, else ~/.cache/litedepth."""
    if os.environ.get("LITEDEPTH_CACHE"):
        return Path(os.environ["LITEDEPTH_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "litedepth"


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


STALE = 30.0  # seconds: a lock file (where there is no flock) that nobody touched is nobody's


def refusal(folder: Path) -> str:
    """Why nothing can be written to a folder, which is made if missing; "" = it can be.

    Written to in earnest: permission bits say nothing to root, to read-only mounts, to quotas.
    """
    probe = folder / f".probe.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink()
        return error.strerror or str(error)
    return ""


@contextmanager
def locked(where: Path, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """One process at a time holds the name `name` in the folder `where`, while it builds that pack
    or trains into that folder. waiting() is called once if it is not us; what it raises is raised.

    flock where there is: the system frees a killed process's lock. Else a file that its holder
    touches time and again; one that nobody touched for STALE seconds is taken away. Either file
    says who holds it, and goes with its holder. Raises OSError where nothing can be written.
    """
    free, held = where / f".{name}.lock", where / f".{name}.held"
    fd = _flock(free, waiting) if fcntl else None
    if fd is None:
        _take(held, waiting)
    with suppress(OSError):  # another user's file
        (held if fd is None else free).write_text(f"process {os.getpid()} on {platform.node()}")
    done = threading.Event()

    def touch() -> None:
        while not done.wait(STALE / 6):
            with suppress(OSError):
                os.utime(held)

    try:
        if fd is None:
            threading.Thread(target=touch, daemon=True).start()
        yield
    finally:
        done.set()
        if fd is None:
            with suppress(OSError):
                held.unlink()
        else:
            with suppress(OSError):
                if os.path.samestat(os.fstat(fd), os.stat(free)):  # not in a folder that was moved
                    free.unlink()
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a forked child has fd as well
            os.close(fd)


def _flock(path: Path, waiting: Callable[[], None]) -> int | None:
    """A file descriptor that holds the lock; None where the file system knows no locks."""
    told = False
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # another user's
            fd = os.open(path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    waiting()
                told = True
                fcntl.flock(fd, fcntl.LOCK_EX)
            # Its holder may have taken the file away since it was opened: then others have a lock
            # on another file of that name, and this one is worth nothing.
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except FileNotFoundError:
            pass
        except BaseException as error:
            os.close(fd)
            if getattr(error, "errno", None) in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                return None
            raise
        os.close(fd)


def _take(path: Path, waiting: Callable[[], None]) -> None:
    """Returns when this process has made the lock file `path`."""
    seen, since, told = None, 0.0, False
    while True:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return
        try:
            touched = os.stat(path).st_mtime_ns
        except FileNotFoundError:
            continue
        if touched != seen:  # timed by our own clock: a server's may be another
            seen, since = touched, time.monotonic()
        elif time.monotonic() - since > STALE:
            path.unlink(missing_ok=True)
            continue
        if not told:
            waiting()
            told = True
        time.sleep(0.1)


def notice(text: str) -> None:
    """One line for the user, beside the progress bar."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def natural(name: object) -> tuple:
    """Sort key that reads numbers as numbers; 01 and 1 keep one order on every file system."""
    parts = re.split(r"([0-9]+)", str(name))
    return [int(p) if k % 2 else p for k, p in enumerate(parts)], str(name)


def plain(value: object) -> object:
    """The same without NaN and infinity, which JSON does not know: they become None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: dict) -> None:
    """Writes it whole or not at all; missing folders are made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(content), indent=1, allow_nan=False) + "\n"
    write_file(path, text.encode())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def usable_cores() -> int:
    """CPU cores this process may use (a container or taskset may have set fewer than there are)."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A regular file, opened for reading. Raises OSError, also for a folder, for a pipe (opening it
    would wait for somebody who writes, perhaps for ever) and for a device (it may have no end)."""

    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has none

    file = open(path, "rb", opener=at_once)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_regular(path: str | os.PathLike) -> bytes:
    """What a regular file of at most LARGEST bytes holds. Raises OSError."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise OSError(errno.EFBIG, "larger than a gigabyte", str(path))
        return file.read()


LARGEST = 1 << 30  # of a picture, a list or a file of settings


def write_file(path: Path, content: bytes) -> None:
    """The file is there whole, or as it was before. Raises OSError, which names it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:  # a full disk is told without a name
        why = error.strerror or error
        raise OSError(error.errno, f"cannot be written ({why})", str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def progress(items: Iterable, total: int, name: str) -> Iterable:
    """A tqdm bar on a terminal, where tqdm is installed; nothing otherwise."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, total=total or None, desc=name, unit="", disable=None, leave=False)


def say(text: str) -> None:
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # a progress bar may stand on this line
    print(clear + text, file=sys.stderr, flush=True)
