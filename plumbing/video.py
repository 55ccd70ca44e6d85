"""Videos and cameras, frame by frame, with less flicker where that is asked for."""

from __future__ import annotations

import itertools
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plumbing.files import UserError, notice, progress, replacing
from plumbing.flags import between, flag
from plumbing.pictures import auto_range, cv2, is_jpeg_stream, millimetres, panel, write_picture

HEAD = 15  # frames of a video or camera that fix its colour range (and a camera's frame rate)
RAW_CLOCK = 1_200_000  # ticks a second; some OpenCVs give it for the rate that a raw stream lacks

# FFmpeg's and AVI's warnings would stand beside our one line. FFmpeg takes a raw stream to run at
# 25 a second, a Raspberry Pi records 30; and a playlist is no reason to go to the net.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_VIDEOIO_PRIORITY_CV_MJPEG", "0")
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "framerate;30|protocol_whitelist;file")

# The type of --smooth, whose number may be left out: INPUT would be taken for it.
half_life = between(1e-3, 1e6, "a number of seconds; INPUT goes before --smooth")


@dataclass(frozen=True)
class Moving:
    """videos and camera"""

    frames: bool = flag(False,
        "also write <stem>_frames/000000_depth.png ..., 16-bit millimetres")
    show: bool = flag(False,
        "camera: show it in a window instead of recording it (needs a display)")
    smooth: float | None = flag(None,
        "less flicker: average each pixel's depth over time; a frame weighs half as much after "
        "SECONDS (0.2 where no number follows; INPUT goes before the flag). What moves lags by 1.4 "
        "SECONDS, unless it jumps, see --smooth_reset (default: off)",
        half_life, nargs="?", const=0.2, metavar="SECONDS")
    smooth_reset: float = flag(1.2,
        "--smooth starts anew where depth changes by more than this: lower lets less smear, higher "
        "takes stronger flicker away (default 1.2, that is 20 %%)",
        between(1.001, 1e6, "a ratio of 1.001 or more"), metavar="RATIO")  # fmt: skip


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


@contextmanager
def named(path: Path, suffix: str = "") -> Iterator[str]:
    """A name of `path`, a file or one to be made, for OpenCV: a link that ends in `suffix`. Its own
    may be taken for a protocol (12:30.mp4), a sequence (%d) or one picture (.jpg), and bytes that
    are no UTF-8 would end the process. Raises UserError, OSError."""
    with tempfile.TemporaryDirectory() as folder:
        name = os.path.join(folder, f"video{suffix}")
        try:
            os.symlink(path.absolute(), name)
        except OSError:  # a file system or a Windows without links
            name = str(path.absolute())
        if "%" in name or name.encode(errors="replace").decode() != name:
            raise UserError("OpenCV cannot take its name, nor is a link possible: rename it")
        yield name


def is_video(path: Path) -> bool:
    """Whether a file is to be read frame by frame: its content says so, not its name.

    That is all that OpenCV has no reader of pictures for, JPEGs in a row, animated GIF and PNG. Of
    what FFmpeg does not play (animated WebP, AVIF, TIFF's pages) only the first is looked at, which
    is told. Raises UserError.
    """
    try:
        with named(path) as name, path.open("rb") as file:
            head = file.read(12)
            if not cv2.haveImageReader(name):
                if re.match(rb"....ftyp(he|mif1|msf1|avi)", head, re.S):  # FFmpeg takes one tile
                    raise UserError("HEIC or AVIF, which this OpenCV cannot read: save it as JPEG")
                return True
            head += file.read(1 << 26)
            apng = head[1:4] == b"PNG" and b"acTL" in head[: head.find(b"IDAT")]
            if apng or head[:4] == b"GIF8":
                capture = cv2.VideoCapture(name)
                return all(capture.read()[0] for _ in range(2))
    except OSError as error:
        raise UserError(str(error)) from error
    more = head[4:12] == b"ftypavis" or head[12:16] == b"VP8X" and head[20] & 2
    if order := {b"II*\0": "little", b"MM\0*": "big"}.get(head[:4]):  # TIFF: is there a next page?
        at = int.from_bytes(head[4:8], order)
        at += 2 + 12 * int.from_bytes(head[at : at + 2], order)
        more = any(head[at : at + 4])
    if more:
        notice(f"{path} holds several pictures, only the first is looked at")
    return is_jpeg_stream(head)


