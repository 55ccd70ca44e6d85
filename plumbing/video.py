"""Videos and cameras, frame by frame, with less flicker where that is asked for."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from plumbing.files import UserError, progress, say
from plumbing.pictures import auto_range, cv2, millimetres, panel, write_picture

HEAD = 15  # frames of a video or camera that fix its colour range (and a camera's frame rate)


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
    UserError, OSError.
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
        raise UserError("no frame can be read")
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
                        raise UserError(f"OpenCV cannot write {target} here (mp4v)")
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
