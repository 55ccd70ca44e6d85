"""Cameras out of JSON, in the layouts that are common; and what a resize and a turn make of them.

Named numbers (fx fy cx cy, ppx, fl_x ...) and matrices (nested or flat, by rows or by columns), at
any depth. What could be two cameras is refused, never guessed.
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
Found = tuple[str, np.ndarray, Size | None]  # where, fx fy cx cy, of what size

NAMES = {  # what is wanted: its names, without case, punctuation and "color"
    "fx": "fx flx", "fy": "fy fly", "cx": "cx ppx", "cy": "cy ppy", "f": "f focallength",
    "width": "width w imagewidth imgwidth", "height": "height h imageheight imgheight",
    "K": "k camk mtx cameramatrix intrinsic intrinsics intrinsicmatrix cameraintrinsics",
}  # fmt: skip
WANTED = {"": "K"} | {name: want for want, names in NAMES.items() for name in names.split()}
COLOUR = re.compile("(?i)colou?r|rgb")
OTHERS = re.compile("(?i)^frames$|depth|infra|^ir")  # a depth sensor's camera is not the picture's


class Cameras(NamedTuple):
    """A file's content; what in it is for one picture, by that picture's name and stem; and what
    `camera_of` has found, by stem, None: for all others."""

    content: object
    by_name: dict[str, list]
    known: dict[str | None, tuple]


def read_cameras(path: Path) -> Cameras:
    """Raises UserError, which does not name the file."""
    try:
        return cameras_in(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"not readable as JSON ({f'{error}'[:200]})") from error


def cameras_in(content: object) -> Cameras:
    """{picture: camera} is found by its keys, a list by the file names in its entries."""
    frames = content.get("frames", content) if isinstance(content, dict) else content
    named = [*frames.items()] if isinstance(frames, dict) else []
    for entry in frames if isinstance(frames, list) else ():
        named += [(v, entry) for v in entry.values()] if isinstance(entry, dict) else []
    by_name: dict[str, list] = {}
    for path, entry in ((PureWindowsPath(n), e) for n, e in named if isinstance(n, str)):
        for name in {path.name, path.stem}:
            by_name.setdefault(name, []).append(entry)
    return Cameras(content, by_name, {})


def camera_of(cameras: Cameras, stem: str) -> tuple[np.ndarray | None, Size | None]:
    """fx, fy, cx, cy (4,) float64 of a picture, in pixels, and the size that they are for, None =
    not given; K None: the file has no focal length. Raises UserError: no such frame, several
    cameras, numbers that cannot be."""
    content, by_name, known = cameras
    entries = by_name.get(stem) or by_name.get(stem.isdecimal() and f"{int(stem)}", [])  # "0" too
    key = stem if entries else None
    if key not in known:
        known[key] = _find(cameras, entries, stem)
    return known[key]


def _find(cameras: Cameras, entries: list, stem: str) -> tuple[np.ndarray | None, Size | None]:
    content = cameras.content
    shared = _named(content) if isinstance(content, dict) else {}
    found = [c for entry in entries for c in _cameras({"": entry}, shared)]
    found = found or [*_cameras({"": content}, {})]
    for some in (found, [c for c in found if COLOUR.search(c[0])]):
        if some and all(c[2] == some[0][2] and np.abs(c[1] - some[0][1]).max() < 0.1 for c in some):
            return some[0][1:]
    if found:
        names = ", ".join(c[0].lstrip(".") for c in found[:4])
        raise UserError(f"holds several cameras ({names}), and not which is this picture's")
    if not isinstance(content, dict) or "frames" in content and not entries:
        raise UserError(f"no frame {stem!r}: expected an object with fx, fy, cx, cy or with frames")
    return None, None


def keys_of(cameras: Cameras) -> str:
    """What is there in place of a focal length."""
    return ", ".join(f"{k:.40}" for k in [*cameras.content][:8]) or "none"


def _named(node: dict) -> dict[str | None, object]:
    """What a dictionary holds of NAMES."""
    short = {COLOUR.sub("", re.sub("[^a-z0-9]", "", k.lower())): v for k, v in node.items()}
    return {WANTED[name]: value for name, value in short.items() if name in WANTED}


def _cameras(node: object, outer: dict, where: str = "") -> Iterator[Found]:
    """Every camera in a tree, at most ten deep; outer: what is named above. Raises UserError: half
    a camera, one that cannot be."""
    node = {f"{i}": v for i, v in enumerate(node)} if isinstance(node, list) else node
    if not isinstance(node, dict) or where.count(".") > 9:
        return
    named = _named(node)
    here, found = outer | named, {}
    K = [_numbers(here.get(k, here.get(k[0], ()))) for k in ("fx", "fy", "cx", "cy")]
    if named.keys() & {"fx", "fy"} or named.keys() & {"f", "cx", "cy"} and all(map(len, K)):
        found[f"{where}fx"] = np.concatenate(K)
    for key, value in node.items():
        if "K" in _named({key: value}) and (matrix := _from_matrix(value)) is not None:
            found[f"{where}{key:.40}"] = matrix
    size = [s for k in ("height", "width") if k in here for s in _numbers(here[k]).tolist()]
    sized = len(size) in (0, 2) and all(0 < s < 1e5 for s in size)
    for name, K in found.items():
        # Rather far from float32's own ends, for Eq. 9 divides by focal lengths and squares the
        # rest; all is false for NaN.
        real = len(K) == 4 and (abs(K) < 1e7).all() and min(K[:2]) >= 5 and max(abs(K[2:])) >= 1
        if not (real and sized):
            raise UserError(
                f"impossible intrinsics {K.tolist()} (height and width {size}): expected numbers "
                f"fx, fy, cx, cy in pixels, and found {', '.join(node):.200}"
            )
        yield name, K, tuple(size) or None
    for key, value in node.items() if not found else ():  # what lies beneath one is another's
        if COLOUR.search(key) or not OTHERS.search(key):
            yield from _cameras(value, here, f"{where}{key:.40}.")


def _numbers(value: object) -> np.ndarray:
    """A number, or lists of them, also as text -> flat; empty for anything else."""
    try:
        return np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError, ArithmeticError):
        return np.empty(0)


def _from_matrix(value: object) -> np.ndarray | None:
    """fx, fy, cx, cy of a matrix, where the zeros are tells rows from columns; NaN where it is of
    that size but not a camera's; None: something else."""
    flat = _numbers(value.get("data") if isinstance(value, dict) else value)
    if len(flat) not in (9, 16):
        return None
    M = flat.reshape(math.isqrt(len(flat)), -1)[:3, :3]
    for m in (M, M.T):
        if np.abs(m[[1, 2, 2, 2], [0, 0, 1, 2]] - (0, 0, 0, 1)).max() < 1e-6:
            return m[[0, 1, 0, 1], [0, 1, 2, 2]]
    return np.full(4, math.nan)


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
