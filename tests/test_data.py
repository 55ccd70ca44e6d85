"""Sec. 4.1 (reading RGB-D pairs, refusing bad ones), Sec. 3.2 (R^2 crop, batches), teacher maps."""

from __future__ import annotations

import json
import math
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import rgbd_picture
from torch.utils._python_dispatch import TorchDispatchMode

import data
import losses
import model
import plumbing.files
import plumbing.pairs
import train
from plumbing.batches import open_reader
from plumbing.checkpoints import CheckpointError
from plumbing.files import UserError, natural, notice
from plumbing.pairs import (
    CHECKED_FILES,
    SAMPLED_FILES,
    DataError,
    Header,
    Pair,
    _read_intrinsics,
    check_files,
    list_pairs,
    open_split,
    open_teacher,
    read_header,
    read_pair,
    read_teacher,
    teacher_maps,
)

ROOT = Path(__file__).resolve().parent.parent
SIZE, NET = (96, 128), (64, 96)  # of the tiny pictures, and of a network for them
K0 = (110.0, 110.0, 60.0, 50.0)
AUGMENT = data.Augment(
    crops=((48, 64), (64, 96), (96, 128)), rotate_prob=0.5, max_angle=2.5, flip_prob=0.5,
    gamma=(0.9, 1.1), gamma_unit=False, brightness=(0.75, 1.25), channel_gain=(0.9, 1.1),
)  # fmt: skip
COLOURLESS = AUGMENT._replace(gamma=(1, 1), brightness=(1, 1), channel_gain=(1, 1))


