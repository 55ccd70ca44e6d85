"""Videos and cameras, frame by frame, with less flicker where that is asked for."""

from __future__ import annotations

import itertools
import math
import os
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

# Its warnings would stand beside our one line. A raw stream is taken to run at 30, as a Pi records.
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
    """A link to `path`, a file or one to be made, for OpenCV: its own name may be taken for a
    protocol (12:30.mp4), a sequence (%d) or a picture (.jpg), and if no UTF-8 end the process."""
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, f"video{suffix}")
        try:
            os.symlink(path.absolute(), link)
        except OSError:  # Windows may have no links
            link = str(path.absolute())
        yield link


def is_video(path: Path) -> bool:
    """Whether a file is to be read frame by frame: its content says so, not its name. Where it
    holds several pictures that FFmpeg does not play, that is told. Raises UserError."""
    try:
        with named(path) as link, path.open("rb") as file:
            head = file.read(1 << 24)
            video = not cv2.haveImageReader(link)
            if video and head[8:12] in (b"heic", b"heix", b"mif1", b"avif"):  # FFmpeg: one tile
                raise UserError("HEIC or AVIF, which this OpenCV cannot read: save it as JPEG")
            if not video and cv2.imcount(link) > 1:
                capture = cv2.VideoCapture(link)
                video = all(capture.read()[0] for _ in range(2))
                if not video:
                    notice(f"{path} holds several pictures, only the first is looked at")
    except OSError as error:
        raise UserError(str(error)) from error
    return video or is_jpeg_stream(head)


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
    known = 0 < fps < 65536  # as far as an .mp4 goes; False for NaN
    fps = fps if known else 30.0
    smooth = Smooth(o.smooth, o.smooth_reset) if o.smooth else None
    start = time.perf_counter()
    frames = _read(capture, predictor, smooth, None if live else 1 / fps)
    head = list(itertools.islice(frames, HEAD))
    if not head:
        raise UserError("no picture and no frame can be read")
    near, far = near_far or auto_range(depth for _, depth in head)
    why = "" if near_far else f" (its first {len(head)} frames; other: --range NEAR,FAR)"
    print(f"{name}: colours from {near:g} to {far:g} m{why}")
    if live:  # a camera promises 30 and the network may be slower: measure
        fps = len(head) / (time.perf_counter() - start)
    total = 0 if live else max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    if not (live or known and total):  # a raw .h264 or .mjpeg counts no frames
        notice(f"{name} is taken to run at {fps:g} frames a second; if that is wrong: ffmpeg -r "
               "RATE -i IN -c copy OUT.mp4")  # fmt: skip
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
    kept = max(round(fps, 3 if fps < 65 else 1), 0.002)  # as fine and slow as mp4v can
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
