"""Sec. 4.1: finding and reading RGB-D pairs, refusing bad ones, another model's depth maps."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import lines_of, rgbd_picture, write

import plumbing.batches
import plumbing.pairs
import train
from data import Crop, check_sizes
from plumbing.batches import Reader, Reading, open_reader
from plumbing.files import notice
from plumbing.flags import take
from plumbing.pairs import (
    CHECKED_FILES,
    SAMPLED_FILES,
    DataError,
    Header,
    Pair,
    Source,
    check_files,
    find_split,
    header_of,
    list_pairs,
    open_split,
    open_teacher,
    read_pair,
    read_teacher,
    resolve,
    scale_K,
    shape_flags,
    teacher_maps,
)

SIZE = (96, 128)  # of the tiny pictures
K0 = (110.0, 110.0, 60.0, 50.0)
SOURCE = Source(image_size=SIZE, intrinsics=K0)
FROM_FILES = Reading(workers=2, cache="none", ram_cache=0.0)


def pair_of(root: Path, bgr: np.ndarray, depth: np.ndarray, suffix: str = ".png") -> Pair:
    rgb = write(root / "rgb" / f"a{suffix}", bgr)
    return Pair(rgb, write(root / "depth/a.png", depth), "scene", root)


def truth_of(pair: Pair) -> np.ndarray:
    return cv2.imread(str(pair.depth), cv2.IMREAD_UNCHANGED)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


@pytest.fixture
def pairs(rgbd) -> list[Pair]:
    return list_pairs(rgbd, "train")


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
    pairs = open_split(root, "train", SOURCE)
    assert len(pairs) == 8 and len(open_split(root, "val", SOURCE)) == 3
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
    names = ["sample_10", "x²", "sample_2", "sample_1", "b", "sample_2b"]
    for name in names:
        write(tmp_path / f"train/rgb/{name}.JPG", np.full((64, 64, 3), 9, np.uint8))
    for name in reversed(names):
        write(tmp_path / f"train/depth/{name}.png", np.full((64, 64), 9, np.uint16))
    (tmp_path / "train/rgb/.hidden.jpg").write_bytes(b"")
    (tmp_path / "train/rgb/Thumbs.db").write_bytes(b"")
    order = ["b", "sample_1", "sample_2", "sample_2b", "sample_10", "x²"]
    assert stems(list_pairs(tmp_path, "train")) == order


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


def test_sec41_complaints_are_collected_and_the_rest_is_returned(tmp_path, make_rgbd):
    """What the doctor does: all faults at once."""
    root, told = make_rgbd(tmp_path), []
    (root / "train/rgb/sample_3.png").unlink()
    write(root / "train/rgb/sample_4.jpg", np.zeros((96, 128, 3), np.uint8))
    pairs = list_pairs(root, "train", told.append)
    assert stems(pairs) == [f"sample_{k}" for k in (0, 1, 2, 4, 5, 6, 7)]
    for what, words in zip(told, ("two files of one name", "without a partner"), strict=True):
        assert words in what
    (root / "train.txt").write_text("a b c\ntrain/rgb/sample_1.png no.png\n")
    told.clear()
    assert list_pairs(root, "train", told.append) == []
    for what, words in zip(told, ("expected", "no such file", "holds no pair"), strict=True):
        assert words in what


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


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_sec41_a_list_names_files_whose_names_are_no_text(tmp_path, make_rgbd, bom):
    """Latin-1 names, in a list with the same bytes; one line of UTF-8 beside them."""
    root = make_rgbd(tmp_path / "set", train=2, val=0)
    names = b"K\xfcche.png", "K\u00fcche.png".encode()
    lines = bom
    for k, name in enumerate(names):
        for kind in ("rgb", "depth"):
            (root / f"train/{kind}/sample_{k}.png").rename(
                root / f"train/{kind}" / os.fsdecode(name)
            )
        lines += b"train/rgb/" + name + b" train/depth/" + name + b"\n"
    (root / "train.txt").write_bytes(lines)
    pairs = list_pairs(root, "train")
    assert tuple(os.fsencode(p.rgb.name) for p in pairs) == names
    assert all(p.rgb.is_file() and p.depth.is_file() for p in pairs)


# Sec. 4.1: intrinsics ---------------------------------------------------------------------------


def test_sec41_intrinsics_file_single_frames_absent(tmp_path, make_rgbd, capsys):
    root = make_rgbd(tmp_path)
    pair = list_pairs(root, "train")[2]
    path = root / "train/intrinsics.json"

    def K(entry: object) -> list[float]:
        path.write_text(json.dumps(entry))
        return read_pair(pair, SIZE, K0, {}).K.tolist()

    open_split(root, "train", SOURCE)
    assert "train: no focal length given for train: --intrinsics is used" in capsys.readouterr().err
    assert read_pair(pair, SIZE, K0, {}).K.tolist() == list(K0)
    one = {"fx": 100, "fy": 120, "cx": 60, "cy": 40, "width": 128, "height": 96}
    assert K(one) == [100, 120, 60, 40]
    open_split(root, "train", SOURCE)
    assert capsys.readouterr().err == ""
    assert K({k: one[k] for k in ("fx", "fy", "cx", "cy")}) == [100, 120, 60, 40]
    assert K({"scene": "a room", "width": 128}) == list(K0)  # nothing about a focal length
    open_split(root, "train", SOURCE)
    told = "train/intrinsics.json has no focal length: keys scene, width"
    assert told in capsys.readouterr().err
    assert K({"frames": {"sample_2": one, "sample_3": one | {"fx": 7}}}) == [100, 120, 60, 40]
    # the principal point may lie outside the picture
    assert K(one | {"cx": -50, "cy": 500.5}) == [100, 120, -50, 500.5]
    # given for a picture twice as wide and high: half-pixel centres
    twice = one | {"width": 256, "height": 192, "cx": 127.5, "cy": 95.5}
    assert K(twice) == [50, 60, 63.5, 47.5]
    columns = [100, 0, 0, 0, 120, 0, 127.5, 95.5, 1]  # as Open3D writes them
    assert K({"width": 256, "height": 192, "intrinsic_matrix": columns}) == [50, 60, 63.5, 47.5]
    with pytest.raises(DataError, match="intrinsics.json: is for pictures 96 wide and 128 high"):
        K(one | {"width": 96, "height": 128})


def test_sec41_K_scales_about_the_corner_of_the_first_pixel():
    """By hand: halved, the middle of pixels 0 and 1 is that of the new pixel 0."""
    K = scale_K([500, 400, 0.5, 239.5], (480, 640), (240, 320))
    assert K.tolist() == [250, 200, 0, 119.5] and K.dtype == np.float64
    both = scale_K(np.array([[500, 400, 0.5, 239.5], [1, 1, -0.5, -0.5]]), (480, 640), (240, 1280))
    assert both.tolist() == [[1000, 200, 1.5, 119.5], [2, 0.5, -0.5, -0.5]]


@pytest.mark.parametrize(
    "suffix, stored, depth_at",
    [(".png", (240, 300), (240, 300)), (".jpg", (64, 100), (128, 200))],
)
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


# EXIF orientation -> how an upright picture was turned when it was stored, from the standard's
# words: 6, say, is "row 0 is the right side, column 0 the top": a viewer turns it clockwise.
STORED = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
    5: lambda a: a.swapaxes(0, 1), 6: np.rot90, 7: lambda a: np.rot90(np.flipud(a)),
    8: lambda a: np.rot90(a, -1),
}  # fmt: skip


def with_exif(path: Path, orientation: int, order: str = ">", late=False, more=0) -> None:
    """Gives a JPEG or PNG an EXIF orientation; late: behind a PNG pixels; more: bytes after."""
    mark = b"MM" if order == ">" else b"II"
    exif = struct.pack(f"{order}2sHIHHHIHHI", mark, 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    exif += bytes(more)
    data = path.read_bytes()
    if data[:2] == b"\xff\xd8":
        exif = b"Exif\0\0" + exif
        new = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    else:
        chunk = b"eXIf" + exif
        chunk = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        at = data.index(b"IEND") - 4 if late else 33
        new = data[:at] + chunk + data[at:]
    path.write_bytes(new)


def turned_pair(root: Path, orientation: int, depth_as: str, suffix: str = ".jpg") -> Pair:
    """A ball in a view of 96x128, red and 2 m away, whose picture is stored turned."""
    y, x = np.mgrid[:96, :128]
    ball = np.exp(-((x - 40) ** 2 + (y - 30) ** 2) / 50)
    depth = np.where((x - 40) ** 2 + (y - 30) ** 2 < 64, 2000, 5000).astype(np.uint16)
    bgr = (255 * ball[..., None] * [0.2, 0.4, 1.0]).astype(np.uint8)
    turn = STORED[orientation]
    pair = pair_of(root, turn(bgr), turn(depth) if depth_as == "stored" else depth, suffix)
    with_exif(pair.rgb, orientation, "<" if orientation % 2 else ">")
    return pair._replace(depth_orientation=depth_as)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("depth_as", ["stored", "upright"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_sec41_a_turned_picture_is_taken_upright(tmp_path, orientation, depth_as, suffix):
    """All eight orientations; picture, depth and K show the ball at one place."""
    pair = turned_pair(tmp_path, orientation, depth_as, suffix)
    if suffix == ".jpg":  # OpenCV turns these itself
        assert cv2.imread(str(pair.rgb)).shape == (96, 128, 3)
    lying = orientation > 4
    u, v = (STORED[orientation](a) for a in np.meshgrid(range(128), range(96)))
    there = np.argwhere((u == 40) & (v == 30))[0][::-1]  # x, y in the picture as stored
    if depth_as == "upright":
        there, lying = np.array([40, 30]), False
    size = {"width": 96, "height": 128} if lying else {"width": 128, "height": 96}
    entry = dict(zip(("fx", "fy", "cx", "cy"), (100, 110, *map(int, there)))) | size
    (tmp_path / "intrinsics.json").write_text(json.dumps(entry))
    check_files([pair])
    sample = read_pair(pair, SIZE, K0, {})
    red = sample.rgb[..., 0].astype(float)
    assert np.abs(centre_of(np.where(red > 40, red, 0)) - (40, 30)).max() < 0.15
    assert np.abs(centre_of(sample.depth == 2000) - (40, 30)).max() < 0.15
    f = (110, 100) if lying else (100, 110)
    assert sample.K.tolist() == [*f, 40, 30]


def test_sec41_turned_pictures_are_counted_and_told_once(tmp_path, capsys):
    for i, (orientation, depth_as) in enumerate(
        [(1, "stored"), (6, "stored"), (6, "stored"), (8, "upright"), (3, "stored")]
    ):
        pair = turned_pair(tmp_path / f"{i}", orientation, depth_as)
        for source, kind, end in ((pair.rgb, "rgb", ".jpg"), (pair.depth, "depth", ".png")):
            write(tmp_path / f"set/train/{kind}/{i}{end}", np.zeros((1, 1)))
            (tmp_path / f"set/train/{kind}/{i}{end}").write_bytes(source.read_bytes())
    for check in (True, False):
        open_split(tmp_path / "set", "train", SOURCE, check)
        (told,) = [line for line in lines_of(capsys.readouterr().err) if "EXIF" in line]
        assert "4 of 5 pictures are turned" in told and "2 depth maps that fit as stored" in told
        assert "but not 1 that fit upright; 1 fit both ways" in told
    upright = dataclasses.replace(SOURCE, depth_orientation="upright")
    last = open_split(tmp_path / "set", "train", upright)[-1]
    assert last.depth_orientation == "upright"


def test_sec41_exif_behind_a_pngs_pixels_and_damaged_exif(tmp_path):
    """A program may append the chunk: a look at the file's first bytes does not see it."""
    pair = turned_pair(tmp_path, 1, "stored", ".png")
    noise = np.random.default_rng(0).integers(0, 256, (128, 200, 3), np.uint8)
    noise = np.pad(noise, ((0, 72), (0, 0), (0, 0)))
    write(pair.rgb, noise)
    write(pair.depth, np.full((200, 200), 2000, np.uint16))
    with_exif(pair.rgb, 6, late=True)
    assert len(pair.rgb.read_bytes()) > 70_000
    sample = read_pair(pair, (96, 96), K0, {})
    assert sample.rgb[:, :20].max() == 0 < sample.rgb[:, 60:].min()  # its lower part is left now
    write(pair.rgb, noise[:, :100])  # 200x100, with an upright depth and more EXIF than one tag
    write(pair.depth, np.full((100, 200), 2000, np.uint16))
    with_exif(pair.rgb, 6, late=True, more=3000)
    assert check_files([pair])[0][0].orientation == 6
    pair = turned_pair(tmp_path / "b", 1, "stored")
    for orientation in (0, 9, 65535):
        with_exif(pair.rgb, orientation)
        assert header_of(pair.rgb).orientation == 1
    pair = turned_pair(tmp_path / "c", 6, "stored")
    data = pair.rgb.read_bytes()
    for at in range(12, 38):  # inside the EXIF: whatever it says, it is a number
        pair.rgb.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
        assert header_of(pair.rgb).orientation in (1, 6)


