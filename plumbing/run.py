"""What keeps a training run alive: folder, log, checkpoints, signals, other processes, and steps
that are not finite. train.py's loop is arithmetic; what else it needs are calls of `Progress`."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import math
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from plumbing.checkpoints import CheckpointError, read_checkpoint
from plumbing.files import (
    UserError,
    git_state,
    locked,
    notice,
    plain,
    quoted,
    replacing,
    usable_cores,
    why_not_writable,
)  # fmt: skip
from plumbing.flags import count, flag, nonnegative, whole
from plumbing.pairs import Pair

DEAD_BATCHES = 20  # all-zero predictions in a row after which a run is given up
CHECK_EVERY = 20  # steps between looks at values on a GPU or at other processes' signals
SHORT = 10.0  # seconds after which an epoch's end is saved again; few pairs make short ones
FILES = ("last.pt", "best.pt", "log.jsonl", "args.json", "preview.png")  # what a run writes


@dataclass(frozen=True)
class Run:
    """run"""

    out: Path = flag(
        Path("runs/student"), "the run's folder: last.pt best.pt log.jsonl args.json preview.png "
        "(default runs/student, a teacher's runs/teacher, distill.py's runs/distilled)", Path,
        metavar="DIR",
    )  # fmt: skip
    resume: str | None = flag(
        None, "go on from FILE, or bare: from the run folder's last.pt if there is one. Give the "
        "run's other flags again; with other pairs, --batch_size or more --epochs it goes on from "
        "the epochs done", nargs="?", const="auto", metavar="FILE",
    )  # fmt: skip
    seed: int = flag(0, "decides everything random", whole)
    device: str = flag("auto", "auto = CUDA when there is one", choices=["auto", "cpu", "cuda"])
    threads: int = flag(
        0, "CPU threads of the network; 0 = all cores, shared by the processes of this machine",
        whole,
    )  # fmt: skip
    data_device: str = flag(
        "cpu", "cuda = the whole packed set lies on the GPU (1.5 MB a pair at 480x640) and is "
        "augmented there: no loader threads, nothing to copy", choices=["cpu", "cuda"],
    )  # fmt: skip
    compile: bool = flag(
        False, "torch.compile the step, each size of --crop_batch size by itself: with --device "
        "cuda as CUDA graphs, not measured yet; on a CPU it takes a minute and is slower",
    )  # fmt: skip
    dry_run: bool = flag(
        False, "print shapes and counts, draw one batch into OUT/dry_run.png, train nothing"
    )
    val_split: str = flag(
        "val", "split to validate on after an epoch (default val, or local_val; none = never, then "
        "there is no best.pt)",
    )  # fmt: skip
    val_every: int = flag(1, "epochs between validations", count)
    save_minutes: float = flag(
        5.0, "save last.pt in mid-epoch when what is saved is older than this: all that a kill -9 "
        "or a power cut can cost (default 5; 0 = at the ends of epochs only)", nonnegative,
        metavar="M",
    )  # fmt: skip
    max_skipped: int = flag(
        10, "a step whose loss or gradient is not finite is skipped and counted; after this many "
        "in a row (looked at every 20 steps on a GPU) the run ends and names the pairs", count,
        metavar="K",
    )  # fmt: skip


class Stopped(Exception):
    """Ctrl-C or SIGTERM arrived and everything is saved; `code` is the exit code (130, 143)."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


# ---------------------------------------------------------------------------- where a run stands


