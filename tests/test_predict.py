"""Sec. 4.4: what predict.py writes is the depth the network gave, under names that cannot clash."""

import ast
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_device import described

import plumbing.files
import plumbing.pictures
import predict
from plumbing.files import UserError, usable_cores
from plumbing.pictures import (
    HOLE,
    WHITE,
    auto_range,
    colorize,
    panel,
    read_picture,
    resize_depth,
    ticks,
    with_colorbar,
    write_picture,
)
from plumbing.runtime import Predictor, seal

ROOT = Path(__file__).resolve().parent.parent


def picture(h=48, w=64, seed=0) -> np.ndarray:
    """A smooth colourful BGR picture."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC)


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def millimetres(path: Path) -> np.ndarray:
    depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert depth.dtype == np.uint16 and depth.ndim == 2
    return depth


@pytest.fixture
def toy(monkeypatch):
    """A predictor whose depth is the red channel / 50 m, in place of the one --model names."""
    made = Predictor(lambda x: x[..., 0] / 50, (48, 64), "nearest", "toy")
    monkeypatch.setattr(predict, "load_predictor", lambda path, **options: made)
    return made


def run(*arguments) -> int:
    return predict.main([str(a) for a in arguments])


def toy_run(*arguments) -> int:
    return run(*arguments, "--model", "toy.pt")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The same random network as .pt and, made by export.py, as .tflite, for 96x128 pictures."""
    pytest.importorskip("tensorflow")
    torch = pytest.importorskip("torch")
    export = pytest.importorskip("export")
    import model

    torch.manual_seed(1)
    network = model.LiteDepth(size=(64, 96)).eval()
    network.decoder.depth.bias.data.fill_(3.0)
    folder = tmp_path_factory.mktemp("networks")
    model.save(folder / "best.pt", network)
    (folder / "model.tflite").write_bytes(
        seal(export.convert(network, export.standard(network, (96, 128))), described())
    )
    return folder


# ------------------------------------------------------------------------------- values and sizes


def test_png_is_rounded_millimetres_clipped():
    depth = np.array([[0.0014, 0.0016, 1.2345678, 40.2], [65.535, 70, -1, np.nan]], np.float32)
    expected = [[1, 2, 1235, 40200], [65535, 65535, 0, 0]]  # 40.2 m: no clamp at 40
    assert millimetres(depth).tolist() == expected
    assert millimetres(depth).dtype == np.uint16


def test_written_png_holds_the_predictors_depth(tmp_path, toy):
    source = write(tmp_path / "a.png", picture())
    assert toy_run(source, "--out", tmp_path / "out") == 0
    red = picture()[..., 2].astype(int)
    np.testing.assert_array_equal(millimetres(tmp_path / "out/a_depth.png"), red * 20)


@pytest.mark.parametrize("h, w", [(47, 63), (129, 33), (480, 640), (5, 200), (1, 1)])
def test_depth_keeps_the_pictures_size(tmp_path, toy, h, w):
    source = write(tmp_path / "a.png", picture(h, w))
    for how in ("nearest", "bilinear"):
        toy.resize = how
        assert toy_run(source, "--out", tmp_path) == 0
        assert millimetres(tmp_path / "a_depth.png").shape == (h, w)
    color = cv2.imread(str(tmp_path / "a_color.png"))
    assert color.shape[0] % 2 == color.shape[1] % 2 == 0


def test_nearest_invents_no_depth_and_is_centred():
    depth = np.array([[1, 5]], np.float32)
    assert resize_depth(depth, (1, 6), "nearest").tolist() == [[1, 1, 1, 5, 5, 5]]
    ramp = np.arange(9, dtype=np.float32)[None]
    assert resize_depth(ramp, (1, 3), "nearest").tolist() == [[1, 4, 7]]
    assert resize_depth(ramp, ramp.shape, "nearest") is ramp  # nothing to copy
    assert set(resize_depth(depth, (7, 13), "nearest").ravel()) == {1, 5}
    assert len(set(resize_depth(depth, (1, 6), "bilinear").ravel())) > 2


