"""Loads models for inference."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from semsam_jax.convert import zoo
from semsam_jax.convert.released import read_released
from semsam_jax.convert.tree import check_tree
from semsam_jax.core import checkpoint_io, export_cache, model_files
from semsam_jax.core.compilation import use_compilation_cache
from semsam_jax.core.errors import CheckpointError
from semsam_jax.core.structs import GenericPredictions, Predictions, Prompts, Pyramid, TextTable
from semsam_jax.inference.granularity import (
    GranularityScale,
    check_level_order,
    granularity_scale,
)
from semsam_jax.inference.preprocess import STRIDE, Frame, PromptPreset, Size, make_frame
from semsam_jax.models import heads, presets
from semsam_jax.models.semantic_sam import SemanticSAM

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_META_TYPES = {
    "image_size": int,
    "panoptic_source": str,
    **dict.fromkeys(
        ("text", "vocabulary", "mask_thresholds", "name_thresholds", "name_scales"), Mapping
    ),
}
_PROMPT_PRESETS = ("default", "released_v1")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LoadedModel:
    """A network with its parameters on the device and the metadata of its checkpoint.

    Attributes:
        module: the Flax Linen module; its fields are the sizes and the compute dtype.
        params: the parameter tree, float32.
        meta: the checkpoint's metadata (preset, level order, text source, vocabulary, ...).
        level_order: token index of level 1..6.
        prompt_preset: how clicks become boxes.
        pad_to_multiple: canvases are padded to a multiple of this; 32 is exact.
        precision: matrix-product precision on accelerators.
        name_embeddings: cached embeddings of names (`labels`).
        unknown_names: cached names that the model does not know, with the nearest known names.
        cache_programs: keep traced programs for later processes (`core.export_cache`).
    """

    module: SemanticSAM
    params: dict
    meta: dict
    level_order: tuple[int, ...]
    prompt_preset: PromptPreset
    pad_to_multiple: int = STRIDE
    precision: str = "highest"
    name_embeddings: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    unknown_names: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    cache_programs: bool = False

    def __repr__(self) -> str:
        """One line: a notebook shows the value of a cell's last line, and weights have millions."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"LoadedModel({self.meta.get('preset')}, {count:,} parameters, {self.dtype})"

    @property
    def dtype(self) -> str:
        """Compute precision, float32 or bfloat16."""
        return jnp.dtype(self.module.dtype).name

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return len(self.level_order)

    @property
    def is_guided(self) -> bool:
        """Whether masks are upsampled with the guided filter (`inference.guided`)."""
        return self.module.config.guided_upsampling

    @property
    def has_granularity_token(self) -> bool:
        """Whether a separate token predicts granularities; otherwise two levels are blended."""
        return self.module.config.decoder.granularity_token

    @functools.cached_property
    def granularity_scale(self) -> GranularityScale:
        """Granularity of each level; warns if it was never measured."""
        scale = granularity_scale(self.meta, self.num_levels)
        if not scale.is_calibrated:
            _log.warning(
                "granularity: the levels of this checkpoint were never measured, so that they lie "
                "evenly between 0 and 1; `semsam calibrate` measures them."
            )
        return scale

    def fingerprint(self) -> str:
        """A short hash of all weights, the same for the same checkpoint on any machine."""
        digest = hashlib.sha256(json.dumps(self.meta, sort_keys=True, default=str).encode())
        for leaf in jax.tree.leaves(self.params):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    def frame(self, image_hw: tuple[int, int], size: Size = None) -> Frame:
        """Returns how an image of this size is resized and padded for the network."""
        return make_frame(
            image_hw,
            self.prompt_preset,
            size,
            image_size=self.meta.get("image_size"),
            pad_to_multiple=self.pad_to_multiple,
        )

    def encode(self, images: UInt8[np.ndarray, "b h w 3"], frames: list[Frame]) -> Pyramid:
        """Encodes canvases of one shape; one compiled program for each shape."""
        size_hw = np.array([frame.resized_hw for frame in frames], np.int32)
        return self._run(_encode, (), images, size_hw)

    def decode(
        self,
        pyramid: Pyramid,
        prompts: Prompts,
        text: TextTable | None,
        isolate: bool = True,
        granularity: Float[np.ndarray, "b p m"] | None = None,
    ) -> Predictions:
        """Decodes prompts; every array is [b, p, k + m, ...], m = 0 without `granularity`.

        Raises:
            CheckpointError: the model was not trained for this.
        """
        check_prompts(self)
        return self._run(_decode, (isolate,), pyramid, prompts, text, granularity)

    def decode_generic(self, pyramid: Pyramid, text: TextTable) -> GenericPredictions:
        """Runs the generic branch; CheckpointError if the model has none."""
        if not self.module.config.has_generic:
            raise CheckpointError(
                "panoptic: this checkpoint has no generic branch (model.has_generic is false); "
                "use one that was trained with it."
            )
        return self._run(_decode_generic, (), pyramid, text)

    def encode_text(self, token_ids: Int32[np.ndarray, "n ctx"]) -> Float[Array, "n d"]:
        """Unit-length embeddings of tokenised names, by the checkpoint's own tower."""
        return self._run(_encode_text, (), token_ids)

    def _run(self, function: Callable, static: tuple, *args: Any) -> Any:
        static = (self.module, *static)
        with jax.default_matmul_precision(self.precision):
            if self.cache_programs:
                return export_cache.run(function, static, self.params, *args)
            return function(*static, self.params, *args)


