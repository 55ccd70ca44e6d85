"""Sec. 4.1 stand-in, `--data synthetic:N`: procedural RGB-D scenes, made on the spot.

    solids, paints and a light -> cast rays -> shade and expose -> sense the depth

Pictures are 480x640, depth is uint16 millimetres along the optical axis, 0-40 m, 0 = hole, as in
the paper's data set; the holes are the ones of its Fig. 3. All of it follows from (stream, index).

World frame: metres, x right, y up (ground at 0), z forward. Camera frame: x right, y down, z ahead.
The ray through pixel (i, j) is z * (X, Y, 1), X = (j - cx) / fx, Y = (i - cy) / fy: its parameter
is the depth itself. A solid is a convex set: half-spaces and at most one quadric. Seen from the
camera, the inverse depth w = 1/z of a plane is affine in (X, Y), so that a ray meets a solid where
    min over front faces (w)  >  max over back faces (w)     (and > the inverse depth seen so far):
one broadcast sum for all faces, no division, and the w buffer is just one more back face.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from plumbing.files import (
    UserError,
    cache_root,
    locked,
    notice,
    progress,
    usable_cores,
    write_file,
    write_json,
)

VERSION = "v3"  # part of the folder's name; raise it when the pictures change
NEAR, FAR = 0.4, 40.0  # metres: what the sensor can measure; outside is a hole
BASELINE = 0.12  # metres between the sensor's two eyes: the width of its occlusion shadows
AMBIENT, HAZE = 0.55, 0.7  # linear brightness: of the light from everywhere, of air far away

# ------------------------------------------------------------------- what the world is made of


def entries(text: str) -> dict[str, str]:
    """{first word: the rest} of each line."""
    return dict(line.split(None, 1) for line in text.splitlines())


# A grid of cells (rows, columns, the joint between them and the shift of odd rows in cells, how
# much of it) plus noise (steepness of its spectrum, stretch along x, how much) plus a constant.
TEXTURES = entries("""\
plain    1  1 0     0   0     0.6  1  0.3  0.35
checker  8  8 0     0   0.9   0.5  1  0.2  0
brick   14  4 0.06  0.5 0.8   0.4  1  0.2  0
wood     8  2 0.01  0.7 0.5   1.1 12  0.6 -0.05
tiles    4  4 0.02  0   0.8   1.2  1  0.2  0
grain    1  1 0     0   0     0.35 1  1    0
cloud    1  1 0     0   0     1.6  1  1    0
stripes  1 24 0     0   1     0.5  1  0.2 -0.1
facade   4  4 0.2   0  -0.8   0.8  1  0.15 0.8
leaves   1  1 0     0   0     0.75 1  1.6 -0.3
books    4 28 0.06  0   1     0    1  0    0
poster   5  4 0     0   0.8   1.8  1  0.5 -0.2""")

# Textures (one that comes twice is twice as likely), then: metres per tile from, to; colour as
# displayed; its spread, contrast, gloss (makes holes in the depth), glow.
PAINTS = entries("""\
wood       wood                       0.6 1.2   0.50 0.36 0.24  0.4  0.25  0.3 0
cloth      grain,stripes,cloud        0.3 1     0.45 0.45 0.45  0.8  0.25  0   0
leaf       leaves                     0.5 1.4   0.25 0.40 0.15  0.3  0.55  0   0
toy        checker,plain,stripes      0.4 0.7   0.5  0.5  0.5   0.8  0.4   0.5 0
card       grain,wood,plain           0.7 1     0.60 0.48 0.34  0.3  0.25  0   0
books      books                      0.9 1.3   0.45 0.42 0.4   0.7  0.5   0   0
bulb       plain                      1   1     0.97 0.97 0.95  0.02 0.02  0   1
pane       cloud                      2   4     0.85 0.92 1.00  0.1  0.2   1.4 0.9
glass      cloud                      1   2     0.25 0.30 0.36  0.2  0.4   1.2 0
lacquer    plain                      1   1     0.45 0.45 0.45  0.9  0.05  0.8 0
rubber     grain                      0.5 0.5   0.12 0.12 0.12  0.1  0.1   0.3 0
art        poster                     0.5 2     0.5  0.5  0.5   0.6  0.6   0.3 0
wallpaper  plain,cloud,stripes,brick  0.7 2.5   0.7  0.67 0.62  0.4  0.12  0   0
floor      wood,tiles,checker,grain   1.2 3     0.48 0.43 0.38  0.5  0.25  0.3 0
ceiling    plain,tiles                2.4 2.4   0.85 0.85 0.83  0.15 0.06  0   0
plaster    brick,plain,grain,wood     0.9 1.6   0.62 0.58 0.52  0.5  0.25  0   0
facade     facade                     9   14    0.58 0.55 0.52  0.5  0.5   0.2 0
shingle    brick                      1.5 3     0.45 0.30 0.25  0.5  0.3   0   0
grass      cloud,leaves,grain         2   5     0.34 0.43 0.20  0.25 0.35  0   0
paving     tiles,brick,grain          1.5 3     0.52 0.50 0.48  0.3  0.2   0   0
asphalt    grain                      1   2     0.33 0.33 0.34  0.3  0.3   0.1 0
sky        cloud                     2500 2500  0.80 0.90 1.00  0.1  0.25  0   1""")

# Spread of size; then parts: kind, paint, foot x y z, size w h d in metres. Things face +z; what
# may stand before a wall has its back at z = 0.
THINGS = entries("""\
art    .4  box art 0 1.3 0 .8 .7 .06
window .3  box pane 0 .9 0 1.4 1.1 .04
door   .1  box wood 0 0 0 .9 2 .08
rug    .4  box cloth 0 0 0 1.7 .012 1.5
table  .2  box wood 0 .7 .38 1.3 .04 .75; box wood .6 0 .7 .06 .7 .06; \
box wood -.6 0 .7 .06 .7 .06; box wood .6 0 .06 .06 .7 .06; box wood -.6 0 .06 .06 .7 .06; \
ellipsoid toy .4 .74 .5 .16 .22 .16; cylinder toy -.2 .74 .2 .12 .2 .12
chair  .1  box cloth 0 .44 0 .42 .05 .42; box wood 0 .49 -.19 .42 .45 .04; \
box wood .19 0 .19 .04 .44 .04; box wood -.19 0 .19 .04 .44 .04; \
box wood .19 0 -.19 .04 .44 .04; box wood -.19 0 -.19 .04 .44 .04
sofa   .2  box cloth 0 0 .45 1.8 .42 .9; box cloth 0 .4 .1 1.8 .45 .2; \
box cloth .82 0 .5 .18 .6 .82; box cloth -.82 0 .5 .18 .6 .82
bed    .2  box wood 0 0 .65 2 .28 1.3; box cloth 0 .28 .65 1.96 .24 1.28; \
box toy -.75 .5 .65 .35 .12 .8; box wood -1 0 .65 .06 .95 1.3
shelf  .3  box books 0 0 .18 1.1 1.7 .35; box wood 0 1.7 .18 1.14 .04 .37
chest  .3  box wood 0 0 .23 1 .9 .45; cylinder toy .2 .9 .2 .2 .3 .2
plant  .3  cylinder toy 0 0 .3 .35 .35 .35; ellipsoid leaf .1 .3 .4 .5 .6 .45; \
ellipsoid leaf -.12 .45 .3 .45 .6 .5; ellipsoid leaf .05 .7 .2 .4 .55 .45
lamp   .1  cylinder lacquer 0 0 .3 .3 .03 .3; cylinder lacquer 0 0 .3 .04 1.5 .04; \
cylinder bulb 0 1.4 .3 .4 .3 .4
ball   .2  ellipsoid toy 0 0 0 .45 .45 .45
crates .3  box card 0 0 0 .45 .4 .45; box card .04 .4 .02 .38 .36 .4
pillar .2  cylinder wallpaper 0 0 0 .6 9 .6
person .07 cylinder cloth .1 0 .1 .15 .85 .18; cylinder cloth -.1 0 -.12 .15 .85 .18; \
ellipsoid cloth 0 .72 0 .46 .8 .3; ellipsoid card 0 1.46 0 .18 .25 .2
tree   .3  cylinder wood 0 0 0 .3 3.6 .3; ellipsoid leaf 1 2.2 .3 2.2 1.9 2.4; \
ellipsoid leaf -1 2.2 .3 2 1.7 2.1; ellipsoid leaf .2 2.4 -1 2.4 2 2.2; \
ellipsoid leaf 0 3.4 0 2.4 2.2 2.6
fir    .3  cylinder wood 0 0 0 .3 2 .3; pyramid leaf 0 .9 0 2.9 2.4 2.9; \
pyramid leaf 0 2.3 0 2.2 2.3 2.2; pyramid leaf 0 3.7 0 1.5 2.2 1.5
bush   .3  ellipsoid leaf .3 -.1 .1 .9 1 1; ellipsoid leaf -.3 -.1 .1 .8 .9 1; \
ellipsoid leaf .1 -.1 -.3 1 .8 .9
car    .1  box lacquer 0 .25 0 1.75 .65 4.2; box glass 0 .9 -.2 1.5 .5 2.3; \
box lacquer 0 1.4 -.2 1.45 .05 2.1; ellipsoid rubber .8 0 1.35 .24 .62 .62; \
ellipsoid rubber -.8 0 1.35 .24 .62 .62; ellipsoid rubber .8 0 -1.35 .24 .62 .62; \
ellipsoid rubber -.8 0 -1.35 .24 .62 .62
pole   .2  cylinder lacquer 0 0 0 .15 5.5 .15; box lacquer .5 5.5 0 1.2 .12 .2
bench  .15 box wood 0 .42 0 1.5 .06 .45; box wood .65 0 0 .06 .42 .4; box wood -.65 0 0 .06 .42 .4
bin    .2  cylinder lacquer 0 0 0 .5 .95 .5
house  .3  box plaster 0 0 4.5 10 3.6 9; pyramid shingle 0 3.6 4.5 10.6 2.6 9.6; \
box wood .8 0 9 1 2.1 .1; box glass 3.6 1 9 1.2 1.3 .1; box glass -3.6 1 9 1.2 1.3 .1; \
box glass -1.2 1 9 1.2 1.3 .1
block  .35 box facade 0 0 5 11 15 10; box shingle 0 15 5 11 .3 10
hill   .4  ellipsoid grass 0 -30 0 350 90 100""")

# Least and largest width, height and depth in metres.
ROOMS = entries("""\
room     3   2.4 4   6.5 3.1 9
corridor 1.7 2.3 9   2.8 3   28
hall     9   3.5 14  20  7   36""")

# In a frame where the half sizes are 1: the planes n . p <= 1, and r of a quadric |r p| <= 1.
AXES = np.concatenate([np.eye(3), -np.eye(3)])
KINDS = {
    "box": (AXES, None),
    "pyramid": (np.array([[2, 1, 0], [-2, 1, 0], [0, -1, 0], [0, 1, 2], [0, 1, -2]]), None),
    "cylinder": (AXES[[1, 4]], np.array([1, 0, 1])),
    "ellipsoid": (AXES[:0], np.ones(3)),
}


class Scene(NamedTuple):
    """rgb (H, W, 3) uint8 in RGB order; depth (H, W) uint16 in mm, 0 = hole; intrinsics in pixels:
    fx, fy, cx, cy (float), width, height (int), no distortion."""

    rgb: np.ndarray
    depth: np.ndarray
    intrinsics: dict[str, float]


class Solid(NamedTuple):
    """A convex body of one of the KINDS; centre and half sizes (3,) in metres, turned by `yaw`
    about y; paint (10,), see World.paint."""

    kind: str
    centre: np.ndarray
    half: np.ndarray
    yaw: float
    paint: np.ndarray


class Light(NamedTuple):
    """A lamp `at` (3,) metres (the sun is a lamp far away) and its linear strength, which falls as
    1 / (1 + fade * m) over m metres; and the haze in the air, as a rate per metre."""

    at: np.ndarray
    strength: float
    fade: float
    haze: float


class Camera(NamedTuple):
    """eye (3,) and axes (3, 3) in world metres (columns right, down, ahead), rays X (1, W) and
    Y (H, 1) float32, and the intrinsics as in Scene."""

    eye: np.ndarray
    axes: np.ndarray
    X: np.ndarray
    Y: np.ndarray
    intrinsics: dict[str, float]


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """(3, 3) by the angle |(x, y, z)| in radians about that axis."""
    return cv2.Rodrigues(np.array([x, y, z], float))[0]


# ------------------------------------------------------------------------------------ ray casting


def corners(solid: Solid) -> np.ndarray:
    """(8, 3): the corners of the box around it, world metres."""
    signs = np.indices((2, 2, 2)).reshape(3, 8).T * 2 - 1
    return signs * solid.half @ rotation(0, solid.yaw, 0).T + solid.centre


def window(camera: Camera, solid: Solid) -> tuple[slice, slice]:
    """Rows and columns of all pixels that can see the solid, perhaps more."""
    p = (corners(solid) - camera.eye) @ camera.axes
    if p[:, 2].min() < 0.02:  # metres: what reaches nearer than this may fill the picture
        return (slice(None if p[:, 2].max() > 0.02 else 0),) * 2
    X, Y = (p[:, :2] / p[:, 2:]).T
    rows = np.searchsorted(camera.Y[:, 0], [Y.min(), Y.max()])
    return slice(*rows), slice(*np.searchsorted(camera.X[0], [X.min(), X.max()]))


def affine(g: np.ndarray, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """g (K, 3), one row a function of the pixel -> g . (X, Y, 1), (K, H, W) float32."""
    gx, gy, gz = g.T.astype(np.float32)[..., None, None]
    return gx * X + (gy * Y + gz)


def cast(camera: Camera, solids: list[Solid]) -> tuple[np.ndarray, np.ndarray]:
    """The nearest hit of every ray: z (H, W) float32 metres, 100 km where there is none, and what
    is there, (21, H, W) float32: in the solid's frame the constant n and the factors q of its
    normal n + q * p, 0:3 and 3:6; its centre 6:9; cos and sin of its yaw; its paint 11:21."""
    seen = np.full((camera.Y.size, camera.X.size), 1e-5, np.float32)  # inverse depth so far
    face = np.zeros(seen.shape, np.intp)
    table = []
    for solid in solids:
        where = window(camera, solid)
        X, Y = camera.X[:, where[1]], camera.Y[where[0]]
        to_unit = (rotation(0, solid.yaw, 0) / solid.half).T
        M, eye = to_unit @ camera.axes, to_unit @ (camera.eye - solid.centre)
        normals, r = KINDS[solid.kind]
        slack = 1 - normals @ eye  # > 0: the camera is on the inner side of this plane
        planes, front = affine(normals @ M / slack[:, None], X, Y), slack < 0
        behind = planes[~front].max(0, initial=0)
        skins, rows = [*planes[front]], [(*n, 0, 0, 0) for n in normals[front] / solid.half]
        if r is not None:
            # |q + s w|^2 = w^2 is a + 2 b w + c w^2 = 0 in the inverse depth w
            q, s = affine(M * r[:, None], X, Y), np.float32(eye * r)
            a, b, c = (q * q).sum(0), (q * s[:, None, None]).sum(0), s @ s - 1
            with np.errstate(invalid="ignore"):  # NaN: the ray misses, and NaN compares as a miss
                root = np.sqrt(b * b - a * c)
            behind = np.maximum(behind, (-b - root) / c)
            if c > 0:
                skins.append((-b + root) / c)
                rows.append((0, 0, 0, *r / solid.half**2))
        if not skins:  # the camera is inside the solid
            continue
        w = np.min(skins, 0)
        hit = w > np.maximum(behind, seen[where])
        np.copyto(seen[where], w, where=hit)
        for k, skin in enumerate(skins):
            np.copyto(face[where], len(table) + k, where=hit & (skin == w))
        rest = (*solid.centre, np.cos(solid.yaw), np.sin(solid.yaw), *solid.paint)
        table += [(*row, *rest) for row in rows]
    return 1 / seen, np.array(table, np.float32).T.take(face, axis=1)


# ---------------------------------------------------------------------------------------- shading

TILE = 256  # texels along a tile's side


@functools.cache
def atlas(seed: int = 7, spread: float = 0.0) -> np.ndarray:
    """All textures, one below the other, each with its first row again at its end so that it
    repeats without a seam: (12 * 257, 256) float32 in 0..1. spread: how far their numbers vary."""
    rng = np.random.default_rng(seed)  # the same in every process: part of VERSION
    y, x = np.mgrid[:TILE, :TILE] / TILE
    fx, fy = np.meshgrid(np.fft.rfftfreq(TILE, 1 / TILE), np.fft.fftfreq(TILE, 1 / TILE))
    images = []
    for text in TEXTURES.values():
        rows, cols, joint, shift, much, beta, along, rough, base = map(float, text.split())
        if spread:
            cells = np.array([rows, cols]) * np.exp(rng.normal(0, spread, 2))
            rows, cols = np.maximum(np.rint(cells), 1)
            joint, beta, rough = np.array([joint, beta, rough]) * np.exp(rng.normal(0, spread, 3))
        row = np.floor(y * rows)
        across = (x * cols + shift * (row % 2)) % cols
        cell = rng.uniform(0.45, 1, (int(rows), int(cols)))[row.astype(int), across.astype(int)]
        off = np.maximum(np.abs(across % 1 - 0.5), np.abs(y * rows % 1 - 0.5))  # from its middle
        spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE)))
        noise = np.fft.irfft2(spectrum / np.hypot(1, np.hypot(fx * along, fy)) ** beta)
        noise = 0.5 + (noise - noise.mean()) / noise.std() / 5
        tile = base + much * cell * (off <= 0.5 - joint) + rough * noise
        images += [tile, tile[:1]]
    return np.concatenate(images).clip(0, 1).astype(np.float32)


def shade(camera: Camera, z, seen, light: Light) -> tuple[np.ndarray, np.ndarray]:
    """Linear RGB (3, H, W) float32, and |cos| of the angle of view (H, W), of what cast returns."""
    n, q, centre, (cos, sin, tiles, layer) = seen[:3], seen[3:6], seen[6:9], seen[9:13]
    rays = affine(camera.axes, camera.X, camera.Y)
    p = z * rays + np.float32(camera.eye)[:, None, None]
    x, y, ahead = p - centre
    x, ahead = cos * x - sin * ahead, sin * x + cos * ahead
    nx, ny, nz = n + q * np.stack([x, y, ahead])
    n = np.stack([cos * nx + sin * nz, ny, cos * nz - sin * nx])
    n /= np.sqrt((n * n).sum(0))
    slope = np.abs((n * rays).sum(0)) / np.sqrt((rays * rays).sum(0))

    # Texture runs along and up a wall, along x and z on a floor, from the solid's centre.
    flat = np.abs(n[1]) > 0.9
    u = np.where((np.abs(nx) > np.abs(nz)) & ~flat, ahead, x) * tiles
    v = np.where(flat, ahead, y) * tiles
    texels = tiles * z * (TILE / camera.intrinsics["fx"]) / np.sqrt(np.maximum(slope, 0.01))
    v = (v - np.floor(v)) * TILE + layer * (TILE + 1)
    u = (u - np.floor(u)) * TILE
    mix = cv2.remap(atlas(), u, v, cv2.INTER_LINEAR, None, cv2.BORDER_WRAP)
    mix = 0.5 + (mix - 0.5) / np.maximum(texels, 1)  # what is finer than a pixel has no contrast

    to = np.float32(light.at)[:, None, None] - p
    away = np.sqrt((to * to).sum(0))
    lit = light.strength * np.maximum((n * to).sum(0), 0) / (away + light.fade * away**2)
    lit += AMBIENT * (0.7 + 0.3 * n[1])
    dark, bright, glow = seen[13:16], seen[16:19], seen[20]
    colour = (dark + mix * (bright - dark)) * (glow + (1 - glow) * lit)
    seen_through = np.exp(-light.haze * z * (1.03 - glow))  # the sky glows: next to no haze on it
    return HAZE + seen_through * (colour - HAZE), slope


# --------------------------------------------------------------------------------- what is in view


class World:
    """The solids drawn so far and the random draws they come from; `taken` keeps things apart."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.u = rng, rng.uniform
        self.solids: list[Solid] = []
        self.taken = [(np.full(2, -0.6), np.array([0.6, 1.5]))]  # from, to (x, z): the camera

    def pick(self, words: str) -> str:
        """One of the words (commas or spaces between); twice as likely if it comes twice."""
        return self.rng.choice(words.replace(",", " ").split())

    def paint(self, name: str) -> np.ndarray:
        """(10,): tiles per metre, texture, dark RGB, light RGB (linear), gloss, glow."""
        textures, *numbers = PAINTS[name].split()
        low, high, *colour, vary, contrast, gloss, glow = map(float, numbers)
        base = np.array(colour) * self.u(1 - vary, 1 + vary / 2) + 0.2 * vary * self.u(-1, 1, 3)
        dark, light = (np.clip(base * (1 + s * contrast), 0.02, 1) ** 2 for s in (-1, 1))
        layer = [*TEXTURES].index(self.pick(textures))
        return np.array([1 / self.u(low, high), layer, *dark, *light, gloss, glow])

    def add(self, kind: str, foot, size, paint: str, yaw: float = 0.0) -> None:
        """A single solid that stands on `foot` (x, y, z) with `size` (w, h, d)."""
        half = np.array(size) / 2
        self.solids.append(Solid(kind, foot + half * [0, 1, 0], half, yaw, self.paint(paint)))

    def put(self, name: str, x: float, z: float, yaw: float = 0.0) -> None:
        """One of the THINGS at (x, z), if there is room."""
        spread, text = THINGS[name].split(None, 1)
        stretch = 1 + float(spread) * self.u(-1, 1, 3)
        paints, parts = {}, []
        for row in text.split(";"):
            kind, paint, *numbers = row.split()
            foot, size = np.array(numbers, float).reshape(2, 3) * stretch
            centre = rotation(0, yaw, 0) @ (foot + size * [0, 0.5, 0]) + [x, 0, z]
            skin = paints.setdefault(paint, self.paint(paint))
            parts.append(Solid(kind, centre, size / 2, yaw, skin))
        ground = np.concatenate([corners(part)[:, [0, 2]] for part in parts])
        low, high = ground.min(0), ground.max(0)
        if all((low > b).any() or (high < a).any() for a, b in self.taken):
            self.taken.append((low, high))
            self.solids += parts


