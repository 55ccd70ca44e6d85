"""RGB-D pairs on disk: lists, folders, intrinsics, a decoded pair, another model's depth maps."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plumbing import scenes
from plumbing.files import UserError, natural, notice
from plumbing.flags import flag, parse_intrinsics, parse_size, positive
from plumbing.pictures import (
    aspect_crop,
    cv2,
    is_cut,
    picture_header,
    resize_depth,
    resize_picture,
)

RGB_SUFFIXES = (".jpg", ".jpeg", ".png")
CHECKED_FILES = 20_000  # of a larger set a seeded sample of files is checked at the start
SAMPLED_FILES = 2_000
TEACHER_NAMES = ("{}.npy", "{}.png", "{}_depth.png", "{}_depth.npy")  # {}: the rgb file's stem


@dataclass(frozen=True)
class Source:
    """data (Sec. 4.1)"""

    data: str = flag(
        "synthetic:512", "folder with <split>.txt lists or <split>/{rgb,depth}/ folders, or N "
        "embedded scenes rendered once", metavar="ROOT|synthetic:N",
    )  # fmt: skip
    split: str = flag("train", "which split of the data to use")
    image_size: tuple[int, int] = flag(
        "480x640", "every pair is brought to this size when read: centre crop to the aspect, RGB "
        "area/bilinear, depth nearest, intrinsics follow", parse_size, metavar="HxW",
    )  # fmt: skip
    depth_scale: float = flag(
        1000.0, "units of the depth files per metre: 1000 = millimetres, 5000 = TUM, 256 = KITTI "
        "(default 1000)", positive,
    )  # fmt: skip
    max_depth: float = flag(
        40.0, "metres at which a prediction is cut before it is scored; the ground truth never is "
        "(default 40, the challenge's range; 80 for driving)", positive,
    )  # fmt: skip
    intrinsics: tuple[float, ...] | None = flag(
        None, "camera of the pairs whose folder has no intrinsics.json, in pixels at --image_size; "
        "the virtual normals of Eq. 9 need it (default: the Kinect's of the released code, "
        "518.86,519.47,320,240 at 480x640)", parse_intrinsics, metavar="FX,FY,CX,CY",
    )  # fmt: skip


class DataError(UserError):
    """Pictures or lists that cannot be used; the message names the file and the cure."""


class Pair(NamedTuple):
    """One RGB-D pair: its files, the scene it belongs to, and where its intrinsics may stand."""

    rgb: Path
    depth: Path
    scene: str
    folder: Path


def resolve(data: str) -> Path:
    """The folder behind `--data`: itself, or the rendered set of "synthetic:N"."""
    if data.startswith("synthetic:"):
        count = data.removeprefix("synthetic:")
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", count):
            raise DataError(f"--data {data}: give a positive number of scenes, as in synthetic:512")
        return scenes.ensure(int(count))
    root = Path(data)
    if not root.is_dir():
        raise DataError(f"--data {data}: no such folder (for embedded scenes: synthetic:512)")
    return root


def find_split(root: Path, name: str) -> str:
    """`name`, or the challenge's own "local_val" where "val" is asked for and only that exists."""
    for split in (name, "local_val") if name == "val" else (name,):
        # os.path's, which take any name for one that is not there
        if os.path.isfile(root / f"{split}.txt") or os.path.isdir(root / split):
            return split
    name = name[:99]
    raise DataError(
        f"{root}: no split {name!r}: make {name}.txt with one 'rgb depth' pair of paths a line, or "
        f"the folders {name}/rgb and {name}/depth with equal file names (training can do without "
        "validation: --val_split none)"
    )


Complain = Callable[[str], object]


def refuse(what: str) -> None:
    """What training does about a complaint: the first one ends it."""
    raise DataError(what)


def list_pairs(root: Path, split: str, complain: Complain = refuse) -> list[Pair]:
    """All pairs of a split, in natural order (sample_2 before sample_10).

    `<root>/<split>.txt` wins: one "rgb depth" a line, relative to root. Else folders named rgb and
    depth, in `<root>/<split>` or one level below it (a scene each), paired by stem, never by
    position. Raises DataError: nothing found, a file without its partner, a stem that occurs twice.
    complain(what): is told instead, once for each fault; what is in order is returned all the same.
    """
    split = find_split(root, split)
    listing = root / f"{split}.txt"
    pairs = []
    try:
        if listing.is_file():
            pairs = _from_list(root, listing, complain)
        else:
            pairs = _from_folders(root / split, split, complain)
    except OSError as error:
        complain(f"{error.filename}: cannot be listed ({error.strerror})")
    if not pairs:
        complain(f"{root}: split {split!r} holds no pair of pictures")
    return pairs


