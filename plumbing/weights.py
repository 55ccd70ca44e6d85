"""Public weight files: downloaded once, or from torch.hub's cache."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from plumbing.checkpoints import CheckpointError


def backbone_weights(content: object, path: Path) -> dict[str, Tensor]:
    """{name: tensor} of a public file's content, out of the usual wrappers. Raises
    CheckpointError."""
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(
        type(k) is str and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise CheckpointError(f"{path}: holds no dictionary of weights")
    return {k.removeprefix("module."): v for k, v in content.items()}


def fetch(url: str, timeout: float) -> Path:
    """The file behind `url`, from torch.hub's cache or downloaded there within `timeout` seconds.

    A name like NAME-1a2b3c4d.pth promises the first digits of its SHA-256 (torch.hub's custom):
    they are checked, in the cache too. Any other file is cached by its address: delete it to have
    a newer one. Raises CheckpointError, also where the cache cannot be written or read.
    """
    name = Path(urlparse(url).path).name
    promised = re.search(r"-([0-9a-f]{8,})\.", name)
    if not promised:  # any server may have a best.pth: the cache's name holds the address too
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}_{name}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    part = path.with_name(f".{name}.{os.getpid()}.part")
    try:
        cached = path.is_file()
        if cached and not promised:
            return path
        content = path.read_bytes() if cached else _download(url, timeout, path.parent)
        digest = hashlib.sha256(content).hexdigest()
        if promised and not digest.startswith(promised[1]):
            raise CheckpointError(
                f"{path if cached else url}: SHA-256 begins {digest[:8]}, its name promises "
                f"{promised[1]}" + ("; delete it" if cached else "")
            )
        if not cached:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(content)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot keep {url} in the cache: {error}. Set TORCH_HOME to a folder that can be "
            "written, or download it elsewhere and pass its path to --pretrained"
        ) from error
    return path


def _download(url: str, timeout: float, cache: Path) -> bytes:
    """What `url` holds; `cache` is for the message."""
    result: list[bytes | Exception] = []

    def download() -> None:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as response:
                result.append(response.read())
        except Exception as error:  # handed to the caller's thread
            result.append(error)

    # A thread, because name resolution ignores urlopen's timeout. It writes no file: one that ends
    # too late leaves nothing behind.
    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    thread.join(timeout)
    answer = result[0] if result else f"no answer within {timeout:.0f} s"
    if not isinstance(answer, bytes):
        raise CheckpointError(
            f"could not download {url}: {answer}. Download it elsewhere and pass its path to "
            f"--pretrained, or put it into {cache}"
        )
    return answer
