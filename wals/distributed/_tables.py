"""Tables of interactions on a cluster, for `wals.Recommender`.

Each partition numbers its ids. A tree of tasks joins these, eight by eight, into those of all, and
down it go the numbers that the ids have there. Interactions then move once, to the blocks of users
that they belong to. What passes the client are the ids, as V does, and counts.
"""

from copy import copy
from itertools import pairwise
from typing import NamedTuple

import dask.array as da
import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from distributed import Future
from sklearn.base import clone

from .._biases import Rows, add_totals, residuals, solve
from .._encoding import as_array, encode, gather_matrix, plain
from .._tables import Table, make_table, numbers
from .._validation import is_distributed
from ..recommender import check_sample_weight
from ._blocks import Lost, named
from ._cluster import PREFIX, Cluster, cut, row_blocks, rows_array, rows_of
from ._models import without_rows

#: So many blocks of users at most: the shuffle has a task for each with each partition.
_MOST_BLOCKS = 256
#: How many partitions are joined at once.
_JOINED = 8
#: Users are counted in so many ranges, to cut them into blocks of equal work.
_RANGES = 2**14


# ---------------------------------------------------------------------------------- on the workers


class Partition(NamedTuple):
    """The interactions of a partition, its ids numbered."""

    ids: list  # of users and of items, each (n_ids,)
    codes: list  # of the same, each (n,)
    values: np.ndarray  # (n,)
    times: np.ndarray | None  # (n,)
    weights: np.ndarray | None  # (n,)
    names: list | None  # of the columns
    n_columns: int
    library: str | None


class About(NamedTuple):
    """What the client has to know of a partition."""

    names: list | None
    n_columns: int
    library: str | None
    n: int
    weighted: bool


class There(NamedTuple):
    """What a fitted `wals.Recommender` has on a cluster, next to its matrix and factors."""

    ids: list  # of Future, for each block of users
    biases: list | None  # of the same
    is_frame: bool  # whether the table was a Dask data frame
    limits: tuple | None  # the least value, and the largest


def n_rows(X):
    return len(Table(X, may_be_empty=True))


def read(X, b, recommender, y, weights):
    """Return a partition; errors say which."""
    return named(f"Partition {b} of X", _read, X, recommender, y, weights)


def _read(X, recommender, y, weights):
    table = Table(X, may_be_empty=True)
    if not table.columns:  # a list without rows
        none = np.empty(0, np.int32)
        return Partition([none, none], [none, none], np.empty(0), None, None, None, 0, None)
    ids, codes = map(list, zip(*recommender._encode(table), strict=True))
    values, times = recommender._values(table, y), recommender._times(table)
    if weights is not None:
        weights = check_sample_weight(weights, len(table))
    about = table.names, len(table.columns), table.library
    return Partition(ids, codes, values, times, weights, *about)


def about(partition):
    n, weights = len(partition.values), partition.weights
    return About(*partition[-3:], n, weights is not None and bool(weights.any()))


def ids_of(partition, axis):
    return partition.ids[axis]


def join_columns(parts):
    """Return arrays as one, which holds exactly what they do."""
    filled = [part for part in parts if len(part)] or parts[:1]
    kinds = {part.dtype.kind for part in filled}
    if kinds in ({"i", "f"}, {"u", "f"}):
        small = (np.abs(part).max() <= 2**53 for part in filled if part.dtype.kind != "f")
        if all(small):
            filled, kinds = [part.astype(np.float64) for part in filled], {"f"}
    width, n = max(part.dtype.itemsize for part in filled), sum(map(len, filled))
    exactly = len(kinds) == 1 and (
        kinds <= set("iufb")
        or len({part.dtype for part in filled}) == 1
        # Strings take the room of the longest.
        or (kinds <= set("US") and width * n <= 4 * sum(part.nbytes for part in filled) + 1000)
    )
    if exactly:
        return np.concatenate(filled)
    # Of datetimes, tolist makes numbers.
    lists = (part if part.dtype.kind in "mM" else part.tolist() for part in filled)
    return as_array([plain(key) for keys in lists for key in keys])