def _from_list(root: Path, listing: Path, complain: Complain) -> list[Pair]:
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        complain(f"{listing}: not a readable text file ({error})")
        return []
    pairs = []
    files_in = functools.cache(_files_in)
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        names = line.split("\t") if "\t" in line else line.split()
        where = f"{listing}:{number}"
        if len(names) != 2:
            complain(
                f"{where}: expected 'rgb depth', got {line[:80]!r} (paths with spaces: put a tab "
                "between the two)"
            )
            continue
        rgb, depth = paths = [root / name.strip() for name in names]
        # Not listed and yet there: under another case or another form of its letters.
        missing = [
            path for path in paths
            if path.name not in files_in(path.parent) and not os.path.isfile(path)
        ]  # fmt: skip
        for path in missing:
            complain(f"{where}: no such file: {f'{path}'[:200]}")
        if not missing:
            folder = rgb.parent
            if folder.name in ("rgb", "image", "images"):  # <scene>/rgb/name.jpg
                folder = folder.parent
            pairs.append(Pair(rgb, depth, folder.name, folder))
    return pairs


def _files_in(folder: Path) -> set[str]:
    """The names of a folder's files, in one look: one for each of a long list takes several times
    as long. None of a folder that cannot be listed (its files may be opened all the same)."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # ValueError: no path at all, such as one with a zero in it
        return set()


def _from_folders(folder: Path, split: str, complain: Complain) -> list[Pair]:
    scenes = [folder] if (folder / "rgb").is_dir() else sorted(folder.iterdir(), key=natural)
    pairs = []
    for scene in scenes:
        if not (scene / "rgb").is_dir() and not (scene / "depth").is_dir():
            continue
        rgb = _by_stem(scene / "rgb", RGB_SUFFIXES, complain)
        depth = _by_stem(scene / "depth", (".png",), complain)
        lonely = sorted(rgb.keys() ^ depth.keys(), key=natural)
        if lonely:
            names = ", ".join(lonely[:5]) + (", ..." if lonely[5:] else "")
            complain(
                f"{scene}: {len(lonely)} file(s) without a partner of the same name in rgb/ and "
                f"depth/ ({', '.join(RGB_SUFFIXES)} and .png are read): {names}. Rename or remove "
                f"them, or list the pairs in {split}.txt"
            )
        name = split if scene == folder else scene.name
        both = sorted(rgb.keys() & depth.keys(), key=natural)
        pairs += [Pair(rgb[s], depth[s], name, scene) for s in both]
    return pairs


def _by_stem(folder: Path, suffixes: tuple[str, ...], complain: Complain) -> dict[str, Path]:
    if not folder.is_dir():
        complain(f"{folder}: no such folder; rgb/ and depth/ belong side by side")
        return {}
    found: dict[str, Path] = {}
    for name in os.listdir(folder):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes and not name.startswith("."):
            if stem in found:
                complain(f"{folder / name} and {found[stem].name}: two files of one name")
                continue
            found[stem] = folder / name
    return found


class Header(NamedTuple):
    """What a picture's first bytes say: (H, W), bits per sample, channels."""

    size: tuple[int, int]
    bits: int
    channels: int


def header_of(path: Path) -> Header:
    """read_header of a file of which only both ends are read. Raises DataError."""
    try:
        with open(path, "rb") as file:
            first = file.read(65536)
            end = file.seek(0, os.SEEK_END)
            file.seek(max(len(first), end - 64))
            ends = first + file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return read_header(ends, path)
    except DataError:  # or a preview fills the first 64 kB, or a phone's video follows the picture
        return read_header(read_bytes(path), path)


def read_header(data: bytes, path: Path) -> Header:
    """Header of a JPEG or PNG file. Raises DataError for another kind and for one cut short.

    data: all of it, or both its ends. The end mark is looked at as well: cv2.imdecode makes a full,
    partly grey picture of a JPEG cut short, so decoding alone does not tell.
    """
    try:
        header = Header(*picture_header(data))
    except UserError as error:
        raise DataError(f"{path}: {error}, or remove the pair") from error
    if is_cut(data):
        raise DataError(f"{path}: cut short (its end mark is missing); copy it anew or remove it")
    return header


