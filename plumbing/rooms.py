"""`--data rooms:N`: rooms and streets with furniture and vehicles of true size, ray cast.

    plan walls, floor, openings -> furnish -> one mesh -> a camera -> cast -> light -> expose, sense

World frame as in scenes.py: metres, x right, y up (floor at 0), z forward. Everything is a triangle
with a paint (scenes.World.paint: two colours, a procedural texture, gloss, glow); textures are laid
on by the axis that a triangle faces most. Light: lamps, windows, sun and sky, each with a shadow
ray to a random point on it, and one ray that is reflected diffusely, at half the picture's size,
smoothed where depth and normal agree. All of it follows from (stream, index); VIEWS neighbouring
indices are views of one place.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plumbing import scenes
from plumbing.files import UserError
from plumbing.furniture import Library, Model, library
from plumbing.pictures import cv2
from plumbing.scenes import TILE, Camera, Scene, World, atlas, expose, rotation, sense

VERSION = "v1"  # part of the folder's name; raise it when the pictures change
VIEWS = 4  # of one place
SIGHT = 65.0  # metres: 16-bit millimetres end there
STREETS = 0.25  # share of places that are outdoors

# kind: least and largest width, height, depth in metres; the catalogue's categories along its walls
# (one that comes twice is twice as likely); how many things a metre of wall and a square metre.
ROOMS = {
    "living": ((3, 2.4, 3.5, 7, 3, 9), "Living Living Living Misc", 0.5, 0.12),
    "bedroom": ((2.6, 2.4, 3, 5, 2.8, 5.5), "Bedroom Bedroom Bedroom Living Misc", 0.45, 0.08),
    "kitchen": ((2.2, 2.4, 2.6, 5, 2.8, 6), "Kitchen Kitchen Kitchen counter Misc", 0.7, 0.06),
    "bath": ((1.7, 2.3, 2, 3.5, 2.6, 4), "Bathroom Bathroom Bathroom Misc", 0.6, 0.03),
    "office": ((2.8, 2.5, 3.5, 8, 3.2, 10), "Office Office desk shelf shelf Living", 0.6, 0.18),
    "lab": ((4, 2.7, 4, 10, 4, 12), "desk shelf counter Office Misc Kitchen", 0.6, 0.12),
    "store": ((2.5, 2.4, 3, 8, 4.5, 10), "shelf shelf boxes boxes Misc", 0.7, 0.15),
    "corridor": ((1.3, 2.3, 6, 2.6, 3, 20), "Living Office Misc shelf", 0.12, 0.01),
    "hall": ((8, 3.2, 9, 18, 7, 26), "Living Office shelf boxes Misc", 0.25, 0.05),
}  # fmt: skip


SENSORS = {  # nearest and farthest depth, metres between its two eyes
    "light": (0.45, 8, 0.075), "stereo": (0.25, 12, 0.05), "phone": (0.2, 6, 0.01),
    "stereo_out": (0.3, SIGHT, 0.1), "scanner": (1.0, SIGHT, 0.01),
}  # fmt: skip


class Lamp(NamedTuple):
    """A light: corner at and two edges (3,) of a rectangle, metres; colour (3,): linear, its strength
    times area. sun: at is a direction instead."""

    at: np.ndarray
    edges: np.ndarray
    colour: np.ndarray
    sun: bool = False


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 3), (n, 3) -> (n, 1)."""
    return np.einsum("ij,ij->i", a, b)[:, None]


def length(a: np.ndarray) -> np.ndarray:
    return np.sqrt(dot(a, a))


class Hit(NamedTuple):
    """Where rays end: distance (n,), face (n,) or -1."""

    t: np.ndarray
    face: np.ndarray


