"""Two processes on the CPU, over gloo: what several GPUs do, but for the GPUs."""

import copy
import itertools
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from flowers.data.samplers import EpochSampler
from flowers.evaluation.metrics import score
from flowers.features.extractor import UNCACHED, extract_features
from flowers.models.backbones import build_backbone
from flowers.models.checkpoint_format import read_checkpoint
from flowers.runs.predictions import load_predictions, predict_features
from flowers.runs.run import Run
from flowers.runs.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, PREDICTIONS_DIR, START_FILE
from flowers.runtime.distributed import local_slice
from flowers.runtime.files import read_json
from flowers.runtime.launch import is_rank_zero, share_run_dir
from flowers.runtime.seeding import epoch_seed, seeded
from flowers.training.experiment import run_training
from flowers.training.fsdp import shard_module
from tests.helpers import SMALL, configuration, curves, packed, program, weights

pytestmark = pytest.mark.distributed

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
SHARDED = ("trainer=fsdp", *TWO[1:])


@pytest.fixture(scope="module")
def recipe(painted: Path) -> list[str]:
    """Without BatchNorm and dropout, which see or draw for each process's photos alone; an odd number in val."""
    network = ["model.architecture=convnext_tiny", "+model.options.stochastic_depth_prob=0.0"]
    photos = [f"data.root={painted}", "data.batch_size=16", "data.val_fraction=0.25", "data.test_fraction=0.1"]
    rest = ["optimizer=sgd", "scheduler=cosine", "finetune.epochs=1", "+callbacks.kill._target_=tests.helpers.KillAt"]
    return [*SMALL, *network, *photos, *rest]


