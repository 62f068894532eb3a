"""Decide which columns of a table are the user, the item, the value and the time."""

import re
import warnings
from datetime import UTC, datetime
from itertools import combinations, takewhile

import numpy as np

__all__ = [
    "LARGEST",
    "NUMBER",
    "N_SAMPLED",
    "choose_columns",
    "dates",
    "is_known",
    "is_time",
    "normalise",
]

# Names without blanks, "_", "-" and "."; of one line all mean the same, and the first line that a
# table has a name of decides. Every name of a user or an item may have "id" or "s" after it.
_NAMES = {
    "user": (
        "user uid",
        "customer client buyer visitor member account reviewer person subscriber shopper consumer "
        "listener reader viewer player patient student learner household guest rater",
        "session username",
    ),
    "item": (
        "item iid",
        "product sku asin parentasin movie film book isbn song track artist album article "
        "stockcode venue poi business location place document doc video url page website game app "
        "course recipe news hotel restaurant beer anime listing offer podcast show",
        "itemname productname movietitle artistname trackname songname booktitle",
    ),
    "value": (
        "value values val rating ratings score scores count counts times plays playcount listens "
        "clicks views visits purchases quantity qty weight weights stars star overall confidence "
        "amount strength frequency freq preference pref label feedback bookrating starrating "
        "userrating reviewscore reviewrating nplays totalplays playtime hours units like liked",
    ),
    "time": (
        "timestamp timestamps time ts datetime unixreviewtime unixtime unixtimestamp epoch",
        "date day reviewtime reviewdate createdat updatedat eventtime eventdate eventtimestamp "
        "visittime checkintime ratingtimestamp ratingtime ratingdate ratedat playedat invoicedate "
        "orderdate ordertime purchasedate purchasetime transactiondate timestampms when",
    ),
}
_KNOWN = {
    name + ending: (role, tier)
    for role, tiers in _NAMES.items()
    for tier, names in enumerate(tiers)
    for name in names.split()
    for ending in (("", "s", "id", "ids") if role in ("user", "item") else ("",))
}

# What pandas and others call the numbers of the rows. Where it stands first, it is no data; what
# pandas writes to Parquet stands last.
_INDEX_NAME = re.compile(r"|unnamed:\d+|index|level\d|rownames?|indexlevel\d+")
_PARQUET_INDEX_NAME = re.compile(r"indexlevel\d+")

_MOST = 3  # columns beside user, item and time of which the first may be guessed to be the value
N_SAMPLED = 200  # rows that the choice is made from
LARGEST = float(np.finfo(np.float32).max)  # value that is read
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
# What is meant for a number, if not written as one: "1.000,5". Bools are as Parquet has them.
_VALUE = re.compile(rf"{NUMBER.pattern}|[+-]?\d[\d.,]*|true|false")
_DATE = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?)?( ?(Z|UTC|[+-]\d\d(:?\d\d)?))?"
)
_COMPACT_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_FIRST_YEAR, _LAST_YEAR = 631_152_000, 4_102_444_800  # 1990 and 2100, in seconds since 1970
_SAY = "say user= and item="


def normalise(name):
    """Return a name as the table of known names has it: ``"User_ID:token"`` is ``"userid"``."""
    name = name.strip().strip("\"'").lstrip("#").strip().lower()
    return re.sub(r"[\s_.-]", "", re.sub(r"(?<=\w):[a-z_]+$", "", name))


def is_known(name, *roles):
    """Tell whether a name is that of one of the roles."""
    return _KNOWN.get(normalise(name), (None,))[0] in roles


def is_time(fields):
    """Tell whether all fields are dates or seconds (milli-, micro-, nanoseconds) since 1970."""
    forms = _DATE.fullmatch, _COMPACT_DATE.fullmatch, _is_epoch
    return bool(fields) and any(all(map(form, fields)) for form in forms)


def dates(texts):
    """Return dates as written by ISO 8601 as datetime64, those of a time zone in UTC."""
    # NumPy would also take "", "now" and the like.
    if not all(text[:1].isdigit() for text in map(str.strip, texts)):
        raise ValueError("not a date")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of NumPy, about time zones
            return np.array([text.strip() for text in texts], dtype="datetime64[us]")
    except (ValueError, UserWarning, DeprecationWarning):
        found = (datetime.fromisoformat(text.strip().replace(" UTC", "Z")) for text in texts)
        found = [x.astimezone(UTC).replace(tzinfo=None) if x.tzinfo else x for x in found]
        return np.array(found, dtype="datetime64[us]")


def _is_epoch(field):
    if not re.fullmatch(r"\d{9,19}(\.\d*)?", field):
        return False
    return any(_FIRST_YEAR <= float(field) / unit < _LAST_YEAR for unit in (1, 1e3, 1e6, 1e9))


def _counts(fields, start):
    return all(field == str(start + place) for place, field in enumerate(fields))


