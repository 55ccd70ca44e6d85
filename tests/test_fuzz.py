"""Hostile input: every mutation is refused as documented or read as something valid, and what the
fuzzer found once is refused for good."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import cv2
import fuzz
import numpy as np
import pytest
import torch
from fuzz import SIZE

import export
import model
import predict
from plumbing.checkpoints import (
    CHECKPOINT_FORMAT,
    CheckpointError,
    read_calibration,
    read_checkpoint,
    read_weights,
)
from plumbing.files import UserError
from plumbing.pack import PAGE, Pack
from plumbing.pairs import (
    DataError,
    Pair,
    _decode,
    check_files,
    find_split,
    header_of,
    list_pairs,
    read_header,
    read_pair,
    read_teacher,
    stored_intrinsics,
)
from plumbing.pictures import is_cut, overstated, read_picture, walk_jpeg
from plumbing.runtime import MEMBER, TFLITE_FORMAT, read_metadata
from plumbing.swin import recognize


def test_every_mutation_is_refused_or_valid(pytestconfig, tmp_path, counted):
    """10,000 damaged files by default, in two processes with a watchdog."""
    count = pytestconfig.getoption("--mutations")
    tallies = fuzz.run(count, seed=0, kernels=True, keep=tmp_path / "failed")
    print(fuzz.table(tallies))
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    assert not failures, failures[:3]
    assert sum(tally.refused + tally.valid for tally in tallies.values()) >= count
    for name, tally in tallies.items():
        if tally.count >= 200:  # one that never gets past the first check tests nothing
            assert tally.refused > 10 and tally.valid > 10, (name, tally)
    done = sum(tally.refused + tally.valid for tally in tallies.values())
    counted("damaged files read: refused or valid", done)


BAD_READER = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import fuzz
import numpy as np

def read(scratch, number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3:
        time.sleep(1000)
    if number == 5:
        raise KeyError("another exception")
    if number == 7:
        fuzz.expect(False, "not as promised")
    if number == 9:
        scratch.mark.touch()
    if number == 11:
        np.ones(60_000_000)
    if number == 13:
        start = time.process_time()
        while time.process_time() < start + 4:
            pass
    if number == 15:
        raise ValueError("x" * 5000)
    if number % 2:
        raise ValueError("refused")
    return True

write = lambda rng, scratch: scratch.of("args")
fuzz.KINDS = {{"args": fuzz.Kind(1, lambda scratch: None, write, read, (ValueError,))}}
fuzz.PROGRAM = __file__
sys.exit(fuzz.main())
"""