class Place:
    """A place as it grows: triangles, paints, lamps, and what the floor has room for."""

    def __init__(self, rng: np.random.Generator, furniture: Library) -> None:
        self.rng, self.u, self.furniture = rng, rng.uniform, furniture
        self.paint, self.pick = World(rng).paint, World(rng).pick
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # vertices, faces, paint
        self.paints: list[np.ndarray] = []
        self.lamps: list[Lamp] = []
        self.taken: list[np.ndarray] = []  # x0, z0, x1, z1 of what stands on the floor
        self.tops: list[np.ndarray] = []  # x0, z0, x1, z1, y: where small things may stand
        self.targets: list[np.ndarray] = []  # (3,): what close-ups look at
        self.sky = None  # colour (3,) overhead; None: indoors

    # ------------------------------------------------------------------------------- bodies

    def mesh(self, vertices: np.ndarray, faces: np.ndarray, paint: np.ndarray) -> None:
        """vertices (n, 3) m, faces (k, 3), paint (k,): rows of self.paints."""
        self.parts.append((np.float32(vertices), faces, paint))

    def add_paint(self, paint: str | np.ndarray) -> int:
        self.paints.append(self.paint(paint) if isinstance(paint, str) else paint)
        return len(self.paints) - 1

    def box(self, low, high, paint: str | int, yaw: float = 0.0, about=(0, 0)) -> None:
        """From corner low to corner high (3,), turned by yaw about the upright axis `about`."""
        low, high = np.array(low, float), np.array(high, float)
        vertices = low + (high - low) * CORNERS
        if yaw:
            pivot = np.array([about[0], 0, about[1]])
            vertices = (vertices - pivot) @ rotation(0, yaw, 0).T + pivot
        number = paint if isinstance(paint, int) else self.add_paint(paint)
        self.mesh(vertices, BOX, np.full(12, number))

    def tube(self, foot, radius: float, height: float, paint: str | int) -> None:
        """An upright cylinder of 14 sides."""
        angle = np.arange(14) * (2 * np.pi / 14)
        ring = np.stack([np.cos(angle) * radius, 0 * angle, np.sin(angle) * radius], 1) + foot
        vertices = np.concatenate([ring, ring + [0, height, 0], [np.add(foot, [0, height, 0])]])
        i, j = np.arange(14), (np.arange(14) + 1) % 14
        faces = np.concatenate([np.stack(f, 1) for f in
                                ((i, j, i + 14), (j, j + 14, i + 14), (i + 14, j + 14, 0 * i + 28))])
        number = paint if isinstance(paint, int) else self.add_paint(paint)
        self.mesh(vertices, faces, np.full(len(faces), number))

    def ball(self, at, radii, paint: int) -> None:
        """An ellipsoid."""
        vertices, faces = BALL
        self.mesh(vertices * radii + at, faces, np.full(len(faces), paint))

    def tree(self, x: float, z: float, height: float) -> None:
        leaf, trunk = self.add_paint("leaf"), height * self.u(0.15, 0.45)
        self.tube((x, 0, z), 0.03 * height, 0.7 * height, "wood")
        for _ in range(self.rng.integers(4, 12)):
            at = np.array([x, self.u(trunk, 0.85 * height), z]) + self.u(-0.22, 0.22, 3) * height
            self.ball(at, self.u(0.08, 0.24, 3) * height, leaf)

    def put(self, model: Model, at, yaw: float, stretch: float = 1.0, tint: bool = True) -> None:
        """A model of the library with its foot `at` (3,)."""
        (v0, v1), (f0, f1) = model.vertices, model.faces
        vertices = self.furniture.vertices[v0:v1] * np.float32(stretch)
        vertices = vertices @ np.float32(rotation(0, yaw, 0).T) + np.float32(at)
        used, paint = np.unique(self.furniture.material[f0:f1], return_inverse=True)
        first = len(self.paints)
        for row in self.furniture.paints[used]:
            row = np.array(row, float)
            if tint:  # another cloth, another wood
                row[2:8] *= np.tile(self.u(0.6, 1.3) * self.u(0.8, 1.2, 3), 2)
            self.paints.append(np.r_[row[:2], row[2:8].clip(0.01, 0.95), row[8:]])
        self.mesh(vertices, self.furniture.faces[f0:f1], first + paint)
        w, h, d = np.multiply(model.size, stretch)
        x, y, z = at
        self.targets.append(np.array([x, y + h * self.u(0.5, 1), z]))
        if model.top > 0 and h < 1.6:
            r = 0.35 * min(w, d)
            self.tops.append(np.array([x - r, z - r, x + r, z + r, y + model.top * stretch]))

    def room_for(self, x: float, z: float, w: float, d: float, yaw: float, keep=True) -> bool:
        """Whether nothing stands there yet; then it is taken."""
        c, s = abs(math.cos(yaw)), abs(math.sin(yaw))
        half = np.array([w * c + d * s, w * s + d * c]) / 2
        box = np.r_[x - half[0], z - half[1], x + half[0], z + half[1]]
        if any((box[:2] < b[2:]).all() and (box[2:] > b[:2]).all() for b in self.taken):
            return False
        if keep:
            self.taken.append(box)
        return True

    def choose(self, words: str, test=lambda m: True) -> Model | None:
        """A model whose category or name has one of the words and that passes the test."""
        some = by_words(self.furniture, words.lower())
        for _ in range(12):
            if some and test(model := some[self.rng.integers(len(some))]):
                return model
        return None

    # ----------------------------------------------------------------------- things of our own

    def shelf(self, x: float, z: float, yaw: float) -> bool:
        """Boards with books, boxes and things on them, its back at (x, z)."""
        w, h, d = self.u(0.6, 1.6), self.u(0.8, 2.2), self.u(0.25, 0.5)
        at = np.array([x, 0, z]) + rotation(0, yaw, 0) @ [0, 0, d / 2]
        if not self.room_for(at[0], at[2], w, d, yaw):
            return False
        wood, about = self.add_paint(self.pick("wood lacquer wood")), (at[0], at[2])
        low, high = at - [w / 2, 0, d / 2], at + [w / 2, h, d / 2]
        for a, b in (((0, 0, 0), (0.02, h, d)), ((w - 0.02, 0, 0), (w, h, d))):
            self.box(low + a, low + b, wood, yaw, about)
        if self.u() < 0.6:
            self.box(low, (high[0], high[1], low[2] + 0.01), wood, yaw, about)
        boards = np.arange(0.05, h, self.u(0.25, 0.45))
        for y in boards:
            self.box(low + [0, y, 0], (high[0], y + 0.02, high[2]), wood, yaw, about)
            s, room = 0.04, (boards[1] - boards[0] if len(boards) > 1 else 0.3) - 0.04
            while s < w - 0.1:
                n = self.u(0.02, 0.3)
                if self.u() < 0.75 and s + n < w - 0.03:
                    size = np.array([n, self.u(0.3, 0.95) * room, self.u(0.4, 0.95) * d])
                    foot = low + [s, y + 0.02, d - size[2] - self.u(0, 0.3) * (d - size[2])]
                    self.box(foot, foot + size, self.pick("books card toy lacquer cloth"), yaw, about)
                s += n + self.u(0, 0.06)
        self.targets.append(at + [0, h * self.u(0.3, 0.8), 0])
        return True

    def desk(self, x: float, z: float, yaw: float) -> bool:
        """A table top on legs with a screen or two, a keyboard, a cup; its back at (x, z)."""
        w, h, d = self.u(1, 2), self.u(0.68, 0.95), self.u(0.55, 0.85)
        at = np.array([x, 0, z]) + rotation(0, yaw, 0) @ [0, 0, d / 2]
        if not self.room_for(at[0], at[2], w, d, yaw):
            return False
        about, low = (at[0], at[2]), at - [w / 2, 0, d / 2]
        wood, dark = self.add_paint(self.pick("wood lacquer plaster")), self.add_paint("rubber")
        self.box(low + [0, h - 0.03, 0], low + [w, h, d], wood, yaw, about)
        for a, b in ((0, 0), (w - 0.05, 0), (0, d - 0.05), (w - 0.05, d - 0.05)):
            self.box(low + [a, 0, b], low + [a + 0.05, h - 0.03, b + 0.05], dark, yaw, about)
        if self.u() < 0.5:
            self.box(low + [0.05, 0.05, 0.1], low + [0.5, h - 0.03, d - 0.1], wood, yaw, about)
        for s in np.arange(self.u(0.1, 0.4), w - 0.6, self.u(0.6, 0.9)):
            a = low + [s, h, 0.15]
            self.box(a + [0.2, 0, 0], a + [0.35, 0.12, 0.15], dark, yaw, about)
            screen = "lacquer" if self.u() < 0.5 else "art"
            self.box(a + [0, 0.1, 0.05], a + [0.55, 0.45, 0.08], screen, yaw, about)
            self.box(a + [0.05, 0, 0.25], a + [0.5, 0.03, 0.4], dark, yaw, about)
        self.tops.append(np.r_[at[0] - d / 3, at[2] - d / 3, at[0] + d / 3, at[2] + d / 3, h])
        self.targets.append(at + [0, h, 0])
        return True

    def counter(self, x: float, z: float, yaw: float) -> bool:
        """Cupboards under a worktop, perhaps more above it."""
        w, h, d = self.u(1, 3), self.u(0.85, 0.95), self.u(0.5, 0.65)
        at = np.array([x, 0, z]) + rotation(0, yaw, 0) @ [0, 0, d / 2]
        if not self.room_for(at[0], at[2], w, d, yaw):
            return False
        about, low = (at[0], at[2]), at - [w / 2, 0, d / 2]
        door, top = self.add_paint("lacquer"), self.add_paint("wood")
        self.box(low, low + [w, h - 0.04, d - 0.03], door, yaw, about)
        self.box(low + [0, h - 0.04, 0], low + [w, h, d], top, yaw, about)
        grip = self.add_paint("rubber")
        for s in np.arange(0.08, w - 0.4, 0.5):
            self.box(low + [s, h - 0.15, d - 0.03], low + [s + 0.35, h - 0.13, d], grip, yaw, about)
        if self.u() < 0.6:
            self.box(low + [0, 1.4, 0], low + [w, self.u(1.9, 2.2), 0.35], door, yaw, about)
        self.tops.append(np.r_[at[0] - d / 3, at[2] - d / 3, at[0] + d / 3, at[2] + d / 3, h])
        self.targets.append(at + [0, h, 0])
        return True

    def boxes(self, x: float, z: float, yaw: float) -> bool:
        """A stack of cartons or an open bin with things in it."""
        w, d = self.u(0.3, 0.8, 2)
        at = np.array([x, 0, z]) + rotation(0, yaw, 0) @ [0, 0, d / 2 + 0.05]
        if not self.room_for(at[0], at[2], w, d, yaw):
            return False
        if self.u() < 0.4:
            h, wall, about = self.u(0.15, 0.6), self.add_paint(self.pick("card toy lacquer")), at[::2]
            low = at - [w / 2, 0, d / 2]
            for a, b in (((0, 0, 0), (w, 0.02, d)), ((0, 0, 0), (0.01, h, d)), ((0, 0, 0), (w, h, 0.01)),
                         ((w - 0.01, 0, 0), (w, h, d)), ((0, 0, d - 0.01), (w, h, d))):
                self.box(low + a, low + b, wall, yaw, about)
            r = min(w, d) / 3
            self.tops += [np.r_[at[0] - r, at[2] - r, at[0] + r, at[2] + r, 0.02]] * 4
        else:
            y = 0.0
            for _ in range(self.rng.integers(1, 5)):
                h, yaw = self.u(0.15, 0.5), yaw + self.u(-0.15, 0.15)
                low = at + [-w / 2, y, -d / 2]
                self.box(low, low + [w, h, d], "card", yaw, at[::2])
                y += h
            self.targets.append(at + [0, y, 0])
        return True

    def small_things(self, count: int) -> None:
        """On tables, shelves, in bins: models under half a metre, boxes, cups."""
        for _ in range(count if self.tops else 0):
            x0, z0, x1, z1, y = self.tops[self.rng.integers(len(self.tops))]
            at = np.array([self.u(x0, x1), y, self.u(z0, z1)])
            model = self.choose("kitchen misc office living", lambda m: max(m.size) < 0.5)
            if model and self.u() < 0.7:
                self.put(model, at, self.u(-3, 3))
            elif self.u() < 0.5:
                self.tube(at, self.u(0.02, 0.08), self.u(0.05, 0.25), self.pick("toy lacquer card"))
            else:
                size = self.u(0.04, 0.25, 3)
                self.box(at - size * [0.5, 0, 0.5], at + size * [0.5, 1, 0.5],
                         self.pick("toy card books"), self.u(-3, 3), at[::2])  # fmt: skip


