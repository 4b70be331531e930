"""One optimiser step: two compiled programs with the host assignment in between.

The forward program runs the network and returns predictions, matching costs and the function
of `jax.vjp`, whose residuals stay on the device. The host solves the assignments. The backward
program computes the loss and its gradient and updates the parameters. Nothing is computed twice
and there is no host callback.
"""

import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from semsam_jax.core import lora
from semsam_jax.core.structs import (
    Assignment,
    Batch,
    Costs,
    Prompts,
    Pyramid,
    StreamBatch,
    StreamOutputs,
    TextTable,
)
from semsam_jax.criterion.granularity_loss import RequestedGranularities, request_granularities
from semsam_jax.criterion.prompt_points import draw_points
from semsam_jax.criterion.total import CriterionConfig, total_loss
from semsam_jax.matching.costs import prompt_costs, query_costs
from semsam_jax.matching.transport import AssignReport, assign
from semsam_jax.models.denoising import DenoisingTargets
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.parallel.mesh import batch_sharding, in_use, num_batch_shards, replicated
from semsam_jax.parallel.sharding import gathered, state_shardings
from semsam_jax.train.micro import WHOLE, MicroBatches, merge_reports
from semsam_jax.train.optimizer import stop_frozen
from semsam_jax.train.state import TrainState


@typing.no_type_check
@struct.dataclass
class TextInputs:
    """Class names for a step: a frozen table, token ids to encode, or neither.

    Attributes:
        table: TextTable or None.
        token_ids: int32 [v, context] or None; objects first, then parts.
        learned: int32 [v], with a table: the row of `learned_names` of a name, -1 for names in the
            table; None for a model without learned names.
    """

    table: TextTable | None = None
    token_ids: jax.Array | None = None
    learned: jax.Array | None = None


