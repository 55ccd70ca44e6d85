"""Times csrc's kernels against what one would write with numpy and OpenCV; prints markdown tables.

    python tests/bench/bench_kernels.py      # a minute; --quick: seconds, to see that it runs

Every row does the same work: a decoded 480x640 pair to a 3x128x160 image, 480x640 metres, 32x40
ground truth with its masked gradients, and the cells' log-depth statistics. All are checked against
each other before anything is timed. One thread, CPU time of that thread, medians of interleaved
rounds; memory is cold: 64 pairs (98 MB) in turn, results into a ring of three batches (142 MB).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import litedepth_kernels
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import twin  # noqa: E402

try:
    import albumentations
except ImportError:
    albumentations = None

SIZE, NET, LOW = (480, 640), (128, 160), (32, 40)
SCALE, EPS = 1000.0, 1e-3
LOGS = twin.log_table(SCALE, EPS)
CROPS = ((240, 384), (384, 512), (480, 640))
ROTATE = {"no rotation": 0.0, "rotation": 1.0, "the recipe (half of each)": 0.5}


def make_pairs(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and depths of rooms, in a way: smooth with edges, a sensor's noise, 7 % holes."""
    rng = np.random.default_rng(0)
    H, W = SIZE
    pairs = []
    for _ in range(count):
        small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        rgb = cv2.resize(small, (W, H), interpolation=cv2.INTER_CUBIC)
        rgb = cv2.add(rgb, rng.integers(0, 12, rgb.shape, dtype=np.uint8))
        near = cv2.resize(rng.uniform(800, 8000, (6, 8)).astype(np.float32), (W, H))
        step = cv2.resize(rng.uniform(0.7, 1.0, (9, 12)), (W, H), interpolation=cv2.INTER_NEAREST)
        depth = near * step + rng.normal(0, 4, SIZE)
        spots = cv2.resize(rng.random((48, 64)), (W, H), interpolation=cv2.INTER_NEAREST)
        pairs.append((rgb, np.where(spots < 0.07, 0, depth).astype(np.uint16)))
    return pairs


def make_outputs(B: int) -> dict[str, np.ndarray]:
    out = {"image": np.ones((B, 3, *NET), np.float32), "depth": np.ones((B, 1, *SIZE), np.float32)}
    return out | {
        name: np.ones((B, 1, *LOW), bool if name[0] == "M" else np.float32) for name in twin.MAPS
    }


def draw(rng: np.random.Generator, B: int, rotate_prob: float) -> dict[str, np.ndarray]:
    """Sec. 3.2 for B samples: rotation by up to 2.5 degrees, flip, one of three crops, colour."""
    (H, W), affine, crop = SIZE, np.zeros((B, 2, 3)), np.array(CROPS)[rng.integers(3, size=B)]
    for A, (h, w) in zip(affine, crop):
        angle = np.radians(rng.uniform(-2.5, 2.5)) if rng.random() < rotate_prob else 0.0
        way, top, left = rng.choice([1, -1]), rng.integers(H - h + 1), rng.integers(W - w + 1)
        cos, sin, x0, y0 = np.cos(angle), np.sin(angle), (W - 1) / 2, (H - 1) / 2
        x = (left if way > 0 else W - 1 - left) - x0
        A[0] = cos * way, sin, x0 + cos * x + sin * (top - y0)
        A[1] = -sin * way, cos, y0 - sin * x + cos * (top - y0)
    power, gain = rng.uniform(0.9, 1.1, (B, 1, 1)), rng.uniform(0.7, 1.3, (B, 3, 1))
    lut = np.clip(np.arange(256.0) ** power * gain, 0, 255).astype(np.float32)
    return {"affine": affine, "crop": crop, "lut": lut}


class Work:
    """A list of batches to make, each into the next of three sets of buffers."""

    def __init__(self, pairs: list, rotate_prob: float, B: int) -> None:
        rng, self.batches = np.random.default_rng(0), []
        for first in range(0, 8 * len(pairs), B):
            chosen = [pairs[(first + b) % len(pairs)] for b in range(B)]
            both = {"rgb": [rgb for rgb, _ in chosen], "depth": [depth for _, depth in chosen]}
            self.batches.append(both | draw(rng, B, rotate_prob))
        self.ring = itertools.cycle([make_outputs(B) for _ in range(3)])
        self.next = itertools.cycle(self.batches)

    def read_and_written(self) -> int:
        """Bytes that a batch cannot do without, on average: the crop's depth, two source rows for
        one of the image's, the outputs."""
        pixels = np.mean([b["crop"].prod(1).sum() for b in self.batches])
        return int(pixels * (2 + 3 / 2)) + sum(a.nbytes for a in next(self.ring).values())


