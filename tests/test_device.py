"""Sec. 4.5: a .tflite on a device: what it says of itself, timing, smoothing, point clouds."""

import functools
import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import predict

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


def test_sealed_file_is_the_flatbuffer_then_a_zip(tmp_path):
    sealed = predict.seal(FLATBUFFER, described())
    assert sealed[:53] == FLATBUFFER and sealed[53:64] == bytes(11) and sealed[64:68] == b"PK\3\4"
    assert sealed == predict.seal(FLATBUFFER, described())  # nothing of the clock in it
    metadata = predict.read_metadata(sealed, "m.tflite")
    assert list(metadata)[:3] == ["format", "bytes", "sha256"] and metadata["bytes"] == 64
    assert {k: metadata[k] for k in described()} == described()
    with zipfile.ZipFile(io.BytesIO(sealed)) as archive:
        assert archive.testzip() is None and archive.namelist() == ["litedepth.json"]
        assert archive.infolist()[0].compress_type == zipfile.ZIP_STORED
    (tmp_path / "m.tflite").write_bytes(sealed)
    if unzip := shutil.which("unzip"):
        command = [unzip, "-p", tmp_path / "m.tflite", "litedepth.json"]
        done = subprocess.run(command, capture_output=True)
        assert done.returncode == 0 and not done.stderr and json.loads(done.stdout) == metadata
    if shasum := shutil.which("sha256sum"):
        done = subprocess.run([shasum], input=sealed[:64], capture_output=True)
        assert done.stdout.split()[0].decode() == metadata["sha256"]


def test_every_cut_and_every_changed_byte_is_refused():
    sealed = predict.seal(FLATBUFFER, described())
    for keep in range(len(sealed)):
        with pytest.raises(predict.PredictError, match="m.tflite: .*(export.py|tensors)"):
            predict.read_metadata(sealed[:keep], "m.tflite")
    whole, unnoticed = predict.read_metadata(sealed, "m.tflite"), []
    for at in range(len(sealed)):
        for flip in (1, 8, 128):
            changed = sealed[:at] + bytes([sealed[at] ^ flip]) + sealed[at + 1 :]
            try:
                assert predict.read_metadata(changed, "m.tflite") == whole
                unnoticed.append(at)
            except predict.PredictError:
                pass
    assert min(unnoticed) >= 64  # dates and rights in the zip's headers; no flatbuffer byte


@pytest.mark.parametrize("content, told", [
    (b"", "not a TFLite file"), (b"<!DOCTYPE html>", "not a TFLite file"),
    (FLATBUFFER, "older or foreign"), (FLATBUFFER + bytes(11), "older or foreign"),
])  # fmt: skip
def test_files_without_metadata_are_refused_with_the_cure(content, told):
    with pytest.raises(predict.PredictError, match=f"m.tflite: .*{told}.*export.py"):
        predict.read_metadata(content, "m.tflite")


def repacked(metadata: object, name="litedepth.json", **options) -> bytes:
    """A sealed file whose member is `metadata`, with a checksum that is right."""
    file = io.BytesIO(FLATBUFFER + bytes(11))
    with zipfile.ZipFile(file, "a", **options) as archive:
        archive.writestr(name, metadata if isinstance(metadata, str) else json.dumps(metadata))
    return file.getvalue()


def test_other_formats_and_other_tensors_are_refused():
    good = predict.read_metadata(predict.seal(FLATBUFFER, described()), "m.tflite")
    assert predict.read_metadata(repacked(good), "m.tflite") == good
    changes = [
        ({"format": "litedepth-tflite-2"}, "format 'litedepth-tflite-2'.*export anew"),
        ({"format": None}, "format None"), ({"bytes": 53}, "checksum"), ({"sha256": 0}, "checksum"),
        ({"precision": None}, "tensors"), ({"input": {}}, "tensors"), ({"output": 3}, "tensors"),
        ({"input": good["input"] | {"layout": "NCHW"}}, "NCHW"),
        ({"input": good["input"] | {"size": [96]}}, "tensors"),
        ({"input": good["input"] | {"size": [96, 0]}}, "tensors"),
        ({"input": good["input"] | {"size": [96, "128"]}}, "tensors"),
        ({"input": good["input"] | {"dtype": "int8"}}, "int8"),
        ({"input": good["input"] | {"range": [0, 1]}}, "tensors"),
        ({"output": good["output"] | {"unit": "inch"}}, "inch"),
        ({"output": good["output"] | {"dtype": "int8"}}, "int8"),
    ]  # fmt: skip
    for change, told in changes:
        with pytest.raises(predict.PredictError, match=told):
            predict.read_metadata(repacked(good | change), "m.tflite")
    for content in (repacked("{"), repacked("[]"), repacked(good, name="other.json"),
                    repacked(good, compression=zipfile.ZIP_DEFLATED)):  # fmt: skip
        with pytest.raises(predict.PredictError, match="m.tflite: "):
            predict.read_metadata(content, "m.tflite")


