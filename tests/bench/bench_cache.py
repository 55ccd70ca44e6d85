"""What a pack spares: `python tests/bench/bench_cache.py` decodes and reads the same pairs.

Makes 480x640 pairs (JPEG of quality 95, 16-bit PNG; rendered scenes, some files twice and more) in
a temporary folder, packs them, checks that every packed pair is the decoded one, then times both in
one process, one thread, files in the page cache, each sample brought into buffers that are used
again: medians over the pairs. Then builds the pack anew with 1, 2 ... threads.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from plumbing import scenes  # noqa: E402
from plumbing.files import usable_cores  # noqa: E402
from plumbing.pack import Pack, open_pack, row_of  # noqa: E402
from plumbing.pairs import Pair, Sample, read_pair  # noqa: E402

SIZE = (480, 640)


def make_pairs(root: Path, count: int, pictures: int) -> list[Pair]:
    """`count` pairs of files, of so many pictures."""
    (root / "rgb").mkdir(parents=True)
    (root / "depth").mkdir()
    pairs = []
    for i in range(pictures):
        scene = scenes.render(0, i, SIZE)
        jpeg = cv2.imencode(".jpg", scene.rgb[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 95))[1]
        png = cv2.imencode(".png", scene.depth)[1]
        for k in range(i, count, pictures):
            rgb, depth = root / f"rgb/{k:04d}.jpg", root / f"depth/{k:04d}.png"
            rgb.write_bytes(jpeg)
            depth.write_bytes(png)
            pairs.append(Pair(rgb, depth, "scene", root))
    return pairs


def timed(task: Callable[[int], object], count: int) -> list[float]:
    """Seconds of task(0), task(1) ..."""
    times = []
    for i in range(count):
        start = time.perf_counter()
        task(i)
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="Decoding a pair against reading it from a pack.")
    parser.add_argument("--pairs", type=int, default=96, help="pairs to pack, 1.5 MB each (96)")
    parser.add_argument("--scenes", type=int, default=24, help="different pictures among them (24)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds over all pairs (5)")
    parser.add_argument("--dir", help="folder for files and packs (default: the temporary one)")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.scenes, args.repeats = 8, 2, 2
    cv2.setNumThreads(1)

    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        root = Path(folder)
        pairs = make_pairs(root, args.pairs, args.scenes)
        cache = root / "cache"
        cache.mkdir()
        known: dict = {}

        def read(i: int) -> Sample:
            return read_pair(pairs[i], SIZE, None, known)

        def build(name: str, threads: int) -> Pack:
            row = row_of(SIZE, teacher=False)
            return open_pack(cache / name, "stamp", len(pairs), row, read, threads, quiet=True)

        pack = build("first", 1)
        for i in range(len(pairs)):
            sample = read(i)
            for name in ("rgb", "depth", "K"):
                assert np.array_equal(getattr(pack, name)[i], getattr(sample, name)), (name, i)
        print(f"equality: {len(pairs)} packed pairs are the decoded ones\n")

        rgb, depth = np.empty((*SIZE, 3), np.uint8), np.empty(SIZE, np.uint16)

        def copy(i: int) -> None:
            rgb[:] = pack.rgb[i]
            depth[:] = pack.depth[i]

        def decode(i: int) -> None:
            sample = read(i)
            rgb[:] = sample.rgb
            depth[:] = sample.depth

        decoding, reading = [], []
        for _ in range(args.repeats):  # by turns: what else the machine does hits both
            decoding += timed(decode, len(pairs))
            reading += timed(copy, len(pairs))
        decoded, copied = statistics.median(decoding) * 1e3, statistics.median(reading) * 1e3
        opened = statistics.median(timed(lambda i: build("first", 1), 5)) * 1e3
        each = (pairs[0].rgb.stat().st_size + pairs[0].depth.stat().st_size) / 1e6
        size = 5 * SIZE[0] * SIZE[1] / 1e6
        print(f"| a pair of 480x640, {size:.2f} MB, from | ms per sample | samples/s | |")
        print("|---|---|---|---|")
        print(f"| JPEG + 16-bit PNG, {each:.2f} MB (cv2) | {decoded:.2f} | {1e3 / decoded:.0f} | |")
        print(
            f"| pack, copied | {copied:.3f} | {1e3 / copied:.0f} | **{decoded / copied:.0f}x** |\n"
        )
        print("| | s | pairs/s | MB/s | |")
        print("|---|---|---|---|---|")
        one = 0.0
        for threads in sorted({1, 2, usable_cores()}):
            times = []
            for _ in range(3):
                start = time.perf_counter()
                build("another", threads)
                times.append(time.perf_counter() - start)
                shutil.rmtree(cache / "another")
            took = statistics.median(times)
            one = one or took
            rate = len(pairs) / took
            print(
                f"| build, {threads} thread{'s' * (threads > 1)} | {took:.2f} | {rate:.0f} | "
                f"{rate * size:.0f} | {one / took:.2f}x |"
            )
        print(f"| open again | {opened / 1e3:.4f} | {len(pairs) / opened * 1e3:.0f} | | |")


if __name__ == "__main__":
    main()
