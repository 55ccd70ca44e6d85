"""Hostile input: seeded mutations of every kind of file that is read, each of which must end in the
documented error or in a valid result.

    python tests/fuzz.py --count 100000 --seed 1 [--kinds png,jpeg] [--kernels]
    python tests/fuzz.py --case jpeg:1234 --seed 1              one of them again, its file kept

Worker processes make and read the cases; this one watches them. A case fails when another exception
comes out of the reader, when what it returns is not valid, when the worker dies, takes more than
--limit seconds of CPU or --wall seconds by the clock, or grows beyond --resident GB, or when the
code in a payload ran. (seed, kind, number) alone decide a case; one that failed is kept in --keep.
Exit code 1 where one failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import functools
import importlib
import io
import json
import math
import operator
import os
import pickle
import random
import re
import resource
import selectors
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import timeit
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import data
import export
import model
from plumbing.checkpoints import (
    CALIBRATION,
    CHECKPOINT_FORMAT,
    CheckpointError,
    read_calibration,
    read_checkpoint,
)
from plumbing.files import UserError
from plumbing.pack import PAGE, Pack, _up, open_pack
from plumbing.pairs import (
    DataError,
    Pair,
    Sample,
    check_files,
    find_split,
    list_pairs,
    read_pair,
    read_teacher,
    stored_intrinsics,
)
from plumbing.pictures import read_picture
from plumbing.runtime import MEMBER, TFLITE_FORMAT, read_metadata, seal

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

PROGRAM = Path(__file__)  # what a worker runs
SIZE = (64, 96)
Random = random.Random


class Invalid(AssertionError):
    """What a reader returned is not what its docstring promises."""


def expect(fine: object, what: str) -> None:
    if not fine:
        raise Invalid(what)


# --------------------------------------------------------------------------------- any bytes at all

INTEGERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    17,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    1 << 20,
    (1 << 24) - 1,
    (1 << 30),
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    (1 << 32) - 8,
)


def place(rng: Random, raw: bytearray) -> int:
    """Where to damage: headers stand at both ends."""
    n = len(raw)
    if not n:
        return 0
    kind = rng.random()
    if kind < 0.4:
        return rng.randrange(min(n, 160))
    return n - 1 - rng.randrange(min(n, 160)) if kind < 0.55 else rng.randrange(n)


def flip(rng: Random, raw: bytearray, other: bytes) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if raw:
            raw[place(rng, raw)] ^= 1 << rng.randrange(8)


def set_byte(rng: Random, raw: bytearray, other: bytes) -> None:
    for _ in range(rng.choice((1, 1, 4))):
        if raw:
            raw[place(rng, raw)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def delete(rng: Random, raw: bytearray, other: bytes) -> None:
    at = place(rng, raw)
    del raw[at : at + rng.choice((1, 2, 4, 16, 256))]


def insert(rng: Random, raw: bytearray, other: bytes) -> None:
    at, n = place(rng, raw), rng.choice((1, 2, 4, 16, 256))
    raw[at:at] = rng.randbytes(n) if rng.random() < 0.5 else bytes([rng.choice((0, 255))]) * n


def duplicate(rng: Random, raw: bytearray, other: bytes) -> None:
    at, n = place(rng, raw), rng.choice((1, 4, 16, 64, 1024))
    raw[at:at] = raw[at : at + n] * rng.choice((1, 1, 2, 16))


def swap(rng: Random, raw: bytearray, other: bytes) -> None:
    a, b, n = place(rng, raw), place(rng, raw), rng.choice((1, 4, 16, 64))
    a, b = min(a, b), max(a, b)
    if a + n <= b and b + n <= len(raw):
        raw[a : a + n], raw[b : b + n] = raw[b : b + n], raw[a : a + n]


def truncate(rng: Random, raw: bytearray, other: bytes) -> None:
    del raw[rng.randrange(len(raw) + 1) :]


def extend(rng: Random, raw: bytearray, other: bytes) -> None:
    raw += rng.randbytes(rng.choice((1, 16, 5000)))


def splice(rng: Random, raw: bytearray, other: bytes) -> None:
    """The front of this file and the back of another, or the other in the middle of this one."""
    if rng.random() < 0.5:
        raw[rng.randrange(len(raw) + 1) :] = other[rng.randrange(len(other) + 1) :]
    else:
        at, start = place(rng, raw), rng.randrange(len(other) + 1)
        raw[at : at + 64] = other[start : start + rng.choice((64, 256))]


def integer(rng: Random, raw: bytearray, other: bytes) -> None:
    """A number that programs trip over, of 1 to 8 bytes in either order."""
    at, n = place(rng, raw), rng.choice((1, 2, 4, 4, 8))
    value = rng.choice(INTEGERS) if rng.random() < 0.8 else (1 << 8 * n) - rng.randrange(1, 64)
    order = rng.choice(("little", "big"))
    raw[at : at + n] = (value & ((1 << 8 * n) - 1)).to_bytes(n, order)


MUTATORS = (flip, flip, set_byte, delete, insert, duplicate, swap, truncate, extend, splice,
            integer, integer)  # fmt: skip


def mutate(rng: Random, raw: bytes, other: bytes = b"\0") -> bytes:
    """One to four damages. Few: a file with many never gets past the first check."""
    damaged = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(MUTATORS)(rng, damaged, other)
    return bytes(damaged)


# ----------------------------------------------------------------------------------------- pictures


def colours(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth BGR u8 picture."""
    rng = np.random.default_rng(seed)
    return (
        cv2.GaussianBlur(rng.uniform(-800, 1056, (*size, 3)), (0, 0), 3).clip(0, 255).astype("u1")
    )


def depths(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """An u16 depth with holes."""
    rng = np.random.default_rng(seed)
    depth = rng.integers(400, 9000, size)
    depth[cv2.GaussianBlur(rng.normal(size=size), (0, 0), 3) > 0.08] = 0
    return depth.astype(np.uint16)


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1))  # fmt: skip
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(picture: np.ndarray, colour: int, bits: int = 8, interlaced: bool = False) -> bytes:
    """A PNG of any colour type, also those that cv2.imwrite does not make. picture: (H, W, n)
    samples of `bits`, 8 or 16; of colour type 3 they are places in a palette."""
    picture = picture.reshape(*picture.shape[:2], -1)
    samples = picture.astype(">u2" if bits == 16 else "u1")
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    raw = b"".join(
        b"\0" + row.tobytes() for y, x, dy, dx in passes for row in samples[y::dy, x::dx]
    )
    h, w = picture.shape[:2]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, interlaced))]
    if colour == 3:
        chunks.append((b"PLTE", bytes(range(256)) * 3))
    return png_file([*chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])