def test_the_fuzzer_sees_crashes_hangs_payloads_and_wrong_errors(tmp_path):
    program = tmp_path / "bad_reader.py"
    program.write_text(BAD_READER.format(tests=str(Path(fuzz.__file__).parent)))
    command = [sys.executable, program, "--count", "20", "--jobs", "1", "--wall", "12"]
    command += ["--cpu", "3", "--resident", "0.7", "--keep", tmp_path / "kept", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 1, done.stderr
    told = done.stdout.split("FAILED ")[1:]
    wanted = {
        1: "the worker ended: -11", 3: "no end after 12 s", 5: "KeyError: 'another exception'",
        7: "Invalid: not as promised", 9: "the code of a payload ran", 11: "grew to",
        13: "s of CPU", 15: "a message of 5000 characters",
    }  # fmt: skip
    assert [text.split()[0] for text in told] == [f"args:{n}" for n in wanted]
    for text, why in zip(told, wanted.values()):
        assert why in text and "--seed 5" in text
    assert done.stdout.splitlines()[-1].split() == ["all", "20", "2", "10", "8"]


def test_a_case_is_the_same_every_time(tmp_path):
    for name in ("jpeg", "checkpoint", "pack"):
        made = [fuzz.make_case(name, 3, 11, tmp_path)[0].read_bytes() for _ in range(2)]
        assert made[0] == made[1], name


# ----------------------------------------------------------------------------------------- payloads


class Naive(pickle.Unpickler):
    def persistent_load(self, pid: object) -> None:
        return None


@pytest.mark.parametrize("name", list(fuzz.payloads(Path("x"))))
def test_payloads_are_live_and_never_run(tmp_path, name):
    mark, path = tmp_path / "ran", tmp_path / "evil.pt"
    payload = fuzz.payloads(mark)[name]
    with contextlib.suppress(Exception):  # some make the mark and then fail
        Naive(io.BytesIO(fuzz.pickled(payload))).load()
    assert mark.exists(), "a payload that does nothing proves nothing"
    mark.unlink()
    plain = [torch.serialization.MAGIC_NUMBER, 1001, {"little_endian": True}]
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for member in ("storages", "tensors", "pickle"):
            body = fuzz.pickled(payload)
            about = tarfile.TarInfo(member)
            about.size = len(body)
            archive.addfile(about, io.BytesIO(body))
    forms = {
        "zip": fuzz.crafted(payload),
        "pickle": fuzz.pickled(payload),
        "protocol 4": fuzz.pickled(payload, 4),
        "old": b"".join(map(fuzz.pickled, (*plain, payload, []))),
        "old, in the system's record": b"".join(map(fuzz.pickled, (*plain[:2], payload, {}, []))),
        "tar": tar.getvalue(),
        "two": fuzz.archive([(f"{k}/data.pkl", fuzz.pickled((1, payload)[k])) for k in (0, 1)]),
    }
    for form, raw in forms.items():
        path.write_bytes(raw)
        for read in (read_checkpoint, model.load,
                     lambda p: model.load_pretrained(NETWORK, str(p))):  # fmt: skip
            with pytest.raises(CheckpointError, match="evil.pt"):
                read(path)
            assert not mark.exists(), form


NETWORK = model.LiteDepth(size=(32, 32))


# -------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict:
    """A checkpoint's, as torch.load returns it."""
    path = tmp_path_factory.mktemp("whole") / "net.pt"
    model.save(path, NETWORK, epoch=1, step=2, batch=0, image_size=[64, 96], flags={})
    return torch.load(path, weights_only=True)


def refused(path: Path, content: object, match: str) -> None:
    raw = content if isinstance(content, bytes) else fuzz.torch_saved(content)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=match) as caught:
        model.load(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name, value",
    [("image_size", v) for v in ([64], [64.5, 96], [0, 96], "64x96", torch.zeros(2), [64, 10**9],
                                 [math.nan, 1], None, 64, {}, fuzz.laughs(list, 40))]
    + [("epoch", v) for v in (None, 1.5, -1, torch.tensor(1), "1", True, 10**400)]
    + [("step", math.nan), ("batch", []), ("flags", [1]), ("flags", None)],
)  # fmt: skip
def test_what_a_checkpoint_says_of_itself(tmp_path, content, name, value):
    refused(tmp_path / "odd.pt", content | {name: value}, rf"odd\.pt: .*({name}|more than)")
    with pytest.raises(UserError, match=f"{name}|more than"):
        predict.load_predictor(tmp_path / "odd.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"size": [32, 32.0]}, {"size": [32 * 10**8, 32]}, {"size": "32"}, {"size": [10**400, 32]},
        {"size": torch.tensor([32, 32])}, {"mean": [1e300, 1, 1]}, {"mean": [math.nan, 1, 1]},
        {"std": [0, 1, 1]}, {"std": ["a", 1, 1]}, {"merged": "yes"}, {"decoder": "x" * 100_000},
        {"decoder": fuzz.laughs(list, 40)}, {"upsample": fuzz.laughs(tuple, 12)}, {"x": 1},
        {"model": "swin_nano", "window": 10**9}, {"model": "swin_nano", "window": 2.5},
        {"model": "swin_nano", "drop_path": math.nan}, {"model": {}}, {3: 4}, {"self": 1},
        {"a" * 9999: "x"},
    ],
)  # fmt: skip
def test_model_args_that_cannot_be(tmp_path, content, change):
    args = content["model_args"] | change
    if "model" in change:
        del args["merged"]
    content = content | {"model_args": args}
    refused(tmp_path / "odd.pt", content, r"odd\.pt: (cannot rebuild|.*more than)")