CORNERS = np.indices((2, 2, 2)).reshape(3, 8).T
BOX = np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
                [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])  # fmt: skip


def _ball(rows: int = 7, columns: int = 12) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.mgrid[: rows + 1, :columns]
    a, b = a.ravel() * np.pi / rows, b.ravel() * 2 * np.pi / columns
    vertices = np.stack([np.sin(a) * np.cos(b), np.cos(a), np.sin(a) * np.sin(b)], 1)
    i, j = (k.ravel() for k in np.mgrid[:rows, :columns])
    p, q = i * columns + j, i * columns + (j + 1) % columns
    faces = [np.stack(f, 1) for f in ((p, q, p + columns), (q, q + columns, p + columns))]
    return vertices, np.concatenate(faces)


BALL = _ball()


@functools.cache
def _furniture(folder: Path | None) -> Library:
    return library(folder)


_CHOICES: dict[tuple[int, str], list[Model]] = {}


def by_words(furniture: Library, words: str) -> list[Model]:
    """The models whose category or name has one of the words."""
    key = id(furniture), words
    if key not in _CHOICES:
        wanted = words.split()
        _CHOICES[key] = [m for m in furniture.models
                         if any(w in f"{m.category} {m.name}".lower() for w in wanted)]  # fmt: skip
    return _CHOICES[key]


# --------------------------------------------------------------------------------------- places


def wall(place: Place, a, b, height: float, paint: int, holes: list) -> None:
    """Upright from a to b (x, z), with rectangular holes (s0, s1, y0, y1) along it."""
    a, b = np.array(a, float), np.array(b, float)
    length, yaw = math.dist(a, b), math.atan2(-(b - a)[1], (b - a)[0])

    def piece(s0: float, s1: float, y0: float, y1: float) -> None:
        if s1 - s0 > 0.01 and y1 - y0 > 0.01:
            place.box((a[0] + s0, y0, a[1] - 0.06), (a[0] + s1, y1, a[1] + 0.06), paint, yaw, a)

    at = 0.0
    for s0, s1, y0, y1 in sorted(holes):
        piece(at, s0, 0, height)
        piece(s0, s1, 0, y0)
        piece(s0, s1, y1, height)
        at = s1
    piece(at, length, 0, height)


