"""Sec. 4.4 Qualitative Results: metric depth for any picture, folder, video or camera (Fig. 7).

    python predict.py photo.jpg folder/ clip.mp4 --model runs/student/best.pt --out depths
        <stem>_depth.png   16 bit, millimetres, 0 = no depth, at the picture's own size
        <stem>_color.png   picture | depth | colour bar in metres (a video: <stem>_color.mp4)
        <stem>.ply         with --ply: coloured points in metres
    python predict.py --benchmark --model model.tflite          run time on this device (Table 2)

No ground truth is needed. With a .tflite this file runs alone on a Raspberry Pi: numpy, opencv and
ai-edge-litert are all it imports. Exit code: 0 = all done, 1 = some inputs skipped (named on
stderr), 2 = nothing done or a wrong command, 130 = Ctrl-C (what is on disk then is whole; for a
camera Ctrl-C is the way to end, and 0).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import hashlib
import io
import itertools
import json
import math
import os
import platform
import re
import reprlib
import shutil
import stat
import statistics
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

try:
    import cv2
except ImportError as error:
    sys.exit(
        f"OpenCV cannot be imported ({error}). On a bare Linux server it lacks system libraries: "
        "apt install libgl1 libglib2.0-0 (or pip install opencv-python-headless in its place)"
    )

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
DEFAULTS = [f"runs/{run}/{name}" for run in ("student", "distilled")
            for name in ("best.pt", "model.tflite")]  # fmt: skip
HEAD = 15  # frames of a video or camera that fix its colour range (and a camera's frame rate)
HOLE = (150, 150, 150)  # flat grey is not in the colour map
PAPER, INK = 255, (40, 40, 40)  # one number: np.full with three is a hundred times slower


FORMAT, MEMBER = "litedepth-tflite-1", "litedepth.json"  # see `seal`


class PredictError(ValueError):
    """Something the user can mend; the message says what."""


# --------------------------------------------------------------------- Fig. 7, depth as a picture


def colorize(depth_m: np.ndarray, near: float, far: float) -> np.ndarray:
    """Depth (H, W) in metres -> BGR u8 (H, W, 3): magma over log depth, near bright, far dark.

    Equal steps of colour are equal *ratios* of depth, as in si-RMSE, so a desk and a street both
    read well. Beyond near or far the end colour is kept. Holes (<= 0, NaN, inf) are flat grey.
    """
    depth = np.asarray(depth_m, np.float32)
    hole = ~(np.isfinite(depth) & (depth > 0))
    t = np.log(np.where(hole, near, depth) / near) / math.log(far / near)
    level = np.rint(255 - 230 * t.clip(0, 1))  # without magma's last tenth, black in black
    color = cv2.applyColorMap(level.astype(np.uint8), cv2.COLORMAP_MAGMA)
    color[hole] = HOLE
    return color


def auto_range(depths: Iterable[np.ndarray]) -> tuple[float, float]:
    """2nd and 98th percentile of all depths > 0, rounded outward to two digits; metres.

    far >= 1.2 near, so that an almost flat wall is not a firework; no depth at all -> (0.1, 10).
    """
    samples = [d.ravel()[:: max(1, d.size // 200_000)] for d in depths]
    valid = np.concatenate([s[np.isfinite(s) & (s > 0)] for s in samples])
    if not valid.size:
        return 0.1, 10.0
    near, far = np.percentile(valid, (2, 98)).clip(min=1e-3)
    near, far = _two_digits(near, math.floor), _two_digits(far, math.ceil)
    return near, max(far, _two_digits(1.2 * near, math.ceil))


def _two_digits(v: float, rounding: Callable[[float], int]) -> float:
    step = 10.0 ** (math.floor(math.log10(v)) - 1)
    return float(f"{rounding(round(v / step, 6)) * step:.2g}")


def ticks(near: float, far: float, gap: float) -> list[tuple[float, float]]:
    """(value, place) of the bar's labels: both ends, then round values at least `gap` apart.

    place: 0 at near .. 1 at far on the same log scale as `colorize`; gap is in the same unit.
    """
    marks = [(near, 0.0), (far, 1.0)]
    for digits in (1, 2, 3):
        if len(marks) > 4:
            break
        mantissas = range(10 ** (digits - 1), 10**digits)
        round_first = sorted(mantissas, key=lambda m: (m not in (1, 2), m % 5 > 0, m % 2))
        powers = range(math.floor(math.log10(near)), math.floor(math.log10(far)) + 1)
        for m, p in itertools.product(round_first, powers):
            value = float(f"{m}e{p - digits + 1}")
            place = math.log(value / near) / math.log(far / near)
            if 0 < place < 1 and all(abs(place - other) >= gap for _, other in marks):
                marks.append((value, place))
    return sorted(marks)


def _write(canvas: np.ndarray, text: str, x: int, middle: float, height: int) -> None:
    """Writes `text` from column x on, centred on row `middle`, capitals about `height` tall."""
    where, thick = (int(x), round(middle + 0.4 * height)), max(1, round(height / 12))
    cv2.putText(canvas, text, where, cv2.FONT_HERSHEY_SIMPLEX, height / 22, INK, thick, cv2.LINE_AA)


def with_colorbar(
    picture: np.ndarray, near: float, far: float, *, holes: bool = False
) -> np.ndarray:
    """BGR u8 -> the same with a bar at its right: near at the bottom, labelled in metres.

    holes adds a swatch of the holes' grey. Rows of white are added to a picture under 120.
    """
    H = max(120, len(picture))
    letter = min(max(11, round(H / 32)), 22)
    pad, bar = letter, round(1.6 * letter)
    canvas = np.full((H, picture.shape[1] + 2 * pad + bar + 6 * letter, 3), PAPER, np.uint8)
    canvas[: len(picture), : picture.shape[1]] = picture
    x, top, bottom = picture.shape[1] + pad, pad, H - pad
    if holes:
        bottom -= 3 * letter
        canvas[H - pad - round(1.4 * letter) : H - pad, x : x + bar] = HOLE
        _write(canvas, "none", x + bar + pad, H - pad - 0.7 * letter, letter)
    scale = near * (far / near) ** np.linspace(1, 0, bottom - top)
    canvas[top:bottom, x : x + bar] = colorize(scale[:, None], near, far)
    for value, place in ticks(near, far, max(1.8 * letter / (bottom - top), 1 / 7)):
        row = bottom - 1 - place * (bottom - 1 - top)
        y = round(row)
        cv2.line(canvas, (x + bar, y), (x + bar + pad // 2, y), INK, 1)
        _write(canvas, f"{value:.4g} m", x + bar + pad, row, letter)
    return canvas


def panel(
    rgb: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray,
    near: float, far: float, title: str = "",
) -> np.ndarray:  # fmt: skip
    """Input | truth | prediction side by side with one bar; BGR u8.

    rgb (h, w, 3) u8 RGB; truth and prediction (h, w) in metres, 0 = hole. Sizes may differ: all are
    drawn at the largest, at most 1280 on its long side. Truth with under 10 % of its pixels known
    (LiDAR) is drawn as 3x3 dots, the nearest on top: single pixels cannot be seen.
    """
    shown = {"input": rgb, "truth": truth, "prediction": prediction}
    shown = {name: tile for name, tile in shown.items() if tile is not None}
    h, w = max((tile.shape[:2] for tile in shown.values()), key=lambda s: s[0] * s[1])
    zoom = min(1280 / max(h, w), max(1.0, 240 / h))
    h, w = max(1, round(h * zoom)), max(1, round(w * zoom))
    letter = min(max(11, round(h / 32)), 22)
    head = round((4.4 if title else 2.2) * letter)
    space = max(4, letter // 2)
    canvas = np.full((head + h, len(shown) * (w + space) - space, 3), PAPER, np.uint8)
    holes = False
    for i, (name, tile) in enumerate(shown.items()):
        x = i * (w + space)
        if name == "input":
            view = cv2.cvtColor(resize_picture(tile, (h, w)), cv2.COLOR_RGB2BGR)
        else:
            depth = resize_depth(np.asarray(tile, np.float32), (h, w), "nearest")
            known = np.isfinite(depth) & (depth > 0)
            if name == "truth" and known.mean() < 0.1:
                depth = cv2.erode(np.where(known, depth, np.float32(1e9)), np.ones((3, 3)))
                depth[depth > 1e8] = 0
            holes |= not known.all()
            view = colorize(depth, near, far)
        canvas[head:, x : x + w] = view
        _write(canvas, name, x + space, head - 1.1 * letter, letter)
    if title:
        _write(canvas, title, space, 1.4 * letter, letter)
    canvas = with_colorbar(canvas, near, far, holes=holes)
    odd = [(0, s % 2) for s in canvas.shape[:2]]  # video codecs want even sizes
    return np.pad(canvas, [*odd, (0, 0)], constant_values=255)


# ----------------------------------------------------------- the .tflite and what it says of itself


def seal(content: bytes, metadata: dict) -> bytes:
    """A TFLite flatbuffer -> the file that `read_metadata` and every TFLite runtime read.

    The flatbuffer, zeros up to a multiple of 16, then a zip archive with MEMBER, as TFLite's own
    associated files are packed: runtimes ignore it, `unzip -p model.tflite litedepth.json` shows
    it. MEMBER is `metadata` after "format", "bytes" and "sha256" of all that precedes the archive.
    The same in gives the same bytes out. Raises PredictError for what `read_metadata` would refuse.
    """
    if content[4:8] != b"TFL3" or content[-22:-18] == b"PK\5\6":
        raise PredictError("only a bare TFLite flatbuffer can be sealed, and only once")
    content += bytes(-len(content) % 16)
    digest = hashlib.sha256(content).hexdigest()
    stamp = {"format": FORMAT, "bytes": len(content), "sha256": digest}
    metadata = stamp | metadata | stamp  # first, whatever an older file's metadata say
    _check_tensors(metadata, "sealing")
    member = zipfile.ZipInfo(MEMBER, (1980, 1, 1, 0, 0, 0))  # a fixed date: reproducible files
    member.create_system, member.external_attr = 3, 0o644 << 16
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(member, json.dumps(metadata, indent=1, allow_nan=False) + "\n")
    return file.getvalue()


def read_metadata(content: bytes, name: str) -> dict:
    """What `seal` wrote into a .tflite, after its length and checksum were verified.

    To be called before an interpreter sees the bytes: one that is given a damaged flatbuffer may
    crash. name: the file's, for messages. Raises PredictError for a file that is cut, damaged,
    foreign, older than `seal` or of another format.
    """
    anew = "copy it anew, or write it again with export.py"
    if content[4:8] != b"TFL3":
        raise PredictError(f"{name}: not a TFLite file (empty, or a web page?): {anew}")
    if content[-22:-18] != b"PK\5\6":
        raise PredictError(
            f"{name}: no {MEMBER} at its end, so it is cut short (copy it anew), or older or "
            "foreign (write it again with export.py)"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if MEMBER not in archive.namelist():
                raise ValueError(f"no {MEMBER} in it")
            member = archive.getinfo(MEMBER)
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("compressed")
            metadata = json.loads(archive.read(MEMBER))
            form, *stamp = (metadata[key] for key in ("format", "bytes", "sha256"))
    # All that zipfile and json raise on bytes that are not what they should be.
    except (zipfile.BadZipFile, EOFError, LookupError, OSError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        raise PredictError(f"{name}: foreign, or damaged at its end ({error}): {anew}") from error
    if form != FORMAT:
        raise PredictError(
            f"{name}: format {reprlib.repr(form)}, and this predict.py reads {FORMAT!r}: take the "
            "predict.py that lies beside the export.py that wrote it, or export anew"
        )
    start = member.header_offset
    if stamp != [start, hashlib.sha256(content[:start]).hexdigest()]:
        raise PredictError(f"{name}: damaged, it has not the checksum it was written with: {anew}")
    _check_tensors(metadata, name)
    return metadata


def _check_tensors(metadata: dict, name: str) -> None:
    """Raises PredictError unless the metadata names a precision and tensors known here."""
    told = {key: metadata.get(key) for key in ("precision", "input", "output")}
    try:
        (H, W), (h, w) = told["input"]["size"], told["output"]["size"]
        source = told["input"] | {"range": list(told["input"]["range"])}
        fine = (
            isinstance(told["precision"], str)
            and all(type(n) is int and n > 0 for n in (H, W, h, w))
            and source.items() >= {"layout": "NHWC", "channels": "RGB", "range": [0, 255]}.items()
            and told["output"].items() >= {"layout": "NHWC", "dtype": "float32"}.items()
            and source["dtype"] in ("float32", "uint8") and told["output"]["unit"] in ("m", "mm")
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError):
        fine = False
    if not fine:
        raise PredictError(
            f"{name}: {MEMBER} describes tensors that predict.py cannot use: {reprlib.repr(told)}"
        )


# ----------------------------------------------------------------------------- picture -> metres


def resize_picture(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) u8 -> (*size, 3): area average when shrinking, bilinear otherwise; the picture
    itself where it has that size already."""
    if rgb.shape[:2] == tuple(size):
        return rgb
    shrinks = size[0] <= rgb.shape[0] and size[1] <= rgb.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(rgb, size[::-1], interpolation=how)