def r2_batch(batch: dict, out: dict, isa: str | None = None) -> None:
    before = litedepth_kernels.isa()
    litedepth_kernels.set_isa(isa or before)
    litedepth_kernels.r2_batch(
        **batch, depth_scale=SCALE, logs=LOGS, mode="cell", threads=1, out=out
    )
    litedepth_kernels.set_isa(before)


def numpy_outputs(image: np.ndarray, depth: np.ndarray, out: dict, b: int) -> None:
    """All outputs of a coloured image (rows, cols, 3) and a crop's depth, in plain numpy; cells are
    15x16 here."""
    (rows, cols, _), (h, w) = image.shape, depth.shape
    out["image"][b] = 0
    out["image"][b, :, :rows, :cols] = image.astype(np.float32).transpose(2, 0, 1)
    out["depth"][b] = 0
    out["depth"][b, 0, :h, :w] = depth.astype(np.float32) / np.float32(SCALE)
    cells = (LOW[0], SIZE[0] // LOW[0], LOW[1], SIZE[1] // LOW[1])
    d = out["depth"][b, 0].reshape(cells)
    there = d > 0
    x = np.log(np.where(there, d, 1) + np.float32(EPS))
    n = np.maximum(there.sum((1, 3)), 1)
    mean = (x * there).sum((1, 3)) / n
    out["cell_n"][b, 0], out["cell_mean"][b, 0] = there.sum((1, 3)), mean
    out["cell_M2"][b, 0] = (((x - mean[:, None, :, None]) * there) ** 2).sum((1, 3))
    out["depth_low"][b, 0] = d.sum((1, 3)) / n
    twin.masked_gradient(*(out[k][b, 0] for k in twin.MAPS[:5]))


def cv2_gradient(d: np.ndarray, grad_x, grad_y, M_x, M_y) -> None:
    there = cv2.compare(d, 0.0, cv2.CMP_GT)
    for grad, M, a, b in (
        (grad_x, M_x, np.s_[:, :-1], np.s_[:, 1:]),
        (grad_y, M_y, np.s_[:-1], np.s_[1:]),
    ):
        both = cv2.bitwise_and(there[a], there[b])
        grad[:] = 0
        M[:] = False
        cv2.subtract(d[b], d[a], grad[a], both)
        np.not_equal(both, 0, out=M[a])


def shape(batch: dict, b: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """The crop of both, resized picture, and how much of the network's image it fills. A crop
    without rotation is a view."""
    rgb, depth, A = batch["rgb"][b], batch["depth"][b], batch["affine"][b]
    h, w = (int(n) for n in batch["crop"][b])
    if A[0, 1] == 0:
        top, left = round(A[1, 2]), round(A[0, 2] if A[0, 0] > 0 else A[0, 2] - w + 1)
        rgb, depth = rgb[top : top + h, left : left + w], depth[top : top + h, left : left + w]
        if A[0, 0] < 0:
            rgb, depth = cv2.flip(rgb, 1), cv2.flip(depth, 1)
    else:
        inverse = cv2.WARP_INVERSE_MAP
        rgb = cv2.warpAffine(rgb, A, (w, h), flags=cv2.INTER_LINEAR | inverse)
        depth = cv2.warpAffine(depth, A, (w, h), flags=cv2.INTER_NEAREST | inverse)
    rows, cols = twin.extent((h, w), SIZE, NET)
    # Not (h, w) -> (rows, cols): a crop keeps its scale, and 384 rows are 102.4 of the network's.
    H4, W4 = round(rows * SIZE[0] / NET[0]), round(cols * SIZE[1] / NET[1])
    small = cv2.resize(rgb[:H4, :W4], (cols, rows), interpolation=cv2.INTER_LINEAR)
    return small, depth, rows, cols


def careful(batch: dict, out: dict) -> None:
    """Careful numpy + OpenCV: crop first, one pass each, no float64, nothing in a Python loop."""
    for b in range(len(batch["rgb"])):
        small, depth, _, _ = shape(batch, b)
        lut = batch["lut"][b].T.reshape(1, 256, 3)
        coloured = np.clip(np.rint(lut), 0, 255).astype(np.uint8)
        numpy_outputs(cv2.LUT(small, coloured), depth, out, b)


def strongest(batch: dict, out: dict) -> None:
    """The fastest way found with OpenCV: planes by split and float LUT, a table for the logarithm,
    area resizes for all sums (of float32, so that M2 is good to 1e-3 only)."""
    size, area = LOW[::-1], {"interpolation": cv2.INTER_AREA}
    pixels = SIZE[0] * SIZE[1] // (LOW[0] * LOW[1])
    for b in range(len(batch["rgb"])):
        small, depth, rows, cols = shape(batch, b)
        for c, plane in enumerate(cv2.split(small)):
            out["image"][b, c] = 0
            out["image"][b, c, :rows, :cols] = cv2.LUT(plane, batch["lut"][b, c])
        h, w = depth.shape
        metres = out["depth"][b, 0]
        metres[h:] = 0
        metres[:, w:] = 0
        cv2.multiply(depth, 1 / SCALE, dst=metres[:h, :w], dtype=cv2.CV_32F)
        x = np.zeros(SIZE, np.float32)
        np.take(TABLE, depth, out=x[:h, :w], mode="clip")
        there = cv2.compare(metres, 0.0, cv2.CMP_GT)
        n = np.rint(cv2.resize(there.astype(np.float32), size, **area) * (pixels / 255))
        share = np.maximum(n, 1) / pixels
        mean = cv2.resize(x, size, **area) / share
        square = cv2.resize(cv2.multiply(x, x), size, **area) / share
        out["cell_n"][b, 0], out["cell_mean"][b, 0] = n, mean
        out["cell_M2"][b, 0] = np.maximum(square - mean * mean, 0) * n
        out["depth_low"][b, 0] = cv2.resize(metres, size, **area) / share
        cv2_gradient(*(out[k][b, 0] for k in twin.MAPS[:5]))


TABLE = np.append(np.float32(0), LOGS[1:])


@functools.lru_cache
def transforms(h: int, w: int, turned: bool, flip: bool) -> object:
    """albumentations' chain for a crop; making one costs more than running it."""
    return albumentations.Compose([
        albumentations.Rotate((2, 2), p=1) if turned else albumentations.NoOp(),
        albumentations.HorizontalFlip(p=float(flip)),
        albumentations.RandomCrop(h, w),
        albumentations.RandomGamma((90, 110), p=1),
    ])  # fmt: skip


def albumented(batch: dict, out: dict) -> None:
    """albumentations' transforms, drawn by itself within the same ranges, then as `careful`."""
    for b in range(len(batch["rgb"])):
        A, (h, w) = batch["affine"][b], (int(n) for n in batch["crop"][b])
        chain = transforms(h, w, A[0, 1] != 0, A[0, 0] < 0)
        both = chain(image=batch["rgb"][b], mask=batch["depth"][b])
        rows, cols = twin.extent((h, w), SIZE, NET)
        numpy_outputs(cv2.resize(both["image"], (cols, rows)), both["mask"], out, b)


def check(work: Work) -> None:
    """The rows agree: the bits of the twin for every instruction set, to rounding with OpenCV."""
    batch = next(work.next)
    B = len(batch["rgb"])
    want, out = make_outputs(B), make_outputs(B)
    r2_batch(batch, want)
    for isa in isas():
        r2_batch(batch, out, isa)
        assert all(out[k].tobytes() == want[k].tobytes() for k in out), isa
    twin.r2_batch(**batch, depth_scale=SCALE, logs=LOGS, mode="cell", threads=1, out=out)
    assert all(out[k].tobytes() == want[k].tobytes() for k in out)
    turned = (batch["affine"][:, 0, 1] != 0).any()
    for name, pipeline in (("careful", careful), ("strongest", strongest)):
        out = make_outputs(B)
        pipeline(batch, out)
        assert np.abs(out["image"] - want["image"]).mean() < 2, name
        # OpenCV rounds a rotation's positions to 1/32 pixel and more: other neighbours, sometimes.
        same = np.isclose(out["depth"], want["depth"], rtol=1e-6).mean()
        assert same > (0.97 if turned else 0.999999), (name, same)
        for k in ("cell_n", "cell_mean", "cell_M2", "depth_low"):
            close = np.isclose(out[k], want[k], rtol=1e-3, atol=2e-3).mean()
            assert close > (0.5 if turned else 0.999), (name, k, close)


def isas() -> list[str]:
    names = ("baseline", "avx2", "avx512")
    return list(names[: names.index(litedepth_kernels.isa()) + 1])


def medians(rows: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, float]:
    """Microseconds of this thread's CPU time a call, median of `rounds`, the rows taking turns."""
    for run in rows.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, run in rows.items():
            start = time.thread_time()
            for _ in range(calls):
                run()
            times[name].append((time.thread_time() - start) / calls)
    return {name: 1e6 * float(np.median(t)) for name, t in times.items()}


def print_table(title: str, took: dict[str, float], ours: str, unit: str) -> None:
    print(f"\n{title}\n\n| what | us/{unit} | {unit}s/s | x of {ours} |\n|---|---|---|---|")
    for name, us in took.items():
        print(f"| {name} | {us:.1f} | {1e6 / us:,.0f} | {us / took[ours]:.2f} |")


def bench_batch(pairs: list, title: str, rotate_prob: float, B: int, rounds: int) -> None:
    work = Work(pairs, rotate_prob, B)
    check(work)
    moved = work.read_and_written() // 2
    source = np.concatenate([a.ravel().view(np.uint8) for pair in pairs for a in pair])
    target, place = np.ones(3 * moved, np.uint8), itertools.count()

    def floor() -> None:
        k = next(place)
        at, to = k * moved % max(1, len(source) - moved), k % 3 * moved
        np.copyto(target[to : to + moved], source[at : at + moved])

    rows: dict[str, Callable[[], object]] = {}
    for isa in isas()[::-1]:
        name = "r2_batch" if isa == litedepth_kernels.isa() else f"r2_batch, {isa}"
        rows[name] = lambda isa=isa: r2_batch(next(work.next), next(work.ring), isa)
    rows["strongest OpenCV"] = lambda: strongest(next(work.next), next(work.ring))
    rows["careful numpy + OpenCV"] = lambda: careful(next(work.next), next(work.ring))
    if albumentations:
        rows["albumentations"] = lambda: albumented(next(work.next), next(work.ring))
    rows["memcpy of as many bytes"] = floor
    took = {name: us / B for name, us in medians(rows, rounds, 1).items()}
    print_table(title, took, "r2_batch", "sample")
    if not albumentations:
        print("| albumentations | not installed | | |")


def bench_gradient(size: tuple[int, int], rounds: int) -> None:
    H, W = size
    calls = 4 if H > 100 else 200
    rng = np.random.default_rng(1)
    d = np.where(rng.random((8, H, W)) < 0.07, 0, rng.uniform(0.5, 9, (8, H, W)))
    maps, turn = d.astype(np.float32), itertools.count()
    outs = [
        [np.zeros(size, np.float32), np.zeros(size, np.float32), np.zeros(size, bool),
         np.zeros(size, bool)] for _ in range(3)
    ]  # fmt: skip
    ways = {
        "masked_gradient": litedepth_kernels.masked_gradient,
        "numpy, NaN": twin.masked_gradient,
        "OpenCV": cv2_gradient,
    }
    for name, way in ways.items():
        way(maps[0], *outs[1])
        if name == "masked_gradient":
            want = [a.copy() for a in outs[1]]
        assert all((a == b).all() for a, b in zip(outs[1], want)), name

    def call(way: Callable) -> Callable[[], None]:
        def run() -> None:
            k = next(turn)
            way(maps[k % 8], *outs[k % 3])

        return run

    rows = {name: call(way) for name, way in ways.items()}
    title = f"Eq. 8, masked gradient of {H}x{W} depths"
    print_table(title, medians(rows, rounds, calls), "masked_gradient", "map")


def main() -> None:
    parser = argparse.ArgumentParser(description="Times csrc's kernels; one thread, cold memory.")
    parser.add_argument("--quick", action="store_true", help="few pairs and rounds: only to see it")
    parser.add_argument("--batch", type=int, default=32, help="samples a call of r2_batch")
    parser.add_argument("--rounds", type=int, default=24, help="rounds that a median is over")
    args = parser.parse_args()
    if args.quick:
        args.batch, args.rounds = min(args.batch, 4), 3
    cv2.setNumThreads(1)
    pairs = make_pairs(2 * args.batch)
    print(f"instruction set: {litedepth_kernels.isa()}; batch {args.batch}, {len(pairs)} pairs")
    for title, rotate_prob in ROTATE.items():
        bench_batch(pairs, title, rotate_prob, args.batch, args.rounds)
    for size in (SIZE, LOW):
        bench_gradient(size, args.rounds)


if __name__ == "__main__":
    main()
