"""Read the columns of a text: what it is like is decided from its first lines, for every reader."""

import csv
import gzip
import io
import os
import re
import stat
from codecs import getincrementaldecoder
from collections import defaultdict
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from wals._columns import LARGEST, N_SAMPLED, NUMBER, choose_columns, dates, is_known, normalise
from wals._fast_text import Unusual, cut_blocks, fast_reader, read_blocks

__all__ = ["Table", "integers_if_all", "read_text", "text_parts"]

_HEAD = 1 << 16  # bytes that are looked at
_CHUNK = 1 << 8  # lines that are held at a time: more would keep the garbage collector busy
_DELIMITERS = {"\t": "tab", "::": "'::'", ";": "';'", "|": "'|'", ",": "','", " ": "blanks"}
# In texts of other suffixes, blanks belong to the ids.
_BLANKS = (".txt", ".dat", ".data")


@dataclass
class Table:
    """Columns of interactions: numbered ids, and whatever else was read.

    Attributes
    ----------
    rows, cols : ndarray of int32
        Of each interaction the numbers of user and item.
    row_keys, col_keys : list of str or ndarray of int
        The ids that the numbers stand for, each once.
    values, times : ndarray or None
        Of each interaction.
    notes : list of str
        What was guessed and should be said.
    names : tuple of str, default=None
        What the columns of user and item are called, where they have names.
    """

    rows: np.ndarray
    row_keys: list
    cols: np.ndarray
    col_keys: list
    values: np.ndarray | None
    times: np.ndarray | None
    notes: list
    names: tuple | None = None


@dataclass(frozen=True)
class _Dialect:
    encoding: str
    delimiter: str
    decimal: str
    skip: int  # lines before the first interaction
    width: int  # fields of a line
    width_line: int  # the line that has so many
    columns: dict  # of user, item, value, time the position, or None
    names: tuple | None  # of the columns of user and item
    time_type: str  # "integer", "number" (at least in the first lines) or "date"
    time_is_guessed: bool
    notes: list

    @property
    def quoted(self):
        return self.delimiter not in ("\t", "::")


def read_text(path, suffix, options, *, last):
    """Read a text.

    Parameters
    ----------
    path : str
        The file, compressed if its name ends in ".gz".
    suffix : str
        The suffix before that.
    options : dict
        What the user said: header, values, delimiter, decimal, and of each role the column.
    last : bool
        Whether the times are needed.
    """
    with _open(path) as file:
        dialect = _sniff(file, suffix, options, last)
    if (reader := fast_reader()) is not None:
        try:
            with _open(path) as file:
                return _table(*read_blocks(file, dialect, reader), dialect.notes, dialect.names)
        except Unusual:
            pass
    return _read_slowly(path, dialect)


def text_parts(path, suffix, options, *, last):
    """Yield a text part by part, each as a Table; parameters as of `read_text`.

    None tells that the parts before are to be forgotten: the text is unusual, and one part follows.
    Ids are strings, and `integers_if_all` of all of them is what `read_text` returns; those of that
    one part are as it returns them.
    """
    with _open(path) as file:
        dialect = _sniff(file, suffix, options, last)
    if (reader := fast_reader()) is not None:
        try:
            with _open(path) as file:
                for *ids, values, times in cut_blocks(file, dialect, reader):
                    (rows, row_keys), (cols, col_keys) = (_stripped(*side) for side in ids)
                    yield Table(rows, row_keys, cols, col_keys, values, times, dialect.notes)
            return
        except Unusual:
            yield None
    yield _read_slowly(path, dialect)


def _read_slowly(path, dialect):
    try:
        return _read_lines(path, dialect)
    except UnicodeError as error:
        line = _undecodable(path, dialect.encoding)
        name = "UTF-16" if dialect.encoding == "utf-16" else "UTF-8"
        raise ValueError(f"line {line}: is not {name} text") from error


def _open(path):
    if stat.S_ISFIFO(os.stat(path).st_mode):
        raise ValueError("is a pipe, and a text is read twice: write it to a file")
    return (gzip.open if path.lower().endswith(".gz") else open)(path, "rb")


