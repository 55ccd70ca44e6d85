"""Sec. 4.4 Qualitative Results: metric depth for any picture, folder, video or camera (Fig. 7).

    python predict.py photo.jpg folder/ clip.mp4 --model runs/student/best.pt --out depths
        <stem>_depth.png   16 bit, millimetres, 0 = no depth, at the picture's own size
        <stem>_color.png   picture | depth | colour bar in metres (a video: <stem>_color.mp4)
        <stem>.ply         with --ply: coloured points in metres
    python predict.py --benchmark --model model.tflite          run time on this device (Table 2)
    python predict.py --measured photo.jpg:320,240=1.52         a tape measure's calibration

No ground truth is needed. With a .tflite this file and plumbing/ run alone on a Raspberry Pi:
numpy, opencv and ai-edge-litert are all they import. Exit code: 0 = all done, 1 = some inputs
skipped (named on stderr), 2 = nothing done or a wrong command, 130 = Ctrl-C (what is on disk then
is whole; for a camera Ctrl-C is the way to end, and 0).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import platform
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plumbing import calibration
from plumbing.cameras import Cameras
from plumbing.device import benchmark, benchmark_table
from plumbing.files import (
    UserError,
    natural,
    notice,
    progress,
    run_main,
    say,
    sha256,
    usable_cores,
    why_not_writable,
    write_file,
    write_json,
)
from plumbing.flags import Parser, add, between, count, flag, ordered, parse_size, take, whole
from plumbing.pictures import (
    OutsideError,
    auto_range,
    cv2,
    depth_at,
    millimetres,
    orientation,
    panel,
    read_picture,
    resize_picture,
    write_picture,
)
from plumbing.points import camera, parse_camera, ply, point_cloud
from plumbing.runtime import (
    SHIPPED,
    Predictor,
    assemble,
    check_uncalibrated,
    load_predictor,
    newest_model,
)
from plumbing.video import HEAD, Moving, is_video, named, predict_video

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
MODELS = ("best.pt", "model.tflite")
TRUST = (
    "weights/litedepth.tflite, which has seen rendered rooms and streets and no real picture: it "
    "tells near from far, but its metres are off by a third in rooms and by more close up "
    "(weights/README.md); better: --measured, or a model of your own"
)
STDOUT = Path("-")  # --json without a name


# ------------------------------------------------------------------- picture -> metres -> Fig. 7


def predict_picture(path: Path, name: str, predictor: Predictor, o: Output) -> dict:
    """A picture -> <name>_depth.png, <name>_color.png, perhaps <name>.ply in o.out; what --json
    says of it. Raises UserError, such as OutsideError, before anything is written; OSError."""
    rgb = read_picture(path)
    size = rgb.shape[:2]
    # A map of 32x40 cells fills no 12 megapixels: no more points than the network's picture has.
    cloud_size = min(size, predictor.size, key=math.prod)
    K = None
    if o.ply:
        turn = orientation(path.read_bytes())
        K = camera(o.intrinsics, path.stem, size, cloud_size, turn)
    views = predictor.look(rgb)  # metres, as the network gives them
    depth = assemble(views, size, predictor.resize)
    points = [{"x": x, "y": y, "depth_m": depth_at(depth, x, y)} for x, y in o.at or ()]
    near, far = o.range or auto_range([depth])
    made = {
        "file": path, "size": list(size), "points": points, "known": float((depth > 0).mean()),
        "depth_png": o.out / f"{name}_depth.png", "color_png": o.out / f"{name}_color.png",
    }  # fmt: skip
    write_picture(made["depth_png"], millimetres(depth))
    write_picture(made["color_png"], panel(rgb, None, depth, near, far))
    if K:
        cloud = (assemble(views, cloud_size, how) for how in (o.resize or "bilinear", "nearest"))
        small = resize_picture(rgb, cloud_size)
        made["ply"] = o.out / f"{name}.ply"
        write_file(made["ply"], ply(point_cloud(small, *cloud, K, o.ply_edge, o.range)))
    for p in points:
        d = p["depth_m"]
        print(f"{path} {p['x']},{p['y']}: {'no depth' if d is None else f'{d:.3f} m'}")
    return made | {"ms": predictor.milliseconds[-1]}


def predict_camera(number: int, predictor: Predictor, o: Output, moving: Moving) -> int:
    """Camera `number` until Ctrl-C -> how many frames there were. Raises UserError, OSError."""
    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise UserError(
            f"camera {number} cannot be opened: is it plugged in (ls /dev/video*), or in use? "
            "OpenCV reads USB cameras; of a Pi's ribbon camera record a file and give that"
        )
    display = sys.platform in ("win32", "darwin") or any(
        os.environ.get(variable) for variable in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if moving.show and not display:
        raise UserError("--show: no display here; without it the camera is recorded")
    name = f"camera{number}_{time.strftime('%Y%m%d-%H%M%S')}"  # keeps older recordings
    return predict_video(capture, name, predictor, o.out, o.range, moving, live=True)


def open_checkpoint(path: Path, threads: int | None, device: str) -> tuple:
    """`model.runner`. PyTorch is imported here and nowhere else: a .tflite does without."""
    try:
        from model import runner
    except ImportError as error:
        raise UserError(
            f"{path} needs PyTorch and model.py ({error}): pip install torch, or use a .tflite"
        ) from error
    return runner(path, threads, device)


# ----------------------------------------------------------------------------------- files in, out


def collect(inputs: Iterable[str]) -> list[Path]:
    """The files to read, each once; a folder gives the pictures at its top level."""
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            inside = [p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")]
            found = [p for p in inside if p.suffix.lower() in IMAGES]
            if not found:
                kinds = " ".join(sorted(IMAGES))
                raise UserError(f"{path}: no pictures at this folder's top level ({kinds})")
            left = len(inside) - len(found)
            more = f", {left} other files left out (name videos themselves)" if left else ""
            print(f"{path}: {len(found)} pictures{more}")
            files += sorted(found, key=lambda p: natural(p.name))
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    return list({p.resolve(): p for p in files}.values())


def output_names(files: list[Path], out: Path) -> list[str]:
    """The stem of each file, made unique: parent_stem where stems repeat, then a number. Raises
    UserError where a result would take the place of an input, which may lie in `out`."""
    stems = Counter(p.stem.lower() for p in files)  # file systems may ignore case
    inputs = {p.resolve() for p in files} | {p.resolve().parent for p in files}
    names: list[str] = []
    used: set[str] = set()
    for path in files:
        alone = stems[path.stem.lower()] == 1
        name = base = path.stem if alone else f"{path.resolve().parent.name}_{path.stem}"
        n = 1
        while name.lower() in used:
            name = f"{base}_{(n := n + 1)}"
        for end in ("depth.png", "color.png", "color.mp4", "frames"):
            if (out / f"{name}_{end}").resolve() in inputs:
                raise UserError(f"{out / name}_{end} is an input itself: choose another --out")
        if name != path.stem:
            print(f"{path}: same stem as another input, written as {name}")
        names.append(name)
        used.add(name.lower())
    return names


# ------------------------------------------------------------------------------------ command line


def parse_range(text: str) -> tuple[float, float]:
    """An argparse type: "0.5,10" -> (0.5, 10.0)."""
    near, far = ordered(text)
    if near == far:
        raise argparse.ArgumentTypeError(f"{text!r} is not NEAR,FAR with NEAR < FAR")
    return near, far


@dataclass(frozen=True)
class Output:
    """what is written"""

    out: Path = flag("runs/predictions",
        "where the results go; inputs are never overwritten, older results are", Path,
        metavar="DIR")
    range: tuple[float, float] | None = flag(None,
        "ends of the colour bar in metres, such as 0.5,10; give it to compare pictures (default: "
        f"2nd to 98th percentile of each picture; of the first {HEAD} frames of a video). The "
        "16-bit PNG does not depend on it",
        parse_range, metavar="NEAR,FAR")
    resize: str | None = flag(None,
        "from the network's map back to the picture's size: nearest keeps only depths the network "
        "gave; bilinear is smoother but invents depths between the two sides of an edge (default "
        "nearest; bilinear for the points of --ply)",
        choices=["nearest", "bilinear"])
    at: list | None = flag(None,
        "pictures: print the metres at this pixel of the upright picture, origin top left, X to "
        "the right: the median of the known depths in 5x5 around it, or 'no depth'; repeatable",
        calibration.parse_pixel, action="append", metavar="X,Y")
    ply: bool = flag(False,
        "pictures: also write <stem>.ply, a coloured point cloud in metres (x right, y up, z "
        "towards the viewer) for MeshLab, CloudCompare, Open3D; points outside a given --range are "
        "left out")
    intrinsics: Cameras | None = flag(None,
        "--ply: the camera in pixels, of pictures W wide and H high (default: the size of each), "
        "or a JSON file: fx fy cx cy width height, a matrix (Open3D, RealSense, ROS, OpenCV), or "
        "frames by stem (default: a guess, 63 degrees along the longer side, the Kinect's)",
        parse_camera, metavar="FILE|FX,FY,CX,CY[,W,H]")
    ply_edge: float = flag(1.1,
        "--ply: points that differ by more from the network's own depth there are left out: they "
        "fly between the two sides of an edge (default 1.1, that is 10 %%)",
        between(1, 1e6, "a ratio of 1 or more"), metavar="RATIO")  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="predict.py",
        description="Metric depth for pictures, folders, videos, a camera; no ground truth needed.",
        epilog="A picture of another shape than --image_size is looked at twice, and you are told: "
        "its middle, cut to that shape as evaluate.py does, gives the depth there; the whole, "
        "squeezed to it and scaled to the middle, the rest. Exit code: 0 all done, 1 some inputs "
        "skipped (named), 2 nothing done or a wrong command.",
    )
    g = p.add_argument_group("what is read").add_argument
    g("inputs", nargs="*", metavar="INPUT",
        help="pictures, videos (a file's content tells which), or folders (their pictures, not "
        "those of sub-folders, in natural order: img2 before img10). Inputs of one stem are named "
        "after their folders")
    g("--camera", type=int, metavar="N",
        help="read camera N instead (0 is usually the first); ends with Ctrl-C, or q in the window")
    g = p.add_argument_group("the network").add_argument
    g("--model", type=Path, metavar="FILE",
        help=".pt of train.py or .tflite of export.py (default: the newest best.pt or model.tflite "
        "of runs/student and runs/distilled, else weights/litedepth.tflite)")
    g("--image_size", type=parse_size, metavar="HxW",
        help="pictures are resized to this first; keep it at the training pictures' size "
        "(default: the model file's own, or 480x640 where a .pt does not say). A .tflite takes its "
        "own only")
    g("--threads", type=whole, metavar="N",
        help="CPU threads of the network; 0 = all cores (default 1: it is so small that more pay "
        "on an idle machine only, and cost on a busy one; try 4 on a Raspberry Pi. --benchmark: "
        "1, 2, 4 .. all cores, to see what pays)")
    g("--device", default="auto", choices=["auto", "cpu", "cuda"],
        help="for a .pt (default auto: the GPU if there is one); a .tflite runs on the CPU")
    add(p, Output)
    add(p, Moving)
    g = p.add_argument_group("scale and shift of this camera, without training").add_argument
    g("--measured", type=calibration.parse_measured, action="append", metavar="PICTURE:X,Y=METRES",
        help="a distance along the optical axis, by tape measure, at a pixel of a picture (see "
        "--at); may be repeated, for several pictures. Writes calibration.json to --out, or "
        "--calibration, and no depth. Take 6, from near to far, on flat things away from edges")
    g("--calibration", type=calibration.json_name, metavar="FILE.json",
        help="apply d' = max(0, a d + b) of --measured or of evaluate.py --calibrate, fitted for "
        "this very model file (default: none)")
    g = p.add_argument_group("run time on this device (Table 2)").add_argument
    g("--benchmark", action="store_true",
        help="time the network and write no depth: on INPUT, one picture, or on noise. Let the "
        "machine idle a minute before; what makes the figures doubtful is told below them")
    g("--runs", type=count, default=200, metavar="N",
        help="timed runs per thread count (default 200)")
    g("--warmup", type=whole, default=50, metavar="N",
        help="runs before them, until the clock is up and the caches are full (default 50)")
    g = p.add_argument_group("for other programs").add_argument
    g("--json", type=calibration.json_name, nargs="?", const=STDOUT, metavar="FILE.json",
        help="all results (files, points, model, run time; of --benchmark the figures) as one "
        "object, there or, without a name, alone on stdout; INPUT goes before the flag")
    return p


def run_benchmark(
    args: argparse.Namespace, model: Path, load: Callable, picture: np.ndarray | None
) -> dict:
    """Table 2 of `model` on this device: printed, and returned for --json."""
    cores = usable_cores()
    threads = sorted({1 << k for k in range(cores.bit_length())} | {cores})
    threads = threads if args.threads is None else [args.threads or cores]
    report = benchmark(load, picture, threads, warmup=args.warmup, runs=args.runs)
    about = re.sub(r", threads \d+", "", report["threads"][0]["about"])
    print(f"model: {model} ({about})\n{benchmark_table(report)}")
    for text in report["warnings"]:
        say(f"WARNING: {text}")
    more = {"model": model, "sha256": sha256(model), "python": platform.python_version()}
    return report | more


def check_command(args: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together; a remark on one that lacks another."""
    works = args.inputs or args.benchmark, args.camera is not None, args.measured
    if sum(map(bool, works)) != 1:
        raise UserError("give pictures, folders or videos, or else --camera N, or --measured alone")
    if args.at and (args.benchmark or not args.inputs):
        raise UserError("--at is for pictures")
    if args.ply and args.intrinsics is None:
        notice(
            "--ply without --intrinsics: 63 degrees along the longer side (the Kinect) is a guess; "
            "widths and heights, not distances, are wrong by as much as it is"
        )


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    check_command(args)
    with contextlib.redirect_stdout(sys.stderr if args.json == STDOUT else sys.stdout):
        code, report = work(args)
    if args.json:
        write_json(args.json, report)
    return code


