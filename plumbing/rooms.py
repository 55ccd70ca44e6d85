"""`--data rooms:N`: rooms and streets with furniture and vehicles of true size, ray cast.

    walls, floor, openings -> furnish -> one mesh -> a camera -> cast -> light -> expose, sense

World frame as in scenes.py: metres, x right, y up (floor at 0), z forward. Everything is a triangle
with a paint (World.paint: two colours, a procedural texture, gloss, glow), whose texture is laid on
by the axis that the triangle faces most. Light, at half the picture's size: the four strongest of
lamps, windows and sun, each with a shadow ray to a random point on it; one ray that is reflected
diffusely, which brings the sky, smoothed where depth and normal agree; mirrors. All of it follows
from (stream, index); VIEWS neighbouring indices are views of one place.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plumbing import scenes
from plumbing.files import UserError
from plumbing.furniture import Library, Model, library
from plumbing.pictures import cv2
from plumbing.scenes import TEXTURES, TILE, Scene, World, atlas, entries, rotation, sense

VERSION = "v4"  # part of the folder's name; raise it when the pictures change
VIEWS = 4  # of one place
MAKES = 6  # of each texture, with other numbers
KINDS = len(TEXTURES)
SIGHT = 65.0  # metres: 16-bit millimetres end there
STREETS = 0.2  # share of places that are outdoors

# Least and largest width, height, depth in metres; things along a metre of wall and on a square
# metre of floor; what stands at the walls: OWN things and words of the catalogue's names and
# categories (one that comes twice is twice as likely).
ROOMS = entries("""\
living   3   2.4 3.5  6   3   7   0.9  0.3  living living living shelf misc
bedroom  2.6 2.4 3    4.5 2.8 5   0.8  0.2  bedroom bedroom bedroom living misc
kitchen  2.2 2.4 2.6  4.5 2.8 5   1.2  0.25 kitchen kitchen counter counter counter misc
bath     1.7 2.3 2    3.5 2.6 4   1    0.1  bathroom bathroom bathroom misc
office   2.8 2.5 3.5  7   3.2 8   1    0.35 office desk desk shelf shelf living
lab      4   2.7 4    9   4   10  1    0.3  desk shelf counter office misc kitchen
store    2.5 2.4 3    7   4.5 8   1.2  0.3  shelf shelf cartons bin misc
corridor 1.3 2.3 6    2.6 3   20  0.2  0.02 living office misc shelf art
hall     8   3.2 9    16  7   22  0.5  0.12 living office shelf cartons misc""")

# Least and largest width, height, depth in metres; how high others stand on it, as a share of its
# height (0: nowhere); then how likely, paint (one of them), and boxes: two corners as shares of
# width, height and depth. Things face +z.
OWN = entries("""\
shelf   .6 .8 .25 1.6 2.2 .5 0; 1 wood,lacquer 0 0 0 .02 1 1  .98 0 0 1 1 1; \
.6 wood,lacquer 0 0 0 1 1 .03
desk    1 .68 .55 2 .95 .85 1; 1 wood,lacquer 0 .96 0 1 1 1; \
1 rubber 0 0 0 .04 .96 .08  .96 0 0 1 .96 .08  0 0 .92 .04 .96 1  .96 0 .92 1 .96 1; \
.5 wood,lacquer .05 .06 .1 .3 .96 .9; .7 lacquer,art .1 1 .2 .42 1.55 .27; \
.5 lacquer .55 1 .25 .85 1.5 .3; .8 rubber .12 1 .5 .4 1.04 .75
counter 1 .85 .5 3 .95 .65 1; 1 lacquer 0 0 0 1 .96 .95; 1 wood 0 .96 0 1 1 1; \
1 rubber .03 .84 0 .47 .86 1  .53 .84 0 .97 .86 1; .6 lacquer 0 1.55 0 1 2.2 .6
bin     .3 .15 .3 .8 .6 .8 .05; \
1 card,toy 0 0 0 1 .05 1  0 0 0 .02 1 1  .98 0 0 1 1 1  0 0 0 1 1 .02  0 0 .98 1 1 1
carton  .3 .15 .3 .8 .5 .8 1; 1 card 0 0 0 1 1 1
cartons .3 .5 .3 .8 1.5 .8 1; 1 card 0 0 0 1 .4 1  .03 .4 .05 .95 .75 .9; .6 card .1 .75 .1 1 1 .95
book    .02 .1 .1 .3 .4 .4 0; 1 books,card,toy,lacquer,cloth 0 0 0 1 1 1
rug     .6 .012 .6 2.2 .012 2.2 0; 1 cloth 0 0 0 1 1 1
art     .3 .3 .03 1.6 1.1 .03 0; 1 art,art,lacquer 0 0 0 1 1 1
door    .9 2.03 .08 .9 2.03 .08 0; 1 wood,lacquer 0 0 0 1 1 1; 1 rubber .85 .5 0 .95 .52 1.6
window  1 1 .06 1 1 .06 0; \
1 wood,lacquer 0 0 0 1 .05 1  0 .95 0 1 1 1  0 0 0 .04 1 1  .96 0 0 1 1 1  .48 0 0 .52 1 1
front   1 1 .05 1 1 .05 0; 1 lacquer -.06 -.06 0 1.06 1.06 .6; 1 glass 0 0 0 1 1 1
pole    .08 2.5 .08 .2 8 .2 0; 1 lacquer 0 0 0 1 1 1""")

SENSORS = {  # nearest and farthest depth, metres between its two eyes; the last two outdoors
    "light": (0.45, 8, 0.075), "stereo": (0.25, 12, 0.05), "phone": (0.2, 6, 0.01),
    "stereo_out": (0.3, SIGHT, 0.1), "scanner": (1.0, SIGHT, 0.01),
}  # fmt: skip

# Triangles of a box whose sides are 1; rings of a tube whose radius and height are 1, with a lid.
BOX = np.indices((2, 2, 2)).reshape(3, 8).T[[
    [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
    [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]]  # fmt: skip
TURN = np.linspace(0, 2 * np.pi, 13)[:, None]
TUBE = np.array([np.cos(TURN) * [r, 0, 0] + np.sin(TURN) * [0, 0, r] + [0, y, 0]
                 for r, y in ((1, 0), (1, 1), (0, 1))])  # fmt: skip


class Frame(NamedTuple):
    """Where something stands, `at` (3,), and its own x along, y up, z ahead, turned by yaw."""

    at: np.ndarray
    yaw: float = 0.0

    def to(self, x: float, y: float, z: float, turn: float = 0.0) -> Frame:
        """The frame at (x, y, z) of this one, turned further."""
        return Frame(self.at + rotation(0, self.yaw, 0) @ [x, y, z], self.yaw + turn)


WORLD = Frame(np.zeros(3))


@functools.cache
def textures() -> np.ndarray:
    """MAKES atlases of scenes.py, one below the other."""
    return np.concatenate([atlas(7 + make, 0.35) for make in range(MAKES)])


class Place:
    """A place as it grows: triangles, paints, lamps, and what the floor has room for."""

    def __init__(self, rng: np.random.Generator, furniture: Library) -> None:
        self.rng, self.u, self.furniture = rng, rng.uniform, furniture
        world = World(rng)
        self.paint, self.pick = world.paint, world.pick
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []  # triangles (k, 3, 3) m, paint (k,)
        self.paints: list[np.ndarray] = []
        self.lamps: list[tuple] = []  # corner (3,), edges (2, 3) m; colour (3,): strength * area
        self.taken: list[tuple] = []  # from, to (x, z) of what stands on the floor
        self.tops: list[tuple[Frame, float, float]] = []  # where small things may stand; w, d
        self.targets: list[np.ndarray] = []  # (3,): what close-ups look at
        self.sky = None  # colour (3,) overhead; None: indoors

    def skin(self, paint: str | int) -> int:
        """The number of a paint; of a new one of the words, with a texture of its own kind or, now
        and then, of another."""
        if not isinstance(paint, str):
            return paint
        row, any_of = self.paint(self.pick(paint)), self.rng.integers
        row[0] *= math.exp(self.rng.normal(0, 0.4))
        row[1] = any_of(KINDS * MAKES) if self.u() < 0.2 else row[1] + KINDS * any_of(MAKES)
        half = 3 * self.u() ** 2 * (row[5:8] - row[2:5]) / 2
        middle = (row[2:5] + row[5:8]) / 2
        row[2:8] = np.r_[middle - half, middle + half].clip(0.005, 1)
        self.paints.append(row)
        return len(self.paints) - 1

    def mesh(self, triangles: np.ndarray, paint, frame: Frame = WORLD) -> None:
        """triangles (k, 3, 3) m in the frame; paint: a number, or one for each (k,)."""
        placed = np.dot(triangles, rotation(0, frame.yaw, 0).T) + frame.at
        self.parts.append((np.float32(placed), np.full(len(placed), paint)))

    def box(self, low, high, paint: str | int, frame: Frame = WORLD) -> None:
        """From corner low to corner high (3,) of the frame."""
        self.mesh(np.subtract(high, low) * BOX + low, self.skin(paint), frame)

    def sheet(self, points: np.ndarray, paint: str | int, frame: Frame = WORLD) -> None:
        """A surface through points (rows, columns, 3) of the frame."""
        p, q, r, s = points[:-1, :-1], points[:-1, 1:], points[1:, :-1], points[1:, 1:]
        triangles = np.moveaxis(np.array([[p, q, r], [q, s, r]]), 1, 3).reshape(-1, 3, 3)
        self.mesh(triangles, self.skin(paint), frame)

    def tree(self, foot: np.ndarray, height: float) -> None:
        """A trunk, and balls of leaves."""
        self.sheet(TUBE * np.array([0.03, 0.7, 0.03]) * height + foot, "wood")
        trunk = self.u(0.1, 0.45)
        for paint in [self.skin("leaf"), self.skin("leaf")] * self.rng.integers(2, 6):
            at = foot + height * (self.u(-0.22, 0.22, 3) + [0, self.u(trunk, 0.85), 0])
            size, leaf = self.u(0.08, 0.24, 3) * height, 0.04 * height * self.u(0.5, 1.5)
            count = int(min(60 * np.prod(size) ** (2 / 3) / leaf**2, 1500)) // 4
            ball, *sides = self.rng.standard_normal((3, count, 3))
            ball *= (self.u(0.5, 1, count) / np.linalg.norm(ball, axis=1))[:, None]
            along, across = (leaf * side / np.linalg.norm(side, axis=1)[:, None] for side in sides)
            corners = np.stack([along, across, -along, -across], 1) / 2
            corners += (ball * size + at)[:, None]
            self.mesh(corners[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3, 3), paint)

    def choose(self, words: str, test) -> Model | None:
        """A model whose category or name has one of the words and that passes the test."""
        models = self.furniture.models
        for k in self.rng.integers(len(models), size=400):
            text = f"{models[k].category} {models[k].name}".lower()
            if any(word in text for word in words.split()) and test(models[k]):
                return models[k]
        return None

    def room_for(self, frame: Frame, w: float, d: float) -> bool:
        """Whether nothing stands there yet; then it is taken."""
        c, s = abs(math.cos(frame.yaw)), abs(math.sin(frame.yaw))
        half, middle = np.array([w * c + d * s, w * s + d * c]) / 2, frame.at[::2]
        low, high = middle - half, middle + half
        free = all((low >= b).any() or (high <= a).any() for a, b in self.taken)
        if free:
            self.taken.append((low, high))
        return free

    def put(self, model: Model, frame: Frame) -> None:
        """A model of the library, in another cloth or wood; the middle of its foot at the frame."""
        faces = slice(*model.faces)
        used, paint = np.unique(self.furniture.material[faces], return_inverse=True)
        self.mesh(self.furniture.triangles[faces], paint + len(self.paints), frame)
        for row in np.array(self.furniture.paints[used], float):
            row[1] += KINDS * self.rng.integers(MAKES)
            row[2:8] *= np.tile(self.u(0.5, 1.3) * self.u(0.8, 1.2, 3), 2)
            row[2:5] *= self.u(0.4, 1)
            self.paints.append(np.r_[row[:2], row[2:8].clip(0.005, 0.95), row[8:]])

    def build(self, name: str, frame: Frame, size, skins: dict | None = None) -> None:
        """One of our OWN things; skins: {paint: its number}, which grows."""
        skins = {} if skins is None else skins
        for row in OWN[name].split(";")[1:]:
            chance, paint, *numbers = row.split()
            for box in np.array(numbers, float).reshape(-1, 2, 3):
                if self.u() < float(chance):
                    skins[paint] = self.skin(skins.get(paint, paint))
                    self.box(*(box - [0.5, 0, 0.5]) * size, skins[paint], frame)

    def stand(self, what: str, back: Frame, most, hung: bool = False) -> Frame | None:
        """One of our OWN things, or a model of a width and height of at `most` (2,), the middle of
        its back at the frame, if there is room; its middle. hung: it may hang on the wall there."""
        if what in OWN:
            *extent, top = map(float, OWN[what].split(";")[0].split())
            model, size, up = None, self.u(extent[:3], extent[3:]), 0.0
            top *= size[1]
        elif model := self.choose(what, lambda m: m.size[0] < most[0] and (hung or not m.elevation)
                                  and 0.2 < m.size[1] < most[1] - m.elevation):  # fmt: skip
            size, up, top = model.size, model.elevation, model.top
        else:
            return None
        w, h, d = size
        middle = back.to(0, up, d / 2 + 0.02, self.u(-0.05, 0.05) * (not up))
        if up < 0.6 and what != "rug" and not self.room_for(middle, w, d):
            return None
        if model:
            self.put(model, middle)
        else:
            self.build(what, middle, size)
        self.targets.append(middle.at + [0, h * self.u(0.3, 1), 0])
        if top > 0 and h < 1.6:  # a bin is full of things
            self.tops += [(middle.to(0, top, 0), 0.7 * w, 0.7 * d)] * (4 if what == "bin" else 1)
        boards, step = self.skin("wood lacquer"), self.u(0.25, 0.45)
        for y in np.arange(0.05, h, step) if what == "shelf" else ():
            self.box((-w / 2, y, -d / 2), (w / 2, y + 0.02, d / 2), boards, middle)
            self.books(middle.to(-w / 2, y + 0.02, 0), w, step, d)
        return middle

    def books(self, left: Frame, w: float, h: float, d: float) -> None:
        """A row of books, boxes and gaps on a board."""
        x = 0.03
        while x < w - 0.1:
            size = self.u((0.02, 0.3 * h, 0.4 * d), (0.3, 0.9 * h, 0.95 * d))
            size[0] = min(size[0], w - 0.02 - x)
            if self.u() < 0.75:
                back = self.u(-0.5, 0.5) * (d - size[2])
                self.build("book", left.to(x + size[0] / 2, 0, back), size)
            x += size[0] + self.u(0, 0.06)

    def clutter(self, count: int) -> None:
        """Small things on tables and in bins: models under half a metre, boxes, cups."""
        for _ in range(count):
            frame, w, d = self.tops[self.rng.integers(len(self.tops))]
            spot = frame.to(w * self.u(-0.5, 0.5), 0, d * self.u(-0.5, 0.5), self.u(-3, 3))
            if frame.at[1] < 0.01 and not self.room_for(spot, 0.3, 0.3):  # on the floor
                continue
            self.targets.append(spot.at)
            model = self.choose("kitchen misc office living", lambda m: max(m.size) < 0.5
                                and m.faces[1] - m.faces[0] < 6000)  # fmt: skip
            if model and self.u() < 0.6:
                self.put(model, spot)
            elif self.u() < 0.5:
                r, h = self.u(0.02, 0.08), self.u(0.05, 0.25)
                self.sheet(TUBE * [r, h, r] + spot.at, "toy lacquer card")
            else:
                self.build("book", spot, self.u(0.04, 0.25, 3))


# ------------------------------------------------------------------------------ rooms and streets


def indoor(place: Place) -> list[np.ndarray]:
    """One or two rooms that open into each other; where cameras may stand: x0, z0, x1, z1."""
    u, kind = place.u, place.pick(" ".join(ROOMS) + " living office office lab kitchen")
    W, H, D = u(*np.array(ROOMS[kind].split()[:6], float).reshape(2, 3))
    areas, door = [np.array([-W / 2, 0, W / 2, D])], (np.inf, 0, 0, 0)
    if u() < 0.55:  # an arm of an L, or a second room behind a door
        w, d, z = u(0.4, 1) * W + 1, u(0.3, 0.8) * D + 0.5, u(0, 0.4) * D
        x, far = np.array([W / 2, W / 2 + w]) * place.rng.choice([-1, 1])
        areas.append(np.array([min(x, far), z, max(x, far), min(z + d, D)]))
        span = areas[1][3] - z
        width = span if u() < 0.5 else min(u(0.8, 1.8), span)
        top = H if width == span and u() < 0.7 else min(u(2, 2.3), H)
        z += u() * (span - width)
        door = (x, z, z + width, top)
    floor, ceiling = place.skin("floor"), place.skin("ceiling")
    for x0, z0, x1, z1 in areas:
        place.box((x0 - 0.1, -0.2, z0 - 0.1), (x1 + 0.1, 0, z1 + 0.1), floor)
        place.box((x0 - 0.1, H, z0 - 0.1), (x1 + 0.1, H + 0.2, z1 + 0.1), ceiling)
        paint = place.skin("wallpaper wallpaper wallpaper wallpaper plaster")
        for k, (x, z) in enumerate([(x0, z0), (x1, z0), (x1, z1), (x0, z1)]):
            frame, length = WORLD.to(x, 0, z, -k * np.pi / 2), (x1 - x0, z1 - z0)[k % 2]
            hole = (0, 0, 0, 0)
            if k % 2 and abs(x - door[0]) < 0.01:
                hole = (*sorted((abs(door[1] - z), abs(door[2] - z))), 0, door[3])
            wall(place, frame, length, H, paint, hole)
            furnish(place, frame, length, ROOMS[kind].split())
        lamps(place, (x0, z0, x1, z1), H)
        groups(place, (x0, z0, x1, z1), float(ROOMS[kind].split()[7]))
        place.tops.append((WORLD.to(u(x0, x1), 0, u(z0, z1)), 1.5, 1.5))
        kind = place.pick(" ".join(ROOMS))
    place.clutter(int(u(10, 50) * len(areas)))
    return areas


def wall(place: Place, frame: Frame, length: float, H: float, paint: int, hole) -> None:
    """It runs along the frame's x and faces its z; hole: s0, s1, y0, y1 of the way through."""
    u = place.u
    if hole[3]:  # stays free
        place.room_for(frame.to((hole[0] + hole[1]) / 2, 0, 0), hole[1] - hole[0], 1.2)
    elif length > 1.6 and u() < 0.35:
        w, y = min(u(0.8, 2.6), length - 0.6), u(0.3, 1.1)
        s, h = u(0.3, length - w - 0.2), min(u(0.9, 1.8), H - 0.15 - y)
        hole = (s, s + w, y, y + h)
        window(place, frame.to(s + w / 2, y, 0.03), w, h)
    elif length > 1.4 and u() < 0.35:  # a door that is shut
        door = frame.to(u(0.6, length - 0.6), 0, 0.09)
        place.build("door", door, (0.9, 2.03, 0.08))
        place.room_for(door, 1, 0.8)
    if u() < 0.6:  # a skirting board
        end = hole[0] if hole[3] and not hole[2] else length
        place.box((0, 0, 0.06), (end, u(0.06, 0.12), 0.075), "lacquer", frame)
    s0, s1, y0, y1 = hole
    for x0, x1, low, high in (0, s0, 0, H), (s0, s1, 0, y0), (s0, s1, y1, H), (s1, length, 0, H):
        if x1 > x0 and high > low:
            place.box((x0, low, 0), (x1, high, 0.06), paint, frame)


