"""The README of a model repository: metadata that a hub reads, and how to use the model."""

from collections.abc import Mapping

_FIGURES = {
    "iou_max": "one-click IoU",
    "iou_oracle": "best of the masks",
    "mask_ap": "mask AP",
    "mask_ap50": "AP50",
    "name_accuracy": "name accuracy",
}


def model_card(repository: str, meta: Mapping, licence: str) -> str:
    """Markdown with a YAML head.

    Args:
        repository: OWNER/NAME.
        meta: metadata of the model.
        licence: identifier of the weights' licence.
    """
    tags = ["jax", "flax", "image-segmentation", "mask-generation", "part-segmentation"]
    head = [
        "---",
        f"license: {licence}",
        "library_name: semsam-jax",
        "pipeline_tag: mask-generation",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
    ]
    preset = str(meta.get("preset", "unnamed"))
    source = str(meta.get("source", "")).replace("\n", " ")
    names = "yes" if meta.get("class_heads_trained") else "no"
    learned = (meta.get("text") or {}).get("learned") or ()
    facts = [
        f"- preset: `{preset}`",
        f"- levels: {len(meta.get('level_order', ()))}, from the whole object to its finest part",
        f"- names of objects and parts: {names}",
        *([f"- names whose vectors were learned with it: {', '.join(learned)}"] if learned else []),
        *([f"- made from: {source}"] if source else []),
        *_figures(meta.get("evaluation") or {}),
    ]
    use = [
        "```python",
        "from semsam_jax import Predictor, load_model",
        "",
        f'predictor = Predictor(load_model("hf://{repository}"))',
        'predictor.set_image("image.jpg")',
        "masks, scores, _ = predictor.predict(point_coords=[[320, 200]])",
        "```",
    ]
    title = f"# {repository.partition('/')[2]}"
    about = "Weights for `semsam_jax`: Semantic-SAM in JAX/Flax (`pip install semsam-jax[hub]`)."
    return "\n".join([*head, "", title, "", about, "", *facts, "", *use, ""])


def _figures(found: Mapping) -> list[str]:
    """What the training run measured on its held-out images."""
    texts = [f"{text} {100 * found[key]:.1f}" for key, text in _FIGURES.items() if key in found]
    count = found.get("num_instances")
    return [f"- on {count} held-out masks of its run, percent: {', '.join(texts)}"] if texts else []
