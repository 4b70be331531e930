"""Wrong values on the command line end with one line and exit code 2, before data is touched."""

import pytest

from data_pipelines import build, check, sample
from tests.data_pipelines import custom_data

COCO = ["--dataset", "coco", "--root", str(sample.roots()["coco"])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--options", "{bad"], "is not JSON"),
        (["--options", "[1]"], "not a JSON object"),
        (["--limit", "0"], "0; expected 1 or more"),
        (["--count", "-1"], "-1; expected 1 or more"),
        (["--limit", "two"], "invalid number value: 'two'"),
        (["--contact-sheet", "nowhere/sheet.png"], "expected a .png in a folder that exists"),
        (["--contact-sheet", "sheet.tiff"], "expected a .png in a folder that exists"),
        (["--contact-sheet", "a\0.png"], "expected a .png in a folder that exists"),
    ],
)
def test_check_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        check.main([*COCO, *arguments])
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard-records", "0"], "0; expected 1 or more"),
        (["--threads", "0"], "0; expected 1 or more"),
        (["--max-broken", "7"], "expected a share from 0 to 1"),
        (["--options", "3"], "not a JSON object"),
        (["--out", ""], "''; expected a folder or a bucket"),
        (["--out", "a\0b"], "expected a folder or a bucket"),
    ],
)
def test_build_refuses(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        build.main([*COCO, "--out", str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_bucket_without_its_file_system_is_one_line(tmp_path, capsys, monkeypatch):
    def missing(*_, **__):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(build, "RecordsBuilder", missing)
    assert build.main([*COCO, "--out", "gs://bucket/records"]) == 2
    assert (
        capsys.readouterr().err
        == "semsam data build: Please install gcsfs to access Google Storage\n"
    )


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("coco", '{"foo": 1}', "coco: unknown option foo; its reader has annotations"),
        ("objects365", '{"a": 1, "b": 2}', "unknown option a, b; its reader has none"),
        ("sa1b", '{"cache": "x", "split": "val"}', "sa1b: cache, split cannot be options"),
        ("coco", '{"annotations": "stuff"}', "'stuff'; expected 'panoptic' or 'instances'"),
        ("coco", '{"annotations": 5}', "coco: option annotations is 5; expected str"),
        ("ade20k", '{"parts": "no"}', "ade20k: option parts is 'no'; expected bool"),
        ("sa1b", '{"min_predicted_iou": NaN}', "option min_predicted_iou is nan; expected float"),
    ],
)
def test_reader_options_are_checked(dataset, options, message, capsys):
    assert message in _refusal(capsys, dataset, sample.roots()[dataset], options)


def _refusal(capsys, dataset, root, options):
    """The one line with which `check` ends."""
    assert check.main(["--dataset", dataset, "--root", str(root), "--options", options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("semsam data check: ")
    return line


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert build.main([*COCO, "--out", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("own", '{"annotations": 5}', "own: option annotations is 5; expected a path"),
        ("own", '{"images": []}', "own: option images is a list of 0; expected str"),
        ("own", '{"boxes_only": "yes"}', "option boxes_only is 'yes'; expected bool"),
        ("", "{}", "dataset '': expected a name that a folder can have"),
        ("a/b", "{}", "dataset 'a/b': expected a name"),
        ("a\0b", "{}", "dataset 'a b': expected a name"),
        ("..", "{}", "dataset '..': expected a name"),
        ("x" * 300, "{}", "expected a name"),
    ],
)
def test_names_and_options_of_custom_sets_are_checked(name, options, message, tmp_path, capsys):
    assert message in _refusal(capsys, name, custom_data.write(tmp_path), options)