@pytest.mark.parametrize("orientation", (3, 6))
def test_teacher_maps_follow_their_turned_pictures(tmp_path, orientation):
    """predict.py's are upright, other tools' as the picture is stored."""
    pair = turned_pair(tmp_path, orientation, "stored")
    truth = read_pair(pair, SIZE, K0, {}).depth
    y, x = np.mgrid[:96, :128]
    seen = (1.5 + x / 100 + 2 * (truth == 5000)).astype(np.float32)
    for map_of in (seen, STORED[orientation](seen)):
        path = save(tmp_path / "m/a.npy", map_of)
        read = read_teacher(path, SIZE, 1000.0, header_of(pair.rgb), truth)
        np.testing.assert_array_equal(read, np.rint(1000.0 * seen))


def test_pack_of_another_orientation_is_made_anew(tmp_path):
    pair = turned_pair(tmp_path / "train", 3, "stored")
    depths = []
    for name in ("stored", "upright"):
        source = dataclasses.replace(SOURCE, data=str(tmp_path), depth_orientation=name)
        pairs = open_split(tmp_path, "train", source)
        reader = open_reader(pairs, source, Reading(2, cache=str(tmp_path / "c")))
        depths.append(reader.samples([0])[1][0].depth)
        reader.close()
    np.testing.assert_array_equal(depths[0], depths[1][::-1, ::-1])
    assert pair.rgb.exists() and (depths[0] != depths[1]).any()


