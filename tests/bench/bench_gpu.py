"""Sec. 3.2 and 4.2 on a GPU, timed: python tests/bench_gpu.py (--device cpu: a smoke run).

Packs a set, its list of pairs repeated until large batches have enough, and uploads it; checks the
device's batches against those of the CPU's Loader; then prints markdown tables: the augmentation
alone, a training step alone, and epochs of train.fit (loader, step, log), with what the paper's
training takes at that rate. Steps on a GPU are bfloat16 (--amp); at the end ten of them run with
every wait for the device forbidden.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import resident

import data
import model
import train
from plumbing.batches import Reader, open_reader  # noqa: E402
from plumbing.pairs import open_split, resolve  # noqa: E402
from plumbing.run import device_name  # noqa: E402

PAPER_PAIRS, PAPER_EPOCHS, PAPER_SECONDS = 6869, 600, 4 * 3600
BATCHES = 8  # of the largest size in an epoch; whose first ones find nothing planned ahead
LR = 1e-6  # nothing is to be learned, lest a prediction dies meanwhile
FORMS = {False: "eager", True: "compiled"}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(run: Callable[[], object], device: torch.device, times: int) -> float:
    """Median of five averages over `times` calls, none of which is waited for, after three more."""
    for _ in range(3):
        run()
    taken = []
    for _ in range(5 if device.type == "cuda" else 1):
        wait(device)
        started = time.perf_counter()
        for _ in range(times):
            run()
        wait(device)
        taken.append((time.perf_counter() - started) / times)
    return 1e3 * statistics.median(taken)


def make_network() -> model.DepthNetwork:
    torch.manual_seed(0)
    return model.create("student", size=(128, 160), decoder="mix", upsample="nearest")


def make_planner(reader: Reader, batch_size: int, *more: str) -> data.Loader:
    """train.py's Loader of such batches, for the CPU."""
    args = train.parse(["--batch_size", str(batch_size), *more])
    return train.build_loader(args, reader, make_network())


def make_step(device: torch.device, graphs: bool) -> tuple:
    """-> objective, optimizer, and train.fit's step as a function of a batch; as train.train."""
    args, on_gpu = train.parse(["--compile"] if graphs else []), device.type == "cuda"
    network = make_network().to(device, memory_format=torch.channels_last)
    objective = train.Supervised(network, train.build_loss(args, device).to(device)).train()
    if graphs:
        objective.compile(mode="reduce-overhead" if on_gpu else None, dynamic=False)
    optimizer = train.build_optimizer(
        objective, "adam", lr=LR, betas=args.betas, eps=args.eps, weight_decay=0.0
    )

    def step(batch: dict[str, Tensor]) -> None:
        if on_gpu:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            loss, _ = objective(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 35.0)
        optimizer.step()

    return objective, optimizer, step


def check(whole: resident.Resident, planner: data.Loader, batch: Callable) -> float:
    """The largest share of any map's values that are not the CPU Loader's; exits above 1e-4."""
    worst = 0.0
    loader = resident.ResidentLoader(planner, whole, batch)
    for theirs, mine in islice(zip(planner.epoch(0), loader.epoch(0)), 8):
        if mine.keys() != theirs.keys():
            sys.exit(f"batches with other names: {mine.keys() ^ theirs.keys()}")
        for name, value in theirs.items():
            near = torch.isclose(mine[name].cpu(), value, rtol=1e-5, atol=1e-5)
            off = 1 - float(near.double().mean())
            if off > 1e-4:
                sys.exit(f"{name}: {off:.2%} of the device's values are not the CPU's")
            worst = max(worst, off)
    return worst


def time_augmentation(whole, reader, n: int, batch: Callable, times: int) -> tuple[float, float]:
    """Milliseconds of a batch on the device, and of its plan on the host."""
    planner, device = make_planner(reader, n), whole.device
    plan = planner.plan(0, 0)
    arrays = (plan.index, plan.affine, plan.crop, plan.lut, planner.mean * 0, planner.logs)
    given = (whole.rgb, whole.depth, None, *(torch.from_numpy(a).to(device) for a in arrays))
    how = {"canvas": plan.canvas, "size": plan.size, "mode": planner.mode, "depth_scale": 1000.0}
    ms = milliseconds(lambda: batch(*given, **how), device, times)
    return ms, milliseconds(lambda: planner.plan(0, 0), device, 2)


