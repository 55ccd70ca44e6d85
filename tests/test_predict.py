"""Sec. 4.4: what predict.py writes is the depth the network gave, under names that cannot clash."""

import gzip
import hashlib
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write

import plumbing.runtime
import plumbing.video
import predict
from plumbing.files import UserError, run_main
from plumbing.pairs import Pair, read_pair
from plumbing.pictures import (
    HOLE,
    WHITE,
    auto_range,
    batch_picture,
    colorize,
    panel,
    read_picture,
    resize_depth,
    ticks,
    with_colorbar,
    write_text,
)
from plumbing.runtime import Predictor, load_predictor, newest_model

POINT = "<f4,<f4,<f4,u1,u1,u1"  # of a .ply
FIXTURES = Path(__file__).resolve().parent / "fixtures"


def picture(h=48, w=64, seed=0) -> np.ndarray:
    """A smooth colourful BGR picture."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC)


def millimetres(path: Path) -> np.ndarray:
    depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert depth.dtype == np.uint16 and depth.ndim == 2
    return depth


def command(*arguments) -> int:
    """The exit code of python predict.py `arguments`."""
    try:
        return run_main(lambda: predict.main([str(a) for a in arguments]), "predict.py")
    except SystemExit as stop:  # argparse
        return stop.code


def toy_command(*arguments) -> int:
    return command(*arguments, "--model", "toy.pt")


@pytest.fixture
def toy(monkeypatch):
    """A predictor whose depth is the red channel / 50 m, in place of the one --model names."""
    made = Predictor(lambda x: x[..., 0] / 50, (48, 64), "nearest", "toy")

    def load(path, open_checkpoint, **options) -> Predictor:
        made.options = options
        return made

    monkeypatch.setattr(predict, "load_predictor", load)
    return made


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """last.pt and model.tflite (int8-dynamic) of one network, as d2e3144 wrote them."""
    folder = tmp_path_factory.mktemp("networks")
    for source, name in {"last.pt": "last.pt", "model.int8-dynamic.tflite": "model.tflite"}.items():
        content = gzip.decompress((FIXTURES / f"{source}.gz").read_bytes())
        (folder / name).write_bytes(content)
    return folder


# ------------------------------------------------------------------------------- values and sizes


def test_written_png_is_the_depth_in_millimetres(tmp_path, toy):
    source = write(tmp_path / "a.png", picture())
    assert toy_command(source, "--out", tmp_path / "out") == 0
    told = {"image_size": None, "resize": "nearest", "threads": 1, "device": "auto"}
    assert toy.options == told
    red = picture()[..., 2].astype(int)
    np.testing.assert_array_equal(millimetres(tmp_path / "out/a_depth.png"), red * 20)
    toy.run = lambda x: np.resize(  # rounded, not clamped at 40 m, clipped at 65.535; holes are 0
        np.float32([0.0014, 0.0016, 1.2345678, 40.2, 65.535, 70, -1, np.nan, np.inf]), (48, 64)
    )
    assert toy_command(source, "--out", tmp_path / "out") == 0
    first = millimetres(tmp_path / "out/a_depth.png")[0, :9]
    assert first.tolist() == [1, 2, 1235, 40200, 65535, 65535, 0, 0, 0]


@pytest.mark.parametrize("h, w", [(47, 63), (5, 200), (1, 1)])
def test_depth_keeps_the_pictures_size(tmp_path, toy, h, w):
    source = write(tmp_path / "a.png", picture(h, w))
    for toy.resize in ("nearest", "bilinear"):
        assert toy_command(source, "--out", tmp_path) == 0
        assert millimetres(tmp_path / "a_depth.png").shape == (h, w)
    color = cv2.imread(str(tmp_path / "a_color.png"))
    assert color.shape[0] % 2 == color.shape[1] % 2 == 0


def test_nearest_invents_no_depth_and_is_centred():
    depth = np.array([[1, 5]], np.float32)
    assert resize_depth(depth, (1, 6), "nearest").tolist() == [[1, 1, 1, 5, 5, 5]]
    ramp = np.arange(9, dtype=np.float32)[None]
    assert resize_depth(ramp, (1, 3), "nearest").tolist() == [[1, 4, 7]]
    assert resize_depth(ramp.T, (3, 1), "nearest").tolist() == [[1], [4], [7]]
    assert set(resize_depth(depth, (7, 13), "nearest").ravel()) == {1, 5}


def test_another_shape_is_told_once(tmp_path, toy, capsys):
    for name, size in {"a": (48, 64), "b": (48, 90), "c": (90, 48)}.items():
        write(tmp_path / f"in/{name}.png", picture(*size))
    assert toy_command(tmp_path / "in", "--out", tmp_path / "out") == 0
    told = capsys.readouterr().err
    assert told.count("note") == 1 and "48x90 (high x wide) has another shape" in told
    assert len(toy.milliseconds) == 3  # of each picture, not of each look


@pytest.mark.parametrize("h, w", [(960, 720), (720, 1280), (484, 640)])
def test_depth_is_evaluates_wherever_both_look(networks, tmp_path, h, w):
    rgb = write(tmp_path / "a.jpg", picture(h, w))
    pair = Pair(rgb, write(tmp_path / "a.png", np.full((h, w), 1000, np.uint16)), "s", tmp_path)
    predictor = load_predictor(networks / "last.pt", predict.open_checkpoint, device="cpu")
    scored = predictor(read_pair(pair, predictor.size, None, {}).rgb)  # as evaluate.py does
    depth = predictor(read_picture(rgb))
    ch, cw = min(h, w * 3 // 4), min(w, h * 4 // 3)  # both look at the middle of 4:3
    middle = depth[(h - ch) // 2 : (h + ch) // 2, (w - cw) // 2 : (w + cw) // 2]
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in ((ch, 480), (cw, 640)))
    np.testing.assert_allclose(middle, scored[rows][:, columns], atol=1e-3)
    assert depth.shape == (h, w) and (depth > 0).all()


def test_what_lies_beside_the_middle_is_scaled_to_it(tmp_path, toy):
    """By hand: 96x64 squeezed to 48 rows; its rows 24 to 71 by themselves, three times as far, in
    their lower half twice."""
    row = np.arange(96) // 2 + 1
    times = np.where(np.arange(96) < 48, 3, 2)
    whole, middle, nothing = (
        np.repeat(values[:, None], 64, 1).astype(np.float32) / 10
        for values in (row[::2], (times * row)[24:72], 0 * row[24:72])
    )
    whole[-3:], middle[:6] = np.nan, 0  # holes stay holes
    maps = iter([middle, whole, nothing, whole])
    toy.run = lambda x: next(maps)
    source = write(tmp_path / "a.png", picture(96, 64))
    flags = "--out", tmp_path, "--ply", "--intrinsics", "64,64,31.5,47.5", "--resize", "nearest"
    assert toy_command(source, *flags) == 0
    expected = 100 * np.repeat((times * row)[:, None], 64, 1)
    expected[24:30] = expected[-6:] = 0
    np.testing.assert_array_equal(millimetres(tmp_path / "a_depth.png"), expected)
    body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1]
    z = np.frombuffer(body, POINT)["f2"].reshape(-1, 64)  # 48 rows, 6 of holes
    rows = [r for r in range(48) if r < 12 or 15 <= r < 45]
    expected = -0.1 * np.repeat((times * row)[::2][rows][:, None], 64, 1)
    np.testing.assert_allclose(z, expected, rtol=1e-6)
    depth = toy(picture(96, 64))  # no depth in the middle: nothing to scale by
    assert depth[0, 0] == np.float32(0.1) and not depth[24:72].any()


# ------------------------------------------------------------------------ points, --json, a tape


def field(h=48, w=64) -> np.ndarray:
    """A picture whose toy depth is (3 row + 50) / 50 m: 1 m and 6 cm more a row."""
    return np.repeat((3 * np.arange(h)[:, None, None] + 50).astype(np.uint8), w, 1).repeat(3, 2)


def test_metres_at_a_point(tmp_path, toy, capsys):
    rgb = field()
    rgb[20:30, 20:30] = 0  # a hole of 10x10
    source = write(tmp_path / "a.png", rgb)
    at = ["--at", "5,10", "--at", "63,0", "--at", "24,24", "--at", "21,24"]
    assert toy_command(source, *at, "--out", tmp_path) == 0
    # 5x5: row 10; the corner's rows 0 to 2; none; columns 19 alone: rows 22 to 26.
    expected = ["5,10: 1.600 m", "63,0: 1.060 m", "24,24: no depth", "21,24: 2.440 m"]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if " m" in line[-3:] or "no d" in line] == [
        f"{source} {text}" for text in expected
    ]
    lying = jpeg_with_exif(np.ascontiguousarray(field(64, 48)), 6)  # upright: 48x64, bright left
    (tmp_path / "l.jpg").write_bytes(lying)
    assert toy_command(tmp_path / "l.jpg", "--at", "63,40", "--out", tmp_path) == 0
    assert " 63,40: 1.0" in capsys.readouterr().out


@pytest.mark.parametrize("flags, told", [
    (["a.png", "b.png", "--at", "64,0"], "b.png: 64,0 lies outside this picture"),
    (["b.png", "a.png", "--at", "0,48"], "b.png: 0,48 lies outside"),
    (["a.png", "--at", "1"], "is not X,Y"), (["a.png", "--at", "1.5,2"], "whole number"),
    (["--camera", "0", "--at", "1,2"], "--at is for pictures"),
    (["--benchmark", "--at", "1,2"], "--at is for pictures"),
    (["--json", "a.png"], "INPUT goes before"),
    (["--measured", "a.png:1,2=1", "a.png"], "--measured alone"),
    *(([f"--measured={text}"], told) for text, told in {
        "a.png:1,2=0": "positive", "a.png:1,2=-1": "positive", "a.png:1,2=nan": "positive",
        "a.png:1,2=inf": "positive", "a.png:1,2=1,5": "positive", "a.png:1=2": "X,Y",
        "a.png=2": "PICTURE:X,Y=METRES", "absent.png:1,2=1": "--measured absent.png: ",
        "b.png:64,2=1": "b.png: 64,2 lies outside", "c.png:9,9=1": "no depth at 9,9",
        "b.png:1,10=1600": "scale of 1e+03", "b.png:1,10=0.5": "scale of 0.312",
    }.items()),
])  # fmt: skip
def test_points_that_cannot_be(tmp_path, toy, monkeypatch, capsys, flags, told):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.png", field(64, 90))
    write(tmp_path / "b.png", field())
    write(tmp_path / "c.png", 0 * field())
    (tmp_path / "toy.pt").write_bytes(b"")
    toy.tells_shape = False
    assert toy_command(*flags) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and told in err
    assert not any(p.name.startswith("b") or "json" in p.name for p in tmp_path.rglob("runs/*/*"))


def test_json_is_all_that_stdout_holds(tmp_path, toy, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("toy.pt").write_bytes(b"weights")
    write(tmp_path / "in/a.png", field())
    write(tmp_path / "in/b.png", field(96, 64))
    Path("in/c.jpg").write_bytes(b"no picture")
    video(tmp_path / "v.avi", 3)
    flags = ["in", "v.avi", "--at", "5,10", "--out", "o"]
    flags += ["--ply", "--intrinsics", "64,64,32,24,64,48"]  # which are not b's
    assert toy_command(*flags, "--json", "r.json") == 1
    assert "5,10: 1.600 m" in capsys.readouterr().out
    assert toy_command(*flags, "--json") == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert "5,10: 1.600 m" in printed.err and "3 pictures" in printed.err
    digest = hashlib.sha256(b"weights").hexdigest()
    assert report["model"] == {"file": "toy.pt", "sha256": digest, "about": "toy, 48x64"}
    [a] = report["pictures"]
    assert a.pop("ms") >= 0 and a == {
        "file": "in/a.png", "depth_png": "o/a_depth.png", "color_png": "o/a_color.png",
        "ply": "o/a.ply", "size": [48, 64], "known": 1.0,
        "points": [{"x": 5, "y": 10, "depth_m": pytest.approx(1.6)}],
    }  # fmt: skip
    assert report["videos"] == [{"file": "v.avi", "frames": 3}]
    assert [s["file"] for s in report["skipped"]] == ["in/b.png", "in/c.jpg"]
    assert "no picture and no frame" in report["skipped"][1]["why"]
    assert json.loads(Path("r.json").read_text()).keys() == report.keys()


def measured(capsys, *points, code=0, flags=()) -> tuple[dict, str]:
    """The calibration of these "PICTURE:X,Y=METRES", and what was told on stderr."""
    flags = [*(f"--measured={p}" for p in points), *flags]
    assert toy_command(*flags, "--json") == code
    printed = capsys.readouterr()
    return json.loads(printed.out)["calibration"], printed.err


def test_a_tape_measures_calibration(tmp_path, toy, monkeypatch, capsys):
    """The toy network sees 1.0 + 0.06 row metres; what is measured follows by hand."""
    monkeypatch.chdir(tmp_path)
    Path("toy.pt").write_bytes(b"weights")
    for name in ("a=b:1,2.png", "c.png"):
        write(tmp_path / name, field())
    one, told = measured(capsys, "a=b:1,2.png:5,10=1.92")  # 1.6 m
    assert (one["scale"], one["shift_m"]) == (pytest.approx(1.2), 0) and "scale only" in told
    two, told = measured(capsys, "a=b:1,2.png:5,10=1.6", "c.png:3,40=4.896")  # 1.6 and 3.4 m
    assert two["scale"] == pytest.approx(1.44**0.5) and two["shift_m"] == 0 and two["pairs"] == 2
    residuals = [p["residual"] for p in two["points"]]
    assert residuals == pytest.approx([0.2, -1 / 6], abs=1e-5)
    assert "weak fit" in told and "measure it anew" not in told
    # 0.8 d + 0.3 of 1.6, 2.2, 3.4 m
    points = "c.png:5,10=1.58", "c.png:5,20=2.06", "c.png:5,40=3.02"
    three, told = measured(capsys, *points)
    assert (three["scale"], three["shift_m"]) == pytest.approx((0.8, 0.3), abs=1e-5)
    assert "3 of 6 points" in told and "does not fit" not in told
    assert three["points"][2] == {
        "picture": "c.png", "x": 5, "y": 40, "measured_m": 3.02,
        "residual": pytest.approx(0, abs=1e-5),
        "before_m": pytest.approx(3.4), "after_m": pytest.approx(3.02),
    }  # fmt: skip
    wrong, told = measured(capsys, *points, "c.png:5,30=3.9", "c.png:5,4=1.292", "c.png:5,45=3.26")
    assert (wrong["scale"], wrong["shift_m"]) == pytest.approx((0.8, 0.3), abs=1e-5)  # 2.54 seen
    assert told.count("does not fit") == 1 and "c.png:5,30 does not fit (-35%)" in told
    near, told = measured(capsys, "c.png:5,10=1.6", "c.png:5,11=1.66", "c.png:5,12=1.72")
    assert (near["scale"], near["shift_m"]) == (pytest.approx(1), 0) and "1.6 to 1.72 m" in told
    file = json.loads(Path("runs/predictions/calibration.json").read_text())
    assert file.items() <= near.items() and file["points"][2]["measured_m"] == 1.72


def test_calibration_is_applied_at_no_rebuild(tmp_path, toy, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("toy.pt").write_bytes(b"weights")
    rgb = field()
    rgb[:5] = 0
    write(tmp_path / "c d.png", rgb)
    flags = [f"--measured=c d.png:5,{y}={m}" for y, m in ((10, 1.58), (20, 2.06), (40, 3.02))]
    assert toy_command(*flags, "--calibration", "k 1.json") == 0
    next_line = capsys.readouterr().out.splitlines()[-1]
    assert next_line == "next: python predict.py 'c d.png' --model toy.pt --calibration 'k 1.json'"
    flags = ["c d.png", video(tmp_path / "v.avi", 2), "--frames", "--calibration", "k 1.json"]
    ply = ["--ply", "--intrinsics", "64,64,32,24", "--at", "5,20", "--out", "o"]
    assert toy_command(*flags, *ply) == 0
    assert " 5,20: 2.060 m" in capsys.readouterr().out
    expected = np.rint(1000 * (0.8 * rgb[..., 0] / 50 + 0.3))
    expected[:5] = 0  # holes stay holes
    np.testing.assert_allclose(millimetres(tmp_path / "o/c d_depth.png"), expected, atol=1)
    frames = [millimetres(p).mean() for p in sorted((tmp_path / "o/v_frames").iterdir())]
    assert frames == pytest.approx([1100, 1180], abs=40)  # 1 and 1.1 m before
    z = np.frombuffer(Path("o/c d.ply").read_bytes().split(b"end_header\n")[1], POINT)["f2"]
    assert len(z) == 43 * 64 and z.min() == pytest.approx(-(0.8 * 3.82 + 0.3))
    Path("toy.pt").write_bytes(b"trained anew")
    assert toy_command(*flags) == 2 and "another model file" in capsys.readouterr().err
    toy.calibration = {"scale": 2.0}
    for more in (flags, ["--measured=c d.png:5,10=1.6"]):
        assert toy_command(*more) == 2
        assert "holds a calibration already" in capsys.readouterr().err


def test_the_fit_holds_beside_the_middle_as_well(tmp_path, toy, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("toy.pt").write_bytes(b"weights")
    write(tmp_path / "tall.png", field().repeat(2, 0))
    fit, _ = measured(capsys, *(f"tall.png:5,{y}={m}" for y, m in ((4, 1), (45, 3), (90, 4.2))))
    at = [f"--at=5,{p['y']}" for p in fit["points"]]
    assert toy_command("tall.png", *at, "--calibration", fit["file"], "--json") == 0
    found = [p["depth_m"] for p in json.loads(capsys.readouterr().out)["pictures"][0]["points"]]
    assert found == pytest.approx([p["after_m"] for p in fit["points"]], rel=1e-5)


# --------------------------------------------------------------------------------- reading pictures


def jpeg_with_exif(image: np.ndarray, orientation: int, thumbnail: bytes = b"") -> bytes:
    """A JPEG with a hand-made APP1: tag 0x0112 and perhaps a thumbnail after the directory."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + bytes([0, orientation, 0, 0])
    tiff = b"MM\x00\x2a\x00\x00\x00\x08" + b"\x00\x01" + entry + b"\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff + thumbnail
    data = cv2.imencode(".jpg", image)[1].tobytes()
    return data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