SHAPES = {  # (H, W) -> share lost to 4:3
    (960, 720): 0.4375, (720, 1280): 0.25, (427, 640): 0.11, (1024, 1024): 0.25, (375, 1242): 0.597,
}  # fmt: skip


@pytest.mark.parametrize("size", SHAPES)
def test_other_shapes_are_told_flags_that_lose_nothing(size):
    """And that work: they are train.py's own, and give a network that its checks let pass."""
    cut, flags = shape_flags([size] * 3 + [(480, 640)], (480, 640))
    lost = float(re.search(r"cuts (\d+)% of", cut)[1])
    told = re.search(r"train with (.*) to lose", cut)[1]
    assert lost == pytest.approx(75 * SHAPES[size], abs=0.6) and told.startswith(flags)
    args = train.parse([*told.split(), "--data", "x"])
    check_sizes(take(args, Crop), args.image_size, args.size)
    assert shape_flags([size], args.image_size) == ("", "")
    (h, w), (H, W) = args.size, args.image_size
    assert H % (h // 4) == W % (w // 4) == h % 32 == w % 32 == 0
    assert 0.8 < H * W / (480 * 640) < 1.25 and 0.75 < h * w / (128 * 160) < 1.3


def test_what_the_crop_costs_is_told_before_training(tmp_path, capsys):
    write(tmp_path / "train/rgb/a.jpg", rgbd_picture(0, (240, 180))[0])
    write(tmp_path / "train/depth/a.png", rgbd_picture(0, (240, 180))[1])
    for check in (True, False):
        open_split(tmp_path, "train", Source(), check)
        assert "train: --image_size 480x640 cuts 44% of the pictures away; train with " in (
            capsys.readouterr().err
        )
    open_split(tmp_path, "train", Source(image_size=(640, 480)))
    assert "cuts" not in capsys.readouterr().err
    assert shape_flags([(480, 640)] * 9 + [(426, 640)], (480, 640))[0] == ""  # 1 % in the mean
    cut, flags = shape_flags([(480, 640)] * 5 + [(640, 480)] * 5, (480, 640))
    assert "cuts 22% of" in cut and not flags and "several shapes" in cut


def jpeg(segments: bytes = b"", size: tuple[int, int] = SIZE) -> bytes:
    """A JPEG with more segments in its head."""
    plain = cv2.imencode(".jpg", rgbd_picture(0, size)[0])[1].tobytes()
    return plain[:2] + segments + plain[2:]


def segment(mark: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 255, mark, len(content) + 2) + content


def test_sec41_the_header_is_that_of_the_picture(tmp_path):
    """Not of an EXIF thumbnail; past previews and profiles that fill the first 64 kB; and what
    phones put behind the end mark is none of it."""
    thumbnail = segment(0xE1, b"Exif\0\0" + jpeg(size=(32, 48)))
    filler = segment(0xE2, bytes(60000))
    video = b"\0\0\0\x18ftypmp42" + np.random.default_rng(0).bytes(100_000)
    pair = pair_of(tmp_path, *rgbd_picture(0), ".jpg")
    tables = segment(0xC4, b"")  # of Huffman's code, with none in it: marks from C0 on are frames
    heads = b"", thumbnail, 2 * filler, thumbnail + 2 * filler, b"\xff\xff" + filler, tables
    for content in [jpeg(head) for head in heads] + [jpeg(thumbnail) + video]:
        pair.rgb.write_bytes(content)
        assert header_of(pair.rgb) == Header(SIZE, 8, 3)
        assert read_pair(pair, SIZE, K0, {}).rgb.shape == (*SIZE, 3)
    for content in (jpeg(thumbnail), jpeg(2 * filler)):
        pair.rgb.write_bytes(content[:-400])
        for refused in (header_of, lambda path: read_pair(pair, SIZE, K0, {})):
            with pytest.raises(DataError, match="a.jpg: cut short"):
                refused(pair.rgb)


def test_sec41_of_more_than_20000_pairs_2000_are_opened(rgbd, monkeypatch):
    assert (CHECKED_FILES, SAMPLED_FILES) == (20_000, 2_000)
    opened: list[Path] = []
    monkeypatch.setattr(plumbing.pairs, "header_of", lambda p: opened.append(p) or header_of(p))
    monkeypatch.setattr(plumbing.pairs, "CHECKED_FILES", 50)
    monkeypatch.setattr(plumbing.pairs, "SAMPLED_FILES", 9)
    (pair, *_) = list_pairs(rgbd, "train")
    for count, files in ((50, 100), (51, 18)):
        opened.clear()
        check_files([pair] * count)
        assert len(opened) == files


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
    open_split(rgbd, "train", dataclasses.replace(SOURCE, depth_scale=scale))
    notes = [n for n in lines_of(capsys.readouterr().err) if "--depth_scale" in n]
    assert len(notes) == (far is not None)
    assert all(f"reach {far}" in n for n in notes)


# Sec. 4.1: bad input, one line each --------------------------------------------------------------

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
    "depth as rgb": (lambda r: write(r / RGB, U16), "rgb/sample_4.png.*16-bit gray.*swapped"),
    "text as rgb": (lambda r: (r / RGB).write_text("hello" * 99), "rgb/sample_4.*not a JPEG or"),
    "empty rgb": (lambda r: (r / RGB).write_bytes(b""), "rgb/sample_4.png: an empty file"),
    "JPEG cut": (lambda r: save_jpeg(r, 0.9), "rgb/sample_4.jpg: cut short.*copy it anew"),
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
    "rgb not in a folder rgb": (
        lambda r: (r / "train/rgb").rename(r / "train/color"), "split 'train' holds no pair",
    ),
    "list of nothing": (lambda r: (r / "train.txt").write_text("#\n\n"), "'train' holds no pair"),
    "binary list": (
        lambda r: (r / "train.txt").write_bytes(b"\xff\xfe\xfa"), r"train.txt:1: expected .*dcff",
    ),
    "Latin-1 list of a name that is UTF-8": (
        lambda r: (r / "train.txt").write_bytes(b"K\xfcche.png " + DEPTH.encode()),
        "train.txt:1: no such file: .*che.png",
    ),
    "list of one column": (
        lambda r: (r / "train.txt").write_text(RGB), "train.txt:1: expected 'rgb depth'",
    ),
}  # fmt: skip


