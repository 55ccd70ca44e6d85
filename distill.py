"""Sec. 3.4 Structure-Aware Distillation: Eq. 12, Eq. 13 and the rows of Table 6.

    python distill.py --teacher runs/teacher/best.pt              from the stage-1 student
    python distill.py --teacher swin.pth --student none           single stage, from scratch
    python distill.py --teacher swin.pth --method l2              Table 6's other rows
    python distill.py --teacher_depth DIR                         any other model's depth maps

A fixed teacher (Fig. 5) and the student see the same crops; the student's decoder features are
pulled towards the teacher's (Fig. 6). It is train.py's loop with another objective.
"""

from __future__ import annotations

from plumbing import openmp  # isort: skip  # noqa: F401  first: it must be there before PyTorch is

import argparse
import dataclasses
import functools
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import losses
import model
import train
from plumbing import flags, run
from plumbing.files import UserError, notice, quoted, run_main
from plumbing.flags import flag, nonnegative, positive

LEVELS = ("DeFeat2", "DeFeat3", "DeFeat4")
W_D = {"structure": 10.0, "l2": 0.01, "channel": 0.01}  # the methods of Table 6 and their weight

# ------------------------------------------------------------------------------------------ Eq. 12


def unit(feature: Tensor, M: Tensor) -> Tensor:
    """(N,C,h,w) -> (N,C,h*w) with an L2 norm of 1 over C at every position, 0 where M is not 1."""
    # Under the root, so that a feature of zeros has a gradient (of 1e4 at most); float32 features
    # of norm 1 do not notice.
    length = (feature.square().sum(1, keepdim=True) + 1e-8).sqrt()
    return (feature / length * M).flatten(2)


def mean_over_pictures(total: Tensor, n: Tensor) -> Tensor:
    """total (N,), a sum over n (N,) things a picture -> the mean of total / n over pictures that
    have any; 0, still attached, when none has."""
    return losses.masked_mean(total / n.clamp(min=1), (n > 0).to(total.dtype))


def L_affinity(F_s: Tensor, F_t: Tensor, M: Tensor, distance: str) -> Tensor:
    """Eq. 12, one level: mean over i, j of |a_ij^s - a_ij^t|, with a_ij = <f_i, f_j> the affinity
    of two positions, an inner product of L2-normalised features.

    F_s (N,C_s,h,w) and F_t (N,C_t,h,w): channels may differ, maps may not. M (N,1,h,w): 1 where the
    truth is valid; i and j run over those. distance: "l1", or "mse" for the squared difference.
    PAPER: prints L1, but its weight of 10 was tuned with the released code's squared difference.
    PAPER: takes all H x W positions; where no truth is, neither network has learned anything: as
    released, holes are left out. Divides by H x W although the sum is over pairs; here it is the
    mean over pairs, as released.
    """
    f_s, f_t = unit(F_s, M), unit(F_t, M)
    a_s, a_t = f_s.transpose(1, 2) @ f_s, f_t.transpose(1, 2) @ f_t  # (N, h*w, h*w), 0 in holes
    apart = (a_s - a_t).abs() if distance == "l1" else (a_s - a_t) ** 2
    return mean_over_pictures(apart.sum((1, 2)), M.sum((1, 2, 3)) ** 2)


def L_affinity_gram(F_s: Tensor, F_t: Tensor, M: Tensor) -> Tensor:
    """L_affinity(..., "mse") without its (h*w)^2 maps: with the features as the columns of S and T,

        sum_ij (s_i.s_j - t_i.t_j)^2 = |S S'|^2 - 2 |S T'|^2 + |T T'|^2,

    and S S', S T', T T' are only channels x channels. In double: the three nearly cancel.
    """
    S, T = unit(F_s.double(), M), unit(F_t.double(), M)

    def square(A: Tensor, B: Tensor) -> Tensor:
        return (A @ B.transpose(1, 2)).square().sum((1, 2))

    apart = square(S, S) - 2 * square(S, T) + square(T, T)
    return mean_over_pictures(apart, M.sum((1, 2, 3)).double() ** 2).float()