class Progress:
    """Where a training run stands: epoch, batch within it, step, best si-RMSE, log.

    save: (file, **state) writes a checkpoint with the network in it. objective: maps a batch to
    (loss, terms); a DDP wrapper is fine, its parameters named "loss." are saved. steps: epochs, and
    steps in each. resume: a dictionary from read_resume; where it counts other steps an epoch, the
    run goes on from the epochs done. The first process writes into flags.out, all others nowhere.

    A step whose loss or gradient is not finite on any process changes nothing on all of them, and
    is counted; after max_skipped in a row the run ends. Saved are an epoch's end before and after
    it is validated, the first and last, any other SHORT after what was saved before it, and in
    mid-epoch whatever is older than save_minutes (0 = never), a signal and a loader that failed:
    whenever the process is killed, resuming gives the bits of a run that was left alone.
    PAPER: silent on which epoch is kept; the released code takes the last. Both are: last.pt, and
    best.pt, the lowest validation si-RMSE.
    """

    def __init__(
        self, flags: Run, save: Callable[..., None], objective: nn.Module,
        optimizer: torch.optim.Optimizer, steps: tuple[int, int], resume: dict | None,
    ) -> None:  # fmt: skip
        self.flags, self._save, self.objective, self.optimizer = flags, save, objective, optimizer
        self.plain = getattr(objective, "module", objective)
        self.out = flags.out if rank() == 0 else None
        self.per_epoch, self.total = steps[1], math.prod(steps)
        self.epoch = self.batch = self.step = 0
        self.best, self.log = math.inf, []
        self.device = next(objective.parameters()).device
        self._meter: dict[str, Tensor] = {}  # sums of the epoch under way
        if resume is not None:
            self._resume(resume)
        norms = [m for m in objective.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        norms = [m for m in norms if m.weight.requires_grad]  # not a frozen teacher's
        self._statistics = [x for norm in norms for x in (norm.running_mean, norm.running_var)]
        self._counts = [norm.num_batches_tracked for norm in norms]
        self._signal = 0
        # In a row: predictions of 0 m, and steps that were skipped. On a GPU a look waits for it.
        self._dead, self._bad = torch.zeros((2,), device=self.device)
        self._look_every = CHECK_EVERY if self.device.type == "cuda" else 1

    def _resume(self, saved: dict) -> None:
        groups = saved["optimizer"]["param_groups"]
        for group, now in zip(groups, self.optimizer.param_groups):  # flags win, as --lr does
            group |= {k: now[k] for k in ("betas", "eps", "weight_decay")}
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.plain.load_state_dict(saved["objective"], strict=False)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                "--resume: these flags make another loss, network or optimizer than the run's: "
                f"give its own ({error})"
            ) from error
        torch.set_rng_state(saved["rng"])
        if self.device.type == "cuda" and saved["cuda_rng"] is not None:
            torch.cuda.set_rng_state(saved["cuda_rng"])
        self.epoch, self.batch, self.step = saved["epoch"], saved["batch"], saved["step"]
        self.best = saved["best"]
        self._meter = {k: torch.tensor(v, device=self.device) for k, v in saved["sums"].items()}
        before = self.epoch * self.per_epoch
        if self.step != before + self.batch or self.batch > self.per_epoch:
            self.step, self.batch, self._meter = before, 0, {}
            if self.out is not None:
                notice(f"--resume: on after epoch {self.epoch}, now {self.per_epoch} steps in each")
        if self.out is not None and not (self.out / "best.pt").exists():  # into another folder
            self.best = math.inf
        self.log = [row for row in read_log(self.out) if row["epoch"] <= self.epoch]
        write_log(self.out, self.log)

    def __enter__(self) -> Progress:
        quiet = 0.1 if sys.stderr.isatty() else 30.0  # seconds between lines: logs are read later
        self._bar = tqdm(
            total=self.total, initial=self.step, unit="step", disable=self.out is None,
            mininterval=quiet,
        )  # fmt: skip
        signals = signal.SIGINT, signal.SIGTERM
        self._handlers = {number: signal.signal(number, self._note) for number in signals}
        self._saved = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._bar.close()

    def _note(self, number: int, _frame: object) -> None:
        """Notes SIGINT or SIGTERM, for the loop to act on between two steps; a second one is
        immediate."""
        if self._signal:
            raise KeyboardInterrupt
        self._signal = number
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    def _stop_if_told(self) -> None:
        """Raises Stopped after a signal to any process; all must ask together, or one of them stops
        while the others wait for its gradients."""
        if world_size() > 1:
            told = torch.tensor(self._signal, device=self.device)
            dist.all_reduce(told, dist.ReduceOp.MAX)
            self._signal = int(told)
        if self._signal:
            self.save()
            raise Stopped(128 + self._signal)

    def save(self, name: str = "last.pt") -> None:
        """The run up to here."""
        self._saved = time.monotonic()
        if self.out is None:
            return
        if name == "last.pt" and self.log:
            write_log(self.out, self.log)
        loss = {k: v for k, v in self.plain.state_dict().items() if k.startswith("loss.")}
        self._save(
            self.out / name, objective=loss, optimizer=self.optimizer.state_dict(),
            epoch=self.epoch, batch=self.batch, step=self.step, best=self.best,
            sums=self._sums(), rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
        )  # fmt: skip

    # --------------------------------------------------------------------- what the loop calls

    def batches(self, loader) -> Iterator[dict[str, Tensor]]:
        """What is left of the epoch under way. Raises UserError where the loader fails."""
        self._loader, self._started, self._seen = loader, time.perf_counter(), 0
        self._meter.setdefault("skipped_steps", torch.zeros((), device=self.device))
        try:
            for batch in loader.epoch(self.epoch, self.batch):
                if self.device.type == "cuda":  # --compile: what the last graph gave is done with
                    torch.compiler.cudagraph_mark_step_begin()
                # A forward pass changes BatchNorm's statistics, and one NaN stays in them for good.
                # In one tensor: 66 small copies a step would be felt.
                self._before = torch.cat(self._statistics) if self._statistics else None
                yield batch
        except Exception as error:
            what = str(error) or type(error).__name__
            if not isinstance(error, UserError | OSError | MemoryError):  # a fault of ours
                at = traceback.extract_tb(error.__traceback__)[-1]
                what = f"the loader failed: {error!r} ({Path(at.filename).name}:{at.lineno})"
            if self.step > 0:
                self.save()
            raise UserError(f"{what} (after step {self.step}). {kept(self.flags.out)}") from error

    def skip(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1.0 where the loss or its gradient's norm is not finite on any process, else 0.0, on the
        device: nothing waits for it. BatchNorm's statistics are put back where it is 1."""
        self._skip = 1.0 - (loss.isfinite() & norm.isfinite()).float()
        if world_size() > 1:
            dist.all_reduce(self._skip, dist.ReduceOp.MAX)
        if self._statistics:  # a Swin has none
            right = torch.where(self._skip > 0, self._before, torch.cat(self._statistics))
            sizes = [value.numel() for value in self._statistics]
            torch._foreach_copy_(self._statistics, list(right.split(sizes)))
            torch._foreach_sub_(self._counts, [self._skip.long()] * len(self._counts))
        return self._skip

    def step_done(self, batch: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
        """Counts the step, with the values to log. Raises UserError where the run cannot go on
        (prediction dead, too many steps skipped) and Stopped after a signal."""
        self.step, self.batch = self.step + 1, self.batch + 1
        self._seen += len(batch["image"])
        self._dead = (self._dead + 1) * terms.pop("dead", torch.zeros_like(self._dead))
        self._bad = (self._bad + 1) * self._skip
        for k, v in terms.items():
            self._meter[k] = self._meter.get(k, 0.0) + torch.where(self._skip > 0, 0.0, v)
        self._meter["skipped_steps"] += self._skip
        self._bar.update()
        if self.step % self._look_every == 0 or self.batch == len(self._loader):
            self._check_alive(batch)
            self._bar.set_postfix(
                epoch=self.epoch + 1, loss=f"{float(terms['loss']):.3f}", refresh=False
            )
        if world_size() == 1 or self.step % CHECK_EVERY == 0:
            self._stop_if_told()
        old = time.monotonic() - self._saved > 60 * self.flags.save_minutes
        if self.flags.save_minutes and old:
            self.save()

    def _check_alive(self, batch: dict[str, Tensor]) -> None:
        if int(self._dead) >= DEAD_BATCHES:
            raise UserError(
                f"step {self.step}: the last {int(self._dead)} batches predicted 0 m everywhere: "
                "the last ReLU is dead and no gradient can revive it. Try another --seed, a lower "
                "--lr or a longer --warmup, and check --depth_scale"
            )
        if int(self._bad) >= self.flags.max_skipped:
            self.save()
            which = not_finite_message(self.plain, batch, self._loader.pairs)
            raise UserError(
                "the loss or its gradient is not finite in steps "
                f"{self.step - int(self._bad) + 1} to {self.step}, which were skipped. In the last "
                f"one {which}. {kept(self.flags.out)}"
            )

    def epoch_done(self, validate: Callable[[int], dict] | None, last: bool) -> None:
        """Validates where that is due, logs and saves. last: of the run's epochs."""
        seconds = time.perf_counter() - self._started
        sums = self._sums()
        skipped = int(sums["skipped_steps"])
        taken = self.batch - skipped
        if skipped:
            notice(
                f"epoch {self.epoch + 1}: {skipped} of {self.batch} steps skipped, because their "
                "loss or gradient was not finite"
            )
        due = validate and taken and ((self.epoch + 1) % self.flags.val_every == 0 or last)
        if due:  # which takes a while, and may fail on a file
            self.save()
        rate = self.optimizer.param_groups[0]["lr"]
        row = {"epoch": self.epoch + 1, "step": self.step, "lr": rate}
        row |= {k: v / taken if taken else math.nan for k, v in sums.items()}
        row["images_per_s"] = self._seen * world_size() / seconds if self._seen else None
        row |= {"skipped_steps": skipped, "skipped_pairs": len(self._loader.reader.failed)}
        self.epoch, self.batch, self._meter = self.epoch + 1, 0, {}
        if due:
            started = time.perf_counter()
            row |= validate(self.epoch)
            row["val_s"] = time.perf_counter() - started
            if row["si_rmse"] < self.best:
                self.best = row["si_rmse"]
                self.save("best.pt")
            self._bar.write(
                f"epoch {self.epoch}: loss {row['loss']:.3f}, val si-RMSE {row['si_rmse']:.3f}, "
                f"RMSE {row['rmse']:.2f} m",
                file=sys.stderr,
            )
        # Killed between log and network, the epoch's end is done once more, its row written anew.
        self.log.append(row)
        if due or last or self.epoch == 1 or time.monotonic() - self._saved > SHORT:
            self.save()
        self._stop_if_told()
        if last and not taken:
            raise UserError(
                "the loss or its gradient is not finite in any step of the last epoch. "
                f"{kept(self.flags.out)}"
            )

    def _sums(self) -> dict[str, float]:
        return {k: float(v) for k, v in self._meter.items()}


def kept(out: Path) -> str:
    """What is left of a run that ends, for its message."""
    last = out / "last.pt"
    if last.exists():
        return f"{last} holds the run up to there: when it is mended, go on with --resume"
    return "Nothing was trained yet, and nothing is saved"


def not_finite_message(
    objective: nn.Module, batch: dict[str, Tensor], pairs: Sequence[Pair]
) -> str:
    """Which pairs of a batch are to blame: those whose own loss is not finite, each by itself in
    evaluation mode; where that singles out none, all of them; and the cure."""
    names = [str(pairs[i].rgb) for i in batch["index"].tolist()]
    objective.eval()
    bad = []
    with torch.no_grad():
        for i, name in enumerate(names):
            one = {k: v if k == "triplets" else v[i : i + 1] for k, v in batch.items()}
            if not math.isfinite(float(objective(one)[0])):
                bad.append(name)
    if len(bad) == len(names):
        which = "no pair alone has a finite loss: the weights or the flags are to blame, not a pair"
    elif bad:
        which = f"not finite by themselves are {', '.join(bad)}"
    else:
        which = f"none alone is to blame; its pairs are {', '.join(names)}"
    return (
        f"{which}. Lower --lr or --clip, and look at the data with --dry_run and "
        "python data.py --check"
    )


def read_log(out: Path | None) -> list[dict]:
    if out is None or not (out / "log.jsonl").is_file():
        return []
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def write_log(out: Path | None, rows: list[dict]) -> None:
    """All of it each time, a few hundred lines: whole, or as it was."""
    if out is not None:
        with replacing(out / "log.jsonl", durable=True) as part:
            part.write_text("".join(json.dumps(plain(row)) + "\n" for row in rows))


# --------------------------------------------------------------------------------- the run's folder


def check_writable(out: Path) -> None:
    """Raises UserError where a run's folder could not be made or written, before any long work."""
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    if reason := why_not_writable(there):
        raise UserError(f"--out {out}: cannot be written ({reason}); take another folder")


@contextmanager
def run_folder(out: Path, keep: bool) -> Iterator[None]:
    """Makes the run's folder and holds it as this process's own: a second run into it is refused.

    An earlier run in it is moved aside, unless it goes on (`keep`); what a killed one left half
    written is taken away. Raises UserError.
    """

    def taken() -> None:
        raise UserError(f"--out {out}: another run writes there; take another folder")

    with ExitStack() as held:
        out.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(out, "run", taken))
        if not keep and any((out / name).exists() for name in ("last.pt", "best.pt")):
            if not out.name:  # the folder that one stands in
                raise UserError(
                    f"--out {out}: holds an earlier run and cannot be moved aside; take another "
                    "folder (to go on with it: --resume)"
                )
            aside = next(p for n in range(1, 10**6) if not (p := Path(f"{out}.{n}")).exists())
            out.rename(aside)
            out.mkdir()
            held.enter_context(locked(out, "run", taken))
            notice(f"{out} holds an earlier run: moved to {aside} (to go on with it: --resume)")
        for name in FILES:
            for part in out.glob(f".*.part.{name}"):
                part.unlink()
        yield


def describe(args: dict, **facts: object) -> dict:
    """args.json: every flag, and what else decided the run."""
    git = git_state()
    versions = {"python": platform.python_version()}
    for package in ("torch", "numpy", "opencv-python", "litedepth-kernels"):
        with suppress(importlib.metadata.PackageNotFoundError):  # opencv's may have another name
            versions[package] = importlib.metadata.version(package)
    return {
        **args, "command": quoted(sys.argv), "git_commit": git["commit"],
        "git_dirty": git["dirty"], "versions": versions, **facts,
    }  # fmt: skip


NETWORK_FLAGS = ("model", "decoder", "size", "upsample", "mean", "std", "window")
# Flags that make a si-RMSE one of other pictures, or of the same read or cut otherwise.
VALIDATION_FLAGS = {
    "data", "val_split", "image_size", "depth_scale", "max_depth", "depth_orientation",
}  # fmt: skip
# Flags that may differ between a run and its resumption without a word.
FREE_FLAGS = (
    "out", "resume", "dry_run", "device", "threads", "workers", "cache", "ram_cache", "kernels",
    "loss_form", "data_device", "compile", "val_every", "pretrained", "save_minutes", "max_skipped",
    "skip_bad", "furniture",
)  # fmt: skip


def lasting_flags(args: dict) -> dict:
    """The flags that a checkpoint keeps, as JSON keeps them."""
    kept = {k: v for k, v in args.items() if k not in FREE_FLAGS}
    return json.loads(json.dumps(kept))


def read_resume(flags: Run, args: dict) -> dict | None:
    """The checkpoint of --resume with its "path" and "written" (when), or None for a fresh start.

    args: all flags. Raises CheckpointError (weights only, damaged) and UserError (flags of another
    network); other flags that differ are named.
    """
    if not flags.resume:
        return None
    path = flags.out / "last.pt" if flags.resume == "auto" else Path(flags.resume)
    if flags.resume == "auto" and not path.exists():
        notice(f"nothing to resume in {flags.out}: starting afresh")
        return None
    written = path.stat().st_mtime_ns if path.exists() else 0
    try:
        checkpoint = read_checkpoint(path, training=True)
    except CheckpointError as error:
        best = path.with_name("best.pt")
        with suppress(CheckpointError):
            epoch = read_checkpoint(best, training=True)["epoch"]
            raise UserError(
                f"{error}. {best} is whole, of epoch {epoch}: --resume {quoted([best])}"
            ) from error
        raise
    then, now = checkpoint["flags"], lasting_flags(args)
    changed = {k: f"--{k} {quoted([v])}" for k, v in then.items()
               if now.get(k) not in (v, "auto", None)}  # fmt: skip
    if (done := checkpoint["epoch"]) > (args["epochs"] or done):
        raise UserError(f"--resume: {path} has more epochs done: give --epochs {done:d} or more")
    network = [told for name, told in changed.items() if name in NETWORK_FLAGS]
    if network:
        raise UserError(f"--resume: {path} is another network ({', '.join(network)}); give that")
    if changed:
        notice(f"resuming with other flags than the run had: {', '.join(changed.values())}")
    if changed.keys() & VALIDATION_FLAGS:
        notice("--resume: validated otherwise than the run was: best.pt starts anew")
        checkpoint["best"] = math.inf
    return {**checkpoint, "path": path, "written": written}


# ----------------------------------------------------------------------- devices, other processes


def rank() -> int:
    """This process's number among those of torchrun; 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def first_process_first() -> Iterator[None]:
    """The others wait until the first process has come to the block's end."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()


def cores() -> int:
    """CPU cores of this process's share: those it may use, over the processes of this machine."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def pick_device(name: str) -> torch.device:
    """ "auto" -> CUDA when there is one. Raises UserError when "cuda" is asked for in vain."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """The GPU's own name, or the CPU architecture and how many threads PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


@contextmanager
def processes(flags: Run, device: torch.device) -> Iterator[None]:
    """The group of torchrun's processes, where there is one; one that loses another ends with a
    UserError of one line."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except RuntimeError as error:
        told = str(error).lower()  # gloo's errors are plain RuntimeErrors
        if not isinstance(error, dist.DistError) and "gloo" not in told and "nccl" not in told:
            raise
        raise UserError(
            f"process {rank()} of {world_size()} ends, because another one of this run has ended "
            "(what that one says comes first; killed, it says nothing) or cannot be reached; "
            f"{kept(flags.out)}. PyTorch says: {' '.join(str(error).split())[:300]}"
        ) from error
    finally:
        dist.destroy_process_group()


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
