"""Fits the class heads to kept features, after the last step of a run.

What a class head reads from an image (the token of a mask and, in `lite`, the backbone's features
under it) does not depend on the class heads. So each image is encoded once, the features of its
labelled masks are kept, and the heads are trained on them for any number of passes, each of which
takes seconds. Ordinary training would encode every image again in every pass. Not in the paper;
`configs/lite.py:names` uses it.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from semsam_jax.config import RunConfig
from semsam_jax.core import lora
from semsam_jax.core.errors import ConfigError, DataError, TrainingError
from semsam_jax.core.structs import Batch, Predictions, Prompts, StreamBatch, TextTable
from semsam_jax.criterion.cells import at_cells, cell_ious
from semsam_jax.criterion.points import mean_over
from semsam_jax.criterion.terms import class_heads, class_term
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.parallel.mesh import in_use
from semsam_jax.train import report
from semsam_jax.train.input import Input
from semsam_jax.train.optimizer import clamp_logit_scale, is_frozen
from semsam_jax.train.state import TrainState, by_name
from semsam_jax.train.step import TextInputs

HEADS = (
    *(
        f"decoder/{kind}{of}_embed"
        for kind in ("object", "part", "owner")
        for of in ("", "_pooled")
    ),
    "decoder/logit_scale",
    "learned_names",
)
"""Parameters that the features do not depend on; those in `optimizer.frozen` stay as they are."""

_LEAST_IOU = 0.5
"""A mask that overlaps a target less says nothing about its name."""
_LOG_EVERY_SEC = 60.0


@dataclasses.dataclass(frozen=True)
class KeptFeatures:
    """What class heads read from labelled masks, and the labels.

    Attributes:
        features: what `Heads.predict` sows as "name_features".
        object_id: in the vocabulary, -1 for none.
        part_id: in the vocabulary, -1 for none.
        image: which of the images it lies in.
        vocab_valid: of the images, see `Batch`.
        vocab_owned: likewise.
    """

    features: Float[np.ndarray, "n f"]
    object_id: Int[np.ndarray, " n"]
    part_id: Int[np.ndarray, " n"]
    image: Int[np.ndarray, " n"]
    vocab_valid: Bool[np.ndarray, "i v"]
    vocab_owned: UInt8[np.ndarray, "i v"]

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, index: np.ndarray) -> tuple[np.ndarray, ...]:
        """Features, object and part of the chosen masks, and the vocabulary of their images."""
        of_masks = (self.features, self.object_id, self.part_id)
        of_images = (self.vocab_valid, self.vocab_owned)
        image = self.image[index]
        return (*(x[index] for x in of_masks), *(x[image] for x in of_images))


def check(run: RunConfig) -> None:
    """Raises ConfigError for a run of several processes, which keep nothing of each other, and for
    one whose class heads are frozen.
    """
    if run.refit.images and jax.process_count() > 1:
        raise ConfigError(
            f"refit.images: {run.refit.images}, not supported with {jax.process_count()} "
            f"processes; set it to 0, and refit the class heads later in a run of one process."
        )
    frozen = run.optimizer.frozen
    if run.refit.images and all(is_frozen(path, frozen) for path in HEADS if "_embed" in path):
        raise ConfigError(
            f"refit.images: {run.refit.images}, and optimizer.frozen {frozen} names the class "
            f"heads that it would fit; leave them out of it, or set refit.images=0."
        )


def refit_class_heads(
    run: RunConfig,
    model: SemanticSAM,
    state: TrainState,
    data: Input,
    text: TextInputs,
    is_stopped: Callable[[], bool],
) -> TrainState | None:
    """The state with class heads that `run.refit.images` more images have taught.

    Args:
        run: the run.
        model: its network.
        state: after its last step. Features are those of the averaged parameters, where the run
            averages; the heads found are written to both.
        data: of the run. The next batches are read.
        text: its class names, a table.
        is_stopped: asked before each batch and each pass.

    Returns:
        The state one step later, so that it is saved as another one than that of the last step;
        None if it was stopped: a resumed run starts it again.

    Raises:
        DataError: no labelled mask was found.
    """
    started = time.perf_counter()
    params = lora.merged(state.params if state.ema_params is None else state.ema_params)
    with in_use(data.mesh):
        kept = keep_features(run, model, params, data, text, is_stopped)
    encoded = time.perf_counter()
    fitted = None
    if kept is not None:
        fitted = fit(run, model, params, kept, text, data.class_weights, is_stopped)
    if fitted is None:
        return None
    heads, losses = fitted
    report.log_info(
        f"class heads: {len(kept)} masks kept in {encoded - started:.0f} s, {run.refit.passes} "
        f"passes in {time.perf_counter() - encoded:.0f} s; loss {losses[0]:.3f} in the first, "
        f"{losses[-1]:.3f} in the last"
    )
    averaged = state.ema_params and _with_heads(state.ema_params, heads)
    params = _with_heads(state.params, heads)
    return TrainState(params, state.opt_state, state.step + 1, averaged)


def keep_features(
    run: RunConfig,
    model: SemanticSAM,
    params: Mapping,
    batches: Iterator[StreamBatch],
    text: TextInputs,
    is_stopped: Callable[[], bool] = lambda: False,
) -> KeptFeatures | None:
    """Encodes `run.refit.images` images and keeps the features of each labelled mask.

    A target has the features of the token of its prompt that overlaps it most. Returns None when
    stopped.
    """
    look = jax.jit(functools.partial(_look, model))
    table, masks, images, seen, said = _table(model, params, text), [], [], 0, time.perf_counter()
    while seen < run.refit.images:
        if is_stopped():
            return None
        rows = next(batches).interactive
        features, counts, object_id, part_id = map(np.asarray, look(params, rows, table))
        image = seen + np.nonzero(counts)[0]
        masks.append((features[counts], object_id[counts], part_id[counts], image))
        images.append((np.asarray(rows.vocab_valid), np.asarray(rows.vocab_owned)))
        seen += len(counts)
        if time.perf_counter() - said > _LOG_EVERY_SEC:
            report.log_info(f"class heads: encoded {seen} of {run.refit.images} images")
            said = time.perf_counter()
    columns = (*zip(*masks, strict=True), *zip(*images, strict=True))
    kept = KeptFeatures(*map(np.concatenate, columns))
    if not len(kept):
        raise DataError(
            f"refit.images: no mask of {seen} images overlaps a labelled one by "
            f"{_LEAST_IOU}; train the masks first, or resume with --allow_change=refit and "
            f"refit.images=0."
        )
    return kept


def _look(
    model: SemanticSAM, params: Mapping, rows: Batch, table: TextTable
) -> tuple[Array, Array, Array, Array]:
    """Features [b,p,t,f] (float16) of each target's best token, whether they count, and labels."""

    def call(method: Any, *args: Any, **kwargs: Any) -> Any:
        return model.apply({"params": params}, *args, method=method, **kwargs)

    pyramid = call(SemanticSAM.encode_image, rows.image, rows.size_hw)
    is_box = rows.prompt_is_box.astype(jnp.int32)
    prompts = Prompts(rows.prompt_box, is_box, rows.prompt_valid)
    predictions, said = call(
        SemanticSAM.decode_prompts, pyramid, prompts, table, mutable=["intermediates"]
    )
    last = jax.tree.map(lambda x: x[-1], predictions)
    (features,) = said["intermediates"]["decoder"]["name_features"]
    features = features[-1].reshape(*last.boxes.shape[:3], -1)
    ious = cell_ious(
        last,
        pyramid.mask_features,
        *at_cells(rows, pyramid.mask_features.shape[1:3]),
        jax.lax.Precision.DEFAULT,
    )
    target = jnp.maximum(rows.prompt_targets, 0)
    own = jnp.take_along_axis(ious, target[:, :, None], axis=-1)  # [b,p,k,t]
    token = jnp.argmax(own, axis=2)
    features = jnp.take_along_axis(features, token[..., None], axis=2)
    labels = [
        jnp.take_along_axis(label[:, None], target, axis=-1)
        for label in (rows.object_id, rows.part_id)
    ]
    counts = (rows.prompt_targets >= 0) & rows.prompt_valid[..., None]
    counts &= rows.has_masks[:, None, None] & (own.max(2) >= _LEAST_IOU)
    counts &= (labels[0] >= 0) | (labels[1] >= 0)
    return features.astype(jnp.float16), counts, *labels


