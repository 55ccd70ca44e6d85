"""Furniture of true size for rooms and streets: Sweet Home 3D's .sh3f archives, read once.

An archive is a zip: PluginFurnitureCatalog.properties (key#N=value; cm), OBJ and MTL files and
licences. Its pictures give mean colours only: a surface looks like one of scenes.TEXTURES.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plumbing.files import UserError, cache_root, locked, notice, progress, write_json
from plumbing.pictures import cv2
from plumbing.scenes import TEXTURES

VERSION = "v2"  # part of the cache's name; raise it when what is made of an archive changes
FOLDER = Path("/usr/share/sweethome3d/furniture")
MOST = 30_000  # triangles of a model
SKIPPED = ("Characters", "Staircases")
CLEAR = 0.35  # opacity of what is left out as glass
BROKEN = (LookupError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile,
          cv2.error)  # fmt: skip
LICENCES = {  # what may be used, and its page at creativecommons.org; the narrower first
    "Creative Commons Zero": "publicdomain/zero/1.0",
    "Creative Commons Attribution 3.0 United States": "licenses/by/3.0/us",
    "Creative Commons Attribution 3.0": "licenses/by/3.0",
}
# Texture, tiles per metre, contrast, least gloss, glow; then what tells it in the name of a
# material or its picture or in the model's category: the first row that fits is taken.
LOOKS = [row.split(None, 5) for row in r"""plain 1 .02 0 1 bulb
plain  1   .03 1   0 mirror|espejo
wood   1   .2  .1  0 wood|madera|fusta|oak|pine\b|trunk|bark|rattan|bamboo
leaves 2   .3  0   0 leaf|leav|plant|grass|petal|flower
grain  2   .12 0   0 fabric|cloth|textil|tela|cuir|leather|cushion|pillow|matt?ress|towel|carpet
plain  1   .05 .7  0 metal|chrom|inox|steel|brass|gold|silver|\balu|iron\b|hierro
cloud  1   .2  .1  0 marbl|marmol|stone|granit|rock|tile
grain  2   .1  0   0 concrete|tire|rubber|card|paper|living room$|bedroom$
cloud  .7  .12 0   0 exterior$
plain  1   .06 0   0 $""".splitlines()]


class Model(NamedTuple):
    """size [width, height, depth], elevation of its foot above the floor and top, how high above
    its foot things stand on it (< 0: nowhere), in metres; faces: its [from, to] in Library."""

    archive: str
    name: str
    category: str
    creator: str
    licence: str
    size: list[float]
    elevation: float
    top: float
    faces: list[int]


class Library(NamedTuple):
    """triangles (F, 3, 3) float32 metres, x right, y up from the foot, z to the front, a model's
    middle at x = z = 0; material (F,) uint16, rows of paints (M, 10) float32: World.paint's."""

    models: list[Model]
    triangles: np.ndarray
    material: np.ndarray
    paints: np.ndarray


def library(folder: Path | None = None) -> Library:
    """The models of the folder's archives, memory maps of a cache that the first call makes.
    Raises UserError: there are none, an archive is broken, the cache cannot be written."""
    archives = sorted((folder or FOLDER).glob("*.sh3f"))
    if not archives:
        raise UserError(
            f"no furniture (*.sh3f) in {folder or FOLDER}: apt install sweethome3d-furniture, or "
            "--furniture DIR with the 3D model libraries of sweethome3d.com/download.jsp"
        )
    state = zlib.crc32(repr([(path.name, path.stat().st_size) for path in archives]).encode())
    made = cache_root() / f"furniture-{VERSION}-{state:08x}"
    index = made / "index.json"
    try:
        if not index.exists():
            made.mkdir(parents=True, exist_ok=True)
            busy = "another process reads the furniture: waiting"
            with locked(made, "index", lambda: notice(busy)):
                if not index.exists():
                    write_library(made, archives)
    except OSError as error:
        raise UserError(
            f"{made}: cannot be written ({error}); set LITEDEPTH_CACHE to a writable folder with "
            "room (160 MB)"
        ) from error
    models = [Model(*row) for row in json.loads(index.read_text())["models"]]
    return Library(models, *(np.load(made / f"{key}.npy", "r") for key in Library._fields[1:]))


