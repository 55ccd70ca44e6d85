"""A .tflite that predicts, after its seal was verified; no PyTorch."""

from __future__ import annotations

import hashlib
import io
import json
import reprlib
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plumbing.files import UserError
from plumbing.pictures import resize_depth, resize_picture

TFLITE_FORMAT, MEMBER = "litedepth-tflite-1", "litedepth.json"  # see `seal`


def seal(content: bytes, metadata: dict) -> bytes:
    """A TFLite flatbuffer -> the file that `read_metadata` and every TFLite runtime read.

    The flatbuffer, zeros up to a multiple of 16, then a zip archive with MEMBER, as TFLite's own
    associated files are packed: runtimes ignore it, `unzip -p model.tflite litedepth.json` shows
    it. MEMBER is `metadata` after "format", "bytes" and "sha256" of all that precedes the archive.
    The same in gives the same bytes out. Raises UserError for what `read_metadata` would refuse.
    """
    if content[4:8] != b"TFL3" or content[-22:-18] == b"PK\5\6":
        raise UserError("only a bare TFLite flatbuffer can be sealed, and only once")
    content += bytes(-len(content) % 16)
    digest = hashlib.sha256(content).hexdigest()
    stamp = {"format": TFLITE_FORMAT, "bytes": len(content), "sha256": digest}
    metadata = stamp | metadata | stamp  # first, whatever an older file's metadata say
    _check_tensors(metadata, "sealing")
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
            if MEMBER not in archive.namelist():
                raise ValueError(f"no {MEMBER} in it")
            member = archive.getinfo(MEMBER)
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("compressed")
            metadata = json.loads(archive.read(MEMBER))
            form, *stamp = (metadata[key] for key in ("format", "bytes", "sha256"))
    # All that zipfile and json raise on bytes that are not what they should be.
    except (zipfile.BadZipFile, EOFError, LookupError, OSError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        raise UserError(f"{name}: foreign, or damaged at its end ({error}): {anew}") from error
    if form != TFLITE_FORMAT:
        raise UserError(
            f"{name}: format {reprlib.repr(form)}, and this predict.py reads {TFLITE_FORMAT!r}: take the "
            "predict.py that lies beside the export.py that wrote it, or export anew"
        )
    start = member.header_offset
    if stamp != [start, hashlib.sha256(content[:start]).hexdigest()]:
        raise UserError(f"{name}: damaged, it has not the checksum it was written with: {anew}")
    _check_tensors(metadata, name)
    return metadata


def _check_tensors(metadata: dict, name: str) -> None:
    """Raises UserError unless the metadata names a precision and tensors known here."""
    told = {key: metadata.get(key) for key in ("precision", "input", "output")}
    try:
        (H, W), (h, w) = told["input"]["size"], told["output"]["size"]
        source = told["input"] | {"range": list(told["input"]["range"])}
        fine = (
            isinstance(told["precision"], str)
            and all(type(n) is int and n > 0 for n in (H, W, h, w))
            and source.items() >= {"layout": "NHWC", "channels": "RGB", "range": [0, 255]}.items()
            and told["output"].items() >= {"layout": "NHWC", "dtype": "float32"}.items()
            and source["dtype"] in ("float32", "uint8") and told["output"]["unit"] in ("m", "mm")
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError):
        fine = False
    if not fine:
        raise UserError(
            f"{name}: {MEMBER} describes tensors that predict.py cannot use: {reprlib.repr(told)}"
        )


class Predictor:
    """RGB u8 (H, W, 3) of any size -> depth float32 (H, W) in metres.

    run: raw RGB (*size, 3) of `dtype` -> (h, w) metres, of any size; invoke: its inner part without
    the copies in and out, on the last input (None: they cannot be told apart). calibration: the one
    that a .tflite holds already. `milliseconds` holds the time of each run.
    """

    def __init__(
        self, run: Callable, size: tuple[int, int], resize: str, about: str, *,
        dtype: str = "float32", invoke: Callable | None = None, calibration: dict | None = None,
    ) -> None:  # fmt: skip
        self.run, self.size, self.resize, self.about = run, size, resize, about
        self.dtype, self.invoke, self.calibration = dtype, invoke, calibration
        self.milliseconds: list[float] = []
        run(np.zeros((*size, 3), dtype))  # the first run is slow; it also tries the graph

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        return resize_depth(self.native(rgb), rgb.shape[:2], self.resize)

    def native(self, rgb: np.ndarray) -> np.ndarray:
        """The network's own map (h, w) of the picture, as it comes out of `run`."""
        image = resize_picture(rgb, self.size).astype(self.dtype, copy=False)
        start = time.perf_counter()
        depth = self.run(image)
        self.milliseconds.append(1000 * (time.perf_counter() - start))
        return depth


def load_tflite(
    path: Path, threads: int | None
) -> tuple[Callable, tuple[int, int], str, dict[str, object]]:
    content = path.read_bytes()
    metadata = read_metadata(content, str(path))
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            raise UserError(f"{path} needs a runtime: pip install ai-edge-litert") from None
    try:  # the verified bytes, not the file, which may have changed
        interpreter = Interpreter(model_content=content, num_threads=threads or 1)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: whole, but this TFLite runtime cannot run it; pip install "
            f"ai-edge-litert==2.1.6 is known to: {reason}"
        ) from error
    sides = interpreter.get_input_details(), interpreter.get_output_details()
    found = [[(tuple(t["shape"].tolist()), np.dtype(t["dtype"]).name) for t in s] for s in sides]
    size, dtype = tuple(metadata["input"]["size"]), metadata["input"]["dtype"]
    said = [[((1, *size, 3), dtype)], [((1, *metadata["output"]["size"], 1), "float32")]]
    if found != said:
        raise UserError(
            f"{path}: its {MEMBER} says {said[0]} in and {said[1]} out, the graph has {found[0]} "
            f"and {found[1]}: write it again with export.py"
        )
    source, target = sides[0][0]["index"], sides[1][0]["index"]
    per_metre = {"m": 1, "mm": 1000}[metadata["output"]["unit"]]

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        depth = interpreter.get_tensor(target)[0, :, :, 0]
        return depth if per_metre == 1 else depth / np.float32(per_metre)

    extra = {"dtype": dtype, "invoke": interpreter.invoke}
    return run, size, metadata["precision"], extra | {"calibration": metadata.get("calibration")}