def resize_depth(depth: np.ndarray, size: tuple[int, int], how: str) -> np.ndarray:
    """(h, w) -> size. nearest: the cell under each pixel's centre (depth itself where it has that
    size already); bilinear mixes neighbours.

    bilinear takes the `cells` of a map that the network's graph has enlarged already; holes (<= 0,
    NaN, inf) do not mix: their cells become 0.
    """
    (h, w), (H, W) = depth.shape, size
    if how == "bilinear":
        depth = cells(depth)
        known = np.isfinite(depth) & (depth > 0)
        mix = functools.partial(cv2.resize, dsize=(W, H), interpolation=cv2.INTER_LINEAR)
        if known.all():
            return mix(depth)
        share = mix(known.astype(np.float32)).clip(min=1e-6)  # of each pixel, that is no hole
        mixed = mix(np.where(known, depth, np.float32(0))) / share
        return np.where(resize_depth(known, size, "nearest"), mixed, np.float32(0))
    if (h, w) == (H, W):
        return depth
    rows = (2 * np.arange(H) + 1) * h // (2 * H)  # integers: cv2's float scale can slip a row
    cols = (2 * np.arange(W) + 1) * w // (2 * W)
    return depth.take(cols, 1).take(rows, 0)  # several times faster than depth[rows, cols]


