"""Pictures: decoded, resized, coloured by depth, set side by side with a colour bar."""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from plumbing.files import UserError, write_file

# OpenCV's own warnings would stand beside our one line; later versions want another call each.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
try:
    import cv2
except ImportError as error:
    sys.exit(
        f"OpenCV cannot be imported ({error}). On a bare Linux server it lacks system libraries: "
        "apt install libgl1 libglib2.0-0 (or pip install opencv-python-headless in its place)"
    )


HOLE = (150, 150, 150)  # flat grey is not in the colour map
WHITE, INK = 255, (40, 40, 40)  # one number: np.full with three is a hundred times slower


# --------------------------------------------------------------------------------- depth in colours


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


def letter_height(picture_height: int) -> int:
    return min(max(11, round(picture_height / 32)), 22)


def write_text(canvas: np.ndarray, text: str, x: int, middle: float, height: int) -> None:
    """Writes `text` from column x on, centred on row `middle`, capitals about `height` tall."""
    text = text.encode(errors="replace").decode()  # bytes that are no UTF-8 would end the process
    where, thick = (int(x), round(middle + 0.4 * height)), max(1, round(height / 12))
    cv2.putText(canvas, text, where, cv2.FONT_HERSHEY_SIMPLEX, height / 22, INK, thick, cv2.LINE_AA)


