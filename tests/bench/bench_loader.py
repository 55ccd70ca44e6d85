"""Samples a second of the loader, beside torch's DataLoader on the same content.

    python tests/bench/bench_loader.py                 256 rendered scenes in a temporary pack
    python tests/bench/bench_loader.py --data ROOT     your pairs

One thread makes the batches of 32 and nobody uses them. The DataLoader's data set makes the same
samples (checked first) from the same pack with the same kernels, one by one into fresh arrays, for
its default collate. It is measured as it comes, in processes of its own, and with train.py's
settings of malloc, which spare it most page faults. Rows are run in turn, `--rounds` times; the
median is printed. CPU seconds are those of all threads, not of worker processes.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import bench_kernels  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

import data  # noqa: E402
import losses  # noqa: E402
import train  # noqa: E402
from plumbing.batches import Reading, open_reader  # noqa: E402
from plumbing.pairs import Source, open_split, resolve  # noqa: E402
from plumbing.run import reuse_memory  # noqa: E402


class Samples(torch.utils.data.Dataset):
    """One epoch's samples of a loader, as an ordinary data set makes them."""

    def __init__(self, loader: data.Loader, epoch: int) -> None:
        self.loader, self.epoch = loader, epoch
        self.order = loader.order(epoch)

    def __len__(self) -> int:
        return self.order.size

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        a = self.loader
        index = int(self.order.ravel()[k])
        sample = a.reader.sample(index)
        random = data.draw(a.seed, self.epoch, [index], a.image_size, a.augment)
        lut = (random.lut[0] - a.mean[:, None]) / a.std[:, None]
        (H, W), (h, w) = a.image_size, a.size
        image, metres = np.empty((3, h, w), np.float32), np.empty((H, W), np.float32)
        crop = tuple(random.crop[0].tolist())
        a.kernels.r2_crop(
            sample.rgb, sample.depth, random.affine[0], crop, lut, np.zeros(3, np.float32),
            a.depth_scale, image, metres,
        )  # fmt: skip
        low, grad_x, grad_y = (np.empty((h // 4, w // 4), np.float32) for _ in range(3))
        M_x, M_y = np.empty(low.shape, bool), np.empty(low.shape, bool)
        a.kernels.gt_down(metres, low, a.mode)
        a.kernels.masked_gradient(low, grad_x, grad_y, M_x, M_y)
        K = data.intrinsics_after(sample.K[None], random.affine)[0].astype(np.float32)
        return {
            "image": image, "depth": metres[None], "depth_low": low[None], "grad_x": grad_x[None],
            "grad_y": grad_y[None], "M_x": M_x[None], "M_y": M_y[None], "K": K, "index": index,
        }  # fmt: skip


class CarefulSamples(Samples):
    """The same work as careful numpy and OpenCV do it (bench_kernels.careful), from the same pack:
    what people put into a DataLoader."""

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        a = self.loader
        index = int(self.order.ravel()[k])
        sample = a.reader.sample(index)
        random = data.draw(a.seed, self.epoch, [index], a.image_size, a.augment)
        one = {"rgb": [sample.rgb], "depth": [sample.depth], **random._asdict()}
        out = bench_kernels.make_outputs(1)
        bench_kernels.careful(SimpleNamespace(pad=np.zeros(3, np.float32)), one, out)
        out["image"] = (out["image"] - 127.5) / 127.5
        K = data.intrinsics_after(sample.K[None], random.affine)[0].astype(np.float32)
        return {name: value[0] for name, value in out.items()} | {"K": K, "index": index}


def make_loader(args, pairs, **changes) -> data.Loader:
    options = {"crop_batch": "pad", "cache": args.cache, "ram_cache": 0.0, "threads": 1, **changes}
    reading = Reading(options["threads"], options.pop("cache"), options.pop("ram_cache"))
    reader = open_reader(pairs, Source(args.data, args.split), reading)
    flags = train.make_parser().parse_args([])
    return data.Loader(
        reader, batch_size=32, seed=0, augment=train.augmentation(flags), image_size=(480, 640),
        size=(128, 160), mean=(127.5,) * 3, std=(127.5,) * 3, depth_scale=1000.0, silog_eps=1e-3,
        vnl_share=flags.vnl_share, gt_down="cell", kernels=data.kernels("cpp"), **options,
    )  # fmt: skip


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


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--data", default="synthetic:256")
    p.add_argument("--split", default="train")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--workers", type=int, help="time a DataLoader of so many, and nothing else")
    p.add_argument("--cache", help="where the pack is, for --workers")
    p.add_argument("--careful", action="store_true", help="with numpy and OpenCV, for --workers")
    args = p.parse_args()
    torch.set_num_threads(1)
    pairs = open_split(resolve(args.data), args.split, 1000.0)
    if args.workers is not None:
        loader = make_loader(args, pairs)
        for epoch in range(3):  # the last one counts
            batches = torch.utils.data.DataLoader(
                (CarefulSamples if args.careful else Samples)(loader, epoch), batch_size=32,
                num_workers=args.workers,
            )  # fmt: skip
            started = time.perf_counter()
            seen = drain(batches)
        print(f"samples/s {seen / (time.perf_counter() - started):.1f}")
        return
    reuse_memory()
    with tempfile.TemporaryDirectory() as args.cache:
        table(args, pairs)


def as_it_comes(args, workers: int, how: str) -> float:
    """Samples/s of a DataLoader in a process that has not touched malloc's settings."""
    command = [sys.executable, __file__, "--data", args.data, "--split", args.split,
               "--cache", args.cache, "--workers", str(workers)]  # fmt: skip
    command += ["--careful"] if how != "same kernels" else []
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.split("samples/s")[1])


def table(args, pairs) -> None:
    pad = make_loader(args, pairs)
    size = make_loader(args, pairs, crop_batch="size")
    two = make_loader(args, pairs, threads=2)
    files = make_loader(args, pairs, cache="none")
    kept = make_loader(args, pairs, cache="none", ram_cache=4.0)

    mine = next(iter(pad.epoch(0)))
    other = next(iter(torch.utils.data.DataLoader(Samples(pad, 0), batch_size=32)))
    for name, tensor in other.items():
        if not torch.equal(tensor, mine[name]):
            sys.exit(f"the two loaders make different {name}")
    n, mean, M2 = losses.cell_statistics(mine["depth"], mine["depth_low"].shape[-2:], 1e-3)
    for name, tensor in (("cell_n", n), ("cell_mean", mean), ("cell_M2", M2)):
        if not torch.allclose(tensor, mine[name], rtol=1e-5, atol=1e-5):
            sys.exit(f"{name} is not that of losses.cell_statistics")
    print(f"equal: {', '.join(other)} of the first batch; cell statistics to 1e-5\n", flush=True)

    def dataloader(epoch: int):
        return torch.utils.data.DataLoader(Samples(pad, epoch), batch_size=32)

    rows = {
        "Loader, packed cache, `--crop_batch pad`": pad.epoch,
        "Loader, packed cache, `--crop_batch size`": size.epoch,
        "Loader, packed cache, 2 threads": two.epoch,
        "Loader, `--cache none` within `--ram_cache`": kept.epoch,
        "Loader, files decoded": files.epoch,
        "torch DataLoader, same pack, same kernels, train.py's malloc": dataloader,
    }  # fmt: skip
    result: dict[str, list[tuple[float, float, float]]] = {name: [] for name in rows}
    for epoch in rows.values():
        drain(epoch(0))  # warm
    workers: dict[tuple, list[float]] = {
        (how, n): [] for how in ("same kernels", "numpy + OpenCV") for n in (0, 1, 2)
    }
    for turn in range(1, args.rounds + 1):
        for (how, n), speeds in workers.items():
            speeds.append(as_it_comes(args, n, how))
        for name, epoch in rows.items():
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            wall, cpu = time.perf_counter(), cpu_seconds()
            seen = drain(epoch(turn))
            wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            result[name].append((seen / wall, seen / cpu, faults / (seen / 32)))
    plain = {key: statistics.median(speeds) for key, speeds in workers.items()}
    first = plain["numpy + OpenCV", 0]
    print("| | samples/s | per core | minor faults a batch | |\n|---|---|---|---|---|")
    for name, got in result.items():
        wall, cpu, faults = (statistics.median(values) for values in zip(*got))
        print(f"| {name} | {wall:,.0f} | {cpu:,.0f} | {faults:,.0f} | {wall / first:.1f}x |")
    for (how, n), speed in plain.items():
        name = f"torch DataLoader, same pack, {how}, as it comes, {n} workers"
        print(f"| {name} | {speed:,.0f} | | | {speed / first:.1f}x |")
    print(f"\n{len(pairs)} pairs of {args.data}, batches of 32, {os.cpu_count()} cores")
    for loader in (pad, size, two, files, kept):
        loader.close()


if __name__ == "__main__":
    main()