def refusal(root: Path, cache: str = "none") -> str:
    """The one line with which a training split is turned down."""
    source = Source(str(root), image_size=SIZE)
    with pytest.raises(DataError) as error:
        pairs = open_split(resolve(source), "train", SOURCE, check=False)
        open_reader(pairs, source, Reading(2, cache)).close()
    text = str(error.value)
    assert "\n" not in text and len(text) < 600 and str(root) in text
    return text


@pytest.mark.parametrize("cache", ["none", "auto"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_sec41_bad_files_are_refused_in_one_line(tmp_path, make_rgbd, name, cache):
    root = make_rgbd(tmp_path / "set", train=6, val=0)
    damage, message = BAD_FILES[name]
    damage(root)
    text = refusal(root, cache)
    assert re.search(message, text), text


def test_sec41_folders_that_are_none(tmp_path):
    for data in (str(tmp_path / "nowhere"), __file__):
        with pytest.raises(DataError, match=f"--data {data}: no such folder.*synthetic:512"):
            resolve(Source(data))
    for n in ("0", "", "-3", "1.5"):
        with pytest.raises(DataError, match=f"synthetic:{n}: give a positive number"):
            resolve(Source(f"synthetic:{n}"))
    with pytest.raises(DataError, match="in millimetres: it needs --depth_scale 1000"):
        resolve(Source("rooms:8", depth_scale=5000))
    with pytest.raises(DataError, match="no split 'aaaa"):
        find_split(tmp_path, 300 * "a")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not readable as JSON"), ("[1]", "expected an object"),
        ('{"fx": 1, "cx": 1, "cy": 1}', "expected numbers fx, fy.* fx, cx, cy"),
        ('{"fx": 9, "fy": 9, "cx": 1, "cy": 1, "width": 0, "height": 9}', "width .*9.0, 0.0"),
        ('{"fx": -1, "fy": 1, "cx": 1, "cy": 1}', r"impossible intrinsics .*\[-1\.0, 1"),
        ('{"fx": 1, "fy": NaN, "cx": 1, "cy": 1}', "impossible intrinsics"),
        ('{"frames": 5}', "expected an object"),
        ('{"frames": {"sample_0": {"fx": 9, "fy": 9, "cx": 1, "cy": 1}}}', "frame 'sample_1'"),
    ],
)  # fmt: skip
def test_sec41_bad_intrinsics_files_are_refused(tmp_path, make_rgbd, content, message):
    root = make_rgbd(tmp_path / "set", train=2, val=0)
    path = root / "train/intrinsics.json"
    path.write_text(content)
    text = refusal(root)
    assert str(path) in text and re.search(message, text), text


