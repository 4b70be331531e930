import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.errors import CheckpointError, PromptError
from semsam_jax.core.structs import Predictions
from semsam_jax.inference import labels
from semsam_jax.inference.convert_results import record_name
from semsam_jax.inference.labels import (
    VOCABULARIES,
    built_in_vocabulary,
    label_set,
    object_logits,
    parse_labels,
)
from semsam_jax.inference.mask_generator import MaskGenerator
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.results import ScoredName
from semsam_jax.text.tables import TextEmbeddings


def with_encoder(model):
    meta = model.meta | {"class_heads_trained": True, "text": {"source": "encoder"}}
    return dataclasses.replace(model, meta=meta, name_embeddings={})


def with_table(model):
    meta = model.meta | {"class_heads_trained": True, "text": {"source": "table", "table": ""}}
    return dataclasses.replace(model, meta=meta, name_embeddings={})


@pytest.mark.parametrize(
    ("labels", "objects", "parts"),
    [
        ("dog, cat;head,leg", ("dog", "cat"), ("head", "leg")),
        ("dog,dog,", ("dog",), ()),
        (";tail", (), ("tail",)),
        (["dog", "a, b"], ("dog", "a, b"), ()),
        ({"objects": ["dog"], "parts": ["leg"]}, ("dog",), ("leg",)),
    ],
)
def test_ways_to_write_labels(labels, objects, parts):
    names = parse_labels(labels)
    assert (names.objects, names.parts) == (objects, parts)


@pytest.mark.parametrize("labels", ["", " ; ,", [], {"objects": []}])
def test_no_labels_is_an_error(labels):
    with pytest.raises(PromptError, match="no names"):
        parse_labels(labels)
    with pytest.raises(PromptError, match="keys"):
        parse_labels({"things": ["dog"]})


def test_names_that_are_forgotten_meanwhile_are_not_lost(tiny_model, monkeypatch):
    model = with_table(tiny_model)
    names = ("dog", "cat")
    rows = np.eye(2, model.module.config.decoder.text_dim, dtype=np.float32)

    class Table:
        dim = rows.shape[1]

        def lookup(self, new):
            model.name_embeddings.clear()  # as a server does that has learned too many
            return rows[: len(new)], [True] * len(new)

    monkeypatch.setattr(labels, "table_of", lambda text, params: Table())
    label_set(model, [names[0]])
    assert label_set(model, list(names)).objects == tuple(names)


def test_a_second_semicolon_is_no_part_of_a_name():
    with pytest.raises(PromptError, match="one semicolon"):
        parse_labels("dog;head;leg")


@pytest.mark.parametrize("name", VOCABULARIES)
def test_built_in_vocabularies(name):
    names = built_in_vocabulary(name)
    assert names.objects
    assert names == parse_labels(name.upper())


def test_coco_knows_its_stuff():
    names = built_in_vocabulary("coco")
    assert {"sky", "grass"} <= names.stuff
    assert "person" not in names.stuff


def test_names_of_masks_come_from_the_text_tower(tiny_model, image_a):
    model = with_encoder(tiny_model)
    predictor = Predictor(model, size="native")
    predictor.set_image(image_a)
    answer = predictor.predict(point_coords=[[50, 60]], labels="dog,cat;head,leg,tail")
    names = label_set(model, "dog,cat;head,leg,tail")
    np.testing.assert_allclose(np.linalg.norm(names.exact.objects, axis=1), 1, atol=1e-5)
    for name in answer.objects:
        assert name.name in ("dog", "cat")
        assert 0 < name.score < 1
    assert all(name.name in ("head", "leg", "tail") for name in answer.parts)
    only_objects = predictor.predict(point_coords=[[50, 60]], labels=["dog"])
    assert only_objects.objects[0].name == "dog"
    assert only_objects.parts == (None,) * 6
    # The same name has the same score whatever else is asked.
    both = predictor.predict(point_coords=[[50, 60]], labels=["dog", "dog house"])
    dogs = [n.score for n in only_objects.objects]
    assert all(b.score >= d - 1e-5 for b, d in zip(both.objects, dogs, strict=True))


