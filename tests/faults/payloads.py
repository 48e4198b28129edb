"""What a stranger may put into a file: payloads for each kind of file. Each makes one change to one path."""

import csv
import io
import json
import math
import os
import pickle
import random
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import yaml

SECRET = "hunter2-0f3b"  # the value of $SECRET_TOKEN, and what the secret file holds
ADDRESS = "http://127.0.0.1:9/stranger"
BUCKET = "s3://stranger/photos"
VARIABLE = "${oc.env:SECRET_TOKEN}"

Change = Callable[["Place"], object]


class Place(NamedTuple):
    """Where a payload goes.

    Attributes:
        path: The file, which exists.
        secret: A file of the user that holds SECRET.
        victim: A file of the user that must not change.
        canary: A file that code of the stranger would make.
    """

    path: Path
    secret: Path
    victim: Path
    canary: Path


def replace(place: Place, content: bytes) -> None:
    place.path.unlink()
    place.path.write_bytes(content)


class RunsCode:
    """Its pickle makes the canary when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


# Of any file


def empty(place: Place) -> None:
    replace(place, b"")


def truncated(place: Place) -> None:
    replace(place, place.path.read_bytes()[: place.path.stat().st_size // 2])


def not_utf8(place: Place) -> None:
    content = place.path.read_bytes()
    replace(place, content[:40] + b"\xff\xfe\x00\x80" + content[44:])


def sparse(place: Place) -> None:
    """3 GB: more than may be taken, if the whole of it is read."""
    replace(place, b"")
    os.truncate(place.path, 3 << 30)


def sparse_end(place: Place) -> None:
    """The right content, and 3 GB of zeros."""
    os.truncate(place.path, 3 << 30)


def folder(place: Place) -> None:
    place.path.unlink()
    place.path.mkdir()


def fifo(place: Place) -> None:
    place.path.unlink()
    os.mkfifo(place.path)


def unix_socket(place: Place) -> None:
    place.path.unlink()
    os.mknod(place.path, stat.S_IFSOCK | 0o600)


def link_to_itself(place: Place) -> None:
    place.path.unlink()
    place.path.symlink_to(place.path.name)


def link_to(target: str) -> Change:
    def change(place: Place) -> None:
        place.path.unlink()
        place.path.symlink_to({"secret": place.secret, "victim": place.victim}.get(target, target))

    return change


def runs_code(place: Place) -> None:
    replace(place, pickle.dumps({"state_dict": RunsCode(place.canary)}))


ANY: dict[str, Change] = {
    "empty": empty,
    "truncated": truncated,
    "not utf-8": not_utf8,
    "sparse": sparse,
    "sparse end": sparse_end,
    "folder": folder,
    "fifo": fifo,
    "socket": unix_socket,
    "link to /dev/zero": link_to("/dev/zero"),
    "link to /dev/stdin": link_to("/dev/stdin"),
    "link to itself": link_to_itself,
    "dangling link": link_to("/nowhere/at/all"),
    "link to a secret": link_to("secret"),
    "pickle": runs_code,
}

# Of values


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def values(place: Place) -> dict[str, Any]:
    """What takes the place of a value, by name."""
    return {
        "target": {"_target_": "os.system", "_args_": [f"touch {place.canary}"]},
        "hub": {"_target_": "torch.hub.load", "repo_or_dir": str(place.path.parent), "source": "local", "model": "x"},
        "partial": {"_target_": "os.system", "_partial_": True, "command": f"touch {place.canary}"},
        "variable": VARIABLE,
        "overriding variable": f"x={VARIABLE}",
        "address": ADDRESS,
        "bucket": BUCKET,
        "secret": str(place.secret),
        "device": "/dev/zero",
        "nan": math.nan,
        "infinity": -math.inf,
        "minus one": -1,
        "zero": 0,
        "huge": 10**15,
        "huge digits": 10**400,
        "null": None,
        "true": True,
        "text": "stranger\x1b[2J\n=cmd()",
        "long": "x" * 3_000_000,
        "list": [],
        "object": {},
        "ragged": [[1.0], [2.0, [3.0]]],
        "deep": nested(300),
        "weights": {"weights": "IMAGENET1K_V1", "pretrained": True, "checkpoint_path": ADDRESS},
        "depth": {"depth": 100000, "img_size": 100000, "width": 100000},
    }


Key = tuple[Any, ...]


def leaves(document: Any, key: Key = ()) -> Iterator[Key]:
    """Yield where each value of a document is, and each of its objects and lists."""
    if key:
        yield key
    if isinstance(document, dict):
        for name, value in document.items():
            yield from leaves(value, (*key, name))
    elif isinstance(document, list):
        for index, value in enumerate(document[:3]):
            yield from leaves(value, (*key, index))


def at(document: Any, key: Key) -> Any:
    for name in key:
        document = document[name]
    return document


def text_of(key: Key) -> str:
    return ".".join(map(str, key))


def document_changes(document: Any, place: Place) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Yield changes of a document of plain values: each takes a copy and returns it changed."""
    found = list(leaves(document))
    for name, value in values(place).items():
        for key in found:
            yield f"{text_of(key)}={name}", _setter([key], value)
        plain = [key for key in found if not isinstance(at(document, key), (dict, list))]
        texts = [key for key in plain if isinstance(at(document, key), str)]
        numbers = [key for key in plain if isinstance(at(document, key), (int, float))]
        yield f"each text={name}", _setter(texts, value)
        yield f"each number={name}", _setter(numbers, value)
        yield f"the whole={name}", partial(_second, second=value)
    for key in found:
        yield f"{text_of(key)} is missing", _deleter(key)
        if isinstance(at(document, key), dict):
            yield f"{text_of(key)} has one more", _setter([(*key, "stranger")], "stranger")
    if isinstance(document, dict):
        yield "one more", _setter([("stranger",)], VARIABLE)
        yield "a target", _setter([("_target_",)], "os.abort")
        calls = values(place)["hub"]
        if "logger" in document:
            yield "trackers that call", _setter([("logger",)], {"mlflow": calls, "wandb": calls, "tensorboard": calls})
        yield "a later format", _setter([("format_version",)], 99)