def camera_at(world: World, size, height: float, pitch: float) -> Camera:
    """A camera over (0, 0), turned down by pitch (radians), sideways and rolled a little."""
    H, W = size
    fx = world.u(400, 600) * W / 640
    cx, cy = W * world.u(0.48, 0.52), H * world.u(0.48, 0.52)
    yaw, roll = world.rng.normal(0, [0.3, 0.03])
    axes = rotation(0, yaw, 0) @ rotation(pitch, 0, 0) @ np.diag([1, -1, 1]) @ rotation(0, 0, roll)
    X = np.float32((np.arange(W) - cx) / fx)[None]
    Y = np.float32((np.arange(H) - cy) / fx)[:, None]
    intrinsics = {"fx": fx, "fy": fx, "cx": cx, "cy": cy, "width": W, "height": H}
    return Camera(np.array([0, height, 0]), axes, X, Y, intrinsics)


def indoor(world: World, size: tuple[int, int]) -> tuple[Camera, Light]:
    """A room, a corridor or a hall, furnished along the walls and on the floor."""
    u, pick = world.u, world.pick
    extent = ROOMS[pick("room room room corridor hall")].split()
    W, H, D = u(*np.array(extent, float).reshape(2, 3))
    back = u(0.5, 0.3 * D)  # the camera stands at x = z = 0, this far from the wall behind it
    x, z = W * u(-0.2, 0.2), D / 2 - back  # the middle of the room
    world.add("box", (x, -1, z), (W, 1, D), "floor")
    world.add("box", (x, H, z), (W, 1, D), "ceiling")
    for yaw in np.pi / 2 * np.arange(4):  # of things before a wall: 0 is behind the camera
        s, c = np.sin(yaw), np.cos(yaw)
        wall, length = np.array([x - s * W / 2, z - c * D / 2]), abs(c * W + s * D)
        world.add("box", (wall[0], 0, wall[1]), (length, H, 0.02), "wallpaper", yaw)
        for _ in range(int(length / u(0.4, 1))):
            thing = pick("art art window window door shelf shelf chest sofa bed plant lamp table")
            world.put(thing, *wall + length * u(-0.45, 0.45) * np.array([c, -s]), yaw)
    for _ in range(int(W * D / u(4, 12))):
        thing = pick("table table chair chair ball crates plant person lamp rug pillar")
        world.put(thing, x + W * u(-0.4, 0.4), u(0.6, D - back - 0.4), u(-3, 3))
    lamp = np.array([x, H - 0.1, max(u(0.2, 0.7) * D - back, 1)])
    return camera_at(world, size, u(0.9, 1.7), u(-0.1, 0.45)), Light(lamp, u(2, 4), 0.6, 0)


