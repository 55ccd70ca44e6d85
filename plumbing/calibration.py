"""Scale and shift of a network's metres for one camera or place (ours, no Eq.): the fit, its file,
and a tape measure's points. Needs no PyTorch: it runs on the device too."""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plumbing.files import UserError, notice, quoted, sha256, write_json, wrong_kind
from plumbing.flags import positive, several, whole
from plumbing.pictures import check_inside, depth_at, read_picture

CALIBRATION = "litedepth-calibration-1"  # in every file; raised when an old one could be misread
KINDS = {"split": str, "data": str, "model": str, "model_sha256": str, "pairs": int}


# -------------------------------------------------------------------------------------- the file


def json_name(text: str) -> Path:
    """An argparse type: a path that ends in .json (so that no checkpoint is overwritten)."""
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(
            f"{text!r} does not end in .json (INPUT, if any, goes before this flag)"
        )
    return Path(text)


def read_calibration(path: str | os.PathLike) -> dict:
    """What evaluate.py --calibrate or predict.py --measured wrote: "scale", "shift_m" (metres) and
    how they were found. Raises UserError for a file that is missing, of another kind, impossible.
    """
    cure = "make one with evaluate.py --calibrate SPLIT or predict.py --measured"
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: no such calibration file ({error}); {cure}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error!s:.80}); {cure}") from error
    if not isinstance(content, dict) or content.get("format") != CALIBRATION:
        raise UserError(f"{path}: not a calibration (no {CALIBRATION!r} mark); {cure}")
    for name, low in (("scale", 0.0), ("shift_m", -1e9)):
        value = content.get(name)
        if type(value) not in (int, float) or not low < value < 1e9:  # NaN fails too
            raise UserError(f"{path}: {name} {value!r:.40} cannot be; {cure}")
    if name := wrong_kind(content, KINDS):
        raise UserError(f"{path}: {name} cannot be; {cure}")
    return content


def calibration_of(path: Path, model: Path) -> dict:
    """`read_calibration` of one that was fitted for this very model file. Raises UserError."""
    made = read_calibration(path)
    if made.get("model_sha256") != sha256(model):
        raise UserError(
            f"{path} was fitted for another model file ({made.get('model')}): fit one for {model} "
            "with evaluate.py --calibrate SPLIT or predict.py --measured"
        )
    return made


# --------------------------------------------------------------------------------------- the fit


def fit_calibration(
    samples: list[tuple[np.ndarray, np.ndarray]], max_depth: float
) -> tuple[float, float]:
    """The a > 0 and b (metres) of d' = a d_hat + b that make the log10 error least:

        mean over pictures of mean over pixels of |ln d' - ln d|,  d' cut to 1 mm .. max_depth

    samples: of each picture d_hat and d (metres), (n,) each. Why this one of
    the metrics: RMSE listens to the farthest pixels, REL is least for depths that are too small,
    si-RMSE does not feel the scale, and squares of the logarithm follow a few pictures of another
    kind. With d' = a (d_hat + r) the best a for a given r is a weighted median, so that r alone is
    searched, over a grid; then downhill in small steps.

    Predictions that are all alike say nothing of b: it is 0 then. Raises UserError: no pixels, a
    dead network, or predictions that go against the truth (a falls to 0).
    """
    samples = [(x, y) for x, y in samples if x.size]
    x, y = (np.concatenate([s[i] for s in samples] or [np.empty(0)]) for i in (0, 1))
    if not x.size or x.max() <= 1e-3:
        what = "predicted as 0" if x.size else "without valid depth, or predicted as NaN"
        raise UserError(f"no picture to calibrate on: all are {what}")
    w = np.concatenate([np.full(s[0].size, 1 / s[0].size) for s in samples]) / len(samples)

    def best_scale(r: float) -> float:
        """The weighted median of the scales that the pixels ask for."""
        M = x + r > 1e-3 * x.max()  # others are cut to 1 mm whatever a is
        if not M.any():
            return 0.0
        ratio = y[M] / (x[M] + r)
        order = np.argsort(ratio)
        below = np.cumsum(w[M][order])
        return float(ratio[order][np.searchsorted(below, below[-1] / 2)])

    def error(a: float, r: float) -> float:
        d = np.clip(a * (x + r), 1e-3, max_depth)
        return float(np.sum(w * np.abs(np.log(d) - np.log(y))))

    if np.ptp(x) <= 1e-6 * x.max():
        return best_scale(0.0), 0.0
    middle = float(np.median(x[x > 1e-3]))
    grid = middle * np.concatenate([np.linspace(-1.5, 1, 51), np.geomspace(1.2, 50, 20)])
    loss, a, r = min((error(a, r), a, r) for r in grid for a in (best_scale(r),))
    if r >= 49 * middle:
        raise UserError(
            "no calibration: this network's depths do not grow with the true ones here (the best "
            "scale falls to 0); look at its predictions, and at the truth's unit"
        )
    # Downhill from there: with depths cut at max_depth the median is near the best, not it.
    step = 0.05
    while step > 1e-8:
        beside = [r + step * middle, r - step * middle]
        near = [(a, q) for q in beside] + [(best_scale(q), q) for q in beside]
        near += [(a * (1 + step), r), (a * (1 - step), r)]
        best = min((error(*p), *p) for p in near)
        if best[0] < loss:
            loss, a, r = best
        else:
            step /= 2
    return a, a * r