def load_model(
    path: str | os.PathLike | None = None,
    *,
    model_config: str | os.PathLike | None = None,
    dtype: str = "float32",
    prompt_preset: PromptPreset | None = None,
    pad_to_multiple: int = STRIDE,
    precision: str = "highest",
) -> LoadedModel:
    """Loads a checkpoint for inference and prints its path.

    Args:
        path: a folder with `model.safetensors` and `config.json`, a training workdir (its
            newest model is read), or a `.pth` file of the original, which is converted in
            memory. None and "lite" select the packaged model, "swin_t" and "swin_l" the original's
            releases and "hf://OWNER/NAME[@rev]" a repository (both are downloaded once), "last" the
            current user's training run that finished last.
        model_config: JSON file with the model sizes of a `.pth` file that matches no preset.
        dtype: compute dtype, `float32` (exact) or `bfloat16`.
        prompt_preset: `default` or `released_v1`; None uses that of the checkpoint.
        pad_to_multiple: multiple of 32; larger values need fewer compiled programs for images of
            many shapes, but change the masks (see the README).
        precision: matrix-product precision on accelerators, see `jax.default_matmul_precision`.

    Raises:
        CheckpointError: not found, or not a model.
        ConversionError: the file is not a complete model of the original.
    """
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(
            f"dtype: got {str(dtype)[:60]!r}; expected one of {', '.join(_DTYPES)}."
        )
    is_whole = isinstance(pad_to_multiple, int) and not isinstance(pad_to_multiple, bool)
    if not is_whole or pad_to_multiple < STRIDE or pad_to_multiple % STRIDE:
        raise CheckpointError(
            f"pad_to_multiple: got {str(pad_to_multiple)[:60]}; expected 32, 64, 96, ..."
        )
    if path is not None and not isinstance(path, str | os.PathLike):
        raise CheckpointError(
            f"path: got {type(path).__name__}; expected a folder or file, or None for the model "
            f"that comes with this package."
        )
    path = checkpoint_io.choose_checkpoint(zoo.resolve(path))
    use_compilation_cache()
    if path.is_file() and path.name != model_files.WEIGHTS:
        found = read_released([path], model_config)
        params, meta = found.params, found.meta
    elif model_config is not None:
        raise CheckpointError(
            f"model_config: {path} is not a file; a checkpoint folder knows its own sizes."
        )
    else:
        params, meta = checkpoint_io.read_model(path)
    return model_from_params(
        params,
        meta,
        dtype=dtype,
        prompt_preset=prompt_preset,
        pad_to_multiple=pad_to_multiple,
        precision=precision,
        where=f"checkpoint {path}",
        cache_programs=True,
    )


