"""Public weight files: downloaded once, or from torch.hub's cache."""

from __future__ import annotations

import hashlib
import re
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from plumbing.checkpoints import CheckpointError
from plumbing.files import notice, sha256, write_file


def weights_file(source: str, url: str | None, seconds: float) -> Path:
    """The file that --pretrained imagenet, FILE or URL means. url, seconds: of the network's public
    ImageNet weights, None = nobody published them. Raises CheckpointError."""
    if source != "imagenet":
        return fetch(source, 600.0) if "://" in source else Path(source)
    if url is None:
        raise CheckpointError("nobody has published any for this network, which is ours")
    return fetch(url, seconds)


def fetch(url: str, seconds: float) -> Path:
    """The file behind `url`, from torch.hub's cache or downloaded there within `seconds`.

    A name like NAME-1a2b3c4d.pth promises the first digits of its SHA-256 (torch.hub's custom):
    a file that has others is removed. Any other file is cached by its address: delete it to have a
    newer one. Raises CheckpointError, also where the cache cannot be written or read.
    """
    name = Path(urlparse(url).path).name
    promised = re.search(r"-([0-9a-f]{8,})\.", name)
    if not promised:  # any server may have a best.pth: the cache's name holds the address too
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}_{name}"
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    try:
        if not path.is_file():
            content = _download(url, seconds, path.parent)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, content)
        if promised and not (found := sha256(path)).startswith(promised[1]):
            path.unlink()
            raise CheckpointError(
                f"{url}: SHA-256 begins {found[:8]}, its name promises {promised[1]} (a page to "
                "log in?); it is removed. Download it elsewhere and pass its path to --pretrained"
            )
    except OSError as error:
        raise CheckpointError(
            f"cannot keep {url} in the cache: {error}. Set TORCH_HOME to a folder that can be "
            "written, or download it elsewhere and pass its path to --pretrained"
        ) from error
    return path


def _download(url: str, seconds: float, cache: Path) -> bytes:
    """What `url` holds; `cache` is for the message."""
    result: list[bytes | Exception] = []

    def download() -> None:
        try:
            with urllib.request.urlopen(url, timeout=seconds) as response:
                result.append(response.read())
        except Exception as error:  # handed to the caller's thread
            result.append(error)

    # A thread, because name resolution ignores urlopen's timeout. It writes no file: one that ends
    # too late leaves nothing behind.
    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    thread.join(seconds)
    answer = result[0] if result else f"no answer within {seconds:.0f} s"
    if not isinstance(answer, bytes):
        raise CheckpointError(
            f"could not download {url}: {answer}. Download it elsewhere and pass its path to "
            f"--pretrained, or put it into {cache}"
        )
    return answer


# ----------------------------------------------------------------------- what the files hold


def backbone_weights(content: object, wanted: Iterable[str], path: Path) -> dict[str, Tensor]:
    """The backbone's tensors in a public file's content, without what stands before their names
    ("state_dict.", "module.", "backbone." ...): the branch that has most of the names wanted; of
    several alike an average of weights (EMA, a teacher), else the first. Raises CheckpointError."""
    held, seen, left = {}, set(), [("", content)]
    for name, node in left:  # which grows meanwhile
        if isinstance(node, Tensor) and name:
            held[name] = node
        elif isinstance(node, dict) and id(node) not in seen:  # may hold itself
            seen.add(id(node))
            left += [(f"{name}.{k}", v) for k, v in node.items()]
    if not held:
        inside = [*content] if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path}: holds no dictionary of weights, but {inside!s:.200}; save one: "
            "torch.save(model.state_dict(), NEW)"
        )
    wanted, votes = set(wanted), Counter()
    for name in held:
        ends = (m.end() for m in re.finditer(r"\.", name))
        votes.update(name[:at] for at in ends if name[at:] in wanted)
    best = max(votes, key=lambda p: (votes[p], bool(re.search("(?i)ema|teacher", p))), default=".")
    if (alike := [*votes.values()].count(votes[best])) > 1:
        notice(f"{alike} branches fit alike, of which {best[1:]}* is taken")
    return {k.removeprefix(best): v for k, v in held.items() if k.startswith(best)}


def mobilenet_weights(weights: dict[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """timm's weights by the names of `encoder`: the same ones, without the 96 -> 576 layer and what
    follows it."""
    dropped = ("blocks.5.", "conv_head.", "classifier.")
    # Files older than PyTorch 0.4.1 lack this counter; nothing is lost by keeping ours.
    ours = {k: v for k, v in encoder.state_dict().items() if k.endswith("num_batches_tracked")}
    return ours | {k: v for k, v in weights.items() if not k.startswith(dropped)}
