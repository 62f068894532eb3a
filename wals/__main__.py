"""Command line: factorise a file of interactions, and show what that is worth."""

import argparse
import inspect
import logging
import math
import os
import re
import sys
import time
import warnings
from contextlib import contextmanager, suppress
from textwrap import fill

import joblib
import numpy as np
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.utils import gen_batches

from wals import WALS, load, storage
from wals._callback_support import ITERATION
from wals._output import check_output, table_writer, text_writer
from wals._precompile import precompile
from wals._progress import Progress
from wals._tables import names_of_ids
from wals.datasets import load_msweb
from wals.interactions import Interactions, read_interactions
from wals.metrics import ndcg_at_k, recall_at_k
from wals.model_selection import _rank, split_entries
from wals.weights import power_law

_PROG = "python -m wals"
_WIDTH = 80
_HELD_OUT = 0.2  # share of the entries of a test row
_MOST_TEST_ROWS = 10_000
_K = 20
_N_SHOWN, _N_RECOMMENDED = 3, 5
_BLOCK = 2**18  # recommendations that are held at once


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, default=None
        The arguments; None takes those of the process.

    Returns
    -------
    int
        Exit code: 0, or 2 after a line on stderr about a bad file or option, 130 if interrupted,
        141 if nobody reads the output any more.
    """
    argv = sys.argv[1:] if argv is None else [*map(os.fspath, argv)]
    if argv[:1] == ["recommend"]:
        arguments, run = _recommend_parser().parse_args(argv[1:]), _answer
    else:
        arguments, run = _parser().parse_args(argv), _run
    try:
        with _lenient(sys.stdout):
            run(arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output (head, say) is gone: let the flush at exit go nowhere, silently.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, ImportError, OSError, MemoryError) as error:
        message = _as_options(" ".join(str(error).split()))
        print(f"{_PROG}: error: {message}", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser():
    parser = _Parser(
        prog=_PROG,
        usage=f"{_PROG} [FILE] [options]\n       {_PROG} recommend MODEL FILE [options]",
        description=(
            "Factorise a matrix of interactions (who bought, read or visited what) by weighted "
            "alternating least squares. Most rows are trained on. Of the others, the test rows, "
            f"{_HELD_OUT:.0%} of the entries are held out: recommendations made from the rest "
            "should find them again, and do so better than plain popularity. Where the file has "
            f"times, the split is one in time: the last {_HELD_OUT:.0%} of all entries, or what "
            "comes nearest to that from one point in time on, are not trained on, and the test "
            "rows are some with entries before and after it."
        ),
        epilog="The first run on a machine compiles, for half a minute or less; later runs "
        "start at once.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=80),
        add_help=False,
        allow_abbrev=False,
    )

    group = parser.add_argument_group("data")
    group.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="user, item and perhaps a value and a time per line: .csv, .tsv, .txt, .dat, .inter "
        "and others, each also with .gz; or a .parquet table with these columns, or a folder of "
        "such, or a .npz of a SciPy CSR matrix. Without a FILE: the Anonymous Microsoft Web Data "
        "that comes with the package",
    )
    _add_columns(group)
    group.add_argument(
        "--storage",
        metavar="DIR",
        help="write the matrix to a new folder and train from there, for what is larger than "
        "memory; without a FILE, train from what is there. Every row is trained on",
    )

    # An option left out is not passed on, so that the defaults are the estimator's own.
    signature = inspect.signature(WALS).parameters

    def add(flag, parameter, text, **settings):
        default = signature[parameter].default
        if default is not None and default is not False:
            text = f"{text} (default: {default})"
        group.add_argument(flag, dest=parameter, default=argparse.SUPPRESS, help=text, **settings)

    integer = {"type": int, "metavar": "N"}
    real = {"type": float, "metavar": "X"}
    group = parser.add_argument_group("model")
    add("--components", "n_components", "size of the factors", **integer)
    add("--unobserved-weight", "unobserved_weight", "weight of every entry, stored or not", **real)
    add(
        "--observed-weight",
        "observed_weight",
        "weight that stored entries have on top of that",
        **real,
    )
    for side, name in (("row", "row"), ("col", "column")):
        group.add_argument(
            f"--{side}-exponent",
            help=f"multiply it by a weight of the {name} proportional to entries**X; -0.5 is "
            "worth trying (default: no such weight)",
            **real,
        )
    add(
        "--implicit",
        "implicit",
        "values are confidences, not targets: the target is 1, the value multiplies the weight",
        action="store_true",
    )
    add("--regularization", "regularization", "strength of the L2 penalty", **real)
    add(
        "--regularization-exponent",
        "regularization_exponent",
        "power of an item's total weight that its penalty is proportional to: 0 is plain L2, 1 "
        "regularizes in proportion to the data",
        **real,
    )
    add(
        "--regularization-by",
        "regularization_by",
        "weight, or count: that power of the number of its positive entries instead",
        metavar="NAME",
    )

    group = parser.add_argument_group("training")
    add("--iterations", "max_iter", "iterations at most", **integer)
    add("--tol", "tol", "stop when an iteration lowers the loss by less than this share", **real)
    add("--solver", "solver", "auto, exact or cg", metavar="NAME")
    add("--jobs", "n_jobs", "threads (default: as many as allowed)", **integer)
    group.add_argument("--seed", default=0, help="of start and split (default: 0)", **integer)

    group = parser.add_argument_group("test")
    group.add_argument(
        "--split",
        choices=("rows", "time"),
        metavar="NAME",
        help="rows: other rows are trained on than those that are tested, whatever the times; "
        "time: what comes later is not trained on, by whatever row, so that nothing tells of the "
        "future (default: time if the file has times)",
    )
    group.add_argument(
        "--test-rows",
        help="number of test rows; 0 trains on all there is (default: a tenth, and of a split in "
        f"time all; at most {_MOST_TEST_ROWS})",
        **integer,
    )

    group = parser.add_argument_group("output")
    group.add_argument(
        "--recommend",
        metavar="TABLE",
        help="write the best items of every user to a .csv or .parquet: their ids, in columns "
        "called as in FILE, score, and rank from 1; without the items that a user has. All of "
        "a user's entries count, also those that were held out for the test; after a split in "
        "time the model is trained anew on all of them",
    )
    group.add_argument("--top", help=f"items of a user to write (default: {_K})", **integer)
    group.add_argument(
        "--output",
        metavar="MODEL",
        help="save the model, for instance as a.wals, which wals.load reads; a .joblib is saved "
        "with joblib. row_ids_ (of the rows trained on) and col_ids_ tell what its row_factors_ "
        "and col_factors_ are of. After a split in time it is trained anew, on all entries",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="do no more than to compile all that float32 and float64 data need, and say where "
        "the machine code is kept",
    )
    group.add_argument(
        "--quiet", action="store_true", help="no line per sweep, and no progress bar"
    )
    group.add_argument("--help", "-h", action="help", help="print this and exit")
    return parser


def _add_columns(group):
    """Add the options that say which column is what, and how a text is cut."""
    for role in ("user", "item", "value", "time"):
        group.add_argument(
            f"--{role}",
            type=_column,
            metavar="COLUMN",
            help=f"column of the {role}, by name or by position from 0 (default: found out)",
        )
    group.add_argument(
        "--delimiter",
        type=lambda text: {r"\t": "\t", "tab": "\t"}.get(text, text),
        metavar="TEXT",
        help="what separates the fields of a text; tab stands for itself, a blank for any blanks "
        "(default: found out)",
    )
    group.add_argument(
        "--decimal", metavar="MARK", help="decimal mark of the values, . or , (default: found out)"
    )
    group.add_argument(
        "--aggregate",
        metavar="NAME",
        help="what becomes of a pair that is there several times: sum, mean, max, last or count "
        "of its values (default: sum)",
    )
    group.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line of a text names the columns (default: detected)",
    )
    group.add_argument("--ignore-values", action="store_true", help="let every interaction count 1")


def _recommend_parser():
    parser = _Parser(
        prog=f"{_PROG} recommend",
        usage=f"{_PROG} recommend MODEL FILE [options]",
        description=(
            "Recommend items to users by what a file says of them. They need not be those that the "
            "model was trained on: each is projected by its interactions in the file, which are "
            "not recommended. Items that the model does not know are left out."
        ),
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=80),
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model", metavar="MODEL", help=f"what `{_PROG} ... --output MODEL` has saved, as .wals"
    )
    group = parser.add_argument_group("data")
    group.add_argument(
        "file", metavar="FILE", help=f"their interactions, in a file like that of {_PROG}"
    )
    _add_columns(group)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        metavar="TABLE",
        help="a .csv or .parquet (default: as CSV on standard output). Columns are called as in "
        "FILE; besides ids there are score, and rank from 1",
    )
    group.add_argument(
        "--top", default=_K, type=int, metavar="N", help=f"items of a user (default: {_K})"
    )
    group.add_argument(
        "--jobs", type=int, metavar="N", help="threads (default: as many as allowed)"
    )
    group.add_argument("--quiet", action="store_true", help="no notes, and no progress bar")
    group.add_argument("--help", "-h", action="help", help="print this and exit")
    return parser


def _as_options(message):
    """Turn the parameters that a message ends with the advice to say into options."""
    start, say, advice = message.rpartition(" say ")
    if not say:
        return message
    advice = advice.replace("values=False", "--ignore-values").replace("header=True", "--header")
    names = "user|item|value|time|delimiter|decimal"
    advice = re.sub(rf"\b({names})=(?=[^\s,])", r"--\1 ", advice)
    return start + say + re.sub(rf"\b({names})=", r"--\1", advice)


def _column(text):
    """Return a position if the text is one, else the name that it is."""
    return int(text) if text.isascii() and text.isdigit() else text


def _run(arguments):
    """Do what the arguments say, stage by stage."""
    # Long compilations are told of.
    logging.getLogger("wals").addHandler(_Notes())
    if arguments.compile:
        for dtype in ("float32", "float64"):
            _compile(dtype, {}, always=True)
        return
    # Whatever can be wrong is found before a long training, not after it.
    model = _make_model(arguments)
    row_weights = _power_law(arguments, "row_exponent")
    if arguments.storage is not None and (arguments.test_rows or arguments.split):
        option = "--test-rows" if arguments.test_rows else "--split"
        raise ValueError(f"{option}: with --storage, every row is trained on")
    if (arguments.test_rows or 0) < 0:
        raise ValueError(f"--test-rows must not be negative, got {arguments.test_rows}")
    _check_outputs(arguments)

    seconds = {}
    with _timed("read", seconds), _caught() as notes:
        content = _read(arguments)
        times = _times(content, arguments.split)
    X, row_ids, col_ids = content
    n_rows, n_columns = X.shape
    source = arguments.file or arguments.storage
    _say("Data", source or "Anonymous Microsoft Web Data, embedded in the package")
    for note in notes:
        _say("Note", _as_options(note))
    density = X.nnz / (n_rows * n_columns)
    _say("", f"{n_rows:,} x {n_columns:,} matrix, {X.nnz:,} stored ({density:.2%})")

    with _timed("split", seconds):
        text, start, test, train, seen, held_out = _divide(X, times, arguments)
    _say("Split", text)

    settings = model.get_params(deep=False) | {"row_weights": row_weights, "verbose": None}
    settings = [f"{k}={v!r}" for k, v in settings.items() if v is not None and v is not False]
    _say("Model", ", ".join(settings))
    _compile(train.dtype, seconds)
    print()
    # Rows that are tested are trained on as well, by what came before, if the split is in time.
    untrained = test if times is None else test[:0]
    weights = untrained_weights = None
    if row_weights is not None:
        counts = np.diff(train.indptr)
        if untrained.size:
            counts = np.concatenate([counts, np.diff(seen.indptr)])
        weights, untrained_weights = np.split(row_weights(counts), [train.shape[0]])
    _train("train", model, train, weights, seconds, quiet=arguments.quiet)
    final = model
    if arguments.output is not None or arguments.recommend is not None:
        weights = None if row_weights is None else row_weights(np.diff(X.indptr))
        if times is not None and test.size:
            print()
            _say("Note", "trained anew, on all entries, for what is written")
            final = clone(model)
            _train("train anew", final, X, weights, seconds, quiet=arguments.quiet)
    if arguments.output is not None:
        final.row_ids_, final.col_ids_ = np.delete(row_ids, untrained), col_ids
        final.set_params(verbose=0)
        with _timed("save", seconds):
            if os.path.splitext(arguments.output)[1].lower() == ".joblib":
                joblib.dump(final, arguments.output)
            else:
                final.save(arguments.output)
        size = os.path.getsize(arguments.output) / 1e6
        _say("Saved", f"{arguments.output}, {size:,.1f} MB, ids in row_ids_ and col_ids_")
    if arguments.recommend is not None:
        n = min(arguments.top or _K, n_columns)
        with _timed("recommend", seconds), table_writer(arguments.recommend) as write:
            n_written = _write_best(final, weights, content, n, write, quiet=arguments.quiet)
        size = os.path.getsize(arguments.recommend) / 1e6
        text = f"{arguments.recommend}, {size:,.1f} MB, {n_written:,} recommendations, {n} at most "
        _say("Written", text + f"to each of {n_rows:,} rows")
    print()

    if test.size:
        with _timed("fold in", seconds):
            if untrained.size:
                factors = model.transform(seen, weights=untrained_weights)
            else:
                factors = model.row_factors_[test]
        held_out = _assess(model, factors, X, train, seen, held_out, seconds)
    else:
        needed = "two rows with entries, one of them with two or more"
        if times is not None:
            needed = f"a row with entries before {start} and later ones"
        why = f"for want of a test row: it takes {needed}, and --test-rows other than 0"
        if arguments.storage is not None:
            why = "since every row is trained on"
        _say("Quality", f"not measured, {why}")
        test, seen, factors = np.arange(n_rows), train, model.row_factors_
        held_out = csr_array(train.shape, dtype=train.dtype)
    print()
    _show(model, factors, seen, held_out, row_ids[test], col_ids)
    seconds["total"] = sum(seconds.values())
    for place, (stage, duration) in enumerate(seconds.items()):
        _say("" if place else "Time", f"{stage:<10}{duration:9.2f} s")


def _answer(arguments):
    """Recommend items to the users of a file."""
    if arguments.top < 1:
        raise ValueError(f"--top must be at least 1, got {arguments.top}")
    if arguments.output is not None:
        _check_table("--output", arguments.output, arguments.file, arguments.model)
    model = load(arguments.model, mmap=True)
    if not isinstance(model, WALS) or not hasattr(model, "col_ids_"):
        raise ValueError(
            f"{arguments.model}: has no ids of columns, as a model has that {_PROG} saved; for "
            "others, and a Recommender, see wals.load"
        )
    model.set_params(**({} if arguments.jobs is None else {"n_jobs": arguments.jobs}))
    model._validate_params()
    with _caught() as notes:
        content = read_interactions(
            arguments.file, col_ids=model.col_ids_, **_reading_options(arguments)
        )
    content.X.data = content.X.data.astype(model.components_.dtype)
    for note in () if arguments.quiet else notes:
        print(f"{_PROG}: note: {_as_options(note)}", file=sys.stderr)
    out = table_writer(arguments.output) if arguments.output else text_writer(sys.stdout)
    with out as write:
        _write_best(model, None, content, arguments.top, write, quiet=arguments.quiet)


def _compile(dtype, seconds, *, always=False):
    """Compile what data of a precision needs, and tell of it if it took time."""
    with _timed("compile", seconds), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled, folder = precompile(dtype)
    if compiled or always:
        did = f"for {dtype} on this processor, {compiled:.2f} s"
        did = did if compiled else f"for {dtype}: nothing, that was done before"
        _say("Compiled", f"{did}; kept in {folder}" if folder else did)
    for message in dict.fromkeys(str(w.message) for w in caught if w.category is RuntimeWarning):
        _say("Note", message)


def _make_model(arguments):
    options = vars(arguments)
    parameters = {name: options[name] for name in WALS().get_params() if name in options}
    if arguments.col_exponent is not None:
        parameters["col_weights"] = _power_law(arguments, "col_exponent")
    parameters["random_state"] = arguments.seed
    parameters["verbose"] = 0 if arguments.quiet else 2
    model = WALS(**parameters)
    model._validate_params()
    return model


def _power_law(arguments, name):
    """Return the weights of an option, None if it was left out."""
    exponent = getattr(arguments, name)
    if exponent is None:
        return None
    if not math.isfinite(exponent):
        raise ValueError(f"--{name.replace('_', '-')} must be finite, got {exponent}")
    return power_law(exponent)


def _check_outputs(arguments):
    model, table, read = arguments.output, arguments.recommend, (arguments.file, arguments.storage)
    if model is not None:
        _check_writable("--output", model, *read)
    if table is None:
        if arguments.top is not None:
            raise ValueError("--top needs --recommend")
        return
    if arguments.top is not None and arguments.top < 1:
        raise ValueError(f"--top must be at least 1, got {arguments.top}")
    _check_table("--recommend", table, *read)
    if model is not None and os.path.realpath(model) == os.path.realpath(table):
        raise ValueError(f"--recommend {table}: is the same as --output")


def _check_table(option, table, *read):
    _check_writable(option, table, *read)
    try:
        check_output(table)
    except (ValueError, ImportError) as error:
        raise type(error)(f"{option} {table}: {error}") from error


def _check_writable(option, path, *read):
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ValueError(f"{option} {path}: there is no folder {folder}")
    if os.path.isdir(path or "."):
        raise ValueError(f"{option} {path}: is a folder")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise ValueError(f"{option} {path}: no permission to write")
    for source in map(os.path.realpath, (source for source in read if source is not None)):
        if source in (os.path.realpath(path), os.path.realpath(folder)):
            raise ValueError(f"{option} {path}: is what is read, or in the folder that is")


def _reading_options(arguments):
    """Return what the arguments say of the file to read."""
    names = ("user", "item", "value", "time", "delimiter", "decimal", "aggregate")
    options = {name: getattr(arguments, name) for name in names}
    options = {name: option for name, option in options.items() if option is not None}
    return options | {"header": arguments.header, "values": not arguments.ignore_values}


def _read(arguments):
    options = _reading_options(arguments)
    if arguments.file is None:
        named = [name for name in options if name not in ("header", "values")]
        if named:
            raise ValueError(f"--{named[0]} needs a FILE")
        if arguments.storage is not None:
            X = storage.open(arguments.storage)
            ids = (X.row_ids, X.col_ids), map(np.arange, X.shape)
            return X, *(own if given is None else given for given, own in zip(*ids, strict=True))
        X, titles = load_msweb(return_titles=True)
        return Interactions(X, np.arange(X.shape[0]), titles)
    if arguments.storage is not None:
        X = storage.write_interactions(arguments.file, arguments.storage, **options)
        return X, X.row_ids, X.col_ids
    return read_interactions(arguments.file, **options)


def _times(content, split):
    """Return the times that the entries are split by, None for a split of rows."""
    times = getattr(content, "times", None)
    if times is not None and times.min() == times.max():
        times = None
    if times is None and split == "time":
        raise ValueError("--split time needs different times: say --time")
    return None if split == "rows" else times


def _divide(X, times, arguments):
    """Return what to say of the split, where it is in time, and what `_split` does."""
    if arguments.storage is not None:
        return "none, every row is trained on", None, np.empty(0, int), X, X[:0], X[:0]
    n_rows, n_test, start = X.shape[0], arguments.test_rows, None
    if n_test is None:
        n_test = min(max(n_rows // 10, 1) if times is None else n_rows, _MOST_TEST_ROWS)
    if times is None:
        parts = test, train, seen, held_out = _split(X, n_test, arguments.seed)
        text = f"{train.shape[0]:,} of {n_rows:,} rows to train on; {held_out.nnz:,} of "
        text += f"{seen.nnz + held_out.nnz:,} entries of the others held out"
    else:
        start, *parts = _split_by_time(X, times, n_test, arguments.seed)
        test, train, seen, held_out = parts
        text = f"in time: {train.nnz:,} entries from before {start} to train on; of the "
        text += f"{X.nnz - train.nnz:,} later ones, {held_out.nnz:,} held out: those of "
        text += f"{test.size:,} rows that have earlier ones, too"
    return text if test.size else "none, every row is trained on", start, *parts


def _split(X, n_test, seed):
    """Draw test rows and the entries to hold out of each.

    Returns
    -------
    test : ndarray of shape (at most n_test,)
        Numbers of the test rows: rows with two entries or more, never all rows that have entries.
    train, seen, held_out : csr_array
        The other rows; the entries of the test rows to fold in; those to be found again.
    """
    counts = np.diff(X.indptr)
    able = np.flatnonzero(counts > 1)
    n_test = min(n_test, able.size, max(np.count_nonzero(counts) - 1, 0))
    rng = np.random.default_rng(seed)
    test = np.sort(rng.choice(able, n_test, replace=False))
    train = X[np.setdiff1d(np.arange(X.shape[0]), test)]
    split = {"strategy": "per-row", "random_state": int(rng.integers(2**32))}
    seen, held_out = split_entries(X[test], _HELD_OUT, **split)
    return test, train, seen, held_out


def _split_by_time(X, times, n_test, seed):
    """Hold out what came last, and draw test rows of those that have some of it.

    Nothing that came later tells of the entries to be found again: held-out last entries of every
    row would be looked for by a model that knows what others did after them.

    Returns
    -------
    start : number or str
        The time that the later entries begin at.
    test : ndarray of shape (at most n_test,)
        Numbers of the test rows, which have earlier and later entries.
    train, seen, held_out : csr_array
        The earlier entries of all rows, those of the test rows, and the later ones of these. With
        no test row all entries are trained on.
    """
    in_order = np.sort(times)
    # What happened at the same time is not torn apart.
    last = in_order[math.floor((1 - _HELD_OUT) * X.nnz)]
    starts = {int(np.searchsorted(in_order, last, side)) for side in ("left", "right")}
    first = min(starts - {0, X.nnz}, key=lambda n: abs(X.nnz - n - _HELD_OUT * X.nnz))
    train, later = split_entries(X, X.nnz - first, strategy="time", timestamps=times)
    able = np.flatnonzero((np.diff(train.indptr) > 0) & (np.diff(later.indptr) > 0))
    rng = np.random.default_rng(seed)
    test = np.sort(rng.choice(able, min(n_test, able.size), replace=False))
    seen, held_out = train[test], later[test]
    start = in_order[first]
    if start.dtype.kind == "M":
        start = np.datetime_as_string(start, unit="auto")
    return start, test, train if test.size else X, seen, held_out


def _train(stage, model, X, row_weights, seconds, *, quiet):
    with (
        Progress("Training", model.max_iter, shown=not quiet) as bar,
        _timed(stage, seconds),
        _caught() as notes,
    ):
        if bar.shown:
            with suppress(ImportError):  # before scikit-learn 1.9, the lines of sweeps have to do
                model.set_callbacks(_Iterations(bar))
        model.fit(X, row_weights=row_weights)
        vars(model).pop("_skl_callbacks", None)
    for note in notes:
        _say("Note", note)
    _say(
        "Trained",
        f"loss {model.loss_:.6e}, RWSE {model.rwse_:.6f} after iteration {model.n_iter_}, "
        f"{seconds[stage]:.2f} s",
    )


def _write_best(model, row_weights, content, n, write, *, quiet):
    """Write the n best items of all rows, which are projected by all of their entries.

    Returns
    -------
    n_written : int
    """
    X, row_ids, col_ids = content
    row_ids, col_ids = (
        ids.astype(object) if ids.dtype.kind == "U" else ids for ids in (row_ids, col_ids)
    )
    user, item = names_of_ids(getattr(content, "names", None) or ("user", "item"))
    n_rows, n = X.shape[0], min(n, X.shape[1])
    n_written = 0
    with Progress("Writing", n_rows, shown=not quiet) as bar:
        for rows in gen_batches(n_rows, max(_BLOCK // n, 1)):
            part = X[rows]
            weights = None if row_weights is None else row_weights[rows]
            ranked, scores = model.recommend(part, n, weights=weights)
            ranked[np.diff(part.indptr) == 0] = -1  # of whom nothing is known
            row, place = np.nonzero(ranked >= 0)
            write(
                {
                    user: row_ids[rows][row],
                    item: col_ids[ranked[row, place]],
                    "score": scores[row, place],
                    "rank": place + 1,
                }
            )
            n_written += len(row)
            bar.update(rows.stop)
    return n_written


def _above_zero(X):
    """Return the entries whose value is above 0."""
    X = csr_array(X, copy=True)
    X.data[X.data < 0] = 0
    X.eliminate_zeros()
    return X


def _assess(model, factors, X, train, seen, held_out, seconds):
    """Print how good the recommendations are; return the held-out entries that are relevant."""
    if held_out.data.max() > 0 >= held_out.data.min():
        # Who finds what someone dislikes has not found what to recommend.
        n_held_out = held_out.nnz
        held_out, train = _above_zero(held_out), _above_zero(train)
        _say(
            "Note",
            f"relevant are the {held_out.nnz:,} of {n_held_out:,} held-out entries whose value "
            "is above 0; popularity counts entries above 0, too",
        )
    elif held_out.data.max() <= 0 < X.data.max():
        _say("Note", "no held-out value is above 0: the quality is that of finding dislikes")
    is_better = _evaluate(model, factors, seen, held_out, train, seconds)
    if not is_better and held_out.data.max() > 0:
        _say("Hint", "try a stronger --regularization, fewer --components, or more data")
    return held_out


def _evaluate(model, factors, seen, held_out, train, seconds):
    """Print how well model and popularity find the held-out ones; tell if the model is no worse."""
    k = min(_K, train.shape[1])
    ndcg = {}
    popularity = np.bincount(train.indices, minlength=train.shape[1]).astype(np.float32)
    print(f"{'Quality':<20}{f'Recall@{k}':>12}{f'NDCG@{k}':>12}")
    for name, left, right in (
        ("WALS", factors, model.components_),
        ("popularity", np.ones((held_out.shape[0], 1), np.float32), popularity[np.newaxis]),
    ):
        with _timed("rank" if name == "WALS" else name, seconds):
            ranked = _rank(left, right, k, exclude=seen, n_jobs=model.n_jobs)
        recall, ndcg[name] = recall_at_k(held_out, ranked, k), ndcg_at_k(held_out, ranked, k)
        print(f"  {name:<18}{recall:>12.4f}{ndcg[name]:>12.4f}")
    return ndcg["WALS"] >= ndcg["popularity"]


def _show(model, factors, seen, held_out, row_ids, col_ids):
    """Print recommendations for the first rows with three entries, or else two, or one."""
    counts = np.minimum(np.diff(seen.indptr), 3)
    shown = np.argsort(-counts, kind="stable")[: min(_N_SHOWN, np.count_nonzero(counts))]
    k = min(_N_RECOMMENDED, col_ids.size)
    ranked = _rank(factors[shown], model.components_, k, exclude=seen[shown], n_jobs=model.n_jobs)
    for row, best in zip(shown, ranked, strict=True):
        has = "; ".join(map(str, col_ids[seen[[row]].indices]))
        print(_clip(f"Row {row_ids[row]} has {has}", _WIDTH))
        best = best[best >= 0]
        if not best.size:
            print("  and so every column: nothing is left to recommend")
        found = np.isin(best, held_out[[row]].indices)
        scores = factors[row] @ model.components_[:, best]
        for column, score, hit in zip(best, scores, found, strict=True):
            title = _clip(str(col_ids[column]), 50)
            print(f"  {score:6.3f}  {title:<50}{'  held out' if hit else ''}".rstrip())
        print()


def _clip(text, width):
    """Shorten a text to whole words, or a long word to a part of it."""
    if len(text) <= width:
        return text
    words = text[: width - 3].rpartition(" ")[0]
    return f"{words or text[: width - 4]} ..."


class _Iterations:
    """Callback that shows how many iterations of a fit are done."""

    def __init__(self, bar):
        self.bar = bar

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.task_name == ITERATION:
            self.bar.update(context.task_id + 1)
        return False

    def teardown(self, estimator, context):
        pass


class _Notes(logging.Handler):
    """What the package logs, as it comes."""

    def emit(self, record):
        _say("Note", record.getMessage())
        sys.stdout.flush()


def _say(label, text):
    """Print a text after its label, wrapped beside it; paths and numbers stay whole."""
    indent = {"initial_indent": f"{label:<10}", "subsequent_indent": " " * 10}
    print(fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False, **indent))


@contextmanager
def _caught():
    """Give a list that the messages of the warnings come into, each once."""
    messages = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += dict.fromkeys(str(warning.message) for warning in caught)


@contextmanager
def _lenient(stream):
    """Show what a stream cannot by replacements, meanwhile."""
    if not hasattr(stream, "reconfigure"):
        yield
        return
    errors = stream.errors
    stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        stream.reconfigure(errors=errors)


@contextmanager
def _timed(stage, seconds):
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
