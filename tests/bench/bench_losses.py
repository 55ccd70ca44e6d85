"""What the four losses cost in plain and in cell form: python tests/bench/bench_losses.py [--quick]

Equality first, then times: the forms take turns within one process, and a cell of the table is the
median over the rounds. Prints a markdown table for each number of threads.
"""

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]
import reference  # noqa: E402

import losses  # noqa: E402
import model  # noqa: E402
from plumbing.run import reuse_memory  # noqa: E402

FORMS = ("plain", "cells, torch", "cells, C++")
ROWS = {"silog": "1,0,0,0", "grad": "0,1,0,0", "vnl": "0,0,1,0", "robust": "0,0,0,1",
        "all four": "1,0.25,2.5,0.6"}  # fmt: skip


def make_loss(form: str, weights: str) -> losses.DepthLoss:
    """The loss of train.py's default flags and these weights."""
    o = losses.Loss(weights=losses.parse_weights(weights))
    if form == "plain":
        return losses.DepthLoss(o)
    return losses.CellLoss(o, "torch" if form == "cells, torch" else "cpp")


def make_batch(
    count: int, full: tuple[int, int], low: tuple[int, int]
) -> tuple[torch.Tensor, dict]:  # fmt: skip
    """A prediction and its batch: surfaces of 1-9 m, noise, a tenth holes, as a loader gives it."""
    coarse = model.upsample(1 + 8 * torch.rand(count, 1, 6, 8), low, "corners")
    d = model.upsample(coarse, full, "bilinear") * (0.95 + 0.1 * torch.rand(count, 1, *full))
    d[torch.rand_like(d) < 0.1] = 0
    d_hat = coarse * (0.8 + 0.4 * torch.rand_like(coarse))
    depth_low = losses.to_cells(d, low).amax((3, 5))
    maps = reference.masked_gradient(depth_low[:, 0].numpy())
    grads = dict(zip(("grad_x", "grad_y", "M_x", "M_y"), (torch.tensor(x)[:, None] for x in maps)))
    grads |= {k: grads[k].float() for k in ("grad_x", "grad_y")}
    cell = dict(zip(("cell_n", "cell_mean", "cell_M2"), losses.cell_statistics(d, low, 1e-3)))
    K = torch.tensor([[518.9, 519.5, 325.6, 253.7]]).expand(count, 4)
    pixels = low[0] * low[1]
    triplets = losses.draw_triplets(0, 0, pixels, losses.triplet_count(pixels, 0.15))
    batch = {"depth": d, "depth_low": depth_low, "K": K, "triplets": triplets}
    return d_hat, batch | grads | cell


def exact(loss: losses.DepthLoss, d_hat, enlarge, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain loss and its gradient in float64."""
    x = d_hat.double().requires_grad_()
    wide = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
            for k, v in batch.items()}  # fmt: skip
    L = sum(loss.w[k] * v for k, v in loss.terms(x, enlarge, wide).items())
    L.backward()
    return L.detach(), x.grad


def step(loss, d_hat, enlarge, batch) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """-> the loss, its gradient, seconds forward and backward."""
    x = d_hat.clone().requires_grad_()
    started = time.perf_counter()
    L = loss(x, enlarge, batch)[0]
    between = time.perf_counter()
    L.backward()
    return L.detach(), x.grad, between - started, time.perf_counter() - between


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--full", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--low", type=int, nargs=2, default=(32, 40), metavar=("h", "w"))
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="a smoke run: batch 2, 2 rounds")
    args = parser.parse_args()
    if args.quick:
        args.batch_size, args.rounds = 2, 2
    reuse_memory()  # the plain form at its best
    torch.manual_seed(0)
    full = tuple(args.full)
    d_hat, batch = make_batch(args.batch_size, full, tuple(args.low))
    enlarge = functools.partial(model.upsample, size=full, mode="nearest")
    made = {(row, form): make_loss(form, w) for row, w in ROWS.items() for form in FORMS}

    for row in ROWS:
        L, slope = exact(made[row, "plain"], d_hat, enlarge, batch)
        for form in FORMS:
            L_, slope_ = step(made[row, form], d_hat, enlarge, batch)[:2]
            far = abs(L_ / L - 1).item(), ((slope_ - slope).abs().max() / slope.abs().max()).item()
            print(f"{row}, {form}: value {far[0]:.1e}, gradient {far[1]:.1e} from float64")
            if max(far) > 1e-6:
                sys.exit("not equal to 1e-6")

    for threads in args.threads:
        torch.set_num_threads(threads)
        taken = {key: ([], []) for key in made}
        for number in range(args.rounds + 1):
            for key, loss in made.items():
                times = step(loss, d_hat, enlarge, batch)[2:]
                if number:  # the first round warms up
                    for into, seconds in zip(taken[key], times):
                        into.append(1e3 * seconds)
        h, w = args.low
        print(f"\nBatch {args.batch_size} of {full[0]}x{full[1]} / {h}x{w}, {threads} thread(s), "
              "ms forward + backward\n")  # fmt: skip
        print(f"| loss | {' | '.join(FORMS)} | plain / C++ |\n|---|{'---|' * 4}")
        for row in ROWS:
            medians = [[statistics.median(x) for x in taken[row, form]] for form in FORMS]
            ratio = sum(medians[0]) / sum(medians[2])
            cells = " | ".join(f"{a:.1f} + {b:.1f} = {a + b:.1f}" for a, b in medians)
            print(f"| {row} | {cells} | {ratio:.1f}x |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
