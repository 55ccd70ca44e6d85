"""Samples a second of the loader, beside torch's DataLoader on the same content.

    python tests/bench/bench_loader.py                 256 rendered scenes in a temporary pack
    python tests/bench/bench_loader.py --data ROOT     your pairs

One thread makes the batches of 32 and nobody uses them. The DataLoader's data set makes the same
samples (checked first) from the same pack, one by one into fresh arrays, for its default collate:
with the same kernel, or as careful numpy and OpenCV do it. It is measured as it comes, in processes
of its own. Rows are run in turn, `--rounds` times; the median is printed. CPU seconds are those of
all threads, not of worker processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import bench_kernels  # noqa: E402
import litedepth_kernels  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

import data  # noqa: E402
import losses  # noqa: E402
import train  # noqa: E402
from model import LiteDepth  # noqa: E402
from plumbing.batches import Reading, open_reader  # noqa: E402
from plumbing.flags import take  # noqa: E402
from plumbing.pairs import Pair, Source, open_split, resolve  # noqa: E402
from plumbing.run import reuse_memory  # noqa: E402

OUTPUTS = bench_kernels.make_outputs(1)
BATCH = 32


class Samples(torch.utils.data.Dataset):
    """One epoch's samples of a loader, as an ordinary data set makes them."""

    def __init__(self, loader: data.Loader, epoch: int) -> None:
        self.loader, self.epoch = loader, epoch
        self.order = loader.order(epoch).ravel()

    def __len__(self) -> int:
        return self.order.size

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        a, index = self.loader, int(self.order[k])
        sample = a.reader.sample(index)
        views = data.draw(a.seed, self.epoch, [index], a.image_size, a.crop)
        out = {name: np.empty(like.shape, like.dtype) for name, like in OUTPUTS.items()}
        self.fill({"rgb": [sample.rgb], "depth": [sample.depth], **views._asdict()}, out)
        K = data.intrinsics_after(sample.K[None], views.affine)[0].astype(np.float32)
        return {name: value[0] for name, value in out.items()} | {"K": K, "index": index}

    def fill(self, batch: dict, out: dict[str, np.ndarray]) -> None:
        a = self.loader
        lut = (batch["lut"] - a.mean[:, None]) / a.std[:, None]
        how = {"depth_scale": a.depth_scale, "logs": a.logs, "mode": a.crop.gt_down, "threads": 1}
        litedepth_kernels.r2_batch(**batch | {"lut": lut}, **how, out=out)


class CarefulSamples(Samples):
    """What people put into a DataLoader: the same work as careful numpy and OpenCV do it."""

    def fill(self, batch: dict, out: dict[str, np.ndarray]) -> None:
        bench_kernels.careful(batch, out)
        mean, std = (x[:, None, None] for x in (self.loader.mean, self.loader.std))
        out["image"] = (out["image"] - mean) / std


WAYS = {"same kernel": Samples, "numpy + OpenCV": CarefulSamples}


def make_loader(args: argparse.Namespace, pairs: list[Pair], **changes) -> data.Loader:
    """train.py's, but for `changes` of Reading and Crop."""
    flags = train.make_parser().parse_args([])
    vars(flags).update({"workers": 1, "cache": args.cache, "ram_cache": 0.0} | changes)
    source = dataclasses.replace(take(flags, Source), data=args.data, split=args.split)
    reader = open_reader(pairs, source, take(flags, Reading), quiet=True)
    network = LiteDepth(size=bench_kernels.NET)
    crop, loss = take(flags, data.Crop), take(flags, losses.Loss)
    return data.Loader(reader, network, crop, loss, BATCH, seed=0)


def cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usages)


def drain(batches) -> int:
    """Goes through the batches as a training step would begin to: a look at each."""
    seen = 0
    for batch in batches:
        seen += len(batch["image"])
        float(batch["image"].flatten()[-1])
    return seen


