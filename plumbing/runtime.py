"""A model file that predicts: a .tflite, whose seal is verified first, or a .pt, which is opened by
the function that it is handed to, so that PyTorch is not needed here."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plumbing.files import UserError, notice, usable_cores
from plumbing.pictures import resize_depth, resize_picture

TFLITE_FORMAT, MEMBER = "litedepth-tflite-1", "litedepth.json"  # see `seal`
RUNS = ("runs/student", "runs/distilled")  # where train.py and distill.py write, if not told


# ----------------------------------------------------------- the .tflite and what it says of itself


def seal(content: bytes, metadata: dict) -> bytes:
    """A TFLite flatbuffer -> the file that `read_metadata` and every TFLite runtime read.

    The flatbuffer, zeros up to a multiple of 16, then a zip archive with MEMBER, as TFLite's own
    associated files are packed: runtimes ignore it, `unzip -p model.tflite litedepth.json` shows
    it. MEMBER is `metadata` after "format", "bytes" and "sha256" of all that precedes the archive.
    The same in gives the same bytes out.
    """
    content += bytes(-len(content) % 16)
    digest = hashlib.sha256(content).hexdigest()
    metadata = {"format": TFLITE_FORMAT, "bytes": len(content), "sha256": digest} | metadata
    member = zipfile.ZipInfo(MEMBER, (1980, 1, 1, 0, 0, 0))  # a fixed date: reproducible files
    member.create_system, member.external_attr = 3, 0o644 << 16
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(member, json.dumps(metadata, indent=1, allow_nan=False) + "\n")
    return file.getvalue()


def read_metadata(content: bytes, name: str) -> dict:
    """What `seal` wrote into a .tflite, after its length and checksum were verified.

    To be called before an interpreter sees the bytes: one that is given a damaged flatbuffer may
    crash. name: the file's, for messages. Raises UserError for a file that is cut, damaged,
    foreign, older than `seal` or of another format.
    """
    anew = "copy it anew, or write it again with export.py"
    if content[4:8] != b"TFL3":
        raise UserError(f"{name}: not a TFLite file (empty, or a web page?): {anew}")
    if content[-22:-18] != b"PK\5\6":
        raise UserError(
            f"{name}: no {MEMBER} at its end, so it is cut short (copy it anew), or older or "
            "foreign (write it again with export.py)"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            start = archive.getinfo(MEMBER).header_offset
            metadata = json.loads(archive.read(MEMBER))
        form, *stamp = (metadata[key] for key in ("format", "bytes", "sha256"))
    # All that zipfile and json raise on bytes that are not what they should be.
    except (zipfile.BadZipFile, zlib.error, EOFError, LookupError, OSError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        raise UserError(f"{name}: foreign, or damaged at its end ({error}): {anew}") from error
    if form != TFLITE_FORMAT:
        raise UserError(
            f"{name}: format {form!r}, and this predict.py reads {TFLITE_FORMAT!r}: "
            "take the predict.py that lies beside the export.py that wrote it, or export anew"
        )
    if stamp != [start, hashlib.sha256(content[:start]).hexdigest()]:
        raise UserError(f"{name}: damaged, it has not the checksum it was written with: {anew}")
    return metadata


# ------------------------------------------------------------------------------- picture -> metres


class Predictor:
    """RGB u8 (H, W, 3) of any size -> depth float32 (H, W) in metres.

    run: raw RGB (*size, 3) of `dtype` -> (h, w) metres, of any size; invoke: its inner part without
    the copies in and out, on the last input (None: they cannot be told apart). resize: how the
    metres get to the picture's size, see `resize_depth`. calibration: the one that a .tflite holds
    already. `milliseconds` holds the time of each run. `tells_stretching`: that a picture has
    another shape than size is told, once.
    """

    def __init__(
        self, run: Callable, size: tuple[int, int], resize: str, about: str, *,
        dtype: str = "float32", invoke: Callable | None = None, calibration: dict | None = None,
    ) -> None:  # fmt: skip
        self.run, self.size, self.resize = run, size, resize
        self.about = f"{about}, {size[0]}x{size[1]}"
        self.dtype, self.invoke, self.calibration = dtype, invoke, calibration
        self.milliseconds: list[float] = []
        self.tells_stretching = True
        run(np.zeros((*size, 3), dtype))  # the first run is slow; it also tries the graph

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        return resize_depth(self.native(rgb), rgb.shape[:2], self.resize)

    def native(self, rgb: np.ndarray) -> np.ndarray:
        """The network's own map (h, w) of the picture, as it comes out of `run`."""
        (h, w), (H, W) = rgb.shape[:2], self.size
        if self.tells_stretching and abs(math.log(w * H / (h * W))) > 0.02:
            self.tells_stretching = False
            notice(f"{h}x{w} (high x wide) is stretched to the network's {H}x{W} and back; depth "
                   "may suffer: crop it, or export.py --input_size. Said once")  # fmt: skip
        image = resize_picture(rgb, self.size).astype(self.dtype, copy=False)
        start = time.perf_counter()
        depth = self.run(image)
        self.milliseconds.append(1000 * (time.perf_counter() - start))
        return depth


