"""Search spaces: Hydra's sweep syntax as Optuna distributions."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from flowers.settings.config import CONF

SearchSpace = dict[str, BaseDistribution]


def parse_search_space(settings: Sequence[str]) -> tuple[list[str], SearchSpace]:
    """Split overrides into fixed ones and the search space.

    Returns:
        The overrides that have one value, unchanged, and the distributions of the others by key ("optimizer.lr").

    Raises:
        ValueError: The bounds of an override leave no value to sample.
    """
    parsed = OverridesParser.create().parse_overrides(list(settings))
    fixed = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    space = {}
    for override in parsed:
        if override.is_sweep_override():
            try:
                space[override.get_key_element()] = _distribution(override)
            except (ValueError, IndexError) as error:
                raise ValueError(f"{override.input_line}: expected bounds with values between them: {error}") from error
    return fixed, space


def sample(trial: Trial, space: Mapping[str, BaseDistribution]) -> list[str]:
    """Sample a value for each key, as overrides; a resumed trial keeps the values that it has sampled before."""
    return [to_override(key, _suggest(trial, key, distribution)) for key, distribution in space.items()]


def to_override(key: str, value: Any) -> str:
    """Return a sampled value as an override; the values of a choice are in Hydra's grammar already."""
    return f"{key}={value if isinstance(value, str) else repr(value)}"


def format_value(key: str, value: Any) -> str:
    """Return a sampled value for the terminal, with four significant digits."""
    return f"{key}={value:.4g}" if isinstance(value, float) else to_override(key, value)


def first_point(space: Mapping[str, BaseDistribution]) -> list[str]:
    """Return one point of the space, as overrides that can be checked before any training."""
    return [
        to_override(key, one.choices[0] if isinstance(one, CategoricalDistribution) else one.low)  # type: ignore[attr-defined]
        for key, one in space.items()
    ]


def _suggest(trial: Trial, key: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(key, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _distribution(override: Override) -> BaseDistribution:
    value: Any = override.value()
    if isinstance(value, Glob):
        names = value.filter(sorted(path.stem for path in (CONF / override.key_or_group).glob("*.yaml")))
        return CategoricalDistribution(names)
    log = "log" in value.tags
    if isinstance(value, IntervalSweep):
        low, high = cast(tuple[Any, Any], (value.start, value.end))
        if all(isinstance(bound, int) for bound in (low, high)):
            return IntDistribution(low, high, log)
        return FloatDistribution(float(low), float(high), log)
    if isinstance(value, RangeSweep):
        numbers: list[Any] = sorted(override.sweep_iterator())
        step = None if log else abs(value.step)
        if all(isinstance(number, int) for number in numbers):
            return IntDistribution(numbers[0], numbers[-1], log=log, step=int(step or 1))
        return FloatDistribution(numbers[0], numbers[-1], log=log, step=step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))
