"""Which folders of a folder of images are classes, and which are splits."""

import logging
import re
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from flowers.data.sources.listing import files_below, has_photos, is_note, subfolders
from flowers.data.sources.tables import is_table
from flowers.runtime.text import listed_names, one_line, shell_setting
from flowers.settings.schema.values import Layout

log = logging.getLogger(__name__)

_WORDS_OF_SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout"),
    "": ("pred", "predict", "prediction", "unlabeled", "unlabelled"),  # photos without labels
}
_SPLIT_OF_WORD = {word: split for split, words in _WORDS_OF_SPLITS.items() for word in words}
_USUAL_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
# What names of folders of photos say that are no classes.
_NEUTRAL_WORDS = {
    *(
        "images",
        "image",
        "imgs",
        "img",
        "photos",
        "photo",
        "pictures",
        "pics",
        "data",
        "dataset",
        "set",
        "files",
        "raw",
    ),
    *("split", "part", "fold", "folder", "dir", "batch", "session", "series", "group", "subset", "crops", "cropped"),
    *("jpg", "jpeg", "png", "dcim", "camera", "cam", "day", "week", "month", "year", "site", "plate", "slide", "scan"),
    *("patient", "subject", "user", "person", "participant", "round", "trial", "video", "clip", "sequence", "frames"),
}
_ELSEWHERE = " (without data. in evaluate and audit)"

ClassFolder = tuple[str, str, str | None]  # path below the root, class, split


class ImageFile(NamedTuple):
    """A file that should be an image.

    Attributes:
        path: Path below the root, with "/" between folders.
        label: Class name.
        split: The split whose folder contains the file; None if the folder is not split.
        group: What a table says of the photos that must stay in one split; empty if nothing.
    """

    path: str
    label: str
    split: str | None
    group: str = ""


def find_images(root: str | Path, layout: Layout | None = "auto", merge_similar_names: bool = False) -> list[ImageFile]:
    """List the files in the class folders of `root` and in their subfolders, sorted by path.

    Files at the top of `root` and what `is_junk` names are ignored.

    Args:
        root: The folder.
        layout: What the folders in `root` are. "classes"; "splits", such as train and test, each with class folders;
            "subfolders", parts whose subfolders are the classes; "auto" finds out. None takes only train, val and test
            with their usual names for splits, and does not ask, as runs did before there was this setting.
        merge_similar_names: Whether classes whose names differ in case, spaces, hyphens or underscores are one.

    Raises:
        ValueError: If the folder does not exist or has fewer than two classes; if a folder cannot be read; or if it is
            not clear whether folders are splits or classes.
    """
    root = Path(root)
    if layout not in (*get_args(Layout), None):
        raise ValueError(f"data.layout={one_line(layout)}: expected one of {', '.join(get_args(Layout))}")
    check_root(root)
    found, empty, forms = list[ImageFile](), list[str](), defaultdict[str, set[str]](set)
    for folder, label, split in _class_folders(root, layout):
        files = files_below(root / folder)
        # macOS may return decomposed letters: a folder must be the same class on every machine.
        name = unicodedata.normalize("NFC", label)
        forms[name].add(label)
        if all(map(is_note, files)):
            empty.append(folder)
        else:
            found += [ImageFile(f"{folder}/{file}", name, split) for file in files]
    if empty:
        log.warning("ignoring folders without a photo in %s: %s", one_line(root), listed_names(empty))
    if twins := [name for name, spelled in forms.items() if len(spelled) > 1]:
        log.warning("joining folders whose names differ only in how Unicode composes letters: %s", listed_names(twins))
    found = join_similar(one_line(root), found, merge_similar_names)
    _check_classes(root, found)
    return sorted(found)


def check_root(root: Path) -> None:
    """Raise ValueError if a path is no folder, which `find_images` could look into."""
    if root.is_file():
        raise ValueError(f"{one_line(root)} is a file: expected a folder with one subfolder per class{_root_of(root)}")
    if not root.is_dir():
        raise ValueError(f"no folder of images at {one_line(root)}: expected one subfolder per class (data.root=PATH)")