def window(place: Place, foot: Frame, w: float, h: float) -> None:
    """Frame, curtains and daylight of a hole in the wall."""
    place.build("window", foot, (w, h, 0.06))
    t, cloth = np.linspace(0, 1, 24), place.skin("cloth")
    edges = (-0.25, place.u(0.1, 0.4) * w), (place.u(0.6, 0.9) * w, w + 0.25)
    for x0, x1 in edges if place.u() < 0.5 else ():  # two folded cloths
        deep = 0.11 + 0.04 * np.sin(24 * place.u(1, 2) * t)
        ends = [[place.u(-foot.at[1], 0)], [h + 0.15]]
        folds = np.broadcast_arrays(x0 + (x1 - x0) * t, ends, deep)
        place.sheet(np.stack(folds, -1), cloth, foot.to(-w / 2, 0, 0))
    along = foot.to(w, 0, 0).at - foot.at
    colour = place.u(2, 14) * w * h * np.array([0.9, 1, place.u(1, 1.25)])
    place.lamps.append((foot.to(-w / 2, 0, 0.1).at, [along, [0, h, 0]], colour))


def furnish(place: Place, frame: Frame, length: float, kind: list[str]) -> None:
    """What stands before a wall or hangs on it; kind: a row of ROOMS."""
    for _ in range(int(length * float(kind[6]) * place.u(0.6, 2))):
        back = frame.to(place.u(0.3, max(0.4, length - 0.3)), 0, 0.08)
        place.stand(place.pick(" ".join(kind[8:])), back, (length - 0.2, 2.3), hung=True)
    for _ in range(place.rng.integers(0, 4)):  # pictures, boards
        size = place.u((0.3, 0.3, 0.03), (1.6, 0.9, 0.03))
        place.build("art", frame.to(place.u(0.2, 0.8) * length, place.u(1, 1.4), 0.08), size)


