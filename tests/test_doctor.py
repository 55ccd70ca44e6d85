"""Sec. 4.1, before training: every mistake that the doctor knows, made on purpose, and no other."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

import plumbing.pairs
from plumbing import doctor
from plumbing import scenes as synthetic
from plumbing.pairs import Pair, _read_intrinsics, list_pairs

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared/data/rgbd"
SIZE = (144, 192)
FEW = ("warning", "few pairs")  # all sets but one have 20 pairs
TRAIN, VAL = 52, 6  # scenes rendered; most sets use the first 20 for training


def write(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
    return path


class Told(NamedTuple):
    """What a run said: exit code, report.json, what was printed, {(severity, check)}."""

    code: int
    report: dict
    text: str
    found: set[tuple[str, str]]

    def finding(self, check: str) -> dict:
        """The first of that check; training's stands before validation's."""
        return next(f for f in self.report["findings"] if f["check"] == check)


@pytest.fixture(scope="session")
def scenes() -> list[synthetic.Scene]:
    """58 rendered scenes of 144x192: look, do not touch."""
    return [synthetic.render(0, k, SIZE) for k in range(TRAIN + VAL)]


Change = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def make(scenes, tmp_path):
    """make(change, train, name): a set in folders whose k-th pair is change(k, rgb, depth),
    training's first; its root. change None: as rendered."""

    def one(change: Change | None = None, train: int = 20, name: str = "set") -> Path:
        root = tmp_path / name
        chosen = [*scenes[:train], *scenes[TRAIN:]]
        for k, scene in enumerate(chosen):
            split = "train" if k < train else "val"
            rgb, depth = scene.rgb, scene.depth
            if change:
                rgb, depth = change(k, rgb.copy(), depth.copy())
            write(root / split / f"rgb/{k:06d}.jpg", rgb[..., ::-1])
            write(root / split / f"depth/{k:06d}.png", depth)
        for split in ("train", "val"):
            frames = {f"{k:06d}": scene.intrinsics for k, scene in enumerate(chosen)}
            (root / split / "intrinsics.json").write_text(json.dumps({"frames": frames}))
        return root

    return one


@pytest.fixture
def check(tmp_path, capsys, monkeypatch):
    """check(root, *flags): runs the doctor over a set; a sheet of 2 pairs is quicker than of 12."""
    sheet = doctor.contact_sheet

    def one(root: Path | str, *flags: str, shown: int = 2) -> Told:
        monkeypatch.setattr(doctor, "contact_sheet", functools.partial(sheet, count=shown))
        out = tmp_path / "out"
        capsys.readouterr()
        size = () if "--image_size" in flags else ("--image_size", "144x192")
        code = doctor.main(["--check", str(root), "--out", str(out), *size, *flags])
        text = capsys.readouterr().out
        report = json.loads((out / "report.json").read_text())
        found = {(f["severity"], f["check"]) for f in report["findings"]}
        assert code == any(severity == "error" for severity, _ in found)
        assert f"verdict: {report['verdict']}\n" in text
        for finding in report["findings"]:
            assert finding["what"] in text and f"cure: {finding['cure']}" in text
        return Told(code, report, text, found)

    return one


# ------------------------------------------------------------------------------- what is in order


def test_a_clean_set_passes_without_a_word(make, check):
    told = check(make(train=TRAIN))
    assert told.code == 0 and told.found == set()
    assert re.search(r"^verdict: fine to train: python train.py --data \S+/set --depth_scale 1000 "
                     r"--max_depth \d+$", told.text, re.M)  # fmt: skip
    rows = {row["split"]: row for row in told.report["scenes"]}
    assert rows["train"]["pairs"] == rows["train"]["decoded"] == TRAIN
    assert rows["val"]["pairs"] == VAL and rows["train"]["sizes"] == ["144x192"]
    assert 0.5 < rows["train"]["valid"] < 1 and 0.4 <= rows["train"]["min_m"] < 1
    assert rows["train"]["max_m"] <= 40
    assert sum(line.rstrip().endswith("#") for line in told.text.splitlines()) >= 5  # histogram


