import subprocess
import sys

import pytest

from flowers.runtime.config import check_overrides


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("model=resnet51", "model=resnet51: no such option: did you mean resnet50?"),
        ("modle=resnet50", "modle: no such key: did you mean model?"),
        ("optimizer.lrr=1", "optimizer.lrr: no such key: did you mean optimizer.lr?"),
        ("lr=1", "lr: no such key: did you mean optimizer.lr?"),
        ("finetune.epoch=3", "finetune.epoch: no such key: did you mean finetune.epochs?"),
        ("trainer.gradient_clip=1", "did you mean trainer.gradient_clip_val?"),
        ("trainer.max_epochs=1", "give head.epochs and finetune.epochs"),
        ("head.epochs=five", "head.epochs=five: expected a whole number, such as 5"),
        ("head.epochs=1,2.5", "head.epochs=2.5: expected a whole number"),
        ("optimizer.lr=fast", "optimizer.lr=fast: expected a number"),
        ("data.crop_scale=1", "expected a list"),
        ("finetune.backbone_lr=fast", "finetune.backbone_lr=fast: expected a number"),
        ("data=1", "data=1: no such option"),
        ("optimizer.lr", "not of the form key=value"),
        ("experiment=reprot", "did you mean report?"),
        ("hydra/launcher=jobblib", "hydra/launcher=jobblib: no such option: did you mean joblib?"),
    ],
)
def test_a_mistyped_override_gets_the_nearest_valid_name(override: str, answer: str):
    with pytest.raises(ValueError, match=r".") as error:
        check_overrides([override], "train")
    assert answer in str(error.value)
    assert "\n" not in str(error.value)


def test_good_overrides_are_left_as_they_are():
    good = [
        "model=resnet18,resnet50",
        "optimizer.lr=1e-3,1e-2",
        "seed=range(0,3)",
        "data=folder",
        "data.root=/a",
        "~debug",
    ]
    good += [
        "+optimizer.eps=1e-6",
        "trainer.devices=[0,1]",
        "hydra.run.dir='/a b'",
        "model.weights=null",
        "experiment=report",
    ]
    good += ["data.resize=${data.image_size}", "data.batch_size=choice(16,32)"]
    assert check_overrides(good, "train") == good


def test_any_argument_of_the_trainer_can_be_given():
    assert check_overrides(["trainer.gradient_clip_val=1"], "train") == ["++trainer.gradient_clip_val=1"]


def test_keys_of_a_chosen_option_are_known():
    assert check_overrides(["data=garden", "data.source.number=50", "optimizer=sgd", "optimizer.momentum=0.5"], "train")
    with pytest.raises(ValueError, match=r"optimizer\.momentum: no such key"):
        check_overrides(["optimizer.momentum=0.5"], "train")


def test_a_mistyped_override_is_answered_in_one_line_before_torch_is_imported():
    code = (
        "import sys; sys.argv[1:] = ['optimizer.lrr=1']\n"
        "from flowers.train import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'lightning', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == ("", "error: optimizer.lrr: no such key: did you mean optimizer.lr?\n")


@pytest.mark.parametrize("photos", ["a.jpg", "[a.jpg,b]", "'a b/*.jpg'"])
def test_where_no_list_is_the_default_one_thing_is_as_good_as_several(photos: str):
    assert check_overrides([f"photos={photos}"], "explain") == [f"photos={photos}"]