def test_stretching_is_told_once(tmp_path, toy, capsys):
    for name, size in {"a": (48, 64), "b": (48, 90), "c": (90, 48)}.items():
        write(tmp_path / f"in/{name}.png", picture(*size))
    assert toy_run(tmp_path / "in", "--out", tmp_path / "out") == 0
    told = capsys.readouterr().err
    assert told.count("stretched") == 1 and "48x90 (high x wide) is stretched to" in told


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
    rgb = read_picture(tmp_path / "a.jpg")
    np.testing.assert_array_equal(rgb, turn(plain)[..., ::-1])
    assert toy_run(tmp_path / "a.jpg", "--out", tmp_path) == 0
    assert millimetres(tmp_path / "a_depth.png").shape == turn(plain).shape[:2]


def test_grey_alpha_and_16_bit(tmp_path):
    bgr = picture()
    read = read_picture
    grey = read(write(tmp_path / "grey.png", bgr[..., 0]))
    np.testing.assert_array_equal(grey, np.repeat(bgr[..., :1], 3, 2))
    alpha = np.dstack([bgr, np.full(bgr.shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(read(write(tmp_path / "alpha.png", alpha)), bgr[..., ::-1])
    deep = read(write(tmp_path / "deep.png", bgr.astype(np.uint16) * 257))
    assert deep.dtype == np.uint8 and np.abs(deep.astype(int) - bgr[..., ::-1]).max() <= 1
    with pytest.raises(UserError, match="depth map"):
        read(write(tmp_path / "depth.png", bgr[..., 0].astype(np.uint16)))


@pytest.mark.parametrize("kind", ["jpg", "thumbnail.jpg", "png", "webp", "bmp"])
def test_a_cut_file_is_named_skipped_and_counted(tmp_path, toy, capsys, kind):
    suffix = "." + kind.split(".")[-1]
    data = cv2.imencode(suffix, picture(96, 128))[1].tobytes()
    if kind == "thumbnail.jpg":  # the thumbnail's own end mark must not count
        data = jpeg_with_exif(picture(96, 128), 1, cv2.imencode(".jpg", picture())[1].tobytes())
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    whole.write_bytes(data + b"trailing bytes, as phones add")
    for keep in (0.7, 0.98):
        cut.write_bytes(data[: int(keep * len(data))])
        assert toy_run(whole, cut, "--out", tmp_path / "out") == 1
        printed = capsys.readouterr()
        assert f"skipped {cut}: cut short" in printed.err and "1 skipped" in printed.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "whole_color.png", "whole_depth.png",
    ]  # fmt: skip


def test_exit_code_when_nothing_can_be_read(tmp_path, toy, capsys):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.mp4").write_bytes(b"no video")
    names = [tmp_path / n for n in ("a.jpg", "b.png", "c.mp4")]
    assert toy_run(*names, "--out", tmp_path) == 2
    assert capsys.readouterr().err.count("skipped ") == 3


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
    assert toy_run(*(tmp_path / n for n in level), "--out", tmp_path / "out") == 0
    depths = {p.name[:-10]: millimetres(p)[0, 0] for p in (tmp_path / "out").glob("*_depth.png")}
    assert depths == {"left_a": 1000, "right_a": 2000, "right_A_2": 3000, "b": 4000}
    assert capsys.readouterr().out.count("same stem") == 3


def test_inputs_are_never_overwritten(tmp_path, toy, capsys):
    a = write(tmp_path / "a.png", picture())
    b = write(tmp_path / "a_depth.png", picture(seed=1))
    before = b.read_bytes()
    assert toy_run(a, b, "--out", tmp_path) == 2
    assert "choose another --out" in capsys.readouterr().err and b.read_bytes() == before


@pytest.mark.parametrize("arguments, reason", [
    (["empty"], "no pictures"), (["absent.jpg"], "no such file"), ([], "--camera"),
    (["a.png", "--threads", "-1"], "--threads"), (["a.png", "--camera", "0"], "--camera"),
    (["a.png", "--out", "a.png"], "a.png"),
])  # fmt: skip
def test_wrong_commands_exit_2_with_one_line(tmp_path, toy, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a.png", picture())
    assert toy_run(*arguments) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and reason in told


@pytest.mark.parametrize("text", ["1", "2,1", "0,1", "a,b", "1,inf", "1,nan"])
def test_range_is_checked(text):
    with pytest.raises(SystemExit) as stop:
        run("a.png", "--range", text)
    assert stop.value.code == 2


def test_default_model_is_the_newest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.png", picture())
    assert run("a.png") == 2
    assert "train.py" in (told := capsys.readouterr().err) and "--model" in told
    for age, name in enumerate(predict.DEFAULTS):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
        os.utime(name, (10**9 - age, 10**9 - age))
    assert predict.newest_model() == Path("runs/student/best.pt")
    os.utime("runs/distilled/model.tflite")
    assert predict.newest_model() == Path("runs/distilled/model.tflite")


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


@pytest.mark.parametrize("near, far", [(0.85, 2.7), (6.2, 59), (1.9, 2.3), (0.1, 10), (0.5, 0.6)])
def test_ticks_are_true(near, far):
    marks = ticks(near, far, 1 / 7)
    assert marks[0] == (near, 0) and marks[-1] == (far, 1) and 4 <= len(marks) <= 8
    bar = colorize(near * (far / near) ** np.linspace(0, 1, 1001)[None], near, far)[0]
    for value, place in marks:
        assert float(f"{value:.4g}") == value  # the label says exactly this value
        own = colorize(np.array([[value]]), near, far)[0, 0]
        assert np.abs(bar[round(1000 * place)].astype(int) - own).max() <= 3


def test_colorbar_shows_the_scale_it_labels():
    bare = np.zeros((300, 10, 3), np.uint8)
    canvas = with_colorbar(bare, 1, 4)
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
    near, far = auto_range([np.full((4, 4), 2.0)])
    assert near == 2 and far >= 1.2 * near
    assert auto_range([np.zeros((4, 4))]) == (0.1, 10)


@pytest.mark.parametrize("truth", [True, False])
def test_panel_of_different_sizes(truth):
    depth = np.full((48, 64), 2, np.float32)
    holes = depth.copy()
    holes[:24] = 0
    image = panel(picture(12, 16), holes if truth else None, depth[::12, ::12], 1, 4, "t")
    assert image.dtype == np.uint8 and not any(s % 2 for s in image.shape[:2])
    two = colorize(np.array([[2.0]]), 1, 4)[0, 0]
    assert (image == two).all(2).sum() > 5000
    assert ((image == HOLE).all(2).sum() > 5000) == truth


# ------------------------------------------------------------------------------------ video, camera


def video(path: Path, frames: int) -> Path:
    """Frame i is grey of level 50 + 5i."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12, (64, 48))
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 50 + 5 * i, np.uint8))
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (frame := capture.read())[0]:
        frames.append(frame[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def test_video_keeps_frames_rate_and_colour_range(tmp_path, toy, monkeypatch, capsys):
    ranges = []
    original = panel
    monkeypatch.setattr(plumbing.pictures, "panel", lambda *a: ranges.append(a[3:5]) or original(*a))
    source = video(tmp_path / "clip.avi", 21)
    assert toy_run(source, "--out", tmp_path / "out", "--frames") == 0
    frames, rate = read_video(tmp_path / "out/clip_color.mp4")
    assert len(frames) == 21 and rate == pytest.approx(12)
    assert len(ranges) == 21 and len(set(ranges)) == 1
    assert ranges[0] == pytest.approx((1.0, 2.4), abs=0.2)  # grey 50 .. 120: all of the first 15
    assert "first 15 frames" in capsys.readouterr().out
    pngs = sorted((tmp_path / "out/clip_frames").iterdir())
    assert [p.name for p in pngs[:2]] == ["000000_depth.png", "000001_depth.png"]
    assert [int(millimetres(p).mean()) for p in pngs] == pytest.approx(
        [20 * (50 + 5 * i) for i in range(21)], abs=41
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"clip_color.mp4", "clip_frames"}
    ranges.clear()
    assert toy_run(source, "--out", tmp_path / "out", "--range", "0.5,9") == 0
    assert set(ranges) == {(0.5, 9.0)}


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
    assert toy_run("--camera", 3, "--show", "--out", tmp_path) == 0
    monkeypatch.undo()
    (recording,) = tmp_path.iterdir()
    frames, rate = read_video(recording)
    assert recording.name.startswith("camera3_") and len(frames) == 20
    assert rate <= 50 and rate != pytest.approx(30)  # measured, not promised
    assert "no display" in capsys.readouterr().err


def test_ctrl_c_in_a_video_leaves_whole_files_only(tmp_path, toy, monkeypatch):
    source = write(tmp_path / "a.png", picture())
    (tmp_path / "b.mp4").write_bytes(b"stands for a video")
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    assert toy_run(source, tmp_path / "b.mp4", "--out", tmp_path / "out") == 130
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a_color.png", "a_depth.png"}


def test_ctrl_c_while_writing_leaves_no_part(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    target = write(tmp_path / "a.png", picture())
    before = target.read_bytes()
    monkeypatch.setattr(predict.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_picture(target, picture(seed=2))
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


# --------------------------------------------------------------------------- the two kinds of model


def test_pt_and_tflite_give_the_same(networks, tmp_path):
    rgb = picture(200, 150)
    pt = predict.load_predictor(networks / "best.pt", image_size=(96, 128), device="cpu")
    tflite = predict.load_predictor(networks / "model.tflite")
    assert pt.size == tflite.size == (96, 128)
    d_pt, d_tflite = pt(rgb), tflite(rgb)
    assert d_pt.dtype == d_tflite.dtype == np.float32 and d_pt.shape == (200, 150)
    assert d_pt.std() > 0.01 and len(pt.milliseconds) == 1
    np.testing.assert_allclose(d_pt, d_tflite, atol=1e-3)


def test_checkpoint_is_the_network_itself(networks):
    import torch

    import model

    rgb = picture(96, 128)
    x = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float()  # raw 0..255, RGB order kept
    with torch.no_grad():
        expected = model.load(networks / "best.pt")(x)[0, 0].numpy()
    got = predict.load_predictor(networks / "best.pt", image_size=(96, 128), device="cpu")(rgb)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_unusable_models_are_named(networks, tmp_path, capsys):
    source = write(tmp_path / "a.png", picture())
    cut = (networks / "model.tflite").read_bytes()[:100_000]
    (tmp_path / "cut.tflite").write_bytes(cut)
    (tmp_path / "cut.pt").write_bytes(cut)
    (tmp_path / "model.onnx").write_bytes(cut)
    for name in ("cut.tflite", "cut.pt", "model.onnx", "absent.pt"):
        assert run(source, "--model", tmp_path / name) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("predict.py: error: ") and name in told
    assert run(source, "--model", networks / "model.tflite", "--image_size", "480x640") == 2
    assert "takes 96x128 only: give --image_size 96x128" in capsys.readouterr().err


def test_checkpoint_knows_its_image_size(networks, tmp_path):
    import model

    model.save(tmp_path / "sized.pt", model.load(networks / "best.pt"), image_size=[96, 128])
    load = predict.load_predictor
    assert load(tmp_path / "sized.pt", device="cpu").size == (96, 128)
    assert load(tmp_path / "sized.pt", image_size=(64, 96), device="cpu").size == (64, 96)
    assert load(networks / "best.pt", device="cpu").size == (480, 640)  # an older file


def test_no_threads_means_all_usable_cores(networks, monkeypatch):
    monkeypatch.setattr(plumbing.files, "usable_cores", lambda: 3)
    assert "threads 3" in predict.load_predictor(networks / "model.tflite", threads=0).about
    monkeypatch.undo()
    assert 1 <= usable_cores() <= os.cpu_count()


def test_flags_that_do_nothing_are_told(networks, toy, tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "a.png", picture())
    assert toy_run(source, "--out", tmp_path / "out", "--show", "--frames", "--threads", 0) == 0
    told = capsys.readouterr().err
    assert told.count("\n") == 2 and "--show does nothing" in told and "--frames does" in told
    assert toy_run(video(tmp_path / "b.avi", 3), "--out", tmp_path / "out", "--frames") == 0
    assert "--frames" not in capsys.readouterr().err
    monkeypatch.undo()
    predict.load_predictor(networks / "model.tflite", device="cuda")
    assert "--device cuda does nothing" in capsys.readouterr().err


def test_top_level_imports_are_few():
    tree = ast.parse((ROOT / "predict.py").read_text())
    nodes = [m for n in tree.body for m in (n.body if isinstance(n, ast.Try) else [n])]
    names = [n.names[0].name if isinstance(n, ast.Import) else n.module
             for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]  # fmt: skip
    outside = {n.split(".")[0] for n in names} - set(sys.stdlib_module_names)
    assert outside == {"cv2", "numpy"}
