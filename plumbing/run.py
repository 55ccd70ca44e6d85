"""What keeps a training run alive: its folder, log and signals, steps that are not finite."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import math
import os
import platform
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plumbing.files import UserError, git_state, locked, notice, plain, why_not_writable, write_file
from plumbing.pairs import DataError, Pair

DEAD_BATCHES = 20  # all-zero predictions in a row after which a run is given up


class Stopped(Exception):
    """Ctrl-C or SIGTERM arrived and everything is saved; `code` is the exit code (130, 143)."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def kept(out: Path | None) -> str:
    """What is left of a run that ends, for its message."""
    if out is None:
        return ""
    if not (out / "last.pt").exists():
        return " Nothing was trained yet, and nothing is saved."
    return f" {out / 'last.pt'} holds the run up to there: --resume goes on when it is mended."


class LoaderFailed(RuntimeError):
    """What a loader's thread raised while it made a batch."""


def supplied(batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The loader's batches; what its threads raise comes out as LoaderFailed."""
    try:
        yield from batches
    except (DataError, OSError, MemoryError) as error:
        raise LoaderFailed(str(error) or type(error).__name__) from error
    except Exception as error:  # a fault of ours: say where
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise LoaderFailed(
            f"the loader failed: {type(error).__name__}: {error} "
            f"({Path(at.filename).name}:{at.lineno}, {at.name})"
        ) from error


def not_finite_anywhere(loss: Tensor, norm: Tensor) -> Tensor:
    """1.0 where the loss or its gradient's norm is not finite on any process, else 0.0, on the
    device: nothing waits for it."""
    skip = 1.0 - (loss.isfinite() & norm.isfinite()).float()
    if world_size() > 1:
        dist.all_reduce(skip, dist.ReduceOp.MAX)
    return skip


class RunningStatistics:
    """BatchNorm's running means and variances, put back after a step that is skipped: its forward
    pass has changed them already, and one NaN in them would stay for good."""

    def __init__(self, network: nn.Module) -> None:
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._values = [b for m in norms for b in (m.running_mean, m.running_var)]
        self._sizes = [v.numel() for v in self._values]
        self._counts = [m.num_batches_tracked for m in norms]
        self._kept: Tensor | None = None

    def keep(self) -> None:
        if self._values:  # a Swin has none
            self._kept = torch.cat(self._values)

    def restore(self, skip: Tensor) -> None:
        """Where skip is 1; does nothing where it is 0."""
        if self._values:
            right = torch.where(skip > 0, self._kept, torch.cat(self._values))
            torch._foreach_copy_(self._values, list(right.split(self._sizes)))
            torch._foreach_sub_(self._counts, [skip.long()] * len(self._counts))


def not_finite_message(
    objective: nn.Module, batch: dict[str, Tensor], pairs: list[Pair], step: int, in_a_row: int
) -> str:
    """What ends a run: the steps, and the pairs of the last one whose own loss is not finite, each
    by itself in evaluation mode; where that singles out none, all of them."""
    names = [str(pairs[i].rgb) for i in batch["index"].tolist()]
    training = objective.training
    objective.eval()
    bad = []
    with torch.no_grad():
        for i, name in enumerate(names):
            one = {k: v if k == "triplets" else v[i : i + 1] for k, v in batch.items()}
            if not math.isfinite(float(objective(one)[0])):
                bad.append(name)
    objective.train(training)
    if len(bad) == len(names):
        which = "no pair alone has a finite loss: the weights or the flags are to blame, not a pair"
    else:
        which = "not finite by themselves are " if bad else "none alone is to blame; its pairs are "
        shown = bad or names
        which += ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if shown[8:] else "")
    steps = f"steps {step - in_a_row + 1} to {step}" if in_a_row > 1 else f"step {step}"
    return (
        f"the loss or its gradient is not finite in {steps}, which were skipped. In the last one "
        f"{which}. Lower --lr or --clip, and look at the data with --dry_run and "
        "python data.py --check."
    )


def check_alive(dead: Tensor, step: int) -> None:
    if float(dead) >= DEAD_BATCHES:
        raise UserError(
            f"step {step}: the last {int(dead)} batches predicted 0 m everywhere: the last ReLU is "
            "dead and no gradient can revive it. Try another --seed, a lower --lr or a longer "
            "--warmup, and check --depth_scale"
        )