def window(place: Place, a, b, s: float, width: float, y0: float, y1: float, inward) -> None:
    """Frame, curtains and daylight of a hole in the wall from a to b."""
    a, along = np.array(a, float), np.subtract(b, a) / math.dist(a, b)
    yaw, frame = math.atan2(-along[1], along[0]), place.add_paint(place.pick("wood lacquer plaster"))
    for s0, s1, h0, h1 in ((0, width, y0, y0 + 0.06), (0, width, y1 - 0.06, y1), (0, 0.06, y0, y1),
                           (width - 0.06, width, y0, y1), (width / 2 - 0.03, width / 2 + 0.03, y0, y1)):
        place.box((a[0] + s + s0, h0, a[1] - 0.03), (a[0] + s + s1, h1, a[1] + 0.03), frame, yaw, a)
    inward = np.array(inward, float)
    if place.u() < 0.5:  # two folded cloths
        cloth, n = place.add_paint("cloth"), 24
        for s0, s1 in ((-0.25, place.u(0.1, 0.4) * width), (width * place.u(0.6, 0.9), width + 0.25)):
            t = np.linspace(s + s0, s + s1, n)
            deep = 0.14 + 0.04 * np.sin(np.arange(n) * place.u(1, 2))
            x, z = (a[:, None] + along[:, None] * t + inward[:, None] * deep)
            low = np.stack([x, np.full(n, place.u(0.02, y0)), z], 1)
            vertices = np.concatenate([low, low * [1, 0, 1] + [0, y1 + 0.15, 0]])
            i = np.arange(n - 1)
            faces = np.concatenate([np.stack(f, 1) for f in ((i, i + 1, i + n), (i + 1, i + n + 1, i + n))])
            place.mesh(vertices, faces, np.full(len(faces), cloth))
    corner = np.r_[a[0] + along[0] * s, y0, a[1] + along[1] * s] + 0.1 * np.r_[inward[0], 0, inward[1]]
    edges = np.array([[along[0] * width, 0, along[1] * width], [0, y1 - y0, 0]])
    colour = place.u(2, 14) * width * (y1 - y0) * np.array([0.9, 1, place.u(1, 1.25)])
    place.lamps.append(Lamp(corner, edges, colour))


def indoor(place: Place) -> list[np.ndarray]:
    """One to three rooms that open into each other; where cameras may stand: x0, z0, x1, z1."""
    u, kind = place.u, place.pick(" ".join(ROOMS) + " living office lab")
    (w0, h0, d0, w1, h1, d1), *_ = ROOMS[kind]
    W, D, H = u(w0, w1), u(d0, d1), u(h0, h1)
    areas, doors = [np.array([-W / 2, 0, W / 2, D])], []
    if u() < 0.55:  # an arm of an L, or a second room behind a door
        w, d, z = u(0.4, 1) * W + 1, u(0.3, 0.8) * D + 0.5, u(0, 0.4) * D
        side = place.rng.choice([-1, 1])
        x = side * W / 2
        areas.append(np.array([min(x, x + side * w), z, max(x, x + side * w), min(z + d, D)]))
        span = areas[1][3] - z
        width = span if u() < 0.5 else min(u(0.8, 1.8), span)
        top = H if width == span and u() < 0.7 else min(u(2, 2.3), H)
        z += u() * (span - width)
        doors.append((x, z, z + width, top))
    floor, ceiling = place.add_paint("floor"), place.add_paint("ceiling")
    for n, (x0, z0, x1, z1) in enumerate(areas):
        if n:
            kind = place.pick(" ".join(ROOMS))
        place.box((x0 - 0.1, -0.2, z0 - 0.1), (x1 + 0.1, 0, z1 + 0.1), floor)
        place.box((x0 - 0.1, H, z0 - 0.1), (x1 + 0.1, H + 0.2, z1 + 0.1), ceiling)
        paint = place.add_paint("wallpaper" if u() < 0.85 else "plaster")
        walls = [((x0, z0), (x1, z0), (0, 1)), ((x1, z0), (x1, z1), (-1, 0)),
                 ((x1, z1), (x0, z1), (0, -1)), ((x0, z1), (x0, z0), (1, 0))]  # fmt: skip
        for a, b, inward in walls:
            one_wall(place, a, b, inward, H, paint, doors, ROOMS[kind])
        lamps_of(place, (x0, z0, x1, z1), H)
        middle_of(place, (x0, z0, x1, z1), ROOMS[kind][3])
    place.small_things(int(u(5, 25) * len(areas)))
    return areas