def _table(rows, row_keys, cols, col_keys, values, times, notes, names):
    (rows, row_keys), (cols, col_keys) = _stripped(rows, row_keys), _stripped(cols, col_keys)
    row_keys, col_keys = integers_if_all(row_keys), integers_if_all(col_keys)
    return Table(rows, row_keys, cols, col_keys, values, times, notes, names)


def integers_if_all(ids):
    """Turn strings into an array of int64 if each is an integer in its usual form."""
    try:
        numbers = np.fromiter(map(int, ids), np.int64, len(ids))
    except (ValueError, OverflowError):
        return ids
    return numbers if list(map(str, numbers.tolist())) == ids else ids


def _stripped(codes, keys):
    """Strip ids of blanks, where that matters."""
    stripped = [key.strip() for key in keys]
    if stripped == keys:
        return codes, keys
    numbers = defaultdict(count().__next__)
    lookup = np.array([numbers[key] for key in stripped], dtype=np.int32)
    return lookup[codes], list(numbers)


# What the first lines tell


def _sniff(file, suffix, options, last):
    """Decide how a text is to be read, or refuse."""
    encoding, lines = _first_lines(file)
    delimiter, lines = _take_separator(lines)
    delimiter = options["delimiter"] or delimiter
    n_comments = next((i for i, (_, x) in enumerate(lines) if not x.startswith("#")), 0)
    comments, body = lines[:n_comments], lines[n_comments : n_comments + N_SAMPLED]
    if delimiter is None:
        delimiter = _find_delimiter([x for _, x in comments], [x for _, x in body], suffix)
    body = _take_comments(comments, body, delimiter)

    split = [(line, _fields(text, delimiter)) for line, text in body]
    width_line, first = split[0]
    if first is None:
        raise ValueError(
            f"line {width_line}: a quote is left open, or there is text after a closing one"
        )
    width = len(first)
    if width < 2:
        names = ", ".join(_DELIMITERS.values())
        looked = repr(delimiter) if options["delimiter"] else f"none of {names}"
        raise ValueError(
            f"line {width_line}: number of fields is {width}, not at least 2; {looked} cuts "
            f"{_clip(body[0][1])} and the lines after it into fields: say delimiter="
        )
    records = [fields for _, fields in split if fields and len(fields) == width]
    given = {role: options[role] for role in ("user", "item", "value", "time")}
    header = options["header"]
    if header is None:
        header = _is_header(records[0], records[1:], given)
    elif not header and any(isinstance(which, str) for which in given.values()):
        raise ValueError("header=False and columns by name contradict each other")
    names = records.pop(0) if header else None
    samples = [[record[place].strip() for record in records] for place in range(width)]
    columns, notes = choose_columns(names, samples, given, values=options["values"])
    skip = width_line if header else width_line - 1

    value, time = columns["value"], columns["time"]
    decimal = options["decimal"]
    if decimal is None:
        decimal = "." if value is None else _find_decimal(samples[value], delimiter)
    is_guessed = given["time"] is None and not last
    times = [] if time is None else samples[time]
    time_type = "date"
    if times and _is_number(times[0]):
        time_type = "integer" if all(map(_WHOLE.fullmatch, times)) else "number"
    return _Dialect(
        encoding,
        delimiter,
        decimal,
        skip,
        width,
        width_line,
        columns,
        names and tuple(names[columns[role]].strip() for role in ("user", "item")),
        time_type,
        is_guessed,
        notes,
    )


def _first_lines(file):
    """Return the encoding, and the first lines that are not empty with their numbers."""
    head = file.read(_HEAD)
    while head and not re.search(rb"[\r\n]", head) and (more := file.read(_HEAD)):
        head += more
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    if encoding == "utf-8-sig" and b"\0" in head:
        raise ValueError("is a binary file, not text (UTF-16 is read if it begins with its mark)")
    text = getincrementaldecoder(encoding)(errors="replace").decode(head)
    if "\0" in text:
        raise ValueError("is neither UTF-8 nor UTF-16 text")
    lines = io.IncrementalNewlineDecoder(None, translate=True).decode(text).split("\n")
    # The last line may have been cut.
    if len(lines) > 1 and (file.read(1) or not lines[-1].strip()):
        lines.pop()
    # Blanks or delimiters alone at the end are no line.
    while lines and not lines[-1].strip(" \t,;|:"):
        lines.pop()
    if not lines:
        raise ValueError("is empty")
    return encoding, [(number, line) for number, line in enumerate(lines, 1) if line]


