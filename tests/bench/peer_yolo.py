"""YOLO26n-depth as a .tflite for bench_device.py, made by its own exporter; random weights.

    python -m venv peer && peer/bin/pip install ultralytics==8.4.190 litert-torch==0.10.0
    peer/bin/python tests/bench/peer_yolo.py --out yolo26n-depth.tflite

Only what takes part in a run time is the peer's: graph, sizes, converter. Nothing is downloaded and
the depths mean nothing. An environment of its own, because those packages bring a newer LiteRT than
ours and gigabytes more. ultralytics (AGPL-3.0) is used as installed; none of its code is here.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]
from bench_device import Row  # noqa: E402

from plumbing.files import UserError, run_main  # noqa: E402
from plumbing.flags import Parser, parse_size  # noqa: E402


def declare_torchvision_ops() -> None:
    """torchvision's wheel wants CUDA's libraries; beside a CPU-only torch it can be imported once
    the two operators that it registers fakes for are declared. The depth network calls neither."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        declare_torchvision_ops.library = library  # the declarations live as long as this does
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


def settle(network, size: tuple[int, int]) -> None:
    """BatchNorm statistics as after training, from noise: with those of the start, activations
    shrink from layer to layer towards denormal numbers, which cost time of their own."""
    import torch

    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain average over the passes
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.rand(2, 3, *size))
    network.eval()
    for norm, momentum in zip(norms, before):
        norm.momentum = momentum


def make(name: str, size: tuple[int, int], folder: Path) -> tuple[Path, int, float]:
    """-> (the file its exporter wrote into `folder`, parameters, GFLOPs at `size` = (H, W))."""
    os.environ["YOLO_CONFIG_DIR"] = str(folder)  # its settings file
    os.environ["YOLO_AUTOINSTALL"] = "0"  # it may not install packages by itself
    import torch

    torch.manual_seed(0)
    declare_torchvision_ops()
    from ultralytics import YOLO
    from ultralytics.utils.torch_utils import get_flops

    yolo = YOLO(f"{name}.yaml")
    settle(yolo.model, size)
    parameters = sum(p.numel() for p in yolo.model.parameters())
    gflops = get_flops(yolo.model, list(size))
    os.chdir(folder)  # it writes beside the (nameless) checkpoint: into the working folder
    return Path(yolo.export(format="litert", imgsz=list(size))).resolve(), parameters, gflops


def main() -> int:
    parser = Parser(prog="peer_yolo.py", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("yolo26n-depth.tflite"), metavar="FILE",
        help="file to write (default yolo26n-depth.tflite)")  # fmt: skip
    parser.add_argument("--name", default="yolo26n-depth", metavar="NAME",
        help="which of ultralytics' network descriptions; n is the smallest (default "
        "yolo26n-depth)")  # fmt: skip
    parser.add_argument("--size", type=parse_size, default=(480, 640), metavar="HxW",
        help="input size, multiples of 32; the same as the files it is compared with (default "
        "480x640)")  # fmt: skip
    args = parser.parse_args()
    out = args.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        try:
            file, parameters, gflops = make(args.name, args.size, Path(folder))
        except ImportError as error:
            raise UserError(
                f"{error}: pip install ultralytics==8.4.190 litert-torch==0.10.0, in an "
                "environment of its own"
            ) from error
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out)
        os.chdir(out.parent)  # the temporary folder goes
    row, (H, W) = Row(args.name, out.read_bytes(), peer=True), args.size
    print(f"{out}: {args.name} at {H}x{W}, {parameters / 1e6:.2f} M parameters, {gflops:.1f} "
          f"GFLOPs as ultralytics counts, {row.macs / 1e6:.0f} M multiply-accumulates in the file, "
          f"{len(row.content) / 1e6:.2f} MB, {row.partitions} XNNPACK partitions, "
          f"{row.ops.total()} operations: "
          + ", ".join(f"{n} {name}" for name, n in row.ops.most_common()))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, "peer_yolo.py"))