def newest_model(names: tuple[str, ...]) -> Path:
    """The newest file of these names in RUNS, under the current folder. Raises UserError."""
    wanted = [Path(run, name) for run in RUNS for name in names]
    found = [path for path in wanted if path.is_file()]
    if not found:
        raise UserError(
            f"no model here (looked for {', '.join(map(str, wanted))}): train one with train.py, "
            "or name a file with --model FILE"
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def load_predictor(
    path: str | os.PathLike, open_checkpoint: Callable, *,
    image_size: tuple[int, int] | None = None, resize: str = "nearest",
    threads: int | None = None, device: str = "auto",
) -> Predictor:  # fmt: skip
    """A .pt written by `model.save` or a .tflite written by export.py (see `seal`), to be called.

    open_checkpoint: `model.runner`, called for a .pt only, so that who has no PyTorch may import it
    late. image_size is what a picture is resized to; None = the file's own (480x640 for a .pt that
    does not say), and a .tflite knows no other. threads: 0 = all usable cores, None = the runtime's
    default. Raises UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such model file")
    threads = usable_cores() if threads == 0 else threads
    if path.suffix == ".pt":
        run, size, about = open_checkpoint(path, threads, device)
        return Predictor(run, image_size or size, resize, about)
    if path.suffix != ".tflite":
        raise UserError(f"{path}: a model is a .pt (train.py) or a .tflite (export.py)")
    if device == "cuda":
        notice("--device cuda does nothing here: a .tflite runs on the CPU")
    predictor = load_tflite(path, threads or 1, resize)
    if image_size not in (None, predictor.size):
        shape = "x".join(map(str, predictor.size))
        raise UserError(f"{path} takes {shape} only: give --image_size {shape}, or leave it out")
    return predictor


def interpreter(content: bytes, name: str, threads: int):
    """A TFLite file in LiteRT, ready to run. name: for messages. Raises UserError."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise UserError(
            f"{name} needs a runtime: pip install ai-edge-litert==2.1.6 ({error})"
        ) from error
    try:
        lite = Interpreter(model_content=content, num_threads=threads)
        lite.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name}: this LiteRT cannot run it; pip install ai-edge-litert==2.1.6 can, if the "
            f"pictures are not too large for the memory: {reason}"
        ) from error
    return lite


def load_tflite(path: Path, threads: int, resize: str) -> Predictor:
    """A sealed .tflite on the CPU, after its seal was verified. Raises UserError."""
    content = path.read_bytes()
    metadata = read_metadata(content, str(path))
    lite = interpreter(content, str(path), threads)  # not the file, which may have changed
    [source], [target] = lite.get_input_details(), lite.get_output_details()
    per_metre = {"m": 1, "mm": 1000}[metadata["output"]["unit"]]

    def run(image: np.ndarray) -> np.ndarray:
        lite.set_tensor(source["index"], image[None])
        lite.invoke()
        depth = lite.get_tensor(target["index"])[0, :, :, 0]
        return depth if per_metre == 1 else depth / np.float32(per_metre)

    return Predictor(
        run, tuple(metadata["input"]["size"]), resize,
        f"TFLite {metadata['precision']}, threads {threads}", dtype=metadata["input"]["dtype"],
        invoke=lite.invoke, calibration=metadata.get("calibration"),
    )  # fmt: skip
