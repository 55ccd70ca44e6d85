"""RGB-D pairs on disk: lists and folders, intrinsics, one decoded pair, another model's depth maps."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import threading
import tokenize
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plumbing import scenes as synthetic
from plumbing.files import UserError, natural, notice
from plumbing.pictures import cv2, is_cut, picture_header, resize_depth, resize_picture

RGB_SUFFIXES = (".jpg", ".jpeg", ".png")


CHECKED_FILES = 20_000  # a larger set has a seeded sample of its files checked at the start


SAMPLED_FILES = 2_000


TEACHER_NAMES = ("{}.npy", "{}.png", "{}_depth.png", "{}_depth.npy")  # {}: the rgb file's stem


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
        return synthetic.ensure(int(count))
    root = Path(data)
    if not root.is_dir():
        raise DataError(f"--data {data}: no such folder (for embedded scenes: synthetic:512)")
    if not os.access(root, os.X_OK):
        raise DataError(f"--data {data}: the folder may not be looked into: see its permissions")
    return root


def find_split(root: Path, name: str) -> str:
    """`name`, or the challenge's own "local_val" where "val" is asked for and only that exists."""
    for split in (name, "local_val") if name == "val" else (name,):
        with contextlib.suppress(OSError):  # a name that no file system takes
            if (root / f"{split}.txt").is_file() or (root / split).is_dir():
                return split
    name = name[:99]
    raise DataError(
        f"{root}: no split {name!r}: make {name}.txt with one 'rgb depth' pair of paths a line, or "
        f"the folders {name}/rgb and {name}/depth with equal file names (training can do without "
        "validation: --val_split none)"
    )


Complain = Callable[[str, str, Sequence[object]], None]


def refuse(check: str, what: str, about: Sequence[object] = ()) -> None:
    """What training does about a complaint: the first one ends it."""
    raise DataError(what)


def list_pairs(root: Path, split: str, complain: Complain = refuse) -> list[Pair]:
    """All pairs of a split, in natural order (sample_2 before sample_10).

    `<root>/<split>.txt` wins: one "rgb depth" a line, relative to root. Else folders named rgb and
    depth, in `<root>/<split>` or one level below it (a scene each), paired by stem, never by
    position. Raises DataError: nothing found, a file without its partner, a stem that occurs twice.
    complain(check, what, about): is told instead, once for each fault, of which kind it is and
    which files it is about; what is in order is returned all the same.
    """
    split = find_split(root, split)
    listing = root / f"{split}.txt"
    try:
        with _without_collecting():
            if listing.is_file():
                pairs = _from_list(root, listing, complain)
            else:
                pairs = _from_folders(root / split, split, complain)
    except OSError as error:
        complain("unreadable", f"{error.filename}: cannot be listed ({error.strerror})",
                 [error.filename])  # fmt: skip
        pairs = []
    if not pairs:
        complain("empty split", f"{root}: split {split!r} holds no pair of pictures", ())
    return pairs


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Pairs hold no cycles: looking for some takes as long as making 100,000 of them does."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _from_list(root: Path, listing: Path, complain: Complain) -> list[Pair]:
    pairs = []
    homes: dict[str, tuple[Path, set[str], Path]] = {}
    try:
        lines = Path(listing).read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        complain("list", f"{listing}: not a readable text file ({error})", [listing])
        return []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        names = line.strip().split("\t") if "\t" in line else line.split()
        place = f"{listing}:{number}"
        if len(names) != 2:
            complain(
                "list", f"{place}: expected 'rgb depth', got {line.strip()[:80]!r} (paths with "
                "spaces: put a tab between the two)", [f"{place}: {line.strip()[:80]!r}"],
            )  # fmt: skip
            continue
        files, folders = [], []
        for above, name in (os.path.split(name.strip()) for name in names):
            if above not in homes:
                home = root / above
                # <scene>/rgb/name.jpg or <scene>/name.jpg
                folder = home.parent if home.name in ("rgb", "image", "images") else home
                homes[above] = home, _files_in(home), folder
            home, listed, folder = homes[above]
            path, reason = home / name, "no such file"
            try:
                there = name in listed or path.is_file()
            except OSError as error:  # too long a name, or a folder that may not be looked into
                there, reason = False, error.strerror
            if not there:
                shown = f"{path}"[:200]
                complain("missing file", f"{place}: {reason}: {shown}", [f"{place}: {shown}"])
                continue
            files.append(path)
            folders.append(folder)
        if len(files) == 2:
            pairs.append(Pair(*files, folders[0].name, folders[0]))
    return pairs


