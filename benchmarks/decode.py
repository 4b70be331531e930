"""How long a click takes once the image is encoded: medians for one and for fifty clicks.

Run with `python -m benchmarks.decode`. Random parameters of the preset swin_t, features
of a 640 x 864 canvas; everything is compiled before the clock starts.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from semsam_jax.core.structs import Prompts, Pyramid
from semsam_jax.models.decoder import Decoder, DecoderStates, make_memory
from semsam_jax.models.heads import mask_logits
from semsam_jax.models.presets import model_config
from semsam_jax.models.prompt_encoder import PromptEncoder

CANVAS = (640, 864)
REPEATS = 15


def main() -> None:
    """Prints the median milliseconds of one and of fifty clicks, with and without masks."""
    config = model_config("swin_t").decoder
    h, w = CANVAS
    keys = jax.random.split(jax.random.key(0), 6)
    pyramid = Pyramid(
        levels=tuple(
            jax.random.normal(key, (1, -(-h // s), -(-w // s), config.dim))
            for key, s in zip(keys, (8, 16, 32, 64), strict=False)
        ),
        mask_features=jax.random.normal(keys[4], (1, h // 4, w // 4, 256)),
    )
    encoder = PromptEncoder(
        config.dim, config.num_tokens, config.noise_scale, config.point_noise_factor
    )
    decoder = Decoder(config, mask_dim=256)

    def run(module: Decoder, tokens, pyramid):
        b, p, k, c = tokens.content.shape
        states = module(
            tokens.content.reshape(b, p * k, c),
            jnp.repeat(tokens.references, k, axis=1),
            make_memory(pyramid.levels),
            group=k,
        )
        last = DecoderStates(outputs=states.outputs[-1:], references=states.references[-2:])
        return module.predict(last, None, is_generic=False)

    def init(key, prompts):
        tokens, variables = encoder.init_with_output(key, prompts)
        return {
            "encoder": variables,
            "decoder": decoder.init(key, tokens, pyramid, method=run),
        }

    def decode(params, pyramid, prompts, *, has_masks):
        tokens = encoder.apply(params["encoder"], prompts)
        out = decoder.apply(params["decoder"], tokens, pyramid, method=run)
        return mask_logits(out.mask_embed[0], pyramid.mask_features) if has_masks else out

    def prompts_of(count):
        boxes = jax.random.uniform(keys[5], (1, count, 4)).at[..., 2:].set(0.005)
        return Prompts(
            boxes=boxes,
            type_index=jnp.zeros((1, count), jnp.int32),
            valid=jnp.ones((1, count), bool),
        )

    params = jax.jit(init)(keys[0], prompts_of(1))
    for has_masks in (False, True):
        run_once = jax.jit(lambda *args, m=has_masks: decode(*args, has_masks=m))
        for count in (1, 50):
            prompts = prompts_of(count)
            jax.block_until_ready(run_once(params, pyramid, prompts))
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                jax.block_until_ready(run_once(params, pyramid, prompts))
                times.append(time.perf_counter() - start)
            what = "tokens and mask logits" if has_masks else "tokens"
            print(f"{count:3d} clicks, {what}: {statistics.median(times) * 1e3:7.1f} ms")


if __name__ == "__main__":
    main()
