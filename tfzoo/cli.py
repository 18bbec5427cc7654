"""The shell of every entry point: flagfiles, flags, and errors turned into exit codes.

An entry point is

    def define_flags(flags: absl.flags.FlagValues) -> None: ...
    def main(flags: absl.flags.FlagValues) -> int | None: ...

    if __name__ == "__main__":
        sys.exit(cli.run(main, define_flags))

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a bug of ours: the traceback is printed |
| 2 | wrong use or wrong input: one line says what, and what to do |
| 3 | stopped by a signal, with everything saved |
| 4 | a check failed (NaN, an export that does not verify) |
| 5 | another worker of the run is gone: start all again |
| 130, 141 | interrupted with nothing to save; nobody reads the output any more |
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

from absl import flags as absl_flags

from tfzoo import files
from tfzoo.errors import CheckFailed, UserError, WorkerLost, suggest
from tfzoo.options import bounds

DONE, BUG, WRONG_USE, STOPPED, FAILED_CHECK, LOST_WORKER = 0, 1, 2, 3, 4, 5
INTERRUPTED, NO_READER = 130, 141  # What a shell reports for SIGINT and SIGPIPE.

MAX_DEPTH = 16  # Flagfiles inside flagfiles.
_COMMENT = re.compile(r"(?:  |\t)\s*#.*$")  # Two spaces, so that a value may hold " #".
_FLAG_LINE = re.compile(r"--?[A-Za-z]\w*(?:=.*)?$")
_PATH_FLAG = re.compile(r"from|to|output|\w+_dir")  # Empty, such a path would be the working directory.
_HELP = ("--help", "-help", "-h", "--helpfull", "--helpshort")


def run(
    main: Callable[[absl_flags.FlagValues], int | None],
    define_flags: Callable[[absl_flags.FlagValues], None],
    argv: Sequence[str] | None = None,
    subcommand: str = "",
) -> int:
    """Parses `argv` (the arguments without the names of program and subcommand), calls `main`, returns the exit code.

    `define_flags` defines the program's flags on the FlagValues it is given, so that two entry points in one
    process never collide. `main` gets the parsed flags; None means 0. It returns 3 (STOPPED) when a signal
    stopped it and everything was saved.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # Before TensorFlow is imported, and only where unset.
    try:
        try:
            flags = absl_flags.FlagValues()
            define_flags(flags)
            if any(argument in _HELP for argument in arguments):
                print(_help_page(main, flags, subcommand))
                code: int | None = DONE
            else:
                parse(flags, arguments)
                code = main(flags)
            sys.stdout.flush()
            return DONE if code is None else code
        except UserError as error:
            _complain(f"error: {error}")
            return WRONG_USE
        except CheckFailed as error:
            _complain(f"error: {error}")
            return FAILED_CHECK
        except WorkerLost as error:
            _complain(f"error: {error}")
            return LOST_WORKER
        except KeyboardInterrupt:
            _complain("interrupted")
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
    """`run` of the subcommand that the first argument names; `commands` are name -> (main, define_flags).

    `about` is said by --help, before the list of subcommands.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in commands:
        main, define_flags = commands[name]
        return run(main, define_flags, arguments[1:], name)

    def other(_) -> None:
        listed = ", ".join(commands)
        if name in _HELP:
            first_lines = {each: (main.__doc__ or "").splitlines()[0] for each, (main, _) in commands.items()}
            summaries = "\n".join(f"  {each:<12}{line}" for each, line in first_lines.items())
            print(f"{inspect.cleandoc(about)}\n\nSubcommands (each has its own --help):\n{summaries}")
        elif name.startswith("-") or not name:
            raise UserError(f"the first argument must be a subcommand: {listed}")
        else:
            raise UserError(f"{name}: no such subcommand{suggest(name, commands) or f'; the subcommands are {listed}'}")

    return run(other, lambda flags: None, [])


def parse(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> None:
    """Expands flagfiles and sets `flags` from `arguments`; later ones win.

    Raises:
      UserError: an unknown flag, a bad value, an argument that is no flag; names the flagfile and the line
        where it stands.
    """
    expanded = expand_flagfiles(arguments)
    checked = _checked(flags, expanded)
    try:
        flags(["", *checked])
    except absl_flags.Error as error:  # What only validators find; each flag's own value is checked by now.
        text = re.sub(r"^flags? ", "", str(error))
        required = re.match(r"--(\w+)=None: Flag --\1 must have a value", text)
        if required:
            raise UserError(f"--{required[1]} is required: add --{required[1]}=VALUE") from None
        named = re.match(r"--(\w+)=", text)
        origins = [origin for argument, origin in expanded if named and _flag_name(argument) == named[1] and origin]
        raise UserError(f"{origins[-1]}: {text}" if origins else text) from None


def explicit_flags(flags: absl_flags.FlagValues) -> dict[str, object]:
    """The flags that were given on the command line or in a flagfile, with their values."""
    return {name: flags[name].value for name in flags if flags[name].present}


def write_flags(flags: absl_flags.FlagValues, path: str | os.PathLike, leave_out: Iterable[str] = ("run_dir",)) -> None:
    """Writes a flagfile with every flag's value, defaults included, so that it repeats the run even when
    defaults change later. Flags that are None are left out.

    Raises:
      UserError: a value holds a line break or is not Unicode, which a flagfile cannot hold.
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
            # A value that would be read differently, for the sake of a comment or of quotes, is quoted.
            lines.append(start + equals + (value if _read_value(value) == value else json.dumps(value)))
    files.atomic_write(path, "# Every flag of a run: --flagfile=THIS_FILE repeats it.\n" + "\n".join(lines) + "\n")