# Sec. 4.1: files that go bad while training ------------------------------------------------------


@pytest.fixture
def make_reader():
    """make_reader(pairs, teacher, **changes of Reading): closed after the test."""
    made = []

    def make(pairs: list[Pair], teacher: list[Path | None] | None = None, **changes) -> Reader:
        reading = dataclasses.replace(FROM_FILES, **changes)
        made.append(Reader(pairs, SOURCE, reading, teacher))
        return made[-1]

    yield make
    for reader in made:
        reader.close()


def test_sec41_a_pair_that_goes_bad_ends_the_run_or_is_named_once_and_replaced(
    tmp_path, make_rgbd, make_reader, capsys, monkeypatch
):
    """Also where two threads meet it: one as its own, one in place of the pair before."""
    root = make_rgbd(tmp_path)
    pairs = open_split(root, "train", SOURCE)
    capsys.readouterr()
    (root / "train/rgb/sample_4.png").unlink()
    cut(root / "train/depth/sample_7.png")
    write(root / "train/depth/sample_5.png", U8)
    with pytest.raises(DataError, match=r"sample_4.png: cannot be read .*\(--skip_bad goes on"):
        make_reader(pairs).samples([1, 4])
    monkeypatch.setattr(plumbing.batches, "notice", lambda text: time.sleep(0.01) or notice(text))
    reader = make_reader(pairs, skip_bad=True, workers=8)
    swap = {4: 6, 5: 6, 7: 0}  # the pair after it, and the first one after the last
    for _ in range(3):
        index, samples = reader.samples(range(8))
        assert index.tolist() == [swap.get(k, k) for k in range(8)]
        for k, sample in zip(index, samples):
            np.testing.assert_array_equal(sample.depth, truth_of(pairs[k]))
    notes = lines_of(capsys.readouterr().err)
    assert len(notes) == 3 and all(n.startswith("note: skipped: ") for n in notes)
    assert sorted(Path(name).stem[-1] for name in reader.failed) == ["4", "5", "7"]
    for text in ("rgb/sample_4.png: cannot be r", "sample_5.png: depth is 8", "sample_7.png: cut"):
        assert sum(text in n for n in notes) == 1


