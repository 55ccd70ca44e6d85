"""Checkpoints: written whole, read and checked, never run."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from plumbing.files import UserError, quoted, replacing, wrong_kind

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


class StandIn:
    """In place of whatever a file names beside tensors and plain values: takes what it is given,
    does nothing, and keeps its state, where a module that was saved whole has its tensors."""

    state: object = None

    def __new__(cls, *_: object) -> StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.state = state


def read_weights(path: str | os.PathLike) -> tuple[object, list[str]]:
    """What a file of weights holds, on the CPU, and the names of what it is not: code, which is
    never run, for which there are `StandIn`s. By their content: .safetensors, archives of
    torch.save and the pickles of PyTorch before 1.6. Raises CheckpointError.

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
            return _read_safetensors(path), []
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                folders = [m.filename for m in archive.infolist() if m.external_attr & 0x10]
                if broken := archive.testzip() or "".join(folders[:1]):
                    raise ValueError(f"wrong checksum: {broken[:99]}")
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise CheckpointError(
                        f"{path}: a TorchScript program, which is not run; save its weights alone: "
                        "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
                    )
        return _unpickle(path)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds for a bad file
        # What torch says of a pickle is advice on how to run its code after all.
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path}: holds code ({code[1]:.200}), which is never run; ask for weights"
            ) from error
        reason = str(error).partition("\n")[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = str(error).partition("Unpickler error:")[2].strip().partition("\n")[0]
            if zipfile.is_zipfile(path) or reason.startswith("Only "):
                raise CheckpointError(
                    f"{path}: holds what cannot be read without running code ({reason:.200}); save "
                    "its weights alone: torch.save(model.state_dict(), NEW)"
                ) from error
        raise CheckpointError(
            f"{path}: not a readable weights file, cut short or damaged "
            f"({reason[:200] or type(error).__name__}); copy it anew"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise CheckpointError(f"{path}: to read it, pip install safetensors") from error
    return load(path.read_bytes())


def _unpickle(path: Path) -> tuple[object, list[str]]:
    """torch.load, which refuses unknown names one by one, until each has a stand-in; one that is
    filled as a dictionary or a list is one. What torch blocks (os, sys) stays refused."""
    names: dict[str, type] = {}
    while True:
        try:
            stand_ins = [(made, name) for name, made in names.items()]
            with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
                warnings.simplefilter("ignore")  # of another protocol, which is read or refused
                return torch.load(path, map_location="cpu", weights_only=True), [*names]
        except pickle.UnpicklingError as error:
            told = str(error)
            unknown = re.search(r"Unsupported global: GLOBAL (\S+)", told)
            filled = re.search(rf"Can only (\w+) .*but got <class '{__name__}\.(\S+)'>", told)
            name = unknown[1] if unknown else filled[2] if filled else ""
            name = name if "." in name else f"builtins.{name}"  # as torch leaves out
            if not (unknown or filled) or len(names) > 200 or (name in names) == bool(unknown):
                raise
            how = {}
            if filled:
                kind = OrderedDict if filled[1].startswith("SETITEM") else list
                how["__new__"] = lambda *_, kind=kind: kind()
            names[name] = type(name, (StandIn,), how)


def read_checkpoint(path: str | os.PathLike, training: bool = False) -> dict:
    """The dictionary of `save`, on the CPU; training: one that a run can go on from.

    Raises CheckpointError: missing, cut, damaged, of another kind, without the state of training.
    """
    content, code = read_weights(path)
    if not is_ours(content):
        raise CheckpointError(
            f"{path}: not a LiteDepth checkpoint (no {CHECKPOINT_FORMAT!r} mark). A file of "
            "backbone weights goes to train.py --pretrained FILE"
        )
    if code:
        raise CheckpointError(f"{path}: holds code ({code[0]:.200}), which is never run")
    if name := wrong_kind(content, CHECKPOINT_KINDS):
        raise CheckpointError(f"{path}: {name} cannot be; take another checkpoint")
    size = content.get("image_size", [1, 1])
    if len(size) != 2 or not all(type(n) is int and 0 < n <= LARGEST_SIDE for n in size):
        raise CheckpointError(f"{path}: image_size {size!r:.80} cannot be")
    if training and (lacking := {"optimizer", "objective", "epoch", "flags"} - content.keys()):
        raise CheckpointError(
            f"{path}: holds weights but no training state ({', '.join(sorted(lacking))} missing); "
            f"start a run from them with --pretrained {quoted([path])}"
        )
    return content


def load_weights(
    module: nn.Module, weights: object, path: str | os.PathLike,
    held: dict[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """load_state_dict whose error is one line that names the file, CheckpointError. held: all
    tensors of a foreign file, by its own names, of which it is to name some."""
    try:
        module.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError) as error:
        reason, there = " ".join(str(error).partition("\n")[2].split()) or str(error), ""
        if held is not None:
            own = module.state_dict()
            fit = sum(k in own and own[k].shape == v.shape for k, v in weights.items())
            there = ", ".join(f"{k} {tuple(v.shape)}" for k, v in [*held.items()][:4])
            other = "; another architecture" if 2 * fit < len(own) else ""
            there = f" (it holds {len(held)} tensors: {there:.250}, ...{other})"
        told = f"{path}: does not fit this network{there}: {reason:.{350 if there else 500}}"
        raise CheckpointError(told) from error