def groups(place: Place, area, crowded: float) -> None:
    """Tables with chairs and single things away from the walls, rugs."""
    u, (x0, z0, x1, z1) = place.u, area
    for _ in range(int((x1 - x0) * (z1 - z0) * crowded * u(0.4, 2)) + (u() < 0.4)):
        x, z = u(x0 + 0.4, x1 - 0.4), u(z0 + 0.4, z1 - 0.4)
        back = WORLD.to(x, 0, z, place.rng.integers(4) * np.pi / 2 + u(-0.3, 0.3))
        what = place.pick("table table sofa chair chair cartons bin plant lamp desk misc rug")
        middle = place.stand(what, back, (2.5, 2.2))
        for k in range(place.rng.integers(1, 7) if middle and what == "table" else 0):
            turned = middle.to(0, 0, 0, k * np.pi / 2)
            away = np.linalg.norm(middle.at - back.at) * (1 if k % 2 == 0 else 1.4) + u(0.4, 0.9)
            seat = turned.to(u(-0.3, 0.3), 0, away, np.pi + u(-0.4, 0.4))
            place.stand("chair stool", seat, (0.8, 1.3))


def lamps(place: Place, area, H: float) -> None:
    """Panels, tubes or bulbs under the ceiling."""
    u, (x0, z0, x1, z1) = place.u, area
    colour = u(3, 8) * np.array([1, u(0.8, 1), u(0.55, 1)])
    bulb = place.skin("bulb")
    for _ in range(max(1, round((x1 - x0) * (z1 - z0) / u(8, 30)))):
        x, z = u(x0 + 0.3, x1 - 0.3), u(z0 + 0.3, z1 - 0.3)
        w, d = (u(0.3, 1.3), u(0.15, 0.6)) if u() < 0.6 else (0.15, 0.15)
        y = H - 0.05 if w > 0.2 or u() < 0.5 else H - u(0.3, 0.8)
        at = np.array([x - w / 2, y, z - d / 2])
        place.box(at, at + [w, 0.05, d], bulb)
        place.lamps.append((at - [0, 0.02, 0], [[w, 0, 0], [0, 0, d]], colour))


