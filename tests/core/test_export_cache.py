"""Kept programs: the same numbers, no second tracing, and no trust in what does not fit."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core import export_cache
from semsam_jax.core.structs import GenericPredictions, Predictions, Prompts, Pyramid, TextTable
from semsam_jax.models import presets
from semsam_jax.models.semantic_sam import SemanticSAM

_traced = []


@functools.partial(jax.jit, static_argnums=0)
def _scale(factor, params, pyramid, prompts):
    _traced.append(factor)
    levels = tuple(jnp.sin(level * params["w"] * factor) for level in pyramid.levels)
    answer = Predictions(mask_embed=levels[0] @ levels[0].T, boxes=prompts.boxes * factor)
    return GenericPredictions(layers=answer, proposals=answer)


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path))
    _new_process(monkeypatch)


def _new_process(monkeypatch):
    """Forgets what this process has traced."""
    monkeypatch.setattr(export_cache, "_programs", {})
    _scale.clear_cache()
    _traced.clear()


def _args(size=3):
    draw = np.random.default_rng(0).normal
    pyramid = Pyramid((jnp.array(draw(size=(size, size)), jnp.float32),), jnp.ones(2))
    prompts = Prompts(jnp.ones((1, 2, 4)), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
    return {"w": jnp.float32(1.5)}, pyramid, prompts


def _files(tmp_path):
    return sorted((tmp_path / export_cache.FOLDER).glob("*"))


def test_a_second_process_reads_the_program_and_traces_nothing(tmp_path, monkeypatch):
    wanted = _scale(0.7, *_args())
    first = export_cache.run(_scale, (0.7,), *_args())
    (file,) = _files(tmp_path)
    assert file.name.startswith("scale-")
    _new_process(monkeypatch)
    second = export_cache.run(_scale, (0.7,), *_args())
    assert _traced == []
    assert _files(tmp_path) == [file]
    for found in (first, second):
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_other_numbers_shapes_settings_or_package_are_other_programs(tmp_path, monkeypatch):
    export_cache.run(_scale, (0.7,), *_args())
    export_cache.run(_scale, (0.8,), *_args())
    export_cache.run(_scale, (0.7,), *_args(4))
    with jax.default_matmul_precision("bfloat16"):
        export_cache.run(_scale, (0.7,), *_args())
    assert len(_files(tmp_path)) == 4
    monkeypatch.setattr(export_cache, "_digest_of_package", lambda: "edited")
    _new_process(monkeypatch)
    export_cache.run(_scale, (0.7,), *_args())
    assert _traced == [0.7]
    assert len(_files(tmp_path)) == 5


def test_the_name_of_a_network_tells_each_of_its_sizes():
    """`static` enters the key by its `repr`."""
    configs = [presets.model_config(preset) for preset in ("swin_t", "swin_l", "lite")]
    decoder = dataclasses.replace(configs[0].decoder, num_points=5)
    configs.append(dataclasses.replace(configs[0], decoder=decoder))
    dtypes = (jnp.float32, jnp.bfloat16)
    shown = {repr(SemanticSAM(config=c, dtype=dtype)) for c in configs for dtype in dtypes}
    assert len(shown) == 8


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[::-1]])
def test_a_damaged_file_is_reported_and_replaced(tmp_path, monkeypatch, caplog, spoil):
    wanted = export_cache.run(_scale, (0.7,), *_args())
    (file,) = _files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    _new_process(monkeypatch)
    with caplog.at_level(logging.WARNING):
        found = export_cache.run(_scale, (0.7,), *_args())
    assert f"{file}: damaged or unreadable" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert _files(tmp_path) == [file]
    _new_process(monkeypatch)
    export_cache.run(_scale, (0.7,), *_args())
    assert _traced == []


def test_a_cache_that_cannot_be_written_is_reported(tmp_path, caplog):
    (tmp_path / export_cache.FOLDER).write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        found = export_cache.run(_scale, (0.7,), *_args())
    assert "cannot be written" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, found, _scale(0.7, *_args()))


def test_nothing_is_kept_where_the_cache_is_off_or_arrays_are_spread(tmp_path):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        export_cache.run(_scale, (0.7,), *_args())
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    found = export_cache.run(_scale, (0.9,), *jax.device_put(_args(), everywhere))
    assert len(found.layers.boxes.sharding.device_set) == 2
    assert _files(tmp_path) == []


def test_every_container_of_a_program_can_be_written():
    """Names in a text table and all that the heads say go through the same file."""
    table = TextTable(jnp.ones((2, 3)), jnp.ones((1, 3)))
    exported = jax.export.export(jax.jit(lambda x: {"table": x}))(table)
    again = jax.export.deserialize(bytearray(exported.serialize()))
    assert again.out_tree == jax.tree.structure({"table": table})