def positive(flags: absl_flags.FlagValues, *names: str) -> None:
    """Makes these numeric flags refuse zero, negative numbers and NaN. None stays allowed."""
    for name in names:
        whole = isinstance(flags[name].parser, absl_flags.IntegerParser)
        absl_flags.register_validator(
            name,
            lambda value: value is None or value > 0,
            message="must be at least 1" if whole else "must be greater than 0",
            flag_values=flags,
        )


def only_one(flags: absl_flags.FlagValues, *names: str) -> str:
    """The name of the one flag among these that is given.

    Raises:
      UserError: none is, or more than one.
    """
    given = [name for name in names if flags[name].value not in (None, False, [])]
    if not given:
        *others, last = (f"--{name}" for name in names)
        raise UserError(f"{', '.join(others)} or {last}: specify one of them")
    if len(given) > 1:
        raise UserError(f"{' and '.join(f'--{name}' for name in given)}: are mutually exclusive; choose one")
    return given[0]


def expand_flagfiles(args: Iterable[str]) -> list[tuple[str, str]]:
    """Replaces `--flagfile=PATH` and `--flagfile PATH` by the flags in that file.

    A flagfile holds one flag a line, `--name=value`, `--name` or `--noname`. Blank lines and lines that
    start with `#` count for nothing, and neither does what follows two spaces and a `#`. A value in double
    quotes is read as a JSON string. A flagfile named inside another is found beside it, one named in `args`
    from the working directory.

    Returns:
      (argument, where it stands: "FILE:LINE", or "" on the command line) of each.

    Raises:
      UserError: a file that is missing, unreadable, not UTF-8, circular or nested more than 16 deep, or a
        line that is not a flag; names the file and the line.
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


def _read_flagfile(path: str, origin: str, around: tuple[pathlib.Path, ...]) -> list[tuple[str, str]]:
    """One flagfile's flags. `origin` is the FILE:LINE that names it, `around` the files it is nested in."""
    file = pathlib.Path(around[-1].parent if around else "", os.path.expanduser(path))
    name = f"{origin}: --flagfile={path}" if origin else f"--flagfile={path}"
    # os.path.realpath, unlike Path.resolve, never raises on a loop of symbolic links.
    reals = [os.path.realpath(outer) for outer in around]
    if os.path.realpath(file) in reals:
        circle = [*around[reals.index(os.path.realpath(file)) :], file]
        raise UserError(f"{name}: circular: {' -> '.join(map(str, circle))}; remove one of these lines")
    if len(around) >= MAX_DEPTH:
        raise UserError(f"{name}: flagfiles are nested more than {MAX_DEPTH} levels deep; flatten them")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start}; save it as UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        remedy = f"; the path is relative to the folder of {around[-1]}" if around else "; check the path"
        raise UserError(f"{name}: {reason}{remedy}") from None

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
            flags += _read_flagfile(line.partition("=")[2], where, (*around, file))
        else:
            flags.append((line, where))
    return flags