class TrainStep:
    """Compiled training step of a model on a mesh.

    With more than one micro-batch the device runs the forward program of the next one while the
    host matches the last one.

    Args:
        model: the network.
        tx: optimiser over the whole parameter tree.
        criterion: loss weights and points.
        mesh: where the batch and the state lie.
        num_objects: size of the object part of the vocabulary.
        seed: base of all device randomness.
        ema: decay of the averaged parameters, 0 for none.
        micro: how a batch is cut into micro-batches.
        frozen: parts of the parameters that never change, as the optimiser has them.
        class_weights: float32 [v] of `criterion.terms.balanced_weights`, or None.
    """

    def __init__(
        self,
        model: SemanticSAM,
        tx: optax.GradientTransformation,
        criterion: CriterionConfig,
        mesh: Mesh,
        num_objects: int,
        seed: int,
        ema: float = 0.0,
        micro: MicroBatches = WHOLE,
        frozen: tuple[str, ...] = (),
        class_weights: np.ndarray | None = None,
    ):
        self._model, self._tx, self._criterion = model, tx, criterion
        self.mesh = mesh
        self._num_objects, self._ema = num_objects, ema
        self._key = jax.random.key(seed)
        self._micro, self._frozen, self._class_weights = micro, frozen, class_weights
        self.forward = jax.jit(self._forward)
        self.backward = jax.jit(self._backward, donate_argnums=0)
        self.accumulate = jax.jit(self._accumulate, donate_argnums=0)
        self.update = jax.jit(self._update, donate_argnums=0)
        self._start = jax.jit(self._start_micro_batches)

    def __call__(
        self, state: TrainState, batch: StreamBatch, text: TextInputs
    ) -> tuple[TrainState, dict, AssignReport]:
        """Runs one step.

        Returns:
            (new state, scalar metrics on the device, what the host matching took).
        """
        if self._micro.is_whole:
            outputs, vjp_fn, costs = self.forward(state.params, state.step, batch, text)
            assignment, report = self.match(costs, batch)
            state, metrics = self.backward(state, outputs, vjp_fn, assignment, batch)
            return state, metrics, report
        return self._in_micro_batches(state, batch, text)

    def _in_micro_batches(
        self, state: TrainState, batch: StreamBatch, text: TextInputs
    ) -> tuple[TrainState, dict, AssignReport]:
        parts, draws, grads = self._start(state.params, state.step, batch)
        ahead = self.forward(state.params, draws[0], parts[0], text)
        all_metrics, reports = [], []
        for index, part in enumerate(parts):
            outputs, vjp_fn, costs = ahead
            if index + 1 < len(parts):
                # Queued before the host starts to match: the device is busy meanwhile.
                ahead = self.forward(state.params, draws[index + 1], parts[index + 1], text)
            assignment, report = self.match(costs, part)
            grads, metrics = self.accumulate(grads, outputs, vjp_fn, assignment, part, draws[index])
            all_metrics.append(metrics)
            reports.append(report)
        state, metrics = self.update(state, grads, self._micro.merge(all_metrics))
        return state, metrics, merge_reports(reports)

    @property
    def is_whole(self) -> bool:
        """Whether a step is one forward and one backward program."""
        return self._micro.is_whole

    def parts(self, batch: StreamBatch) -> list[tuple[str, StreamBatch, int]]:
        """Shapes of the different micro-batches of a batch.

        Returns:
            (name, shapes that lie as the batch does, how often a step has one) of each.
        """
        if self._micro.is_whole:
            return [("", batch, 1)]
        rows = batch_sharding(self.mesh)
        pieces = jax.eval_shape(lambda b: self._micro.cut(b, num_batch_shards(self.mesh)), batch)
        pieces = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), pieces
        )
        if not self._micro.is_apart:
            return [("", pieces[0], len(pieces))]
        names = ["/interactive" if p.interactive is not None else "/generic" for p in pieces]
        count = self._micro.count
        return list(zip(names, pieces, [count] * len(pieces), strict=True))[: len(pieces) // count]

    def match(self, costs: Costs, batch: StreamBatch) -> tuple[Assignment, AssignReport]:
        """Solves the assignments on the host; each process solves its own rows."""
        return assign(
            costs,
            None if batch.interactive is None else batch.interactive.prompt_targets,
            None if batch.generic is None else batch.generic.instance_valid,
        )

    def _forward(self, params: dict, draw: jax.Array, batch: StreamBatch, text: TextInputs):
        keys = _streams(self._key, draw, 4)
        run = partial(self._run_model, batch=batch, text=text, keys=keys)
        # A policy here would override those of the layers.
        if self._model.remat == "none":
            run = jax.checkpoint(run, policy=_is_no_constant, prevent_cse=False)
        with in_use(self.mesh):
            outputs, vjp_fn = jax.vjp(run, params)
        with jax.named_scope("matching_costs"):
            costs = self._costs(jax.lax.stop_gradient(outputs), batch, keys[3])
        rows = batch_sharding(self.mesh)
        costs = jax.tree.map(lambda cost: jax.lax.with_sharding_constraint(cost, rows), costs)
        return outputs, vjp_fn, costs

    def _run_model(self, params: dict, batch: StreamBatch, text: TextInputs, keys) -> StreamOutputs:
        def call(method, *args, **kwargs):
            return self._model.apply({"params": params}, *args, method=method, **kwargs)

        params = stop_frozen(gathered(self.mesh, params), self._frozen)
        params = lora.merged(params)
        interactive, generic = batch.interactive, batch.generic
        images, sizes, draw = _join([interactive, generic], num_batch_shards(self.mesh))
        pyramid, said = call(
            SemanticSAM.encode_image,
            images,
            sizes,
            train=True,
            draw=draw,
            rngs={"drop_path": keys[0]},
            mutable=["statistics"],
        )
        num_first = 0 if interactive is None else interactive.image.shape[0]
        first, second = _split(pyramid, num_first, num_batch_shards(self.mesh))
        table = text.table
        if text.token_ids is not None:
            embeddings = self._encode_names(params, text.token_ids)
            table = TextTable(embeddings[: self._num_objects], embeddings[self._num_objects :])
        elif text.learned is not None:
            table = call(SemanticSAM.with_learned_names, table, text.learned)
        outputs = StreamOutputs(None, None, None, None, *jax.tree.leaves(said))
        if interactive is not None:
            prompts = Prompts(
                interactive.prompt_box,
                interactive.prompt_is_box.astype(jnp.int32),
                interactive.prompt_valid,
            )
            noise = jax.random.uniform(keys[1], interactive.prompt_box.shape)
            requested = self._request(interactive, keys[1])
            predictions = call(
                SemanticSAM.decode_prompts,
                first,
                prompts,
                table,
                all_layers=True,
                noise=noise,
                is_box=interactive.prompt_is_box,
                granularity=None if requested is None else requested.granularity,
            )
            if requested is not None:
                count = self._model.config.decoder.num_tokens
                answers = jax.tree.map(lambda x: x[:, :, :, count:], predictions)
                predictions = jax.tree.map(lambda x: x[:, :, :, :count], predictions)
                outputs = outputs.replace(requested=answers)
            outputs = outputs.replace(prompts=predictions, prompt_features=first.mask_features)
        if generic is not None:
            slots = self._model.config.decoder.num_denoising
            noise = jax.random.uniform(keys[2], (generic.boxes.shape[0], slots, 4))
            predictions = call(
                SemanticSAM.decode_generic,
                second,
                table,
                vocab_valid=generic.vocab_valid | (generic.vocab_owned > 0),
                denoising=DenoisingTargets(
                    boxes=generic.boxes,
                    object_id=generic.object_id,
                    part_id=generic.part_id,
                    instance_valid=generic.instance_valid,
                    noise=noise,
                ),
            )
            outputs = outputs.replace(queries=predictions, query_features=second.mask_features)
        return outputs

    def _request(self, rows: Batch, key: jax.Array) -> RequestedGranularities | None:
        """Granularities requested in addition to the tokens; None for a loss without them."""
        return (
            request_granularities(rows, jax.random.fold_in(key, 1))
            if self._criterion.granularity
            else None
        )

    def _encode_names(self, params: dict, token_ids: jax.Array) -> jax.Array:
        """Embeds the vocabulary, with the names sharded over the devices."""
        num_names, shards = token_ids.shape[0], num_batch_shards(self.mesh)
        # A row of zeros is an empty text; its embedding is removed again.
        ids = jnp.pad(token_ids, ((0, -num_names % shards), (0, 0)))
        ids = jax.lax.with_sharding_constraint(ids, batch_sharding(self.mesh))
        embeddings = self._model.apply({"params": params}, ids, method=SemanticSAM.encode_text)
        return jax.lax.with_sharding_constraint(embeddings, replicated(self.mesh))[:num_names]

    def _costs(self, outputs: StreamOutputs, batch: StreamBatch, key: jax.Array) -> Costs:
        costs = Costs(None, None)
        weights, num_points = self._criterion.weights, self._criterion.match_points
        precision = self._criterion.precision
        keys = jax.random.split(key)
        if batch.interactive is not None and not self._criterion.many_to_one:
            rows = batch.interactive
            points = draw_points(keys[0], num_points, rows, self._criterion.prompt_point_ratio)
            last = jax.tree.map(lambda x: x[-1], outputs.prompts)
            costs = costs.replace(
                prompts=prompt_costs(
                    last, outputs.prompt_features, rows, points, weights, precision
                )
            )
        if batch.generic is not None:
            rows = batch.generic
            points = jax.random.uniform(keys[1], (rows.boxes.shape[0], num_points, 2))
            costs = costs.replace(
                queries=query_costs(
                    outputs.queries, outputs.query_features, rows, points, weights, precision
                )
            )
        return costs

    def _backward(self, state: TrainState, outputs, vjp_fn, assignment, batch):
        grads, metrics = self._gradients(outputs, vjp_fn, assignment, batch, state.step)
        return self._update(state, grads, metrics)

    def _start_micro_batches(self, params: dict, step: jax.Array, batch: StreamBatch):
        """Micro-batches, the number of the random draws of each, and gradients of zero."""
        parts = self._micro.cut(batch, num_batch_shards(self.mesh))
        rows = batch_sharding(self.mesh)
        parts = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, rows), parts)
        draws = [step * len(parts) + index for index in range(len(parts))]
        zeros = jax.tree.map(jnp.zeros_like, params)
        shardings = state_shardings(self.mesh, params)
        return parts, draws, jax.lax.with_sharding_constraint(zeros, shardings)

    def _accumulate(self, so_far: dict, outputs, vjp_fn, assignment, batch, draw):
        grads, metrics = self._gradients(outputs, vjp_fn, assignment, batch, draw)
        return jax.tree.map(lambda a, g: a + g / self._micro.count, so_far, grads), metrics

    def _gradients(self, outputs, vjp_fn, assignment, batch, draw) -> tuple[dict, dict]:
        key = _streams(self._key, draw, 5)[4]

        requested = None
        if batch.interactive is not None:
            requested = self._request(batch.interactive, _streams(self._key, draw, 2)[1])

        def loss_of(outputs):
            weights = None if self._class_weights is None else jnp.asarray(self._class_weights)
            return total_loss(outputs, batch, assignment, key, self._criterion, weights, requested)

        # The slots' instances are an integer output without gradient.
        value_and_grad = jax.value_and_grad(loss_of, has_aux=True, allow_int=True)
        with jax.named_scope("losses"):
            (_, metrics), gradient = value_and_grad(outputs)
        with in_use(self.mesh):
            (grads,) = vjp_fn(gradient)
        metrics["encoder/touched_rows"] = outputs.touched_rows.mean()
        return grads, metrics | {"nonfinite_costs": assignment.nonfinite.sum()}

    @jax.named_scope("optimizer")
    def _update(self, state: TrainState, grads: dict, metrics: dict) -> tuple[TrainState, dict]:
        norms = {f"grad_norm/{top}": optax.tree.norm(tree) for top, tree in grads.items()}
        norm = jnp.sqrt(sum(jnp.square(value) for value in norms.values()))
        # Without finite costs the assignment and the loss are meaningless.
        is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        is_finite &= metrics["nonfinite_costs"] == 0
        updates, opt_state = self._tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema_params
        if average is not None:
            # Not the weighted sum of both, whose rounding would change frozen parameters.
            average = jax.tree.map(lambda a, p: a + (1.0 - self._ema) * (p - a), average, params)
        new = TrainState(params, opt_state, state.step, average)
        # A non-finite step changes nothing, so that the last good state can be saved.
        new = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, state)
        metrics = {**metrics, **norms, "grad_norm/all": norm, "is_finite": is_finite}
        return new.replace(step=state.step + 1), metrics