def test_numbers_of_the_table_are_those_of_the_files(tmp_path, check):
    """Depths 1001 .. 3000 mm over half of the picture: percentiles and share are known."""
    rng = np.random.default_rng(0)
    depth = np.zeros(SIZE, np.uint16)
    depth[72:] = 1001 + np.arange(72 * 192).reshape(72, 192) % 2000
    for k in range(3):
        write(tmp_path / f"set/train/rgb/{k}.png", rng.integers(0, 255, (*SIZE, 3), np.uint8))
        write(tmp_path / f"set/train/depth/{k}.png", depth + np.uint16(k) * (depth > 0))
    row = check(tmp_path / "set", "--val_split", "none").report["scenes"][0]
    assert row["valid"] == 0.5
    assert row["median_m"] == pytest.approx(2.0, abs=0.05)
    assert row["p1_m"] == pytest.approx(1.02, abs=0.01)
    assert row["p99_m"] == pytest.approx(2.98, abs=0.01)
    assert (row["min_m"], row["max_m"]) == (pytest.approx(1.001, abs=0.003), 3.002)


def test_synthetic_by_name_and_the_command_itself(tmp_path):
    """python data.py --check synthetic:N, as a user types it."""
    environment = os.environ | {"LITEDEPTH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "data.py", "--check", "synthetic:2", "--out", tmp_path / "o"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "verdict: fine to train: python train.py --data synthetic:2 " in done.stdout
    assert (tmp_path / "o/contact.png").is_file() and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--check", "/nowhere/at/all"], "--check /nowhere/at/all: no such folder"),
        (["--check", "synthetic:0"], "--check synthetic:0: give a positive number"),
        (["--check", ".", "--depth_scale", "0"], "--depth_scale: '0' is not a positive"),
        (["--check", ".", "--samples", "-1"], "--samples: '-1' is not a whole number"),
        (["--check", ".", "--val_split", "train"], "--split and --val_split are both 'train'"),
        ([], "required: --check"),
    ],
)
def test_wrong_flags_exit_2_in_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        doctor.main(flags)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and message in text and text.count("\n") == 1


