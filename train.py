"""Sec. 4.2 Implementation Details: the training loop.

    python train.py                                   embedded scenes, runs/student
    python train.py --data ROOT --epochs 100          your own pairs
    python train.py --crops 240x384,384x512,480x640   Table 4's best row (the default)
    torchrun --nproc_per_node 2 train.py --data ROOT  the paper's two GPUs
    python train.py --model swin_l --data ROOT        the teacher of Sec. 3.4, for distill.py

`fit` knows only an objective: a module that maps a batch to (loss, terms). Eq. 11 is one
(`Supervised`), Eq. 13 is another; the loop is the same.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import data
import losses
import model
import resident
from evaluate import Validator
from plumbing.batches import Reader, open_reader
from plumbing.checkpoints import CheckpointError, read_checkpoint
from plumbing.files import UserError, notice, usable_cores, write_json
from plumbing.flags import Parser, add, take
from plumbing.pairs import DataError, Pair, open_split, open_teacher, resolve
from plumbing.pictures import write_picture
from plumbing.run import (
    LoaderFailed,
    RunningStatistics,
    Stopped,
    StopSignals,
    check_alive,
    check_writable,
    describe,
    device_name,
    from_a_peer,
    kept,
    not_finite_anywhere,
    not_finite_message,
    pick_device,
    read_log,
    reuse_memory,
    run_folder,
    supplied,
    world_size,
    write_log,
)

# The teacher's recipe, where it differs from the student's; see `parse`.
TEACHER = {
    "optimizer": "adamw", "lr": 2e-4, "min_lr_ratio": 0.01, "warmup": 1000, "warmup_ratio": 1e-3,
    "eps": 1e-8, "weight_decay": 0.01, "weights": (1.0, 0.2, 2.5, 0.6), "batch_size": 16,
    "epochs": 200, "out": Path("runs/teacher"),
}  # fmt: skip
CHECK_EVERY = 20  # steps between looks at values on the device, each of which waits for it


# ---------------------------------------------------------------------------- Eq. 11, the objective


class Supervised(nn.Module):
    """Eq. 11: a network under L_depth. Learnable loss weights live in `loss`, so wrapping the
    objective in DDP keeps them in step across processes."""

    def __init__(self, network: model.DepthNetwork, loss: losses.DepthLoss) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch of data.Loader -> (loss, {name: value to log})."""
        d_hat, _ = self.network.features(batch["image"], normalized=True)
        enlarge = functools.partial(self.network.enlarge, size=batch["depth"].shape[-2:])
        loss, terms = self.loss(d_hat, enlarge, batch)
        return loss, {**terms, "dead": (d_hat.detach() == 0).all().float()}


# ------------------------------------------------------------------------------ Sec. 4.2, schedule