class StopSignals:
    """Notes SIGINT and SIGTERM, for the loop to act on between two steps; a second Ctrl-C is
    immediate. Signals can only be caught in a process's main thread."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> None:
        self.old = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.old[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: whoever runs us handles signals
                pass

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def agreed(self, device: torch.device) -> int:
        """The signal that any process has got, 0 for none; all processes must ask together, or
        one of them stops while the others wait for its gradients."""
        if world_size() > 1:
            flag = torch.tensor(self.signal, device=device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            self.signal = int(flag)
        return self.signal

    def _note(self, number: int, _frame: object) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def read_log(out: Path | None) -> list[dict]:
    if out is None or not (out / "log.jsonl").is_file():
        return []
    rows = []
    for line in (out / "log.jsonl").read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # a last line cut by a crash
            break
    return rows


def write_log(out: Path | None, rows: list[dict], append: bool = False) -> None:
    if out is None:
        return
    path, text = out / "log.jsonl", "".join(json.dumps(plain(r)) + "\n" for r in rows)
    if not append:
        write_file(path, text.encode())
        return
    try:
        with open(path, "a") as f:
            f.write(text)
    except OSError as error:  # a full disk is told without a name
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error


FILES = ("last.pt", "best.pt", "log.jsonl", "args.json", "preview.png")  # what a run writes


def check_writable(out: Path) -> None:
    """Raises UserError where a run's folder could not be made or written, before any long work.

    Written to in earnest, as packed.place does; nothing is left behind."""
    there = out
    while not there.exists() and there != there.parent:
        there = there.parent
    reason = why_not_writable(there) if there.is_dir() else f"{there} is no folder"
    if reason:
        raise UserError(f"--out {out}: cannot be written ({reason}); take another folder")


@contextmanager
def run_folder(out: Path, keep: bool) -> Iterator[None]:
    """Makes the run's folder and holds it as this process's own: a second run into it is refused.

    An earlier run in it is moved aside, unless it goes on (`keep`); what a killed one left half
    written is taken away. Raises UserError.
    """

    def taken() -> None:
        who = ""
        for file in (out / ".run.lock", out / ".run.held"):
            with suppress(OSError):  # it goes with its holder
                who = f" ({told})" if (told := file.read_text()) else who
        raise UserError(f"--out {out}: another run{who} writes there; take another folder")

    with ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(out, "run", taken))
            if not keep and any((out / name).exists() for name in ("last.pt", "best.pt")):
                if not out.name:
                    raise UserError(
                        f"--out {out}: holds an earlier run and cannot be moved aside; take "
                        "another folder (to go on with it: --resume)"
                    )
                number = 1
                while (aside := out.with_name(f"{out.name}.{number}")).exists():
                    number += 1
                out.rename(aside)
                out.mkdir()
                held.enter_context(locked(out, "run", taken))
                for lock in aside.glob(".run.*"):
                    lock.unlink()
                notice(
                    f"{out} holds an earlier run: moved to {aside} (to go on with it: --resume)"
                )
            for name in FILES:
                for part in out.glob(f".{name}*.part"):
                    part.unlink()
            if not keep:  # of a run that never saved
                (out / "log.jsonl").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"--out {out}: cannot be written ({error.strerror}); take another folder"
            ) from error
        yield


def installed(package: str) -> bool:
    """Whether pip knows it (opencv-python may be here under another name)."""
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def describe(args: argparse.Namespace, **facts: object) -> dict:
    """args.json: every flag, and what else decided the run."""
    git = git_state()
    packages = ("torch", "numpy", "opencv-python", "litedepth-kernels")
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in packages if installed(name)}
    return {
        **{k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "command": " ".join(sys.argv), "git_commit": git["commit"], "git_dirty": git["dirty"],
        "versions": versions, **facts,
    }  # fmt: skip


def reuse_memory() -> None:
    """Lets freed memory be used again instead of going back to the system. Linux with glibc only.

    A full-resolution map of a batch is 39 MB; fetching that afresh for every operation costs more
    in page faults than the arithmetic does: a training step of 32 went from 35 to 92 images/s with
    this alone when it was added (2 cores). Results do not change.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch: large pages for large tensors
    if platform.libc_ver()[0] == "glibc":
        M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 2**28)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """ "auto" -> CUDA when there is one. Raises UserError when "cuda" is asked for in vain."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def from_a_peer(error: RuntimeError) -> bool:
    """Whether it says that another process of the group is gone. Gloo's are plain RuntimeErrors."""
    told = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in told for word in ("gloo", "nccl", "connection", "broken pipe", "peer")
    )


def device_name(device: torch.device) -> str:
    """The GPU's own name, or the CPU architecture and how many threads PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
