import csv
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowers.models.backbones import state_dict_sha256
from flowers.models.classifier import load_classifier, read_checkpoint
from flowers.runtime.files import read_json
from flowers.runtime.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, expand_resume_args
from flowers.train import main
from flowers.training.experiment import run_training
from tests.helpers import SMALL, configuration, curves, program, weights

STATIC = ("val", "best_epoch", "classes", "seed", "digest", "device", "precision", "versions", "git")


def backbone_digests(run: Path, name: str) -> tuple[bool, int]:
    """Whether the backbone is what the run started from, and after how many epochs."""
    model = load_classifier(run / name)
    epochs = read_checkpoint(run / name)["epoch"] + 1
    return state_dict_sha256(model.backbone) == model.hparams["weights_digest"], epochs


def test_a_run_folder_holds_all_of_a_run(trained: Path):
    files = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    named = {"config.yaml", "started.yaml", "split.csv", "result.json", BEST_CHECKPOINT, LAST_CHECKPOINT}
    named |= {"predictions/val.csv", "predictions/test.csv"}
    assert named <= files
    evaluated = {"report.html", "mistakes.csv", "report-test.html", "mistakes-test.csv"}  # by tests that ran before
    assert all(file.startswith("tensorboard/") for file in files - named - evaluated)


def test_the_result_says_how_good_how_sure_and_what_it_took(trained: Path):
    result = read_json(trained / "result.json")
    val = result["val"]
    assert val["n"] == 10
    assert result["test"]["n"] == 5
    assert val["interval"][0] < val["accuracy"] < val["interval"][1] or val["accuracy"] in (0, 1)
    assert set(result["cost"]["seconds"]) == {"head", "finetune"}
    assert result["cost"]["peak_memory_bytes"] > 1e8
    assert torch.__version__.startswith(result["versions"]["torch"])
    with (trained / "split.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 60


def test_the_backbone_changes_in_the_second_stage_only(painted: Path, trained: Path, tmp_path: Path):
    frozen = [f"data.root={painted}", "finetune.epochs=0", "head.epochs=1"]
    for views in (0, 1):
        run = tmp_path / f"views{views}"
        run_training(configuration(*SMALL, *frozen, f"run_dir={run}", f"head.cached_views={views}"))
        assert backbone_digests(run, BEST_CHECKPOINT) == (True, 1)
    assert backbone_digests(trained, LAST_CHECKPOINT) == (False, 4)


def test_the_head_stages_last_checkpoint_goes_with_the_weights_that_it_began_with(painted: Path, tmp_path: Path):
    recipe = [*SMALL, f"data.root={painted}", "finetune.epochs=0"]
    run_training(configuration(*recipe, f"run_dir={tmp_path}"))
    assert not [name for name in weights(tmp_path) if name.startswith("backbone.")]
    with pytest.raises(ValueError, match=r"head stage goes with the backbone .* take best\.ckpt"):
        load_classifier(tmp_path / LAST_CHECKPOINT)
    run_training(configuration(*recipe, f"run_dir={tmp_path}", f"resume={tmp_path}", "head.epochs=3"))
    assert read_checkpoint(tmp_path / LAST_CHECKPOINT)["epoch"] + 1 == 3


def test_a_checkpoint_is_enough_to_classify_a_photo(trained: Path):
    model = load_classifier(trained / BEST_CHECKPOINT).eval()
    assert model.classes == ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    assert (model.hparams["image_size"], model.hparams["resize"]) == (32, 32)
    assert model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 5)
    assert model.hparams["split_digest"] == read_json(trained / "result.json")["digest"]["split"]


PICTURES = {"photos/train", "photos/val", "val/confusion", "val/surest_mistakes", "val/least_sure"}


