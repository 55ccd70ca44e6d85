"""Cameras out of JSON, in the layouts that are common; and what a resize and a turn make of them.

Named numbers (fx fy cx cy, ppx, fl_x ...), matrices (3x3, 3x4, 4x4; nested or flat, by rows or by
columns) and lists of four, at any depth: of Open3D, RealSense, ROS, OpenCV, nerfstudio, Record3D,
ARKit, ScanNet++, BOP and their like. What could be two cameras is refused, never guessed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np

from plumbing.files import UserError

Size = tuple[float, float]  # (H, W)
Found = tuple[str, np.ndarray | None, Size | None]  # where, K, of what size; or why not, None, None

NAMES = {  # what is wanted: its names, without case, punctuation and "color", "camera", "image"
    "fx": "fx flx fu focalx focallengthx", "fy": "fy fly fv focaly focallengthy",
    "cx": "cx ppx cu u0 principalx principalpointx", "f": "f focal focallength focallengthpx",
    "cy": "cy ppy cv v0 principaly principalpointy", "c": "c pp principalpoint opticalcenter",
    "width": "width w", "height": "height h", "size": "size resolution",
    "matrix": "k mtx kmatrix cameramatrix calibrationmatrix intrinsic intrinsics intrinsicmatrix "
    "intrinsicsmatrix intrinsicparameters", "projection": "p projectionmatrix",
}  # fmt: skip
WANTED = {name: want for want, names in NAMES.items() for name in names.split()}
# Inverses, and a depth sensor's own camera, which is not the picture's.
PASSED = re.compile(r"(?i)inv|^(?!.*(colou?r|rgb)).*(depth|infra|^ir)")


class Cameras(NamedTuple):
    """A file's content: what holds for all pictures, and by their stems what holds for one (None:
    no "frames")."""

    shared: object
    frames: dict[str, list] | None


def read_cameras(path: Path) -> Cameras:
    """Raises UserError, which does not name the file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"not readable as JSON ({f'{error}'[:200]})") from error
    return cameras_in(content)


def cameras_in(content: object) -> Cameras:
    """A file's content, taken apart: {stem: camera}, or a list whose entries name their files."""
    shared = dict(content) if isinstance(content, dict) else content
    frames = shared.pop("frames", None) if isinstance(content, dict) else content
    if not isinstance(frames, dict | list | None):
        raise UserError("expected an object with fx, fy, cx, cy or with frames")
    if isinstance(frames, dict):
        return Cameras(shared, {stem: [entry] for stem, entry in frames.items()})
    by_stem: dict[str, list] = {}
    for entry in frames or ():
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if isinstance(value, str) and re.search("(?i)path|file|name|image|rgb", key):
                by_stem.setdefault(PureWindowsPath(value).stem, []).append(entry)
    if frames is content:  # a list of pictures, or of numbers
        return Cameras({}, by_stem) if by_stem else Cameras(content, None)
    return Cameras(shared, None if frames is None else by_stem)


def camera_of(cameras: Cameras, stem: str) -> tuple[np.ndarray | None, Size | None]:
    """fx, fy, cx, cy (4,) float64 of a picture, in pixels, and the size that they are for, None =
    not given; K None: the file has no focal length. Raises UserError: no such frame, several
    cameras, numbers that cannot be."""
    shared, entries = cameras.shared, (cameras.frames or {}).get(stem, [])
    shared = shared if isinstance(shared, dict) else {"intrinsics": shared}
    if cameras.frames is None:  # stems at the top: the other entries are other pictures'
        keys = [k for k in (stem, stem.isdecimal() and str(int(stem))) if k in shared]
        entries, shared = [shared[k] for k in keys[:1]], {} if keys else shared
    parts = [e if isinstance(e, dict) else {"intrinsics": e} for e in entries]
    try:
        told = [c for part in parts for c in _cameras(part, _wanted(shared), "")]
        if not any(K is not None for _, K, _ in told):
            told = [c for part in parts or [{}] for c in _cameras({**shared, **part}, {}, "")]
    except RecursionError:
        raise UserError("nested too deep") from None
    found = [c for c in told if c[1] is not None]
    for some in (found, [c for c in found if re.search("(?i)colou?r|rgb", c[0])]):
        if some and all(c[2] == some[0][2] and np.abs(c[1] - some[0][1]).max() < 0.1 for c in some):
            return some[0][1:]
    if found:
        names = ", ".join(c[0] for c in found[:4])
        raise UserError(f"holds several cameras ({names}), and not which is this picture's")
    if cameras.frames is not None and not entries:
        raise UserError(f"no frame {stem!r}")
    if told or not isinstance(cameras.shared, dict):
        raise UserError(told[0][0] if told else "expected an object with fx, fy, cx, cy")
    return None, None