@pytest.fixture(scope="module")
def alone(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ddp") / "alone"
    run_training(configuration(*recipe, f"run_dir={run}"))
    return run


@pytest.fixture(scope="module")
def together(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Started by torchrun, and without the features that the run alone may have kept."""
    run = tmp_path_factory.mktemp("ddp") / "together"
    given = [*recipe, *TWO, f"hydra.run.dir={run}", "features.cache=false"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*command, "-m", "flowers.train", *given], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("head stage: 2 of 2 epochs left") == 1
    return run


@pytest.fixture(scope="module")
def in_parts(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a sharded model, killed after a step of the fine-tune stage, and gone on with there."""
    run = tmp_path_factory.mktemp("ddp") / "in_parts"
    given = [*recipe, *SHARDED, f"hydra.run.dir={run}", "callbacks.mid_epoch.minutes=0.00001"]
    first = program(*given, KILL_RANK="1", KILL_AT="2.1")
    assert first.returncode != 0
    assert "ended" in first.stderr
    assert read_checkpoint(run / LAST_CHECKPOINT)["mid_epoch"]
    last = program(f"resume={run}", KILL_AT="2.0")  # that batch is behind it
    assert last.returncode == 0, last.stderr
    assert "Warning" not in last.stdout + last.stderr
    return run


def test_two_processes_share_the_parts_of_a_recipe(recipe: list[str], tmp_path: Path):
    parts = ["callbacks=ema", "finetune.layer_decay=0.7", "finetune.norm_weight_decay=0", "finetune.depth=3"]
    parts += ["finetune.image_sizes=[40]", "head.init=probe", "tta=flip", "features.cache=false"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    run_training(configuration(*recipe, *parts, f"run_dir={alone}"))
    done = program(*recipe, *parts, *TWO, f"hydra.run.dir={together}")
    assert done.returncode == 0, done.stderr
    assert_close(together, alone)


def test_two_processes_mix_their_images(recipe: list[str], tmp_path: Path):
    """Each process mixes its own images, and leaves out the padding of the last step."""
    done = program(*recipe, *TWO, "mixing=mixup_or_cutmix", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert all(value > 0 for _, value in curves(tmp_path / "run")["train/loss"])


@pytest.mark.parametrize("way", ["together", "in_parts"])
def test_two_processes_train_what_one_does_with_the_same_batch(alone: Path, way: str, request: pytest.FixtureRequest):
    assert_close(request.getfixturevalue(way), alone)


@pytest.mark.parametrize("way", ["together", "in_parts"])
def test_two_processes_measure_what_one_does(alone: Path, way: str, request: pytest.FixtureRequest):
    assert_same_curves(request.getfixturevalue(way), alone)


def test_a_sharded_run_goes_on_whole_and_a_whole_one_sharded(alone: Path, in_parts: Path, tmp_path: Path):
    swapped = {"whole": (in_parts, "auto", 1), "sharded": (alone, "fsdp2", 2)}
    for name, (begun, strategy, devices) in swapped.items():
        shutil.copytree(begun, tmp_path / name)
        (tmp_path / name / START_FILE).write_bytes((in_parts / START_FILE).read_bytes())
        given = [f"trainer.strategy={strategy}", f"trainer.devices={devices}", "finetune.epochs=2"]
        done = program(f"resume={tmp_path / name}", *given)
        assert done.returncode == 0, done.stderr
        assert read_checkpoint(tmp_path / name / LAST_CHECKPOINT)["global_step"] == 12
    assert_close(tmp_path / "whole", tmp_path / "sharded")


def assert_same_curves(ours: Path, theirs: Path) -> None:
    """The same accuracies, and losses but for rounding."""
    found, wanted = curves(ours), curves(theirs)
    assert found.keys() == wanted.keys()
    for tag in wanted:
        assert [step for step, _ in found[tag]] == [step for step, _ in wanted[tag]]
        rel = 0 if tag.endswith("accuracy") else 1e-4
        assert [value for _, value in found[tag]] == pytest.approx([value for _, value in wanted[tag]], rel, 1e-7)


def assert_close(ours: Path, theirs: Path) -> None:
    """Both checkpoints' weights, and the optimizer's state."""
    for name in (BEST_CHECKPOINT, LAST_CHECKPOINT):
        found, wanted = weights(ours, name), weights(theirs, name)
        assert found.keys() == wanted.keys()
        for key in wanted:
            torch.testing.assert_close(found[key], wanted[key], rtol=1e-4, atol=1e-6)
    states = [read_checkpoint(way / LAST_CHECKPOINT)["optimizer_states"][0]["state"] for way in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    for number, values in states[1].items():
        torch.testing.assert_close(states[0][number], values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", ["resnet18", "inception_v3", "vit_b_16"])
def test_a_network_in_shards_has_the_gradients_of_the_whole(architecture: str, tmp_path: Path):
    options, size = ({"init_weights": False}, 299) if architecture == "inception_v3" else ({}, 224)
    plain, _ = build_backbone(architecture, None, options)
    parted = copy.deepcopy(plain)
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        shard_module(parted, init_device_mesh("cpu", (1,)))
        assert sum(isinstance(module, FSDPModule) for module in parted.modules()) > 10
        for network in (plain, parted):
            with seeded(0):  # dropout
                features = network(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
            (features[0] if isinstance(features, tuple) else features).square().mean().backward()
        for ours, theirs in zip(parted.parameters(), plain.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)  # Inception's auxiliary classifiers
            if theirs.grad is not None:
                assert isinstance(ours.grad, DTensor)
                assert torch.equal(ours.grad.full_tensor(), theirs.grad)
    finally:
        distributed.destroy_process_group()


def test_the_result_of_two_processes_is_that_of_their_checkpoint(together: Path):
    run = Run.open(together)
    model, data = run.network(), run.data(num_workers=0)
    how = replace(run.extraction(model), settings=UNCACHED)
    for split, count in (("val", 15), ("test", 5)):
        dataset = data.dataset(split)
        features = extract_features(model, data, dataset, split, how)
        expected = predict_features(model, features, dataset)
        said = load_predictions(together / PREDICTIONS_DIR / f"{split}.csv")
        assert said.paths == expected.paths
        torch.testing.assert_close(said.logits, expected.logits)
        scored, wanted = read_json(together / "result.json")[split], score(expected)
        assert scored["n"] == count
        assert scored["accuracy"] == wanted["accuracy"]


def test_only_the_first_process_writes(alone: Path, together: Path):
    def left(run: Path) -> list[str]:
        files = [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()]
        return sorted(name.rsplit(".tfevents")[0] for name in files if not name.startswith(".hydra"))

    assert left(together) == sorted([*left(alone), "train.log"])


def test_a_run_whose_processes_were_killed_goes_on_to_the_same_bits(recipe: list[str], together: Path, tmp_path: Path):
    run, cache = tmp_path / "run", {"FLOWERS_CACHE": str(tmp_path / "cache")}  # filled by the two
    first = program(*recipe, *TWO, f"hydra.run.dir={run}", KILL_RANK="0", KILL_AT="0.1", **cache)
    second = program(f"resume={run}", KILL_RANK="1", KILL_AT="2.1", **cache)
    last = program(f"resume={run}", **cache)
    for done in (first, second):  # each ended only once nothing held its output any more
        assert done.returncode != 0
        assert "ended" in done.stderr
        assert "Traceback" not in done.stderr + done.stdout
    assert last.returncode == 0, last.stderr
    ours, theirs = weights(run), weights(together)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_run_from_shards_killed_inside_an_epoch_goes_on_to_the_same_bits(painted: Path, tmp_path: Path):
    packed(painted, tmp_path / "packed")
    recipe = [option for option in SMALL if option != "data=folder"]
    recipe += ["data=shards", f"data.root={tmp_path}/packed", "data.shuffle_shards=2"]
    recipe += ["model.architecture=mobilenet_v3_small"]  # it draws dropout, and has BatchNorm
    recipe += [*TWO, "head.epochs=0", "finetune.epochs=2", "callbacks.mid_epoch.minutes=0.00001"]
    recipe += ["+callbacks.kill._target_=tests.helpers.KillAt"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert program(*recipe, f"hydra.run.dir={whole}").returncode == 0
    assert program(*recipe, f"hydra.run.dir={killed}", KILL_RANK="1", KILL_AT="1.2").returncode != 0
    other = program(f"resume={killed}", "trainer.devices=1")
    assert other.returncode == 1
    assert "data.batch_size=16 and 2 process(es), found data.batch_size=16 and 1 process(es)" in other.stderr
    last = program(f"resume={killed}", KILL_AT="1.1")  # that batch is behind it
    assert last.returncode == 0, last.stderr
    ours, theirs = weights(killed), weights(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert read_json(killed / "result.json")["val"] == read_json(whole / "result.json")["val"]
    assert_same_curves(killed, whole)


def test_one_device_is_a_run_of_several_too(painted: Path, tmp_path: Path):
    one = [*SMALL, *TWO, "trainer.devices=1", "head.epochs=1", "finetune.epochs=0"]
    done = program(*one, f"data.root={painted}", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "result.json")["val"]["n"] == 10


def test_a_step_that_cannot_be_shared_and_a_multirun_are_refused_in_a_line(painted: Path, tmp_path: Path):
    done = program(*SMALL, *SHARDED, "finetune.compile=true", f"data.root={painted}", f"hydra.run.dir={tmp_path}/c")
    assert done.returncode == 1
    assert done.stderr.startswith("error: finetune.compile=true: not supported with trainer=fsdp")
    given = [*SMALL, *TWO, f"data.root={painted}"]
    done = program(*given, "trainer.strategy=fsdp", f"hydra.run.dir={tmp_path}/d")
    assert done.returncode == 1
    assert "expected trainer=fsdp" in done.stderr
    done = program(*given, "data.batch_size=15", f"hydra.run.dir={tmp_path}/a")
    assert done.returncode == 1
    assert done.stderr == "error: data.batch_size=15: expected a multiple of the 2 processes\n"
    done = program("-m", *given, "seed=0", f"hydra.sweep.dir={tmp_path}/b")
    assert done.returncode == 1
    assert "each process would run the whole sweep" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, True),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "SLURM_PROCID": "0"}, False),
    ],
)
def test_who_is_first_by_torchrun_lightning_or_slurm(
    environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero() == expected
    if {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"} & environment.keys():
        with pytest.raises(ValueError, match=r"need one run folder: add hydra\.run\.dir"):
            share_run_dir(["seed=1"])


def test_no_two_seeds_epochs_or_processes_draw_the_same():
    draws = set()
    for triple in itertools.product(range(4), range(5), range(8)):
        with seeded(epoch_seed(*triple)):
            draws.add(torch.rand(3).sum().item())
    assert len(draws) == 4 * 5 * 8


def test_the_parts_of_a_step_are_the_step():
    alone = list(EpochSampler(50, seed=3))
    parts = [list(EpochSampler(50, 3, rank, 2)) for rank in range(2)]
    for step in range(5):
        shares = [part[5 * step : 5 * step + 5] for part in parts]
        assert sorted(shares[0] + shares[1]) == sorted(alone[10 * step : 10 * step + 10])


def test_each_item_is_in_one_part_and_all_parts_are_as_long(monkeypatch: pytest.MonkeyPatch):
    parts = []
    for number in range(4):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
        monkeypatch.setattr("torch.distributed.get_rank", lambda number=number: number)
        parts.append(local_slice(range(9), -1))
    assert parts == [[0, 1, -1], [2, 3, -1], [4, 5, -1], [6, 7, 8]]


def test_last_step_may_have_fewer_images_than_processes(painted: Path, tmp_path: Path):
    few = [
        *SMALL,
        "model.architecture=convnext_tiny",
        f"data.root={painted}",
        "data.val_fraction=0.58",
        "data.batch_size=8",
        "head.epochs=1",
    ]
    done = program(*few, *TWO, "head.cached_views=0", "finetune.epochs=1", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "all              25      35" in done.stdout
    assert read_json(tmp_path / "result.json")["val"]["n"] == 35
