"""The ONNX file, for who needs one: torch.onnx's graph of a network, and onnxruntime to run it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from plumbing.files import UserError
from plumbing.report import hushed
from plumbing.runtime import Predictor


def require() -> None:
    """Raises UserError, which names them, where the packages are not there."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  brings onnx
    except ImportError as error:
        cure = "pip install onnx onnxruntime onnxscript"
        raise UserError(f"--format onnx: {cure} ({error})") from error


class Deployed(nn.Module):
    """`network.forward` for another output size, in operations that onnxruntime is fast at:
    torch.onnx makes a GatherND of nearest-exact, which takes four times as long as copies."""

    def __init__(self, network: nn.Module, output_size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, output_size

    def forward(self, image: Tensor) -> Tensor:
        image = interpolate(image.float(), self.network.size, mode="bilinear")
        d_hat = self.network.network(image)
        (h, w), (H, W) = d_hat.shape[-2:], self.size
        if self.network.mode == "bilinear" or H % h or W % w:
            return self.network.enlarge(d_hat, self.size)
        return d_hat.view(h, 1, w, 1).expand(h, H // h, w, W // w).reshape(1, 1, H, W)


def convert(network: nn.Module, metadata: dict) -> bytes:
    """The ONNX file (fp32, opset 18) of a network in eval mode, whose `mode` is the last resize.

    In: "image" (1, 3, H, W), raw RGB 0..255, channels first as ONNX users expect. Out: "depth"
    (1, 1, h, w) float32. metadata: says sizes and types, and goes into the file as the property
    "litedepth.json", with NCHW as the layout of both. The same in gives the same bytes out.
    onnxruntime's Resize places the input's samples in float32, some 4e-5 pixels off: that is most
    of its distance to PyTorch. Raises UserError when the packages are missing.
    """
    require()
    source, target = (metadata[end] | {"layout": "NCHW"} for end in ("input", "output"))
    image = torch.zeros(1, 3, *source["size"], dtype=getattr(torch, source["dtype"]))
    # Its log names packages that nobody needs here, its warnings what is old in itself.
    with warnings.catch_warnings(), hushed():
        warnings.simplefilter("ignore")
        file = torch.onnx.export(
            Deployed(network, target["size"]).eval(), (image,), dynamo=True, verbose=False,
            opset_version=18, input_names=["image"], output_names=["depth"],
        ).model_proto  # fmt: skip
    for node in file.graph.node:  # where this machine's source files are
        node.ClearField("metadata_props")
    about = json.dumps(metadata | {"input": source, "output": target})
    file.metadata_props.add(key="litedepth.json", value=about)
    return file.SerializeToString(deterministic=True)


def load(path: Path, threads: int, resize: str) -> Predictor:
    """A file of `convert`, ready to predict metres."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["litedepth.json"])
    feed, metre = {}, np.float32({"m": 1, "mm": 1000}[about["output"]["unit"]])

    def run(picture: np.ndarray) -> np.ndarray:
        feed["image"] = np.ascontiguousarray(picture.transpose(2, 0, 1)[None])
        return invoke()[0][0, 0] / metre

    def invoke() -> list[np.ndarray]:
        return session.run(None, feed)

    size, dtype = about["input"]["size"], about["input"]["dtype"]
    return Predictor(run, tuple(size), resize, "ONNX", dtype=dtype, invoke=invoke)