def test_tensorboard_has_both_stages_curves_the_photos_and_the_hyperparameters(trained: Path):
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    tags = events.Tags()
    assert {
        "train/loss",
        "train/accuracy",
        "val/loss",
        "val/accuracy",
        "lr/head",
        "lr/backbone",
        "photos_per_second",
    } <= set(tags["scalars"])
    assert set(tags["images"]) == PICTURES
    assert len(events.Scalars("val/accuracy")) == 4
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_a_run_killed_in_each_stage_and_in_a_checkpoint_ends_as_the_uninterrupted_one(painted: Path, tmp_path: Path):
    recipe = [*SMALL, f"data.root={painted}", "model.architecture=mobilenet_v3_small", "scheduler=cosine"]
    recipe += ["head.cached_views=2", "+callbacks.kill._target_=tests.helpers.KillAt"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_training(configuration(*recipe, f"run_dir={whole}"))
    first = program(*recipe, f"hydra.run.dir={killed}", KILL_AT="1.0")
    second = program(f"resume={killed}", KILL_AT="2.save")
    third = program(f"resume={killed}", KILL_AT="3.1")
    last = program(f"resume={killed}")
    assert [done.returncode for done in (first, second, third)] == [-signal.SIGKILL] * 3
    assert last.returncode == 0, last.stderr

    for name in (BEST_CHECKPOINT, LAST_CHECKPOINT):
        ours, theirs = weights(killed, name), weights(whole, name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    killed_result, whole_result = (read_json(run / "result.json") for run in (killed, whole))
    assert {key: killed_result[key] for key in STATIC} == {key: whole_result[key] for key in STATIC}
    assert curves(killed) == curves(whole)


def test_the_same_command_gives_the_same_result(painted: Path, tmp_path: Path):
    runs = []
    for name in "ab":
        main(
            configuration(
                *SMALL, f"data.root={painted}", f"run_dir={tmp_path / name}", "head.epochs=1", "finetune.epochs=1"
            )
        )
        runs.append(read_json(tmp_path / name / "result.json"))
    assert {key: runs[0][key] for key in STATIC} == {key: runs[1][key] for key in STATIC}


def test_clipping_accumulation_and_mixed_precision_come_from_overrides(painted: Path, tmp_path: Path):
    overrides = ["++trainer.gradient_clip_val=1", "++trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed"]
    run_training(
        configuration(*SMALL, *overrides, f"data.root={painted}", f"run_dir={tmp_path}", "scheduler=one_cycle")
    )
    assert (
        read_checkpoint(tmp_path / LAST_CHECKPOINT)["global_step"] == 8
    )  # 50 photos, 4 batches of 16, 2 steps, 4 epochs
    assert read_json(tmp_path / "result.json")["precision"] == "bf16-mixed"


def test_a_run_folder_is_not_written_over(trained: Path, painted: Path):
    before = (trained / "result.json").read_bytes()
    with pytest.raises(ValueError, match="holds a run already"):
        run_training(configuration(*SMALL, f"data.root={painted}", f"run_dir={trained}"))
    assert (trained / "result.json").read_bytes() == before


def test_a_refused_start_leaves_the_run_as_it_can_be_resumed(painted: Path, tmp_path: Path):
    start = [*SMALL, f"data.root={painted}", "head.epochs=1", "finetune.epochs=0", f"hydra.run.dir={tmp_path}/run"]
    assert program(*start, "head.cached_views=0").returncode == 0
    assert "holds a run already" in program(*start, "seed=7").stderr
    assert "differ from those of" in program(f"resume={tmp_path}/run", "data.split_seed=9").stderr
    replayed = expand_resume_args([f"resume={tmp_path}/run"])
    assert "head.cached_views=0" in replayed
    assert not {"seed=7", "data.split_seed=9"} & set(replayed)


def test_a_moved_run_goes_on_with_the_best_that_it_had(painted: Path, tmp_path: Path):
    first, moved = tmp_path / "first", tmp_path / "moved"
    recipe = (*SMALL, f"data.root={painted}", "callbacks.best.monitor=val/loss", "callbacks.best.mode=min")
    run_training(configuration(*recipe, f"run_dir={first}", "finetune.epochs=0"))
    shutil.copytree(first, moved)
    before = (first / BEST_CHECKPOINT).read_bytes()
    worse = "optimizer.lr=1", "finetune.backbone_lr=1"
    run_training(configuration(*recipe, f"run_dir={moved}", f"resume={moved}", "finetune.epochs=1", *worse))
    assert read_json(moved / "result.json")["best_epoch"] == read_json(first / "result.json")["best_epoch"]
    assert (moved / BEST_CHECKPOINT).read_bytes() == before


def test_a_run_cannot_be_resumed_for_fewer_epochs_than_it_has(trained: Path, painted: Path):
    overrides = [f"data.root={painted}", f"run_dir={trained}", f"resume={trained}", "finetune.epochs=1"]
    with pytest.raises(ValueError, match="has 4 epochs behind it"):
        run_training(configuration(*SMALL, *overrides))


def test_a_loss_that_is_lost_in_an_epochs_only_step_is_noticed_before_it_is_kept(painted: Path, tmp_path: Path):
    overrides = ["optimizer.lr=1e37", "data.batch_size=64", "head.epochs=1", "finetune.epochs=0"]
    with pytest.raises(ValueError, match="validation loss became"):
        run_training(configuration(*SMALL, *overrides, f"data.root={painted}", f"run_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run" / LAST_CHECKPOINT).exists()


def test_a_loss_that_is_no_number_stops_the_run_with_a_clear_line(painted: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"training loss became (nan|inf).*smaller optimizer.lr"):
        run_training(configuration(*SMALL, f"data.root={painted}", f"run_dir={tmp_path / 'run'}", "optimizer.lr=1e37"))
    assert not (tmp_path / "run" / BEST_CHECKPOINT).exists()


def test_stages_that_are_left_out_and_none_at_all(painted: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="wanted at least one epoch"):
        run_training(
            configuration(*SMALL, f"data.root={painted}", f"run_dir={tmp_path}", "head.epochs=0", "finetune.epochs=0")
        )


def test_a_multirun_goes_past_a_failing_job_and_ends_with_the_table(painted: Path, tmp_path: Path):
    done = program("-m", *SMALL, f"data.root={painted}", "head.epochs=1", "finetune.epochs=0", "seed=0,1",
                   "optimizer.lr=0.001,1e37", f"hydra.sweep.dir={tmp_path}")  # fmt: skip
    assert done.returncode == 1
    with (tmp_path / "runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert [row["accuracy"] != "" for row in rows] == [True, True, False, False]
    assert float(rows[0]["accuracy"]) >= float(rows[1]["accuracy"])
    failed = rows[-1]["run"]
    assert "Traceback" in (tmp_path / failed / "train.log").read_text(encoding="utf-8")
    assert "Traceback" not in done.stdout + done.stderr
    assert "2 of 4 runs failed" in done.stderr
    good = json.loads((tmp_path / rows[0]["run"] / "result.json").read_text(encoding="utf-8"))
    assert good["val"]["accuracy"] == float(rows[0]["accuracy"])


def test_a_users_mistake_is_one_line_and_no_traceback(tmp_path: Path):
    runs: list[tuple[list[str], str]] = [
        (["data=folder", "data.root=/nowhere"], "no folder of images at /nowhere"),
        ([f"resume={tmp_path}"], "no run there"),
    ]
    for given, answer in runs:
        done = program(*given, *([] if "resume" in given[0] else [f"hydra.run.dir={tmp_path}/run"]))
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert answer in done.stderr
        assert done.stderr.count("\n") == 1