def outdoor(world: World, size: tuple[int, int]) -> tuple[Camera, Light]:
    """A street between houses, or a path through a park; sky, sun, haze."""
    u, pick = world.u, world.pick
    x, road = u(-4, 4), u(1, 4.5)  # the road's middle, its half width
    world.add("box", (0, -1, 0), (2e4, 1, 2e4), pick("grass grass paving"))
    world.add("box", (0, 600, 0), (1e5, 1, 1e5), "sky")
    world.add("box", (x, 0, 60), (2 * road, 0.01, 200), pick("asphalt paving"))
    for side in (-1, 1) if u() < 0.5 else ():
        for k in range(9):
            kerb, z = x + side * road, u(5, 8) * k + u(1, 4)
            house = pick("house block")
            world.put(house, kerb + side * u(13, 16), 12 * k - u(2, 6), -side * np.pi / 2)
            world.put(pick("tree fir pole bin person"), kerb + side * 0.7, z)
            world.put(pick("car car bin"), kerb - side * 1.1, z, np.pi * (side > 0))
    for _ in range(int(u(4, 26))):
        z = u(1.5, 60)
        thing = pick("tree tree fir bush house block person bench crates ball car")
        world.put(thing, x + u(-0.9, 0.9) * (z + 2), z, u(-3, 3))
    for z in (150, 250, 350):
        world.put("hill", z * u(-1, 1), z)
    sun = np.array([u(-2, 2), 1, u(-2, 2)]) * 1e4
    light = Light(sun, u(0.3, 2.2), 0, u(0.002, 0.012))
    return camera_at(world, size, u(1.2, 3), u(-0.02, 0.28)), light