def _read_value(text: str) -> str:
    """What stands after the = of a flagfile's line: without a comment, and unquoted."""
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
    """The arguments as --name=value, --name or --noname, each known and each value readable."""
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
            # A line of a flagfile is whole, and --name --other is more likely a value forgotten than a value.
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
    """What is wrong with a flag's value; '' if nothing is."""
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
                parser.convert(text)
            except (ValueError, TypeError, OverflowError):
                whole = isinstance(parser, absl_flags.IntegerParser)
                return "must be a whole number" if whole else "must be a number"
            return bounds(parser.lower_bound, parser.upper_bound)
        return str(error)
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # Bytes of the command line that were not UTF-8 arrive as lone surrogates.
        return False
    return True


def _complain(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
    print(line, file=sys.stderr, flush=True)


def _output_is_closed() -> bool:
    """True if whoever read our output went away, as `head` does; then what is still buffered is dropped."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        watch = select.poll()
        try:
            watch.register(stream.fileno(), 0)
        except (OSError, ValueError):  # Not a file of the operating system's.
            continue
        if any(happened & select.POLLERR for _, happened in watch.poll(0)):
            closed = True
            # Python flushes both streams once more when it exits, and would complain then.
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
    return closed


def _help_page(main: Callable, flags: absl_flags.FlagValues, subcommand: str) -> str:
    module = inspect.getmodule(main)
    program = (module.__spec__.name if module and module.__spec__ else pathlib.Path(sys.argv[0]).name) or "PROGRAM"
    command = f"{program.removesuffix('.__main__')} {subcommand}".strip()
    about = (main if subcommand else module or main).__doc__ or main.__doc__ or ""
    page = [f"python -m {command} [--flagfile=FILE] [--name=value ...]", "", inspect.cleandoc(about), ""]
    group = None
    for name in flags:
        flag = flags[name]
        heading = getattr(flag, "group", "") or "Flags"  # tfzoo.options gives flags a group.
        if heading != group:
            page += [""] * bool(group) + [f"{heading}:"]
            group = heading
        start = f"--[no]{name}" if flag.boolean else f"--{name}=VALUE"
        parser = flag.parser
        notes = []
        if isinstance(parser, absl_flags.EnumParser):
            notes.append("one of " + ", ".join(parser.enum_values))
        low, high = getattr(parser, "lower_bound", None), getattr(parser, "upper_bound", None)
        if low is not None or high is not None:
            notes.append(bounds(low, high).removeprefix("must be "))
        if flag.default not in (None, []):
            notes.append(f"default {str(flag.default_as_str)[1:-1]}")  # It comes in quotes.
        about = " ".join((flag.help or "").split()) + (f" ({'; '.join(notes)})" if notes else "")
        page += [f"  {start}", textwrap.fill(about, 100, initial_indent="      ", subsequent_indent="      ")]
    page += [] if group == "Flags" else ["", "Flags:"]
    page += [
        "  --flagfile=FILE",
        "      Read flags from a file, one per line; later flags take precedence.",
        "  --help",
    ]
    return "\n".join(page)
