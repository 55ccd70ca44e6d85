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
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import model
from plumbing import runtime
from plumbing.calibration import CALIBRATION, fit_calibration, json_name, read_calibration
from plumbing.device import run_times
from plumbing.files import natural, notice, run_main, sha256, write_json
from plumbing.flags import Parser, add, count, positive, take, whole
from plumbing.pairs import (
    DataError,
    Pair,
    Sample,
    Source,
    find_split,
    open_split,
    read_pair,
    resolve,
    spread,
)  # fmt: skip
from plumbing.pictures import auto_range, panel, write_picture
from plumbing.tables import calibration_table, markdown_row, report_table

METRICS = ("si_rmse", "rmse", "log10", "rel", "delta1", "delta2", "delta3")
BINS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 40.0, math.inf)  # metres
Predictor = Callable[[np.ndarray], np.ndarray]  # RGB u8 (H,W,3) -> metres (H,W)


# ------------------------------------------------------------------------- Sec. 4.1, one picture


def known(d: np.ndarray) -> np.ndarray:
    """Where (H, W) metres of truth say something: finite and above 1 mm."""
    # As float32 rounds it: the nearest one is above 0.001, and 1 / 1000 would be no hole.
    return np.where(np.isfinite(d), d, 0) > np.float32(1e-3)


