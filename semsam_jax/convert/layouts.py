"""Reads pretrained parts with other projects' parameter names, renamed to the original's.

Backbones: the Swin authors' files, timm and Hugging Face. Text towers: CLIP as OpenAI and open_clip
name it, and as Hugging Face does. They differ only in names, and in linear layers that are joined
in some and split in others.

Sources: the state dicts of `timm.models.swin_transformer`, `transformers.SwinModel`,
`transformers.CLIPModel` and `open_clip.CLIP`.
"""

import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from semsam_jax.convert.names import unwrap
from semsam_jax.convert.torch_reader import read_state_dict

_HF_SWIN = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layers\.", "layers."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.self\.(relative_position_\w+)$", r".attn.\1"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
_HF_TEXT = (
    (r"^embeddings\.token_embedding\.weight$", "lang_encoder.token_embedding.weight"),
    (r"^embeddings\.position_embedding\.weight$", "lang_encoder.positional_embedding"),
    (r"^encoder\.layers\.", "lang_encoder.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"^final_layer_norm\.", "lang_encoder.ln_final."),
)
_CLIP_TEXT = (
    (r"^transformer\.resblocks\.", "lang_encoder.resblocks."),
    (r"^(token_embedding\.weight|positional_embedding|ln_final\.\w+)$", r"lang_encoder.\1"),
    (r"^text_projection$", "lang_proj"),
)


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` file, or what PyTorch saved; names as in the file, unwrapped.

    Raises:
        ConversionError: the file is missing or damaged, or is neither.
    """
    return unwrap(read_state_dict(path), f"checkpoint {path}")


def swin_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a Swin backbone under the names of its authors."""
    state = without_prefix(state, ("module.", "backbone.", "swin."))
    if "embeddings.patch_embeddings.projection.weight" in state:
        state = _joined(state, r"(.*)\.attention\.self", ("query", "key", "value"), ".attn.qkv.{}")
        return {_hf_swin_name(key): value for key, value in state.items()}
    # timm merges patches at the start of a stage, the authors at the end of the previous one.
    moved = re.compile(r"layers\.(\d+)\.downsample\.(.*)")
    stages = {int(found[1]) for key in state if (found := moved.fullmatch(key))}
    if not stages or 0 in stages:
        return dict(state)
    return {
        moved.sub(lambda m: f"layers.{int(m[1]) - 1}.downsample.{m[2]}", key): value
        for key, value in state.items()
    }


def text_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a text tower under the original's names, `logit_scale` among them."""
    state = without_prefix(state, ("module.", "sem_seg_head.predictor.lang_encoder."))
    shared = {key: value for key, value in state.items() if key == "logit_scale"}
    if any(key.startswith("text_model.") for key in state):
        if "text_projection.weight" in state:
            shared["lang_proj"] = state["text_projection.weight"].T
        tower = without_prefix(state, ("text_model.",))
        tower = _joined(
            tower, r"(.*)\.self_attn", ("q_proj", "k_proj", "v_proj"), ".attn.in_proj_{}"
        )
        return {_renamed(key, _HF_TEXT): value for key, value in tower.items()} | shared
    state = without_prefix(state, ("text.",))
    if "text_projection.weight" in state:  # a linear layer in open_clip's newer towers
        state["text_projection"] = state.pop("text_projection.weight").T
    return {_renamed(key, _CLIP_TEXT): value for key, value in state.items()} | shared


def without_prefix(
    state: Mapping[str, np.ndarray], prefixes: Sequence[str]
) -> dict[str, np.ndarray]:
    """Removes each prefix that some names have; names without it are then dropped."""
    for prefix in prefixes:
        if any(key.startswith(prefix) for key in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return dict(state)


def _hf_swin_name(key: str) -> str:
    found = re.fullmatch(r"hidden_states_norms\.stage(\d)\.(.*)", key)
    if found:
        return f"norm{int(found[1]) - 1}.{found[2]}"
    return _renamed(key, _HF_SWIN)


def _renamed(key: str, names: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key


def _joined(
    state: Mapping[str, np.ndarray], module: str, pieces: Sequence[str], name: str
) -> dict[str, np.ndarray]:
    """Concatenates linear layers if all of them are present."""
    joined = dict(state)
    first = re.compile(rf"{module}\.{pieces[0]}\.(weight|bias)")
    for key in state:
        found = first.fullmatch(key)
        if not found:
            continue
        keys = [key.replace(f".{pieces[0]}.", f".{piece}.") for piece in pieces]
        if all(k in state for k in keys):
            joined[found[1] + name.format(found[2])] = np.concatenate([joined.pop(k) for k in keys])
    return joined
