"""Sec. 4.5: a .tflite on a device: what it says of itself, timing, smoothing, point clouds."""

import functools
import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_predict import command, picture

import plumbing.device
import plumbing.video
import predict
from plumbing.cameras import cameras_in
from plumbing.device import benchmark, benchmark_table, machine, run_times
from plumbing.files import UserError, usable_cores
from plumbing.pictures import block_values, resize_depth
from plumbing.points import camera, ply, point_cloud
from plumbing.runtime import Predictor, load_predictor, read_metadata, seal
from plumbing.video import Moving, Smooth, predict_video

ROOT = Path(__file__).resolve().parent.parent
FLATBUFFER = b"\x1c\0\0\0TFL3" + bytes(range(45))  # only its mark is looked at here


def described(size=(96, 128), out=None, dtype="float32", unit="m", precision="fp32") -> dict:
    """Metadata of a file that takes `size` and gives `out` (None: the same)."""
    return {
        "precision": precision,
        "input": {"size": list(size), "dtype": dtype, "layout": "NHWC", "channels": "RGB",
                  "range": [0, 255]},
        "output": {"size": list(out or size), "dtype": "float32", "layout": "NHWC", "unit": unit},
        "mean": [127.5] * 3, "std": [127.5] * 3, "calibration": None,
    }  # fmt: skip


# --------------------------------------------------------------------------------------- metadata


def test_sealed_file_is_the_flatbuffer_then_a_zip():
    sealed = seal(FLATBUFFER, described())
    assert sealed[:53] == FLATBUFFER and sealed[53:64] == bytes(11) and sealed[64:68] == b"PK\3\4"
    assert sealed == seal(FLATBUFFER, described())  # nothing of the clock in it
    metadata = read_metadata(sealed, "m.tflite")
    assert list(metadata)[:3] == ["format", "bytes", "sha256"] and metadata["bytes"] == 64
    assert {k: metadata[k] for k in described()} == described()
    with zipfile.ZipFile(io.BytesIO(sealed)) as archive:
        assert archive.testzip() is None and archive.namelist() == ["litedepth.json"]
        assert archive.infolist()[0].compress_type == zipfile.ZIP_STORED
        assert json.loads(archive.read("litedepth.json")) == metadata
    assert hashlib.sha256(sealed[:64]).hexdigest() == metadata["sha256"]


def test_every_cut_and_every_changed_byte_is_refused():
    sealed = seal(FLATBUFFER, described())
    for keep in range(len(sealed)):
        with pytest.raises(UserError, match="m.tflite: .*export.py"):
            read_metadata(sealed[:keep], "m.tflite")
    whole, unnoticed = read_metadata(sealed, "m.tflite"), []
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 8]) + sealed[at + 1 :]
        try:
            assert read_metadata(changed, "m.tflite") == whole
            unnoticed.append(at)
        except UserError:
            pass
    assert min(unnoticed) >= 64  # dates and rights in the zip's headers; no flatbuffer byte


def zipped(name: str, member: str) -> bytes:
    """A flatbuffer with a zip of one member behind it, which `seal` did not write."""
    file = io.BytesIO(FLATBUFFER + bytes(11))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, member)
    return file.getvalue()


GOOD = read_metadata(seal(FLATBUFFER, described()), "m.tflite")


@pytest.mark.parametrize("content, told", [
    (b"<!DOCTYPE html>", "no TFLite file"), (FLATBUFFER, "or cut short"),
    (zipped("labels.txt", "labels"), "foreign"), (zipped("litedepth.json", "{}"), "foreign"),
    (zipped("litedepth.json", json.dumps(GOOD | {"format": "other"})), "another version"),
    (zipped("litedepth.json", json.dumps(GOOD | {"sha256": "0"})), "damaged"),
])  # fmt: skip
def test_files_that_seal_did_not_write_are_refused_with_the_cure(content, told):
    with pytest.raises(UserError, match=f"m.tflite: .*{told}.*export"):
        read_metadata(content, "m.tflite")


# ----------------------------------------------------------------------------------------- tensors