def _second(first: object, second: Any) -> Any:
    return second


def _setter(keys: list[Key], value: Any) -> Callable[[Any], Any]:
    def change(document: Any) -> Any:
        for key in keys:
            at(document, key[:-1])[key[-1]] = value
        return document

    return change


def _deleter(key: Key) -> Callable[[Any], Any]:
    def change(document: Any) -> Any:
        del at(document, key[:-1])[key[-1]]
        return document

    return change


def json_changes(place: Place) -> dict[str, Change]:
    def read(path: Path) -> Any:
        return json.loads(path.read_text("utf-8"))

    def write(change: Callable[[Any], Any]) -> Change:
        return lambda place: replace(place, json.dumps(change(read(place.path))).encode())

    return {
        **{name: write(change) for name, change in document_changes(read(place.path), place)},
        "deep brackets": lambda place: replace(place, b"[" * 300_000),
        "many digits": lambda place: replace(place, b'{"val": ' + b"9" * 10_000 + b"}"),
        "twice": lambda place: replace(place, place.path.read_bytes().rstrip() + place.path.read_bytes()),
    }


def yaml_changes(place: Place) -> dict[str, Change]:
    def read(path: Path) -> Any:
        return yaml.safe_load(path.read_text("utf-8"))

    def write(change: Callable[[Any], Any]) -> Change:
        return lambda place: replace(place, yaml.safe_dump(change(read(place.path))).encode())

    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return {
        **{name: write(change) for name, change in document_changes(read(place.path), place)},
        "tag": lambda place: replace(place, f"!!python/object/apply:os.system ['touch {place.canary}']".encode()),
        "aliases": lambda place: replace(place, "\n".join(bomb).encode()),
        "deep brackets": lambda place: replace(place, b"[" * 20_000),
        "bad": lambda place: replace(place, b"a: b: c\n\t- x"),
    }


# Of tables


def _drop_column(index: int, rows: list[list[str]]) -> None:
    for row in rows:
        del row[index]