def one_wall(place: Place, a, b, inward, H: float, paint: int, doors: list, kind: tuple) -> None:
    """A wall with its openings, and what stands before it."""
    u, length, holes = place.u, math.dist(a, b), []
    for x, z0, z1, top in doors:
        if abs(a[0] - x) < 0.01 and abs(b[0] - x) < 0.01:
            s0, s1 = sorted((abs(z0 - a[1]), abs(z1 - a[1])))
            if s0 < length - 0.05:
                holes.append((max(0.0, s0), min(s1, length), 0, top))
    along = np.subtract(b, a) / length
    yaw = math.atan2(inward[0], inward[1])
    if not holes and u() < 0.35 and length > 1.6:
        width = min(u(0.8, 2.6), length - 0.6)
        s, y0 = u(0.3, length - width - 0.2), u(0.3, 1.1)
        y1 = min(y0 + u(0.9, 1.8), H - 0.15)
        holes.append((s, s + width, y0, y1))
        window(place, a, b, s, width, y0, y1, inward)
    elif not holes and u() < 0.35 and length > 1.4:  # a door that is shut
        s, deep = u(0.2, length - 1.1), 0.09 * np.array(inward)
        foot = np.array(a) + along * (s + 0.45) + deep
        place.box((foot[0] - 0.45, 0, foot[1] - 0.04), (foot[0] + 0.45, 2.03, foot[1] + 0.04),
                  place.pick("wood lacquer"), yaw, foot)  # fmt: skip
        place.room_for(foot[0], foot[1], 1, 0.8, yaw)
    wall(place, a, b, H, paint, holes)
    if u() < 0.6:  # a skirting board
        board = place.add_paint("lacquer")
        for s0, s1 in ((0, min([h[0] for h in holes if h[2] == 0], default=length)),):
            p = np.array(a) + 0.065 * np.array(inward)
            turn = math.atan2(-along[1], along[0])
            place.box((p[0] + s0, 0, p[1] - 0.01), (p[0] + s1, u(0.06, 0.12), p[1] + 0.01), board, turn, p)
    for s0, s1, y0, _ in holes:
        if y0 == 0:  # the way through stays free
            x, z = np.array(a) + along * (s0 + s1) / 2
            place.room_for(x, z, s1 - s0, 1.2, yaw)
    for _ in range(int(length * kind[2] * u(0.5, 2))):
        what = place.pick(kind[1])
        p = np.array(a) + along * u(0.3, max(0.4, length - 0.3)) + 0.08 * np.array(inward)
        if what in ("shelf", "desk", "counter", "boxes"):
            getattr(place, what)(*p, yaw)
        elif model := place.choose(what, lambda m: m.size[1] > 0.25 and m.size[0] < length - 0.2):
            (w, h, d), y = model.size, model.elevation
            x, z = p + np.array(inward) * (d / 2 + 0.02)
            turn = yaw + u(-0.1, 0.1) * (y == 0)
            if y + h < H and (place.room_for(x, z, w, d, yaw) if y < 0.6 else True):
                place.put(model, (x, y, z), turn)
    if u() < 0.4:  # a picture, a board
        p = np.array(a) + along * u(0.2, 0.8) * length + 0.08 * np.array(inward)
        w, h, y = u(0.3, 1.6), u(0.3, 1.1), u(1.1, 1.6)
        place.box((p[0] - w / 2, y, p[1] - 0.015), (p[0] + w / 2, min(y + h, H - 0.1), p[1] + 0.015),
                  place.pick("art art lacquer"), yaw, p)  # fmt: skip


def middle_of(place: Place, area, crowded: float) -> None:
    """Groups and single things away from the walls, rugs, clutter."""
    u, (x0, z0, x1, z1) = place.u, area
    for _ in range(int((x1 - x0) * (z1 - z0) * crowded * u(0.4, 2)) + (u() < 0.4)):
        x, z, yaw = u(x0 + 0.5, x1 - 0.5), u(z0 + 0.5, z1 - 0.5), place.pick("0 1 2 3")
        yaw = int(yaw) * np.pi / 2 + u(-0.3, 0.3)
        what = place.pick("table table sofa chair chair boxes plant lamp desk misc rug")
        if what in ("boxes", "desk"):
            getattr(place, what)(x, z, yaw)
            continue
        if what == "rug":
            w, d = u(0.6, 2.2, 2)
            place.box((x - w / 2, 0, z - d / 2), (x + w / 2, 0.012, z + d / 2), "cloth", yaw, (x, z))
            continue
        model = place.choose(what, lambda m: m.elevation == 0 and 0.2 < m.size[1] < 2.2)
        if model and place.room_for(x, z, model.size[0], model.size[2], yaw):
            place.put(model, (x, 0, z), yaw)
            for k in range(place.rng.integers(1, 7) if what == "table" else 0):  # chairs round it
                turn = yaw + k * np.pi / 2
                w, _, d = model.size
                reach = (d if k % 2 == 0 else w) / 2 + u(0.1, 0.5)
                p = np.array([x, 0, z]) + rotation(0, turn, 0) @ [u(-0.3, 0.3), 0, reach]
                seat = place.choose("chair stool", lambda m: 0.3 < m.size[1] < 1.3)
                if seat and place.room_for(p[0], p[2], seat.size[0] * 0.8, seat.size[2] * 0.8, turn):
                    place.put(seat, p, turn + np.pi + u(-0.4, 0.4))


def lamps_of(place: Place, area, H: float) -> None:
    """Panels, tubes or bulbs under the ceiling."""
    u, (x0, z0, x1, z1) = place.u, area
    warm = np.array([1, u(0.8, 1), u(0.55, 1)])
    bulb, power = place.add_paint("bulb"), u(3, 8)
    for _ in range(max(1, round((x1 - x0) * (z1 - z0) / u(8, 30)))):
        x, z = u(x0 + 0.3, x1 - 0.3), u(z0 + 0.3, z1 - 0.3)
        w, d = (u(0.3, 1.3), u(0.15, 0.6)) if u() < 0.6 else (0.15, 0.15)
        y = H - 0.05 if w > 0.2 or u() < 0.5 else H - u(0.3, 0.8)
        place.box((x - w / 2, y, z - d / 2), (x + w / 2, y + 0.05, z + d / 2), bulb)
        edges = np.array([[w, 0, 0], [0, 0, d]])
        place.lamps.append(Lamp(np.array([x - w / 2, y - 0.02, z - d / 2]), edges, power * warm))