def outdoor(place: Place) -> list[np.ndarray]:
    """A street: road, pavements, facades or gardens, vehicles, trees, poles; sun and sky."""
    u = place.u
    if u() < 0.7:  # the sun is a lamp of its true width far away
        at = 1e4 * (rotation(0, u(-3, 3), 0) @ rotation(u(-1.4, -0.3), 0, 0) @ [0, 0, 1])
        colour = 1e8 * u(1, 4) * np.array([1, 0.95, u(0.75, 0.95)])
        place.lamps.append((at, [[90, 0, 0], [0, 0, 90]], colour))
    place.sky = u(0.7, 1.2) * np.array([u(0.6, 1), u(0.75, 1), 1])
    road, path = u(2.5, 8), u(1.2, 4)
    place.box((-150, -1, -150), (150, 0, 150), "grass paving asphalt")
    place.box((-road, 0, -150), (road, 0.01, 150), "asphalt")
    white, gap, edge = place.skin("ceiling"), u(3, 8), u() < 0.5
    marks = [(-0.06, z, 0.06, z + gap * 0.5, 0.015) for z in np.arange(-20, 80, gap)]
    marks += [(road - 0.3, -20, road - 0.18, 80, 0.015)] * edge
    z, crossing = u(3, 25), np.arange(0.3 - road, road - 0.4, 1) if u() < 0.3 else ()
    marks += [(x, z, x + 0.5, z + 3, 0.016) for x in crossing]
    for x0, z0, x1, z1, y in marks:
        place.box((x0, 0.01, z0), (x1, y, z1), white)
    for side in (-1, 1):
        kerb(place, WORLD.to(side * road, 0, 32.5 - side * 57.5, -side * np.pi / 2), path)
    for z in np.arange(u(5, 12), 75, u(8, 30)):
        side = place.rng.choice([-1, 1])
        lane = WORLD.to(side * road * 0.45, 0.02, z, np.pi * (side < 0))
        place.stand("vehicles", lane, (4, 5))
    return [np.array([-road - path + 0.3, -6, road + path - 0.3, 12])]