def keys_of(cameras: Cameras) -> str:
    """What is there in place of a focal length."""
    keys = [*cameras.shared, *["frames"] * (cameras.frames is not None)]
    return ", ".join(f"{k:.40}" for k in keys[:8]) + ", ..." * (len(keys) > 8) or "none"


def _wanted(node: dict) -> dict[str, object]:
    """What a dictionary holds of NAMES. A list of four has no matrix's shape to be known by: it is
    taken under a name with "intrinsic" alone (K may be a lens's k1 .. k4)."""
    found: dict[str, object] = {}
    for key, value in node.items():
        name = re.sub("[^a-z0-9]", "", key.lower())
        short = re.sub("^(colou?r|rgb|camera|cam|image|img)+|(colou?r|rgb|camera)$", "", name)
        want = WANTED.get(name) or WANTED.get(short)
        if want == "matrix" and "intrinsic" not in name and len(_numbers(value)) == 4:
            continue
        if want and not PASSED.search(key):
            found.setdefault(want, value)
    return found


def _cameras(node: object, outer: dict, where: str) -> Iterator[Found]:
    """Every camera in a tree. outer: where a size may stand that is not given here."""
    if isinstance(node, list):
        for part in node:
            yield from _cameras(part, outer, where)
    if not isinstance(node, dict):
        return
    named = _wanted(node)
    outer = named if named.keys() & {"width", "height", "size"} else outer
    K = [_numbers(named.get(k)) for k in ("fx", "fy", "cx", "cy")]
    f, c = _numbers(named.get("f")), _numbers(named.get("c"))
    if "fx" not in named and len(f) in (1, 2):
        K[:2] = f[:1], f[-1:]
    if "cx" not in named and len(c) == 2:
        K[2:] = c[:1], c[1:]
    matrix = _from_matrix(named.get("matrix"))
    if matrix is None:
        matrix = _from_matrix(named.get("projection"))
    told = []
    if all(len(k) == 1 for k in K):
        told = [_checked(f"{where or 'top'}: fx", np.concatenate(K), outer)]
    elif named.keys() & {"fx", "fy", "f"} and matrix is None:
        text = f"expected numbers fx, fy, cx, cy, and found {', '.join(node):.200}"
        told = [(text, None, None)]
    if matrix is not None:
        told.append(_checked(f"{where or 'top'}: matrix", matrix, outer))
    yield from told
    for key, value in node.items():  # what lies beneath a camera is none for this picture
        if not PASSED.search(key) and all(K is None for _, K, _ in told):
            yield from _cameras(value, outer, f"{where}.{key:.40}".lstrip("."))


def _numbers(value: object) -> np.ndarray:
    """A number, or lists of them, also as text -> flat; empty for anything else."""
    try:
        return np.asarray([] if value is None else value, np.float64).ravel()
    except (TypeError, ValueError, ArithmeticError):
        return np.empty(0)


