"""Broken files of every kind that is read: cut, flipped, torn, swapped, empty, of wrong types, with
huge numbers. Each must end in one line of the documented error that names it, or be valid.

    python tests/fuzz.py --count 100000 --seed 1 [--kinds rgb,checkpoint]
    python tests/fuzz.py --case rgb:1234 --seed 1               one of them again; its file stays

(seed, kind, number) alone decide a case. A worker process makes and reads them and says before each
which one it is, so that a crash or a hang is told as well. Exit code 1 where one failed.
"""

from __future__ import annotations

import argparse
import collections
import copy
import faulthandler
import gzip
import io
import json
import math
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import safetensors.torch
import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import model  # noqa: E402
from plumbing.calibration import read_calibration  # noqa: E402
from plumbing.checkpoints import CheckpointError, read_checkpoint  # noqa: E402
from plumbing.files import UserError  # noqa: E402
from plumbing.pairs import DataError, Pair, list_pairs, read_pair, read_teacher  # noqa: E402
from plumbing.pictures import read_picture  # noqa: E402
from plumbing.runtime import load_predictor  # noqa: E402

Random = random.Random
SIZE = (64, 96)
HANG = 30.0  # seconds for one file
MEMORY = 12 << 30  # address space; what asks for more fails with a MemoryError, which is no answer
PROGRAM = Path(__file__)  # what a worker runs


class Kind(NamedTuple):
    """A kind of file that is read. Its folder holds what lies beside the damaged one."""

    name: str  # of the damaged file
    good: list[bytes]
    read: Callable[[Path], None]  # as the product does; asserts that what it gives is valid
    errors: tuple[type[Exception], ...]  # that are a proper answer
    odd: Callable[[Random, bytes], bytes] | None = None  # damage of this kind alone
    share: int = 10  # of the cases


# ----------------------------------------------------------------------------------------- damage


def cut(rng: Random, raw: bytearray) -> None:
    del raw[rng.choice((0, rng.randrange(len(raw) + 1), max(0, len(raw) - rng.randrange(1, 64)))) :]


def flip(rng: Random, raw: bytearray) -> None:
    """Up to eight bits; headers stand at both ends."""
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.choice((rng.randrange(len(raw)), rng.randrange(min(len(raw), 200))))
        raw[at if rng.random() < 0.7 else -1 - at] ^= 1 << rng.randrange(8)


def tear(rng: Random, raw: bytearray) -> None:
    """A block that never reached the disk: zeros, or what stood there before."""
    at, n = rng.randrange(len(raw)), rng.choice((1, 16, 512, 4096))
    end = min(len(raw), at + n)
    raw[at:end] = bytes(end - at) if rng.random() < 0.5 else rng.randbytes(end - at)


def lose(rng: Random, raw: bytearray) -> None:
    at = rng.randrange(len(raw))
    del raw[at : at + rng.choice((1, 2, 16, 512))]


def repeat(rng: Random, raw: bytearray) -> None:
    """Joined to itself or to junk, or a piece of it twice."""
    at, n = rng.randrange(len(raw)), rng.choice((1, 16, 512))
    raw[at:at] = rng.choice((raw[at : at + n], raw, rng.randbytes(n)))


DAMAGES = (cut, flip, flip, tear, lose, repeat)
PAGE = b"<!DOCTYPE html><html><body>404: not found</body></html>\n"


def damaged(rng: Random, kind: Kind, kinds: dict[str, Kind]) -> bytes | None:
    """The case's file; None = a folder stands in its place."""
    how, raw = rng.random(), rng.choice(kind.good)
    if how < 0.01:
        return None
    if how < 0.10:  # swapped
        other = rng.choice([*kinds.values()])
        return rng.choice((PAGE, rng.choice(other.good)))
    if how < 0.55 and kind.odd:
        return kind.odd(rng, raw)
    content = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2))):
        if content:
            rng.choice(DAMAGES)(rng, content)
    return bytes(content)


ODD = (None, True, "", "x", 0, -1, 1.5, 10**9, 10**30, 1e308, math.inf, math.nan, [], {}, [0, 0])


