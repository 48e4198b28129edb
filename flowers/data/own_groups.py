"""Groups of one's own, such as the photos of a plant, a patient or a camera: found in paths, joined with others."""

import re
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from flowers.runtime.text import listed_names, one_line
from flowers.settings.schema.values import GROUP_PATTERN


def pattern_groups(paths: Sequence[str], group_by: str) -> list[str]:
    """Return the group of each path, which the groups of a regular expression match in it.

    Args:
        paths: The paths.
        group_by: `re:` and the regular expression.

    Raises:
        ValueError: The expression does not match a path, or finds the same group in all paths, or another one in each.
    """
    pattern = re.compile(group_by.removeprefix(GROUP_PATTERN))
    found = [_matched(pattern, path) for path in paths]
    name, example = f"data.group_by={one_line(group_by)}", one_line(paths[0]) if paths else ""
    if missed := [path for path, group in zip(paths, found, strict=True) if group is None]:
        raise ValueError(
            f"{name}: {len(missed):,} of the {len(paths):,} paths do not match, such as {listed_names(missed, 2)}: "
            "expected a regular expression that finds a group in each path below data.root"
        )
    groups = [group for group in found if group is not None]
    if paths and (count := len({*groups})) in (1, len(paths)):
        what = "the same group in all" if count == 1 else "another group in each of the"
        raise ValueError(
            f"{name} finds {what} {len(paths):,} paths, such as {one_line(groups[0])} in {example}: expected what the "
            "photos of one plant, patient or camera share"
        )
    return groups


def _matched(pattern: re.Pattern[str], path: str) -> str | None:
    match = pattern.search(path)
    parts = [part for part in match.groups() if part is not None] if match else []
    return "\n".join(parts) if parts else None


def join_groups(groups: Sequence[str], own: Sequence[str]) -> list[str]:
    """Return groups that hold together what is in one group of either kind: the smallest name of those that they join.

    Args:
        groups: The group of each image.
        own: Another one of each image; empty if it has none.
    """
    names, first = np.unique(np.array(groups), return_inverse=True)
    kept = np.flatnonzero([bool(each) for each in own])
    _, second = np.unique(np.array(own)[kept], return_inverse=True)
    size = len(names) + len(kept)
    links = coo_matrix((np.ones(len(kept), dtype=np.int8), (first[kept], len(names) + second)), shape=(size, size))
    _, components = connected_components(links, directed=False)
    smallest: dict[int, str] = {}
    for number, name in zip(components[: len(names)].tolist(), names.tolist(), strict=True):
        smallest.setdefault(number, name)  # the names are sorted
    return [smallest[number] for number in components[first].tolist()]
