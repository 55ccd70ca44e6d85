"""Sec. 4.1 Evaluation Metrics: si-RMSE, RMSE, log10, REL, delta, and the Score of Eq. 14.

    python evaluate.py --data ROOT --model runs/student/best.pt
    python evaluate.py --data ROOT --model runs/student/model.tflite --json result.json

The headline figures are metric: nothing is aligned to the truth. Median-aligned ones, which most
depth projects print, stand beside them under their own name.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data
import predict

METRICS = ("si_rmse", "rmse", "log10", "rel", "delta1", "delta2", "delta3")
BINS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 40.0, float("inf"))  # metres
Predictor = Callable[[np.ndarray], np.ndarray]  # RGB u8 (H,W,3) -> metres (H,W)


# -------------------------------------------------------------------------- Sec. 4.1, one picture


def prepare(
    d_hat: np.ndarray, d: np.ndarray, max_depth: float
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Valid pixels of prediction and truth, in millimetres, as the challenge's script takes them.

    d_hat, d: (H, W) metres, d = 0 (or not finite) is a hole. The prediction is cut to
    1 mm .. max_depth, the truth is not cut; a truth of 1 mm or less is a hole too. A prediction
    that is not finite comes out as NaN.
    """
    d = np.where(np.isfinite(d), d, 0).astype(np.float64) * 1000
    d_hat = np.where(np.isfinite(d_hat), d_hat, np.nan).astype(np.float64)
    d_hat = np.clip(d_hat, 1e-3, max_depth) * 1000
    M = d > 1
    return np.maximum(d_hat[M], 1), d[M]


def metrics(d_hat: np.ndarray, d: np.ndarray, max_depth: float) -> dict[str, float]:
    """All metrics of one picture; (H, W) metres in. NaN throughout when no pixel is valid, or when
    the prediction is not finite at a valid one.

    si_rmse = sqrt(mean(g^2) - mean(g)^2), g = ln d_hat - ln d; rmse in metres; log10 and rel are
    mean absolute errors; delta_k the share of pixels with max(d_hat/d, d/d_hat) < 1.25^k.
    """
    p, t = prepare(d_hat, d, max_depth)
    if t.size == 0 or np.isnan(p).any():
        return dict.fromkeys(METRICS, float("nan"))
    g = np.log(p) - np.log(t)
    ratio = np.maximum(p / t, t / p)
    return {
        "si_rmse": float(np.sqrt(max(np.mean(g**2) - np.mean(g) ** 2, 0.0))),
        "rmse": float(np.sqrt(np.mean((p - t) ** 2)) / 1000),
        "log10": float(np.mean(np.abs(g)) / np.log(10)),
        "rel": float(np.mean(np.abs(p - t) / t)),
        **{f"delta{k}": float(np.mean(ratio < 1.25**k)) for k in (1, 2, 3)},
    }


def median_aligned(d_hat: np.ndarray, d: np.ndarray, max_depth: float) -> np.ndarray:
    """The prediction scaled so that its median over valid pixels is the truth's (not metric!)."""
    p, t = prepare(d_hat, d, max_depth)
    return d_hat * (np.median(t) / np.median(p)) if t.size else d_hat


def score(si_rmse: float, runtime_s: float, C: float) -> float:
    """Eq. 14: 2^(-20 si-RMSE) / (C * runtime).

    PAPER: typesets 2^-20 * si-RMSE, which misses the printed scores by five orders of magnitude.
    C is 0.01 in Table 3, as the paper says; Table 1's scores need 1/640 = 0.0015625.
    """
    return 2 ** (-20 * si_rmse) / (C * runtime_s)


# --------------------------------------------------------------------------- Sec. 4.1, a whole set


