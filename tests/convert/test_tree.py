"""The table of names describes exactly the parameters that the model declares."""

import dataclasses

import jax
import pytest

from semsam_jax.convert.rules import rules_for
from semsam_jax.models.presets import PRESETS
from semsam_jax.models.semantic_sam import SemanticSAM, init_params


@pytest.mark.parametrize("has_generic", [True, False])
@pytest.mark.parametrize("has_text", [True, False])
@pytest.mark.parametrize("preset", ["tiny", "swin_t", "swin_l"])
def test_rules_give_the_models_tree(preset, has_text, has_generic):
    config = PRESETS[preset]
    text = config.text if has_text else None
    config = dataclasses.replace(config, has_generic=has_generic, text=text)
    model = SemanticSAM(config)
    shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    leaves, _ = jax.tree_util.tree_flatten_with_path(shapes)
    declared = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }
    described = {rule.path: rule.our_shape for rule in rules_for(config)}
    if not has_generic:
        # Carried along for the way back; the model without the generic branch has no use for it.
        del described["denoising/lang_mapper"]
    assert described == declared