def set_odd(rng: Random, value: Any, odd: tuple = ODD) -> Any:
    """Somewhere in dictionaries and lists, a value of another type or size, or one that is gone."""
    value = holder = copy.copy(value)
    while True:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = rng.choice(keys)
        if not isinstance(holder[key], dict | list) or not holder[key] or rng.random() < 0.3:
            break
        holder[key] = copy.copy(holder[key])
        holder = holder[key]
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(odd)
    return value


def odd_json(rng: Random, raw: bytes) -> bytes:
    text = json.dumps(set_odd(rng, json.loads(raw)))
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))


def odd_picture(rng: Random, raw: bytes) -> bytes:
    """Another width or height in the header, with the right checksum."""
    content, side = bytearray(raw), rng.choice((0, 1, 7, 65, 5000, 65535, 1 << 20, (1 << 31) - 1))
    jpeg = content.find(b"\xff\xc0")
    if content.startswith(b"\x89PNG"):
        struct.pack_into(">I", content, rng.choice((16, 20)), side)
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    elif jpeg > 0:
        struct.pack_into(">H", content, jpeg + rng.choice((5, 7)), side & 0xFFFF)
    return bytes(content)


def odd_list(rng: Random, raw: bytes) -> bytes:
    """Lists as people write them, and as they should not."""
    lines = raw.decode().splitlines()
    at = rng.randrange(len(lines))
    rgb, depth = lines[at].split()
    lines[at] = rng.choice((
        rgb, f"{depth} {rgb}", f"{rgb} {rgb}", f"{rgb}\t{depth}", f"{rgb} {depth} 518.8", "",
        f"{rgb} gone.png", f"../{rgb} {depth}", f"/{rgb} {depth}", f"{'x' * 300} {depth}", "# note",
        f"{rgb},{depth}", f"{rgb}\0 {depth}", lines[at - 1], f". {depth}", f"ä{rgb} {depth}",
    ))  # fmt: skip
    return rng.choice(("\n", "\r\n", "\r")).join(lines).encode(rng.choice(("utf-8-sig", "latin-1")))


def odd_npy(rng: Random, raw: bytes) -> bytes:
    """Another type or shape; a header that promises what is not there."""
    file, (h, w) = io.BytesIO(), SIZE
    if rng.random() < 0.3:
        shape = rng.choice(((10**9, w), (1 << 62, 4), (0, 0), (h, w, 10**6), (), (-1, w)))
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        return file.getvalue() + bytes(4 * h * w)
    kind = rng.choice(("f2", "f8", ">f4", "u2", "u1", "i8", "?", "c8", "U3", "O", "M8[s]", "f4,u2"))
    shape = rng.choice((SIZE, (1, *SIZE), (h, w, 3), (w, h), (h * w,), (0, w), (2, 2), ()))
    values = rng.choice((0, 1, 255)) * np.ones(shape)
    np.save(file, values.astype(bool).astype(kind) if "M" in kind else values.astype(kind))
    return file.getvalue()


ODD_TENSORS = (*ODD, torch.zeros(3), torch.full((1,), math.nan), torch.tensor(1), torch.zeros(0))


def odd_state(rng: Random, raw: bytes) -> bytes:
    content = torch.load(io.BytesIO(raw), weights_only=True)
    file = io.BytesIO()
    torch.save(set_odd(rng, content, ODD_TENSORS), file)
    return file.getvalue()


# ------------------------------------------------------------------------- what is read, and how


def read_beside(path: Path) -> None:
    """One of a pair's two pictures or its camera, beside the others, which are whole."""
    pair = Pair(path.with_name("rgb.png"), path.with_name("depth.png"), "", path.parent)
    check_sample(read_pair(pair, SIZE, None, {}))


def check_sample(sample: Any) -> None:
    assert sample.rgb.dtype == np.uint8 and sample.rgb.shape == (*SIZE, 3)
    assert sample.depth.dtype == np.uint16 and sample.depth.shape == SIZE
    K = np.asarray(sample.K, np.float32)  # as in a batch
    assert K.shape == (4,) and np.isfinite(K).all() and (K[:2] > 0).all()
    assert np.isfinite(1 / K[:2]).all()


def read_list(path: Path) -> None:
    pairs = list_pairs(path.parent, path.stem)
    assert pairs
    check_sample(read_pair(pairs[0], SIZE, None, {}))


def read_map(path: Path) -> None:
    depth = read_teacher(path, SIZE, 1000.0)
    assert depth.dtype == np.uint16 and depth.shape == SIZE


