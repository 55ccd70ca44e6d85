"""Sec. 4.1 stand-in, `--data synthetic:N`: procedural RGB-D scenes, made on the spot.

    draw a world (solids, paints, light) -> cast rays -> shade and expose -> sense the depth

Pictures are 480x640, depth is uint16 millimetres along the optical axis, 0-40 m, 0 = hole, as in
the paper's data set; the holes are the ones of its Fig. 3. All of it follows from (seed, index).

World frame: metres, x right, y up (ground at 0), z forward. Camera frame: x right, y down, z ahead.
The ray through pixel (i, j) is z * (X, Y, 1), X = (j - cx) / fx, Y = (i - cy) / fy: its parameter
is the depth itself. A solid is a convex set: half-spaces and at most one quadric. Seen from the
camera, the inverse depth w = 1/z of a plane is affine in (X, Y), so that a ray meets a solid where
    min over front faces (w)  >  max over back faces (w)     (and > the inverse depth seen so far):
one broadcast sum per face, no division, and the w buffer is just one more back face.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from plumbing.files import cache_root

VERSION = "v1"  # part of the folder's name; raise it when the pictures change
NEAR, FAR = 0.4, 40.0  # metres: what the sensor can measure; outside is a hole
BASELINE = 0.12  # metres between the sensor's two eyes: the width of its occlusion shadows
CLIP = 0.02  # metres: geometry nearer than this to the camera is cut off

# ---------------------------------------------------------------------------------- what is drawn


class Scene(NamedTuple):
    """rgb (H, W, 3) uint8 in RGB order; depth (H, W) uint16 in mm, 0 = hole; intrinsics in pixels:
    fx, fy, cx, cy (float), width, height (int), no distortion."""

    rgb: np.ndarray
    depth: np.ndarray
    intrinsics: dict[str, float]


class Camera(NamedTuple):
    """eye (3,) and axes (3, 3) in world metres (columns right, down, ahead), rays X (1, W) and
    Y (H, 1) float32, and the intrinsics in pixels."""

    eye: np.ndarray
    axes: np.ndarray
    X: np.ndarray
    Y: np.ndarray
    fx: float
    fy: float
    cx: float
    cy: float


class Light(NamedTuple):
    """A sun (is_lamp 0: `at` is a unit direction) or a lamp (is_lamp 1: `at` is a place); linear
    colours (3,); the shadows on the ground are kept for the square `middle` (x, z) +- `reach` m."""

    at: np.ndarray
    is_lamp: float
    direct: np.ndarray
    ambient: np.ndarray
    haze: np.ndarray
    middle: np.ndarray
    reach: float


class Solid(NamedTuple):
    """A convex body of one of the kinds in FLAT_SIDES; centre and half sizes (3,) in metres, turned
    by `yaw` about y; paints (1, 11), or (3, 11) for sides, top and bottom (see World.paint)."""

    kind: str
    centre: np.ndarray
    half: np.ndarray
    yaw: float
    paints: np.ndarray


def turned(yaw: float) -> np.ndarray:
    """(3, 3) whose columns are the axes of a body turned by `yaw` (radians) about y."""
    s, c = np.sin(yaw), np.cos(yaw)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


# --------------------------------------------------------------------------------------- textures

TILE, LEVELS = 256, 9  # texels along a tile's side; mip levels 256, 128 .. 1
TEXTURES = "plain checker brick wood tiles grain cloud stripes facade leaves books poster".split()


@functools.cache
def atlas() -> tuple[np.ndarray, np.ndarray]:
    """One image of all textures (rows) and mip levels (columns), uint8, and each level's x offset.

    Each tile has a wrapped gutter of one texel, so that bilinear sampling repeats without seams.
    """
    rng = np.random.Generator(np.random.PCG64(7))  # the same in every process: part of VERSION
    y, x = np.mgrid[:TILE, :TILE] / TILE
    f = np.meshgrid(np.fft.rfftfreq(TILE, 1 / TILE), np.fft.fftfreq(TILE, 1 / TILE))

    def noise(beta, along_x=1.0):
        spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE)))
        field = np.fft.irfft2(spectrum / np.hypot(1, np.hypot(f[0] * along_x, f[1])) ** beta)
        return 0.5 + (field - field.mean()) / field.std() / 5

    def cells(rows, cols, joint, shift=0.0):
        """Random value per cell of a grid, every other row shifted; 0 in the joints."""
        row = np.floor(y * rows).astype(int)
        across = (x * cols + shift * (row % 2)) % cols
        value = rng.uniform(0.45, 1, (rows, cols))[row, across.astype(int)]
        inset = np.minimum(across % 1, 1 - across % 1) / cols
        inset = np.minimum(inset, np.minimum(y * rows % 1, 1 - y * rows % 1) / rows)
        return value * (inset > joint), inset

    panes, inset = cells(4, 4, 0.05)
    layers = {
        "plain": 0.5 + 0.3 * (noise(0.6) - 0.5),
        "checker": ((x * 8).astype(int) + (y * 8).astype(int)) % 2 * 0.8 + 0.2 * noise(0.5),
        "brick": cells(14, 4, 0.008, 0.5)[0] * 0.8 + 0.2 * noise(0.4),
        "wood": cells(8, 2, 0.002, 0.7)[0] * 0.5 + 0.6 * noise(1.1, 12.0) - 0.05,
        "tiles": cells(4, 4, 0.006)[0] * 0.8 + 0.2 * noise(1.2),
        "grain": noise(0.35),
        "cloud": noise(1.6),
        "stripes": 0.5 + 0.4 * np.sign(np.sin(x * 32 * np.pi)) + 0.2 * (noise(0.5) - 0.5),
        "facade": np.where(inset > 0.05, panes * 0.45, 0.85 - 0.4 * (inset > 0.04))
        + 0.15 * (noise(0.8) - 0.5),
        "leaves": 0.5 + 1.6 * (noise(0.75) - 0.5),
        "books": cells(4, 28, 0.004)[0],
        "poster": np.where(cells(3, 2, 0)[0] > 0.7, noise(1.8), cells(5, 4, 0)[0]),
    }
    rows = []
    for name in TEXTURES:
        tile, row = (np.clip(layers[name], 0, 1) * 255).astype(np.uint8), []
        for level in range(LEVELS):
            small = cv2.resize(tile, (TILE >> level,) * 2, None, 0, 0, cv2.INTER_AREA)
            small = np.pad(small, 1, "wrap")
            row.append(np.pad(small, ((0, TILE + 2 - len(small)), (0, 0))))
        rows.append(np.hstack(row))
    return np.vstack(rows), np.cumsum([0] + [r.shape[1] for r in row[:-1]]).astype(np.float32)


def sample(layer, u, v, level) -> np.ndarray:
    """Texture value 0..1 at tile coordinates (u, v), mip `level` (int); all (H, W) -> (H, W)."""
    image, offset = atlas()
    side = np.float32(TILE) / (1 << np.arange(LEVELS)).astype(np.float32)
    side, offset = side.take(level), offset.take(level)
    x = (u - np.floor(u)) * side + (offset + np.float32(0.5))
    y = (v - np.floor(v)) * side + (layer * np.float32(TILE + 2) + np.float32(0.5))
    return cv2.remap(image, x, y, cv2.INTER_LINEAR) * np.float32(1 / 255)


# ------------------------------------------------------------------------------------ ray casting

CORNERS = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
EDGES = np.array([(a, b) for a in range(8) for b in range(a) if (a ^ b) in (1, 2, 4)]).T
AXES = np.concatenate([np.eye(3), -np.eye(3)])  # +x +y +z -x -y -z
FLAT_SIDES = {  # which of AXES are faces; "room" is a box seen from inside, "gable" a roof along z
    "box": [0, 1, 2, 3, 4, 5], "room": [0, 1, 2, 3, 4, 5], "gable": [2, 5, 4], "pyramid": [4],
    "cylinder": [1, 4], "ellipsoid": [],
}  # fmt: skip


def half_spaces(kind: str, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit outward normals n (K, 3) and offsets (K,), solid's frame; inside: n . p <= offset."""
    n = AXES[FLAT_SIDES[kind]]
    offsets = np.abs(n) @ half
    for axis in {"gable": [0], "pyramid": [0, 2]}.get(kind, []):
        slope = 2 * half[1] * AXES[[axis, axis + 3]] + half[axis] * AXES[1]  # from eaves to ridge
        slope /= np.linalg.norm(slope[0])
        n, offsets = np.concatenate([n, slope]), np.concatenate([offsets, slope[:, 1] * half[1]])
    return n, offsets