def fit(
    run: RunConfig,
    model: SemanticSAM,
    params: Mapping,
    kept: KeptFeatures,
    text: TextInputs,
    class_weights: np.ndarray | None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, np.ndarray], list[float]] | None:
    """Trains the class heads on kept features with the loss that training uses.

    Args:
        run: for `refit`, `loss` and the seed.
        model: the network.
        params: as the features were read.
        kept: the features.
        text: class names.
        class_weights: as `interactive_losses` takes them.
        is_stopped: asked before each pass.

    Returns:
        (heads by their path in the parameters, mean loss of each pass); None when stopped.

    Raises:
        TrainingError: a loss is not finite.
    """
    choice = run.refit
    size = min(choice.rows, len(kept))
    num_batches = len(kept) // size
    rate = optax.cosine_decay_schedule(choice.learning_rate, choice.passes * num_batches)
    tx = optax.chain(
        optax.adamw(rate, weight_decay=run.optimizer.weight_decay, mask=_decays),
        clamp_logit_scale(),
    )
    heads = {
        path: value
        for path, value in by_name(params).items()
        if is_frozen(path, HEADS) and not is_frozen(path, run.optimizer.frozen)
    }

    @jax.jit
    def step(heads: dict, opt_state: Any, rows: tuple) -> tuple[dict, Any, Array]:
        def loss_of(heads: dict) -> Array:
            return _loss(run, model, _with_heads(params, heads), rows, text, class_weights)

        loss, grads = jax.value_and_grad(loss_of)(heads)
        updates, opt_state = tx.update(grads, opt_state, heads)
        return optax.apply_updates(heads, updates), opt_state, loss

    opt_state, rng, losses = tx.init(heads), np.random.default_rng(run.seed), []
    for _ in range(choice.passes):
        if is_stopped():
            return None
        order = rng.permutation(len(kept))[: num_batches * size].reshape(num_batches, size)
        of_pass = []
        for index in order:
            heads, opt_state, loss = step(heads, opt_state, kept.rows(index))
            of_pass.append(loss)
        losses.append(float(np.mean(jax.device_get(of_pass))))
        if not np.isfinite(losses[-1]):
            raise TrainingError(
                f"refit: the loss of pass {len(losses)} is {losses[-1]}; the class heads stay as "
                f"the last step left them. Resume with --allow_change=refit and a lower "
                f"refit.learning_rate or refit.images=0."
            )
    return jax.device_get(heads), losses