def read_any_picture(path: Path) -> None:
    try:
        rgb = read_picture(path)
    except UserError as error:  # predict.py puts the name before it
        raise UserError(f"{path}: {error}") from error
    assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size


def read_model(path: Path) -> None:
    """As train.py and predict.py do."""
    size = read_checkpoint(path).get("image_size", [1, 1])
    assert len(size) == 2 and min(size) > 0
    assert isinstance(model.load(path), model.DepthNetwork)


def read_public(path: Path) -> None:
    model.load_pretrained(NETWORK, str(path))


def read_deployed(path: Path) -> None:
    depth = load_predictor(path, model.runner, threads=1)(np.zeros((*SIZE, 3), np.uint8))
    assert depth.dtype == np.float32 and depth.shape == SIZE


def read_fit(path: Path) -> None:
    content = read_calibration(path)
    assert 0 < content["scale"] < math.inf and math.isfinite(content["shift_m"])


NETWORK = model.LiteDepth(size=(32, 32))


def make_kinds() -> dict[str, Kind]:
    rng = np.random.default_rng(0)
    bgr = cv2.GaussianBlur(rng.uniform(-800, 1056, (*SIZE, 3)), (0, 0), 3).clip(0, 255).astype("u1")
    depth = rng.integers(400, 9000, SIZE).astype(np.uint16) * (rng.random(SIZE) > 0.2)

    def encode(suffix: str, picture: np.ndarray, *options: int) -> bytes:
        return cv2.imencode(suffix, picture, options)[1].tobytes()

    alpha = np.dstack([bgr, bgr[..., :1]])
    pngs = [encode(".png", picture) for picture in (bgr, alpha, bgr[..., 0], bgr[::2, ::2])]
    jpegs = [encode(".jpg", bgr), encode(".jpg", bgr, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)]
    others = [encode(suffix, bgr) for suffix in (".bmp", ".webp", ".tif", ".ppm")]
    depths = [encode(".png", depth, cv2.IMWRITE_PNG_COMPRESSION, level) for level in (0, 9)]
    camera = {"fx": 70.0, "fy": 71.0, "cx": 47.5, "cy": 31.5, "width": 96, "height": 64}
    matrix = {"color": {"w": 96, "h": 64, "K": [70.0, 0, 0, 0, 71.0, 0, 47.5, 31.5, 1]}}
    cameras = [json.dumps(c).encode() for c in (camera, {"frames": {"rgb": camera}}, matrix)]
    metres = io.BytesIO()
    np.save(metres, depth.astype(np.float32) / 1000)
    state = {"format": model.CHECKPOINT_FORMAT, "model_args": NETWORK.model_args, "epoch": 1}
    state |= {"model": NETWORK.state_dict(), "image_size": [*SIZE], "flags": {}, "optimizer": {}}
    checkpoint, old, backbone = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(state, checkpoint)
    torch.save(NETWORK.encoder.state_dict(), old, _use_new_zipfile_serialization=False)
    torch.save({"state_dict": NETWORK.encoder.state_dict()}, backbone)
    fixtures = ROOT / "tests" / "fixtures"
    tflite = gzip.decompress((fixtures / "model.int8-dynamic.tflite.gz").read_bytes())
    lines = b"rgb.png depth.png\nrgb2.png depth2.png\n"
    safe = safetensors.torch.save(NETWORK.encoder.state_dict())
    publics = [old.getvalue(), backbone.getvalue(), safe]
    fit = (fixtures / "calibration.json").read_bytes()
    pair, weights, usable = (DataError,), (CheckpointError,), (UserError,)
    coloured = pngs + jpegs
    return {
        "rgb": Kind("rgb.png", coloured, read_beside, pair, odd_picture, 25),
        "depth": Kind("depth.png", depths, read_beside, pair, odd_picture, 20),
        "picture": Kind("any", coloured + others, read_any_picture, usable, odd_picture, 25),
        "intrinsics": Kind("intrinsics.json", cameras, read_beside, pair, odd_json),
        "list": Kind("train.txt", [lines], read_list, pair, odd_list),
        "teacher": Kind("map.npy", [metres.getvalue()], read_map, pair, odd_npy),
        "checkpoint": Kind("net.pt", [checkpoint.getvalue()], read_model, weights, odd_state, 2),
        "weights": Kind("public.pth", publics, read_public, weights, None, 3),
        "tflite": Kind("model.tflite", [tflite], read_deployed, usable, None, 4),
        "calibration": Kind("calibration.json", [fit], read_fit, usable, odd_json, 5),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------- the run


def write_case(kinds: dict[str, Kind], name: str, number: int, seed: int, root: Path) -> Path:
    """The damaged file of a case, among whole ones in a folder of its kind's own."""
    kind, folder = kinds[name], root / name
    content = damaged(Random(f"{seed}:{name}:{number}"), kind, kinds)
    if not folder.exists():
        folder.mkdir(parents=True)
        for beside in ("rgb.png", "rgb2.png"):
            (folder / beside).write_bytes(kinds["rgb"].good[0])
        for beside in ("depth.png", "depth2.png"):
            (folder / beside).write_bytes(kinds["depth"].good[0])
    path = folder / kind.name
    if path.is_dir():
        path.rmdir()
    if content is None:
        path.unlink(missing_ok=True)
        path.mkdir()
    else:
        path.write_bytes(content)
    return path


def attempt(kind: Kind, path: Path) -> str:
    """ "valid", "refused", or what is wrong with the answer."""
    try:
        kind.read(path)
    except (*kind.errors, OSError) as error:
        told = str(error)
        fine = "\n" not in told and len(told) < 1000 and str(path.parent) in told
        return "refused" if fine else f"told so: {told[:2000]}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "valid"


def work(cases: Iterator[tuple[str, int]], seed: int, root: Path) -> None:
    """Reads the cases; says on stdout, before each, which one it is, and then how it ended."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    kinds = make_kinds()
    for name, number in cases:
        path = write_case(kinds, name, number, seed, root)
        print(f"{name}:{number}", end=" ", flush=True)
        faulthandler.dump_traceback_later(HANG, exit=True)
        print(json.dumps(attempt(kinds[name], path)), flush=True)
        faulthandler.cancel_dump_traceback_later()


def cases_of(count: int, names: list[str], kinds: dict[str, Kind]) -> list[tuple[str, int]]:
    total = sum(kinds[name].share for name in names)
    return [(n, i) for n in names for i in range(math.ceil(count * kinds[n].share / total))]


Tallies = dict[str, collections.Counter]


def run(count: int, seed: int, names: list[str]) -> tuple[Tallies, list[str]]:
    """-> {kind: how many were refused and valid}, and failures, each with how to see it again."""
    tallies = {name: collections.Counter() for name in names}
    failures = []
    command = [sys.executable, str(PROGRAM), "--work", "--count", str(count), "--seed", str(seed)]
    command += ["--kinds", ",".join(names)]
    with tempfile.TemporaryDirectory() as errors:
        with open(Path(errors, "stderr"), "w+") as stderr:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
            stderr.seek(0)
            told = stderr.read()[-2000:]
    for line in done.stdout.splitlines():
        case, _, answer = line.partition(" ")
        answer = json.loads(answer) if answer else f"the reader crashed or hung:\n{told}"
        if answer in ("valid", "refused"):
            tallies[case.partition(":")[0]][answer] += 1
        else:
            again = f"python tests/fuzz.py --case {case} --seed {seed}"
            failures.append(f"{case}: {answer}\n    again: {again}")
    if done.returncode and not failures:
        failures.append(f"the worker ended with {done.returncode}:\n{told}")
    return tallies, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="cases, over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", help="some of them, by commas (default all)")
    parser.add_argument("--case", metavar="KIND:NUMBER", help="this one alone; its file stays")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    kinds = make_kinds()
    names = args.kinds.split(",") if args.kinds else list(kinds)
    if args.case:
        name, number = args.case.split(":")
        path = write_case(kinds, name, int(number), args.seed, Path(tempfile.mkdtemp()))
        print(path)
        kinds[name].read(path)
        return 0
    if args.work:
        root = Path(tempfile.mkdtemp())
        try:
            work(cases_of(args.count, names, kinds), args.seed, root)
        finally:
            shutil.rmtree(root)
        return 0
    tallies, failures = run(args.count, args.seed, names)
    for name, tally in tallies.items():
        print(f"{name:<12} {tally['refused']:>7} refused {tally['valid']:>7} valid")
    print(*failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