def test_an_out_that_cannot_be_written_exits_2(make, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    argv = ["data.py", "--check", str(make()), "--out", str(tmp_path / "file/x")]
    monkeypatch.setattr(sys, "argv", argv)
    assert doctor.run() == 2
    out, err = capsys.readouterr()
    assert "verdict:" in out and err.startswith("data.py: error: ") and err.count("\n") == 1


# --------------------------------------------------------------------------------- pairs and names


def test_pairs_and_names_all_are_told(make, check):
    """Nothing stops at the first: lonely, doubled and foreign files at once; the rest is used."""
    root = make()
    (root / "train/rgb/000003.jpg").unlink()
    (root / "train/depth/000007.png").unlink()
    write(root / "train/rgb/000005.png", np.zeros((*SIZE, 3), np.uint8))
    np.save(root / "train/depth/000009.npy", np.zeros(3))
    told = check(root)
    assert told.code == 1
    assert told.found == {
        ("error", "no partner"), ("error", "name twice"), ("warning", "foreign file"), FEW,
    }  # fmt: skip
    assert told.finding("no partner")["examples"] == [
        "train/depth/000003.png", "train/rgb/000007.jpg",
    ]  # fmt: skip
    assert "000005.jpg" in told.finding("name twice")["examples"][0]
    assert told.finding("foreign file")["examples"] == ["train/depth/000009.npy"]
    assert "rename or remove them" in told.text
    assert told.report["scenes"][0]["pairs"] == 18


def test_a_list_with_every_kind_of_line(make, check):
    root = make()
    lines = [f"train/rgb/{k:06d}.jpg train/depth/{k:06d}.png" for k in range(20)]
    (root / "train.txt").write_text("\n".join(["# a comment", "", *lines]) + "\n")
    assert check(root).found == {FEW}
    bad = ["train/rgb/000001.jpg", "train/rgb/0.jpg train/depth/000001.png", "a b c"]
    (root / "train.txt").write_text("\n".join([*lines, *bad]) + "\n")
    told = check(root)
    assert told.found == {("error", "list"), ("error", "missing file"), FEW}
    assert told.finding("list")["count"] == 2
    assert "train.txt:22: " in told.finding("missing file")["examples"][0]
    (root / "train.txt").write_bytes(b"\xff\xfe\xfa")
    assert check(root).found == {("error", "list"), ("error", "empty split")}


def test_the_cure_of_a_list_that_holds_nothing_is_the_list(make, check):
    """It wins over the folders beside it, which are laid out well."""
    root = make()
    (root / "train.txt").write_text("# nothing yet\n")
    cure = check(root).finding("empty split")["cure"]
    assert cure.startswith("mend train.txt") and "--split" not in cure
    (root / "train.txt").unlink()
    for kind in ("rgb", "depth"):
        for path in (root / "train" / kind).iterdir():
            path.unlink()
    assert "--split train" not in check(root).finding("empty split")["cure"]


def test_names_of_any_bytes(make, tmp_path, capsys):
    """They are told and drawn as far as letters go, without a traceback."""
    root = make()
    for kind, suffix in (("rgb", "jpg"), ("depth", "png")):
        home = os.fsencode(root / "train" / kind)
        os.rename(home + f"/000000.{suffix}".encode(), home + b"/\xff \xc3\xa9." + suffix.encode())
    (root / "train/rgb/000001.jpg").rename(root / os.fsdecode(b"train/rgb/\xfe.jpg"))
    assert doctor.main(["--check", str(root), "--out", str(tmp_path / "out")]) == 1
    assert "train/rgb/\\udcfe.jpg" in capsys.readouterr().out
    assert (tmp_path / "out/report.json").is_file() and (tmp_path / "out/contact.png").is_file()


@pytest.mark.parametrize(
    "rgb, depth, cure",
    [
        ("color", "depth", "mkdir -p {r}/train && mv {r}/color {r}/train/rgb && mv {r}/depth "),
        ("rgb", "depth", "mkdir -p {r}/train && mv {r}/rgb {r}/train/rgb && mv {r}/depth "),
        ("train/images", "train/depths", "mv {r}/train/images {r}/train/rgb && mv {r}/train/dep"),
        ("training/rgb", "training/depth", "training/ is laid out as a split: --split training"),
        ("a/x", "a/y", "make train.txt with one 'rgb depth' pair of paths a line"),
    ],
)
def test_another_layout_is_recognised(tmp_path, check, rgb, depth, cure):
    root = tmp_path / "set"
    write(root / rgb / "0.png", np.zeros((*SIZE, 3), np.uint8))
    write(root / depth / "0.png", np.zeros(SIZE, np.uint16))
    told = check(root, "--val_split", "none")
    assert told.code == 1 and {check for _, check in told.found} <= {"no split", "empty split"}
    assert cure.format(r=root) in told.report["findings"][0]["cure"]


def test_no_validation_and_an_empty_folder(make, check, tmp_path):
    root = make()
    (root / "val").rename(root / "elsewhere")
    told = check(root)
    assert told.code == 0 and told.found == {("warning", "no validation"), FEW}
    assert "--val_split none" in told.finding("no validation")["cure"]
    assert "--val_split none" in told.report["verdict"]
    (tmp_path / "empty").mkdir()
    assert check(tmp_path / "empty").found == {("error", "no split"), ("warning", "no validation")}


# ------------------------------------------------------------------------- sizes, bits, whole files


def test_sizes(make, check):
    def change(k, rgb, depth):
        if k == 0:  # same aspect: nothing to mend
            return rgb, depth[::2, ::2]
        return (rgb[:, :150], depth) if k == 1 else (rgb, depth)

    told = check(make(change))
    assert told.found == {("note", "sizes"), ("error", "another aspect"), FEW}
    assert "register the depth" in told.text
    told = check(make(), "--image_size", "480x640")
    assert told.found == {("warning", "sizes"), FEW}
    assert "--image_size 144x192" in told.finding("sizes")["cure"]


def test_pictures_under_32_pixels(make, check):
    told = check(make(lambda k, rgb, depth: (rgb[:30, :40], depth[:30, :40]) if k == 2 else
                      (rgb, depth)), "--image_size", "30x40")  # fmt: skip
    assert told.found == {("error", "too small"), FEW}


DEPTH_FILES = {
    "8-bit depth": lambda d: (d / 160).clip(0, 255).astype(np.uint8),
    "coloured depth": lambda d: cv2.applyColorMap((d // 160).clip(0, 255).astype("u1"), 2),
}


@pytest.mark.parametrize("kind", DEPTH_FILES)
def test_depth_that_holds_no_metres(make, check, kind):
    told = check(make(lambda k, rgb, depth: (rgb, DEPTH_FILES[kind](depth))))
    assert told.found == {("error", kind), FEW}
    assert "16-bit" in told.text or "astype('uint16')" in told.text
    assert sum(f["count"] for f in told.report["findings"] if f["check"] == kind) == 26


def test_depth_in_the_place_of_the_picture(make, check):
    """Columns of a list that are swapped, and a depth that stands in both."""
    root = make()
    lines = ["train/depth/000000.png train/rgb/000000.jpg"]
    lines += ["train/depth/000001.png train/depth/000001.png"]
    lines += [f"train/rgb/{k:06d}.jpg train/depth/{k:06d}.png" for k in range(2, 20)]
    (root / "train.txt").write_text("\n".join(lines))
    told = check(root)
    assert told.found - {("warning", "intrinsics")} == {("error", "depth for a picture"), FEW}
    assert told.finding("depth for a picture")["count"] == 2


@pytest.mark.parametrize("step", [256, 257, 1000])
def test_8_bits_blown_up_to_16(make, check, step):
    told = check(make(lambda k, rgb, depth: (rgb, (depth // 400 * step).astype(np.uint16))))
    assert ("error", "coarse depth") in told.found
    assert told.found <= {("error", "coarse depth"), FEW, ("warning", "far")}
    assert "export the raw depth anew" in told.text and f" {step} units apart" in told.text


def damage(root: Path) -> None:
    """Every kind of file that cannot be read, in training."""
    files = [root / f"train/{kind}" for kind in (
        "rgb/000000.jpg", "depth/000001.png", "rgb/000002.jpg", "depth/000003.png",
        "rgb/000004.jpg", "depth/000005.png")]  # fmt: skip
    for path, keep in zip(files, (0, 0, 0.7, 0.7, 0.02, 0.02)):
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
    (root / "train/rgb/000006.jpg").write_text("<html>not found</html>" * 9)


def test_unreadable_files_are_all_named(make, check):
    root = make()
    damage(root)
    told = check(root)
    assert told.found == {("error", "unreadable"), FEW}
    finding = told.finding("unreadable")
    assert finding["count"] == 7 and "copy them anew" in finding["cure"]
    texts = "\n".join(finding["examples"])
    for k, word in enumerate(["an empty file", "an empty file", "cut short", "cut short"]):
        assert re.search(rf"00000{k}.*{word}", texts), texts
    assert "000006.jpg: not a JPEG or PNG" in texts


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_what_is_no_file_is_named_and_not_waited_for(make, check):
    """Nobody writes into the pipe, and a device may have no end."""
    root = make()
    for k, put in enumerate((os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir)):
        path = root / f"train/depth/{k:06d}.png"
        path.unlink()
        put(path)
    told = check(root)
    assert told.found == {("error", "unreadable"), FEW}
    assert told.finding("unreadable")["count"] == 3


def test_a_picture_damaged_inside_is_left_out_by_training(make, check):
    root = make()
    path = root / "train/depth/000004.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert check(root).found == {("error", "damaged"), FEW}  # one of 20 is 5 %
    root = make(train=40, name="large")
    (root / "train/depth/000004.png").write_bytes(content)
    assert check(root).found == {("warning", "damaged"), FEW}


def test_nothing_that_can_be_used_is_still_a_report(make, check):
    root = make()
    for path in [*root.glob("*/rgb/*"), *root.glob("*/depth/*")]:
        path.write_bytes(b"")
    told = check(root)
    assert told.found == {("error", "unreadable"), FEW} and "2 error(s)" in told.report["verdict"]


@pytest.mark.parametrize(
    "content, severity",
    [
        ("{", "error"), ('{"frames": {}}', "error"), ("{}", "warning"),
        ('{"fx": -1, "fy": 1, "cx": 1, "cy": 1}', "error"),
        ('{"fx": 5, "fy": 5, "cx": 96, "cy": 72, "width": 192, "height": 144}', "error"),
        ('{"fx": 170, "fy": 170, "cx": 96, "cy": 72, "width": 192, "height": 144}', None),
    ],
)  # fmt: skip
def test_cameras(make, check, content, severity):
    root = make()
    (root / "train/intrinsics.json").write_text(content)
    told = check(root)
    assert told.found == ({(severity, "intrinsics"), FEW} if severity else {FEW})
    if severity:
        assert "intrinsics.json" in told.finding("intrinsics")["cure"]


def test_a_broken_camera_file_is_read_once(make, check, monkeypatch):
    root, read = make(), []
    (root / "train/intrinsics.json").write_text("{")
    real = _read_intrinsics
    monkeypatch.setattr(plumbing.pairs, "_read_intrinsics", lambda path: read.append(path) or real(path))
    told = check(root)
    assert told.finding("intrinsics")["count"] == 1
    assert read == [root / "train/intrinsics.json", root / "val/intrinsics.json"]


def test_every_frame_whose_camera_cannot_be_is_told(make, check):
    root = make()
    frames = json.loads((root / "train/intrinsics.json").read_text())["frames"]
    for k in (3, 7, 11):
        frames[f"{k:06d}"] = frames[f"{k:06d}"] | {"fx": -k}
    (root / "train/intrinsics.json").write_text(json.dumps({"frames": frames}))
    told = check(root)
    assert told.found == {("error", "intrinsics"), FEW}
    assert told.finding("intrinsics")["count"] == 3


# -------------------------------------------------------------------------------- unit and content


def units(factor: float) -> Change:
    """mm -> a file of 1000 * factor units per metre, of a sensor that measures to the millimetre
    and not beyond 6 m."""

    def change(k, rgb, depth):
        near = np.where(depth < 6000, depth, 0)
        return rgb, np.rint(near * factor).clip(0, 65535).astype(np.uint16)

    return change


@pytest.mark.parametrize(
    "scale, severity",
    [(10000.0, "error"), (5000.0, "error"), (100.0, "warning"), (1.0, "error")],
)
def test_another_unit_is_told_with_its_flags(make, check, scale, severity):
    """Centimetres read as millimetres could be a close-up: not sure enough for an error."""
    root = make(units(scale / 1000))
    told = check(root)
    assert told.found == {(severity, "unit"), FEW}
    assert f"--depth_scale {scale:g} --max_depth 6" in told.finding("unit")["cure"]
    told = check(root, "--depth_scale", f"{scale:g}")  # told so, there is nothing to say
    assert told.found == {FEW}


def lidar(far: float = 75.0) -> Change:
    """A street of flat ground and walls as a rotating scanner sees it: 48 lines, nothing above."""

    def change(k, rgb, depth):
        rng = np.random.default_rng(k)
        depth[:] = 0
        for i in range(48, 144, 4):
            z = min(1.7 * 170 / max(i - 60, 1) * rng.uniform(0.9, 1.1), far)
            columns = rng.choice(192, 24, replace=False)
            depth[i, columns] = 1000 * z * rng.uniform(0.8, 1.0, 24) * (rng.random(24) < 0.9)
        return rgb, depth

    return change


def test_sparse_lidar_is_a_warning(make, check):
    told = check(make(lidar(60.0)))
    assert told.code == 0
    assert told.found <= {("warning", "sparse"), FEW, ("warning", "far"), ("warning", "edges")}
    assert ("warning", "sparse") in told.found
    assert "--gt_down cell" in told.finding("sparse")["cure"]


def test_sparse_lidar_in_kittis_unit(make, check):
    def change(k, rgb, depth):
        rgb, depth = lidar(60.0)(k, rgb, depth)
        return rgb, np.rint(depth * 0.256).astype(np.uint16)

    told = check(make(change))
    assert ("error", "unit") in told.found
    assert told.finding("unit")["cure"].startswith("--depth_scale 256 --max_depth ")


def test_one_scene_in_another_unit(scenes, tmp_path, check):
    root = tmp_path / "set"
    for k, scene in enumerate(scenes[:24]):
        home = root / "train" / ("hall" if k < 16 else "yard")
        depth = np.where(scene.depth < 6000, scene.depth, 0)
        write(home / f"rgb/{k}.png", scene.rgb[..., ::-1])
        write(home / f"depth/{k}.png", (depth * (1 if k < 16 else 10)).astype(np.uint16))
        (home / "intrinsics.json").write_text(json.dumps(scene.intrinsics))
    told = check(root, "--val_split", "none")
    assert ("error", "unit") in told.found
    assert told.finding("unit")["examples"] == ["train/yard"]
    assert "depth * 0.1" in told.finding("unit")["cure"]


@pytest.mark.parametrize("sparse", [False, True])
def test_disparity(make, check, sparse):
    def change(k, rgb, depth):
        if sparse:
            rgb, depth = lidar(60.0)(k, rgb, depth)
        return rgb, np.where(depth > 0, 4e6 / np.maximum(depth, 100), 0).astype(np.uint16)

    told = check(make(change))
    assert ("error", "disparity") in told.found and ("error", "unit") not in told.found
    assert "focal length in pixels * baseline" in told.finding("disparity")["cure"]


def test_planes_bend_as_their_kind_does():
    """A slanted plane is affine in 1/z: depth and disparity of it are told apart, whichever way it
    leans, and a fronto-parallel one says nothing."""
    y, x = np.mgrid[:144, :192]
    for slope in (y, 144 - y, x, 192 - x):
        w = 1 / 6 + slope / slope.max() / 2  # 1/m
        depth, disparity = (1000 / w).astype(np.uint16), (20000 * w).astype(np.uint16)
        a, b = doctor.bent_planes(depth)
        assert a > 300 and b == 0
        a, b = doctor.bent_planes(disparity)
        assert b > 300 and a == 0
    assert doctor.bent_planes(np.full(SIZE, 2000, np.uint16)) == (0, 0)


def test_upside_down_rows_are_no_sign_of_disparity():
    """Without planes (LiDAR) only rows tell, and those of a scene that is mirrored tell nothing."""
    pair = Pair(Path("a"), Path("b"), "s", Path())
    probes = [doctor.Probe(pair, valid=0.02, values=np.arange(2000, 4000), levels=2000, rows=0.8)
              for _ in range(6)]  # fmt: skip
    for flipped, expected in ((set(), True), ({"s"}, False)):
        found = doctor.Findings(Path())
        doctor.check_unit({"s": probes}, flipped, 1000.0, found)
        assert ("disparity" in [f.check for f in found]) == expected


def fill(value: int, share: float = 1.0) -> Change:
    """The first `share` of the pairs get `value` wherever there is a depth."""
    return lambda k, rgb, depth: (
        rgb, np.where(depth > 0, np.uint16(value), depth) if k < 20 * share else depth
    )  # fmt: skip


@pytest.mark.parametrize(
    "change, expected, cure",
    [
        (fill(0, 0.1), ("warning", "no depth"), "remove these pairs"),
        (fill(0, 0.5), ("error", "no depth"), "remove these pairs"),
        (fill(2000, 0.1), ("warning", "constant depth"), "remove these pairs"),
        (fill(2000, 0.5), ("error", "constant depth"), "remove these pairs"),
        (
            lambda k, rgb, depth: (rgb, np.where(depth > 0, depth, np.uint16(65535))),
            ("error", "saturated"), "depth[depth == 65535] = 0",
        ),
        (
            lambda k, rgb, depth: (rgb, np.minimum(depth, 9000)),
            ("error", "saturated"), "depth[depth >= 9000] = 0",
        ),
    ],
    ids=["few empty", "half empty", "few constant", "half constant", "65535 is none", "plateau"],
)  # fmt: skip
def test_values_that_are_no_depths(make, check, change, expected, cure):
    told = check(make(change))
    assert told.found == {expected, FEW}
    assert cure in told.finding(expected[1])["cure"]


def test_beyond_max_depth(make, check):
    told = check(make(), "--max_depth", "5")
    assert told.found == {("warning", "far"), FEW}
    assert told.finding("far")["cure"].startswith("--max_depth ")


# ------------------------------------------------------------------------------------- registration


def test_depth_beside_its_picture(make, check):
    """5 columns of 192 are 17 of 640: an error that says how far; one column is not."""
    told = check(make(lambda k, rgb, depth: (rgb, np.roll(depth, 5, 1))))
    assert ("error", "misaligned") in told.found and told.found <= {("error", "misaligned"), FEW}
    assert re.search(r"dx -[56], dy [+-][01] px", told.finding("misaligned")["examples"][0])
    assert "register the depth" in told.finding("misaligned")["cure"]


def test_depth_a_little_beside_its_picture_is_a_warning(make, check):
    told = check(make(lambda k, rgb, depth: (rgb, np.roll(depth, 2, 1))))
    assert told.code == 0 and told.found == {("warning", "misaligned"), FEW}
    assert "dx -2, dy +0 px" in told.finding("misaligned")["examples"][0]


TURNS = {
    "left to right": lambda d: d[:, ::-1], "upside down": lambda d: d[::-1],
    "turned by 180 degrees": lambda d: d[::-1, ::-1],
}  # fmt: skip


@pytest.mark.parametrize("turn", TURNS)
def test_mirrored_depth(make, check, turn):
    told = check(make(lambda k, rgb, depth: (rgb, TURNS[turn](depth).copy())))
    assert told.found == {("error", "mirrored"), FEW}  # upside down is not taken for disparity
    assert told.finding("mirrored")["examples"][0].endswith(turn)
    assert "depth[:, ::-1]" in told.finding("mirrored")["cure"]


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


@pytest.mark.parametrize("late", [0, 1, -1, 3])
def test_depth_of_another_frame(video, tmp_path, check, late):
    rows = [("train", video[k][0], video[k - late][1]) for k in range(40) if 0 <= k - late < 40]
    told = check(write_video(tmp_path / "set", rows), "--val_split", "none")
    assert told.found == ({("error", "lag"), FEW} if late else {FEW})
    if late:
        side = {1: "1 frame(s) late", -1: "1 frame(s) early", 3: "2 frame(s) or more late"}
        assert side[late] in told.finding("lag")["examples"][0]


# ---------------------------------------------------------------------------- there twice, leakage


@pytest.mark.parametrize("period, severity", [(10, "error"), (40, "warning")])
def test_a_stuck_depth_sensor(scenes, make, check, period, severity):
    """Every 10th or 40th picture has its predecessor's depth."""

    def change(k, rgb, depth):
        return rgb, (scenes[k - 1].depth if k % period == 1 and k < 40 else depth)

    told = check(make(change, train=40))
    assert told.found - {("warning", "edges")} == {(severity, "stuck depth"), FEW}
    assert told.finding("stuck depth")["examples"][0] == "train/depth/000001.png"
    assert "remove these pairs" in told.finding("stuck depth")["cure"]


def test_repeated_stills_are_a_warning(scenes, make, check):
    told = check(make(lambda k, rgb, depth: scenes[k // 2 * 2][:2] if k < 20 else (rgb, depth)))
    assert told.code == 0 and told.found == {("warning", "repeated pairs"), FEW}
    assert told.finding("repeated pairs")["count"] == 10


def test_one_depth_file_for_two_pictures(make, check):
    root = make()
    lines = [f"train/rgb/{k:06d}.jpg train/depth/{k // 2 * 2:06d}.png" for k in range(20)]
    (root / "train.txt").write_text("\n".join(lines))
    told = check(root)
    assert ("error", "depth file twice") in told.found
    assert ("error", "stuck depth") not in told.found
    assert "correct the list" in told.finding("depth file twice")["cure"]


def test_empty_depths_are_not_a_stuck_sensor(make, check):
    assert check(make(fill(0, 0.1))).found == {("warning", "no depth"), FEW}


def test_a_random_split_of_a_video_is_an_error(video, tmp_path, check):
    val = np.random.default_rng(0).choice(40, 8, replace=False)
    rows = [("val" if k in val else "train", *video[k]) for k in range(40)]
    told = check(write_video(tmp_path / "random", rows))
    assert told.found == {("error", "leak"), FEW}
    assert told.report["leak"]["near"] >= 4
    assert "split by place and time" in told.finding("leak")["cure"]
    rows = [("val" if k >= 20 else "train", *video[k]) for k in range(40)]  # another scene
    assert check(write_video(tmp_path / "apart", rows)).found == {FEW}


def test_the_same_file_on_both_sides(scenes, make, check):
    same = make(lambda k, rgb, depth: scenes[2][:2] if k == 22 else (rgb, depth))
    told = check(same)
    assert told.found == {("error", "leak"), FEW} and told.report["leak"]["same"] == 1
    assert told.finding("leak")["examples"] == ["val/rgb/000022.jpg = train/rgb/000002.jpg"]


def test_one_twin_among_many_is_a_warning(scenes, check, tmp_path):
    """1 of 32 is under 5 %."""
    rows = [("train", s.rgb, s.depth) for s in scenes[:20]]
    rows += [("val", s.rgb, s.depth) for s in scenes[20:51]] + [("val", *scenes[4][:2])]
    told = check(write_video(tmp_path / "set", rows))
    assert told.code == 0 and told.found == {("warning", "leak"), FEW}


# --------------------------------------------------------------------------------- sensors together


def test_mixed_sensors_are_a_warning(scenes, check, tmp_path):
    root = tmp_path / "set"
    for k, scene in enumerate(scenes[:24]):
        home = root / "train" / ("kinect" if k < 12 else "car")
        rgb, depth = scene.rgb, scene.depth
        if k >= 12:
            rgb, depth = lidar(60.0)(k, rgb.copy(), depth.copy())
        write(home / f"rgb/{k}.png", rgb[..., ::-1])
        write(home / f"depth/{k}.png", depth)
        (home / "intrinsics.json").write_text(json.dumps(scene.intrinsics))
    told = check(root, "--val_split", "none")
    assert told.code == 0
    assert {("warning", "mixed sensors"), ("warning", "sparse")} <= told.found
    assert "valid share" in told.finding("mixed sensors")["what"]


# ---------------------------------------------------------------------------- samples and the sheet


def test_samples_bound_the_decoding_not_the_looking(make, check):
    root = make(train=40)
    (root / "train/rgb/000017.jpg").write_bytes(b"")
    told = check(root, "--samples", "10")
    assert told.report["scenes"][0]["decoded"] <= 10 < told.report["scenes"][0]["pairs"] == 40
    assert told.finding("unreadable")["count"] == 1
    assert check(root, "--samples", "0").report["scenes"][0]["decoded"] == 39


def test_runs_of_neighbours_over_all_scenes():
    pairs = [Pair(Path(f"{s}/{k}"), Path(), s, Path(s)) for s, n in (("a", 90), ("b", 7))
             for k in range(n)]  # fmt: skip
    runs = doctor.choose(pairs, 40, 0)
    assert runs == doctor.choose(pairs, 40, 0) != doctor.choose(pairs, 40, 1)
    for run in runs:
        at = [pairs.index(p) for p in run]
        assert at == list(range(at[0], at[0] + len(at))) and len({p.scene for p in run}) == 1
    assert [p for run in runs for p in run if p.scene == "b"] == pairs[90:]
    spread = [pairs.index(run[0]) for run in runs if run[0].scene == "a"]
    assert max(np.diff(spread)) <= 20
    assert sum(map(len, doctor.choose(pairs, 97, 0))) == 97
    many = [Pair(Path(str(k)), Path(), str(k), Path(str(k))) for k in range(500)]
    assert len(doctor.choose(many, 40, 0)) == 8


def test_the_contact_sheet_shows_problems_first(make, tmp_path, check, monkeypatch):
    titles = []
    real = doctor.tile
    monkeypatch.setattr(doctor, "tile", lambda pair, title, *a: titles.append(title) or
                        real(pair, title, *a))  # fmt: skip
    check(make(fill(2000, 0.1)), shown=12)
    sheet = cv2.imread(str(tmp_path / "out/contact.png"))
    assert titles[0].startswith("warning: constant depth") and "000000" in titles[0]
    assert len(titles) == 12 and sheet.shape[1] <= 2000 and sheet.shape[0] <= 2200
    magenta = (sheet == (255, 60, 255)).all(2)
    assert magenta.sum() > 500  # the edges
    assert (sheet == doctor.predict.HOLE).all(2).sum() > 500


def test_edges_pass_over_holes():
    """A step of depth is an edge, also across a narrow gap; the border of a hole is none."""
    depth = np.full((60, 80), 2000, np.uint16)
    depth[:, 40:] = 1000
    depth[:, 38:40] = 0  # the shadow of what is nearer
    depth[10:30, 10:30] = 0
    E = doctor.depth_edges(depth)
    assert set(np.nonzero(E)[1]) == {39, 40} and E[:, 39:41].all()


# --------------------------------------------------------------------------------------- real data

real = pytest.mark.skipif(not REAL.is_dir(), reason="the real pairs are not here")


def relist(tmp_path: Path, change: Callable[[dict], dict]) -> Path:
    """The real set under other lists: `change` of {"train": lines, "val": lines}."""
    root = tmp_path / "real"
    root.mkdir()
    lines = {}
    for split in ("train", "val"):
        (root / split).symlink_to(REAL / split)
        lines[split] = (REAL / f"{split}.txt").read_text().split("\n")
        lines[split] = [line for line in lines[split] if line.strip()]
    for split, some in change(lines).items():
        (root / f"{split}.txt").write_text("\n".join(some) + "\n")
    return root


@real
def test_real_pairs_are_fine(tmp_path, check):
    told = check(REAL, "--samples", "60", "--image_size", "480x640")
    assert told.code == 0
    assert told.found == {
        ("warning", "intrinsics"), ("warning", "sparse"), ("warning", "mixed sensors"),
    }  # fmt: skip
    assert "rs_shelf" in told.finding("intrinsics")["examples"]


@real
def test_real_video_split_at_random(tmp_path, check):
    def shuffle(lines):
        kitchen = [line for line in lines["train"] if "7scenes" in line]
        order = np.random.default_rng(0).permutation(len(kitchen))
        return {"train": [kitchen[i] for i in order[24:]], "val": [kitchen[i] for i in order[:24]]}

    told = check(relist(tmp_path, shuffle), "--samples", "5", "--image_size", "480x640")
    assert ("error", "leak") in told.found and told.report["leak"]["share"] > 0.5


BROKEN = {
    "0.1 mm": (lambda d: 10 * d, "unit"),
    "1/5000 m": (lambda d: 5 * d, "unit"),
    "centimetres": (lambda d: d / 10, "unit"),
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
    told = check(root, "--val_split", "none", "--image_size", "480x640")
    assert told.found == {("error", expected), FEW}
