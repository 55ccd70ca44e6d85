"""Sec. 4.1, before training: would it be a mistake to train on these pictures?

    python data.py --check ROOT

        find_pairs -> look (every file) -> probe (some pairs, decoded) -> the checks -> report

Everything found is told, never only the first: errors (training on it would be a mistake),
warnings and remarks, each with its count, examples and cure. Nothing is changed. `--out` gets
report.json and contact.png, the depth's edges over the pictures. Exit code: 0 = fine or warnings
only, 1 = errors, 2 = wrong flags, 130 = Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plumbing.files import natural, progress, usable_cores, write_file
from plumbing.flags import Parser, parse_size, positive, whole
from plumbing.pairs import (
    RGB_SUFFIXES,
    DataError,
    Pair,
    _bytes,
    _decode,
    check_headers,
    find_split,
    list_pairs,
    read_header,
    resolve,
    stored_intrinsics,
)
from plumbing.pictures import (
    WHITE,
    auto_range,
    colorize,
    cv2,
    resize_depth,
    resize_picture,
    with_colorbar,
    write_picture,
    write_text,
)

SEVERITIES = ("error", "warning", "note")
SCALES = {  # units per metre -> who writes such files
    1000.0: "millimetres", 10000.0: "0.1 mm", 5000.0: "1/5000 m, TUM", 256.0: "1/256 m, KITTI",
    100.0: "centimetres", 1.0: "whole metres",
}  # fmt: skip
RUN = 5  # neighbouring frames decoded together: a depth that lags by a frame or two shows
REACH = 20  # shifts looked at, either way, of a picture 640 wide
LITTLE, MUCH = 3, 8  # of those: from where on misalignment is told, and is an error
NAMED = 3  # examples of a finding in the printed report; report.json has KEPT
KEPT = 50
COARSE = 64  # levels of a depth map under which its edges and its end say little
RGB_NAMES = ("rgb", "image", "images", "img", "imgs", "color", "colour", "color_images", "left")
DEPTH_NAMES = ("depth", "depths", "depth_raw", "depth_png", "disparity", "disp", "gt")
ROUND = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500)


@dataclass
class Finding:
    """One thing that was found: a sentence, how many pictures it is about, some of them, and what
    to do. pairs: those that the contact sheet shows first."""

    severity: str
    check: str
    what: str
    cure: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)


class Findings(list):
    """All findings; the `root` is left out of the examples' names."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def add(
        self, severity: str, check: str, what: str, cure: str, examples: Iterable[Any] = (),
        pairs: Iterable[Pair] = (), count: int | None = None,
    ) -> None:  # fmt: skip
        """count: None = the number of examples."""
        examples = [str(e).replace(f"{self.root}{os.sep}", "") for e in examples]
        count = len(examples) if count is None else count
        self.append(Finding(severity, check, what, cure, count, examples[:KEPT], [*pairs][:KEPT]))

    def worst(self) -> list[Finding]:
        return sorted(self, key=lambda f: SEVERITIES.index(f.severity))


def graded(share: float, limit: float) -> str:
    """A problem of `share` of the pictures: an error from `limit` on, else a warning."""
    return "error" if share >= limit else "warning"


# ------------------------------------------------------------------------------ pairs and names


def find_pairs(root: Path, split: str, found: Findings, required: bool) -> list[Pair]:
    """The pairs of a split that are whole. One that is not there is a warning unless `required`."""
    try:
        name = find_split(root, split)
    except DataError:
        if required:
            found.add("error", "no split", f"there is no split {split!r}", layout(root, split))
        else:
            found.add(
                "warning", "no validation", f"there is no split {split!r}: nothing will tell "
                "whether training helps, nor pick its best epoch",
                "set aside other rooms or drives, never random frames of a video; or train with "
                "--val_split none",
            )  # fmt: skip
        return []
    by: dict[str, list[object]] = defaultdict(list)

    def collect(check: str, what: str, about: Sequence[object]) -> None:
        by[check] += about

    pairs = list_pairs(root, name, collect)
    for check, about in by.items():
        what, cure = LIST_CHECKS[check]
        cure = cure.format(split=name) if cure else layout(root, name)
        found.add("error", check, f"{name}: {what}", cure, about)
    if foreign := foreign_files(root / name) if not (root / f"{name}.txt").is_file() else []:
        found.add(
            "warning" if pairs else "error", "foreign file", f"{name}: files that are not read in "
            f"rgb/ ({', '.join(RGB_SUFFIXES)}) and depth/ (.png)",
            "depth as .npy, .exr or .tiff: write it anew, cv2.imwrite('x.png', (1000 * "
            "metres).astype('uint16')); remove the rest", foreign,
        )  # fmt: skip
    return pairs


LIST_CHECKS = {  # data.list_pairs' complaints -> what, cure ("" = layout's)
    "unreadable": ("what cannot be listed", "look at its permissions"),
    "list": (
        "a list that is no text, or lines of it that are not 'rgb depth'",
        "two paths a line, in UTF-8; where they hold spaces, a tab between the two",
    ),
    "missing file": (
        "the list names files that are not there",
        "paths are relative to the set's folder; remove the lines or copy the files",
    ),
    "no folder": ("a scene lacks rgb/ or depth/", "the two belong side by side"),
    "no partner": (
        "files without a partner of the same name in rgb/ and depth/",
        "rename or remove them, or list the pairs in {split}.txt, one 'rgb depth' a line",
    ),
    "name twice": ("two files of one name, such as a.jpg and a.png", "keep one of the two"),
    "empty split": ("holds no whole pair", ""),
}  # fmt: skip


def foreign_files(folder: Path) -> list[Path]:
    """What lies in <folder>/{rgb,depth} or <folder>/<scene>/{rgb,depth} and is no picture there."""
    kinds = {"rgb": RGB_SUFFIXES, "depth": (".png",)}
    found = []
    for name, suffixes in kinds.items():
        for home in (folder / name, *folder.glob(f"*/{name}")):
            with suppress(OSError):
                seen = [p for p in home.iterdir() if not p.name.startswith(".")]
                found += [p for p in seen if p.suffix.lower() not in suffixes]
    return sorted(found, key=natural)


def layout(root: Path, split: str) -> str:
    """The cure for a split that is not found: what of the folder looks like one."""
    here = shlex.quote(str(root))
    want = f"make {split}.txt with one 'rgb depth' pair of paths a line, relative to {here}, or "
    want += f"the folders {split}/rgb and {split}/depth with equal file names"
    if (root / f"{split}.txt").is_file():  # which wins over folders
        return f"mend {split}.txt: one 'rgb depth' pair of paths a line, relative to {here}"
    for folder in (root, root / split, *sorted(root.glob("*/"), key=natural)[:50]):
        try:
            names = sorted(p.name for p in folder.iterdir() if p.is_dir())
        except OSError:
            continue
        rgb = next((n for n in names if n.lower() in RGB_NAMES), None)
        depth = next((n for n in names if n.lower() in DEPTH_NAMES), None)
        if not rgb or not depth:
            continue
        if (rgb, depth) == ("rgb", "depth") and folder.parent == root:
            if folder.name == split:  # as it should be: what it lacks is told by itself
                continue
            return f"{folder.name}/ is laid out as a split: --split {folder.name}; or {want}"
        to = root / split
        moves = [f"mv {shlex.quote(str(folder / a))} {shlex.quote(str(to / b))}"
                 for a, b in ((rgb, "rgb"), (depth, "depth")) if folder / a != to / b]  # fmt: skip
        return f"mkdir -p {shlex.quote(str(to))} && " + " && ".join(moves) + f"; or {want}"
    lists = [p.stem for p in sorted(root.glob("*.txt")) if p.stem.lower() != "readme"]
    if lists and split not in lists:
        return f"there is {', '.join(f'--split {name}' for name in lists[:4])}; or {want}"
    return want


# ------------------------------------------------------------------------ every file, undecoded


@dataclass
class Look:
    """What a pair's files tell without its depth being decoded. thumb: the picture's small grey
    copy (24, 32) u8; rgb and depth: digests of what is in the files."""

    problem: tuple[str, str] | None = None  # check, message
    size: tuple[int, int] = (0, 0)
    resized: bool = False
    rgb: bytes = b""
    depth: bytes = b""
    thumb: np.ndarray | None = None