def test_a_few_bytes_do_not_build_the_largest_network(tmp_path, monkeypatch):
    """Shapes are compared before there is memory for them."""
    made, create = [], model.create
    monkeypatch.setattr(model, "create", lambda **a: made.append(create(**a)) or made[-1])
    args = {"model": "swin_l", "window": 64}
    refused(tmp_path / "l.pt", {"format": CHECKPOINT_FORMAT, "model_args": args, "model": {}}, "missing")
    assert [network.mean.device.type for network in made] == ["meta"]


def odd_tensors() -> dict[str, object]:
    bias = torch.ones(1)
    hidden = torch.ones(1)
    hidden.detach = hidden.numel = hidden.copy_ = 5
    return {
        "sparse": bias.to_sparse(), "meta": bias.to("meta"), "complex": bias.to(torch.complex64),
        "quantised": torch.quantize_per_tensor(bias, 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([bias, torch.ones(2)]), "none": None, "word": "x",
        "expanded": bias.expand(1 << 40), "shape": torch.ones(2), "attributes": hidden,
    }  # fmt: skip


@pytest.mark.parametrize("name", list(odd_tensors()))
def test_tensors_that_are_none_of_ours(tmp_path, content, name):
    path = tmp_path / "odd.pt"
    weights = content["model"] | {"decoder.depth.bias": odd_tensors()[name]}
    if name == "attributes":  # they are left behind
        path.write_bytes(fuzz.torch_saved(content | {"model": weights}))
        assert model.load(path).decoder.depth.bias == 1
        return
    refused(path, content | {"model": weights}, r"odd\.pt: ")
    with pytest.raises(CheckpointError):
        model.load_pretrained(NETWORK, str(path))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_checkpoints_own_std(tmp_path, content, value):
    weights = content["model"] | {"std": torch.tensor([1, value, 1])}
    refused(tmp_path / "odd.pt", content | {"model": weights}, "mean and std cannot be")


def storage(elements: int, size: tuple, stride: tuple, offset: int = 0) -> object:
    empty = collections.OrderedDict()
    rebuild = torch._utils._rebuild_tensor_v2
    return fuzz.Call(rebuild, fuzz.Storage(elements), offset, size, stride, False, empty)


@pytest.mark.parametrize(
    "tensor",
    [
        storage(1 << 16, (1 << 16,), (1,)), storage(16, (17,), (1,)), storage(16, (4,), (1,), 13),
        storage(16, (4,), (-1,), 8), storage(16, (2, 2), (1 << 40, 1)), storage(16, (4,), (1,), -1),
        storage(16, (1 << 30, 1 << 30), (0, 0)), storage(1 << 40, (16,), (1,)),
    ],
)  # fmt: skip
def test_tensors_out_of_their_storage(tmp_path, tensor):
    """The record holds 16 floats; none is read beside it."""
    refused(tmp_path / "out.pt", fuzz.crafted({"x": tensor}), r"out\.pt: not a readable")
    sound = fuzz.crafted({"x": storage(16, (4, 4), (4, 1))}, (np.arange(16, dtype="f4").tobytes(),))
    (tmp_path / "in.pt").write_bytes(sound)
    assert torch.equal(
        read_weights(tmp_path / "in.pt")["x"], torch.arange(16.0).view(4, 4)
    )


@pytest.mark.parametrize("depth", [25, 60, 250])
def test_a_key_that_takes_forever_to_hash(tmp_path, depth):
    refused(tmp_path / "key.pt", fuzz.tangled_key(depth), r"key\.pt: .*more than a checkpoint")


def test_things_that_unpack_to_more_than_there_is(tmp_path, content):
    path = tmp_path / "bomb.pt"
    refused(path, fuzz.bomb(), "its archive is compressed")
    refused(path, fuzz.overlapping(3000), "its archive claims more")
    twice = [("a/data.pkl", fuzz.pickled(1))] * 2
    with pytest.warns(UserWarning, match="Duplicate"):
        refused(path, fuzz.archive(twice), "one name twice")
    refused(path, fuzz.crafted(fuzz.laughs(list, 40)), "more than a checkpoint")
    refused(path, fuzz.crafted({"format": CHECKPOINT_FORMAT, "x": [[None] * 500_000] * 3}), "more than")
    hiding = fuzz.Hiding(0)
    refused(path, fuzz.crafted(hiding), "not a LiteDepth checkpoint")
    (tmp_path / "net.pt").write_bytes(fuzz.torch_saved(content))
    model.load(tmp_path / "net.pt")  # and what is sound is not


def test_a_public_files_odd_names_and_tensors(tmp_path):
    path = tmp_path / "swin.pth"
    teacher = model.create("swin_nano", size=(32, 32))
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    for odd in ({name: torch.tensor(1.0)}, {3: torch.ones(1)},
                {"layers." + "9" * 5000 + ".downsample.x": torch.ones(1),
                 "layers.3.downsample.x": torch.ones(1)}):  # fmt: skip
        path.write_bytes(fuzz.torch_saved(odd))
        with pytest.raises(CheckpointError):
            model.load_pretrained(teacher, str(path))
    assert recognize({"patch_embed.proj.weight": torch.tensor(1.0)}) is None


@pytest.mark.parametrize("name", ["fifo", "n" * 5000])
def test_a_checkpoint_that_is_no_file(tmp_path, name):
    os.mkfifo(tmp_path / "fifo")
    for read in (model.load, read_calibration):
        with pytest.raises(CheckpointError, match="no such"):
            read(tmp_path / name)


# ---------------------------------------------------------------------------- pictures and lists


def black(suffix: str, *options: int) -> bytes:
    picture = np.zeros((4000, 6000, 3), np.uint8)
    return cv2.imencode(suffix, picture, options)[1].tobytes()


@pytest.mark.parametrize(
    "suffix, options",
    [
        (".png", (cv2.IMWRITE_PNG_COMPRESSION, 9)), (".jpg", ()),
        (".jpg", (cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_QUALITY, 1)),
        (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1)),
    ],
)  # fmt: skip
def test_the_emptiest_pictures_are_possible(tmp_path, suffix, options):
    """24 megapixels of black, well packed; a twentieth of that length is impossible."""
    path = tmp_path / f"black{suffix}"
    raw = black(suffix, *options)
    path.write_bytes(raw)
    assert read_header(raw, path) == header_of(path)
    assert header_of(path).size == (4000, 6000)
    assert overstated(raw) == ""
    if suffix == ".png":
        raw = raw[:20] + struct.pack(">I", 20 * 4000) + raw[24:]
        assert "80000x6000 pixels" in overstated(raw)
    else:
        assert "4000x6000 pixels" in overstated(raw[:5000], len(raw) // 20)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_picture_that_claims_more_than_it_holds(tmp_path, bits):
    header = struct.pack(">IIBBBBB", 30000, 30000, bits, 0, 0, 0, 0)
    path = tmp_path / "huge.png"
    pixels = zlib.compress(bytes(100_000))
    path.write_bytes(fuzz.png_file([(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]))
    pair = Pair(path, path, "s", tmp_path)
    for read in (lambda: check_files([pair]), lambda: read_pair(pair, SIZE, None, {})):
        with pytest.raises(DataError, match="impossible header: 30000x30000 pixels in"):
            read()
    if bits == 8:
        with pytest.raises(UserError, match="impossible header: 30000x30000"):
            read_picture(path)


def test_a_png_whose_chunk_is_longer_than_the_file(tmp_path):
    """12 kB, of which OpenCV would make 3.5 GB of zeros."""
    raw, path = cv2.imencode(".png", fuzz.colours(1))[1].tobytes(), tmp_path / "chunk.png"
    path.write_bytes(raw[:33] + struct.pack(">I", 0xD0000000) + raw[37:])
    with pytest.raises(UserError, match="impossible header: a chunk of 3489660928 "):
        read_picture(path)
    with pytest.raises(DataError, match="impossible header: a chunk of 3489660928 bytes in"):
        _decode(path, cv2.IMREAD_COLOR)


def test_a_jpeg_that_claims_more_than_it_holds(tmp_path):
    raw = bytearray(cv2.imencode(".jpg", fuzz.colours(1))[1].tobytes())
    frame = walk_jpeg(raw)[1]
    raw[frame + 5 : frame + 9] = struct.pack(">HH", 30000, 30000)
    (tmp_path / "huge.jpg").write_bytes(raw)
    with pytest.raises(UserError, match="impossible header: 30000x30000"):
        read_picture(tmp_path / "huge.jpg")
    with pytest.raises(DataError, match="impossible header"):
        header_of(tmp_path / "huge.jpg")


def test_a_jpeg_of_a_thousand_scans(tmp_path):
    raw = cv2.imencode(".jpg", fuzz.colours(1), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1))[1].tobytes()
    assert overstated(raw) == ""
    scan = raw[raw.rfind(b"\xff\xda") : -2]
    many = raw[:-2] + scan[:40] * 1000 + raw[-2:]
    (tmp_path / "scans.jpg").write_bytes(many)
    with pytest.raises(UserError, match="impossible header: 10.. scans"):
        read_picture(tmp_path / "scans.jpg")


def test_megabytes_of_fill_before_a_mark_take_no_time(tmp_path):
    raw = cv2.imencode(".jpg", fuzz.colours(1))[1].tobytes()
    filled = raw[:2] + b"\xff" * (1 << 26) + raw[2:]
    assert not is_cut(filled)
    path = tmp_path / "filled.jpg"
    assert read_header(filled, path) == read_header(raw, path)


def test_lists_of_what_is_no_picture(tmp_path):
    """Names too long, pipes, devices: refused, and nothing waits for a pipe."""
    fuzz.make_special(tmp_path)
    listing, depth = tmp_path / "train.txt", tmp_path / "d.png"
    cv2.imwrite(str(depth), fuzz.depths(1))
    for name in ("n" * 5000, "n" * 300, "a/" * 3000, "fifo.png", "loop.png", "zero.png", "gone.png",
                 "folder.png", "d.png/x", "\0"):  # fmt: skip
        listing.write_text(f"{name} d.png\n")
        with pytest.raises(DataError, match="train.txt:1: ") as caught:
            list_pairs(tmp_path, "train")
        assert len(str(caught.value)) < 1000 or len(name) < 400
    with pytest.raises(DataError, match="no split"):
        find_split(tmp_path, "s" * 5000)


@pytest.mark.parametrize("name", ["fifo.png", "loop.png", "zero.png", "null.png", "folder.png"])
def test_folders_that_hold_what_is_no_picture(tmp_path, name):
    fuzz.make_special(tmp_path)
    for side in ("rgb", "depth"):
        (tmp_path / "train" / side).mkdir(parents=True)
        (tmp_path / "train" / side / "a.png").symlink_to(tmp_path / name)
    pairs = list_pairs(tmp_path, "train")
    with pytest.raises(DataError, match="a.png: cannot be read"):
        check_files(pairs)
    with pytest.raises(DataError, match="a.png: cannot be read"):
        read_pair(pairs[0], (64, 96), None, {})
    with pytest.raises(UserError):
        read_picture(tmp_path / name)


# --------------------------------------------------------------------------- numbers and settings

NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "text, match",
    [
        ('{"fx": 1' + "0" * 400 + ', "fy": 1, "cx": 0, "cy": 0}', "expected numbers"),
        ('{"fx": 1, "fy": 1, "cx": 0, "cy": 0, "width": 1' + "0" * 400 + "}", "expected numbers"),
        ('{"fx": "' + "a" * 9000 + '", "fy": 1, "cx": 0, "cy": 0}', "expected numbers"),
        ('{"fx": 1e-320, "fy": 1, "cx": 0, "cy": 0}', "impossible intrinsics"),
        ('{"fx": 1e300, "fy": 1, "cx": 0, "cy": 0}', "impossible intrinsics"),
        ('{"fx": 1, "fy": 1, "cx": NaN, "cy": 0}', "impossible intrinsics"),
        ('{"frames": ' + NESTED + "}", "not readable as JSON"), (NESTED, "not readable as JSON"),
        ("9" * 5000, "not readable as JSON"), ("\ufeff{}", "not readable as JSON"),
    ],
)  # fmt: skip
def test_intrinsics_that_cannot_be(tmp_path, text, match):
    (tmp_path / "intrinsics.json").write_text(text, encoding="utf-8")
    pair = Pair(tmp_path / "a.png", tmp_path / "a.png", "s", tmp_path)
    with pytest.raises(DataError, match=f"intrinsics.json: {match}") as caught:
        stored_intrinsics(pair, (64, 96), {})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name, token",
    [("split", "NaN"), ("split", "[1]"), ("pairs", "1e999"), ("pairs", "-1"), ("pairs", '"x"'),
     ("data", "{}"), ("model_sha256", "5"), ("scale", "NaN"), ("shift_m", "1e999"),
     ("scale", "[" * 950 + "]" * 950), ("extra", "-Infinity"), ("extra", NESTED)],
)  # fmt: skip
def test_calibrations_that_cannot_be(tmp_path, name, token):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(fuzz.FIT))
    assert read_calibration(path) == fuzz.FIT
    path.write_text(json.dumps(fuzz.FIT | {name: "@"}).replace('"@"', token))
    with pytest.raises(CheckpointError, match="calibration.json: ") as caught:
        read_calibration(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "token", ["true", "1" + "0" * 400, "1e-320", "1e300", "NaN", "null", '"5"', "-1"]
)
def test_a_runs_scale_that_cannot_be(tmp_path, token):
    text = json.dumps(fuzz.ARGS | {"depth_scale": "@"}).replace('"@"', token)
    (tmp_path / "args.json").write_text(text)
    facts = export.trained_on(tmp_path / "best.pt")
    assert "depth_scale" not in facts and facts["max_depth"] == 40