def window(solid: Solid, camera: Camera) -> tuple[slice, slice] | None:
    """Rows and columns that can see the solid: its box, cut at CLIP, projected; None: none can."""
    p = (CORNERS * solid.half) @ turned(solid.yaw).T + (solid.centre - camera.eye)
    p = p @ camera.axes
    a, b = p[EDGES]
    cut = (a[:, 2] < CLIP) != (b[:, 2] < CLIP)
    a, b = a[cut], b[cut]
    p = np.concatenate([p[p[:, 2] >= CLIP], a + (CLIP - a[:, 2:]) / (b - a)[:, 2:] * (b - a)])
    if len(p) == 0:
        return None
    X, Y = p[:, 0] / p[:, 2], p[:, 1] / p[:, 2]
    rows = np.searchsorted(camera.Y[:, 0], [Y.min(), Y.max()])
    cols = np.searchsorted(camera.X[0], [X.min(), X.max()])
    return (slice(*rows), slice(*cols)) if rows[0] < rows[1] and cols[0] < cols[1] else None


class Hits(NamedTuple):
    """What each pixel sees: z (H, W) float32 metres and face (H, W), a column of `table`; its rows
    are the normal 0:3 and texture frame 3:11 in the camera frame, and the paint 11:22. `curved`
    lists (face, window, A, s) of the quadrics |A p + s| = 1, whose normals vary by the pixel."""

    z: np.ndarray
    face: np.ndarray
    table: np.ndarray
    curved: list[tuple]


def cast(camera: Camera, solids: list[Solid]) -> Hits:
    """Nearest hit of every ray; where there is none z is 100 km."""
    seen = np.full((camera.Y.size, camera.X.size), 1e-5, np.float32)  # inverse depth so far
    face = np.zeros(seen.shape, np.intp)
    table, curved = [], []
    for solid in solids:
        if (where := window(solid, camera)) is None:
            continue
        to_local = turned(solid.yaw).T
        M, eye = to_local @ camera.axes, to_local @ (camera.eye - solid.centre)
        X, Y = camera.X[:, where[1]], camera.Y[where[0]]
        normals, offsets = half_spaces(solid.kind, solid.half)
        slack = offsets - normals @ eye  # > 0: the camera is on the inner side of this plane
        slack = np.where(np.abs(slack) < 1e-6, 1e-6, slack)
        g = (normals @ M / slack[:, None]).astype(np.float32)  # 1/z of the plane: g . (X, Y, 1)
        planes = [gx * X + (gy * Y + gz) for gx, gy, gz in g]
        room = solid.kind == "room"  # from inside a ray meets the nearest face it leaves through
        skins = {k: plane for k, plane in enumerate(planes) if room or slack[k] < 0}
        behind = seen[where].copy()
        for k, plane in enumerate(planes):
            if k not in skins:
                np.maximum(behind, plane, out=behind)
        if solid.kind in ("ellipsoid", "cylinder"):
            S = np.diag([1, float(solid.kind == "ellipsoid"), 1] / solid.half)
            A, s = S @ M, S @ eye
            # |A (X, Y, 1) + s w|^2 = w^2 is a + 2 b w + c w^2 = 0 in the inverse depth w
            G, h = (A.T @ A).astype(np.float32), (A.T @ s).astype(np.float32)
            a = G[0, 0] * X * X + 2 * G[0, 2] * X + (G[1, 1] * Y * Y + 2 * G[1, 2] * Y + G[2, 2])
            a += (2 * G[0, 1] * X) * Y
            b, c = h[0] * X + (h[1] * Y + h[2]), np.float32(s @ s - 1)
            with np.errstate(invalid="ignore"):  # NaN: the ray misses, and NaN compares as a miss
                root = np.sqrt(b * b - a * c)
            np.maximum(behind, (-b - root) / c, out=behind)
            if c > 0:
                skins[len(planes)] = (-b + root) / c
        if not skins:  # the camera is inside the solid
            continue
        w = functools.reduce(np.maximum if room else np.minimum, skins.values())
        hit = w > behind
        if not hit.any():
            continue
        np.copyto(seen[where], w, where=hit)
        rows = face_rows(solid, camera, M, eye, normals)
        for k, skin in skins.items():
            np.copyto(face[where], len(table), where=hit & (skin == w))
            if k == len(planes):
                curved.append((len(table), where, A.astype(np.float32), s.astype(np.float32)))
            table.append(rows[k])
    return Hits(1 / seen, face, np.array(table, np.float32).T.copy(), curved)


