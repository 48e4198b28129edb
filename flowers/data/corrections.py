"""Label corrections: read, check and apply corrections.csv, which names photos by the digest of their contents."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from flowers.data.splits import ImageRecord, SplitRecord, is_sha256
from flowers.runtime.files import atomic_write_text
from flowers.runtime.text import one_line, read_csv, to_csv

VERDICTS = ("keep", "relabel", "drop")
CORRECTION_COLUMNS = ("path", "class", "verdict", "new_class", "sha256")  # of corrections.csv

Record = TypeVar("Record", ImageRecord, SplitRecord)


class Correction(NamedTuple):
    """A line of corrections.csv.

    Attributes:
        path: Path of the photo below the root, for people: the digest tells which photo it is.
        label: The class that the photo had.
        verdict: "keep" (it is right), "relabel" or "drop" (leave it out).
        new_label: The class of a photo to relabel; otherwise empty.
        sha256: SHA-256 of the file, hexadecimal.
    """

    path: str
    label: str
    verdict: str
    new_label: str
    sha256: str


class Corrections(NamedTuple):
    """The corrections of a file.

    Attributes:
        source: The file, for messages.
        lines: One for each photo.
    """

    source: str = ""
    lines: tuple[Correction, ...] = ()

    @property
    def sha256(self) -> str:
        """A digest of what they change, whatever their order, the paths, and the photos that they keep."""
        changes = sorted((line.sha256, line.verdict, line.new_label) for line in self.lines if line.verdict != "keep")
        return hashlib.sha256(to_csv(changes).encode(errors="surrogateescape")).hexdigest()

    def summary(self) -> str:
        """Return how many photos they relabel, drop and keep."""
        counts = Counter(line.verdict for line in self.lines)
        return f"{counts['relabel']:,} relabeled, {counts['drop']:,} dropped, {counts['keep']:,} kept"

    def check(self, images: Sequence[ImageRecord], root: str) -> None:
        """Check that they are for these images and their classes.

        Args:
            images: All images of a folder, with the classes that they have there.
            root: The folder, for messages.

        Raises:
            ValueError: A photo or a class is not in the folder, or a class has no photo left.
        """
        name, digests = one_line(self.source), {image.sha256 for image in images}
        if unknown := [line.path for line in self.lines if line.sha256 not in digests]:
            raise ValueError(
                f"{len(unknown)} of the {len(self.lines)} photos in {name} are not in {one_line(root)}, such as "
                f"{one_line(unknown[0])}: expected corrections of this folder, without photos that are gone"
            )
        classes = sorted({image.label for image in images})
        for line in self.lines:
            if line.new_label and line.new_label not in classes:
                raise ValueError(
                    f"{name}: unknown class {one_line(line.new_label)} for {one_line(line.path)}: "
                    f"expected one of {one_line(', '.join(classes))}"
                )
        if empty := sorted({*classes} - {image.label for image in self.apply(images)}):
            raise ValueError(f"{name} leaves no photo of the class {one_line(empty[0])}: expected at least one")

    def apply(self, records: Iterable[Record]) -> list[Record]:
        """Return the records with their corrected labels, without those to drop. A second time changes nothing."""
        line_of = {line.sha256: line for line in self.lines}
        corrected = []
        for record in records:
            line = line_of.get(record.sha256)
            if line is None or line.verdict == "keep":
                corrected.append(record)
            elif line.verdict == "relabel":
                corrected.append(record._replace(label=line.new_label))
        return corrected

    def save(self, path: Path) -> None:
        """Write corrections.csv."""
        atomic_write_text(path, to_csv([CORRECTION_COLUMNS, *self.lines]))


def load_corrections(path: str | Path) -> Corrections:
    """Read a corrections.csv.

    Raises:
        ValueError: The file is missing, has other columns, unknown verdicts, no new class for a photo to relabel, what
            is no SHA-256, or two verdicts on one photo.
    """
    name = one_line(path)
    try:
        header, *rows = read_csv(path) or [[]]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{name} cannot be read ({reason}): expected a corrections.csv (data.corrections)") from error
    if missing := [column for column in CORRECTION_COLUMNS if column not in header]:
        raise ValueError(
            f"{name} is no file of corrections: no column {missing[0]}: expected {', '.join(CORRECTION_COLUMNS)}"
        )
    positions = [header.index(column) for column in CORRECTION_COLUMNS]
    corrections: dict[str, Correction] = {}
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ValueError(f"{name}, line {number}: {len(row)} cells, expected {len(header)}, as in the first line")
        new = Correction(*(row[position] for position in positions))
        _check_correction(new, f"{name}, line {number}")
        earlier = corrections.setdefault(new.sha256, new)
        if (earlier.verdict, earlier.new_label) != (new.verdict, new.new_label):
            raise ValueError(
                f"{name} has two verdicts on one photo: {_verdict(earlier)} for {one_line(earlier.path)} and "
                f"{_verdict(new)} for {one_line(new.path)}: delete one of the lines"
            )
    return Corrections(str(path), tuple(corrections.values()))


def _check_correction(line: Correction, where: str) -> None:
    if line.verdict not in VERDICTS:
        raise ValueError(f"{where}: verdict {one_line(line.verdict) or 'empty'}: expected {', '.join(VERDICTS)}")
    if line.verdict == "relabel" and not line.new_label:
        raise ValueError(f"{where}: no new class for {one_line(line.path)}: expected one in new_class")
    if line.verdict != "relabel" and line.new_label not in ("", line.label):
        raise ValueError(
            f"{where}: verdict {line.verdict} with the new class {one_line(line.new_label)}: expected relabel, "
            "or no new class"
        )
    if not is_sha256(line.sha256):
        raise ValueError(f"{where}: no SHA-256 for {one_line(line.path)}: expected 64 hexadecimal digits")


def _verdict(line: Correction) -> str:
    return f"{line.verdict} as {one_line(line.new_label)}" if line.verdict == "relabel" else line.verdict
