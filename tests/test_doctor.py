"""Sec. 4.1, before training: every mistake that the doctor knows, made on purpose, and no other."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from test_pairs import with_exif

from plumbing import doctor
from plumbing import scenes as synthetic
from plumbing.pairs import list_pairs
from plumbing.pictures import HOLE

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared/data/rgbd"
SIZE = (144, 192)
TRAIN, VAL = 52, 6  # scenes rendered; most sets use the first 20 for training
Change = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def write(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
    return path


class Told(NamedTuple):
    """What a run said: exit code, what was printed, {(severity, kind)}, the findings by kind."""

    code: int
    text: str
    found: set[tuple[str, str]]
    findings: dict[str, dict]


@pytest.fixture(scope="session")
def scenes() -> list[synthetic.Scene]:
    """58 rendered scenes of 144x192: look, do not touch."""
    return [synthetic.render(0, k, SIZE) for k in range(TRAIN + VAL)]


@pytest.fixture
def make(scenes, tmp_path):
    """make(change, train, name): a set in folders whose k-th pair is change(k, rgb, depth),
    training's first; its root. change None: as rendered."""

    def one(change: Change | None = None, train: int = 20, name: str = "set") -> Path:
        root = tmp_path / name
        chosen = [*scenes[:train], *scenes[TRAIN:]]
        frames = {f"{k:06d}": scene.intrinsics for k, scene in enumerate(chosen)}
        for k, scene in enumerate(chosen):
            home = root / ("train" if k < train else "val")
            rgb, depth = scene.rgb.copy(), scene.depth.copy()
            rgb, depth = change(k, rgb, depth) if change else (rgb, depth)
            write(home / f"rgb/{k:06d}.jpg", rgb[..., ::-1])
            write(home / f"depth/{k:06d}.png", depth)
            (home / "intrinsics.json").write_text(json.dumps({"frames": frames}))
        return root

    return one


@pytest.fixture
def check(tmp_path, capsys, monkeypatch):
    """check(root, *flags): runs the doctor over a set; a small sheet is quicker."""

    def one(root: Path | str, *flags: str, tiles: int = 1) -> Told:
        monkeypatch.setattr(doctor, "TILES", tiles)
        capsys.readouterr()
        code = doctor.run(["--check", str(root), "--out", str(tmp_path / "out"), *flags])
        text = capsys.readouterr().out
        report = json.loads((tmp_path / "out/report.json").read_text())
        found = {(f["severity"], f["kind"]) for f in report["findings"]}
        assert code == any(severity == "error" for severity, _ in found)
        assert f"verdict: {report['verdict']}\n" in text.replace(f"{root}/", "")
        for finding in report["findings"]:
            assert finding["what"] in text and f"cure: {finding['cure']}" in text
        return Told(code, text, found, {f["kind"]: f for f in reversed(report["findings"])})

    return one


def lidar(far: float = 60.0, unit: float = 1.0) -> Change:
    """A street of flat ground and walls as a rotating scanner sees it, nothing above."""

    def change(k, rgb, depth):
        rng = np.random.default_rng(k)
        seen = np.zeros(SIZE)
        for i in range(48, 144, 4):
            z = min(1.7 * 170 / max(i - 60, 1) * rng.uniform(0.9, 1.1), far)
            seen[i, rng.choice(192, 24, replace=False)] = 1000 * z * rng.uniform(0.8, 1.0, 24)
        return rgb, np.rint(seen * unit).astype(np.uint16)

    return change


# ------------------------------------------------------------------------------- what is in order


def test_a_clean_set_passes_without_a_word(make, check):
    told = check(make(train=TRAIN))
    assert told.code == 0 and told.found == set()
    verdict = "fine to train: python train.py --finetune --data .*set --split train --val_split "
    assert re.search(verdict + r"val --depth_scale 1000 --max_depth \d+\n", told.text)
    assert re.search(rf"train/train +{TRAIN} +144x192 ", told.text)


def test_the_verdict_can_be_pasted(make, check):
    """Also where the shell's completion has put a / behind the folder."""
    root = f"{make(name='My Drive')}/"
    command = re.search("fine to train: python train.py (.*)", check(root).text)[1]
    assert shlex.split(command)[:3] == ["--finetune", "--data", root]