def outdoor(place: Place) -> list[np.ndarray]:
    """A street: road, pavements, facades or gardens, vehicles, trees, poles; sun and sky."""
    u, pick = place.u, place.pick
    sun = rotation(0, u(-3, 3), 0) @ rotation(u(-1.4, -0.3), 0, 0) @ [0, 0, 1]
    if u() < 0.7:
        place.lamps.append(Lamp(sun, np.zeros((2, 3)), u(1, 4) * np.array([1, 0.95, u(0.75, 0.95)]), True))
    place.sky = u(0.7, 1.2) * np.array([u(0.6, 1), u(0.75, 1), 1])
    road, path = u(2.5, 8), u(1.2, 4)
    place.box((-150, -1, -150), (150, 0, 150), pick("grass paving asphalt"))
    place.box((-road, 0, -150), (road, 0.01, 150), "asphalt")
    white = place.add_paint(np.r_[1, 0, [0.75] * 3, [0.8] * 3, 0, 0])
    gap, edge = u(3, 8), u() < 0.5
    for z in np.arange(-20, 80, gap):
        place.box((-0.06, 0.01, z), (0.06, 0.015, z + gap * 0.5), white)
        if edge:
            place.box((road - 0.3, 0.01, z), (road - 0.18, 0.015, z + gap), white)
    if u() < 0.3:
        z = u(3, 25)
        for x in np.arange(-road + 0.3, road - 0.4, 1):
            place.box((x, 0.01, z), (x + 0.5, 0.016, z + 3), white)
    for side in (-1, 1):
        kerb = side * road
        x = sorted((kerb, kerb + side * path))
        place.box((x[0], 0, -150), (x[1], u(0.08, 0.18), 150), pick("paving asphalt tiles" if 0 else "paving asphalt"))
        z, style = -25.0, pick("town town suburb park")
        while z < 90:
            length = u(5, 18)
            if style == "town" or (style == "suburb" and u() < 0.5):
                facade(place, kerb + side * (path + (u(0, 0.5) if style == "town" else u(3, 9))), side, z, length)
            elif u() < 0.5:
                y, paint = u(0.8, 2), pick("brick" if 0 else "plaster leaf wood")
                far = kerb + side * path
                place.box((min(far, far + side * 0.3), 0, z), (max(far, far + side * 0.3), y, z + length), paint)
            if style == "park":
                for _ in range(place.rng.integers(0, 5)):
                    place.tree(kerb + side * (path + u(1, 15)), z + u(0, length), u(1, 8))
            z += length + (u(0, 1) if style == "town" else u(0, 8))
        for z in np.arange(-10, 80, u(4, 14)):
            along(place, kerb, side, path, z + u(-1, 1), style)
    for z in np.arange(u(5, 12), 75, u(8, 30)):  # on the road
        car = place.choose("seat peugeot renault suv chevrolet van smart truck bus ford car", lambda m: m.category == "Vehicles" and m.size[2] > 2)
        if car and u() < 0.7:
            side = place.rng.choice([-1, 1])
            place.put(car, (side * road * 0.45, 0.02, z), np.pi * (side < 0) + u(-0.05, 0.05))
    return [np.array([-road - path + 0.3, -6, road + path - 0.3, 12])]


def along(place: Place, kerb: float, side: int, path: float, z: float, style: str) -> None:
    """What stands at a kerb: a parked car, a tree, a pole, a bin, a bench, a hedge."""
    u, what = place.u, place.pick("car car car tree tree pole pole bin bike hedge bank none")
    x = kerb + side * 0.5
    if what == "tree" and (u() < 0.7 or style == "park"):
        if place.room_for(x + side * path * 0.3, z, 0.8, 0.8, 0):
            place.tree(x + side * u(0, 1) * path, z, u(2, 9))
    elif what == "pole":
        place.tube((x, 0, z), u(0.04, 0.12), u(2.5, 8), "lacquer")
    elif what == "bin":
        place.tube((x, 0.1, z), u(0.2, 0.35), u(0.7, 1.1), "lacquer")
    elif what == "car":
        model = place.choose("seat peugeot renault suv chevrolet van smart ford car", lambda m: m.category == "Vehicles" and m.size[2] > 2)
        if model and place.room_for(kerb - side * 1.1, z, 2, 4.5, 0):
            place.put(model, (kerb - side * 1.1, 0.02, z), np.pi * (place.rng.random() < 0.5))
    elif what != "none":
        words = {"tree": "tree acacia pine cypress poplar beech maple ficus palm peach", "bike": "bicycle scooter motorbike yamaha bike",
                 "hedge": "hedge bush", "bank": "bank bench chair table"}[what]
        model = place.choose(words, lambda m: m.category in ("Exterior", "Vehicles"))
        stretch = u(0.7, 1.6) if what == "tree" else 1.0
        if model and place.room_for(x + side * path * 0.3, z, 0.8, 0.8, 0):
            place.put(model, (x + side * u(0, 0.5) * path, 0.1, z), u(-3, 3), stretch)


def facade(place: Place, x: float, side: int, z: float, length: float) -> None:
    """A house front at x that goes away to the side, with rows of windows and a door."""
    u, storey, floors = place.u, place.u(2.8, 3.8), place.rng.integers(1, 6)
    wallpaint = place.add_paint(place.pick("plaster plaster wallpaper facade"))
    glass, frame, height = place.add_paint("glass"), place.add_paint("lacquer"), storey * floors
    place.box((min(x, x + side * 9), 0, z), (max(x, x + side * 9), height, z + length), wallpaint)
    place.box((min(x - side * 0.3, x + side * 9.3), height, z - 0.2),
              (max(x - side * 0.3, x + side * 9.3), height + u(0.2, 1), z + length + 0.2), "shingle")
    width, step, sill = u(0.8, 1.8), u(1.8, 3.2), u(0.8, 1.1)
    front = x - side * 0.04
    for f in range(floors):
        for s in np.arange(0.6, length - width, step):
            y = f * storey + (sill if f or u() < 0.8 else 0)
            for pad, paint, deep in ((0.08, frame, 0.03), (0, glass, 0.045)):
                place.box((min(x, front - side * deep), y - pad, z + s - pad),
                          (max(x, front - side * deep), f * storey + storey - 0.6 + pad, z + s + width + pad), paint)
            if f and u() < 0.1:
                place.box((min(x, x - side * 1), y - sill, z + s - 0.3), (max(x, x - side * 1), y, z + s + width + 0.3), wallpaint)


# ------------------------------------------------------------------------------------ rays and light


def embree() -> tuple[type, type]:
    """Its classes of a scene and of a mesh. Raises UserError."""
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise UserError(f"--data rooms:N needs embreex: pip install embreex ({error})") from None
    return EmbreeScene, TriangleMesh