def write_library(folder: Path, archives: list[Path]) -> None:
    """The arrays; index.json is last, so a folder that has one is whole."""
    models, parts, faces, looks = [], [], 0, 0
    for path in archives:
        try:
            archive = zipfile.ZipFile(path)
            rows = catalogue(archive)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        except BROKEN as error:
            raise UserError(f"{path}: a broken archive ({error}); get it again") from error
        for row in progress(rows, len(rows), path.name):
            try:
                about, triangles, material, paints = mesh(archive, row)
            except BROKEN as error:
                notice(f"{path.name}: {row['name']} is broken ({error}) and left out")
                continue
            if len(triangles) <= MOST:
                models.append([path.name, *about, [faces, faces + len(triangles)]])
                parts.append((triangles, material + looks, paints))
                faces, looks = faces + len(triangles), looks + len(paints)
    if not models:
        raise UserError(f"{archives[0].parent}: no model of its .sh3f archives can be used")
    for name, kind, arrays in zip(Library._fields[1:], ("f4", "u2", "f4"), zip(*parts)):
        np.save(folder / f"{name}.npy", np.concatenate(arrays).astype(kind))
    write_json(folder / "index.json", {"models": models})


def catalogue(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    """{key: value} of each model that may be used and is no person, door or stair. The licence
    file beside a model says more than the archive's, and that more than the catalogue."""
    text = archive.read("PluginFurnitureCatalog.properties").decode("raw_unicode_escape")
    rows, files = {}, {"": text}  # {folder: its licence}
    for key, number, value in re.findall(r"(?m)^(\w+)#(\d+)=(.*)", text):
        rows.setdefault(number, {})[key] = value.strip()
    for name in archive.namelist():
        if re.search(r"license[^/]*\.(txt|html)$", name, re.I):
            files[name.rpartition("/")[0]] = archive.read(name).decode("utf-8", "replace")
    holder = re.search(r"(?m)^license=.*©[ \d-]*(.*)", text)
    for row in rows.values():
        row["model"] = row["model"].strip("/")
        text = files.get(row["model"].rpartition("/")[0], files[""])
        author = re.search(r'(?:" by|released by\s<[^>]*>) ?([^\n<]+)', text) or holder
        row["creator"] = author[1].strip() if author else row.get("creator", "")
        granted = [name for name in LICENCES if name in " ".join(text.split())]
        bound = re.search(r"share.?alike|non.?commercial|no.?deriv", text, re.I)
        row["licence"] = granted[0] if granted and not bound else ""
    return [row for row in rows.values() if row["licence"] and row["category"] not in SKIPPED
            and row.get("doorOrWindow") != "true"]  # fmt: skip


def credits(models: Iterable[Model]) -> str:
    """A markdown table: an author's titles under one licence in a row."""
    rows = defaultdict(set)
    for m in models:
        rows[m.creator, m.licence, m.archive].add(m.name)
    table = "| author | licence | archive | titles |\n|---|---|---|---|\n"
    for (author, licence, archive), titles in sorted(rows.items()):
        link = f"[{licence}](https://creativecommons.org/{LICENCES[licence]}/)"
        table += f"| {author} | {link} | {archive} | {', '.join(sorted(titles))} |\n"
    return table


def mesh(archive: zipfile.ZipFile, row: dict[str, str]) -> list:
    """Model's fields from name to top; triangles, material, counted from 0, and paints. Raises
    one of BROKEN."""
    cm = {"elevation": 0, "dropOnTopElevation": row["height"]} | row
    keys = ("width", "height", "depth", "elevation", "dropOnTopElevation")
    *size, up, top = (float(cm[key]) / 100 for key in keys)
    points, faces, material, names, mtl = parse(archive.read(row["model"]).decode("latin-1"))
    turn = np.array(cm.get("modelRotation", "1 0 0 0 1 0 0 0 1").split(), float).reshape(3, 3)
    triangles = (points @ turn.T)[faces]
    low, high = triangles.min((0, 1)), triangles.max((0, 1))
    triangles = (triangles - (low + high) / 2) * size / np.where(high > low, high - low, 1)
    triangles[..., 1] += size[1] / 2
    looks = materials(archive, row["model"].rpartition("/")[0], mtl, row["category"])
    paints = np.array([looks.get(name, looks[""]) for name in names])
    a, b, c = triangles.swapaxes(0, 1)
    keep = np.cross(b - a, c - a).any(1)  # what has no area has no normal
    solid = keep & (paints[material, 10] > CLEAR)
    keep = solid if solid.any() else keep
    about = [*(row[key] for key in ("name", "category", "creator", "licence")), size, up, top]
    return [about, np.float32(triangles[keep]), material[keep], paints[:, :10]]


def parse(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str], str]:
    """Of an OBJ file: points (V, 3), triangles (F, 3), the material (F,) of each, the materials'
    names and that of the MTL file."""
    points, faces, material, names, number, mtl = [], [], [], {"": 0}, 0, ""
    for line in text.split("\n"):
        kind, *words = line.split() or [""]
        if kind == "v":
            points.append(words[:3])
        elif kind == "f":  # a polygon's triangles, all from its first corner; -1: the last point
            corners = (int(word.split("/")[0]) for word in words)
            first, *others = (k - 1 if k > 0 else len(points) + k for k in corners)
            faces += [(first, *pair) for pair in zip(others, others[1:])]
            material += [number] * (len(others) - 1)
        elif kind == "usemtl":
            number = names.setdefault(" ".join(words), len(names))
        elif kind == "mtllib":
            mtl = " ".join(words)
    return np.array(points, float), np.array(faces), np.array(material), [*names], mtl


