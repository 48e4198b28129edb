import shlex
from pathlib import Path

import pytest

from flowers.command_hints import check_arguments, unknown_program
from flowers.runs.run_folder import START_FILE


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with photos and a run."""
    for name in ("photos/rose", "my photos/rose", "runs/mine"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        (tmp_path / "photos" / "rose" / name).touch()
    (tmp_path / "runs" / "mine" / START_FILE).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(command: str) -> str:
    """Return the answer to a command line."""
    name, *arguments = shlex.split(command)
    if name not in ("train", "predict", "evaluate", "compare", "app", "export", "audit", "suggest", "pack", "sweep"):
        return unknown_program(name, arguments)
    with pytest.raises(ValueError, match="expected key=value") as error:
        check_arguments(name, arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("train --lr 0.001", "train optimizer.lr=0.001"),
        ("train --epochs=5", "train finetune.epochs=5"),
        ("train -b 32 -j 0", "train data.batch_size=32 data.num_workers=0"),
        ("train --lr -1", "train optimizer.lr=-1"),
        ("train --no-pretrained", "train model.weights=null"),
        ("train --amp --data photos", "train trainer.precision=16-mixed data=folder data.root=photos"),
        ("train photos", "train data=folder data.root=photos"),
        ("train photos --model resnet18", "train model=resnet18 data=folder data.root=photos"),
        ("train resnet50 seed=1", "train seed=1 model=resnet50"),
        ("train quickstart", "train experiment=quickstart"),
        ("train runs/mine", "train resume=runs/mine"),
        ("train runs/x/checkpoints/last.ckpt", "train resume=runs/x"),
        ("train data=folder data.root=my photos", "train data=folder 'data.root=my photos'"),
        ("train optimizer.lr = 0.1", "train optimizer.lr=0.1"),
        ("train optimizer.lr= 0.1", "train optimizer.lr=0.1"),
        ("train optimizer.lr:0.1", "train optimizer.lr=0.1"),
        ("train lr 0.1", "train optimizer.lr=0.1"),
        ("train -m --lr 0.1", "train -m optimizer.lr=0.1"),
        ("train help", "train --help"),
        ("predict runs/mine photos/rose/a.jpg", "predict run=runs/mine photos=photos/rose/a.jpg"),
        ("predict runs/other photos", "predict run=runs/other photos=photos"),
        ("predict --model runs/mine --source photos --conf 0.5", "predict run=runs/mine photos=photos confidence=0.5"),
        (
            "predict run=runs/mine photos/rose/a.jpg photos/rose/b.jpg",
            "predict run=runs/mine 'photos=[photos/rose/a.jpg,photos/rose/b.jpg]'",
        ),
        (
            "predict run=r photos/rose/a.jpg photos/rose/b.jpg photos/rose/c.jpg photos/rose/d.jpg",
            "predict run=r 'photos=photos/rose/*.jpg'",
        ),
        ("evaluate runs/mine", "evaluate run=runs/mine"),
        (
            "predict run=r photos=photos/rose/a.jpg photos/rose/b.jpg",
            "predict run=r 'photos=[photos/rose/a.jpg,photos/rose/b.jpg]'",
        ),
        ("compare runs/mine runs/nothere", "compare 'runs=[runs/mine,runs/nothere]'"),
        ("evaluate --run runs/mine split=test", "evaluate run=runs/mine split=test"),
        ("compare runs/a runs/b", "compare 'runs=[runs/a,runs/b]'"),
        ("app --port 80 runs/mine", "app port=80 run=runs/mine"),
        ("export runs/mine --format onnx", "export 'formats=[onnx]' run=runs/mine"),
        ("export run=runs/mine onnx int8", "export run=runs/mine 'formats=[onnx,int8]'"),
        ("app runs/mine 8080", "app port=8080 run=runs/mine"),
        ("train 'data.root = photos' -j 2", "train data.root=photos data.num_workers=2"),
        ("audit photos", "audit photos=photos"),
        ("suggest runs/mine photos", "suggest run=runs/mine pool=photos"),
        ("pack photos out", "pack output=out photos=photos"),
        ("sweep --n_trials 9 lr=0.1", "sweep sweep.trials=9 optimizer.lr=0.1"),
        ("fit data.root=photos", "train data.root=photos"),
        ("fit --lr 0.1 --data photos", "train optimizer.lr=0.1 data=folder data.root=photos"),
        ("trian", "train"),
        ("train.py --lr 1", "train optimizer.lr=1"),
        ("Eval runs/mine", "evaluate run=runs/mine"),
        ("infer runs/mine photos", "predict run=runs/mine photos=photos"),
        ("lr_find data=garden", "train find_lr=true data=garden"),
        ("photos", "train data=folder data.root=photos"),
        ("photos/rose/a.jpg", "predict photos=photos/rose/a.jpg"),
        ("runs/mine", "evaluate run=runs/mine"),
        ("--lr 0.1", "train optimizer.lr=0.1"),
        ("data.root=photos", "train data.root=photos"),
        ("config", "train --help"),
        ("version", "--version"),
    ],
)
def test_wrong_turns_are_answered_with_the_command_that_was_meant(command: str, meant: str):
    assert answer(command).partition(": try ")[2] == f"flowers {meant}"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("train --num-classes 5", "the classes are the sub-folders of data.root"),
        ("train --config my.yaml", "flowers new-experiment NAME"),
        ("train --optimizer.lrr 5", "did you mean optimizer.lr?"),
        ("train settings.yaml", "flowers train --help lists the settings"),
        ("train -c my.yaml", "flowers new-experiment NAME"),
        ("app --share runs/mine", "there is no public link"),
        ("xyzzy", "expected one of train, evaluate"),
        ("tensorboard", "try tensorboard --logdir ."),
    ],
)
def test_wrong_turns_without_a_command_are_answered_with_a_reason(command: str, text: str):
    assert text in answer(command)


@pytest.mark.parametrize(
    "arguments",
    [
        ["a=b", "+c=d", "++e.f=[1,2]", "~callbacks.progress", "--cfg", "job", "-m"],
        ["--config-dir", "conf", "--config-dir=conf", "--info", "all", "experiment=x"],
        ["hydra.run.dir=a b", "data.root=a\nb=c", "model.options={a:1}", "callbacks@x=y"],
        [],
    ],
)
def test_check_arguments_passes_overrides_and_flags_of_hydra(arguments: list[str]):
    check_arguments("train", arguments)