def look(pair: Pair) -> Look:
    """Reads both files whole: header, end mark, digest; the picture also at an eighth."""
    headers, digests, contents = [], [], []
    for path in (pair.rgb, pair.depth):
        try:
            content = _bytes(path)
            headers.append(read_header(content, path))
        except DataError as error:
            return Look(("unreadable", str(error)))
        # Of a PNG the pixels alone: a time or a text before them may differ.
        start = max(0, content.find(b"IDAT")) if content[:4] == b"\x89PNG" else 0
        digests.append(hashlib.blake2b(content[start:], digest_size=16).digest())
        contents.append(content)
    rgb, depth = headers
    seen = Look(None, rgb.size, False, *digests)
    try:
        seen.resized = check_headers(rgb, depth, pair)
    except DataError as error:
        why = {
            "depth for a picture": (rgb.bits, rgb.channels) == (16, 1),
            "coloured depth": depth.channels != 1, "8-bit depth": depth.bits != 16,
            "too small": min(*rgb.size, *depth.size) < 32, "another aspect": True,
        }  # fmt: skip
        seen.problem = next(check for check, holds in why.items() if holds), str(error)
    large = min(rgb.size) >= 8 * 24
    flags = cv2.IMREAD_REDUCED_GRAYSCALE_8 if large else cv2.IMREAD_GRAYSCALE
    try:
        grey = cv2.imdecode(np.frombuffer(contents[0], np.uint8), flags)
    except cv2.error:
        grey = None
    if grey is None:
        seen.problem = "damaged", f"{pair.rgb}: cannot be decoded"
    else:
        seen.thumb = cv2.resize(grey, (32, 24), interpolation=cv2.INTER_AREA)
    return seen


HEADER_CHECKS = {  # check -> what, cure. Training does not start with any of these
    "unreadable": (
        "files that are empty, cut short or no JPEG or PNG", "copy them anew, or remove their pairs"
    ),
    "depth for a picture": (
        "pictures that are 16-bit grayscale, as depth maps are",
        "swap the two, where they are; a thermal or infrared camera's: write them anew as 8 bit",
    ),
    "coloured depth": (
        "depth of several channels: a picture of depth, which holds no metres",
        "export the raw depth as a 16-bit grayscale PNG, 0 = no measurement",
    ),
    "8-bit depth": (
        "8-bit depth: 256 steps at best, and most tools cut at 255 what is larger",
        "export the raw depth anew: cv2.imwrite('x.png', (1000 * metres).astype('uint16')) keeps "
        "16 bits; what 8 bits have lost cannot be had back",
    ),
    "too small": ("pictures under 32 pixels", "use the originals, 480x640 or more"),
    "another aspect": (
        "depth of another aspect than its picture: not the same view",
        "register the depth to the picture's camera first (the sensor's own tool does)",
    ),
}  # fmt: skip


def check_looks(pairs, looks: list[Look], split: str, image_size, found: Findings) -> None:
    """What headers tell, each kind of problem once."""
    by: dict[str, list[int]] = defaultdict(list)
    for i, seen in enumerate(looks):
        if seen.problem:
            by[seen.problem[0]].append(i)
    for check, which in by.items():
        some = [pairs[i] for i in which]
        # The message's own cure stands behind a semicolon; ours is told once.
        texts = [looks[i].problem[1].partition(";")[0] for i in which]
        if check == "damaged":
            damaged(split, texts, len(pairs), found)
        else:
            what, cure = HEADER_CHECKS[check]
            shown = some if check in ("coloured depth", "8-bit depth", "another aspect") else ()
            found.add("error", check, f"{split}: {what}", cure, texts, shown)
    fine = [i for i, seen in enumerate(looks) if not seen.problem]
    sizes = defaultdict(list)
    for i in fine:
        sizes[looks[i].size].append(i)
    resized = [pairs[i].depth for i in fine if looks[i].resized]
    if resized:
        found.add("note", "sizes", f"{split}: depth of another size than its picture, same aspect",
                  "none needed: each is brought to --image_size by itself", resized)  # fmt: skip
    if len(sizes) > 1:
        kinds = ", ".join(f"{h}x{w} ({len(v)})" for (h, w), v in list(sizes.items())[:5])
        found.add("note", "sizes", f"{split}: pictures of {len(sizes)} sizes: {kinds}",
                  "none needed: each is brought to --image_size", count=len(fine))  # fmt: skip
    H, W = image_size
    small = [pairs[i].rgb for (h, w), v in sizes.items() if h < 0.9 * H or w < 0.9 * W for i in v]
    if small:
        h, w = min(sizes)
        found.add(
            "warning", "sizes", f"{split}: pictures smaller than --image_size {H}x{W} would be "
            "blown up", f"train with --image_size {h}x{w}, crops to fit, or use larger originals",
            small,
        )  # fmt: skip


def damaged(split: str, texts: list[str], of: int, found: Findings) -> None:
    """Pictures that are damaged inside: the loader leaves them out, so a few are no error."""
    found.add(
        graded(len(texts) / max(1, of), 0.05), "damaged", f"{split}: pictures that cannot be "
        "decoded; training skips them and takes the next instead",
        "copy them anew or remove the pairs", texts,
    )  # fmt: skip


def check_intrinsics(pairs, looks: list[Look], split: str, found: Findings) -> dict[str, float]:
    """Cameras that are missing or impossible. Returns fx / width of each scene that has one."""
    known: dict = {}
    bad, without, focal, broken = {}, {}, {}, set()
    for pair, seen in zip(pairs, looks):
        path = pair.folder / "intrinsics.json"
        if path in broken:
            continue
        try:
            K = stored_intrinsics(pair, seen.size if min(seen.size) else (480, 640), known)
        except DataError as error:
            bad.setdefault(str(error), pair)
            if pair.folder not in known:  # the file itself, which is read once
                broken.add(path)
            continue
        if K is None:
            without[pair.scene] = pair
        elif seen.size[1]:
            if 0.3 < K[0] / seen.size[1] < 5 and 0.5 < K[0] / K[1] < 2:
                focal[pair.scene] = K[0] / seen.size[1]
            else:
                text = f"{path}: fx {K[0]:.4g}, fy {K[1]:.4g} for a picture {seen.size[1]} wide"
                bad.setdefault(text, pair)
    if bad:
        found.add(
            "error", "intrinsics", f"{split}: an intrinsics.json that no camera can have",
            'intrinsics.json holds {"fx", "fy", "cx", "cy", "width", "height"} in pixels of the '
            'stored picture, or {"frames": {stem: {...}}}', bad, bad.values(),
        )  # fmt: skip
    if without:
        names = sorted(without, key=natural)
        found.add(
            "warning", "intrinsics", f"{split}: scenes without a focal length: the Kinect's is "
            "taken, and the virtual normals of Eq. 9 are as wrong as that is",
            "train with --intrinsics FX,FY,CX,CY, or put an intrinsics.json beside rgb/", names,
        )  # fmt: skip
    return focal


# ------------------------------------------------------------------- frames that are there twice