def join_ids(*parts):
    """Return the ids of all, and for each part the places of its own among them."""
    ids, places = encode(join_columns(parts), "X")
    return [ids, *np.split(places, np.cumsum([len(part) for part in parts])[:-1])]


def compose(outer, inner):
    return outer[inner]


def slice_of(ids, start, stop):
    return ids[start:stop]


def count_users(partition, places, edges):
    """Return the number of entries of each range of users."""
    counts = np.bincount(partition.codes[0], minlength=len(places))
    ranges = np.searchsorted(edges, places, side="right") - 1
    return np.bincount(ranges, counts, len(edges) - 1)


def send(partition, users, items, cuts):
    """Return, for each block of users, what a partition has of it."""
    rows, cols = users[partition.codes[0]], items[partition.codes[1]]
    blocks = np.searchsorted(cuts, rows, side="right") - 1
    order = np.argsort(blocks, kind="stable")
    stops = np.cumsum(np.bincount(blocks, minlength=len(cuts) - 1))
    columns = rows, cols, partition.values, partition.times, partition.weights
    columns = [None if column is None else column[order] for column in columns]
    return [
        [None if column is None else column[start:stop] for column in columns]
        for start, stop in pairwise([0, *stops])
    ]


def receive(pieces, start, shape, aggregate):
    """Return the matrix of a block of users, and that of the weights."""
    pieces = [piece for piece in pieces if len(piece[0])]
    rows, cols, values, times, weights = (
        None if column[0] is None else join_columns(column) for column in zip(*pieces, strict=True)
    )
    coords = rows - start, cols
    X = gather_matrix(values, coords, times, shape, aggregate)
    return X, None if weights is None else gather_matrix(weights, coords, None, shape, "mean")


def is_there(weights):
    return weights is not None


def counts_of(X):
    return np.diff(X.indptr)


def call(rows, method, *args):
    """Return what a method of `wals._biases.Rows` does."""
    return getattr(rows, method)(*args)


def table_of(request, ids, entries, factors, biases):
    """Return what is recommended to a block of users, of the types of `none`, if there is one."""
    served, n, exclude_seen, candidates, none = request
    biases = np.zeros(len(ids)) if biases is None else biases
    anything = np.ones(len(ids), dtype=bool)
    table = served._answer(n, exclude_seen, candidates, ids, entries, factors, biases, anything)
    return table if none is None else table.astype(none.dtypes.to_dict())


# -------------------------------------------------------------------------------------- the client


