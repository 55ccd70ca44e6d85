"""tests/gpu_delegate.py: how it reads the delegate's log and, where `--prepare` has been run, what
the delegate makes of two graphs."""

from __future__ import annotations

import gpu_delegate
import numpy as np
import pytest
import torch

import export
from model import LiteDepth
from plumbing.files import cache_root
from plumbing.report import tensorflow_quietly

FOLDER = cache_root() / "swiftshader"
prepared = pytest.mark.skipif(
    not (FOLDER / "icd.json").is_file(), reason="python tests/gpu_delegate.py --prepare"
)
LOG = """INFO: [registry] Loading
ERROR: Following operations are not supported by GPU delegate:
RESHAPE: Tensor dimensions must be less than 5. Reshape
TOPK_V2: Operation is not supported.
TOPK_V2: Operation is not supported.
1 operations will run on the GPU, and the remaining 3 operations will run on the CPU.
WARNING: something else
"""


def test_refusals_are_read_off_the_log():
    assert gpu_delegate.refusals(LOG) == [
        "RESHAPE: Tensor dimensions must be less than 5. Reshape",
        "TOPK_V2: Operation is not supported.",
    ]
    assert gpu_delegate.refusals("INFO: nothing of the kind\nWARNING: really\n") == []


@pytest.mark.parametrize(
    "found, code, said",
    [
        ({"whole": True, "max_abs": 2e-4, "largest": 5.0, "refused": []}, 0, "whole"),
        ({"whole": True, "max_abs": 2e-4, "largest": 0.5, "refused": []}, 3, "DIFFERS"),
        ({"whole": True, "max_abs": float("inf"), "largest": 5.0, "refused": []}, 3, "DIFFERS"),
        ({"whole": False, "max_abs": 0.0, "largest": 5.0, "refused": ["X: no"]}, 3, "X: no"),
        ({"whole": False, "max_abs": None, "largest": 0.0, "refused": []}, 3, "CANNOT"),
    ],
)
def test_verdicts(monkeypatch, capsys, found, code, said):
    monkeypatch.setattr(gpu_delegate, "check", lambda file, folder: found)
    assert gpu_delegate.main(["a.tflite"]) == code
    assert said in capsys.readouterr().out


def test_help_advises():
    with pytest.raises(SystemExit) as done:
        gpu_delegate.main(["--help"])
    assert done.value.code == 0


@prepared
def test_the_papers_file_runs_whole_and_equal(tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "paper.tflite"
    model = LiteDepth().eval()
    file.write_bytes(export.convert(model, export.standard(model, (480, 640))))
    found = gpu_delegate.check(file, FOLDER)
    assert found["whole"] and not found["refused"]
    assert found["max_abs"] <= 1e-4 * max(1, found["largest"])


@prepared
def test_padding_with_a_mean_is_computed_wrong_there(tmp_path):
    """Why export.py concatenates constants: PADV2 is accepted and its value read as 0."""
    tf = tensorflow_quietly()
    weight = np.random.default_rng(0).random((3, 3, 3, 4)).astype(np.float32)

    @tf.function(input_signature=[tf.TensorSpec((1, 16, 24, 3))], autograph=False)
    def padded(x):
        x = tf.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]], constant_values=127.5)
        return tf.nn.conv2d(x, weight, 2, "VALID")

    concrete = padded.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], padded)
    file = tmp_path / "padded.tflite"
    file.write_bytes(converter.convert())
    found = gpu_delegate.check(file, FOLDER)
    assert found["whole"] and found["max_abs"] > 0.01 * found["largest"]