class Tally:
    """Collects pictures: means over pictures (as the challenge does), by scene and by distance."""

    def __init__(self, max_depth: float) -> None:
        self.max_depth = max_depth
        self.rows: list[tuple[str, str, dict, dict]] = []  # name, scene, raw, median-aligned
        self.bins = np.zeros((len(BINS) - 1, 4))  # pixels, sum rel, sum squared error, sum error
        self.empty = self.not_finite = 0  # pictures that no mean can count

    def add(self, name: str, scene: str, d_hat: np.ndarray, d: np.ndarray) -> None:
        """One picture: (H, W) metres each, 0 = hole in d."""
        aligned = median_aligned(d_hat, d, self.max_depth)
        raw = metrics(d_hat, d, self.max_depth)
        self.rows.append((name, scene, raw, metrics(aligned, d, self.max_depth)))
        p, t = (v / 1000 for v in prepare(d_hat, d, self.max_depth))
        if np.isnan(raw["si_rmse"]):
            self.empty += t.size == 0
            self.not_finite += t.size > 0
            return
        which = np.digitize(t, BINS[1:-1])
        for column, values in enumerate((np.ones_like(t), np.abs(p - t) / t, (p - t) ** 2, p - t)):
            self.bins[:, column] += np.bincount(which, values, len(BINS) - 1)

    def mean(self, scene: str | None = None, aligned: bool = False) -> dict[str, float]:
        """Mean over the pictures with valid depth and a finite prediction; "images": how many."""
        rows = [r[3] if aligned else r[2] for r in self.rows if scene in (None, r[1])]
        rows = [r for r in rows if np.isfinite(r["si_rmse"])]
        out = {k: float(np.mean([r[k] for r in rows])) if rows else float("nan") for k in METRICS}
        return {**out, "images": len(rows)}

    def report(self) -> dict:
        """Everything as plain values, ready for JSON."""
        scenes = sorted({r[1] for r in self.rows}, key=data.natural)
        by_distance = [
            {
                "from": BINS[i], "to": BINS[i + 1] if np.isfinite(BINS[i + 1]) else None,
                "pixels": int(n), "rel": rel / n, "rmse": (sq / n) ** 0.5, "bias": err / n,
            }
            for i, (n, rel, sq, err) in enumerate(self.bins.tolist())
            if n
        ]  # fmt: skip
        return {
            "metric": self.mean(),
            "median_aligned": self.mean(aligned=True),
            "scenes": {s: self.mean(s) for s in scenes},
            "by_distance": by_distance,
            "without_valid_depth": self.empty,
            "not_finite": self.not_finite,
            "max_depth": self.max_depth,
        }


def run(
    predictor: Predictor, samples: Iterable[tuple[data.Pair, data.Sample]], *,
    depth_scale: float, max_depth: float,
) -> Tally:  # fmt: skip
    """Scores a predictor on decoded samples."""
    tally = Tally(max_depth)
    for pair, sample in samples:
        d = sample.depth.astype(np.float32) / np.float32(depth_scale)
        tally.add(pair.rgb.name, pair.scene, predictor(sample.rgb), d)
    return tally


def read_all(
    pairs: list[data.Pair], image_size: tuple[int, int], intrinsics: tuple[float, ...] | None,
    progress: str | None = None,
) -> Iterable[tuple[data.Pair, data.Sample]]:  # fmt: skip
    """Decodes pairs one after the other; `progress` names the bar (None: no bar).

    A pair that cannot be read is named and skipped. Raises DataError when none can be.
    """
    known: dict = {}
    skipped = 0
    for pair in tqdm(pairs, desc=progress, unit="image", disable=progress is None):
        try:
            sample = data.read_pair(pair, image_size, intrinsics, known)
        except data.DataError as error:
            data.notice(f"skipped: {error}")
            skipped += 1
            continue
        yield pair, sample
    if skipped and skipped == len(pairs):
        raise data.DataError(f"none of the {skipped} pairs can be read; the first: {pairs[0].rgb}")


# ------------------------------------------------------------------ what any network has to beat


