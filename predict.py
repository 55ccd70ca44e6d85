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
import functools
import hashlib
import itertools
import json
import math
import os
import platform
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from plumbing.device import benchmark, benchmark_table
from plumbing.files import UserError, progress, say, usable_cores, write_file
from plumbing.flags import Parser, parse_size
from plumbing.pictures import (
    auto_range,
    cv2,
    millimetres,
    panel,
    read_picture,
    resize_depth,
    resize_picture,
    write_picture,
)
from plumbing.points import camera, ply, point_cloud
from plumbing.runtime import Predictor, load_tflite
from plumbing.video import HEAD, Smooth, predict_video

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
DEFAULTS = [f"runs/{run}/{name}" for run in ("student", "distilled")
            for name in ("best.pt", "model.tflite")]  # fmt: skip


# --------------------------------------------------------------------- Fig. 7, depth as a picture


# ----------------------------------------------------------- the .tflite and what it says of itself


# ----------------------------------------------------------------------------- picture -> metres


def load_predictor(
    path: str | os.PathLike, *, image_size: tuple[int, int] | None = None,
    resize: str = "nearest", threads: int | None = None, device: str = "auto",
) -> Predictor:  # fmt: skip
    """A .pt written by `model.save` or a .tflite written by export.py (see `seal`), to be called.

    image_size is what a picture is resized to; None = the file's own (480x640 for a .pt that does
    not say), and a .tflite knows no other. threads: 0 = all usable cores, None = the runtime's
    default. PyTorch is imported for a .pt only. Raises UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such model file")
    threads = usable_cores() if threads == 0 else threads
    if path.suffix == ".tflite":
        if device == "cuda":
            say("notice: --device cuda does nothing here: a .tflite runs on the CPU")
        run, size, precision, extra = load_tflite(path, threads)
        if image_size not in (None, size):
            shape = f"{size[0]}x{size[1]}"
            raise UserError(
                f"{path} takes {shape} only: give --image_size {shape}, or leave it out"
            )
        about = f"TFLite {precision}, threads {threads or 1}"
    elif path.suffix == ".pt":
        run, own, about = _load_checkpoint(path, threads, device)
        size, extra = image_size or own, {}
    else:
        raise UserError(f"{path}: a model is a .pt (train.py) or a .tflite (export.py)")
    return Predictor(run, size, resize, f"{about}, {size[0]}x{size[1]}", **extra)


def _load_checkpoint(
    path: Path, threads: int | None, device: str
) -> tuple[Callable, tuple[int, int], str]:
    try:
        import torch

        import model
    except ImportError as error:
        raise UserError(
            f"{path} needs PyTorch and model.py ({error}): pip install torch, or use a .tflite"
        ) from error
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    if threads:
        torch.set_num_threads(threads)
    try:
        checkpoint = model.read_checkpoint(path)
        network = model.build(checkpoint, path).eval().to(device)
    except model.CheckpointError as error:
        raise UserError(str(error)) from error

    def run(image: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
        # No TensorFloat-32: a GPU must give the metres that the CPU and the .tflite give.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return network(x)[0, 0].float().cpu().numpy()

    own = tuple(checkpoint.get("image_size") or (480, 640))
    return run, own, f"PyTorch, {device}, threads {torch.get_num_threads()}"


# ----------------------------------------------------------------- Table 2, run time on this device


# ------------------------------------------------------------------------------------ point cloud


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
                raise UserError(f"{path}: no pictures at this folder's top level ({kinds})")
            print(f"{path}: {len(found)} pictures")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
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


# -------------------------------------------------------------------------------------------- main


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
    """The newest of DEFAULTS that ends in `kind`, under the current folder. Raises UserError."""
    found = [Path(p) for p in DEFAULTS if p.endswith(kind) and Path(p).is_file()]
    if not found:
        raise UserError(
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
    except (UserError, OSError, cv2.error) as error:
        say(f"predict.py: error: {' '.join(str(error).split())}")
        return 2


def run(args: argparse.Namespace) -> int:
    """`main` without the handling of errors."""
    if args.threads is not None and args.threads < 0:
        raise UserError(f"--threads must be 0 (all cores) or more, got {args.threads}")
    live, out = args.camera is not None, Path(args.out)
    if live == bool(args.inputs) and not args.benchmark:
        raise UserError("give pictures, folders or videos, or else --camera N")
    files = collect(args.inputs)
    if args.benchmark and (live or len(files) > 1):
        raise UserError("--benchmark takes one picture as INPUT, or none")
    model = Path(args.model) if args.model else newest_model()
    load = functools.partial(
        load_predictor, model, image_size=args.image_size, resize=args.resize or "nearest",
        device=args.device,
    )  # fmt: skip
    if args.benchmark:
        if files and files[0].suffix.lower() not in IMAGES:
            raise UserError(f"{files[0]}: --benchmark takes one picture as INPUT, or none")
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
                raise UserError(f"{out / name}_{end} is an input itself: choose another --out")
        if name != path.stem:
            print(f"{path}: same stem as another input, written as {name}")
    predictor = load(threads=1 if args.threads is None else args.threads)
    print(f"model: {model}{'' if args.model else ' (the newest)'} ({predictor.about})")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
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
            raise UserError(
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
            except UserError as error:
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
