"""The common frame of all entry points: parses flagfiles and flags, and maps errors to exit codes.

An entry point is

    def define_flags(flags: absl.flags.FlagValues) -> None: ...
    def main(flags: absl.flags.FlagValues) -> int | None: ...

    if __name__ == "__main__":
        sys.exit(cli.run(main, define_flags))

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | internal error: the traceback is printed |
| 2 | usage or input error: one line states the problem and the remedy |
| 3 | stopped by a signal, with everything saved |
| 4 | a check failed (NaN, an export that does not verify) |
| 5 | another worker of the run was lost: restart all of them |
| 130, 141 | interrupted with nothing to save; the reader of the output closed the pipe |
"""

import inspect
import json
import math
import os
import pathlib
import re
import select
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TextIO

from absl import flags as absl_flags

from tfzoo import files
from tfzoo.errors import CheckFailed, UserError, WorkerLost, printable, suggest
from tfzoo.options import bounds, limited, out_of_bounds

DONE, BUG, WRONG_USE, STOPPED, FAILED_CHECK, LOST_WORKER = 0, 1, 2, 3, 4, 5
INTERRUPTED, NO_READER = 130, 141  # The codes that a shell reports for SIGINT and SIGPIPE.

_FLAGFILE_BYTES = 1 << 20
MAX_DEPTH = 16  # Nesting depth of flagfiles.
# Two spaces, so that a value may contain " #". White space is searched from its beginning only, in linear time.
_COMMENT = re.compile(r"(?<!\s)(?=\s*+#)\s*?(?:  |\t)\s*+#.*$")
_FLAG_LINE = re.compile(r"--?[A-Za-z]\w*(?:=.*)?$")
_PATH_FLAG = re.compile(r"from|to|output|\w+_dir")  # An empty path would mean the working directory.
USAGE = "[--flagfile=FILE] [--name=value ...]"
_OTHERS = "Flags"  # The heading of the flags without a group in --help.
HELP = ("--help", "-help", "-h", "--helpfull", "--helpshort")


# Packages that are not needed to build, load and train models -> the extra that installs them.
_EXTRAS = (
    dict.fromkeys(("onnx", "onnxruntime", "onnx_ir", "tensorflow_serving", "tf2onnx"), "export")
    | dict.fromkeys(("optuna", "rouge_score", "sacrebleu", "scipy", "sklearn"), "tasks")
    | dict.fromkeys(("grpc", "grpc_health", "grpc_reflection", "httptools", "prometheus_client", "uvicorn"), "serve")
)


