import pytest

from flowers.settings.stored_overrides import plain_overrides


def test_plain_overrides_repeats_what_decides_about_a_training():
    lines = [
        *("experiment=best_small", "data=folder", "data.root='a b'", "model=mobilenet_v3_small", "mixing=null"),
        *("callbacks=[default,ema]", "callbacks.ema.decay=0.9", "++model.options={dropout: 0.1}", "head.epochs=3"),
        *("data.crop_scale=[0.5,1]", "trainer=cpu", "trainer.precision=32-true", "tta=flip", "seed=3"),
    ]
    assert plain_overrides(lines, "run") == lines


def test_plain_overrides_leaves_out_what_a_run_tells_others():
    lines = ["logger=mlflow", "logger.mlflow.tracking_uri=http://a", "hydra.run.dir=x", "group=a", "resume=b"]
    assert plain_overrides([*lines, "~callbacks.progress", "data.source=null", "loss=focal"], "run") == ["loss=focal"]


@pytest.mark.parametrize(
    "line",
    [
        "optimizer._target_=os.system",
        "+optimizer={_target_: os.system, command: id}",
        "++model.options={a: {_target_: os.system}}",
        "++model.options.weights._target_=os.system",
        "model.weights=${oc.env:HOME}",
        "model.weights='${oc.env:HOME}'",
        "loss=../../run/evil",
        "experiment=of_the_working_directory",
        "experiment@data=best_small",
        "+mine.key=1",
        "head.epochs=1,2",
        "data/source=evil",
        "~optimizer.lr",
    ],
)
def test_plain_overrides_refuses_what_imports_resolves_or_is_not_of_this_project(line: str):
    with pytest.raises(ValueError, match=r"^run: .*: expected an option of this project, or a plain value"):
        plain_overrides(["head.epochs=1", line], "run")
