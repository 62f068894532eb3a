"""What a user passes as a matrix, and what each public function makes of it: the same."""

import re

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp
from numpy.testing import assert_array_equal

from wals import WALS
from wals._validation import check_matrix
from wals.callbacks import EarlyStopping
from wals.metrics import mae, rmse
from wals.model_selection import holdout_scorer, leave_k_out, split_entries

FITTED = [np.float64, np.float32]


class Annotated:
    """As AnnData is: a matrix and what is known of its rows and columns."""

    shape = (3, 4)
    X = obs = var = None

    def __getitem__(self, index):
        raise NotImplementedError


class Raw:
    """As what AnnData keeps of its matrix is."""

    shape = (3, 4)
    X = var = None

    def __getitem__(self, index):
        raise NotImplementedError


class Backed:
    """As a matrix in a file is that only slices turn into one in memory."""

    shape = (3, 4)

    def __getitem__(self, index):
        raise NotImplementedError


class Group(dict):
    """As a group in a file is."""


# ---------------------------------------------------------------------------------- the one way in


@pytest.mark.parametrize("kind", ["coo", "csr", "csc", "bsr"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, bool, np.uint32, np.float32])
def test_values_are_converted_before_they_are_summed(kind, dtype):
    values = np.array([100, 120, 0, 7]).astype(dtype)
    at = np.array([0, 0, 1, 0]), np.array([1, 1, 0, 2])
    X = sp.coo_array((values, at), shape=(2, 3))
    if kind == "csr":
        X = sp.csr_array((values[[0, 1, 3, 2]], [1, 1, 2, 0], [0, 3, 4]), shape=(2, 3))
    elif kind == "csc":
        X = sp.csc_array((values[[2, 0, 1, 3]], [1, 0, 0, 0], [0, 1, 3, 4]), shape=(2, 3))
    elif kind == "bsr":
        blocks = values.reshape(4, 1, 1)[[0, 1, 3, 2]]
        X = sp.bsr_array((blocks, [1, 1, 2, 0], [0, 3, 4]), shape=(2, 3))
    expected = np.zeros((2, 3))
    np.add.at(expected, at, values.astype(float))
    for wanted in (FITTED, np.float32, "numeric"):
        checked = check_matrix(X, dtype=wanted)
        assert checked.has_canonical_format
        assert checked.nnz == 3  # the explicit zero as well
        assert_array_equal(checked.toarray(), expected)
    kept = {"u": np.uint64, "i": np.int64, "b": np.int64, "f": np.float32}[np.dtype(dtype).kind]
    assert checked.dtype == kept
    assert X.dtype == dtype


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.int64, np.float32, np.longdouble])
def test_types_without_duplicates_are_kept(dtype):
    X = sp.coo_array((np.array([1, 0, 1], dtype), ([1, 0, 0], [0, 2, 1])), shape=(2, 3))
    for kind in (X, X.tocsr(), X.tocsc(), X.todok(), X.tolil(), X.toarray()):
        assert check_matrix(kind).dtype == dtype
        assert_array_equal(check_matrix(kind).toarray(), X.toarray())


def test_half_precision_is_widened():
    X = sp.csr_matrix((np.array([60000, 60000], np.float16), [0, 0], [0, 2]), shape=(1, 1))
    for wanted in (FITTED, "numeric"):
        assert check_matrix(X, dtype=wanted).data.tolist() == [120000.0]
        assert check_matrix(np.array([[1.5, 0]], np.float16), dtype=wanted).data.tolist() == [1.5]


def test_large_integers():
    for value, dtype in ((2**53 + 1, np.int64), (2**63 + 1, np.uint64)):
        X = np.array([[value]], dtype)
        assert check_matrix(X).data.tolist() == [value]
        assert check_matrix(X, dtype=FITTED).data.tolist() == [float(value)]
    twice = sp.coo_array((np.array([2**31, 2**31], np.uint32), ([0, 0], [0, 0])))
    assert check_matrix(twice).data.tolist() == [2**32]


@pytest.mark.parametrize("kind", [sp.coo_array, sp.csr_array, sp.csc_array])
def test_duplicates_that_add_up_to_infinity(kind):
    values = np.array([3e38, 3e38], np.float32)
    X = sp.coo_array((values, ([0, 0], [0, 0])))
    if kind is not sp.coo_array:
        X = kind((values, [0, 0], [0, 2]), shape=(1, 1))
    with pytest.raises(ValueError, match="Duplicates do not add up to a finite number in float32"):
        WALS(1).fit(X)