def run(
    main: Callable[[absl_flags.FlagValues], int | None],
    define_flags: Callable[[absl_flags.FlagValues], None],
    argv: Sequence[str] | None = None,
    subcommand: str = "",
    usage: str = USAGE,
) -> int:
    """Parses the arguments, calls `main` and returns the exit code.

    Args:
      main: receives the parsed flags and returns an exit code; None means 0. It returns 3 (STOPPED) when a signal
        stopped it and everything was saved.
      define_flags: defines the program's flags on the FlagValues that it receives, so that the flags of two entry
        points in one process never collide.
      argv: the arguments without the names of the program and the subcommand; None means those of the process.
      subcommand: the name of the subcommand, for --help.
      usage: what follows the program's name in the first line of --help.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # Must be set before TensorFlow is imported.
    try:
        try:
            flags = absl_flags.FlagValues()
            define_flags(flags)
            if any(argument in HELP for argument in arguments):
                print(_help_page(main, flags, subcommand, usage))
                code: int | None = DONE
            else:
                parse(flags, arguments)
                code = main(flags)
            sys.stdout.flush()
            return DONE if code is None else code
        except UserError as error:
            show(f"error: {error}", file=sys.stderr)
            return WRONG_USE
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _EXTRAS:
                raise
            remedy = f"pip install 'tfzoo[{_EXTRAS[package]}]'"
            show(f"error: the package {package} is not installed; {remedy}", file=sys.stderr)
            return WRONG_USE
        except CheckFailed as error:
            show(f"error: {error}", file=sys.stderr)
            return FAILED_CHECK
        except WorkerLost as error:
            show(f"error: {error}", file=sys.stderr)
            return LOST_WORKER
        except OSError as error:
            message = files.refusal(error)
            if not message:
                raise
            show(f"error: {message}", file=sys.stderr)
            return WRONG_USE
        except KeyboardInterrupt:
            show("interrupted", file=sys.stderr)
            return INTERRUPTED
    except BrokenPipeError:
        if not _output_is_closed():
            traceback.print_exc()
            return BUG
        return NO_READER
    except Exception:
        traceback.print_exc()
        return BUG


def run_subcommand(
    commands: Mapping[str, tuple[Callable[[absl_flags.FlagValues], int | None], Callable[..., None]]],
    about: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Calls `run` for the subcommand named by the first argument.

    Args:
      commands: name -> (main, define_flags).
      about: the text that --help prints before the list of subcommands.
      argv: the arguments; None means those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in commands:
        main, define_flags = commands[name]
        return run(main, define_flags, arguments[1:], name)

    def other(_) -> None:
        listed = ", ".join(commands)
        if name in HELP:
            first_lines = {each: (main.__doc__ or "").splitlines()[0] for each, (main, _) in commands.items()}
            summaries = "\n".join(f"  {each:<12}{line}" for each, line in first_lines.items())
            program = _program(next(iter(commands.values()))[0])
            print(
                f"python -m {program} SUBCOMMAND {USAGE}\n\n{about.strip()}\n\nSubcommands, each with its own --help:"
            )
            print(summaries)
        elif name.startswith("-") or not name:
            raise UserError(f"the first argument must be a subcommand: {listed}")
        else:
            raise UserError(f"{name}: no such subcommand{suggest(name, commands) or f'; the subcommands are {listed}'}")

    return run(other, lambda flags: None, [])


def parse(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> None:
    """Expands flagfiles and sets `flags` from `arguments`; later arguments take precedence.

    Raises:
      UserError: an unknown flag, an invalid value, or an argument that is not a flag; the message names the flagfile
        and the line that contains it.
    """
    expanded = expand_flagfiles(arguments)
    checked = _checked(flags, expanded)
    try:
        flags(["", *checked])
    except absl_flags.Error as error:  # Raised only by validators: each flag's own value is already checked.
        text = re.sub(r"^flags? ", "", str(error))
        required = re.match(r"--(\w+)=None: Flag --\1 must have a value", text)
        if required:
            raise UserError(f"--{required[1]} is required: add --{required[1]}=VALUE") from None
        named = re.match(r"--(\w+)=", text)
        origins = [origin for argument, origin in expanded if named and _flag_name(argument) == named[1] and origin]
        raise UserError(f"{origins[-1]}: {text}" if origins else text) from None


def explicit_flags(flags: absl_flags.FlagValues) -> dict[str, object]:
    """Returns the flags that were set on the command line or in a flagfile, with their values."""
    return {name: flags[name].value for name in flags if flags[name].present}


def write_flags(flags: absl_flags.FlagValues, path: str | os.PathLike, leave_out: Iterable[str] = ("run_dir",)) -> None:
    """Writes a flagfile with the value of every flag, including defaults, so that it reproduces the run even if
    defaults change later. Flags that are None, and those in `leave_out`, are omitted.

    Raises:
      UserError: a value contains a line break or is not Unicode, which a flagfile cannot represent.
    """
    lines = []
    for name in sorted(set(flags) - set(leave_out)):
        flag = flags[name]
        if flag.value is None:
            continue
        for value in flag.value if isinstance(flag.value, list) else [flag.value]:
            text = str(value)
            if "\n" in text or not _is_unicode(text):
                raise UserError(
                    f"--{name}={text}: a flagfile cannot contain this value; remove line breaks and non-UTF-8 bytes"
                )
        for line in flag.serialize().split("\n") if flag.serialize() else []:
            start, equals, value = line.partition("=")
            # A value that would be read differently because of a comment or quotation marks is quoted.
            lines.append(start + equals + (value if _read_value(value) == value else json.dumps(value)))
    files.atomic_write(path, "# Every flag of a run: --flagfile=THIS_FILE repeats it.\n" + "\n".join(lines) + "\n")


def positive(flags: absl_flags.FlagValues, *names: str) -> None:
    """Makes these numeric flags reject zero, negative numbers and NaN. None remains allowed."""
    for name in names:
        is_integer = isinstance(flags[name].parser, absl_flags.IntegerParser)
        absl_flags.register_validator(
            name,
            lambda value: value is None or value > 0,
            message="must be at least 1" if is_integer else "must be greater than 0",
            flag_values=flags,
        )


def only_one(flags: absl_flags.FlagValues, *names: str) -> str:
    """Returns the name of the only flag that is set among `names`.

    Raises:
      UserError: none of the flags is set, or more than one.
    """
    specified = [name for name in names if flags[name].value not in (None, False, "", [])]
    if not specified:
        *others, last = (f"--{name}" for name in names)
        raise UserError(f"{', '.join(others)} or {last}: specify one of them")
    if len(specified) > 1:
        raise UserError(f"{' and '.join(f'--{name}' for name in specified)}: are mutually exclusive; choose one")
    return specified[0]


def expand_flagfiles(args: Iterable[str]) -> list[tuple[str, str]]:
    """Replaces `--flagfile=PATH` and `--flagfile PATH` with the flags in that file.

    A flagfile contains one flag per line, `--name=value`, `--name` or `--noname`. Blank lines, lines that start with
    `#`, and text after two spaces and a `#` are ignored. A value in double quotes is read as a JSON string. The path
    of a flagfile inside another flagfile is relative to the folder of the latter; a path in `args` is relative to the
    working directory.

    Returns:
      (argument, origin) pairs; the origin is "FILE:LINE", or "" for the command line.

    Raises:
      UserError: a file is missing, unreadable, not UTF-8, circular or nested more than 16 levels deep, or a line is
        not a flag; the message names the file and the line.
    """
    expanded: list[tuple[str, str]] = []
    waiting = iter(args)
    for argument in waiting:
        if argument in ("--flagfile", "-flagfile"):
            path = next(waiting, None)
            if path is None:
                raise UserError("--flagfile needs a path: write --flagfile=PATH")
            expanded += _read_flagfile(path, "", ())
        elif argument.startswith(("--flagfile=", "-flagfile=")):
            expanded += _read_flagfile(argument.partition("=")[2], "", ())
        else:
            expanded.append((argument, ""))
    return expanded


def _read_flagfile(path: str, origin: str, parents: tuple[pathlib.Path, ...]) -> list[tuple[str, str]]:
    """Returns the flags of a flagfile. `origin` is the FILE:LINE that names it, `parents` the files that include it."""
    file = pathlib.Path(parents[-1].parent if parents else "", os.path.expanduser(path))
    name = f"{origin}: --flagfile={path}" if origin else f"--flagfile={path}"
    # os.path.realpath, unlike Path.resolve, never raises on a loop of symbolic links.
    reals = [os.path.realpath(parent) for parent in parents]
    if os.path.realpath(file) in reals:
        circle = [*parents[reals.index(os.path.realpath(file)) :], file]
        raise UserError(f"{name}: circular: {' -> '.join(map(str, circle))}; remove one of these lines")
    if len(parents) >= MAX_DEPTH:
        raise UserError(f"{name}: flagfiles are nested more than {MAX_DEPTH} levels deep; flatten them")
    try:
        with files.open_file(file) as opened:
            text = opened.read(_FLAGFILE_BYTES + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start}; save it as UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        remedy = f"; the path is relative to the folder of {parents[-1]}" if parents else "; check the path"
        raise UserError(f"{name}: {reason}{remedy}") from None

    if len(text) > _FLAGFILE_BYTES:
        raise UserError(f"{name}: has more than {_FLAGFILE_BYTES} characters; split it")
    flags = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        where = f"{file}:{number}"
        if not line or line.startswith("#"):
            continue
        start, equals, value = line.partition("=")
        line = start + equals + _read_value(value) if equals else _COMMENT.sub("", line)
        if not _FLAG_LINE.match(line.partition("=")[0]):
            raise UserError(f"{where}: {line}: is not a flag; write one --name=value per line")
        if _flag_name(line) == "flagfile":
            flags += _read_flagfile(line.partition("=")[2], where, (*parents, file))
        else:
            flags.append((line, where))
    return flags


def _read_value(text: str) -> str:
    """Returns the value after the = of a line in a flagfile, without a comment and unquoted."""
    if text.startswith('"'):
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            pass
        else:
            if not _COMMENT.sub("", text[end:]).strip():
                return value
    return _COMMENT.sub("", text).strip()


def _flag_name(argument: str) -> str:
    return argument.lstrip("-").partition("=")[0]


def _checked(flags: absl_flags.FlagValues, expanded: list[tuple[str, str]]) -> list[str]:
    """Returns the arguments as --name=value, --name or --noname, after checking each name and value."""
    checked = []
    waiting = iter(expanded)
    booleans = {name for name in flags if flags[name].boolean}
    for argument, origin in waiting:
        where = f"{origin}: " if origin else ""
        if not re.match(r"--?\w", argument):
            raise UserError(f"{where}{argument!r}: unexpected argument; write flags as --name=value")
        name, equals, value = argument.lstrip("-").partition("=")
        if name.startswith("no") and name[2:] in booleans and name not in flags:
            if equals:
                raise UserError(f"{where}--{name}={value}: write --{name}, or --{name[2:]}={value}")
            checked.append(f"--{name}")
            continue
        if name not in flags:
            near = suggest(name, [*flags, *(f"no{boolean}" for boolean in booleans)]).replace("mean ", "mean --")
            shown = f"--{name}{equals}{value}"
            raise UserError(f"{where}{shown}: no such flag{near or '; --help lists all flags'}")
        if name in booleans and not equals:
            checked.append(f"--{name}")
            continue
        if not equals:
            # A flagfile line is self-contained, and in --name --other the value of --name is probably missing.
            value, _ = ("--", "") if origin else next(waiting, ("--", ""))
            if value.startswith("--"):
                raise UserError(f"{where}--{name}: needs a value; write --{name}=VALUE")
        complaint = _complaint(flags[name], value)
        if not value and _PATH_FLAG.fullmatch(name):
            complaint = "is empty; specify a path"
        if complaint:
            raise UserError(f"{where}--{name}={value}: {complaint}")
        checked.append(f"--{name}={value}")
    return checked


def _complaint(flag: absl_flags.Flag, text: str) -> str:
    """Returns what is wrong with a flag's value, or '' if it is valid."""
    parser = flag.parser
    try:
        value = parser.parse(text)
    except (ValueError, TypeError) as error:
        if flag.boolean:
            return "must be true or false"
        if isinstance(parser, absl_flags.EnumParser):
            return f"must be one of {', '.join(parser.enum_values)}{suggest(text, parser.enum_values)}"
        if isinstance(parser, absl_flags.IntegerParser | absl_flags.FloatParser):
            try:
                value = parser.convert(text)
                finite = math.isfinite(value)
                allowed = parser.lower_bound, parser.upper_bound
                return out_of_bounds(value, *allowed) if finite else "must be a finite number"
            except (ValueError, TypeError, OverflowError):
                is_integer = isinstance(parser, absl_flags.IntegerParser)
                return "must be a whole number" if is_integer else "must be a number"
        return str(error)
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int | float) and isinstance(parser, absl_flags.IntegerParser | absl_flags.FloatParser):
        kind = int if isinstance(parser, absl_flags.IntegerParser) else float
        return out_of_bounds(value, *limited(kind, parser.lower_bound, parser.upper_bound))
    return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # Non-UTF-8 bytes on the command line arrive as lone surrogates.
        return False
    return True


