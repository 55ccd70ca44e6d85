"""RGB-D pairs on disk: lists, folders, intrinsics, a decoded pair, another model's depth maps."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plumbing import rooms, scenes
from plumbing.cameras import camera_of, fit_K, keys_of, read_cameras, scale_K
from plumbing.files import UserError, natural, notice
from plumbing.flags import flag, parse_intrinsics, parse_size, positive
from plumbing.pictures import (
    aspect_crop,
    cv2,
    is_cut,
    picture_header,
    resize_depth,
    resize_picture,
    same_shape,
    upright,
)

RGB_SUFFIXES = (".jpg", ".jpeg", ".png")
CHECKED_FILES = 20_000  # of a larger set a seeded sample of files is checked at the start
SAMPLED_FILES = 2_000
WAYS = ("stored", "upright")  # see `check_headers`
TEACHER_NAMES = ("{}.npy", "{}.png", "{}_depth.png", "{}_depth.npy")  # {}: the rgb file's stem


@dataclass(frozen=True)
class Source:
    """data (Sec. 4.1)"""

    data: str = flag(
        "synthetic:512", "folder with <split>.txt lists or <split>/{rgb,depth}/ folders; or N "
        "embedded scenes, or N pictures of furnished rooms and streets (see --furniture), rendered "
        "once", metavar="ROOT|synthetic:N|rooms:N",
    )  # fmt: skip
    furniture: Path | None = flag(
        None, "rooms:N: folder of Sweet Home 3D's .sh3f archives (default: where apt install "
        "sweethome3d-furniture puts them)", Path, metavar="DIR",
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
    depth_orientation: str = flag(
        "stored", "of depth maps that fit their picture, which EXIF turns, as stored and upright "
        "(180 degrees, mirrored, square): which it is (default stored)", choices=WAYS,
    )  # fmt: skip


class DataError(UserError):
    """Pictures or lists that cannot be used; the message names the file and the cure."""


class Pair(NamedTuple):
    """One RGB-D pair: its files, the scene it belongs to, and where its intrinsics may stand."""

    rgb: Path
    depth: Path
    scene: str
    folder: Path
    depth_orientation: str = "stored"  # or "upright"


def resolve(source: Source) -> Path:
    """The folder behind `--data`: itself, or the rendered set of "synthetic:N" or, no larger than
    --image_size, "rooms:N". Raises DataError, UserError."""
    data = source.data
    kind, _, count = data.partition(":")
    if kind in ("synthetic", "rooms") and ":" in data:
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", count):
            raise DataError(f"--data {data}: give a positive number, as in {kind}:512")
        if source.depth_scale != 1000:
            raise DataError(f"{data} is in millimetres: it needs --depth_scale 1000")
        if kind == "synthetic":
            return scenes.ensure(int(count))
        H, W = source.image_size
        return rooms.ensure(int(count), (min(H, 480), min(W, 640)), source.furniture)
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


def list_pairs(
    root: Path, split: str, complain: Complain = refuse, orientation: str = "stored"
) -> list[Pair]:
    """All pairs of a split, in natural order (sample_2 before sample_10).

    `<root>/<split>.txt` wins: one "rgb depth" a line, relative to root. Else folders named rgb and
    depth, in `<root>/<split>` or one level below it (a scene each), paired by stem, never by
    position. Raises DataError: nothing found, a file without its partner, a stem that occurs twice.
    complain(what): is told instead, once for each fault; what is in order is returned all the same.
    orientation: that of the depth maps, see `check_headers`.
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
    if orientation == "stored":
        return pairs
    return [pair._replace(depth_orientation=orientation) for pair in pairs]


def _from_list(root: Path, listing: Path, complain: Complain) -> list[Pair]:
    # Bytes that are no UTF-8 are names all the same: of the very files that have these bytes.
    lines = listing.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
    pairs = []

    @functools.cache
    def look_in(name: str) -> tuple[Path, set[str], Path]:  # a folder, its files, its scene's
        folder = root / name
        in_scene = folder.name in ("rgb", "image", "images")  # <scene>/rgb/name.jpg
        return folder, _files_in(folder), folder.parent if in_scene else folder

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
        found, missing = [], []
        for name in names:
            at, name = os.path.split(name.strip())
            folder, files, scene = look_in(at)
            found.append((path := folder / name, scene))
            # Not listed and yet there: under another case or another form of its letters.
            if name not in files and not os.path.isfile(path):
                missing.append(path)
        for path in missing:
            complain(f"{where}: no such file: {f'{path}'[:200]}")
        if not missing:
            (rgb, scene), (depth, _) = found
            pairs.append(Pair(rgb, depth, scene.name, scene))
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
    """What a picture's first bytes say: (H, W) as stored, bits per sample, channels, how it is to
    be turned to be upright (EXIF, 1..8)."""

    size: tuple[int, int]
    bits: int
    channels: int
    orientation: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """(H, W) when it is turned."""
        return self.size[::-1] if self.orientation > 4 else self.size