def time_training(
    whole, reader, n: int, graphs: bool, batch: Callable, times: int
) -> tuple[float, float]:
    """Milliseconds of a step on one batch again and again; samples a second of train.fit."""
    device, on_gpu = whole.device, whole.device.type == "cuda"
    loader = resident.ResidentLoader(make_planner(reader, n), whole, batch)
    objective, optimizer, step = make_step(device, graphs)
    held = next(loader.epoch(0))
    ms = milliseconds(lambda: step(held), device, times)
    log = train.fit(
        objective, optimizer, loader, network=objective.network, schedule=lambda *_: LR,
        epochs=4 if on_gpu else 1, clip=35.0, device=device, amp=on_gpu, out=None, validate=None,
        val_every=1, max_skipped=10, save_minutes=0,
    )  # fmt: skip
    return ms, statistics.median(epoch["images_per_s"] for epoch in log[-3:])


def forbid_waiting(whole, reader, n: int) -> None:
    """Ten steps under PyTorch's own check, which raises where the host would wait for the GPU."""
    _, _, step = make_step(whole.device, False)
    loader = resident.ResidentLoader(make_planner(reader, n), whole)
    batches = chain(loader.epoch(0), loader.epoch(1))
    step(next(batches))  # the first makes the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    for batch in islice(batches, 10):
        step(batch)
    torch.cuda.set_sync_debug_mode("default")
    print("\n10 steps, loader and all: not one waited for the device")


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def tables(reader, device: torch.device, sizes: list[int], forms: list[bool]) -> None:
    on_gpu = device.type == "cuda"
    started, times = time.perf_counter(), 50 if on_gpu else 1
    whole = resident.upload(reader, device)
    wait(device)
    seconds, size = time.perf_counter() - started, whole.rgb.nbytes + whole.depth.nbytes
    print(f"upload: {size / 1e9:.2f} GB in {seconds:.2f} s, {size / seconds / 1e9:.1f} GB/s")
    batch = dict(zip(FORMS, (resident.r2_batch, torch.compile(resident.r2_batch, dynamic=False))))
    for form in forms:
        for crop_batch in ("pad", "size"):
            planner = make_planner(reader, min(sizes), "--crop_batch", crop_batch)
            off = check(whole, planner, batch[form])
            print(f"{FORMS[form]}, --crop_batch {crop_batch}: batches are the CPU's but for "
                  f"{off:.1e} of a map's values at most")  # fmt: skip

    print("\nThe augmentation alone:\n")
    row("batch", "form", "ms", "samples/s", "ms of the host to plan it")
    row(*["---"] * 5)
    for n in sizes:
        for form in forms:
            ms, plan = time_augmentation(whole, reader, n, batch[form], times)
            row(n, FORMS[form], f"{ms:.3f}", f"{n / ms * 1e3:,.0f}", f"{plan:.1f}")

    print(f"\nTraining, epochs of {len(reader.pairs)} pairs:\n")
    row("batch", "form", "step alone, ms", "samples/s", "train.fit, samples/s",
        "600 epochs of 6,869 pairs, vs 4 h")  # fmt: skip
    row(*["---"] * 6)
    for n in sizes:
        for form in forms:
            torch.compiler.reset()
            try:
                ms, rate = time_training(whole, reader, n, form, batch[form], times)
            except Exception as error:  # one form that fails must not hide the others
                row(n, FORMS[form], f"failed: {' '.join(str(error).split())[:160]}", "", "", "")
                continue
            total = PAPER_PAIRS * PAPER_EPOCHS / rate
            paper = f"{total / 60:.1f} min, {PAPER_SECONDS / total:.2g}x" if on_gpu else "smoke run"
            row(n, FORMS[form], f"{ms:.2f}", f"{n / ms * 1e3:,.0f}", f"{rate:,.0f}", paper)
    if on_gpu:
        forbid_waiting(whole, reader, min(sizes))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a smoke run")
    p.add_argument("--data", default="synthetic:64", metavar="ROOT|synthetic:N")
    p.add_argument("--batch_sizes", help="comma-separated (32,512; on the CPU 2)")
    p.add_argument("--no_compile", action="store_true", help="leave out the compiled forms")
    args = p.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device")
        return 0
    device = torch.device(args.device)
    if args.device == "cpu":
        torch.set_num_threads(1)
    given = args.batch_sizes or ("2" if args.device == "cpu" else "32,512")
    sizes, root = [int(n) for n in given.split(",")], resolve(args.data)
    pairs, need = open_split(root, "train", 1000.0), BATCHES * max(sizes)
    pairs = (pairs * -(-need // len(pairs)))[:need]
    print(f"{device_name(device)}, PyTorch {torch.__version__}; {need} pairs")
    with tempfile.TemporaryDirectory() as cache:
        reader = open_reader(
            pairs, cache=cache, root=root, name="bench", image_size=(480, 640), intrinsics=None,
            depth_scale=1000.0, threads=train.cores(), ram_cache=0.0,
        )  # fmt: skip
        tables(reader, device, sizes, [False] if args.no_compile else [False, True])
        reader.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
