"""A folder of photos, one sub-folder a class: which of them take part, and in which split."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from flowers import split
from flowers.photos import Found, find
from flowers.split import Photo, Row
from flowers.verification import verify

log = logging.getLogger(__name__)


class Folder:
    """It stands where the folder's path does: `folder / "rose/1.jpg"`.

    Args:
        path: of the folder.
        source: called with `path` to make sure that the photos are there; None where they are.
        on_bad_photo: "error" names all photos that cannot be read and stops; "skip" names them and goes on.
        rule: `split.decide`'s arguments.

    Raises ValueError, once asked for photos, for a folder or a photo that cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        source: Callable[[Path], None] | None,
        on_bad_photo: Literal["error", "skip"],
        rule: tuple[float, float, int, int, int],
    ) -> None:
        if on_bad_photo not in ("error", "skip"):
            raise ValueError(f"data.on_bad_photo={on_bad_photo}: wanted error or skip")
        self.path, self.source, self.on_bad_photo, self.rule = Path(path).resolve(), source, on_bad_photo, rule

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, path: str) -> Path:
        return self.path / path

    @cached_property
    def photos(self) -> list[Photo]:
        """Those that can be read."""
        verdicts = verify(self.path, [item.path for item in self._found])
        bad = [f"  {item.path}: {verdicts[item.path].reason}" for item in self._found if verdicts[item.path].reason]
        if bad and self.on_bad_photo == "error":
            raise ValueError(
                "\n".join([f"{len(bad)} of {len(self._found)} files in {self} cannot be read:", *bad])
                + "\nmend or remove them, or leave them out with on_bad_photo=skip (data.on_bad_photo=skip in training)"
            )
        if bad:
            log.warning("\n".join([f"left out, {len(bad)} files that cannot be read:", *bad]))
        return [
            Photo(item.path, item.label, verdicts[item.path].sha256, verdicts[item.path].phash)
            for item in self._found
            if not verdicts[item.path].reason
        ]

    @cached_property
    def rows(self) -> list[Row]:
        """Every photo that takes part, with its split: the one that the folder gives, else by the rule."""
        left_out = set()
        for same in split.contradictions(self.photos):
            log.warning("left out, one photo under several classes: %s", ", ".join(photo.path for photo in same))
            left_out |= {photo.path for photo in same}
        good = [photo for photo in self.photos if photo.path not in left_out]
        if empty := sorted({item.label for item in self._found} - {photo.label for photo in good}):
            raise ValueError(f"no photo is left of the class(es) {', '.join(empty)}: mend some, or remove the folder")
        given = {item.path: item.split for item in self._found if item.split is not None}
        return _as_given(good, given) if given else split.decide(good, *self.rule)

    @cached_property
    def _found(self) -> list[Found]:
        if self.source is not None:
            self.source(self.path)
        return find(self.path)


def _as_given(good: Sequence[Photo], split_of: dict[str, str]) -> list[Row]:
    group_of = split.groups(good)
    rows = [Row(p.path, p.label, split_of[p.path], group_of[p.path], p.sha256) for p in good]
    if leaks := split.crossing(rows):
        example = " and ".join(row.path for row in leaks[0])
        log.warning("the given split has %d photos with a double on another side, such as %s", len(leaks), example)
    return rows