def cells(depth: np.ndarray) -> np.ndarray:
    """One value for each block of a map (h, w) that was enlarged by nearest; others as they are.

    The blocks of such a map are of one size, to a pixel. Under 8 a side are no network's but those
    of a scene that is flat by chance.
    """
    corners = []
    for side in (depth, depth.T):
        starts = np.flatnonzero(np.r_[True, (side[1:] != side[:-1]).any(1)])
        if len(starts) < 8 or np.ptp(np.diff(starts, append=len(side))) > 1:
            return depth
        corners.append(starts)
    return depth[np.ix_(*corners)]


class Predictor:
    """RGB u8 (H, W, 3) of any size -> depth float32 (H, W) in metres.

    run: raw RGB (*size, 3) of `dtype` -> (h, w) metres, of any size; invoke: its inner part without
    the copies in and out, on the last input (None: they cannot be told apart). calibration: the one
    that a .tflite holds already. `milliseconds` holds the time of each run.
    """

    def __init__(
        self, run: Callable, size: tuple[int, int], resize: str, about: str, *,
        dtype: str = "float32", invoke: Callable | None = None, calibration: dict | None = None,
    ) -> None:  # fmt: skip
        self.run, self.size, self.resize, self.about = run, size, resize, about
        self.dtype, self.invoke, self.calibration = dtype, invoke, calibration
        self.milliseconds: list[float] = []
        run(np.zeros((*size, 3), dtype))  # the first run is slow; it also tries the graph

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        return resize_depth(self.native(rgb), rgb.shape[:2], self.resize)

    def native(self, rgb: np.ndarray) -> np.ndarray:
        """The network's own map (h, w) of the picture, as it comes out of `run`."""
        image = resize_picture(rgb, self.size).astype(self.dtype, copy=False)
        start = time.perf_counter()
        depth = self.run(image)
        self.milliseconds.append(1000 * (time.perf_counter() - start))
        return depth


def load_predictor(
    path: str | os.PathLike, *, image_size: tuple[int, int] | None = None,
    resize: str = "nearest", threads: int | None = None, device: str = "auto",
) -> Predictor:  # fmt: skip
    """A .pt written by `model.save` or a .tflite written by export.py (see `seal`), to be called.

    image_size is what a picture is resized to; None = the file's own (480x640 for a .pt that does
    not say), and a .tflite knows no other. threads: 0 = all usable cores, None = the runtime's
    default. PyTorch is imported for a .pt only. Raises PredictError.
    """
    path = Path(path)
    if not path.is_file():
        raise PredictError(f"{path}: no such model file")
    threads = usable_cores() if threads == 0 else threads
    if path.suffix == ".tflite":
        if device == "cuda":
            say("notice: --device cuda does nothing here: a .tflite runs on the CPU")
        run, size, precision, extra = _load_tflite(path, threads)
        if image_size not in (None, size):
            shape = f"{size[0]}x{size[1]}"
            raise PredictError(
                f"{path} takes {shape} only: give --image_size {shape}, or leave it out"
            )
        about = f"TFLite {precision}, threads {threads or 1}"
    elif path.suffix == ".pt":
        run, own, about = _load_checkpoint(path, threads, device)
        size, extra = image_size or own, {}
    else:
        raise PredictError(f"{path}: a model is a .pt (train.py) or a .tflite (export.py)")
    return Predictor(run, size, resize, f"{about}, {size[0]}x{size[1]}", **extra)


def usable_cores() -> int:
    """CPU cores this process may use (a container or taskset may have set fewer than there are)."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _load_tflite(
    path: Path, threads: int | None
) -> tuple[Callable, tuple[int, int], str, dict[str, object]]:
    content = path.read_bytes()
    metadata = read_metadata(content, str(path))
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            raise PredictError(f"{path} needs a runtime: pip install ai-edge-litert") from None
    try:  # the verified bytes, not the file, which may have changed
        interpreter = Interpreter(model_content=content, num_threads=threads or 1)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PredictError(
            f"{path}: whole, but this TFLite runtime cannot run it; pip install "
            f"ai-edge-litert==2.1.6 is known to: {reason}"
        ) from error
    sides = interpreter.get_input_details(), interpreter.get_output_details()
    found = [[(tuple(t["shape"].tolist()), np.dtype(t["dtype"]).name) for t in s] for s in sides]
    size, dtype = tuple(metadata["input"]["size"]), metadata["input"]["dtype"]
    said = [[((1, *size, 3), dtype)], [((1, *metadata["output"]["size"], 1), "float32")]]
    if found != said:
        raise PredictError(
            f"{path}: its {MEMBER} says {said[0]} in and {said[1]} out, the graph has {found[0]} "
            f"and {found[1]}: write it again with export.py"
        )
    source, target = sides[0][0]["index"], sides[1][0]["index"]
    per_metre = {"m": 1, "mm": 1000}[metadata["output"]["unit"]]

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        depth = interpreter.get_tensor(target)[0, :, :, 0]
        return depth if per_metre == 1 else depth / np.float32(per_metre)

    extra = {"dtype": dtype, "invoke": interpreter.invoke}
    return run, size, metadata["precision"], extra | {"calibration": metadata.get("calibration")}


def _load_checkpoint(
    path: Path, threads: int | None, device: str
) -> tuple[Callable, tuple[int, int], str]:
    try:
        import torch

        import model
    except ImportError as error:
        raise PredictError(
            f"{path} needs PyTorch and model.py ({error}): pip install torch, or use a .tflite"
        ) from error
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise PredictError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    if threads:
        torch.set_num_threads(threads)
    try:
        checkpoint = model.read_checkpoint(path)
        network = model.build(checkpoint, path).eval().to(device)
    except model.CheckpointError as error:
        raise PredictError(str(error)) from error

    def run(image: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
        # No TensorFloat-32: a GPU must give the metres that the CPU and the .tflite give.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return network(x)[0, 0].float().cpu().numpy()

    own = tuple(checkpoint.get("image_size") or (480, 640))
    return run, own, f"PyTorch, {device}, threads {torch.get_num_threads()}"


# ----------------------------------------------------------------- Table 2, run time on this device


def benchmark(
    load: Callable[[int], Predictor], picture: np.ndarray | None, threads: Iterable[int], *,
    warmup: int, runs: int, root: Path = Path("/"),
) -> dict:  # fmt: skip
    """Run times in ms for each thread count, and what they depend on, for `benchmark_table`.

    load: thread count -> predictor. picture: RGB u8 of any size; None: noise of the network's. Per
    count, after `warmup` runs: `runs` times the network alone (copies in and out excluded, as far
    as `Predictor.invoke` is known) and `runs` times the whole path (picture resized, copied in,
    run, copied out, depth resized). root: above proc/ and sys/ (tests have their own).
    """
    start, rows = machine(root), []
    for count in threads:
        predictor = load(count)
        if picture is None:
            picture = np.random.default_rng(0).integers(0, 256, (*predictor.size, 3), np.uint8)
        for _ in range(warmup):
            predictor(picture)
        before = machine(root)  # after the warm-up: an idle clock is low
        image = resize_picture(picture, predictor.size).astype(predictor.dtype)
        network = predictor.invoke or functools.partial(predictor.run, image)
        rows.append({
            "threads": count, "about": predictor.about, "network_ms": run_times(network, runs),
            "whole_ms": run_times(functools.partial(predictor, picture), runs), "before": before,
            "after": machine(root),
        })  # fmt: skip
    return {
        "picture": list(picture.shape[:2]), "runs": runs, "warmup": warmup, "start": start,
        "threads": rows, "warnings": doubts(start, rows),
    }  # fmt: skip


def run_times(call: Callable, runs: int) -> dict[str, float]:
    """Milliseconds of `runs` calls: median, tail, and Table 2's Average and STD."""
    ends = [time.perf_counter()]
    for _ in range(runs):
        call()
        ends.append(time.perf_counter())
    ms = 1000 * np.diff(ends)
    p50, p90, p99 = np.percentile(ms, (50, 90, 99)).tolist()
    return {"p50": p50, "p90": p90, "p99": p99, "mean": float(ms.mean()), "std": float(ms.std())}