def test_class_logits_equal_reference(tiny_model, golden, image_a):
    want = golden["tiny_image_a"]
    whole, part = want["cls/text_whole"], want["cls/text_part"]
    meta = tiny_model.meta | {"class_heads_trained": True}
    rows = {f"w{i}": row for i, row in enumerate(whole)}
    rows |= {f"p{i}": row for i, row in enumerate(part)}
    model = dataclasses.replace(tiny_model, meta=meta, name_embeddings=rows)
    predictor = Predictor(model, size="native", isolate=False)
    predictor.set_image(image_a)
    xy = want["demo_five/prompt_cxcywh"][:, :2].astype(np.float64) * [160, 128]
    labels = {"objects": [f"w{i}" for i in range(9)], "parts": [f"p{i}" for i in range(5)]}
    from semsam_jax.inference.requests import Request

    answers = predictor.predict_many([Request([p]) for p in xy], labels=labels)
    logits = want["cls/pred_logits"][0].reshape(5, 6, 9)
    part_logits = want["cls/pred_logits_part"][0].reshape(5, 6, 5)
    for answer, objects, parts in zip(answers, logits, part_logits, strict=True):
        for token, name, part_name in zip(answer.tokens, answer.objects, answer.parts, strict=True):
            best = objects[token].argmax()
            assert name.name == f"w{best}"
            np.testing.assert_allclose(
                name.score, 1 / (1 + np.exp(-objects[token][best])), atol=1e-4
            )
            best = parts[token].argmax()
            assert part_name.name == f"p{best}"


@pytest.fixture
def table_model(tiny_model):
    """A model whose names come from the stored table; its text projection is widened with zeros."""
    meta = tiny_model.meta | {"class_heads_trained": True, "text": {"source": "table", "table": ""}}
    sizes = dataclasses.replace(tiny_model.module.config.decoder, text_dim=1024)
    config = dataclasses.replace(tiny_model.module.config, decoder=sizes)
    decoder = dict(tiny_model.params["decoder"])
    for key in ("object_embed", "part_embed"):
        rows = np.asarray(decoder[key])
        decoder[key] = np.pad(rows, ((0, 0), (0, 1024 - rows.shape[1])))
    return dataclasses.replace(
        tiny_model,
        meta=meta,
        module=tiny_model.module.clone(config=config),
        params={**tiny_model.params, "decoder": decoder},
        name_embeddings={},
        unknown_names={},
    )


def test_unknown_names_are_left_out_with_suggestions(table_model, caplog):
    names = label_set(table_model, "dogg,dog;head,qwxyz")
    assert (names.objects, names.parts) == (("dog",), ("head",))
    assert names.exact.objects.shape == (1, 1024)
    assert [name.name for name in names.unknown] == ["dogg", "qwxyz"]
    assert "dog" in names.unknown[0].nearest
    assert "2 of 4 names are not known" in caplog.text
    assert "'dogg' (nearest: " in caplog.text
    caplog.clear()
    label_set(table_model, "dogg,cat")
    assert caplog.text == ""  # said once
    label_set(table_model, "dog,dogg,cat," + "zq" * 5000)
    assert "2 of 4 names are not known" in caplog.text
    assert "zq…'" in caplog.text
    assert len(caplog.text) < 500
    many = [f"{name}" for name in built_in_vocabulary("paco").parts] * 5
    assert len(label_set(table_model, many).objects) == 200


@pytest.mark.parametrize("labels", ["dog,zqxv;head", "zqxv", ";zqxv", ",;,zqxv ,"])
def test_unknown_names_never_cost_a_mask(table_model, image_a, labels):
    predictor = Predictor(table_model, size=96)
    predictor.set_image(image_a)
    plain = predictor.predict(point_coords=[[60, 50]])
    named = predictor.predict(point_coords=[[60, 50]], labels=labels)
    np.testing.assert_array_equal(named.masks, plain.masks)
    assert [name.name for name in named.unknown] == ["zqxv"]
    assert (named.objects[0] is not None) == ("dog" in labels)
    generator = MaskGenerator(
        table_model,
        points_per_side=2,
        pred_iou_thresh=-9.0,
        stability_score_thresh=0.0,
        labels=labels,
        size=96,
    )
    assert generator.generate(image_a)