def _take_separator(lines):
    """Return the delimiter that a first line like ``sep=;`` tells, or None, and the other lines."""
    if not (found := re.fullmatch(r'"?sep=(::|.?)"?', lines[0][1].strip(" "), re.IGNORECASE)):
        return None, lines
    if len(lines) == 1:
        raise ValueError("holds no interactions")
    # A tab may have been lost as a blank at the end.
    return found[1] or "\t", lines[1:]


def _take_comments(comments, body, delimiter):
    """Return the lines, after the names or data that only look like comments."""
    first = _fields(body[0][1], delimiter)
    while comments and first:
        fields = _fields(comments[-1][1], delimiter)
        names = fields is not None and _has_names(fields)
        if not fields or len(fields) != len(first):
            break
        if not names and re.match(r"#\s", comments[-1][1]):
            break
        body = [comments[-1], *body]
        comments = comments[:-1]
        if names:
            break
    return body


def _clip(text):
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _fields(line, delimiter):
    """Cut a line; None if its quotes are out of order."""
    try:
        return next(iter(_cut([line], delimiter)), [])
    except csv.Error:
        return None


def _cut(lines, delimiter):
    """Return a reader of lines: an iterator over their fields."""
    if delimiter == " ":
        lines = (line.replace("\t", " ").strip() for line in lines)
    elif delimiter == "\t":
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    elif len(delimiter) > 1:
        return _Cutter(lines, delimiter)
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)


class _Cutter:
    """What csv.reader is, for a delimiter of several characters and without quotes."""

    def __init__(self, lines, delimiter):
        self.lines, self.delimiter, self.line_num = iter(lines), delimiter, 0

    def __iter__(self):
        return self

    def __next__(self):
        line = next(self.lines).rstrip("\n")
        self.line_num += 1
        return line.split(self.delimiter) if line else []


def _has_names(fields):
    return any(is_known(name, "user", "item") for name in fields)


def _find_delimiter(comments, lines, suffix):
    """Return what cuts all lines into the same number of fields, at least two."""
    cut = {d: [_fields(line, d) for line in lines] for d in _DELIMITERS}
    n_fields = {
        d: lines[0].count(d) + 1 if fields[0] is None else len(fields[0])
        for d, fields in cut.items()
    }
    agree = {
        d: next(
            (i for i, x in enumerate(fields) if x is None or len(x) != n_fields[d]), len(fields)
        )
        for d, fields in cut.items()
    }
    candidates = [d for d in _DELIMITERS if d != " " or suffix in _BLANKS]
    valid = [d for d in _DELIMITERS if n_fields[d] > 1 and agree[d] == len(lines)]
    if not set(valid) & set(candidates):
        # Whatever goes wrong is found, and said, where the lines are read.
        return max(candidates, key=lambda d: (n_fields[d] > 1, agree[d], n_fields[d]))

    named = [d for d in valid if _has_names(cut[d][0])]
    named += [d for d in valid if comments and _has_names(_fields(comments[-1], d) or [])]
    valid = [d for d in named if d in candidates] or valid
    if "\t" in valid:
        return "\t"
    if " " in valid and len(valid) > 1:
        # Blanks belong to the ids, unless the commas look like decimal ones.
        others = any(re.search(r"(?<!\d),|,(?!\d)", line) for line in lines)
        if valid != [",", " "] or others or n_fields[","] > n_fields[" "]:
            valid.remove(" ")
        elif n_fields[" "] > n_fields[","] and " " in candidates:
            valid = [" "]
        else:
            raise _ambiguous(",", " ", lines[0])
    best = max(valid, key=lambda d: (d == "::", n_fields[d]))
    for other in valid:
        # An id that holds another delimiter, in every line, may be two fields.
        in_ids = any(other in field for fields in cut[best] for field in fields[:2])
        if other != best and (n_fields[other] == n_fields[best] or in_ids):
            raise _ambiguous(best, other, lines[0])
    return best


def _ambiguous(one, other, line):
    return ValueError(
        f"both {_DELIMITERS[one]} and {_DELIMITERS[other]} may separate the fields of "
        f"{_clip(line)}: say delimiter={one!r} or delimiter={other!r}"
    )


