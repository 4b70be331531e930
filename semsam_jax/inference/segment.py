"""python -m semsam_jax segment IMAGE: masks from clicks and boxes, or a panoptic view."""

import argparse
from pathlib import Path

from semsam_jax.core.errors import PromptError
from semsam_jax.inference import arguments

TASKS = ("prompt", "panoptic", "instance", "semantic")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `segment`."""
    parser = commands.add_parser(
        "segment",
        help="segment an image from clicks or boxes, or label all of it",
        description="Segments what clicks and boxes mark; writes masks.json and overlay.png.",
    )
    parser.add_argument("image", help="a JPEG, PNG, WebP, BMP, TIFF or GIF file")
    parser.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="X,Y",
        help="click in image pixels, as the image is displayed; X,Y,0 is a negative click",
    )
    parser.add_argument(
        "--negative", action="append", default=[], metavar="X,Y", help="negative click"
    )
    parser.add_argument(
        "--box", action="append", default=[], metavar="X0,Y0,X1,Y1", help="box in image pixels"
    )
    parser.add_argument(
        "--one-object",
        action="store_true",
        help="all clicks and the box describe one object (implied by a negative click); "
        "otherwise each is a prompt of its own",
    )
    parser.add_argument(
        "--level", default="all", metavar="1..6|all", help="1 coarsest, 6 finest (default: all)"
    )
    arguments.add_granularity_argument(parser)
    parser.add_argument(
        "--area",
        type=float,
        metavar="F",
        help="choose the level whose mask area is closest to this fraction of the image, 0..1",
    )
    parser.add_argument(
        "--task",
        choices=TASKS,
        default="prompt",
        help="prompt: masks for clicks and boxes; the others label the whole image with --labels",
    )
    arguments.add_labels_argument(parser)
    arguments.add_model_arguments(parser)
    arguments.add_size_argument(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results of another image in the folder"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="default: NAME_segments next to the image; earlier results of the same image are "
        "replaced",
    )


def run(args: argparse.Namespace) -> int:
    """Segments the image, writes masks.json and overlay.png."""
    from semsam_jax.inference.images import load_image
    from semsam_jax.inference.segment_folder import segment_folder

    image_path = Path(args.image)
    size = arguments.parse_size(args.size)
    prompts = None if args.task != "prompt" else _requests(args)
    if args.task != "prompt" and not args.labels:
        raise PromptError(f"--task {args.task}: needs --labels, the names to label with.")
    if args.task != "prompt":
        _check_no_prompts(args)
    image = load_image(image_path)
    out = segment_folder(args.out, image_path, image, args.overwrite)
    if prompts is None:
        model = arguments.load_from_args(args, args.pad_to_multiple)
        from semsam_jax.inference.whole_image import segment_whole_image

        segment_whole_image(model, image, args.task, args.labels, size, out.path, out.start)
    else:
        _segment_prompts(args, image, prompts, size, out)
    return 0


def _check_no_prompts(args: argparse.Namespace) -> None:
    """Raises PromptError for an argument that a task of the whole image would ignore."""
    prompts = {"--point": args.point, "--negative": args.negative, "--box": args.box}
    prompts["--one-object"] = args.one_object
    for flag, value in prompts.items():
        if value:
            raise PromptError(
                f"{flag}: not with --task {args.task}, which labels the whole image; leave one out."
            )
    levels = {"--level": None if args.level == "all" else args.level, "--area": args.area}
    levels["--granularity"] = args.granularity
    for flag, value in levels.items():
        if value is not None:
            raise PromptError(f"{flag}: not with --task {args.task}, which has no levels.")


def _requests(args: argparse.Namespace) -> list[dict]:
    """Points and boxes of the command line, one mapping for each object."""
    points, labels = [], []
    for text in args.point:
        count = 3 if text.count(",") == 2 else 2
        values = arguments.parse_numbers(text, count, "--point")
        points.append(values[:2])
        labels.append(values[2] if count == 3 else 1)
    for text in args.negative:
        points.append(arguments.parse_numbers(text, 2, "--negative"))
        labels.append(0)
    boxes = [arguments.parse_numbers(text, 4, "--box") for text in args.box]
    if not points and not boxes:
        raise PromptError("prompt: none given; add --point X,Y or --box X0,Y0,X1,Y1.")
    if args.one_object or 0 in labels:
        return [{"point_coords": points, "point_labels": labels, "box": boxes}]
    single = [
        {"point_coords": [p], "point_labels": [v]} for p, v in zip(points, labels, strict=True)
    ]
    return single + [{"box": box} for box in boxes]


def _segment_prompts(args, image, prompts: list[dict], size, place) -> None:
    from semsam_jax.inference.granularity import parse_levels
    from semsam_jax.inference.requests import Request, check_request

    granularity = arguments.parse_granularities(args.granularity)
    wanted = {"level": args.level, "area": args.area, "granularity": granularity}
    requests = [Request(**prompt, **wanted) for prompt in prompts]
    for request in requests:  # before the slow part: a wrong click should not wait for a model
        check_request(request, image.shape[:2])
    model = arguments.load_from_args(args, args.pad_to_multiple)
    parse_levels(args.level, model.num_levels, args.area)
    from semsam_jax.inference import files
    from semsam_jax.inference.labels import label_set
    from semsam_jax.inference.predictor import Predictor

    if args.labels:
        label_set(model, args.labels)  # wrong names should not wait for the network

    predictor = Predictor(model, size=size)
    predictor.set_image(image)
    answers = predictor.predict_many(requests, labels=args.labels)
    picture = prompt_picture(image, requests, answers)
    records = prompt_records(requests, answers)
    place.start(["masks.json", "overlay.png"])
    out = place.path
    files.write_picture(out / "overlay.png", picture)
    files.write_json(out / "masks.json", records)
    print(f"{len(records)} masks in {out / 'masks.json'}, overlay in {out / 'overlay.png'}")


def prompt_records(requests: list, answers: list) -> list[dict]:
    """JSON records of all masks: COCO RLE, box, area, predicted IoU, level, token, names.

    `prompt` counts the objects asked for, `category_id` is the level, so that the list is
    also a COCO result list for `image_id` 1.
    """
    records = []
    for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        for record in answer.records():
            about = {"id": len(records) + 1, "image_id": 1, "category_id": record["level"]}
            prompt = {
                "prompt": number,
                "point_coords": request.point_coords or [],
                "point_labels": [int(v) for v in request.point_labels or []],
                "box": request.box or [],
            }
            records.append(about | record | prompt)
    return records


def prompt_picture(image, requests: list, answers: list):
    """Overlay of one mask for each object, or the row of levels of a single object."""
    from semsam_jax.inference import visualize

    small = visualize.display_size(image)
    scale = small.shape[1] / image.shape[1]
    marks, boxes = _marks(requests, scale)
    if len(answers) == 1 and len(answers[0].masks) > 1:
        answer = answers[0]
        return visualize.level_strip(
            small,
            [visualize.shrink_mask(mask, small) for mask in answer.masks],
            [_caption(answer, i) for i in range(len(answer.masks))],
            points=marks,
            boxes=boxes,
        )
    best = [int(answer.scores.argmax()) for answer in answers]
    masks = [
        visualize.shrink_mask(answer.masks[i], small)
        for answer, i in zip(answers, best, strict=True)
    ]
    colours = visualize.distinct_colours(len(masks))
    picture = visualize.overlay_masks(small, masks, colours, points=marks, boxes=boxes)
    texts = [_name(answer, i) for answer, i in zip(answers, best, strict=True)]
    return visualize.write_labels(picture, masks, texts, colours)


def _marks(requests: list, scale: float) -> tuple[list, list]:
    marks, boxes = [], []
    for request in requests:
        labels = request.point_labels or []
        for (x, y), label in zip(request.point_coords or [], labels, strict=True):
            marks.append((x * scale, y * scale, bool(label)))
        box = request.box or []
        for corners in [box] if box and not isinstance(box[0], list) else box:
            boxes.append(tuple(v * scale for v in corners))
    return marks, boxes


def _caption(answer, i: int) -> str:
    text = f"level {answer.levels[i]}"
    if answer.granularities:
        text = f"granularity {answer.granularities[i]:g}"
    text += f"  pred. IoU {answer.scores[i]:.2f}"
    name = _name(answer, i)
    return f"{text}  {name}" if name else text


def _name(answer, i: int) -> str:
    """The names that the model is sure of with their scores, or that it is of none."""
    names = [name for name in (answer.objects[i], answer.parts[i]) if name is not None]
    sure = [f"{name.name} {name.score:.2f}" for name in names if name.is_sure]
    return " / ".join(sure) or ("none of these" if names else "")
