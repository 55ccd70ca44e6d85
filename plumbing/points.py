"""Depth as coloured points in metres, for MeshLab, CloudCompare and Open3D."""

from __future__ import annotations

import argparse
import math
from contextlib import suppress
from pathlib import Path

import numpy as np

from plumbing import cameras
from plumbing.cameras import Cameras, fit_K, scale_K
from plumbing.files import UserError


def parse_camera(text: str) -> Cameras:
    """An argparse type: "518,519,319.5,239.5,640,480", or the name of a JSON file."""
    numbers = text.split(",")
    if len(numbers) in (4, 6):
        with suppress(ValueError):
            names = ("fx", "fy", "cx", "cy", "width", "height")
            return cameras.cameras_in(dict(zip(names, map(float, numbers))))
    try:
        return cameras.read_cameras(Path(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither FX,FY,CX,CY[,W,H] nor a JSON file of cameras ({error})"
        ) from error


def camera(
    known: Cameras | None, stem: str, size: tuple[int, int], to: tuple[int, int],
    orientation: int = 1,
) -> tuple[float, float, float, float]:  # fmt: skip
    """fx, fy, cx, cy in pixels of the upright picture `stem` of size (H, W) when it is resized to
    `to`. orientation: its EXIF's, which the camera follows (`fit_K`).

    known None: a guess, the Kinect's 63 degrees along the longer side. A pixel's centre is at whole
    numbers. Raises UserError.
    """
    H, W = size
    f = 518.858 * max(H, W) / 640
    if known is None:
        return tuple(scale_K([f, f, (W - 1) / 2, (H - 1) / 2], size, to).tolist())
    try:
        K, at = cameras.camera_of(known, stem)
        if K is None:
            raise UserError(
                f"no focal length for {stem!r}, but {cameras.keys_of(known)}: wanted fx fy cx cy "
                '(width height) in pixels, a matrix K, or "frames" with such an entry for each stem'
            )
        h, w = at or (size[::-1] if orientation > 4 else size)
        fx, fy, cx, cy = K.tolist()
        # A crop's centre may lie beside it. A focal length of a twentieth of the side is 169
        # degrees: rather a camera in other units.
        if not (-w <= cx <= 2 * w and -h <= cy <= 2 * h and min(fx / w, fy / h) > 0.05):
            raise UserError(
                f"{fx:g},{fy:g},{cx:g},{cy:g} cannot be those of pictures {w:g} wide and {h:g} "
                "high: focal lengths and centre are in pixels"
            )
        return tuple(scale_K(fit_K(K, at, size, orientation), size, to).tolist())
    except UserError as error:
        raise UserError(f"--intrinsics {error}") from None


def point_cloud(
    rgb: np.ndarray, depth: np.ndarray, own: np.ndarray, K: tuple[float, float, float, float],
    edge: float, near_far: tuple[float, float] | None,
) -> np.ndarray:  # fmt: skip
    """RGB u8 (H, W, 3), its depth (H, W) in metres, the network's own (resized by nearest), fx fy
    cx cy -> x y z red green blue, (n,).

    x right, y up, z towards the viewer, metres: viewers (MeshLab, CloudCompare, Open3D) look along
    -z with y up, so the cloud opens as the camera saw it. (x, -y, -z) is the camera's own frame,
    that of `losses.back_project`. One point per pixel. Left out are holes, what lies outside
    near_far, and what differs by more than the ratio `edge` from the network's own: it would fly
    between the two sides of an edge.
    """
    near, far = near_far or (0, math.inf)
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
