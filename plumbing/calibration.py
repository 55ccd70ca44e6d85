"""Scale and shift of a network's metres for one camera or place (ours, no Eq.): the fit, its file,
and a tape measure's points. Needs no PyTorch: it runs on the device too."""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plumbing.files import UserError, notice, quoted, sha256, write_json
from plumbing.flags import positive, several, whole
from plumbing.pictures import depth_at, read_picture

CALIBRATION = "litedepth-calibration-1"  # in every file; raised when an old one could be misread


# -------------------------------------------------------------------------------------- the file


def json_name(text: str) -> Path:
    """An argparse type: a path that ends in .json (so that no checkpoint is overwritten)."""
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .json (INPUT goes before)")
    return Path(text)


def read_calibration(path: Path, model: Path | None = None) -> dict:
    """What evaluate.py --calibrate or predict.py --measured wrote: "scale", "shift_m" (metres) and
    how they were found. Raises UserError: missing, of another kind, impossible, or not fitted for
    this very file `model` (None: for any)."""
    cure = "make one with evaluate.py --calibrate SPLIT or predict.py --measured"
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error!s:.80}); {cure}") from error
    if not isinstance(content, dict) or content.get("format") != CALIBRATION:
        raise UserError(f"{path}: not a calibration (no {CALIBRATION!r} mark); {cure}")
    for name, low in (("scale", 0.0), ("shift_m", -1e9)):
        value = content.get(name)
        if type(value) not in (int, float) or not low < value < 1e9:  # NaN fails too
            raise UserError(f"{path}: {name} {value!r:.40} cannot be; {cure}")
    if model and content.get("model_sha256") != sha256(model):
        raise UserError(f"{path} was fitted for another model file than {model} "
                        f"({content.get('model')}); {cure}")  # fmt: skip
    return content


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


def fit_points(x: np.ndarray, y: np.ndarray) -> tuple[float, float, list[str]]:
    """Scale and shift (metres) that bring x, the network's metres (n,), to y, those measured, by
    log error, and what there is to say against it.

    The shift is 0 under three points, and where all lie at about one distance: nothing tells it
    from the scale there. Raises UserError: no fit, or a scale that no camera explains.
    """
    advice = [f"{len(x)} of 6 points: the residuals flatter, take more"] if len(x) < 6 else []
    if len(x) < 3 or y.max() < 1.5 * y.min():
        advice.append(f"scale only: {len(x)} points at {y.min():.3g} to {y.max():.3g} m; measure "
                      "three or more, near and far, for a shift")  # fmt: skip
        a, b = float(np.exp(np.median(np.log(y / x)))), 0.0
    else:
        a, b = fit_calibration([(x, y)], math.inf)
    if not 1 / 3 <= a <= 3:
        raise UserError(f"--measured: a scale of {a:.3g} is no camera's. Metres? These pictures? "
                        "X,Y from the top left? Or too few points, or too close")  # fmt: skip
    return a, b, advice


def measure(measured: list, predictor: Callable, model: Path, file: Path) -> dict:
    """`parse_measured`'s points -> `file`: printed, returned for --json. Raises UserError: no such
    picture or pixel, no depth there, no fit; OSError."""
    depth_of = functools.lru_cache(1)(lambda name: predictor(read_picture(Path(name))))
    points = []
    for name, x, y, metres in measured:
        try:
            if (before := depth_at(depth_of(name), x, y)) is None:
                raise UserError(f"the network has no depth at {x},{y}; measure another point")
        except UserError as error:
            raise UserError(f"--measured {name}: {error}") from error
        points.append({"picture": name, "x": x, "y": y, "measured_m": metres, "before_m": before})
    x, y = (np.array([p[key] for p in points]) for key in ("before_m", "measured_m"))
    a, b, advice = fit_points(x, y)
    after = np.maximum(a * x + b, 0)
    residual = after / y - 1
    median = np.median(np.abs(residual))
    for point, d, share in zip(points, after.tolist(), residual.tolist()):
        point |= {"after_m": d, "residual": share}
        if abs(share) > max(0.1, 3 * median):
            advice.append(f"{point['picture']}:{point['x']},{point['y']} does not fit "
                          f"({share:+.0%}): measure it anew, away from edges")  # fmt: skip
    if median > 0.1:
        advice.append(f"a weak fit: half of the points are off by {median:.0%} or more")
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
