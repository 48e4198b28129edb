"""Answer a command that is not of the form `flowers PROGRAM key=value …` with the one that was probably meant."""

import difflib
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from flowers.runs.run_folder import BEST_CHECKPOINT, START_FILE
from flowers.settings.config_reference import CONF, options_of, read_config_file
from flowers.settings.other_tools import is_word, our_option, our_overrides, our_program
from flowers.settings.programs import all_programs, settings_type
from flowers.settings.suggestions import suggest_key
from flowers.settings.validation import key_names

# Hydra's flags, and how many values each of them takes.
_FLAGS = {
    **dict.fromkeys(("-h", "--help", "--hydra-help", "--version", "-r", "--run", "-m", "--multirun"), 0),
    **dict.fromkeys(("--resolve", "-sc", "--shell-completion"), 0),
    **dict.fromkeys(("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name"), 1),
    **dict.fromkeys(("-cd", "--config-dir", "--experimental-rerun", "-i", "--info"), 1),
}
_IMAGE = re.compile(r".*\.(jpe?g|png|webp|bmp|tiff?|gif)", re.IGNORECASE)
_NUMBER = re.compile(r"-?[\d.]+(e-?\d+)?", re.IGNORECASE)
_SETTING = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@-]*=.*|~[\w./@-]+", re.DOTALL)
_FORMATS = ("torch_export", "onnx", "int8", "hub", "web")
_OPTION_GROUPS = (
    "experiment",
    "model",
    "optimizer",
    "scheduler",
    "data",
    "trainer",
    "loss",
    "mixing",
    "logger",
    "debug",
)


def check_arguments(program: str, arguments: Sequence[str]) -> None:
    """Check that each argument of a program is an override or a flag of Hydra.

    Raises:
        ValueError: One of them is not. The message has the command that was probably meant.
    """
    if wrong := _wrong_arguments(arguments):
        raise ValueError(f"{wrong[0]}: expected key=value: {_hint(program, arguments)}")


def unknown_program(name: str, arguments: Sequence[str]) -> str:
    """Return the line that answers a first word which is no program."""
    programs = all_programs()
    close = difflib.get_close_matches(name, programs, n=1, cutoff=0.7)
    path = Path(name).expanduser()
    if meant := our_program(name):
        program, *more = meant.split()
        if program.startswith("!"):  # of another package
            return f"{name}: no such program: try {meant[1:]}"
    elif close:
        program, more = close[0], []
    elif name.startswith("-") or "=" in name or path.exists() or len(path.parts) > 1:
        kind = "evaluate" if _is_run(name) else "predict" if path.is_file() and _IMAGE.fullmatch(name) else "train"
        return f"{name}: expected a program first: {_hint(kind, [name, *arguments])}"
    else:
        configured = (each.name for each in programs.values() if each.settings)
        return f"{name}: no such program: expected one of {', '.join(configured)}"
    is_configured = program in programs and programs[program].settings
    hint = _hint(program, [*more, *arguments]) if is_configured else f"try flowers {program}"
    return f"{name}: no such program: {hint}"


def _hint(program: str, arguments: Sequence[str]) -> str:
    valid = _valid_keys(program)
    given = list(_settings(arguments, valid))
    paths = [value for key, value in given if not key]
    try:
        overrides = [line for key, value in given if key for line in _override(program, key, value, valid)]
        if paths:  # photos=a.jpg b.jpg, as the shell expands photos=*.jpg
            paths[:0] = [line.partition("=")[2] for line in overrides if line.startswith("photos=")]
            overrides = [line for line in overrides if not line.startswith("photos=")]
        overrides += _path_overrides(program, paths, valid, overrides)
    except ValueError as error:
        return str(error)
    return f"try {shlex.join(['flowers', program, *overrides])}"


def _valid_keys(program: str) -> set[str]:
    """Return the keys and groups of a program; of one that runs trainings, those of train, too."""
    names = [program, "train"] if program in ("sweep", "ablation") else [program]
    groups = {group for name in names for group in read_config_file(name).options}
    return groups.union(*(key_names(settings_type(name)) for name in names))