def learning_rate(
    step: int, total: int, *, lr: float, min_lr_ratio: float, power: float,
    warmup: int, warmup_ratio: float,
) -> float:  # fmt: skip
    """Poly decay from lr to lr * min_lr_ratio, under a linear warm-up from warmup_ratio.

    PAPER: gives lr ("4e^-3", read 4e-3) and power 0.9 only; floor lr/4 and 1,500 warm-up steps are
    the released code's. The warm-up is at most 10 % of a short run.
    """
    low = lr * min_lr_ratio
    rate = (lr - low) * (1 - step / total) ** power + low
    warmup = min(warmup, total // 10)
    if step < warmup:
        rate *= 1 - (1 - step / warmup) * (1 - warmup_ratio)
    return rate


# ------------------------------------------------------------------------------ Sec. 4.2, the loop


def fit(
    objective: nn.Module, optimizer: torch.optim.Optimizer, loader: data.Loader, *,
    network: nn.Module, schedule: Callable[[int, int], float], epochs: int, clip: float,
    device: torch.device, amp: bool, out: Path | None, validate: Callable[[int], dict] | None,
    val_every: int, max_skipped: int, save_minutes: float, resume: dict | None = None,
    state: dict | None = None,
) -> list[dict]:  # fmt: skip
    """Trains and returns the log, one dictionary an epoch (also in out/log.jsonl).

    objective: maps a batch to (loss, terms); a DDP wrapper is fine. network: what is saved, a part
    of the objective. schedule: (step, total steps) -> learning rate. out: the run's folder, None on
    all ranks but the first. validate: (epoch) -> metrics with "si_rmse". resume: a dictionary from
    model.read_checkpoint. state: plain values to keep in every checkpoint.

    A step whose loss or gradient is not finite on any process changes nothing on all of them, and
    is counted; after max_skipped in a row the run ends. Saved are an epoch's end before and after
    it is validated, and in mid-epoch whatever is older than save_minutes (0 = never), a signal and
    a loader that failed: whenever the process is killed, resuming gives the bits of a run that was
    left alone.
    Raises UserError (prediction dead, loss not finite, loader failed) and Stopped (signals).
    PAPER: silent on which epoch is kept; the released code takes the last. Both are: last.pt, and
    best.pt, the lowest validation si-RMSE.
    """
    plain = objective.module if isinstance(objective, DistributedDataParallel) else objective
    total = epochs * len(loader)
    epoch, first, step, best, log = 0, 0, 0, math.inf, []
    sums: dict[str, float] = {}
    if resume is not None:
        names = ("betas", "eps", "weight_decay")
        given = [{k: group[k] for k in names} for group in optimizer.param_groups]
        try:
            optimizer.load_state_dict(resume["optimizer"])
            plain.load_state_dict(resume["objective"], strict=False)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"--resume: these flags make another loss or network than the run's ({error})"
            ) from error
        for group, now in zip(optimizer.param_groups, given):
            group.update(now)  # flags win over what was saved, as --lr does
        torch.set_rng_state(resume["rng"])
        if device.type == "cuda" and resume["cuda_rng"] is not None:
            torch.cuda.set_rng_state(resume["cuda_rng"])
        epoch, first, step = resume["epoch"], resume["batch"], resume["step"]
        if first > len(loader):
            raise UserError(
                f"--resume: stopped after step {first} of an epoch that now has {len(loader)}: "
                "give the run's own --data and --batch_size"
            )
        best, sums = resume["best"], resume["sums"]
        if first == len(loader) == sums.get("skipped_steps"):
            first, step, sums = 0, step - first, {}  # to go on from: it is done anew
        if out is not None and not (out / "best.pt").exists():  # resumed into another folder
            best = math.inf
        log = [row for row in read_log(out) if row["epoch"] <= epoch]
        write_log(out, log)

    def checkpoint(name: str, epoch: int, batch: int, sums: dict[str, float]) -> None:
        nonlocal saved
        saved = time.monotonic()
        if out is None:
            return
        learnable = {k: v for k, v in plain.state_dict().items() if k.startswith("loss.")}
        model.save(
            out / name, network, objective=learnable, optimizer=optimizer.state_dict(), epoch=epoch,
            batch=batch, step=step, best=best, sums=sums, rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state() if device.type == "cuda" else None, **(state or {}),
        )  # fmt: skip

    def save_here() -> None:
        checkpoint("last.pt", epoch, done, {k: float(v) for k, v in meter.items()})

    stop, saved = StopSignals(), time.monotonic()
    quiet = 0.1 if sys.stderr.isatty() else 30.0  # seconds between lines: logs are read later
    bar = tqdm(total=total, initial=step, unit="step", disable=out is None, mininterval=quiet)
    statistics = RunningStatistics(network)
    # In a row: predictions of 0 m, and steps that were skipped. On a GPU a look waits for it.
    dead, bad = torch.zeros((2,), device=device)
    look_every = CHECK_EVERY if device.type == "cuda" else 1
    taken = 1  # steps of the last epoch that were not skipped
    with bar, stop:
        while epoch < epochs:
            objective.train()
            meter = {k: torch.tensor(v, device=device) for k, v in sums.items()}
            meter.setdefault("skipped_steps", torch.zeros((), device=device))
            started, seen = time.perf_counter(), 0
            rate = schedule(max(step - 1, 0), total)
            done = first
            try:
                for batch in supplied(loader.epoch(epoch, first)):
                    if device.type == "cuda":  # --compile: what the last graph gave is done with
                        torch.compiler.cudagraph_mark_step_begin()
                    batch = {k: v.to(device) for k, v in batch.items()}
                    batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
                    rate = schedule(step, total)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    statistics.keep()
                    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                        loss, terms = objective(batch)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    norm = nn.utils.clip_grad_norm_(objective.parameters(), clip or math.inf)
                    skip = not_finite_anywhere(loss.detach(), norm)
                    optimizer.found_inf = skip  # as GradScaler does: Adam then changes nothing
                    optimizer.step()
                    statistics.restore(skip)

                    step, seen, done = step + 1, seen + len(batch["image"]), done + 1
                    dead = (dead + 1) * terms.pop("dead", torch.zeros_like(dead))
                    bad = (bad + 1) * skip
                    for k, v in {"loss": loss.detach(), **terms, "grad_norm": norm}.items():
                        meter[k] = meter.get(k, 0.0) + torch.where(skip > 0, 0.0, v)
                    meter["skipped_steps"] += skip
                    bar.update()
                    if step % look_every == 0 or done == len(loader):
                        in_a_row = int(bad)
                        check_alive(dead, step)
                        if in_a_row >= max_skipped:
                            if int(meter["skipped_steps"]) < done:
                                save_here()
                            why = not_finite_message(plain, batch, loader.pairs, step, in_a_row)
                            raise UserError(why + kept(out))
                    if step % CHECK_EVERY == 0 or done == len(loader):
                        bar.set_postfix(epoch=epoch + 1, loss=f"{float(loss.detach()):.3f}")
                    if (world_size() == 1 or step % CHECK_EVERY == 0) and stop.agreed(device):
                        save_here()
                        raise Stopped(128 + stop.signal)
                    if save_minutes and time.monotonic() - saved > 60 * save_minutes:
                        save_here()
            except LoaderFailed as failed:
                if step > 0:
                    save_here()
                raise UserError(f"{failed} (after step {step}).{kept(out)}") from failed
            seconds = time.perf_counter() - started
            sums = {k: float(v) for k, v in meter.items()}
            skipped = int(sums["skipped_steps"])
            taken = len(loader) - skipped
            if skipped:
                notice(
                    f"epoch {epoch + 1}: {skipped} of {len(loader)} steps skipped, because their "
                    "loss or gradient was not finite"
                )
            due = validate and taken and ((epoch + 1) % val_every == 0 or epoch + 1 == epochs)
            if due:  # which takes a while, and may fail on a file
                checkpoint("last.pt", epoch, len(loader), sums)
            row = {"epoch": epoch + 1, "step": step, "lr": rate}
            row |= {k: v / taken if taken else math.nan for k, v in sums.items()}
            row["images_per_s"] = seen * world_size() / seconds if seen else None
            row |= {"skipped_steps": skipped, "skipped_pairs": len(loader.failed)}
            epoch, first, sums = epoch + 1, 0, {}
            if due:
                started = time.perf_counter()
                row |= validate(epoch)
                row["val_s"] = time.perf_counter() - started
                if row["si_rmse"] < best:
                    best = row["si_rmse"]
                    checkpoint("best.pt", epoch, 0, {})
                bar.write(
                    f"epoch {epoch}: loss {row['loss']:.3f}, val si-RMSE {row['si_rmse']:.3f}, "
                    f"RMSE {row['rmse']:.2f} m",
                    file=sys.stderr,
                )
            # Killed between the two, the epoch's end is done once more, and its row written anew.
            log.append(row)
            write_log(out, log[-1:], append=True)
            if taken:
                checkpoint("last.pt", epoch, 0, {})
            if stop.agreed(device):
                raise Stopped(128 + stop.signal)
    if not taken:
        raise UserError(
            f"the loss or its gradient is not finite in any step of the last epoch.{kept(out)}"
        )
    return log


