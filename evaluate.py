"""Sec. 4.1 Evaluation Metrics: si-RMSE, RMSE, log10, REL, delta, and the Score of Eq. 14.

    python evaluate.py --data ROOT --model runs/student/best.pt
    python evaluate.py --data ROOT --model runs/student/model.tflite --json result.json

The headline figures are metric: nothing is aligned to the truth. Median-aligned ones, which most
depth projects print, stand beside them under their own name, and so do those after a calibration:

    python evaluate.py --data ROOT --model runs/student/best.pt --calibrate calib

fits d' = max(0, a d_hat + b) on the pictures of another split, for a camera or place that the
network was not trained on, and writes calibration.json for export.py --calibration.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import data
import model
from plumbing.checkpoints import CALIBRATION, CheckpointError, read_calibration
from plumbing.files import UserError, natural, notice, sha256, write_json
from plumbing.flags import Parser
from plumbing.pairs import DataError, Pair, Sample, find_split, open_split, read_pair, resolve
from plumbing.pictures import auto_range, panel, write_picture
from plumbing.runtime import load_predictor, newest_model

METRICS = ("si_rmse", "rmse", "log10", "rel", "delta1", "delta2", "delta3")
FEW = 20  # a calibration on fewer pictures comes with a warning
BINS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 40.0, float("inf"))  # metres
Predictor = Callable[[np.ndarray], np.ndarray]  # RGB u8 (H,W,3) -> metres (H,W)


# -------------------------------------------------------------------------- Sec. 4.1, one picture


def known(d: np.ndarray) -> np.ndarray:
    """Where (H, W) metres of truth say something: finite and above 1 mm."""
    # As float32 rounds it: the nearest one is above 0.001, and 1 / 1000 would be no hole.
    return np.where(np.isfinite(d), d, 0) > np.float32(1e-3)


def prepare(
    d_hat: np.ndarray, d: np.ndarray, max_depth: float
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Valid pixels of prediction and truth, in millimetres, as the challenge's script takes them.

    d_hat, d: (H, W) metres, d = 0 (or not finite) is a hole. The prediction is cut to
    1 mm .. max_depth, the truth is not cut; a truth of 1 mm or less is a hole too. A prediction
    that is not finite comes out as NaN.
    """
    M = known(d)
    d = d[M].astype(np.float64) * 1000
    d_hat = np.where(np.isfinite(d_hat), d_hat, np.nan)[M].astype(np.float64)
    d_hat = np.clip(d_hat, 1e-3, max_depth) * 1000
    return np.maximum(d_hat, 1), d


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
        scenes = sorted({r[1] for r in self.rows}, key=natural)
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
    predictor: Predictor, samples: Iterable[tuple[Pair, Sample]], *,
    depth_scale: float, max_depth: float,
) -> Tally:  # fmt: skip
    """Scores a predictor on decoded samples."""
    tally = Tally(max_depth)
    for pair, sample in samples:
        d = sample.depth.astype(np.float32) / np.float32(depth_scale)
        tally.add(pair.rgb.name, pair.scene, predictor(sample.rgb), d)
    return tally


def read_all(
    pairs: list[Pair], image_size: tuple[int, int], intrinsics: tuple[float, ...] | None,
    progress: str | None = None,
) -> Iterable[tuple[Pair, Sample]]:  # fmt: skip
    """Decodes pairs one after the other; `progress` names the bar (None: no bar).

    A pair that cannot be read is named and skipped. Raises DataError when none can be.
    """
    known: dict = {}
    skipped = 0
    for pair in tqdm(pairs, desc=progress, unit="image", disable=progress is None):
        try:
            sample = read_pair(pair, image_size, intrinsics, known)
        except DataError as error:
            notice(f"skipped: {error}")
            skipped += 1
            continue
        yield pair, sample
    if skipped and skipped == len(pairs):
        raise DataError(f"none of the {skipped} pairs can be read; the first: {pairs[0].rgb}")


# -------------------------------------------------------------------- calibration, ours (no Eq.)