def machine(root: Path) -> dict:
    """What this computer tells of itself now; None where it does not.

    cpu, cores, governor; mhz: the fastest core's; celsius: the hottest zone's; load: of the last
    minute; throttled: the bits of a Raspberry Pi's firmware, see `THROTTLED`. They are looked at
    beside the MHz because the Pi's kernel does not count its firmware's throttling in those.
    """

    def read(pattern: str) -> list[str]:
        found = []
        for path in sorted(root.glob(pattern)):
            with contextlib.suppress(OSError):  # some sensors exist and cannot be read
                found.append(path.read_text(errors="replace").strip("\0\n "))
        return found

    def numbers(pattern: str) -> list[int]:
        return [int(text) for text in read(pattern) if re.fullmatch(r"-?\d+", text)]

    cpu = read("proc/device-tree/model")
    cpu += re.findall(r"(?m)^model name\s*: (.+)$", "\n".join(read("proc/cpuinfo")))
    mhz = [khz / 1000 for khz in numbers("sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")]
    celsius = [t / 1000 for t in numbers("sys/class/thermal/thermal_zone*/temp")]
    bits = read("sys/devices/platform/soc*/*/get_throttled")  # hexadecimal
    if not bits and (command := shutil.which("vcgencmd")):
        done = subprocess.run([command, "get_throttled"], capture_output=True, text=True)
        bits = [done.stdout.strip().removeprefix("throttled=0x")]
    bits = [int(text, 16) for text in bits if re.fullmatch("[0-9a-f]+", text)]
    load = read("proc/loadavg")
    return {
        "cpu": f"{(cpu or [platform.processor() or 'CPU'])[0]}, {platform.machine()}",
        "cores": usable_cores(),
        "governor": (read("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor") or [None])[0],
        "mhz": max(mhz, default=None),
        "celsius": max((t for t in celsius if -50 < t < 150), default=None),
        "throttled": bits[0] if bits else None,
        "load": float(load[0].split()[0]) if load else None,
    }


# Bit of get_throttled -> meaning; 16 bits higher the same: has happened earlier.
THROTTLED = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}


def doubts(start: dict, rows: list[dict]) -> list[str]:
    """Reasons not to trust the run times, each in one line with its cure."""
    told = []
    if (start["load"] or 0) >= 0.5:
        told.append(f"load average {start['load']:g} before the start: something else runs here, "
                    "or just did; wait, or stop it")  # fmt: skip
    if start["governor"] == "powersave":
        told.append("governor powersave: the clock may stay low; echo performance | sudo tee "
                    "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")  # fmt: skip
    for row in rows:
        before, after = row["before"]["mhz"], row["after"]["mhz"]
        if before and after and after < 0.95 * before:
            told.append(f"threads {row['threads']}: the clock fell from {before:.0f} to "
                        f"{after:.0f} MHz: heat or a weak supply; cool it and repeat")  # fmt: skip
    states = [state for row in rows for state in (row["before"], row["after"])]
    hottest = max((s["celsius"] for s in states if s["celsius"] is not None), default=0)
    if hottest >= 80:
        told.append(f"{hottest:.0f} C: a Raspberry Pi slows down from 80 C on; give it a heat sink "
                    "or a fan, and repeat")  # fmt: skip
    earlier, bits = start["throttled"] or 0, 0
    for now in (s["throttled"] or 0 for s in states):
        bits |= now | (now & ~earlier) >> 16
    if names := [name for bit, name in THROTTLED.items() if bits >> bit & 1]:
        told.append(f"the firmware reports {', '.join(names)}: better supply or cooling needed")
    return told