def test_sec41_when_nothing_can_be_read_any_more(tmp_path, make_rgbd, make_reader):
    pairs = list_pairs(make_rgbd(tmp_path), "train")
    for pair in pairs:
        pair.depth.write_bytes(b"")
    with pytest.raises(DataError, match="not one of 8 pairs can be read; the last: .*empty"):
        make_reader(pairs, skip_bad=True).samples([0])


@pytest.mark.parametrize("share, reads", [(100, 8), (0, 16), (3.5, 13)])
def test_sec41_decoded_pairs_are_kept_while_there_is_room(
    tmp_path, pairs, make_reader, monkeypatch, share, reads
):
    calls = []
    monkeypatch.setattr(
        plumbing.batches, "read_pair", lambda *a: calls.append(1) or read_pair(*a)
    )
    maps = [save(tmp_path / "a.npy", np.ones(SIZE))] * 8
    each = 7 * SIZE[0] * SIZE[1] + 32
    reader = make_reader(pairs, maps, ram_cache=share * each / 1e9, workers=1)
    first, second = reader.samples(range(8))[1], reader.samples(range(8))[1]
    for one, two in zip(first, second):
        for a, b in zip(one, two):
            np.testing.assert_array_equal(a, b)
    assert len(calls) == reads


# depths of another model, in the holes -----------------------------------------------------------

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
def test_teacher_npy_in_metres_equals_png_in_millimetres(tmp_path, form):
    mm = np.random.default_rng(0).integers(0, 65536, SIZE, dtype=np.uint16)
    mm[0, :3] = 65535, 1, 0
    for path in (write(tmp_path / "a.png", mm), save(tmp_path / "a.npy", FORMS[form](mm))):
        read = read_teacher(path, SIZE, 1000.0)
        assert read.dtype == np.uint16 and read.flags.c_contiguous and (read == mm).all()
    path = save(tmp_path / "a.npy", np.full(SIZE, 3.25, np.float16))  # at any depth_scale
    assert (read_teacher(path, SIZE, 256.0) == 3.25 * 256).all()


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


