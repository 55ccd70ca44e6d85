"""Runs a TFLite file on pictures: on this host, and on the emulated ARM for bench_arm.py.

    python arm_guest.py FOLDER RUNS     FOLDER/{model.tflite,pictures.npy} -> FOLDER/outputs.npy

Both machines run this same code. It needs numpy and ai-edge-litert, like predict.py on a device.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def interpreter(content: bytes) -> Interpreter:
    """Ready to run, one thread."""
    runner = Interpreter(model_content=content, num_threads=1)
    runner.allocate_tensors()
    return runner


def outputs(runner: Interpreter, pictures: np.ndarray) -> np.ndarray:
    """(n, ...) values 0..255 of the input's shape -> (n, values of all outputs) float32.

    They are given as the input's type has them: 0..255 as float32 and uint8, -128..127 as int8.
    """
    [source], rows = runner.get_input_details(), []
    for picture in pictures:
        values = picture.astype(np.int16) - 128 if source["dtype"] == np.int8 else picture
        runner.set_tensor(source["index"], values[None].astype(source["dtype"]))
        runner.invoke()
        tensors = [runner.get_tensor(t["index"]).ravel() for t in runner.get_output_details()]
        rows.append(np.concatenate(tensors).astype(np.float32))
    return np.stack(rows)


def main(folder: Path, runs: int) -> None:
    runner = interpreter((folder / "model.tflite").read_bytes())
    np.save(folder / "outputs.npy", outputs(runner, np.load(folder / "pictures.npy")))
    # Marks for insn_count.c: what lies between two of them is one run, without copies.
    for _ in range(runs):
        os.getppid()
        runner.invoke()
        os.getppid()
    os.getppid()  # and nothing: what a pair of marks costs itself
    os.getppid()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