def work(args: argparse.Namespace) -> tuple[int, dict]:
    """The exit code, and what --json tells. Raises UserError, OSError."""
    o, moving = take(args, Output), take(args, Moving)
    files = collect(args.inputs)
    model = args.model or newest_model(MODELS, SHIPPED)
    if model.resolve() == SHIPPED and not (args.benchmark or args.measured or args.calibration):
        notice(TRUST)
    load = functools.partial(
        load_predictor, model, open_checkpoint, image_size=args.image_size,
        resize=o.resize or "nearest", device=args.device,
    )  # fmt: skip
    if args.benchmark:
        if len(files) > 1:
            raise UserError("--benchmark takes one picture as INPUT, or none")
        picture = read_picture(files[0]) if files else None
        return 0, run_benchmark(args, model, lambda n: load(threads=n), picture)
    names = output_names(files, o.out)
    predictor = load(threads=1 if args.threads is None else args.threads)
    if args.measured or args.calibration:
        check_uncalibrated(predictor, model)
    if args.calibration and not args.measured:
        made = calibration.read_calibration(args.calibration, model)
        predictor.calibrate(made["scale"], made["shift_m"])
    newest = " (the newest)" * (not args.model and model != SHIPPED)
    print(f"model: {model}{newest} ({predictor.about})")
    if why := why_not_writable(o.out):
        raise UserError(f"--out {o.out}: {why}; name a folder that can be written to")
    digest = sha256(model) if args.json else None
    report = {"model": {"file": model, "sha256": digest, "about": predictor.about}}
    if args.measured:
        file = args.calibration or o.out / "calibration.json"
        return 0, report | calibration.measure(args.measured, predictor, model, file)
    pictures, videos, skipped = [], [], []
    if args.camera is not None:
        frames = predict_camera(args.camera, predictor, o, moving)
        videos.append({"camera": args.camera, "frames": frames})
    for path, name in progress(list(zip(files, names)), len(files), "pictures"):
        try:
            if is_video(path):
                with named(path) as link:
                    film = cv2.VideoCapture(link)
                    frames = predict_video(film, name, predictor, o.out, o.range, moving, False)
                videos.append({"file": path, "frames": frames})
            else:
                pictures.append(predict_picture(path, name, predictor, o))
        except OutsideError as error:
            raise UserError(f"--at, {path}: {error}") from error
        except (UserError, cv2.error) as error:
            say(f"skipped {path}: {error}")
            skipped.append({"file": path, "why": str(error)})
    if empty := sum(not made["known"] for made in pictures):
        notice(f"{empty} pictures got no depth at all (0 everywhere): an untrained network?")
    done = len(pictures) + sum(made["frames"] for made in videos)
    spent = statistics.median(predictor.milliseconds or [0.0])
    print(f"{done} pictures, {len(skipped)} skipped, {spent:.1f} ms each (network, median) -> "
          f"{o.out}")  # fmt: skip
    report |= {"pictures": pictures, "videos": videos, "skipped": skipped}
    return 0 if not skipped else 1 if done else 2, report


if __name__ == "__main__":
    sys.exit(run_main(main, "predict.py"))
