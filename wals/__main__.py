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
from contextlib import contextmanager
from textwrap import fill

import joblib
import numpy as np
from scipy.sparse import csr_array

from wals import WALS, storage
from wals._precompile import precompile
from wals.datasets import load_msweb
from wals.interactions import Interactions, read_interactions
from wals.metrics import ndcg_at_k, recall_at_k
from wals.model_selection import _rank, split_entries
from wals.weights import power_law

_PROG = "python -m wals"
_WIDTH = 80
_HELD_OUT = 0.2  # share of the entries of a test row
_K = 20
_N_SHOWN, _N_RECOMMENDED = 3, 5


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
    arguments = _parser().parse_args(argv)
    try:
        with _lenient(sys.stdout):
            _run(arguments)
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
        usage=f"{_PROG} [FILE] [options]",
        description=(
            "Factorise a matrix of interactions (who bought, read or visited what) by weighted "
            "alternating least squares. Most rows are trained on. Of the others, the test rows, "
            f"{_HELD_OUT:.0%} of the entries are held out: recommendations made from the rest "
            "should find them again, and do so better than plain popularity."
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

    group = parser.add_argument_group("output")
    group.add_argument(
        "--test-rows",
        help="number of test rows; 0 trains on all rows (default: a tenth, at most 10000)",
        **integer,
    )
    group.add_argument(
        "--output",
        metavar="MODEL",
        help="save the model with joblib, for instance wals.joblib; row_ids_ (of the rows "
        "trained on) and col_ids_ tell what its row_factors_ and col_factors_ are of",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="do no more than to compile all that float32 and float64 data need, and say where "
        "the machine code is kept",
    )
    group.add_argument("--quiet", action="store_true", help="no line per sweep")
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
    if arguments.test_rows and arguments.storage is not None:
        raise ValueError("--test-rows: with --storage, every row is trained on")
    if (arguments.test_rows or 0) < 0:
        raise ValueError(f"--test-rows must not be negative, got {arguments.test_rows}")
    if arguments.output is not None:
        _check_writable(arguments.output)

    seconds = {}
    with _timed("read", seconds), _caught() as notes:
        X, row_ids, col_ids = _read(arguments)
    n_rows, n_columns = X.shape
    source = arguments.file or arguments.storage
    _say("Data", source or "Anonymous Microsoft Web Data, embedded in the package")
    for note in notes:
        _say("Note", _as_options(note))
    density = X.nnz / (n_rows * n_columns)
    _say("", f"{n_rows:,} x {n_columns:,} matrix, {X.nnz:,} stored ({density:.2%})")

    n_test = min(max(n_rows // 10, 1), 10_000)
    if arguments.test_rows is not None:
        n_test = arguments.test_rows
    with _timed("split", seconds):
        if arguments.storage is None:
            test, train, seen, held_out = _split(X, n_test, arguments.seed)
        else:
            test, train, seen, held_out = np.empty(0, int), X, X[:0], X[:0]
    text = "none, every row is trained on"
    if test.size:
        text = f"{train.shape[0]:,} of {n_rows:,} rows to train on; {held_out.nnz:,} of "
        text += f"{seen.nnz + held_out.nnz:,} entries of the others held out"
    _say("Split", text)

    settings = model.get_params(deep=False) | {"row_weights": row_weights, "verbose": None}
    settings = [f"{k}={v!r}" for k, v in settings.items() if v is not None and v is not False]
    _say("Model", ", ".join(settings))
    _compile(train.dtype, seconds)
    print()
    test_weights = None
    if row_weights is not None:
        counts = np.concatenate([np.diff(train.indptr), np.diff(seen.indptr)])
        row_weights, test_weights = np.split(row_weights(counts), [train.shape[0]])
    _train(model, train, row_weights, seconds)
    if arguments.output is not None:
        model.row_ids_, model.col_ids_ = np.delete(row_ids, test), col_ids
        with _timed("save", seconds):
            joblib.dump(model.set_params(verbose=0), arguments.output)
        size = os.path.getsize(arguments.output) / 1e6
        _say("Saved", f"{arguments.output}, {size:,.1f} MB, ids in row_ids_ and col_ids_")
    print()

    if test.size:
        with _timed("fold in", seconds):
            factors = model.transform(seen, weights=test_weights)
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
    else:
        why = "for want of a test row: it takes two rows with entries, one of them with two or more"
        why += ", and --test-rows other than 0"
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


def _check_writable(path):
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ValueError(f"--output {path}: there is no folder {folder}")
    if os.path.isdir(path or "."):
        raise ValueError(f"--output {path}: is a folder")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise ValueError(f"--output {path}: no permission to write")


def _read(arguments):
    names = ("user", "item", "value", "time", "delimiter", "decimal", "aggregate")
    options = {name: getattr(arguments, name) for name in names}
    options = {name: option for name, option in options.items() if option is not None}
    if arguments.file is None:
        if options:
            raise ValueError(f"--{next(iter(options))} needs a FILE")
        if arguments.storage is not None:
            X = storage.open(arguments.storage)
            ids = (X.row_ids, X.col_ids), map(np.arange, X.shape)
            return X, *(own if given is None else given for given, own in zip(*ids, strict=True))
        X, titles = load_msweb(return_titles=True)
        return Interactions(X, np.arange(X.shape[0]), titles)
    options |= {"header": arguments.header, "values": not arguments.ignore_values}
    if arguments.storage is not None:
        X = storage.write_interactions(arguments.file, arguments.storage, **options)
        return X, X.row_ids, X.col_ids
    return read_interactions(arguments.file, **options)


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


def _train(model, X, row_weights, seconds):
    with _timed("train", seconds), _caught() as notes:
        model.fit(X, row_weights=row_weights)
    for note in notes:
        _say("Note", note)
    _say(
        "Trained",
        f"loss {model.loss_:.6e}, RWSE {model.rwse_:.6f} after iteration {model.n_iter_}, "
        f"{seconds['train']:.2f} s",
    )


def _above_zero(X):
    """Return the entries whose value is above 0."""
    X = csr_array(X, copy=True)
    X.data[X.data < 0] = 0
    X.eliminate_zeros()
    return X


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
            ranked = _rank(left, right, k, exclude=seen)
        recall, ndcg[name] = recall_at_k(held_out, ranked, k), ndcg_at_k(held_out, ranked, k)
        print(f"  {name:<18}{recall:>12.4f}{ndcg[name]:>12.4f}")
    return ndcg["WALS"] >= ndcg["popularity"]


def _show(model, factors, seen, held_out, row_ids, col_ids):
    """Print recommendations for the first rows with three entries, or else two, or one."""
    counts = np.minimum(np.diff(seen.indptr), 3)
    shown = np.argsort(-counts, kind="stable")[: min(_N_SHOWN, np.count_nonzero(counts))]
    k = min(_N_RECOMMENDED, col_ids.size)
    ranked = _rank(factors[shown], model.components_, k, exclude=seen[shown])
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