class ClusterInteractions:
    """The ids, and the matrix, of tables on a cluster; see `wals.recommender.Interactions`.

    Attributes
    ----------
    matrix, weights : list of Future, or None
        In blocks of users.
    there : There
    """

    def __init__(self, recommender, X, y, sample_weight):
        self.cluster = Cluster()
        try:
            parts = self._read(recommender, X, y, sample_weight)
            self.users, users, ids = self._number([self._submit(ids_of, p, 0) for p in parts])
            self.items, items, _ = self._number([self._submit(ids_of, p, 1) for p in parts])
            cuts = self._cuts(parts, users)
            self.matrix, self.weights = self._shuffle(parts, users, items, cuts, recommender)
            ids = [self._submit(slice_of, ids, *ends) for ends in pairwise(cuts)]
            self.lengths = np.diff(cuts).tolist()
            self.there = There(ids, None, _is_frame(X), None)
        except Lost as error:
            raise RuntimeError(f"Partitions of X are lost with their worker: {error}") from error

    def _submit(self, *args):
        return self.cluster.submit(*args)

    def _gather(self, function, futures, *args):
        return self.cluster.gather([self._submit(function, future, *args) for future in futures])

    def _read(self, recommender, X, y, sample_weight):
        """Return the futures of partitions."""
        reader = clone(recommender).set_params(estimator=None, row_weights=None)
        if _is_frame(X):  # tells of wrong columns before anything is read
            _read(X._meta, reader, None if y is None else [], None)
        alone = y is None and sample_weight is None
        given, columns = self.cluster.compute(row_blocks(_partitions(X, alone))), []
        lengths = [0] * len(given) if alone else self._gather(n_rows, given)
        y = None if recommender.aggregate == "count" else y
        for column, name in ((y, "y"), (sample_weight, "sample_weight")):
            shape = (sum(lengths),)
            column = rows_of(_partitions(column), lengths, shape, name, check=_check_numbers)
            columns.append(
                [
                    self.cluster.hold(part) if isinstance(part, np.ndarray) else part
                    for part in self.cluster.compute(column)
                ]
            )
        parts = [
            self._submit(read, block, b, reader, *rest)
            for b, (block, *rest) in enumerate(zip(given, *columns, strict=True))
        ]
        try:
            told = [about for about in self._gather(about, parts) if about.n]
        except ValueError:
            ours = [each for each in given if str(each.key).startswith(PREFIX)]
            self.cluster.client.cancel(parts + ours)  # which read on otherwise
            raise
        if not told:
            raise ValueError("X has no interactions: found 0 sample(s), and 1 is needed.")
        self.names, self.n_columns, self.library = told[0][:3]
        columns = recommender.user, recommender.item, recommender.value, recommender.time
        by_name = not any(isinstance(column, int) for column in columns)
        for other in told:
            # In another order where all of them are given by name.
            same = other[:2] == told[0][:2]
            if not (same or (by_name and set(other.names) == set(self.names))):
                raise ValueError(
                    f"Partitions of X have different columns: {self.names or self.n_columns} and "
                    f"{other.names or other.n_columns}."
                )
        if sample_weight is not None and not any(about.weighted for about in told):
            raise ValueError("sample_weight is zero for all interactions.")
        return parts

    def _number(self, parts):
        """Return all ids, their places for each part, and the future of the ids."""
        future, places = self._join(parts)
        return self.cluster.gather([future])[0], places, future

    def _join(self, parts):
        groups = [parts[i : i + _JOINED] for i in range(0, len(parts), _JOINED)]
        joined = [
            self.cluster.parts(self._submit(join_ids, *group), 1 + len(group)) for group in groups
        ]
        if len(groups) == 1:
            return joined[0][0], joined[0][1:]
        ids, outer = self._join([each[0] for each in joined])
        return ids, [
            self._submit(compose, place, inner)
            for place, each in zip(outer, joined, strict=True)
            for inner in each[1:]
        ]

    def _cuts(self, parts, users):
        """Return where to cut the users into blocks of about equal work."""
        n = len(self.users)
        edges = np.linspace(0, n, min(n, _RANGES) + 1).astype(np.int64)
        held = self.cluster.hold(edges)
        costs = [self._submit(count_users, *both, held) for both in zip(parts, users, strict=True)]
        costs = self.cluster.gather([self.cluster.add(costs)])[0] + np.diff(edges)
        return edges[cut(costs, min(len(parts), n, _MOST_BLOCKS))].tolist()

    def _shuffle(self, parts, users, items, cuts, recommender):
        """Return the blocks of users, and of their weights."""
        pieces = [
            self.cluster.parts(self._submit(send, *each, cuts), len(cuts) - 1)
            for each in zip(parts, users, items, strict=True)
        ]
        blocks = []
        for b, (start, stop) in enumerate(pairwise(cuts)):
            shape, aggregate = (stop - start, len(self.items)), recommender.aggregate
            block = self._submit(receive, [piece[b] for piece in pieces], start, shape, aggregate)
            blocks.append(self.cluster.parts(block, 2))
        matrix, weights = map(list, zip(*blocks, strict=True))
        has_weights = self._gather(is_there, weights[:1])[0]
        return matrix, weights if has_weights else None

    @property
    def interactions(self):
        """The matrix, as a dask.array."""
        meta = sp.csr_array((0, len(self.items)), dtype=np.float32)
        return rows_array(self.matrix, self.lengths, meta.shape[1:], meta.dtype, meta)

    def counts(self):
        """Return the number of items of each user."""
        return np.concatenate(self._gather(counts_of, self.matrix))

    def without_biases(self):
        """Return mean and biases, and what they leave of the matrix, in blocks of users."""
        weights = self.weights or [None] * len(self.matrix)
        rows = [self._submit(Rows, *both) for both in zip(self.matrix, weights, strict=True)]

        def sums(method, argument):
            parts = [self._submit(call, each, method, argument) for each in rows]
            return self.cluster.gather([self.cluster.add(parts)])[0]

        totals = self.cluster.add([self._submit(call, each, "total") for each in rows], add_totals)
        totals = self.cluster.gather([totals])[0]
        mean, c = solve(
            totals,
            lambda mean: sums("target", mean),
            lambda c: sums("product", self.cluster.hold(c)),
        )
        of_cols = self.cluster.hold(c)
        biases = [self._submit(call, each, "biases", mean, of_cols) for each in rows]
        self.there = self.there._replace(biases=biases, limits=(totals.least, totals.largest))
        left = [
            self._submit(residuals, X, mean, b, of_cols)
            for X, b in zip(self.matrix, biases, strict=True)
        ]
        return (mean, np.concatenate(self.cluster.gather(biases)), c), left