def header_of(path: Path) -> Header:
    """read_header of a file of which only both ends are read. Raises DataError."""
    try:
        with open(path, "rb") as file:
            first = file.read(65536)
            end = file.seek(0, os.SEEK_END)
            file.seek(max(len(first), end - 4096))  # where a PNG's EXIF may be
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


def check_headers(rgb: Header, depth: Header, pair: Pair) -> list[int]:
    """`depth_turns`, of which the first is taken: where there are two, pair.depth_orientation says
    which. Sizes may differ. Raises DataError where the two are no pair."""
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
    if not (turns := depth_turns(depth.size, rgb)):
        raise DataError(
            f"{pair.depth}: depth is {h}x{w}, its picture {pair.rgb.name} {H}x{W}: another aspect, "
            "so they cannot be the same view; register the depth to the picture first"
        )
    return turns if pair.depth_orientation == "stored" else turns[::-1]


def depth_turns(size: tuple[int, int], rgb: Header) -> list[int]:
    """The EXIF orientations by which a depth map (H, W) may be turned to lie on its upright
    picture: the picture's own where it fits that as stored, 1 where it fits it upright."""
    fits = {rgb.orientation: rgb.size, 1: rgb.upright}
    return [turn for turn, of in fits.items() if same_shape(size, of)]


def check_files(pairs: list[Pair], refuse: bool = True) -> list[tuple[Header, list[int]]]:
    """Reads header and end mark of every pair; of more than CHECKED_FILES, of a seeded
    SAMPLED_FILES. Returns the picture's header and `check_headers` of each. Raises DataError;
    refuse=False, where a pack is made, which is the better check: leaves out bad ones."""
    if len(pairs) > CHECKED_FILES:
        pick = np.random.default_rng(0).choice(len(pairs), SAMPLED_FILES, replace=False)
        pairs = [pairs[i] for i in sorted(pick)]

    def check(pair: Pair) -> tuple[Header, list[int]] | None:
        try:
            rgb = header_of(pair.rgb)
            if not refuse and rgb.orientation == 1:
                return rgb, [1]  # the pack reads its depth
            return rgb, check_headers(rgb, header_of(pair.depth), pair)
        except DataError:
            if refuse:
                raise
            return None

    with ThreadPoolExecutor(8) as pool:
        return [found for found in pool.map(check, pairs) if found]


Looked = list[tuple[Header, list[int]]]  # what `check_files` returns


def shape_remarks(looked: Looked, image_size: tuple[int, int]) -> dict[str, str]:
    """What is to be told, by kind, as "what; cure": pictures that their EXIF turns, and what
    image_size cuts away."""
    remarks = {}
    turned = [turns for rgb, turns in looked if rgb.orientation > 1]
    if turned:
        upright, both = turned.count([1]), sum(len(turns) > 1 for turns in turned)
        remarks["turned"] = (
            f"{len(turned)} of {len(looked)} pictures are turned upright as their EXIF says, with "
            f"them {len(turned) - upright - both} depth maps that fit as stored, but not {upright} "
            f"that fit upright; {both} fit both ways: they turn too (--depth_orientation stored) "
            "or not (upright); see --dry_run or the doctor's contact.png"
        )
    cut, _ = shape_flags([rgb.upright for rgb, _ in looked], image_size)
    return remarks | {"cut": cut} if cut else remarks


