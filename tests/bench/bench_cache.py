"""What a pack spares: `python tests/bench/bench_cache.py` decodes and reads the same pairs.

Packs 480x640 pairs of rendered scenes (JPEG of quality 95, 16-bit PNG) in a temporary folder,
checks that every packed pair is the decoded one, then times both in one process, one thread, files
in the page cache, each sample brought into buffers that are used again: medians over the pairs.
Then builds the pack anew with one thread and with all.
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
PICTURES = 24  # different ones


def make_pairs(root: Path, count: int) -> list[Pair]:
    pairs = []
    for k in range(count):
        scene = scenes.render(0, k % PICTURES, SIZE)
        pairs.append(Pair(root / f"{k:04d}.jpg", root / f"{k:04d}.png", "scene", root))
        quality = (cv2.IMWRITE_JPEG_QUALITY, 95)
        cv2.imwrite(str(pairs[-1].rgb), scene.rgb[..., ::-1], quality)
        cv2.imwrite(str(pairs[-1].depth), scene.depth)
    return pairs


def seconds(task: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    task(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Decoding a pair against reading it from a pack.")
    parser.add_argument("--pairs", type=int, default=96, help="pairs to pack, 1.5 MB each (96)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds over all pairs (5)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure(make_pairs(Path(folder), args.pairs), Path(folder), args.repeats)


def measure(pairs: list[Pair], cache: Path, repeats: int) -> None:
    known: dict = {}

    def read(i: int) -> Sample:
        return read_pair(pairs[i], SIZE, None, known)

    def build(name: str, threads: int) -> Pack:
        row = row_of(SIZE, teacher=False)
        return open_pack(cache / name, "stamp", len(pairs), row, read, threads, quiet=True)

    pack = build("first", 1)
    rgb, depth = np.empty((*SIZE, 3), np.uint8), np.empty(SIZE, np.uint16)

    def copy(i: int) -> None:
        rgb[:] = pack.rgb[i]
        depth[:] = pack.depth[i]

    def decode(i: int) -> None:
        sample = read(i)
        rgb[:] = sample.rgb
        depth[:] = sample.depth

    for i in range(len(pairs)):
        sample = read(i)
        for name in ("rgb", "depth", "K"):
            assert np.array_equal(getattr(pack, name)[i], getattr(sample, name)), (name, i)
    print(f"equality: {len(pairs)} packed pairs are the decoded ones\n")
    decoding, copying = [], []
    for _ in range(repeats):  # by turns: what else the machine does hits both
        decoding += [seconds(decode, i) for i in range(len(pairs))]
        copying += [seconds(copy, i) for i in range(len(pairs))]
    decoded, copied = statistics.median(decoding) * 1e3, statistics.median(copying) * 1e3
    print(f"a pair decoded: {decoded:.2f} ms; out of the pack: {copied:.3f} ms, "
          f"{decoded / copied:.0f}x less")  # fmt: skip
    for threads in sorted({1, usable_cores()}):
        times = []
        for _ in range(3):
            times.append(seconds(build, "another", threads))
            shutil.rmtree(cache / "another")
        print(f"packed with {threads} thread(s): {statistics.median(times):.2f} s")
    print(f"opened again: {seconds(build, 'first', 1) * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