def lines_of(text: str, start: str = "note: ") -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def write(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
    return path


def pair_of(root: Path, bgr: np.ndarray, depth: np.ndarray, suffix: str = ".png") -> Pair:
    rgb = write(root / "rgb" / f"a{suffix}", bgr)
    return Pair(rgb, write(root / "depth/a.png", depth), "scene", root)


def stems(pairs: list[Pair]) -> list[str]:
    assert all(p.rgb.stem == p.depth.stem for p in pairs)
    return [p.rgb.stem for p in pairs]


def centre_of(weight: np.ndarray) -> np.ndarray:
    """(x, y) centroid."""
    v, u = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return np.array([(weight * u).sum(), (weight * v).sum()]) / weight.sum()


# Sec. 4.1: finding pairs ------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["folders", "scenes", "lists"])
def test_sec41_layouts(tmp_path, make_rgbd, layout):
    root = make_rgbd(tmp_path, layout)
    pairs = open_split(root, "train", 1000.0)
    assert len(pairs) == 8 and len(open_split(root, "val", 1000.0)) == 3
    if layout == "lists":
        assert [(p.rgb.stem, p.depth.stem) for p in pairs] == [
            (f"c{k}", str(100 - k)) for k in range(8)
        ]
    else:
        assert stems(pairs) == [f"sample_{k}" for k in range(8)]
    scenes = {"folders": ["train"] * 8, "scenes": ["hall"] * 4 + ["yard"] * 4}
    assert [p.scene for p in pairs] == scenes.get(layout, ["train_pictures"] * 8)
    # the pictures themselves belong together: pair k was made from seed k
    known: dict = {}
    for k, pair in enumerate(pairs):
        sample = read_pair(pair, SIZE, K0, known)
        bgr, depth = rgbd_picture(k)
        np.testing.assert_array_equal(sample.rgb, bgr[..., ::-1])
        np.testing.assert_array_equal(sample.depth, depth)


def test_sec41_a_list_wins_over_folders(tmp_path, make_rgbd):
    root = make_rgbd(tmp_path)
    (root / "train.txt").write_text("train/rgb/sample_5.png train/depth/sample_5.png\n")
    assert stems(list_pairs(root, "train")) == ["sample_5"]
    assert list_pairs(root, "train")[0].scene == "train"  # <scene>/rgb/name


def test_sec41_val_falls_back_to_local_val(tmp_path, make_rgbd):
    root = make_rgbd(tmp_path)
    (root / "val").rename(root / "local_val")
    assert len(list_pairs(root, "val")) == 3
    with pytest.raises(DataError, match="no split 'test'"):
        list_pairs(root, "test")
    (root / "local_val").rename(root / "local_train")
    (root / "train").rename(root / "val")
    with pytest.raises(DataError, match="no split 'train'"):  # only val has another name
        list_pairs(root, "train")
    assert len(list_pairs(root, "val")) == 8


def test_sec41_pairs_go_by_stem_in_natural_order(tmp_path):
    names = ["sample_10", "sample_2", "sample_1", "b", "sample_2b"]
    for name in names:
        write(tmp_path / f"train/rgb/{name}.JPG", np.full((64, 64, 3), 9, np.uint8))
    for name in reversed(names):
        write(tmp_path / f"train/depth/{name}.png", np.full((64, 64), 9, np.uint16))
    (tmp_path / "train/rgb/.hidden.jpg").write_bytes(b"")
    (tmp_path / "train/rgb/Thumbs.db").write_bytes(b"")
    order = ["b", "sample_1", "sample_2", "sample_2b", "sample_10"]
    assert stems(list_pairs(tmp_path, "train")) == order


def test_sec41_natural_order_is_total_and_takes_any_name():
    assert sorted(["1", "01", "001"], key=natural) == sorted(
        ["01", "001", "1"], key=natural
    )
    assert sorted(["x²", "²", "10", "9", "a", "3a", "3"], key=natural) == [
        "3", "3a", "9", "10", "a", "x²", "²",
    ]  # fmt: skip


@pytest.mark.parametrize("missing", ["rgb/sample_3.png", "depth/sample_3.png"])
def test_sec41_a_file_missing_in_the_middle_shifts_nothing(tmp_path, make_rgbd, missing):
    root = make_rgbd(tmp_path)
    (root / "train" / missing).unlink()
    other = "depth" if missing.startswith("rgb") else "rgb"
    with pytest.raises(DataError, match=r"1 file\(s\) without a partner.*: sample_3\. "):
        list_pairs(root, "train")
    (root / f"train/{other}/sample_6.png").unlink()  # equal numbers again: two are still lonely
    with pytest.raises(DataError, match="2 file.*sample_3, sample_6"):
        list_pairs(root, "train")


def test_sec41_a_stem_that_occurs_twice(tmp_path, make_rgbd):
    root = make_rgbd(tmp_path)
    write(root / "train/rgb/sample_4.jpg", np.zeros((96, 128, 3), np.uint8))
    with pytest.raises(DataError, match="sample_4.*sample_4.*two files of one name"):
        list_pairs(root, "train")


def test_sec41_a_scene_without_depth_folder(tmp_path, make_rgbd):
    root = make_rgbd(tmp_path, "scenes")
    (root / "train/hall/depth").rename(root / "train/hall/depths")
    with pytest.raises(DataError, match="hall/depth: no such folder.*side by side"):
        list_pairs(root, "train")


def test_sec41_lists_take_comments_blanks_tabs_and_spaces(tmp_path):
    for name in ("a", "b c", "d"):
        write(tmp_path / f"my rgb/{name}.png", np.zeros((64, 64, 3), np.uint8))
        write(tmp_path / f"z/{name}.png", np.ones((64, 64), np.uint16))
    (tmp_path / "z/rgb").mkdir()
    write(tmp_path / "z/rgb/e.png", np.zeros((64, 64, 3), np.uint8))
    text = (
        "\ufeffmy rgb/d.png\tz/d.png\r\n\r\n  # a comment\r\n"
        "my rgb/b c.png\tz/b c.png  \r\n\t\r\nz/rgb/e.png   z/a.png"
    )
    (tmp_path / "train.txt").write_text(text, newline="")
    pairs = list_pairs(tmp_path, "train")
    assert [(p.rgb.stem, p.depth.stem) for p in pairs] == [("d", "d"), ("b c", "b c"), ("e", "a")]
    assert [p.scene for p in pairs] == ["my rgb", "my rgb", "z"]
    (tmp_path / "train.txt").write_text("# one\nmy rgb/d.png z/d.png\n")
    with pytest.raises(DataError, match=r"train.txt:2: expected 'rgb depth'.*tab"):
        list_pairs(tmp_path, "train")
    (tmp_path / "train.txt").write_text("z/rgb/e.png z/x.png\n")
    with pytest.raises(DataError, match=r"train.txt:1: no such file: .*x\.png"):
        list_pairs(tmp_path, "train")


# Sec. 4.1: intrinsics ---------------------------------------------------------------------------


def test_sec41_intrinsics_file_single_frames_absent(tmp_path, make_rgbd, capsys):
    root = make_rgbd(tmp_path)
    pair = list_pairs(root, "train")[2]
    path = root / "train/intrinsics.json"

    def K(entry: object) -> list[float]:
        path.write_text(json.dumps(entry))
        return read_pair(pair, SIZE, K0, {}).K.tolist()

    open_split(root, "train", 1000.0)
    assert "train: no focal length given for train: --intrinsics is used" in capsys.readouterr().err
    assert read_pair(pair, SIZE, K0, {}).K.tolist() == list(K0)
    one = {"fx": 100, "fy": 120, "cx": 60, "cy": 40, "width": 128, "height": 96}
    assert K(one) == [100, 120, 60, 40]
    open_split(root, "train", 1000.0)
    assert capsys.readouterr().err == ""
    assert K({k: one[k] for k in ("fx", "fy", "cx", "cy")}) == [100, 120, 60, 40]
    assert K({"scene": "a room", "width": 128}) == list(K0)  # nothing about a focal length
    assert K({"frames": {"sample_2": one, "sample_3": one | {"fx": 7}}}) == [100, 120, 60, 40]
    # the principal point may lie outside the picture
    assert K(one | {"cx": -50, "cy": 500.5}) == [100, 120, -50, 500.5]
    # given for a picture twice as wide and high: half-pixel centres
    twice = one | {"width": 256, "height": 192, "cx": 127.5, "cy": 95.5}
    assert K(twice) == [50, 60, 63.5, 47.5]


def test_sec41_intrinsics_are_read_once_a_file(tmp_path, make_rgbd, monkeypatch):
    root = make_rgbd(tmp_path)
    (root / "train/intrinsics.json").write_text('{"fx": 9, "fy": 9, "cx": 9, "cy": 9}')
    read, calls = _read_intrinsics, []
    monkeypatch.setattr(plumbing.pairs, "_read_intrinsics", lambda path: calls.append(path) or read(path))
    open_split(root, "train", 1000.0)
    assert len(calls) == 1


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("stored, depth_at", [((240, 300), (240, 300)), ((64, 100), (128, 200))])
def test_sec41_image_size_moves_picture_depth_and_K_together(tmp_path, suffix, stored, depth_at):
    """A ball in the world: where K projects it is where picture and depth show it."""
    fx, fy, cx, cy = K = (stored[1] * 0.8, stored[0] * 0.9, stored[1] * 0.45, stored[0] * 0.55)
    X, Y, Z = 0.35, -0.2, 2.0
    u, v = fx * X / Z + cx, fy * Y / Z + cy
    y, x = np.mgrid[: stored[0], : stored[1]]
    ball = np.exp(-((x - u) ** 2 + (y - v) ** 2) / 50)
    bgr = (255 * ball[..., None] * [0.2, 0.4, 1.0]).astype(np.uint8)
    y, x = np.mgrid[: depth_at[0], : depth_at[1]]
    scale = depth_at[0] / stored[0]
    u, v = (u + 0.5) * scale - 0.5, (v + 0.5) * scale - 0.5
    near = (x - u) ** 2 + (y - v) ** 2 < (8 * scale) ** 2
    depth = np.where(near, 2000, 5000).astype(np.uint16)
    depth[-depth_at[0] // 6 :] = 0
    pair = pair_of(tmp_path, bgr, depth, suffix)
    entry = dict(zip(("fx", "fy", "cx", "cy"), K)) | {"width": stored[1], "height": stored[0]}
    (tmp_path / "intrinsics.json").write_text(json.dumps(entry))

    sample = read_pair(pair, SIZE, K0, {})
    assert sample.rgb.shape == (*SIZE, 3) and sample.rgb.dtype == np.uint8
    assert sample.depth.shape == SIZE and sample.depth.dtype == np.uint16
    assert sample.depth.flags.c_contiguous and sample.K.dtype == np.float64
    fx, fy, cx, cy = sample.K
    there = np.array([fx * X / Z + cx, fy * Y / Z + cy])
    red = sample.rgb[..., 0].astype(float)
    assert red.max() > 2 * sample.rgb[..., 2].max()  # RGB, not BGR
    assert np.abs(centre_of(np.where(red > 40, red, 0)) - there).max() < 0.15
    assert np.abs(centre_of(sample.depth == 2000) - there).max() < 0.7
    assert set(np.unique(sample.depth)) == {0, 2000, 5000}  # nearest: nothing blended


def test_sec41_image_size_crops_the_centre_and_averages(tmp_path):
    """Area when it shrinks, bilinear when it grows; the sides beyond the aspect go."""
    rng = np.random.default_rng(0)
    bgr = rng.integers(0, 256, (288, 450, 3), dtype=np.uint8)
    depth = rng.integers(1, 60000, (288, 450), dtype=np.uint16)
    sample = read_pair(pair_of(tmp_path, bgr, depth), SIZE, K0, {})
    middle = bgr[:, 33:417, ::-1].astype(float)  # 384 of 450 columns
    mean = middle.reshape(96, 3, 128, 3, 3).mean((1, 3))
    assert np.abs(sample.rgb - mean).max() <= 1
    np.testing.assert_array_equal(sample.depth, depth[1::3, 34:417:3])
    tall = read_pair(pair_of(tmp_path, bgr[:, :100], depth[:, :100]), SIZE, K0, {})
    expected = cv2.resize(bgr[106:181, :100], SIZE[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(tall.rgb[..., ::-1].astype(float) - expected).max() <= 1
    assert set(np.unique(tall.depth)) <= set(np.unique(depth[106:181, :100]))


def test_sec41_depth_of_another_size_gets_one_notice(tmp_path, make_rgbd, capsys):
    root = make_rgbd(tmp_path)
    for k in (3, 5):
        depth = cv2.imread(str(root / f"train/depth/sample_{k}.png"), cv2.IMREAD_UNCHANGED)
        write(root / f"train/depth/sample_{k}.png", depth[::2, ::2])
    pairs = list_pairs(root, "train")
    check_files(pairs)
    (note,) = lines_of(capsys.readouterr().err)
    assert "2 depth map(s) differ in size" in note and "sample_3.png" in note
    assert read_pair(pairs[3], SIZE, K0, {}).depth.shape == SIZE


def test_sec41_exif_rotation_is_ignored(tmp_path):
    """A viewer would turn this picture; its depth map would not be turned with it."""
    bgr = np.zeros((96, 128, 3), np.uint8)
    bgr[:, :64, 2] = 220
    depth = np.where(bgr[..., 2] > 0, 1000, 4000).astype(np.uint16)
    pair = pair_of(tmp_path, bgr, depth, ".jpg")
    orientation = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + orientation
    plain = pair.rgb.read_bytes()
    pair.rgb.write_bytes(
        plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    )
    assert cv2.imread(str(pair.rgb)).shape == (128, 96, 3)
    check_files([pair])
    sample = read_pair(pair, SIZE, K0, {})
    np.testing.assert_array_equal(sample.rgb[..., 0] > 110, sample.depth == 1000)


def test_sec41_a_jpeg_with_a_long_head_is_no_broken_one(tmp_path):
    """Previews and colour profiles may fill more than the 64 kB that are looked at first."""
    pair = pair_of(tmp_path, np.zeros((96, 128, 3), np.uint8), np.ones((96, 128), "u2"), ".jpg")
    plain, filler = pair.rgb.read_bytes(), b"\xff\xe2" + struct.pack(">H", 60002) + bytes(60000)
    pair.rgb.write_bytes(plain[:2] + 2 * filler + plain[2:])
    check_files([pair])
    assert read_header(pair.rgb.read_bytes(), pair.rgb) == Header((96, 128), 8, 3)
    pair.rgb.write_bytes(plain[:2] + 2 * filler + plain[2:-2])
    with pytest.raises(DataError, match="cut short"):
        check_files([pair])


def test_sec41_of_more_than_20000_pairs_2000_are_opened(rgbd, monkeypatch):
    assert (CHECKED_FILES, SAMPLED_FILES) == (20_000, 2_000)
    opened: list[Path] = []
    open_file = data.predict.open_regular
    monkeypatch.setattr(data.predict, "open_regular", lambda p: opened.append(p) or open_file(p))
    (pair, *_) = list_pairs(rgbd, "train")
    check_files([pair] * 20_001)
    assert len(opened) == 2 * 2000
    monkeypatch.setattr(plumbing.pairs, "CHECKED_FILES", 50)
    monkeypatch.setattr(plumbing.pairs, "SAMPLED_FILES", 9)
    for count, files in ((50, 100), (51, 18)):
        opened.clear()
        check_files([pair] * count)
        assert len(opened) == files


def test_sec41_the_check_reads_the_ends_of_a_large_file_only(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 65536, (240, 320), dtype=np.uint16)
    pair = pair_of(tmp_path, np.dstack([noise] * 3).astype(np.uint8), noise)
    assert pair.depth.stat().st_size > 100_000
    opened: list[Path] = []
    open_file = data.predict.open_regular
    monkeypatch.setattr(data.predict, "open_regular", lambda p: opened.append(p) or open_file(p))
    check_files([pair])
    assert len(opened) == 2


def test_sec41_a_picture_damaged_inside_is_refused_when_read(tmp_path):
    pair = pair_of(tmp_path, *rgbd_picture(0))
    content = bytearray(pair.rgb.read_bytes())
    content[len(content) // 2] ^= 255
    pair.rgb.write_bytes(content)
    check_files([pair])  # both ends are in order
    with pytest.raises(DataError, match="a.png: cannot be decoded"):
        read_pair(pair, SIZE, K0, {})


@pytest.mark.parametrize("scale, far", [(1000.0, None), (1.0, "3.8"), (1e6, "0.038")])
def test_sec41_an_unlikely_depth_scale_is_remarked(rgbd, capsys, scale, far):
    open_split(rgbd, "train", scale)
    notes = [n for n in lines_of(capsys.readouterr().err) if "--depth_scale" in n]
    assert len(notes) == (far is not None)
    assert all(f"reach {far}" in n for n in notes)


# Sec. 4.1: bad input, one line each --------------------------------------------------------------


def flags(root: Path | str, out: Path, *more: str) -> list[str]:
    return [
        "--data", str(root), "--out", str(out), "--image_size", "96x128", "--size", "64x96",
        "--crops", "48x64,96x128", "--pretrained", "none", "--epochs", "1", "--batch_size", "4",
        "--threads", "2", "--workers", "2", "--device", "cpu", *more,
    ]  # fmt: skip


def why_not_writable(argv: list[str], capsys) -> str:
    """The one line with which train.py turns these flags down, before it writes anything."""
    capsys.readouterr()
    try:
        train.main(argv)
    except SystemExit as stop:  # argparse
        assert stop.code == 2
        text = capsys.readouterr().err.strip().splitlines()[-1]
    except (DataError, CheckpointError, UserError, OSError) as error:
        text = str(error)
    else:
        pytest.fail("was not refused")
    assert "\n" not in text and len(text) < 600
    assert not Path(argv[argv.index("--out") + 1]).exists()
    return text


def cut(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def save_jpeg(root: Path, share: float) -> None:
    bgr = cv2.imread(str(root / "train/rgb/sample_4.png"))
    (root / "train/rgb/sample_4.png").unlink()
    cut(write(root / "train/rgb/sample_4.jpg", bgr), share)


def all_holes(root: Path) -> None:
    for path in (root / "train/depth").iterdir():
        write(path, np.zeros(SIZE, np.uint16))


RGB, DEPTH = "train/rgb/sample_4.png", "train/depth/sample_4.png"
U8, U16 = np.ones(SIZE, np.uint8), np.ones(SIZE, np.uint16)
BAD_FILES = {
    "pair without rgb": (lambda r: (r / RGB).unlink(), "train: .*sample_4.*Rename or remove"),
    "pair without depth": (lambda r: (r / DEPTH).unlink(), "train: .*sample_4.*Rename or remove"),
    "names differ": (
        lambda r: (r / DEPTH).rename(r / "train/depth/s4.png"), "s4, sample_4.*in train.txt",
    ),
    "8-bit depth": (lambda r: write(r / DEPTH, U8), "depth/sample_4.png.*8-bit.*raw depth"),
    "colour depth": (
        lambda r: write(r / DEPTH, np.dstack([U8] * 3)), "depth/sample_4.png.*3 channels.*raw",
    ),
    "16-bit colour depth": (
        lambda r: write(r / DEPTH, np.dstack([U16] * 3)), "depth/sample_4.png.*3 channels.*raw",
    ),
    "depth as rgb": (lambda r: write(r / RGB, U16), "rgb/sample_4.png.*16-bit gray.*swapped"),
    "text as rgb": (lambda r: (r / RGB).write_text("hello" * 99), "rgb/sample_4.*not a JPEG or"),
    "text as depth": (lambda r: (r / DEPTH).write_text("hello" * 99), "depth/sample_4.*not a JP"),
    "empty rgb": (lambda r: (r / RGB).write_bytes(b""), "rgb/sample_4.png: an empty file; "),
    "empty depth": (lambda r: (r / DEPTH).write_bytes(b""), "depth/sample_4.png: an empty file; "),
    "JPEG cut": (lambda r: save_jpeg(r, 0.9), "rgb/sample_4.jpg: cut short.*copy it anew"),
    "JPEG header cut": (lambda r: save_jpeg(r, 0.02), "rgb/sample_4.jpg: .*copy it anew"),
    "PNG cut": (lambda r: cut(r / RGB), "rgb/sample_4.png: cut short.*copy it anew"),
    "PNG depth cut": (lambda r: cut(r / DEPTH, 0.99), "depth/sample_4.png: cut short.*copy it"),
    "tiny picture": (
        lambda r: (write(r / RGB, np.ones((24, 32, 3), "u1")), write(r / DEPTH, U16[:24, :32])),
        "sample_4.png: 24x32 .*too small, 32",
    ),
    "another aspect": (
        lambda r: write(r / DEPTH, U16[:, :96]), "depth is 96x96, its picture .*96x128.*register",
    ),
    "no valid depth": (all_holes, "'train' has a valid depth"),
    "no train": (lambda r: (r / "train").rename(r / "t"), "no split 'train': make train.txt"),
    "no val": (lambda r: (r / "val").rename(r / "v"), "no split 'val': make val.txt"),
    "rgb not in a folder rgb": (
        lambda r: (r / "train/rgb").rename(r / "train/color"), "split 'train' holds no pair",
    ),
    "list of nothing": (lambda r: (r / "train.txt").write_text("#\n\n"), "'train' holds no pair"),
    "binary list": (
        lambda r: (r / "train.txt").write_bytes(b"\xff\xfe\xfa"), "train.txt: not a readable text",
    ),
    "list of one column": (
        lambda r: (r / "train.txt").write_text(RGB), "train.txt:1: expected 'rgb depth'",
    ),
}  # fmt: skip


def test_a_folder_without_rights_is_not_told_to_be_empty(tmp_path, rgbd, monkeypatch, capsys):
    monkeypatch.setattr(data.os, "access", lambda path, mode: False)  # root may do anything
    assert "the folder may not be looked into" in why_not_writable(flags(rgbd, tmp_path / "out"), capsys)


@pytest.mark.parametrize("name", BAD_FILES)
def test_sec41_bad_files_are_refused_in_one_line(tmp_path, make_rgbd, capsys, name):
    root = make_rgbd(tmp_path / "set", train=6, val=1)
    damage, message = BAD_FILES[name]
    damage(root)
    text = why_not_writable(flags(root, tmp_path / "out"), capsys)
    assert re.search(message, text), text
    assert str(root) in text


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not readable as JSON"), ("[1]", "expected an object"), ("\ufffe", "as JSON"),
        ('{"fx": 1, "cx": 1, "cy": 1}', "expected numbers fx, fy.*'fy'"),
        ('{"fx": 1, "fy": "wide", "cx": 1, "cy": 1}', "expected numbers fx, fy"),
        ('{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": 0}', "expected numbers.*width"),
        ('{"fx": -1, "fy": 1, "cx": 1, "cy": 1}', "impossible intrinsics fx=-1"),
        ('{"fx": 1, "fy": NaN, "cx": 1, "cy": 1}', "impossible intrinsics"),
        ('{"frames": 5}', "expected an object"),
        ('{"frames": {"sample_0": {"fx": 1, "fy": 1, "cx": 1, "cy": 1}}}', "frame 'sample_1'"),
        ('{"frames": {"sample_0": 5}}', "frame 'sample_0'"),
    ],
)  # fmt: skip
def test_sec41_bad_intrinsics_files_are_refused(tmp_path, make_rgbd, capsys, content, message):
    root = make_rgbd(tmp_path / "set", train=2, val=1)
    path = root / "train/intrinsics.json"
    path.write_text(content)
    text = why_not_writable(flags(root, tmp_path / "out"), capsys)
    assert str(path) in text and re.search(message, text), text


@pytest.mark.parametrize(
    "more, message",
    [
        (["--data", "nowhere/at/all"], "nowhere/at/all: no such folder.*synthetic:512"),
        (["--data", "README.md"], "no such folder"),
        *((["--data", f"synthetic:{n}"], f"synthetic:{n}: give a positive number.*synthetic:512")
          for n in ("0", "x", "", "-3", "1.5", "²", "00")),
        (["--split", "nope"], "no split 'nope': make nope.txt"),
        (["--val_split", "nope"], "no split 'nope': make nope.txt"),
        (["--crops", "120x160"], "--crops 120x160 is larger than --image_size 96x128"),
        (["--crops", "48x64,96x129"], "--crops 96x129 is larger than --image_size 96x128"),
        (["--crops", "32x64"], "--crops 32x64 is under 32 pixels at the network's scale"),
        *((["--crops", c], "--crops: .* is not HEIGHTxWIDTH, such as 480x640")
          for c in ("big", "48", "48x", "48x64,", "", "48x-64", "0x0", "48x64;96x128")),
        (["--image_size", "0x0"], "--image_size: .*is not HEIGHTxWIDTH"),
        *((["--image_size", i, "--crops", "none"], f"--image_size {i} is smaller.*16x24")
          for i in ("15x24", "16x23")),
        (["--size", "100x100"], "100"),
        *((["--weights", w], "--weights: .*four weights")
          for w in ("1,2", "0,0,0,0", "1,1,1,-1", "1,1,1,nan", "a,b,c,d", "")),
        *((["--intrinsics", k], "--intrinsics: .*is not fx,fy,cx,cy with positive fx and fy")
          for k in ("1,2,3", "0,1,2,3", "1,-1,2,3", "1,1,nan,3", "inf,1,1,1", "")),
        (["--resume", "nowhere.pt"], "nowhere.pt: no such checkpoint"),
        (["--epochs", "0"], "--epochs, --batch_size and --val_every must be 1 or more"),
        (["--batch_size", "0"], "--epochs, --batch_size and --val_every must be 1 or more"),
        (["--val_every", "0"], "--epochs, --batch_size and --val_every must be 1 or more"),
        (["--epochs", "-1"], "--epochs: '-1' is not a whole number"),
        (["--batch_size", "4.5"], "--batch_size: '4.5' is not a whole number"),
        (["--depth_scale", "0"], "--depth_scale: '0' is not a positive number"),
        (["--depth_scale", "nan"], "--depth_scale: 'nan' is not a positive number"),
        (["--rotate_prob", "1.5"], "--rotate_prob: '1.5' is not a probability"),
        (["--max_angle", "-1"], "--max_angle: '-1' is not a number of 0 or more"),
        (["--gamma", "1.1,0.9"], "--gamma: .*LOW <= HIGH"),
        (["--brightness", "1"], "--brightness: .*not a positive number"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_sec41_bad_flags_are_refused_in_one_line(rgbd, tmp_path, capsys, more, message):
    text = why_not_writable(flags(rgbd, tmp_path / "out", *more), capsys)
    assert re.search(message, text), text


def test_sec41_resume_from_what_is_no_checkpoint(rgbd, tmp_path, capsys):
    path = tmp_path / "w.pt"
    path.write_text("not weights")
    assert str(path) in why_not_writable(flags(rgbd, tmp_path / "out", "--resume", str(path)), capsys)
    torch.save({"conv_stem.weight": torch.zeros(3)}, path)
    text = why_not_writable(flags(rgbd, tmp_path / "out", "--resume", str(path)), capsys)
    assert f"{path}: not a LiteDepth checkpoint" in text and "--pretrained" in text


def test_sec41_refusals_of_the_script_exit_with_2(tmp_path, make_rgbd):
    root = make_rgbd(tmp_path / "set", train=6, val=1)
    save_jpeg(root, 0.9)
    out = tmp_path / "out"
    trials = {
        "is larger than": flags(root, out, "--split", "val", "--crops", "480x640"),
        "sample_4.jpg: cut short": flags(root, out),
    }
    command = [sys.executable, str(ROOT / "train.py")]
    running = {
        message: subprocess.Popen(
            [*command, *argv], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for message, argv in trials.items()
    }  # fmt: skip
    for message, process in running.items():
        printed, errors = process.communicate(timeout=100)
        assert process.returncode == 2 and printed == ""
        assert "Traceback" not in errors
        (line,) = lines_of(errors, "train.py: error: ")
        assert message in line and errors.splitlines()[-1] == line
    assert not out.exists()


def test_sec41_cv2_reads_a_jpeg_cut_short_without_complaint(tmp_path):
    """Why end marks are looked at: what follows the cut is grey."""
    bgr = cv2.imread(str(write(tmp_path / "a.png", np.full((96, 128, 3), 250, np.uint8))))
    bgr[::2, ::2] = np.random.default_rng(0).integers(0, 256, (48, 64, 3))
    path = write(tmp_path / "a.jpg", bgr)
    whole = cv2.imread(str(path)).astype(int)
    cut(path)
    read = cv2.imread(str(path))
    assert read.shape == bgr.shape
    assert np.abs(read - whole)[:16].max() == 0 and np.abs(read - whole)[-24:].mean() > 30
    depth = write(tmp_path / "a_depth.png", U16)
    pair = Pair(path, depth, "", tmp_path)
    for refuse in (lambda: check_files([pair]), lambda: read_pair(pair, SIZE, K0, {})):
        with pytest.raises(DataError, match="a.jpg: cut short"):
            refuse()


# Sec. 4.1: files that go bad while training ------------------------------------------------------


def loader_of(pairs: list[Pair], **changes) -> data.Loader:
    """A Loader, by itself without a pack; its images are 0..255, the padding 0."""
    reading = {
        "image_size": SIZE, "intrinsics": K0, "depth_scale": 1000.0, "threads": 2,
        "ram_cache": 0.0, "teacher": None, "cache": "none", "root": Path("."), "name": "train",
    }  # fmt: skip
    loading = {
        "batch_size": 4, "seed": 0, "augment": AUGMENT, "crop_batch": "pad", "image_size": SIZE,
        "size": NET, "mean": (0.0,) * 3, "std": (1.0,) * 3, "depth_scale": 1000.0,
        "silog_eps": 1e-3, "vnl_share": 0.15, "gt_down": "cell", "kernels": data.kernels("cpp"),
        "threads": 2,
    }  # fmt: skip
    reader = open_reader(pairs, **{k: changes.get(k, v) for k, v in reading.items()})
    rest = {k: v for k, v in changes.items() if k in loading or k not in reading}
    return data.Loader(reader, **{**loading, **rest})


@pytest.fixture
def make_loader():
    """make_loader(pairs, **changes): a Loader for the tiny pictures, closed after the test."""
    made = []

    def make(pairs: list[Pair], **changes) -> data.Loader:
        made.append(loader_of(pairs, **changes))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


@pytest.fixture(scope="module")
def pairs(rgbd):
    return list_pairs(rgbd, "train")


def copies(batches) -> list[dict[str, torch.Tensor]]:
    """What belongs to samples; a batch's triplets belong to its step."""
    return [{k: v.clone() for k, v in b.items() if k != "triplets"} for b in batches]


def joined(batches: list[dict]) -> dict[str, torch.Tensor]:
    return {k: torch.cat([b[k] for b in batches]) for k in batches[0]}

def assert_same(one: dict, two: dict) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]), name


def test_sec41_a_pair_that_goes_bad_is_named_once_and_replaced(
    tmp_path, make_rgbd, make_loader, capsys
):
    root = make_rgbd(tmp_path)
    pairs = open_split(root, "train", 1000.0)
    loader = make_loader(pairs)
    capsys.readouterr()
    before = copies(loader.epoch(0))
    (root / "train/rgb/sample_2.png").unlink()
    cut(root / "train/depth/sample_7.png")
    write(root / "train/depth/sample_5.png", U8)
    after = copies(loader.epoch(0))
    assert [len(b["image"]) for b in after] == [4, 4]
    swap = {2: 3, 5: 6, 7: 0}  # the pair after it, and the first one after the last
    expected = [swap.get(int(i), int(i)) for i in joined(before)["index"]]
    assert joined(after)["index"].tolist() == expected
    good = torch.tensor([int(i) not in swap for i in joined(before)["index"]])
    pick = [{k: v[good] for k, v in joined(b).items()} for b in (before, after)]
    assert_same(*pick)
    for epoch in (1, 2):
        copies(loader.epoch(epoch))
    notes = lines_of(capsys.readouterr().err)
    assert len(notes) == 3 and all(n.startswith("note: skipped: ") for n in notes)
    assert sorted(Path(name).stem[-1] for name in loader.failed) == ["2", "5", "7"]
    for text in ("rgb/sample_2.png: cannot be r", "sample_5.png: not a 16", "sample_7.png: cut"):
        assert sum(text in n for n in notes) == 1


def test_sec41_neighbours_that_go_bad_are_named_once_each(
    tmp_path, make_rgbd, make_loader, capsys, monkeypatch
):
    """Two threads meet the same bad pair: one as its own, one in place of the pair before."""
    root = make_rgbd(tmp_path)
    pairs = list_pairs(root, "train")
    for k in (2, 3, 4, 5):
        pairs[k].rgb.unlink()
    say = notice
    monkeypatch.setattr(plumbing.files, "notice", lambda text: time.sleep(0.01) or say(text))
    for seed in range(5):
        loader = make_loader(pairs, threads=8, batch_size=8, seed=seed)
        copies(loader.epoch(0))
        assert len(lines_of(capsys.readouterr().err)) == len(loader.failed) == 4


def test_sec41_when_nothing_can_be_read_any_more(tmp_path, make_rgbd, make_loader):
    pairs = list_pairs(make_rgbd(tmp_path), "train")
    loader = make_loader(pairs)
    for pair in pairs:
        pair.depth.write_bytes(b"")
    with pytest.raises(DataError, match="not one of 8 pairs can be read; the last: .*empty"):
        next(loader.epoch(0))


@pytest.mark.parametrize("ram_cache, reads", [(1.0, 8), (0.0, 16), (3.5 * 5 * 96 * 128e-9, 13)])
def test_sec41_decoded_pairs_are_kept_while_there_is_room(
    pairs, make_loader, monkeypatch, ram_cache, reads
):
    read, calls = read_pair, []
    monkeypatch.setattr(plumbing.pairs, "read_pair", lambda *a: calls.append(1) or read(*a))
    loader = make_loader(pairs, ram_cache=ram_cache, threads=1)
    first, second = copies(loader.epoch(0)), copies(loader.epoch(0))
    assert_same(joined(first), joined(second))
    assert len(calls) == reads


# Sec. 3.2: what is drawn -------------------------------------------------------------------------


def each(d: data.Draw) -> list[data.Draw]:
    """Its samples, one by one."""
    return [data.Draw(tuple(crop.tolist()), affine, lut) for crop, affine, lut in zip(*d)]


def draws(count: int, size=SIZE, **changes) -> list[data.Draw]:
    return each(data.draw(1, 2, range(count), size, AUGMENT._replace(**changes)))


def chi_square(values, kinds) -> float:
    """Of a uniform distribution over `kinds`, per degree of freedom: about 1."""
    counts = np.array([sum(v == k for v in values) for k in kinds])
    assert counts.sum() == len(values)
    expected = len(values) / len(kinds)
    return float(((counts - expected) ** 2 / expected).sum() / max(len(kinds) - 1, 1))


def test_sec32_crop_sizes_are_uniform():
    crops = ((240, 384), (384, 512), (480, 640))
    some = draws(1500, (480, 640), crops=crops)
    assert chi_square([d.crop for d in some], crops) < 4.6  # p = 0.01


def test_sec32_crop_places_are_uniform_and_reach_both_ends():
    some = draws(1500, crops=((92, 121),), rotate_prob=0.0, flip_prob=0.0)
    for axis, last in ((0, 7), (1, 4)):  # left 0..7, top 0..4
        at = [d.affine[axis, 2] for d in some]
        assert chi_square(at, range(last + 1)) < 3
    assert all((d.affine[:, :2] == np.eye(2)).all() for d in some)
    flipped = draws(500, crops=((92, 121),), rotate_prob=0.0, flip_prob=1.0)
    right = {127 - d.affine[0, 2] for d in flipped}  # of the mirrored picture, from its left
    assert right == set(range(8))


def test_sec32_one_crop_size_and_none():
    assert {d.crop for d in draws(50, crops=((64, 96),))} == {(64, 96)}
    for d in draws(50, crops=(), rotate_prob=0.0, flip_prob=0.0):
        assert d.crop == SIZE and (d.affine == np.eye(2, 3)).all()
    for d in each(data.draw(1, 2, [3, 5], SIZE, None)):
        assert d.crop == SIZE and (d.affine == np.eye(2, 3)).all()
        assert (d.lut == np.arange(256)).all() and d.lut.dtype == np.float32


def test_sec32_flip_and_rotation_probability_and_range():
    for probability in (0.0, 0.3, 1.0):
        flips = [d.affine[0, 0] < 0 for d in draws(800, flip_prob=probability)]
        assert abs(np.mean(flips) - probability) < 0.05
        turned = [d.affine[1, 0] != 0 for d in draws(800, rotate_prob=probability)]
        assert abs(np.mean(turned) - probability) < 0.05
    some = draws(800, rotate_prob=1.0, max_angle=2.5)
    angles = np.degrees([math.atan2(d.affine[0, 1], d.affine[1, 1]) for d in some])
    assert -2.5 <= angles.min() < -2.45 and 2.45 < angles.max() <= 2.5
    quarters = np.histogram(angles, np.linspace(-2.5, 2.5, 5))[0]
    assert np.abs(quarters - 200).max() < 45
    assert all(d.affine[1, 0] == 0 for d in draws(50, rotate_prob=1.0, max_angle=0.0))
    both = np.array([[d.affine[0, 0] < 0, d.affine[1, 0] != 0] for d in draws(2000)])
    assert abs(np.corrcoef(both.T)[0, 1]) < 0.08  # one does not decide the other


def released_order(picture: np.ndarray, d: data.Draw, flags: int) -> np.ndarray:
    """The draw carried out by OpenCV step by step: rotate, flip, crop, with black beyond.

    cv2.getRotationMatrix2D maps source to canvas, anticlockwise; the draw's angle is clockwise.
    """
    h, w = picture.shape[:2]
    centre = ((w - 1) / 2, (h - 1) / 2)
    flipped = d.affine[0, 0] < 0
    angle = math.degrees(math.atan2(d.affine[0, 1], d.affine[1, 1]))
    M = cv2.getRotationMatrix2D(centre, -angle, 1.0)
    left, top = M[:, :2] @ d.affine[:, 2] + M[:, 2]  # where the canvas' corner is, before the flip
    left = w - 1 - left if flipped else left
    assert abs(left - round(left)) < 1e-9 and abs(top - round(top)) < 1e-9
    top, left = round(top), round(left)
    assert 0 <= top <= h - d.crop[0] and 0 <= left <= w - d.crop[1]
    turned = cv2.warpAffine(picture, M, (w, h), flags=flags)
    turned = turned[:, ::-1] if flipped else turned
    return turned[top : top + d.crop[0], left : left + d.crop[1]]


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("max_angle", [2.5, 30.0])
def test_sec32_content_equals_opencvs_step_by_step(pairs, flip, max_angle):
    sample = read_pair(pairs[0], SIZE, K0, {})
    changes = {"rotate_prob": 1.0, "max_angle": max_angle, "flip_prob": flip}
    for d in draws(6, **changes, gamma=(1, 1), brightness=(1, 1), channel_gain=(1, 1)):
        image, metres = np.empty((3, *SIZE), np.float32), np.empty(SIZE, np.float32)
        pad = np.float32([1, 2, 3])
        data.kernels("cpp").r2_crop(
            sample.rgb, sample.depth, d.affine, d.crop, d.lut, pad, 1000.0, image, metres
        )
        h, w = d.crop
        rgb = released_order(sample.rgb, d, cv2.INTER_LINEAR).transpose(2, 0, 1)
        assert np.abs(image[:, :h, :w] - rgb).max() < 6  # OpenCV rounds positions to 1/32
        assert np.abs(image[:, :h, :w] - rgb).mean() < 0.6
        depth = released_order(sample.depth, d, cv2.INTER_NEAREST)
        assert (np.round(1000 * metres[:h, :w]) == depth).mean() > 0.97


def test_sec32_colour_tables():
    off = {"gamma": (1.0, 1.0), "brightness": (1.0, 1.0), "channel_gain": (1.0, 1.0)}

    def tables(**changes) -> np.ndarray:
        some = np.stack([d.lut for d in draws(800, **{**off, **changes})])
        assert some.dtype == np.float32 and some.min() >= 0 and some.max() <= 255
        assert (some[..., 0] == 0).all() and (np.diff(some) >= 0).all()
        return some

    assert (tables() == np.arange(256)).all()
    # the released jitter: 128 becomes 79 .. 208
    gamma = tables(gamma=(0.9, 1.1))
    assert gamma[..., 128].min() == pytest.approx(128**0.9, rel=0.01)
    assert gamma[..., 128].max() == pytest.approx(128**1.1, rel=0.01)
    assert (gamma[:, 0] == gamma[:, 1]).all() and (gamma[:, 0] == gamma[:, 2]).all()
    assert (gamma == 255).any()  # cut, not wrapped
    mild = tables(gamma=(0.9, 1.1), gamma_unit=True)
    assert np.allclose(mild[..., 255], 255)
    assert mild[..., 128].min() == pytest.approx(255 * (128 / 255) ** 1.1, rel=0.002)
    assert mild[..., 128].max() == pytest.approx(255 * (128 / 255) ** 0.9, rel=0.002)
    common = tables(brightness=(0.75, 1.25))[..., 100] / 100
    assert (common[:, 0] == common[:, 1]).all() and (common[:, 0] == common[:, 2]).all()
    assert common.min() == pytest.approx(0.75, abs=0.01) and common.min() >= 0.7499
    assert common.max() == pytest.approx(1.25, abs=0.01) and common.mean() == pytest.approx(1, 0.02)
    own = tables(channel_gain=(0.9, 1.1))[..., 100] / 100
    assert own.min() == pytest.approx(0.9, abs=0.01) and own.max() == pytest.approx(1.1, abs=0.01)
    assert np.abs(np.corrcoef(own.T) - np.eye(3)).max() < 0.15
    assert own.min() >= 0.8999 and own.max() <= 1.1001
    # all at once: power first, then both gains
    for d in draws(40):
        power = np.log(d.lut[:, 40] / d.lut[:, 20]) / np.log(2)
        assert np.allclose(power, power[0], atol=1e-4) and 0.9 <= power[0] <= 1.1
        gain = d.lut[:, 20] / 20 ** power[0]
        assert (0.75 * 0.9 - 1e-3 <= gain).all() and (gain <= 1.25 * 1.1 + 1e-3).all()


# Sec. 3.2: one map for picture, depth and intrinsics ----------------------------------------------


@pytest.mark.parametrize("kernels", ["cpp", "python"])
@pytest.mark.parametrize(
    "size, net, square, crops, count",
    [
        (SIZE, NET, np.s_[24:66, 40:84], ((64, 96), (96, 128)), 60),
        ((480, 640), (128, 160), np.s_[90:310, 200:420], ((384, 512), (480, 640)), 6),
    ],
)
def test_sec32_picture_and_depth_stay_together(
    tmp_path, make_loader, kernels, size, net, square, crops, count
):
    """A red square 7 m away on grey 2 m away: red and 7 m coincide wherever they end up."""
    bgr, depth = np.full((*size, 3), 40, np.uint8), np.full(size, 2000, np.uint16)
    bgr[square], depth[square] = (40, 40, 240), 7000
    pair = pair_of(tmp_path, bgr, depth)
    loader = make_loader(
        [pair] * count, image_size=size, size=net, batch_size=count // 2, threads=1,
        kernels=data.kernels(kernels), augment=COLOURLESS._replace(crops=crops, max_angle=4.0),
    )  # fmt: skip
    offsets = []
    scale = np.array([net[1] / size[1], net[0] / size[0]])
    for batch in loader.epoch(0):
        assert set(batch["depth"].unique().tolist()) <= {0.0, 2.0, 7.0}
        for image, metres in zip(batch["image"].numpy(), batch["depth"][:, 0].numpy()):
            red = np.clip((image[0] - image[2]) / 200, 0, 1)
            far = (metres == 7).astype(np.float32)
            v = np.round((np.arange(net[0]) + 0.5) / scale[1] - 0.5).astype(int)
            u = np.round((np.arange(net[1]) + 0.5) / scale[0] - 0.5).astype(int)
            seen = far[np.ix_(v, u)]
            inner, outer = (f(seen, np.ones((3, 3))) for f in (cv2.erode, cv2.dilate))
            inside_crop = (image != 0).any(0)
            assert (red >= 0.5)[(inner > 0) & inside_crop].all() and not red[outer == 0].any()
            if far.sum() > 0.98 * depth[square].size:  # the whole square is on the canvas
                offsets.append(centre_of(red) - ((centre_of(far) + 0.5) * scale - 0.5))
    assert len(offsets) > count / 8
    assert np.abs(offsets).max() < 0.35
    assert np.abs(np.mean(offsets, 0)).max() < 0.12  # no half pixel between the two


def test_sec32_holes_are_never_blended(pairs, make_loader):
    loader = make_loader(pairs)
    sources = [set(np.unique(read_pair(p, SIZE, K0, {}).depth).tolist()) for p in pairs]
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            for index, depth in zip(batch["index"], batch["depth"].numpy()):
                raw = np.round(depth * 1000).astype(int)
                assert set(np.unique(raw).tolist()) <= sources[index]
                assert (depth == raw.astype(np.float32) / np.float32(1000)).all()


def test_sec32_crops_sit_in_the_corner_of_a_mean_canvas(pairs, make_loader):
    for crop, (rows, cols) in {(48, 64): (32, 48), (65, 96): (43, 72)}.items():
        augment = AUGMENT._replace(crops=(crop,), rotate_prob=0.0)
        for batch in make_loader(pairs, augment=augment, mean=(10.5, 20.5, 30.5)).epoch(0):
            image, depth = batch["image"], batch["depth"]
            beyond = torch.ones(NET, dtype=torch.bool)
            beyond[:rows, :cols] = False
            assert (image == 0)[:, :, beyond].all()  # the mean colour, by Eq. 1
            assert (image != 0)[:, :, :rows, :cols].float().mean() > 0.95
            assert not depth[:, :, crop[0] :].any() and not depth[:, :, :, crop[1] :].any()
            assert (depth[:, :, : crop[0], : crop[1]] > 0).float().mean() > 0.4
            low = batch["depth_low"]
            assert not low[:, :, math.ceil(crop[0] / 6) :].any()
            assert not low[:, :, :, math.ceil(crop[1] * 24 / 128) :].any()


@pytest.mark.parametrize("kernels", ["cpp", "python"])
def test_sec32_extent_is_what_the_crop_fills(pairs, make_loader, kernels):
    """Told apart by a mean that no picture can have: black stands for beyond the source."""
    seen = set()
    options = {"mean": (-1.0, -2.0, -3.0), "kernels": data.kernels(kernels)}
    crops = ((48, 64), (49, 43), (65, 96), (95, 127), (96, 128))
    for augment in (AUGMENT._replace(crops=crops, max_angle=20.0), None):
        loader = make_loader(pairs, augment=augment, **options)
        for batch in (b for epoch in range(4) for b in loader.epoch(epoch)):
            for image, (rows, cols) in zip(batch["image"], batch["extent"].tolist()):
                assert (image != 0)[:, :rows, :cols].all()
                image[:, :rows, :cols] = 0
                assert (image == 0).all()
                seen.add((rows, cols))
    assert seen == {(32, 48), (32, 32), (43, 72), (63, 95), (64, 96)}


@pytest.mark.parametrize("large", [False, True])
def test_sec32_without_augmentation_the_picture_is_opencvs_resize(
    rgbd, rgbd_large, make_loader, large
):
    size, net = ((480, 640), (128, 160)) if large else (SIZE, NET)
    pairs = list_pairs(rgbd_large if large else rgbd, "train")[:2]
    loader = make_loader(pairs, augment=None, image_size=size, size=net, batch_size=2)
    (batch,) = loader.epoch(0)
    for i, index in enumerate(batch["index"]):
        sample = read_pair(pairs[index], size, K0, {})
        rgb = sample.rgb.astype(np.float32)  # on bytes OpenCV's weights are coarse
        resized = cv2.resize(rgb, net[::-1], interpolation=cv2.INTER_LINEAR)
        difference = batch["image"][i].permute(1, 2, 0).numpy() - resized
        assert np.abs(difference).max() < 0.501
        metres = sample.depth.astype(np.float32) / np.float32(1000)
        np.testing.assert_array_equal(batch["depth"][i, 0].numpy(), metres)
        np.testing.assert_array_equal(batch["K"][i].numpy(), np.float32(K0))


def test_sec32_intrinsics_follow_the_picture():
    """A ball in the world, seen before and after: the new K projects it where it is seen.

    The world is mirrored by a flip and rolled by a rotation.
    """
    K, (X, Y, Z) = np.array([110.0, 110.0, 60.0, 50.0]), (0.12, -0.1, 2.0)
    u, v = K[:2] * [X / Z, Y / Z] + K[2:]
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    ball = 255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 30)
    rgb = np.repeat(ball[..., None], 3, 2).astype(np.uint8)
    changes = {"crops": ((64, 96), (96, 128)), "rotate_prob": 0.7, "max_angle": 25.0}
    seen = 0
    for d in draws(40, **changes, gamma=(1, 1), brightness=(1, 1), channel_gain=(1, 1)):
        image, metres = np.zeros((3, *SIZE), np.float32), np.zeros(SIZE, np.float32)
        data.r2_crop(
            rgb, np.ones(SIZE, np.uint16), d.affine, d.crop, d.lut, np.zeros(3, np.float32), 1.0,
            image, metres,
        )  # fmt: skip
        fx, fy, cx, cy = data.intrinsics_after(K[None], d.affine[None])[0]
        assert (fx, fy) == (110, 110)
        assert np.allclose(d.affine[:, :2] @ d.affine[:, :2].T, np.eye(2))
        x, y = d.affine[:, :2].T @ [X, Y]  # the point in the mirrored and rolled world
        there = np.array([fx * x / Z + cx, fy * y / Z + cy])
        if 14 < there[0] < d.crop[1] - 14 and 14 < there[1] < d.crop[0] - 14:
            seen += 1
            assert np.abs(centre_of(image[0]) - there).max() < 0.1
    assert seen > 15
    mirror = np.array([[-1.0, 0, 127], [0, 1, 0]])
    shifted = np.array([[1.0, 0, 30], [0, 1, 20]])
    K = np.array([[100.0, 120, 60, 50]] * 2)
    after = data.intrinsics_after(K, np.stack([mirror, shifted]))
    assert after.tolist() == [[100, 120, 67, 50], [100, 120, 30, 30]]


# Sec. 3.2: batches -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(pairs):
    """Epoch 0 of the plain loader, one thread, as one batch of 8."""
    loader = loader_of(pairs, batch_size=8, threads=1)
    batches = copies(loader.epoch(0))
    loader.close()
    return joined(batches)


def test_sec32_a_batch_is_as_documented(reference, pairs):
    n, (H, W), (h, w) = len(pairs), SIZE, NET
    low = (n, 1, h // 4, w // 4)
    assert {k: (tuple(v.shape), v.dtype) for k, v in reference.items()} == {
        "image": ((n, 3, h, w), torch.float32), "depth": ((n, 1, H, W), torch.float32),
        "depth_low": (low, torch.float32), "grad_x": (low, torch.float32),
        "grad_y": (low, torch.float32), "M_x": (low, torch.bool), "M_y": (low, torch.bool),
        "K": ((n, 4), torch.float32), "index": ((n,), torch.int64),
        "extent": ((n, 2), torch.int64), "cell_n": (low, torch.float32),
        "cell_mean": (low, torch.float32), "cell_M2": (low, torch.float32),
    }  # fmt: skip
    assert sorted(reference["index"].tolist()) == list(range(n))
    assert reference["image"].min() >= 0 and reference["image"].max() <= 255
    affine = data.draw(0, 0, reference["index"].tolist(), SIZE, AUGMENT).affine
    K = data.intrinsics_after(np.array([K0] * n), affine)
    assert np.allclose(reference["K"].numpy(), K, rtol=1e-6)
    assert len(reference["K"].unique(dim=0)) > 4
    assert 0.6 < reference["depth"][reference["depth"] > 0].min()
    assert reference["depth"].max() < 40


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_sec32_samples_do_not_depend_on_threads_or_batch_size(
    pairs, make_loader, reference, threads, batch_size
):
    loader = make_loader(pairs, threads=threads, batch_size=batch_size, ram_cache=1.0)
    batches = copies(loader.epoch(0))
    assert len(batches) == len(loader) == 8 // batch_size
    assert_same(joined(batches), reference)


def test_sec32_samples_are_keyed_by_seed_epoch_and_index(pairs, make_loader, reference):
    by_index = reference["index"].argsort()
    for changes, epoch in (({"seed": 1}, 0), ({}, 1)):
        other = joined(copies(make_loader(pairs, **changes).epoch(epoch)))
        again = joined(copies(make_loader(pairs, **changes).epoch(epoch)))
        assert_same(other, again)
        assert other["index"].tolist() != reference["index"].tolist()
        at = other["index"].argsort()
        assert not any(
            torch.equal(other["image"][a], reference["image"][b]) for a, b in zip(at, by_index)
        )
    keys = [(0, 0, [0]), (0, 0, [1]), (0, 1, [0]), (1, 0, [0]), (0, 1, [1])]
    assert len({data.draw(*k, SIZE, AUGMENT).lut.tobytes() for k in keys}) == len(keys)


@pytest.mark.parametrize("start", [1, 3, 4, 8])
def test_sec32_a_resumed_epoch_is_the_tail_of_the_whole(pairs, make_loader, start):
    loader = make_loader(pairs, batch_size=1)
    whole, tail = copies(loader.epoch(5)), copies(loader.epoch(5, start))
    assert len(tail) == 8 - start
    for one, two in zip(whole[start:], tail):
        assert_same(one, two)


@pytest.mark.parametrize("batch_size", [4, 3])
def test_sec32_the_shares_of_two_processes_make_the_batches_of_one(pairs, make_loader, batch_size):
    whole = copies(make_loader(pairs, batch_size=batch_size).epoch(0))
    ranks = [make_loader(pairs, batch_size=batch_size, rank=r, world=2) for r in (0, 1)]
    shares = [copies(loader.epoch(0)) for loader in ranks]
    assert [len(s) for s in shares] == [len(whole)] * 2
    for one, *two in zip(whole, *shares):
        assert_same(one, joined(two))
    with pytest.raises(DataError, match="a batch of 1 cannot be shared by 2 processes"):
        make_loader(pairs, batch_size=1, world=2)


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_sec32_the_order_covers_every_pair_at_most_once(pairs, make_loader, batch_size):
    loader = make_loader(pairs, batch_size=batch_size)
    left_out = set()
    for epoch in range(20):
        order = loader.order(epoch)
        assert order.shape == (8 // batch_size, batch_size)
        assert len(set(order.ravel())) == order.size
        left_out |= set(range(8)) - set(order.ravel().tolist())
    assert left_out == (set(range(8)) if batch_size == 3 else set())  # not always the same ones
    firsts = {tuple(loader.order(e)[0]) for e in range(20)}
    assert len(firsts) > 10


def test_sec33_gradients_and_low_depth_are_those_of_the_equations(reference):
    low = reference["depth_low"]
    assert 0.2 < (low > 0).float().mean() < 0.95 and reference["M_x"].any()
    for name, expected in zip(("grad_x", "grad_y", "M_x", "M_y"), losses.gt_gradient(low)):
        assert torch.equal(reference[name], expected), name
    twin = np.empty(low.shape[2:], np.float32)
    for depth, given in zip(reference["depth"][:, 0].numpy(), low[:, 0].numpy()):
        data.gt_down(depth, twin, "cell")
        np.testing.assert_array_equal(given, twin)
        v, u = np.arange(96) * 16 // 96, np.arange(128) * 24 // 128
        for i, j in ((0, 0), (3, 7), (7, 11), (15, 23)):
            cell = depth[np.ix_(v == i, u == j)]
            valid = cell[cell > 0]
            assert given[i, j] == pytest.approx(valid.mean() if valid.size else 0, rel=1e-5)


@pytest.mark.parametrize("mode", ["cell", "nearest", "bilinear"])
def test_sec32_python_and_cpp_kernels_make_the_same_batches(pairs, make_loader, mode):
    one, two = (
        joined(copies(make_loader(pairs, kernels=data.kernels(k), gt_down=mode).epoch(0)))
        for k in ("cpp", "python")
    )
    assert_same(one, two)
    assert data.kernels("cpp").r2_crop is not data.kernels("python").r2_crop is data.r2_crop


@pytest.mark.parametrize("batch_size", [1, 2])
def test_sec32_a_batch_stays_until_the_next_is_asked_for(pairs, make_loader, batch_size):
    loader = make_loader(pairs, batch_size=batch_size, threads=4, ram_cache=1.0)
    copies(loader.epoch(0))  # everything is decoded: from here on threads run far ahead
    kept = []
    for batch in loader.epoch(0):
        kept.append({k: v.clone() for k, v in batch.items()})
        time.sleep(0.01)
        assert_same(batch, kept[-1])
    assert_same(joined(copies(kept)), joined(copies(make_loader(pairs, threads=1).epoch(0))))


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_sec32_leaving_an_epoch_early_is_safe(pairs, make_loader, taken):
    """Samples still under way must not land in the buffers of the next epoch."""
    cpp, late = data.kernels("cpp"), {"s": 0.0}

    def slow(*args):
        time.sleep(late["s"] * np.random.default_rng(int(args[2].sum() * 99) % 1000).random())
        cpp.r2_batch(*args)

    loader = make_loader(
        pairs, batch_size=1, threads=3, ram_cache=1.0, kernels=cpp._replace(r2_batch=slow)
    )
    expected = copies(loader.epoch(1))
    for _ in range(3):
        late["s"] = 0.06
        epoch = loader.epoch(0)
        for _ in range(taken):
            next(epoch)
        epoch.close()
        late["s"] = 0.0
        for one, two in zip(copies(loader.epoch(1)), expected, strict=True):
            assert_same(one, two)


def test_sec32_a_batch_shrinks_to_a_small_set(pairs, make_loader, capsys):
    loader = make_loader(pairs, batch_size=32)
    assert lines_of(capsys.readouterr().err) == [
        "note: batch size 8, not 32: there are no more pairs"
    ]
    assert loader.batch_size == 8 and len(loader) == 1
    (batch,) = loader.epoch(0)
    assert len(batch["image"]) == 8
    make_loader(pairs, batch_size=32, rank=1, world=2)
    make_loader(pairs, batch_size=8)
    assert capsys.readouterr().err == ""


def test_sec33_a_step_on_the_loaders_gradients_equals_eq8s(reference):
    """One training step, with the kernels' gradients and with losses.gt_gradient's."""
    args = train.make_parser().parse_args(["--pretrained", "none"])
    results = []
    for substitute in (False, True):
        torch.manual_seed(0)
        network = model.LiteDepth(size=NET, decoder="mix", upsample="nearest")
        objective = train.Supervised(network, train.build_loss(args))
        batch = {**reference, "step": 0}
        if substitute:
            made = losses.gt_gradient(reference["depth_low"])
            batch |= dict(zip(("grad_x", "grad_y", "M_x", "M_y"), made))
        loss, terms = objective(batch)
        loss.backward()
        assert terms["grad"] > 0
        results.append((loss.detach(), network.encoder.conv_stem.weight.grad))
    assert torch.equal(results[0][0], results[1][0]) and results[0][0].isfinite()
    assert torch.equal(results[0][1], results[1][1])


# Sec. 3.2: one crop size per batch ----------------------------------------------------------------

SIZES = ((48, 80), (72, 96), (96, 128))  # of 96x128; NET is 64x96
MANY = AUGMENT._replace(crops=SIZES)


def test_sec32_network_size_is_the_crops_share_in_32s():
    full = (480, 640), (128, 160)
    by_hand = {
        (480, 640): (128, 160), (384, 512): (96, 128), (360, 512): (96, 128), (240, 384): (64, 96),
        (144, 256): (32, 64), (120, 128): (32, 32), (420, 480): (128, 128), (418, 479): (96, 128),
    }  # fmt: skip
    for crop, size in by_hand.items():
        assert data.network_size(crop, *full) == size, crop


def test_sec32_one_size_per_batch_leaves_nothing_to_pad(pairs, make_loader):
    loader = make_loader(pairs, augment=MANY, crop_batch="size", batch_size=2, mean=(-1.0,) * 3)
    seen = []
    for epoch in range(30):
        for batch in loader.epoch(epoch):
            canvas, size = tuple(batch["depth"].shape[2:]), tuple(batch["image"].shape[2:])
            assert canvas in SIZES and size == data.network_size(canvas, SIZE, NET)
            assert batch["extent"].tolist() == [list(size)] * 2
            assert (batch["image"] != 0).all()  # black is 1, the padding would be 0
            for name in (*data.LOW, *data.CELLS):
                assert batch[name].shape == (2, 1, size[0] // 4, size[1] // 4)
                assert batch[name].is_contiguous()
            assert batch["triplets"].shape[1] == int(0.15 * size[0] * size[1] / 16)
            seen.append(canvas)
    assert chi_square(seen, SIZES) < 4.6  # p = 0.01
    assert len(set(zip(seen[::4], seen[1::4]))) > 3  # an epoch's batches differ


def test_sec32_one_size_per_batch_is_the_same_for_all(pairs, make_loader):
    """Threads, slots, resumed epochs and processes: the size hangs on the batch's number."""
    options = {"augment": MANY, "crop_batch": "size", "batch_size": 2}
    whole = copies(make_loader(pairs, **options).epoch(3))
    assert len({b["depth"].shape for b in whole}) > 1
    for one, two in zip(whole, copies(make_loader(pairs, **options, threads=5).epoch(3))):
        assert_same(one, two)
    for one, two in zip(whole[2:], copies(make_loader(pairs, **options).epoch(3, 2)), strict=True):
        assert_same(one, two)
    ranks = [copies(make_loader(pairs, **options, rank=r, world=2).epoch(3)) for r in (0, 1)]
    for one, *two in zip(whole, *ranks, strict=True):
        assert_same(one, joined(two))


def test_sec32_one_size_per_batch_crops_and_resizes_as_opencv_does(pairs, make_loader):
    still = COLOURLESS._replace(crops=((72, 96),), rotate_prob=0.0, flip_prob=0.0)
    loader = make_loader(pairs, augment=still, crop_batch="size")
    for batch in loader.epoch(0):
        drawn = data.draw(0, 0, batch["index"].tolist(), SIZE, still, (72, 96))
        for i, index in enumerate(batch["index"].tolist()):
            sample = read_pair(pairs[index], SIZE, K0, {})
            left, top = drawn.affine[i, :, 2].astype(int)
            inside = np.s_[top : top + 72, left : left + 96]
            np.testing.assert_array_equal(
                batch["depth"][i, 0].numpy(), sample.depth[inside] / np.float32(1000)
            )
            rgb = sample.rgb[inside].astype(np.float32)
            net = data.network_size((72, 96), SIZE, NET)
            rgb = cv2.resize(rgb, net[::-1], interpolation=cv2.INTER_LINEAR)
            image = batch["image"][i].permute(1, 2, 0).numpy()
            # taps one pixel beyond the crop are the picture's, where OpenCV repeats the edge
            assert np.abs(image - rgb)[2:-2, 2:-2].max() < 0.501
            K = np.array(K0) - [0, 0, left, top]
            np.testing.assert_allclose(batch["K"][i].numpy(), K, rtol=1e-6)


def test_sec32_without_crops_there_is_one_size(pairs, make_loader):
    for augment in (None, AUGMENT._replace(crops=())):
        one, two = (
            copies(make_loader(pairs, augment=augment, crop_batch=how).epoch(0))
            for how in ("pad", "size")
        )
        assert_same(joined(one), joined(two))


def test_eq9_triplets_of_a_batch_are_those_of_its_step(pairs, make_loader):
    loader = make_loader(pairs, batch_size=2, seed=7)
    made = [b["triplets"].clone() for epoch in (0, 1) for b in loader.epoch(epoch)]
    made.append(next(iter(loader.epoch(2, 3)))["triplets"])
    pixels = NET[0] * NET[1] // 16
    for step, triplets in zip((*range(8), 11), made, strict=True):
        assert torch.equal(triplets, losses.draw_triplets(7, step, pixels, int(0.15 * pixels)))


@pytest.mark.parametrize("cache", ["none", "auto"])
@pytest.mark.parametrize("how", ["pad", "size"])
def test_a_batch_costs_no_page_faults_once_warm(tmp_path, make_rgbd, make_loader, cache, how):
    """Fresh memory for a batch would be thousands of faults: 39 MB are 9,600 pages."""
    resource = pytest.importorskip("resource")
    root = make_rgbd(tmp_path, train=4, val=1, size=(480, 640))
    loader = make_loader(
        list_pairs(root, "train") * 4, image_size=(480, 640), size=(128, 160), batch_size=4,
        augment=AUGMENT._replace(crops=((240, 384), (384, 512), (480, 640))), crop_batch=how,
        cache=cache, root=root, ram_cache=1.0,
    )  # fmt: skip
    for epoch in range(4):
        for _ in loader.epoch(epoch):
            pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for epoch in range(4, 9):
        for _ in loader.epoch(epoch):
            pass
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults / 20 < 20, faults


def test_the_loaders_thread_leaves_pytorchs_threads_alone(pairs, make_loader):
    """Operations there would get threads of their own beside the network's: see Slot.allocate."""
    loader = make_loader(pairs, batch_size=2, ram_cache=1.0)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    make = loader._make

    def watched(*args):
        with Watch():
            return make(*args)

    loader._make = watched
    for epoch in range(2):
        for _ in loader.epoch(epoch):
            pass
    views = {"view", "slice", "detach", "alias", "lift_fresh"}
    assert seen and {name.split(".")[1] for name in seen} <= views


def test_sec32_a_pack_gives_the_samples_of_the_files(pairs, rgbd, make_loader, places, capsys):
    """All but what it takes to get them: K, the teacher's maps, and which pairs fail."""
    for teacher in (None, [places, None] * 4):
        files, pack, again = (
            joined(copies(make_loader(pairs, teacher=teacher, cache=c, root=rgbd).epoch(0)))
            for c in ("none", "auto", "auto")
        )
        assert_same(files, pack)
        assert_same(files, again)
    assert capsys.readouterr().out.count("(built in") == 2


def test_a_packed_map_that_could_not_be_read_is_remembered(
    tmp_path, make_rgbd, make_loader, capsys
):
    root = make_rgbd(tmp_path)
    pairs = list_pairs(root, "train")
    bad = tmp_path / "bad.npy"
    bad.write_text("no numbers")
    maps = [None, bad, *[None] * 6]
    for text in ("bad.npy: not a whole .npy", "1 map(s) could not be read when train-96x128"):
        make_loader(pairs, teacher=maps, cache="auto", root=root)
        (note,) = lines_of(capsys.readouterr().err)
        assert text in note


def test_sec32_a_pair_that_cannot_be_packed_is_named_and_replaced(
    tmp_path, make_rgbd, make_loader, capsys
):
    root = make_rgbd(tmp_path)
    pairs = list_pairs(root, "train")
    cut(root / "train/depth/sample_5.png")
    for _ in range(2):  # packed, and opened
        loader = make_loader(pairs, cache="auto", root=root)
        seen = joined(copies(loader.epoch(0)))["index"].tolist()
        assert sorted(seen) == [0, 1, 2, 3, 4, 6, 6, 7]
        notes = lines_of(capsys.readouterr().err, "note: skipped: ")
        assert len(notes) == len(loader.failed) == 1 and "sample_5.png: cut short" in notes[0]


def test_reading_cameras_and_units_make_another_pack(pairs, rgbd, make_loader, capsys):
    """What the decoded pairs hang on, beside their files."""
    make_loader(pairs, cache="auto", root=rgbd)
    capsys.readouterr()
    make_loader(pairs, cache="auto", root=rgbd)
    assert "(built in" not in capsys.readouterr().out
    other = (111.0, 112.0, 60.0, 50.0)
    loader = make_loader(pairs, cache="auto", root=rgbd, intrinsics=other)
    assert "(built in" in capsys.readouterr().out
    assert loader.reader.sample(0).K.tolist() == list(other)


# depths of another model, in the holes -----------------------------------------------------------

KEYS = ("depth", *data.LOW, *data.CELLS)
PLACES = (1 + np.arange(SIZE[0] * SIZE[1]).reshape(SIZE)).astype(np.uint16)  # tells each pixel
TURNED = AUGMENT._replace(max_angle=10.0)


def truth_of(pair: Pair) -> np.ndarray:
    return cv2.imread(str(pair.depth), cv2.IMREAD_UNCHANGED)


def with_truth(root: Path, pairs: list[Pair], make) -> list[Pair]:
    """The pairs with other depth pictures: make(k, truth)."""
    return [
        p._replace(depth=write(root / f"{p.rgb.stem}.png", make(k, truth_of(p))))
        for k, p in enumerate(pairs)
    ]


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def of_teacher(batch: dict) -> dict:
    return {k: batch[f"teacher_{k}"] for k in KEYS}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("teacher") / "places.png", PLACES)


@pytest.mark.parametrize("kernels", ["cpp", "python"])
def test_teacher_stands_exactly_in_the_holes_of_the_truth(
    tmp_path, pairs, places, make_loader, kernels
):
    """Against a loader whose truth is the teacher's map: all of it, then with the truth cut out."""
    options = {"augment": TURNED, "kernels": data.kernels(kernels), "threads": 3}
    taught = make_loader(pairs, teacher=[places] * 8, **options)
    whole = make_loader(with_truth(tmp_path / "w", pairs, lambda k, d: PLACES), **options)
    holed = make_loader(
        with_truth(tmp_path / "h", pairs, lambda k, d: np.where(d, 0, PLACES).astype("u2")),
        **options,
    )
    crops, turned = set(), 0
    for epoch in range(3):
        batches = [joined(copies(loader.epoch(epoch))) for loader in (taught, whole, holed)]
        one, two, three = batches
        assert not ((one["teacher_depth"] > 0) & (one["depth"] > 0)).any()
        assert torch.equal(one["teacher_depth"], two["depth"].where(one["depth"] == 0, 0))
        assert (one["teacher_depth"] > 0).float().mean() > 0.05
        assert_same(of_teacher(one), {k: three[k] for k in KEYS})
        for k in ("image", "extent", "K", "index"):
            assert torch.equal(one[k], three[k])
        crops |= {tuple(e) for e in one["extent"].tolist()}
        turned += sum(
            a[1, 0] != 0 for a in data.draw(0, epoch, one["index"].tolist(), SIZE, TURNED).affine
        )
    assert len(crops) == 3 and turned > 5


@pytest.mark.parametrize("mode", ["cell", "nearest", "bilinear"])
def test_teacher_leaves_the_plain_keys_bit_identical(pairs, places, make_loader, mode):
    plain = joined(copies(make_loader(pairs, gt_down=mode).epoch(0)))
    teacher = [places, None] * 4
    taught = joined(copies(make_loader(pairs, gt_down=mode, teacher=teacher).epoch(0)))
    assert taught.keys() - plain.keys() == {f"teacher_{k}" for k in KEYS}
    assert_same({k: taught[k] for k in plain}, plain)
    for k in KEYS:
        made = taught[f"teacher_{k}"]
        assert made.shape == plain[k].shape and made.dtype == plain[k].dtype


def test_teacher_batches_do_not_depend_on_threads_cache_or_slots(pairs, places, make_loader):
    """One map in two is missing: its slot holds nothing of the batches before."""
    teacher = [places if k % 3 else None for k in range(8)]
    expected = [
        joined(copies(make_loader(pairs, teacher=teacher, threads=1, batch_size=8).epoch(e)))
        for e in range(4)
    ]
    for threads, ram_cache, batch_size in ((3, 0.0, 1), (3, 1.0, 2), (1, 1.0, 4)):
        loader = make_loader(
            pairs, teacher=teacher, threads=threads, ram_cache=ram_cache, batch_size=batch_size
        )
        for epoch, one in enumerate(expected):
            assert_same(joined(copies(loader.epoch(epoch))), one)
    for batch in expected:
        has = torch.tensor([teacher[i] is not None for i in batch["index"]])
        assert (batch["teacher_depth"] > 0).flatten(1).any(1).equal(has)
        assert not any(batch[f"teacher_{k}"][~has].any() for k in KEYS)


FORMS = {
    "float32": lambda mm: (mm / 1000).astype(np.float32),
    "float64": lambda mm: mm / 1000,
    "big-endian": lambda mm: (mm / 1000).astype(">f4"),
    "columns first": lambda mm: np.asfortranarray(mm / 1000),
    "1 x 1 x H x W": lambda mm: (mm / 1000)[None, None],
    "H x W x 1": lambda mm: (mm / 1000)[..., None].astype(np.float32),
    "uint16": lambda mm: mm,
}


@pytest.mark.parametrize("form", FORMS)
def test_teacher_npy_in_metres_equals_png_in_millimetres(tmp_path, pairs, make_loader, form):
    mm = np.random.default_rng(0).integers(0, 65536, SIZE, dtype=np.uint16)
    mm[0, :3] = 65535, 1, 0
    png, npy = write(tmp_path / "a.png", mm), save(tmp_path / "a.npy", FORMS[form](mm))
    assert_same(*(joined(copies(make_loader(pairs, teacher=[path] * 8).epoch(0)))
                  for path in (png, npy)))  # fmt: skip
    read = read_teacher(npy, SIZE, 1000.0)
    assert read.dtype == np.uint16 and read.flags.c_contiguous and (read == mm).all()


def test_teacher_npy_is_metres_at_any_depth_scale(tmp_path, pairs, make_loader):
    for dtype in (np.float16, np.float32, np.float64):
        path = save(tmp_path / "a.npy", np.full(SIZE, 3.25, dtype))
        for scale in (1000.0, 256.0, 5000.0):
            loader = make_loader(pairs, teacher=[path] * 8, depth_scale=scale)
            batch = joined(copies(loader.epoch(0)))
            assert batch["teacher_depth"].unique().tolist() == [0.0, 3.25]
            # a cell may hold both: its pixels do not
            both = (batch["teacher_depth_low"] > 0) & (batch["depth_low"] > 0)
            assert both.any() and not ((batch["teacher_depth"] > 0) & (batch["depth"] > 0)).any()
            assert batch["teacher_depth_low"].unique().tolist() == [0.0, 3.25]
            assert not batch["teacher_grad_x"].any() and batch["teacher_M_x"].any()


def test_teacher_depths_that_do_not_fit_are_holes(tmp_path):
    given = {
        np.nan: 0, np.inf: 0, -np.inf: 0, -2.0: 0, 0.0: 0, 0.0004: 0, 65.5356: 0, 65.6: 0,
        1e300: 0, 0.0006: 1, 1.2344: 1234, 1.2346: 1235, 65.535: 65535,
    }  # fmt: skip
    metres = np.full(SIZE, 1.0)
    metres[5, : len(given)] = list(given)
    read = read_teacher(save(tmp_path / "a.npy", metres), SIZE, 1000.0)
    assert read[5, : len(given)].tolist() == list(given.values())
    metres[:] = np.nan  # nothing to teach is no error
    assert not read_teacher(save(tmp_path / "a.npy", metres), SIZE, 1000.0).any()


def test_teacher_maps_of_other_sizes_are_resized_as_truth_is(tmp_path, make_loader):
    rng = np.random.default_rng(0)
    deep = rng.integers(1, 60000, (288, 450), dtype=np.uint16)
    for path in (write(tmp_path / "a.png", deep), save(tmp_path / "a.npy", deep / 1000)):
        read = read_teacher(path, SIZE, 1000.0, (288, 450))
        np.testing.assert_array_equal(read, deep[1::3, 34:417:3])  # 384 of 450 columns
    # through the loader, at the picture's size, at a third and as a network may round it
    bgr = rng.integers(0, 256, (288, 450, 3), dtype=np.uint8)
    pair = pair_of(tmp_path, bgr, np.zeros_like(deep))
    for h, w in ((288, 450), (96, 150), (196, 308)):
        small = rng.integers(1, 60000, (h, w), dtype=np.uint16)
        as_truth = read_pair(pair_of(tmp_path / "t", bgr, small), SIZE, K0, {}).depth
        path = write(tmp_path / "m.png", small)
        sample = make_loader([pair], teacher=[path], batch_size=1).reader.sample(0)
        assert as_truth.any()
        np.testing.assert_array_equal(sample.teacher, as_truth)


BAD_MAPS = {
    "8-bit png": ("png", lambda p: write(p, U8), "depth as uint8: save metres as a float32 .npy"),
    "colour png": ("png", lambda p: write(p, np.dstack([U16] * 3)), r"shape \(96, 128, 3\): one"),
    "jpeg as png": (
        "png", lambda p: write(p.with_suffix(".jpg"), U8).rename(p), "depth as uint8: save metres",
    ),
    "text as png": ("png", lambda p: p.write_text("hello" * 99), "not a JPEG or PNG file; convert"),
    "empty png": ("png", lambda p: p.write_bytes(b""), "an empty file; "),
    "png cut": ("png", lambda p: cut(write(p, PLACES), 0.9), "cut short.*copy it anew"),
    "png of another aspect": (
        "png", lambda p: write(p, U16[:, :96]), "is 96x96, its picture 96x128: another aspect; br",
    ),
    "text as npy": ("npy", lambda p: p.write_text("hello" * 99), "not a whole .npy .*write it ane"),
    "empty npy": ("npy", lambda p: p.write_bytes(b""), "not a whole .npy .*write it anew"),
    "npy cut": ("npy", lambda p: cut(save(p, PLACES), 0.9), "not a whole .npy .*write it anew"),
    "npz as npy": (
        "npy", lambda p: (np.savez(p.with_suffix(".npz"), U16), p.with_suffix(".npz").rename(p)),
        "not a whole .npy .*write it anew",
    ),
    "broken header": (
        "npy", lambda p: p.write_bytes(save(p, PLACES).read_bytes().replace(b"}", b"(")),
        "not a whole .npy .*write it anew",
    ),
    "pickled": ("npy", lambda p: save(p, np.array([{}])), "not a whole .npy .*allow_pickle=False"),
    "a folder": ("npy", lambda p: p.mkdir(), "cannot be read"),
    "no file": ("npy", lambda p: None, "cannot be read .No such file"),
    "stack": ("npy", lambda p: save(p, np.ones((3, *SIZE))), r"shape \(3, 96, 128\): one depth"),
    "row": ("npy", lambda p: save(p, np.ones(96)), r"shape \(96,\): one depth map"),
    "nothing": ("npy", lambda p: save(p, np.ones((0, 128))), r"shape \(0, 128\): one depth map"),
    "npy of another aspect": (
        "npy", lambda p: save(p, np.ones((96, 126))), "is 96x126, its picture 96x128: another asp",
    ),
    **{
        name: ("npy", lambda p, name=name: save(p, np.ones(SIZE, name)),
               f"depth as {name}: save metres as a float32 .npy")
        for name in ("uint8", "int16", "int32", "uint32", "int64", "bool", "complex64")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MAPS)
def test_teacher_bad_maps_are_refused_in_one_line(tmp_path, name):
    suffix, damage, message = BAD_MAPS[name]
    path = tmp_path / f"a.{suffix}"
    damage(path)
    with pytest.raises(DataError, match=message) as why_not_writable:
        read_teacher(path, SIZE, 1000.0)
    assert str(why_not_writable.value).startswith(f"{path}: ") and "\n" not in str(why_not_writable.value)


def test_teacher_map_that_goes_bad_leaves_its_pair_to_the_truth(
    tmp_path, pairs, make_loader, capsys
):
    maps = [save(tmp_path / f"{k}.npy", np.full(SIZE, k + 1.0)) for k in range(8)]
    maps[4].write_bytes(b"")
    write(maps[6].with_suffix(".png"), U8)
    maps[6], maps[1] = maps[6].with_suffix(".png"), None
    loader = make_loader(pairs, teacher=maps, threads=3)
    for epoch in range(3):
        batch = joined(copies(loader.epoch(epoch)))
        for index, depth in zip(batch["index"].tolist(), batch["teacher_depth"]):
            own = [] if index in (1, 4, 6) else [index + 1.0]
            assert depth.unique().tolist() == [0.0, *own]
        plain = joined(copies(make_loader(pairs).epoch(epoch)))
        assert_same({k: batch[k] for k in plain}, plain)
    assert not loader.failed
    notes = sorted(lines_of(capsys.readouterr().err))
    assert len(notes) == 2 and all(n.startswith("note: teacher_depth: ") for n in notes)
    assert "4.npy: not a whole" in notes[0] and "6.png: a teacher's depth as uint8" in notes[1]
    assert all(n.endswith("(taught by the ground truth alone)") for n in notes)


def test_teacher_map_of_the_pair_that_stands_in(tmp_path, make_rgbd, make_loader):
    pairs = list_pairs(make_rgbd(tmp_path / "set"), "train")
    maps = [save(tmp_path / f"{k}.npy", np.full(SIZE, k + 1.0)) for k in range(8)]
    for k in (2, 7):
        pairs[k].rgb.unlink()
    loader = make_loader(pairs, teacher=maps)
    batch = joined(copies(loader.epoch(0)))
    assert sorted(batch["index"].tolist()) == [0, 0, 1, 3, 3, 4, 5, 6] and len(loader.failed) == 2
    for index, depth in zip(batch["index"].tolist(), batch["teacher_depth"]):
        assert depth.unique().tolist() == [0.0, index + 1.0]


def test_teacher_maps_are_kept_and_counted(pairs, places, make_loader, monkeypatch):
    read, calls = read_teacher, []
    monkeypatch.setattr(plumbing.pairs, "read_teacher", lambda *a: calls.append(1) or read(*a))
    for ram_cache, reads in ((1.0, 8), (0.0, 16), (3.5 * 7 * 96 * 128e-9, 13)):
        calls.clear()
        loader = make_loader(pairs, ram_cache=ram_cache, threads=1, teacher=[places] * 8)
        assert_same(*(joined(copies(loader.epoch(0))) for _ in range(2)))
        assert len(calls) == reads
    with pytest.raises(ValueError, match="teacher: 7 maps for 8 pairs"):
        make_loader(pairs, teacher=[places] * 7)


@pytest.mark.parametrize("name", ["{}.npy", "{}.png", "{}_depth.png", "{}_depth.npy"])
@pytest.mark.parametrize("layout", ["folders", "scenes", "lists"])
def test_teacher_maps_go_by_the_stem_of_the_picture(tmp_path, make_rgbd, capsys, name, layout):
    """Scene folders first, then the flat folder; a list's depths have other names."""
    pairs = list_pairs(make_rgbd(tmp_path / "set", layout), "train")
    folder, expected = tmp_path / "maps", []
    for k, pair in enumerate(pairs):
        expected.append(folder / ("" if k % 3 else pair.scene) / name.format(pair.rgb.stem))
        expected[-1].parent.mkdir(parents=True, exist_ok=True)
        expected[-1].touch()
        (folder / f"{pair.rgb.stem}_color.png").touch()  # predict.py's other picture
    assert teacher_maps(pairs, folder) == expected
    assert capsys.readouterr().err == ""
    (folder / name.format(pairs[0].rgb.stem)).touch()  # the scene's folder wins
    assert teacher_maps(pairs, folder) == expected


def test_teacher_maps_that_predict_writes_are_found(tmp_path, make_rgbd):
    """The names and units of predict.py, by itself."""
    pairs = list_pairs(make_rgbd(tmp_path / "set"), "train")
    model.save(tmp_path / "m.pt", model.LiteDepth(size=NET), image_size=list(SIZE))
    command = [str(p.rgb) for p in pairs] + ["--model", str(tmp_path / "m.pt")]
    assert data.predict.main([*command, "--out", str(tmp_path / "out")]) == 0
    maps = open_teacher(pairs, tmp_path / "out", SIZE, 1000.0)
    assert [m.name for m in maps] == [f"sample_{k}_depth.png" for k in range(8)]
    predictor = data.predict.load_predictor(tmp_path / "m.pt")
    metres = predictor(read_pair(pairs[0], SIZE, K0, {}).rgb)
    assert np.abs(read_teacher(maps[0], SIZE, 1000.0) - 1000 * metres).max() <= 0.51


def test_teacher_maps_missing_ones_are_counted_once(tmp_path, pairs, capsys):
    for k in (0, 3, 4, 5, 7):
        (tmp_path / f"sample_{k}.npy").touch()
    maps = teacher_maps(pairs, tmp_path)
    assert [k for k, m in enumerate(maps) if m is None] == [1, 2, 6]
    assert lines_of(capsys.readouterr().err) == [
        f"note: teacher_depth: 3 of 8 pairs have no map in {tmp_path}: taught by the ground truth "
        "alone"
    ]


def test_teacher_maps_refusals(tmp_path, make_rgbd):
    def refused(pairs: list[Pair], message: str, folder: Path = tmp_path / "maps") -> None:
        with pytest.raises(DataError) as why_not_writable:
            teacher_maps(pairs, folder)
        text = str(why_not_writable.value)
        assert re.search(message, text) and str(folder) in text and "\n" not in text, text

    pairs = list_pairs(make_rgbd(tmp_path / "set", "scenes"), "train")
    refused(pairs, "--teacher_depth .*maps: no such folder")
    (tmp_path / "maps").mkdir()
    refused(
        pairs, "no map for any of 8 pairs; looked for sample_0.npy, sample_0.png, "
        "sample_0_depth.png, sample_0_depth.npy in .*maps/hall and .*maps, and so on",
    )  # fmt: skip
    (tmp_path / "file").touch()
    refused(pairs, "no such folder", tmp_path / "file")
    # equal stems in two scenes and one flat folder
    twin = pairs[5].rgb.rename(pairs[5].rgb.with_name("sample_1.png"))
    pairs[5] = pairs[5]._replace(rgb=twin)
    flat = tmp_path / "maps/sample_1.npy"
    flat.touch()
    refused(
        pairs, f"{pairs[1].rgb} and {twin} would both take {flat}: use one sub-folder per scene "
        f".{tmp_path}/maps/hall, {tmp_path}/maps/yard",
    )  # fmt: skip
    (tmp_path / "maps/yard").mkdir()
    (tmp_path / "maps/yard/sample_1.npy").touch()
    teacher_maps(pairs, tmp_path / "maps")  # now each has its own
    # two scenes of one name
    same = [p._replace(scene="yard") for p in pairs]
    refused(same, f"{pairs[1].rgb} and {twin} would .* both are of scene 'yard': rename")
    # one picture twice, as in a list with repeats, is none of that
    assert teacher_maps([pairs[1], pairs[1]], tmp_path / "maps") == [flat] * 2
    (tmp_path / "maps/sample_1_depth.png").touch()
    refused(pairs[:4], f"sample_1.npy and sample_1_depth.png for one picture, {pairs[1].rgb}: keep")


def test_teacher_maps_lists_each_folder_once(tmp_path, monkeypatch):
    pairs = [
        Pair(tmp_path / f"s{k % 7}/rgb/{k}.png", tmp_path, f"s{k % 7}", tmp_path)
        for k in range(5000)
    ]
    for k in range(7):
        (tmp_path / f"maps/s{k}").mkdir(parents=True)
    (tmp_path / "maps/s3/17.npy").touch()
    listdir, calls = data.os.listdir, []
    monkeypatch.setattr(data.os, "listdir", lambda path: calls.append(path) or listdir(path))
    maps = teacher_maps(pairs, tmp_path / "maps")
    assert [m for m in maps if m] == [tmp_path / "maps/s3/17.npy"] == [maps[17]]
    assert len(calls) == 8


@pytest.mark.parametrize("factor", [100.0, 190.0, 1.0, 1000.0])
def test_teacher_maps_in_other_units_are_remarked(tmp_path, pairs, capsys, factor):
    for pair in pairs:
        save(tmp_path / f"{pair.rgb.stem}.npy", truth_of(pair) / 1000 * factor)
    maps = open_teacher(pairs, tmp_path, SIZE, 10.0)
    assert maps == teacher_maps(pairs, tmp_path)
    notes = lines_of(capsys.readouterr().err)
    # the truth is said to be in tenths of a metre: 100 times as far
    expected = factor / 100
    assert len(notes) == (not 0.5 < expected < 2)
    assert all(f"the maps in {tmp_path} are {expected:.3g} times" in n for n in notes)
    write(tmp_path / "sample_3.png", U8)
    (tmp_path / "sample_3.npy").unlink()
    with pytest.raises(DataError, match="sample_3.png: a teacher's depth as uint8"):
        open_teacher(pairs, tmp_path, SIZE, 1000.0)


def test_teacher_has_a_column_in_the_picture_of_a_batch(tmp_path, pairs, make_loader):
    metres = np.full(SIZE, 45.0)
    metres[:, 64:] = 60  # both beyond the truth's: the range is of both
    path = save(tmp_path / "a.npy", metres)
    plain, taught = (
        data.batch_picture(
            copies(make_loader(pairs, teacher=t).epoch(0))[0], torch.zeros(3), torch.ones(3)
        )
        for t in (None, [path] * 8)
    )
    h, w = 26 + 4 * 2 * NET[0], 2 * NET[1]
    assert plain.shape == (h, 4 * w, 3) and taught.shape == (h, 5 * w, 3)
    column = taught[26:, 4 * w :].reshape(-1, 3)
    kinds = np.unique(column, axis=0)
    assert len(kinds) > 2 and list(data.predict.HOLE) in kinds.tolist()
    assert (taught[:26, 4 * w :] < 255).any()  # its name
    assert (taught[26:, :w] == plain[26:, :w]).all()