def valid_millimetres(
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
    p, t = valid_millimetres(d_hat, d, max_depth)
    if t.size == 0 or np.isnan(p).any():
        return dict.fromkeys(METRICS, math.nan)
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
    p, t = valid_millimetres(d_hat, d, max_depth)
    return d_hat * (np.median(t) / np.median(p)) if t.size else d_hat


def score(si_rmse: float, runtime_s: float, C: float) -> float:
    """Eq. 14: 2^(-20 si-RMSE) / (C * runtime).

    PAPER: typesets 2^-20 * si-RMSE, which misses the printed scores by five orders of magnitude.
    C is 0.01 in Table 3, as the paper says; Table 1's scores need 1/640 = 0.0015625.
    """
    return 2 ** (-20 * si_rmse) / (C * runtime_s)


# --------------------------------------------------------------------------- Sec. 4.1, a whole set


def mean_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """Each metric's mean; NaN of no rows."""
    return {k: float(np.mean([row[k] for row in rows])) if rows else math.nan for k in METRICS}


class Tally:
    """Collects pictures: means over pictures (as the challenge does), by scene and by distance."""

    def __init__(self, max_depth: float) -> None:
        self.max_depth = max_depth
        self.rows: list[tuple[str, dict, dict]] = []  # scene, raw, median-aligned
        self.bins = np.zeros((len(BINS) - 1, 4))  # pixels, sum rel, sum squared error, sum error
        self.empty = self.not_finite = 0  # pictures that no mean can count

    def add(self, scene: str, d_hat: np.ndarray, d: np.ndarray) -> None:
        """One picture: (H, W) metres each, 0 = hole in d."""
        aligned = median_aligned(d_hat, d, self.max_depth)
        raw = metrics(d_hat, d, self.max_depth)
        self.rows.append((scene, raw, metrics(aligned, d, self.max_depth)))
        p, t = (v / 1000 for v in valid_millimetres(d_hat, d, self.max_depth))
        if np.isnan(raw["si_rmse"]):
            self.empty += t.size == 0
            self.not_finite += t.size > 0
            return
        which = np.digitize(t, BINS[1:-1])
        for column, values in enumerate((np.ones_like(t), np.abs(p - t) / t, (p - t) ** 2, p - t)):
            self.bins[:, column] += np.bincount(which, values, len(BINS) - 1)

    def mean(self, scene: str | None = None, aligned: bool = False) -> dict[str, float]:
        """Mean over the pictures with valid depth and a finite prediction; "images": how many."""
        rows = [r[2] if aligned else r[1] for r in self.rows if scene in (None, r[0])]
        rows = [r for r in rows if np.isfinite(r["si_rmse"])]
        return {**mean_row(rows), "images": len(rows)}

    def mean_of_scenes(self, aligned: bool = False) -> dict[str, float]:
        """The same with every scene counting alike."""
        scenes = [self.mean(s, aligned) for s in dict.fromkeys(row[0] for row in self.rows)]
        scenes = [m for m in scenes if m["images"]]
        return {**mean_row(scenes), "images": sum(m["images"] for m in scenes)}

    def report(self) -> dict:
        """Everything as plain values, ready for JSON."""
        by_distance = [
            {
                "from": BINS[i], "to": BINS[i + 1] if np.isfinite(BINS[i + 1]) else None,
                "pixels": int(n), "rel": rel / n, "rmse": (sq / n) ** 0.5, "bias": err / n,
            }
            for i, (n, rel, sq, err) in enumerate(self.bins.tolist())
            if n
        ]  # fmt: skip
        scenes = sorted({r[0] for r in self.rows}, key=natural)
        return {
            "metric": self.mean(), "median_aligned": self.mean(aligned=True),
            "mean_of_scenes": self.mean_of_scenes(),
            "mean_of_scenes_aligned": self.mean_of_scenes(aligned=True),
            "scenes": {s: self.mean(s) for s in scenes}, "by_distance": by_distance,
            "without_valid_depth": self.empty, "not_finite": self.not_finite,
            "max_depth": self.max_depth,
        }  # fmt: skip


Pictures = Iterable[tuple[Pair, Sample]]


def score_pictures(predictor: Predictor, pictures: Pictures, source: Source) -> Tally:
    """Scores a predictor on decoded pairs; source: their depth_scale, and max_depth."""
    tally = Tally(source.max_depth)
    for pair, sample in pictures:
        tally.add(pair.scene, predictor(sample.rgb), metres(sample, source.depth_scale))
    return tally


def metres(sample: Sample, depth_scale: float) -> np.ndarray:
    """Its truth (H, W), float32, 0 = hole."""
    return sample.depth.astype(np.float32) / np.float32(depth_scale)


def decoded(
    pairs: list[Pair], image_size: tuple[int, int], progress: str | None = None
) -> Iterator[tuple[Pair, Sample]]:
    """Decodes pairs one after the other; `progress` names the bar (None: no bar).

    A pair that cannot be read is named and skipped. Raises DataError when none can be.
    """
    cameras: dict = {}
    skipped = 0
    for pair in tqdm(pairs, desc=progress, unit="image", disable=progress is None):
        try:
            sample = read_pair(pair, image_size, None, cameras)
        except DataError as error:
            notice(f"skipped: {error}")
            skipped += 1
            continue
        yield pair, sample
    if skipped and skipped == len(pairs):
        raise DataError(f"none of the {skipped} pairs can be read; the first: {pairs[0].rgb}")


class Validator:
    """Scores the network on the validation split and draws out/preview.png (Sec. 4.1, Fig. 7)."""

    SHOWN = 6

    def __init__(
        self, network: nn.Module, pairs: list[Pair], source: Source, device: torch.device,
        out: Path, ram_cache: float,
    ) -> None:  # fmt: skip
        self.network, self.source, self.device, self.out = network, source, device, out
        self._read = functools.partial(decoded, pairs, source.image_size)
        fits = len(pairs) * 5e-9 * math.prod(source.image_size) <= ram_cache
        self._kept = list(self._read()) if fits else None
        # Neighbouring frames look alike: shown pictures are spread over the split, and stay.
        which = set(spread(range(len(pairs)), self.SHOWN))
        self._shown = [s for i, s in enumerate(self._kept or self._read()) if i in which]
        # One colour range for all and for ever; by picture, or dense rooms would outvote a street.
        ranges = [auto_range([metres(s, source.depth_scale)]) for _, s in self._shown]
        self._range = min(r[0] for r in ranges), max(r[1] for r in ranges)

    def __call__(self, epoch: int) -> dict[str, float]:
        """-> mean metrics over the split; `epoch` is written on the picture."""
        training = self.network.training
        self.network.eval()
        try:
            tally = score_pictures(self.predict, self._kept or self._read(), self.source)
            self._draw(epoch)
        finally:
            self.network.train(training)
        report = tally.report()
        if tally.not_finite:
            notice(f"epoch {epoch}: {tally.not_finite} prediction(s) are not finite")
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
            truth, prediction = metres(sample, self.source.depth_scale), self.predict(sample.rgb)
            title = f"{pair.scene}/{pair.rgb.stem}, epoch {epoch}"
            panels.append(panel(sample.rgb, truth, prediction, *self._range, title))
        write_picture(self.out / "preview.png", np.concatenate(panels))


def trivial_predictors(pictures: Pictures, depth_scale: float) -> dict[str, Predictor]:
    """What any network has to beat: two predictors that never look at the picture, fitted on
    `pictures` (the training split): the geometric mean of all depths, and that of each pixel."""
    total = n = 0.0
    for _, sample in pictures:
        M = sample.depth > 0
        total = total + np.where(M, np.log(np.maximum(sample.depth, 1) / depth_scale), 0)
        n = n + M
    constant = float(np.exp(np.sum(total) / max(np.sum(n), 1)))
    per_pixel = np.where(n > 0, np.exp(total / np.maximum(n, 1)), constant)
    return {
        "constant (geometric mean)": lambda rgb: np.full(rgb.shape[:2], constant),
        "per-pixel geometric mean": lambda rgb: per_pixel,
    }


# ------------------------------------------------------------------- calibration, ours (no Eq.)


def sample_pixels(
    d_hat: np.ndarray, d: np.ndarray, number: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """At most `number` valid pixels of one picture, at random: d_hat and d in metres, (n,) each.

    d_hat, d: (H, W) metres, 0 = hole in d. n = 0 where `metrics` says NaN: no pixel is valid, or
    the prediction is not finite at one.
    """
    M = known(d)
    x, y = d_hat[M].astype(np.float64), d[M].astype(np.float64)
    if not np.isfinite(x).all():
        return x[:0], y[:0]
    if x.size > number:
        chosen = np.random.default_rng(seed).choice(x.size, number, replace=False)
        x, y = x[chosen], y[chosen]
    return x, y


def calibrated(predictor: Predictor, scale: float, shift: float) -> Predictor:
    """The predictor followed by d' = max(0, scale d_hat + shift)."""
    return lambda rgb: np.maximum(scale * predictor(rgb).astype(np.float64) + shift, 0)


def calibrate(
    predictor: Predictor, pairs: list[Pair], source: Source, size: tuple[int, int]
) -> dict:  # fmt: skip
    """Fits a calibration on pairs, read twice at `size`.

    -> {"scale", "shift_m", "pairs": pictures that counted, "fit": {"before", "after": metrics of
    the same pictures}}. Some 65,000 pixels are kept, shared out among the pictures (64 each at
    least). Raises UserError, as `fit_calibration` and `decoded` do.
    """
    pixels, before = [], Tally(source.max_depth)
    for pair, sample in decoded(pairs, size, "calibrate"):
        d_hat, d = predictor(sample.rgb), metres(sample, source.depth_scale)
        pixels.append(sample_pixels(d_hat, d, max(64, (1 << 16) // len(pairs)), len(pixels)))
        before.add(pair.scene, d_hat, d)
    a, b = fit_calibration(pixels, source.max_depth)
    after = score_pictures(calibrated(predictor, a, b), decoded(pairs, size, "calibrated"), source)
    fit = {"before": before.mean(), "after": after.mean()}
    return {"scale": a, "shift_m": b, "pairs": fit["after"]["images"], "fit": fit}


def check_apart(root: Path, split: str, pairs: list[Pair], reported: Source, others: list[Pair]):
    """Raises DataError where the split of the fit is the reported one, or shares pictures with it:
    a fit on the pictures that it is judged by only flatters itself."""
    if find_split(root, split) == find_split(root, reported.split):
        raise DataError(
            f"--calibrate {split} is the split that is reported: name another one (train, or "
            f"better one that was held out of training), or report another with --split"
        )
    shared = {pair.rgb.resolve() for pair in pairs} & {pair.rgb.resolve() for pair in others}
    if shared:
        raise DataError(
            f"--calibrate {split}: {len(shared)} of its pictures are in --split {reported.split} "
            f"too (one is {min(shared)}): take them out of one of the two lists"
        )


# ----------------------------------------------------------------------------------------- main


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
    add(p, Source, split="val", image_size=None)
    arg = p.add_argument_group("run time and Score (Eq. 14)").add_argument
    arg("--C", type=positive, default=0.01, help="constant of Eq. 14: 0.01 compares with Table 3, "
        "0.0015625 with Table 1 (default 0.01)")  # fmt: skip
    arg("--runtime_ms", type=positive, help="run time measured on a device, for the Score "
        "(default: measured on this machine)")  # fmt: skip
    arg("--warmup", type=whole, default=10, help="runs before the timing (10)")
    arg("--runs", type=count, default=50, help="runs timed (default 50)")
    arg("--threads", type=whole, default=1, help="CPU threads of the network; 0 = all cores "
        "(default 1, what a phone's app gets)")  # fmt: skip
    arg("--device", default="auto", choices=["auto", "cpu", "cuda"],
        help="where a .pt runs (default auto: CUDA when there is one)")  # fmt: skip
    p.add_argument("--name", help="name in the markdown row (default: the file's)")
    p.add_argument(
        "--baselines", action="store_true",
        help="also score two predictors that never look at the picture, fitted on --fit_split",
    )  # fmt: skip
    p.add_argument("--fit_split", default="train", help="split for --baselines (default train)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there")
    arg = p.add_argument_group("calibration of scale and shift, without training").add_argument
    arg("--calibrate", metavar="SPLIT",
        help="fit d' = max(0, a d_hat + b) on this split, which must not be --split, and report "
        "--split before and after it. For a camera or place unlike the training set, list 20 to "
        "200 of its pictures in calib.txt. 'train' works, but a network is closest to the truth on "
        "the pictures it was trained on and a fit there says little: hold some out of training "
        "(default: no calibration)")  # fmt: skip
    arg("--calibrate_pictures", type=whole, default=1000, metavar="N",
        help="at most so many pictures of that split, spread evenly: two numbers need no more; "
        "0 = all (default 1000)")  # fmt: skip
    arg("--calibration", type=json_name, metavar="FILE.json",
        help="where --calibrate writes it, for export.py or predict.py --calibration (default: "
        "calibration.json beside the model); without --calibrate: report --split before and after "
        "this one")  # fmt: skip
    return p


def open_calibration(
    args: argparse.Namespace, path: Path, predictor: runtime.Predictor, pairs: list[Pair]
) -> dict | None:
    """What --calibrate fits or --calibration names; None for neither."""
    if args.calibrate:
        source = take(args, Source)
        root = resolve(source)
        fit = open_split(root, args.calibrate, source)
        check_apart(root, args.calibrate, fit, source, pairs)
        fit = spread(fit, args.calibrate_pictures or len(fit))
        return {
            "format": CALIBRATION, "split": args.calibrate, "data": args.data, "model": str(path),
            "model_sha256": sha256(path), "depth_scale": args.depth_scale,
            "max_depth": args.max_depth, **calibrate(predictor, fit, source, predictor.size),
        }  # fmt: skip
    if not args.calibration:
        return None
    made = read_calibration(args.calibration)
    if made.get("model_sha256") != sha256(path):
        notice(f"{args.calibration} was fitted for another model file: {made.get('model')}")
    if (made.get("data"), made.get("split")) == (args.data, args.split):
        notice(f"{args.calibration} was fitted on this very split: what follows flatters it")
    return made


def time_network(predictor: runtime.Predictor, warmup: int, runs: int) -> dict[str, float]:
    """Milliseconds a picture on this machine, from RGB to metres (the network alone)."""
    image = np.random.default_rng(0).integers(0, 256, (*predictor.size, 3)).astype(predictor.dtype)
    for _ in range(warmup):
        predictor.run(image)
    return run_times(functools.partial(predictor.run, image), runs)


def print_calibrated(
    args: argparse.Namespace, made: dict, file: Path, before: dict, after: dict
) -> None:
    """The split before and after; what was fitted just now is written."""
    if args.calibrate:
        made["reported"] = {"split": args.split, "before": before, "after": after}
        write_json(file, made)
    print("\n" + calibration_table(made, file, before, after, args.split, bool(args.calibrate)))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see make_parser."""
    args = make_parser().parse_args(argv)
    calibrates = args.calibrate or args.calibration
    names = ("best.pt",) if calibrates else ("best.pt", "model.tflite")
    path = Path(args.model) if args.model else runtime.newest_model(names)
    predictor = runtime.load_predictor(
        path, model.runner, image_size=args.image_size, threads=args.threads, device=args.device
    )
    if calibrates:
        runtime.check_uncalibrated(predictor, path)
    args.image_size = predictor.size
    source = take(args, Source)
    root = resolve(source)
    pairs = open_split(root, args.split, source)
    made = open_calibration(args, path, predictor, pairs)

    def score_split(predictor: Predictor, name: str | None) -> Tally:
        return score_pictures(predictor, decoded(pairs, size, name), source)

    size = predictor.size
    tally = score_split(predictor, "evaluate")
    if tally.empty == len(tally.rows):
        raise DataError(f"{root}: no depth above 1 mm in split {args.split!r}: --depth_scale?")
    report = tally.report() | {"unreadable": len(pairs) - len(tally.rows)}
    timing = time_network(predictor, args.warmup, args.runs)
    ms = args.runtime_ms or timing["p50"]
    report |= {
        "model": str(path), "data": args.data, "split": args.split, "C": args.C, "runtime": timing,
        "score": score(report["metric"]["si_rmse"], ms / 1000, args.C),
    }  # fmt: skip
    where = "as given" if args.runtime_ms else (
        f"{predictor.about}, on this machine, not on a phone: median of {args.runs}, p90 "
        f"{timing['p90']:.2f} ms"
    )  # fmt: skip
    print(f"\n{path} on {len(pairs)} pictures of {args.data}, split {args.split}\n"
          f"{report_table(report)}\n\nrun time {ms:.2f} ms ({where}); Score by Eq. 14, C = "
          f"{args.C:g}\n\n| | si-RMSE | RMSE | log10 | REL | Runtime | Score |\n"
          "|---|---|---|---|---|---|---|\n"
          + markdown_row(args.name or path.name, report["metric"], ms, report["score"])
    )  # fmt: skip
    if made:
        after = score_split(calibrated(predictor, made["scale"], made["shift_m"]), "calibrated")
        report["calibration"], report["calibrated"] = made, after.report()
        file = args.calibration or path.with_name("calibration.json")
        print_calibrated(args, made, file, report["metric"], after.mean())
    if args.baselines:
        fit = open_split(root, args.fit_split, source)
        fit = decoded(fit, size, f"fit on {args.fit_split}")
        report["baselines"] = {}
        for name, trivial in trivial_predictors(fit, args.depth_scale).items():
            report["baselines"][name] = score_split(trivial, None).mean()
            print(markdown_row(name, report["baselines"][name]))
    if args.json:
        write_json(args.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, "evaluate.py"))