def check_headers(rgb: Header, depth: Header, pair: Pair) -> None:
    """Raises DataError where a pair cannot be one. Sizes may differ, if the aspect is one."""
    if (rgb.bits, rgb.channels) == (16, 1):
        raise DataError(
            f"{pair.rgb}: the picture is 16-bit grayscale, a depth map; are the two swapped, or is "
            "one file listed twice?"
        )
    if depth.channels != 1:
        raise DataError(
            f"{pair.depth}: depth has {depth.channels} channels; it must be a 16-bit grayscale PNG "
            "(a coloured depth picture holds no metres: export the raw depth)"
        )
    if depth.bits != 16:
        raise DataError(
            f"{pair.depth}: depth is {depth.bits}-bit; it must be 16-bit, --depth_scale units per "
            "metre (8 bits hold 256 depths: export the raw depth)"
        )
    (h, w), (H, W) = depth.size, rgb.size
    if min(h, w, H, W) < 32:
        raise DataError(f"{pair.rgb}: {H}x{W} with depth {h}x{w}: too small, 32 pixels at least")
    if abs(h * W - w * H) > 0.01 * h * W:
        raise DataError(
            f"{pair.depth}: depth is {h}x{w}, its picture {pair.rgb.name} {H}x{W}: another aspect, "
            "so they cannot be the same view; register the depth to the picture first"
        )


def check_files(pairs: list[Pair]) -> None:
    """Reads header and end mark of every pair; of more than CHECKED_FILES, of a seeded
    SAMPLED_FILES. For where no pack is made, which is the better check. Raises DataError."""
    if len(pairs) > CHECKED_FILES:
        pick = np.random.default_rng(0).choice(len(pairs), SAMPLED_FILES, replace=False)
        pairs = [pairs[i] for i in sorted(pick)]

    def check(pair: Pair) -> None:
        check_headers(header_of(pair.rgb), header_of(pair.depth), pair)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, pairs))


def read_bytes(path: Path) -> bytes:
    """All of a file. Raises DataError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def decode(path: Path, flags: int) -> tuple[Header, np.ndarray]:
    """A whole picture by OpenCV's imread flags, and what its header says. Raises DataError."""
    data = read_bytes(path)
    header = read_header(data, path)
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # more pixels than OpenCV's limit
        raise DataError(f"{path}: cannot be decoded ({error.err})") from error
    if picture is None:
        raise DataError(f"{path}: cannot be decoded; copy it anew or remove the pair")
    return header, picture


class Sample(NamedTuple):
    """One decoded pair at image_size: RGB u8 (H,W,3), depth u16 (H,W) in file units with 0 = hole,
    K = (fx, fy, cx, cy) float64 in pixels of that size. teacher: as depth, by another model, 0
    where depth is not; None = there is none."""

    rgb: np.ndarray
    depth: np.ndarray
    K: np.ndarray
    teacher: np.ndarray | None = None


