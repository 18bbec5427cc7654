"""Extracts prose from docstrings in Google, NumPy and Sphinx styles, reST and Markdown.

Sections that list names (Args, Parameters, Returns, Raises, See Also, Examples, ...), code, doctests, tables, fields
and directives are removed; in the remaining text, markup is removed and the words are kept. Then everything that does
not look like a sentence is dropped: for a corpus, losing a sentence is better than keeping a signature.
"""

import inspect
import re

from tfzoo.data import sentences

VERSION = 2  # Incremented when the result changes; part of every fingerprint.
# Characters of a line or sentence that can be prose; the longest in practice has 500. The time of some patterns below
# is quadratic in this number, and linear in the length of a docstring.
MAX_LENGTH = 2000

_SECTIONS = (
    r"(?:(?:other|call|keyword|optional|positional|required|method|class|constructor|init)\s+)?"
    r"(?:args?|arguments?|param(?:eter)?s?|kwargs|keywords|attributes?|attrs|"
    r"propert(?:y|ies)|fields|methods?)"
    r"|returns?|yields?|receives|raises?|exceptions?|throws|warns|see[ ]also|seealso|examples?|usage|"
    r"(?:typical|example|sample|basic|simple|standalone)\s+usage|usage\s+examples?|references?|inputs?|"
    r"outputs?|"
    r"(?:input|output)\s+shapes?|authors?|copyright|licen[sc]e|todo|todos|signature|call\s+signatures?|"
    r"type\s+constraints|history|changelog|synopsis|options|functions|classes|exports|public\s+functions"
)
# As a separate line or with text after the colon, in bold or as a Markdown heading.
_SECTION_LINE = re.compile(rf"[#*\s]*(?:{_SECTIONS})(?:\s*\([^)]*\))?[*\s]*:(?:\s.*|\**)?", re.IGNORECASE)
_SECTION_HEADING = re.compile(rf"[#*\s]*(?:{_SECTIONS})[*\s]*:*", re.IGNORECASE)
_UNDERLINE = re.compile(r"([=\-~^\"'`#*+])\1{2,}")
_ORNAMENT = re.compile(r"[=\-~^\"'`#*+|:_.\s]{3,}")
_SIMPLE_TABLE = re.compile(r"={2,}(?:\s+={2,})+")
_TABLE_ROW = re.compile(r"\|.*|.*\|\s*$|.*\S(?: {3,}|\t)\S.*\S(?: {3,}|\t)\S.*|.*\s\|\s.*")
_FENCE = re.compile(r"```|~~~")
_FIELD = re.compile(r":[a-zA-Z][\w ,.*`\[\]-]*:(?!`)")
_DIRECTIVE = re.compile(r"\.\.(?:\s|$)|\.\.\w+::")
_KEPT_DIRECTIVE = re.compile(r"\.\.\s*(?:note|warning|tip|important|caution|hint|attention|admonition)::\s*(.*)")
_BULLET = re.compile(r"(?:[-*+•o]|\(?(?:\d{1,2}|[a-zA-Z]|[ivx]{1,4})[.)])\s+(?=\S)")
_QUOTED = re.compile(r"^(\s*)>(?!>)\s?(?:\[!\w+\])?")  # a Markdown quotation
_NAME = re.compile(r"(?:param(?:eter)?\s)?[a-z_`*][\w`*]*(?:\s*\([^()]*\))?:\s|[\w.]+\([^()]*\)\s--?\s")
_SIGNATURE = re.compile(
    r"[\w.]+[(\[](?:[^()]|\([^()]*\))*(?:[)\]],?|,|\\)|.*\)\s*->.*|@[\w.]+(?:\(.*)?|"
    r"--?[a-zA-Z][\w-]*(?:[ =,].*)?|[$#%]\s.*|def\s\w+\(.*|class\s\w+\(.*|import\s\w+|from\s[\w.]+\simport.*"
)