def test_a_runs_settings_that_are_none(tmp_path):
    path = tmp_path / "args.json"
    path.write_text(NESTED)
    assert export.trained_on(tmp_path / "best.pt") == {}
    path.unlink()
    os.mkfifo(path)
    assert export.trained_on(tmp_path / "best.pt") == {}


@pytest.mark.parametrize("expression", ["-" * 9000 + "1", "not " * 2000 + "1", "1+" * 3000 + "1"])
def test_a_header_of_numpys_that_nests(tmp_path, expression):
    path = tmp_path / "map.npy"
    path.write_bytes(fuzz.npy(np.zeros((64, 96), "f4"), expression))
    with pytest.raises(DataError, match="map.npy: not a whole .npy"):
        read_teacher(path, (64, 96), 1000.0)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("token", ["[]", '"x"', "[" * 950 + "]" * 950, '{"size": [1, 1]}', "5"])
def test_metadata_that_cannot_be(side, token):
    graph = b"\x1c\0\0\0TFL3" + bytes(8)
    file = io.BytesIO(graph)
    stamp = {"format": TFLITE_FORMAT, "bytes": 16, "sha256": fuzz.sha256(graph).hexdigest()}
    text = json.dumps(stamp | fuzz.ABOUT | {side: "@"}).replace('"@"', token)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(MEMBER, text)
    with pytest.raises(UserError, match="cannot use"):
        read_metadata(file.getvalue(), "model.tflite")


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> bytes:
    scratch = fuzz.Scratch(tmp_path_factory.mktemp("packs"), False)
    fuzz.prepare_pack(scratch)
    return scratch.made["packs"][1]