def read_pair(
    pair: Pair, image_size: tuple[int, int], intrinsics: tuple[float, ...] | None, known: dict
) -> Sample:
    """Decodes a pair and brings it to image_size (centre crop to the aspect, then resize).

    intrinsics: fx, fy, cx, cy at image_size, for pairs without an intrinsics.json; None = the
    Kinect's. known: a cache of those files, shared by the calls. Raises DataError.
    """
    # A viewer turns a picture as its EXIF says; its depth map would not be turned with it.
    rgb_header, rgb = decode(pair.rgb, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    depth_header, depth = decode(pair.depth, cv2.IMREAD_UNCHANGED)
    check_headers(rgb_header, depth_header, pair)
    K = stored_intrinsics(pair, rgb.shape[:2], known)
    top, left, h, w = aspect_crop(rgb.shape[:2], image_size)
    if K is None:
        K = np.array(intrinsics or kinect_intrinsics(image_size), np.float64)
    else:
        K = scale_K(K - (0, 0, left, top), (h, w), image_size)
    rgb = resize_picture(rgb[top : top + h, left : left + w], image_size)
    return Sample(cv2.cvtColor(rgb, cv2.COLOR_BGR2RGB), _fit(depth, image_size), K)


def _fit(depth: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Centre crop to the aspect, then the nearest pixel: no two depths are ever blended."""
    top, left, h, w = aspect_crop(depth.shape, image_size)
    fitted = resize_depth(depth[top : top + h, left : left + w], image_size, "nearest")
    return np.ascontiguousarray(fitted)


def kinect_intrinsics(image_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy that the released code takes for every picture, scaled to image_size."""
    H, W = image_size
    return 518.85790117450188 * W / 640, 519.46961112127485 * H / 480, W / 2, H / 2


def scale_K(K: np.ndarray, size: tuple[int, int], to: tuple[int, int]) -> np.ndarray:
    """fx, fy, cx, cy (..., 4) in pixels of a picture of `size` (H, W) -> of it resized to `to`.
    Pixel centres are at whole numbers, so that the picture's corner is at -0.5."""
    half = np.array([0, 0, 0.5, 0.5])
    return (np.asarray(K, np.float64) + half) * (2 * [to[1] / size[1], to[0] / size[0]]) - half


def stored_intrinsics(pair: Pair, size: tuple[int, int], known: dict) -> np.ndarray | None:
    """fx, fy, cx, cy (4,) of the picture as stored (H, W) = size, from the scene's intrinsics.json.

    The file holds {"fx", "fy", "cx", "cy", "width", "height"} or {"frames": {stem: {...}}}; None
    where there is no file or it gives no focal length. Raises DataError.
    """
    path = pair.folder / "intrinsics.json"
    if pair.folder not in known:
        known[pair.folder] = _read_intrinsics(path)
    entry = known[pair.folder]
    if "frames" in entry:
        entry = entry["frames"].get(pair.rgb.stem)
        if not isinstance(entry, dict):
            raise DataError(f"{path}: no frame {pair.rgb.stem!r}, which {pair.rgb} needs")
    if "fx" not in entry:
        return None
    try:
        given = [float(entry[k]) for k in ("fx", "fy", "cx", "cy")]
        at = float(entry.get("height", size[0])), float(entry.get("width", size[1]))
        K = scale_K(given, at, size)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise DataError(
            f"{path}: expected numbers fx, fy, cx, cy, width, height ({error!r:.200})"
        ) from error
    # Rather far from float32's own ends, for Eq. 9 divides by focal lengths and squares the rest.
    if not (np.abs(K) < 1e9).all() or K[:2].min() < 1e-3:  # False for NaN, so refused
        raise DataError(f"{path}: impossible intrinsics fx, fy, cx, cy = {given}")
    return K


def _read_intrinsics(path: Path) -> dict:
    try:
        entry = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({f'{error}'[:200]})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("frames", {}), dict):
        raise DataError(f"{path}: expected an object with fx, fy, cx, cy or with frames")
    return entry


def open_split(root: Path, split: str, depth_scale: float, check: bool = True) -> list[Pair]:
    """list_pairs, check_files, a look at all intrinsics and one at the depths' scale.

    check: False leaves out check_files, where a pack is made of all pairs or bad ones are skipped.
    Raises DataError; remarks on scenes without a focal length and an unlikely scale.
    """
    pairs = list_pairs(root, split)
    if check:
        check_files(pairs)
    known: dict = {}
    # The picture's size decides how K is scaled, not whether the file is in order.
    without = {p.scene for p in pairs if stored_intrinsics(p, (480, 640), known) is None}
    if without:
        names = sorted(without, key=natural)
        notice(
            f"{split}: no focal length given for {', '.join(names[:4])}"
            f"{', ...' if names[4:] else ''}: --intrinsics is used there (Eq. 9)"
        )
    for i in np.random.default_rng(0).permutation(len(pairs)):
        with contextlib.suppress(DataError):  # whoever reads all pairs names it
            _, depth = decode(pairs[i].depth, cv2.IMREAD_UNCHANGED)
            if depth.any():
                break
    else:
        raise DataError(f"{root}: no picture of split {split!r} has a valid depth (all are 0)")
    far = np.percentile(depth[depth > 0], 99) / depth_scale
    if not 0.05 < far < 500:
        notice(
            f"{pairs[i].depth}: its depths reach {far:.3g} m; is --depth_scale {depth_scale:g} "
            "(units per metre) right?"
        )
    return pairs


def teacher_maps(pairs: list[Pair], folder: Path) -> list[Path | None]:
    """The depth map that another model made of each pair's picture; None where there is none.

    Looked for by the rgb file's stem (TEACHER_NAMES), in `<folder>/<scene>`, then in `folder`.
    Raises DataError: no folder, no map at all, two maps of one picture, one map of two pictures.
    """
    if not folder.is_dir():
        raise DataError(f"--teacher_depth {folder}: no such folder")
    files_in = functools.cache(_files_in)
    owner: dict[Path, Pair] = {}
    maps = []
    for pair in pairs:
        names = [name.format(pair.rgb.stem) for name in TEACHER_NAMES]
        for home in (folder / pair.scene, folder):
            found = [home / name for name in names if name in files_in(home)]
            if found:
                break
        if len(found) > 1:
            both = " and ".join(path.name for path in found)
            raise DataError(f"{home}: {both} for one picture, {pair.rgb}: keep one")
        maps.append(found[0] if found else None)
        other = owner.setdefault(found[0], pair) if found else pair
        if other.rgb != pair.rgb:  # a list may name one picture twice
            raise DataError(
                f"{other.rgb} and {pair.rgb} would both take {found[0]}: use one sub-folder per "
                f"scene ({folder / other.scene}, {folder / pair.scene}), each of its own name"
            )
    missing = maps.count(None)
    if missing == len(pairs):
        names = ", ".join(name.format(pairs[0].rgb.stem) for name in TEACHER_NAMES)
        raise DataError(
            f"--teacher_depth {folder}: no map for any of {len(pairs)} pairs; looked for {names} "
            f"in {folder / pairs[0].scene} and {folder}, and so on"
        )
    if missing:
        notice(
            f"teacher_depth: {missing} of {len(pairs)} pairs have no map in {folder}: taught by "
            "the ground truth alone"
        )
    return maps


def read_teacher(
    path: Path, image_size: tuple[int, int], depth_scale: float,
    picture: tuple[int, int] | None = None,
) -> np.ndarray:  # fmt: skip
    """A teacher's map at image_size as u16 (H, W) in file units (depth_scale a metre), 0 = hole.

    .png: 16 bit, in those units; .npy: floats in metres, or uint16 in those units. What is not
    finite, not above 0 or beyond 16 bits is a hole. It is brought to image_size as read_pair does
    with depth; picture: (H, W) of the picture as stored, which must have its aspect (None: that of
    image_size). Raises DataError.
    """
    if path.suffix == ".npy":
        depth = _load_npy(path).squeeze()
    else:
        _, depth = decode(path, cv2.IMREAD_UNCHANGED)
    metres = depth.dtype.kind == "f"
    if not metres and (depth.dtype.kind, depth.dtype.itemsize) != ("u", 2):
        raise DataError(
            f"{path}: a teacher's depth as {depth.dtype}: save metres as a float32 .npy, or "
            "--depth_scale units per metre as a 16-bit grayscale PNG"
        )
    if depth.ndim != 2 or not depth.size:
        raise DataError(
            f"{path}: a teacher's depth of shape {depth.shape}: one depth map (H, W) a file (a "
            "coloured depth picture holds no metres)"
        )
    (h, w), (H, W) = depth.shape, picture or image_size
    if abs(h * W - w * H) > 0.01 * h * W:
        raise DataError(
            f"{path}: a teacher's depth is {h}x{w}, its picture {H}x{W}: another aspect; bring the "
            "map to the picture's size"
        )
    depth = _fit(depth, image_size)
    if metres:
        with np.errstate(over="ignore", invalid="ignore"):
            units = np.rint(depth.astype(np.float64) * depth_scale)
        depth = np.where((units > 0) & (units <= 65535), units, 0)  # False for NaN
    return np.ascontiguousarray(depth, np.uint16)


_npy_lock = threading.Lock()


def _load_npy(path: Path) -> np.ndarray:
    try:
        # One at a time: CPython 3.11's parser, which reads the header, fails now and then when
        # several threads are in it.
        with _npy_lock, open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # that parser's own, for a damaged header: of many kinds
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: not a whole .npy of numbers ({reason}); write it anew") from error


def spread(items: Sequence, number: int) -> list:
    """At most so many of them, evenly spread."""
    chosen = np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int)
    return [items[i] for i in chosen]


def open_teacher(
    pairs: list[Pair], folder: Path, image_size: tuple[int, int], depth_scale: float
) -> list[Path | None]:
    """teacher_maps + a look into 16 of them beside their truth. Raises DataError, and remarks on
    maps that cannot be metres in file units."""
    maps = teacher_maps(pairs, folder)
    there = [i for i, path in enumerate(maps) if path]
    ratios = []
    for i in np.random.default_rng(0).permutation(there)[:16]:
        try:
            picture = header_of(pairs[i].rgb).size
            truth = read_pair(pairs[i], image_size, None, {}).depth
        except DataError:
            continue  # whoever reads all pairs names it
        teacher = read_teacher(maps[i], image_size, depth_scale, picture)
        both = (teacher > 0) & (truth > 0)
        if both.any():
            ratios.append(np.median(teacher[both] / truth[both]))
    if ratios and not 0.5 < (ratio := float(np.median(ratios))) < 2:
        notice(
            f"teacher_depth: the maps in {folder} are {ratio:.3g} times the ground truth; a .npy "
            f"holds metres, a .png --depth_scale ({depth_scale:g}) units per metre"
        )
    return maps