def _class_folders(root: Path, layout: Layout | None) -> list[ClassFolder]:
    folders = subfolders(root)
    classes: list[ClassFolder] = [(folder, folder, None) for folder in folders]
    if layout == "classes":
        return classes
    copies = [each for each in folders if len(folders) > 2 and _inner_folders(root, each) == {*folders} - {each}]
    if layout == "auto" and len(copies) == 1:
        log.warning("ignoring %s in %s: its folders have the names of those beside it", copies[0], one_line(root))
        return [each for each in classes if each[0] != copies[0]]
    if layout is None:
        return _labeled(root, _usual_splits(root, folders)) or classes
    if layout == "splits":
        return _named_splits(root, folders)
    if layout == "subfolders":
        parts = [_unwrapped(root, folder) for folder in folders]
        return [(f"{part}/{label}", label, None) for part in parts for label in subfolders(root / part)]
    _check_not_above(root, folders)
    return _labeled(root, _usual_splits(root, folders)) or _recognized(root, folders) or classes


def _check_not_above(root: Path, folders: Sequence[str]) -> None:
    """Raise ValueError if one folder holds folders and the others hold lists and notes alone, such as `meta`."""
    holders = [folder for folder in folders if len(_inner_folders(root, folder)) > 1]
    if len(holders) != 1 or len(folders) < 2:
        return
    others = [file for folder in folders if folder not in holders for file in files_below(root / folder)]
    if others and all(map(is_note, others)):
        raise ValueError(
            f"{one_line(root)}: the folders with photos are in {one_line(holders[0])}, and the others hold no photo: "
            f"give data.root={one_line(shlex.quote(str(root / holders[0])))} (photos in evaluate and audit)"
        )


def _labeled(root: Path, split_of: Mapping[str, str]) -> list[ClassFolder]:
    """Return the class folders of the folders of splits."""
    parts = [(_unwrapped(root, folder), split) for folder, split in split_of.items()]
    return [(f"{part}/{label}", label, split) for part, split in parts for label in subfolders(root / part)]


def _unwrapped(root: Path, folder: str) -> str:
    """Return `folder`, or the one of the same name in it, or called images, if it holds nothing else."""
    while len(inner := subfolders(root / folder)) == 1 and not has_photos(root / folder):
        if inner[0].lower() != Path(folder).name.lower() and not _are_neutral(inner):
            break
        folder = f"{folder}/{inner[0]}"
    return folder


def _usual_splits(root: Path, folders: Sequence[str]) -> dict[str, str]:
    """Return the split of each folder if they are train, val and perhaps test; nothing if they are something else.

    Raises:
        ValueError: It is not clear which of both they are.
    """
    split_of = {name: _SPLIT_OF_WORD[name.lower()] for name in folders if name.lower() in _USUAL_NAMES}
    counts = Counter(split_of.values())
    is_all = len(split_of) == len(folders)
    if is_all and {"train", "val"} <= counts.keys() and max(counts.values()) == 1:
        if renamed := [f"{name} as {split}" for name, split in split_of.items() if name != split]:
            log.info("taking the folders of %s for splits: %s", one_line(root), ", ".join(renamed))
        return split_of
    # A single such name may be a class, such as "train" beside "car", or "valid" beside "invalid".
    if (is_all and len(folders) > 1) or ("train" in counts and len(counts) > 1):
        advice = f", or give data.layout=splits{_ELSEWHERE}: val is then drawn from train if none is val"
        are_named = "train" in counts and all(named_split(folder) is not None for folder in folders)
        raise ValueError(
            f"{one_line(root)} has the folders {listed_names(folders)}: expected train, val and optionally test (or "
            "usual names such as training, valid, validation, dev, testing), each once, or only classes: rename or "
            f"move some{advice * are_named}"
        )
    return {}


