"""What a GPU or TPU does with this package, in about eight minutes, as one Markdown table.

    python -m benchmarks.device --out device.md
    python -m benchmarks.device --minutes 3 --sections forms encode     # parts of it

Sections: every form of deformable attention against the reference on the CPU, forward and gradient;
encoding, one click, everything, with the time of each part; a joint training step of Swin-T and
Swin-L with as many rows as fit. Weights and data are random: they change no time but that of
matching, which the host does. A section starts only while time is left; what was not reached is
said in the table. On a CPU everything is small, to try the command out: such a table says nothing
about speed.
"""

import argparse
import dataclasses
import datetime
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SECTIONS = ("forms", "encode", "everything", "step")
GIB_A_ROW = {"swin_t": 2.5, "swin_l": 5.0}
"""First guess of the rows that fit; halved until they do."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, the figure with its unit, and under what."""

    what: str
    figure: str
    how: str = ""

    def line(self) -> str:
        """Markdown."""
        return f"| {self.what} | {self.figure} | {self.how} |"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is: full on an accelerator, small on a CPU.

    Attributes:
        preset: of the model for inference.
        side: of the square image, pixels.
        clicks: the larger of two numbers of clicks.
        points_per_side: of the grid of clicks.
        steps: presets of the training steps.
        repeats: of each measurement; the smallest counts.
    """

    preset: str
    side: int
    clicks: int
    points_per_side: int
    steps: tuple[str, ...]
    repeats: int


FULL = Sizes("swin_t", 1024, 50, 32, ("swin_t", "swin_l"), 10)
SMALL = Sizes("tiny", 64, 4, 2, ("tiny",), 1)


def main() -> None:
    """Prints the table row by row, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="also write the table here")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    args = parser.parse_args()
    sizes = SMALL if jax.default_backend() == "cpu" else FULL
    rows: list[Row] = []
    print("\n".join(table(rows, sys.argv[1:])), flush=True)
    for row in measure(args.sections, sizes, time.monotonic() + 60 * args.minutes):
        rows.append(row)  # shown and written at once: an interrupted run loses none
        print(row.line(), flush=True)
        if args.out:
            args.out.write_text("\n".join(table(rows, sys.argv[1:])) + "\n")


def table(rows: list[Row], arguments: list[str]) -> list[str]:
    """The table with what it was made on, as lines of Markdown.

    Args:
        rows: what was measured so far.
        arguments: of the command.
    """
    device = jax.devices()[0]
    today = datetime.datetime.now(datetime.UTC).date()
    version = device.client.platform_version.splitlines()[0]
    return [
        f"{device.device_kind}, {jax.device_count()} of them; jax {jax.__version__}, {version}; "
        f"{today}; `python -m benchmarks.device {' '.join(arguments)}`".rstrip("` ")
        + "`",
        "",
        "| what | figure | how |",
        "| --- | --- | --- |",
        *(row.line() for row in rows),
    ]