def benchmark_table(report: dict) -> str:
    """The report of `benchmark` for the terminal."""
    start, (H, W) = report["start"], report["picture"]

    def state(s: dict) -> str:
        mhz, celsius = ("-" if s[k] is None else round(s[k]) for k in ("mhz", "celsius"))
        return f"{mhz:>6}{celsius:>5}"

    about = [start["cpu"], f"{start['cores']} cores"]
    about += [f"{k} {start[k]}" for k in ("governor", "load") if start[k] is not None]
    about += [f"throttled {start['throttled']:#x}"] if start["throttled"] is not None else []
    kinds = {"network_ms": ("p50", "p90", "p99", "mean", "std"), "whole_ms": ("p50", "p90")}
    lines = [
        ", ".join(about),
        f"{report['runs']} runs after {report['warmup']} more; milliseconds. network: alone (of a "
        ".tflite, without copies in and out)",
        f"whole: {H}x{W} picture to depth. MHz, C: after the runs; at the start{state(start)}",
        f"{'':<8}{'network':>40}{'whole':>16}",
        f"{'threads':<8}" + "".join(f"{k:>8}" for keys in kinds.values() for k in keys)
        + "   MHz    C",
    ]  # fmt: skip
    for row in report["threads"]:
        figures = "".join(f"{row[kind][k]:>8.2f}" for kind, keys in kinds.items() for k in keys)
        lines.append(f"{row['threads']:<8}{figures}{state(row['after'])}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------ point cloud


def camera(
    known: dict | None, stem: str, size: tuple[int, int], to: tuple[int, int]
) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in pixels of the picture `stem` of size (H, W) when it is resized to `to`.

    known: fx, fy, cx, cy and perhaps width, height of the pictures they are for, or "frames" with
    one such entry per stem; None: a guess, the Kinect's 63 degrees along the longer side. A pixel's
    centre is at whole numbers. Raises PredictError.
    """
    H, W = size
    f = 518.858 * max(H, W) / 640
    entry = {"fx": f, "fy": f, "cx": (W - 1) / 2, "cy": (H - 1) / 2} if known is None else known
    try:
        entry = entry["frames"][stem] if "frames" in entry else entry
        fx, fy, cx, cy = (float(entry[k]) for k in ("fx", "fy", "cx", "cy"))
        h, w = float(entry.get("height", H)), float(entry.get("width", W))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PredictError(
            f"--intrinsics has no camera for {stem!r}: wanted fx fy cx cy (width height), in "
            'pixels, or "frames" with such an entry for each stem'
        ) from None
    # A crop's centre may lie beside it. A focal length of a twentieth of the side is 169 degrees:
    # rather a camera in other units.
    near = -w <= cx <= 2 * w and -h <= cy <= 2 * h and math.isfinite(fx + fy + w + h)
    if not (near and min(w, h) > 0 and min(fx / w, fy / h) > 0.05):  # False for NaN too
        raise PredictError(
            f"--intrinsics {fx:g},{fy:g},{cx:g},{cy:g} cannot be those of pictures {w:g} wide and "
            f"{h:g} high: focal lengths and centre are in pixels"
        )
    if abs(math.log(W * h / (H * w))) > 0.02:
        raise PredictError(
            f"--intrinsics is for pictures {w:g} wide and {h:g} high, this one has {W} and {H}: "
            "another camera, cropped or turned"
        )
    sy, sx = to[0] / h, to[1] / w
    return fx * sx, fy * sy, (cx + 0.5) * sx - 0.5, (cy + 0.5) * sy - 0.5


def point_cloud(
    rgb: np.ndarray, native: np.ndarray, K: tuple[float, float, float, float], *,
    how: str, edge: float, near_far: tuple[float, float] | None,
) -> np.ndarray:  # fmt: skip
    """RGB u8 (H, W, 3), a map (h, w) of it in metres, fx fy cx cy -> x y z red green blue, (n,).

    x right, y up, z towards the viewer, metres: viewers (MeshLab, CloudCompare, Open3D) look along
    -z with y up, so the cloud opens as the camera saw it. (x, -y, -z) is the camera's own frame,
    that of `losses.back_project`. One point per pixel; how: see `resize_depth`. Left out are holes,
    what lies outside near_far, and what differs by more than the ratio `edge` from the cell it
    stands in: it would fly between the two sides of an edge.
    """
    size, (near, far) = rgb.shape[:2], near_far or (0, math.inf)
    depth, own = resize_depth(native, size, how), resize_depth(native, size, "nearest")
    with np.errstate(divide="ignore", invalid="ignore"):
        keep = np.abs(np.log(depth / own)) <= math.log(edge)  # False for holes
    v, u = np.nonzero(keep & (depth > 0) & (depth >= near) & (depth <= far))
    z, (fx, fy, cx, cy) = depth[v, u], K
    kinds = [(k, "<f4") for k in "xyz"] + [(k, "u1") for k in ("red", "green", "blue")]
    xyz = (u - cx) / fx * z, (cy - v) / fy * z, -z
    return np.rec.fromarrays([*xyz, *rgb[v, u].T], dtype=kinds)


def ply(points: np.ndarray) -> bytes:
    """Records of `point_cloud` -> a binary PLY file."""
    kinds = {"<f4": "float", "|u1": "uchar"}
    lines = [
        "ply", "format binary_little_endian 1.0",
        "comment metres; x right, y up, z towards the viewer",
        "comment (x, -y, -z): x right, y down, z forward", f"element vertex {len(points)}",
        *(f"property {kinds[kind]} {name}" for name, kind in points.dtype.descr), "end_header\n",
    ]  # fmt: skip
    return "\n".join(lines).encode() + points.tobytes()


# ----------------------------------------------------------------------------------- files in, out


def natural(path: Path) -> tuple:
    """Sorts img2 before img10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], path.name


def collect(inputs: Iterable[str]) -> list[Path]:
    """The files to read, each once; a folder gives the pictures at its top level."""
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            found = [p for p in path.iterdir() if p.suffix.lower() in IMAGES and p.is_file()]
            found = sorted((p for p in found if not p.name.startswith(".")), key=natural)
            if not found:
                kinds = " ".join(sorted(IMAGES))
                raise PredictError(f"{path}: no pictures at this folder's top level ({kinds})")
            print(f"{path}: {len(found)} pictures")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise PredictError(f"{path}: no such file or folder")
    return list({p.resolve(): p for p in files}.values())


def output_names(files: list[Path]) -> list[str]:
    """The stem of each file, made unique: parent_stem where stems repeat, then a number."""
    stems = Counter(p.stem.lower() for p in files)
    names: list[str] = []
    for path in files:
        alone = stems[path.stem.lower()] == 1
        base = path.stem if alone else f"{path.resolve().parent.name}_{path.stem}"
        tries = (base if n == 1 else f"{base}_{n}" for n in itertools.count(1))
        used = {name.lower() for name in names}  # file systems may ignore case
        names.append(next(name for name in tries if name.lower() not in used))
    return names


