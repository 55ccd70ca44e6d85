"""Checkpoints: written whole, read and checked, never run."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from plumbing.files import UserError, quoted, replacing

CHECKPOINT_FORMAT = "litedepth-1"  # in every checkpoint; raised when an old file could be misread
# What a checkpoint says of itself, where somebody relies on it; any may lack.
CHECKPOINT_KINDS = {
    "model_args": dict, "model": dict, "epoch": int, "batch": int, "step": int, "image_size": list,
    "flags": dict, "sums": dict, "optimizer": dict, "objective": dict,
}  # fmt: skip
LARGEST_SIDE = 1 << 13  # no picture that a checkpoint names is larger


class CheckpointError(UserError):
    """A weights file that cannot be used; the message names file and cure."""


# ------------------------------------------------------------------------------------ checkpoints


def save(path: str | os.PathLike, content: dict) -> None:
    """Writes a dictionary of tensors and plain values; a reader sees the old file or the new one.

    It is on the disk when this returns. Raises ValueError for what `read_checkpoint` would refuse
    later, such as a numpy scalar; OSError, which names the file and says what is left of an older
    one, where it cannot be written (disk full, read-only).
    """
    path = Path(path)
    _check_plain(content, "it")
    try:
        with replacing(path, durable=True) as part, open(part, "wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        # torch's zip writer answers a full disk with a RuntimeError of its own; the system's word
        # for it stands behind that.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        why = str(cause.strerror or cause).removeprefix("cannot be written ").strip("()")
        kept = "the one that is there is older and whole" if path.exists() else "there is none yet"
        raise OSError(
            f"{path}: cannot be written ({why}); {kept}. Make room, or take another folder"
        ) from error


def is_ours(content: object) -> bool:
    return isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT


def _check_plain(thing: object, name: str) -> None:
    """Raises ValueError for what no checkpoint can hold; name: what `thing` is, for the message."""
    if isinstance(thing, dict):
        for key, value in thing.items():
            _check_plain(key, f"a name in {name}")
            _check_plain(value, str(key))
    elif isinstance(thing, list | tuple):
        for value in thing:
            _check_plain(value, name)
    # type, not isinstance: a numpy.float64 is a float
    elif not isinstance(thing, Tensor) and type(thing) not in (str, int, float, bool, type(None)):
        raise ValueError(
            f"a checkpoint holds tensors and plain values, but {name} is a {type(thing).__name__}"
        )


class ForeignObject:
    """In place of whatever a file names beside tensors and plain values: takes and does nothing."""

    def __new__(cls, *_: object) -> ForeignObject:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def read_weights(path: str | os.PathLike) -> object:
    """What a file of weights holds, on the CPU: tensors, plain values and, for code, which is never
    run, a `ForeignObject`. By their content: .safetensors, archives of torch.save and the pickles
    of PyTorch before 1.6. Raises CheckpointError.

    An archive's checksums are verified first: torch.load does not notice flipped bytes, and leaves
    a tensor unset that the directory calls a folder.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint file")
        with open(path, "rb") as file:
            head = file.read(9)
        if head[8:] == b"{" and int.from_bytes(head[:8], "little") < 10**8:
            return safetensors.torch.load(path.read_bytes())
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                folders = [m.filename for m in archive.infolist() if m.external_attr & 0x10]
                if broken := archive.testzip() or "".join(folders[:1]):
                    raise ValueError(f"wrong checksum: {broken[:99]}")
        return _unpickle(path)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds for a bad file
        # What torch says of a pickle is advice on how to run its code after all.
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path}: holds code ({code[1]:.200}), which is never run; ask for weights"
            ) from error
        reason = str(error).partition("Unpickler error:")[2] or str(error)
        reason = reason.strip().partition("\n")[0][:200] or type(error).__name__
        raise CheckpointError(
            f"{path}: not a readable weights file ({reason}); if it is cut short or damaged, copy "
            "it anew, else save the weights alone: torch.save(model.state_dict(), NEW)"
        ) from error


def _unpickle(path: Path) -> object:
    """torch.load, which refuses unknown names one by one, until each is a `ForeignObject`; what
    torch blocks (os, sys) stays refused, and all in a checkpoint of ours."""
    names: list[str] = []
    while True:
        foreign = [(ForeignObject, name) for name in names]
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(foreign):
                warnings.simplefilter("ignore")  # of another protocol, which is read or refused
                content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            told = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            name = told[1] if told and "." in told[1] else f"builtins.{told and told[1]}"
            if not told or name in names or len(names) > 200:
                raise
            names.append(name)
            continue
        if names and is_ours(content):
            raise CheckpointError(f"{path}: holds code ({names[0]:.200}), which is never run")
        return content


def read_checkpoint(path: str | os.PathLike, training: bool = False) -> dict:
    """The dictionary of `save`, on the CPU; training: one that a run can go on from.

    Raises CheckpointError: missing, cut, damaged, of another kind, without the state of training.
    """
    content = read_weights(path)
    if not is_ours(content):
        raise CheckpointError(
            f"{path}: not a LiteDepth checkpoint (no {CHECKPOINT_FORMAT!r} mark). A file of "
            "backbone weights goes to train.py --pretrained FILE"
        )
    for name, kind in CHECKPOINT_KINDS.items():
        if not isinstance(value := content.get(name, kind()), kind):
            raise CheckpointError(f"{path}: {name} {value!r:.40} cannot be; take another one")
    size = content.get("image_size", [1, 1])
    if len(size) != 2 or not all(type(n) is int and 0 < n <= LARGEST_SIDE for n in size):
        raise CheckpointError(f"{path}: image_size {size!r:.80} cannot be")
    if training and (lacking := {"optimizer", "objective", "epoch", "flags"} - content.keys()):
        raise CheckpointError(
            f"{path}: holds weights but no training state ({', '.join(sorted(lacking))} missing); "
            f"start a run from them with --pretrained {quoted([path])}"
        )
    return content


def load_weights(module: nn.Module, weights: object, path: str | os.PathLike) -> None:
    """load_state_dict whose error is one line that names the file, CheckpointError."""
    try:
        module.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).partition("\n")[2].split()) or str(error)
        raise CheckpointError(f"{path}: does not fit this network: {reason:.500}") from error
