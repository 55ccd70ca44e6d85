"""Files written whole or not at all, locks, errors in one line, and a line for the user."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class UserError(ValueError):
    """Something the user can mend; the message names the file or flag and the cure."""


def run_main(main: Callable[[], int], prog: str) -> int:
    """main()'s exit code; what the user can mend becomes one line on stderr and 2. What
    stdout has no letters for, such as a name's bytes that are no text, is printed as \\udcfc."""
    with suppress(AttributeError):  # pythonw has no stdout, a notebook's is no file
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it
    try:
        return main()
    except (UserError, OSError) as error:
        say(f"{prog}: error: {error}")
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130


# ------------------------------------------------------------------------------ a line for the user


def say(text: str) -> None:
    """One line on stderr, beside a progress bar that may stand there."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(clear + re.sub(r"\s*[\r\n]\s*", " ", text), file=sys.stderr, flush=True)


def notice(text: str) -> None:
    """A line that is no error: what was done in the user's place, or should be known."""
    say(f"note: {text}")


def progress(items: Iterable, total: int, name: str) -> Iterable:
    """A tqdm bar on a terminal, where tqdm is installed (a device needs none); else nothing."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, total=total or None, desc=name, unit="", disable=None, leave=False)


def quoted(words: Iterable[object]) -> str:
    """A line to be pasted into a shell; a name's bytes that are no text as bash writes them."""
    line = shlex.join(map(str, words))
    return re.sub("[\0-\x1f\udc80-\udcff]", lambda m: f"'$'\\{ord(m[0]) & 255:03o}''", line)


def natural(name: object) -> tuple:
    """Sort key that reads numbers as numbers; 01 and 1 keep one order on every file system."""
    parts = re.split(r"([0-9]+)", str(name))
    return [int(p) if k % 2 else p for k, p in enumerate(parts)], str(name)


# ------------------------------------------------------------------------------------------ writing


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """A name beside `path` to write to. When the block ends well that file takes path's place;
    otherwise it goes, and path is as it was. durable: on the disk first, else a power cut may leave
    a whole name over a half-written file. Raises OSError, which names path."""
    part = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        yield part
        if durable:
            with open(part, "rb") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # a full disk is told without a name
        why = error.strerror or error
        raise OSError(error.errno, f"cannot be written ({why})", str(path)) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """The file is there whole, or as it was before. Raises OSError, which names it."""
    with replacing(path) as part:
        part.write_bytes(content)


def plain(value: object) -> object:
    """The same without NaN and infinity, which JSON does not know: they become None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: dict) -> None:
    """Writes it whole or not at all, paths as text; missing folders are made; "-" is stdout.
    Raises OSError."""
    text = json.dumps(plain(content), indent=1, allow_nan=False, default=str) + "\n"
    if str(path) == "-":
        print(text, end="")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode())


def why_not_writable(folder: Path) -> str:
    """Why nothing can be written to a folder, which is made if missing; "" = it can be.

    Written to in earnest: permission bits say nothing to root, to read-only mounts, to quotas.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextmanager
def locked(folder: Path, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """One process at a time holds the name `name` in a folder, while it packs or trains there.

    waiting() is called if it is not us yet; what it raises is raised. The system frees a killed
    process's lock; the empty lock file stays. Where the file system knows no locks this is told,
    and the work goes on. Raises OSError where nothing can be written.
    """
    with open(folder / f".{name}.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        except (AttributeError, OSError):  # AttributeError: Windows has no fcntl
            notice(f"{folder}: no locks on this file system; start one process at a time there")
            yield
            return
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough: a forked child has it as well


# ----------------------------------------------------------------------------- what this machine is


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def usable_cores() -> int:
    """CPU cores this process may use (a container or taskset may have set fewer than there are)."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cache_root() -> Path:
    """$LITEDEPTH_CACHE, else $XDG_CACHE_HOME/litedepth, else ~/.cache/litedepth."""
    if os.environ.get("LITEDEPTH_CACHE"):
        return Path(os.environ["LITEDEPTH_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "litedepth"


def git_state() -> dict[str, str | bool | None]:
    """{"commit", "dirty"} of these files' repository; None where git or the repository is not."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "status", "--porcelain=v2", "--branch"]
    try:
        done = subprocess.run(
            [*command, "--untracked-files=no"], capture_output=True, text=True, timeout=10,
            check=True, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    lines = done.stdout.splitlines()  # "# branch.oid COMMIT", more such, and then the changes
    return {"commit": lines[0].split()[-1], "dirty": not lines[-1].startswith("#")}