def test_numbers_of_the_table_are_those_of_the_files(tmp_path, check):
    """Depths 1001 .. 3000 mm over half of the picture: percentiles and share are known."""
    rng = np.random.default_rng(0)
    depth = np.zeros(SIZE, np.uint16)
    depth[72:] = 1001 + np.arange(72 * 192).reshape(72, 192) % 2000
    for k in range(3):
        write(tmp_path / f"set/train/rgb/{k}.png", rng.integers(0, 255, (*SIZE, 3), np.uint8))
        write(tmp_path / f"set/train/depth/{k}.png", depth + np.uint16(k) * (depth > 0))
    told = check(tmp_path / "set", "--val_split", "none")
    assert re.search("--val_split none .* --keep_start 0\n", told.text)
    assert re.search(r"train/train +3 +144x192 +50.0%  1, 1.02, (1.9\d|2), 2.98, 3\n", told.text)


def test_synthetic_by_name_and_the_command_itself(tmp_path):
    """python data.py --check synthetic:N, as a user types it."""
    environment = os.environ | {"LITEDEPTH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "data.py", "--check", "synthetic:2", "--out", tmp_path / "o"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "verdict: fine to train: python train.py --finetune --data synthetic:2 " in done.stdout
    assert (tmp_path / "o/contact.png").is_file() and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--check", "/nowhere/at/all"], "/nowhere/at/all: no such folder"),
        (["--check", ".", "--depth_scale", "0"], "--depth_scale: '0' is not a positive"),
        (["--check", ".", "--samples", "-1"], "--samples: '-1' is not a whole number"),
        (["--check", ".", "--out", "/dev/null/x"], "/dev/null/x"),
        ([], "required: --check"),
    ],
)
def test_wrong_flags_exit_2_in_one_line(flags, message, capsys):
    try:
        code = doctor.run(flags)
    except SystemExit as stop:  # argparse
        code = stop.code
    text = capsys.readouterr().err
    assert code == 2 and message in text and text.count("\n") == 1



def test_turned_pictures_are_counted_and_their_depth_lies_right(make, check):
    """Stored lying or upside down, with maps as stored: nothing is mirrored, and all is told."""

    def change(k, rgb, depth):
        turns = 2 if k % 2 else 1  # of a quarter, back from upright
        return np.rot90(rgb, turns), np.rot90(depth, turns)

    root = make(change)
    for path in sorted(root.glob("*/rgb/*.jpg")):
        with_exif(path, 3 if int(path.stem) % 2 else 6)
    for home in root.glob("*/intrinsics.json"):
        home.unlink()
    told = check(root, tiles=4)
    assert told.found == {("warning", "turned"), ("warning", "no intrinsics")}
    assert "20 of 20 pictures are turned upright" in told.text and "144x192" in told.text
    assert "with them 10 depth maps that fit as stored, but not 0 that fit upright" in told.text
    assert "10 fit both ways" in told.text
    root = make(lambda k, rgb, depth: (np.rot90(rgb, 2), depth), name="over")
    for path in root.glob("*/rgb/*.jpg"):
        with_exif(path, 3)
    (about,) = check(root, "--val_split", "none").findings["mirrored"]["about"]
    assert about == "train/train: turned by 180 degrees"
    told = check(root, "--val_split", "none", "--depth_orientation", "upright")
    assert told.found == {("warning", "turned")}


def test_what_the_crop_to_43_costs_is_told_with_the_flags(make, check):
    root = make(lambda k, rgb, depth: (rgb[:, :108], depth[:, :108]))
    for home in root.glob("*/intrinsics.json"):
        home.unlink()
    told = check(root)
    assert told.found == {("warning", "cut"), ("warning", "no intrinsics")} and told.code == 0
    assert "--image_size 480x640 cuts 44% of the pictures away" in told.text
    assert "--image_size 640x480 --size 160x128 --crops 320x288,512x384,640x480" in told.text


# --------------------------------------------------------------------- what training itself refuses