def test_only_what_can_be_read_is_sealed():
    sealed = predict.seal(FLATBUFFER, described())
    for content in (b"no flatbuffer", sealed):
        with pytest.raises(predict.PredictError, match="bare TFLite flatbuffer"):
            predict.seal(content, described())
    with pytest.raises(predict.PredictError, match="sealing: .*inch"):
        predict.seal(FLATBUFFER, described(unit="inch"))
    with pytest.raises(ValueError):
        predict.seal(FLATBUFFER, described() | {"mean": [float("nan")] * 3})


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
        path.write_bytes(predict.seal(content, metadata))
        return path

    return make


def picture(h=48, w=64, seed=0) -> np.ndarray:
    """A smooth colourful RGB picture."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("unit", ["m", "mm"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_input_types_and_units(device_file, dtype, unit):
    predictor = predict.load_predictor(device_file(dtype=dtype, unit=unit, precision="int8"))
    rgb = picture()
    depth = predictor(rgb)
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, rgb[..., 0] / 50, rtol=1e-6)
    assert predictor.about == "TFLite int8, threads 1, 48x64"


def test_smaller_output_is_resized_to_the_picture(device_file):
    path, rgb = device_file(step=8), picture(96, 128)
    # 96x128 is halved to 48x64 by area, then averaged over 8x8: means of 16x16 pixels.
    cells = rgb[..., 0].reshape(6, 16, 8, 16).mean((1, 3)) / 50
    predictor = predict.load_predictor(path)
    assert predictor.native(rgb).shape == (6, 8)
    expected = np.repeat(np.repeat(cells, 16, 0), 16, 1)
    np.testing.assert_allclose(predictor(rgb), expected, atol=0.011)  # u8 rounds the halved picture
    smooth = predict.load_predictor(path, resize="bilinear")(rgb)
    between = torch.nn.functional.interpolate(
        torch.from_numpy(cells)[None, None], (96, 128), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(smooth, between[0, 0], atol=0.011)


@pytest.mark.parametrize("change", [
    {"size": (64, 48)}, {"out": (24, 32)}, {"dtype": "uint8"}, {"size": (48, 65)},
])  # fmt: skip
def test_graph_that_is_not_as_described_is_refused(tmp_path, change):
    metadata = described(**({"size": (48, 64), "out": (48, 64)} | change))
    (tmp_path / "m.tflite").write_bytes(predict.seal(graph((48, 64), 1, "float32", 1.0), metadata))
    with pytest.raises(predict.PredictError, match=r"\(1, 48, 64, 3\), 'float32'.*export.py"):
        predict.load_predictor(tmp_path / "m.tflite")


def test_damaged_bytes_never_reach_the_interpreter(device_file, monkeypatch):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    path, seen = device_file(), []
    original = litert.Interpreter

    def interpreter(model_path=None, model_content=None, **options):
        seen.append((model_path, model_content))
        return original(model_content=model_content, **options)

    monkeypatch.setattr(litert, "Interpreter", interpreter)
    whole = path.read_bytes()
    predict.load_predictor(path)
    assert seen == [(None, whole)]  # the bytes that were verified
    for content in (whole[:-1], whole[:600] + b"\xff" + whole[601:], whole[:600]):
        path.write_bytes(content)
        with pytest.raises(predict.PredictError, match="copy it anew"):
            predict.load_predictor(path)
    assert len(seen) == 1
    path.write_bytes(predict.seal(b"\x1c\0\0\0TFL3" + bytes(40), described()))
    with pytest.raises(predict.PredictError, match="cannot run it"):
        predict.load_predictor(path)
