"""The tower against recorded embeddings, and what makes it causal."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.convert.from_torch import from_torch
from semsam_jax.convert.names import unwrap
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.core.errors import ShapeError
from semsam_jax.models.presets import PRESETS
from semsam_jax.models.text_encoder import TextEncoder
from semsam_jax.text.templates import embed_names
from semsam_jax.text.tokenizer import Tokenizer
from tests.golden.table import CLASS_LOGITS, compare

DATA = Path(__file__).parent.parent / "golden" / "data"
CONFIG = PRESETS["tiny"]


@pytest.fixture(scope="module")
def params():
    state = unwrap(read_state_dict(DATA / "tiny_ref.pth"))
    converted = from_torch(state, CONFIG, parts=("text_encoder",))
    return {"params": jax.tree.map(jnp.asarray, converted.params["text_encoder"])}


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "text.npz") as file:
        return dict(file)


def tower(**fields):
    return TextEncoder(CONFIG.text, CONFIG.decoder.text_dim, **fields)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_recorded_tower(params, golden, remat):
    model = tower(remat=remat)
    ids = jnp.asarray(golden["tokens/plain_ids"], jnp.int32)
    hidden = model.apply(params, ids, method="hidden")
    compare("text", "tower/plain_last_hidden", hidden, 2e-5)
    unit = model.apply(params, ids)
    assert unit.dtype == jnp.float32
    compare("text", "tower/plain_embedding_normalized", unit, 2e-6)


def test_recorded_training_and_ensemble_embeddings(params, golden):
    encode = jax.jit(lambda ids: tower().apply(params, ids))
    ids = jnp.asarray(golden["train/ids"], jnp.int32)
    drawn = encode(ids)
    compare("text", "train/embeddings", drawn, 2e-6)
    names = [str(name) for name in golden["class_names"]]
    mean = embed_names(encode, names, Tokenizer(18), names_per_call=3)
    compare("text", "ensemble/embeddings", mean, 2e-6)
    queries = golden["sim/v"] / np.linalg.norm(golden["sim/v"], axis=-1)[..., None]
    logits = np.exp(golden["sim/logit_scale_param"]) * (queries @ np.asarray(drawn).T)
    compare("text", "sim/logits", logits, CLASS_LOGITS)


def test_what_follows_the_end_does_not_matter(params):
    ids = np.asarray(Tokenizer(18)(["potted plant"]))
    other = ids.copy()
    other[0, 6:] = 5
    model = tower()
    other, ids = jnp.asarray(other), jnp.asarray(ids)
    np.testing.assert_allclose(model.apply(params, ids), model.apply(params, other), atol=1e-6)
    short = model.apply(params, ids[:, :6])
    np.testing.assert_allclose(model.apply(params, ids), short, atol=1e-6)


def test_half_precision_stays_close_and_returns_float32(params, golden):
    ids = jnp.asarray(golden["tokens/plain_ids"], jnp.int32)
    half = tower(dtype=jnp.bfloat16).apply(params, ids)
    assert half.dtype == jnp.float32
    cosine = np.sum(np.asarray(half) * golden["tower/plain_embedding_normalized"], axis=-1)
    assert cosine.min() > 0.995


def test_fresh_parameters_and_gradients(params):
    ids = jnp.asarray(Tokenizer(18)(["dog", "cat"]))
    fresh = jax.jit(tower().init)(jax.random.key(0), ids)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
    weights = jnp.arange(48.0)[None]
    grads = jax.jit(jax.grad(lambda p: (tower().apply(p, ids) * weights).sum()))(fresh)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    assert float(jnp.abs(grads["params"]["layers"]["attn"]["in_proj"]["kernel"]).max()) > 0


def test_rows_longer_than_the_context_are_refused(params):
    with pytest.raises(ShapeError, match="expected at most 18"):
        tower().apply(params, jnp.zeros((1, 19), jnp.int32))