def _is_header(first, rest, given):
    """Tell whether the first line names the columns."""
    if asked := [which for which in given.values() if isinstance(which, str)]:
        names = {form(name) for name in first for form in (str.strip, normalise)}
        if all(which.strip() in names or normalise(which) in names for which in asked):
            return True
        asked = " and ".join(map(repr, asked))
        raise ValueError(f"the first line, {_clip(', '.join(first))}, does not name {asked}")
    columns = [[record[place].strip() for record in rest] for place in range(len(first))]
    if {"user", "item"} <= {role for role in ("user", "item") for x in first if is_known(x, role)}:
        return True
    if not first[0].strip() and rest and all(columns[0]):
        return not any(map(_is_number, first))  # an index
    for place, (name, fields) in enumerate(zip(first, columns, strict=True)):
        if _is_number(name) or (place and not name.strip() and any(fields)):
            return False
    for name, fields in zip(first, columns, strict=True):
        # A word that comes again is one of the data.
        if is_known(name, "user", "item") and not any(is_known(f, "user", "item") for f in fields):
            return True
        looks_like_a_name = re.match(r"[^\W\d]", name.strip("\"'# ")) and not re.search(
            r"\d{3}|^(nan?|inf(inity)?|null|none|true|false)$", name.strip(), re.IGNORECASE
        )
        if looks_like_a_name and fields and all(map(_PLAIN.fullmatch, fields)):
            return True
    return False


# No exponents: some product codes look like them.
_PLAIN = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)")
_WHOLE = re.compile(r"[+-]?\d+")


def _is_number(field):
    return bool(NUMBER.fullmatch(field.strip()))


def _find_decimal(fields, delimiter):
    """Return the decimal mark of values."""
    commas = [field for field in fields if "," in field]
    if delimiter == "," or not commas or any("." in field for field in fields):
        return "."
    found = [re.fullmatch(r"[+-]?(\d*),(\d+)([eE][+-]?\d+)?", field) for field in commas]
    if not all(found):
        return "."
    if all(len(x[2]) == 3 and x[1].strip("0") and not x[3] for x in found):
        raise ValueError(
            f"the values may have thousands or decimals after the comma, as in {commas[0]!r}: say "
            "decimal=',' or decimal='.'"
        )
    return ","


# Reading line by line


def _read_lines(path, dialect):
    """Read with the standard library; whatever is wrong is told with its line."""
    columns = dialect.columns
    # Numbers the ids in order of appearance: a new key gets the next number.
    codes = defaultdict(count().__next__), defaultdict(count().__next__)
    parts = [], [], [], []
    notes = list(dialect.notes)
    with _open(path) as file:
        # Every kind of line end becomes "\n".
        lines = io.TextIOWrapper(file, encoding=dialect.encoding, newline=None)
        for numbers, records in _chunks(_records(lines, dialect)):
            try:
                if set(map(len, records)) != {dialect.width}:
                    raise ValueError("fields")
                by_column = list(zip(*records, strict=True))
                ids = [[x.strip() for x in by_column[columns[role]]] for role in ("user", "item")]
                if not (all(ids[0]) and all(ids[1])):
                    raise ValueError("ids")
                values = times = None
                if columns["value"] is not None:
                    values = _numbers(by_column[columns["value"]], dialect.decimal)
                    # Written so that NaN fails, too.
                    if not (np.abs(values) <= LARGEST).all():
                        raise ValueError("values")
            except ValueError:
                _explain(numbers, records, dialect)
                raise
            if columns["time"] is not None:
                try:
                    times = _times(by_column[columns["time"]], dialect.time_type)
                except ValueError:
                    place = columns["time"]
                    said = _bad_time(numbers, by_column[place], dialect.time_type)
                    if not dialect.time_is_guessed:
                        raise ValueError(said) from None
                    notes.append(f"{said}; the times are left out")
                    columns = columns | {"time": None}
                    parts[3].clear()
            for part, code, keys in zip(parts, codes, ids, strict=False):
                part.append(np.fromiter(map(code.__getitem__, keys), np.int32, len(keys)))
            for part, column in ((parts[2], values), (parts[3], times)):
                if column is not None:
                    part.append(column)
    if not parts[0]:
        raise ValueError("holds no interactions")
    rows, cols, values, times = (np.concatenate(part) if part else None for part in parts)
    ids = rows, list(codes[0]), cols, list(codes[1])
    return _table(*ids, values, times, notes, dialect.names)