@functools.cache
def graph(size: tuple[int, int], step: int, dtype: str, scale: float) -> bytes:
    """A flatbuffer: red / 50 * scale, averaged over step x step pixels; (1, H, W, 3) `dtype` in."""
    tf = pytest.importorskip("tensorflow")

    @tf.function(input_signature=[tf.TensorSpec((1, *size, 3), dtype)], autograph=False)
    def depth(x):
        red = tf.cast(x, tf.float32)[..., :1] * (scale / 50)
        return tf.nn.avg_pool2d(red, step, step, "VALID")

    concrete = depth.get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], depth).convert()


@pytest.fixture
def device_file(tmp_path):
    """device_file(size, step, dtype, unit) -> a sealed .tflite whose depth is red / 50 metres."""

    def make(size=(48, 64), step=1, dtype="float32", unit="m", **more) -> Path:
        content = graph(size, step, dtype, 1000.0 if unit == "mm" else 1.0)
        out = size[0] // step, size[1] // step
        metadata = described(size, out, dtype, unit, **more)
        path = tmp_path / f"{dtype}-{unit}-{step}.tflite"
        path.write_bytes(seal(content, metadata))
        return path

    return make


def load(path: Path, **options) -> Predictor:
    return load_predictor(path, predict.open_checkpoint, **options)


@pytest.mark.parametrize("dtype, unit", [("float32", "m"), ("uint8", "mm")])
def test_input_types_and_units(device_file, dtype, unit):
    predictor = load(device_file(dtype=dtype, unit=unit, precision="int8"))
    rgb = picture()
    depth = predictor(rgb)
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, rgb[..., 0] / 50, rtol=1e-6)
    assert predictor.about == "TFLite int8, threads 1, 48x64"


def test_an_input_of_another_shape_than_the_training_is_told(device_file, capsys):
    """export.py --input_size takes the notice of predict.py away, and not the fault."""
    path, told = device_file(size=(64, 48)), "48x64, and 64x48 has another shape: pictures are"
    for trained, count in (((48, 64), 1), ((128, 96), 0), (None, 0)):  # None: an older file
        metadata = described((64, 48))
        metadata["input"] |= {"trained_on": trained} if trained else {}
        path.write_bytes(seal(graph((64, 48), 1, "float32", 1.0), metadata))
        assert load(path)(picture(64, 48)).shape == (64, 48)
        err = capsys.readouterr().err
        assert err.count("note: ") == count and err.count(told) == count