def kerb(place: Place, frame: Frame, path: float) -> None:
    """One side of a street along the frame's x: the road is ahead, the pavement behind."""
    u, style, s = place.u, place.pick("town town suburb park"), 0.0
    place.box((-100, 0, -path), (215, u(0.08, 0.18), 0), "paving asphalt", frame)
    while s < 115:
        length = u(5, 18)
        if style == "town" or (style == "suburb" and u() < 0.5):
            facade(place, frame.to(s, 0, -path - (0 if style == "town" else u(3, 9))), length)
        elif u() < 0.5:
            wall, y = place.pick("plaster leaf wood"), u(0.8, 2)
            place.box((s, 0, -path - 0.3), (s + length, y, -path), wall, frame)
        for _ in range(place.rng.integers(0, 5) if style == "park" else 0):
            place.tree(frame.to(s + u(0, length), 0, -path - u(1, 15)).at, u(1, 8))
        s += length + (u(0, 1) if style == "town" else u(0, 8))
    for s in np.arange(15, 105, u(4, 14)):
        what = place.pick("vehicles vehicles vehicles vehicles tree tree pole pole trash bike "
                          "bench hedge cypress palm")  # fmt: skip
        spot = frame.to(s + u(-1, 1), 0.1, -0.5 - u(0, 0.5) * path, u(-3, 3))
        if what == "vehicles":  # parked
            turn = place.rng.choice([-1, 1]) * np.pi / 2
            place.stand(what, frame.to(s, 0.02, 1.1, turn), (4, 5))
        elif what != "tree":
            place.stand(what, spot, (4, 12))
        elif place.room_for(spot, 0.8, 0.8):
            place.tree(spot.at, u(2, 9))