def trivial_predictors(
    samples: Iterable[tuple[data.Pair, data.Sample]], *, depth_scale: float
) -> dict[str, Predictor]:
    """Two predictors that never look at the picture, fitted on `samples` (the training split):
    the geometric mean of all depths, and that of each pixel."""
    total = count = 0.0
    for _, sample in samples:
        M = sample.depth > 0
        total = total + np.where(M, np.log(np.maximum(sample.depth, 1) / depth_scale), 0)
        count = count + M
    constant = float(np.exp(np.sum(total) / max(np.sum(count), 1)))
    per_pixel = np.where(count > 0, np.exp(total / np.maximum(count, 1)), constant)
    return {
        "constant (geometric mean)": lambda rgb: np.full(rgb.shape[:2], constant),
        "per-pixel geometric mean": lambda rgb: per_pixel,
    }


# ---------------------------------------------------------------------------------------- printing


def markdown_row(name: str, m: dict[str, float], runtime_s: float | None, C: float) -> str:
    """One row in the order of Table 1: name, si-RMSE, RMSE, log10, REL, runtime, Score."""
    timing = "- | -"
    if runtime_s:
        timing = f"{1000 * runtime_s:.2f}ms | {score(m['si_rmse'], runtime_s, C):.2f}"
    figures = f"{m['si_rmse']:.3f} | {m['rmse']:.2f} | {m['log10']:.3f} | {m['rel']:.3f}"
    return f"| {name} | {figures} | {timing} |"


def table(report: dict) -> str:
    """The whole report for the terminal: totals, scenes, distances."""
    head = f"{'':<24}{'images':>7}{'si-RMSE':>9}{'RMSE/m':>8}{'log10':>7}{'REL':>7}"
    head += f"{'<1.25':>7}{'<1.25^2':>9}{'<1.25^3':>9}"
    rows = {"all, metric": report["metric"], "all, median-aligned": report["median_aligned"]}
    rows |= {f"  {name}": m for name, m in report["scenes"].items()}
    lines = [head]
    for name, m in rows.items():
        lines.append(
            f"{name[:23]:<24}{m['images']:>7}{m['si_rmse']:>9.3f}{m['rmse']:>8.2f}"
            f"{m['log10']:>7.3f}{m['rel']:>7.3f}{m['delta1']:>7.3f}{m['delta2']:>9.3f}"
            f"{m['delta3']:>9.3f}"
        )
    lines.append("\nby distance (pixels pooled)     share    REL  RMSE/m  bias/m")
    pixels = sum(b["pixels"] for b in report["by_distance"])
    for b in report["by_distance"]:
        to = "and more" if b["to"] is None else f"to {b['to']:g} m"
        lines.append(
            f"  {b['from']:g} {to:<25}{b['pixels'] / pixels:>8.1%}{b['rel']:>7.3f}{b['rmse']:>8.2f}"
            f"{b['bias']:>+8.2f}"
        )
    if report["without_valid_depth"]:
        lines.append(f"{report['without_valid_depth']} picture(s) without valid depth left out")
    if report["not_finite"]:
        lines.append(
            f"WARNING: {report['not_finite']} prediction(s) are NaN or infinite where there is "
            "truth: broken weights? The means above leave these pictures out"
        )
    return "\n".join(lines)


