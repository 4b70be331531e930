"""What a typed user of the package sees. Checked by pyright (test_types.py), never run."""

from typing import assert_type

from semsam_jax import (
    LoadedModel,
    MaskGenerator,
    Predictor,
    Request,
    Segments,
    SemSamError,
    load_model,
)


def segment(path: str) -> Segments:
    """One click; the result unpacks as SAM's does."""
    model = load_model(path)
    assert_type(model, LoadedModel)
    predictor = Predictor(model)
    predictor.set_image("image.jpg")
    try:
        found = predictor.predict(point_coords=[[320, 200]], level=[1, 6])
    except SemSamError as error:
        raise SystemExit(str(error)) from error
    assert_type(found, Segments)
    masks, scores, logits = found
    print(masks.shape, scores.shape, logits.shape)
    (first, *_) = predictor.predict_many([Request(box=[0, 0, 10, 10])])
    assert_type(first, Segments)
    assert_type(MaskGenerator(model), MaskGenerator)
    return found