def _from_matrix(value: object) -> np.ndarray | None:
    """fx, fy, cx, cy of a matrix, or of a list of these four; where the zeros are tells rows from
    columns. NaN where it is of that size but not a camera's; None: something else."""
    flat = _numbers(value.get("data") if isinstance(value, dict) else value)
    if len(flat) == 4:
        return flat if 0.75 < flat[0] / (flat[1] or 1) < 1.33 else flat * math.nan
    if len(flat) not in (9, 12, 16):
        return None
    n = math.isqrt(len(flat))
    for M in (flat.reshape(n, -1)[:3, :3], flat.reshape(-1, n).T[:3, :3]):
        if np.abs(M[[1, 2, 2, 2], [0, 0, 1, 2]] - (0, 0, 0, 1)).max() < 1e-6:
            return M[[0, 1, 0, 1], [0, 1, 2, 2]]
    return np.full(4, math.nan)


def _checked(where: str, K: np.ndarray, named: dict) -> Found:
    """A camera with its size, or what is wrong with it. (H, W) or (W, H) in one list: the order in
    which the principal point is nearer to the middle."""
    sides = [_numbers(named.get(k)) for k in ("height", "width")]
    size = np.concatenate(sides) if all(len(s) == 1 for s in sides) else _numbers(named.get("size"))
    if len(size) == 2 and len(sides[0]) + len(sides[1]) < 2:
        off = [np.abs(K[:1:-1] / s - 0.5).sum() for s in (size, size[::-1])]
        if size[0] != size[1] and not max(off) > 2 * min(off):
            return f"a size of {size.tolist()}: say which is width and which height", None, None
        size = size[:: 1 if off[0] <= off[1] else -1]
    # Rather far from float32's own ends, for Eq. 9 divides by focal lengths and squares the rest.
    if not (np.abs(K) < 1e7).all() or K[:2].min() < 5 or np.abs(K[2:]).max() < 1:  # not for NaN
        why = f"impossible intrinsics fx, fy, cx, cy = {K.tolist()} ({where}): they are in pixels"
        return why, None, None
    if len(sides[0]) != len(sides[1]) or len(size) == 2 and not 0 < size.min() <= size.max() < 1e5:
        return f"width and height cannot be {[s.tolist() for s in sides[::-1]]}", None, None
    return where, K, tuple(size.tolist()) if len(size) == 2 else None


# ------------------------------------------------------------------------- K follows the picture


def scale_K(K: np.ndarray, size: Size, to: Size) -> np.ndarray:
    """fx, fy, cx, cy (..., 4) in pixels of a picture of `size` (H, W) -> of it resized to `to`.
    Pixel centres are at whole numbers, so that the picture's corner is at -0.5."""
    half = np.array([0, 0, 0.5, 0.5])
    return (np.asarray(K, np.float64) + half) * (2 * [to[1] / size[1], to[0] / size[0]]) - half


def turn_K(K: np.ndarray, size: Size, orientation: int) -> np.ndarray:
    """fx, fy, cx, cy (4,) of a picture stored (H, W) = size -> of it turned upright, as its EXIF
    orientation 1 .. 8 says."""
    (H, W), (fx, fy, cx, cy) = size, K
    cx = W - 1 - cx if orientation in (2, 3, 7, 8) else cx
    cy = H - 1 - cy if orientation in (3, 4, 6, 7) else cy
    return np.array([fy, fx, cy, cx] if orientation > 4 else [fx, fy, cx, cy], np.float64)


def fit_K(K: np.ndarray, at: Size | None, size: Size, *turns: int) -> np.ndarray:
    """K for pictures of `at` (H, W) -> of the upright picture of `size`. turns: EXIF orientations
    by which the picture that K is of may be turned, the likeliest first; by the first that fits
    `at` (None: any) K is turned. Else it is of the upright picture. Raises UserError: another
    aspect."""
    for turn in (*turns, 1):
        whole = size[::-1] if turn > 4 else size
        h, w = at or whole
        if abs(math.log(whole[1] * h / (whole[0] * w))) <= 0.02:
            return turn_K(scale_K(K, (h, w), whole), whole, turn)
    h, w = at
    raise UserError(
        f"is for pictures {w:g} wide and {h:g} high, this one has {size[1]} and {size[0]}: another "
        "camera, cropped or turned"
    )