def as_it_comes(args: argparse.Namespace, workers: int, way: str) -> float:
    """Samples/s of a DataLoader in a process that has not touched malloc's settings."""
    command = [sys.executable, __file__, "--data", args.data, "--split", args.split,
               "--cache", args.cache, "--workers", str(workers), "--way", way]  # fmt: skip
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.split("samples/s")[1])


def time_dataloader(args: argparse.Namespace, pairs: list[Pair]) -> None:
    """Prints the samples/s of the third epoch."""
    loader = make_loader(args, pairs, crop_batch="pad")
    for epoch in range(3):
        batches = torch.utils.data.DataLoader(
            WAYS[args.way](loader, epoch), batch_size=BATCH, num_workers=args.workers
        )
        started = time.perf_counter()
        seen = drain(batches)
    print(f"samples/s {seen / (time.perf_counter() - started):.1f}")


def check(loader: data.Loader) -> None:
    """The two make the same."""
    mine = next(iter(loader.epoch(0)))
    other = next(iter(torch.utils.data.DataLoader(Samples(loader, 0), batch_size=BATCH)))
    for name, tensor in other.items():
        if not torch.equal(tensor, mine[name]):
            sys.exit(f"the two loaders make different {name}")
    print(f"equal: {', '.join(other)} of the first batch\n", flush=True)


def table(args: argparse.Namespace, pairs: list[Pair]) -> None:
    loaders = {
        "Loader, packed cache": make_loader(args, pairs),
        "Loader, packed cache, `--crop_batch pad`": make_loader(args, pairs, crop_batch="pad"),
        "Loader, packed cache, 2 threads": make_loader(args, pairs, workers=2),
        "Loader, `--cache none` within `--ram_cache`": make_loader(
            args, pairs, cache="none", ram_cache=4.0
        ),
        "Loader, files decoded": make_loader(args, pairs, cache="none"),
    }
    check(loaders["Loader, packed cache, `--crop_batch pad`"])
    result: dict[str, list[tuple[float, float, float]]] = {name: [] for name in loaders}
    for loader in loaders.values():
        drain(loader.epoch(0))  # warm
    plain: dict[tuple, list[float]] = {(way, n): [] for way in WAYS for n in (0, 1, 2)}
    for turn in range(1, args.rounds + 1):
        for (way, n), speeds in plain.items():
            speeds.append(as_it_comes(args, n, way))
        for name, loader in loaders.items():
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            wall, cpu = time.perf_counter(), cpu_seconds()
            seen = drain(loader.epoch(turn))
            wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            result[name].append((seen / wall, seen / cpu, faults / (seen / BATCH)))
    first = statistics.median(plain["numpy + OpenCV", 0])
    print("| | samples/s | per core | minor faults a batch | |\n|---|---|---|---|---|")
    for name, got in result.items():
        wall, cpu, faults = (statistics.median(values) for values in zip(*got))
        print(f"| {name} | {wall:,.0f} | {cpu:,.0f} | {faults:,.0f} | {wall / first:.1f}x |")
    for (way, n), speeds in plain.items():
        speed = statistics.median(speeds)
        name = f"torch DataLoader, same pack, {way}, as it comes, {n} workers"
        print(f"| {name} | {speed:,.0f} | | | {speed / first:.1f}x |")
    print(f"\n{len(pairs)} pairs of {args.data}, batches of {BATCH}, {os.cpu_count()} cores")
    for loader in loaders.values():
        loader.close()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--data", default="synthetic:256")
    p.add_argument("--split", default="train")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--workers", type=int, help="time a DataLoader of so many, and nothing else")
    p.add_argument("--cache", help="where the pack is, for --workers")
    p.add_argument("--way", choices=WAYS, default="same kernel", help="for --workers")
    args = p.parse_args()
    torch.set_num_threads(1)
    pairs = open_split(resolve(Source(args.data)), args.split, Source(args.data))
    if args.workers is not None:
        time_dataloader(args, pairs)
        return
    reuse_memory()
    with tempfile.TemporaryDirectory() as args.cache:
        table(args, pairs)


if __name__ == "__main__":
    main()