def test_nothing_is_changed():
    """Not even the order of entries that are passed, and duplicates."""
    at = np.array([1, 0, 1, 1]), np.array([2, 1, 0, 2])
    X = sp.coo_array((np.array([1, 2, 3, 250], np.uint8), at), shape=(2, 3))
    model = WALS(1, random_state=0).fit(X)
    model.transform(X), model.evaluate(X), model.partial_fit(X, indices=[0, 1])
    split_entries(X, 1), leave_k_out(X), rmse(X, X), holdout_scorer(holdout=1)(model, X)
    assert_array_equal(X.data, [1, 2, 3, 250])
    assert_array_equal(X.coords, at)


def test_masked_elements_are_not_stored():
    X = np.ma.masked_invalid([[1.0, np.nan, 0.0], [np.nan, 2.0, 3.0]])
    for wanted in (FITTED, "numeric"):
        checked = check_matrix(X, dtype=wanted)
        assert_array_equal(checked.toarray(), [[1, 0, 0], [0, 2, 3]])
        assert checked.nnz == 3
    integers = np.ma.masked_equal([[99, 1], [2, 99]], 99)
    assert check_matrix(integers).dtype == integers.dtype
    assert_array_equal(check_matrix(integers).toarray(), [[0, 1], [2, 0]])
    assert check_matrix(np.ma.masked_array(np.ones((2, 2)), True)).nnz == 0
    assert check_matrix(np.ma.masked_array(np.ones((2, 2)))).nnz == 4


@pytest.mark.parametrize(
    "X",
    [
        [[1, 0], [0, 2]],
        ((1.0, 0.0), (0.0, 2.0)),
        np.array([[1, 0], [0, 2]], object),
        np.array([[1, 0], [0, 2]], np.longdouble),
        pd.DataFrame({"a": pd.array([1, 0], "Int64"), "b": [0.0, 2.0]}),
        pd.DataFrame.sparse.from_spmatrix(sp.coo_array([[1, 0], [0, 2]])),
        pl.DataFrame({"a": [1, 0], "b": [0, 2]}),
        pa.table({"a": [1, 0], "b": [0, 2]}),
    ],
)
def test_what_is_a_matrix(X):
    assert_array_equal(check_matrix(X).toarray(), [[1, 0], [0, 2]])
    assert check_matrix(X, dtype=FITTED).dtype == np.float64


DAY = np.datetime64("2020-01-01", "ns")


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (Annotated(), TypeError, r"X is of type Annotated: pass its matrix, X\.X, or X\.X\[:\]"),
        (Raw(), TypeError, r"X is of type Raw: pass its matrix, X\.X"),
        (Backed(), TypeError, r"X is of type Backed, which is not in memory: pass X\[:\]\."),
        (Group(data=[1]), TypeError, r"X must be a matrix in memory: .* \[:\] .*Got Group"),
        ("ratings.csv", TypeError, "X must be a matrix in memory: .*Got str"),
        (None, TypeError, "X must be a matrix in memory: .*Got NoneType"),
        (pl.LazyFrame({"a": [1]}), TypeError, "X must be a matrix in memory: .*Got LazyFrame"),
        ([sp.eye_array(2)], ValueError, "X is a list of sparse matrices: .*vstack"),
        ([np.ma.masked_array([1, 2])], TypeError, "X is a list of masked arrays: .*ma.stack"),
        (np.zeros((2, 2), [("a", int)]), ValueError, r"X has the fields \('a',\)"),
        (np.array([[DAY]]), ValueError, "X holds dates or times"),
        (np.array([[DAY]]) - DAY, ValueError, "X holds dates or times"),
        (pd.DataFrame({"a": [1], "b": [DAY]}), ValueError, "X holds dates or times"),
        (pl.DataFrame({"a": [1], "b": [DAY]}), ValueError, "X holds dates or times"),
        (pa.table({"a": [1], "b": [DAY]}), ValueError, "X holds dates or times"),
        (3.0, ValueError, "Expected 2D array, got scalar"),
        ([1.0, 2.0], ValueError, "Expected 2D array, got 1D"),
        (np.ones((2, 2, 2)), ValueError, "dim 3"),
        (sp.csr_array([[1j]]), ValueError, "Complex data not supported"),
        (sp.csr_array([[np.inf]]), ValueError, "infinity"),
    ],
)
def test_what_is_no_matrix(X, error, message):
    for use in (
        WALS(1).fit,
        WALS(1).partial_fit,
        WALS(1).fit(np.eye(4)).transform,
        lambda X: WALS(1).fit(np.eye(4)).transform(X, axis=1),
        WALS(1).fit(np.eye(4)).evaluate,
        split_entries,
        leave_k_out,
        lambda X: holdout_scorer()(WALS(1).fit(np.eye(4)), X),
    ):
        with pytest.raises(error, match=message):
            use(X)
    with pytest.raises(error, match=re.sub(r"X( |\\\.X|\\\[)", r"fold_in\1", message)):
        EarlyStopping(X, X)