def read_picture(path: Path) -> np.ndarray:
    """RGB u8 (H, W, 3), turned as its EXIF says; grey is repeated, alpha dropped, 16 bit -> 8.

    Raises PredictError for what is no picture, for a file cut short (OpenCV would return it with a
    flat grey rest), for one that claims more pixels than it can hold and for 16-bit grey PNG, which
    is a depth map.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise PredictError(str(error)) from error
    if is_cut(data):
        raise PredictError("cut short (its end mark is missing); copy it anew")
    if reason := overstated(data):
        raise PredictError(f"impossible header: {reason}")
    if data[:4] == b"\x89PNG" and data[24:26] == b"\x10\x00":
        raise PredictError("16-bit grey PNG: a depth map, not a picture")
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error as error:
        raise PredictError(f"OpenCV cannot read it: {error.err}") from error
    if bgr is None:
        raise PredictError("not a picture that OpenCV can read")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def is_cut(data: bytes) -> bool:
    """Whether a JPEG, PNG, WebP or BMP file lacks its end; cv2.imread would not tell."""
    if data[:2] == b"\xff\xd8":  # JPEG: from the scan on, past an EXIF thumbnail's own end mark
        return data.find(b"\xff\xd9", walk_jpeg(data)[0]) < 0
    if data[:4] == b"\x89PNG":
        return b"IEND" not in data
    if data[:4] == b"RIFF":  # WebP
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return data[:2] == b"BM" and len(data) < int.from_bytes(data[2:6], "little")


def walk_jpeg(data: bytes) -> tuple[int, int | None]:
    """Where a JPEG's first scan begins (or its segments end), and the segment that tells its size;
    None = there is no such segment."""
    at, frame = 2, None
    while fill := FILL.match(data, at):  # any number of them may stand before a mark
        at = fill.end() - 1
        marker = data[at + 1] if at + 1 < len(data) else 0xDA
        if marker == 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and frame is None:
            frame = at
        alone = 0xD0 <= marker <= 0xD8 or marker == 0x01  # no length follows
        at += 2 if alone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at, frame


FILL = re.compile(rb"\xff+")


def overstated(data: bytes, length: int | None = None) -> str:
    """What a PNG or JPEG claims but cannot hold; "" where all can be, and for other kinds of files.
    Decoding such a file takes gigabytes and minutes. data: all of it, or what a file of `length`
    bytes begins with: then its head alone is judged, for one that is damaged further on has a
    place of its own in a count of pictures that could not be decoded.

    A PNG is packed by deflate: a match gives 258 bytes at most and costs two bits at least, one for
    its length and one for its distance, so that a byte holds 4 * 258 = 1032. In a JPEG each block
    of 8x8 in the finest component costs a bit or more, the Huffman code of its first coefficient,
    so that a byte holds 512 pixels. (Arithmetic coding, frames C9 to CF, has no such bound, and
    this is not asked of it.) Each scan of a JPEG is a pass over all its pixels: ten are usual, and
    two bytes that look like one stand by chance in every 64 kB of a preview or colour profile.
    OpenCV clears as much memory as a PNG's chunk says it is long before it looks for its bytes.
    """
    whole = length is None
    length = len(data) if whole else length
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 26:
        w, h = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        bits = data[24] * {2: 3, 4: 2, 6: 4}.get(data[25], 1)
        possible = h * (-(-w * bits // 8)) <= 1032 * length
        at = 8
        while whole and at + 8 <= len(data) and data[at + 4 : at + 8] != b"IEND":
            n = int.from_bytes(data[at : at + 4], "big")
            at += 12 + n
            if at > length:
                return f"a chunk of {n} bytes in {length}"
    elif data[:2] == b"\xff\xd8":
        at = walk_jpeg(data)[1]
        if at is None or len(data) < at + 9:
            return ""
        h, w = (int.from_bytes(data[k : k + 2], "big") for k in (at + 5, at + 7))
        possible = data[at + 1] >= 0xC9 or h * w <= 512 * length
        scans = data.count(b"\xff\xda") if whole else 0
        if scans > 256 + length // 4096:
            return f"{scans} scans in {length} bytes"
    else:
        return ""
    return "" if possible else f"{h}x{w} pixels in {length} bytes"


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A regular file, opened for reading. Raises OSError, also for a folder, for a pipe (opening it
    would wait for somebody who writes, perhaps for ever) and for a device (it may have no end)."""

    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has none

    file = open(path, "rb", opener=at_once)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_regular(path: str | os.PathLike) -> bytes:
    """What a regular file of at most LARGEST bytes holds. Raises OSError."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise OSError(errno.EFBIG, "larger than a gigabyte", str(path))
        return file.read()


LARGEST = 1 << 30  # of a picture, a list or a file of settings


def write_picture(path: Path, picture: np.ndarray) -> None:
    """PNG, whole or not at all. Raises OSError."""
    write_file(path, cv2.imencode(".png", picture)[1].tobytes())


def write_file(path: Path, content: bytes) -> None:
    """The file is there whole, or as it was before. Raises OSError, which names it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:  # a full disk is told without a name
        why = error.strerror or error
        raise OSError(error.errno, f"cannot be written ({why})", str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def millimetres(depth_m: np.ndarray) -> np.ndarray:
    """Metres -> u16 millimetres, rounded, at most 65,535; no depth (<= 0, NaN, inf) -> 0."""
    depth = np.where(np.isfinite(depth_m), depth_m, 0).astype(np.float64)
    return np.rint(1000 * depth).clip(0, 65535).astype(np.uint16)


class Smooth:
    """A video's depth (H, W) in metres, frame by frame -> the same with less flicker.

    Per pixel an exponential average of log depth: noise of the network is a *ratio* of depth. An
    older frame weighs half as much after every `half_life`, in seconds and not in frames, so that
    it looks alike at any frame rate; independent noise keeps (1 - a) / (1 + a) of its variance,
    with a = 0.5 ** (seconds per frame / half_life). Where depth and average differ by more than the
    ratio `reset`, something else is seen there: the average starts anew, so that moving edges
    leave no trail. So it does after a hole; holes pass and never enter an average.
    """

    def __init__(self, half_life: float, reset: float) -> None:
        self.half_life, self.reset = half_life, reset
        self.average: np.ndarray | None = None  # of log depth; NaN after a hole

    def __call__(self, depth: np.ndarray, seconds: float) -> np.ndarray:
        """The next frame, `seconds` after the one before."""
        now = np.log(np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan)))
        old = now if self.average is None else self.average
        a = 0.5 ** (seconds / self.half_life)
        same = np.abs(now - old) <= math.log(self.reset)  # False for NaN
        self.average = np.where(same, a * old + (1 - a) * now, now)
        return np.where(same, np.exp(self.average), depth)


def predict_video(
    capture: cv2.VideoCapture, name: str, predictor: Callable, out: Path, *,
    near_far: tuple[float, float] | None, frames: bool, live: bool, show: bool,
    notice: Callable[[np.ndarray], None] = lambda rgb: None, smooth: Smooth | None = None,
) -> int:  # fmt: skip
    """Every frame -> <out>/<name>_color.mp4, or a window if show; how many frames there were.

    One colour range for all frames: near_far, or that of the first HEAD frames. frames: also
    <out>/<name>_frames/<index>_depth.png. smooth: a new one, for all that is written. live: Ctrl-C
    ends a recording and keeps it; a file's video is written to its end or not at all. Raises
    PredictError, OSError.
    """
    fps = capture.get(cv2.CAP_PROP_FPS)
    fps = fps if 1 <= fps <= 240 else 30.0
    start = time.perf_counter()

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        last = start
        while (frame := capture.read())[0]:
            now = time.perf_counter()
            rgb = cv2.cvtColor(frame[1], cv2.COLOR_BGR2RGB)
            notice(rgb)
            depth = predictor(rgb)
            yield rgb, smooth(depth, now - last if live else 1 / fps) if smooth else depth
            last = now

    pairs = read()
    head = list(itertools.islice(pairs, HEAD))
    if not head:
        raise PredictError("no frame can be read")
    near, far = near_far or auto_range(depth for _, depth in head)
    print(f"{name}: colours from {near:g} to {far:g} m" + (
        "" if near_far else f" (its first {len(head)} frames; other: --range NEAR,FAR)"
    ))  # fmt: skip
    if live:  # a camera promises 30 and the network may be slower: measure
        fps = min(max(1.0, len(head) / (time.perf_counter() - start)), 240.0)
    total = 0 if live else int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    target, part = out / f"{name}_color.mp4", out / f".{name}.{os.getpid()}.part.mp4"
    folder = out / f"{name}_frames"
    if frames:
        folder.mkdir(exist_ok=True)
    writer, count = None, 0
    try:
        try:
            for rgb, depth in progress(itertools.chain(head, pairs), total, name):
                picture = panel(rgb, None, depth, near, far)
                if frames:
                    write_picture(folder / f"{count:06d}_depth.png", millimetres(depth))
                if show:
                    cv2.imshow("LiteDepth (q ends)", picture)
                    if cv2.waitKey(1) & 0xFF == ord("q"):
                        break
                elif writer is None:
                    code = cv2.VideoWriter_fourcc(*"mp4v")
                    writer = cv2.VideoWriter(str(part), code, fps, picture.shape[1::-1])
                    if not writer.isOpened():
                        raise PredictError(f"OpenCV cannot write {target} here (mp4v)")
                if writer is not None:
                    writer.write(picture)
                count += 1
        except KeyboardInterrupt:
            if not live:
                raise
        if count < total:
            say(f"notice: {name} says {total} frames, {count} could be read: cut short?")
        if writer is not None:
            writer.release()
            os.replace(part, target)
    finally:
        if writer is not None:
            writer.release()
        part.unlink(missing_ok=True)
    return count