def measure(predictor: predict.Predictor, warmup: int, runs: int) -> dict:
    """Seconds per picture on this machine, from float RGB to metres (the network alone)."""
    rgb = np.random.default_rng(0).integers(0, 256, (*predictor.size, 3), dtype=np.uint8)
    for _ in range(warmup + runs):
        predictor(rgb)
    times = np.array(predictor.milliseconds[-runs:]) / 1000
    return {
        "median_s": float(np.median(times)), "p90_s": float(np.percentile(times, 90)),
        "warmup": warmup, "runs": runs, "about": predictor.about,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------- main


def plain(value: object) -> object:
    """The same without NaN and infinity, which JSON does not know: they become None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_parser() -> argparse.ArgumentParser:
    p = predict.Parser(
        prog="evaluate.py", description="Score a network: the metrics of Sec. 4.1 and Eq. 14.",
        epilog="--image_size: unlike in training, the default here is the model file's own: a "
        ".tflite takes one size only, a .pt keeps that of its training (480x640 where it does not "
        "say).",
    )  # fmt: skip
    p.add_argument(
        "--model", metavar="FILE",
        help=".pt or .tflite (default: the newest best.pt or model.tflite of runs/student and "
        "runs/distilled)",
    )  # fmt: skip
    data.add_data_arguments(p, split="val")
    p.set_defaults(image_size=None)  # see the epilog
    g = p.add_argument_group("run time and Score (Eq. 14)")
    g.add_argument(
        "--C", type=data.positive, default=0.01,
        help="constant of Eq. 14: 0.01 compares with Table 3, 0.0015625 with Table 1 "
        "(default 0.01)",
    )  # fmt: skip
    g.add_argument(
        "--runtime_ms", type=data.positive,
        help="run time measured on a device, for the Score (default: measured on this machine)",
    )  # fmt: skip
    g.add_argument("--warmup", type=data.whole, default=10, help="runs before the timing (10)")
    g.add_argument("--runs", type=data.whole, default=50, help="runs timed (default 50)")
    g.add_argument(
        "--threads", type=data.whole, default=1,
        help="CPU threads of the network; 0 = all cores (default 1, what a phone's app gets)",
    )  # fmt: skip
    g.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda"],
        help="where a .pt runs (default auto: CUDA when there is one)",
    )  # fmt: skip
    p.add_argument("--name", help="name in the markdown row (default: the file's)")
    p.add_argument(
        "--baselines", action="store_true",
        help="also score two predictors that never look at the picture, fitted on --fit_split",
    )  # fmt: skip
    p.add_argument("--fit_split", default="train", help="split for --baselines (default train)")
    p.add_argument("--json", metavar="FILE", help="write the whole report there")
    return p


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    path = Path(args.model) if args.model else predict.newest_model()
    predictor = predict.load_predictor(
        path, image_size=args.image_size, threads=args.threads, device=args.device
    )
    root = data.resolve(args.data)
    pairs = data.open_split(root, args.split, args.depth_scale)
    options = {"depth_scale": args.depth_scale, "max_depth": args.max_depth}
    samples = read_all(pairs, predictor.size, args.intrinsics, "evaluate")
    tally = run(predictor, samples, **options)
    report = tally.report() | {"unreadable": len(pairs) - len(tally.rows)}
    timing = measure(predictor, args.warmup, max(1, args.runs))
    runtime = args.runtime_ms / 1000 if args.runtime_ms else timing["median_s"]
    report |= {
        "model": str(path), "data": args.data, "split": args.split, "runtime": timing,
        "score": score(report["metric"]["si_rmse"], runtime, args.C), "C": args.C,
    }  # fmt: skip
    print(f"\n{path} on {len(pairs)} pictures of {args.data}, split {args.split}")
    print(table(report))
    if report["unreadable"]:
        print(f"{report['unreadable']} picture(s) could not be read and were left out")
    where = "as given"
    if not args.runtime_ms:
        where = f"{timing['about']}, on this machine, not on a phone: median of {timing['runs']}"
        where += f", p90 {1000 * timing['p90_s']:.2f} ms"
    print(f"\nrun time {1000 * runtime:.2f} ms ({where}); Score by Eq. 14, C = {args.C:g}")
    print("\n| | si-RMSE | RMSE | log10 | REL | Runtime | Score |\n|---|---|---|---|---|---|---|")
    print(markdown_row(args.name or path.name, report["metric"], runtime, args.C))
    if args.baselines:
        fit = data.open_split(root, args.fit_split, args.depth_scale)
        fit_samples = read_all(fit, predictor.size, args.intrinsics, f"fit on {args.fit_split}")
        rows = {}
        for name, trivial in trivial_predictors(fit_samples, depth_scale=args.depth_scale).items():
            samples = read_all(pairs, predictor.size, args.intrinsics)
            rows[name] = run(trivial, samples, **options).report()["metric"]
            print(markdown_row(name, rows[name], None, args.C))
        report["baselines"] = rows
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plain(report), indent=1, allow_nan=False) + "\n"
        predict.write_file(Path(args.json), text.encode())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (data.DataError, predict.PredictError, OSError) as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