def _is_no_constant(primitive, *_, **__) -> bool:
    """Keeps everything for the backward program except constants and casts."""
    return primitive.name not in ("broadcast_in_dim", "convert_element_type", "iota")


def _streams(key: jax.Array, step: jax.Array, count: int) -> list[jax.Array]:
    """One key per use and step; the state holds no random key."""
    return [jax.random.fold_in(jax.random.fold_in(key, use), step) for use in range(count)]


def _join(rows: list[Batch | None], shards: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Joins the images of both streams so that every batch shard keeps its own rows.

    Returns:
        (images, sizes, position of each row in the concatenation of the streams).
    """
    present = [part for part in rows if part is not None]
    counts = [part.image.shape[0] for part in present]

    def joined(parts: list[jax.Array]) -> jax.Array:
        parts = [x.reshape(shards, x.shape[0] // shards, *x.shape[1:]) for x in parts]
        whole = jnp.concatenate(parts, axis=1)
        return whole.reshape(-1, *whole.shape[2:])

    places = jnp.split(jnp.arange(sum(counts)), np.cumsum(counts)[:-1])
    return (
        joined([part.image for part in present]),
        joined([part.size_hw for part in present]),
        joined(places),
    )


def _split(pyramid: Pyramid, num_first: int, shards: int) -> tuple[Pyramid, Pyramid]:
    """Inverse of `_join` on every map of the pyramid; an absent stream gets no rows."""
    own = num_first // shards

    def cut(x: jax.Array, rows: slice) -> jax.Array:
        parts = x.reshape(shards, x.shape[0] // shards, *x.shape[1:])[:, rows]
        return parts.reshape(-1, *x.shape[1:])

    return (
        jax.tree.map(lambda x: cut(x, slice(0, own)), pyramid),
        jax.tree.map(lambda x: cut(x, slice(own, None)), pyramid),
    )
