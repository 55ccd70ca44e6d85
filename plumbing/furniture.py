"""Furniture of true size for rooms and streets: Sweet Home 3D's .sh3f archives, read once.

An archive is a zip: PluginFurnitureCatalog.properties (key#N=value; cm), OBJ and MTL files and
licences. Its pictures give mean colours only: a surface looks like one of scenes.TEXTURES.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from plumbing.files import UserError, cache_root, locked, notice, progress, write_json
from plumbing.scenes import TEXTURES

VERSION = "v1"  # part of the cache's name; raise it when what is made of an archive changes
FOLDER = Path("/usr/share/sweethome3d/furniture")
MOST = 30_000  # triangles of a model
CLEAR = 0.35  # opacity of what is left out as glass
SKIPPED = r"Characters|Staircases|\b(Human|People|Man|Woman)\b"  # in a model's category and tags
BROKEN = (LookupError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile)
# What may be used: its page at creativecommons.org, and how it is told.
LICENCES = {
    "CC0 1.0": ("publicdomain/zero/1.0", "Creative Commons Zero|Public domain"),
    "CC BY 3.0 US": ("licenses/by/3.0/us", "Creative Commons Attribution 3.0 United States"),
    "CC BY 3.0": ("licenses/by/3.0", "Creative Commons Attribution 3.0"),
}
# Texture, tiles per metre, contrast, least gloss, glow; then what tells it in the name of a
# material or its picture or in the model's category: the first row that fits is taken.
LOOKS = r"""plain 1 .02 0 1 bulb|ampoule
plain  1   .03 1   0 mirror|espejo
books  1   .3  0   0 books|libros
wood   1   .2  .1  0 wood|madera|fusta|bois|oak|pine\b|pino|walnut|trunk|bark|rattan|bamboo
leaves 2   .3  0   0 leaf|leav|hoja|plant|grass|petal|flower
grain  2   .12 0   0 fabric|cloth|textil|tela|cuir|leather|cushion|pillow|matt?ress|towel|carpet
plain  1   .05 .7  0 metal|chrom|inox|steel|brass|gold|silver|acero|\balu|iron\b|hierro
brick  1   .25 0   0 brick|ladrillo
cloud  1   .2  .1  0 marbl|marmol|stone|granit|rock|tile
grain  2   .1  0   0 concrete|soil|tire|tyre|rubber|card|paper|living room$|bedroom$
cloud  .7  .12 0   0 exterior$
plain  1   .06 0   0 $""".splitlines()


class Model(NamedTuple):
    """size (width, height, depth), elevation of its foot above the floor and top, how high above
    its foot things stand on it (-1: nowhere), in metres; its (from, to) in Library's arrays."""

    name: str
    category: str
    tags: str
    size: tuple[float, float, float]
    elevation: float
    top: float
    creator: str
    licence: str
    archive: str
    vertices: tuple[int, int]
    faces: tuple[int, int]


class Library(NamedTuple):
    """vertices (V, 3) float32 metres, x right, y up from the foot, z to the front, the middle at
    x = z = 0; faces (F, 3) int32, counted from the model's first vertex; material (F,) uint16,
    rows of paints (M, 10) float32, which are World.paint's."""

    models: list[Model]
    vertices: np.ndarray
    faces: np.ndarray
    material: np.ndarray
    paints: np.ndarray


def library(folder: Path | None = None) -> Library:
    """The models of the folder's archives, memory maps of a cache that the first call makes.
    UserError: there are none, or an archive is broken; OSError: the cache cannot be written."""
    archives = sorted((folder or FOLDER).glob("*.sh3f"))
    if not archives:
        raise UserError(
            f"no furniture (*.sh3f) in {folder or FOLDER}: apt install sweethome3d-furniture, or "
            "--furniture DIR with the 3D model libraries of sweethome3d.com/download.jsp"
        )
    state = repr([VERSION, *((path.name, path.stat().st_size) for path in archives)])
    root, name = cache_root(), f"furniture-{hashlib.sha256(state.encode()).hexdigest()[:16]}"
    root.mkdir(parents=True, exist_ok=True)
    with locked(root, name, lambda: notice("another process reads the furniture: waiting")):
        if not (root / name).is_dir():
            with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=root) as aside:
                write_library(Path(aside, "set"), archives)
                Path(aside, "set").rename(root / name)
    rows = json.loads((root / name / "index.json").read_text())["models"]
    models = [Model(*(tuple(v) if isinstance(v, list) else v for v in row)) for row in rows]
    return Library(models, *(np.load(root / name / f"{k}.npy", "r") for k in Library._fields[1:]))