def test_smaller_output_is_resized_to_the_picture(device_file):
    path, rgb = device_file(step=8), picture(96, 128)
    # 96x128 is halved to 48x64 by area, then averaged over 8x8: means of 16x16 pixels.
    cells = rgb[..., 0].reshape(6, 16, 8, 16).mean((1, 3)) / 50
    predictor = load(path)
    assert predictor.native(rgb).shape == (6, 8)
    expected = np.repeat(np.repeat(cells, 16, 0), 16, 1)
    np.testing.assert_allclose(predictor(rgb), expected, atol=0.011)  # u8 rounds the halved picture
    smooth = load(path, resize="bilinear")(rgb)
    between = torch.nn.functional.interpolate(
        torch.from_numpy(cells)[None, None], (96, 128), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(smooth, between[0, 0], atol=0.011)


def test_damaged_bytes_never_reach_the_interpreter(device_file, monkeypatch):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    path, seen = device_file(), []
    original = litert.Interpreter

    def interpreter(model_path=None, model_content=None, **options):
        seen.append((model_path, model_content))
        return original(model_content=model_content, **options)

    monkeypatch.setattr(litert, "Interpreter", interpreter)
    whole = path.read_bytes()
    load(path)
    assert seen == [(None, whole)]  # the bytes that were verified
    for content in (whole[:-1], whole[:600] + b"\xff" + whole[601:], whole[:600]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="copy it anew"):
            load(path)
    assert len(seen) == 1
    path.write_bytes(seal(b"\x1c\0\0\0TFL3" + bytes(40), described()))
    with pytest.raises(UserError, match="cannot run it"):
        load(path)


# --------------------------------------------------------------------------------------- benchmark


PI = {
    "proc/cpuinfo": "processor : 0\nmodel name\t: ARMv7 rev 3\n\nModel\t: Raspberry Pi 4\n",
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/loadavg": "0.12 0.30 0.20 1/150 4242\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
    "sys/class/thermal/thermal_zone1/temp": "-274000\n",  # a sensor that is not there
    "sys/class/thermal/thermal_zone2/temp": "no number\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",  # hexadecimal
}  # fmt: skip


@pytest.fixture
def pi(tmp_path, monkeypatch):
    """A fake Raspberry Pi's /proc and /sys; pi(file=text) changes a file, None takes it away."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    root = tmp_path / "root"

    def change(files: dict) -> Path:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).unlink() if text is None else (root / name).write_text(text)
        return root

    change(PI)
    return change


def test_machine_reads_proc_and_sys(pi, tmp_path):
    state = machine(pi({}))
    assert state["cpu"].startswith("Raspberry Pi 4 Model B Rev 1.4, ") and state["load"] == 0.12
    assert state["mhz"] == 1500 and state["celsius"] == 48.312 and state["governor"] == "ondemand"
    assert state["throttled"] == 0x50000 and state["cores"] == usable_cores()
    state = machine(pi({"proc/device-tree/model": None}))
    assert state["cpu"].startswith("ARMv7 rev 3, ")
    bare = machine(tmp_path / "absent")
    assert [bare[k] for k in ("mhz", "celsius", "governor", "throttled", "load")] == [None] * 5


def test_run_times_are_table_2s(monkeypatch):
    ms = np.random.default_rng(0).permutation(np.arange(1.0, 102))  # 1 .. 101
    clock = iter(np.cumsum([10_000, *ms]) / 1000)
    monkeypatch.setattr(plumbing.device.time, "perf_counter", lambda: next(clock))
    calls = []
    found = run_times(lambda: calls.append(1), 101)
    assert len(calls) == 101 and found == pytest.approx(
        {"p50": 51, "p90": 91, "p99": 100, "mean": 51, "std": np.sqrt((101**2 - 1) / 12)}
    )


class Counted(Predictor):
    """Counts calls; `during` is called in each whole run."""

    def __init__(self, invoke=True, during=lambda: None):
        self.whole = self.alone = 0
        self.during = during

        def count():
            self.alone += 1

        super().__init__(lambda x: x[..., 0] / 50, (8, 8), "nearest", "toy", invoke=count)

    def __call__(self, rgb):
        self.whole += 1
        self.during()
        return super().__call__(rgb)


def test_benchmark_sweeps_threads(pi):
    made = {}

    def load(count):
        made[count] = Counted()
        return made[count]

    report = benchmark(load, picture(), [1, 2, 4], warmup=3, runs=5, root=pi({}))
    assert [row["threads"] for row in report["threads"]] == [1, 2, 4] == list(made)
    assert all(p.whole == 8 and p.alone == 5 for p in made.values())
    assert report["warnings"] == [] and report["picture"] == [48, 64]  # 0x5 was long ago
    table = benchmark_table(report).splitlines()
    assert "Raspberry Pi 4" in table[0] and "ondemand" in table[0] and "0x50000" in table[0]
    assert [line.split()[0] for line in table[-4:]] == ["threads", "1", "2", "4"]
    assert all(line.split()[-2:] == ["1500", "48"] for line in table[-3:])
    assert len({len(line) for line in table[-4:]}) == 1  # columns under their names
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("before, during, told", [
    ({"proc/loadavg": "1.20 0.30 0.20 2/150 4242\n"}, {}, "load average 1.2 "),
    ({"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n"}, {}, "performance"),
    ({}, {"sys/class/thermal/thermal_zone0/temp": "82100\n"}, "82 C"),
    ({}, {"sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1000000\n"}, "1500 to 1000"),
    ({}, {"sys/devices/platform/soc/soc:firmware/get_throttled": "50004\n"}, "reports throttled:"),
    ({}, {"sys/devices/platform/soc/soc:firmware/get_throttled": "d0000\n"},
     "reports soft temperature limit:"),
    ({"sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n"}, {},
     "under-voltage, throttled"),
])  # fmt: skip
def test_benchmark_tells_what_spoils_it(pi, before, during, told):
    root = pi(before)
    runs = []

    def change():  # in the timed runs, after the 2 of the warm-up
        runs.append(1)
        if len(runs) > 2:
            pi(during)

    report = benchmark(
        lambda count: Counted(during=change), picture(), [1], warmup=2, runs=3, root=root
    )
    (text,) = report["warnings"]
    assert told in text and "\n" not in text


def test_benchmark_of_nothing_known(tmp_path):
    """Not Linux: no warnings, dashes in the table; a .pt cannot tell the copies apart."""
    made = Counted()
    made.invoke = None
    report = benchmark(
        lambda n: made, picture(), [1], warmup=0, runs=2, root=tmp_path / "absent"
    )
    assert report["warnings"] == [] and len(made.milliseconds) == 2
    assert benchmark_table(report).splitlines()[-1].split()[-2:] == ["-", "-"]


def test_benchmark_command(device_file, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "usable_cores", lambda: 3)
    path = device_file(dtype="uint8", step=8)
    timed = ["--benchmark", "--model", path, "--runs", 3, "--warmup", 1]
    assert command(*timed, "--json", "new/b.json") == 0
    printed = capfd.readouterr()
    assert [x.split()[0] for x in printed.out.splitlines()[-3:]] == ["1", "2", "3"]
    assert "TFLite fp32, 48x64" in printed.out
    report = json.loads(Path("new/b.json").read_text())
    assert report["runs"] == 3 and report["picture"] == [48, 64] and "warnings" in report
    assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    cv2.imwrite("a.png", picture(60, 90))
    assert command(*timed, "--threads", 2, "a.png") == 0
    printed = capfd.readouterr()
    assert printed.out.splitlines()[-1].split()[0] == "2" and "60x90" in printed.out
    assert "stretched" not in printed.err and not Path("runs").exists()
    cv2.imwrite("b.png", picture())
    for wrong in (["a.png", "b.png"], ["--camera", 0], ["absent.png"], ["b.json"], ["--runs", 0],
                  ["--warmup", -1]):  # fmt: skip
        assert command(*timed, *wrong) == 2
        assert capfd.readouterr().err.splitlines()[-1].startswith("predict.py: error: ")


# --------------------------------------------------------------------------------------- smoothing


@pytest.mark.parametrize("fps, half_life", [(30, 0.2), (10, 0.2)])
def test_flicker_falls_by_the_ar1_factor(fps, half_life):
    """x -> a s + (1 - a) x of white noise: variance (1-a)/(1+a), of differences 2 (1-a)^2/(1+a)."""
    sigma, a = 0.01, 0.5 ** (1 / fps / half_life)
    noise = np.random.default_rng(0).normal(0, sigma, (400, 64, 64))
    scene = np.geomspace(0.5, 20, 64)  # the same share at each distance
    smooth = Smooth(half_life, 1.2)
    out = [smooth((scene * np.exp(n)).astype(np.float32), 1 / fps) for n in noise]
    assert out[0].dtype == np.float32
    log = np.log(np.array(out[80:]) / scene)
    assert log.var() / sigma**2 == pytest.approx((1 - a) / (1 + a), rel=0.03)
    flicker = np.diff(log, axis=0).var() / sigma**2
    assert flicker == pytest.approx(2 * (1 - a) ** 2 / (1 + a), rel=0.03)
    assert abs(log.mean()) < sigma / 100  # no shift


def test_step_is_followed_at_once_where_it_is_large():
    smooth, dt = Smooth(0.2, 1.2), 1 / 30
    depth = np.full((4, 6), 2, np.float32)
    for _ in range(5):
        np.testing.assert_allclose(smooth(depth, dt), 2, rtol=1e-6)
    depth[:, :2], depth[:, 2] = 1, 2.41  # nearer, farther by over 20 %: exactly the new depth
    np.testing.assert_array_equal(smooth(depth, dt)[:, :3], depth[:, :3])
    np.testing.assert_allclose(smooth(depth, dt), depth, rtol=1e-6)  # and nothing of it drags on


def test_holes_pass_and_never_enter_the_average():
    smooth = Smooth(0.2, 1.2)
    frames = np.full((6, 1, 5), 2, np.float32)
    frames[2, 0, :4] = 0, np.nan, np.inf, -1
    frames[3:, 0, :4] = 2.2
    out = [smooth(frame, 1 / 30) for frame in frames]
    np.testing.assert_array_equal(out[2], frames[2])
    np.testing.assert_allclose(out[3], [[2.2] * 4 + [2]], rtol=1e-6)  # anew, not mixed with 2 or 0
    np.testing.assert_allclose(np.delete(out, 2, 0)[..., 4], 2, rtol=1e-6)
    smooth = Smooth(0.2, 1.2)  # holes from the start
    assert np.isnan(smooth(frames[2] * np.float32(np.nan), 1 / 30)).all()
    np.testing.assert_array_equal(smooth(frames[0], 1 / 30), frames[0])


@pytest.fixture
def clip(tmp_path) -> Path:
    """20 frames at 10 a second of a noisy still scene; at frame 10 its left half jumps."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    rng = np.random.default_rng(0)
    for i in range(20):
        level = np.full((6, 8, 1), 120)
        level[:, :4] = 220 if i >= 10 else 100
        small = level + rng.normal(0, 4, (6, 8, 1)) + np.zeros(3)
        frame = np.repeat(np.repeat(small, 8, 0), 8, 1)  # JPEG's own blocks: little is lost
        writer.write(frame.clip(0, 255).astype(np.uint8))
    writer.release()
    return path


def frames_of(folder: Path) -> np.ndarray:
    """(n, H, W) millimetres."""
    return np.array([cv2.imread(str(p), -1) for p in sorted(folder.iterdir())], np.float64)


def test_smooth_command_on_a_clip(device_file, clip, tmp_path, capsys):
    options = ["--model", device_file(), "--frames", "--out", tmp_path / "o"]
    assert command(clip, *options) == 0
    raw = frames_of(tmp_path / "o/clip_frames")
    assert command(clip, *options, "--smooth") == 0
    smooth = frames_of(tmp_path / "o/clip_frames")
    a, expected = 0.5 ** (1 / 10 / 0.2), [raw[0]]
    for now in raw[1:]:
        old = expected[-1]
        jumps = np.abs(np.log(now / old)) > np.log(1.2)
        expected.append(np.where(jumps, now, old**a * now ** (1 - a)))
    assert np.abs(smooth - expected).max() <= 2  # rounding to millimetres, fed back
    left = np.s_[10, 8:40, 4:20]
    np.testing.assert_array_equal(smooth[left], raw[left])  # the jump is there in its own frame
    for wrong in (["--smooth=0"], ["--smooth", clip], ["--smooth_reset=1"]):
        capsys.readouterr()
        assert command(*options, *wrong) == 2
        assert wrong[0].split("=")[0] in capsys.readouterr().err


def test_camera_is_smoothed_by_the_clock(tmp_path, monkeypatch):
    """A camera's frames come when they come: the time between them counts, not a promised rate."""
    clock, arrivals, seen = [100.0], [0.5, 0.1, 0.3], []

    class Camera:
        def get(self, _):
            return 30.0

        def read(self):
            if not arrivals:
                return False, None
            clock[0] += arrivals.pop(0)
            return True, picture()

    def slow(rgb):
        clock[0] += 0.05
        return np.ones(rgb.shape[:2], np.float32)

    monkeypatch.setattr(plumbing.video.time, "perf_counter", lambda: clock[0])
    averaged = lambda depth, seconds: seen.append(seconds) or depth  # noqa: E731
    monkeypatch.setattr(plumbing.video, "Smooth", lambda half_life, reset: averaged)
    assert predict_video(Camera(), "c", slow, tmp_path, (1, 2), Moving(smooth=0.2), live=True) == 3
    assert seen[1:] == pytest.approx([0.15, 0.35])


# ------------------------------------------------------------------------------- bilinear, points


def test_cells_of_an_enlarged_map():
    """The graph's nearest resize is undone; torch enlarges here, as the network does."""
    depth = torch.from_numpy(np.random.default_rng(0).uniform(1, 9, (32, 40)).astype("f4"))
    enlarged = torch.nn.functional.interpolate(depth[None, None], (480, 640), mode="nearest")[0, 0]
    np.testing.assert_array_equal(block_values(enlarged.numpy()), depth)
    between = torch.nn.functional.interpolate(
        depth[None, None], (960, 1280), mode="bilinear", align_corners=False
    )[0, 0]
    bilinear = resize_depth(enlarged.numpy(), (960, 1280), "bilinear")
    np.testing.assert_allclose(bilinear, between, atol=1e-4)
    np.testing.assert_array_equal(block_values(depth.numpy()), depth)  # nothing to undo
    wall = np.full((48, 64), 2, np.float32)
    wall[:, 32:] = 3  # two blocks of one size, and not a network's
    assert block_values(wall) is wall


def test_bilinear_does_not_mix_holes():
    depth = np.array([[2, 2, 0, np.nan, 4, 4]], np.float32)
    got = resize_depth(depth, (1, 24), "bilinear")[0]
    np.testing.assert_allclose(got, [2] * 8 + [0] * 8 + [4] * 8, rtol=1e-6)
    np.testing.assert_array_equal(resize_depth(depth * 0, (2, 12), "bilinear"), 0)


def read_ply(content: bytes) -> tuple[list[str], list[tuple]]:
    """(comments, vertices) by the PLY format's rules alone."""
    head, body = content.split(b"end_header\n", 1)
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    kinds = [line.split()[1:] for line in lines if line.startswith("property")]
    assert [name for _, name in kinds] == ["x", "y", "z", "red", "green", "blue"]
    layout = struct.Struct("<" + "".join({"float": "f", "uchar": "B"}[kind] for kind, _ in kinds))
    (count,) = [int(line.split()[2]) for line in lines if line.startswith("element vertex ")]
    assert len(body) == count * layout.size
    return [x for x in lines if x.startswith("comment")], list(layout.iter_unpack(body))


WHOLE = {"edge": 1.1, "near_far": None}


def test_points_by_hand():
    """fx 100, fy 200, centre (1, 0.5): the pixel at (u, v), z metres away, and no holes."""
    rgb = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    depth = np.array([[2, 0, 4], [np.nan, 8, -1]], np.float32)
    points = point_cloud(rgb, depth, depth, (100, 200, 1, 0.5), **WHOLE)
    comments, vertices = read_ply(ply(points))
    assert vertices == [
        (pytest.approx(-0.02), pytest.approx(0.005), -2, 0, 1, 2),
        (pytest.approx(0.04), pytest.approx(0.01), -4, 6, 7, 8),
        (0, pytest.approx(-0.02), -8, 12, 13, 14),
    ]
    assert "metres" in comments[0] and "y up" in comments[0]
    points = point_cloud(rgb, depth, depth, (100, 200, 1, 0.5), **WHOLE | {"near_far": (3, 5)})
    assert [p[2] for p in read_ply(ply(points))[1]] == [-4]
    assert read_ply(ply(points[:0]))[1] == []


def test_no_point_flies_between_the_sides_of_an_edge():
    native = np.full((12, 16), 1, np.float32)
    native[:, 8:] = 3
    native += np.linspace(0, 0.1, 16, dtype=np.float32) + np.linspace(0, 0.1, 12)[:, None]
    rgb, K = picture(96, 128), (100, 100, 64, 48)
    depth, own = (resize_depth(native, (96, 128), how) for how in ("bilinear", "nearest"))
    z = -point_cloud(rgb, depth, own, K, edge=1.1, near_far=None)["z"]
    assert not ((z > 1.35) & (z < 2.7)).any() and 0.9 < len(z) / rgb[..., 0].size < 1
    assert len(np.unique(z)) > 5000  # smooth on both sides, no steps of 12x16 cells
    z = -point_cloud(rgb, depth, own, K, edge=100, near_far=None)["z"]
    assert ((z > 1.35) & (z < 2.7)).any() and len(z) == rgb[..., 0].size


def test_camera_is_scaled_with_the_picture():
    """By hand: half-pixel centres, so that (c + 0.5) scales, not c."""
    known = {"fx": 500, "fy": 510, "cx": 319.5, "cy": 240.5, "width": 640, "height": 480}
    assert camera(cameras_in(known), "a", (480, 640), (480, 640)) == (500, 510, 319.5, 240.5)
    assert camera(cameras_in(known), "a", (960, 1280), (240, 320)) == (250, 255, 159.5, 120)
    plain = {k: known[k] for k in ("fx", "fy", "cx", "cy")}  # of each picture as it is
    assert camera(cameras_in(plain), "a", (240, 320), (240, 320)) == (500, 510, 319.5, 240.5)
    frames = {"frames": {"a": known, "b": known | {"fx": 600}}}
    assert camera(cameras_in(frames), "b", (960, 1280), (960, 1280)) == (1200, 1020, 639.5, 481.5)
    fx, fy, cx, cy = camera(None, "a", (480, 640), (480, 640))  # a guess: the Kinect's
    assert fx == fy == pytest.approx(518.858) and (cx, cy) == (319.5, 239.5)
    assert camera(None, "a", (640, 480), (640, 480)) == pytest.approx((fx, fx, cy, cx))


@pytest.mark.parametrize("known, told", [
    ({"fx": 500, "fy": 500, "cx": 1, "cy": 1, "width": 480, "height": 640}, "turned"),
    ({"fx": 500, "fy": 500, "cx": 1}, "cy"), ({"fx": 0, "fy": 1, "cx": 1, "cy": 1}, "impossible"),
    ({"frames": {}}, "'a'"), ([], "expected an object"), ({"depth_scale": 1}, "but depth_scale"),
    ({"fx": 519, "fy": 519, "cx": 3195, "cy": 240}, "cannot be"),  # a point forgotten
    ({"fx": 0.8, "fy": 1.1, "cx": 0.5, "cy": 0.5}, "in pixels"),  # in shares of the sides
])  # fmt: skip
def test_useless_intrinsics_are_named(known, told):
    with pytest.raises(UserError, match=f"--intrinsics .*{told}"):
        camera(cameras_in(known), "a", (480, 640), (480, 640))


def test_ply_command(device_file, tmp_path, capsys):
    rgb = picture(96, 128)
    cv2.imwrite(str(tmp_path / "a.png"), rgb[..., ::-1])
    options = [tmp_path / "a.png", "--ply", "--model", device_file(), "--out", tmp_path / "o"]
    assert command(*options, "--intrinsics", "128,128,63.5,47.5") == 0
    assert "note" not in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"a_color.png", "a_depth.png", "a.ply"}
    vertices = np.array(read_ply((tmp_path / "o/a.ply").read_bytes())[1])
    small = cv2.resize(rgb, (64, 48), interpolation=cv2.INTER_AREA)  # no more than the network's
    z = small[..., 0].ravel() / 50
    v, u = np.divmod(np.arange(48 * 64), 64)
    expected = np.stack([(u - 31.5) / 64 * z, -(v - 23.5) / 64 * z, -z], 1)[z > 0]
    np.testing.assert_allclose(vertices[:, :3], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(vertices[:, 3:], small.reshape(-1, 3)[z > 0])
    options[3] = device_file(step=8)  # 6x8 cells: bilinear for the points, if not told
    for flags, smooth in (([], True), (["--resize", "nearest"], False)):
        assert command(*options, *flags) == 0
        vertices = np.array(read_ply((tmp_path / "o/a.ply").read_bytes())[1])
        assert (len(np.unique(vertices[:, 2])) > 6 * 8) == smooth
    capsys.readouterr()
    (tmp_path / "k.json").write_text('{"frames": {"b": {}}}')
    for flags, code, told in (
        ([], 0, "63 degrees"), (["--intrinsics", tmp_path / "k.json"], 2, "skipped .*'a'"),
        *((["--intrinsics", text], 2, "neither FX,FY,CX,CY")
          for text in ("absent.json", "1,2,3")),
    ):  # fmt: skip
        assert command(*options, *flags) == code
        assert re.search(told, capsys.readouterr().err)


# --------------------------------------------------------------------------------- the Pi's install


DEVICE = ["files", "flags", "pictures", "runtime", "device", "video", "points", "cameras",
          "calibration"]  # of plumbing/
# What `pip install -r requirements-device.txt` brings: its three packages, and what those need.
INSTALLED = ["numpy", "cv2", "ai_edge_litert", "backports", "flatbuffers", "google", "tqdm",
             "typing_extensions"]  # fmt: skip
ALONE = f"""
import json, sys

class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        ours = {INSTALLED} + ["predict", "plumbing"]
        if top not in ours and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"blocked here: {{name}}")

sys.meta_path.insert(0, Only())
import predict
from plumbing.files import run_main
for arguments in json.loads(sys.argv[1]):
    print("exit code", run_main(lambda: predict.main(arguments), "predict.py"), flush=True)
"""


def test_a_few_files_and_three_packages_are_all_a_pi_needs(device_file, clip, tmp_path):
    """predict.py, what it imports and the .tflite are there, nothing else of ours, no PyTorch."""
    alone = tmp_path / "pi"
    (alone / "plumbing").mkdir(parents=True)
    shutil.copy(ROOT / "predict.py", alone)
    for name in ["__init__", *DEVICE]:
        shutil.copy(ROOT / f"plumbing/{name}.py", alone / "plumbing")
    shutil.copy(device_file(dtype="uint8", step=8, unit="mm"), alone / "model.tflite")
    cv2.imwrite(str(alone / "a.png"), picture()[..., ::-1])
    (alone / "best.pt").write_bytes(b"PK a checkpoint")
    model = ["--model", "model.tflite"]
    commands = [
        ["a.png", *model, "--out", "o", "--ply", "--intrinsics", "60,60,32,24", "--at", "3,4"],
        ["--measured", "a.png:30,20=3", *model, "--out", "k"],
        ["a.png", *model, "--out", "c", "--calibration", "k/calibration.json", "--json", "c.json"],
        [str(clip), *model, "--out", "o", "--smooth", "--frames"],
        ["--benchmark", *model, "--runs", "2", "--warmup", "1", "--json", "b.json"],
        ["a.png", "--model", "best.pt"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(commands)], cwd=alone, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes = [line for line in done.stdout.splitlines() if line.startswith("exit code")]
    assert codes == [f"exit code {code}" for code in (0, 0, 0, 0, 0, 2)], done.stderr
    assert "pip install torch" in done.stderr and "Traceback" not in done.stderr
    assert {p.name for p in (alone / "o").iterdir()} == {
        "a.ply", "a_color.png", "a_depth.png", "clip_color.mp4", "clip_frames",
    }  # fmt: skip
    depth = cv2.imread(str(alone / "o/a_depth.png"), -1)
    expected = cv2.resize(picture()[..., 0] * 20.0, (8, 6), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(depth[4::8, 4::8], expected, atol=1)
    assert json.loads((alone / "b.json").read_text())["runs"] == 2


def test_requirements_device_are_the_three_packages():
    """Pinned as in requirements.txt, with which everything is tested."""
    lines = (ROOT / "requirements-device.txt").read_text().splitlines()
    pins = {line.split("#")[0].strip() for line in lines} - {""}
    everywhere = (ROOT / "requirements.txt").read_text().splitlines()
    assert pins <= {line.split("#")[0].strip() for line in everywhere}
    assert {pin.split("==")[0] for pin in pins} == {"numpy", "opencv-python", "ai-edge-litert"}