def test_a_weak_name_says_so(tiny_model, image_a):
    model = with_encoder(tiny_model)
    predictor = Predictor(model, size="native")
    predictor.set_image(image_a)
    scores = [
        name.score for name in predictor.predict([[50, 60]], labels="dog,cat;head,leg").objects
    ]
    middle = float(np.median(scores))
    model.meta["name_thresholds"] = {"object": middle, "part": 1.0}
    answer = predictor.predict([[50, 60]], labels="dog,cat;head,leg")
    assert [name.is_sure for name in answer.objects] == [score >= middle for score in scores]
    assert not any(name.is_sure for name in answer.parts)
    record = {"object": answer.objects[0].record(), "part": answer.parts[0].record()}
    sure = answer.objects[0]
    assert record_name(record) == (sure.name if sure.is_sure else None)
    assert record_name({"object": ScoredName("dog", 0.9).record(), "part": record["part"]}) == "dog"


def test_scores_take_the_scale_of_the_checkpoint(tiny_model, image_a):
    model = with_encoder(tiny_model)
    predictor = Predictor(model, size="native")
    predictor.set_image(image_a)
    before = predictor.predict([[50, 60]], labels="dog,cat;head,leg")
    model.meta["name_scales"] = {"object": [2.0, 0.5]}
    after = predictor.predict([[50, 60]], labels="dog,cat;head,leg")
    assert [n.name for n in after.objects] == [n.name for n in before.objects]
    logits = [np.log(n.score / (1 - n.score)) for n in before.objects]
    wanted = [1 / (1 + np.exp(-(2 * x + 0.5))) for x in logits]
    np.testing.assert_allclose([n.score for n in after.objects], wanted, atol=1e-6)
    assert [n.score for n in after.parts] == [n.score for n in before.parts]
    for wrong in ([0.0, 1.0], [1.0], "steep", [1.0, float("nan")]):
        model.meta["name_scales"] = {"object": wrong}
        with pytest.raises(CheckpointError, match=r"name_scales\.object.*calibrate --names"):
            predictor.predict([[50, 60]], labels="dog")


def test_a_table_of_another_size_is_an_error(tiny_model):
    with pytest.raises(CheckpointError, match="1024"):
        label_set(with_table(tiny_model), "dog")


def test_an_owner_counts_only_as_far_as_the_mask_is_a_part():
    """Objects dog and car; the part heads know a head. Rows: a head, and a whole cow."""
    found = Predictions(
        mask_embed=np.zeros((2, 1)),
        boxes=np.zeros((2, 4)),
        object_logits=np.array([[-3.0, -4.0], [-2.0, -5.0]]),
        part_logits=np.array([[2.0, 9.0], [-6.0, 9.0]]),  # one name, and padding
        owner_logits=np.array([[3.0, -7.0], [1.0, 4.0]]),
    )
    np.testing.assert_array_equal(object_logits(found, 1), [[2.0, -4.0], [-2.0, -5.0]])
    on_device = jax.tree.map(jnp.asarray, found)
    np.testing.assert_array_equal(object_logits(on_device, 1), object_logits(found, 1))
    # Without part names nothing says that it is a part.
    np.testing.assert_array_equal(object_logits(found, 0), found.object_logits)


def test_names_that_a_model_learned_are_names_like_any_other(tiny_model):
    """Their vectors lie with the parameters; nothing but the checkpoint is needed."""
    dim = tiny_model.module.config.decoder.text_dim
    rows = np.eye(2, dim, dtype=np.float32)
    table = TextEmbeddings(("dog", "leg"), np.ones((2, dim), np.float32), {})
    text = {"source": "table", "table": "", "learned": ["sky", "skin"]}
    meta = tiny_model.meta | {"class_heads_trained": True, "text": text}
    params = {**tiny_model.params, "learned_names": {"rows": 2 * rows}}
    model = dataclasses.replace(
        tiny_model, meta=meta, params=params, name_embeddings={}, unknown_names={}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEmbeddings, "load", lambda path=None: table)
        found = label_set(model, "sky,dog,tree;skin")
    assert (found.objects, found.parts) == (("sky", "dog"), ("skin",))
    assert [name.name for name in found.unknown] == ["tree"]
    np.testing.assert_allclose(found.exact.objects[0], rows[0])
    np.testing.assert_allclose(found.exact.parts[0], rows[1])