def facade(place: Place, frame: Frame, length: float) -> None:
    """A house front along the frame's x, with rows of windows, doors and balconies."""
    u, storey, floors = place.u, place.u(2.8, 3.8), place.rng.integers(1, 6)
    paint, skins = place.skin("plaster plaster wallpaper facade"), {}
    top = storey * floors
    place.box((0, 0, -9), (length, top, 0), paint, frame)
    place.box((-0.2, top, -9.3), (length + 0.2, top + u(0.2, 1), 0.3), "shingle", frame)
    width, step, sill = u(0.8, 1.8), u(1.8, 3.2), u(0.8, 1.1)
    for floor in range(floors):
        for s in np.arange(0.6, length - width, step):
            up = sill if floor or u() < 0.8 else 0.0
            foot = frame.to(s + width / 2, floor * storey + up, 0.025)
            place.build("front", foot, (width, storey - 0.6 - up, 0.05), skins)
            if floor and u() < 0.1:
                half = width / 2 + 0.3
                place.box((-half, -up, 0), (half, 0, 1), paint, foot)


# ---------------------------------------------------------------------------------- rays and light


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., 3), (..., 3) -> (..., 1)."""
    return np.einsum("...i,...i", a, b)[..., None]


class Tracer:
    """A place's triangles in embree: what rays meet, and the light there."""

    def __init__(self, place: Place) -> None:
        from embreex.mesh_construction import TriangleMesh  # only --data rooms:N needs it
        from embreex.rtcore_scene import EmbreeScene

        triangles, self.paint = map(np.concatenate, zip(*place.parts))
        a, b, c = triangles.swapaxes(0, 1)
        normal = np.cross(b - a, c - a)
        self.normal = normal / np.maximum(np.sqrt(dot(normal, normal)), 1e-12)
        facing = np.abs(self.normal[:, [1, 2, 0]]).argmax(1)  # up, ahead or to a side
        self.axes = np.array([[0, 2], [0, 1], [2, 1]])[facing]  # that a texture runs along
        self.paints = np.array(place.paints, np.float32)
        self.lamps = sorted(place.lamps, key=lambda lamp: -lamp[2].sum())[:4]
        self.sky = np.float32([5, 5.5, 6] if place.sky is None else place.sky)  # or by a window
        self.scene = EmbreeScene()
        TriangleMesh(self.scene, triangles)

    def cast(self, eyes: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, ...]:
        """eyes (3,) or (n, 3), rays (n, 3) float32 -> t (n,) in lengths of rays and face (n,), 1e5
        and -1 where nothing is; points (n, 3) a little before the surface; normals (n, 3) against
        the rays."""
        eyes = np.zeros_like(rays) + np.float32(eyes)
        out = self.scene.run(eyes, rays, query="INTERSECT", output=True)
        t, face = out["tfar"], out["primID"]
        normal = self.normal[face]
        normal *= -np.sign(dot(normal, rays))
        points = eyes + np.where(face < 0, 0, t)[:, None] * rays + np.float32(1e-3) * normal
        return np.where(face < 0, np.float32(1e5), t), face, points, normal

    def albedo(self, face: np.ndarray, p: np.ndarray, pixel) -> tuple[np.ndarray, ...]:
        """Linear colour (n, 3), gloss and glow (n,) at points p of faces; pixel: its size there,
        metres; what is finer has no contrast."""
        row = self.paints[self.paint[face]]
        texels = row[:, 0] * TILE  # a metre
        u, v = (np.take_along_axis(p, self.axes[face], 1).T * texels).astype(np.intp) % TILE
        mix = textures()[v + row[:, 1].astype(np.intp) * (TILE + 1), u]
        mix = 0.5 + (mix - 0.5) / np.maximum(pixel * texels, 1)
        colour = row[:, 2:5] + mix[:, None] * (row[:, 5:8] - row[:, 2:5])
        return colour, row[:, 8], row[:, 9]

    def light(self, rng: np.random.Generator, p, n, shadows: bool) -> np.ndarray:
        """Of the lamps at points p with normals n, (k, 3); shadows: a ray to a point of each."""
        total = np.zeros_like(p)
        for at, edges, colour in self.lamps:
            to = np.float32(at) + rng.random((len(p), 2), np.float32) @ np.float32(edges) - p
            square = dot(to, to)[:, 0]
            lit = np.maximum(dot(n, to)[:, 0], 0) / (np.sqrt(square + 1e-9) * (square + 0.05))
            if shadows:
                some = np.flatnonzero(lit * colour.max() > 0.01)
                far = np.full(len(some), 0.999, np.float32)
                lit[some] *= self.scene.run(p[some], to[some], dists=far, query="OCCLUDED") < 0
            total += lit[:, None] * np.float32(colour)
        return total

    def beyond(self, rays: np.ndarray) -> np.ndarray:
        """What is seen where nothing is: the sky, or daylight outside a window."""
        up = rays[:, 1:2] / np.sqrt(dot(rays, rays))
        return self.sky * (1.1 - 0.5 * np.clip(up, 0, 1))

    def gathered(self, rng: np.random.Generator, p: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Light at p: of the lamps, and by one ray what is reflected there, (k, 3)."""
        around = rng.standard_normal(p.shape, np.float32)
        rays = n + 0.999 * around / np.sqrt(dot(around, around))  # by the cosine
        return self.light(rng, p, n, True) + self.along(rng, p, rays)

    def along(self, rng: np.random.Generator, p: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """What comes from there along rays (k, 3), lit without shadows."""
        _, face, there, normal = self.cast(p, rays)
        colour, _, glow = self.albedo(face, there, 0.1)
        second = colour * (0.5 * self.light(rng, there, normal, False) + 0.08 + glow[:, None])
        return np.where(face[:, None] < 0, self.beyond(rays), second.clip(0, 8))

    def mirrored(self, rng: np.random.Generator, p, n, rays, gloss) -> np.ndarray:
        """What glossy surfaces reflect towards where rays come from, more when seen at a slant."""
        some = np.flatnonzero(gloss > 0)
        p, n, rays = p[some], n[some], rays[some]
        away = -dot(n, rays)
        slant = 1 - away / np.sqrt(dot(rays, rays))
        light = np.zeros((len(gloss), 3), np.float32)
        light[some] = self.along(rng, p, rays + 2 * away * n)
        light[some] *= gloss[some, None] * (0.05 + 0.6 * slant**3)
        return light


def smooth(light: np.ndarray, z: np.ndarray, n: np.ndarray) -> np.ndarray:
    """(h, w, 3): each pixel's mean over those around it that lie in its plane."""
    for step in (1, 2, 4):
        total, weight = np.zeros_like(light), np.zeros_like(z[..., None])
        for shift in itertools.product((-step, 0, step), repeat=2):
            like = np.abs(np.roll(z, shift, (0, 1)) - z) < 0.04 * step * z
            like = like[..., None] & (dot(np.roll(n, shift, (0, 1)), n) > 0.9)
            total += like * np.roll(light, shift, (0, 1))
            weight += like
        light = total / np.maximum(weight, 1)
    return light


# ---------------------------------------------------------------------------------------- pictures


def aim(place: Place, areas: list, rng: np.random.Generator) -> tuple:
    """A camera as people hold one: eye (3,), axes (3, 3) right, down, ahead, focal length / W."""
    u, focal = rng.uniform, math.exp(rng.uniform(math.log(0.55), math.log(1.1)))
    x0, z0, x1, z1 = rng.choice(areas)
    if place.sky is not None:
        eye = np.array([u(x0, x1), u(1.1, 2.2) if u() < 0.65 else u(0.25, 1.1), u(z0, z1)])
        yaw, pitch = rng.normal(0, 0.35) + np.pi * (u() < 0.2), rng.normal(0.06, 0.1)
    elif place.targets and u() < 0.35:  # close to something
        yaw, pitch, away = u(-np.pi, np.pi), u(0.05, 1.2), u(0.3, 1.3)
        back = rotation(0, yaw, 0) @ rotation(pitch, 0, 0) @ [0, 0, away]
        eye = rng.choice(place.targets) - back
        yaw, pitch = yaw + u(-0.2, 0.2), pitch + u(-0.15, 0.15)
    else:
        height = u(0.2, 0.8) if u() < 0.3 else u(0.8, 1.9)  # some are carried by robots
        eye = np.array([u(x0 + 0.2, x1 - 0.2), height, u(z0 + 0.2, z1 - 0.2)])
        yaw, pitch = u(-np.pi, np.pi), rng.normal(0.22, 0.25)
        if place.targets and u() < 0.75:
            x, y, z = rng.choice(place.targets) - eye
            yaw, pitch = math.atan2(x, z) + rng.normal(0, 0.3), math.atan2(-y, math.hypot(x, z))
            pitch += rng.normal(0, 0.15)
        pitch = np.clip(pitch, -0.35, 1.05)
    roll = rotation(0, 0, rng.normal(0, 0.04))
    axes = rotation(0, yaw, 0) @ rotation(pitch, 0, 0) @ np.diag([1, -1, 1]) @ roll
    return eye, axes, focal


def rays_of(axes: np.ndarray, focal: float, size) -> tuple[np.ndarray, dict]:
    """(H, W, 3) float32 of every pixel, whose parameter is the depth; and the intrinsics."""
    H, W = size
    K = dict(fx=focal * W, fy=focal * W, cx=(W - 1) / 2, cy=(H - 1) / 2, width=W, height=H)
    X, Y = (np.arange(W) - K["cx"]) / K["fx"], (np.arange(H)[:, None] - K["cy"]) / K["fy"]
    rays = np.stack(np.broadcast_arrays(X, Y, 1.0), -1) @ axes.T
    return np.float32(rays), K


def develop(rng: np.random.Generator, linear: np.ndarray) -> np.ndarray:
    """Linear (H, W, 3) -> uint8: exposure, white balance, a camera's curve, lens, noise, JPEG."""
    warm = math.exp(rng.normal(0, 0.12))
    gain = np.array([warm, math.exp(rng.normal(0, 0.04)), 1 / warm])
    meter = np.minimum(linear.mean(2), 4 * np.median(linear)).mean()  # not at a window's light
    shot = linear * (gain * math.exp(rng.normal(-1.5, 0.35)) / max(meter, 1e-6))
    soft = rng.uniform(0.25, 0.7) * linear.shape[1] / 320
    shot = cv2.GaussianBlur(np.float32(shot.clip(0, 2)), (5, 5), soft)
    shot = shot.clip(0, 1) ** rng.uniform(0.42, 0.55)
    shot += rng.uniform(0, 1.3) * (shot * shot * (3 - 2 * shot) - shot)  # contrast
    shot += rng.uniform(0, 1) * (shot - cv2.GaussianBlur(shot, (5, 5), 1.2))  # sharpened
    noise = rng.standard_normal(linear.shape, np.float32) * (rng.uniform(0, 0.015) * (1.2 - shot))
    rgb = ((shot + noise) * 255).clip(0, 255).astype(np.uint8)
    jpeg = cv2.imencode(".jpg", rgb, (cv2.IMWRITE_JPEG_QUALITY, int(rng.uniform(50, 100))))[1]
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR)