def write_library(folder: Path, archives: list[Path]) -> None:
    """The arrays and index.json, in a new folder."""
    models, parts, broken, ends = [], [], [], np.zeros(4, int)
    for path in archives:
        try:
            archive = zipfile.ZipFile(path)
            rows = catalogue(archive)
        except BROKEN as error:
            raise UserError(f"{path}: a broken archive ({error}); get it again") from error
        for row in progress(rows, len(rows), path.name):
            try:
                extent, *arrays = mesh(archive, row)
            except BROKEN:
                broken.append(f"{row['name']} of {path.name}")
                continue
            if len(arrays[1]) <= MOST:
                arrays[2] += ends[3]
                starts, ends = ends, ends + [len(array) for array in arrays]
                words = [row[key] for key in ("name", "category", "tags")]
                source = [row["creator"], row["licence"], path.name]
                models.append([*words, *extent, *source, *np.stack([starts, ends], 1)[:2].tolist()])
                parts.append(arrays)
    if broken:
        notice(f"{len(broken)} broken furniture model(s) left out, such as {broken[0]}")
    if not models:
        raise UserError(f"{archives[0].parent}: no model of its .sh3f archives can be used")
    folder.mkdir()
    for name, kind, arrays in zip(Library._fields[1:], ("f4", "i4", "u2", "f4"), zip(*parts)):
        np.save(folder / f"{name}.npy", np.concatenate(arrays).astype(kind))
    write_json(folder / "index.json", {"models": models})


def catalogue(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    """{key: value} of each model that may be used and is no person, door or stair. The licence
    file beside a model says more than the archive's, and that more than the catalogue."""
    text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), text)
    rows, grant = {}, "".join(re.findall(r"(?m)^license=(.*)", text))
    absent = dict.fromkeys(("name", "category", "tags", "model", "creator", "doorOrWindow"), "")
    for key, number, value in re.findall(r"(?m)^(\w+)#(\d+)[ \t]*=[ \t]*(.*?)\s*$", text):
        rows.setdefault(number, dict(absent))[key] = value
    files = {}  # {folder: its licence}; the archive's own lies in folder ""
    for name in archive.namelist():
        if re.search(r"licen[sc]e[^/]*\.(txt|html?)$", name, re.I):
            files[name.rpartition("/")[0]] = archive.read(name).decode("utf-8", "replace")
    for row in rows.values():
        row["model"] = row["model"].strip("/")
        holder = re.search(r"©[ \d-]*(.*)", grant)
        creator = holder[1] if holder else row["creator"]
        text = files.get(row["model"].rpartition("/")[0]) or files.get("", grant)
        row["licence"], row["creator"] = terms(text, creator)
        if row["doorOrWindow"] == "true" or re.search(SKIPPED, row["category"] + "," + row["tags"]):
            row["licence"] = ""
    return [row for row in rows.values() if row["licence"]]


def terms(text: str, creator: str) -> tuple[str, str]:
    """Which of the LICENCES a text grants, "" for none; whom it names, else the creator, and the
    page the model comes from."""
    page = re.findall(r"https?://www\.blendswap\.com/blends/view/\d+", text)[:1]
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text)))
    bound = re.search(r"share.?alike|non.?commercial|no.?deriv|\bby-(sa|nc|nd)\b", text, re.I)
    names = [k for k, (_, words) in LICENCES.items() if not bound and re.search(words, text, re.I)]
    by = r'(?:downloading ".*?" by|released by) (.{1,60}?) (?:released|and modified|modified|under)'
    author = re.search(by, text, re.I)
    return "".join(names[:1]), ", ".join([author[1] if author else creator, *page])