# ------------------------------------------------------------------------- a tape measure's points

parse_pixel = several(2, whole, "X,Y, a pixel in whole numbers")


def parse_measured(text: str) -> tuple[str, int, int, float]:
    """An argparse type: "a:b.jpg:320,240=1.52" -> ("a:b.jpg", 320, 240, 1.52)."""
    rest, _, metres = text.rpartition("=")
    name, _, pixel = rest.rpartition(":")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not PICTURE:X,Y=METRES")
    return name, *parse_pixel(pixel), positive(metres)


def look_up(measured: list[tuple[str, int, int, float]], predictor: Callable) -> list[dict]:
    """`parse_measured`'s points -> picture, x, y, measured_m, and before_m: what the network says.
    Raises UserError: no such picture or pixel, no depth there."""
    depth_of = functools.lru_cache(1)(lambda name: predictor(read_picture(Path(name))))
    points = []
    for name, x, y, metres in measured:
        try:
            depth = depth_of(name)
        except UserError as error:
            raise UserError(f"--measured {name}: {error}") from error
        check_inside(name, depth.shape, x, y)
        if (before := depth_at(depth, x, y)) is None:
            raise UserError(f"{name}:{x},{y}: the network has no depth there; measure another")
        points.append({"picture": name, "x": x, "y": y, "measured_m": metres, "before_m": before})
    return points


def fit_points(points: list[dict]) -> tuple[float, float, list[str]]:
    """Scale and shift (metres) by log error, all points alike; each gets its "after_m" and
    "residual", a share of the measured; and what there is to say against the fit.

    The shift is 0 under three points, and where all lie at about one distance: nothing tells it
    from the scale there. Raises UserError: no fit, or a scale that no camera explains.
    """
    x, y = (np.array([p[name] for p in points]) for name in ("before_m", "measured_m"))
    advice, spread = [], y.max() / y.min()
    if len(points) < 3:
        advice.append("scale only: three or more points, near and far, give a shift as well")
    elif spread < 1.5:
        advice.append(f"scale only: all points lie at {y.min():.3g} to {y.max():.3g} m; measure "
                      "near and far ones for a shift")  # fmt: skip
    if advice:
        a, b = float(np.exp(np.median(np.log(y / x)))), 0.0
    else:
        a, b = fit_calibration([(x, y)], math.inf)
        if len(points) < 6:
            advice.append(f"{len(points)} points for two numbers: the residuals flatter; take 6")
    if not 1 / 3 <= a <= 3:
        raise UserError(
            f"--measured: a scale of {a:.3g} is no camera's. Metres? These pictures? X,Y from the "
            "top left? Otherwise the points are too few, or too close to one another"
        )
    after = np.maximum(a * x + b, 0)
    residual = np.round(after / y - 1, 6) + 0.0  # no -0.0
    for i, point in enumerate(points):
        point |= {"after_m": float(after[i]), "residual": float(residual[i])}
        others = np.delete(np.abs(residual), i)
        limit = min(0.25, max(0.1, 3 * np.median(others))) if others.size else 0.25
        if abs(residual[i]) > limit:
            advice.append(f"{point['picture']}:{point['x']},{point['y']} does not fit "
                          f"({residual[i]:+.0%}): measure it anew, away from edges")  # fmt: skip
    if (middle := np.median(np.abs(residual))) > 0.1:
        advice.append(f"a weak fit: half of the points are off by {middle:.0%} or more")
    if b < 0:
        advice.append(f"what the network sees nearer than {-b / a:.2f} m becomes no depth")
    return a, b, advice


def measure(measured: list, predictor: Callable, model: Path, file: Path) -> dict:
    """--measured's points -> `file`: printed, returned for --json. Raises UserError, OSError."""
    points = look_up(measured, predictor)
    a, b, advice = fit_points(points)
    made = {
        "format": CALIBRATION, "model": str(model), "model_sha256": sha256(model), "scale": a,
        "shift_m": b, "pairs": len({p["picture"] for p in points}), "points": points,
    }  # fmt: skip
    write_json(file, made)
    print(f"{'measured':>10}{'before':>9}{'after':>9}{'residual':>10}")
    for p in points:
        print(f"{p['measured_m']:>10.3f}{p['before_m']:>9.3f}{p['after_m']:>9.3f}"
              f"{p['residual']:>+10.1%}  {p['picture']}:{p['x']},{p['y']}")  # fmt: skip
    print(f"calibration d' = max(0, {a:.4f} d {b:+.4f} m) -> {file}")
    for text in advice:
        notice(text)
    again = ["python", "predict.py", points[0]["picture"], "--model", model, "--calibration", file]
    print(f"next: {quoted(again)}")
    return {"calibration": {"file": file} | made, "advice": advice}