def face_rows(solid: Solid, camera: Camera, M, eye, normals) -> np.ndarray:
    """Rows of Hits.table for a solid's K planes and, last, its curved skin: (K + 1, 22).

    Texture runs along the horizontal and down a wall, along x and z on a floor, and over a curved
    skin as projected from the camera's side; its origin is the solid's centre.
    """
    facing = np.array([eye[0], 1e-6, eye[2]]) / (np.hypot(eye[0], eye[2]) + 1e-6)
    n = np.concatenate([normals, [facing]])
    flat = np.abs(n[:, 1:2]) > 0.9
    flat[-1] = False
    along = np.stack([n[:, 2], 0 * n[:, 0], -n[:, 0]], 1)
    along /= np.linalg.norm(along, axis=1)[:, None] + 1e-6
    e1, e2 = np.where(flat, [1.0, 0, 0], along), np.where(flat, [0, 0, 1.0], [0, -1.0, 0])
    which = np.where(flat[:, 0], np.where(n[:, 1] > 0, 1, 2), 0) * (len(solid.paints) > 1)
    paint = solid.paints[which]
    towards = -1 if solid.kind == "room" else 1  # normals look at the camera's side
    frame = [e1 @ M, (e1 @ eye)[:, None], e2 @ M, (e2 @ eye)[:, None]]
    return np.hstack([towards * n @ M, np.hstack(frame) * paint[:, :1], paint])


# ---------------------------------------------------------------------------------------- shading


def light_map(solids: list[Solid], light: Light) -> np.ndarray:
    """(512, 512) float32, 0..1: the share of light that reaches the ground, seen from above.

    The shadow of a convex solid on the ground is convex: the hull of its projected corners. A
    blurred footprint stands for the sky light that a solid keeps from the ground around it.
    """
    side, (shadow, contact) = 512, np.zeros((2, 512, 512), np.uint8)
    scale = side / 2 / light.reach  # texels per metre
    for solid in solids:
        bottom, top = solid.centre[1] - solid.half[1], solid.centre[1] + solid.half[1]
        if not 0.05 < top < 100 or solid.kind == "room" or solid.paints[0, 9]:  # glows
            continue
        corners = CORNERS
        if solid.kind in ("ellipsoid", "cylinder"):
            corners = np.concatenate([CORNERS * [0.7, 1, 0.7], 0.95 * AXES])
        p = (corners * solid.half) @ turned(solid.yaw).T + solid.centre
        rise = np.maximum(light.at[1] - light.is_lamp * p[:, 1:2], 0.1)
        thrown = p - (light.at - light.is_lamp * p) * p[:, 1:2] / rise
        for image, points in ((shadow, thrown), (contact, p))[: 2 if bottom < 0.3 else 1]:
            spots = (points[:, [0, 2]] - light.middle) * scale + side / 2
            hull = cv2.convexHull((spots * 16).clip(-1e6, 1e6).astype(np.int32))
            cv2.fillConvexPoly(image, hull, 255, cv2.LINE_8, 4)  # 4 bits after the point
    shadow = cv2.GaussianBlur(shadow, (0, 0), max(0.04 * scale, 0.7)).astype(np.float32)
    contact = cv2.GaussianBlur(contact, (0, 0), max(0.15 * scale, 0.7)).astype(np.float32)
    return (1 - shadow * (0.75 / 255)) * (1 - contact * (0.5 / 255))