def _files_in(folder: Path) -> set[str]:
    """The names of a folder's files, in one look: a look for each of a long list takes several
    times as long. What is missing here may still be there: under another case or another form of
    its letters, or where a folder can be used but not listed."""
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
                "no partner",
                f"{scene}: {len(lonely)} file(s) without a partner of the same name in rgb/ and "
                f"depth/ ({', '.join(RGB_SUFFIXES)} and .png are read): {names}. Rename or remove "
                f"them, or list the pairs in {split}.txt", [(rgb | depth)[s] for s in lonely],
            )  # fmt: skip
        name = split if scene == folder else scene.name
        both = sorted(rgb.keys() & depth.keys(), key=natural)
        pairs += [Pair(rgb[s], depth[s], name, scene) for s in both]
    return pairs


def _by_stem(folder: Path, suffixes: tuple[str, ...], complain: Complain) -> dict[str, Path]:
    if not folder.is_dir():
        complain("no folder", f"{folder}: no such folder; rgb/ and depth/ belong side by side",
                 [folder])  # fmt: skip
        return {}
    found: dict[str, Path] = {}
    for name in os.listdir(folder):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes and not name.startswith("."):
            if stem in found:
                both = f"{folder / name} and {found[stem].name}"
                complain("name twice", f"{both}: two files of one name", [both])
                continue
            found[stem] = folder / name
    return found


class Header(NamedTuple):
    """What a picture's first bytes say: (H, W), bits per sample, channels."""

    size: tuple[int, int]
    bits: int
    channels: int


def read_header(data: bytes, path: Path, length: int | None = None) -> Header:
    """Header of a whole JPEG or PNG file. Raises DataError for another kind, one cut short, or one
    that claims more pixels than it can hold.

    data: all of it, or (of a file of `length` bytes) its two ends. The end mark is looked at as
    well: cv2.imread decodes a JPEG cut short into a full, partly grey picture, so decoding alone
    does not tell.
    """
    try:
        header = Header(*picture_header(data))
    except UserError as error:
        raise DataError(f"{path}: {error}, or remove the pair") from error
    if is_cut(data):
        raise DataError(f"{path}: cut short (its end mark is missing); copy it anew or remove it")
    return header


def check_headers(rgb: Header, depth: Header, pair: Pair) -> bool:
    """Raises DataError where a pair cannot be one; True when its sizes differ (same aspect)."""
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
    return (h, w) != (H, W)


def check_files(pairs: list[Pair], seed: int = 0) -> None:
    """Reads header and end mark of every pair before any training starts. Raises DataError.

    Of more than CHECKED_FILES pairs a seeded SAMPLED_FILES are read.
    """
    if len(pairs) > CHECKED_FILES:
        pick = np.random.default_rng(seed).choice(len(pairs), SAMPLED_FILES, replace=False)
        pairs = [pairs[i] for i in sorted(pick)]

    def check(pair: Pair) -> bool:
        return check_headers(header_of(pair.rgb), header_of(pair.depth), pair)

    with ThreadPoolExecutor(8) as pool:
        differ = [pair for pair, differs in zip(pairs, pool.map(check, pairs)) if differs]
    if differ:
        notice(
            f"{len(differ)} depth map(s) differ in size from their picture ({differ[0].depth} is "
            "the first): each is brought to --image_size by itself"
        )


def header_of(path: Path) -> Header:
    try:
        return read_header(*_edges(path))
    except DataError:  # or a preview and a colour profile fill the first 64 kB
        return read_header(_bytes(path), path)