def model_from_params(
    params: dict,
    meta: dict,
    *,
    dtype: str = "float32",
    prompt_preset: PromptPreset | None = None,
    pad_to_multiple: int = STRIDE,
    precision: str = "highest",
    where: str = "checkpoint",
    cache_programs: bool = False,
    allow_nonfinite: bool = False,
) -> LoadedModel:
    """Makes a `LoadedModel` of parameters in memory; `meta` as `core.checkpoint_io` stores it."""
    missing = [key for key in ("model_config", "level_order", "prompt_preset") if key not in meta]
    if missing:
        raise CheckpointError(
            f"checkpoint meta: no {', '.join(missing)}; create it with `semsam "
            f"convert` or `semsam train`."
        )
    for key, kind in _META_TYPES.items():
        value = meta.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise CheckpointError(
                f"{where}: its {key} is {str(value)[:60]!r}, expected what semsam_jax writes; "
                "convert or train it again."
            )
    try:
        config = presets.from_json(meta["model_config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: its model_config is not one of this release ({type(error).__name__}: "
            f"{error}); convert or train it again."
        ) from error
    check_tree(params, config, where)
    if not allow_nonfinite:
        _check_finite(params, where)
    prompt_preset = meta["prompt_preset"] if prompt_preset is None else prompt_preset
    if not isinstance(prompt_preset, str) or prompt_preset not in _PROMPT_PRESETS:
        raise CheckpointError(
            f"prompt_preset: got {str(prompt_preset)[:60]!r}; expected one of "
            f"{', '.join(_PROMPT_PRESETS)}."
        )
    return LoadedModel(
        module=SemanticSAM(config=config, dtype=_DTYPES[dtype]),
        params=jax.tree.map(_on_one_device, params),
        meta=dict(meta),
        level_order=check_level_order(meta["level_order"], config.decoder.num_tokens),
        prompt_preset=prompt_preset,
        pad_to_multiple=pad_to_multiple,
        precision=precision,
        cache_programs=cache_programs,
    )


def _on_one_device(leaf: Any) -> Array:
    """An array on the default device: kernels on several TPUs would have to be split by hand."""
    is_spread = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
    return jax.device_put(jax.device_get(leaf) if is_spread else leaf)


def check_model(model: object) -> None:
    """Raises CheckpointError for anything that is no loaded model."""
    if not isinstance(model, LoadedModel):
        raise CheckpointError(
            f"model: got {type(model).__name__}; expected what load_model returns."
        )


def check_prompts(model: LoadedModel) -> None:
    """Raises CheckpointError for a model that was trained without prompts."""
    if not model.meta.get("prompts_trained", True):
        raise CheckpointError(
            "prompts: this checkpoint was trained without clicks and boxes, so its answers to them "
            "would be random; use `segment --task panoptic|instance|semantic --labels NAMES`, or "
            "train it with data.interactive_batch above 0."
        )


def save_model(model: LoadedModel, folder: str | os.PathLike, dtype: str = "float32") -> None:
    """Writes a model as `model.safetensors` and `config.json`, for `load_model`.

    Args:
        model: of `load_model`.
        folder: where; made if missing.
        dtype: how the weights are stored: float32, bfloat16 or float16.

    Raises:
        CheckpointError: the folder already contains a model, or cannot be written.
    """
    model_files.save_model(folder, jax.device_get(model.params), model.meta, dtype=dtype)


def _check_finite(params: dict, where: str) -> None:
    found = []
    for path, leaf in jax.tree.leaves_with_path(params):
        array = np.asarray(leaf)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            found.append("/".join(str(key.key) for key in path))
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise CheckpointError(
            f"{where}: NaN or infinity in {', '.join(found[:5])}{more}; these weights are damaged "
            f"or diverged in training, take an earlier step or another file."
        )


@functools.partial(jax.jit, static_argnums=0)
def _encode(module: SemanticSAM, params: dict, image: Array, size_hw: Array) -> Pyramid:
    return module.apply({"params": params}, image, size_hw, method=SemanticSAM.encode_image)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(module, isolate, params: dict, pyramid, prompts, text, granularity) -> Predictions:
    answer = module.apply(
        {"params": params},
        pyramid,
        prompts,
        text,
        isolate=isolate,
        granularity=granularity,
        method=SemanticSAM.decode_prompts,
    )
    return jax.tree.map(lambda x: x[-1], answer)


@functools.partial(jax.jit, static_argnums=0)
def _decode_generic(module: SemanticSAM, params: dict, pyramid, text) -> GenericPredictions:
    return module.apply({"params": params}, pyramid, text, method=SemanticSAM.decode_generic)


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(module: SemanticSAM, params: dict, token_ids: Array) -> Array:
    return module.apply({"params": params}, token_ids, method=SemanticSAM.encode_text)


@jax.jit
def low_res_logits(
    mask_embed: Float[Array, "n d"],
    mask_features: Float[Array, "h w d"],
    limits: Float[Array, "n 4"] | None = None,
) -> Float[Array, "n h w"]:
    """Mask logits at stride 4 of a list of queries of one image (`models.heads.mask_logits`)."""
    limits = None if limits is None else limits[None]
    with jax.default_matmul_precision("highest"):
        return heads.mask_logits(mask_embed[None], mask_features[None], limits)[0]