def progress(items: Iterable, total: int, name: str) -> Iterable:
    """A tqdm bar on a terminal, where tqdm is installed; nothing otherwise."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, total=total or None, desc=name, unit="", disable=None, leave=False)


def say(text: str) -> None:
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # a progress bar may stand on this line
    print(clear + text, file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------------------- main


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help explains the flags)\n")


def make_parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="predict.py",
        description="Metric depth for pictures, folders, videos, a camera; no ground truth needed.",
        epilog="A picture of another shape than --image_size is stretched to it and the depth "
        "stretched back; you are told when the shapes differ by more than 2 %. Exit code: 0 all "
        "done, 1 some inputs skipped (named), 2 nothing done or a wrong command.",
    )
    add = p.add_argument_group("what is read").add_argument
    add("inputs", nargs="*", metavar="INPUT",
        help="pictures, videos, or folders (their pictures, not those of sub-folders, in natural "
        "order: img2 before img10). Inputs of one stem are named after their folders")
    add("--camera", type=int, metavar="N",
        help="read camera N instead (0 is usually the first); ends with Ctrl-C, or q in the window")
    add = p.add_argument_group("the network").add_argument
    add("--model", metavar="FILE",
        help=".pt of train.py or .tflite of export.py (default: the newest of "
        f"{', '.join(DEFAULTS)})")
    add("--image_size", type=parse_size, metavar="HxW",
        help="pictures are resized to this first; keep it at the training pictures' size "
        "(default: the model file's own, or 480x640 where a .pt does not say). A .tflite takes its "
        "own only")
    add("--threads", type=int, metavar="N",
        help="CPU threads of the network; 0 = all cores (default 1: it is so small that more pay "
        "on an idle machine only, and cost on a busy one; try 4 on a Raspberry Pi. --benchmark: "
        "1, 2, 4 .. all cores, to see what pays)")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"],
        help="for a .pt (default auto: the GPU if there is one); a .tflite runs on the CPU")
    add = p.add_argument_group("what is written").add_argument
    add("--out", default="runs/predictions", metavar="DIR",
        help="where the results go (default runs/predictions); inputs are never overwritten, older "
        "results are")
    add("--range", type=parse_range, metavar="NEAR,FAR", dest="near_far",
        help="ends of the colour bar in metres, such as 0.5,10; give it to compare pictures "
        "(default: 2nd to 98th percentile of each picture; of the first "
        f"{HEAD} frames of a video). The 16-bit PNG does not depend on it")
    add("--resize", choices=["nearest", "bilinear"],
        help="from the network's map back to the picture's size: nearest keeps only depths the "
        "network gave; bilinear is smoother but invents depths between the two sides of an edge "
        "(default nearest; bilinear for the points of --ply)")
    add("--ply", action="store_true",
        help="pictures: also write <stem>.ply, a coloured point cloud in metres (x right, y up, z "
        "towards the viewer) for MeshLab, CloudCompare, Open3D; points outside a given --range are "
        "left out")
    add("--intrinsics", type=parse_intrinsics, metavar="FILE|FX,FY,CX,CY[,W,H]",
        help="--ply: the camera in pixels, of pictures W wide and H high (default: the size of "
        "each), or an intrinsics.json with fx fy cx cy width height, or frames by stem (default: a "
        "guess, 63 degrees along the longer side, the Kinect's)")
    add("--ply_edge", type=number(float, 1), default=1.1, metavar="RATIO",
        help="--ply: points that differ by more from the network's own depth there are left out: "
        "they fly between the two sides of an edge (default 1.1, that is 10 %%)")
    add = p.add_argument_group("videos and camera").add_argument
    add("--frames", action="store_true",
        help="also write <stem>_frames/000000_depth.png ..., 16-bit millimetres")
    add("--show", action="store_true",
        help="camera: show it in a window instead of recording it (needs a display)")
    add("--smooth", nargs="?", const=0.2, type=half_life, metavar="SECONDS",
        help="less flicker: average each pixel's depth over time; a frame weighs half as much "
        "after SECONDS (0.2 where no number follows; INPUT goes before the flag). What moves lags "
        "by 1.4 SECONDS, unless it jumps, see --smooth_reset (default: off)")
    add("--smooth_reset", type=number(float, 1.001), default=1.2, metavar="RATIO",
        help="--smooth starts anew where depth changes by more than this: lower lets less smear, "
        "higher takes stronger flicker away (default 1.2, that is 20 %%)")
    add = p.add_argument_group("run time on this device (Table 2)").add_argument
    add("--benchmark", action="store_true",
        help="time the network and write no depth: on INPUT, one picture, or on noise. Let the "
        "machine idle a minute before; what makes the figures doubtful is told below them")
    add("--runs", type=number(int, 1), default=200, metavar="N",
        help="timed runs per thread count (default 200)")
    add("--warmup", type=number(int, 0), default=50, metavar="N",
        help="runs before them, until the clock is up and the caches are full (default 50)")
    add("--json", metavar="FILE", help="also write the figures there")
    return p


def number(kind: type, low: float) -> Callable[[str], float]:
    """An argparse type: a finite int or float that is at least `low`."""

    def parse(text: str) -> float:
        value = kind(text)  # ValueError: argparse words it
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {low}")
        return value

    parse.__name__ = kind.__name__
    return parse


def half_life(text: str) -> float:
    """An argparse type for --smooth, which may stand before INPUT by mistake."""
    try:
        return number(float, 1e-3)(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds; INPUT goes before --smooth"
        ) from None


def parse_range(text: str) -> tuple[float, float]:
    """"0.5,10" -> (0.5, 10.0)."""
    try:
        near, far = (float(v) for v in text.split(","))
    except ValueError:
        near = far = 0.0
    if not 0 < near < far < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not NEAR,FAR in metres with 0 < NEAR < FAR")
    return near, far


def parse_size(text: str) -> tuple[int, int]:
    """"480x640" -> (480, 640), height first."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if not match or min(int(match[1]), int(match[2])) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 480x640")
    return int(match[1]), int(match[2])


def parse_intrinsics(text: str) -> dict:
    """"518,519,319.5,239.5,640,480" or the name of a JSON file -> what `camera` reads."""
    numbers = text.split(",")
    if len(numbers) in (4, 6):
        with contextlib.suppress(ValueError):
            return dict(zip(("fx", "fy", "cx", "cy", "width", "height"), map(float, numbers)))
    try:
        return json.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither FX,FY,CX,CY[,W,H] nor a readable JSON file ({error})"
        ) from error


def newest_model(kind: str = "") -> Path:
    """The newest of DEFAULTS that ends in `kind`, under the current folder. Raises PredictError."""
    found = [Path(p) for p in DEFAULTS if p.endswith(kind) and Path(p).is_file()]
    if not found:
        raise PredictError(
            f"no model here (looked for {', '.join(DEFAULTS)}): train one with train.py, or name "
            "a file with --model FILE"
        )
    return max(found, key=lambda p: p.stat().st_mtime)


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        return run(args)
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except (PredictError, OSError, cv2.error) as error:
        say(f"predict.py: error: {' '.join(str(error).split())}")
        return 2