def sample_pixels(
    d_hat: np.ndarray, d: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """At most `count` valid pixels of one picture, at random: d_hat in metres and ln d, (n,) each.

    d_hat, d: (H, W) metres, 0 = hole in d. n = 0 where `metrics` says NaN: no pixel is valid, or
    the prediction is not finite at one.
    """
    M = known(d)
    x, y = d_hat[M].astype(np.float64), d[M].astype(np.float64)
    if not np.isfinite(x).all():
        return x[:0], y[:0]
    if x.size > count:
        chosen = np.random.default_rng(seed).choice(x.size, count, replace=False)
        x, y = x[chosen], y[chosen]
    return x, np.log(y)


def fit_calibration(
    samples: list[tuple[np.ndarray, np.ndarray]], max_depth: float
) -> tuple[float, float]:
    """The a > 0 and b (metres) of d' = a d_hat + b that make the log10 error least:

        mean over pictures of mean over pixels of |ln d' - ln d|,  d' cut to 1 mm .. max_depth

    samples: of each picture d_hat (metres) and ln d, as `sample_pixels` returns them. Why this one
    of the metrics: RMSE listens to the farthest pixels, REL is least for depths that are too small,
    si-RMSE does not feel the scale, and squares of the logarithm follow a few pictures of another
    kind. |r| is sqrt(r^2 + 0.01^2), smooth; reweighted Gauss-Newton steps in (ln a, b), damped so
    that each one is an improvement, from the best of 41 values of b: depths that are cut to 1 mm
    make valleys that no small step leaves.

    Predictions that are all alike say nothing of b: it is 0 then. Raises DataError: no pixels, a
    dead network, or predictions that go against the truth (a falls to 0).
    """
    samples = [(x, y) for x, y in samples if x.size]
    x, y = (np.concatenate([s[i] for s in samples] or [np.empty(0)]) for i in (0, 1))
    if not x.size or x.max() <= 1e-3:
        what = "predicted as 0" if x.size else "without valid depth, or predicted as NaN"
        raise DataError(f"no picture to calibrate on: all are {what}")
    w = np.concatenate([np.full(s[0].size, 1 / s[0].size) for s in samples]) / len(samples)

    def errors(p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> |r|, r = ln d' - ln d, and r's derivative by (ln a, b), (2, n): 0 where d' is cut."""
        scaled = np.exp(p[0]) * x
        d = np.clip(scaled + p[1], 1e-3, max_depth)
        r, inside = np.log(d) - y, (d == scaled + p[1]) / d
        return np.sqrt(r**2 + 0.01**2), r, np.stack([scaled * inside, inside])

    def start(b: float) -> np.ndarray:
        """b, and the median of the scales that it asks for."""
        M = (x > 1e-3) & (np.exp(y) > b)
        return np.array([np.median(np.log(np.exp(y[M]) - b) - np.log(x[M])) if M.any() else 0, b])

    free = 2 if np.ptp(x) > 1e-6 * x.max() else 1  # parameters that the pixels can tell
    shifts = np.exp(np.median(y)) * np.linspace(-2, 2, 41) if free == 2 else [0.0]
    starts = [start(b) for b in shifts]
    losses = [np.sum(w * errors(p)[0]) for p in starts]
    p, loss, damping = starts[np.argmin(losses)], min(losses), 1e-3
    lowest = start(0.0)[0] - 4
    size, r, J = errors(p)
    for _ in range(200):
        JW = (J * (w / size))[:free]
        H = JW @ J[:free].T
        step = np.zeros(2)
        step[:free] = np.linalg.solve(H + damping * np.diag(np.diag(H) + 1e-12), -(JW @ r))
        step = np.clip(step, -1, 1)
        new = errors(p + step)
        gain = loss - np.sum(w * new[0])
        if gain > 0:
            p, (size, r, J), damping = p + step, new, max(damping / 10, 1e-9)
            loss -= gain
        else:
            damping *= 10
        if p[0] < lowest:
            raise DataError(
                "no calibration: this network's depths do not grow with the true ones here (the "
                "best scale falls to 0); look at its predictions, and at --depth_scale"
            )
        if damping > 1e9 or 0 < gain < 1e-13:  # no step, however small, improves it any more
            break
    return float(np.exp(p[0])), float(p[1])


def calibrated(predictor: Predictor, scale: float, shift: float) -> Predictor:
    """The predictor followed by d' = max(0, scale d_hat + shift)."""
    return lambda rgb: np.maximum(scale * predictor(rgb).astype(np.float64) + shift, 0)


def check_apart(
    root: Path, split: str, pairs: list[Pair], reported: str, others: list[Pair]
) -> None:
    """Raises DataError where the split of the fit is the reported one, or shares pictures with it:
    a fit on the pictures that it is judged by only flatters itself."""
    if find_split(root, split) == find_split(root, reported):
        raise DataError(
            f"--calibrate {split} is the split that is reported: name another one (train, or "
            f"better one that was held out of training), or report another with --split"
        )
    shared = {pair.rgb.resolve() for pair in pairs} & {pair.rgb.resolve() for pair in others}
    if shared:
        raise DataError(
            f"--calibrate {split}: {len(shared)} of its pictures are in --split {reported} too "
            f"(one is {min(shared)}): take them out of one of the two lists"
        )


def calibrate(
    predictor: Predictor, read: Callable[[str], Iterable[tuple[Pair, Sample]]],
    count: int, *, depth_scale: float, max_depth: float,
) -> dict:  # fmt: skip
    """Fits a calibration. read(what): the `count` pictures, read twice; `what` names the pass.

    -> {"scale", "shift_m", "pairs": pictures that counted, "fit": {"before", "after": metrics of
    the same pictures}}. Half a million pixels are kept, shared out among the pictures (64 each at
    least). Raises DataError, as `fit_calibration` and `read_all` do.
    """
    pixels, before = [], Tally(max_depth)
    for pair, sample in read("calibrate"):
        d_hat, d = predictor(sample.rgb), sample.depth.astype(np.float32) / np.float32(depth_scale)
        pixels.append(sample_pixels(d_hat, d, max(64, (1 << 19) // count), seed=len(pixels)))
        before.add(pair.rgb.name, pair.scene, d_hat, d)
    a, b = fit_calibration(pixels, max_depth)
    options = {"depth_scale": depth_scale, "max_depth": max_depth}
    after = run(calibrated(predictor, a, b), read("calibrated"), **options).mean()
    fit = {"before": before.mean(), "after": after}
    return {"scale": a, "shift_m": b, "pairs": after["images"], "fit": fit}


# ------------------------------------------------------------------ what any network has to beat


def trivial_predictors(
    samples: Iterable[tuple[Pair, Sample]], *, depth_scale: float
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


def metric_lines(rows: Iterable[tuple[str, dict[str, float]]]) -> list[str]:
    """A head and a line for each (name, metrics), for the terminal."""
    head = f"{'':<24}{'images':>7}{'si-RMSE':>9}{'RMSE/m':>8}{'log10':>7}{'REL':>7}"
    head += f"{'<1.25':>7}{'<1.25^2':>9}{'<1.25^3':>9}"
    return [head] + [
        f"{name[:23]:<24}{m['images']:>7}{m['si_rmse']:>9.3f}{m['rmse']:>8.2f}{m['log10']:>7.3f}"
        f"{m['rel']:>7.3f}{m['delta1']:>7.3f}{m['delta2']:>9.3f}{m['delta3']:>9.3f}"
        for name, m in rows
    ]


def table(report: dict) -> str:
    """The whole report for the terminal: totals, scenes, distances."""
    rows = [("all, metric", report["metric"]), ("all, median-aligned", report["median_aligned"])]
    lines = metric_lines(rows + [(f"  {name}", m) for name, m in report["scenes"].items()])
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


def calibration_table(
    calibration: dict, fitted: bool, path: Path, metric: dict, after: dict, split: str
) -> str:
    """The reported split before and after, and what there is to say against it; the split of the
    fit too where it was fitted just now (a file that is only applied may say less)."""
    a, b = calibration["scale"], calibration["shift_m"]
    rows = [(f"reported: {split}", metric), ("  calibrated", after)]
    if fitted:
        fit, count = calibration["fit"], calibration["pairs"]
        rows = [
            (f"fitted: {calibration['split']}", fit["before"]), ("  calibrated", fit["after"]),
            *rows,
        ]  # fmt: skip
    lines = [
        f"calibration d' = max(0, {a:.4f} d_hat {b:+.4f} m): {path}",
        "(the figures above are without it; export.py --calibration FILE bakes it in)",
        *metric_lines(rows),
    ]
    names = {"si_rmse": "si-RMSE", "rmse": "RMSE", "log10": "log10", "rel": "REL"}
    change = {name: after[k] / metric[k] - 1 for k, name in names.items() if metric[k] > 0}
    lines.append(f"{split}: " + ", ".join(f"{name} {x:+.1%}" for name, x in change.items()))
    if fitted and b == 0:
        lines.append("every prediction was the same, so that only the scale could be fitted")
    if fitted and count < FEW:
        lines.append(f"WARNING: fitted on {count} picture(s) only; take {FEW} or more")
    if worse := [name for name, x in change.items() if x > 0.001]:
        lines.append(
            f"WARNING: {', '.join(worse)} of {split} got worse: export without it, or fit on "
            "pictures that are more like these"
        )
    return "\n".join(lines)


def measure(predictor: Predictor, warmup: int, runs: int) -> dict:
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


def spread(pairs: list[Pair], count: int) -> list[Pair]:
    """At most `count` of them, evenly spread."""
    chosen = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    return [pairs[i] for i in chosen]


def make_parser() -> argparse.ArgumentParser:
    p = Parser(
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
    g = p.add_argument_group("calibration of scale and shift, without training")
    g.add_argument(
        "--calibrate", metavar="SPLIT",
        help="fit d' = max(0, a d_hat + b) on this split, which must not be --split, and report "
        "--split before and after it. For a camera or place unlike the training set, list 20 to "
        "200 of its pictures in calib.txt. 'train' works, but a network is closest to the truth on "
        "the pictures it was trained on and a fit there says little: hold some out of training "
        "(default: no calibration)",
    )  # fmt: skip
    g.add_argument(
        "--calibrate_pictures", type=data.whole, default=1000, metavar="N",
        help="at most so many pictures of that split, spread evenly: two numbers need no more; "
        "0 = all (default 1000)",
    )  # fmt: skip
    g.add_argument(
        "--calibration", type=json_name, metavar="FILE.json",
        help="where --calibrate writes it, for export.py --calibration (default: calibration.json "
        "beside the model); without --calibrate: report --split before and after this one",
    )  # fmt: skip
    return p


def json_name(text: str) -> Path:
    """An argparse type: a path that ends in .json (so that no checkpoint is overwritten)."""
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .json")
    return Path(text)


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    calibrates = args.calibrate or args.calibration
    path = Path(args.model) if args.model else newest_model(
        ("best.pt",) if calibrates else ("best.pt", "model.tflite")
    )
    predictor = load_predictor(
        path, model.runner, image_size=args.image_size, threads=args.threads, device=args.device
    )
    if calibrates and predictor.calibration:
        raise DataError(
            f"{path} holds a calibration already, and a second would apply on top: name the .pt "
            "that it was exported from with --model"
        )
    root = resolve(args.data)
    pairs = open_split(root, args.split, args.depth_scale)
    options = {"depth_scale": args.depth_scale, "max_depth": args.max_depth}

    def read(some: list[Pair], name: str | None):
        return read_all(some, predictor.size, args.intrinsics, name)

    calibration, file = None, args.calibration or path.with_name("calibration.json")
    if args.calibrate:
        fit = open_split(root, args.calibrate, args.depth_scale)
        check_apart(root, args.calibrate, fit, args.split, pairs)
        fit = spread(fit, args.calibrate_pictures or len(fit))
        calibration = {
            "format": CALIBRATION, "split": args.calibrate, "data": args.data, "model": str(path),
            "model_sha256": sha256(path), **options,
            **calibrate(predictor, lambda name: read(fit, name), len(fit), **options),
        }  # fmt: skip
    elif args.calibration:
        calibration = read_calibration(file)
        if calibration.get("model_sha256") != sha256(path):
            notice(f"{file} was fitted for another model file: {calibration.get('model')}")
        if (calibration.get("data"), calibration.get("split")) == (args.data, args.split):
            notice(f"{file} was fitted on this very split: the figures after it flatter it")
    tally = run(predictor, read(pairs, "evaluate"), **options)
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
    if calibration:
        after = calibrated(predictor, calibration["scale"], calibration["shift_m"])
        after = run(after, read(pairs, "calibrated"), **options).report()
        if args.calibrate:
            calibration["reported"] = {
                "split": args.split, "before": report["metric"], "after": after["metric"],
            }  # fmt: skip
            write_json(file, calibration)
        both = report["metric"], after["metric"]
        fitted = args.calibrate is not None
        print("\n" + calibration_table(calibration, fitted, file, *both, args.split))
        report["calibration"], report["calibrated"] = calibration, after
    if args.baselines:
        fit = open_split(root, args.fit_split, args.depth_scale)
        fit_samples = read(fit, f"fit on {args.fit_split}")
        rows = {}
        for name, trivial in trivial_predictors(fit_samples, depth_scale=args.depth_scale).items():
            rows[name] = run(trivial, read(pairs, None), **options).report()["metric"]
            print(markdown_row(name, rows[name], None, args.C))
        report["baselines"] = rows
    if args.json:
        write_json(Path(args.json), report)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (DataError, UserError, CheckpointError, OSError) as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


class Validator:
    """Scores the network on the validation split (Sec. 4.1) and draws out/preview.png."""

    SHOWN = 6

    def __init__(
        self, network: nn.Module, pairs: list[Pair], *, image_size: tuple[int, int],
        intrinsics: tuple[float, ...] | None, depth_scale: float, max_depth: float,
        device: torch.device, out: Path, ram_cache: float,
    ) -> None:  # fmt: skip
        self.network, self.device, self.out = network, device, out
        self.scale = {"depth_scale": depth_scale, "max_depth": max_depth}
        self._read = lambda: read_all(pairs, image_size, intrinsics)
        fits = len(pairs) * 5e-9 * image_size[0] * image_size[1] <= ram_cache
        self._kept = list(self._read()) if fits else None
        # Neighbouring frames look alike: shown pictures are spread over the split, and stay.
        which = {round(i) for i in np.linspace(0, len(pairs) - 1, self.SHOWN)}
        self._shown = [s for i, s in enumerate(self._kept or self._read()) if i in which]
        # One colour range for all and for ever; by picture, or dense rooms would outvote a street.
        ranges = [auto_range([s.depth / np.float32(depth_scale)]) for _, s in self._shown]
        self._range = min(r[0] for r in ranges), max(r[1] for r in ranges)

    def __call__(self, epoch: int) -> dict[str, float]:
        """-> mean metrics over the split; `epoch` is written on the picture."""
        training = self.network.training
        self.network.eval()
        try:
            report = run(self.predict, self._kept or self._read(), **self.scale).report()
            self._draw(epoch)
        finally:
            self.network.train(training)
        if report["not_finite"]:
            notice(f"epoch {epoch}: {report['not_finite']} prediction(s) are not finite")
            report["metric"]["si_rmse"] = math.nan  # never the best
        per_scene = {f"si_rmse/{k}": v["si_rmse"] for k, v in report["scenes"].items()}
        return {k: report["metric"][k] for k in METRICS} | per_scene

    @torch.inference_mode()
    def predict(self, rgb: np.ndarray) -> np.ndarray:
        """RGB u8 (H,W,3) -> metres (H,W)."""
        image = torch.from_numpy(rgb).to(self.device).permute(2, 0, 1)[None].float()
        return self.network(image)[0, 0].float().cpu().numpy()

    def _draw(self, epoch: int) -> None:
        panels = []
        for pair, sample in self._shown:
            truth = sample.depth / np.float32(self.scale["depth_scale"])
            title = f"{pair.scene}/{pair.rgb.stem}, epoch {epoch}"
            prediction = self.predict(sample.rgb)
            panels.append(panel(sample.rgb, truth, prediction, *self._range, title))
        write_picture(self.out / "preview.png", np.concatenate(panels))