def _loss(
    run: RunConfig,
    model: SemanticSAM,
    params: Mapping,
    rows: tuple,
    text: TextInputs,
    class_weights: np.ndarray | None,
) -> Array:
    """Weighted class terms, each mask an image of its own with one instance."""
    features, object_id, part_id, valid, owned = rows
    logits = model.apply(
        {"params": params},
        features.astype(jnp.float32)[:, None],
        _table(model, params, text),
        method=SemanticSAM.logits_of_name_features,
    )
    names = ("object_logits", "part_logits", "owner_logits")
    labels = dict.fromkeys(field.name for field in dataclasses.fields(Batch))
    labels |= {"object_id": object_id[:, None], "part_id": part_id[:, None]}
    labels |= {"vocab_valid": valid, "vocab_owned": owned}
    others = dict.fromkeys(("mask_embed", "boxes", "pred_ious"))
    total = jnp.zeros(())
    for head in class_heads(
        Predictions(**others, **dict(zip(names, logits, strict=True))), Batch(**labels)
    ):
        weight = ((head.label >= 0) & head.teaches).astype(jnp.float32)
        if class_weights is not None:
            weight *= jnp.asarray(class_weights)[head.first + jnp.maximum(head.label, 0)]
        term = mean_over(class_term(head, head.label, jnp.ones((1, 1), bool)), weight)
        total += getattr(run.loss, head.name) * term
    return total


def _table(model: SemanticSAM, params: Mapping, text: TextInputs) -> TextTable:
    """The embeddings of the names, learned ones included."""
    if text.learned is None:
        return text.table
    return model.apply(
        {"params": params}, text.table, text.learned, method=SemanticSAM.with_learned_names
    )


def _decays(heads: dict) -> dict[str, bool]:
    """Weights decay, the scale of the scores and the embeddings of names do not."""
    return {path: path.endswith("_embed") for path in heads}


def _with_heads(params: Mapping, heads: Mapping[str, Any]) -> dict:
    """The parameters with other heads, which lie as those that they replace."""
    params = dict(params)
    leaves = by_name(params)
    for path, new in heads.items():
        is_placed = isinstance(leaves[path], jax.Array) and not isinstance(new, jax.Array)
        leaves[path] = jax.device_put(new, leaves[path].sharding) if is_placed else new
    return jax.tree.unflatten(jax.tree.structure(params), leaves.values())
