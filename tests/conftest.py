"""For all tests: the repository on sys.path, two threads, tiny RGB-D sets with holes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from plumbing import openmp  # noqa: E402, F401, I001  before PyTorch
import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(2)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long to look for faults; the defaults are CI's."""
    group = parser.getgroup("LiteDepth")
    group.addoption(
        "--kills", type=int, default=10, metavar="N", help="kill -9 a training run N times (10)"
    )
    group.addoption(
        "--mutations", type=int, default=3_000, metavar="N",
        help="damaged files to read, over all kinds (3,000)",
    )  # fmt: skip
    group.addoption(
        "--soak", type=int, nargs="?", const=20_000, default=0, metavar="STEPS",
        help="train a tiny configuration for STEPS steps (20,000) and watch memory and files",
    )  # fmt: skip


COUNTS = pytest.StashKey[dict[str, int]]()


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Callable[[str, int], None]:
    """counted(what, n): n faults or cases that came out right, told at the test's end: one that
    does not fails its test. The sums are printed in the end (README's Reliability table)."""
    counts = request.config.stash.setdefault(COUNTS, {})

    def count(what: str, n: int) -> None:
        counts[what] = counts.get(what, 0) + n

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if counts := terminalreporter.config.stash.get(COUNTS, {}):
        terminalreporter.section("faults survived, cases right")
        for what, n in counts.items():
            terminalreporter.line(f"{what:<64}{n:>8,}")


def rgbd_picture(seed: int, size: tuple[int, int] = (96, 128)) -> tuple[np.ndarray, np.ndarray]:
    """A smooth BGR u8 picture and an u16 depth of multiples of 64, a fifth of it holes.

    A depth that was blended from several is next to never a multiple of 64 again.
    """
    rng = np.random.default_rng(seed)
    bgr = cv2.GaussianBlur(rng.uniform(-800, 1056, (*size, 3)), (0, 0), 3).clip(0, 255)
    depth = 64 * rng.integers(10, 600, size)
    depth[cv2.GaussianBlur(rng.normal(size=size), (0, 0), 3) > 0.08] = 0
    return bgr.astype(np.uint8), depth.astype(np.uint16)


def lines_of(text: str, start: str = "note: ") -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def write(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
    return path


@pytest.fixture(scope="session")
def make_rgbd() -> Callable[..., Path]:
    """make_rgbd(root, layout, train=8, val=3, size=(96, 128)): a set in one of the layouts

    "folders"  <split>/{rgb,depth}/sample_<k>.png
    "scenes"   <split>/{hall,yard}/{rgb,depth}/sample_<k>.png
    "lists"    <split>.txt, colour and depth pictures under names that do not match
    """

    def make(root: Path, layout: str = "folders", train=8, val=3, size=(96, 128)) -> Path:
        for s, (split, count) in enumerate({"train": train, "val": val}.items()):
            lines = ["# rgb depth", ""]
            for k in range(count):
                name = f"sample_{k}.png"
                if layout == "lists":
                    files = f"{split}_pictures/c{k}.png", f"{split}_depths/{100 - k}.png"
                    lines.append(" ".join(files))
                elif layout == "scenes":
                    scene = "hall" if k < count // 2 else "yard"
                    files = f"{split}/{scene}/rgb/{name}", f"{split}/{scene}/depth/{name}"
                else:
                    files = f"{split}/rgb/{name}", f"{split}/depth/{name}"
                for file, picture in zip(files, rgbd_picture(1000 * s + k, size)):
                    (root / file).parent.mkdir(parents=True, exist_ok=True)
                    assert cv2.imwrite(str(root / file), picture)
            if layout == "lists":
                (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
        return root

    return make


@pytest.fixture(scope="session")
def rgbd(make_rgbd, tmp_path_factory) -> Path:
    """8 + 3 pairs of 96x128 in folders, shared by the tests: look, do not touch."""
    return make_rgbd(tmp_path_factory.mktemp("rgbd"))


@pytest.fixture(scope="session")
def rgbd_large(make_rgbd, tmp_path_factory) -> Path:
    """2 + 1 pairs of the canonical 480x640, for looking at only."""
    return make_rgbd(tmp_path_factory.mktemp("rgbd_large"), train=2, val=1, size=(480, 640))