class Tracer:
    """A place's triangles in embree."""

    def __init__(self, place: Place) -> None:
        EmbreeScene, TriangleMesh = embree()
        first = np.cumsum([0, *(len(v) for v, _, _ in place.parts)])
        vertices = np.concatenate([v for v, _, _ in place.parts])
        faces = np.concatenate([f + n for (_, f, _), n in zip(place.parts, first)]).astype(np.int32)
        self.paint = np.concatenate([p for *_, p in place.parts])
        self.paints = np.array(place.paints, np.float32)
        a, b, c = (vertices[faces[:, k]] for k in range(3))
        normal = np.cross(b - a, c - a)
        self.normal = normal / np.maximum(length(normal), 1e-12)
        self.scene = EmbreeScene()
        TriangleMesh(self.scene, vertices, faces)
        self.lamps, self.sky = place.lamps, place.sky

    def cast(self, eyes: np.ndarray, rays: np.ndarray) -> Hit:
        """eyes, rays (n, 3) float32; t in lengths of rays, inf where nothing is."""
        out = self.scene.run(eyes, rays, query="INTERSECT", output=True)
        return Hit(np.where(out["primID"] < 0, np.inf, out["tfar"]), out["primID"])

    def free(self, eyes: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Whether nothing is between eyes and eyes + rays, (n,)."""
        far = np.full(len(eyes), 0.999, np.float32)
        return self.scene.run(eyes, rays, dists=far, query="OCCLUDED") < 0

    def albedo(self, hit: Hit, p: np.ndarray, texels: np.ndarray | float) -> tuple[np.ndarray, ...]:
        """Linear colour (n, 3), gloss and glow (n,) at points p of faces; texels: a pixel's size."""
        row, n = self.paints[self.paint[hit.face]], np.abs(self.normal[hit.face])
        side = n[:, 0] > np.maximum(n[:, 1], n[:, 2])
        flat = (n[:, 1] >= n[:, 0]) & (n[:, 1] >= n[:, 2])
        u = np.where(side, p[:, 2], p[:, 0]) * row[:, 0]
        v = np.where(flat, p[:, 2], p[:, 1]) * row[:, 0]
        y = ((v % 1) * TILE).astype(np.intp) + row[:, 1].astype(np.intp) * (TILE + 1)
        mix = atlas()[y, ((u % 1) * TILE).astype(np.intp) % TILE]
        mix = 0.5 + (mix - 0.5) / np.maximum(texels * row[:, 0] * TILE, 1)
        colour = row[:, 2:5] + mix[:, None] * (row[:, 5:8] - row[:, 2:5])
        return colour, row[:, 8], row[:, 9]

    def light(self, rng: np.random.Generator, p: np.ndarray, n: np.ndarray, shadows: bool) -> np.ndarray:
        """Of all lamps at points p with normals n, (k, 3); shadows: a ray to a point of each."""
        total = np.zeros_like(p)
        order = sorted(self.lamps, key=lambda lamp: -lamp.colour.sum())
        for lamp in order[:4]:
            if lamp.sun:
                to, fall = np.float32(200 * lamp.at) + np.zeros_like(p), 1.0
                facing = n @ np.float32(lamp.at)
            else:
                s = rng.random((len(p), 2), np.float32)
                to = np.float32(lamp.at) + s @ np.float32(lamp.edges) - p
                square = dot(to, to)[:, 0]
                facing = dot(n, to)[:, 0] / np.sqrt(square + 1e-9)
                fall = 1 / (square + 0.05)
            lit = np.maximum(facing, 0) * fall
            if shadows:
                some = np.flatnonzero(lit > 1e-3)
                lit[some] *= self.free(p[some], to[some])
            total += lit[:, None] * np.float32(lamp.colour)
        return total

    def beyond(self, rays: np.ndarray) -> np.ndarray:
        """What is seen where nothing is: the sky, or daylight outside a window."""
        sky = np.float32([5, 5.5, 6] if self.sky is None else self.sky)
        up = rays[:, 1] / length(rays)[:, 0]
        return sky * (1.1 - 0.5 * np.clip(up, 0, 1))[:, None]

    def gathered(self, rng: np.random.Generator, p: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Light at p: of the lamps, and by one ray what is reflected there, (k, 3)."""
        direct = self.light(rng, p, n, True)
        around = rng.standard_normal(p.shape, np.float32)
        around /= length(around)
        rays = n + 0.999 * around  # by the cosine
        hit = self.cast(p, rays)
        out = hit.face < 0
        there = p + np.where(out, 0, hit.t)[:, None] * rays
        colour, _, glow = self.albedo(hit, there, 0.1)
        normal = self.normal[hit.face]
        normal = normal * -np.sign(dot(normal, rays))
        second = colour * (0.7 * self.light(rng, there, normal, False) + 0.15 + glow[:, None])
        return direct + np.where(out[:, None], self.beyond(rays), second.clip(0, 8))


def smooth(light: np.ndarray, z: np.ndarray, n: np.ndarray) -> np.ndarray:
    """(h, w, 3): each pixel's mean over those around it that lie in its plane."""
    for step in (1, 2, 4):
        total, weight = light.copy(), np.ones(z.shape, np.float32)
        for dy, dx in ((0, step), (step, 0), (0, -step), (-step, 0), (step, step), (-step, -step),
                       (step, -step), (-step, step)):  # fmt: skip
            there = np.roll(z, (dy, dx), (0, 1))
            like = np.abs(there - z) < 0.04 * step * z
            like &= np.einsum("ijk,ijk->ij", np.roll(n, (dy, dx), (0, 1)), n) > 0.9
            total += like[..., None] * np.roll(light, (dy, dx), (0, 1))
            weight += like
        light = total / weight[..., None]
    return light


# ------------------------------------------------------------------------------------------ pictures


def aim(place: Place, areas: list, rng: np.random.Generator, size) -> tuple[np.ndarray, np.ndarray, float]:
    """A camera as people hold one: eye (3,), axes (3, 3) as in scenes.Camera, focal length / W."""
    u, focal = rng.uniform, math.exp(rng.uniform(math.log(0.55), math.log(1.1)))
    if place.sky is not None:
        x0, z0, x1, z1 = areas[0]
        height = u(1.1, 2.2) if u() < 0.8 else u(0.5, 1.1)
        yaw, pitch = rng.normal(0, 0.35) + np.pi * (u() < 0.2), rng.normal(0.06, 0.1)
        eye = np.array([u(x0, x1), height, u(z0, z1)])
    elif place.targets and u() < 0.3:  # close to something
        target = place.targets[rng.integers(len(place.targets))]
        yaw, pitch, away = u(-np.pi, np.pi), u(0.05, 1.2), u(0.3, 1.3)
        eye = target - rotation(0, yaw, 0) @ rotation(pitch, 0, 0) @ [0, 0, away]
        yaw, pitch = yaw + u(-0.2, 0.2), pitch + u(-0.15, 0.15)
    else:
        x0, z0, x1, z1 = areas[rng.integers(len(areas))]
        eye = np.array([u(x0 + 0.2, x1 - 0.2), u(0.4, 1.9), u(z0 + 0.2, z1 - 0.2)])
        yaw = math.atan2((x0 + x1) / 2 - eye[0], (z0 + z1) / 2 - eye[2]) + rng.normal(0, 0.9)
        pitch = np.clip(rng.normal(0.22, 0.25), -0.35, 1.05)
    roll = rng.normal(0, 0.04)
    axes = rotation(0, yaw, 0) @ rotation(pitch, 0, 0) @ np.diag([1, -1, 1]) @ rotation(0, 0, roll)
    return eye, axes, focal


def rays_of(axes: np.ndarray, focal: float, size, step: int = 1) -> tuple[np.ndarray, dict]:
    """(h, w, 3) float32 of every step-th pixel, whose parameter is the depth; and the intrinsics."""
    H, W = size
    fx, cx, cy = focal * W, (W - 1) / 2, (H - 1) / 2
    X = (np.arange(0, W, step) + (step - 1) / 2 - cx) / fx
    Y = (np.arange(0, H, step) + (step - 1) / 2 - cy) / fx
    rays = np.stack(np.broadcast_arrays(X[None], Y[:, None], 1.0), -1) @ axes.T
    K = {"fx": fx, "fy": fx, "cx": cx, "cy": cy, "width": W, "height": H}
    return np.ascontiguousarray(rays, np.float32), K


def cast_picture(tracer: Tracer, eye: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, ...]:
    """-> hit, points (n, 3) a little before the surface, normals towards the eye."""
    flat = rays.reshape(-1, 3)
    eyes = np.broadcast_to(np.float32(eye), flat.shape).copy()
    hit = tracer.cast(eyes, flat)
    normal = tracer.normal[hit.face].astype(np.float32)
    normal *= -np.sign(dot(normal, flat))
    p = eyes + np.where(hit.face < 0, 0, hit.t).astype(np.float32)[:, None] * flat
    return hit, p + 1e-3 * normal, normal


def view(place: Place, tracer: Tracer, areas: list, rng: np.random.Generator, size) -> Scene:
    """A picture from somewhere in a place."""
    for _ in range(20):  # not from within a cupboard, nor of a bare wall before the nose
        eye, axes, focal = aim(place, areas, rng, size)
        rays, _ = rays_of(axes, focal, size, 8)
        hit, _, _ = cast_picture(tracer, eye, rays)
        z = np.where(np.isfinite(hit.t), hit.t, SIGHT)
        if np.percentile(z, 2) > 0.25 and np.percentile(z, 95) > 0.6 and np.ptp(z) > 0.1:
            break
    H, W = size
    rays, K = rays_of(axes, focal, size)
    hit, p, normal = cast_picture(tracer, eye, rays)
    colour, gloss, glow = tracer.albedo(hit, p, np.where(hit.face < 0, 1, hit.t) / K["fx"])
    half, _ = rays_of(axes, focal, size, 2)
    half_hit, half_p, half_n = cast_picture(tracer, eye, half)
    h, w = half.shape[:2]
    light = tracer.gathered(rng, half_p, half_n).reshape(h, w, 3)
    z = np.where(half_hit.face < 0, 1e3, half_hit.t).astype(np.float32).reshape(h, w)
    light = cv2.resize(smooth(light, z, half_n.reshape(h, w, 3)), (W, H)).reshape(-1, 3)
    linear = colour * (light + (0.02 + 4 * glow[:, None]))
    flat = rays.reshape(-1, 3)
    linear = np.where(hit.face[:, None] < 0, tracer.beyond(flat), linear)
    slope = np.abs(dot(normal, flat)[:, 0]) / length(flat)[:, 0]
    y, x = np.mgrid[:H, :W]
    fade = 1 - rng.uniform(0, 0.35) * (((x / W - 0.5) ** 2 + (y / H - 0.5) ** 2) * 2)  # vignetting
    linear = np.ascontiguousarray((linear.reshape(H, W, 3) * fade[..., None]).transpose(2, 0, 1))
    rgb = expose(rng, linear.astype(np.float32).clip(0, 60))
    z = np.where(hit.face < 0, 1e5, hit.t).astype(np.float32).reshape(H, W)
    bright = rgb[..., 1] / np.float32(255)
    kind = ("stereo_out", "scanner") if place.sky is not None else ("light", "stereo", "phone")
    near, far, baseline = SENSORS[kind := kind[rng.integers(len(kind))]]
    depth = sense(rng, K["fx"], z, slope.reshape(H, W), bright, gloss.reshape(H, W), near,
                  rng.uniform(0.7, 1) * far, baseline)  # fmt: skip
    if kind == "scanner" and rng.random() < 0.5:  # lines of a rotating LiDAR
        depth[np.arange(H) % 4 > 0] = 0
    return Scene(rgb, depth, K)


@functools.lru_cache(1)
def place_of(stream: int, number: int, furniture: Path | None) -> tuple[Place, Tracer, list]:
    rng = np.random.default_rng([stream, number, 2])
    place = Place(rng, _furniture(furniture))
    areas = (outdoor if rng.random() < STREETS else indoor)(place)
    return place, Tracer(place), areas


def render(stream: int, index: int, size=(480, 640), furniture: Path | None = None) -> Scene:
    """Picture `index` of `stream` (both >= 0); the same bits in every run, process and order."""
    place, tracer, areas = place_of(stream, index // VIEWS, furniture)
    return view(place, tracer, areas, np.random.default_rng([stream, index, 3]), size)


def ensure(count: int, size: tuple[int, int], furniture: Path | None) -> Path:
    """The folder of `count` pictures of (H, W) and their validation; made if missing. Raises
    UserError: no furniture, no embreex, no room on the disk."""
    made = rendered_name(count, size, furniture)
    if not (scenes.cache_root() / made).is_dir():
        _furniture(furniture)  # once, before the workers ask for it, and with its own errors
        embree()
    draw = functools.partial(render, size=size, furniture=furniture)
    return scenes.rendered(made, count, draw, 4 * VIEWS)


def rendered_name(count: int, size: tuple[int, int], furniture: Path | None) -> str:
    own = f"-{furniture.resolve().name}" if furniture else ""
    return f"rooms-{VERSION}-{count}-{size[0]}x{size[1]}{own}"