# ------------------------------------------------------------------------ validation and pictures


# ------------------------------------------------------------------------------------- run folder


# ------------------------------------------------------------------------------------------- main


def make_parser(teachers: bool = True) -> argparse.ArgumentParser:
    """All flags of training, grouped by section; distill.py extends them, without `teachers`."""
    p = Parser(
        prog="train.py",
        description="Train the student of Sec. 3.1 (or, with --model swin_*, the teacher of Sec. "
        "3.4) with the losses of Sec. 3.3.",
    )
    g = p.add_argument_group("run")
    g.add_argument(
        "--out", default=Path("runs/student"), type=Path, metavar="DIR",
        help="the run's folder: last.pt best.pt log.jsonl args.json preview.png "
        "(default runs/student, a teacher's runs/teacher, distill.py's runs/distilled)",
    )  # fmt: skip
    g.add_argument(
        "--resume", nargs="?", const="auto", metavar="FILE",
        help="go on from FILE, or bare: from the run folder's last.pt if there is one. Give the "
        "run's other flags again",
    )  # fmt: skip
    g.add_argument("--seed", type=data.whole, default=0, help="decides everything random (0)")
    g.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda"],
        help="auto = CUDA when there is one (default auto)",
    )  # fmt: skip
    g.add_argument(
        "--threads", type=data.whole, default=0,
        help="CPU threads of the network; 0 = all cores, shared by the processes of this machine "
        "(default 0)",
    )  # fmt: skip
    g.add_argument(
        "--data_device", default="cpu", choices=["cpu", "cuda"],
        help="cuda = the whole packed set lies on the GPU (1.5 MB a pair at 480x640) and is "
        "augmented there: no loader threads, nothing to copy (default cpu)",
    )  # fmt: skip
    g.add_argument(
        "--compile", action="store_true",
        help="torch.compile the step, each size of --crop_batch size by itself: with --device cuda "
        "as CUDA graphs, not measured yet; on a CPU it takes a minute and is slower",
    )  # fmt: skip
    g.add_argument(
        "--dry_run", action="store_true",
        help="print shapes and counts, draw one batch into OUT/dry_run.png, train nothing",
    )  # fmt: skip
    g.add_argument(
        "--val_split", default="val",
        help="split to validate on after an epoch (default val, or local_val; none = never, then "
        "there is no best.pt)",
    )  # fmt: skip
    g.add_argument(
        "--val_every", type=data.whole, default=1, help="epochs between validations (default 1)"
    )
    g.add_argument(
        "--save_minutes", type=data.nonnegative, default=5.0, metavar="M",
        help="save last.pt in mid-epoch when what is saved is older than this: all that a kill -9 "
        "or a power cut can cost (default 5; 0 = at the ends of epochs only)",
    )  # fmt: skip
    g = p.add_argument_group("optimisation (Sec. 4.2)")
    g.add_argument(
        "--epochs", type=data.whole, default=600,
        help="passes over the training split (default 600; the released config has 650; a teacher: "
        "200)",
    )  # fmt: skip
    g.add_argument(
        "--batch_size", type=data.whole, default=32,
        help="pairs per step over all processes (default 32; a teacher: 16)",
    )  # fmt: skip
    g.add_argument(
        "--optimizer", default="adam", choices=["adam", "adamw"],
        help="adamw decays weights apart from the gradient, and no norms or bias tables (default "
        "adam; a teacher: adamw)",
    )  # fmt: skip
    g.add_argument(
        "--lr", type=data.positive, default=4e-3,
        help="peak learning rate (default 4e-3; a teacher: 2e-4)",
    )  # fmt: skip
    g.add_argument(
        "--min_lr_ratio", type=data.probability, default=0.25,
        help="the schedule ends at this share of --lr (default 0.25, a teacher: 0.01; lower suits "
        "short runs)",
    )  # fmt: skip
    g.add_argument(
        "--power", type=data.nonnegative, default=0.9, help="of the poly schedule (default 0.9)"
    )
    g.add_argument(
        "--warmup", type=data.whole, default=1500,
        help="steps of linear warm-up, at most a tenth of the run (default 1500; a teacher: "
        "1000)",
    )  # fmt: skip
    g.add_argument(
        "--warmup_ratio", type=data.probability, default=1e-4,
        help="where the warm-up starts, as a share of --lr (default 1e-4; a teacher: 1e-3)",
    )  # fmt: skip
    g.add_argument(
        "--betas", default="0.9,0.999", type=parse_betas, metavar="B1,B2",
        help="Adam's (default 0.9,0.999)",
    )  # fmt: skip
    g.add_argument("--eps", type=data.positive, default=1e-3, help="Adam's (1e-3; a teacher: 1e-8)")
    g.add_argument(
        "--weight_decay", type=data.nonnegative, default=0.0,
        help="Adam's L2, or AdamW's decay (default 0; a teacher: 0.01)",
    )  # fmt: skip
    g.add_argument(
        "--clip", type=data.nonnegative, default=35.0,
        help="largest gradient norm, 0 = no limit (default 35, as released)",
    )  # fmt: skip
    g.add_argument(
        "--max_skipped", type=data.whole, default=10, metavar="K",
        help="a step whose loss or gradient is not finite is skipped and counted; after this many "
        "in a row (looked at every 20 steps on a GPU) the run ends and names the pairs (default "
        "10)",
    )  # fmt: skip
    g.add_argument(
        "--amp", action="store_true",
        help="bfloat16 autocast; losses stay float32 (pays on a GPU, slower on most CPUs)",
    )  # fmt: skip
    g.add_argument(
        "--sync_bn", action="store_true",
        help="BatchNorm over all processes' pictures (default off, per process as released)",
    )  # fmt: skip
    model.add_arguments(p, teachers)
    if not teachers:
        p.set_defaults(model="student")
    add(p, losses.Loss)
    g = data.add_data_arguments(p, split="train")
    g.add_argument(
        "--extra_data", nargs="+", default=[], metavar="ROOT|synthetic:N",
        help="more sets to train on, mixed with --data pair by pair; validation stays --data's "
        "(same --split and --depth_scale; default none)",
    )  # fmt: skip
    data.add_augment_arguments(p)
    return p


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags; those not given are the student's or, for a teacher, those of TEACHER.

    PAPER: gives none of a teacher's; they are the released code's. Its batch is 8 a GPU, on how
    many it does not say: 2, as for the student.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.model != "student":
        parser.set_defaults(**TEACHER)
        args = parser.parse_args(argv)
    return args