def forged(raw: bytes, change) -> bytes:
    """A pack whose header and tail went through `change`, under the right checksums."""
    version, _, rest = raw[: PAGE].partition(b"\n")
    header = json.loads(rest.partition(b"\n")[2])
    start, n = header["tail"], header["tail_bytes"]
    numbers = bytearray(raw[start : start + 33 * 4])
    about = json.loads(raw[start + 33 * 4 : start + n])
    change(header, numbers, about)
    tail = bytes(numbers) + json.dumps(about).encode()
    header["tail_sha256"] = fuzz.sha256(tail).hexdigest()
    if header["tail_bytes"] == n:
        header["tail_bytes"] = len(tail)
    body = json.dumps(header).encode().ljust(PAGE - len(version) - 66)
    head = version + b"\n" + fuzz.sha256(body).hexdigest().encode() + b"\n" + body
    return head + raw[PAGE : start] + tail.ljust(len(raw) - start, b"\0")


def put(name: str, value: object):
    return lambda header, numbers, about: header.__setitem__(name, value)


def poke(at: int, value: bytes):
    return lambda header, numbers, about: numbers.__setitem__(slice(at, at + len(value)), value)


@pytest.mark.parametrize(
    "change, reason",
    [
        (put("shape", [4, 32]), "no layout"), (put("shape", 5), "no layout"),
        (put("shape", [4, 32, -48]), "no layout"), (put("shape", [4.0, 32, 48]), "no layout"),
        (put("stamp", None), "no layout"), (put("teacher", 1), "no layout"),
        (put("shape", [5, 32, 48]), "do not lie"), (put("shape", [1 << 40, 32, 48]), "do not lie"),
        (put("shape", [4, 48, 49]), "do not lie"), (put("teacher", False), "do not lie"),
        (put("tail", 4096), "do not lie"), (put("tail_bytes", 20), "do not lie"),
        (put("tail_bytes", 1 << 50), "do not lie"),
        (poke(0, struct.pack("<d", math.nan)), "cannot be"), (poke(0, bytes(8)), "cannot be"),
        (poke(8, struct.pack("<d", -1.0)), "cannot be"),
        (poke(128, b"\2"), "cannot be"),
        (lambda header, numbers, about: about.pop("failed"), "is none"),
        (lambda header, numbers, about: about.update(settings=[]), "is none"),
        (lambda header, numbers, about: about.update(failed={"4": "x"}), "is none"),
        (lambda header, numbers, about: about.update(failed={"x": "x"}), "is none"),
        (lambda header, numbers, about: about.update(failed={"2": 5}), "is none"),
        (lambda header, numbers, about: about.update(failed={}), "cannot be"),
    ],
)  # fmt: skip
def test_a_pack_forged_under_the_right_checksum(tmp_path, pack, change, reason):
    path = tmp_path / "p.pack"
    path.write_bytes(forged(pack, lambda *parts: None))
    assert len(Pack(path)) == 4
    path.write_bytes(forged(pack, change))
    with pytest.raises(UserError, match=reason):
        Pack(path)


def test_a_pack_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "p.pack")
    with pytest.raises(OSError, match="not a regular file"):
        Pack(tmp_path / "p.pack")