# ------------------------------------------------------------------------------ Table 6, other rows


def L_l2(F_s: Tensor, F_t: Tensor, M: Tensor) -> Tensor:
    """L2 distillation: mean of (F_s - F_t)^2 over the positions where M (N,1,h,w) is 1, and over
    channels. F_s and F_t have the same shape (N,C,h,w)."""
    apart = (((F_s - F_t) * M) ** 2).sum((1, 2, 3))  # masked first: a square may be inf
    return mean_over_pictures(apart, M.sum((1, 2, 3)) * F_s.shape[1])


def L_channel(F_s: Tensor, F_t: Tensor, M: Tensor, tau: float) -> Tensor:
    """Channel-wise distillation (Shu et al., ICCV 2021): every channel becomes a distribution over
    the positions where M is 1, by a softmax at temperature tau; tau^2 KL(teacher || student), mean
    over channels and pictures."""
    holes = ~(M > 0).flatten(2)
    log_s, log_t = (
        (f.flatten(2) / tau).masked_fill(holes, -1e30).log_softmax(-1) for f in (F_s, F_t)
    )  # -inf would give inf - inf; a smaller number would weigh something at a low tau
    kl = (log_t.exp() * (log_t - log_s)).sum((1, 2))
    n = (M.sum((1, 2, 3)) > 0).to(kl.dtype)
    return tau**2 * mean_over_pictures(kl * n, n * F_s.shape[1])


# ------------------------------------------------------------------------------------------ Eq. 13


class Distill(nn.Module):
    """Eq. 13: L = L_depth + w_d L_distill, and the depth losses once more on another model's maps.

    network: the student. teacher: frozen here, always in eval mode, without a graph; None when only
    depth maps teach. o.method: "structure" (Eq. 12 on three levels), "l2" or "channel" (DeFeat4
    only, as released). o.w_t: weight of the depth losses on a batch's teacher_depth, which is 0
    where the truth is valid. o.teacher_dtype: "bf16", else float32.
    """

    def __init__(
        self, network: model.DepthNetwork, loss: losses.DepthLoss,
        teacher: model.DepthNetwork | None, o: Distillation,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.loss, self.teacher, self.o = network, loss, teacher, o
        if teacher is not None:
            teacher.requires_grad_(False).eval()
        structure = functools.partial(L_affinity, distance="l1")
        if o.affinity == "mse":
            structure = L_affinity_gram
        channel = functools.partial(L_channel, tau=o.tau)
        self.compare = {"structure": structure, "l2": L_l2, "channel": channel}[o.method]
        self.levels = LEVELS if o.method == "structure" else LEVELS[-1:]

    def train(self, mode: bool = True) -> Distill:
        """PAPER: "fixed"; in the released code the loop's train() reaches the teacher and switches
        its drop path on. Here it stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch of data.Loader -> (loss, {name: value to log})."""
        d_hat, F_s = self.network.features(batch["image"], normalized=True)
        enlarge = functools.partial(self.network.enlarge, size=batch["depth"].shape[-2:])
        loss, terms = self.loss(d_hat, enlarge, batch)
        if "teacher_depth" in batch:
            maps = {
                k.removeprefix("teacher_"): v for k, v in batch.items() if k.startswith("teacher_")
            }
            extra, more = self.loss(d_hat, enlarge, batch | maps)
            loss = loss + self.o.w_t * extra
            terms |= {f"teacher_{k}": more[k] for k in losses.TERMS if k in more}
        if self.teacher is not None:
            distances = self.distances(F_s, self.teach(batch), batch["depth_low"])
            loss = loss + self.o.w_d * sum(distances.values())
            terms |= {k: v.detach() for k, v in distances.items()}
            terms["distill"] = sum(terms[k] for k in distances)
        return loss, {**terms, "dead": (d_hat.detach() == 0).all().float()}

    @torch.no_grad()
    def teach(self, batch: dict) -> list[Tensor]:
        """The teacher's features of a batch."""
        image = own_normalization(batch["image"], batch["extent"], self.network, self.teacher)
        bf16 = self.o.teacher_dtype == "bf16"
        with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
            return self.teacher.features(image, normalized=True)[1]

    def distances(self, F_s: list[Tensor], F_t: list[Tensor], d_low: Tensor) -> dict[str, Tensor]:
        """L_distill level by level; d_low (N,1,h,w) is the truth at DeFeat4's size, whose holes
        (0) are left out. A position of a coarser level is valid when any below it is."""
        M, out = (losses.holes_to_zero(d_low) > 0).float(), {}
        with torch.autocast(M.device.type, enabled=False):
            for name, f_s, f_t in zip(LEVELS, F_s, F_t):
                if name in self.levels:
                    M_l = F.adaptive_max_pool2d(M, f_s.shape[-2:])
                    out[name] = self.compare(f_s.float(), f_t.float(), M_l)
        return out


def own_normalization(
    image: Tensor, extent: Tensor, student: model.DepthNetwork, teacher: model.DepthNetwork
) -> Tensor:
    """A batch's image, normalised by Eq. 1 with the student's mean and std -> with the teacher's.
    Beyond each sample's extent (rows, columns) it stays 0: every network pads with its own mean."""
    rows = torch.arange(image.shape[2], device=image.device) < extent[:, :1]
    cols = torch.arange(image.shape[3], device=image.device) < extent[:, 1:]
    inside = rows[:, None, :, None] & cols[:, None, None, :]
    raw = image * student.std.view(1, 3, 1, 1) + student.mean.view(1, 3, 1, 1)
    return torch.where(inside, teacher.normalize(raw), 0.0)


# ------------------------------------------------------------------------------ teacher and student


def student_flags(path: str, root: str) -> dict:
    """Network flags of a stage-1 student's checkpoint; root: --data, for the message."""
    if not Path(path).is_file():
        raise UserError(
            f"--student {path}: no such file. Train stage 1 first (python train.py --data "
            f"{quoted([root])}), name another student, or start from scratch with --student none"
        )
    student = model.load(path)
    if not isinstance(student, model.LiteDepth):
        raise UserError(f"--student {path} is a teacher: give it as --teacher")
    own = {k: v for k, v in student.model_args.items() if k in run.NETWORK_FLAGS}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in own.items()}