def test_teacher_maps_of_other_sizes_are_resized_as_truth_is(tmp_path):
    rng = np.random.default_rng(0)
    deep = rng.integers(1, 60000, (288, 450), dtype=np.uint16)
    for path in (write(tmp_path / "a.png", deep), save(tmp_path / "a.npy", deep / 1000)):
        read = read_teacher(path, SIZE, 1000.0, Header((288, 450), 8, 3))
        np.testing.assert_array_equal(read, deep[1::3, 34:417:3])  # 384 of 450 columns
    # through the reader, at the picture's size, at a third and as a network may round it
    bgr = rng.integers(0, 256, (288, 450, 3), dtype=np.uint8)
    pair = pair_of(tmp_path, bgr, np.zeros_like(deep))
    for h, w in ((288, 450), (96, 150), (196, 308)):
        small = rng.integers(1, 60000, (h, w), dtype=np.uint16)
        as_truth = read_pair(pair_of(tmp_path / "t", bgr, small), SIZE, K0, {}).depth
        path = write(tmp_path / "m.png", small)
        assert as_truth.any()
        taught = Reader([pair], SOURCE, FROM_FILES, [path]).sample(0).teacher
        np.testing.assert_array_equal(taught, as_truth)


BAD_MAPS = {
    "8-bit png": ("png", lambda p: write(p, U8), "depth as uint8: save metres as a float32 .npy"),
    "colour png": ("png", lambda p: write(p, np.dstack([U16] * 3)), r"shape \(96, 128, 3\): one"),
    "text as png": ("png", lambda p: p.write_text("hello" * 99), "not a JPEG or PNG file; convert"),
    "empty png": ("png", lambda p: p.write_bytes(b""), "an empty file"),
    "png cut": ("png", lambda p: cut(write(p, U16), 0.9), "cut short.*copy it anew"),
    "png of another aspect": (
        "png", lambda p: write(p, U16[:, :96]), "is 96x96, its picture 96x128: another aspect; br",
    ),
    "text as npy": ("npy", lambda p: p.write_text("hello" * 99), "not a whole .npy .*write it ane"),
    "npy cut": ("npy", lambda p: cut(save(p, U16), 0.9), "not a whole .npy .*write it anew"),
    "npz as npy": (
        "npy", lambda p: (np.savez(p.with_suffix(".npz"), U16), p.with_suffix(".npz").rename(p)),
        "not a whole .npy .*write it anew",
    ),
    "pickled": ("npy", lambda p: save(p, np.array([{}])), "not a whole .npy .*allow_pickle=False"),
    "no file": ("npy", lambda p: None, "cannot be read .No such file"),
    "stack": ("npy", lambda p: save(p, np.ones((3, *SIZE))), r"shape \(3, 96, 128\): one depth"),
    "nothing": ("npy", lambda p: save(p, np.ones((0, 128))), r"shape \(0, 128\): one depth map"),
    "npy of another aspect": (
        "npy", lambda p: save(p, np.ones((96, 126))), "is 96x126, its picture 96x128: another asp",
    ),
    **{
        name: ("npy", lambda p, name=name: save(p, np.ones(SIZE, name)),
               f"depth as {name}: save metres as a float32 .npy")
        for name in ("uint8", "int16", "int64", "bool")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MAPS)
def test_teacher_bad_maps_are_refused_in_one_line(tmp_path, name):
    suffix, damage, message = BAD_MAPS[name]
    path = tmp_path / f"a.{suffix}"
    damage(path)
    with pytest.raises(DataError, match=message) as error:
        read_teacher(path, SIZE, 1000.0)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_teacher_stands_exactly_in_the_holes_of_the_truth(tmp_path, pairs, make_reader, capsys):
    """And a map that goes bad is named once, and leaves its pair to the truth."""
    maps = [save(tmp_path / f"{k}.npy", np.full(SIZE, k + 1.0)) for k in range(8)]
    maps[1] = None
    maps[4].write_bytes(b"")
    maps[6] = write(tmp_path / "6.png", U8)
    reader = make_reader(pairs, maps)
    for _ in range(2):
        index, samples = reader.samples(range(8))
        assert index.tolist() == list(range(8)) and not reader.failed
        for k, sample in enumerate(samples):
            if k in (1, 4, 6):
                assert sample.teacher is None
            else:
                expected = np.where(truth_of(pairs[k]) > 0, 0, 1000 * (k + 1))
                np.testing.assert_array_equal(sample.teacher, expected)
    notes = sorted(lines_of(capsys.readouterr().err))
    assert len(notes) == 2 and all(n.startswith("note: teacher_depth: ") for n in notes)
    assert "4.npy: not a whole" in notes[0] and "6.png: a teacher's depth as uint8" in notes[1]
    assert all(n.endswith("(taught by the ground truth alone)") for n in notes)


@pytest.mark.parametrize("name, layout", [
    ("{}.npy", "folders"), ("{}.png", "scenes"), ("{}_depth.png", "lists"),
    ("{}_depth.npy", "scenes"),
])  # fmt: skip
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
        with pytest.raises(DataError) as error:
            teacher_maps(pairs, folder)
        text = str(error.value)
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
    # one picture twice, as in a list with repeats, is none of that
    assert teacher_maps([pairs[1], pairs[1]._replace()], tmp_path / "maps") == [flat] * 2
    (tmp_path / "maps/sample_1_depth.png").touch()
    refused(pairs[:4], f"sample_1.npy and sample_1_depth.png for one picture, {pairs[1].rgb}: keep")


@pytest.mark.parametrize("factor", [100.0, 190.0, 1.0])
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


@pytest.fixture
def steps(tmp_path) -> list[Pair]:
    """Six pairs whose depth is 1 m at the top and 4 m at the bottom, in mm; a third is holes."""
    rng, found = np.random.default_rng(0), []
    for k in range(6):
        depth = np.linspace(1000, 4000, 96)[:, None] * rng.uniform(0.9, 1.1, SIZE)
        depth[rng.random(SIZE) < 1 / 3] = 0
        rgb = write(tmp_path / f"set/rgb/{k}.png", rng.integers(0, 256, (*SIZE, 3), np.uint8))
        depth = write(tmp_path / f"set/depth/{k}.png", depth.astype(np.uint16))
        found.append(Pair(rgb, depth, "set", tmp_path / "set"))
    return found


TAUGHT = {  # how the maps are made of k, metres and where the truth knows -> refused?, the words
    "metres": (lambda k, d, M: d, False, None),
    "of one half": (lambda k, d, M: np.where(d > 2, d, np.nan), False, None),
    "another's": (lambda k, d, M: np.linspace(1, 4, 96)[:, None] + 0 * d, False, None),
    "millimetres": (lambda k, d, M: 1000 * d, True, "nothing from 0 to 65.5 m"),
    "millimetres, half": (lambda k, d, M: np.float16(1000 * d), True, "divide millimetres by 1000"),
    "centimetres": (lambda k, d, M: 100 * d, True, "nothing from 0 to 65.5 m"),
    "millimetres in holes": (lambda k, d, M: np.where(M, 0, 1000 * d), True, "where the truth has"),
    "negative": (lambda k, d, M: -d, True, "hold next to nothing"),
    "nothing": (lambda k, d, M: d * np.nan, True, "hold next to nothing"),
    "in holes": (lambda k, d, M: np.where(M, np.nan, d), False, "next to nothing .* where the"),
    "inverse": (lambda k, d, M: 3.2 / d, True, r"correlation -(1.00|0.99), .* 1 / inv"),
    "relative": (lambda k, d, M: (65535 / d / 2).astype(np.uint16), True, "inverse depth or disp"),
    "from afar": (lambda k, d, M: 4.5 - d, True, "do not rise and fall"),
    "upside down": (lambda k, d, M: d[::-1], True, "upside down"),
    "constant": (lambda k, d, M: 0 * d + 2, False, r"do not rise .*correlation -?0\.0\d, good"),
    "in inches": (lambda k, d, M: 16 * d, False, "are 16 times the ground truth"),
}  # fmt: skip


@pytest.mark.parametrize("how", TAUGHT)
def test_teacher_maps_that_cannot_teach_are_told(tmp_path, steps, capsys, how):
    make, refused, words = TAUGHT[how]
    for k, pair in enumerate(steps):
        truth = truth_of(pair) / 1000
        metres = np.where(truth > 0, truth, np.linspace(1, 4, 96)[:, None]).astype(np.float32)
        save(tmp_path / f"maps/{k}.npy", make(k, metres, truth > 0))
    text = ""
    try:
        open_teacher(steps, tmp_path / "maps", SIZE, 1000.0)
        assert not refused
    except DataError as error:
        text = str(error)
        assert refused and "\n" not in text
    text += capsys.readouterr().err
    assert re.search(words, text) if words else not text