UNKNOWN = pd.DataFrame({"a": [5.0, np.nan], "b": [np.nan, 3.0]})


@pytest.mark.parametrize(
    "X",
    [
        UNKNOWN,
        UNKNOWN.to_numpy(),
        UNKNOWN.astype("Float64"),
        UNKNOWN.astype(object).where(UNKNOWN.notna(), None),
        UNKNOWN.astype(pd.SparseDtype(float)),
        pl.from_pandas(UNKNOWN),
        pa.Table.from_pandas(UNKNOWN),
        [[5, None], [None, 3]],
        sp.csr_array(UNKNOWN.to_numpy()),
    ],
)
def test_unknown_entries_are_to_be_left_out(X):
    columns = WALS(1).fit(np.eye(2))
    for use in (WALS(1).fit, lambda X: columns.transform(X, axis=1), split_entries):
        with pytest.raises(ValueError, match=r"^Input X contains NaN\. Leave out what is") as told:
            use(X)
        assert "imput" not in str(told.value)
        assert "\n" not in str(told.value)


def test_indices_out_of_range():
    for kind in (sp.csr_array, sp.csc_array):
        X = kind(np.eye(3))
        X.indices[0] = 10**6
        with pytest.raises(ValueError, match="indices"):
            WALS(1).fit(X)
        with pytest.raises(ValueError, match="indices"):
            split_entries(X)


# ------------------------------------------------------------------------- what is no matrix to fit


MASKED = np.ma.masked_array(np.ones(4), [0, 1, 0, 0])
SQUARE = np.ma.masked_array(np.eye(4) + 1, np.eye(4))


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda: WALS(1).fit(np.eye(4), row_weights=MASKED), "row_weights"),
        (lambda: WALS(1).fit(np.eye(4), entry_weights=SQUARE), "entry_weights"),
        (lambda: WALS(1, col_weights=MASKED).fit(np.eye(4)), "col_weights"),
        (lambda: WALS(1, init=MASKED[:, None]).fit(np.eye(4)), "init"),
        (lambda: WALS(1).fit(np.eye(4)).transform(np.eye(4), weights=MASKED), "weights"),
        (lambda: WALS(1).fit(np.eye(4)).inverse_transform(MASKED[:, None]), "U"),
        (lambda: leave_k_out(sp.eye_array(4), timestamps=MASKED), "timestamps"),
        (lambda: rmse(sp.eye_array(4, format="csr"), MASKED), "predicted"),
        (lambda: mae(sp.eye_array(4, format="csr"), list(MASKED)), "predicted"),
    ],
)
def test_numbers_that_are_needed_are_not_masked(use, name):
    with pytest.raises(TypeError, match=f"^{name} has masked elements, but each of its numbers"):
        use()


def test_nothing_masked_is_an_array():
    model, weights = WALS(1, random_state=0), np.array([1.0, 2.0, 3.0, 4.0])
    masked = np.ma.masked_array(weights, [0, 0, 0, 0])
    assert_array_equal(
        model.fit(np.eye(4), row_weights=masked).row_factors_,
        model.fit(np.eye(4), row_weights=weights).row_factors_,
    )
    assert rmse(sp.eye_array(4, format="csr"), masked) == np.sqrt((1 + 4 + 9) / 4)


def test_entry_weights_are_converted_before_they_are_summed():
    X = sp.csr_array([[1.0, 2.0], [0.0, 3.0]])
    at = np.array([1, 0, 0, 0]), np.array([1, 0, 1, 0])
    twice = sp.coo_array((np.array([3, 200, 5, 100], np.uint8), at), shape=(2, 2))
    expected = WALS(1, random_state=0).fit(X, entry_weights=sp.csr_array([[300.0, 5], [0, 3]]))
    for weights in (twice, sp.csc_array(twice.astype(float))):
        model = WALS(1, random_state=0).fit(X, entry_weights=weights)
        assert_array_equal(model.components_, expected.components_)


def test_fits_and_splits_agree_on_duplicates():
    twice = sp.coo_array(
        (np.array([200, 100, 9, 4], np.uint8), ([0, 0, 0, 1], [0, 0, 1, 1])), shape=(2, 2)
    )
    once = sp.csr_array([[300.0, 9.0], [0.0, 4.0]])
    fitted, expected = (WALS(1, random_state=0).fit(X) for X in (twice, once))
    assert_array_equal(fitted.components_, expected.components_)
    assert_array_equal(fitted.transform(twice), expected.transform(once))
    assert fitted.evaluate(twice) == expected.evaluate(once)
    train, test = split_entries(twice, 1, random_state=0)
    assert_array_equal((train + test).toarray(), once.toarray())
    assert rmse(twice, once) == 0
