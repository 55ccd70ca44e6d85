"""Checkpoints and calibrations: read and checked, never run."""

from __future__ import annotations

import json
import os
import pickletools
import reprlib
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from plumbing.files import UserError

CHECKPOINT_FORMAT = "litedepth-1"  # written into every checkpoint; raised when an old file could be misread


CALIBRATION = "litedepth-calibration-1"  # the same for what evaluate.py --calibrate writes


class CheckpointError(UserError):
    """A weights or calibration file that cannot be used; the message names the file, the keys and
    the cure."""


def read_calibration(path: str | os.PathLike) -> dict:
    """What evaluate.py --calibrate wrote: "scale", "shift_m" (metres) and how they were found.

    Raises CheckpointError for a file that is missing, of another kind, or impossible.
    """
    path, cure = Path(path), "make one with evaluate.py --calibrate SPLIT"
    if not _is_file(path):
        raise CheckpointError(f"{path}: no such calibration file; {cure}")
    try:
        content = json.loads(Path(path).read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:80]
        raise CheckpointError(f"{path}: not readable as JSON ({reason}); {cure}") from error
    if not isinstance(content, dict) or content.get("format") != CALIBRATION:
        raise CheckpointError(f"{path}: not a calibration (no {CALIBRATION!r} mark); {cure}")
    for name in ("scale", "shift_m"):
        value = content.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and abs(value) < 1e9 and (name != "scale" or value > 0)):  # NaN fails too
            raise CheckpointError(f"{path}: {name} {reprlib.repr(value)} cannot be; {cure}")
    words, pairs = ("split", "data", "model", "model_sha256"), content.get("pairs", 0)
    strange = [name for name in words if not isinstance(content.get(name, ""), str)]
    strange += ["pairs"] * (type(pairs) is not int or not 0 <= pairs < 1e9)
    if strange:
        shown = reprlib.repr(content[strange[0]])
        raise CheckpointError(f"{path}: {strange[0]} {shown} cannot be; {cure}")
    try:
        json.dumps(content, allow_nan=False)  # a .tflite takes it over
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: a value in it cannot be ({error}); {cure}") from error
    return content


def check_plain(thing: object, name: str) -> None:
    """Raises ValueError for what no checkpoint can hold; name: what `thing` is, for the message."""
    if isinstance(thing, dict):
        for key, value in thing.items():
            check_plain(key, f"a name in {name}")
            check_plain(value, str(key))
    elif isinstance(thing, list | tuple):
        for value in thing:
            check_plain(value, name)
    # type, not isinstance: a numpy.float64 is a float
    elif not isinstance(thing, Tensor) and type(thing) not in (str, int, float, bool, type(None)):
        raise ValueError(
            f"a checkpoint holds tensors and plain values, but {name} is a {type(thing).__name__}"
        )


def read_checkpoint(path: str | os.PathLike) -> dict:
    """The dictionary written by `save`, on the CPU; tensors and plain values only, never code.

    Raises CheckpointError for a file that is missing, cut, altered or of another kind, and for one
    that says of itself what cannot be. The archive's own checksums are verified first: torch.load
    does not notice flipped bytes.
    """
    content = read_weights(Path(path))
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: not a LiteDepth checkpoint (no {CHECKPOINT_FORMAT!r} mark). A file of backbone weights "
            "goes to train.py --pretrained FILE"
        )
    check_facts(content, path)
    return content


def check_facts(content: dict, path: str | os.PathLike) -> None:
    """Raises CheckpointError for counts, sizes and flags that cannot be."""
    for name in ("epoch", "batch", "step"):
        count = content.get(name, 0)
        if type(count) is not int or not 0 <= count < 1 << 62:
            raise CheckpointError(f"{path}: {name} {reprlib.repr(count)} cannot be")
    size = content.get("image_size", [1, 1])
    if not (_numbers(size, 2) and all(type(n) is int and 0 < n <= SIDE for n in size)):
        raise CheckpointError(f"{path}: image_size {reprlib.repr(size)} cannot be")
    if not isinstance(content.get("flags", {}), dict):
        raise CheckpointError(f"{path}: its flags are none")


SIDE = 1 << 13  # no picture that a checkpoint names, and no network, is larger


WINDOW = 64  # no Swin's is larger


def check_args(model_args: object) -> None:
    """Raises ValueError unless these are names and plain values that `create` may be asked for."""
    if not isinstance(model_args, dict) or not all(type(k) is str for k in model_args):
        raise ValueError(f"its model_args are none: {reprlib.repr(model_args)}")
    for name, value in model_args.items():
        if name == "size":
            fine = _numbers(value, 2) and all(type(n) is int and n <= SIDE for n in value)
        elif name in ("mean", "std"):
            fine = _numbers(value, 3)
        elif name in ("window", "drop_path"):
            fine = _numbers([value], 1) and value <= WINDOW
            fine = fine and (name != "window" or type(value) is int)
        elif name == "merged":
            fine = type(value) is bool
        else:
            fine = type(value) is str and len(value) < 40
        if not fine:
            raise ValueError(f"model_args: {name[:40]} {reprlib.repr(value)} cannot be")