def credits(library: Library, models: Iterable[int]) -> str:
    """A markdown table of some of the models, which are numbers in library.models."""
    lines = ["| title | author | licence | archive |", "|---|---|---|---|"]
    for model in (library.models[k] for k in sorted(set(models))):
        licence = f"[{model.licence}](https://creativecommons.org/{LICENCES[model.licence][0]}/)"
        lines.append(f"| {model.name} | {model.creator} | {licence} | {model.archive} |")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def mesh(archive: zipfile.ZipFile, row: dict[str, str]) -> list:
    """[size, elevation, top], vertices, faces, material and paints of a model, its materials
    counted from 0. Raises one of BROKEN."""
    cm = {"elevation": 0, "dropOnTopElevation": row["height"]} | row
    keys = ("width", "height", "depth", "elevation", "dropOnTopElevation")
    *size, up, top = (float(cm[key]) / 100 for key in keys)
    points, faces, material, names, libraries = parse(archive.read(row["model"]))
    turn = np.array(cm.get("modelRotation", "1 0 0 0 1 0 0 0 1").split(), float).reshape(3, 3)
    points = points @ turn.T
    low, high = points[faces].min((0, 1)), points[faces].max((0, 1))
    points = (points - (low + high) / 2) * size / np.where(high > low, high - low, 1)
    points[:, 1] += size[1] / 2
    looks = materials(archive, row["model"].rpartition("/")[0], libraries, row["category"])
    paints = np.array([looks.get(name, looks[""]) for name in names])
    a, b, c = points[faces].swapaxes(0, 1)
    keep = np.cross(b - a, c - a).any(1)  # what has no area has no normal
    solid = keep & (paints[material, 10] > CLEAR)
    keep = solid if solid.any() else keep
    used, faces = np.unique(faces[keep], return_inverse=True)
    extent = [size, up, top if top >= 0 else -1]
    return [extent, points[used], faces.reshape(-1, 3), material[keep], paints[:, :10]]


def parse(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str], list[str]]:
    """Of an OBJ file: points (V, 3), triangles (F, 3), the material (F,) of each, the materials'
    names and those of the MTL files."""
    lines = re.findall(rb"(?m)^[ \t]*(v|f|usemtl|mtllib)[ \t]+(.+)", data)
    kinds = np.array([kind for kind, _ in lines])
    points = np.array([line.split()[:3] for kind, line in lines if kind == b"v"], float)
    polygons = [re.sub(rb"/\S*", b"", line).split() for kind, line in lines if kind == b"f"]
    sides = np.array([len(corners) for corners in polygons])
    index = np.array([*chain(*polygons)], int)
    before = np.repeat(np.cumsum(kinds == b"v")[kinds == b"f"], sides)  # -1 is the last of them
    index = np.where(index < 0, before + index, index - 1)
    if index.min() < 0:
        raise IndexError("a face without its vertex")
    fan = np.maximum(sides - 2, 0)  # a polygon's triangles, all from its first corner
    polygon = np.repeat(np.arange(len(fan)), fan)
    first = (np.cumsum(sides) - sides)[polygon]
    last = first + 2 + np.arange(len(polygon)) - (np.cumsum(fan) - fan)[polygon]
    faces = index[np.stack([first, last - 1, last], 1)]
    used, libraries = (
        [line.decode("latin-1").strip() for kind, line in lines if kind == wanted]
        for wanted in (b"usemtl", b"mtllib")
    )
    names = [*dict.fromkeys(["", *used])]
    number = np.array([names.index(name) for name in ["", *used]])
    turn = np.cumsum(kinds == b"usemtl")[kinds == b"f"][polygon]
    return points, faces, number[turn], names, libraries


def materials(archive, folder: str, libraries: list[str], category: str) -> dict[str, list]:
    """{name: World.paint's ten numbers and the opacity} of MTL files; "" is for what they lack."""

    def read(name: str) -> bytes:  # some name a file on their author's disk
        path = f"{folder}/{name}"
        return archive.read(path) if path in archive.NameToInfo else b""

    text, found = "\n".join(read(name).decode("latin-1") for name in libraries), {}
    for block in ["\n", *re.split(r"(?m)^[ \t]*newmtl[ \t]+", text)[1:]]:
        name, *lines = map(str.strip, block.splitlines())
        mtl = {"Kd": ".6 .6 .6", "Ks": "0 0 0", "Ns": 0, "d": 1, "map_Kd": ""}
        mtl |= dict(line.split(None, 1) for line in lines if len(line.split()) > 1)
        colour, shine = (np.array(mtl[key].split()[:3], float) for key in ("Kd", "Ks"))
        picture = np.frombuffer(read(mtl["map_Kd"]) or b"none", np.uint8)
        image = cv2.imdecode(picture, cv2.IMREAD_COLOR)
        if image is not None:
            colour = image.mean((0, 1))[::-1] / 255
        words = f"{name} {mtl['map_Kd']} {category}".lower()
        looks = (row.split(None, 5) for row in LOOKS)
        texture, *numbers, _ = next(look for look in looks if re.search(look[5], words))
        tiles, contrast, gloss, glow = map(float, numbers)
        gloss = max(gloss, min(shine.mean(), 1) * min(float(mtl["Ns"]) / 200, 1))
        dark, light = (np.clip(colour * (1 + s * contrast), 0.02, 1) ** 2 for s in (-1, 1))
        layer = [*TEXTURES].index(texture)
        found[name] = [tiles, layer, *dark, *light, gloss, glow, float(mtl["d"])]
    return found
