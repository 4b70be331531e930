"""`segment` answers in the frame of the displayed image."""

import json

from semsam_jax.__main__ import main
from tests.data_pipelines import custom_data


def test_a_rotated_image_is_clicked_and_answered_as_it_is_shown(
    tiny_checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path / "cache"))
    image = tmp_path / "turned.jpg"
    image.write_bytes(custom_data.image(6))  # stored 96x64, shown 64x96
    command = ["segment", str(image), "--checkpoint", str(tiny_checkpoint), "--size", "96"]
    assert main([*command, "--point", "30,90", "--out", str(tmp_path / "out")]) == 0
    (record, *_) = json.loads((tmp_path / "out/masks.json").read_text())
    assert record["segmentation"]["size"] == [96, 64]
    assert main([*command, "--point", "90,30", "--out", str(tmp_path / "no")]) == 2
    assert "64" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