def _words(name: str) -> list[str]:
    """Return the words of a name: of `trainImages2017`, train and images."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W\d_]+", spaced.lower())
    return [part for word in words for part in _parted(word)]


def _parted(word: str) -> list[str]:
    """Return a word that is joined of a split and a neutral word, such as trainset, as both."""
    for split in _SPLIT_OF_WORD:
        if word.removeprefix(split) in _NEUTRAL_WORDS and word.startswith(split):
            return [split, word.removeprefix(split)]
        if word.removesuffix(split) in _NEUTRAL_WORDS and word.endswith(split):
            return [word.removesuffix(split), split]
    return [word]


def named_split(name: str) -> str | None:
    """Return the split that a name contains, such as train in `seg_train`; None if it contains none.

    A `valid_test` is val: a run needs one.
    """
    splits = [_SPLIT_OF_WORD[word] for word in _words(name) if word in _SPLIT_OF_WORD]
    return next((split for split in ("train", "val", "test", "") if split in splits), None)


def _named_splits(root: Path, folders: Sequence[str]) -> list[ClassFolder]:
    """Return the class folders of splits, as the user says that they are.

    Raises:
        ValueError: A name contains no split, or none is train.
    """
    split_of = {folder: named_split(folder) for folder in folders}
    if unclear := [name for name, split in split_of.items() if split is None]:
        raise ValueError(
            f"data.layout=splits: {one_line(root)} has the folders {listed_names(unclear)}: expected names with train, "
            "val or test in them: rename or move some"
        )
    if "train" not in split_of.values():
        raise ValueError(f"data.layout=splits: no folder of {one_line(root)} has train in its name: rename one")
    return _labeled(root, {folder: split for folder, split in split_of.items() if split})


def _recognized(root: Path, folders: Sequence[str]) -> list[ClassFolder]:
    """Return the class folders of splits with other names, which share their subfolders; nothing if there are none.

    Raises:
        ValueError: The folders may be splits, or parts of the classes, but that is not certain.
    """
    if len(folders) < 2 or not (_inner_folders(root, folders[0]) or any(map(named_split, folders))):
        return []
    names = {folder: _inner_folders(root, folder) for folder in folders}
    if all(_has_splits(map(named_split, inner)) for inner in names.values()):  # each class is split
        inner_splits = [(folder, name, named_split(name)) for folder in folders for name in names[folder]]
        log.info("taking the folders in those of %s for splits: %s", one_line(root), listed_names(names[folders[0]]))
        return [(f"{_unwrapped(root, folder)}/{name}", folder, split) for folder, name, split in inner_splits if split]
    split_of = {folder: split for folder in folders if (split := named_split(folder)) is not None}
    labeled = {folder: split for folder, split in split_of.items() if split}
    if "train" not in labeled.values() or len({*labeled.values()}) == 1:
        _check_not_shared(root, names)
        return []
    trained = {name for folder, split in labeled.items() if split == "train" for name in names[folder]}
    is_shared = len(trained) > 1 and all(names[folder] and names[folder] <= trained for folder in labeled)
    if is_shared and len(split_of) == len(folders) and _has_splits(split_of.values()):
        taken = [f"{folder} as {split or 'photos without labels, ignored'}" for folder, split in split_of.items()]
        log.info("taking the folders of %s for splits: %s", one_line(root), listed_names(taken))
        return _labeled(root, labeled)
    stems = {
        " ".join(word for word in _words(name) if word not in {*_SPLIT_OF_WORD, *_NEUTRAL_WORDS}) for name in labeled
    }
    if is_shared or len(stems) == 1:  # else they are classes, such as "train station" and "test tube"
        raise ValueError(
            f"{one_line(root)} has the folders {listed_names(folders)}: are they splits or classes? Give "
            f"data.layout=splits or data.layout=classes{_ELSEWHERE}, or rename or move some"
        )
    return []


def _inner_folders(root: Path, folder: str) -> set[str]:
    """Return the names of the folders in a folder; none if files lie beside them, as in the folder of a class."""
    path = root / _unwrapped(root, folder)
    return set() if has_photos(path) else {*subfolders(path)}


def _has_splits(splits: Iterable[str | None]) -> bool:
    """Return whether these are train and another split, each once."""
    counts = Counter(splits)
    return (
        counts["train"] == 1 and counts["val"] + counts["test"] > 0 and max(counts.values()) == 1 and not counts[None]
    )


def _check_not_shared(root: Path, names: Mapping[str, set[str]]) -> None:
    """Raise ValueError if folders look like parts of a set of photos, whose subfolders are the classes."""
    shared = set.intersection(*names.values())
    if len(shared) < 2 or any(2 * len(shared) < len(inner) for inner in names.values()):
        return
    # Classes are often divided by date, camera or number. Only parts themselves are then named so, too.
    if _are_neutral(shared) and not _are_neutral(names):
        return
    raise ValueError(
        f"{one_line(root)} has the folders {listed_names(names, 4)}, each with {listed_names(sorted(shared), 4)}: "
        "which are the classes? Give data.layout=classes for the former, data.layout=subfolders for the latter"
        f"{_ELSEWHERE}, or rename or move some"
    )


def _are_neutral(names: Iterable[str]) -> bool:
    return all({*_words(name)} <= _NEUTRAL_WORDS for name in names)


def join_similar(place: str, found: list[ImageFile], merge: bool, kind: str = "folders") -> list[ImageFile]:
    """Name classes whose names differ in nothing that is easily seen; with `merge`, give them one name.

    It is the one that most files have.

    Args:
        place: A folder or a table, for messages.
        found: The files.
        merge: Whether such classes are one.
        kind: What the names are of, for messages.
    """
    counts = Counter(file.label for file in found)
    alike = defaultdict[str, list[str]](list)
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        alike[_compared(label)].append(label)
    several = {key: labels for key, labels in alike.items() if len(labels) > 1}
    for labels in several.values():
        names = " and ".join(f'"{one_line(label)}"' for label in labels)
        done = f'one class, "{one_line(labels[0])}"'
        if not merge:
            done = "different classes: data.merge_similar_names=true (without data. in evaluate and audit) joins them"
        log.warning("the %s %s of %s are %s", kind, names, place, done)
    if not merge:
        return found
    return [file._replace(label=alike[_compared(file.label)][0]) for file in found]


def _compared(label: str) -> str:
    """Return what names that are easily taken for each other have in common."""
    plain = unicodedata.normalize("NFKC", label.casefold())
    visible = "".join(letter for letter in plain if unicodedata.category(letter) != "Cf")
    return " ".join(re.split(r"[\s_-]+", visible)).strip()


def _other_root(root: Path) -> str:
    """Return a hint for a user who gave the parent of the folder that was meant, or one class of it."""
    inner = [name for name in subfolders(root) if len(subfolders(root / name)) > 1]
    if len(inner) == 1:
        return f", such as data.root={one_line(shlex.quote(str(root / inner[0])))}"
    if not has_photos(root):
        return ""
    parent = root.resolve().parent
    siblings = [name for name in subfolders(parent) if name != root.name and has_photos(parent / name)]
    if siblings:
        advice = one_line(shell_setting("data.root", parent))
        return f": it lies beside {listed_names(siblings, 3)}: did you mean {advice}?"
    return ": sort its photos into such folders (flowers suggest shows them on a page for labeling)"


def _root_of(file: Path) -> str:
    """Return a hint for a user who gave a table or one of the photos."""
    if is_table(file):
        return f": did you mean data=table {one_line(shell_setting('data.table', file))}?"
    folder = file.absolute().parent.parent
    return f": did you mean {one_line(shell_setting('data.root', folder))}?" if len(subfolders(folder)) > 1 else ""


def _whole_part(root: Path, found: list[ImageFile]) -> str:
    """Return a hint to split the one folder that has all classes."""
    labels, parts = {file.label for file in found}, defaultdict[str, set[str]](set)
    for file in found:
        parts[file.path.partition("/")[0]].add(file.label)
    whole = [part for part in parts if parts[part] == labels]
    return (
        f", or {one_line(shell_setting('data.root', root / whole[0]))} to split its photos" if len(whole) == 1 else ""
    )


def _check_classes(root: Path, found: list[ImageFile]) -> None:
    labels = sorted({file.label for file in found})
    if len(labels) < 2:
        raise ValueError(
            f"{one_line(root)} has images of {'one class' if labels else 'no class'} [{listed_names(labels)}]: "
            f"expected one subfolder per class, at least two{_other_root(root)}"
        )
    trained = {file.label for file in found if file.split in (None, "train")}
    if missing := sorted(set(labels) - trained):
        raise ValueError(
            f"the train folder of {one_line(root)} lacks the class(es) {listed_names(missing)}: "
            f"expected all classes that val and test have{_whole_part(root, found)}"
        )
