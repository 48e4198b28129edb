import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from flowers.search.space import first_point, parse_search_space


def test_parse_search_space_turns_sweeps_into_distributions():
    fixed, space = parse_search_space([
        "seed=1",
        "optimizer.lr=tag(log,interval(1e-5,1e-1))",
        "optimizer.weight_decay=interval(0,0.1)",
        "head.epochs=range(10,50,15)",
        "data.batch_size=tag(log,int(interval(8,64)))",
        "data.brightness=range(0.0,1.0,0.25)",
        "scheduler=constant,cosine",
        "model=glob(resnet*)",
        "data.crop_scale=choice([0.5,1.0],[0.8,1.0])",
    ])  # fmt: skip
    assert fixed == ["seed=1"]
    assert space == {
        "optimizer.lr": FloatDistribution(1e-5, 0.1, log=True),
        "optimizer.weight_decay": FloatDistribution(0, 0.1),
        "head.epochs": IntDistribution(10, 40, step=15),
        "data.batch_size": IntDistribution(8, 64, log=True),
        "data.brightness": FloatDistribution(0.0, 0.75, step=0.25),
        "scheduler": CategoricalDistribution(["constant", "cosine"]),
        "model": CategoricalDistribution(["resnet152", "resnet18", "resnet50"]),
        "data.crop_scale": CategoricalDistribution(["[0.5,1.0]", "[0.8,1.0]"]),
    }


@pytest.mark.parametrize("setting", ["optimizer.lr=tag(log,interval(0,1))", "head.epochs=range(5,5)", "model=glob(x*)"])
def test_parse_search_space_refuses_bounds_without_values(setting: str):
    with pytest.raises(ValueError, match="expected bounds with values between them"):
        parse_search_space([setting])


def test_first_point_returns_overrides():
    _, space = parse_search_space(
        ["optimizer.lr=tag(log,interval(1e-5,1e-1))", "head.epochs=range(1,9)", "model=resnet18,resnet50"]
    )
    assert first_point(space) == ["optimizer.lr=1e-05", "head.epochs=1", "model=resnet18"]
