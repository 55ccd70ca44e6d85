"""A model file that predicts: a .tflite, whose seal is verified first, or a .pt, which is opened by
the function that it is handed to, so that PyTorch is not needed here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plumbing.files import UserError, notice, usable_cores
from plumbing.pictures import aspect_crop, resize_depth, resize_picture, same_shape

TFLITE_FORMAT, MEMBER = "litedepth-tflite-1", "litedepth.json"  # see `seal`
# Ours, trained on rendered rooms and streets; see weights/README.md.
SHIPPED = Path(__file__).resolve().parent.parent / "weights/litedepth.tflite"
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
    if content[4:8] != b"TFL3" or content[-22:-18] != b"PK\5\6":
        raise UserError(f"{name}: no TFLite file of export.py, or cut short: {anew}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            start = archive.getinfo(MEMBER).header_offset
            metadata = json.loads(archive.read(MEMBER))
        stamp = [metadata[key] for key in ("format", "bytes", "sha256")]
    # All that zipfile and json raise on bytes that are not what they should be.
    except (zipfile.BadZipFile, zlib.error, EOFError, LookupError, OSError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        raise UserError(f"{name}: foreign, or damaged at its end ({error}): {anew}") from error
    if stamp != [TFLITE_FORMAT, start, hashlib.sha256(content[:start]).hexdigest()]:
        raise UserError(f"{name}: damaged, or of another version than this program: {anew}")
    return metadata


# ------------------------------------------------------------------------------- picture -> metres


# Top, left, bottom, right as shares of a picture, and a map (h, w) of it in metres.
View = tuple[tuple[float, float, float, float], np.ndarray]


def slices(box: tuple[float, ...], size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of an array (H, W) = size that are inside a View's box."""
    top, left, bottom, right = np.rint(np.multiply(box, (*size, *size))).astype(int)
    return np.s_[top:bottom, left:right]


def assemble(views: list[View], size: tuple[int, int], how: str) -> np.ndarray:
    """Depth (H, W) = size in metres from `Predictor.look`: later views lie on earlier ones. how:
    see `resize_depth`."""
    depth = np.empty(size, np.float32)
    for box, native in views:
        part = depth[slices(box, size)]
        part[:] = resize_depth(native, part.shape, how)
    return depth


class Predictor:
    """RGB u8 (H, W, 3) of any size -> depth float32 (H, W) in metres.

    run: raw RGB (*size, 3) of `dtype` -> (h, w) metres, of any size; invoke: its inner part without
    the copies in and out, on the last input (None: they cannot be told apart). resize: how the
    metres get to the picture's size, see `resize_depth`. calibration: the one that a .tflite holds
    already. `milliseconds` holds the network's time of each picture. `tells_shape`: that one has
    another shape than size is told, once, see `look`. `trained_on`: size of the training pictures.
    """

    def __init__(
        self, run: Callable, size: tuple[int, int], resize: str, about: str, *,
        dtype: str = "float32", invoke: Callable | None = None, calibration: dict | None = None,
    ) -> None:  # fmt: skip
        self.run, self.size, self.resize = run, size, resize
        self.about = f"{about}, {size[0]}x{size[1]}"
        self.dtype, self.invoke, self.calibration = dtype, invoke, calibration
        self.milliseconds: list[float] = []
        self.tells_shape = True
        self.trained_on, self.adjust = size, lambda d: d
        run(np.zeros((*size, 3), dtype))  # the first run is slow; it also tries the graph

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        return assemble(self.look(rgb), rgb.shape[:2], self.resize)

    def look(self, rgb: np.ndarray) -> list[View]:
        """The network's own maps of the picture, for `assemble`: last its middle, cut as
        evaluate.py does; where it has another shape than `size`, before it the whole, squeezed.

        The middle's metres are kept. The whole, which sees how all hangs together, is multiplied on
        each side by the median ratio of both in the quarter of the middle next to it.
        """
        H, W = rgb.shape[:2]
        top, left, h, w = aspect_crop((H, W), self.size)
        middle = whole = self.native(rgb[top : top + h, left : left + w])
        box = top / H, left / W, (top + h) / H, (left + w) / W
        if not same_shape((H, W), self.size):
            if self.tells_shape:
                self.tells_shape = False
                notice(f"{H}x{W} (high x wide) has another shape than the network's {self.size[0]}x"
                       f"{self.size[1]}: its middle {h}x{w} is looked at by itself, the rest "
                       "squeezed and scaled to that; best is a network trained with such an "
                       "--image_size and --size")  # fmt: skip
            whole = self.native(rgb).copy()
            self.milliseconds[-2:] = [sum(self.milliseconds[-2:])]
            part = whole[slices(box, whole.shape)]
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = resize_depth(middle, part.shape, "nearest") / part
            ratio, sides = (ratio, whole) if h < H else (ratio.T, whole.T)
            n = len(ratio) // 4 + 1
            for near, side in zip((ratio[:n], ratio[-n:]), np.array_split(sides, 2)):
                near = near[np.isfinite(near) & (near > 0)]
                side *= np.median(near) if near.size else 1
        views = [((0, 0, 1, 1), whole), (box, middle)]
        return [(at, self.adjust(d)) for at, d in views[(h, w) == (H, W) :]]

    def calibrate(self, scale: float, shift: float) -> None:
        """From now on d is max(0, scale d + shift), metres; holes stay holes."""
        a, b = np.float32(scale), np.float32(shift)
        self.adjust = lambda d: np.where(d > 0, np.maximum(a * d + b, 0), d)
        self.about += f", calibrated {a:.4g} d {b:+.4g} m"

    def native(self, rgb: np.ndarray) -> np.ndarray:
        """The network's own map (h, w) of a picture that is squeezed to `size`, not calibrated."""
        image = resize_picture(rgb, self.size).astype(self.dtype, copy=False)
        start = time.perf_counter()
        depth = self.run(image)
        self.milliseconds.append(1000 * (time.perf_counter() - start))
        return depth