def choose_columns(names, samples, given, *, values=True):
    """Decide which column is what, or refuse.

    Parameters
    ----------
    names : list of str or None
        Names of the columns, if they have names.
    samples : list of list of str
        The first fields of every column.
    given : dict
        Of "user", "item", "value" and "time" the name or the position that was asked for, or None.
    values : bool
        False leaves the value out.

    Returns
    -------
    chosen : dict
        Of each of the four the position, or None.
    notes : list of str
        What was guessed and should be said.
    """
    width = len(samples)
    if width < 2:
        raise ValueError(f"number of columns is {width}, not at least 2")
    if given["value"] is not None and not values:
        raise ValueError("value= and values=False contradict each other")
    chosen = {role: _locate(role, which, names, width) for role, which in given.items()}
    for role, other in combinations(chosen, 2):
        if chosen[role] is not None and chosen[role] == chosen[other]:
            raise ValueError(f"{role}= and {other}= are the same column")
    known = [_KNOWN.get(normalise(name), (None, 0)) for name in names or [""] * width]
    forms = [normalise(name) for name in names or []]
    notes = []

    def label(place):
        # What can be said for a column: a name that several have tells none.
        return (
            repr(names[place].strip()) if names and forms.count(forms[place]) == 1 else str(place)
        )

    def rest(*, unknown=True):
        """Return the columns that have no role yet, and no name of one."""
        return [
            place
            for place in range(width)
            if place not in chosen.values()
            and place not in index
            and not (unknown and known[place][0])
        ]

    index = set(range(len(list(takewhile(_INDEX_NAME.fullmatch, forms)))))
    index |= {place for place, form in enumerate(forms) if _PARQUET_INDEX_NAME.fullmatch(form)}
    index -= set(chosen.values())
    by_name = {role for role in ("user", "item") if isinstance(given[role], str)}
    for role in ("user", "item", "value", "time"):
        if chosen[role] is None and (values or role != "value"):
            found = _best(role, known, names, rest(unknown=False))
            if len(found) > 1 and role == "time":
                notes.append(
                    f"the columns {_listed(map(label, found))} may both be the time, and neither "
                    f"is read as such: say time={label(found[0])}"
                )
            elif len(found) > 1:
                raise ValueError(
                    f"the columns {_listed(map(label, found))} may both be the {role}: say "
                    f"{role}={label(found[0])} or {role}={label(found[1])}"
                )
            elif found:
                chosen[role] = found[0]
                by_name |= {role} & {"user", "item"}

    for place in sorted(index):
        sure = {"user", "item"} <= {role for role, at in chosen.items() if at is not None}
        if not (sure or (_counts(samples[place], 0) and len(rest()) > 1)):
            raise ValueError(f"column {label(place)} may be an index of the rows: {_SAY}")
        notes.append(f"column {label(place)} is taken for an index of the rows, and skipped")

    lacking = [role for role in ("user", "item") if chosen[role] is None]
    free = rest()
    if len(free) < len(lacking):
        columns = _listed(label(place) for place in range(width))
        raise ValueError(
            f"no column is known to be the {' or the '.join(lacking)} among {columns}: say "
            + " and ".join(f"{role}=" for role in lacking)
        )
    if len(lacking) == 1 and not by_name and width > 2:
        raise ValueError(f"which column is the {lacking[0]} is not clear: say {lacking[0]}=, too")
    if lacking and width > 2:
        _refuse_count(samples[free[0]], label(free[0]), width)
        for place in free[: len(lacking)]:
            if is_time(samples[place]):
                raise ValueError(f"column {label(place)} may be the time: {_SAY}")
    for role, place in zip(lacking, free, strict=False):
        chosen[role] = place

    # A guess by position: the value comes right after user and item.
    spot = max(chosen["user"], chosen["item"]) + 1
    if chosen["time"] is None:
        times = [place for place in rest() if is_time(samples[place])]
        if times and given["value"] is None:
            chosen["time"] = times[0]
            if values and (by_name or times[0] == spot):
                notes.append(
                    f"column {label(times[0])} is taken for the time; if it is the value, say "
                    f"value={label(times[0])}"
                )
    if values and chosen["value"] is None:
        free = rest()
        if lacking and len(free) > _MOST:
            raise ValueError(f"what the {width} columns are is not clear: {_SAY}, and value=")
        # Words in all lines are no values.
        may_be = spot in free and (not samples[spot] or any(map(_VALUE.fullmatch, samples[spot])))
        if not by_name and may_be:
            chosen["value"] = spot
        elif free:
            may = f"column {label(free[0])} may be the value or not"
            raise ValueError(f"{may}: say value={label(free[0])} or values=False")
    return chosen, notes


def _locate(role, which, names, width):
    """Return the position of the column that was asked for."""
    if which is None:
        return None
    if isinstance(which, str):
        if names is None:
            raise ValueError(
                f"{role}={which!r}: no line names the columns: give positions, from 0, or say "
                "header=True"
            )
        for form in (str.strip, normalise):
            found = [place for place, name in enumerate(names) if form(name) == form(which)]
            if len(found) == 1:
                return found[0]
            if found:
                raise ValueError(f"{role}={which!r}: {len(found)} columns have this name")
        raise ValueError(f"{role}={which!r}: the columns are {_listed(map(repr, names))}")
    if not 0 <= which < width:
        raise ValueError(f"{role}={which}: positions go from 0 to {width - 1}")
    return int(which)


def _best(role, known, names, places):
    """Return the columns whose names stand highest for a role; of several the one with "id"."""
    places = [place for place in places if known[place][0] == role]
    tier = min((known[place][1] for place in places), default=0)
    places = [place for place in places if known[place][1] == tier]
    ids = [place for place in places if normalise(names[place]).endswith("id")]
    return ids if len(ids) == 1 else places


def _refuse_count(fields, label, width):
    """Refuse a first column that counts the lines, and so may be no user."""
    n = len(fields)
    if (_counts(fields, 0) and n >= (3 if width > 3 else 10)) or (_counts(fields, 1) and n >= 10):
        raise ValueError(
            f"column {label} counts the lines from {fields[0]}, and may be an index: {_SAY}"
        )


def _listed(labels):
    return ", ".join(labels)