def _wrong_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that are neither overrides nor flags of Hydra with their values."""
    wrong, values = list[str](), 0
    for index, argument in enumerate(arguments):
        flag = argument.partition("=")[0] if argument.startswith("--") else argument
        if _meant(argument, arguments[index + 1 :]):
            wrong.append(argument)
        elif flag in _FLAGS:
            values = _FLAGS[flag] if flag == argument else 0
        elif values:
            values -= 1
        elif argument.startswith("-") or not _SETTING.fullmatch(argument) or (argument.endswith("=") and wrong):
            wrong.append(argument)
    return wrong


def _meant(word: str, rest: Sequence[str]) -> str:
    """Return the key that a flag of Hydra means with the value after it: `--run FOLDER`, `-c FILE`; empty if none."""
    if not rest or not _is_value(rest[0]):
        return ""
    is_file = word in ("-c", "--cfg") and rest[0] not in ("job", "hydra", "all")
    return "run" if word == "--run" else "config" if is_file else ""


def _settings(arguments: Sequence[str], valid: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield keys and values, as the user probably meant them; a path, or another word by itself, has an empty key."""
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if key := _meant(word, rest):
            yield key, _with_spaces(rest.pop(0), rest)
        elif word in _FLAGS:
            yield word, " ".join(rest.pop(0) for _ in range(min(_FLAGS[word], len(rest))))
        elif word.startswith("-") and not _NUMBER.fullmatch(word):
            name, equals, value = word.lstrip("-").partition("=")
            if not equals and rest and _is_value(rest[0]):
                value = rest.pop(0)
            elif not equals:
                name, value = (
                    (name[3:], "false") if name[:3] in ("no-", "no_") and is_word(name[3:]) else (name, "true")
                )
            yield name, _with_spaces(value, rest)
        elif "=" in word:
            key, value = (part.strip() for part in word.split("=", 1))
            value = value or (rest.pop(0) if rest and _is_value(rest[0]) else "")
            yield key, _with_spaces(value, rest)
        elif rest and rest[0].startswith("=") and not Path(word).exists():
            yield word, rest.pop(0)[1:] or (rest.pop(0) if rest else "")
        elif re.fullmatch(r"[a-z_][\w.]*:[^/\\].*", word) and not Path(word).exists():
            key, _, value = word.partition(":")
            yield key, value
        elif (word in valid or is_word(word)) and rest and _is_value(rest[0]) and not Path(word).exists():
            yield word, rest.pop(0)
        else:
            yield "", _with_spaces(word, rest)


def _is_value(word: str) -> bool:
    return ("=" not in word or Path(word).exists()) and (not word.startswith("-") or bool(_NUMBER.fullmatch(word)))


def _with_spaces(value: str, rest: list[str]) -> str:
    """Return a path that the shell took apart at its spaces, and take its parts from the words that follow."""
    for count in range(len(rest), 0, -1):
        joined = " ".join([value, *rest[:count]])
        if Path(joined).expanduser().exists():
            del rest[:count]
            return joined
    return value


def _override(program: str, key: str, value: str, valid: Collection[str]) -> list[str]:
    if key in _FLAGS:
        return [key, *([value] if value else [])]
    name = key.lstrip("+~")
    is_option = name in valid and (CONF / name).is_dir()
    if is_option and value not in options_of(name) and (meant := our_option(name, value)):
        return meant
    if name in valid or name.startswith(("hydra", "trainer.", "model.options.")):
        return [f"{key}={value}"]
    if meant := our_overrides(name, value, valid):
        return meant
    raise ValueError(f"{key}: no such key{suggest_key(name, valid, value)} (flowers {program} --help lists all keys)")


def _path_overrides(program: str, words: list[str], valid: set[str], given: Sequence[str]) -> list[str]:
    """Return overrides for words without a key: paths, and names of options.

    Raises:
        ValueError: What is meant is not clear.
    """
    found, photos, formats = list[str](), list[str](), list[str]()
    has = {line.partition("=")[0] for line in given}
    runs = [word for word in words if _is_run(word)]
    if "runs" in valid or (not runs and "run" in valid and "run" not in has):
        runs = [word for word in words if word in runs or _may_be_run(word)]
    for word in words:
        option = next((group for group in _OPTION_GROUPS if group in valid and word in options_of(group)), None)
        if word in runs:
            continue
        if word in ("help", "?"):
            raise ValueError(f"try flowers {program} --help")
        if option and not Path(word).exists():
            found.append(f"{option}={word}")
        elif word.isdigit() and "port" in valid:
            found.append(f"port={word}")
        elif "formats" in valid and word in _FORMATS:
            formats.append(word)
        elif photos and "output" in valid and not has & {"output"} and not Path(word).exists():
            found.append(f"output={word}")
        elif word.rpartition(".")[2] in ("yaml", "yml") or not _is_path(word):
            raise ValueError(f"flowers {program} --help lists the settings")
        else:
            photos.append(word)
    found += [f"formats=[{','.join(formats)}]"] * bool(formats)
    if runs and "runs" in valid:
        found.append(f"runs=[{','.join(runs)}]")
    elif runs and "run" in valid:
        found.append(f"run={runs[0]}")
    elif runs and "resume" in valid:
        found.append(f"resume={_run_folder(runs[0])}")
    if photos:
        path = photos[0] if len(photos) == 1 else f"[{','.join(photos)}]"
        if len(photos) > 3 and len({(Path(each).parent, Path(each).suffix) for each in photos}) == 1:
            path = str(Path(photos[0]).parent / f"*{Path(photos[0]).suffix}")
        found += our_overrides("path", path, valid)
    return found


def _may_be_run(word: str) -> bool:
    return not (Path(word).expanduser().exists() or _IMAGE.fullmatch(word) or word.isdigit() or word in _FORMATS)


def _is_path(word: str) -> bool:
    return Path(word).expanduser().exists() or "/" in word or bool(_IMAGE.fullmatch(word))


def _is_run(word: str) -> bool:
    path = Path(word).expanduser()
    return path.suffix == ".ckpt" or (path / START_FILE).exists() or (path / BEST_CHECKPOINT).exists()


def _run_folder(word: str) -> str:
    path = Path(word)
    return str(path.parents[1]) if path.suffix == ".ckpt" and path.parent.name == "checkpoints" else word
