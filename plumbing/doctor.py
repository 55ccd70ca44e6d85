"""Sec. 4.1, before training: would it be a mistake to train on these pictures?

    python data.py --check ROOT

        find_pairs -> read_run (every file, and the depths of some) -> the checks -> report

Everything found is told, never only the first: errors (training on it would be a mistake) and
warnings, each with its count, examples and cure; CHECKS holds all of them. Nothing is changed.
`--out` gets report.json and contact.png, the depth's edges over the pictures. Exit code: 0 = fine
or warnings only, 1 = errors, 2 = wrong flags, 130 = Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import math
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plumbing.files import progress, quoted, run_main, usable_cores, write_json
from plumbing.flags import Parser, positive, whole
from plumbing.pairs import (
    WAYS,
    DataError,
    Header,
    Pair,
    Source,
    check_headers,
    decode,
    decode_pair,
    list_pairs,
    read_bytes,
    read_header,
    resolve,
    shape_flags,
    shape_remarks,
    stored_intrinsics,
    without_focal,
)
from plumbing.pictures import (
    auto_range,
    colorize,
    cv2,
    resize_depth,
    resize_picture,
    upright,
    with_colorbar,
    write_picture,
    write_text,
)

ALWAYS, NEVER = 0, math.inf
CHECKS = {  # kind: (how much of it is an error, what is wrong, the cure)
    "refused": (ALWAYS, "training does not start with these", "{cure}"),
    "no intrinsics": (
        NEVER, "scenes without a focal length: the Kinect's is taken, and the virtual normals of "
        "Eq. 9 are as wrong as that is",
        "train with --intrinsics FX,FY,CX,CY, or put an intrinsics.json with fx, fy, cx, cy or K "
        "beside rgb/",
    ),
    "stuck depth": (
        0.05, "{n} of {of} pictures have the depth of another picture, to the last pixel: the "
        "sensor hung, or a list names a file twice",
        "remove these pairs, or correct the list; record again where there are many",
    ),
    "leak": (
        0.05, "{n} of {of} pictures of val are in train as well, or have a near twin there "
        "(neighbouring frames of a video?): scores on them say nothing of new pictures",
        "split by place and time: whole rooms, drives or days go to one side (a random split of a "
        "video is none), then make the lists anew",
    ),
    "empty depth": (
        0.2, "{n} of {of} depth maps looked at have no valid pixel or one single value: they teach "
        "nothing", "remove these pairs; look at what wrote them",
    ),
    "coarse depth": (
        0.2, "16-bit files with at most 256 levels, at least 32 units apart, {n} of {of}: 8-bit "
        "depth (or whole metres) blown up",
        "export the raw depth anew: cv2.imwrite('x.png', (1000 * metres).astype('uint16')); what "
        "8 bits have lost cannot be had back",
    ),
    "65535": (
        0.2, "{n} of {of} depth maps looked at hold 65535 where others hold 0: no return, or what "
        "was cut off, but read as {far:.3g} m", "make them holes: depth[depth == 65535] = 0",
    ),
    "disparity": (
        ALWAYS, "this looks like disparity or inverse depth (large = near): planes are bent as a "
        "disparity's",
        "convert it: metres = focal length in pixels * baseline in metres / disparity, then 1000 * "
        "metres as 16 bit; a relative inverse depth has no metres",
    ),
    "bits": (
        ALWAYS, "swapped bytes or rotated bits: in another order neighbouring pixels are alike",
        "depth = {code}, of the uint16 values d; then check the unit (SUN RGB-D's d << 3 | d >> 13 "
        "then holds millimetres)",
    ),
    "unit": (
        9, "--depth_scale {scale:g} does not fit (metres: 1st percentile, median, 99th)",
        "{cure}; to be sure measure one known distance: units per metre = value / metres. Where "
        "other scenes fit, bring these to their unit",
    ),
    "turned": (NEVER, "{what}", "{cure}"),  # these two: see `shape_remarks`
    "cut": (NEVER, "{what}", "{cure}"),
    "mirrored": (
        ALWAYS, "depth that is mirrored against its pictures",
        "flip one of the two: depth[:, ::-1] (left to right), depth[::-1] (upside down), "
        "depth[::-1, ::-1] (180 degrees); or, of pictures that EXIF turns, --depth_orientation",
    ),
    "lag": (
        ALWAYS, "depth that fits a neighbouring frame better than its own",
        "pair by time stamp, or rename the depth files by that many frames",
    ),
    "misaligned": (
        10, "depth that lies beside its pictures (in pixels of a picture 640 wide)",
        "register the depth to the colour camera (intrinsics of both and the transform between, or "
        "the sensor's own tool); after that check again",
    ),
    "strangers": (
        0.1, "the depth's edges lie on the pictures' no better than mirrored ones: of other "
        "frames, unregistered, or too blurred to tell",
        "look at contact.png; pair by name or time stamp, register the depth",
    ),
}  # fmt: skip
SCALES = {  # units per metre -> who writes such files
    1000.0: "millimetres", 10000.0: "0.1 mm", 5000.0: "1/5000 m, TUM", 256.0: "1/256 m, KITTI",
    8000.0: "1/8000 m, SUN RGB-D: mm are (d >> 3) | (d << 13)", 100.0: "centimetres",
    4000.0: "0.25 mm, RealSense L515", 1.0: "whole metres: better export it anew",
}  # fmt: skip
RUN = 5  # neighbouring frames decoded together: a depth that lags by a frame or two shows
ENOUGH = 8  # pictures of a scene from which on what they say together is believed
STEP = 32  # units between the few levels of 8-bit depth blown up
SPARSE = 0.1  # share of valid pixels under which a depth map is as of a LiDAR
WIDTH = 640  # to which pictures and depth are brought before edges are looked for
REACH = 20  # of its pixels: how far a depth map is moved, either way
LITTLE = 3  # of its pixels: from where on misalignment is told
TWIN = 0.7  # correlation of two `details`; neighbouring frames are at 0.8, others under 0.46
NAMED = 3  # examples of a finding in the printed report; report.json has all
TILES = 8  # pairs on the contact sheet


class Finding(NamedTuple):
    """One thing that was found."""

    severity: str
    kind: str
    what: str
    cure: str


class Findings(dict[Finding, dict[str, Pair | None]]):
    """Finding -> what it is about: the files or scenes, with what is wrong with each, and a pair
    for the contact sheet."""

    def add(self, kind: str, about: dict, amount: float = 1.0, **values: object) -> None:
        """Says `kind` of CHECKS, unless it is about nothing; an error from its limit on. values:
        what its texts have in braces, besides n, how many it is about."""
        if about:
            limit, *texts = CHECKS[kind]
            texts = [text.format(n=len(about), **values) for text in texts]
            finding = Finding("error" if amount >= limit else "warning", kind, *texts)
            self.setdefault(finding, {}).update(about)

    def refuse(self, message: str, pair: Pair | None = None) -> None:
        """What ends training at once; the cure stands behind the message's semicolon."""
        what, _, cure = message.partition("; ")
        self.add("refused", {what: pair}, cure=cure or "mend, rename or remove what is named")