def predict_video(
    capture: cv2.VideoCapture, name: str, predictor: Callable, out: Path,
    near_far: tuple[float, float] | None, o: Moving, live: bool,
) -> int:  # fmt: skip
    """Every frame -> <out>/<name>_color.mp4, or a camera's in a window; how many frames there were.

    One colour range for all frames: near_far, or that of the first HEAD frames. o.frames: also
    <out>/<name>_frames/<index>_depth.png. live: a camera; Ctrl-C ends its recording and keeps it,
    while a file's video is written to its end or not at all. Raises UserError, OSError.
    """
    fps = capture.get(cv2.CAP_PROP_FPS)
    known = 0 < fps < RAW_CLOCK  # False for NaN
    fps = fps if known else 30.0
    total = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    total = int(total) if not live and 0 < total < 1e9 else 0
    smooth = Smooth(o.smooth, o.smooth_reset) if o.smooth else None
    start = time.perf_counter()
    frames = _read(capture, predictor, smooth, None if live else 1 / fps)
    head = list(itertools.islice(frames, HEAD))
    if not head:
        what = "no frame can be" if live else "neither a picture nor a video that OpenCV can"
        raise UserError(f"{what} read")
    near, far = near_far or auto_range(depth for _, depth in head)
    why = "" if near_far else f" (its first {len(head)} frames; other: --range NEAR,FAR)"
    print(f"{name}: colours from {near:g} to {far:g} m{why}")
    if live:  # a camera promises 30 and the network may be slower: measure
        fps = len(head) / (time.perf_counter() - start)
    elif not (known and total):
        notice(f"{name} is taken to run at {fps:g} frames a second: it does not say (raw .h264, "
               ".mjpeg?); ffmpeg -r RATE -i IN -c copy OUT.mp4 makes a file that does")  # fmt: skip
    folder, count = out / f"{name}_frames", 0
    if o.frames:
        folder.mkdir(exist_ok=True)
    shown = nullcontext(_show) if o.show and live else _recording(out / f"{name}_color.mp4", fps)
    with shown as put:
        try:
            for rgb, depth in progress(itertools.chain(head, frames), total, name):
                if o.frames:
                    write_picture(folder / f"{count:06d}_depth.png", millimetres(depth))
                if put(panel(rgb, None, depth, near, far)):
                    break
                count += 1
        except KeyboardInterrupt:
            if not live:
                raise
    if count < total:
        notice(f"{name} says {total} frames, {count} could be read: cut short?")
    return count


def _read(
    capture: cv2.VideoCapture, predictor: Callable, smooth: Smooth | None, period: float | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """RGB and depth of each frame; period: seconds between frames, None = as they come."""
    last = time.perf_counter()
    while (frame := capture.read())[0]:
        now = time.perf_counter()
        rgb = cv2.cvtColor(frame[1], cv2.COLOR_BGR2RGB)
        depth = predictor(rgb)
        yield rgb, smooth(depth, period or now - last) if smooth else depth
        last = now


@contextmanager
def _recording(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds a BGR picture to the .mp4, which is there whole at the end, or not."""
    kept = min(max(round(fps, 3), 0.002), 65535.0)  # as fine, slow and fast as mp4v can
    if abs(kept / fps - 1) > 0.01:
        notice(f"{path.name} runs at {kept:g} frames a second, for an .mp4 cannot at {fps:g}")
    with replacing(path) as part, named(part, ".mp4") as link:
        writer = cv2.VideoWriter()

        def write(picture: np.ndarray) -> None:
            if not writer.isOpened():  # the first picture tells the size
                code = cv2.VideoWriter_fourcc(*"mp4v")
                if not writer.open(link, code, kept, picture.shape[1::-1]):
                    raise UserError(f"OpenCV cannot write {path} here (mp4v)")
            writer.write(picture)

        try:
            yield write
        finally:
            writer.release()


def _show(picture: np.ndarray) -> bool:
    """Shows it in a window; whether q was pressed there."""
    try:
        cv2.imshow("LiteDepth (q ends)", picture)
        return cv2.waitKey(1) & 0xFF == ord("q")
    except cv2.error as error:
        raise UserError("--show: this OpenCV has no windows (pip install opencv-python)") from error