def csv_changes(place: Place) -> dict[str, Change]:
    def read(path: Path) -> list[list[str]]:
        return list(csv.reader(io.StringIO(path.read_text("utf-8"))))

    def write(change: Callable[[list[list[str]]], Any]) -> Change:
        def apply(place: Place) -> None:
            rows = read(place.path)
            change(rows)
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            replace(place, text.getvalue().encode("utf-8", "surrogateescape"))

        return apply

    def cells(column: int, value: str, all_rows: bool) -> Callable[[list[list[str]]], None]:
        def change(rows: list[list[str]]) -> None:
            for row in rows[1:] if all_rows else rows[1:2]:
                row[column] = value

        return change

    changes: dict[str, Change] = {
        "no rows": write(lambda rows: rows.__delitem__(slice(1, None))),
        "a row twice": write(lambda rows: rows.append(rows[1])),
        "a short row": write(lambda rows: rows[1].pop()),
        "a long row": write(lambda rows: rows[1].append("x")),
        "one more column": write(lambda rows: rows.__setitem__(slice(None), [[*row, VARIABLE] for row in rows])),
        "a column twice": write(lambda rows: rows.__setitem__(slice(None), [[*row, row[0]] for row in rows])),
        "many columns": write(lambda rows: rows[0].extend(map(str, range(300_000)))),
        "a million rows": write(lambda rows: rows.extend([rows[1]] * 1_000_000)),
        "zero byte": lambda place: replace(place, place.path.read_bytes()[:60] + b"\0" + place.path.read_bytes()[60:]),
        "open quote": lambda place: replace(place, place.path.read_bytes() + b'"' + b"x" * 3_000_000),
    }
    header = read(place.path)[0]
    texts = {
        "variable": VARIABLE,
        "address": ADDRESS,
        "bucket": BUCKET,
        "secret": str(place.secret),
        "parent": "../" * 12 + str(place.secret)[1:],
        "device": "/dev/zero",
        "nan": "nan",
        "infinity": "-inf",
        "minus one": "-1",
        "huge": "1e999",
        "nothing": "",
        "formula": "=cmd()",
        "escape": "\x1b[2J\x07",
        "long": "x" * 300_000,
        "digits": "9" * 5000,
    }
    for index, column in enumerate(header):
        changes[f"{column} is missing"] = write(partial(_drop_column, index))
        for name, value in texts.items():
            changes[f"{column}={name}"] = write(cells(index, value, all_rows=False))
            changes[f"each {column}={name}"] = write(cells(index, value, all_rows=True))
    return changes


# Of tensors


def _put(name: str, value: object, found: dict[str, Any]) -> None:
    found[name] = value


def _drop(names: Sequence[str], found: dict[str, Any]) -> None:
    for name in names:
        del found[name]


def _of_state(change: Callable[[dict[str, Any]], None], content: dict[str, Any]) -> None:
    change(content["state_dict"])


def _with_metadata(metadata: dict[str, str], header: dict[str, Any]) -> dict[str, Any]:
    return header | {"__metadata__": metadata}