def _numbers(values: object, count: int) -> bool:
    """Whether these are `count` plain numbers, none of them huge or not finite."""
    return (
        type(values) in (list, tuple) and len(values) == count
        and all(type(v) in (int, float) and abs(v) < 1e9 for v in values)
    )  # fmt: skip


def read_weights(path: Path) -> object:
    """What a file of tensors and plain values holds, on the CPU: dictionaries, lists and tuples of
    them; tensors are dense and own what they show. Raises CheckpointError.

    torch.load(weights_only=True) runs no code. What it lets pass beyond that, a few bytes that
    unpack to gigabytes or that take hours to hash or print, is refused here.
    """
    if not _is_file(path):
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        with open(path, "rb") as f:
            if zipfile.is_zipfile(f):
                if broken := _broken_member(f):
                    raise CheckpointError(
                        f"{path}: damaged, or no file of torch.save ({broken}); copy it anew"
                    )
            else:  # PyTorch before 1.6: magic number, protocol, system, content, storages' names
                f.seek(0)
                if f.read(4) == b"PK\3\4":
                    raise ValueError("the end of its archive is missing")
                f.seek(0)
                for _ in range(5):
                    _check_pickle(f)
        return _plain(torch.load(path, map_location="cpu", weights_only=True), [MOST], 0)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds for a bad file
        # torch's weights-only message begins with advice on how to load code after all
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
        raise CheckpointError(
            f"{path}: not a readable weights file (cut short, damaged, or holding code): "
            f"{reason[0][:200] if reason and ' ' in reason[0] else type(error).__name__}"
        ) from error


MOST = 200_000  # things in a checkpoint; the largest teacher's, with its optimizer, has 10,000


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long a name, or a folder that may not be looked into
        return False


def _broken_member(file: BinaryIO) -> str:
    """What is wrong with a checkpoint's archive, checksums included; "" = nothing.

    PyTorch packs nothing and writes each name once. Members that are packed, or that share bytes,
    can be a million times as long as the file.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            return "its archive is compressed"
        if sum(member.file_size for member in members) > file.seek(0, os.SEEK_END):
            return "its archive claims more than there is"
        if len(set(names)) < len(names):
            return "its archive holds one name twice"
        folders = [m.filename for m in members if m.external_attr & 0x10]
        if broken := archive.testzip() or next(iter(folders), None):  # torch skips a "folder"
            return f"wrong checksum: {broken[:99]}"
        for name in names:
            if name.endswith("data.pkl"):
                with archive.open(name) as member:
                    _check_pickle(member)
    return ""


def _check_pickle(file: BinaryIO) -> None:
    """Raises ValueError for a pickle whose tuples, taken apart, are more than MOST things.

    A pair of twice the same pair, forty times over, is two hundred bytes: as a dictionary's key it
    is hashed in 2^40 steps, inside torch.load. Each operation here takes the sizes of what it needs
    off a stack and leaves their sum, as the things themselves come and go in unpickling.
    """
    stack: list[int | None] = []  # None: a mark
    memo: dict[int, int] = {}
    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if "PUT" in name or name == "MEMOIZE":
            memo[len(memo) if argument is None else int(argument)] = stack[-1]
        elif "GET" in name:
            stack.append(memo[int(argument)])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(None)
        else:
            size = 1
            for kind in reversed(operation.stack_before):
                if kind is pickletools.stackslice:
                    while stack[-1] is not None:
                        size += stack.pop()
                else:  # one thing, or the mark
                    size += stack.pop() or 0
            if size > MOST:
                raise ValueError("it unpacks to more than a checkpoint can hold")
            stack += [size] * len(operation.stack_after)


def _plain(thing: object, left: list[int], depth: int) -> object:
    """A copy of what torch.load returned: bare dictionaries, lists, tuples and tensors, for a file
    may give any of them attributes that hide its methods. left: how many things it may be yet.
    Raises ValueError for more of them, and for what no checkpoint holds."""
    left[0] -= 1
    if left[0] < 0 or depth > 50:
        raise ValueError("it unpacks to more than a checkpoint can hold")
    if isinstance(thing, dict):
        if any(type(k) not in (str, int, float, bool, type(None)) for k in dict.keys(thing)):
            raise ValueError("a name in it is no word or number")
        return {k: _plain(v, left, depth + 1) for k, v in dict.items(thing)}
    if isinstance(thing, list):
        return [_plain(v, left, depth + 1) for v in list.__iter__(thing)]
    if isinstance(thing, tuple):
        return tuple(_plain(v, left, depth + 1) for v in tuple.__iter__(thing))
    if isinstance(thing, Tensor):
        bare = Tensor.detach(thing)  # without attributes
        dense = type(bare) is Tensor and bare.layout == torch.strided and not bare.is_nested
        if not dense or bare.device.type != "cpu" or bare.is_quantized or bare.is_complex():
            raise ValueError("a tensor in it is sparse, quantised, complex or of no memory")
        if bare.numel() * bare.element_size() > bare.untyped_storage().nbytes():
            raise ValueError("a tensor in it shows more than it holds")
        return bare
    return thing
