"""Sec. 4.1 stand-in, `--data synthetic:N`: procedural RGB-D scenes, made on the spot.

Pictures are 480x640, depth is uint16 millimetres along the optical axis, 0-40 m, 0 = hole, as in
the paper's data set; the holes are the ones of its Fig. 3. All of it follows from (stream, index).
World frame: metres, x right, y up, z forward; boxes stand along it. A ray's parameter is its depth.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

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
from plumbing.pictures import cv2

VERSION = "v4"  # part of the folder's name; raise it when the pictures change
NEAR, FAR = 0.4, 40.0  # metres: what the sensor can measure; outside is a hole
BASELINE = 0.12  # metres between the sensor's two eyes: the width of its occlusion shadows
AMBIENT, AIR, HAZE = 0.55, 0.7, 0.005  # light from everywhere; far away all is air, by the metre
TILE = 256  # texels along a texture's side


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
# displayed; its spread, contrast, gloss (makes holes in the depth), glow (in rooms.py).
PAINTS = entries("""\
wood       wood                       0.6 1.2   0.50 0.36 0.24  0.4  0.25  0.3 0
cloth      grain,stripes,cloud        0.3 1     0.45 0.45 0.45  0.8  0.25  0   0
leaf       leaves                     0.5 1.4   0.25 0.40 0.15  0.3  0.55  0   0
toy        checker,plain,stripes      0.4 0.7   0.5  0.5  0.5   0.8  0.4   0.5 0
card       grain,wood,plain           0.7 1     0.60 0.48 0.34  0.3  0.25  0   0
books      books                      0.9 1.3   0.45 0.42 0.4   0.7  0.5   0   0
bulb       plain                      1   1     0.97 0.97 0.95  0.02 0.02  0   1
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
asphalt    grain                      1   2     0.33 0.33 0.34  0.3  0.3   0.1 0""")

# Spread of size, metres that it keeps free around it; then parts: kind, paint (one of them), foot
# x y z, size w h d in metres. Things face +z; what may stand before a wall has its back at z = 0.
THINGS = entries("""\
room   0 -9 box floor 0 -1 0 1 1 1; box ceiling 0 1 0 1 1 1; box wallpaper 0 0 .55 1 1 .1; \
box wallpaper 0 0 -.55 1 1 .1; box plaster .55 0 0 .1 1 1; box wallpaper -.55 0 0 .1 1 1
street 0 -9 box grass,paving 0 -1 0 999 1 99; box asphalt,paving,grass 0 0 0 1 1e-5 1
window .3 .8 box glass 0 .9 0 1.4 1.1 .04
shelf  .3 .6 box books 0 0 .18 1.1 1.7 .35; box wood 0 1.7 .18 1.14 .04 .37
sofa   .2 .9 box cloth 0 0 .45 1.8 .42 .9; box cloth 0 .4 .1 1.8 .45 .2
table  .2 .8 box wood 0 .7 .4 1.3 .04 .7; box wood 0 0 .4 .9 .7 .1; ball toy .3 .74 .4 .2 .24 .2
chair  .1 .4 box cloth 0 .4 0 .45 .07 .45; box wood 0 .47 -.2 .42 .5 .05; box wood 0 0 0 .1 .4 .1
plant  .3 .3 box toy 0 0 .3 .3 .35 .3; ball leaf .1 .3 .4 .5 .6 .45; ball leaf -.1 .5 .3 .45 .8 .5
ball   .2 .3 ball toy 0 0 0 .45 .45 .45
tree   .3 .8 box wood 0 0 0 .3 3 .3; ball leaf .6 2 .4 2.2 1.8 2.4; ball leaf -.6 2.6 0 2.4 2 2
bush   .3 .8 ball leaf .3 -.1 .1 .9 1 1; ball leaf -.3 -.1 -.1 .8 .9 1
car    .1 2 box lacquer 0 .25 0 1.7 .7 4; box glass 0 .9 -.2 1.5 .5 2.3; box rubber 0 0 0 1.6 .5 3
house  .3 5 box plaster 0 0 -5 10 4 9; box shingle 0 4 -5 11 .5 10; box glass 2 1 -5 1.2 1.3 9.1
block  .4 5 box facade 0 0 -5 11 15 10; box shingle 0 15 -5 12 .5 11""")

# Metres along a wall for each thing; least and largest width, height, depth in metres; what stands
# at the walls, and elsewhere (one that comes twice is twice as likely).
PLACES = entries("""\
room   .5 2 2.4 3  9  3.6 20 window,shelf,shelf,sofa,plant,table table,chair,chair,ball,plant
street 4  6 900 40 20 900 80 house,block,tree car,car,tree,bush""")


class Scene(NamedTuple):
    """rgb (H, W, 3) uint8 in RGB order; depth (H, W) uint16 in mm, 0 = hole; intrinsics in pixels:
    fx, fy, cx, cy (float), width, height (int), no distortion."""

    rgb: np.ndarray
    depth: np.ndarray
    intrinsics: dict[str, float]


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """(3, 3) by the angle |(x, y, z)| in radians about that axis."""
    return cv2.Rodrigues(np.array([x, y, z], float))[0]


class World:
    """The random draws, and what was made of them: solids, each (17,) its centre and half sizes in
    metres, whether it is a ball, its paint (10,); and (x, z, metres) that are kept free."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.u, self.solids = rng, rng.uniform, []
        self.taken = [(0, 0.3, 0.9)]  # the camera

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

    def put(self, name: str, x: float, z: float, s: int, c: int, scale=1) -> None:
        """One of the THINGS at (x, z), turned to face (s, c), if there is room."""
        spread, free, text = THINGS[name].split(None, 2)
        if any(np.hypot(x - a, z - b) < float(free) + r for a, b, r in self.taken):
            return
        self.taken.append((x, z, float(free)))
        stretch, paints = np.array(scale) * (1 + float(spread) * self.u(-1, 1, 3)), {}
        for row in text.split(";"):
            kind, paint, *numbers = row.split()
            parts = np.array(numbers, float).reshape(2, 3) * stretch
            foot, size = parts @ [[c, 0, -s], [0, 1, 0], [s, 0, c]]
            half = np.abs(size) / 2
            skin = paints.setdefault(paint, self.paint(self.pick(paint)))
            self.solids.append(np.r_[foot + [x, half[1], z], half, kind == "ball", skin])