def shade(camera: Camera, hits: Hits, light: Light, ground: np.ndarray):
    """Linear RGB, three planes (H, W) float32, and |cos| of the angle of view (H, W)."""
    z, X, Y = hits.z, camera.X, camera.Y
    light = Light(*(np.float32(part) for part in light))  # float64 would spread to every array
    R, eye = camera.axes.astype(np.float32), camera.eye.astype(np.float32)
    px, py = z * X, z * Y

    def at(row: int) -> np.ndarray:
        return hits.table[row].take(hits.face)

    n = [at(k) for k in range(3)]
    for index, where, A, s in hits.curved:
        mine = hits.face[where] == index
        normal = A.T @ (A @ np.stack([q[where][mine] for q in (px, py, z)]) + s[:, None])
        normal /= np.sqrt((normal * normal).sum(0))
        for k in range(3):
            n[k][where][mine] = normal[k]
    slope = np.abs(n[0] * X + n[1] * Y + n[2]) / np.sqrt(X * X + Y * Y + 1)

    u, v = (at(k) * px + at(k + 1) * py + at(k + 2) * z + at(k + 3) for k in (3, 7))
    texels = at(11) * z * np.float32(TILE / camera.fx) / np.sqrt(np.maximum(slope, 0.01))
    level = np.rint(np.log2(np.maximum(texels, 1e-3)) + 0.1)  # texels per pixel: which mip level
    level = level.astype(np.int32).clip(0, LEVELS - 1)
    mix = sample(at(12), u, v, level)
    cloud = np.float32(TEXTURES.index("cloud"))
    stain = sample(cloud, u * 0.13, v * 0.13, np.maximum(level - 3, 0))  # hides the repetition

    to = ((light.at - light.is_lamp * eye) @ R).astype(np.float32)
    fall = np.float32(1)
    if light.is_lamp:
        to = (to[0] - px, to[1] - py, to[2] - z)
        away = np.sqrt(to[0] ** 2 + to[1] ** 2 + to[2] ** 2)
        fall = 1 / (away * (0.4 + 0.25 * away))
    direct = np.maximum(n[0] * to[0] + n[1] * to[1] + n[2] * to[2], 0) * fall
    up = n[0] * R[1, 0] + n[1] * R[1, 1] + n[2] * R[1, 2]
    wx, wy, wz = (z * (R[k, 0] * X + (R[k, 1] * Y + R[k, 2])) + eye[k] for k in range(3))
    half = np.float32(len(ground) / 2)
    wx, wz = ((w - m) * (half / light.reach) + half for w, m in zip((wx, wz), light.middle))
    open_ = cv2.remap(ground, wx, wz, cv2.INTER_LINEAR, None, cv2.BORDER_CONSTANT, 1.0)
    foot = 1 - 0.3 * np.exp(np.minimum(wy * -3, 0))  # walls darken towards the ground
    open_ = np.where((wy < 0.2) & (up > 0.5), open_, foot)
    direct *= open_
    soft = (0.7 + 0.3 * up) * (0.4 + 0.6 * open_)
    glow, clear = at(20), np.exp(-at(21) * z)
    planes = []
    for k in range(3):
        colour = at(13 + k)
        colour += mix * (at(16 + k) - colour)
        lit = (light.direct[k] * direct + light.ambient[k] * soft) * (0.65 + 0.7 * stain)
        colour *= lit + glow * (1 - lit)
        planes.append(light.haze[k] + clear * (colour - light.haze[k]))
    return planes, slope


# --------------------------------------------------------------------------------- what is in view

PAINTS = {  # textures, metres per tile, colour as displayed, its spread, contrast, gloss, glow
    "wood": ("wood", (0.6, 1.2), (0.50, 0.36, 0.24), 0.4, 0.25, 0.3, 0),
    "cloth": ("grain stripes cloud", (0.3, 1), (0.45, 0.45, 0.45), 0.8, 0.25, 0, 0),
    "metal": ("plain", (1, 1), (0.35, 0.35, 0.36), 0.5, 0.1, 1, 0),
    "leaf": ("leaves", (0.5, 1.4), (0.25, 0.40, 0.15), 0.3, 0.55, 0, 0),
    "clay": ("plain cloud", (1, 2), (0.60, 0.42, 0.32), 0.3, 0.1, 0.2, 0),
    "toy": ("checker plain stripes poster", (0.4, 0.7), (0.5, 0.5, 0.5), 0.8, 0.4, 0.5, 0),
    "card": ("grain wood poster", (0.7, 1), (0.60, 0.48, 0.34), 0.3, 0.25, 0, 0),
    "books": ("books", (0.9, 1.3), (0.45, 0.42, 0.4), 0.7, 0.5, 0, 0),
    "skin": ("plain", (1, 1), (0.65, 0.47, 0.38), 0.4, 0.1, 0, 0),
    "linen": ("plain", (1, 1), (0.85, 0.85, 0.85), 0.1, 0.1, 0, 0),
    "silk": ("plain", (1, 1), (0.98, 0.90, 0.70), 0.05, 0.03, 0, 0.8),
    "bulb": ("plain", (1, 1), (0.97, 0.97, 0.95), 0.02, 0.02, 0, 1),
    "pane": ("cloud", (2, 4), (0.85, 0.92, 1.00), 0.1, 0.2, 1.4, 0.9),
    "glass": ("cloud", (1, 2), (0.25, 0.30, 0.36), 0.2, 0.4, 1.2, 0),
    "lacquer": ("plain", (1, 1), (0.45, 0.45, 0.45), 0.9, 0.05, 0.8, 0),
    "tyre": ("grain", (0.5, 0.5), (0.12, 0.12, 0.12), 0.1, 0.1, 0.3, 0),
    "art": ("poster", (0.5, 2), (0.5, 0.5, 0.5), 0.6, 0.6, 0.3, 0),
    "wallpaper": ("plain cloud stripes brick", (0.7, 2.5), (0.7, 0.67, 0.62), 0.4, 0.12, 0, 0),
    "floor": ("wood tiles checker grain", (1.2, 3), (0.48, 0.43, 0.38), 0.5, 0.25, 0.3, 0),
    "ceiling": ("plain tiles", (2.4, 2.4), (0.85, 0.85, 0.83), 0.15, 0.06, 0, 0),
    "rug": ("stripes checker poster cloud", (0.5, 2), (0.45, 0.42, 0.4), 0.7, 0.4, 0, 0),
    "render": ("brick plain grain wood", (0.9, 1.6), (0.62, 0.58, 0.52), 0.5, 0.25, 0, 0),
    "facade": ("facade", (9, 14), (0.58, 0.55, 0.52), 0.5, 0.5, 0.2, 0),
    "shingle": ("brick", (1.5, 3), (0.45, 0.30, 0.25), 0.5, 0.3, 0, 0),
    "grass": ("cloud leaves grain", (2, 5), (0.34, 0.43, 0.20), 0.25, 0.35, 0, 0),
    "paving": ("tiles brick grain", (1.5, 3), (0.52, 0.50, 0.48), 0.3, 0.2, 0, 0),
    "asphalt": ("grain", (1, 2), (0.33, 0.33, 0.34), 0.3, 0.3, 0.1, 0),
    "chalk": ("grain", (1, 1), (0.85, 0.85, 0.83), 0.1, 0.1, 0, 0),
    "sky": ("cloud", (2500, 2500), (0.80, 0.90, 1.00), 0.1, 0.25, 0, 1),
}  # fmt: skip