def parse_betas(text: str) -> tuple[float, float]:
    """ "0.9,0.999" -> two floats in [0, 1)."""
    low, _, high = text.partition(",")
    betas = data.probability(low), data.probability(high)
    if max(betas) >= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: both must be below 1")
    return betas


def build_loss(
    args: argparse.Namespace, device: torch.device | None = None
) -> losses.DepthLoss:
    """The DepthLoss of losses.Loss's flags."""
    on_cpu = device is None or device.type == "cpu"
    cpp = on_cpu and args.kernels == "cpp" and not args.compile
    return losses.depth_loss(take(args, losses.Loss), args.upsample == "nearest", cpp)


def augmentation(args: argparse.Namespace) -> data.Augment:
    """The ranges of data.add_augment_arguments' flags."""
    return data.Augment(
        args.crops, args.rotate_prob, args.max_angle, args.flip_prob, args.gamma, args.gamma_unit,
        args.brightness, args.channel_gain,
    )  # fmt: skip


def build_loader(
    args: argparse.Namespace, reader: Reader, network: model.DepthNetwork, rank: int = 0,
    world: int = 1,
) -> data.Loader:  # fmt: skip
    """The Loader of data.add_data_arguments' and add_augment_arguments' flags."""
    return data.Loader(
        reader, batch_size=args.batch_size, seed=args.seed, augment=augmentation(args),
        crop_batch=args.crop_batch, image_size=args.image_size, size=network.size,
        mean=network.mean.tolist(), std=network.std.tolist(), depth_scale=args.depth_scale,
        silog_eps=args.silog_eps, vnl_share=args.vnl_share, gt_down=args.gt_down,
        kernels=data.kernels(args.kernels), threads=args.workers or cores(), rank=rank,
        world=world, device=network.mean.device,
    )  # fmt: skip