def furnish(world: World, place: str) -> None:
    """Makes one of the PLACES around the camera, which is over (0, 0)."""
    u, pick = world.u, world.pick
    step, *extent, at_walls, elsewhere = PLACES[place].split()
    W, H, D = u(*np.array(extent, float).reshape(2, 3))
    back = u(0.5, 0.3 * D)  # metres to the wall behind the camera
    x, z = W * u(-0.2, 0.2), D / 2 - back  # the middle
    world.put(place, x, z, 0, 1, [W, H, D])
    for s, c in (0, 1), (1, 0), (0, -1), (-1, 0):  # where things before this wall face
        wall, length = np.array([x - s * W / 2, z - c * D / 2]), abs(c * W + s * D)
        for _ in range(int(length / float(step) / u(0.7, 2.5))):
            world.put(pick(at_walls), *wall + length * u(-0.45, 0.45) * np.array([c, -s]), s, c)
            ahead = 0.6 + (D - back - 1) * u() ** 1.3
            world.put(pick(elsewhere), x + W * u(-0.4, 0.4), ahead, 0, s + c)


def camera_at(rng: np.random.Generator, size) -> tuple[dict, np.ndarray, np.ndarray]:
    """A camera's intrinsics as in Scene; the rays of its pixels (3, H, W), world frame; and what
    brings such a ray, or a point that it sees, to (column, row, 1) * depth: (3, 3)."""
    (H, W), u = size, rng.uniform
    fx, cx, cy = u(400, 600) * W / 640, W * u(0.48, 0.52), H * u(0.48, 0.52)
    axes = rotation(0, rng.normal(0, 0.3), 0) @ rotation(u(-0.1, 0.35), 0, 0) @ np.diag([1, -1, 1])
    to_pixels = np.array([[fx, 0, cx], [0, fx, cy], [0, 0, 1]]) @ axes.T  # right, down, ahead
    right, down, corner = np.linalg.inv(to_pixels).T[..., None, None]
    rays = right * np.arange(W) + (down * np.arange(H)[:, None] + corner)
    intrinsics = {"fx": fx, "fy": fx, "cx": cx, "cy": cy, "width": W, "height": H}
    return intrinsics, np.float32(rays), to_pixels


def window(to_pixels: np.ndarray, centre: np.ndarray, half: np.ndarray) -> list[slice]:
    """Rows and columns of all pixels that can see a box, perhaps more."""
    signs = np.indices((2, 2, 2)).reshape(3, 8) * 2 - 1
    x, y, z = to_pixels @ (centre[:, None] + half[:, None] * signs)
    if z.min() < 0.02:  # metres: what reaches nearer than this may fill the picture
        return [slice(None if z.max() > 0.02 else 0)] * 2
    return [slice(max(int(min(a)), 0), max(int(max(a)) + 1, 0)) for a in (y / z, x / z)]