def count_items(interactions):
    """Return the number of items of each user."""
    cluster = Cluster()
    blocks = cluster.compute(row_blocks(interactions))
    return np.concatenate(cluster.gather([cluster.submit(counts_of, block) for block in blocks]))


def recommend_to_all(recommender, n, exclude_seen, candidates):
    """Do what `Recommender.recommend` says for all users, when the result is computed."""
    there, served = recommender._there, copy(recommender)
    for name in ("users_", "user_biases_", "interactions_", "_there", "_places"):
        vars(served).pop(name, None)
    served.estimator, served.row_weights = None, None
    served.estimator_ = without_rows(recommender.estimator_)
    factors, lengths = recommender.estimator_.row_factors_, recommender.interactions_.chunks[0]
    of_users = [
        there.ids,
        row_blocks(recommender.interactions_),
        rows_of(factors, lengths, factors.shape, "row_factors_"),
        there.biases or [None] * len(there.ids),
    ]
    none = _empty_frame(recommender) if there.is_frame else None
    (request,) = Cluster().put([(served, n, exclude_seen, candidates, none)])
    task = delayed(table_of, pure=False)
    tables = [task(request, *each) for each in zip(*of_users, strict=True)]
    if not there.is_frame:
        return tables
    import dask.dataframe as dd  # with which fit got one

    return dd.from_delayed(tables, meta=none, verify_meta=False)


def _empty_frame(recommender):
    """Return what is recommended, without rows: its types are those of all ids."""
    zero = np.zeros(1, dtype=np.int64)
    frame = recommender._table(recommender.users_[:1], zero, np.zeros(1), zero).iloc[:0]
    ids = {"users": recommender.users_, "items": recommender.items_}
    of = [make_table({name: each}, recommender._library)[name].dtype for name, each in ids.items()]
    return frame.astype(dict(zip(frame.columns[:2], of, strict=True)))


def _is_frame(X):
    """Return whether X is a Dask data frame."""
    return hasattr(X, "columns") and hasattr(X, "to_delayed")


def _partitions(X, alone=False):
    """Return the partitions of a data frame, a column or a bag as delayed."""
    if not is_distributed(X) or isinstance(X, list | tuple | da.Array | Delayed | Future):
        return X
    # Of files that are read, Dask makes fewer partitions for a column than for all.
    return X.to_delayed(optimize_graph=alone)


def _check_numbers(values, n, name):
    return numbers(values, name, n)