# ------------------------------------------------------------------------------------- the sensors


def expose(rng: np.random.Generator, linear: np.ndarray) -> np.ndarray:
    """Linear RGB (3, H, W) -> (H, W, 3) uint8: exposure, white balance, gamma 2, noise, lens."""
    H, W = linear.shape[1:]
    lower = linear[:, H // 2 :].mean()  # the meter looks at the ground, not the sky
    gain = rng.uniform(0.93, 1.07, 3) * (rng.uniform(0.13, 0.26) * 255**2 / lower)
    noise = rng.standard_normal((H, W), np.float32) * rng.uniform(0.5, 3)
    rgb = np.sqrt(linear * np.float32(gain)[:, None, None]) + noise
    rgb = rgb.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return cv2.GaussianBlur(rgb, (3, 3), rng.uniform(0.35, 0.7))


def sense(
    rng: np.random.Generator, fx: float, z, slope, bright, gloss, sensor=(NEAR, FAR, BASELINE)
) -> np.ndarray:
    """True depth z (H, W) in metres -> what a stereo sensor reports: uint16 mm, 0 = hole (Fig. 3).

    Holes: outside near..far (the sky is beyond), where the second eye, `baseline` to the right,
    does not see the point, and blobs that are likelier at grazing angles, in the dark, on gloss.
    Noise grows with z^2, as a constant error of disparity makes it.
    """
    (H, W), (near, far, baseline) = z.shape, sensor

    def blobs(cell):
        coarse = rng.standard_normal((-(-H // cell), -(-W // cell)), np.float32)
        return cv2.resize(coarse, (W, H), None, 0, 0, cv2.INTER_LINEAR)

    column = np.arange(W) - fx * baseline / z  # the second eye's
    first = np.minimum.accumulate(column[:, ::-1], axis=1)[:, ::-1]  # of this pixel and all right
    hole = (first < column - 1) | (column < 0)
    risk = np.maximum(1 - 4 * slope, 0) + np.maximum(0.8 - 12 * bright, 0) + 0.9 * gloss
    hole |= 1.2 * blobs(8) + risk > 2.1
    hole |= z > far  # before the noise, which would bring bits of the sky down to earth
    z = z + z * z * (0.0008 * blobs(3))
    hole |= (z < near) | (z > far)
    return np.where(hole, 0, z * 1000 + 0.5).astype(np.uint16)


def render(stream: int, index: int, size: tuple[int, int] = (480, 640)) -> Scene:
    """Scene `index` of `stream` (both >= 0); the same bits in every run, process and order."""
    # The last word keeps SeedSequence's zero padding from making two keys one.
    rng = np.random.default_rng([stream, index, 1])
    world = World(rng)
    camera, light = (indoor if rng.random() < 0.5 else outdoor)(world, size)
    z, seen = cast(camera, world.solids)
    linear, slope = shade(camera, z, seen, light)
    rgb = expose(rng, linear)
    depth = sense(rng, camera.intrinsics["fx"], z, slope, rgb[..., 1] / np.float32(255), seen[19])
    return Scene(rgb, depth, camera.intrinsics)


# ------------------------------------------------------------------------------------ the data set


def write_scene(render: Render, folder: Path, stream: int, index: int) -> tuple[str, dict]:
    """A picture in folder/{rgb,depth,camera}, made if missing; its stem and intrinsics."""
    stem = f"{index:06d}"
    camera = folder / f"camera/{stem}.json"  # written last: what a stopped run left is gone on with
    if not camera.is_file():
        scene = render(stream, index)
        rgb = cv2.imencode(".jpg", scene.rgb[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 95))[1]
        depth = cv2.imencode(".png", scene.depth, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1]
        write_file(folder / f"rgb/{stem}.jpg", rgb.tobytes())
        write_file(folder / f"depth/{stem}.png", depth.tobytes())
        write_json(camera, scene.intrinsics)
    return stem, json.loads(camera.read_bytes())


def ensure(count: int) -> Path:
    """The folder of `count` embedded scenes and their validation; made if missing."""
    return rendered(f"synthetic-{VERSION}-{count}", count, render)


Render = Callable[[int, int], Scene]


def rendered(name: str, count: int, render: Render, together: int = 1) -> Path:
    """The folder of `count` training and max(1, count // 8) validation pictures of
    render(stream, index); made if missing.

        <cache_root>/<name>/{train,val}/{rgb/*.jpg, depth/*.png, intrinsics.json}

    Training draws from stream 0, validation from 1: never the same picture. One process per usable
    core, `together` neighbouring indices in each. Made aside and renamed when whole; what a killed
    run has done is kept, and gone on with. A second builder waits for the first. UserError where it
    cannot be written.
    """
    root = cache_root()
    if (root / name).is_dir():
        return root / name
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root, name, lambda: notice(f"another process renders {name}: waiting")):
            if not (root / name).is_dir():
                write_set(root, name, count, render, together)
    except OSError as error:
        raise UserError(
            f"cannot write the rendered pictures: {error}; set LITEDEPTH_CACHE to a writable "
            "folder with room (0.5 MB a picture at 480x640); it then goes on where it was"
        ) from error
    return root / name


def write_set(root: Path, name: str, count: int, render: Render, together: int) -> None:
    """The folder `name` in root; see `rendered`. Raises OSError."""
    aside = root / f".{name}.unfinished"
    # spawn: a fork of a process whose OpenCV or PyTorch threads have run can hang for good.
    spawn = multiprocessing.get_context("spawn")
    workers = min(-(-count // together), usable_cores())
    with ProcessPoolExecutor(workers, spawn, _start_worker) as pool:
        try:
            for stream, (split, n) in enumerate([("train", count), ("val", max(1, count // 8))]):
                folder = aside / split
                for kind in ("rgb", "depth", "camera"):
                    (folder / kind).mkdir(parents=True, exist_ok=True)
                write = functools.partial(write_scene, render, folder, stream)
                made = pool.map(write, range(n), chunksize=together)
                frames = dict(progress(made, n, f"{name} {split}"))
                write_json(folder / "intrinsics.json", {"frames": frames})
        except BaseException:  # Ctrl-C as well
            pool.shutdown(cancel_futures=True)
            raise
    for split in ("train", "val"):
        shutil.rmtree(aside / split / "camera")
    aside.rename(root / name)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    cv2.setNumThreads(1)