# ------------------------------------------------------------------------------------------- main


@dataclasses.dataclass(frozen=True)
class Distillation:
    """distillation (Sec. 3.4)"""

    teacher: str | None = flag(
        None, "checkpoint of train.py --model swin_*; what it sees and how it pads is its own",
        metavar="FILE",
    )  # fmt: skip
    student: str = flag(
        "runs/student/best.pt", "the stage-1 student to go on from, a checkpoint of train.py; none "
        "= from scratch, the single-stage rows of Table 6", metavar="FILE|none",
    )  # fmt: skip
    method: str = flag(
        "structure", "structure = Eq. 12 on DeFeat2-4; l2 and channel (Shu et al., ICCV 2021) on "
        "DeFeat4 alone, as released", choices=list(W_D),
    )  # fmt: skip
    affinity: str = flag(
        "mse", "distance of Eq. 12: the paper prints l1, but its weight of 10 was tuned with mse "
        "(default mse; l1 takes longer)", choices=["mse", "l1"],
    )  # fmt: skip
    w_d: float | None = flag(
        None, "weight of L_distill in Eq. 13 (default: 10, the paper's, for structure; 0.01, the "
        "released code's, for l2 and channel)", nonnegative,
    )  # fmt: skip
    tau: float = flag("4", "temperature of --method channel (default 4, as released)", positive)
    fix_last: bool = flag(
        False, "copy the teacher's last 1x1 convolution into the student and freeze it, as the "
        "released l2 recipe does; needs a teacher of 24 logits, ours are (default off)",
    )  # fmt: skip
    teacher_dtype: str = flag(
        "auto", "what the teacher computes in (default auto: bf16 on a GPU that has it; a CPU with "
        "AMX gains by bf16, too)", choices=["auto", "fp32", "bf16"],
    )  # fmt: skip
    teacher_depth: str | None = flag(
        None, "metric depth maps that any other model predicted for the training pictures: "
        "[SCENE/]STEM.npy in metres, or a 16-bit [SCENE/]STEM[_depth].png at --depth_scale "
        "(predict.py writes them at 1000). They go through the same depth losses where the truth "
        "has holes; with or without --teacher", metavar="DIR",
    )  # fmt: skip
    w_t: float = flag(
        "1", "weight of the depth losses on --teacher_depth (default 1; those on the truth have 1)",
        nonnegative,
    )  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """train.py's flags, those of its student, and those of Sec. 3.4."""
    p = train.make_parser(teachers=False)
    p.prog = "distill.py"
    p.description = "Distil a trained teacher into the student: Sec. 3.4, Eq. 12-13, Table 6."
    p.set_defaults(out=Path("runs/distilled"))
    flags.add(p, Distillation)
    return p


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, model.DepthNetwork | None]:
    """-> the flags, of which the network's are the stage-1 student's own, and the teacher. Raises
    UserError (no student, flags of another network, sizes that differ) and CheckpointError."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.teacher and not args.teacher_depth:
        parser.error("nothing to learn from: give --teacher FILE or --teacher_depth DIR")
    if args.fix_last and not args.teacher:
        parser.error("--fix_last takes the last layer of --teacher: give that")
    teacher = model.load(args.teacher) if args.teacher else None
    if isinstance(teacher, model.LiteDepth):
        notice(f"{args.teacher} holds a student; it teaches all the same")
    own = {}
    if args.student != "none" and (Path(args.student).exists() or not args.resume):
        own = student_flags(args.student, args.data)
    parser.set_defaults(w_d=W_D[args.method], **own)
    args = parser.parse_args(argv)
    other = [f"--{k}" for k, v in own.items() if getattr(args, k) != v]
    if other:
        raise UserError(f"{args.student} is another network than {', '.join(other)} asks")
    if teacher is not None and teacher.size != args.size:
        theirs, ours = ("x".join(map(str, size)) for size in (teacher.size, args.size))
        raise UserError(
            f"{args.teacher} works at {theirs}, the student at {ours}: Eq. 12 compares maps of one "
            f"size; train the teacher with --size {ours}"
        )
    return args, teacher


def start_student(
    args: argparse.Namespace, resume: dict | None, teacher: model.DepthNetwork | None
) -> tuple[model.DepthNetwork, str]:
    """As train.start_network: the stage-1 student, a new one, or the one of the run."""
    if resume is not None or args.student == "none":
        network, weights = train.start_network(args, resume)
    else:
        network, weights = model.load(args.student), f"stage-1 student {args.student}"
    last = network.decoder.depth
    if args.fix_last:
        last.load_state_dict(teacher.decoder.depth.state_dict())
    last.requires_grad_(not args.fix_last)
    return network, weights


def with_teacher(
    network: model.DepthNetwork, loss: losses.DepthLoss, teacher: model.DepthNetwork | None,
    args: argparse.Namespace,
) -> Distill:  # fmt: skip
    """Eq. 13 for the run's student; decides what the teacher computes in."""
    if teacher is not None:
        teacher.to(network.mean.device)
        if args.teacher_dtype == "auto":
            has = network.mean.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
            args.teacher_dtype = "bf16" if has else "fp32"
        if run.rank() == 0:
            kind = teacher.model_args.get("model", "student")
            print(f"teacher: {kind} of {args.teacher} in {args.teacher_dtype}; {args.method} "
                  f"distillation, w_d {args.w_d:g}")  # fmt: skip
    return Distill(network, loss, teacher, flags.take(args, Distillation))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see make_parser."""
    args, teacher = parse(argv)
    return train.launch(
        args, start=functools.partial(start_student, teacher=teacher),
        wrap=functools.partial(with_teacher, teacher=teacher, args=args),
        teacher_depth=Path(args.teacher_depth) if args.teacher_depth else None,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_main(main, "distill.py"))