def reader_of(
    args: argparse.Namespace, pairs: list[Pair], maps: list[Path | None] | None,
    quiet: bool = False,
) -> Reader:  # fmt: skip
    """The training pairs' reader; --dry_run packs nothing."""
    return open_reader(
        pairs, cache="none" if args.dry_run else args.cache, root=resolve(args.data),
        name=args.split, image_size=args.image_size, intrinsics=args.intrinsics,
        depth_scale=args.depth_scale, threads=args.workers or cores(), ram_cache=args.ram_cache,
        teacher=maps, quiet=quiet,
    )  # fmt: skip


def build_optimizer(
    objective: nn.Module, name: str, *, lr: float, betas: tuple[float, float], eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:  # fmt: skip
    """ "adam", or "adamw", which leaves norms, position biases and loss weights undecayed. Frozen
    parameters are left out."""
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    if name == "adam":
        groups = [{"params": list(trained.values())}]
    else:
        norms = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
        free = {
            f"{n}.{k}" for n, m in objective.named_modules() if isinstance(m, norms)
            for k, _ in m.named_parameters()
        }  # fmt: skip
        free |= {n for n in trained if n.endswith("bias_table") or n.startswith("loss.")}
        groups = [
            {"params": [p for n, p in trained.items() if n not in free]},
            {"params": [p for n, p in trained.items() if n in free], "weight_decay": 0.0},
        ]
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


def dry_run(
    args: argparse.Namespace, network: nn.Module, objective: nn.Module, loader: data.Loader
) -> None:  # fmt: skip
    """--dry_run: what would be trained, on what, and a picture of it."""
    batch = next(iter(loader.epoch(0)))
    print(f"network {args.model}: {sum(p.numel() for p in network.parameters()):,} parameters")
    print(f"pairs {len(loader.pairs)}, batches of {loader.batch_size}: {len(loader)} an epoch, "
          f"{args.epochs * len(loader)} in {args.epochs} epochs")  # fmt: skip
    for name, tensor in batch.items():
        print(f"  {name:<20}{str(tuple(tensor.shape)):<22}{tensor.dtype}")
    valid = float((batch["depth"] > 0).float().mean())
    low = float((batch["depth_low"] > 0).float().mean())
    masked = float(batch["M_x"].float().mean())
    print(f"valid: depth {valid:.1%}, depth_low {low:.1%}, M_x {masked:.1%} of the canvas")
    with torch.no_grad():
        on_device = {k: v.to(network.mean.device) for k, v in batch.items()}
        value, terms = objective(on_device)
    shown = {k: v for k, v in terms.items() if k != "dead" and not k.startswith("w_")}
    shown = ", ".join(f"{k} {float(v):.3f}" for k, v in shown.items())
    print(f"loss before training {float(value):.3f}: {shown}")
    args.out.mkdir(parents=True, exist_ok=True)
    picture = data.batch_picture(batch, network.mean.cpu(), network.std.cpu())
    write_picture(args.out / "dry_run.png", picture)
    print(f"wrote {args.out / 'dry_run.png'}")


def cores() -> int:
    """CPU cores of this process's share: those it may use, over the processes of this machine."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


NETWORK_FLAGS = ("model", "decoder", "size", "upsample", "mean", "std", "window")
# Flags that may differ between a run and its resumption without a word.
FREE_FLAGS = (
    "out", "resume", "dry_run", "device", "threads", "workers", "cache", "ram_cache", "kernels",
    "loss_form", "data_device", "compile", "val_split", "val_every", "pretrained", "save_minutes",
    "max_skipped",
)  # fmt: skip


def run_state(args: argparse.Namespace) -> dict:
    """What a checkpoint keeps besides weights and optimizer: picture size and flags."""
    flags = {k: v for k, v in vars(args).items() if k not in FREE_FLAGS}
    return {"image_size": list(args.image_size), "flags": json.loads(json.dumps(flags))}


def read_run(args: argparse.Namespace) -> dict | None:
    """The checkpoint of --resume, or None for a fresh start.

    Raises CheckpointError (weights only, damaged) and UserError (flags of another network); other
    flags that differ are named.
    """
    if not args.resume:
        return None
    path = args.out / "last.pt" if args.resume == "auto" else Path(args.resume)
    if args.resume == "auto" and not path.exists():
        notice(f"nothing to resume in {args.out}: starting afresh")
        return None
    written = path.stat().st_mtime_ns if path.exists() else 0
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        other = path.with_name("best.pt")
        if not path.exists() or path.name == other.name:
            raise
        whole = {}
        with suppress(CheckpointError):
            whole = read_checkpoint(other)
        if "optimizer" not in whole:
            raise
        raise UserError(
            f"{error}. {other} is whole, of epoch {whole['epoch']}: --resume {other}"
        ) from error
    lacking = {"optimizer", "objective", "epoch", "flags"} - checkpoint.keys()
    if lacking:
        raise CheckpointError(
            f"{path}: holds weights but no training state ({', '.join(sorted(lacking))} missing); "
            f"start a run from them with --pretrained {path}"
        )
    then, now = checkpoint["flags"], run_state(args)["flags"]
    changed = [
        f"--{k} {then[k]}" for k in now if k in then and now[k] not in (then[k], "auto", None)
    ]  # fmt: skip
    network = [c for c in changed if c[2:].split()[0] in NETWORK_FLAGS]
    if network:
        raise UserError(f"--resume: {path} is another network ({', '.join(network)}); give that")
    if changed:
        notice(f"resuming with other flags than the run had: {', '.join(changed)}")
    return {**checkpoint, "path": path, "written": written}


def open_data(
    args: argparse.Namespace, rank: int, world: int
) -> tuple[list[Pair], list[Pair]]:  # fmt: skip
    """The pairs to train and to validate on (none for --val_split none). Raises DataError."""
    if rank > 0:
        dist.barrier()  # the first process renders synthetic scenes, the others then find them
    roots = [resolve(place) for place in (args.data, *args.extra_data)]
    if rank == 0 and world > 1:
        dist.barrier()
    pairs = [pair for root in roots for pair in open_split(root, args.split, args.depth_scale)]
    if args.val_split == "none":
        return pairs, []
    return pairs, open_split(roots[0], args.val_split, args.depth_scale)


def start_network(
    args: argparse.Namespace, resume: dict | None
) -> tuple[model.DepthNetwork, str, bool]:  # fmt: skip
    """-> the network as it goes into the first step, where its weights are from, and whether
    ImageNet weights were wanted in vain."""
    if resume is not None:
        network = model.build(resume, resume["path"])
        return network, f"resumed from {resume['path']} after epoch {resume['epoch']}", False
    colours = {k: v for k in ("mean", "std") if (v := getattr(args, k)) is not None}
    more = {}
    if args.model != "student":
        more = {"drop_path": args.drop_path, "window": args.window}
    try:
        network = model.create(
            args.model, size=args.size, decoder=args.decoder, upsample=args.upsample,
            **colours, **more,
        )  # fmt: skip
    except ValueError as error:  # flags that do not go together
        raise UserError(str(error)) from error
    return network, *model.load_pretrained(network, args.pretrained)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see make_parser."""
    return launch(parse(argv))


def launch(args: argparse.Namespace, **how: object) -> int:
    """Prepares this process (and its group, under torchrun) and trains; `how` goes to `train`."""
    reuse_memory()
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = pick_device(args.device, int(os.environ.get("LOCAL_RANK", 0)))
    torch.set_num_threads(args.threads or cores())
    if min(args.epochs, args.batch_size, args.val_every) < 1:
        raise UserError("--epochs, --batch_size and --val_every must be 1 or more")
    if args.max_skipped < 1:
        raise UserError("--max_skipped must be 1 or more")
    if args.data_device == "cuda" and device.type != "cuda":
        raise UserError("--data_device cuda: the network is on the CPU (--device)")
    if args.sync_bn and (world == 1 or device.type != "cuda"):
        raise UserError("--sync_bn is for several processes on GPUs (torchrun)")
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        return train(args, device, rank, world, **how)
    except RuntimeError as error:
        if world == 1 or isinstance(error, UserError) or not from_a_peer(error):
            raise
        saved = args.out / "last.pt"
        kept = f"{saved} holds the run: go on with --resume" if saved.exists() else "nothing saved"
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"process {rank} of {world} ends, because another one of this run has ended (what that "
            f"one says comes first; killed, it says nothing) or cannot be reached; {kept}. "
            f"PyTorch says: {reason}"
        ) from error
    finally:
        if world > 1:
            dist.destroy_process_group()