def tensor_changes(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
    """Yield changes of named tensors in place."""
    names = sorted(tensors)
    for name in dict.fromkeys((names[0], names[len(names) // 2], names[-1])):
        first = tensors[name]
        others = {
            "nan": torch.full_like(first, math.nan) if first.is_floating_point() else first - 1,
            "infinity": torch.full_like(first, math.inf) if first.is_floating_point() else first + (1 << 40),
            "one dimension": first.reshape(-1)[:1].clone(),
            "one more dimension": first[None].clone(),
            "no elements": torch.empty(0),
            "whole numbers": torch.zeros(first.shape, dtype=torch.int64),
            "complex": torch.zeros(first.shape, dtype=torch.complex64),
            "booleans": torch.zeros(first.shape, dtype=torch.bool),
        }
        for kind, value in others.items():
            yield f"{name}: {kind}", partial(_put, name, value)
        yield f"{name} is missing", partial(_drop, [name])
    yield "no tensors", partial(_drop, names)
    yield "half of the tensors", partial(_drop, names[: len(names) // 2])
    yield "one more tensor", partial(_put, "stranger", torch.zeros(3))


def safetensors_changes(place: Place) -> dict[str, Change]:
    def split(content: bytes) -> tuple[dict[str, Any], bytes]:
        (size,) = struct.unpack("<Q", content[:8])
        return json.loads(content[8 : 8 + size]), content[8 + size :]

    def join(header: dict[str, Any], data: bytes) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    def of_header(change: Callable[[Any], Any]) -> Change:
        def apply(place: Place) -> None:
            header, data = split(place.path.read_bytes())
            replace(place, join(change(header), data))

        return apply

    def of_tensors(change: Callable[[dict[str, Any]], None]) -> Change:
        def apply(place: Place) -> None:
            content = place.path.read_bytes()
            tensors = safetensors.torch.load(content)
            change(tensors)
            replace(place, safetensors.torch.save(tensors, split(content)[0].get("__metadata__")))

        return apply

    content = place.path.read_bytes()
    tensors, metadata = safetensors.torch.load(content), split(content)[0].get("__metadata__", {})
    changes = {name: of_tensors(change) for name, change in tensor_changes(tensors)}
    for key in metadata:
        for name in ("variable", "nan", "minus one", "huge", "text", "long"):
            value = str(values(place)[name])
            changes[f"{key}={name}"] = of_header(partial(_with_metadata, {**metadata, key: value}))
        others = {name: each for name, each in metadata.items() if name != key}
        changes[f"{key} is missing"] = of_header(partial(_with_metadata, others))
    first = min(tensors)
    return {
        **changes,
        "no metadata": of_header(lambda header: {name: each for name, each in header.items() if name[:2] != "__"}),
        "huge shape": of_header(lambda header: header | {first: header[first] | {"shape": [1 << 40]}}),
        "long header": lambda place: replace(place, struct.pack("<Q", 1 << 60) + b"{}"),
        "overlap": of_header(lambda header: header | {"stranger": header[first]}),
    }


def checkpoint_changes(place: Place) -> dict[str, Change]:
    def read(path: Path) -> dict[str, Any]:
        return dict(torch.load(path, map_location="cpu", weights_only=True))

    def write(change: Callable[[dict[str, Any]], object]) -> Change:
        def apply(place: Place) -> None:
            content = read(place.path)
            change(content)
            place.path.unlink()
            torch.save(content, place.path)

        return apply

    def of_hparams(change: Callable[[Any], Any]) -> Change:
        return write(lambda content: content.update(hyper_parameters=change(content["hyper_parameters"])))

    content = read(place.path)
    changes: dict[str, Change] = {}
    if "state_dict" not in content:  # weights alone
        changes = {name: write(change) for name, change in tensor_changes(content)}
    else:
        state = dict(content["state_dict"])
        for name, change in tensor_changes(state):
            changes[name] = write(partial(_of_state, change))
        for name, change in document_changes(content["hyper_parameters"], place):
            changes[name] = of_hparams(change)
        for name in content:
            changes[f"top {name} is missing"] = write(partial(_drop, [name]))
            changes[f"top {name}=text"] = write(partial(_put, name, VARIABLE))
        changes["instantiator"] = write(
            lambda content: content["hyper_parameters"].update(
                _instantiator="os.system", config={"_instantiator": "os.system"}
            )
        )
    return {
        **changes,
        "code in it": lambda place: torch.save({**content, "x": RunsCode(place.canary)}, _fresh(place.path)),
        "code, legacy": lambda place: torch.save(
            {**content, "x": RunsCode(place.canary)}, _fresh(place.path), _use_new_zipfile_serialization=False
        ),
        "expanded": write(lambda content: content.update(state_dict={"x": torch.zeros(1).expand(1 << 36)})),
        "compressed zip": _bomb,
        "a module": lambda place: torch.save(torch.nn.Linear(2, 2), _fresh(place.path)),
        "a list": lambda place: torch.save([1, 2], _fresh(place.path)),
    }


def _fresh(path: Path) -> Path:
    path.unlink()
    return path


def _bomb(place: Place) -> None:
    """4 GB of zeros that a zip file holds in 4 MB."""
    with (
        zipfile.ZipFile(_fresh(place.path), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("archive/data.pkl", "w", force_zip64=True) as entry,
    ):
        for _ in range(4096):
            entry.write(bytes(1 << 20))


def npy_changes(place: Place) -> dict[str, Change]:
    def save(array: Callable[[Any], Any], **options: Any) -> Change:
        def apply(place: Place) -> None:
            content = np.load(place.path)
            with _fresh(place.path).open("wb") as file:
                np.save(file, array(content), **options)

        return apply

    def huge(place: Place) -> None:
        with _fresh(place.path).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (1 << 40, 3)})
            file.write(bytes(4096))

    return {
        "objects": lambda place: save(lambda array: np.array([RunsCode(place.canary)], object), allow_pickle=True)(
            place
        ),
        "one dimension": save(lambda array: array.reshape(-1)),
        "negative": save(lambda array: -array.astype(np.int64) - 1),
        "huge numbers": save(lambda array: array.astype(np.int64) + (1 << 50)),
        "nan": save(lambda array: array.astype(np.float64) * math.nan),
        "a row less": save(lambda array: array[:-1]),
        "no rows": save(lambda array: array[:0]),
        "texts": save(lambda array: array.astype(str)),
        "huge shape": huge,
    }


def tar_changes(place: Place) -> dict[str, Change]:
    def add(**member: Any) -> Change:
        def apply(place: Place) -> None:
            with tarfile.open(place.path, "a") as file:
                info = tarfile.TarInfo("../../stranger.jpg")
                for name, value in member.items():
                    setattr(info, name, value)
                file.addfile(info)

        return apply

    def zeros(place: Place) -> None:
        replace(place, bytes(place.path.stat().st_size))

    def shuffled(place: Place) -> None:
        content = bytearray(place.path.read_bytes())
        content[1000:3000] = content[3000:5000]
        replace(place, bytes(content))

    return {
        "a link": add(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "a device": add(type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        "a path": add(),
        "zeros": zeros,
        "shuffled": shuffled,
    }


# Of photos


def photo_changes(place: Place) -> dict[str, Change]:
    def png(width: int, height: int, depth: int = 8) -> bytes:
        from PIL import Image

        file = io.BytesIO()
        Image.new("I;16" if depth == 16 else "1", (width, height)).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def renamed(name: bytes) -> Change:
        def apply(place: Place) -> None:
            place.path.rename(place.path.with_name(os.fsdecode(name)))

        return apply

    def claims(place: Place) -> None:
        content = bytearray(png(8, 8))
        content[16:24] = struct.pack(">II", 1 << 20, 1 << 20)
        replace(place, bytes(content))

    return {
        "large": lambda place: replace(place, png(9000, 9000)),
        "large, 16 bits": lambda place: replace(place, png(9000, 9000, 16)),
        "too large": lambda place: replace(place, png(12000, 12000)),
        "claims to be huge": claims,
        "a text": lambda place: replace(place, f"{VARIABLE} {ADDRESS}".encode()),
        "a vector graphic": lambda place: replace(
            place, f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{ADDRESS}"/></svg>'.encode()
        ),
        "postscript": lambda place: replace(place, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\n"),
        "name with a variable": renamed(b"${oc.env:SECRET_TOKEN}.jpg"),
        "name with an escape": renamed(b"\x1b[2J\n=cmd().jpg"),
        "name not utf-8": renamed(b"\xff\xfe.jpg"),
        "name with commas": renamed(b"a,b=c[1]'\"{x}.jpg"),
    }


def other_changes(place: Place) -> dict[str, Change]:
    return {
        "markup": lambda place: replace(place, f"<script src='{ADDRESS}'></script>{VARIABLE}".encode()),
        "zeros": lambda place: replace(place, bytes(100_000)),
    }


# The groups of files, by the ends of their names, and what may be in such a file besides ANY.
GROUPS: dict[str, tuple[tuple[str, ...], Callable[[Place], dict[str, Change]]]] = {
    "checkpoint": ((".ckpt", ".pth"), checkpoint_changes),
    "safetensors": ((".safetensors",), safetensors_changes),
    "json": ((".json",), json_changes),
    "yaml": ((".yaml",), yaml_changes),
    "csv": ((".csv",), csv_changes),
    "npy": ((".npy",), npy_changes),
    "tar": ((".tar",), tar_changes),
    "photo": ((".jpg", ".png"), photo_changes),
    "other": (("",), other_changes),
}


def group_of(path: Path) -> str:
    """Return the group of a file."""
    return next(name for name, (suffixes, _) in GROUPS.items() if path.name.endswith(suffixes))


def changes_of(place: Place) -> dict[str, Change]:
    """Return all payloads for a file, by name, in a fixed order: those of any file first."""
    if place.path.stat().st_size == 0:  # a lock
        return dict(ANY)
    return {**ANY, **GROUPS[group_of(place.path)][1](place)}


def apply(place: Place, name: str) -> None:
    """Make a change, by its name."""
    changes_of(place)[name](place)


# Endings of the names of payloads, by what they try: code, the environment and files of the user, addresses, numbers.
_TRIES = (
    ("trackers that call",),
    ("=target", "=hub", "=partial", "tag", "code in it", "code, legacy", "objects"),
    ("each text=overriding variable",),
    ("=variable", "=secret"),
    ("=address", "=bucket", "=weights"),
    ("=nan", "=minus one", "=zero", "=infinity", ": nan", ": infinity", "=depth", "is missing"),
)

# Payloads that make a file wrong: what reads it must refuse it, or answer as before.
_WRONG = re.compile(
    r"=nan$|=infinity$|(?<!mean\.\d)=minus one$|: (?!whole numbers|booleans)|(?<!temperature) is missing$|tensors?$"
)


def is_wrong(payload: str) -> bool:
    """Return whether no program may answer anything else because of a payload."""
    return bool(_WRONG.search(payload))


def sample(names: list[str], count: int, seed: str) -> list[str]:
    """Return `count` of the names, if there are as many half of them from ANY; the same ones for the same seed.

    Of the others, the first ones each try another thing.
    """
    generator = random.Random(seed)
    general = [name for name in names if name in ANY]
    special = [name for name in names if name not in ANY]
    tries = [[name for name in special if name.endswith(ends)] for ends in _TRIES]
    first = [generator.choice(fitting) for fitting in tries if fitting]
    rest = generator.sample(special, len(special))
    wanted = min(len(special), count - min(len(general), count // 2))
    chosen = [*dict.fromkeys([*first, *rest])][:wanted]
    return [*chosen, *generator.sample(general, min(len(general), count - len(chosen)))]