def _records(lines, dialect):
    """Yield (line number, fields) of the lines that are not empty."""
    for _ in islice(lines, dialect.skip):
        pass
    reader, done = _cut(lines, dialect.delimiter), 0
    try:
        for record in reader:
            if reader.line_num > done + 1:
                raise csv.Error("unexpected end of data")
            done = reader.line_num
            if record:
                yield dialect.skip + done, record
    except csv.Error as error:
        line, said = dialect.skip + done + 1, str(error)
        if reader.line_num > done + 1 or "unexpected end" in said:
            said = "a quote is left open (or a line ends within quotes)"
        elif "expected after" in said:
            said = "there is text after a closing quote"
        raise ValueError(f"line {line}: {said}") from error


def _chunks(records):
    """Yield lists of line numbers and of records, up to the last that is not blank."""
    failure = None
    while failure is None:
        chunk = []
        try:
            chunk.extend(islice(records, _CHUNK))
        except (ValueError, UnicodeError) as error:
            failure = error
        if not chunk:
            break
        if _is_blank(chunk[-1][1]):
            # Are all the others blank, too?
            try:
                chunk.extend(islice((x for x in records if not _is_blank(x[1])), 1))
            except (ValueError, UnicodeError) as error:
                failure = error
            while failure is None and chunk and _is_blank(chunk[-1][1]):
                chunk.pop()
        if chunk:
            numbers, fields = zip(*chunk, strict=True)
            yield numbers, fields
    if failure is not None:
        raise failure


def _is_blank(record):
    return not "".join(record).strip()


def _numbers(fields, decimal):
    if decimal == ",":
        if any("." in field for field in fields):
            raise ValueError("two decimal marks")
        fields = [field.replace(",", ".") for field in fields]
    return np.fromiter(map(float, fields), float, len(fields))


def _times(fields, kind):
    """Return times as integers, floats or datetime64, in this order."""
    if kind == "date":
        return dates(fields)
    try:
        return np.fromiter(map(int, fields), np.int64, len(fields))
    except (ValueError, OverflowError):
        times = np.fromiter(map(float, fields), float, len(fields))
        if not np.isfinite(times).all():
            raise ValueError("not finite") from None
        return times


def _bad_time(numbers, fields, kind):
    def is_bad(field):
        try:
            _times([field], kind)
        except ValueError:
            return True
        return False

    line, field = next(x for x in zip(numbers, fields, strict=True) if is_bad(x[1]))
    what = "a date as in 2024-05-31 or 2024-05-31T23:59:59" if kind == "date" else "a number"
    return f"line {line}: time {field!r} is not {what}"


def _explain(numbers, records, dialect):
    """Raise the error of the first line that has one."""
    place = dialect.columns["value"]
    for line, record in zip(numbers, records, strict=True):
        if len(record) != dialect.width:
            raise ValueError(
                f"line {line}: number of fields is {len(record)}, not {dialect.width} as in line "
                f"{dialect.width_line}"
            )
        user, item = (record[dialect.columns[role]].strip() for role in ("user", "item"))
        if not (user and item):
            raise ValueError(f"line {line}: the {'item' if user else 'user'} is missing")
        if place is None:
            continue
        try:
            value = _numbers([record[place]], dialect.decimal)[0]
        except ValueError:
            said = f"line {line}: value {record[place]!r} is not a number"
            if re.fullmatch(r"\s*[+-]?\d*,\d+\s*", record[place]) and dialect.decimal == ".":
                said += "; if it has a decimal comma, say decimal=','"
            raise ValueError(said) from None
        if not -LARGEST <= value <= LARGEST:
            raise ValueError(f"line {line}: value {record[place]!r} is not a finite float32")


def _undecodable(path, encoding):
    """Return the number of the first line that is not text of the encoding."""
    with _open(path) as file:
        text = file.read()
    try:
        text.decode(encoding)
    except UnicodeDecodeError as error:
        text = text[: error.start].decode(encoding, errors="ignore")
    return len(re.findall("\r\n|\r|\n", text)) + 1