def cast(rays: np.ndarray, to_pixels, solids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest hit of every ray from (0, 0, 0): z (H, W) float32 metres, 100 km where there is
    none; and which of the solids (N, 17), see World, is there: (17, H, W) float32."""
    z = np.full(rays.shape[1:], 1e5, np.float32)
    number = np.zeros(z.shape, np.intp)
    for k, (centre, half) in enumerate(solids[:, :6].reshape(-1, 2, 3)):
        rows, columns = window(to_pixels, centre, half)
        ray, nearest = rays[:, rows, columns], z[rows, columns]
        if solids[k, 6]:  # a ball
            ray = ray / np.float32(half)[:, None, None]
            eye = np.float32(-centre / half)[:, None, None]
            a, b, c = (ray * ray).sum(0), (ray * eye).sum(0), (eye * eye).sum() - 1
            root = np.sqrt(np.maximum(b * b - a * c, 0))
            enter, leave = (-b - root) / a, (root - b) / a
        else:
            low, high = np.float32([centre - half, centre + half])[..., None, None] / ray
            enter, leave = np.minimum(low, high).max(0), np.maximum(low, high).min(0)
        hit = (enter > 0) & (enter < leave) & (enter < nearest)
        np.copyto(nearest, enter, where=hit)
        np.copyto(number[rows, columns], k, where=hit)
    return z, np.float32(solids.T).take(number, axis=1)


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


def shade(rays: np.ndarray, fx: float, z, seen, sun) -> tuple[np.ndarray, np.ndarray]:
    """Linear RGB (3, H, W) float32, and |cos| of the angle of view (H, W), of what cast returns.
    sun: where light comes from (3,), as long as it is strong."""
    half, (ball, tiles, layer), (dark, light) = seen[3:6], seen[6:9], np.split(seen[9:15], 2)
    from_centre = z * rays - seen[:3]
    unit = from_centre / half
    face = np.abs(unit) == np.abs(unit).max(0)  # of a box
    n = np.where(ball, unit / half, unit * face)
    n /= np.sqrt((n * n).sum(0))
    slope = np.abs((n * rays).sum(0)) / np.sqrt((rays * rays).sum(0))

    # Texture runs along and up a wall, along x and z on a floor.
    uv = tiles * np.where(np.abs(n[:2]) > 0.7, from_centre[2], from_centre[:2])
    u, v = TILE * (uv - np.floor(uv))
    mix = cv2.remap(atlas(), u, v + layer * (TILE + 1), cv2.INTER_LINEAR, None, cv2.BORDER_WRAP)
    texels = tiles * z * (TILE / fx) / np.sqrt(np.maximum(slope, 0.01))
    mix = 0.5 + (mix - 0.5) / np.maximum(texels, 1)  # what is finer than a pixel has no contrast
    lit = np.maximum((n * np.float32(sun)[:, None, None]).sum(0), 0) + AMBIENT * (0.7 + 0.3 * n[1])
    colour = (dark + mix * (light - dark)) * lit
    return AIR + np.exp(-HAZE * z) * (colour - AIR), slope


def expose(rng: np.random.Generator, linear: np.ndarray) -> np.ndarray:
    """Linear RGB (3, H, W) -> (H, W, 3) uint8: exposure, white balance, gamma 2, noise, lens."""
    ground = linear[:, linear.shape[1] // 2 :].mean()  # the meter does not look at the sky
    gain = np.float32(rng.uniform(0.93, 1.07, (3, 1, 1)) * rng.uniform(0.13, 0.26) / ground)
    noise = rng.standard_normal(linear.shape[1:], np.float32) * rng.uniform(0.5, 3)
    rgb = (255 * np.sqrt(linear * gain) + noise).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return cv2.GaussianBlur(rgb, (3, 3), rng.uniform(0.35, 0.7))


def sense(rng, fx: float, z, slope, bright, gloss, sensor=(NEAR, FAR, BASELINE)) -> np.ndarray:
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
    furnish(world, rng.choice([*PLACES]))
    solids = np.array(world.solids)
    solids[:, 1] -= rng.uniform(0.9, 2)  # from here on the camera is at (0, 0, 0)
    intrinsics, rays, to_pixels = camera_at(rng, size)
    z, seen = cast(rays, to_pixels, solids)
    fx, sun = intrinsics["fx"], rng.uniform((-1.2, 0.2, -1.2), (1.2, 1.5, 1.2))
    linear, slope = shade(rays, fx, z, seen, sun)
    rgb = expose(rng, linear)
    depth = sense(rng, fx, z, slope, rgb[..., 1] / np.float32(255), seen[15])
    return Scene(rgb, depth, intrinsics)


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
    except BrokenProcessPool as error:
        raise UserError(
            "a process that renders was ended from outside, as for want of memory; the same "
            "command goes on where it was (on two cores: taskset -c 0,1 python ...)"
        ) from error
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