def materials(archive, folder: str, mtl: str, category: str) -> dict[str, list]:
    """{name: World.paint's ten numbers and the opacity} of an MTL file; "" is for what it lacks."""

    def read(name: str) -> bytes:  # some name a file on their author's disk
        path = f"{folder}/{name}"
        return archive.read(path) if path in archive.NameToInfo else b""

    found, blocks = {}, re.split(r"(?m)^[ \t]*newmtl", read(mtl).decode("latin-1"))
    for block in ["\n", *blocks[1:]]:
        name, *lines = map(str.strip, block.splitlines())
        given = {"Kd": ".6 .6 .6", "Ks": "0 0 0", "Ns": 0, "d": 1, "map_Kd": ""}
        given |= dict(line.split(None, 1) for line in lines if len(line.split()) > 1)
        colour, shine = (np.array(given[key].split()[:3], float) for key in ("Kd", "Ks"))
        picture = np.frombuffer(read(given["map_Kd"]) or b"none", np.uint8)
        image = cv2.imdecode(picture, cv2.IMREAD_COLOR)
        if image is not None:
            colour = image.mean((0, 1))[::-1] / 255
        words = f"{name} {given['map_Kd']} {category}".lower()
        texture, *numbers, _ = next(look for look in LOOKS if re.search(look[5], words))
        tiles, contrast, gloss, glow = map(float, numbers)
        gloss = max(gloss, min(shine.mean(), 1) * min(float(given["Ns"]) / 200, 1))
        dark, light = (np.clip(colour * (1 + s * contrast), 0.02, 1) ** 2 for s in (-1, 1))
        layer = [*TEXTURES].index(texture)
        found[name] = [tiles, layer, *dark, *light, gloss, glow, float(given["d"])]
    return found
