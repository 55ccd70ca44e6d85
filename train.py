"""Sec. 4.2 Implementation Details: the training loop.

    python train.py                                   embedded scenes, runs/student
    python train.py --data ROOT --finetune            your own pairs
    python train.py --crops 240x384,384x512,480x640   Table 4's best row (the default)
    torchrun --nproc_per_node 2 train.py --data ROOT  the paper's two GPUs
    python train.py --model swin_l --data ROOT        the teacher of Sec. 3.4, for distill.py

`fit` knows only an objective: a module that maps a batch to (loss, terms). Eq. 11 is one
(`Supervised`), Eq. 13 is another; the loop is the same.
"""

from __future__ import annotations

from plumbing import openmp  # isort: skip  # noqa: F401  first: it must be there before PyTorch is

import argparse
import copy
import functools
import math
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import data
import evaluate
import losses
import model
from plumbing import run
from plumbing.batches import Reading, open_reader, upload
from plumbing.files import UserError, notice, quoted, run_main, say, write_json
from plumbing.flags import (
    Parser,
    add,
    below_1,
    count,
    flag,
    nonnegative,
    positive,
    probability,
    several,
    take,
    whole,
)  # fmt: skip
from plumbing.pairs import Pair, Source, open_split, open_teacher, resolve
from plumbing.pictures import batch_picture, write_picture
from plumbing.run import Run, Stopped


@dataclass(frozen=True)
class Schedule:
    """optimisation (Sec. 4.2)"""

    epochs: int = flag(
        600, "passes over the training split (default 600; the released config has 650; a teacher: "
        "200)", count,
    )  # fmt: skip
    batch_size: int = flag(
        32, "pairs per step over all processes (default 32; a teacher: 16)", count
    )
    optimizer: str = flag(
        "adam", "adamw decays weights apart from the gradient, and no norms or bias tables "
        "(default adam; a teacher: adamw)", choices=["adam", "adamw"],
    )  # fmt: skip
    lr: float = flag("4e-3", "peak learning rate (default 4e-3; a teacher: 2e-4)", positive)
    min_lr_ratio: float = flag(
        0.25, "the schedule ends at this share of --lr (default 0.25, a teacher: 0.01; lower suits "
        "short runs)", probability,
    )  # fmt: skip
    power: float = flag(0.9, "of the poly schedule", nonnegative)
    warmup: int = flag(
        1500, "steps of linear warm-up, at most a tenth of the run (default 1500; a teacher: 1000)",
        whole,
    )  # fmt: skip
    warmup_ratio: float = flag(
        "1e-4", "where the warm-up starts, as a share of --lr (default 1e-4; a teacher: 1e-3)",
        probability,
    )  # fmt: skip
    betas: tuple[float, float] = flag(
        "0.9,0.999", "Adam's", several(2, below_1, "B1,B2"), metavar="B1,B2",
    )  # fmt: skip
    eps: float = flag("1e-3", "Adam's (default 1e-3; a teacher: 1e-8)", positive)
    weight_decay: float = flag(
        0.0, "Adam's L2, or AdamW's decay (default 0; a teacher: 0.01)", nonnegative
    )
    clip: float = flag(
        35.0, "largest gradient norm, 0 = no limit (default 35, as released)", nonnegative
    )
    keep_start: float = flag(
        0.0, "best.pt, and what is validated, is the average of the network and of what it started "
        "from, of which it keeps this share: fine-tuned, it forgets less of other places", below_1,
        metavar="SHARE",
    )  # fmt: skip
    amp: bool = flag(
        False, "bfloat16 autocast; losses stay float32 (pays on a GPU, slower on most CPUs)"
    )
    sync_bn: bool = flag(
        False, "BatchNorm over all processes' pictures (default off, per process as released)"
    )


# Sec. 3.4's teacher, where its recipe differs from the student's; see `parse`.
TEACHER = {
    "optimizer": "adamw", "lr": 2e-4, "min_lr_ratio": 0.01, "warmup": 1000, "warmup_ratio": 1e-3,
    "eps": 1e-8, "weight_decay": 0.01, "weights": (1.0, 0.2, 2.5, 0.6), "batch_size": 16,
    "epochs": 200, "out": Path("runs/teacher"),
}  # fmt: skip