@functools.lru_cache(1)
def place_of(stream: int, number: int, furniture: Path | None) -> tuple[Place, Tracer, list]:
    """A place and where cameras may stand in it."""
    rng = np.random.default_rng([stream, number, 2])
    place = Place(rng, library(furniture))
    areas = (outdoor if rng.random() < STREETS else indoor)(place)
    return place, Tracer(place), areas


def render(stream: int, index: int, size=(480, 640), furniture: Path | None = None) -> Scene:
    """Picture `index` of `stream` (both >= 0); the same bits in every run, process and order."""
    place, tracer, areas = place_of(stream, index // VIEWS, furniture)
    rng = np.random.default_rng([stream, index, 3])
    for _ in range(20):  # not from a cupboard or the next flat, nor of a bare wall or the sky alone
        eye, axes, focal = aim(place, areas, rng)
        rays, K = rays_of(axes, focal, size)
        z = tracer.cast(eye, rays[::8, ::8].reshape(-1, 3))[0].clip(0, SIGHT)
        near, far = np.percentile(z, (2, 95))
        inside = any(x0 < eye[0] < x1 and z0 < eye[2] < z1 for x0, z0, x1, z1 in areas)
        seen = near > 0.25 and far > max(0.6, near * rng.uniform(1, 3.5))
        if inside and eye[1] > 0.1 and seen and (z < SIGHT).mean() > 0.4:
            break
    flat = rays.reshape(-1, 3)
    t, face, p, normal = tracer.cast(eye, flat)
    z = t.reshape(size)
    colour, gloss, glow = tracer.albedo(face, p, t / K["fx"])
    half = np.arange(t.size).reshape(size)[::2, ::2].ravel()  # every other pixel
    at, facing, shape = p[half], normal[half], (*z[::2, ::2].shape, 3)
    light = tracer.gathered(rng, at, facing).reshape(shape)
    light = smooth(light, z[::2, ::2], facing.reshape(shape))
    mirror = tracer.mirrored(rng, at, facing, flat[half], gloss[half]).reshape(shape)
    light, mirror = (cv2.resize(a, size[::-1]).reshape(-1, 3) for a in (light, mirror))
    linear = colour * (light + (0.02 + 4 * glow[:, None])) + mirror
    linear = np.where(face[:, None] < 0, tracer.beyond(flat), linear).reshape(*size, 3)
    Y, X = np.ogrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    linear *= (1 - rng.uniform(0, 0.17) * (X * X + Y * Y))[..., None]  # vignetting
    rgb = develop(rng, linear)
    slope = np.abs(dot(normal, flat)) / np.sqrt(dot(flat, flat))
    kind = rng.choice([*SENSORS][:3] if place.sky is None else [*SENSORS][3:])
    near, far, baseline = SENSORS[kind]
    depth = sense(rng, K["fx"], z, slope.reshape(size), rgb[..., 1] / np.float32(255),
                  gloss.reshape(size), (near, rng.uniform(0.7, 1) * far, baseline))  # fmt: skip
    if kind == "scanner" and rng.random() < 0.5:  # lines of a rotating LiDAR
        depth[np.arange(size[0]) % 4 > 0] = 0
    return Scene(rgb, depth, K)


def ensure(count: int, size: tuple[int, int], furniture: Path | None) -> Path:
    """The folder of `count` pictures of (H, W) and their validation; made if missing. Raises
    UserError: no furniture, no embreex, no room on the disk."""
    own = f"-{zlib.crc32(str(furniture.resolve()).encode()):08x}" if furniture else ""
    made = f"rooms-{VERSION}-{count}-{size[0]}x{size[1]}{own}"
    if not (scenes.cache_root() / made).is_dir():
        try:
            import_module("embreex.rtcore_scene")
        except ImportError as error:
            raise UserError(f"rooms:N needs embreex: pip install embreex ({error})") from None
        library(furniture)  # once, before the workers ask for it, and with its own errors
    draw = functools.partial(render, size=size, furniture=furniture)
    return scenes.rendered(made, count, draw, 4 * VIEWS)