def check_uncalibrated(predictor: Predictor, path: Path) -> None:
    """Raises UserError where the model file holds a calibration."""
    if predictor.calibration:
        raise UserError(f"{path} holds a calibration already, and a second would apply on top: "
                        "give the .pt that it was exported from to --model")  # fmt: skip


def tell_shape(path: Path, size: tuple[int, int], trained: tuple[int, int]) -> None:
    """A remark where pictures are brought to another shape than those of the training."""
    if not same_shape(size, trained):
        (H, W), (h, w) = size, trained
        notice(f"{path}: trained on {h}x{w}, and {H}x{W} has another shape: pictures are squeezed, "
               "and depth suffers; leave out --image_size and export.py --input_size")  # fmt: skip


def newest_model(names: tuple[str, ...], shipped: Path | None = None) -> Path:
    """The newest file of these names in RUNS, under the current folder, else `shipped`. Raises
    UserError."""
    wanted = [Path(run, name) for run in RUNS for name in names]
    found = [path for path in wanted if path.is_file()]
    if not found:
        if shipped and shipped.is_file():
            return shipped
        raise UserError(
            f"no model here (looked for {', '.join(map(str, wanted))}): train one with train.py, "
            "or name a file, as weights/litedepth.pt (--model, export.py --checkpoint)"
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
        run, trained, about = open_checkpoint(path, threads, device)
        tell_shape(path, image_size or trained, trained)
        return Predictor(run, image_size or trained, resize, about)
    if path.suffix != ".tflite":
        raise UserError(f"{path}: a model is a .pt (train.py) or a .tflite (export.py)")
    if device == "cuda":
        notice("--device cuda does nothing here: a .tflite runs on the CPU")
    predictor = load_tflite(path, threads or 1, resize)
    if image_size not in (None, predictor.size):
        shape = "x".join(map(str, predictor.size))
        raise UserError(f"{path} takes {shape} only: give --image_size {shape}, or leave it out")
    tell_shape(path, predictor.size, predictor.trained_on)
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

    size = tuple(metadata["input"]["size"])
    predictor = Predictor(
        run, size, resize, f"TFLite {metadata['precision']}, threads {threads}",
        dtype=metadata["input"]["dtype"], invoke=lite.invoke,
        calibration=metadata.get("calibration"),
    )  # fmt: skip
    predictor.trained_on = tuple(metadata["input"].get("trained_on", size))  # older files lack it
    return predictor