# --finetune: what it sets; by steps, so that few pairs are seen as long as many.
FINETUNE = {
    "epochs": None, "val_every": None, "crops": None, "min_lr_ratio": 0.01, "keep_start": 0.4
}  # fmt: skip
FINETUNE_STEPS, FINETUNE_LOOKS = 3000, 20  # steps in all, validations on the way
FINETUNE_CROPS = (0.9, 0.95, 1.0)  # of --image_size: what is zoomed in on is a nearer place


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


# ------------------------------------------------------------------------- Sec. 4.2, schedule, loop


def learning_rate(step: int, total: int, o: Schedule) -> float:
    """Poly decay from lr to lr * min_lr_ratio, under a linear warm-up from warmup_ratio.

    PAPER: gives lr ("4e^-3", read 4e-3) and power 0.9 only; floor lr/4 and 1,500 warm-up steps are
    the released code's. The warm-up is at most 10 % of a short run.
    """
    low = o.lr * o.min_lr_ratio
    rate = (o.lr - low) * (1 - step / total) ** o.power + low
    warmup = min(o.warmup, total // 10)
    if step < warmup:
        rate *= 1 - (1 - step / warmup) * (1 - o.warmup_ratio)
    return rate


def build_optimizer(objective: nn.Module, o: Schedule) -> torch.optim.Optimizer:
    """ "adam", or "adamw", which leaves norms, position biases and loss weights undecayed. Frozen
    parameters are left out."""
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    groups = [{"params": list(trained.values())}]
    if o.optimizer == "adamw":
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
    kind = torch.optim.Adam if o.optimizer == "adam" else torch.optim.AdamW
    return kind(
        groups, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True
    )  # fmt: skip


def fit(
    objective: nn.Module, optimizer: torch.optim.Optimizer, loader: data.Loader,
    progress: run.Progress, o: Schedule, validate: Callable[[int], dict] | None,
) -> list[dict]:  # fmt: skip
    """Sec. 4.2: Adam, warm-up and poly decay, clipped gradients. Returns the log, one dictionary an
    epoch (also in log.jsonl).

    objective: maps a batch to (loss, terms); a DDP wrapper is fine. validate: (epoch) -> metrics
    with "si_rmse". Raises UserError (prediction dead, loss not finite, loader failed) and Stopped.
    """
    with progress:
        while progress.epoch < o.epochs:
            objective.train()
            for batch in progress.batches(loader):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(progress.step, progress.total, o)
                image = batch["image"].contiguous(memory_format=torch.channels_last)
                with torch.autocast(image.device.type, torch.bfloat16, enabled=o.amp):
                    loss, terms = objective(batch | {"image": image})
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(objective.parameters(), o.clip or math.inf)
                # As GradScaler does: Adam changes nothing where the loss or norm is not finite.
                optimizer.found_inf = progress.skip(loss.detach(), norm)
                optimizer.step()
                progress.step_done(batch, {"loss": loss.detach(), **terms, "grad_norm": norm})
            progress.epoch_done(validate, last=progress.epoch + 1 == o.epochs)
    return progress.log


class Averaged:
    """--keep_start: validates, and makes best.pt, keep * what the run started from + (1 - keep) *
    the network, BatchNorm's statistics as well.

    PAPER: has none. Fine-tuning forgets what the start knew of other places; on the straight line
    between the two networks little of what was learned is lost before most of that is back.
    """

    def __init__(
        self, validator: evaluate.Validator, start: model.DepthNetwork, keep: float
    ) -> None:
        self.validator, self.trained, self.keep = validator, validator.network, keep
        self.network = validator.network = copy.deepcopy(self.trained)
        self.start = copy.deepcopy(start).to(self.trained.mean.device).state_dict()

    def __call__(self, epoch: int) -> dict[str, float]:
        now = self.trained.state_dict()
        mean = {k: torch.lerp(v, self.start[k], self.keep) if v.is_floating_point() else v
                for k, v in now.items()}  # fmt: skip
        self.network.load_state_dict(mean)
        return self.validator(epoch)


# --------------------------------------------------------------------------------------------- main


def make_parser(teachers: bool = True) -> argparse.ArgumentParser:
    """All flags of training, grouped by section; distill.py extends them, without `teachers`."""
    p = Parser(
        prog="train.py",
        description="Train the student of Sec. 3.1 (or, with --model swin_*, the teacher of Sec. "
        "3.4) with the losses of Sec. 3.3.",
    )
    add(p, Run)
    schedule = add(p, Schedule)
    add(p, model.Network)
    if teachers:
        schedule.add_argument(
            "--finetune", action="store_true",
            help=f"for your own pairs: from --pretrained, {FINETUNE_STEPS:,} steps however few "
            f"pairs there are, --min_lr_ratio {FINETUNE['min_lr_ratio']} --keep_start "
            f"{FINETUNE['keep_start']}, --crops of nine tenths of --image_size and more; each may "
            "be given otherwise",
        )  # fmt: skip
        add(p, model.Backbone)
    else:
        p.set_defaults(model="student")
    add(p, losses.Loss)
    add(p, Source).add_argument(
        "--extra_data", nargs="+", default=[], metavar="ROOT|synthetic:N|rooms:N",
        help="more sets to train on, mixed with --data pair by pair; validation stays --data's "
        "(same --split and --depth_scale; default none)",
    )  # fmt: skip
    add(p, Reading)
    add(p, data.Crop)
    return p


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags; those not given are the student's, TEACHER's for a teacher, FINETUNE's for
    --finetune.

    PAPER: gives none of a teacher's; they are the released code's. Its batch is 8 a GPU, on how
    many it does not say: 2, as for the student.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    others = (TEACHER if args.model != "student" else {}) | (FINETUNE if args.finetune else {})
    parser.set_defaults(**others)
    args = parser.parse_args(argv)
    if args.crops is None:
        H, W = args.image_size
        args.crops = tuple((round(share * H), round(share * W)) for share in FINETUNE_CROPS)
    return args


def open_data(args: argparse.Namespace) -> tuple[list[list[Pair]], list[Pair]]:
    """The pairs to train on, by set, and to validate on (none for --val_split none). Raises
    DataError."""
    source = take(args, Source)
    roots = [resolve(replace(source, data=place)) for place in (args.data, *args.extra_data)]
    # Of the training pairs packing looks at every file.
    pairs = [open_split(root, args.split, source, False) for root in roots]
    if args.val_split == "none":
        return pairs, []
    return pairs, open_split(roots[0], args.val_split, source, not args.skip_bad)


def start_network(
    args: argparse.Namespace, resume: dict | None
) -> tuple[model.DepthNetwork, str]:  # fmt: skip
    """-> the network as it goes into the first step, and where its weights are from."""
    if resume is not None:
        network = model.build(resume, resume["path"])
        return network, f"resumed from {resume['path']} after epoch {resume['epoch']}"
    names = ["size", "decoder", "upsample", "mean", "std"]
    names += ["drop_path", "window"] if args.model != "student" else []
    given = {k: v for k in names if (v := getattr(args, k)) is not None}
    try:
        network = model.create(args.model, **given)
    except ValueError as error:  # flags that do not go together
        raise UserError(str(error)) from error
    return network, model.load_pretrained(network, args.pretrained)


def dry_run(args: argparse.Namespace, objective: nn.Module, loader: data.Loader) -> None:
    """--dry_run: what would be trained, on what, and a picture of it."""
    network, batch = objective.network, next(iter(loader.epoch(0)))
    print(f"network {args.model}: {sum(p.numel() for p in network.parameters()):,} parameters")
    print(f"pairs {len(loader.pairs)}, batches of {loader.batch_size}: {len(loader)} an epoch, "
          f"{args.epochs * len(loader)} in {args.epochs} epochs")  # fmt: skip
    for name, tensor in batch.items():
        print(f"  {name:<20}{str(tuple(tensor.shape)):<22}{tensor.dtype}")
    names = {"depth": "depth", "depth_low": "depth_low", "M_x": "M_x"}
    shares = (f"{n} {float((batch[k] > 0).float().mean()):.1%}" for k, n in names.items())
    print(f"valid: {', '.join(shares)} of the canvas")
    with torch.no_grad():
        value, terms = objective(batch)
    shown = {k: v for k, v in terms.items() if k != "dead" and not k.startswith("w_")}
    shown = ", ".join(f"{k} {float(v):.3f}" for k, v in shown.items())
    print(f"loss before training {float(value):.3f}: {shown}")
    args.out.mkdir(parents=True, exist_ok=True)
    arrays = {name: tensor.cpu().numpy() for name, tensor in batch.items()}
    picture = batch_picture(arrays, loader.mean, loader.std)
    write_picture(args.out / "dry_run.png", picture)
    print(f"wrote {args.out / 'dry_run.png'}")


Start = Callable[[argparse.Namespace, dict | None], tuple[model.DepthNetwork, str]]
Wrap = Callable[[model.DepthNetwork, losses.DepthLoss], nn.Module]


def launch(
    args: argparse.Namespace, start: Start = start_network, wrap: Wrap = Supervised,
    teacher_depth: Path | None = None,
) -> int:  # fmt: skip
    """Everything between the flags and the exit code, in this process or in torchrun's group.

    start: (args, resume) -> what start_network does. wrap: (network, loss) -> the objective, to be
    given a batch on the network's device. teacher_depth: see pairs.open_teacher.
    """
    run.reuse_memory()
    flags, device = take(args, Run), run.pick_device(args.device)
    torch.set_num_threads(args.threads or run.cores())
    if args.data_device == "cuda" and device.type != "cuda":
        raise UserError("--data_device cuda: the network is on the CPU (--device)")
    if args.sync_bn and (int(os.environ.get("WORLD_SIZE", 1)) == 1 or device.type != "cuda"):
        raise UserError("--sync_bn is for several processes on GPUs (torchrun)")
    with run.processes(flags, device), ExitStack() as held:  # held: the run's folder, to the end
        objective, loader, validate, about, resume = prepare(
            args, device, start, wrap, teacher_depth
        )  # fmt: skip
        with ExitStack() as closing:
            closing.callback(loader.close)
            if run.rank() == 0:
                print(f"training on {about['device_name']}, {len(loader.pairs)} pairs of "
                      f"{' + '.join((args.data, *args.extra_data))}, {len(loader)} steps of "
                      f"{loader.batch_size} an epoch; kernels: {about['kernels_in_use']}\n"
                      f"initial weights: {about['initial_weights']}")  # fmt: skip
                if args.dry_run:
                    dry_run(args, objective, loader)
                else:
                    hold_folder(args, held, resume)
            return 0 if args.dry_run else train(args, objective, loader, validate, about, resume)


def prepare(
    args: argparse.Namespace, device: torch.device, start: Start, wrap: Wrap,
    teacher_depth: Path | None,
) -> tuple[nn.Module, data.Loader, evaluate.Validator | None, dict, dict | None]:  # fmt: skip
    """-> objective, loader, validation, what to say of them, and what is resumed."""
    first = run.rank() == 0
    if first:
        run.check_writable(args.out)
    resume = run.read_resume(take(args, Run), vars(args))
    with run.first_process_first():  # it renders synthetic scenes; the others then find them
        sets, val = open_data(args)
    pairs = [pair for each in sets for pair in each]
    if args.keep_start and not val:
        raise UserError("--keep_start makes best.pt, which needs --val_split; or --keep_start 0")
    if args.extra_share and not args.extra_data:
        raise UserError("--extra_share is that of --extra_data: give some")
    torch.manual_seed(args.seed)
    crop, source, reading = take(args, data.Crop), take(args, Source), take(args, Reading)
    reading = replace(reading, workers=args.workers or run.cores())
    loss_flags, on_cpu = take(args, losses.Loss), device.type == "cpu"
    cpp = on_cpu and args.kernels == "cpp" and not args.compile
    try:
        loss = losses.depth_loss(loss_flags, args.upsample == "nearest", cpp).to(device)
    except ValueError as error:  # flags that do not go together
        raise UserError(str(error)) from error
    network, weights = start(args, resume)
    begin, told = start(args, None) if resume and args.keep_start else (network, weights)
    check_start(args, told)
    network.to(device, memory_format=torch.channels_last)
    objective = wrap(network, loss)
    if args.compile:  # in place; each size of --crop_batch size is compiled by itself
        objective.compile(mode=None if on_cpu else "reduce-overhead", dynamic=False)
    data.check_sizes(crop, args.image_size, network.size)  # before it packs
    maps = teacher_depth and open_teacher(pairs, teacher_depth, args.image_size, args.depth_scale)
    if args.dry_run:  # which packs nothing
        reading = replace(reading, cache="none")
    reader = open_reader(pairs, source, reading, maps, quiet=not first)
    if args.extra_data:
        reader.own = len(set(sets[0]).intersection(reader.pairs))
    share = run.rank(), run.world_size()
    loader = data.Loader(reader, network, crop, loss_flags, args.batch_size, args.seed, share)
    count_epochs(args, len(loader), resume)
    if args.data_device == "cuda" and not args.dry_run:
        loader.resident = upload(reader.pack, device)
    validate = None
    if val and first and not args.dry_run:
        validate = evaluate.Validator(network, val, source, device, args.out, args.ram_cache)
        if args.keep_start:
            validate = Averaged(validate, begin, args.keep_start)
    kernels = args.kernels
    if kernels == "cpp":
        kernels += f" ({data.litedepth_kernels.isa()})"
    about = {
        "device_name": run.device_name(device), "kernels_in_use": kernels,
        "initial_weights": weights, "val_pairs": len(val),
    }  # fmt: skip
    return objective, loader, validate, about, resume


def check_start(args: argparse.Namespace, told: str) -> None:
    """Raises UserError where --keep_start would keep what was never trained. told: `start`'s."""
    if args.keep_start and not told.startswith(("whole network", "stage-1 student")):
        raise UserError(
            "--keep_start averages the network with what it starts from, which is not a trained "
            f"one here ({told}): give --pretrained FILE, or --keep_start 0"
        )


def count_epochs(args: argparse.Namespace, steps: int, resume: dict | None) -> None:
    """--finetune's epochs, of so many steps each. Raises UserError: more of them are done."""
    if args.epochs is None:
        args.epochs = math.ceil(FINETUNE_STEPS / steps)
        if resume and resume["epoch"] > args.epochs:  # more pairs, fewer epochs
            raise UserError(f"--resume: more than {args.epochs} epochs are done: give --epochs")
    args.val_every = args.val_every or math.ceil(args.epochs / FINETUNE_LOOKS)


def hold_folder(args: argparse.Namespace, held: ExitStack, resume: dict | None) -> None:
    """Takes the run's folder until `held` is closed."""
    same = resume is not None and resume["path"].resolve().parent == args.out.resolve()
    held.enter_context(run.run_folder(args.out, keep=same))
    if same and resume["written"] != resume["path"].stat().st_mtime_ns:
        raise UserError(
            f"--resume: {resume['path']} is newer than what was read of it: another run was about "
            "to end there; start this one again"
        )


def train(
    args: argparse.Namespace, objective: nn.Module, loader: data.Loader,
    validate: evaluate.Validator | None, about: dict, resume: dict | None,
) -> int:  # fmt: skip
    """args.json, `fit`, and what is said at its end; returns the exit code."""
    schedule, network = take(args, Schedule), objective.network
    if args.sync_bn:  # in place, below `objective`
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    optimizer = build_optimizer(objective, schedule)
    if run.world_size() > 1:
        ids = [loader.device.index] if loader.device.type == "cuda" else None
        objective = DistributedDataParallel(objective, device_ids=ids, broadcast_buffers=False)
    state = {"image_size": list(args.image_size), "flags": run.lasting_flags(vars(args))}

    def save(path: Path, **more: object) -> None:
        best = path.name == "best.pt"
        if best and args.keep_start:  # an average has no optimizer to go on with
            more = {"epoch": more["epoch"], "step": more["step"]}
        model.save(path, validate.network if best else network, **state, **more)

    steps = schedule.epochs, len(loader)
    progress = run.Progress(take(args, Run), save, objective, optimizer, steps, resume)
    if run.rank() == 0:  # once what is resumed is known to fit
        facts = run.describe(
            vars(args), **about, torch_threads=torch.get_num_threads(),
            processes=run.world_size(), train_pairs=len(loader.pairs), steps_per_epoch=len(loader),
        )  # fmt: skip
        write_json(args.out / "args.json", facts)
    try:
        fit(objective, optimizer, loader, progress, schedule, validate)
    except Stopped as stopped:
        if run.rank() == 0:
            bare = ["--resume"] * (args.resume != "auto")  # the last one counts
            again = quoted(["python", *sys.argv, *bare])
            say(f"saved {args.out / 'last.pt'}; to go on: {again}")
        return stopped.code
    if run.rank() == 0:
        if loader.reader.failed:
            notice(f"{len(loader.reader.failed)} pair(s) could not be read and were skipped")
        made = args.out / ("best.pt" if (args.out / "best.pt").exists() else "last.pt")
        then = ["export.py", "--checkpoint", made]
        if args.model != "student":
            then = ["distill.py", "--data", args.data, "--teacher", made]
        score = quoted(["python", "evaluate.py", "--data", args.data, "--model", made])
        print(f"done: {made}; next: {score}, {quoted(['python', *then])}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see make_parser."""
    return launch(parse(argv))


if __name__ == "__main__":
    sys.exit(run_main(main, "train.py"))