def run(args: argparse.Namespace) -> int:
    """`main` without the handling of errors."""
    if args.threads is not None and args.threads < 0:
        raise PredictError(f"--threads must be 0 (all cores) or more, got {args.threads}")
    live, out = args.camera is not None, Path(args.out)
    if live == bool(args.inputs) and not args.benchmark:
        raise PredictError("give pictures, folders or videos, or else --camera N")
    files = collect(args.inputs)
    if args.benchmark and (live or len(files) > 1):
        raise PredictError("--benchmark takes one picture as INPUT, or none")
    model = Path(args.model) if args.model else newest_model()
    load = functools.partial(
        load_predictor, model, image_size=args.image_size, resize=args.resize or "nearest",
        device=args.device,
    )  # fmt: skip
    if args.benchmark:
        if files and files[0].suffix.lower() not in IMAGES:
            raise PredictError(f"{files[0]}: --benchmark takes one picture as INPUT, or none")
        picture = read_picture(files[0]) if files else None
        return run_benchmark(args, model, lambda n: load(threads=n), picture)
    moving = live or any(p.suffix.lower() in VIDEOS for p in files)
    still = any(p.suffix.lower() not in VIDEOS for p in files)
    for flag, given, useful, what in (
        ("--show", args.show, live, "--camera"), ("--ply", args.ply, still, "pictures"),
        ("--frames", args.frames, moving, "videos and --camera"),
        ("--smooth", args.smooth, moving, "videos and --camera"),
        ("--intrinsics", args.intrinsics, args.ply, "--ply"),
        ("--json", args.json, False, "--benchmark"),
    ):  # fmt: skip
        if given and not useful:
            say(f"notice: {flag} does nothing here: it is for {what}")
    if args.ply and still and args.intrinsics is None:
        say("notice: --ply without --intrinsics: 63 degrees along the longer side (the Kinect) is "
            "a guess; widths and heights, not distances, are wrong by as much as it is")
    names = output_names(files)
    # An input may lie in --out; a result must not take its place.
    taken = {p.resolve() for p in files} | {p.resolve().parent for p in files}
    for path, name in zip(files, names):
        for end in ("depth.png", "color.png", "color.mp4", "frames"):
            if (out / f"{name}_{end}").resolve() in taken:
                raise PredictError(f"{out / name}_{end} is an input itself: choose another --out")
        if name != path.stem:
            print(f"{path}: same stem as another input, written as {name}")
    predictor = load(threads=1 if args.threads is None else args.threads)
    print(f"model: {model}{'' if args.model else ' (the newest)'} ({predictor.about})")
    if out.exists() and not out.is_dir():
        raise PredictError(f"--out {out} is a file: name a folder")
    H, W = predictor.size
    stretched: list[tuple[int, int]] = []

    def notice(rgb: np.ndarray) -> None:
        h, w = rgb.shape[:2]
        if not stretched and abs(math.log(w * H / (h * W))) > 0.02:
            stretched.append((h, w))
            say(f"notice: {h}x{w} (high x wide) is stretched to the network's {H}x{W} and back; "
                "depth may suffer: crop it, or export.py --input_size. Said once")  # fmt: skip

    def video(capture: cv2.VideoCapture, name: str, live: bool, show: bool) -> int:
        smooth = Smooth(args.smooth, args.smooth_reset) if args.smooth else None
        return predict_video(
            capture, name, predictor, out, near_far=args.near_far, frames=args.frames, live=live,
            show=show, notice=notice, smooth=smooth,
        )  # fmt: skip

    if live:
        capture = cv2.VideoCapture(args.camera)
        if not capture.isOpened():
            raise PredictError(
                f"camera {args.camera} cannot be opened: is it plugged in (ls /dev/video*), or in "
                "use? OpenCV reads USB cameras; of a Pi's ribbon camera record a file and give that"
            )
        display = sys.platform in ("win32", "darwin") or any(
            os.environ.get(v) for v in ("DISPLAY", "WAYLAND_DISPLAY")
        )
        if args.show and not display:
            say("notice: no display here, so --show is off and the camera is recorded")
        out.mkdir(parents=True, exist_ok=True)
        name = f"camera{args.camera}_{time.strftime('%Y%m%d-%H%M%S')}"  # keeps older recordings
        done = video(capture, name, True, args.show and display)
        skipped, empty = 0, 0
    else:
        out.mkdir(parents=True, exist_ok=True)
        done, skipped, empty = 0, 0, 0
        for path, name in progress(list(zip(files, names)), len(files), "pictures"):
            try:
                if path.suffix.lower() in VIDEOS:
                    done += video(cv2.VideoCapture(str(path)), name, False, False)
                    continue
                rgb = read_picture(path)
                # A map of 32x40 cells fills no 12 megapixels: no more points than (H, W) has.
                to = min(rgb.shape[:2], (H, W), key=math.prod)
                K = camera(args.intrinsics, path.stem, rgb.shape[:2], to) if args.ply else None
            except PredictError as error:
                say(f"skipped {path}: {error}")
                skipped += 1
                continue
            notice(rgb)
            native = predictor.native(rgb)
            depth = resize_depth(native, rgb.shape[:2], predictor.resize)
            near, far = args.near_far or auto_range([depth])
            write_picture(out / f"{name}_depth.png", millimetres(depth))
            write_picture(out / f"{name}_color.png", panel(rgb, None, depth, near, far))
            if K:
                points = point_cloud(
                    resize_picture(rgb, to), native, K, how=args.resize or "bilinear",
                    edge=args.ply_edge, near_far=args.near_far,
                )  # fmt: skip
                write_file(out / f"{name}.ply", ply(points))
            empty += not (depth > 0).any()
            done += 1
    if empty:
        say(f"notice: {empty} pictures got no depth at all (0 everywhere): an untrained network?")
    spent = statistics.median(predictor.milliseconds or [0.0])
    print(f"{done} pictures, {skipped} skipped, {spent:.1f} ms each (network, median) -> {out}")
    return 0 if not skipped else 1 if done else 2


def run_benchmark(
    args: argparse.Namespace, model: Path, load: Callable, picture: np.ndarray | None
) -> int:
    """`run` for --benchmark."""
    cores = usable_cores()
    threads = sorted({1 << k for k in range(cores.bit_length())} | {cores})
    threads = threads if args.threads is None else [args.threads or cores]
    report = benchmark(load, picture, threads, warmup=args.warmup, runs=args.runs)
    about = re.sub(r", threads \d+", "", report["threads"][0]["about"])
    print(f"model: {model} ({about})\n{benchmark_table(report)}")
    for text in report["warnings"]:
        say(f"WARNING: {text}")
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        report |= {"model": str(model), "sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
        report["python"] = platform.python_version()
        write_file(Path(args.json), (json.dumps(report, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    # OpenCV's and FFmpeg's own warnings would stand beside our one line.
    cv2.utils.logging.setLogLevel(0)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    sys.exit(main())