@pytest.mark.parametrize("orientation, turn", [
    (1, lambda x: x), (3, lambda x: x[::-1, ::-1]),
    (6, lambda x: np.rot90(x, -1)), (8, lambda x: np.rot90(x)),
])  # fmt: skip
def test_exif_orientation_is_applied(tmp_path, toy, orientation, turn):
    (tmp_path / "a.jpg").write_bytes(jpeg_with_exif(picture(40, 64), orientation))
    plain = cv2.imdecode(cv2.imencode(".jpg", picture(40, 64))[1], cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg"), turn(plain)[..., ::-1])
    assert toy_command(tmp_path / "a.jpg", "--out", tmp_path) == 0
    assert millimetres(tmp_path / "a_depth.png").shape == turn(plain).shape[:2]


def test_grey_alpha_and_16_bit(tmp_path):
    bgr, read = picture(), read_picture
    grey = read(write(tmp_path / "grey.png", bgr[..., 0]))
    np.testing.assert_array_equal(grey, np.repeat(bgr[..., :1], 3, 2))
    alpha = np.dstack([bgr, np.full(bgr.shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(read(write(tmp_path / "alpha.png", alpha)), bgr[..., ::-1])
    deep = read(write(tmp_path / "deep.png", bgr.astype(np.uint16) * 257))
    assert deep.dtype == np.uint8 and np.abs(deep.astype(int) - bgr[..., ::-1]).max() <= 1
    with pytest.raises(UserError, match="depth map"):
        read(write(tmp_path / "depth.png", bgr[..., 0].astype(np.uint16)))


FILM = b"\0\0\0\x18ftypmp42" + bytes(range(256))  # what a phone adds after the end mark


@pytest.mark.parametrize("kind", ["jpg", "progressive.jpg", "thumbnail.jpg", "png", "webp", "bmp"])
def test_a_cut_file_is_named_skipped_and_counted(tmp_path, toy, capsys, kind):
    suffix = "." + kind.split(".")[-1]
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if kind == "progressive.jpg" else []
    data = cv2.imencode(suffix, picture(96, 128), options)[1].tobytes()
    if kind == "thumbnail.jpg":  # the thumbnail's own end mark must not count
        data = jpeg_with_exif(picture(96, 128), 1, cv2.imencode(".jpg", picture())[1].tobytes())
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    whole.write_bytes(data + FILM)
    for keep in (0.3, 0.98):
        cut.write_bytes(data[: int(keep * len(data))])
        assert toy_command(whole, cut, "--out", tmp_path / "out") == 1
        printed = capsys.readouterr()
        assert f"skipped {cut}: cut short" in printed.err and "1 skipped" in printed.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "whole_color.png", "whole_depth.png",
    ]  # fmt: skip


def test_exit_code_when_nothing_can_be_read(tmp_path, toy, capsys):
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0))
    files = {
        "a.jpg": b"no picture", "b.png": b"", "c.mp4": b"no video",  # d: above OpenCV's own limit
        "d.png": b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert toy_command(*(tmp_path / name for name in files), "--out", tmp_path) == 2
    assert capsys.readouterr().err.count("skipped ") == 4


# -------------------------------------------------------------------------------- names and folders


def test_folder_in_natural_order_top_level_only(tmp_path, capsys):
    for name in ("img10.png", "img2.JPG", "img1.png", ".hidden.png", "sub/img3.png"):
        write(tmp_path / name, picture())
    (tmp_path / "notes.txt").write_text("no picture")
    found = predict.collect([str(tmp_path), str(tmp_path / "img1.png")])
    assert [p.name for p in found] == ["img1.png", "img2.JPG", "img10.png"]
    assert "3 pictures" in capsys.readouterr().out


def test_same_stems_do_not_overwrite_each_other(tmp_path, toy, capsys):
    level = {"left/a.png": 50, "right/a.png": 100, "right/A.bmp": 150, "right/b.png": 200}
    for name, red in level.items():
        write(tmp_path / name, np.full((48, 64, 3), red, np.uint8))
    assert toy_command(*(tmp_path / n for n in level), "--out", tmp_path / "out") == 0
    depths = {p.name[:-10]: millimetres(p)[0, 0] for p in (tmp_path / "out").glob("*_depth.png")}
    assert depths == {"left_a": 1000, "right_a": 2000, "right_A_2": 3000, "b": 4000}
    assert capsys.readouterr().out.count("same stem") == 3


def test_inputs_are_never_overwritten(tmp_path, toy, capsys):
    a = write(tmp_path / "a.png", picture())
    b = write(tmp_path / "a_depth.png", picture(seed=1))
    before = b.read_bytes()
    assert toy_command(a, b, "--out", tmp_path) == 2
    assert "choose another --out" in capsys.readouterr().err and b.read_bytes() == before


@pytest.mark.parametrize("arguments, reason", [
    (["empty"], "no pictures"), (["absent.jpg"], "no such file"), ([], "--camera"),
    (["a.png", "--threads", "-1"], "--threads"), (["a.png", "--camera", "0"], "--camera"),
    (["a.png", "--out", "a.png"], "--out a.png"), (["a.png", "--ply_edge", "0.9"], "--ply_edge"),
    *((["a.png", "--range", text], "--range") for text in ("1", "2,1", "1,1", "0,1", "a,b")),
])  # fmt: skip
def test_wrong_commands_exit_2_with_one_line(tmp_path, toy, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a.png", picture())
    assert toy_command(*arguments) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("predict.py: error: ") and reason in told


def test_default_model_is_the_newest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "SHIPPED", tmp_path / "none.tflite")
    write(tmp_path / "a.png", picture())
    assert command("a.png") == 2
    assert "train.py" in (told := capsys.readouterr().err) and "--model" in told
    names = "best.pt", "model.tflite"
    files = [Path("runs", run, name) for run in ("student", "distilled") for name in names]
    for age, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
        os.utime(file, (10**9 - age, 10**9 - age))
    assert newest_model(names) == files[0] and newest_model(("model.tflite",)) == files[1]
    os.utime(files[3])
    assert newest_model(names) == files[3] and newest_model(("best.pt",)) == files[0]


def test_without_a_model_of_ones_own_the_shipped_one_is_taken_and_told(tmp_path, toy, capsys):
    shipped = tmp_path / "litedepth.tflite"
    with pytest.raises(UserError, match="no model here"):
        newest_model(("no.pt",), shipped)
    shipped.touch()
    assert newest_model(("no.pt",), shipped) == shipped
    assert predict.SHIPPED == Path(predict.__file__).parent / "weights/litedepth.tflite"
    source = write(tmp_path / "a.png", picture())
    assert command(source, "--out", tmp_path, "--model", predict.SHIPPED) == 0
    told = capsys.readouterr()
    assert "no real picture" in told.err and "(the newest)" not in told.out


# ------------------------------------------------------------------------------------------ colours


def test_colorize_ends_order_and_holes():
    depth = np.array([[0.5, 1, 2, 4, 8, 0, -1, np.nan, np.inf]], np.float32)
    color = colorize(depth, 1, 4)[0]
    assert color.dtype == np.uint8
    assert (color[0] == color[1]).all() and (color[4] == color[3]).all()  # end colours are kept
    lut = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_MAGMA)[0]
    assert (color[1:4] == lut[[255, 140, 25]]).all()  # equal steps of colour: equal ratios of depth
    light = color[1:4].astype(int).sum(1)
    assert light[0] > light[1] > light[2]  # near is bright
    assert (color[5:] == HOLE).all()
    every = colorize(np.geomspace(1, 4, 2000)[None], 1, 4)[0].astype(int)
    assert np.abs(every - HOLE).max(1).min() > 20  # no depth looks like a hole


@pytest.mark.parametrize("near, far", [(0.85, 2.7), (6.2, 59), (0.5, 0.6)])
def test_ticks_are_true(near, far):
    marks = ticks(near, far, 1 / 7)
    assert marks[0] == (near, 0) and marks[-1] == (far, 1) and 4 <= len(marks) <= 8
    bar = colorize(near * (far / near) ** np.linspace(0, 1, 1001)[None], near, far)[0]
    for value, place in marks:
        assert float(f"{value:.4g}") == value  # the label says exactly this value
        own = colorize(np.array([[value]]), near, far)[0, 0]
        assert np.abs(bar[round(1000 * place)].astype(int) - own).max() <= 3


def test_colorbar_shows_the_scale_it_labels():
    canvas = with_colorbar(np.zeros((300, 10, 3), np.uint8), 1, 4)
    column = canvas[:, 10 + 11 + 5]  # inside the bar: letters are 11 at this height
    rows = np.flatnonzero((column != WHITE).any(1))
    ends = colorize(np.array([[4, 2, 1]]), 1, 4)[0]
    for row, color in zip((rows[0], rows.mean().round(), rows[-1]), ends):
        assert np.abs(column[int(row)].astype(int) - color).max() <= 4


def test_auto_range():
    depth = np.linspace(1, 3, 10_000).reshape(100, 100)
    depth[:, 0], depth[0, :3] = 0, np.nan
    near, far = auto_range([depth])
    assert 1 <= near <= 1.06 and 2.9 <= far <= 3
    assert auto_range([np.zeros((4, 4))]) == (0.1, 10)


def test_a_name_that_is_no_text_is_drawn():
    drawn, expected = np.full((2, 40, 300, 3), 255, np.uint8)
    write_text(drawn, os.fsdecode(b"K\xfcche"), 4, 20, 18)
    cv2.putText(
        expected, "K?che", (4, 27), cv2.FONT_HERSHEY_SIMPLEX, 18 / 22, (40, 40, 40), 2, cv2.LINE_AA
    )
    np.testing.assert_array_equal(drawn, expected)
    assert (drawn < 128).any()


def test_panel_of_different_sizes():
    depth = np.full((48, 64), 2, np.float32)
    holes = depth.copy()
    holes[:24] = 0
    image = panel(picture(12, 16), holes, depth[::12, ::12], 1, 4, "t")
    assert image.dtype == np.uint8 and not any(s % 2 for s in image.shape[:2])
    two = colorize(np.array([[2.0]]), 1, 4)[0, 0]
    assert (image == two).all(2).sum() > 5000
    assert (image == HOLE).all(2).sum() > 5000


@pytest.mark.parametrize("taught", [True, False])
def test_batch_picture_shows_image_depths_gradient_and_mask(taught):
    mean, std = np.float32([[120, 110, 100], [50, 60, 70]])
    rgb = picture(24, 32)[..., ::-1].astype(np.float32)
    depth = np.linspace(1, 4, 48, dtype=np.float32).reshape(1, 1, 6, 8)
    depth[0, 0, 0, 0] = 0
    batch = {
        "image": ((rgb - mean) / std).transpose(2, 0, 1)[None], "depth_low": depth,
        "grad_x": np.zeros((1, 1, 24, 32), np.float32), "M_x": np.ones((1, 1, 24, 32), bool),
    } | ({"teacher_depth_low": depth * 2} if taught else {})  # fmt: skip
    batch["grad_x"][..., :16, 8:], batch["M_x"][..., 16:, :] = 0.5, False
    tiles = np.split(batch_picture(batch, mean, std)[26:], 4 + taught, 1)  # under the names
    image, low, grad, mask = (tile[::2, ::2].astype(int) for tile in tiles[:4])
    assert np.abs(image[..., ::-1] - rgb).max() <= 1
    near, far = auto_range([depth, depth * 2] if taught else [depth])
    for tile, d in zip((low, *(t[::2, ::2] for t in tiles[4:])), (depth, depth * 2)):
        np.testing.assert_array_equal(tile[::4, ::4], colorize(d[0, 0], near, far))
    assert (grad[16:] == HOLE).all() and (grad[0, 0] != grad[0, 9]).any()
    assert (mask[:16] == 255).all() and not mask[16:].any()


# ------------------------------------------------------------------------------------ video, camera


def video(path: Path, frames: int) -> Path:
    """Frame i is grey of level 50 + 5i."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12, (64, 48))
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 50 + 5 * i, np.uint8))
    writer.release()
    return path


def read_video(path: Path) -> tuple[int, float]:
    """(frames, rate)"""
    capture = cv2.VideoCapture(str(path))
    frames = 0
    while capture.read()[0]:
        frames += 1
    return frames, capture.get(cv2.CAP_PROP_FPS)


def test_video_keeps_frames_rate_and_colour_range(tmp_path, toy, monkeypatch, capsys):
    ranges = []
    monkeypatch.setattr(plumbing.video, "panel", lambda *a: ranges.append(a[3:5]) or panel(*a))
    source = video(tmp_path / "clip.avi", 21)
    assert toy_command(source, "--out", tmp_path / "out", "--frames") == 0
    assert read_video(tmp_path / "out/clip_color.mp4") == (21, pytest.approx(12))
    assert len(ranges) == 21 and len(set(ranges)) == 1
    assert ranges[0] == pytest.approx((1.0, 2.4), abs=0.2)  # grey 50 .. 120: all of the first 15
    assert "first 15 frames" in capsys.readouterr().out
    pngs = sorted((tmp_path / "out/clip_frames").iterdir())
    assert [p.name for p in pngs[:2]] == ["000000_depth.png", "000001_depth.png"]
    assert [int(millimetres(p).mean()) for p in pngs] == pytest.approx(
        [20 * (50 + 5 * i) for i in range(21)], abs=41
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"clip_color.mp4", "clip_frames"}


def grey(level: int) -> np.ndarray:
    return np.full((48, 64, 3), level, np.uint8)


def jpegs(*levels: int) -> list[bytes]:
    return [cv2.imencode(".jpg", grey(level))[1].tobytes() for level in levels]


def h264(levels: list[int]) -> bytes:
    """A raw H.264 stream without a rate, bit by bit: grey pictures of 4 x 3 macroblocks, I_PCM."""

    def ue(*values: int) -> str:  # Exp-Golomb
        return "".join(bin(v + 1)[2:].zfill(2 * (v + 1).bit_length() - 1) for v in values)

    def unit(kind: int, bits: str) -> bytes:
        bits += "1" + "0" * (-(len(bits) + 1) % 8)
        return b"\0\0\0\1" + bytes([kind]) + int(bits, 2).to_bytes(len(bits) // 8, "big")

    sizes = ue(0, 0, 2, 0) + "0" + ue(3, 2) + "1000"
    stream = unit(0x67, f"{66:08b}{0:08b}{10:08b}" + sizes)
    stream += unit(0x68, ue(0, 0) + "00" + ue(0, 0, 0) + "000" + ue(0, 0, 0) + "000")
    for i, level in enumerate(levels):
        bits = ue(0, 7, 0) + "0000" + ue(i % 2) + "00" + ue(0)
        for _ in range(12):
            bits += ue(25)
            bits += "0" * (-len(bits) % 8) + f"{level:08b}" * 256 + f"{128:08b}" * 128
        stream += unit(0x65, bits)
    return stream


@pytest.mark.parametrize("name", [
    b"K\xfcche.avi", b"12:30.avi", b"a%d.avi", b"b%03d.jpg", "K\u00fcche.avi".encode(), b"c\nd.avi",
])  # fmt: skip
def test_a_films_name_and_folder_may_be_any_bytes(tmp_path, toy, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    name = Path(os.fsdecode(name))
    out = Path(os.fsdecode(b"out\xe9 %02d"))
    os.rename(video(tmp_path / "plain.avi", 4), name)
    assert toy_command(name, "--out", out) == 0
    (made,) = out.iterdir()
    assert made.name == f"{name.stem}_color.mp4"
    assert read_video(made.rename(tmp_path / "plain.mp4")) == (4, pytest.approx(12))


def test_films_without_links(tmp_path, toy, monkeypatch):
    def refuses(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuses)
    assert toy_command(video(tmp_path / "good.avi", 3), "--out", tmp_path / "out") == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good_color.mp4"]


@pytest.mark.parametrize("name, code", [
    ("a.wmv", "WMV2"), ("a.flv", "FLV1"), ("a.3gp", "mp4v"), ("a.ts", "MPG2"), ("a.AVI", "MJPG"),
    ("a.h264", None), ("a.264", None), ("a.mjpeg", ""), ("MJPEG", ""), ("a.jpg", ""),
    ("a.png", None), ("avi", "MJPG"), ("avi.jpg", "MJPG"),
])  # fmt: skip
def test_a_film_is_known_by_its_content(tmp_path, toy, capsys, name, code):
    """code: what OpenCV writes; "" = JPEGs in a row, None = H.264."""
    levels, source = [100, 110, 120, 130, 140], tmp_path / name
    if code:
        made = tmp_path / (name if "." in name and not name.endswith("jpg") else "b.avi")
        writer = cv2.VideoWriter(str(made), cv2.VideoWriter_fourcc(*code), 25, (64, 48))
        for level in levels:
            writer.write(grey(level))
        writer.release()
        made.rename(source)
    else:
        source.write_bytes(h264(levels) if code is None else b"".join(jpegs(*levels)))
    assert toy_command(source, "--out", tmp_path / "out", "--frames") == 0
    assert [p.name for p in (tmp_path / "out").glob("*.png")] == []
    pngs = sorted((tmp_path / "out" / f"{source.stem}_frames").iterdir())
    assert [int(np.median(millimetres(p))) for p in pngs] == pytest.approx(
        [20 * level for level in levels], abs=401 if code is None else 101
    )
    rate = read_video(tmp_path / "out" / f"{source.stem}_color.mp4")[1]
    assert rate == pytest.approx(25 if code else 30)  # a raw stream has none: 30, and told
    assert capsys.readouterr().err.count("note: ") == (0 if code else 1)


def test_a_phones_jpeg_with_others_behind_it_is_one_picture(tmp_path, toy):
    first, second = jpegs(100, 110)
    small = cv2.imencode(".jpg", picture(24, 32))[1].tobytes()
    exif, thumbnail = jpeg_with_exif(grey(100), 1), jpeg_with_exif(grey(100), 1, small)
    mpf = first[:2] + b"\xff\xe2\0\x06MPF\0" + first[2:]
    behind = [b"", small, FILM, first[:9], bytes(99), b"\xff\xd8"]
    one = [mpf + mpf, mpf + second, exif + small, thumbnail + small, *(first + b for b in behind)]
    for i, content in enumerate(one):
        (tmp_path / f"one{i}.mp4").write_bytes(content)
        assert not plumbing.video.is_video(tmp_path / f"one{i}.mp4"), i
    for i, content in enumerate([first + second, first + b"\0\0" + second, exif + exif]):
        (tmp_path / f"film{i}.jpg").write_bytes(content)
        assert plumbing.video.is_video(tmp_path / f"film{i}.jpg"), i
    assert toy_command(tmp_path / "one1.mp4", "--out", tmp_path / "out") == 0
    np.testing.assert_allclose(millimetres(tmp_path / "out/one1_depth.png"), 2000, atol=20)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_several_pictures_in_a_file(tmp_path, toy, capsys, name):
    """FFmpeg plays GIF and PNG; of the others the first is taken, and told."""
    animation, plays = cv2.Animation(), name in ("a.gif", "a.png")
    animation.frames, animation.durations = [grey(100), grey(120), grey(140)], [500] * 3
    made = cv2.imwritemulti if name == "a.tif" else cv2.imwriteanimation
    assert made(str(tmp_path / name), animation.frames if name == "a.tif" else animation)
    assert toy_command(tmp_path / name, "--out", tmp_path / "out") == 0
    assert ("only the first" in capsys.readouterr().err) != plays
    made = [p.name for p in sorted((tmp_path / "out").iterdir())]
    assert made == (["a_color.mp4"] if plays else ["a_color.png", "a_depth.png"])
    if plays:
        assert read_video(tmp_path / "out/a_color.mp4") == (3, pytest.approx(2))
    write(tmp_path / name, grey(100))  # of one frame: a picture
    assert not plumbing.video.is_video(tmp_path / name)
    assert not capsys.readouterr().err


def test_neither_picture_nor_film(tmp_path, toy, capsys):
    rest = video(tmp_path / "a.avi", 3).read_bytes()
    files = {
        "text.jpg": b"some notes", "text.mp4": b"some notes", "none.h264": b"", "nul": bytes(999),
        "list.mp4": b"ffconcat version 1.0\nfile a.avi\n", "head.avi": rest[:40],
        "phone.heic": b"\0\0\0\x18ftypheic" + bytes(99),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert toy_command(*(tmp_path / name for name in files), "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(files) and "HEIC" in told.pop()
    assert all(line.endswith("no picture and no frame can be read") for line in told)
    assert not list((tmp_path / "out").iterdir())


def test_benchmark_takes_a_picture_by_its_content(tmp_path, toy, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("toy.pt").touch()
    film = video(tmp_path / "a.avi", 3).rename(tmp_path / "film.jpg")
    still = write(tmp_path / "a.png", picture()).rename(tmp_path / "still.mp4")
    few = ["--benchmark", "--runs", 1, "--warmup", 0, "--threads", 1]
    assert toy_command(film, *few) == 2 and "not a picture" in capsys.readouterr().err
    assert toy_command(still, *few) == 0 and "48x64 picture" in capsys.readouterr().out


class Film:
    """Two frames of levels 100 and 110, at a rate."""

    def __init__(self, rate: float):
        self.rate, self.levels = rate, [110, 100]

    def get(self, what):
        return self.rate if what == cv2.CAP_PROP_FPS else 2.0

    def read(self):
        return (True, grey(self.levels.pop())) if self.levels else (False, None)


def rated(tmp_path, toy, rate: float) -> tuple[float, float]:
    """What the .mp4 of a film at a rate says, and how much --smooth 2 moves the second frame from
    the first to the second's depth, in log depth."""
    moving = plumbing.video.Moving(frames=True, smooth=2)
    assert predict.predict_video(Film(rate), "f", toy, tmp_path, (1, 4), moving, live=False) == 2
    depth = millimetres(tmp_path / "f_frames/000001_depth.png")[0, 0]
    moved = np.log(depth / 2000) / np.log(2200 / 2000)
    return read_video(tmp_path / "f_color.mp4")[1], moved


@pytest.mark.parametrize("rate, moved", [
    (0.5, 1 / 2), (1 / 4, 3 / 4), (12.4, None), (30000 / 1001, None), (66.123, None),
    (240.5, None), (1000, None),
])  # fmt: skip
def test_any_rate_is_kept(tmp_path, toy, capsys, rate, moved):
    """Frames 2 seconds apart at a half-life of 2: the older weighs 1 / 2; 4 seconds: 1 / 4."""
    moved = 1 - 0.5 ** (1 / rate / 2) if moved is None else moved
    assert rated(tmp_path, toy, rate) == (pytest.approx(rate, 1e-3), pytest.approx(moved, abs=0.01))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("rate", [0, -1, np.nan, np.inf, 90000, 1.2e6])
def test_a_missing_rate_is_30_and_told(tmp_path, toy, capsys, rate):
    moved = pytest.approx(1 - 0.5 ** (1 / 60), abs=0.01)
    assert rated(tmp_path, toy, rate) == (pytest.approx(30), moved)
    assert capsys.readouterr().err.count("taken to run at 30 frames a second") == 1


def test_a_rate_that_an_mp4_cannot_say_is_told(tmp_path, toy, capsys):
    assert rated(tmp_path, toy, 1 / 3600)[0] == pytest.approx(0.002, 1e-3)
    assert "cannot at 0.000277778" in capsys.readouterr().err


class Camera:
    """Promises 30 frames a second, gives 20 frames at less than 50 a second, then Ctrl-C."""

    def __init__(self, *_):
        self.left = 20

    def isOpened(self):
        return True

    def get(self, _):
        return 30.0

    def read(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        time.sleep(0.02)
        return True, picture()


def test_ctrl_c_ends_a_camera_and_keeps_the_recording(tmp_path, toy, monkeypatch, capsys):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert toy_command("--camera", 3, "--show", "--out", tmp_path) == 2
    assert "no display" in capsys.readouterr().err
    assert toy_command("--camera", 3, "--out", tmp_path) == 0
    monkeypatch.undo()
    (recording,) = tmp_path.iterdir()
    frames, rate = read_video(recording)
    assert recording.name.startswith("camera3_") and frames == 20
    assert rate <= 50 and rate != pytest.approx(30)  # measured, not promised


def test_a_slow_camera_is_recorded_at_its_rate(tmp_path, toy, monkeypatch):
    class Slow(Camera):
        def read(self):
            clock[0] += 4
            return super().read()

    clock = [0.0]
    monkeypatch.setattr(plumbing.video.time, "perf_counter", lambda: clock[0])
    moving = plumbing.video.Moving()
    assert predict.predict_video(Slow(), "c", toy, tmp_path, (1, 4), moving, live=True) == 20
    assert read_video(tmp_path / "c_color.mp4") == (20, pytest.approx(0.25))


def test_a_window_in_place_of_a_recording(tmp_path, toy, monkeypatch, capsys):
    shown, keys = [], iter([-1] * 4 + [ord("q")])
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(cv2, "imshow", lambda title, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda milliseconds: next(keys))
    monkeypatch.setenv("DISPLAY", ":0")
    assert toy_command("--camera", 0, "--show", "--out", tmp_path) == 0
    assert len(shown) == 5 and not list(tmp_path.iterdir())

    def no_window(*_):
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "imshow", no_window)
    assert toy_command("--camera", 0, "--show", "--out", tmp_path) == 2
    assert "this OpenCV has no windows" in capsys.readouterr().err


def test_ctrl_c_leaves_whole_files_only(tmp_path, toy, monkeypatch):
    source = write(tmp_path / "a.png", picture())
    (tmp_path / "b.mp4").write_bytes(b"stands for a video")
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    out = tmp_path / "out"
    assert toy_command(source, tmp_path / "b.mp4", "--out", out) == 130
    assert {p.name for p in out.iterdir()} == {"a_color.png", "a_depth.png"}


# --------------------------------------------------------------------------- the two kinds of model


@pytest.mark.parametrize("name, about, expected", [
    ("last.pt", "PyTorch, cpu", [9.15543, 18.55123, 22.8933, 19.41358, 12.01239, 27.83259, 32.01267,
                                 26.40643]),
    ("model.tflite", "TFLite int8-dynamic", [9.24607, 18.75144, 22.89568, 19.48091, 12.28777,
                                             28.25188, 32.4388, 26.70842]),
])  # fmt: skip
def test_files_of_d2e3144_give_its_depth(networks, name, about, expected):
    v, u = np.mgrid[:480, :640]
    rgb = np.stack([(v + u) % 256, (2 * v) % 256, (3 * u) % 256], 2).astype(np.uint8)
    predictor = load_predictor(networks / name, predict.open_checkpoint, device="cpu")
    depth = predictor(rgb)
    assert depth.dtype == np.float32 and depth.shape == (480, 640)
    np.testing.assert_allclose(depth[::240, ::160].ravel(), expected, atol=2e-3)
    assert predictor.about.startswith(about) and len(predictor.milliseconds) == 1


def test_unusable_models_are_named(networks, tmp_path, capsys):
    source = write(tmp_path / "a.png", picture())
    cut = (networks / "model.tflite").read_bytes()[:100_000]
    for name in ("cut.tflite", "cut.pt", "model.onnx"):
        (tmp_path / name).write_bytes(cut)
    for name in ("cut.tflite", "cut.pt", "model.onnx", "absent.pt"):
        assert command(source, "--model", tmp_path / name) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("predict.py: error: ") and name in told
    assert command(source, "--model", networks / "model.tflite", "--image_size", "96x128") == 2
    assert "takes 480x640 only: give --image_size 480x640" in capsys.readouterr().err


def test_a_checkpoints_own_image_size_and_all_cores(tmp_path, monkeypatch, capsys):
    def opener(path, threads, device):
        return lambda x: x[..., 0], (96, 128), f"{device}, threads {threads}"

    (tmp_path / "a.pt").write_bytes(b"")
    monkeypatch.setattr(plumbing.runtime, "usable_cores", lambda: 3)
    assert load_predictor(tmp_path / "a.pt", opener).about == "auto, threads None, 96x128"
    load_predictor(tmp_path / "a.pt", opener, image_size=(192, 256))
    assert not capsys.readouterr().err  # of one shape
    given = load_predictor(tmp_path / "a.pt", opener, image_size=(64, 96), threads=0, device="cpu")
    assert given.size == (64, 96) and given.about == "cpu, threads 3, 64x96"
    assert "trained on 96x128, and 64x96 has another shape" in capsys.readouterr().err


def test_no_call_of_one_opencv_alone(networks, tmp_path):
    """cv2.utils.logging is there from 4.13 on, cv2.setLogLevel up to 4.12: neither is wanted, and
    OpenCV is silent all the same."""
    write(tmp_path / "a.png", picture())
    (tmp_path / "b.png").write_bytes(video(tmp_path / "b.avi", 3).read_bytes()[:900])
    without = "import runpy, plumbing.pictures as p\nfor n in 'utils', 'setLogLevel':\n"
    without += " vars(p.cv2).pop(n, None)\nrunpy.run_path('predict.py', run_name='__main__')"
    files = tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path, "--model"
    done = subprocess.run(
        [sys.executable, "-c", without, *map(str, files), str(networks / "model.tflite")],
        cwd=FIXTURES.parent.parent, capture_output=True, text=True,
    )  # fmt: skip
    told = [line for line in done.stderr.splitlines() if not line.startswith("INFO: ")]
    assert done.returncode == 1 and [line[:7] for line in told] == ["skipped"], told


def test_a_tflite_runs_on_the_cpu(networks, capsys):
    load_predictor(networks / "model.tflite", predict.open_checkpoint, device="cuda")
    assert "--device cuda does nothing" in capsys.readouterr().err