THINGS = {  # spread of size; parts: kind, paint, foot x y z, size w h d (metres, front towards +z);
    # ~ before a number: there and mirrored
    "table": (0.2, """box wood 0 .70 0 1.3 .04 .75;  box wood ~.6 0 ~.33 .06 .70 .06
        ellipsoid toy .4 .74 .1 .16 .22 .16;  cylinder toy -.2 .74 -.15 .12 .2 .12
        box card 0 .74 .15 .3 .06 .22"""),
    "chair": (0.1, "box cloth 0 .44 0 .42 .05 .42;  box wood ~.19 0 ~.19 .04 .44 .04; "
        "box wood 0 .49 -.19 .42 .45 .04"),
    "sofa": (0.2, "box cloth 0 0 0 1.8 .42 .9;  box cloth 0 .4 -.36 1.8 .45 .2; "
        "box cloth ~.82 0 .05 .18 .6 .82"),
    "bed": (0.2, """box wood 0 0 0 1.3 .28 2;  box cloth 0 .28 0 1.28 .24 1.96
        box linen 0 .5 -.75 .8 .12 .35;  box wood 0 0 -1 1.3 .95 .06"""),
    "shelf": (0.3, "box books 0 0 0 1.1 1.7 .35;  box wood 0 1.7 0 1.14 .04 .37"),
    "chest": (0.4, "box wood 0 0 0 1 .9 .45;  cylinder toy .2 .9 0 .2 .3 .2"),
    "plant": (0.3, """cylinder clay 0 0 0 .35 .35 .35;  ellipsoid leaf .1 .3 .1 .5 .6 .45
        ellipsoid leaf -.12 .45 0 .45 .6 .5;  ellipsoid leaf .05 .7 -.1 .4 .55 .45"""),
    "lamp": (0.1, """cylinder metal 0 0 0 .3 .03 .3;  cylinder metal 0 0 0 .04 1.5 .04
        cylinder silk 0 1.4 0 .4 .3 .4"""),
    "ball": (0.5, "ellipsoid toy 0 0 0 .45 .45 .45"),
    "crates": (0.35, "box card 0 0 0 .45 .4 .45;  box card .04 .4 .02 .38 .36 .4"),
    "person": (0.07, """cylinder cloth .1 0 .1 .15 .85 .18;  cylinder cloth -.1 0 -.12 .15 .85 .18
        ellipsoid cloth 0 .72 0 .46 .8 .3;  ellipsoid skin 0 1.46 0 .18 .25 .2"""),
    "tree": (0.4, """cylinder wood 0 0 0 .3 3.6 .3;  ellipsoid leaf ~1 2.2 .3 2.2 1.9 2.4
        ellipsoid leaf .2 2.4 ~1 2.4 2 2.2;  ellipsoid leaf 0 3.4 0 2.4 2.2 2.6
        ellipsoid leaf .6 3.2 -.5 2 1.8 1.8"""),
    "fir": (0.4, """cylinder wood 0 0 0 .3 2 .3;  pyramid leaf 0 .9 0 2.9 2.4 2.9
        pyramid leaf 0 2.3 0 2.2 2.3 2.2;  pyramid leaf 0 3.7 0 1.5 2.2 1.5"""),
    "bush": (0.4, """ellipsoid leaf ~.3 -.1 .1 .9 1 1;  ellipsoid leaf .1 -.1 -.3 1 .8 .9"""),
    "car": (0.1, """ellipsoid tyre ~.8 0 ~1.35 .24 .62 .62;  box lacquer 0 .25 0 1.75 .65 4.2
        box glass 0 .9 -.2 1.5 .5 2.3;  box lacquer 0 1.4 -.2 1.45 .05 2.1"""),
    "pole": (0.3, "cylinder metal 0 0 0 .15 5.5 .15;  box metal .5 5.5 0 1.2 .12 .2"),
    "bench": (0.15, "box wood 0 .42 0 1.5 .06 .45;  box metal ~.65 0 0 .06 .42 .4"),
    "bin": (0.2, "cylinder lacquer 0 0 0 .5 .95 .5"),
    "pillar": (0.2, "cylinder wallpaper 0 0 0 .6 9 .6"),
    "house": (0.3, """box render 0 0 0 10 3.6 9;  gable shingle 0 3.6 0 10.6 2.6 9.6
        box wood .8 0 4.5 1 2.1 .1;  box glass ~3.6 1 4.5 1.2 1.3 .1
        box glass -1.2 1 4.5 1.2 1.3 .1"""),
    "block": (0.35, "box facade 0 0 0 11 15 10;  box shingle 0 15 0 11 .3 10"),
}  # fmt: skip