def test_all_faults_of_pairs_and_names_are_told(make, check):
    """Nothing stops at the first: lonely and doubled files at once; the rest is used."""
    root = make()
    (root / "train/rgb/000003.jpg").unlink()
    (root / "val/depth/000022.png").unlink()
    write(root / "train/rgb/000005.png", np.zeros((*SIZE, 3), np.uint8))
    told = check(root)
    assert told.found == {("error", "refused")}
    for name in ("000003", "000022", "000005.jpg"):
        assert any(name in text for text in told.findings["refused"]["about"])
    assert re.search(r"train/train +19 ", told.text)


def test_no_validation_and_an_empty_folder(make, check, tmp_path):
    root = make()
    (root / "val").rename(root / "elsewhere")
    told = check(root)
    assert told.found == {("error", "refused")} and "--val_split none" in told.text
    assert check(root, "--val_split", "none").found == set()
    (tmp_path / "empty").mkdir()
    assert "no split 'train': make train.txt with one 'rgb " in check(tmp_path / "empty").text


REFUSED = {
    "depth is 8-bit": lambda rgb, d: (rgb, (d / 160).clip(0, 255).astype(np.uint8)),
    "depth has 3 channels": lambda rgb, d: (rgb, cv2.applyColorMap((d // 400).astype("u1"), 2)),
    "another aspect": lambda rgb, d: (rgb[:, :150], d),
    "too small": lambda rgb, d: (rgb[:30, :40], d[:30, :40]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_pictures_that_make_no_pair(make, check, message):
    told = check(make(lambda k, *pair: REFUSED[message](*pair) if k < 9 else pair))
    assert told.found == {("error", "refused")}
    assert sum(message in text for text in told.findings["refused"]["about"]) == 9


def test_depth_in_the_place_of_the_picture(make, check):
    root = make()
    (root / "train.txt").write_text("train/depth/000000.png train/rgb/000000.jpg")
    assert "are the two swapped" in check(root).findings["refused"]["cure"]


def test_unreadable_files_are_all_named(make, check):
    """Empty, cut, of another kind, damaged inside, or no file."""
    root = make()
    for name, keep in (("rgb/000000.jpg", 0), ("depth/000001.png", 0.7),
                       ("rgb/000002.jpg", 0.7), ("depth/000003.png", 0.02)):  # fmt: skip
        content = (root / "train" / name).read_bytes()
        (root / "train" / name).write_bytes(content[: int(keep * len(content))])
    (root / "train/rgb/000004.jpg").write_text("<html>not found</html>" * 9)
    content = bytearray((root / "train/depth/000005.png").read_bytes())
    content[len(content) // 2] ^= 255
    (root / "train/depth/000005.png").write_bytes(content)
    (root / "train/depth/000006.png").unlink()
    (root / "train/depth/000006.png").symlink_to("gone.png")
    told = check(root)
    assert told.found == {("error", "refused")}
    findings = json.loads((root.parent / "out/report.json").read_text())["findings"]
    texts = sorted(re.search(r"(\d{6}\.\w+): (.*)", text).groups() for f in findings
                   for text in f["about"])  # fmt: skip
    words = ["an empty file", "cut short", "cut short", "", "not a JPEG", "cannot be decoded",
             "cannot be read"]  # fmt: skip
    assert [int(name[:6]) for name, _ in texts] == list(range(7))
    assert all(word in what for word, (_, what) in zip(words, texts)), texts


@pytest.mark.parametrize(
    "content, expected",
    [
        ("{", ("error", "refused")), ('{"frames": {}}', ("error", "refused")),
        ('{"fx": -1, "fy": 1, "cx": 1, "cy": 1}', ("error", "refused")),
        ("{}", ("warning", "no intrinsics")),
    ],
)  # fmt: skip
def test_cameras(make, check, content, expected):
    root = make()
    (root / "train/intrinsics.json").write_text(content)
    told = check(root)
    assert told.found == {expected}
    if expected[1] == "no intrinsics":  # not to be put there: it is there
        assert "has no focal length: keys none" in told.findings["no intrinsics"]["about"][0]


# -------------------------------------------------------------------------------- unit and content


@pytest.mark.parametrize("scale", [10000.0, 8000.0, 7000.0, 5000.0, 4000.0, 2000.0, 100.0, 1.0])
def test_another_unit_is_told_with_its_flags(make, check, scale):
    """Of a sensor that measures to the millimetre, not beyond 6 m. Centimetres read as millimetres
    could be a close-up: not sure enough for an error."""
    root = make(lambda k, rgb, depth: (
        rgb, np.rint(np.where(depth < 6000, depth, 0) * scale / 1000).astype(np.uint16)))
    told = check(root)
    assert ("warning" if scale in (100, 2000) else "error", "unit") in told.found  # training's
    assert {kind for _, kind in told.found} == {"unit"}
    assert f"--depth_scale {scale:g} --max_depth 6" in told.findings["unit"]["cure"]
    if scale == 100:  # the verdict does not contradict the warning
        assert "verdict: fine to train once the unit is settled, see above\n" in told.text
    told = check(root, "--depth_scale", f"{scale:g}")  # told so, there is nothing to say
    assert told.found == set()


def test_uneven_levels_are_not_8_bits(make, check):
    """As a Kinect's, some 200 that lie apart by the square of the depth, times 16 in the file."""

    def kinect(k, rgb, depth):
        z = 1.2e5 / np.rint(1.2e5 / (500 + depth / 12))
        return rgb, np.where(depth > 0, 16 * np.rint(z), 0).astype(np.uint16)

    told = check(make(kinect))
    assert {kind for _, kind in told.found} <= {"unit", "strangers"}
    assert "--depth_scale 16000 " in told.findings["unit"]["cure"]


ORDERS = {  # what is in the files -> the expression that a user is told
    "SUN RGB-D": (lambda d: d << 3 | d >> 13, "(d >> 3) | (d << 13)"),
    "swapped": (lambda d: d.byteswap(), "d.byteswap()"),
    "rotated": (lambda d: d >> 5 | d << 11, "(d >> 11) | (d << 5)"),
    "swapped 0.25 mm": (lambda d: (d // 4 * 4).byteswap(), None),
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sparse", [False, True])
def test_rotated_bits_and_swapped_bytes(make, check, order, sparse):
    """Nothing else is said of them, and the cure gives the depths back."""
    change, expected = ORDERS[order]
    root = make(lambda k, rgb, depth: (rgb, change(lidar()(k, rgb, depth)[1] if sparse else depth)))
    told = check(root)
    assert told.found == {("error", "bits")}
    code = re.search(r"depth = (.*), of the uint16", told.findings["bits"]["cure"])[1]
    assert code == expected or not expected
    d = cv2.imread(str(root / "train/depth/000003.png"), -1)
    given, depth = d.astype(np.float64), eval(code, {"d": d}).astype(np.float64)
    assert np.percentile(depth[given > 0], 50) < 30000
    if expected:
        assert (change(depth.astype(np.uint16)) == d).all()


def test_sparse_lidar(make, check):
    """Is in order; in KITTI's unit it is an error."""
    assert check(make(lidar())).code == 0
    told = check(make(lidar(unit=0.256), name="kitti"))
    assert ("error", "unit") in told.found
    assert "--depth_scale 256 --max_depth " in told.findings["unit"]["cure"]


def test_disparity(make, check):
    told = check(make(lambda k, rgb, depth: (
        rgb, np.where(depth > 0, 4e6 / np.maximum(depth, 100), 0).astype(np.uint16))))
    assert ("error", "disparity") in told.found
    assert "focal length in pixels * baseline" in told.findings["disparity"]["cure"]


def fill(value: int, share: float = 1.0) -> Change:
    """The first `share` of the pairs get `value` wherever there is a depth."""
    return lambda k, rgb, depth: (
        rgb, np.where(depth > 0, np.uint16(value), depth) if k < 20 * share else depth
    )  # fmt: skip


@pytest.mark.parametrize(
    "change, expected, cure",
    [
        (fill(0, 0.1), ("warning", "empty depth"), "remove these pairs"),
        (fill(0, 0.5), ("error", "empty depth"), "remove these pairs"),
        (fill(2000, 0.5), ("error", "empty depth"), "remove these pairs"),
        (
            lambda k, rgb, depth: (rgb, np.where(depth > 0, depth, np.uint16(65535))),
            ("error", "65535"), "depth[depth == 65535] = 0",
        ),
    ],
    ids=["few empty", "half empty", "half constant", "65535 is none"],
)  # fmt: skip
def test_values_that_are_no_depths(make, check, change, expected, cure):
    told = check(make(change))
    assert told.found == {expected} and cure in told.findings[expected[1]]["cure"]


@pytest.mark.parametrize("step", [257, 1000])
def test_8_bits_blown_up_to_16(make, check, step):
    told = check(make(lambda k, rgb, depth: (rgb, np.minimum(depth // 400, 65) * np.uint16(step))))
    assert told.found == {("error", "coarse depth")}
    assert "export the raw depth anew" in told.findings["coarse depth"]["cure"]


# ------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize("columns, severity", [(5, "error"), (2, "warning")])
def test_depth_beside_its_picture(make, check, columns, severity):
    """5 columns of 192 are 17 of 640: an error that says how far; 2 are a warning."""
    told = check(make(lambda k, rgb, depth: (rgb, np.roll(depth, columns, 1))))
    assert told.found == {(severity, "misaligned")}
    moves = re.search(r"dx (\S+), dy (\S+)$", told.findings["misaligned"]["about"][0])
    dx, dy = map(int, moves.groups())
    assert dx == pytest.approx(-columns * 640 / 192, abs=2) and abs(dy) <= 2


TURNS = {
    "left to right": lambda d: d[:, ::-1], "upside down": lambda d: d[::-1],
    "turned by 180 degrees": lambda d: d[::-1, ::-1],
}  # fmt: skip


@pytest.mark.parametrize("turn", TURNS)
def test_mirrored_depth(make, check, turn):
    told = check(make(lambda k, rgb, depth: (rgb, TURNS[turn](depth).copy())))
    assert told.found == {("error", "mirrored")}  # upside down is not taken for disparity
    assert told.findings["mirrored"]["about"] == [f"train/train: {turn}"]


@pytest.fixture(scope="session")
def video() -> list[tuple[np.ndarray, np.ndarray]]:
    """40 frames of 144x192: a camera that pans over two wide scenes, 4 pixels a frame."""
    frames = []
    for k in (3, 5):
        wide = synthetic.render(1, k, (144, 272))
        frames += [(wide.rgb[:, x : x + 192], wide.depth[:, x : x + 192]) for x in range(0, 80, 4)]
    return frames


def write_video(root: Path, rows: list[tuple[str, np.ndarray, np.ndarray]]) -> Path:
    camera = {"fx": 170, "fy": 170, "cx": 95.5, "cy": 71.5, "width": 192, "height": 144}
    for k, (split, rgb, depth) in enumerate(rows):
        write(root / split / f"rgb/{k:06d}.png", rgb[..., ::-1])
        write(root / split / f"depth/{k:06d}.png", depth)
        (root / split / "intrinsics.json").write_text(json.dumps(camera))
    return root


@pytest.mark.parametrize("late", [0, 1, -1])
def test_depth_of_another_frame(video, tmp_path, check, late):
    rows = [("train", video[k][0], video[k - late][1]) for k in range(40) if 0 <= k - late < 40]
    told = check(write_video(tmp_path / "set", rows), "--val_split", "none")
    assert told.found == ({("error", "lag")} if late else set())
    if late:
        side = {1: "at least 1 frame(s) late", -1: "at least 1 frame(s) early"}[late]
        assert told.findings["lag"]["about"] == [f"train/train: {side}"]


def test_depth_of_strangers(scenes, make, check):
    """Each picture has the depth of another one, far from it."""
    told = check(make(lambda k, rgb, depth: (rgb, scenes[(k + 7) % 20].depth)))
    assert told.found - {("error", "leak")} == {("error", "strangers")}


# ---------------------------------------------------------------------------- there twice, leakage


@pytest.mark.parametrize("period, severity", [(10, "error"), (40, "warning")])
def test_a_stuck_depth_sensor(scenes, make, check, period, severity):
    """Every 10th or 40th picture has its predecessor's depth."""
    told = check(make(lambda k, rgb, depth: (
        rgb, scenes[k - 1].depth if k % period == 1 and k < 40 else depth), train=40))
    assert told.found == {(severity, "stuck depth")}
    assert told.findings["stuck depth"]["about"][0].endswith("train/rgb/000001.jpg")


def test_a_random_split_of_a_video_is_an_error(video, tmp_path, check):
    val = np.random.default_rng(0).choice(40, 8, replace=False)
    rows = [("val" if k in val else "train", *video[k]) for k in range(40)]
    told = check(write_video(tmp_path / "random", rows))
    assert told.found == {("error", "leak")} and len(told.findings["leak"]["about"]) >= 4
    rows = [("val" if k >= 20 else "train", *video[k]) for k in range(40)]  # another scene
    assert check(write_video(tmp_path / "apart", rows)).found == set()


def test_one_twin_among_many_is_a_warning(scenes, check, tmp_path):
    """1 of 32 is under 5 %."""
    rows = [("train", s.rgb, s.depth) for s in scenes[:20]]
    rows += [("val", s.rgb, s.depth) for s in scenes[20:51]] + [("val", *scenes[4][:2])]
    told = check(write_video(tmp_path / "set", rows))
    assert told.found == {("warning", "leak")}
    text = told.findings["leak"]["about"][0]
    assert "val/rgb/000051.png = " in text and text.endswith("train/rgb/000004.png")


# ---------------------------------------------------------------------------- samples and the sheet


def test_samples_bound_the_decoding_not_the_looking(make, check):
    root = make(train=40)
    (root / "train/rgb/000017.jpg").write_bytes(b"")
    told = check(root, "--samples", "10")
    assert re.search(r"train/train +10 ", told.text) and "000017.jpg: an empty file" in told.text
    assert re.search(r"train/train +39 ", check(root, "--samples", "0").text)


def test_the_contact_sheet_shows_problems_first(make, tmp_path, check, monkeypatch):
    titles, tile = [], doctor.tile
    monkeypatch.setattr(doctor, "tile", lambda pair, title, scale: titles.append(title) or
                        tile(pair, title, scale))  # fmt: skip
    check(make(fill(2000, 0.1)), tiles=8)
    sheet = cv2.imread(str(tmp_path / "out/contact.png"))
    assert titles[0].startswith("warning: empty depth") and "000000" in titles[0]
    assert len(titles) == 8 and len(sheet) == 8 * 520
    assert (sheet == (255, 60, 255)).all(2).sum() > 500  # the edges
    assert (sheet == HOLE).all(2).sum() > 500


# --------------------------------------------------------------------------------------- real data

real = pytest.mark.skipif(not REAL.is_dir(), reason="the real pairs are not here")


@real
def test_real_pairs_are_fine(check):
    told = check(REAL, "--samples", "60")
    assert told.found == {("warning", "no intrinsics")}
    (about,) = told.findings["no intrinsics"]["about"]
    assert "rs_shelf/intrinsics.json has no focal length: keys width, height, " in about


BROKEN = {
    "0.1 mm": (lambda d: 10 * d, "unit"),
    "1/5000 m": (lambda d: 5 * d, "unit"),
    "centimetres": (lambda d: d / 10, "unit"),
    "0.25 mm": (lambda d: 4 * d, "unit"),
    "swapped bytes": (lambda d: d.astype(np.uint16).byteswap(), "bits"),
    "disparity": (lambda d: np.where(d > 0, 3e6 / np.maximum(d, 1), 0), "disparity"),
    "12 pixels": (lambda d: np.roll(d, 12, 1), "misaligned"),
    "mirrored": (lambda d: d[:, ::-1], "mirrored"),
}


@real
@pytest.mark.parametrize("how", BROKEN)
def test_real_kitchen_broken(tmp_path, check, how):
    change, expected = BROKEN[how]
    pairs = [p for p in list_pairs(REAL, "train") if p.scene.startswith("7scenes")][::16]
    root = tmp_path / "set"
    (root / "train/rgb").mkdir(parents=True)
    for pair in pairs:
        (root / "train/rgb" / pair.rgb.name).symlink_to(pair.rgb)
        depth = change(cv2.imread(str(pair.depth), -1).astype(np.float64))
        depth = np.rint(depth).clip(0, 65535).astype(np.uint16)
        write(root / "train/depth" / pair.depth.name, depth)
    (root / "train/intrinsics.json").symlink_to(pairs[0].folder / "intrinsics.json")
    assert check(root, "--val_split", "none").found == {("error", expected)}