def train(
    args: argparse.Namespace, device: torch.device, rank: int, world: int, *,
    start: Callable[..., tuple[model.DepthNetwork, str, bool]] = start_network,
    wrap: Callable[[model.DepthNetwork, losses.DepthLoss], nn.Module] = Supervised,
    teacher_depth: Path | None = None,
) -> int:  # fmt: skip
    """Everything between the flags and the exit code, in one process of `world`.

    start: (args, resume) -> what start_network does. wrap: (network, loss) -> the objective, to be
    given a batch on the network's device. teacher_depth: see data.open_teacher.
    """
    with ExitStack() as held:  # the run's folder, to the end
        return _train(args, device, rank, world, held, start, wrap, teacher_depth)


def _train(
    args: argparse.Namespace, device: torch.device, rank: int, world: int, held: ExitStack,
    start: Callable, wrap: Callable, teacher_depth: Path | None,
) -> int:  # fmt: skip
    if rank == 0:
        check_writable(args.out)
    resume = read_run(args)
    pairs, val = open_data(args, rank, world)
    torch.manual_seed(args.seed)
    try:
        loss = build_loss(args, device).to(device)
    except ValueError as error:  # flags that do not go together
        raise UserError(str(error)) from error
    network, weights, fell_back = start(args, resume)
    network.to(device, memory_format=torch.channels_last)
    objective = wrap(network, loss)
    if args.compile:  # in place; each size of --crop_batch size is compiled by itself
        graphs = "reduce-overhead" if device.type == "cuda" else None
        objective.compile(mode=graphs, dynamic=False)
    maps = None
    if teacher_depth is not None:
        maps = open_teacher(pairs, teacher_depth, args.image_size, args.depth_scale)
    data.check_sizes(augmentation(args), args.image_size, network.size)  # before it packs
    reader = reader_of(args, pairs, maps, quiet=rank > 0)
    loader = build_loader(args, reader, network, rank, world)
    if args.data_device == "cuda" and not args.dry_run:
        batch = resident.r2_batch
        if args.compile:
            batch = torch.compile(batch, dynamic=False)
        loader = resident.ResidentLoader(loader, resident.upload(reader, device), batch)
    validate = None
    if val and rank == 0 and not args.dry_run:
        validate = Validator(
            network, val, image_size=args.image_size, intrinsics=args.intrinsics,
            depth_scale=args.depth_scale, max_depth=args.max_depth, device=device, out=args.out,
            ram_cache=args.ram_cache,
        )  # fmt: skip

    if rank == 0:
        name = device_name(device)
        places = " + ".join((args.data, *args.extra_data))
        kernels = args.kernels
        if kernels == "cpp":
            kernels += f" ({data.litedepth_kernels.isa()})"
        print(f"training on {name}, {len(pairs)} pairs of {places}, {len(loader)} steps of "
              f"{loader.batch_size} an epoch; kernels: {kernels}")  # fmt: skip
        loud = "NO IMAGENET WEIGHTS, more epochs will be needed: " if fell_back else ""
        print(f"{loud}initial weights: {weights}")
        if args.dry_run:
            dry_run(args, network, objective, loader)
        else:
            same_folder = resume is not None and resume["path"].resolve().parent == (
                args.out.resolve()
            )
            held.enter_context(run_folder(args.out, keep=same_folder))
            if same_folder and resume["written"] != resume["path"].stat().st_mtime_ns:
                raise UserError(
                    f"--resume: {resume['path']} is newer than what was read of it: another run "
                    "was about to end there; start this one again"
                )
            facts = describe(
                args, device_name=name, kernels_in_use=kernels,
                torch_threads=torch.get_num_threads(), processes=world, initial_weights=weights,
                train_pairs=len(pairs), val_pairs=len(val), steps_per_epoch=len(loader),
            )  # fmt: skip
            write_json(args.out / "args.json", facts)
    if args.dry_run:
        loader.close()
        return 0

    if args.sync_bn:  # in place, below `objective`
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    optimizer = build_optimizer(
        objective, args.optimizer, lr=args.lr, betas=args.betas, eps=args.eps,
        weight_decay=args.weight_decay,
    )  # fmt: skip
    if world > 1:
        ids = [device.index] if device.type == "cuda" else None
        objective = DistributedDataParallel(objective, device_ids=ids, broadcast_buffers=False)

    def schedule(step: int, total: int) -> float:
        return learning_rate(
            step, total, lr=args.lr, min_lr_ratio=args.min_lr_ratio, power=args.power,
            warmup=args.warmup, warmup_ratio=args.warmup_ratio,
        )  # fmt: skip

    try:
        fit(
            objective, optimizer, loader, network=network, schedule=schedule, epochs=args.epochs,
            clip=args.clip, device=device, amp=args.amp, out=args.out if rank == 0 else None,
            validate=validate, val_every=args.val_every, max_skipped=args.max_skipped,
            save_minutes=args.save_minutes, resume=resume, state=run_state(args),
        )  # fmt: skip
    except Stopped as stopped:
        if rank == 0:
            again = " ".join(a for a in sys.argv if not a.startswith("--resume"))
            print(f"saved {args.out / 'last.pt'}; to go on: python {again} --resume",
                  file=sys.stderr)  # fmt: skip
        return stopped.code
    finally:
        loader.close()
    if rank == 0:
        if loader.failed:
            notice(f"{len(loader.failed)} pair(s) could not be read and were skipped")
        made = args.out / ("best.pt" if (args.out / "best.pt").exists() else "last.pt")
        then = f"python export.py --checkpoint {made}"
        if args.model != "student":
            then = f"python distill.py --data {args.data} --teacher {made}"
        print(f"done: {made}; next: python evaluate.py --data {args.data} --model {made}, {then}")
    return 0


def guarded(main: Callable[[], int], name: str) -> int:
    """main()'s exit code; what the user can mend becomes one line on stderr and 2."""
    try:
        return main()
    except (DataError, CheckpointError, UserError, OSError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(guarded(main, "train.py"))