def size_text(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def shape_flags(sizes: list[tuple[int, int]], image_size: tuple[int, int]) -> tuple[str, str]:
    """What share of pictures (H, W) the crop to image_size's aspect cuts away, the mean, and the
    cure, in words, "" where it is under 3 %; and train.py's --image_size and --size for their
    commonest shape, "" where those lose more than half of it.

    They keep the network's work and memory near that of the defaults, and --image_size whole
    multiples of its map, which a quarter of --size is: so the exported last resize is cheapest.
    """

    def lost(to: tuple[int, int]) -> float:
        kept = [math.prod(aspect_crop(size, to)[2:]) / math.prod(size) for size in sizes]
        return 1 - float(np.mean(kept))

    if not sizes or lost(image_size) < 0.03:
        return "", ""
    what = f"--image_size {size_text(image_size)} cuts {lost(image_size):.0%} of the pictures away"
    (H, W), _ = Counter(sizes).most_common(1)[0]
    # The network's map h x w, and by how much the picture is larger, y and x.
    h, w, y, x = np.meshgrid(*[np.arange(16, 128, 8)] * 2, *[np.arange(8, 33)] * 2)
    off = 20 * abs(np.log(H * x * w / (W * y * h))) + abs(np.log(y / x))
    off += abs(np.log(y * x * h * w / (480 * 640))) + abs(np.log(h * w / (32 * 40)))
    h, w, y, x = (int(axis.flat[off.argmin()]) for axis in (h, w, y, x))
    to = y * h, x * w
    if lost(to) > lost(image_size) / 2:
        return f"{what}; they are of several shapes: train on those of one, with its flags", ""
    shares = ((0.5, 0.6), (0.8, 0.8), (1, 1))  # Table 4's best row, as shares of 480x640
    crops = ",".join(size_text((round(a * to[0]), round(b * to[1]))) for a, b in shares)
    flags = f"--image_size {size_text(to)} --size {size_text((4 * h, 4 * w))}"
    return f"{what}; train with {flags} --crops {crops} to lose next to nothing", flags


def read_bytes(path: Path) -> bytes:
    """All of a file. Raises DataError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def decode(path: Path, flags: int) -> tuple[Header, np.ndarray]:
    """A whole picture by OpenCV's imread flags, turned upright, and what its header says. Depth
    maps (IMREAD_UNCHANGED) stay as stored: see `check_headers`. Raises DataError."""
    data = read_bytes(path)
    header = read_header(data, path)
    try:
        # OpenCV's versions differ in what they turn: never by it. IMREAD_UNCHANGED is all bits.
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # more pixels than OpenCV's limit
        raise DataError(f"{path}: cannot be decoded ({error.err})") from error
    if picture is None:
        raise DataError(f"{path}: cannot be decoded; copy it anew or remove the pair")
    turn = 1 if flags == cv2.IMREAD_UNCHANGED else header.orientation
    return header, upright(picture, turn)


def decode_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """BGR u8 (H, W, 3) and depth u16 (h, w), both upright, and by which orientations the two were
    turned, the depth's first. Raises DataError."""
    rgb_header, rgb = decode(pair.rgb, cv2.IMREAD_COLOR)
    depth_header, depth = decode(pair.depth, cv2.IMREAD_UNCHANGED)
    turn, *_ = check_headers(rgb_header, depth_header, pair)
    return rgb, upright(depth, turn), (turn, rgb_header.orientation)


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
    rgb, depth, turns = decode_pair(pair)
    K = stored_intrinsics(pair, rgb.shape[:2], known, turns)
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


def stored_intrinsics(
    pair: Pair, size: tuple[int, int] | None, known: dict, turns: tuple[int, ...] = ()
) -> np.ndarray | None:
    """fx, fy, cx, cy (4,) of the upright picture (H, W) = size, from the scene's intrinsics.json;
    None where there is no file or it gives no focal length. size None: as the file has it.
    turns: see `decode_pair`. Raises DataError."""
    path = pair.folder / "intrinsics.json"
    try:
        if pair.folder not in known:
            known[pair.folder] = read_cameras(path) if path.is_file() else None
        cameras = known[pair.folder]
        K, at = camera_of(cameras, pair.rgb.stem) if cameras else (None, None)
        return K if K is None or size is None else fit_K(K, at, size, *turns)
    except UserError as error:
        raise DataError(f"{path}: {error}") from error


def without_focal(pair: Pair, known: dict) -> str:
    """Its scene; where there is an intrinsics.json, what that holds instead of a focal length."""
    if (cameras := known.get(pair.folder)) is None:
        return pair.scene
    file = f"{pair.folder.name}/intrinsics.json"
    return f"{pair.scene} ({file} has no focal length: keys {keys_of(cameras)})"


def open_split(root: Path, split: str, source: Source, check: bool = True) -> list[Pair]:
    """list_pairs, check_files, a look at all intrinsics and one at the depths' scale.

    check: False leaves refusals to the pack that is made of all pairs, or to skip_bad. Raises
    DataError; remarks on turned and cut pictures, on scenes without a focal length and an unlikely
    scale.
    """
    pairs = list_pairs(root, split, orientation=source.depth_orientation)
    for remark in shape_remarks(check_files(pairs, check), source.image_size).values():
        notice(f"{split}: {remark}")
    known: dict = {}
    bare = {without_focal(p, known) for p in pairs if stored_intrinsics(p, None, known) is None}
    if bare:
        names = sorted(bare, key=natural)
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
    far = np.percentile(depth[depth > 0], 99) / source.depth_scale
    if not 0.05 < far < 500:
        notice(
            f"{pairs[i].depth}: its depths reach {far:.3g} m; is --depth_scale "
            f"{source.depth_scale:g} (units per metre) right?"
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
    path: Path, image_size: tuple[int, int], depth_scale: float, rgb: Header | None = None,
    truth: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """A teacher's map at image_size as u16 (H, W) in file units (depth_scale a metre), 0 = hole.

    .png: 16 bit, in those units; .npy: floats in metres, or uint16 in those units. What is not
    finite, not above 0 or beyond 16 bits is a hole. It is brought to image_size as read_pair does
    with depth, and turned with its picture where it fits that as stored; where it fits both ways
    (as predict.py's maps are upright and other tools' may not be) as it is more like `truth`.
    rgb: the picture's header, None: one of image_size, not turned. Raises DataError.
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
    rgb = rgb or Header(image_size, 8, 3)
    if not (turns := depth_turns(depth.shape, rgb)):
        raise DataError(
            f"{path}: a teacher's depth is {size_text(depth.shape)}, its picture "
            f"{size_text(rgb.size)}: another aspect; bring the map to the picture's size"
        )
    ways = [_fit(upright(depth, turn), image_size) for turn in turns]
    depth = ways[0] if len(ways) == 1 else max(ways, key=lambda way: likeness(way, truth))
    if metres:
        with np.errstate(over="ignore", invalid="ignore"):
            units = np.rint(depth.astype(np.float64) * depth_scale)
        depth = np.where((units > 0) & (units <= 65535), units, 0)  # False for NaN
    return np.ascontiguousarray(depth, np.uint16)


def likeness(depth: np.ndarray, truth: np.ndarray) -> float:
    """Spearman's rank correlation of two maps where both have a depth; -2 where few have."""
    both = np.flatnonzero(np.isfinite(depth) & (depth > 0) & (truth > 0))
    if len(both) < 30:
        return -2.0
    some = np.random.default_rng(0).permutation(both)[:2000]  # so equal ones are ranked by lot
    ranks = [values.flat[some].argsort(kind="stable").argsort() for values in (depth, truth)]
    return float(np.corrcoef(ranks)[0, 1])


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
    """teacher_maps + a look into 16 of them beside their truth. Raises DataError where they are
    empty, or fall where it rises. Remarks on other units and no likeness."""
    maps = teacher_maps(pairs, folder)
    there = [i for i, path in enumerate(maps) if path]
    held, looks = [], []
    for i in np.random.default_rng(0).permutation(there)[:16]:
        try:
            picture = header_of(pairs[i].rgb)
            truth = read_pair(pairs[i], image_size, None, {}).depth
        except DataError:
            continue  # whoever reads all pairs names it
        teacher = read_teacher(maps[i], image_size, depth_scale, picture, truth)
        held.append((teacher > 0).mean())
        both = (teacher > 0) & (truth > 0)
        if both.sum() >= max(30, 0.05 * (truth > 0).sum()):
            looks.append((np.median(teacher[both] / truth[both]), likeness(teacher, truth)))
    about = f"teacher_depth: the maps in {folder}"
    units = f"a .npy holds metres, a .png --depth_scale ({depth_scale:g}) units per metre"
    if held and not looks:  # maps of the truth's holes alone may be right
        (refuse if np.median(held) < 0.01 else notice)(
            f"{about} hold next to nothing from 0 to {65535 / depth_scale:.3g} m where the truth "
            f"has a depth; {units} (divide millimetres by 1000)"
        )
    ratio, rank = np.median(looks or [(1, 1)], 0)
    if rank < 0.3:
        (refuse if rank < -0.2 else notice)(
            f"{about} do not rise and fall with the truth (rank correlation {rank:.2f}, good ones "
            "have 0.8 and more): inverse depth or disparity (metres = 1 / inverse metres = focal "
            "length in pixels * baseline / disparity), upside down, or of other pictures?"
        )
    if not 0.5 < ratio < 2:
        notice(f"{about} are {ratio:.3g} times the ground truth; {units}")
    return maps