def measure(sections: list[str], sizes: Sizes, end: float) -> Iterator[Row]:
    """Runs the sections one after the other, as long as there is time.

    Args:
        sections: some of `SECTIONS`.
        sizes: how large everything is.
        end: when to stop, by `time.monotonic`.

    Yields:
        A row for each figure; a part that is not reached or fails says so in its row.
    """
    run = {"forms": forms, "encode": encode, "everything": everything, "step": steps}
    for name in sections:
        for what, part in run[name](sizes):
            if time.monotonic() > end:
                yield Row(what, "not reached", "no time left")
                continue
            start = time.monotonic()
            try:
                yield from part()
            except jax.errors.JaxRuntimeError as error:
                yield Row(what, "failed", str(error).splitlines()[0][:120].replace("|", "/"))
            print(f"{what}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


Parts = Iterator[tuple[str, Callable[[], Iterator[Row]]]]
"""The parts of a section: what each measures, and the function that yields its rows."""


def forms(sizes: Sizes) -> Parts:
    """Largest error of each form, as a part of the largest number."""
    from semsam_jax.core.backend import compiling_for
    from semsam_jax.ops.deform_attention import IMPLEMENTATIONS, deform_attention

    side = max(sizes.side // 4, 32)
    shapes = tuple((-(-side // s), -(-side * 3 // (4 * s))) for s in (8, 16, 32, 64))
    rng = np.random.default_rng(0)
    q = sum(h * w for h, w in shapes)
    inputs = tuple(
        x.astype(np.float32)
        for x in (
            rng.normal(size=(2, q, 2, 32)),
            rng.uniform(-0.2, 1.2, size=(2, q, 2, 4, 4, 2)),
            rng.uniform(size=(2, q, 2, 4, 4)),
            rng.normal(size=(2, q, 64)),
        )
    )

    def both_ways(form, value, places, weights, grad):
        def run(*x):
            return deform_attention(x[0], shapes, *x[1:], implementation=form)

        out, pull = jax.vjp(run, value, places, weights)
        return out, *pull(grad)

    @functools.cache
    def wanted(dtype) -> list[np.ndarray]:
        """On the CPU, in float32, of the same rounded numbers."""
        rounded = [_rounded(x, dtype) if i in (0, 3) else x for i, x in enumerate(inputs)]
        with jax.default_device(jax.devices("cpu")[0]), compiling_for("cpu"):
            return jax.device_get(jax.jit(functools.partial(both_ways, "reference"))(*rounded))

    def compare(form: str, dtype: str, precision: str | None) -> Iterator[Row]:
        args = [jnp.asarray(x, dtype if i in (0, 3) else None) for i, x in enumerate(inputs)]
        with jax.default_matmul_precision(precision):
            got = jax.device_get(jax.jit(functools.partial(both_ways, form))(*args))
        errors = [
            float(np.abs(np.asarray(a, np.float32) - b).max() / np.abs(b).max())
            for a, b in zip(got, wanted(dtype), strict=True)
        ]
        names = ("output", "value", "places", "weights")
        figure = ", ".join(f"{n} {e:.0e}" for n, e in zip(names, errors, strict=True))
        yield Row(f"`{form}`, {dtype}, products {precision or 'as default'}", figure, "error")

    for form in IMPLEMENTATIONS:
        if form == "matmul" and jax.default_backend() != "tpu":
            continue  # Interpreted here, for minutes: tests compare that.
        for dtype in ("float32", "bfloat16"):
            # The others multiply no matrices.
            for precision in ("highest", None) if form == "matmul" else (None,):
                what = f"`{form}`, {dtype}"
                yield what, functools.partial(compare, form, dtype, precision)


def _rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    return np.asarray(jnp.asarray(x, dtype).astype(jnp.float32))


def _model(sizes: Sizes, dtype: str):
    """A model with random weights, ready for inference."""
    from semsam_jax.inference.loading import model_from_params
    from semsam_jax.models import presets
    from semsam_jax.models.semantic_sam import SemanticSAM, init_params

    config = dataclasses.replace(presets.model_config(sizes.preset), text=None, has_generic=False)
    shapes = jax.eval_shape(lambda key: init_params(SemanticSAM(config), key), jax.random.key(0))
    meta = {
        "preset": sizes.preset,
        "model_config": presets.to_json(config),
        "source": "random",
        "text": {"source": "none", "table": None},
        "vocabulary": {"objects": [], "parts": []},
        "level_order": list(range(config.decoder.num_tokens)),
        "prompt_preset": "released_v1",
        "class_heads_trained": False,
        "image_size": sizes.side,
    }
    return model_from_params(_filled(shapes), meta, dtype=dtype)


def encode(sizes: Sizes) -> Parts:
    """Encoding and clicks."""
    from semsam_jax.inference.predictor import Predictor
    from semsam_jax.inference.preprocess import fit_image
    from semsam_jax.inference.requests import Request

    image = np.random.default_rng(0).integers(0, 256, (sizes.side, sizes.side, 3), np.uint8)

    def run(dtype: str) -> Iterator[Row]:
        model = _model(sizes, dtype)
        frame = model.frame(image.shape[:2])
        canvas = fit_image(image, frame)[None]
        whole = _best(lambda: model.encode(canvas, [frame]), sizes.repeats)
        side = f"{sizes.preset}, {frame.resized_hw[1]}x{frame.resized_hw[0]}, {dtype}"
        yield Row(f"encode, {side}", _ms(whole), f"products `{model.precision}`")
        loose = dataclasses.replace(model, precision="default")
        seconds = _best(lambda: loose.encode(canvas, [frame]), sizes.repeats)
        exact, other = (
            np.asarray(m.encode(canvas, [frame]).mask_features, np.float32) for m in (model, loose)
        )
        error = np.abs(exact - other).max() / np.abs(exact).max()
        how = f"products as default (TF32 on a GPU); mask features {error:.0e} of the largest apart"
        yield Row(f"encode, {side}", _ms(seconds), how)
        yield from _parts(model, canvas, sizes)
        predictor = Predictor(model)
        predictor.set_image(image)
        points = np.random.default_rng(1).uniform(0.1, 0.9, (sizes.clicks, 2)) * sizes.side
        for count in (1, sizes.clicks):
            requests = [Request([point]) for point in points[:count]]
            seconds = _best(functools.partial(predictor.predict_many, requests), sizes.repeats)
            yield Row(
                f"{count} click(s) on cached features, {dtype}", _ms(seconds), "masks on host"
            )

    for dtype in ("float32", "bfloat16"):
        yield f"encode, {dtype}", functools.partial(run, dtype)


def _parts(model, canvas: np.ndarray, sizes: Sizes) -> Iterator[Row]:
    """Time of the backbone and of the pixel decoder on maps of its shapes."""
    from semsam_jax.models.pixel_decoder import PixelDecoder

    config = model.module.config
    height, width = canvas.shape[1:3]
    maps = tuple(
        jnp.zeros((1, height // s, width // s, c), model.module.dtype)
        for s, c in zip((4, 8, 16, 32), config.backbone.channels, strict=True)
    )
    decoder = PixelDecoder(config.pixel_decoder, dtype=model.module.dtype)

    @jax.jit
    def refine(params, maps):
        return decoder.apply({"params": params}, maps)

    with jax.default_matmul_precision(model.precision):
        seconds = _best(lambda: refine(model.params["pixel_decoder"], maps), sizes.repeats)
    yield Row("of these, the pixel decoder", _ms(seconds), "the rest is the backbone's")


def everything(sizes: Sizes) -> Parts:
    """Everything in one image."""
    from semsam_jax.inference.mask_generator import MaskGenerator

    def run(dtype: str) -> Iterator[Row]:
        image = np.random.default_rng(0).integers(0, 256, (sizes.side, sizes.side, 3), np.uint8)
        keep_all = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
        generator = MaskGenerator(_model(sizes, dtype), sizes.points_per_side, **keep_all)
        seconds = _best(lambda: generator.generate(image), min(sizes.repeats, 2))
        clicks = sizes.points_per_side**2
        yield Row(f"everything, {clicks} clicks, {dtype}", _ms(seconds), "no mask is filtered out")

    for dtype in ("float32", "bfloat16"):
        yield f"everything, {dtype}", functools.partial(run, dtype)


def steps(sizes: Sizes) -> Parts:
    """The joint training step, with as many rows as fit."""
    for preset in sizes.steps:
        yield f"joint step, {preset}", functools.partial(_step, preset, sizes)


def _step(preset: str, sizes: Sizes) -> Iterator[Row]:
    from configs import joint
    from semsam_jax import config as config_lib
    from semsam_jax.parallel import hardware
    from semsam_jax.parallel.mesh import build_mesh, num_batch_shards

    mesh = build_mesh(1)
    shards, chip = num_batch_shards(mesh), hardware.chip(jax.devices()[0])
    own = 1 if chip is None else max(1, int(chip.memory / 2**30 / GIB_A_ROW[preset] / 2))
    while True:
        config = joint.get_config(preset)
        config.data.interactive_batch = config.data.generic_batch = own * shards
        if preset == "tiny":
            config.data.image_size = sizes.side
        run = config_lib.build(config)
        try:
            seconds, compiled, work = _time_step(run, mesh, sizes.repeats)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or own == 1:
                raise
            own //= 2
            continue
        break
    memory = hardware.memory_in_use().get("peak_memory_gib")
    rate = ""
    if chip is not None:
        rate = f", {work.useful / seconds / chip.flops / shards:.0%} of the bfloat16 peak"
    yield Row(
        f"joint step, {preset}, {own} + {own} rows a device, {run.model.dtype}",
        f"{seconds:.3f} s{rate}",
        f"first step {compiled:.0f} s"
        + ("" if memory is None else f"; peak {memory:.1f} GiB of this process so far"),
    )


def _time_step(run, mesh, repeats: int) -> tuple[float, float, Any]:
    """Seconds of a step, of the first one, and what a step computes."""
    from semsam_jax.train import aot, build
    from semsam_jax.train import input as input_lib
    from semsam_jax.train.abstract import abstract_inputs

    names = input_lib.open_vocabulary(run, input_lib.used_datasets(run))
    model = build.build_model(run)
    tx = build.build_tx(run, model)
    step = build.build_step(run, model, tx, mesh, names.num_objects)
    inputs = abstract_inputs(run, model, tx, mesh, names.num_objects, len(names))
    work = aot.count(aot.trace(step, inputs.state, inputs.batch, inputs.text))
    state, batch, text = (_filled(x) for x in (inputs.state, inputs.batch, inputs.text))

    def once(state):
        start = time.perf_counter()
        state, metrics, _ = step(state, batch, text)
        jax.block_until_ready((state, metrics))
        return state, time.perf_counter() - start

    state, first = once(state)
    times = []
    for _ in range(min(repeats, 5)):
        state, seconds = once(state)
        times.append(seconds)
    return min(times), first, work


def _filled(tree: Any) -> Any:
    """Random arrays of the shapes of a tree, where they are to lie."""
    rng = np.random.default_rng(0)

    def fill(x: jax.ShapeDtypeStruct) -> jax.Array:
        if x.dtype == jnp.bool_:
            array = np.ones(x.shape, bool)
        elif x.dtype == jnp.uint8:
            array = rng.integers(0, 256, x.shape, np.uint8)
        elif jnp.issubdtype(x.dtype, jnp.integer):
            array = np.zeros(x.shape, x.dtype)
        else:
            array = rng.uniform(0.0, 0.1, x.shape).astype(x.dtype)
        return jax.device_put(array, x.sharding)

    return jax.tree.map(fill, tree)


def _best(run: Callable[[], Any], repeats: int) -> float:
    """Smallest of some times, after one call that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


if __name__ == "__main__":
    main()