def png_file(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Signature and chunks, with the right lengths and checksums."""
    parts = [SIGNATURE]
    for name, content in chunks:
        crc = zlib.crc32(content, zlib.crc32(name))
        parts.append(struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc))
    return b"".join(parts)


def png_chunks(raw: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at + 12 <= len(raw):
        (n,) = struct.unpack(">I", raw[at : at + 4])
        chunks.append((raw[at + 4 : at + 8], raw[at + 8 : at + 8 + n]))
        at += 12 + n
    return chunks


def mutate_png(rng: Random, raw: bytes, other: bytes) -> bytes:
    """Half: any damage. Half: damage under right checksums, that reaches the decoder."""
    if rng.random() < 0.4:
        return mutate(rng, raw, other)
    chunks = png_chunks(raw)
    for _ in range(rng.choice((1, 1, 2))):
        k = rng.randrange(len(chunks))
        name, content = chunks[k]
        kind = rng.randrange(7)
        if kind == 0:  # sizes, depth, colour type, methods
            header = bytearray(chunks[0][1].ljust(13, b"\0"))
            if rng.random() < 0.5:
                side = rng.choice((*INTEGERS, 30000, 95, 97, 64, 32, 10000, 1 << 16))
                struct.pack_into(">I", header, rng.choice((0, 4)), side & 0xFFFFFFFF)
            else:
                header[rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[0] = chunks[0][0], bytes(header)
        elif kind == 1:  # inside the packed pixels
            i = next((i for i, c in enumerate(chunks) if c[0] == b"IDAT"), None)
            if i is not None:
                chunks[i] = b"IDAT", mutate(rng, chunks[i][1])
        elif kind == 2:  # the unpacked ones: filters, too few, too many
            with contextlib.suppress(zlib.error, StopIteration):
                i = next(i for i, c in enumerate(chunks) if c[0] == b"IDAT")
                pixels = mutate(rng, zlib.decompress(chunks[i][1]))
                chunks[i] = b"IDAT", zlib.compress(pixels, rng.choice((0, 1, 9)))
        elif kind == 3:
            chunks[k] = name, mutate(rng, content)
        elif kind == 4:
            del chunks[k]
            chunks = chunks or [(b"IEND", b"")]
        elif kind == 5:
            chunks.insert(rng.randrange(len(chunks) + 1), chunks[k])
        else:
            names = (
                b"tEXt",
                b"zTXt",
                b"iCCP",
                b"eXIf",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"PLTE",
                b"tRNS",
                b"sBIT",
                b"cICP",
                b"gAMA",
                b"cHRM",
                b"hIST",
                b"ABCD",
                b"abcd",
            )
            body = rng.choice((b"", b"k\0\0" + zlib.compress(bytes(100_000)), rng.randbytes(26),
                               b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0",
                               struct.pack(">II", 3, 0), bytes(768), b"\0\1"))  # fmt: skip
            chunks.insert(rng.randrange(len(chunks) + 1), (rng.choice(names), body))
    return png_file(chunks)


def jpeg_segments(raw: bytes) -> list[tuple[int, int]]:
    """(place, marker) of the segments up to the first scan."""
    found, at = [], 2
    while at + 4 <= len(raw) and raw[at] == 0xFF:
        found.append((at, raw[at + 1]))
        if raw[at + 1] == 0xDA:
            break
        at += 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
    return found


def mutate_jpeg(rng: Random, raw: bytes, other: bytes) -> bytes:
    if rng.random() < 0.4:
        return mutate(rng, raw, other)
    damaged = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2))):
        segments = jpeg_segments(damaged)
        if not segments:
            break
        at, marker = rng.choice(segments)
        frame = next((a for a, m in segments if 0xC0 <= m <= 0xC2), at)
        kind = rng.randrange(9)
        if kind == 0:  # sizes
            side = rng.choice((0, 1, 7, 8, 9, 31, 63, 65, 95, 97, 4096, 30000, 65500, 65535))
            struct.pack_into(">H", damaged, min(frame + rng.choice((5, 7)), len(damaged) - 2), side)
        elif kind == 1:  # components, sampling, tables
            where = min(frame + rng.randrange(4, 19), len(damaged) - 1)
            damaged[where] = rng.choice((0, 1, 2, 3, 4, 8, 12, 16, 0x11, 0x22, 0x41, 0x44, 0xFF))
        elif kind == 2:  # lengths
            length = rng.choice((0, 1, 2, 3, 8, 16, 255, 65535))
            damaged[at + 2 : at + 4] = struct.pack(">H", length)
        elif kind == 3:  # another kind of segment, or of coding
            damaged[at + 1] = rng.choice(
                (
                    0xC0,
                    0xC1,
                    0xC2,
                    0xC3,
                    0xC4,
                    0xC9,
                    0xCA,
                    0xCC,
                    0xDB,
                    0xDD,
                    0xDA,
                    0xD9,
                    0xD0,
                    0xE0,
                    0xE1,
                    0xEE,
                    0xFE,
                    0x01,
                    0xFF,
                )
            )
        elif kind == 4:  # a segment's content
            length = int.from_bytes(damaged[at + 2 : at + 4], "big")
            where = min(at + 4 + rng.randrange(max(1, length)), len(damaged) - 1)
            damaged[where] = rng.randrange(256)
        elif kind == 5:  # EXIF: turned, broken, a thumbnail
            body = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0" + bytes([rng.randrange(10)])
            body += b"\0\0\0\0\0\0" + rng.choice((b"", b"\xff\xd8\xff\xd9", rng.randbytes(40)))
            damaged[2:2] = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        elif kind == 6:  # inside the coded picture
            start = segments[-1][0]
            damaged[start:] = mutate(rng, bytes(damaged[start:]))
        elif kind == 7:  # a scan, or any segment, again and again
            end = damaged.find(b"\xff\xda", at + 2)
            end = end if end > 0 else len(damaged) - 2
            damaged[end:end] = damaged[at:end] * rng.choice((1, 2, 200))
        else:
            damaged[at:at] = b"\xff" * rng.choice((1, 2, 5000))
    return bytes(damaged)


def check_sample(sample: Sample, size: tuple[int, int]) -> None:
    """What data.Sample promises."""
    rgb, depth, K = sample.rgb, sample.depth, sample.K
    expect(rgb.dtype == np.uint8 and rgb.shape == (*size, 3), f"rgb {rgb.dtype} {rgb.shape}")
    expect(depth.dtype == np.uint16 and depth.shape == size, f"depth {depth.dtype} {depth.shape}")
    expect(rgb.flags.c_contiguous and depth.flags.c_contiguous, "not contiguous")
    expect(K.dtype == np.float64 and K.shape == (4,), f"K {K.dtype} {K.shape}")
    check_camera(K)


def check_camera(K: Any) -> None:
    """Finite and with positive focal lengths, also as the float32 of a batch."""
    K32 = np.asarray(K, np.float32)
    expect(np.isfinite(K32).all() and (K32[:2] > 0).all(), f"K {tuple(K)}")
    expect(np.isfinite(1 / K32[:2]).all(), f"1 / f of {tuple(K)}")


AUGMENT = data.Augment(((32, 48), (48, 80), SIZE), 0.5, 2.5, 0.5, (0.9, 1.1), False, (0.75, 1.25),
                       (0.9, 1.1))  # fmt: skip


def through_kernels(sample: Sample, number: int) -> None:
    """A sample through r2_crop and r2_batch, and out as finite numbers."""
    kernels = data.litedepth_kernels
    drawn = data.draw(0, 0, [number], SIZE, AUGMENT)
    pad = np.zeros(3, np.float32)
    image, metres = np.empty((3, 32, 64), np.float32), np.empty(SIZE, np.float32)
    crop = tuple(drawn.crop[0].tolist())
    kernels.r2_crop(sample.rgb, sample.depth, drawn.affine[0], crop, drawn.lut[0], pad, 1000.0,
                    image, metres)  # fmt: skip
    expect(np.isfinite(image).all() and np.isfinite(metres).all(), "r2_crop: not finite")
    low = [np.empty((1, 1, 8, 16), bool if n[0] == "M" else "f4") for n in (*data.LOW, *data.CELLS)]
    kernels.r2_batch(
        [sample.rgb], [sample.depth], drawn.affine, drawn.crop, drawn.lut, pad, 1000.0,
        data.log_table(1000.0, 1e-3), "cell", 1, image[None], metres[None, None], *low,
    )  # fmt: skip
    expect(all(np.isfinite(a).all() for a in low), "r2_batch: not finite")


# --------------------------------------------------------------------------------------------- JSON

TOKENS = (
    "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1" + "0" * 400, "-1" + "0" * 400,
    "9" * 5000,
    "true", "false", "null", "[]", "{}", '"x"', '"12"', '""', '"\\ud800"', '"\\u0000"', "-0", "0",
    "-1", "1", "0.5", "2", "600", "1e-320", "1e-30", "1e30", "1e308", '"' + "a" * 10_000 + '"',
    "[1,2]",
    '{"fx": 1}', "[" * 10 + "]" * 10, "[" * 900 + "]" * 900, "[" * 985 + "]" * 985,
    '{"a":' * 960 + "1" + "}" * 960, "[" * 100_000 + "]" * 100_000,
    '{"a":' * 100_000, "[" * 100_000,
    "1.0e", "0x10", "--1", "'x'", '"a\tb"', "18446744073709551616", "9007199254740993", "1E2",
)  # fmt: skip


def places_of(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value within JSON's containers, the whole first."""
    yield path
    if not isinstance(value, dict | list):
        return
    for key, inner in value.items() if isinstance(value, dict) else list(enumerate(value)):
        yield from places_of(inner, (*path, key))


def mutate_json(rng: Random, value: Any) -> bytes:
    """JSON text with one or two of its values replaced, doubled or taken away, or damaged."""
    value, kind = json.loads(json.dumps(value)), rng.randrange(12)
    if kind == 0:
        return mutate(rng, json.dumps(value).encode(), json.dumps(value, indent=1).encode())
    if kind == 1:
        text = json.dumps(value)
        return rng.choice((
            b"", b"\0" * 100, text.encode("utf-16"), text.encode("utf-8-sig"),
            b"\xff" + text.encode(),
            (text + " ").encode(), (text + "\0").encode(), (text * 2).encode(),
            f"[{text}]".encode(),
            rng.choice(TOKENS).encode(), text.encode().replace(b'"', b'"\xed\xa0\x80', 1),
            text.encode()[: rng.randrange(len(text))],
        ))  # fmt: skip
    replaced = []
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice(list(places_of(value))[1:])
        holder = functools.reduce(lambda v, key: v[key], path[:-1], value)
        key = path[-1]
        if kind == 2 and isinstance(holder, dict):
            del holder[key]
        elif kind == 3 and isinstance(holder, dict):
            holder[rng.choice(("frames", "fx", "extra", "", "\0", "a" * 5000))] = holder.pop(key)
        else:
            token = rng.choice(TOKENS)
            replaced.append(token)
            holder[key] = f"@{len(replaced)}@"
        if not value:
            break
    text = json.dumps(value, indent=rng.choice((None, 1)))
    for n, token in enumerate(replaced, 1):
        text = text.replace(f'"@{n}@"', token)
    if rng.random() < 0.1:  # a key that occurs twice
        text = re.sub(
            r'"(\w+)": ', lambda m: f'"{m[1]}": {rng.choice(TOKENS)}, {m[0]}', text, count=1
        )
    return text.encode()


# -------------------------------------------------------------------------------------- checkpoints


class Call:
    """Pickled as f(*args), which runs when an ordinary unpickler reads it."""

    def __init__(self, f: Callable, *args: object) -> None:
        self.f, self.args = f, args

    def __reduce__(self) -> tuple:
        return self.f, self.args

    def __call__(self) -> None:
        """Never: only what is pickled as called must look as if it could be."""


class Storage:
    """Pickled as torch.save's reference to the record `key` of the archive."""

    def __init__(self, elements: object, key: str = "0", kind: type = torch.FloatStorage) -> None:
        self.id = ("storage", kind, key, "cpu", elements)


class Pickler(pickle.Pickler):
    def persistent_id(self, thing: object) -> tuple | None:
        return thing.id if isinstance(thing, Storage) else None


def pickled(thing: object, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    Pickler(file, protocol).dump(thing)
    return file.getvalue()


def archive(members: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file; names may occur twice."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as z:
        for name, content in members:
            z.writestr(zipfile.ZipInfo(name), content, how)
    return file.getvalue()


def members_of(raw: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(raw)) as z:
        return [(i.filename, z.read(i)) for i in z.infolist()]


def crafted(thing: object, records: tuple[bytes, ...] = (bytes(64),)) -> bytes:
    """A checkpoint's archive whose pickle is `thing`."""
    own = [(f"a/data/{k}", record) for k, record in enumerate(records)]
    order = ("a/byteorder", b"little"), ("a/version", b"3\n")
    return archive([("a/data.pkl", pickled(thing)), order[0], *own, order[1]])


def payloads(mark: Path) -> dict[str, object]:
    """Things that make the file `mark` when an ordinary unpickler reads them."""
    touch, code = f"touch {mark}", f"open({str(mark)!r}, 'w').close()"
    state = collections.OrderedDict(w=Call(os.system, touch))
    rebuild = torch._utils._rebuild_tensor_v2
    return {
        "os.system": Call(os.system, touch),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "open": Call(open, str(mark), "w"),
        "subprocess": Call(subprocess.call, ["touch", str(mark)]),
        "partial": Call(functools.partial(os.system, touch)),
        "import": Call(Call(operator.attrgetter("system"), Call(importlib.import_module, "os")),
                       touch),
        "timeit": Call(timeit.timeit, code, "pass", time.perf_counter, 1),
        "in a dict": {"format": CHECKPOINT_FORMAT, "model_args": {}, "model": state},
        "as model_args": {"format": CHECKPOINT_FORMAT, "model_args": Call(eval, f"dict(x={code})")},
        "as a key": {"format": CHECKPOINT_FORMAT, Call(eval, code): 1},
        "as a size": [Call(rebuild, Storage(16), 0, Call(eval, f"({code}, (2,))[1]"), (1,), False,
                           collections.OrderedDict())],
        "as hooks": [Call(rebuild, Storage(16), 0, (2,), (1,), False, state)],
        "in an attribute": Attributed(Call(os.system, touch)),
    }  # fmt: skip


class Attributed:
    """A dict subclass's instance with an attribute, as OrderedDict's _metadata is stored."""

    def __init__(self, attribute: object) -> None:
        self.attribute = attribute

    def __reduce__(self) -> tuple:
        return collections.OrderedDict, (), {"attribute": self.attribute}


def laughs(kind: type, depth: int) -> object:
    """Few bytes, 2^depth things: each holds the one before twice."""
    thing: object = kind((1, 2))
    for _ in range(depth):
        thing = kind((thing, thing))
    return thing


# -------------------------------------------------------------------------------------------- kinds


@dataclass
class Scratch:
    """A worker's folder and what its kinds have prepared there."""

    folder: Path
    kernels: bool
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def mark(self) -> Path:
        return self.folder / "payload_ran"

    def of(self, kind: str) -> Path:
        path = self.folder / kind
        path.mkdir(exist_ok=True)
        return path


class Kind(NamedTuple):
    """weight: its share of all cases, by what one costs. prepare(scratch): what all its cases have
    in common. write(rng, scratch): a case's files, the damaged ones named. read(scratch, number):
    raises one of `refusals`, returns False for refused in another documented way, or True for a
    valid result, looked at."""

    weight: int
    prepare: Callable[[Scratch], None]
    write: Callable[[Random, Scratch], Path]
    read: Callable[[Scratch, int], bool]
    refusals: tuple[type[Exception], ...]


def pictures() -> dict[str, list[bytes]]:
    """Encoded pictures of SIZE by their kind."""
    bgr, depth = colours(1), depths(1)
    half = colours(2, (SIZE[0] // 2, SIZE[1] // 2))
    rgb16 = np.repeat(depth[..., None], 3, 2)
    alpha = np.dstack([bgr, bgr[..., :1]])

    def encode(suffix: str, picture: np.ndarray, *options: int) -> bytes:
        return cv2.imencode(suffix, picture, options)[1].tobytes()

    progressive = cv2.IMWRITE_JPEG_PROGRESSIVE, 1
    return {
        "png": [encode(".png", bgr), encode(".png", alpha), encode(".png", bgr[..., 0]),
                encode(".png", half), png(bgr, 2, interlaced=True), png(bgr[..., :1], 3),
                png(rgb16, 2, 16), png(bgr[..., :2], 4)],
        "depth": [encode(".png", depth), png(depth, 0, 16, True),
                  encode(".png", depths(2)[::2, ::2]),
                  encode(".png", depth, cv2.IMWRITE_PNG_COMPRESSION, 0),
                  encode(".png", bgr[..., 0])],
        "jpeg": [encode(".jpg", bgr), encode(".jpg", bgr, *progressive),
                 encode(".jpg", bgr[..., 0]), encode(".jpg", half, cv2.IMWRITE_JPEG_QUALITY, 40),
                 encode(".jpg", bgr, cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
                 encode(".jpg", bgr, cv2.IMWRITE_JPEG_OPTIMIZE, 1,
                        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)],
        "other": [encode(".bmp", bgr), encode(".webp", bgr), encode(".ppm", bgr),
                  encode(".pgm", bgr[..., 0]), encode(".tif", bgr),
                  encode(".webp", bgr, cv2.IMWRITE_WEBP_QUALITY, 101)],
    }  # fmt: skip


def prepare_pair(kind: str, scratch: Scratch) -> None:
    scratch.made.setdefault("pictures", pictures())
    folder = scratch.of(kind)
    (folder / "whole.png").write_bytes(scratch.made["pictures"]["png"][0])
    (folder / "depth.png").write_bytes(scratch.made["pictures"]["depth"][0])


def write_picture(kind: str, rng: Random, scratch: Scratch) -> Path:
    seeds = scratch.made["pictures"][kind]
    raw, other = rng.choice(seeds), rng.choice(seeds)
    damaged = (mutate_jpeg if kind == "jpeg" else mutate_png)(rng, raw, other)
    path = scratch.of(kind) / "damaged.png"
    path.write_bytes(damaged)
    return path


def read_pair(kind: str, scratch: Scratch, number: int) -> bool:
    """The damaged file beside a whole one, as --data's start and its Reader read them."""
    folder = scratch.of(kind)
    names = ("whole.png", "damaged.png") if kind == "depth" else ("damaged.png", "depth.png")
    pair = Pair(folder / names[0], folder / names[1], kind, folder)
    check_files([pair])
    sample = read_pair(pair, SIZE, None, {})
    check_sample(sample, SIZE)
    if scratch.kernels:
        through_kernels(sample, number)
    return True


def write_any(rng: Random, scratch: Scratch) -> Path:
    made = scratch.made["pictures"]
    name = rng.choice(("png", "jpeg", "other", "other"))
    raw, other = rng.choice(made[name]), rng.choice(made[rng.choice(("png", "jpeg", "other"))])
    change = {"png": mutate_png, "jpeg": mutate_jpeg, "other": mutate}[name]
    path = scratch.of("picture") / "damaged"
    path.write_bytes(change(rng, raw, other))
    return path


def read_any(scratch: Scratch, number: int) -> bool:
    rgb = read_picture(scratch.of("picture") / "damaged")
    expect(rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size,
           f"{rgb.dtype} {rgb.shape}")  # fmt: skip
    return True


SPECIAL = ("fifo.png", "loop.png", "zero.png", "null.png", "folder.png", "empty.png", "gone.png")


def make_special(folder: Path) -> None:
    """A pipe nobody writes to, a link to itself, devices without an end and without a beginning."""
    os.mkfifo(folder / "fifo.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "null.png").symlink_to("/dev/null")
    (folder / "folder.png").mkdir()
    (folder / "empty.png").touch()
    (folder / "gone.png").symlink_to("nowhere")


def prepare_list(scratch: Scratch) -> None:
    root = scratch.of("list") / "root"
    (root / "rgb").mkdir(parents=True)
    made = scratch.made.setdefault("pictures", pictures())
    for name in ("a.png", "b c.png", "d.png", "é.png"):
        (root / "rgb" / name).write_bytes(made["png"][0])
        (root / name).write_bytes(made["depth"][0])
    make_special(root)
    (root / "intrinsics.json").write_text('{"fx": 100, "fy": 100, "cx": 48, "cy": 32}')


def write_list(rng: Random, scratch: Scratch) -> Path:
    """A list in front of every kind of file; or folders with such files among the pictures."""
    root = scratch.of("list") / "root"
    for old in (root / "train.txt", root / "train"):
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink(missing_ok=True)
    if rng.random() < 0.2:
        for side in ("rgb", "depth"):
            (root / "train" / side).mkdir(parents=True)
        for name in ("a.png", *rng.sample(SPECIAL, rng.choice((0, 1, 1, 2)))):
            for side, folder in (("rgb", root / "rgb"), ("depth", root)):
                if rng.random() < 0.9:
                    source = folder if name == "a.png" else root
                    (root / "train" / side / name).symlink_to(source / name)
        return root / "train"
    lines = ["rgb/a.png a.png", "rgb/b c.png\tb c.png", "# rgb depth", "", "rgb/d.png d.png",
             "rgb/é.png é.png", f"{root}/rgb/a.png {root}/a.png"]  # fmt: skip
    words = (
        "rgb/a.png", "a.png", *SPECIAL, "..", ".", "/", "/dev/zero", "/dev/stdin", "/proc/self/mem",
        "../../../../../../etc/passwd", "~", "n" * 300, "n" * 10_000, "d/" * 3000, "\0", "a\0b",
        "\t",
        "train.txt", "loop.png/x", "a.png/x", "\u2028", "\ufeff", "\ud7ff", "*", "%s", "{}", "//",
        "\r",
        "\x1b[2J", "rgb/" * 900 + "a.png", "./" * 2030 + "a.png",
    )  # fmt: skip
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        line = rng.choice((" ", "\t", "  ")).join(
            rng.choices(words, k=rng.choice((1, 2, 2, 2, 2, 3)))
        )
        lines.insert(rng.randrange(len(lines) + 1), line)
    raw = rng.choice(("\n", "\n", "\r\n", "\r")).join(lines).encode()
    kind = rng.randrange(8)
    if kind < 2:
        raw = mutate(rng, raw, b"rgb/d.png d.png\n")
    elif kind == 2:
        codes = ("utf-16", "utf-8-sig", "utf-32", "latin-1")
        raw = raw.decode().encode(rng.choice(codes), "replace")
    path = root / "train.txt"
    if kind == 3 and rng.random() < 0.5:  # the list itself is no file
        path.symlink_to(rng.choice(SPECIAL))
    else:
        path.write_bytes(raw)
    return path


def read_list(scratch: Scratch, number: int) -> bool:
    pairs = list_pairs(scratch.of("list") / "root", "train")
    expect(pairs and all(type(p) is Pair for p in pairs), "no pairs")
    check_files(pairs)
    known: dict = {}
    for pair in pairs[:2]:
        check_sample(read_pair(pair, SIZE, None, known), SIZE)
    return True


CAMERA = {"fx": 100.5, "fy": 101, "cx": 48.0, "cy": 31.5, "width": 96, "height": 64}


def write_json(kind: str, name: str, values: tuple, rng: Random, scratch: Scratch) -> Path:
    path = scratch.of(kind) / name
    if path.exists() or path.is_symlink():
        path.unlink()
    if rng.random() < 0.02:
        special = scratch.of(kind) / "special"
        if not special.is_dir():
            special.mkdir()
            make_special(special)
        path.symlink_to(Path("special") / rng.choice(SPECIAL))
    else:
        path.write_bytes(mutate_json(rng, rng.choice(values)))
    return path


def read_intrinsics(scratch: Scratch, number: int) -> bool:
    folder = scratch.of("intrinsics")
    pair = Pair(folder / "whole.png", folder / "depth.png", "s", folder)
    K = stored_intrinsics(pair, SIZE, {})
    if K is not None:
        check_camera(K)
    check_sample(read_pair(pair, SIZE, None, {}), SIZE)
    return True


FIT = {
    "format": CALIBRATION,
    "scale": 1.02,
    "shift_m": -0.05,
    "split": "val",
    "data": "d",
    "model": "runs/best.pt",
    "model_sha256": "0" * 64,
    "pairs": 12,
    "robust": [1, 2.5],
}


def read_calibration(scratch: Scratch, number: int) -> bool:
    found = read_calibration(scratch.of("calibration") / "calibration.json")
    scale, shift = found["scale"], found["shift_m"]
    expect(0 < scale < 1e9 and math.isfinite(shift), f"{scale} {shift}")
    for name in ("data", "split", "model", "model_sha256"):
        expect(isinstance(found.get(name, ""), str), f"{name} {found.get(name)!r:.99}")
    json.dumps(found, allow_nan=False)  # goes into the .tflite
    return True


ARGS = {"data": "synthetic:512", "split": "train", "val_split": "val", "depth_scale": 1000.0,
        "max_depth": 40, "lr": 1e-3, "size": [128, 160]}  # fmt: skip


def read_args(scratch: Scratch, number: int) -> bool:
    """export.trained_on refuses nothing: what it cannot use it leaves out."""
    facts = export.trained_on(scratch.of("args") / "best.pt")
    kinds = {"data": str, "split": str, "val_split": str, "depth_scale": float | int,
             "max_depth": float | int}  # fmt: skip
    for name, value in facts.items():
        expect(
            isinstance(value, kinds[name]) and not isinstance(value, bool), f"{name} {value!r:.99}"
        )
    for name in ("depth_scale", "max_depth"):
        expect(0 < np.float32(facts.get(name, 1)) < np.inf, f"{name} {facts.get(name)!r:.99}")
    for name in ("split", "val_split"):  # as export goes on with them
        with contextlib.suppress(DataError):
            find_split(scratch.of("args"), facts.get(name, "val"))
    return bool(facts)


def npy(array: np.ndarray, header: str | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, (1, 0))
    raw = file.getvalue()
    if header is None:
        return raw
    text = header.encode("latin-1", "replace").ljust(118)[:65535]
    return raw[:8] + struct.pack("<H", len(text)) + text + array.tobytes()


def write_npy(rng: Random, scratch: Scratch) -> Path:
    metres = depths(3).astype(np.float32) / 1000
    seeds = [npy(a) for a in (metres, metres.astype(">f8"), depths(3), metres.astype("f2"),
                              np.asfortranarray(metres), metres[None, :, :, None])]  # fmt: skip
    descr = rng.choice(("<f4", "<f4", ">f2", "<u2", "|O", "<c8", "<i4", "|S8", "<M8[s]", "|V4",
                        "<f16",
                        "", "x", "f4,f4", "<U0", "<f4" * 900, "|b1"))  # fmt: skip
    shape = rng.choice(("(64, 96)", "(64, 96)", "(1, 64, 96)", "(64,)", "()", "(0, 96)", "(-1, 96)",
                        "(64, -96)", f"({1 << 62}, 4)", f"({1 << 31}, {1 << 31})", "(64.0, 96)",
                        "(True, 96)", "('64', 96)", "[64, 96]", "(100000, 150000)", "(10**9, 96)",
                        "(1,) * 99", "(" + "1," * 70 + ")", f"({10**400}, 1)", "None"))  # fmt: skip
    order = rng.choice(("False", "False", "True", "0", "None", "'C'"))
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n"
    odd = ("-" * 9000 + "1", "(" * 5000, "[" * 150 + "]" * 150, "{" * 90, "(" * 99 + ")" * 99,
           "'a' " * 2000, "9" * 6000, "\0" * 200, "{'descr': [('a', '<f4'), ('a', '<f4')]}",
           header.replace("'descr'", "'Descr'"), header.replace("shape", "sh\\ud800ape"),
           "{'descr': [('a', '<f4', (64, 96))], 'fortran_order': False, 'shape': (1,), }",
           "{'descr': ('<f4', (64, 96)), 'fortran_order': False, 'shape': (1,), }",
           "__import__('os').system('true')",
           "{'descr': {'a': 1}, 'fortran_order': 0, 'shape': ()}",
           "1+" * 3000 + "1", "not " * 2000 + "1", "lambda: 0", header * 3,
           "{1: 2, 'a': 3, (1,): 4}",
           "x" * 64000, "'\\x" + "0" * 90)  # fmt: skip
    kind = rng.randrange(5)
    if kind == 0:
        raw = npy(metres, rng.choice(odd))
    elif kind in (1, 2):
        raw = npy(metres, header)
    else:
        raw = mutate(rng, rng.choice(seeds), rng.choice(seeds))
    path = scratch.of("npy") / "map.npy"
    path.write_bytes(raw)
    return path


def read_npy(scratch: Scratch, number: int) -> bool:
    depth = read_teacher(scratch.of("npy") / "map.npy", SIZE, 1000.0, SIZE)
    expect(depth.dtype == np.uint16 and depth.shape == SIZE, f"{depth.dtype} {depth.shape}")
    expect(depth.flags.c_contiguous, "not contiguous")
    return True


def prepare_pack(scratch: Scratch) -> None:
    """Packs with and without teacher's maps, one with a pair that could not be read."""
    folder, packs = scratch.of("pack"), []

    def read(i: int) -> tuple:
        if i == 2:
            raise ValueError("cannot be read")
        rgb, depth = colours(i, (32, 48)), depths(i, (32, 48))
        return rgb, depth, np.array((50.0, 51, 24, 16)), depth

    for teacher in (False, True):
        pack = open_pack(
            folder, f"p{teacher}", [[folder / f"{i}"] for i in range(4)], (32, 48), read,
            settings={"reader": 1}, teacher=teacher, threads=1, quiet=True,
        )  # fmt: skip
        packs.append(pack.path.read_bytes())
        pack.close()
    scratch.made["packs"] = packs


def write_pack(rng: Random, scratch: Scratch) -> Path:
    packs = scratch.made["packs"]
    raw = rng.choice(packs)
    kind = rng.randrange(5)
    path = scratch.of("pack") / "damaged.pack"
    if kind == 0:
        raw = mutate(rng, raw, rng.choice(packs))
    else:  # with the right checksums: forged
        version, _, rest = raw[: PAGE].partition(b"\n")
        body = rest.partition(b"\n")[2]
        header = json.loads(body)
        start, n = header["tail"], header["tail_bytes"]
        tail, pairs = raw[start : start + n], header["shape"][0]
        if kind == 1:
            body = mutate_json(rng, header)
        elif kind == 2:
            numbers = mutate(rng, tail[: 33 * pairs], rng.randbytes(64))
            tail = numbers[: 33 * pairs].ljust(33 * pairs, b"\0") + tail[33 * pairs :]
        elif kind == 3:
            tail = tail[: 33 * pairs] + mutate_json(rng, json.loads(tail[33 * pairs :]))
        else:
            name = rng.choice(("shape", "tail", "bytes", "tail_bytes", "teacher"))
            small = rng.choice((0, 1, 2, 3, 5, -1, 4096, 8192, start, n, len(raw), len(raw) - 4096))
            if name == "shape":
                header["shape"][rng.randrange(3)] += rng.choice((-4, -1, 1, 4, 1 << 20, 1 << 40))
            else:
                header[name] = small if name != "teacher" else not header["teacher"]
        if kind in (2, 3):
            header["tail_bytes"], header["tail_sha256"] = len(tail), sha256(tail).hexdigest()
            room = _up(len(tail)) + PAGE
            header["bytes"] = start + room
            raw = raw[:start] + tail.ljust(room, b"\0")
        if kind != 1:
            body = json.dumps(header).encode()
        body = body.ljust(PAGE - len(version) - 66)
        head = version + b"\n" + sha256(body).hexdigest().encode() + b"\n" + body
        raw = head + raw[PAGE :]
        if rng.random() < 0.1:
            raw = mutate(rng, raw)
    path.write_bytes(raw)
    return path


def read_pack(scratch: Scratch, number: int) -> bool:
    path = scratch.of("pack") / "damaged.pack"
    pack = Pack(path)
    n, (H, W) = len(pack), pack.size
    expect(pack.rgb.shape == (n, H, W, 3) and pack.rgb.dtype == np.uint8, "rgb")
    expect(pack.depth.shape == (n, H, W) and pack.depth.dtype == np.uint16, "depth")
    expect(pack.teacher is None or pack.teacher.shape == (n, H, W), "teacher")
    expect(pack.K.shape == (n, 4) and pack.taught.shape == (n,), "K, taught")
    expect(isinstance(pack.stamp, str) and isinstance(pack.settings, dict), "stamp, settings")
    expect(set(pack.taught.view("u1").tolist()) <= {0, 1}, "taught")
    for i in range(n):
        if i in pack.failed:
            expect(isinstance(pack.failed[i], str), "failed")
            continue
        expect(np.isfinite(pack.K[i]).all() and (pack.K[i, :2] > 0).all(), f"K {pack.K[i]}")
        int(pack.rgb[i].sum()) + int(pack.depth[i].sum())  # every byte can be read
        if scratch.kernels and (H, W) == (32, 48):
            image, metres = np.empty((3, 32, 32), np.float32), np.empty((32, 48), np.float32)
            lut = np.zeros((3, 256), np.float32)
            affine = np.array([[1.0, 0.1, 40], [0, 1, 3]])
            data.litedepth_kernels.r2_crop(
                pack.rgb[i], pack.depth[i], affine, (32, 48), lut, lut[0, :3], 1e3, image, metres
            )
    if n:
        expect(pack.rgb[n - 1, H - 1, W - 1].ctypes.data >= 0, "the last pixel")
    pack.close()
    return True


ABOUT = {
    "precision": "fp32", "input": {"size": [64, 96], "dtype": "float32", "layout": "NHWC",
                                   "channels": "RGB", "range": [0, 255]},
    "output": {"size": [64, 96], "dtype": "float32", "layout": "NHWC", "unit": "m"},
    "calibration": None, "network": {"size": [32, 64]}, "git": {"commit": None, "dirty": None},
}  # fmt: skip


def prepare_tflite(scratch: Scratch) -> None:
    graph = b"\x1c\0\0\0TFL3" + random.Random(0).randbytes(2000)
    scratch.made["graph"], scratch.made["tflite"] = graph, seal(graph, ABOUT)


def write_tflite(rng: Random, scratch: Scratch) -> Path:
    graph, raw = scratch.made["graph"], scratch.made["tflite"]
    kind = rng.randrange(6)
    if kind < 2:
        raw = mutate(rng, raw, raw)
    else:  # the right checksum over other metadata
        base = graph + bytes(-len(graph) % 16)
        stamp = {"format": TFLITE_FORMAT, "bytes": len(base), "sha256": sha256(base).hexdigest()}
        text = mutate_json(rng, stamp | ABOUT) if kind < 4 else json.dumps(stamp | ABOUT).encode()
        file = io.BytesIO(base)
        how = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "a", how) as z:
            for _ in range(rng.choice((1, 1, 1, 2)) if kind > 4 else 1):
                z.writestr(zipfile.ZipInfo(MEMBER), text, how)
            if rng.random() < 0.1:
                z.writestr(rng.choice(("../x", "x" * 5000, "litedepth.json/", " ")), b"x")
        raw = bytearray(file.getvalue())
        if kind >= 4:  # flags, sizes, offsets in the archive's own headers
            at = raw.rfind(rng.choice((b"PK\1\2", b"PK\5\6", b"PK\3\4"))) + rng.randrange(4, 46)
            integer_at = bytearray(raw[at : at + 8])
            rng.choice((flip, integer, set_byte))(rng, integer_at, b"")
            raw[at : at + 8] = integer_at
    path = scratch.of("tflite") / "model.tflite"
    path.write_bytes(raw)
    return path


def read_tflite(scratch: Scratch, number: int) -> bool:
    content = (scratch.of("tflite") / "model.tflite").read_bytes()
    found = read_metadata(content, "model.tflite")
    start = content.rfind(b"PK\3\4")
    expect(content.startswith(scratch.made["graph"]), "another graph under the old checksum")
    expect(start >= len(scratch.made["graph"]), "no archive")
    for side in ("input", "output"):
        expect(all(type(n) is int and n > 0 for n in found[side]["size"]), f"{side} size")
    return True


def prepare_checkpoint(scratch: Scratch) -> None:
    torch.manual_seed(0)
    net = model.LiteDepth(size=(32, 32))
    path = scratch.of("checkpoint") / "whole.pt"
    optimizer = torch.optim.Adam(list(net.decoder.depth.parameters()), 1e-3)
    model.save(path, net, epoch=3, batch=0, step=7, image_size=[64, 96], flags={"lr": 1e-3},
               optimizer=optimizer.state_dict())  # fmt: skip
    content = torch.load(path, weights_only=True)
    old, bare = io.BytesIO(), io.BytesIO()
    torch.save(content, old, _use_new_zipfile_serialization=False)
    torch.save(content, bare)
    small = io.BytesIO()
    torch.save({"x": torch.arange(6.0), "y": [1, 2.5, None, "s"]}, small)
    scratch.made |= {
        "whole": path.read_bytes(), "old": old.getvalue(), "content": content,
        "small": small.getvalue(), "payloads": payloads(scratch.mark), "network": net,
    }  # fmt: skip
    scratch.made["members"] = members_of(scratch.made["whole"])


def odd_args(rng: Random) -> object:
    """model_args that no file of ours has."""
    odd = (None, True, -1, 0, 1, 33, 10**9, 32 * 10**7, 1 << 63, 10**400, -32, 0.5, math.nan,
           math.inf,
           "", "x" * 100_000, "mix", "nearest", [], [32], [32, 32, 32], [32.0, 32], [32, "32"],
           [True, 32], [32, 10**9 * 32], [-32, 32], (64, 32), [4096, 4096], {}, {"a": 1}, b"mix",
           torch.zeros(2), torch.tensor([32, 32]), [1e39, 1, 1], [1e-46, 1, 1], [[32], [32]],
           [1, 2, torch.ones(1)], "student", "swin_nano", "swin_l", laughs(list, 40),
           laughs(list, 12), [0] * 100_000, float("1e300"), complex(1, 1), set())  # fmt: skip
    args: dict = {"size": [32, 32], "decoder": "mix", "upsample": "nearest", "mean": [127.5] * 3,
                  "std": [127.5] * 3, "merged": False}  # fmt: skip
    if rng.random() < 0.1:
        return rng.choice(odd)
    if rng.random() < 0.3:
        args |= {"model": rng.choice(("swin_nano", "swin_l", "swin_t", "x", "student"))}
        if rng.random() < 0.8:
            del args["merged"]
    names = (*args, "window", "drop_path", "model", "encoder", "self", "forward", "", "a" * 9999)
    for _ in range(rng.choice((1, 1, 2))):
        key: object = rng.choice(names)
        key = rng.choice((3, None, b"size", (1, 2))) if rng.random() < 0.03 else key
        if rng.random() < 0.15:
            args.pop(key, None)
        else:
            args[key] = rng.choice(odd)
    return args


def odd_tensor(rng: Random, t: torch.Tensor) -> object:
    """Something in a tensor's place: of another kind, layout or size."""
    kind = rng.randrange(17)
    if kind == 0:
        return t.to(rng.choice((torch.float16, torch.bfloat16, torch.float64, torch.int8,
                                torch.bool,
                                torch.complex64, torch.int64)))  # fmt: skip
    if kind == 1:
        return t.float().reshape(-1)[:-1] if t.numel() else t
    if kind == 2:
        return t.float().to_sparse()
    if kind == 3:
        return t.to("meta")
    if kind == 4:
        return torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8)
    if kind == 5:
        return torch.full_like(t.float(), rng.choice((math.nan, math.inf, -math.inf, 1e38)))
    if kind == 6:
        return torch.zeros(1).expand(t.shape)
    if kind == 7:
        return torch.zeros(1).expand(rng.choice(((1 << 30, 1 << 30), (1 << 20,), t.shape)))
    if kind == 8:
        return torch.nn.Parameter(t.float())
    if kind == 9:
        return t.transpose(0, -1) if t.ndim else t.reshape(1)
    if kind == 10:
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    if kind == 11:
        return rng.choice((None, 1, 1.5, "x", [t], {"a": t}, torch.Size([1]), torch.float32, b"x"))
    if kind == 12:
        return t.to_mkldnn() if t.dtype == torch.float32 and t.ndim else t
    if kind == 13:
        return torch.empty(0)
    if kind == 14:  # an attribute that hides a method of the tensor's
        changed = t.clone()
        changed.detach = changed.copy_ = changed.clone = 5
        return changed
    if kind == 15:
        return t.view(torch.uint8) if t.ndim else t
    return t.conj() if t.is_complex() else -t.float()


def rebuilt(rng: Random) -> object:
    """A tensor out of its storage's bounds, or of sizes nobody has."""
    big = (0, 1, 16, 17, 1 << 16, 1 << 31, 1 << 40, (1 << 61), (1 << 62) + 1, -1, -16, 10**30, 2.5,
           "16", None, True)  # fmt: skip
    elements = 16 if rng.random() < 0.6 else rng.choice(big)
    shape = rng.choice(((4,), (16,), (17,), (4, 4), (), (1 << 31, 1 << 31), (1 << 62,), (-4,), (0,),
                        (1 << 33,), (4.0,), [4], (rng.choice(big),), (4,) * 70))  # fmt: skip
    stride = rng.choice(((1,), (4, 1), (0,), (-1,), (1 << 40,), (0, 0), (1 << 62, 1), (),
                         (rng.choice(big),) * len(shape), (1,) * 70, (1, 1 << 61)))  # fmt: skip
    offset = rng.choice((0, 0, 0, 15, 16, -1, 1 << 40, (1 << 62), 10**30, rng.choice(big)))
    kind = rng.choice((torch.FloatStorage, torch.FloatStorage, torch.DoubleStorage,
                       torch.BoolStorage,
                       torch.ComplexDoubleStorage, torch.QInt8Storage, torch.UntypedStorage,
                       torch.ByteStorage))  # fmt: skip
    key = rng.choice(("0", "0", "0", "1", "../data.pkl", "", "0/", "x" * 5000, 7))
    storage = Storage(elements, key, kind)
    empty = collections.OrderedDict()
    v2 = torch._utils._rebuild_tensor_v2
    tensor = Call(v2, storage, offset, shape, stride, False, empty)
    choice = rng.randrange(14)
    if choice == 0:
        layout = Call(torch.serialization._get_layout, "torch.sparse_coo")
        indices = Call(v2, Storage(16, "0", torch.LongStorage), 0, (1, 2), (2, 1), False, empty)
        values = Call(v2, Storage(16), 0, (2,), (1,), False, empty)
        return Call(torch._utils._rebuild_sparse_tensor, layout, (indices, values, (3,), False))
    if choice == 1:
        return Call(
            torch._utils._rebuild_meta_tensor_no_storage, torch.float32, shape, stride, False
        )
    if choice == 2:
        return Call(torch._utils._rebuild_parameter, tensor, False, empty)
    if choice == 3:
        return Call(bytearray, rng.choice((1 << 20, 1 << 34, 1 << 62, -1)))
    if choice == 4:
        return Call(torch.Tensor, rng.choice((8, 1 << 34, 1 << 62, -1, (1, 2))))
    if choice == 5:
        scheme = (
            torch.per_tensor_affine,
            rng.choice((0.1, math.nan, 0.0)),
            rng.choice((0, 1 << 40)),
        )
        return Call(torch._utils._rebuild_qtensor, Storage(16, "0", torch.QInt8Storage), offset,
                    shape,
                    stride, scheme, False, empty)  # fmt: skip
    if choice == 6:
        return Call(torch.Size, shape)
    if choice == 7:
        return Call(
            torch.device, rng.choice(("cuda:99", "meta", "", "x" * 9999, "privateuseone:0"))
        )
    if choice == 8:
        return Call(torch._tensor._rebuild_from_type_v2, v2, torch.Tensor,
                    (storage, offset, shape, stride, False, empty), {"detach": 5})  # fmt: skip
    return tensor


def write_checkpoint(rng: Random, scratch: Scratch) -> Path:
    made, kind = scratch.made, rng.randrange(17)
    path = scratch.of("checkpoint") / "damaged.pt"
    content = dict(made["content"])
    args = {"format": CHECKPOINT_FORMAT, "model_args": content["model_args"], "model": {}}
    if kind == 0:
        raw = mutate(rng, made["whole"], made["old"])
    elif kind == 1:
        raw = mutate(rng, made["old"], made["whole"])
    elif kind in (2, 3):  # the pickle, under a right checksum
        members = [(n, mutate(rng, c) if n.endswith("data.pkl") else c) for n, c in made["members"]]
        raw = archive(members)
    elif kind == 4:  # any member: cut, damaged, gone, doubled, renamed
        members = list(made["members"])
        k = rng.randrange(len(members))
        name, body = members[k]
        how = rng.randrange(5)
        if how == 0:
            members[k] = name, mutate(rng, body)
        elif how == 1:
            del members[k]
        elif how == 2:
            members.insert(rng.randrange(len(members)), (name, mutate(rng, body)))
        elif how == 3:
            members[k] = rng.choice(("../../x", "/etc/x", "x" * 9000, name + "/", "constants.pkl",
                                     "x\0y", "b/data.pkl")), body  # fmt: skip
        else:
            members.append((rng.choice(("b/data.pkl", "archive/data.pkl", "data.pkl")), body))
        raw = archive(members)
    elif kind == 5:  # more pickle in it than a file can hold
        whole = bytearray(archive(made["members"]))
        at = whole.rfind(rng.choice((b"PK\1\2", b"PK\5\6", b"PK\3\4"))) + rng.randrange(4, 46)
        field_of = bytearray(whole[at : at + 8])
        rng.choice((flip, integer, set_byte))(rng, field_of, b"")
        whole[at : at + 8] = field_of
        raw = bytes(whole)
    elif kind in (6, 7):
        mark = rng.choice(list(made["payloads"].values()))
        how = rng.randrange(7)
        if how == 0:
            raw = crafted(mark)
        elif how == 1:
            raw = crafted([1, {"a": (mark,)}])
        elif how == 2:
            raw = pickled(mark, rng.choice((0, 1, 2, 3, 4, 5)))
        elif how == 3:  # the old format: magic, protocol, system, content, names
            about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
            parts = [torch.serialization.MAGIC_NUMBER, 1001, about, content, []]
            parts[rng.randrange(5)] = mark
            raw = b"".join(pickled(part) for part in parts)
        elif how == 4:
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w") as tar:
                for name in ("sys_info", "pickle", "storages", "tensors"):
                    body = pickled(mark)
                    about = tarfile.TarInfo(name)
                    about.size = len(body)
                    tar.addfile(about, io.BytesIO(body))
            raw = file.getvalue()
        elif how == 5:  # two pickles of one name, and one that TorchScript would run
            members = [("a/data.pkl", made["members"][0][1]), ("a/data.pkl", pickled(mark))]
            raw = archive([*members, ("a/version", b"3\n"), ("a/constants.pkl", pickled(mark))])
        else:
            raw = (
                crafted(mark) + made["whole"]
                if rng.random() < 0.5
                else made["whole"] + crafted(mark)
            )
    elif kind in (8, 9):
        raw = torch_saved(args | {"model_args": odd_args(rng)}
                          | ({"model": content["model"]} if kind == 8 else {}))  # fmt: skip
    elif kind in (10, 11):
        weights = dict(content["model"])
        name = rng.choice(list(weights))
        how = rng.randrange(8)
        if how == 0:
            del weights[name]
        elif how == 1:
            weights[rng.choice(("x", "", 3, None, (1,), "encoder.", b"x"))] = weights[name]
        elif how == 2:
            weights[name] = rng.choice((None, laughs(list, 30), "x" * 100_000, {"a": 1}))
        else:
            with contextlib.suppress(RuntimeError):  # what this build of PyTorch does not have
                weights[name] = odd_tensor(rng, weights[name])
        raw = made["whole"]
        with contextlib.suppress(RuntimeError):  # nor can every tensor be saved
            raw = torch_saved(content | {"model": weights}, old=rng.random() < 0.2)
    elif kind == 12:  # what stands beside the weights
        odd = (None, 5, "x", [], [1], [64, 96, 3], [64.5, 96], [-1, 96], [0, 0], ["a", "b"],
               math.nan,
               torch.zeros(2), [10**9, 10**9], {}, [math.nan, 1], True, (64, 96), [64, 10**400],
               laughs(list, 30), torch.tensor([64, 96]), set(), "1" * 5000)  # fmt: skip
        name = rng.choice(("image_size", "epoch", "step", "batch", "flags", "optimizer", "format"))
        raw = torch_saved(content | {name: rng.choice(odd)})
    elif kind in (13, 14):
        thing: object = rebuilt(rng)
        records = (rng.randbytes(64), b"") if rng.random() < 0.8 else (b"",)
        raw = crafted(args | {"model": {"x": thing}} if rng.random() < 0.5 else [thing], records)
    elif kind == 15:
        tree = laughs(rng.choice((list, tuple)), rng.choice((8, 30, 60)))
        hidden = Attributed(1)
        hidden.__class__ = Hiding
        raw = crafted(rng.choice((
            tree, {"format": tree}, args | {"model": tree}, hidden, {"format": torch_like()},
            args | {"x": tree}, functools.reduce(lambda inner, _: [inner], range(200), 1),
            args | {"model": {"x": Call(set, [1])}}, [None] * 300_000,
        )))  # fmt: skip
        if rng.random() < 0.2:
            raw = tangled_key(rng.choice((5, 60, 250)))
    else:  # a bomb: members that say, or unpack to, far more than there is
        how = rng.randrange(3)
        if how == 0:
            raw = bomb()
        elif how == 1:
            raw = archive(made["members"], zipfile.ZIP_DEFLATED)
        else:
            raw = overlapping(rng.choice((3, 300, 3000)))
    path.write_bytes(raw)
    return path


class Hiding(Attributed):
    """A dict whose attributes hide its own methods."""

    def __reduce__(self) -> tuple:
        return collections.OrderedDict, (), dict.fromkeys(("get", "items", "keys", "values"), 5)


def tangled_key(depth: int) -> bytes:
    """A checkpoint whose dictionary's key takes 2^depth steps to hash, at this end too: so written
    operation by operation."""
    pairs = b"".join(b"h%ch%c\x86q%c" % (k, k, k + 1) for k in range(depth))
    text = b"\x80\x02}K\x01K\x02\x86q\0" + pairs + b"K\x01s."
    return archive([("a/data.pkl", text), ("a/byteorder", b"little"), ("a/version", b"3\n")])


def torch_like() -> object:
    """Sixteen floats, for a place where a word belongs."""
    rebuild = torch._utils._rebuild_tensor_v2
    return Call(rebuild, Storage(16), 0, (16,), (1,), False, collections.OrderedDict())


def torch_saved(content: object, old: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


@functools.cache
def bomb() -> bytes:
    """64 MB of zeros in 64 kB, deflated."""
    return archive([("a/data.pkl", pickled([1])), ("a/data/0", bytes(1 << 26))],
                   zipfile.ZIP_DEFLATED)  # fmt: skip


@functools.cache
def overlapping(n: int) -> bytes:
    """An archive whose directory names the same megabyte n times."""
    one = archive([("a/data/0", bytes(1 << 20))])
    start = one.rfind(b"PK\1\2")
    end = one.rfind(b"PK\5\6")
    entry = one[start:end]
    tail = bytearray(one[end:])
    struct.pack_into("<HHI", tail, 8, n, n, n * len(entry))
    entries = (entry.replace(b"a/data/0", b"%08d" % k) for k in range(n))
    return one[:start] + b"".join(entries) + bytes(tail)


def read_checkpoint(scratch: Scratch, number: int) -> bool:
    """As predict, export and train read it, and as train --pretrained does."""
    path = scratch.of("checkpoint") / "damaged.pt"
    if number % 4 == 3:
        taker = scratch.made["network"]
        model.load_pretrained(taker, str(path))
        return True
    checkpoint = read_checkpoint(path)
    network = model.build(checkpoint, path).eval()
    for name, value in network.state_dict().items():
        expect(value.layout == torch.strided and value.device.type == "cpu", name)
    size = checkpoint.get("image_size") or (480, 640)
    expect(
        len(size) == 2 and all(type(n) is int and n > 0 for n in size), f"image_size {size!r:.99}"
    )
    for name in ("epoch", "step", "batch"):
        expect(type(checkpoint.get(name, 0)) is int, f"{name} {checkpoint.get(name)!r:.99}")
    expect(isinstance(checkpoint.get("flags", {}), dict), "flags")
    json.dumps(network.model_args, allow_nan=False)  # goes into the .tflite
    if math.prod(network.size) <= 64 * 64:
        with torch.inference_mode():
            depth = network(torch.zeros(1, 3, 48, 40))
        expect(depth.shape == (1, 1, 48, 40) and depth.dtype == torch.float32, f"{depth.shape}")
    return True


def kinds() -> dict[str, Kind]:
    part = functools.partial
    pair = {
        name: Kind(weight, part(prepare_pair, name), part(write_picture, name),
                   part(read_pair, name), (DataError,))
        for name, weight in (("png", 16), ("depth", 14), ("jpeg", 16))
    }  # fmt: skip
    frames = {"frames": {"whole": CAMERA, "other": {"fx": 1, "fy": 1, "cx": 0, "cy": 0}}}
    simple = {k: CAMERA[k] for k in ("fx", "fy", "cx", "cy")}
    return pair | {
        "picture": Kind(8, part(prepare_pair, "picture"), write_any, read_any,
                        (UserError,)),
        "list": Kind(8, prepare_list, write_list, read_list, (DataError,)),
        "intrinsics": Kind(
            9, part(prepare_pair, "intrinsics"),
            part(write_json, "intrinsics", "intrinsics.json", (CAMERA, simple, frames)),
            read_intrinsics, (DataError,)),
        "calibration": Kind(
            7, lambda scratch: None, part(write_json, "calibration", "calibration.json", (FIT,)),
            read_calibration, (CheckpointError,)),
        "args": Kind(5, lambda scratch: None, part(write_json, "args", "args.json", (ARGS,)),
                     read_args, ()),
        "npy": Kind(10, lambda scratch: None, write_npy, read_npy, (DataError,)),
        "pack": Kind(7, prepare_pack, write_pack, read_pack, (UserError,)),
        "tflite": Kind(7, prepare_tflite, write_tflite, read_tflite, (UserError,)),
        "checkpoint": Kind(7, prepare_checkpoint, write_checkpoint, read_checkpoint,
                           (CheckpointError,)),
    }  # fmt: skip


KINDS = kinds()


def share(count: int, names: list[str]) -> dict[str, int]:
    """`count` cases over the kinds by their weight; `count` in all, or a little more."""
    total = sum(KINDS[name].weight for name in names)
    return {name: -(-count * KINDS[name].weight // total) for name in names}


# ------------------------------------------------------------------------------------------- worker


class Limits(NamedTuple):
    """cpu: seconds of CPU a case; wall: by the clock; resident, virtual: GB of memory (0 = any)."""

    cpu: float = 5.0
    wall: float = 60.0
    resident: float = 2.5
    virtual: float = 6.0


def peak() -> float:
    """The most memory this process ever held, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def attempt(kind: Kind, scratch: Scratch, rng: Random, number: int, limits: Limits) -> str:
    """Makes and reads a case: "valid" or "refused". Raises what is a failure."""
    kind.write(rng, scratch)
    before, start = peak(), time.process_time()
    try:
        outcome = "valid" if kind.read(scratch, number) else "refused"
    except kind.refusals as error:
        outcome, text = "refused", str(error)
        expect(text and len(text) < 4000, f"a message of {len(text)} characters: {text[:200]}")
    took = time.process_time() - start
    expect(took < limits.cpu, f"{took:.1f} s of CPU")
    grown = peak()
    expect(
        not limits.resident or grown < limits.resident or grown == before, f"grew to {grown:.1f} GB"
    )
    expect(not scratch.mark.exists(), "the code of a payload ran")
    return outcome


def work(folder: Path, kernels: bool, limits: Limits) -> None:
    """Reads "kind seed start stop" lines, answers each case with "> number" before and "valid",
    "refused" or "! <error>" after it."""
    faulthandler.enable()
    if limits.virtual:
        ceiling = int(limits.virtual * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    scratch, ready = Scratch(folder, kernels), set()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing else may write there
    notice = lambda text: None
    for line in sys.stdin:
        name, seed, start, stop = line.split()
        kind = KINDS[name]
        if name not in ready:
            kind.prepare(scratch)
            ready.add(name)
        for number in range(int(start), int(stop)):
            answers.write(f"> {number}\n")
            try:
                rng = Random(f"{seed} {name} {number}")
                outcome = attempt(kind, scratch, rng, number, limits)
            except BaseException as error:  # every other way to end is what is looked for
                told = traceback.format_exception(error, limit=-8)
                outcome = "! " + json.dumps("".join(told)[-3000:])
                scratch.mark.unlink(missing_ok=True)
            answers.write(outcome + "\n")
        answers.write(".\n")


class Failure(NamedTuple):
    kind: str
    seed: int
    number: int
    why: str
    kept: Path | None


@dataclass
class Tally:
    """Of one kind: mutations read, how they ended, the slowest one's seconds by the clock."""

    refused: int = 0
    valid: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0

    @property
    def count(self) -> int:
        return self.refused + self.valid + len(self.failures)


class Worker:
    """A process that reads cases, and what it is at."""

    def __init__(self, folder: Path, kernels: bool, limits: Limits) -> None:
        self.folder, self.kernels, self.limits = folder, kernels, limits
        self.job: tuple[str, int, int, int] | None = None
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = open(self.folder.with_suffix(".err"), "w+b")
        command = [sys.executable, str(PROGRAM), "--worker", str(self.folder)]
        command += ["--kernels"] * self.kernels
        command += [f"--{name}={value}" for name, value in self.limits._asdict().items()]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.buffer, self.number, self.since = b"", None, time.monotonic()

    def give(self, job: tuple[str, int, int, int]) -> None:
        if self.process is None:
            self.start()
        self.job, self.since, self.number = job, time.monotonic(), None
        self.process.stdin.write(" ".join(map(str, job)).encode() + b"\n")
        self.process.stdin.flush()

    def last_words(self) -> str:
        self.log.flush()
        self.log.seek(0)
        return self.log.read()[-1500:].decode(errors="replace")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.log.close()
            self.process = None
        shutil.rmtree(self.folder, ignore_errors=True)


def run(
    count: int, seed: int, names: list[str] | None = None, *, jobs: int = 2, kernels: bool = False,
    limits: Limits | None = None, keep: Path | None = None, tell: Callable[[str], None] = print,
) -> dict[str, Tally]:  # fmt: skip
    """Reads `count` mutations of the named kinds (None: all) in `jobs` processes."""
    names, limits = list(KINDS) if names is None else names, limits or Limits()
    tallies = {name: Tally() for name in names}
    waiting = [
        (name, seed, start, min(start + 100, n))
        for name, n in share(count, names).items() for start in range(0, n, 100)
    ]  # fmt: skip
    waiting.sort(key=lambda job: (job[2], job[0]))  # all kinds from the start
    waiting.reverse()
    with (
        tempfile.TemporaryDirectory(prefix="fuzz") as home,
        selectors.DefaultSelector() as selector,
    ):
        workers = [Worker(Path(home) / f"w{k}", kernels, limits) for k in range(jobs)]

        def hand_out(worker: Worker) -> None:
            fresh = worker.process is None
            if waiting:
                worker.give(waiting.pop())
                if fresh:
                    os.set_blocking(worker.process.stdout.fileno(), False)
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            else:
                worker.job = None

        def failed(worker: Worker, why: str) -> None:
            name, number = worker.job[0], worker.number
            if number is None:
                raise RuntimeError(f"the worker for {name} does not start: {why}")
            kept = None
            if keep is not None:  # made again: the worker may be at the next one already
                kept = keep / f"{name}-{seed}-{number}"
                shutil.rmtree(kept, ignore_errors=True)
                make_case(name, seed, number, kept.resolve())
            tallies[name].failures.append(Failure(name, seed, number, why, kept))
            tell(f"FAILED {name}:{number} --seed {seed}\n{why}")

        def lost(worker: Worker, why: str) -> None:
            """The worker is gone or must go; another reads what was left of its job."""
            why = f"{why}\n{worker.last_words()}"
            failed(worker, why)
            name, _, _, stop = worker.job
            selector.unregister(worker.process.stdout)
            if worker.number + 1 < stop:
                waiting.append((name, seed, worker.number + 1, stop))
            worker.stop()
            hand_out(worker)

        def hear(worker: Worker) -> None:
            chunk = worker.process.stdout.read()
            if chunk == b"":
                lost(
                    worker, f"the worker ended: {worker.process.wait()} (negative: by that signal)"
                )
                return
            *lines, worker.buffer = (worker.buffer + (chunk or b"")).split(b"\n")
            for line in lines:
                tally, now = tallies[worker.job[0]], time.monotonic()
                word = line.decode()
                if word == ".":
                    hand_out(worker)
                    continue
                if word[0] == ">":
                    worker.number = int(word[2:])
                else:
                    tally.seconds += now - worker.since
                    tally.slowest = max(tally.slowest, now - worker.since)
                    if word[0] == "!":
                        failed(worker, json.loads(word[2:]))
                    else:
                        setattr(tally, word, getattr(tally, word) + 1)
                worker.since = now

        try:
            for worker in workers:
                hand_out(worker)
            while any(worker.job for worker in workers):
                for key, _ in selector.select(0.5):
                    hear(key.data)
                for worker in workers:
                    patience = limits.wall if worker.number is not None else 120 + limits.wall
                    if worker.job and time.monotonic() - worker.since > patience:
                        lost(worker, f"no end after {patience:g} s")
        finally:
            for worker in workers:
                worker.stop()
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    """kind | mutations | refused | valid | failures, and a last line with the sums."""
    rows = [f"{'kind':<12}{'mutations':>10}{'refused':>9}{'valid':>8}{'failures':>10}{'ms each':>9}"
            f"{'slowest':>9}"]  # fmt: skip
    rows += [
        f"{name:<12}{t.count:>10}{t.refused:>9}{t.valid:>8}{len(t.failures):>10}"
        f"{1e3 * t.seconds / max(1, t.count):>9.1f}{t.slowest:>8.2f}s"
        for name, t in tallies.items()
    ]  # fmt: skip
    sums = [sum(column) for column in zip(*(
        (t.count, t.refused, t.valid, len(t.failures)) for t in tallies.values()))]  # fmt: skip
    rows.append(f"{'all':<12}{sums[0]:>10}{sums[1]:>9}{sums[2]:>8}{sums[3]:>10}")
    return "\n".join(rows)


def make_case(name: str, seed: int, number: int, folder: Path) -> tuple[Path, Scratch]:
    """The files of one case, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Scratch(folder, True)
    KINDS[name].prepare(scratch)
    return KINDS[name].write(Random(f"{seed} {name} {number}"), scratch), scratch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--count", type=int, default=10_000, help="mutations over all kinds (10,000)")
    add("--seed", type=int, default=0, help="of all mutations (0)")
    add("--kinds", default=",".join(KINDS), help=f"some of {','.join(KINDS)} (default all)")
    add("--jobs", type=int, default=2, help="worker processes (2)")
    add("--kernels", action="store_true", help="push valid samples through the C++ kernels as well")
    add("--keep", type=Path, default=Path("runs/fuzz"), help="where failures go (runs/fuzz)")
    add("--case", metavar="KIND:N", help="make and read this one only, here, and keep its files")
    for name, value in Limits()._asdict().items():
        add(f"--{name}", type=float, default=value, help=f"limit of a case, see Limits ({value:g})")
    add("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    limits = Limits(args.cpu, args.wall, args.resident, args.virtual)
    if args.worker:
        work(args.worker, args.kernels, limits)
        return 0
    if args.case:
        name, _, number = args.case.partition(":")
        path, scratch = make_case(name, args.seed, int(number), args.keep.resolve() / "case")
        print(path, flush=True)
        try:
            print("valid" if KINDS[name].read(scratch, int(number)) else "refused")
        except KINDS[name].refusals as error:
            print(f"refused: {error}")
        return 0
    names = args.kinds.split(",")
    if unknown := [name for name in names if name not in KINDS]:
        parser.error(f"--kinds: no {unknown[0]!r}; they are {', '.join(KINDS)}")
    tallies = run(args.count, args.seed, names, jobs=args.jobs, kernels=args.kernels, limits=limits,
                  keep=args.keep)  # fmt: skip
    print(table(tallies))
    return 1 if any(t.failures for t in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