class World:
    """The solids drawn so far and the random draws they come from; `taken` keeps things apart."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.u = rng, rng.uniform
        self.solids: list[Solid] = []
        self.taken = [(0.0, 0.0, 0.45)]  # x, z, radius in metres; the first is the camera

    def pick(self, words: str) -> str:
        """One of the words; a word that comes twice is twice as likely."""
        return self.rng.choice(words.split())

    def paint(self, name: str) -> np.ndarray:
        """(1, 11): tiles per metre, texture, dark RGB, light RGB (linear), gloss, glow, haze/m."""
        textures, metres, colour, vary, contrast, gloss, glow = PAINTS[name]
        base = np.array(colour) * self.u(1 - vary, 1 + vary / 2) + 0.2 * vary * self.u(-1, 1, 3)
        dark, light = (np.clip(base * (1 + s * contrast), 0.02, 1) ** 2 for s in (-1, 1))
        layer = TEXTURES.index(self.pick(textures))
        return np.array([[1 / self.u(*metres), layer, *dark, *light, gloss, glow, 0]])

    def add(self, kind: str, foot, size, *paints: str, yaw: float = 0.0) -> None:
        """A single solid that stands on `foot` (x, y, z) with `size` (w, h, d)."""
        half, skins = np.array(size) / 2, np.concatenate([self.paint(p) for p in paints])
        self.solids.append(Solid(kind, np.array(foot) + [0, half[1], 0], half, yaw, skins))

    def put(self, name: str, x: float, z: float, yaw: float = 0.0, back_to: bool = False) -> None:
        """A thing of THINGS at (x, z), if there is room; `back_to`: with its back there."""
        spread, text = THINGS[name]
        stretch = self.u(1 - spread, 1 + spread) * self.u(1 - spread / 3, 1 + spread / 3, 3)
        paints, parts = {}, []
        for row in text.replace("\n", ";").split(";"):
            kind, paint, *numbers = row.split()
            if paint not in paints:
                paints[paint] = self.paint(paint)
            ways = [(float(n[1:]), -float(n[1:])) if n[0] == "~" else (float(n),) for n in numbers]
            for part in itertools.product(*ways):
                place, half = np.array(part[:3]) * stretch, np.array(part[3:]) * stretch / 2
                if paint == "leaf":  # no two crowns alike
                    half = half * self.u(0.8, 1.25, 3)
                parts.append(Solid(kind, place + [0, half[1], 0], half, 0.0, paints[paint]))
        reach = max(np.hypot(p.centre[0], p.centre[2]) + p.half[[0, 2]].max() for p in parts)
        turn = turned(yaw)
        away = max(p.half[2] - p.centre[2] for p in parts) + 0.02 if back_to else 0.0
        at = np.array([x, 0, z]) + turn @ [0, 0, away]
        room = 0.7 * reach
        if any(np.hypot(at[0] - a, at[2] - b) < r + room for a, b, r in self.taken):
            return
        self.taken.append((at[0], at[2], room))
        self.solids += [p._replace(centre=turn @ p.centre + at, yaw=yaw) for p in parts]


def camera_at(world: World, size, height: float, yaw: float, pitch: float) -> Camera:
    """A camera over (0, 0), turned right by yaw and down by pitch (radians), rolled a little."""
    H, W = size
    fx = world.u(400, 600) * W / 640
    fy, cx, cy = fx * world.u(0.99, 1.01), W * world.u(0.48, 0.52), H * world.u(0.48, 0.52)
    s, c = np.sin(pitch), np.cos(pitch)
    axes = turned(yaw) @ [[1, 0, 0], [0, -c, -s], [0, -s, c]]
    s, c = np.sin(roll := world.rng.normal(0, 0.03)), np.cos(roll)
    axes = axes @ [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    X = ((np.arange(W) - cx) / fx).astype(np.float32)[None]
    Y = ((np.arange(H) - cy) / fy).astype(np.float32)[:, None]
    return Camera(np.array([0, height, 0]), axes, X, Y, fx, fy, cx, cy)


def indoor(world: World, size: tuple[int, int]) -> tuple[Camera, Light]:
    """A room, a corridor or a hall, furnished along the walls and on the floor."""
    u, pick = world.u, world.pick
    kind = pick("room room room corridor hall")
    W, H, D = {
        "room": u((3, 2.4, 4), (6.5, 3.1, 9)),
        "corridor": u((1.7, 2.3, 9), (2.8, 3, 28)),
        "hall": u((9, 3.5, 14), (20, 7, 36)),
    }[kind]
    back = u(0.5, 0.3 * D)  # the camera stands at x = z = 0, this far from the wall behind it
    mid, far = W * u(-0.2, 0.2), D - back
    world.add("room", (mid, 0, far - D / 2), (W, H, D), "wallpaper", "ceiling", "floor")
    walls = ((mid - W / 2, far - D / 2, D, np.pi / 2), (mid + W / 2, far - D / 2, D, -np.pi / 2),
             (mid, far, W, np.pi))  # fmt: skip  # a point, the length, the yaw of things before it
    for x, z, length, yaw in walls:
        for _ in range(int(length / u(1.2, 2.5))):
            s = length * u(-0.45, 0.45)
            spot = x + s * abs(np.cos(yaw)), z + s * abs(np.sin(yaw))
            foot, extent, skin = {
                "art": (1.3, (u(0.4, 1.3), u(0.4, 1), 0.06), "art"),
                "window": (0.9, (u(0.8, 2), u(0.9, H - 1.1), 0.04), "pane"),
                "door": (0, (0.9, 2.05, 0.08), "wood"),
            }[pick("art art window window door")]
            if u() < 0.65:
                world.add("box", (spot[0], foot, spot[1]), extent, skin, yaw=yaw)
            if kind != "corridor" or u() < 0.2:
                furniture = pick("shelf shelf chest sofa bed plant lamp table")
                world.put(furniture, *spot, yaw, back_to=True)
    if u() < 0.5:
        world.add("box", (u(-1, 1), 0, u(1.5, 4)), (u(1, 2.5), 0.012, u(1, 2)), "rug", yaw=u(0, 3))
    for k in range(int(D / 5) if kind == "hall" else 0):
        for side in (-0.27, 0.27):
            world.put("pillar", mid + side * W, 5 * k + 3 - back)
    for _ in range(int(u(10, 24) if kind == "hall" else u(3, 9))):
        loose = pick("table table chair chair ball crates plant person lamp")
        world.put(loose, mid + W * u(-0.4, 0.4), u(0.6, far - 0.4), u(-np.pi, np.pi))
    for k in range(max(1, int(D / 4))):
        world.add("box", (mid, H - 0.08, 4 * k + 2 - back), (0.9, 0.08, 0.25), "bulb")
    warm = np.array([1, u(0.8, 1), u(0.6, 1)])
    at = np.array([mid, H - 0.1, max(u(0.2, 0.7) * D - back, 1)])
    middle = np.array([mid, far - D / 2])
    white, black, reach = np.full(3, 0.35), np.zeros(3), 0.55 * max(W, D)
    light = Light(at, 1, warm * u(0.8, 1.6), white, black, middle, reach)
    yaw = world.rng.normal(0, 0.12 if kind == "corridor" else 0.4)
    return camera_at(world, size, u(0.9, min(1.8, H - 0.6)), yaw, u(-0.1, 0.45)), light


def outdoor(world: World, size: tuple[int, int]) -> tuple[Camera, Light]:
    """A street between houses, a park, or a yard before a building; sky, sun, haze."""
    u, pick = world.u, world.pick
    kind = pick("street street street park park yard")
    ground = {"street": "paving", "park": "grass", "yard": pick("grass paving")}[kind]
    world.add("box", (0, -1, 0), (2e4, 1, 2e4), ground, yaw=u(0, 3))
    world.add("box", (0, 600, 0), (1e5, 1, 1e5), "sky", yaw=u(0, 3))
    x0 = u(-4, 4) if kind == "street" else u(-8, 8)  # the middle of the road or path
    road = u(3, 4.5) if kind == "street" else u(0.6, 1.5)  # its half width
    if kind != "yard":
        surface = "asphalt" if kind == "street" else "paving"
        world.add("box", (x0, 0, 60), (2 * road, 0.01, 200), surface)
    if kind == "street":
        walk = u(1.5, 3.5)
        for k in range(12):
            world.add("box", (x0, 0, 6 * k), (0.14, 0.016, 2.2), "chalk")
        for side in (-1, 1):
            kerb = x0 + side * road
            world.add("box", (kerb + side * walk / 2, 0, 60), (walk, 0.13, 200), "paving")
            for k in range(9):
                world.put(pick("house block"), kerb + side * (walk + 15), 11 * k - u(2, 6),
                          -side * np.pi / 2, back_to=True)  # fmt: skip
                z = u(5, 8) * k + u(1, 4)
                world.put(pick("tree fir pole bin person"), kerb + side * 0.7, z)
                if u() < 0.6:
                    world.put("car", kerb - side * 1.1, z, np.pi * world.rng.integers(2))
    else:
        for _ in range(world.rng.integers(1, 7)):
            far = u(12, 26) if kind == "yard" else u(30, 80)
            world.put(pick("house block"), far * u(-0.7, 0.7), far, np.pi + u(-0.3, 0.3))
        for _ in range(int(u(6, 20) if kind == "park" else u(2, 6))):
            z = u(2, 45)
            world.put(pick("tree tree fir bush"), u(-0.9, 0.9) * (z + 2), z)
    for _ in range(world.rng.integers(2, 10)):
        z = u(1.5, 25)
        loose = pick("person person bench bush crates ball bin car")
        world.put(loose, x0 + u(-0.8, 0.8) * (z + 1), z, u(-3, 3))
    for _ in range(3):  # hills
        z = u(150, 400)
        hill = (u(200, 500), u(50, 110), 100)
        world.add("ellipsoid", (z * u(-1, 1), -30, z), hill, "grass")
    haze = 1 / world.rng.choice([80, 150, 300, 600])
    for solid in world.solids:
        solid.paints[:, 10] = haze if solid.centre[1] < 500 else 1 / 6000  # the sky has its own
    way, height, strength = u(0, 2 * np.pi), u(0.35, 1.2), world.rng.choice([0.3, 1.2, 2.2])
    sun = [np.cos(height) * np.sin(way), np.sin(height), np.cos(height) * np.cos(way)]
    warm, blue = strength * np.array([1.1, 1, 0.85]), np.array([0.5, 0.56, 0.65])
    grey = np.array([0.62, 0.69, 0.76]) * u(0.8, 1.2)
    light = Light(np.array(sun), 0, warm, blue, grey, np.array([0, 22]), 28)
    eye = u(1.2, 1.9) if u() < 0.8 else u(2, 5)
    return camera_at(world, size, eye, world.rng.normal(0, 0.3), u(-0.02, 0.28)), light


# ------------------------------------------------------------------------------------- the sensors


def expose(rng: np.random.Generator, planes: list[np.ndarray]) -> np.ndarray:
    """Linear RGB planes -> (H, W, 3) uint8: exposure, white balance, gamma 2, noise, soft lens."""
    lower = [p[len(p) // 2 :].mean() for p in planes]  # the meter looks at the ground, not the sky
    gain = rng.uniform(0.13, 0.26) / np.mean(lower)
    noise = rng.standard_normal(planes[0].shape, np.float32) * np.float32(rng.uniform(0.5, 3))
    rgb = np.empty((*planes[0].shape, 3), np.float32)
    for k, balance in enumerate(rng.uniform(0.93, 1.07, 3)):
        rgb[..., k] = np.sqrt(planes[k] * np.float32(gain * balance * 255**2)) + noise
    rgb = rgb.clip(0, 255).astype(np.uint8)
    return cv2.GaussianBlur(rgb, (3, 3), rng.uniform(0.35, 0.7))


def sense(rng: np.random.Generator, camera: Camera, z, slope, bright, gloss) -> np.ndarray:
    """True depth z (H, W) in metres -> what a stereo sensor reports: uint16 mm, 0 = hole (Fig. 3).

    Holes: outside NEAR..FAR (the sky is beyond FAR), where the second eye, BASELINE to the right,
    does not see the point, and blobs that are likelier at grazing angles, in the dark, on gloss.
    Noise grows with z^2, as a constant error of disparity makes it.
    """
    H, W = z.shape

    def blobs(cell):
        coarse = rng.standard_normal((-(-H // cell), -(-W // cell)), np.float32)
        return cv2.resize(coarse, (W, H), None, 0, 0, cv2.INTER_LINEAR)

    column = np.arange(W, dtype=np.float32) - np.float32(camera.fx * BASELINE) / z  # second eye's
    first = np.minimum.accumulate(column[:, ::-1], axis=1)[:, ::-1]  # of this pixel and all right
    hole = (first < column - 1) | (column < 0)
    risk = np.maximum(1 - 4 * slope, 0) + np.maximum(0.8 - 12 * bright, 0) + 0.9 * gloss
    hole |= blobs(12) + 0.7 * blobs(4) + risk > 2.1
    hole |= z > FAR  # before the noise, which would bring bits of the sky down to earth
    z = z + z * z * (np.float32(0.0008) * blobs(3)) + np.float32(0.002) * blobs(2)
    hole |= (z < NEAR) | (z > FAR)
    return np.where(hole, 0, z * 1000 + 0.5).astype(np.uint16)


def render(seed: int, index: int, size: tuple[int, int] = (480, 640)) -> Scene:
    """Scene `index` of stream `seed` (both >= 0); the same bits in every run, process and order."""
    # The last word keeps SeedSequence's zero padding from making two keys one.
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, 1])))
    world = World(rng)
    camera, light = (indoor if rng.random() < 0.5 else outdoor)(world, size)
    hits = cast(camera, world.solids)
    planes, slope = shade(camera, hits, light, light_map(world.solids, light))
    rgb = expose(rng, planes)
    bright, gloss = rgb[..., 1] / np.float32(255), hits.table[19].take(hits.face)
    depth = sense(rng, camera, hits.z, slope, bright, gloss)
    keys = {k: float(getattr(camera, k)) for k in ("fx", "fy", "cx", "cy")}
    return Scene(rgb, depth, {**keys, "width": size[1], "height": size[0]})


# ------------------------------------------------------------------------------------ the data set


def write_scene(task: tuple[Path, int, int]) -> tuple[str, dict[str, float]]:
    """Render scene (folder, seed, index) into folder/{rgb,depth}; its stem and intrinsics."""
    folder, seed, index = task
    scene, stem = render(seed, index), f"{index:06d}"
    files = (
        (f"rgb/{stem}.jpg", scene.rgb[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 95)),
        (f"depth/{stem}.png", scene.depth, (cv2.IMWRITE_PNG_COMPRESSION, 1)),
    )
    for name, image, how in files:  # not cv2.imwrite: it hides why a write failed
        (folder / name).write_bytes(cv2.imencode(name[-4:], image, how)[1])
    return stem, scene.intrinsics


def ensure(count: int, seed: int = 0, root: Path | None = None, jobs: int | None = None) -> Path:
    """The folder of `count` training and max(1, count // 8) validation scenes; made if missing.

        <root>/synthetic-v1-<count>-seed<seed>/{train,val}/{rgb/*.jpg, depth/*.png, intrinsics.json}

    Training draws from stream 2 * seed, validation from 2 * seed + 1: never the same scene, for any
    counts and seeds. Written aside and renamed when whole, so a killed run leaves nothing that
    passes for a set, and of two builders the slower takes the other's. `jobs` processes; None: one
    per usable core. ValueError for a bad argument, OSError where the folder cannot be written.
    """
    if count < 1 or seed < 0 or (jobs is not None and jobs < 1):
        raise ValueError(f"count and jobs must be >= 1, seed >= 0: got {count=}, {jobs=}, {seed=}")
    root = cache_root() if root is None else Path(root)
    name = f"synthetic-{VERSION}-{count}-seed{seed}"
    final, aside = root / name, root / f".{name}.{uuid.uuid4().hex}.tmp"
    if final.is_dir():
        return final
    sizes = {"train": (2 * seed, count), "val": (2 * seed + 1, max(1, count // 8))}
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    jobs = min(jobs or len(usable(0)), sum(n for _, n in sizes.values()))
    tasks = [(aside / split, s, k) for split, (s, n) in sizes.items() for k in range(n)]
    try:
        for split in sizes:
            (aside / split / "rgb").mkdir(parents=True)
            (aside / split / "depth").mkdir()
        if jobs == 1:
            done = list(tqdm(map(write_scene, tasks), name, len(tasks), unit="scene"))
        else:
            # spawn: a fork of a process whose OpenCV or PyTorch threads have run can hang for good.
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, spawn, cv2.setNumThreads, (1,)) as pool:
                scenes = pool.map(write_scene, tasks, chunksize=4)
                done = list(tqdm(scenes, name, len(tasks), unit="scene"))
        for split in sizes:
            frames = {d[0]: d[1] for (folder, *_), d in zip(tasks, done) if folder.name == split}
            (aside / split / "intrinsics.json").write_text(json.dumps({"frames": frames}, indent=1))
        aside.rename(final)
    except OSError as error:
        if not final.is_dir():  # else another process was faster: its set is the same, bit for bit
            cure = "set LITEDEPTH_CACHE to a writable folder with room (0.5 MB a scene)"
            raise OSError(
                error.errno, f"cannot write the synthetic data to {root}: {error.strerror}; {cure}"
            ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def contact_sheet(scenes: list[Scene], columns: int = 3) -> np.ndarray:
    """(H, W, 3) uint8 BGR: picture beside depth (logarithmic colours 0.4-40 m, holes magenta)."""
    tiles = []
    for scene in scenes:
        span = np.log(np.maximum(scene.depth, 1) / (1000 * NEAR)) / np.log(FAR / NEAR)
        depth = cv2.applyColorMap((span.clip(0, 1) * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
        depth[scene.depth == 0] = (255, 0, 255)
        tiles.append(np.hstack([scene.rgb[..., ::-1], depth]))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[k : k + columns]) for k in range(0, len(tiles), columns)])


def make_parser() -> argparse.ArgumentParser:
    """The flags of `python synthetic.py`, which draws a contact sheet."""
    parser = argparse.ArgumentParser(
        prog="synthetic.py", description="Look at the embedded data set and time it."
    )
    parser.add_argument("--count", type=int, default=12, help="scenes to draw; 12 fill a screen")
    parser.add_argument("--seed", type=int, default=0,
                        help="stream to draw from: --data synthetic trains on stream 0 (even "
                             "streams train, odd ones validate), 1 its validation")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR",
                        help="folder for contact-sheet.png; made if missing")  # fmt: skip
    return parser


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    if args.count < 1:
        parser.error("--count must be at least 1")
    cv2.setNumThreads(1)
    atlas()  # made once per process: not part of the rate
    start = time.perf_counter()
    scenes = [render(args.seed, k) for k in range(args.count)]
    rate = args.count / (time.perf_counter() - start)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "contact-sheet.png"
    path.write_bytes(cv2.imencode(".png", contact_sheet(scenes))[1])
    holes = 100 * np.mean([(s.depth == 0).mean() for s in scenes])
    print(f"{path}: {args.count} scenes, {rate:.1f} scenes/s on one core, {holes:.0f} % holes")


if __name__ == "__main__":
    main()
