"""tests/bench/gpu_delegate.py: how it reads the delegate's log and, where `--prepare` has been run,
what the delegate makes of two graphs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import export
from model import LiteDepth
from plumbing.files import cache_root

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))
import gpu_delegate  # noqa: E402

FOLDER = cache_root() / "swiftshader"
prepared = pytest.mark.skipif(
    not (FOLDER / "icd.json").is_file(), reason="python tests/bench/gpu_delegate.py --prepare"
)
LOG = """ERROR: Following operations are not supported by GPU delegate:
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
    "whole, max_abs, largest, code, said",
    [
        (True, 2e-4, 5.0, 0, "whole"), (True, 2e-4, 0.5, 3, "DIFFERS"),
        (True, float("inf"), 5.0, 3, "DIFFERS"), (False, 0.0, 5.0, 3, "X: no"),
        (False, None, 0.0, 3, "CANNOT"),
    ],
)  # fmt: skip
def test_verdicts(monkeypatch, capsys, whole, max_abs, largest, code, said):
    found = {"whole": whole, "max_abs": max_abs, "largest": largest, "refused": ["X: no"]}
    monkeypatch.setattr(gpu_delegate, "check", lambda file, folder: found)
    assert gpu_delegate.main(["a.tflite"]) == code
    assert said in capsys.readouterr().out


@prepared
def test_the_papers_file_runs_whole_and_equal(tmp_path):
    torch.manual_seed(0)
    file, model = tmp_path / "paper.tflite", LiteDepth().eval()
    file.write_bytes(export.convert(model, export.Layout().of(model)))
    found = gpu_delegate.check(file, FOLDER)
    assert found["whole"] and not found["refused"]
    assert found["max_abs"] <= 1e-4 * max(1, found["largest"])


@prepared
def test_padding_with_a_mean_is_computed_wrong_there(tmp_path):
    """Why export.py concatenates constants: PADV2 is accepted and its value read as 0."""
    tf = export.tensorflow()
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