def _edges(path: Path, head: int = 65536) -> tuple[bytes, Path, int]:
    """The first 64 kB and the last 64 bytes of a file, where header and end mark stand; its path
    and its length."""
    try:
        with open(path, "rb") as f:
            first = f.read(head)
            size = f.seek(0, 2)
            f.seek(min(size, max(head, size - 64)))
            return first + f.read(64), path, size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


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
    rgb = _decode(pair.rgb, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    depth = _decode(pair.depth, cv2.IMREAD_UNCHANGED)
    if depth.dtype != np.uint16 or depth.ndim != 2:
        raise DataError(f"{pair.depth}: not a 16-bit grayscale PNG")
    check_headers(Header(rgb.shape[:2], 8, 3), Header(depth.shape, 16, 1), pair)
    K = stored_intrinsics(pair, rgb.shape[:2], known)
    if rgb.shape[:2] != image_size:
        top, left, h, w = _aspect_crop(rgb.shape[:2], image_size)
        rgb = resize_picture(rgb[top : top + h, left : left + w], image_size)
        if K is not None:
            fx, fy, cx, cy = K
            sy, sx = image_size[0] / h, image_size[1] / w
            K = fx * sx, fy * sy, (cx - left + 0.5) * sx - 0.5, (cy - top + 0.5) * sy - 0.5
    if depth.shape != image_size:
        top, left, h, w = _aspect_crop(depth.shape, image_size)
        depth = np.ascontiguousarray(depth[top : top + h, left : left + w])  # a crop may be all
        depth = resize_depth(depth, image_size, "nearest")
    rgb = cv2.cvtColor(rgb, cv2.COLOR_BGR2RGB)
    K = K or intrinsics or kinect_intrinsics(image_size)
    return Sample(rgb, np.ascontiguousarray(depth), np.array(K, np.float64))


def kinect_intrinsics(image_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy that the released code takes for every picture, scaled to image_size."""
    H, W = image_size
    return 518.85790117450188 * W / 640, 519.46961112127485 * H / 480, W / 2, H / 2


def _decode(path: Path, flags: int) -> np.ndarray:
    data = _bytes(path)
    read_header(data, path)
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded ({error.err})") from error
    if picture is None:
        raise DataError(f"{path}: cannot be decoded; copy it anew or remove the pair")
    return picture


def _aspect_crop(size: tuple[int, int], to: tuple[int, int]) -> tuple[int, int, int, int]:
    """Largest centred (top, left, h, w) of `size` that has the aspect of `to`."""
    (h, w), (H, W) = size, to
    ch, cw = min(h, round(w * H / W)), min(w, round(h * W / H))
    return (h - ch) // 2, (w - cw) // 2, ch, cw


def stored_intrinsics(
    pair: Pair, size: tuple[int, int], known: dict
) -> tuple[float, float, float, float] | None:
    """fx, fy, cx, cy of the picture as stored (H, W) = size, from the scene's intrinsics.json.

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
        fx, fy, cx, cy = (float(entry[k]) for k in ("fx", "fy", "cx", "cy"))
        sy = size[0] / float(entry.get("height", size[0]))
        sx = size[1] / float(entry.get("width", size[1]))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise DataError(
            f"{path}: expected numbers fx, fy, cx, cy, width, height ({error!r:.200})"
        ) from error
    K = fx * sx, fy * sy, (cx + 0.5) * sx - 0.5, (cy + 0.5) * sy - 0.5
    # Rather far from float32's own ends, for Eq. 9 divides by focal lengths and squares the rest.
    if not all(abs(k) < 1e9 for k in K) or min(K[:2]) < 1e-3:  # False for NaN, so refused
        raise DataError(f"{path}: impossible intrinsics fx={fx} fy={fy} cx={cx} cy={cy}")
    return K


def _read_intrinsics(path: Path) -> dict:
    try:
        if not path.is_file():
            return {}
        entry = json.loads(Path(path).read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({f'{error}'[:200]})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("frames", {}), dict):
        raise DataError(f"{path}: expected an object with fx, fy, cx, cy or with frames")
    return entry


def open_split(root: Path, split: str, depth_scale: float) -> list[Pair]:
    """list_pairs + check_files + a look for valid depth at a plausible scale. Raises DataError."""
    pairs = list_pairs(root, split)
    check_files(pairs)
    known: dict = {}
    without: set[str] = set()
    one_camera: set[Path] = set()  # folders where one entry stands for all pictures
    for pair in pairs:
        if pair.folder in one_camera:
            continue
        # The picture's size decides how K is scaled, not whether the file is in order.
        if stored_intrinsics(pair, (480, 640), known) is None:
            without.add(pair.scene)
        if "frames" not in known[pair.folder]:
            one_camera.add(pair.folder)
    without = sorted(without, key=natural)
    if without:
        notice(
            f"{split}: no focal length given for {', '.join(without[:4])}"
            f"{', ...' if without[4:] else ''}: --intrinsics is used there (Eq. 9)"
        )
    order = np.random.default_rng(0).permutation(len(pairs))
    for tried, i in enumerate(order, 1):
        depth = _decode(pairs[i].depth, cv2.IMREAD_UNCHANGED)
        if depth.any():
            far = np.percentile(depth[depth > 0], 99) / depth_scale
            if not 0.05 < far < 500:
                notice(
                    f"{pairs[i].depth}: its depths reach {far:.3g} m; is --depth_scale "
                    f"{depth_scale:g} (units per metre) right?"
                )
            return pairs
        if tried == len(order):
            raise DataError(f"{root}: no picture of split {split!r} has a valid depth (all are 0)")
    return pairs


def teacher_maps(pairs: list[Pair], folder: Path) -> list[Path | None]:
    """The depth map that another model made of each pair's picture; None where there is none.

    Looked for by the rgb file's stem (TEACHER_NAMES), in `<folder>/<scene>`, then in `folder`.
    Raises DataError: no folder, no map at all, two maps of one picture, one map of two pictures.
    """
    if not folder.is_dir():
        raise DataError(f"--teacher_depth {folder}: no such folder")
    listed: dict[Path, set[str]] = {}  # each folder once: asking the disk per name is slow
    owner: dict[Path, Pair] = {}
    maps = [_teacher_map(pair, folder, listed) for pair in pairs]
    for pair, path in zip(pairs, maps):
        other = owner.setdefault(path, pair) if path else pair
        if other.rgb != pair.rgb:  # a list may name one picture twice
            cure = (
                f"use one sub-folder per scene ({folder / other.scene}, {folder / pair.scene})"
                if other.scene != pair.scene
                else f"both are of scene {pair.scene!r}: rename a picture or its scene's folder"
            )
            raise DataError(f"{other.rgb} and {pair.rgb} would both take {path}: {cure}")
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


def _teacher_map(pair: Pair, folder: Path, listed: dict[Path, set[str]]) -> Path | None:
    for home in (folder / pair.scene, folder):
        if home not in listed:
            try:
                listed[home] = set(os.listdir(home)) if home.is_dir() else set()
            except OSError as error:
                raise DataError(f"{home}: cannot be listed ({error.strerror})") from error
        names = [name.format(pair.rgb.stem) for name in TEACHER_NAMES]
        found = [name for name in names if name in listed[home]]
        if len(found) > 1:
            raise DataError(f"{home}: {' and '.join(found)} for one picture, {pair.rgb}: keep one")
        if found:
            return home / found[0]
    return None


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
    depth = _load_npy(path) if path.suffix == ".npy" else _decode(path, cv2.IMREAD_UNCHANGED)
    floats = depth.dtype.kind == "f" and depth.dtype.itemsize <= 8 and path.suffix == ".npy"
    if not floats and (depth.dtype.kind, depth.dtype.itemsize) != ("u", 2):
        raise DataError(
            f"{path}: a teacher's depth as {depth.dtype}: save metres as a float32 .npy, or "
            "--depth_scale units per metre as a 16-bit grayscale PNG"
        )
    if depth.ndim > 2 and path.suffix == ".npy":
        depth = depth.squeeze()
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
    if depth.shape != image_size:
        top, left, h, w = _aspect_crop(depth.shape, image_size)
        depth = np.ascontiguousarray(depth[top : top + h, left : left + w])  # a crop may be all
        depth = resize_depth(depth, image_size, "nearest")
    if floats:
        with np.errstate(over="ignore", invalid="ignore"):
            units = np.rint(depth.astype(np.float64) * depth_scale)
        depth = np.where((units > 0) & (units <= 65535), units, 0)  # False for NaN
    return np.ascontiguousarray(depth, np.uint16)


_npy_lock = threading.Lock()


def _load_npy(path: Path) -> np.ndarray:
    try:
        # One at a time: CPython 3.11's parser, which reads the header, fails now and then when
        # several threads are in it.
        with _npy_lock, open(path, "rb") as f:
            array = np.lib.format.read_array(f, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError, MemoryError, OverflowError, TypeError, SyntaxError,
            RecursionError, tokenize.TokenError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: not a whole .npy of numbers ({reason}); write it anew") from error
    return array


def open_teacher(
    pairs: list[Pair], folder: Path, image_size: tuple[int, int], depth_scale: float
) -> list[Path | None]:
    """teacher_maps + a look into 16 of them beside their truth. Raises DataError, and remarks on
    maps that cannot be metres in file units."""
    maps = teacher_maps(pairs, folder)
    there = [i for i, path in enumerate(maps) if path]
    ratios = []
    for i in np.random.default_rng(0).permutation(there)[:16]:
        teacher = read_teacher(maps[i], image_size, depth_scale, header_of(pairs[i].rgb).size)
        try:
            truth = read_pair(pairs[i], image_size, None, {}).depth
        except DataError:
            continue  # the Loader names it, and takes another pair
        both = (teacher > 0) & (truth > 0)
        if both.any():
            ratios.append(np.median(teacher[both] / truth[both]))
    if ratios and not 0.5 < (ratio := float(np.median(ratios))) < 2:
        notice(
            f"teacher_depth: the maps in {folder} are {ratio:.3g} times the ground truth; a .npy "
            f"holds metres, a .png --depth_scale ({depth_scale:g}) units per metre"
        )
    return maps
