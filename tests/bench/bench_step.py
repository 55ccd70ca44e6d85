"""How many images a second train.py trains on: whole runs of the real command, from its own log.

    python tests/bench/bench_step.py                  what each part buys, on 256 rendered scenes
    python tests/bench/bench_step.py --data ROOT      on your pairs
    python tests/bench/bench_step.py --table scale    processes, picture size, batch size, set

Every row is `python train.py` (or torchrun) with the flags shown, no validation. Images a second
are the median of the run's epochs after the first `--warm`; rows are run in turn, `--rounds` times,
and the median of a row's rounds is printed, so that a slow minute meets all rows alike. Before
anything is timed, an epoch of the plain and of the fast path are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# name -> flags; the first is where the project stood before, the last what train.py does by itself
PARTS = {
    "plain losses, files decoded every epoch": "--loss_form plain --cache none --ram_cache 0 "
    "--crop_batch pad",
    "plain losses, packed cache": "--loss_form plain --crop_batch pad",
    "cell losses, files decoded every epoch": "--cache none --ram_cache 0 --crop_batch pad",
    "cell losses, packed cache: `--crop_batch pad`": "--crop_batch pad",
    "the same, `--crop_batch size`": "--crop_batch size",
}
SCALE = {
    "1 process, 1 thread": "--threads 1 --workers 1",
    "1 process, 2 threads": "--threads 2 --workers 2",
    "2 processes, 1 thread each": "--threads 1 --workers 1 @2",
    "batch 8": "--batch_size 8",
    "batch 16": "--batch_size 16",
    "batch 64": "--batch_size 64",
    "pictures of 240x320, network 64x96": "--image_size 240x320 --size 64x96 "
    "--crops 120x192,192x256,240x320",
    "pictures of 960x1280, network 128x160": "--image_size 960x1280 "
    "--crops 480x768,768x1024,960x1280",
    "network 256x320": "--size 256x320",
}


def trained(flags: str, data: str, epochs: int, folder: Path) -> list[dict]:
    """The log of one run."""
    flags, _, processes = flags.partition("@")
    start = [sys.executable]
    if processes:
        start += ["-m", "torch.distributed.run", "--nproc_per_node", processes]
    command = [
        *start, str(ROOT / "train.py"), "--data", data, "--epochs", str(epochs), "--val_split",
        "none", "--pretrained", "none", "--device", "cpu", "--out", str(folder), *flags.split(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def check(data: str) -> None:
    """Ends the script unless both paths take the same ten steps."""
    base = "--batch_size 8 --crop_batch pad --lr 3e-5"
    losses = []
    for form in ("plain", "cells"):
        with tempfile.TemporaryDirectory() as folder:
            log = trained(f"{base} --loss_form {form}", data, 1, Path(folder) / "run")
            losses.append(log[0]["loss"])
    off = abs(losses[0] / losses[1] - 1)
    print(f"an epoch's mean loss, plain and fast: {losses[0]:.7f} {losses[1]:.7f}", flush=True)
    if off > 1e-3:
        sys.exit(f"the fast path trains something else: {off:.2e} apart")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--data", default="synthetic:256")
    p.add_argument("--table", default="parts", choices=["parts", "scale", "sets"])
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--warm", type=int, default=1, help="epochs not counted")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", help="rows whose name contains this")
    args = p.parse_args()
    check(args.data)
    rows = PARTS if args.table == "parts" else SCALE
    data = dict.fromkeys(rows, args.data)
    if args.table == "sets":
        rows = {f"{n} pairs": "" for n in (64, 256, 1024)}
        data = {f"{n} pairs": f"synthetic:{n}" for n in (64, 256, 1024)}
    rows = {k: v for k, v in rows.items() if not args.only or args.only in k}
    speeds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(args.rounds):
        for name, flags in rows.items():
            with tempfile.TemporaryDirectory() as folder:
                log = trained(flags, data[name], args.epochs, Path(folder) / "run")
            epochs = [row["images_per_s"] for row in log[args.warm :]]
            speeds[name].append(statistics.median(epochs))
            print(f"  {name}: {speeds[name][-1]:.0f}", file=sys.stderr, flush=True)
    first = statistics.median(speeds[next(iter(rows))])
    print("| | flags | images/s | |\n|---|---|---|---|")
    for name, flags in rows.items():
        speed = statistics.median(speeds[name])
        spread = f"{min(speeds[name]):.0f}..{max(speeds[name]):.0f}"
        flags = flags.replace("@2", "(torchrun --nproc_per_node 2)").strip()
        print(f"| {name} | `{flags}` | {speed:.0f} ({spread}) | {speed / first:.2f}x |")


if __name__ == "__main__":
    main()
