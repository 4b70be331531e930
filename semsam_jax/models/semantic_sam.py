"""The whole model: image and prompts in, masks and classes at six granularities out.

`encode_image` runs once per image; `decode_prompts` and `decode_generic` run on its result any
number of times.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from semsam_jax.core.errors import ConfigError, ShapeError
from semsam_jax.core.structs import (
    GenericPredictions,
    Predictions,
    Prompts,
    Pyramid,
    TextTable,
)
from semsam_jax.models.decoder import (
    Decoder,
    DecoderMemory,
    DecoderStates,
    MemoryProjection,
    make_memory,
)
from semsam_jax.models.denoising import Denoising, DenoisingTargets, attention_mask
from semsam_jax.models.efficientnet_lite import EfficientNetLite
from semsam_jax.models.granularity_token import GranularityToken
from semsam_jax.models.learned_names import LearnedNames
from semsam_jax.models.mask_window import window_features
from semsam_jax.models.pixel_decoder import PixelDecoder
from semsam_jax.models.presets import EfficientNetLiteConfig, ModelConfig
from semsam_jax.models.prompt_encoder import BOX_TYPE, PromptEncoder
from semsam_jax.models.query_selector import QuerySelector
from semsam_jax.models.swin import Swin
from semsam_jax.models.text_encoder import TextEncoder
from semsam_jax.ops.boxes import box_limits

_CANVAS_MULTIPLE = 32
_INIT_CANVAS = 64


class SemanticSAM(nn.Module):
    """Semantic-SAM (arXiv 2307.04767).

    Attributes:
        config: sizes of every part.
        dtype: compute dtype; parameters, boxes and mask logits are float32.
        remat: key of `layers.REMAT_POLICIES`: what the backward pass recomputes.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: str = "none"

    def setup(self) -> None:
        """Declares the parts; which ones exist depends on the configuration alone."""
        config, decoder = self.config, self.config.decoder
        has_lite = isinstance(config.backbone, EfficientNetLiteConfig)
        backbone = EfficientNetLite if has_lite else Swin
        common = {"dtype": self.dtype, "remat": self.remat}
        self.backbone = backbone(config.backbone, **common)
        self.pixel_decoder = PixelDecoder(config.pixel_decoder, **common)
        self.prompt_encoder = PromptEncoder(
            decoder.dim, decoder.num_tokens, decoder.noise_scale, decoder.point_noise_factor
        )
        if decoder.granularity_token:
            self.granularity_token = GranularityToken(decoder.dim)
        pixel_decoder = config.pixel_decoder
        sizes = pixel_decoder.mask_dim, pixel_decoder.num_levels, config.pooled_dim
        self.decoder = Decoder(decoder, *sizes, **common)
        if pixel_decoder.dim != decoder.dim:
            self.memory_projection = MemoryProjection(decoder.dim, dtype=self.dtype)
        if config.has_generic:
            self.query_selector = QuerySelector(decoder.num_queries, dtype=self.dtype)
            self.denoising = Denoising(decoder.dim, decoder.text_dim, decoder.noise_scale)
        if config.text is not None:
            self.text_encoder = TextEncoder(config.text, decoder.text_dim, **common)
        if config.learned_names:
            self.learned_names = LearnedNames(config.learned_names, decoder.text_dim)

    def encode_image(
        self,
        image: UInt8[Array, "b h w 3"],
        size_hw: Int[Array, "b 2"],
        *,
        train: bool = False,
        draw: Int[Array, " b"] | None = None,
    ) -> Pyramid:
        """Encodes images.

        Args:
            image: RGB in the top-left corner of the canvas; h and w multiples of 32.
            size_hw: valid pixels of each image; the rest of the canvas is set to the mean colour
                (zero after normalisation) and is not masked further.
            train: drops residual paths at random (rng stream "drop_path").
            draw: which of the b random draws each image gets, by default its own position, so that
                the result does not depend on the order of the batch.

        Raises:
            ShapeError: the canvas is not a multiple of 32.
        """
        h, w = image.shape[1:3]
        if h % _CANVAS_MULTIPLE or w % _CANVAS_MULTIPLE:
            raise ShapeError(
                f"SemanticSAM.encode_image: canvas is {h} x {w}, expected multiples of "
                f"{_CANVAS_MULTIPLE}; pad the image right and bottom with zeros."
            )
        mean = jnp.asarray(self.config.pixel_mean, jnp.float32)[None, None, None]
        std = jnp.asarray(self.config.pixel_std, jnp.float32)[None, None, None]
        pixels = (image.astype(jnp.float32) - mean) / std
        is_row = jnp.arange(h)[None, :, None] < size_hw[:, 0, None, None]
        is_column = jnp.arange(w)[None, None, :] < size_hw[:, 1, None, None]
        pixels = jnp.where((is_row & is_column)[..., None], pixels, 0.0)
        self.sow("intermediates", "pixels", pixels)
        maps = self.backbone(pixels.astype(self.dtype), train=train, draw=draw)
        pyramid = self.pixel_decoder(maps)
        if self.config.decoder.pooled_names:
            pyramid = pyramid.replace(name_maps=tuple(maps[-2:]))
        return self._with_window(pyramid) if self.config.decoder.mask_window else pyramid

    def decode_prompts(
        self,
        pyramid: Pyramid,
        prompts: Prompts,
        text: TextTable | None = None,
        *,
        all_layers: bool = False,
        isolate: bool = True,
        noise: Float[Array, "b p 4"] | None = None,
        is_box: Bool[Array, "b p"] | None = None,
        granularity: Float[Array, "b p m"] | None = None,
    ) -> Predictions:
        """Predicts k tokens for each click or box.

        Args:
            pyramid: encoded images.
            prompts: clicks and boxes in fractions of the canvas.
            text: names to score, or None.
            all_layers: return every layer (training) instead of the last.
            isolate: prompts do not attend to each other. False lets all valid prompts of an image
                interact, as in the original demo.
            noise: uniform[0,1) box noise of training, with `is_box`.
            is_box: which prompts are boxes; read only with `noise`.
            granularity: 0 (the finest part) to 1 (the whole), requested in addition to the k tokens
                of each prompt, whose outputs do not depend on it.

        Returns:
            Predictions [l,b,p,k+m,...], l = 1 unless `all_layers`; m = 0 without `granularity`.

        Raises:
            ConfigError: a granularity, and the model has no token for it.
        """
        content = None
        if granularity is not None:
            if not self.config.decoder.granularity_token:
                raise ConfigError(
                    "SemanticSAM.decode_prompts: got a granularity, but this model has no token "
                    "for it (decoder.granularity_token is False)."
                )
            content = self.granularity_token(granularity)
        tokens = self.prompt_encoder(prompts, noise=noise, is_box=is_box, granularity=content)
        b, p, k, c = tokens.content.shape
        blocked = None
        if not isolate:
            is_hidden = jnp.repeat(~prompts.valid, k, axis=1)[:, None]
            blocked = jnp.broadcast_to(is_hidden, (b, p * k, p * k))
        states = self.decoder(
            tokens.content.reshape(b, p * k, c),
            jnp.repeat(tokens.references, k, axis=1),
            self._memory(pyramid),
            group=k if isolate else None,
            blocked=blocked,
            granularity_tokens=tokens.granularity_tokens,
        )
        if not all_layers:
            states = DecoderStates(outputs=states.outputs[-1:], references=states.references[-2:])
        limits, margin = None, self.config.decoder.box_margin
        if margin:
            limits = box_limits(prompts.boxes, prompts.type_index == BOX_TYPE, margin)

        def predict(own: DecoderStates, count: int) -> Predictions:
            of_tokens = None if limits is None else jnp.repeat(limits, count, axis=1)
            out = self.decoder.predict(own, text, pyramid, of_tokens, is_generic=False)
            return jax.tree.map(lambda x: x.reshape(x.shape[0], b, p, count, *x.shape[3:]), out)

        if granularity is None:
            return predict(states, k)
        first = predict(jax.tree.map(lambda x: x[:, :, : p * k], states), k)
        last = predict(jax.tree.map(lambda x: x[:, :, p * k :], states), granularity.shape[-1])
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=3), first, last)

    def decode_generic(
        self,
        pyramid: Pyramid,
        text: TextTable,
        *,
        vocab_valid: Bool[Array, "b v"] | None = None,
        denoising: DenoisingTargets | None = None,
    ) -> GenericPredictions:
        """Detects and classifies everything in the vocabulary, without prompts.

        Args:
            pyramid: encoded images.
            text: names of objects and parts; parts may have no rows.
            vocab_valid: names that may select a query, None for all.
            denoising: ground truth for denoising queries (training), or None.

        Returns:
            Predictions before the first and after every layer, of the selected encoder
            tokens, and of the denoising slots.

        Raises:
            ConfigError: the model has no generic branch.
        """
        if not self.config.has_generic:
            raise ConfigError(
                "SemanticSAM.decode_generic: this model has no generic branch "
                "(model.has_generic is False); set it to True and train the branch."
            )
        memory = self._memory(pyramid)
        selected = self.query_selector(
            memory.tokens,
            memory.shapes,
            lambda content: self.decoder.score(content, text, vocab_valid),
        )
        self.sow("intermediates", "selected", selected.index)
        anchors = self.decoder.refine_anchors(selected.content, selected.anchors)
        proposals = self.decoder.predict_first(selected.content, anchors, text, pyramid)
        # No gradient from the decoder into the proposals.
        content, references = jax.lax.stop_gradient((selected.content, anchors))
        blocked, slots, num_slots = None, None, 0
        if denoising is not None:
            noised = self.denoising(denoising, text)
            slots, num_slots = noised.queries, noised.content.shape[1]
            blocked = attention_mask(slots, content.shape[1])
            content = _one_behind_the_other(noised.content.astype(content.dtype), content)
            references = _one_behind_the_other(noised.references, references)
        first = self.decoder.predict_first(content, references, text, pyramid)
        states = self.decoder(content, references, memory, blocked=blocked)
        rest = self.decoder.predict(states, text, pyramid, is_generic=True)
        layers = jax.tree.map(lambda a, z: jnp.concatenate([a[None], z]), first, rest)
        return GenericPredictions(
            layers=jax.tree.map(lambda x: x[:, :, num_slots:], layers),
            proposals=proposals,
            denoising=(
                None if slots is None else jax.tree.map(lambda x: x[:, :, :num_slots], layers)
            ),
            denoising_queries=slots,
        )

    def encode_text(self, token_ids: Int[Array, "n t"]) -> Float[Array, "n d"]:
        """Unit-length float32 embeddings of tokenised names.

        Raises:
            ConfigError: the model has no text tower.
        """
        if self.config.text is None:
            raise ConfigError(
                "SemanticSAM.encode_text: this model has no text tower (model.text is "
                "None); choose a preset with one, or pass a stored table of names."
            )
        return self.text_encoder(token_ids)

    def with_learned_names(self, table: TextTable, index: Int[Array, " v"]) -> TextTable:
        """Puts the embeddings that the model learned in their places of a table of names."""
        return self.learned_names(table, index)

    def logits_of_name_features(
        self, features: Float[Array, "*q f"], text: TextTable
    ) -> tuple[Float[Array, "*q v1"], Float[Array, "*q v2"], Float[Array, "*q v1"] | None]:
        """Object, part and owner logits of kept features, see `Heads.name_logits`."""
        heads = self.decoder.heads
        return (*heads.name_logits(features, text), heads.owner_logits(features, text))

    def _with_window(self, pyramid: Pyramid) -> Pyramid:
        features = pyramid.mask_features
        window = jnp.asarray(window_features(*features.shape[1:3]), features.dtype)
        window = jnp.broadcast_to(window, (features.shape[0], *window.shape))
        return pyramid.replace(mask_features=jnp.concatenate([features, window], axis=-1))

    def _memory(self, pyramid: Pyramid) -> DecoderMemory:
        is_as_wide = self.config.pixel_decoder.dim == self.config.decoder.dim
        levels = pyramid.levels
        return make_memory(levels if is_as_wide else self.memory_projection(levels))

    def init_all(self) -> None:
        """Touches every parameter once on a small canvas; used by `init_params`."""
        decoder = self.config.decoder
        image = jnp.zeros((1, _INIT_CANVAS, _INIT_CANVAS, 3), jnp.uint8)
        pyramid = self.encode_image(image, jnp.full((1, 2), _INIT_CANVAS, jnp.int32))
        boxes = jnp.full((1, 1, 4), 0.5)
        valid, name = jnp.ones((1, 1), bool), jnp.zeros((1, 1), jnp.int32)
        granularity = jnp.ones((1, 1, 1)) if decoder.granularity_token else None
        prompts = Prompts(boxes=boxes, type_index=name, valid=valid)
        self.decode_prompts(pyramid, prompts, granularity=granularity)
        if self.config.has_generic:
            text = TextTable(
                objects=jnp.ones((1, decoder.text_dim)), parts=jnp.ones((0, decoder.text_dim))
            )
            targets = DenoisingTargets(
                boxes=boxes, object_id=name, part_id=name - 1, instance_valid=valid, noise=boxes
            )
            self.decode_generic(pyramid, text, denoising=targets)
        if self.config.text is not None:
            self.encode_text(jnp.zeros((1, self.config.text.context_length), jnp.int32))
        if self.config.learned_names:
            empty = TextTable(*[jnp.zeros((1, decoder.text_dim))] * 2)
            self.with_learned_names(empty, jnp.zeros(2, jnp.int32))


def _one_behind_the_other(
    first: Float[Array, "b n c"], second: Float[Array, "b m c"]
) -> Float[Array, "b q c"]:
    """Concatenates two lists of tokens by padding and adding.

    `jnp.concatenate` keeps zeros for the missing gradient of `second`, a constant that would be
    replicated on every device for the global batch.
    """
    n, m = first.shape[1], second.shape[1]
    before, after = ((0, 0), (n, 0), (0, 0)), ((0, 0), (0, m), (0, 0))
    return jnp.pad(first, after) + jnp.pad(second, before)


def init_params(model: SemanticSAM, key: Array) -> Any:
    """Random float32 parameters of every branch (the "params" collection).

    Works under `jax.jit` and `jax.eval_shape`.
    """
    return model.init(key, method="init_all")["params"]