_TAGS = r"a|b|i|p|br|em|strong|code|pre|sup|sub|ul|ol|li|div|span|h\d|tt|img|table|tr|td"
_INLINE = [
    (re.compile(r"^[\w.]+\([^()]*\)(?:\s*->\s*\S+)?\s+--?\s+"), ""),  # f(x) -> y -- words
    (re.compile(r"\[`([^`\]]+)`\](?!\()"), r"\1"),  # [`name`]
    (re.compile(r"!?\[([^\]\[]+)\]\((?:[^()\s]|\([^()]*\))*\)"), r"\1"),  # [words](address)
    (re.compile(r"\[([^\]\[]+)\]\[[^\]\[]*\]"), r"\1"),  # [words][name]
    (re.compile(r"(?::[\w+-]+)*:[\w+-]+:`[~!]?([^`<]*?)\s*<[^`>]*>`"), r"\1"),  # :role:`words <target>`
    (re.compile(r"(?::[\w+-]+)*:[\w+-]+:`~(?:[\w]+\.)*([^`]*)`"), r"\1"),  # :role:`~a.b.words`
    (re.compile(r"(?::[\w+-]+)*:[\w+-]+:`[!.]?([^`]*)`"), r"\1"),  # :role:`words`
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # `words <address>`_
    (re.compile(r"`~\.?(?:\w+\.)*(\w[^`]*)`"), r"\1"),  # `~a.b.words`
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"\s*\[[#*\w.-]+\]_"), ""),  # [1]_
    (re.compile(r"(?<![\w*])\*\*(\S(?:[^*]*\S)?)\*\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w*])\*(\S(?:[^*]*\S)?)\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<!\w)_([a-zA-Z][a-zA-Z ]*)_(?!\w)"), r"\1"),  # _emphasis_, but not __init__
    (re.compile(rf"</?(?:{_TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE), ""),
    (re.compile(r"\|([\w ]+)\|_*"), r"\1"),  # |substitution|
    (re.compile(r"\\([*_`|<>\"'])"), r"\1"),
    (re.compile(r"\s*\((?:see |cf\. )?https?:[^\s)]*\)"), ""),
    (re.compile(r"(?<=\w)::(?=\s|$)"), ":"),
    (re.compile(r"(?<=\w)``?|``?(?=\w)"), ""),  # a quote without its partner
    (re.compile(r"^(?:#{1,6}\s+|@\w+\s)"), ""),
    (re.compile(r"^[a-z_]\w*(?:\s*\([^()]*\))?:\s+(?=[A-Z])"), ""),  # name (type): Words
    (re.compile(r"\s+"), " "),
    (re.compile(r"\s+([,.;:!?)](?:\s|$))"), r"\1"),
]  # fmt: skip

_MARKUP = re.compile(r"[`*_<>\[\]|\\@#]|::|--|:[\w+-]+:|https?:|\s{2}|\s[,.;:!?)]|^[a-z_]\w*(?: \(.*?\))?: ")

_COMMON = frozenset(
    "a an the of to in is are was be been being for and or not if as by with on at from this that these "
    "those it its which when where how what then than can could may must should will would do does has "
    "have had into no but all any each only one you we they your our so such up out other use used".split()
)
_CLOSED = (".", "!", "?", ")", '"', "'")
_VERBS = frozenset("is are must should can may will has specifies defaults".split())
_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")
_CODE_TOKEN = re.compile(
    r".*[_=<>{}\[\]\\/|$@#^~*+%&].*|.*\w[.(]\w.*|.*\(\).*|.*[a-z][A-Z].*|[\d.,:;x()-]+|--?\w.*|\W+|.*::.*"
)
# The text after a colon is usually removed; a sentence without a period usually continued in removed code.
_CUT_OFF = re.compile(r"[:,;(-]$|\b(?:a|an|the|of|to|by|and|or|with|in|as|is|are|for|from|at|on|if|that|which)$")
_NEVER = re.compile(
    r"https?:|www\.|[{}\\]|==|>>>|->|=>|:=|\$|\bcopyright\b|\(c\)|licensed under|all rights reserved|"
    r"warrant(?:y|ies)|redistribut|\bas is[\x22']|under the terms|contributor agreement|"
    r"\bTODO\b|\bFIXME\b|\bXXX\b|@\w+\.\w|\.\. |::|^[\w.]+\s*=\s|\[\.\.\.|`",
    re.IGNORECASE,
)  # fmt: skip


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _block_end(lines: list[str], start: int, indent: int) -> int:
    """Returns the index of the first line from `start` on that is neither blank nor indented by more than `indent`."""
    while start < len(lines) and (not lines[start].strip() or _indent(lines[start]) > indent):
        start += 1
    return start


def _section_end(lines: list[str], start: int, indent: int) -> int:
    """Returns the end of the section whose first line below its name is `start`: the first line that is not indented
    more than the name or, if the section is not indented, a blank line."""
    while start < len(lines) and lines[start].strip() and _indent(lines[start]) == indent:
        if _SECTION_LINE.fullmatch(lines[start].strip()):
            return start
        start += 1
    return _block_end(lines, start, indent)


def _underlined(lines: list[str], at: int) -> bool:
    if at + 1 >= len(lines) or not lines[at].strip():
        return False
    title, line = lines[at].strip(), lines[at + 1].strip()
    return bool(_UNDERLINE.fullmatch(line)) and len(line) >= 0.6 * len(title) and not _ORNAMENT.fullmatch(title)


def _until(lines: list[str], start: int, stop) -> int:
    while start < len(lines) and not stop(start):
        start += 1
    return start


def _is_term(lines: list[str]) -> bool:
    """Returns whether the lines are the term of a definition list."""
    return len(lines) == 1 and len(lines[0].split()) <= 3 and not lines[0].endswith((".", ",", ";"))


def _strip_inline(text: str) -> str:
    if not _MARKUP.search(text):
        return text.strip()
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text.strip()


def is_prose(sentence: str) -> bool:
    """Returns whether a sentence without markup looks like English, as opposed to code, names, a URL or a license."""
    words = _WORD.findall(sentence)
    if len(words) < 4 or len(words) > 80 or _NEVER.search(sentence):
        return False
    if _CUT_OFF.search(sentence) or not (sentence[0].isupper() or sentence[-1] in ".!?"):
        return False
    tokens = sentence.split()
    code = sum(bool(_CODE_TOKEN.fullmatch(token)) for token in tokens)
    if code > 0.3 * len(tokens) or sentence.count("(") != sentence.count(")") or sentence.count('"') % 2:
        return False
    common = sum(word.lower() in _COMMON for word in words)
    if common < len(words) // 12 or (common == 0 and (code or sentence[-1] != ".")):
        return False
    return sum(c.isalpha() or c in " _." for c in sentence) >= 0.85 * len(sentence)


def _is_fragment(sentence: str) -> bool:
    """Returns whether a sentence with its markup starts in lower case but not with a name: "of the size."."""
    first, second = (sentence.split(maxsplit=2) + ["", ""])[:2]
    if not first[:1].islower() or _NAME.match(sentence) or re.search(r"\W.|_|\d|[A-Z]", first):
        return False
    return first in _COMMON or second not in _VERBS


def paragraphs(docstring: str) -> list[list[str]]:
    """Returns the prose of a docstring: paragraphs in order, each a list of sentences; empty if there is no prose."""
    lines = [_QUOTED.sub(r"\1", line[: MAX_LENGTH + 1]) for line in inspect.cleandoc(docstring).splitlines()]
    lines = [line if len(line) <= MAX_LENGTH else "" for line in lines]
    result: list[list[str]] = []
    current: list[str] = []
    start = 0  # The indentation of the first line of `current`.
    listed = False  # Whether `current` is an item of a list.

    def flush() -> None:
        text = " ".join(current)
        text = re.sub(r"(?<=[a-z])- (?=[a-z])", "-", text)  # a word hyphenated at the end of a line
        current.clear()
        parts = [part for part in sentences.split(text) if len(part) <= MAX_LENGTH]
        complete = [part for part in parts if listed or not _is_fragment(part)]
        kept = [sentence for sentence in map(_strip_inline, complete) if sentence and is_prose(sentence)]
        if result and not listed and kept and not kept[-1].endswith(_CLOSED):
            kept.pop()  # A title, or text that continues in code: only summaries may lack a period.
        if kept:
            result.append(kept)

    at = 0
    while at < len(lines):
        line, indent = lines[at].strip(), _indent(lines[at])
        if not line:
            flush()
            at += 1
        elif _FENCE.match(line):
            flush()
            mark = line[:3]
            if mark in line[3:]:  # All on one line.
                at += 1
                continue
            at = _until(lines, at + 1, lambda i, mark=mark: lines[i].strip().startswith(mark)) + 1
        elif line.startswith((">>>", "In [", "Traceback")):
            flush()
            at = _until(lines, at + 1, lambda i: not lines[i].strip())
        elif _underlined(lines, at):
            flush()
            at += 2
            if _SECTION_HEADING.fullmatch(line):
                at = _until(lines, at, lambda i: _underlined(lines, i))
        elif _SIMPLE_TABLE.fullmatch(line):
            flush()
            at = _until(
                lines,
                at + 1,
                lambda i: _SIMPLE_TABLE.fullmatch(lines[i].strip()) and not "".join(lines[i + 1 : i + 2]).strip(),
            )
            at += 1
        elif _ORNAMENT.fullmatch(line) or _TABLE_ROW.fullmatch(line) or _SIGNATURE.fullmatch(line):
            flush()
            at += 1
        elif _SECTION_LINE.fullmatch(line) and not (current and line[0].islower()):
            flush()
            at = _section_end(lines, at + 1, indent)
        elif _FIELD.match(line):
            flush()
            at = _block_end(lines, at + 1, indent)
        elif _DIRECTIVE.match(line):
            flush()
            kept = _KEPT_DIRECTIVE.fullmatch(line)
            if kept:
                current.append(kept[1])
                at += 1
            else:
                at = _block_end(lines, at + 1, indent)
        else:
            bullet = _BULLET.match(line)
            if bullet:
                flush()
                line = line[bullet.end() :]
            elif current and (
                indent < start
                or (_NAME.match(line) and current[-1].endswith((".", ":")))  # a list of names and what they mean
                or (indent > start and not listed and (current[-1].endswith(":") or _is_term(current)))
            ):
                flush()
            if not current:
                start, listed = indent, bool(bullet)
            current.append(line)
            at += 1
            if line.endswith("::"):
                flush()
                at = _block_end(lines, at, indent)
    flush()
    return result