def check_repeats(pairs, looks: list[Look], split: str, found: Findings) -> None:
    """One depth under different pictures (a stuck sensor, a list that names a file twice), and
    pairs that are there more than once."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i, seen in enumerate(looks):
        if seen.depth and not seen.problem:
            groups[seen.depth].append(i)
    stuck, repeated, shared = [], [], []
    for group in groups.values():
        if len(group) < 2:
            continue
        try:
            depth = _decode(pairs[group[0]].depth, cv2.IMREAD_UNCHANGED)
        except DataError:
            continue
        if not depth.any() or depth.min() == depth.max():
            continue  # two maps of nothing are equal
        first: dict[bytes, int] = {}
        for i in group:
            if looks[i].rgb in first:
                repeated.append(i)
            first.setdefault(looks[i].rgb, i)
        others = list(first.values())[1:]
        same = os.path.realpath(pairs[group[0]].depth)
        for i in others:
            (shared if os.path.realpath(pairs[i].depth) == same else stuck).append(i)
    n = max(1, len(pairs))
    if stuck:
        found.add(
            graded(len(stuck) / n, 0.05), "stuck depth", f"{split}: {len(stuck)} of {len(pairs)} "
            "pictures have the depth of another picture, to the last pixel: the sensor hung while "
            "the camera went on", "remove these pairs, or record again",
            (pairs[i].depth for i in stuck), [pairs[i] for i in stuck],
        )  # fmt: skip
    if shared:
        found.add(
            graded(len(shared) / n, 0.05), "depth file twice", f"{split}: one depth file stands "
            "beside several pictures", "correct the list: each picture has its own depth",
            (f"{pairs[i].rgb}: {pairs[i].depth}" for i in shared), [pairs[i] for i in shared],
        )  # fmt: skip
    if repeated:
        found.add(
            "warning", "repeated pairs", f"{split}: {len(repeated)} of {len(pairs)} pairs are "
            "there already under another name: a camera that stood still, or copies; they only "
            "weigh more", "remove the repeats if that is not meant",
            (pairs[i].rgb for i in repeated), [pairs[i] for i in repeated],
        )  # fmt: skip


def details(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 24, 32) u8 -> two (N, 768) of mean 0 and length 1: the whole, and without its broad
    light and dark, which all street or desk scenes share."""
    whole_ = thumbs.astype(np.float32)
    fine = np.stack([t - cv2.GaussianBlur(t, (0, 0), 3) for t in whole_])

    def unit(t):
        t = t.reshape(len(t), -1)
        t = t - t.mean(1, keepdims=True)
        return t / np.maximum(np.linalg.norm(t, axis=1, keepdims=True), 1.0)

    return unit(whole_), unit(fine)


TWIN, TWIN_WHOLE = 0.7, 0.8  # correlation of `details`: neighbouring frames of a hand-held video


def check_leak(train, train_looks, val, val_looks, found: Findings) -> dict:
    """Pictures of val that training has as good as seen. Two are twins when both `details`
    correlate; val segments of 7-Scenes stay under 0.46, neighbouring frames are at 0.8."""
    a = [i for i, seen in enumerate(train_looks) if seen.thumb is not None]
    b = [i for i, seen in enumerate(val_looks) if seen.thumb is not None]
    b = [b[k] for k in np.linspace(0, len(b) - 1, min(len(b), 2000)).round().astype(int)]
    if not a or not b:
        return {}
    val_whole, val_fine = details(np.stack([val_looks[i].thumb for i in b]))
    best, which = np.full(len(b), -1.0), np.zeros(len(b), int)
    for start in range(0, len(a), 4096):
        some = a[start : start + 4096]
        whole_, fine = details(np.stack([train_looks[i].thumb for i in some]))
        near = np.where(val_whole @ whole_.T >= TWIN_WHOLE, val_fine @ fine.T, -1.0)
        k = near.argmax(1)
        better = near[np.arange(len(b)), k] > best
        best[better] = near[np.arange(len(b)), k][better]
        which[better] = np.array(some)[k[better]]
    digests = {train_looks[i].rgb: i for i in a}
    exact = [(j, digests[val_looks[j].rgb]) for j in b if val_looks[j].rgb in digests]
    copies = {j for j, _ in exact}
    near = [(j, i) for j, i, r in zip(b, which, best) if r >= TWIN and j not in copies]
    share = (len(exact) + len(near)) / len(b)
    cure = "split by place and time: whole rooms, drives or days go to one side (a random split of "
    cure += "a video is none), then make the lists anew"
    both = (exact, "are in train as well, the same file"), (
        near, "have a near twin in train (neighbouring frames of a video?)"
    )  # fmt: skip
    for twins, what in both:
        if twins:
            found.add(
                graded(share, 0.05), "leak", f"val: {len(twins)} of {len(b)} pictures {what}: "
                "scores on it say nothing of new pictures", cure,
                (f"{val[j].rgb} = {train[i].rgb}" for j, i in twins), [val[j] for j, _ in twins],
            )  # fmt: skip
    return {"checked": len(b), "same": len(exact), "near": len(near), "share": share}


# --------------------------------------------------------------------------- some pairs, decoded


@dataclass
class Probe:
    """What one decoded pair tells. values: some of its valid depths in file units; edges: the
    score of the depth's edges on the picture's for every shift (2R+1, 2R+1); flips: its best within
    4 pixels for the depth mirrored; lags: its mean for the depth of the k-th next frame."""

    pair: Pair
    problem: str = ""
    valid: float = 0.0
    top: float = 0.0  # share of the valid pixels that is in the upper quarter
    values: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    largest: int = 0
    at_largest: float = 0.0  # share of the valid pixels
    full: float = 0.0  # share of the valid pixels that is 65535
    constant: bool = False
    levels: int = 0
    regular: int = 0  # units between its levels, where these are few and even
    rows: float = math.nan
    planes: tuple[int, int] = (0, 0)
    zoom: float = 1.0
    edges: np.ndarray | None = None
    flips: dict[str, float] = field(default_factory=dict)
    lags: dict[int, float] = field(default_factory=dict)