# ----------------------------------------------------------------------------------------- pairs


def find_pairs(root: Path, split: str, orientation: str, found: Findings) -> list[Pair]:
    """The pairs of a split that are whole."""
    try:
        return list_pairs(root, split, found.refuse, orientation)
    except DataError as error:
        found.refuse(str(error))
        return []


def in_runs(pairs: list[Pair], count: int) -> list[tuple[list[Pair], bool]]:
    """All pairs as runs of neighbouring frames, and whether a run's depths are to be decoded: those
    of about `count` pairs, evenly spread, and of each scene two runs where there is room."""
    runs = []
    for _, scene in itertools.groupby(pairs, lambda pair: pair.folder):
        some = [*scene]
        step = max(1, min(len(pairs) // count, len(some) // (2 * RUN)))
        runs += [(some[k : k + RUN], k % (step * RUN) == 0) for k in range(0, len(some), RUN)]
    return runs


# ------------------------------------------------------------------------------- reading the files


@dataclass
class Summary:
    """What is kept of a pair. Of its files: problem, why they are refused; digests of both; the
    picture's header and its thumb, upright, in grey (24, 32) u8; turns, see `check_headers`. Of its
    depth, where that was decoded: valid, the share of pixels with a depth; values, 1000 quantiles
    of those in file units; step, the least between two values where they are few and even, else 0;
    full, the share of 65535; bend, see `bent`; rough, see `roughness`. How it lies on the picture:
    see `compare`."""

    pair: Pair
    problem: str = ""
    header: Header | None = None
    turns: list[int] | None = None
    thumb: np.ndarray | None = None
    digests: tuple[bytes, ...] = ()
    valid: float = math.nan
    values: np.ndarray | None = None
    step: int = 0
    full: float = 0.0
    bend: float = math.nan
    rough: np.ndarray | None = None
    scores: dict[Any, float] | None = None


def read_run(run: tuple[list[Pair], bool]) -> list[Summary]:
    """Reads neighbouring frames of one scene: files, pictures and, where asked for, depths."""
    pairs, sampled = run
    summaries = [Summary(pair) for pair in pairs]
    edges = {}
    for i, summary in enumerate(summaries):
        try:
            grey = read_files(summary)
            if sampled:
                _, depth = decode(summary.pair.depth, cv2.IMREAD_UNCHANGED)
                depth = upright(depth, summary.turns[0])
                summarize(summary, depth)
                size = round(WIDTH * depth.shape[0] / depth.shape[1]), WIDTH
                E = depth_edges(resize_depth(depth, size, "nearest"))
                if summary.step < STEP and E.mean() > 0.001:
                    edges[i] = E, picture_edges(resize_picture(grey, size))
        except DataError as error:
            summary.problem = str(error)
    for i, (E, M) in edges.items():
        compare(summaries[i], E, M, {k: edges[i + k][0] for k in (-2, -1, 1, 2) if i + k in edges})
    return summaries


def read_files(summary: Summary) -> np.ndarray:
    """What the files tell before the depth is decoded: header, end mark, digest, thumb; returns the
    picture in grey. Raises DataError."""
    headers, digests = [], ()
    for path in (summary.pair.rgb, summary.pair.depth):
        content = read_bytes(path)
        headers.append(read_header(content, path))
        digests += (hashlib.sha256(content).digest(),)
    summary.header, summary.turns = headers[0], check_headers(*headers, summary.pair)
    _, grey = decode(summary.pair.rgb, cv2.IMREAD_GRAYSCALE)
    summary.thumb = cv2.resize(grey, (32, 24), interpolation=cv2.INTER_AREA)
    if 50 * len(content) > grey.size:  # the depth's: all maps of nothing are equal
        summary.digests = digests
    return grey


def summarize(summary: Summary, depth: np.ndarray) -> None:
    """The numbers of one depth map (H, W) u16, in which 65535 then is a hole: it means no return,
    or what was cut off."""
    known = np.sort(depth[depth > 0])
    depth[depth == 65535] = 0
    n = np.count_nonzero(depth)
    summary.valid, summary.full = n / depth.size, (known.size - n) / depth.size
    levels = np.unique(known[:n])
    if len(levels) > 1:
        summary.values = known[np.linspace(0, n - 1, 1000).astype(int)]
        step = np.diff(levels).min()
        gaps = np.diff(levels) / step  # whole numbers, where 8 bits were blown up
        even = len(levels) <= min(256, n / 10) and (abs(gaps - np.rint(gaps)) < 0.1).mean() > 0.8
        summary.step = step if even else 0
        summary.bend, summary.rough = bent(depth), roughness(depth)


def bent(depth: np.ndarray) -> float:
    """How planes bend: 0 as a depth's, 1 as a disparity's; nan where there are too few to tell.

    Where three pixels in line are on a plane, the middle one's depth is the harmonic mean of the
    outer two (Eq. 9's planes are affine in 1/z); of a disparity it is their mean.
    """
    step = len(depth) // 16
    rows = (depth[k * step : len(depth) - (2 - k) * step : 3, ::3] for k in range(3))
    triples = np.stack([*rows], -1).reshape(-1, 3).astype(np.float64)
    a, b, c = triples[triples.min(1) > 0].T
    mean, harmonic = (a + c) / 2, 2 * a * c / (a + c)
    slant = mean - harmonic
    t = (b - harmonic) / np.maximum(slant, 1e-9)
    t = t[(slant > 3 + 0.005 * mean) & (abs(t - 0.5) < 1)]  # beyond lies an edge
    return np.median(t) if len(t) >= 100 else math.nan


def roughness(depth: np.ndarray) -> np.ndarray:
    """How far neighbouring known pixels are apart, |ln a - ln b| cut to 1, mean of some 20,000:
    (16,), of the values with their bits rotated right by 0 .. 15; 8 swaps the bytes. 1 where that
    makes them larger: a flag that lands in the top bits makes all alike. Below 8 are no depths, but
    the Kinect's player bits in holes."""
    v = depth[depth > 7]
    pairs = np.stack([v[:-1], v[1:]])[:, :: max(1, len(v) // 20000)]
    turned = np.stack([pairs >> r | pairs << 16 - r for r in range(16)])
    apart = abs(np.diff(np.log(np.maximum(turned, 1, dtype=np.float32)), axis=1))
    total = turned.sum((1, 2))
    return np.where(total > total[0], 1, np.minimum(apart, 1).sum((1, 2)) / max(1, pairs.shape[1]))


def depth_edges(depth: np.ndarray) -> np.ndarray:
    """Where a small window holds depths apart by 8 % and more (15 % in sparse maps, whose window
    reaches from scan line to scan line). Borders of holes are no edges; those of a few pixels are
    filled from behind, as the shadow beside a near thing is."""
    sparse = (depth > 0).mean() < SPARSE
    window = np.ones((9, 5) if sparse else (3, 3))
    if not sparse:
        depth = np.where(depth > 0, depth, cv2.dilate(depth, np.ones((5, 5))))
    far = cv2.dilate(depth, window).astype(np.float32)
    near = cv2.erode(np.where(depth > 0, depth, np.uint16(65535)), window).astype(np.float32)
    return far > near * (1.16 if sparse else 1.08)


def picture_edges(grey: np.ndarray) -> np.ndarray:
    """Strength of the picture's edges, mean 0 and deviation 1 over the picture, float32."""
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.0)
    strength = cv2.morphologyEx(smooth, cv2.MORPH_GRADIENT, np.ones((3, 3))).astype(np.float32)
    strength = np.minimum(strength / (np.percentile(strength, 90) + 1e-6), 1)
    return (strength - strength.mean()) / (strength.std() + 1e-6)


def compare(summary: Summary, E: np.ndarray, M: np.ndarray, around: dict) -> None:
    """How the depth's edges E lie on the picture's M. scores: the mean of M under E moved by (dx,
    dy), under E mirrored, and under the edges of the k-th next frame (`around`)."""
    inside = E[REACH:-REACH, REACH:-REACH].astype(np.float32)
    moved = cv2.matchTemplate(M, inside, cv2.TM_CCORR) / max(1, inside.sum())
    summary.scores = {(x - REACH, y - REACH): moved[y, x] for y, x in np.ndindex(moved.shape)}
    rivals = {
        "left to right": np.flip(E, 1), "upside down": np.flip(E, 0),
        "turned by 180 degrees": np.flip(E), **around,
    }  # fmt: skip
    summary.scores |= {k: M[e].mean() for k, e in rivals.items() if e.shape == E.shape}


# ---------------------------------------------------------------------------- checks of all files


def check_files(summaries: list[Summary], found: Findings) -> None:
    """Files and cameras that training would refuse, and cameras that are missing."""
    known = {}
    for s in summaries:
        try:
            if s.thumb is not None:
                turns = s.turns[0], s.header.orientation
                if stored_intrinsics(s.pair, s.header.upright, known, turns) is None:
                    found.add("no intrinsics", {without_focal(s.pair, known): s.pair})
        except DataError as error:
            s.problem = str(error)
        if s.problem:
            found.refuse(s.problem, s.pair)


def check_shapes(summaries: list[Summary], found: Findings) -> None:
    """Pictures that their EXIF turns, and what the crop to the default --image_size cuts away."""
    read = [s for s in summaries if s.thumb is not None]
    remarks = shape_remarks([(s.header, s.turns) for s in read], Source.image_size)
    for kind, remark in remarks.items():
        what, _, cure = remark.partition("; ")
        some = [s for s in read if kind == "cut" or s.header.orientation > 1]
        found.add(kind, {str(s.pair.rgb): s.pair for s in some}, what=what, cure=cure)


def check_stuck(summaries: list[Summary], found: Findings) -> None:
    """One depth under different pictures."""
    pictures, stuck = {}, {}
    for s in summaries:
        if s.digests:
            rgb, depth = s.digests
            if pictures.setdefault(depth, rgb) != rgb:
                stuck[str(s.pair.rgb)] = s.pair
    found.add("stuck depth", stuck, len(stuck) / max(1, len(summaries)), of=len(summaries))


def details(summaries: list[Summary]) -> np.ndarray:
    """Thumbs without their broad light and dark, which all streets or desks share: (N, 768) of
    length 1, whose products are correlations."""
    thumbs = np.float32([s.thumb for s in summaries])
    fine = [(t - cv2.GaussianBlur(t, (0, 0), 3)).ravel() for t in thumbs]
    return fine / np.maximum(np.linalg.norm(fine, axis=1, keepdims=True), 1)


def check_leak(train: list[Summary], val: list[Summary], found: Findings) -> None:
    """Pictures of val that training has as good as seen: the same, or a near twin."""
    train, val = ([s for s in some if s.thumb is not None] for some in (train, val))
    if not train or not val:
        return
    seen, twins = details(train), {}
    for s, own in zip(val, details(val)):
        likeness = seen @ own
        if likeness.max() >= TWIN:
            twins[f"{s.pair.rgb} = {train[likeness.argmax()].pair.rgb}"] = s.pair
    found.add("leak", twins, len(twins) / len(val), of=len(val))


# ------------------------------------------------------------------------ checks of decoded depths

Scenes = dict[str, list[Summary]]


def check_depths(summaries: list[Summary], scale: float, found: Findings) -> None:
    """Empty maps, coarse values, and 65535 that means "nothing"."""
    fine = [s for s in summaries if s.valid >= 0]
    kinds = {
        "empty depth": [s for s in fine if s.values is None],
        "coarse depth": [s for s in fine if s.step >= STEP],
        "65535": [s for s in fine if s.full > 0.001],
    }
    for kind, some in kinds.items():
        about = {str(s.pair.depth): s.pair for s in some}
        found.add(kind, about, len(some) / max(1, len(fine)), of=len(fine), far=65535 / scale)


def by_scene(splits: dict[str, list[Summary]]) -> Scenes:
    """The summaries with depths by split and scene; the smaller of more than 12 scenes are one."""
    scenes = defaultdict(list)
    for split, summaries in splits.items():
        some = [s for s in summaries if s.values is not None]
        large = dict(Counter(s.pair.scene for s in some).most_common(12))
        for s in some:
            scenes[f"{split}/{s.pair.scene if s.pair.scene in large else '(others)'}"].append(s)
    return scenes


def quantiles(summaries: list[Summary], *q: float) -> np.ndarray:
    """Percentiles q of the depths in file units, every picture with the same weight."""
    return np.percentile(np.concatenate([s.values for s in summaries]), q)


def farthest(scenes: Scenes, scale: float) -> int:
    """A --max_depth that keeps 99.5 % of every scene's depths."""
    return max(math.ceil(quantiles(some, 99.5)[0] / scale) for some in scenes.values())


def misfit(summaries: list[Summary], scales: np.ndarray) -> np.ndarray:
    """How badly depths at each of `scales` units a metre fit what sensors see, 0 = well, 9 =
    hardly.

    Each of 1st percentile, median and 99th is free within a range and costs ((decades outside) /
    sigma)^2 beyond; mild pulls go to the usual median and to the usual units, but a rare one.
    Nearly all multiples of g, at most 64, speak of 1 / (1000 g) m written from millimetres.
    """
    low, high, sigma, middle, rare = (0.2, 0.4, 0.8), (4, 10, 45), 0.15, 2.0, 256
    if np.mean([s.valid for s in summaries]) < SPARSE:  # LiDAR
        low, high, sigma, middle, rare = (1.5, 4, 30), (8, 25, 130), 0.1, 10.0, 0
    values = np.concatenate([s.values for s in summaries])
    q = np.percentile(values, (1, 50, 99)) / scales[:, None]
    outside = np.log10(np.maximum(1, np.maximum(low / q, q / high))) / sigma
    cost = np.minimum(25.0, (outside**2).sum(1) + 4 * np.log10(q[:, 1] / middle) ** 2)
    g = max(g for g in range(1, 65) if (values % g == 0).mean() > 0.9)
    usual = np.isin(scales, [*SCALES.keys() - {rare}])
    return cost + ~usual + 8 * ((scales != 1000 * g) & (g > 1))


def check_bits(scenes: Scenes, found: Findings) -> Scenes:
    """Swapped bytes, and rotated bits where that tears depths apart (short of it they are another
    unit); returns the scenes without, for of the others nothing else is true."""
    fine = {}
    for name, some in scenes.items():
        rough = np.mean([s.rough for s in some], 0)
        # Of orders that are as good, such as d and 2 d, the one with the least values.
        r = int(np.flatnonzero(rough <= 1.1 * rough.min()).max())
        if rough[0] <= 1.1 * rough.min():
            fine[name] = some
        else:
            code = "d.byteswap()" if r == 8 else f"(d >> {r}) | (d << {16 - r})"
            found.add("bits", {name: some[0].pair}, code=code)
    return fine


def check_unit(scenes: Scenes, scale: float, found: Findings) -> None:
    """What a unit of the files is, to two digits. Disparity first: no scale mends that."""
    scales = np.outer(10.0 ** np.arange(-1, 4), np.arange(10, 100)).ravel()
    scales = np.array([scale, *SCALES, *scales])
    for name, some in scenes.items():
        bends = [s.bend for s in some if s.bend == s.bend and s.step < STEP]
        if len(bends) >= ENOUGH and np.median(bends) > 0.5:
            found.add("disparity", {name: some[0].pair})
            continue
        costs = misfit(some, scales)
        margin, unit = costs[0] - costs.min(), scales[costs.argmin()]
        if margin < 4 or min(s.step for s in some) >= STEP:
            continue
        text = name
        for u in (scale, unit):
            metres = ", ".join(f"{q:.3g}" for q in quantiles(some, 1, 50, 99) / u)
            text += f"; {metres} m as {SCALES.get(u, f'{u:g} a metre')}"
        fit = scales[costs < costs.min() + 2]
        if len(fit) > 1:
            text += f" (a guess: {fit.min():g} to {fit.max():g} would do)"
        flags = f"--depth_scale {unit:g} --max_depth {farthest(scenes, unit)}"
        found.add("unit", {text: some[0].pair}, margin, scale=scale, cure=flags)


def check_alignment(scenes: Scenes, found: Findings) -> None:
    """Whether the depth's edges lie on the picture's, or rivals lie there better: mirrored ones,
    another frame's or moved ones. Better is in 80 % of the pictures, and on the average by 0.15
    and by a fifth, and above what chance gives."""
    for name, some in scenes.items():
        some = [s for s in some if s.scores]
        if len(some) < ENOUGH:
            continue
        better = {}
        for rival in {rival for s in some for rival in s.scores}:
            both = [(s.scores[0, 0], s.scores[rival]) for s in some if rival in s.scores]
            own, other = np.transpose(both)
            gain = other.mean() - max(0.3, own.mean() + 0.15, 1.2 * own.mean())
            if len(both) >= ENOUGH and gain > 0 and (other > own).mean() >= 0.8:
                better[rival] = gain
        best = max(better, key=better.get, default=(0, 0))
        if isinstance(best, str):
            found.add("mirrored", {f"{name}: {best}": some[0].pair})
        elif isinstance(best, int):
            late = "late" if best > 0 else "early"
            found.add("lag", {f"{name}: at least {abs(best)} frame(s) {late}": some[0].pair})
        elif math.hypot(*best) >= LITTLE:
            text = f"{name}: move the depth by dx {best[0]:+d}, dy {best[1]:+d}"
            found.add("misaligned", {text: some[0].pair}, math.hypot(*best))
        gap = np.mean([s.scores[0, 0] - s.scores["left to right"] for s in some])
        if not better and gap < 0.1:
            found.add("strangers", {name: some[0].pair}, np.mean([s.valid for s in some]))


# ----------------------------------------------------------------------------------------- report


def as_text(scenes: Scenes, scale: float, found: Findings) -> list[str]:
    """The table of scenes, and each finding: what, some examples, the cure."""
    lines = [f"{'scene':28} decoded smallest  valid  metres: least, 1 %, median, 99 %, most"]
    for name, some in scenes.items():
        size = "x".join(map(str, min(s.header.upright for s in some)))
        valid = np.mean([s.valid for s in some])
        metres = ", ".join(f"{q:.3g}" for q in quantiles(some, 0, 1, 50, 99, 100) / scale)
        lines.append(f"{name:28} {len(some):7} {size:>9} {valid:6.1%}  {metres}")
    for finding, about in sorted(found.items()):
        lines += ["", f"{finding.severity.upper()} {finding.kind} [{len(about)}]: {finding.what}"]
        lines += [f"    - {text}" for text in [*about][:NAMED]]
        lines += [f"    - and {len(about) - NAMED} more"] * (len(about) > NAMED)
        lines.append(f"    cure: {finding.cure}")
    return lines


def tile(pair: Pair, title: str, scale: float) -> np.ndarray:
    """BGR u8: the picture with the depth's edges in magenta | the depth with its bar, each drawn as
    3:4. Raises DataError."""
    rgb, depth, _ = decode_pair(pair)
    view = resize_picture(rgb, (480, 640))
    depth = resize_depth(depth, (480, 640), "nearest")
    view[depth_edges(depth)] = (255, 60, 255)
    depth = np.where(depth > 0, depth, cv2.dilate(depth, np.ones((3, 3))))  # LiDAR is seen, too
    near, far = auto_range([depth / scale])
    both = np.hstack([view, colorize(depth / scale, near, far)])
    canvas = np.pad(both, ((40, 0), (0, 0), (0, 0)), constant_values=255)
    write_text(canvas, title, 6, 21, 18)
    return with_colorbar(canvas, near, far, holes=True)


def write_sheet(path: Path, scenes: Scenes, found: Findings, scale: float) -> None:
    """Writes TILES pairs, those of findings first, the others spread over the scenes. Raises
    OSError."""
    wanted = {}
    for finding, about in sorted(found.items()):
        for pair in [*about.values()][:2]:
            if pair:
                wanted.setdefault(pair, f"{finding.severity}: {finding.kind}, ")
    for k in range(TILES):
        for some in scenes.values():
            wanted.setdefault(some[len(some) * k // TILES].pair, "")
    tiles = []
    for pair, problem in wanted.items():
        with contextlib.suppress(DataError):
            if len(tiles) < TILES:
                tiles.append(tile(pair, f"{problem}{pair.scene}/{pair.rgb.name}", scale))
    if tiles:
        write_picture(path, np.vstack(tiles))


def make_parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="data.py",
        description="Looks at a set of RGB-D pairs and says whether training on it would be a "
        "mistake, and what to do about it. Changes nothing. Exit code: 0 fine or warnings only, 1 "
        "training on it would be a mistake, 2 a wrong command.",
    )  # fmt: skip
    p.add_argument(
        "--check", required=True, metavar="ROOT|synthetic:N|rooms:N",
        help="folder with <split>.txt lists or <split>/{rgb,depth}/ folders, as train.py --data",
    )  # fmt: skip
    p.add_argument("--split", default="train", help="split to train on (default train)")
    p.add_argument(
        "--val_split", default="val", help="split to validate on; none = without (default val)"
    )
    p.add_argument(
        "--depth_scale", default=1000.0, type=positive,
        help="units of the depth files per metre that you mean to train with; a confident guess "
        "that differs is an error (default 1000 = millimetres)",
    )  # fmt: skip
    p.add_argument(
        "--out", default="runs/doctor", metavar="DIR",
        help="where report.json and contact.png go (default runs/doctor)",
    )  # fmt: skip
    p.add_argument(
        "--samples", default=200, type=whole,
        help="pairs decoded of each split, in runs of 5 neighbours spread over all scenes; names, "
        "headers, ends and stuck depths are always looked at in every file (default 200; 0 = all)",
    )  # fmt: skip
    p.add_argument(
        "--depth_orientation", default="stored", choices=WAYS,
        help="of depth maps that fit their turned picture both ways (default stored)",
    )  # fmt: skip
    return p


def examine(root: Path, args: argparse.Namespace) -> tuple[Findings, Scenes]:
    """All checks of training's split, and of validation's if there is one to be."""
    found, read, scale = Findings(), {}, args.depth_scale
    cv2.setNumThreads(1)  # one picture a thread
    with ThreadPoolExecutor(usable_cores()) as pool:
        for split in [split for split in (args.split, args.val_split) if split != "none"]:
            pairs = find_pairs(root, split, args.depth_orientation, found)
            runs = in_runs(pairs, args.samples or len(pairs))
            bar = progress(pool.map(read_run, runs), len(runs), split)
            read[split] = [summary for run in bar for summary in run]
    for summaries in read.values():
        check_files(summaries, found)
        check_shapes(summaries, found)
        check_stuck(summaries, found)
        check_depths(summaries, scale, found)
    check_leak(*[*read.values(), []][:2], found)
    scenes = by_scene(read)
    fine = check_bits(scenes, found)
    check_alignment(fine, found)
    check_unit(fine, scale, found)
    return found, scenes


def report(args: argparse.Namespace) -> int:
    """The report on stdout, its files in --out; the exit code. Raises DataError, OSError."""
    scale = args.depth_scale
    root = resolve(Source(args.check, depth_scale=scale))
    found, scenes = examine(root, args)
    code = int("error" in {finding.severity for finding in found})
    verdict = "training on this would be a mistake"
    if not code and "unit" in {finding.kind for finding in found}:
        verdict = "fine to train once the unit is settled, see above"
    elif not code:
        sizes = [s.header.upright for some in scenes.values() for s in some]
        flags = f"--depth_scale {scale:g} --max_depth {farthest(scenes, scale)} "
        flags += shape_flags(sizes, Source.image_size)[1]  # --finetune has crops of its own
        words = ["python", "train.py", "--finetune", "--data", args.check, "--split", args.split]
        words += ["--val_split", args.val_split, *flags.split()]
        words += ["--keep_start", "0"] * (args.val_split == "none")
        verdict = f"fine to train: {quoted(words)}"
    text = "\n".join(as_text(scenes, scale, found)).replace(f"{root}{os.sep}", "")
    print(f"{text}\n\nverdict: {verdict}")
    out = Path(args.out)
    told = [finding._asdict() | {"about": [*about]} for finding, about in sorted(found.items())]
    write_json(out / "report.json", {"verdict": verdict, "findings": told})
    write_sheet(out / "contact.png", scenes, found, scale)
    print(f"see {out}: contact.png, report.json")
    return code


def run(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code (see the top)."""
    return run_main(lambda: report(make_parser().parse_args(argv)), "data.py")