def show(text: str = "", *, file: TextIO | None = None) -> None:
    """Prints lines, such as a table, that may contain a user's strings; see `printable`. `file` is that of `print`."""
    print(printable(text, keep="\n"), file=file, flush=True)


def _output_is_closed() -> bool:
    """Returns whether the reader of the output closed the pipe, as `head` does; if so, buffered output is dropped."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        watch = select.poll()
        try:
            watch.register(stream.fileno(), 0)
        except (OSError, ValueError):  # Not an operating-system file.
            continue
        if any(happened & select.POLLERR for _, happened in watch.poll(0)):
            closed = True
            # Python flushes both streams again at exit, which would raise another error.
            with open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), stream.fileno())
    return closed


def _program(main: Callable) -> str:
    """Returns the dotted name of the program that contains `main`."""
    module = inspect.getmodule(main)
    name = module.__spec__.name if module and module.__spec__ else pathlib.Path(sys.argv[0]).name
    return name.removesuffix(".__main__") or "PROGRAM"


def _help_page(main: Callable, flags: absl_flags.FlagValues, subcommand: str, usage: str) -> str:
    module = inspect.getmodule(main)
    about = (main if subcommand else module or main).__doc__ or main.__doc__ or ""
    # The examples in a module's docstring stay indented.
    about = about.strip() if module and about is module.__doc__ else inspect.cleandoc(about)
    page = [f"python -m {f'{_program(main)} {subcommand}'.strip()} {usage}", "", about]
    groups: dict[str, list[str]] = {}
    for name in flags:
        heading = getattr(flags[name], "group", "") or _OTHERS  # tfzoo.options gives flags a group.
        groups.setdefault(heading, []).append(name)
    others = groups.pop(_OTHERS, [])
    for heading, names in [*groups.items(), (_OTHERS, others)]:
        page += ["", f"{heading}:", *(line for name in names for line in _flag_lines(flags[name]))]
    page += [
        "  --flagfile=FILE",
        "      Read flags from a file, one per line; later flags take precedence.",
        "  --help",
        "      Print this page.",
    ]
    return "\n".join(page)


def _flag_lines(flag: absl_flags.Flag) -> list[str]:
    """Returns the lines of a flag in --help, with its choices or bounds and its default."""
    # Without absl's own additions: the choices in front, and the remark that a flag may be repeated.
    text = re.sub(r"^<[^>]*>: |;\s+repeat this option to specify a list of values$", "", flag.help or "")
    parser, notes = flag.parser, []
    if isinstance(parser, absl_flags.EnumParser):
        notes.append("one of " + ", ".join(parser.enum_values))
    low, high = getattr(parser, "lower_bound", None), getattr(parser, "upper_bound", None)
    if allowed := bounds(low, high):
        notes.append(allowed.removeprefix("must be "))
    if flag.default not in (None, [], ""):
        # absl escapes and quotes strings.
        shown = flag.default if isinstance(flag.default, str) else str(flag.default_as_str)[1:-1]
        notes.append(f"default {shown}")
    about = " ".join(text.split()) + (f" ({'; '.join(notes)})" if notes else "")
    start = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}=VALUE"
    return [f"  {start}", textwrap.fill(about, 100, initial_indent="      ", subsequent_indent="      ")]
