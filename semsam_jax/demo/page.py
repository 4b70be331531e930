"""The page: Gradio's controls around a custom canvas.

Every control acts in the browser only (`fn=None`); the canvas talks to the routes of
`server`. So none of Gradio's own routes that take input has to be open.
"""

from importlib import resources

import gradio as gr
from fastapi import FastAPI

from semsam_jax.demo.engine import GRIDS, Engine

_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
_DEFAULT_GRID = 16


def mount_page(app: FastAPI, engine: Engine, num_examples: int, root: str = "") -> FastAPI:
    """Adds the page to an application at `/`, which visitors see at the path `root`."""
    return gr.mount_gradio_app(
        app,
        build_page(engine, num_examples),
        path="",
        root_path=root or None,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
        run_history=False,
        footer_links=[],
        theme=_theme(),
        css=_static("page.css"),
    )


def build_page(engine: Engine, num_examples: int) -> gr.Blocks:
    """Returns the page for a model."""
    with gr.Blocks(title="Semantic-SAM", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_static("header.html"))
        with gr.Row(elem_id="ss-main"):
            with gr.Column(scale=7, min_width=320):
                stage = gr.HTML(
                    html_template=_canvas(num_examples),
                    js_on_load=_static("draw.js") + _static("canvas.js"),
                    apply_default_css=False,
                    elem_id="ss-stage",
                )
            with gr.Column(scale=4, min_width=320, elem_id="ss-panel"):
                level = gr.Slider(
                    1,
                    engine.num_levels,
                    value=1,
                    step=1,
                    label="Level",
                    info=f"1 the whole thing, {engine.num_levels} its smallest part",
                    elem_id="ss-level",
                    buttons=[],
                )
                gr.HTML(_static("result.html"), apply_default_css=False, elem_id="ss-result-block")
                names = gr.Textbox(
                    label="Names to choose from",
                    info="objects; parts",
                    placeholder="dog, cat; head, leg",
                    max_lines=1,
                    elem_id="ss-names",
                    interactive=engine.knows_names,
                )
                with gr.Row(elem_classes="ss-buttons"):
                    everything = gr.Button("Segment everything", variant="primary", min_width=140)
                    panoptic = gr.Button(
                        "Panoptic view", min_width=120, interactive=engine.has_panoptic
                    )
                with gr.Accordion("Settings of segment everything", open=False):
                    quality = gr.Slider(
                        0,
                        1,
                        value=engine.suggested_quality,
                        step=0.05,
                        label="Least quality",
                        info="predicted IoU and stability; the start value suits this model",
                        elem_id="ss-quality",
                        buttons=[],
                    )
                    grid = gr.Radio(
                        list(GRIDS), value=_DEFAULT_GRID, label="Clicks along each side"
                    )
                    levels = gr.Radio(
                        ["all levels", "only the level above"], value="all levels", label="Levels"
                    )
                gr.HTML("<h3>Take the masks with you</h3>", elem_classes="ss-heading")
                with gr.Row(elem_classes="ss-buttons ss-downloads"):
                    downloads = [
                        (gr.Button(text, size="sm", min_width=90, elem_id=f"ss-get-{kind}"), kind)
                        for text, kind in (
                            ("COCO JSON", "coco"),
                            ("PNG masks", "masks"),
                            ("Overlay", "overlay"),
                            ("LabelMe", "labelme"),
                        )
                    ]
        level.input(fn=None, inputs=level, js="(level) => { window.semsam.setLevel(level); }")
        stage.level(fn=None, outputs=level, js="() => window.semsam.level()")
        for event in (names.submit, names.blur):
            event(fn=None, inputs=names, js="(names) => { window.semsam.setNames(names); }")
        everything.click(
            fn=None,
            inputs=[names, grid, quality, levels],
            js="(names, grid, quality, levels) => "
            "{ window.semsam.everything(names, grid, quality, levels === 'all levels'); }",
        )
        panoptic.click(fn=None, inputs=names, js="(names) => { window.semsam.panoptic(names); }")
        for button, kind in downloads:
            button.click(fn=None, js=f"() => {{ window.semsam.download('{kind}'); }}")
    return page


def _theme() -> gr.Theme:
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=_FONT,
        font_mono=_MONO,
    ).set(
        body_background_fill="#f6f7fb",
        body_background_fill_dark="#0e1116",
        block_border_width="0px",
        block_shadow="none",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
    )


def _canvas(num_examples: int) -> str:
    examples = "".join(
        f'<button type="button" class="ss-example" data-example="{i}" '
        f'aria-label="example image {i + 1}"><img src="examples/{i}.jpg" alt=""></button>'
        for i in range(num_examples)
    )
    return _static("canvas.html").replace("<!-- examples -->", examples)


def _static(name: str) -> str:
    return (resources.files("semsam_jax.demo") / "static" / name).read_text(encoding="utf-8")
