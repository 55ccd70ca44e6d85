"""Sec. 4.5: a .tflite on a device: what it says of itself, timing, smoothing, point clouds."""

import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

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