def probe_run(pairs: list[Pair]) -> list[Probe]:
    """Probes of neighbouring frames of one scene."""
    probes, marks, lines = [], [], []
    for pair in pairs:
        try:
            grey = _decode(pair.rgb, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
            depth = _decode(pair.depth, cv2.IMREAD_UNCHANGED)
            if depth.dtype != np.uint16 or depth.ndim != 2:
                raise DataError(f"{pair.depth}: not a 16-bit grayscale PNG")
        except DataError as error:
            probes.append(Probe(pair, str(error)))
            marks.append(None)
            lines.append(None)
            continue
        seen = probe_depth(pair, depth)
        depth[depth == 65535] = 0
        zoom = min(1.0, 640 / depth.shape[1])
        size = round(depth.shape[0] * zoom), round(depth.shape[1] * zoom)
        seen.zoom = 1 / zoom
        depth = resize_depth(depth, size, "nearest")
        seen.planes = bent_planes(depth)
        E, M = depth_edges(depth), picture_edges(resize_picture(grey, size))
        seen.edges = slide(E, M, reach(size))
        if seen.edges is not None:
            R, w = reach(size), min(4, reach(size))
            for name, turn in (("left to right", E[:, ::-1]), ("upside down", E[::-1]),
                               ("turned by 180 degrees", E[::-1, ::-1])):  # fmt: skip
                scores = slide(turn, M, R)
                if scores is not None:
                    seen.flips[name] = float(scores[R - w : R + w + 1, R - w : R + w + 1].max())
        probes.append(seen)
        marks.append(E)
        lines.append(M)
    for i, seen in enumerate(probes):
        for k in range(-2, 3):
            j = i + k
            if seen.edges is None or not 0 <= j < len(probes) or probes[j].edges is None:
                continue
            if marks[j].shape == lines[i].shape:
                seen.lags[k] = float(lines[i][marks[j]].mean())
    return probes


def probe_depth(pair: Pair, depth: np.ndarray) -> Probe:
    """The numbers of one depth map (H, W) u16."""
    seen = Probe(pair)
    known = depth > 0
    seen.valid = float(known.mean())
    values = depth[known]
    if not values.size:
        return seen
    seen.constant = values.size > 100 and values.min() == values.max()
    seen.full = float((values == 65535).mean())
    if 0 < seen.full < 1:  # what it is told of below, but no depth
        known &= depth < 65535
        values = depth[known]
    seen.top = float(known[: len(known) // 4].sum() / values.size)
    seen.values = values[:: -(-values.size // 5000)].astype(np.int64)
    seen.largest = int(values.max())
    seen.at_largest = float((values == seen.largest).mean())
    levels = np.unique(values).astype(np.int64)
    seen.levels = len(levels)
    seen.regular = even_steps(levels)
    y = np.nonzero(known)[0].astype(np.float64)
    logs = np.log(values.astype(np.float64))
    if values.size > 500 and y.std() > 0 and logs.std() > 1e-3:
        seen.rows = float(np.corrcoef(y, logs)[0, 1])
    return seen


def even_steps(levels: np.ndarray) -> int:
    """The step of sorted levels where they are few (3 to 256) and on a grid of 32 units or more, as
    8 bits or whole metres blown up to 16 leave them; else 0."""
    if not 3 <= len(levels) <= 256:
        return 0
    smallest = int(np.diff(levels).min())
    if smallest < 32:
        return 0
    span = levels[-1] - levels[0]
    step = span / max(1, round(span / smallest))
    off = (levels - levels[0]) / step
    return round(step) if (np.abs(off - np.round(off)) * step <= 1.5).all() else 0


def bent_planes(depth: np.ndarray) -> tuple[int, int]:
    """Where three pixels in line are on a plane, the middle one's depth is the harmonic mean of the
    outer two (Eq. 9's planes are affine in 1/z); of a disparity it is their mean. (depth,
    disparity): how many triples of slanted surfaces are clearly nearer to the one or the other."""
    step = max(4, depth.shape[1] // 20)
    smooth = cv2.medianBlur(depth, 5).astype(np.float32)
    votes = np.zeros(2, np.int64)
    for map_ in (smooth, smooth.T):
        if len(map_) <= 2 * step:
            continue
        a, b, c = (map_[s : len(map_) - 2 * step + s : 3, ::3] for s in (0, step, 2 * step))
        known = (a > 0) & (b > 0) & (c > 0)
        a, b, c = a[known], b[known], c[known]
        ratio = np.maximum(a, c) / np.minimum(a, c)
        a, b, c = (v[(ratio > 1.15) & (ratio < 2.5)] for v in (a, b, c))
        mean, harmonic = (a + c) / 2, 2 * a * c / (a + c)
        t = (b - harmonic) / (mean - harmonic)
        votes += [(np.abs(t) < 0.25).sum(), (np.abs(t - 1) < 0.25).sum()]
    return int(votes[0]), int(votes[1])


def reach(size: tuple[int, int]) -> int:
    return max(4, round(REACH * size[1] / 640))


def depth_edges(depth: np.ndarray) -> np.ndarray:
    """Where a small window holds depths apart by 8 % and more (15 % in sparse maps, whose window
    reaches from scan line to scan line). Borders of holes are no edges; those of a few pixels are
    filled from behind, as the shadow beside a near thing is."""
    known = depth > 0
    sparse = known.mean() < 0.1
    window = np.ones((9, 5) if sparse else (3, 3))
    if not sparse:
        depth = np.where(known, depth, cv2.dilate(depth, np.ones((5, 5))))
        known = depth > 0
    far = cv2.dilate(depth, window).astype(np.float32)
    near = cv2.erode(np.where(known, depth, np.uint16(65535)), window).astype(np.float32)
    return far > near * np.exp(0.15 if sparse else 0.08)


def picture_edges(grey: np.ndarray) -> np.ndarray:
    """Strength of the picture's edges, mean 0 and deviation 1 over the picture, float32."""
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.0)
    strength = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    strength = np.minimum(strength / (np.percentile(strength, 90) + 1e-6), 1)
    return (strength - strength.mean()) / (strength.std() + 1e-6)


def slide(E: np.ndarray, M: np.ndarray, R: int) -> np.ndarray | None:
    """Mean of M under the edges E, for E moved by (dy, dx) in -R..R: [R + dy, R + dx]. None where
    there are too few edges to tell."""
    E = E.astype(np.float32)
    E[:R] = E[-R:] = 0
    E[:, :R] = E[:, -R:] = 0
    n = int(E.sum())
    if n < max(100, E.size // 1000):
        return None
    h, w = (cv2.getOptimalDFTSize(s) for s in E.shape)
    pad = np.zeros((2, h, w), np.float32)
    pad[0, : len(M), : M.shape[1]], pad[1, : len(E), : E.shape[1]] = M, E
    product = cv2.mulSpectrums(cv2.dft(pad[0]), cv2.dft(pad[1]), 0, conjB=True)
    scores = cv2.dft(product, flags=cv2.DFT_INVERSE | cv2.DFT_SCALE) / n
    return np.roll(scores, (R, R), (0, 1))[: 2 * R + 1, : 2 * R + 1]


# ---------------------------------------------------------------------- what the decoded ones tell


def choose(pairs: list[Pair], count: int, seed: int) -> list[list[Pair]]:
    """Runs of at most RUN neighbours of one scene, `count` pairs or a few more, evenly spread over
    all scenes from a seeded start; of each scene two runs where there is room for that."""
    scenes: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        scenes[str(pair.folder)].append(pair)
    runs = [[m[k : k + RUN] for k in range(0, len(m), RUN)] for m in scenes.values()]
    total, rng = max(1, count // RUN), np.random.default_rng(seed)
    if sum(map(len, runs)) <= total:
        return [run for scene in runs for run in scene]
    if 2 * len(runs) > total:  # more scenes than that: some of all
        every = [run for scene in runs for run in scene]
        return [every[int(k)] for k in np.sort(rng.choice(len(every), total, replace=False))]
    chosen = []
    for scene in runs:
        n = min(len(scene), max(2, round(total * sum(map(len, scene)) / len(pairs))))
        places = (np.arange(n) + rng.random()) * len(scene) / n
        chosen += [scene[int(k)] for k in places]
    return chosen


def by_scene(probes: list[Probe], most: int = 12) -> dict[str, list[Probe]]:
    """The readable ones with a valid depth, by scene; beyond `most` scenes the smaller are one."""
    scenes: dict[str, list[Probe]] = defaultdict(list)
    for p in probes:
        if not p.problem and p.values.size:
            scenes[p.pair.scene].append(p)
    if len(scenes) <= most:
        return dict(scenes)
    large = sorted(scenes, key=lambda s: -len(scenes[s]))[: most - 1]
    kept = {s: scenes[s] for s in scenes if s in large}
    kept[f"{len(scenes) - len(large)} more scenes"] = [
        p for s, members in scenes.items() if s not in large for p in members
    ]
    return kept


def quantiles(probes: list[Probe], q: tuple[float, ...] = (1, 50, 99)) -> list[float]:
    """Of the depths in file units, every picture with the same weight."""
    values = [p.values[np.linspace(0, p.values.size - 1, 1000).astype(int)] for p in probes]
    return [float(v) for v in np.percentile(np.concatenate(values), q)]


def is_lidar(probes: list[Probe]) -> bool:
    """Under 10 % valid, and next to nothing in the upper quarter: a car's rotating scanner."""
    sparse = np.mean([p.valid for p in probes]) < 0.1
    return bool(sparse and np.median([p.top for p in probes]) < 0.05)


def misfit(probes: list[Probe], scale: float) -> float:
    """How badly depths at `scale` units a metre fit what sensors see: 0 = well, 9 = hardly.

    Each of 1st percentile, median and 99th is free within a range and costs ((decades outside) /
    sigma)^2 beyond; a mild pull goes to the usual median. Values that are all multiples of 5 or 10
    speak of 1/5000 m or 0.1 mm written from millimetres.
    """
    ranges = ((0.2, 4), (0.4, 10), (0.8, 45)), 0.15, 2.0, 0.35
    if is_lidar(probes):
        ranges = ((1.5, 8), (4, 25), (30, 130)), 0.1, 10.0, 0.35
    limits, sigma, usual, wide = ranges
    q = [max(v, 0.5) / scale for v in quantiles(probes)]
    cost = 0.5 * (math.log10(q[1] / usual) / wide) ** 2
    for value, (low, high) in zip(q, limits):
        cost += (math.log10(max(1, low / value, value / high)) / sigma) ** 2
    cost = min(cost, 25.0)
    g = common_factor(probes)
    if g % 10 == 0:
        cost += {10000.0: 0, 5000.0: 6}.get(scale, 8)
    elif g % 5 == 0:
        cost += 8 * (scale != 5000.0)
    return cost


def common_factor(probes: list[Probe]) -> int:
    """10, 5 or 1: which divides 98 % of the depths; 1 where those are too few or coarse to tell."""
    values = np.concatenate([p.values for p in probes])
    values = values[values < 65535]
    if any(p.regular for p in probes) or len(np.unique(values)) < 50:
        return 1
    return next((g for g in (10, 5) if (values % g == 0).mean() > 0.98), 1)


def disparity_signs(probes: list[Probe]) -> dict[str, float]:
    """pictures, those whose planes are bent as a disparity's (or a depth's), those whose values
    grow towards the bottom, and the mean correlation of row and log value."""
    votes = [p.planes for p in probes if sum(p.planes) >= 100 and p.levels >= COARSE]
    rows = [p.rows for p in probes if math.isfinite(p.rows)]
    return {
        "pictures": len(probes), "with_planes": len(votes),
        "planes_as_disparity": sum(b > 1.5 * a for a, b in votes),
        "planes_as_depth": sum(a > 1.5 * b for a, b in votes),
        "with_rows": len(rows), "grow_downwards": sum(r > 0 for r in rows),
        "row_correlation": float(np.mean(rows)) if rows else 0.0,
    }  # fmt: skip


def is_disparity(signs: dict[str, float]) -> bool:
    """Both signs for it, or one strongly and the other not against it."""
    planes, rows = signs["with_planes"], signs["with_rows"]
    bent = planes >= 3 and signs["planes_as_disparity"] >= 0.6 * planes
    straight = planes >= 3 and signs["planes_as_depth"] >= 0.6 * planes
    down = rows >= 3 and signs["grow_downwards"] >= 0.8 * rows and signs["row_correlation"] > 0.15
    up = rows >= 3 and signs["grow_downwards"] <= 0.2 * rows and signs["row_correlation"] < -0.15
    return (bent and not up) or (
        down and not straight and rows >= 5 and signs["row_correlation"] > 0.2
    )


def check_unit(
    scenes: dict[str, list[Probe]], flipped: set[str], scale: float, found: Findings
) -> dict:
    """What a unit of the files is. Disparity first: no scale mends that. Nor can one be guessed
    where most maps have lost their levels. flipped: scenes whose rows say nothing."""
    signs = {name: disparity_signs(probes) for name, probes in scenes.items()}
    for name in flipped:
        signs[name] |= {"with_rows": 0}
    inverse = [name for name, s in signs.items() if is_disparity(s)]
    n = sum(len(p) for p in scenes.values())
    share = sum(len(scenes[name]) for name in inverse) / max(1, n)
    result: dict[str, Any] = {"disparity": signs}
    if inverse:
        s = signs[inverse[0]]
        found.add(
            "error" if share >= 0.5 else "warning", "disparity",
            f"{', '.join(inverse[:4])}: this looks like disparity or inverse depth (large = near): "
            f"values grow downwards in {s['grow_downwards']} of {s['with_rows']} pictures, planes "
            f"are bent as a disparity's in {s['planes_as_disparity']} of {s['with_planes']}",
            "convert it: metres = focal length in pixels * baseline in metres / disparity, then "
            "1000 * metres as 16 bit; a relative inverse depth has no metres",
            inverse, [scenes[name][0].pair for name in inverse], count=len(inverse),
        )  # fmt: skip
    plain = {name: p for name, p in scenes.items() if name not in inverse}
    coarse = sum(p.regular > 0 for members in plain.values() for p in members)
    if share >= 0.5 or not plain or coarse >= 0.5 * n:
        return result
    candidates = sorted({*SCALES, scale})
    costs = {s: {name: misfit(p, s) for name, p in plain.items()} for s in candidates}
    mean = {s: float(np.mean(list(c.values()))) for s, c in costs.items()}
    order = sorted(candidates, key=lambda s: (mean[s], abs(math.log(s / scale))))
    best = order[0]
    result |= {
        "misfit": {f"{s:g}": round(mean[s], 2) for s in order}, "best": best,
        "common_factor": {name: common_factor(p) for name, p in plain.items()},
    }  # fmt: skip

    def told(s: float) -> str:
        q = np.median([quantiles(p) for p in plain.values()], 0) / s
        return f"{s:g} ({SCALES.get(s, 'as given')}: {q[0]:.3g} .. {q[1]:.3g} .. {q[2]:.3g} m)"

    odd = []
    for name, members in plain.items():
        own = min(candidates, key=lambda s: costs[s][name])
        if len(plain) > 1 and costs[scale][name] - costs[own][name] >= 9 and costs[own][name] < 6:
            odd.append((name, own, members[0].pair))
    rest = plain.keys() - {name for name, *_ in odd}
    mixed = odd and any(costs[best][name] > costs[scale][name] + 2 for name in rest)
    margin = mean[scale] - mean[best]
    if margin >= 4 and not mixed:
        close = [s for s in order if mean[s] < mean[best] + 2][:3]
        why = f"1st percentile, median and 99th would be {told(scale).partition(': ')[2][:-1]}"
        factors = {g for g in result["common_factor"].values() if g > 1}
        if factors:
            why += f"; the values are multiples of {max(factors)}"
        options = [f"--depth_scale {s:g} --max_depth {max_depth(plain, s):g}" for s in close]
        sure = margin >= 9 and mean[best] < 9
        cure = " or ".join(options)
        if best == 1.0:
            cure = "whole metres keep no detail: export anew, 1000 * metres as 16 bit (to look at "
            cure += f"it nevertheless: {options[0]})"
        if sure:
            why += f". More likely: {', '.join(map(told, close))}"
        elif mean[best] < 9:
            why += f". Possible: {', '.join(map(told, close))}"
            cure = f"measure one known distance; then perhaps {cure}"
        else:
            why += ". No usual unit fits"
            cure = "measure one known distance; units per metre = value / metres"
        found.add(
            "error" if sure else "warning", "unit", f"--depth_scale {scale:g} does not fit: {why}",
            cure,
            [f"{name}: misfit {costs[scale][name]:.1f}, at {best:g} {costs[best][name]:.1f}"
             for name in plain],
            [p[0].pair for p in plain.values()], count=n,
        )  # fmt: skip
        return result
    if odd:
        found.add(
            "error", "unit", f"--depth_scale {scale:g} fits the set, but not "
            + ", ".join(f"{name} (rather {own:g})" for name, own, _ in odd),
            "bring these scenes to the others' unit: depth * "
            + " or ".join(sorted({f"{scale / own:g}" for _, own, _ in odd})),
            [name for name, *_ in odd], [pair for *_, pair in odd],
        )  # fmt: skip
    return result


def max_depth(scenes: dict[str, list[Probe]], scale: float) -> float:
    """A --max_depth that keeps 99.5 % of every scene's depths, rounded up."""
    far = max(quantiles(p, (99.5,))[0] for p in scenes.values()) / scale
    return float(next((r for r in ROUND if r >= far), math.ceil(far)))


def check_depths(probes: list[Probe], split: str, scale: float, found: Findings) -> None:
    """Holes, constant maps, values that mean "nothing" but are not 0, coarse values."""
    fine = [p for p in probes if not p.problem]
    texts = [p.problem for p in probes if p.problem]
    if texts:
        damaged(split, texts, len(probes), found)
    if not fine:
        return
    empty = [p for p in fine if p.valid == 0]
    if empty:
        found.add(
            graded(len(empty) / len(fine), 0.2), "no depth", f"{split}: {len(empty)} of "
            f"{len(fine)} depth maps looked at have no valid pixel (all 0): they teach nothing",
            "remove these pairs", (p.pair.depth for p in empty), [p.pair for p in empty],
        )  # fmt: skip
    flat = [p for p in fine if p.constant]
    if flat:
        found.add(
            graded(len(flat) / len(fine), 0.2), "constant depth", f"{split}: {len(flat)} of "
            f"{len(fine)} depth maps looked at hold one single value",
            "remove these pairs; look at what wrote them", (p.pair.depth for p in flat),
            [p.pair for p in flat],
        )  # fmt: skip
    full = [p for p in fine if p.full > 0 and not p.constant]
    if full:
        share = float(np.mean([p.full for p in fine]))
        found.add(
            graded(share, 0.001), "saturated", f"{split}: {100 * share:.2g} % of all valid pixels "
            f"are 65535, in {len(full)} of {len(fine)} pictures: no return, or cut off, but read "
            f"as {65535 / scale:.3g} m", "make them holes: depth[depth == 65535] = 0",
            (p.pair.depth for p in full), [p.pair for p in full],
        )  # fmt: skip
    tops: dict[int, list[Probe]] = defaultdict(list)
    for p in fine:
        if p.at_largest > 0.005 and not p.constant and p.levels >= COARSE and not p.regular:
            tops[p.largest].append(p)
    for value, some in tops.items():
        if len(some) >= max(3, 0.2 * len(fine)):
            share = float(np.mean([p.at_largest for p in some]))
            found.add(
                graded(share, 0.02), "saturated", f"{split}: {len(some)} of {len(fine)} pictures "
                f"end at the same value, {value} ({value / scale:.3g} m), with {share:.1%} of "
                "their valid pixels: a limit of the sensor, or no return",
                f"make them holes: depth[depth >= {value}] = 0", (p.pair.depth for p in some),
                [p.pair for p in some],
            )  # fmt: skip
    coarse = [p for p in fine if p.regular]
    if len(coarse) >= max(1, 0.2 * len(fine)):
        step = int(np.median([p.regular for p in coarse]))
        found.add(
            "error", "coarse depth", f"{split}: 16-bit files with at most 256 levels {step} units "
            f"apart, in {len(coarse)} of {len(fine)}: 8-bit depth (or whole metres) blown up",
            "export the raw depth anew; the steps between cannot be had back",
            (p.pair.depth for p in coarse), [p.pair for p in coarse],
        )  # fmt: skip


def check_far(
    probes: list[Probe], split: str, scale: float, farthest: float, found: Findings
) -> None:
    """Depths beyond --max_depth."""
    probes = [p for p in probes if p.values.size]
    beyond = float(np.mean([(p.values > farthest * scale).mean() for p in probes] or [0]))
    if beyond > 0.02:
        found.add(
            "warning", "far", f"{split}: {beyond:.1%} of the depths lie beyond --max_depth "
            f"{farthest:g}, where evaluation cuts predictions but not the truth",
            f"--max_depth {max_depth({'': probes}, scale):g}", count=len(probes),
        )  # fmt: skip


def check_scenes(scenes: dict[str, list[Probe]], focal: dict[str, float], found: Findings) -> None:
    """Sparse scenes, and scenes of sensors unlike each other."""
    valid = {name: float(np.mean([p.valid for p in m])) for name, m in scenes.items()}
    sparse = [name for name, share in valid.items() if share < 0.1]
    if sparse:
        found.add(
            "warning", "sparse", f"{', '.join(sparse[:4])}: {valid[sparse[0]]:.1%} of the pixels "
            "have a depth, as of a LiDAR: it can be trained on, with fewer neighbours for Eq. 8",
            "keep --gt_down cell; --teacher_depth can fill the holes",
            sparse, [scenes[name][0].pair for name in sparse],
        )  # fmt: skip
    middle = {name: quantiles(m)[1] for name, m in scenes.items()}
    ways = []
    for what, of, factor in (("valid share", valid, 4), ("median depth", middle, 6),
                             ("focal length", focal, 1.5)):  # fmt: skip
        if len(of) > 1 and max(of.values()) > factor * min(of.values()):
            low, high = min(of, key=of.get), max(of, key=of.get)
            ways.append(f"{what} ({low} the least, {high} {of[high] / of[low]:.1f} times that)")
    if ways:
        found.add(
            "warning", "mixed sensors", f"the scenes are unlike each other: {'; '.join(ways)}",
            "meant so: nothing to do, but read evaluate.py's table by scene; else leave scenes out",
            count=len(scenes),
        )  # fmt: skip


def check_alignment(scenes: dict[str, list[Probe]], seed: int, found: Findings) -> dict:
    """Whether the depth's edges lie on the picture's: best shift, mirrored, another frame's."""
    results, shifted, flipped, lagging, apart = {}, [], [], [], []
    for name, probes in scenes.items():
        some = [p for p in probes if p.edges is not None and p.levels >= COARSE]
        sizes = [p.edges.shape for p in some]
        usual = max(set(sizes), key=sizes.count) if sizes else None
        some = [p for p in some if p.edges.shape == usual]
        result = alignment(some, seed)
        results[name] = result
        if not result or result["pictures"] < 5:
            continue
        pair, lag = some[0].pair, result["lag"]
        if result["flip"]:
            flipped.append((name, f"{name}: {result['flip']}", pair))
        elif lag:
            side = ("or more " if abs(lag) == 2 else "") + ("late" if lag > 0 else "early")
            lagging.append((name, f"{name}: depth {abs(lag)} frame(s) {side} "
                            f"({result['lag_share']:.0%} of its pictures)", pair))  # fmt: skip
        elif result["sure"] and result["length"] >= LITTLE:
            text = f"{name}: move the depth by dx {result['dx']:+d}, dy {result['dy']:+d} px "
            text += f"(score {result['zero']:.2f} -> {result['best']:.2f}, better in "
            text += f"{result['agree']:.0%} of {result['pictures']} pictures)"
            shifted.append((result["length"] >= MUCH, text, pair))
        elif result["own"] < result["others"] + 0.05 and result["pictures"] >= 8:
            apart.append((name, f"{name}: score {result['own']:.2f}, with a neighbour's depth "
                          f"{result['others']:.2f}", pair))  # fmt: skip
    if flipped:
        found.add(
            "error", "mirrored", "depth that is mirrored against its pictures",
            "flip one of the two: depth[:, ::-1] (left to right), depth[::-1] (upside down), "
            "depth[::-1, ::-1] (180 degrees); an EXIF orientation is ignored in training",
            (t for _, t, _ in flipped), [p for *_, p in flipped],
        )  # fmt: skip
    if lagging:
        found.add(
            "error", "lag", "depth that fits a neighbouring frame better than its own",
            "pair by time stamp, or rename the depth files by that many frames",
            (t for _, t, _ in lagging), [p for *_, p in lagging],
        )  # fmt: skip
    for large in (True, False):
        some = [s for s in shifted if s[0] == large]
        if some:
            found.add(
                "error" if large else "warning", "misaligned",
                "depth that lies beside its pictures" + ("" if large else ", a little"),
                "register the depth to the colour camera (intrinsics of both and the transform "
                "between, or the sensor's own tool); after that check again",
                (t for _, t, _ in some), [p for *_, p in some],
            )  # fmt: skip
    if apart:
        found.add(
            "warning", "edges", "the depth's edges are on the pictures' no more than by chance: "
            "unregistered, of other frames, or too blurred to tell", "look at contact.png",
            (t for _, t, _ in apart), [p for *_, p in apart],
        )  # fmt: skip
    return results


def alignment(probes: list[Probe], seed: int) -> dict:
    """Best shift of the depth (pixels of the stored depth) over the pictures, and whether it holds:
    in 95 % of bootstraps within 2 pixels, in 75 % of the pictures better than none, by a fifth.
    flip and lag likewise, from 80 % of the pictures on."""
    if not probes:
        return {}
    S = np.stack([p.edges for p in probes])
    R = S.shape[1] // 2
    mean = S.mean(0)
    y, x = np.unravel_index(mean.argmax(), mean.shape)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(S), (200, len(S)))
    weights = np.stack([np.bincount(d, minlength=len(S)) for d in draws]) / len(S)
    peaks = (weights @ S.reshape(len(S), -1)).argmax(1)
    off = np.maximum(abs(peaks // (2 * R + 1) - y), abs(peaks % (2 * R + 1) - x))
    zero, best = float(mean[R, R]), float(mean[y, x])
    agree, inside = float((S[:, y, x] > S[:, R, R]).mean()), max(abs(y - R), abs(x - R)) < R
    w = min(4, R)
    own = S[:, R - w : R + w + 1, R - w : R + w + 1].max((1, 2))
    flip = ""
    for name in ("left to right", "upside down", "turned by 180 degrees"):
        other = np.array([p.flips.get(name, -1.0) for p in probes])
        if other.mean() > own.mean() + 0.25 and (other > own).mean() >= 0.8:
            flip = name if not flip else flip
    lag, lag_share = 0, 0.0
    for k in (-2, -1, 1, 2):
        both = np.array([(p.lags[0], p.lags[k]) for p in probes if k in p.lags and 0 in p.lags])
        if len(both) >= 8:
            share = float((both[:, 1] > both[:, 0]).mean())
            if share >= 0.8 and share > lag_share and both[:, 1].mean() > 1.2 * both[:, 0].mean():
                lag, lag_share = k, share
    others = [p.lags[k] for p in probes for k in p.lags if k]
    zoom = float(np.median([p.zoom for p in probes]))
    length = math.hypot(x - R, y - R) * REACH / R  # of a picture 640 wide
    dx, dy = round((x - R) * zoom), round((y - R) * zoom)
    sure = (off <= 2).mean() >= 0.95 and agree >= 0.75 and inside and best > max(0.3, 1.2 * zero)
    return {
        "pictures": len(probes), "dx": dx, "dy": dy, "length": length,
        "zero": zero, "best": best, "agree": agree, "bootstrap": float((off <= 2).mean()),
        "sure": bool(sure and len(probes) >= 5), "flip": flip, "lag": lag, "lag_share": lag_share,
        "own": float(np.mean([p.lags[0] for p in probes])),
        "others": float(np.mean(others)) if others else -1.0,
    }  # fmt: skip


# --------------------------------------------------------------------------------- what is shown


def histogram(probes: list[Probe], scale: float, width: int = 40) -> list[str]:
    """Lines of a text histogram of all valid depths in metres, in about ten equal ratios."""
    q = quantiles(probes, (0, 100))
    low, high = max(q[0], 1) / scale, max(q[1], q[0] * 1.01) / scale
    edges = np.geomspace(low, high * 1.0001, 11)
    share = np.zeros(10)
    for p in probes:
        share += np.histogram(p.values / scale, edges)[0] / p.values.size / len(probes)
    return [
        f"  {a:8.3g} .. {b:<8.3g} m {s:6.1%} {'#' * round(width * s / max(share.max(), 1e-9))}"
        for a, b, s in zip(edges, edges[1:], share)
    ]


def scene_rows(split, pairs, looks, probes: list[Probe], scale: float) -> list[dict]:
    """One row of the report's table per scene."""
    count: dict[str, int] = defaultdict(int)
    sizes: dict[str, set] = defaultdict(set)
    for pair, seen in zip(pairs, looks):
        count[pair.scene] += 1
        if min(seen.size):
            sizes[pair.scene].add(f"{seen.size[0]}x{seen.size[1]}")
    scenes = by_scene(probes)
    rows = []
    for name in dict.fromkeys([*count, *scenes]) if len(count) <= 12 else scenes:
        members = scenes.get(name, [])
        row = {
            "split": split, "scene": name, "pairs": count.get(name, 0), "decoded": len(members),
            "sizes": sorted(sizes.get(name, ())),
        }  # fmt: skip
        if members:
            q = quantiles(members, (0, 1, 50, 99))
            metres = [v / scale for v in (*q, max(p.largest for p in members))]
            row["valid"] = float(np.mean([p.valid for p in members]))
            row |= dict(zip(("min_m", "p1_m", "median_m", "p99_m", "max_m"), metres))
        rows.append(row)
    return rows


def table(rows: list[dict]) -> list[str]:
    """The scenes' rows as text."""
    wide = max([len(r["scene"]) for r in rows] + [5])
    lines = [f"{'split':8} {'scene':{wide}} {'pairs':>6} {'decoded':>7} {'size':>9} {'valid':>6} "
             f"{'p1':>7} {'median':>7} {'p99 m':>7}  min .. max m"]  # fmt: skip
    for r in rows:
        size = r["sizes"][0] if len(r["sizes"]) == 1 else "mixed" if r["sizes"] else "-"
        line = f"{r['split']:8} {r['scene']:{wide}} {r['pairs']:6} {r['decoded']:7} {size:>9} "
        if "valid" in r:
            line += f"{r['valid']:6.1%} {r['p1_m']:7.3g} {r['median_m']:7.3g} {r['p99_m']:7.3g}  "
            line += f"{r['min_m']:.3g} .. {r['max_m']:.3g}"
        lines.append(line.rstrip())
    return lines


def describe(finding: Finding) -> list[str]:
    """A finding as lines: what, some examples, the cure."""
    times = f" [{finding.count}]" if finding.count > 1 else ""
    lines = [f"{finding.severity.upper()} {finding.check}{times}: {finding.what}"]
    lines += [f"    - {example}" for example in finding.examples[:NAMED]]
    more = finding.count - NAMED
    if more > 0 and len(finding.examples) > NAMED:
        lines.append(f"    - and {more} more")
    return [*lines, f"    cure: {finding.cure}"]


def tile(pair: Pair, title: str, scale: float, size: tuple[int, int]) -> np.ndarray | None:
    """BGR u8: the picture with the depth's edges in magenta | the depth with its bar; None where
    the pair cannot be decoded."""
    try:
        rgb = _decode(pair.rgb, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        depth = _decode(pair.depth, cv2.IMREAD_UNCHANGED)
    except DataError:
        return None
    if depth.ndim == 3:
        depth = depth.max(2)
    depth = depth.astype(np.uint16)
    h, w = size
    shape = rgb.shape[:2]
    zoom = min(h / shape[0], w / shape[1])
    to = max(1, round(shape[0] * zoom)), max(1, round(shape[1] * zoom))
    # Found at twice the size at most, where a window of 3 pixels still is one edge.
    fine = tuple(min(2 * t, max(t, s)) for t, s in zip(to, depth.shape))
    E = depth_edges(resize_depth(depth, fine, "nearest"))
    E = cv2.resize(E.astype(np.uint8), to[::-1], interpolation=cv2.INTER_AREA)
    E = cv2.dilate(E, np.ones((2, 2))) > 0
    view = resize_picture(rgb, to)
    view = (0.75 * view).astype(np.uint8)  # a little darker, so that the edges stand out
    view[E] = (255, 60, 255)
    shown = resize_depth(depth.astype(np.float32), to, "nearest") / np.float32(scale)
    known = shown > 0
    if 0 < known.mean() < 0.1:  # single pixels of a LiDAR cannot be seen
        shown = cv2.erode(np.where(known, shown, np.float32(1e9)), np.ones((3, 3)))
        shown[shown > 1e8] = 0
    near, far = auto_range([shown])
    canvas = np.full((h, 2 * w + 6, 3), WHITE, np.uint8)
    canvas[: to[0], : to[1]] = view
    canvas[: to[0], w + 6 : w + 6 + to[1]] = colorize(shown, near, far)
    canvas = with_colorbar(canvas, near, far, holes=not known.all())
    head = np.full((30, canvas.shape[1], 3), WHITE, np.uint8)
    plain = title[:90].encode("ascii", "replace").decode()  # OpenCV has no other letters
    write_text(head, plain, 2, 16, 13)
    return np.concatenate([head, canvas])


def contact_sheet(
    splits: dict[str, dict], found: Findings, scale: float, count: int = 12
) -> np.ndarray | None:
    """A dozen pairs in two columns, those of findings first, the others spread over the scenes;
    BGR u8, None where nothing can be decoded."""
    wanted: dict[Pair, str] = {}
    for most in (1, 2):  # of each finding one, then one more
        for finding in found.worst():
            for pair in finding.pairs[:most]:
                if len(wanted) < count - 4:
                    wanted.setdefault(pair, f"{finding.severity}: {finding.check}")
    scenes = [m for s in splits.values() for m in by_scene(s["probes"]).values()]
    for k in range(count):
        for members in scenes:
            if k < len(members) and len(wanted) < count:
                place = round((k + 0.5) * (len(members) - 1) / max(1, count // len(scenes)))
                wanted.setdefault(members[min(place, len(members) - 1)].pair, "")
    tiles = []
    for pair, problem in wanted.items():
        where = os.path.relpath(pair.rgb, found.root)
        made = tile(pair, f"{problem}  {where}" if problem else where, scale, (300, 400))
        tiles += [] if made is None else [made]
    if not tiles:
        return None
    h, w = (max(t.shape[k] for t in tiles) for k in (0, 1))
    tiles = [np.pad(t, ((0, h - t.shape[0]), (0, w - t.shape[1]), (0, 0)), constant_values=255)
             for t in tiles]  # fmt: skip
    if len(tiles) % 2:
        tiles.append(np.full_like(tiles[0], 255))
    gap = np.full((h, 10, 3), 255, np.uint8)
    return np.concatenate(
        [np.concatenate([a, gap, b], 1) for a, b in zip(tiles[::2], tiles[1::2])]
    )


# -------------------------------------------------------------------------------------- the whole


def examine(
    root: Path, splits: tuple[str, ...], *, depth_scale: float, farthest: float,
    image_size: tuple[int, int], samples: int, seed: int,
) -> tuple[Findings, dict[str, dict], dict]:  # fmt: skip
    """All checks. splits: training's, then validation's if there is one to be.

    Returns the findings, by split its pairs, looks and probes, and what report.json holds of the
    whole. No DataError leaves it: that is what it is for.
    """
    found = Findings(root)
    seen: dict[str, dict] = {}
    focal: dict[str, float] = {}
    cv2.setNumThreads(1)  # one picture a thread
    with ThreadPoolExecutor(usable_cores()) as pool:
        for number, split in enumerate(splits):
            pairs = find_pairs(root, split, found, required=number == 0)
            bar = progress(pool.map(look, pairs), len(pairs), f"{split}: files")
            looks = list(bar)
            check_looks(pairs, looks, split, image_size, found)
            focal |= {f"{split}/{scene}": share for scene, share in
                      check_intrinsics(pairs, looks, split, found).items()}  # fmt: skip
            check_repeats(pairs, looks, split, found)
            usable = [p for p, s in zip(pairs, looks) if not s.problem]
            runs = choose(usable, samples, seed)
            bar = progress(pool.map(probe_run, runs), len(runs), f"{split}: decoding")
            probes = [p for run in bar for p in run]
            check_depths(probes, split, depth_scale, found)
            if number == 0 and 0 < len(pairs) < 50:
                found.add(
                    "warning", "few pairs", f"{split}: {len(pairs)} pairs are few to train on",
                    "some hundreds at least; or start from --pretrained weights and expect little",
                    count=len(pairs),
                )  # fmt: skip
            seen[split] = {"pairs": pairs, "looks": looks, "probes": probes}
    scenes: dict[str, list[Probe]] = defaultdict(list)
    for split, of in seen.items():
        for name, members in by_scene(of["probes"]).items():
            scenes[f"{split}/{name}" if name != split else name] += members
    whole_ = {"depth_scale": depth_scale, "max_depth": farthest}
    if scenes:
        whole_["alignment"] = check_alignment(scenes, seed, found)
        flipped = {name for name, a in whole_["alignment"].items() if a and a["flip"]}
        whole_["unit"] = check_unit(scenes, flipped, depth_scale, found)
        check_scenes(scenes, focal, found)
        if not any(f.check in ("unit", "disparity") for f in found):
            for split, of in seen.items():
                check_far(of["probes"], split, depth_scale, farthest, found)
        whole_["suggested_max_depth"] = max_depth(scenes, depth_scale)
    if len(splits) > 1:
        a, b = (seen[s] for s in splits)
        whole_["leak"] = check_leak(a["pairs"], a["looks"], b["pairs"], b["looks"], found)
    return found, seen, whole_


def write_report(
    data_name: str, root: Path, found: Findings, seen: dict[str, dict], whole_: dict
) -> tuple[str, dict]:
    """The report as text and as values."""
    scale = whole_["depth_scale"]
    rows = [row for split, s in seen.items()
            for row in scene_rows(split, s["pairs"], s["looks"], s["probes"], scale)]  # fmt: skip
    counts = ", ".join(f"{len(s['pairs'])} {split} pairs" for split, s in seen.items())
    decoded = sum(len(s["probes"]) for s in seen.values())
    lines = [f"{root}: {counts}; every file looked at, {decoded} pairs decoded; "
             f"--depth_scale {scale:g}", "", *table(rows)]  # fmt: skip
    with_depth = [p for s in seen.values() for p in s["probes"] if p.values.size]
    if with_depth:
        lines += ["", "valid depths, each picture alike:", *histogram(with_depth, scale)]
    shifts = [
        f"{name}: dx {a['dx']:+d}, dy {a['dy']:+d}; score {a['zero']:.2f} -> {a['best']:.2f} in "
        f"{a['pictures']} pictures: "
        + ("holds" if a["sure"] else "too little to tell" if a["pictures"] < 5 else
           "no better than none" if a["best"] <= 1.2 * a["zero"] else "not of one mind")
        for name, a in whole_.get("alignment", {}).items() if a
    ]  # fmt: skip
    if shifts:
        lines += ["", "depth edges on the pictures' lie best with the depth moved by, in pixels:"]
        lines += [f"  {text}" for text in shifts]
    unit = whole_.get("unit", {}).get("misfit")
    if unit:
        lines += ["", "units per metre by misfit (0 = as sensors see, 9 = hardly): "
                  + ", ".join(f"{s} {m:.1f}" for s, m in unit.items())]  # fmt: skip
    lines.append("")
    for finding in found.worst():
        lines += describe(finding)
    errors = sum(f.severity == "error" for f in found)
    far = whole_.get("suggested_max_depth", whole_["max_depth"])
    if errors:
        verdict = f"training on this would be a mistake: {errors} error(s)"
    else:
        command = f"python train.py --data {shlex.quote(data_name)}"
        names = list(seen)
        command += f" --split {names[0]}" * (names[0] != "train")
        if len(names) < 2 or not seen[names[1]]["pairs"]:
            command += " --val_split none"
        elif names[1] != "val":
            command += f" --val_split {names[1]}"
        verdict = f"fine to train: {command} --depth_scale {scale:g} --max_depth {far:g}"
    lines += ["", f"verdict: {verdict}"]
    report = whole_ | {
        "data": data_name, "root": str(root), "verdict": verdict, "errors": errors,
        "warnings": sum(f.severity == "warning" for f in found), "scenes": rows,
        "findings": [
            {k: v for k, v in asdict(f).items() if k != "pairs"} for f in found.worst()
        ],
    }  # fmt: skip
    return "\n".join(lines), report


def make_parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="data.py",
        description="Looks at a set of RGB-D pairs and says whether training on it would be a "
        "mistake, and what to do about it. Changes nothing.",
        epilog="Exit code: 0 fine or warnings only, 1 training on it would be a mistake, 2 a wrong "
        "command.",
    )  # fmt: skip
    p.add_argument(
        "--check", required=True, metavar="ROOT|synthetic:N",
        help="folder with <split>.txt lists or <split>/{rgb,depth}/ folders, as train.py --data",
    )  # fmt: skip
    p.add_argument("--split", default="train", help="split to train on (default train)")
    p.add_argument(
        "--val_split", default="val", help="split to validate on; none = without (default val)"
    )
    p.add_argument(
        "--image_size", default="480x640", type=parse_size, metavar="HxW",
        help="what train.py will bring every pair to (default 480x640)",
    )  # fmt: skip
    p.add_argument(
        "--depth_scale", default=1000.0, type=positive,
        help="units of the depth files per metre that you mean to train with; a confident guess "
        "that differs is an error (default 1000 = millimetres)",
    )  # fmt: skip
    p.add_argument(
        "--max_depth", default=40.0, type=positive,
        help="metres at which evaluation will cut predictions (default 40, as everywhere)",
    )  # fmt: skip
    p.add_argument(
        "--out", default="runs/doctor", metavar="DIR",
        help="where report.json and contact.png go (default runs/doctor)",
    )  # fmt: skip
    p.add_argument(
        "--samples", default=200, type=whole,
        help="pairs decoded of each split, in runs of 5 neighbours spread over all scenes; names, "
        "headers, ends and repeats are always looked at in every file (default 200; 0 = all)",
    )  # fmt: skip
    p.add_argument("--seed", default=0, type=whole, help="which pairs are decoded (default 0)")
    return p


def main(argv: list[str] | None = None) -> int:
    """The report on stdout, its files in --out; 0 or 1 (see the top). Raises OSError where --out
    cannot be written."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        root = resolve(args.check)
    except DataError as error:
        parser.error(str(error).replace("--data", "--check"))
    splits = (args.split,) if args.val_split == "none" else (args.split, args.val_split)
    if len(set(splits)) < len(splits):
        parser.error(f"--split and --val_split are both {args.split!r}")
    found, seen, whole_ = examine(
        root, splits, depth_scale=args.depth_scale, farthest=args.max_depth,
        image_size=args.image_size, samples=args.samples or sys.maxsize, seed=args.seed,
    )  # fmt: skip
    text, report = write_report(args.check, root, found, seen, whole_)
    print(text.encode("utf-8", "backslashreplace").decode())  # a file's name may be any bytes
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    content = json.dumps(report, indent=1, allow_nan=False, default=float) + "\n"
    write_file(out / "report.json", content.encode())
    sheet = contact_sheet(seen, found, args.depth_scale)
    if sheet is not None:
        write_picture(out / "contact.png", sheet)
    print(f"see {out / 'contact.png'} and {out / 'report.json'}" if sheet is not None
          else f"see {out / 'report.json'}")  # fmt: skip
    return 1 if report["errors"] else 0


def run() -> int:
    """main() for the command line: the exit code."""
    cv2.utils.logging.setLogLevel(0)  # OpenCV's own warnings would stand beside our report
    try:
        return main()
    except OSError as error:
        print(f"data.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