def with_colorbar(
    picture: np.ndarray, near: float, far: float, *, holes: bool = False
) -> np.ndarray:
    """BGR u8 -> the same with a bar at its right: near at the bottom, labelled in metres.

    holes adds a swatch of the holes' grey. Rows of white are added to a picture under 120.
    """
    H = max(120, len(picture))
    letter = letter_height(H)
    pad, bar = letter, round(1.6 * letter)
    canvas = np.full((H, picture.shape[1] + 2 * pad + bar + 6 * letter, 3), WHITE, np.uint8)
    canvas[: len(picture), : picture.shape[1]] = picture
    x, top, bottom = picture.shape[1] + pad, pad, H - pad
    if holes:
        bottom -= 3 * letter
        canvas[H - pad - round(1.4 * letter) : H - pad, x : x + bar] = HOLE
        write_text(canvas, "none", x + bar + pad, H - pad - 0.7 * letter, letter)
    scale = near * (far / near) ** np.linspace(1, 0, bottom - top)
    canvas[top:bottom, x : x + bar] = colorize(scale[:, None], near, far)
    for value, place in ticks(near, far, max(1.8 * letter / (bottom - top), 1 / 7)):
        row = bottom - 1 - place * (bottom - 1 - top)
        y = round(row)
        cv2.line(canvas, (x + bar, y), (x + bar + pad // 2, y), INK, 1)
        write_text(canvas, f"{value:.4g} m", x + bar + pad, row, letter)
    return canvas


# ------------------------------------------------------------------------- pictures side by side


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
    letter = letter_height(h)
    head = round((4.4 if title else 2.2) * letter)
    space = max(4, letter // 2)
    canvas = np.full((head + h, len(shown) * (w + space) - space, 3), WHITE, np.uint8)
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
        write_text(canvas, name, x + space, head - 1.1 * letter, letter)
    if title:
        write_text(canvas, title, space, 1.4 * letter, letter)
    canvas = with_colorbar(canvas, near, far, holes=holes)
    odd = [(0, s % 2) for s in canvas.shape[:2]]  # video codecs want even sizes
    return np.pad(canvas, [*odd, (0, 0)], constant_values=WHITE)


def batch_picture(
    batch: dict[str, np.ndarray], mean: np.ndarray, std: np.ndarray, shown: int = 6
) -> np.ndarray:
    """A batch as the network sees it, BGR u8: image | depth at 32x40 | grad_x | M_x (Fig. 2, 4),
    and the teacher's depth at 32x40 where there is one.

    batch: as the loader gives it, image (B, 3, H, W) normalised by mean and std (3,), the others
    (B, 1, h, w). Holes are flat grey; what lies beyond a crop shows as the mean colour and as
    holes.
    """
    size = 2 * batch["image"].shape[3], 2 * batch["image"].shape[2]
    depths = [batch[key] for key in ("depth_low", "teacher_depth_low") if key in batch]
    near, far = auto_range(depths)
    depth, *teacher = ([colorize(d[0], near, far) for d in ds[:shown]] for ds in depths)
    image = (batch["image"][:shown].transpose(0, 2, 3, 1) * std + mean).clip(0, 255)
    slope, M_x = batch["grad_x"][:shown, 0], batch["M_x"][:shown, 0, :, :, None]
    # Signed, on a log scale: half a metre and five metres both show.
    bent = np.arcsinh(slope / 0.1) / np.arcsinh(50)
    level = (127.5 + 127.5 * bent).clip(0, 255).astype(np.uint8)
    grad = [cv2.applyColorMap(row, cv2.COLORMAP_TWILIGHT_SHIFTED) for row in level]
    columns = {
        "image": image.astype(np.uint8)[..., ::-1], f"depth {near:g}..{far:g} m": depth,
        "grad_x, grey = masked": np.where(M_x, grad, np.uint8(HOLE)),
        "M_x, black = masked": np.repeat(M_x * np.uint8(WHITE), 3, 3),
    } | ({"teacher depth": teacher[0]} if teacher else {})  # fmt: skip
    drawn = []
    for name, tiles in columns.items():
        head = np.full((26, size[0], 3), WHITE, np.uint8)
        write_text(head, name, 6, 13, 11)
        tiles = [cv2.resize(tile, size, interpolation=cv2.INTER_NEAREST) for tile in tiles]
        drawn.append(np.vstack([head, *tiles]))
    return np.hstack(drawn)


# ------------------------------------------------------------------------------------------- sizes


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes (H, W) have one aspect, to the 1 % that rounding may take."""
    return abs(math.log(size[0] * other[1] / (size[1] * other[0]))) < 0.01


def aspect_crop(size: tuple[int, int], to: tuple[int, int]) -> tuple[int, int, int, int]:
    """Largest centred (top, left, h, w) of `size` that has the aspect of `to`."""
    (h, w), (H, W) = size, to
    ch, cw = min(h, max(1, round(w * H / W))), min(w, max(1, round(h * W / H)))
    return (h - ch) // 2, (w - cw) // 2, ch, cw


def resize_picture(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) u8 -> (*size, 3): area average when shrinking, bilinear otherwise; the picture
    itself where it has that size already."""
    if rgb.shape[:2] == tuple(size):
        return rgb
    shrinks = size[0] <= rgb.shape[0] and size[1] <= rgb.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(rgb, size[::-1], interpolation=how)


def resize_depth(depth: np.ndarray, size: tuple[int, int], how: str) -> np.ndarray:
    """(h, w) -> size. nearest: the value under each pixel's centre (depth itself where it has that
    size already); bilinear mixes neighbours.

    bilinear takes the `block_values` of a map that the network's graph has enlarged already; holes
    (<= 0, NaN, inf) do not mix: their pixels become 0.
    """
    (h, w), (H, W) = depth.shape, size
    if how == "bilinear":
        depth = block_values(depth)
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


class OutsideError(UserError):
    """A pixel that a picture does not have."""


def depth_at(depth: np.ndarray, x: int, y: int) -> float | None:
    """Metres at a pixel of (H, W): the median of what is known in the 5x5 around it, which the
    picture's border cuts; None where nothing is. Raises OutsideError."""
    H, W = depth.shape
    if not (0 <= x < W and 0 <= y < H):
        raise OutsideError(f"{x},{y} lies outside this picture, {W} wide and {H} high")
    part = depth[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
    part = part[np.isfinite(part) & (part > 0)]
    return float(np.median(part)) if part.size else None


def block_values(depth: np.ndarray) -> np.ndarray:
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


# ------------------------------------------------------------------------------------------- files


def read_picture(path: Path) -> np.ndarray:
    """RGB u8 (H, W, 3), turned as its EXIF says; grey is repeated, alpha dropped, 16 bit -> 8.

    Raises UserError for what is no picture, for a file cut short (OpenCV would return it with a
    flat grey rest), for more pixels than OpenCV takes (2^30) and for 16-bit grey PNG, which is a
    depth map.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(str(error)) from error
    if is_cut(data):
        raise UserError("cut short (its end mark is missing); copy it anew")
    if data[:4] == b"\x89PNG" and data[24:26] == b"\x10\x00":
        raise UserError("16-bit grey PNG: a depth map, not a picture")
    how = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # its versions differ in what they turn
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), how) if data else None
    except cv2.error as error:
        raise UserError(f"OpenCV cannot read it: {error.err}") from error
    if bgr is None:
        raise UserError("not a picture that OpenCV can read")
    return cv2.cvtColor(upright(bgr, orientation(data)), cv2.COLOR_BGR2RGB)


def orientation(data: bytes) -> int:
    """EXIF orientation, 1..8, of a JPEG, PNG or WebP file; 1, as it is, where it says none."""
    exif = re.search(rb"(?:Exif\0\0|eXIf|EXIF.{4})((?:II|MM).*)", data[: _scan(data)], re.S)
    exif = exif[1] if exif else b""
    order = "little" if exif[:1] == b"I" else "big"

    def number(at: int, size: int = 2) -> int:
        return int.from_bytes(exif[at : at + size], order)

    first = number(4, 4) + 2
    entries = range(first, first + 12 * number(first - 2), 12)
    found = next((number(at + 8) for at in entries if number(at) == 0x0112), 1)
    return found if 1 <= found <= 8 else 1


# EXIF orientation -> axes that are flipped, of 5 and up after a transpose.
FLIPS = {2: 1, 3: (0, 1), 4: 0, 6: 1, 7: (0, 1), 8: 0}


def upright(picture: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) as stored -> turned as an EXIF orientation, 1..8, says; from 5 on (W, H, ...)."""
    turned = picture.swapaxes(0, 1) if orientation > 4 else picture
    return np.ascontiguousarray(np.flip(turned, FLIPS.get(orientation, ())))


def is_cut(data: bytes) -> bool:
    """Whether a JPEG, PNG, WebP or BMP file lacks its end; cv2.imread would not tell. Bytes after
    the end, such as a phone's film of the moment, are no harm."""
    if data[:2] == b"\xff\xd8":  # JPEG: from the scan on, past an EXIF thumbnail's own end mark
        return data.find(b"\xff\xd9", _scan(data)) < 0
    if data[:4] == b"\x89PNG":
        return b"IEND" not in data
    if data[:4] == b"RIFF":  # WebP
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return data[:2] == b"BM" and len(data) < int.from_bytes(data[2:6], "little")


def picture_header(data: bytes) -> tuple[tuple[int, int], int, int, int]:
    """(height, width) as stored, bits per channel, channels and EXIF orientation of a JPEG or PNG
    file, of which only the first segments are looked at (see `is_cut` for its end). Raises
    UserError, without the file's name."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 33:
        w, h, bits, kind = struct.unpack(">IIBB", data[16:26])
        channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(kind, 0)
    elif data[:2] == b"\xff\xd8":
        frames = (at for marker, at in _segments(data) if marker in FRAMES)
        at = next(frames, len(data))
        if at + 10 > len(data):
            raise UserError("a JPEG without a picture in it; copy it anew")
        bits, h, w, channels = struct.unpack(">BHHB", data[at + 4 : at + 10])
    else:
        what = "not a JPEG or PNG file; convert it" if data else "an empty file; copy it anew"
        raise UserError(what)
    if min(h, w, channels) < 1:
        raise UserError(f"impossible header: {h}x{w} pixels")
    return (h, w), bits, channels, orientation(data)


FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG's markers that tell a picture's size


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and place of each of a JPEG's segments, up to its first scan (0xDA)."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        yield marker, at
        if marker == 0xDA:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _scan(data: bytes) -> int:
    """Where a JPEG's first scan begins, behind all that it says of itself; else the end."""
    return next((at for marker, at in _segments(data) if marker == 0xDA), len(data))


def is_jpeg_stream(data: bytes) -> bool:
    """Whether a file is JPEGs alike, one after the other (.mjpeg). A phone's, which may hold others
    behind its own (MPF: preview, gain map, second eye), is one picture."""
    scan = _scan(data)
    rest = data[scan:].partition(b"\xff\xd9")[2].lstrip(b"\0")
    try:
        return b"MPF\0" not in data[:scan] and picture_header(data) == picture_header(rest)
    except UserError:
        return False


def write_picture(path: Path, picture: np.ndarray) -> None:
    """PNG, whole or not at all. Raises OSError."""
    write_file(path, cv2.imencode(".png", picture)[1].tobytes())


def millimetres(depth_m: np.ndarray) -> np.ndarray:
    """Metres -> u16 millimetres, rounded, at most 65,535; no depth (<= 0, NaN, inf) -> 0."""
    depth = np.where(np.isfinite(depth_m), depth_m, 0).astype(np.float64)
    return np.rint(1000 * depth).clip(0, 65535).astype(np.uint16)
