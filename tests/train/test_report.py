"""What a finished run says: its figures, those of each class, and which model to try."""

import numpy as np

from semsam_jax import config
from semsam_jax.train import report
from semsam_jax.train.best import BestCheckpoint

RATES = ("images_per_sec", "host_matching_share", "input_wait_share")
MEASURED = dict.fromkeys(("seconds", "seconds_to_first_step", "loss_first", "loss_last"), 1.0)
MEASURED |= {"skipped_steps": 0} | dict.fromkeys(RATES, 1.0)


def found(iou, ap):
    classes = {"cat": {"masks": 3.0, "iou": 100 * iou, "ap": 100 * ap}, "dog": {"masks": 1.0}}
    return {"iou_max": iou, "iou_oracle": 0.9, "mask_ap": ap, "classes": classes}


def test_the_classes_shown_are_those_of_the_model_that_is_suggested(tmp_path, capsys):
    values = {"model": {"preset": "tiny"}, "text": {"source": "encoder"}, "steps": 9}
    run = config.build(values)
    params, meta = {"w": np.zeros(1, np.float32)}, {"measured": MEASURED}
    meta |= {"before": found(0.2, 0.0), "after": found(0.4, 0.125)}
    best = BestCheckpoint(tmp_path, is_on=True)
    best.update(found(0.5, 0.25), params, {}, step=6)
    assert not best.update(found(0.4, 0.125), params, {}, step=9)
    summary = report.summarize(run, meta, BestCheckpoint(tmp_path, is_on=True))
    assert (summary["mask_ap_before"], summary["mask_ap_after"]) == (0.0, 0.125)
    assert (summary["mask_ap_best"], summary["best_step"]) == (0.25, 6)
    assert summary["classes"]["cat"]["iou"] == 40
    assert summary["classes_best"]["cat"]["iou"] == 50
    report.log_summary(summary, tmp_path, best)
    said = capsys.readouterr().out
    table = said[said.index("scores by class of ") :].splitlines()
    assert table[0] == f"scores by class of {tmp_path / 'best'}:"
    assert [line.split() for line in table[1:4]] == [
        ["class", "(%)", "masks", "IoU", "AP"],
        ["cat", "3", "50.0", "25.0"],
        ["dog", "1", "-", "-"],
    ]
    assert f"--checkpoint {tmp_path / 'best'} --point X,Y  (the best model, of step 6)" in said

    best.update(found(0.6, 0.5), params, {}, step=9)
    summary = report.summarize(run, meta | {"after": found(0.6, 0.5)}, best)
    assert "classes_best" not in summary
    report.log_summary(summary, tmp_path, best)
    said = capsys.readouterr().out
    assert f"scores by class of {tmp_path}:" in said
    assert f"--checkpoint {tmp_path} --point X,Y\n" in said


def test_a_run_that_did_not_improve_says_so(tmp_path, capsys):
    run = config.build({"model": {"preset": "tiny"}, "text": {"source": "encoder"}, "steps": 9})
    best = BestCheckpoint(tmp_path, is_on=True)
    best.update(found(0.5, 0.25), {"w": np.zeros(1, np.float32)}, {}, step=0)
    meta = {"measured": MEASURED, "before": found(0.5, 0.25), "after": found(0.4, 0.125)}
    report.log_summary(report.summarize(run, meta, best), tmp_path, best)
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"--checkpoint {tmp_path / 'best'} " in last
    assert "training did not improve its one-click IoU" in last


def test_what_a_checkpoint_decides_of_the_loss_is_said(capsys):
    asked = config.LossChoice(from_checkpoint=True, dice=7.0)
    report.log_inherited_loss(asked, config.LossChoice(class_balance=0.2, dice=7.0))
    assert "trained: class_balance=0.2 (not with" in capsys.readouterr().out
    report.log_inherited_loss(asked, config.LossChoice(dice=7.0))
    assert not capsys.readouterr().out
