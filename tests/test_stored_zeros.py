"""README's table: which steps keep the zeros that a sparse matrix stores, in what is installed."""

import io

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.io import mmread, mmwrite
from sklearn import preprocessing as pre
from sklearn.compose import ColumnTransformer
from sklearn.datasets import dump_svmlight_file, load_svmlight_file
from sklearn.feature_extraction import DictVectorizer, FeatureHasher
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.feature_selection import SelectKBest, VarianceThreshold, chi2
from sklearn.pipeline import FeatureUnion, make_pipeline

from wals import WALS

N, M, N_ZEROS = 40, 30, 50


@pytest.fixture
def X():
    rng = np.random.default_rng(0)
    X = sp.csr_array(sp.random(N, M, 0.2, random_state=0))
    X.data = rng.integers(1, 5, X.nnz).astype(float)
    X.data[rng.permutation(X.nnz)[:N_ZEROS]] = 0
    return X


def n_zeros(Y):
    return int(np.count_nonzero(sp.coo_array(Y).data == 0))


def in_pandas(X):
    return pd.DataFrame.sparse.from_spmatrix(X)


def through_svmlight(X):
    file = io.BytesIO()
    dump_svmlight_file(X, np.zeros(N), file)
    file.seek(0)
    return load_svmlight_file(file, n_features=M)[0]


def save_npz(X, path):
    sp.save_npz(path, X)
    return sp.load_npz(path)


def matrix_market(X, path):
    mmwrite(path, X)
    return mmread(path)


TRANSFORMERS_THAT_KEEP = [
    pre.MaxAbsScaler(),
    pre.StandardScaler(with_mean=False),
    pre.RobustScaler(with_centering=False),
    pre.Normalizer(),
    pre.FunctionTransformer(np.log1p),
    pre.QuantileTransformer(n_quantiles=10, ignore_implicit_zeros=False, random_state=0),
    TfidfTransformer(),
    VarianceThreshold(),
    FeatureUnion([("scaled", pre.MaxAbsScaler())]),
    ColumnTransformer([("scaled", pre.MaxAbsScaler(), slice(0, M))]),
]
OPERATIONS_THAT_KEEP = {
    "rows": lambda X: X[np.arange(N)],
    "columns": lambda X: X[:, np.arange(M)],
    "transposed": lambda X: X.T,
    "vstack": lambda X: sp.vstack([X[:5], X[5:]]),
    "hstack": lambda X: sp.hstack([X[:, :5], X[:, 5:]]),
    "astype": lambda X: X.astype(np.float32),
    "abs": abs,
    "power": lambda X: X.power(2),
    "times a number": lambda X: 3 * X,
    "data": lambda X: sp.csr_array((np.log1p(X.data), X.indices, X.indptr), X.shape),
    "COO": lambda X: X.tocoo(),
    "CSC": lambda X: X.tocsc(),
    "times a dense vector": lambda X: X.multiply(np.arange(1.0, N + 1)[:, None]),
    "pandas": lambda X: in_pandas(X).sparse.to_coo(),
    "svmlight": through_svmlight,
}
THAT_DROP = {
    "Binarizer": lambda X: pre.Binarizer().fit_transform(X),
    "sparse multiply": lambda X: X.multiply(sp.csr_array(np.full((N, M), 2.0))),
    "sum": lambda X: X + sp.csr_array((N, M)),
    "maximum": lambda X: X.maximum(sp.csr_array((N, M))),
    "diags @ X": lambda X: sp.diags_array(np.full(N, 2.0)) @ X,
    "X @ identity": lambda X: X @ sp.eye_array(M),
    "dense": lambda X: sp.csr_array(X.toarray()),
    "DIA": lambda X: X.todia(),
    "eliminate_zeros": lambda X: (Y := X.copy()).eliminate_zeros() or Y,
}


@pytest.mark.parametrize("transformer", TRANSFORMERS_THAT_KEEP, ids=lambda t: type(t).__name__)
def test_transformers_that_keep(X, transformer):
    assert n_zeros(transformer.fit_transform(X)) == N_ZEROS


@pytest.mark.parametrize("name", OPERATIONS_THAT_KEEP)
def test_operations_that_keep(X, name):
    assert n_zeros(OPERATIONS_THAT_KEEP[name](X)) == N_ZEROS


@pytest.mark.parametrize(("there_and_back", "ending"), [(save_npz, "npz"), (matrix_market, "mtx")])
def test_files_that_keep(X, tmp_path, there_and_back, ending):
    assert n_zeros(there_and_back(X, tmp_path / f"X.{ending}")) == N_ZEROS


@pytest.mark.parametrize("name", THAT_DROP)
def test_what_drops(X, name):
    assert n_zeros(THAT_DROP[name](X)) == 0


def test_selection_keeps_those_of_its_columns(X):
    selector = SelectKBest(chi2, k=10).fit(X, np.arange(N) % 2)
    assert n_zeros(selector.transform(X)) == n_zeros(X[:, selector.get_support()]) > 0


def test_column_transformer_drops_where_much_is_stored(X):
    """It counts what is stored, zeros as well: at .3 and more, its output is dense."""
    transformer = ColumnTransformer([("scaled", pre.MaxAbsScaler(), slice(0, M))])
    full = sp.csr_array((np.arange(N * M) % 4.0, np.tile(np.arange(M), N), np.arange(N + 1) * M))
    assert n_zeros(full) > 0
    assert isinstance(transformer.fit_transform(full), np.ndarray)
    assert n_zeros(make_pipeline(pre.MaxAbsScaler()).fit_transform(full)) == n_zeros(full)


def test_what_adds(X):
    X.eliminate_zeros()
    assert n_zeros(X.tobsr((2, 2)).tocsr()) > 0
    Y = X.copy()
    Y[0, X[[0]].indices[0]] = 0
    assert n_zeros(Y) == 1
    assert n_zeros(DictVectorizer().fit_transform([{"a": 0, "b": 1}, {"a": 2}])) == 1
    words = [[f"word{i}", f"word{j}"] for i in range(10) for j in range(i)]
    hashed = FeatureHasher(4, input_type="string").transform(words)
    kept = FeatureHasher(4, input_type="string", alternate_sign=False).transform(words)
    assert n_zeros(hashed) > 0 == n_zeros(kept)


def test_sublinear_tf_refuses_zeros(X):
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match="infinity"):
        TfidfTransformer(sublinear_tf=True).fit_transform(X)


def test_rows_of_a_pandas_frame_lose_them(X):
    """And so do the folds of a cross-validation."""
    frame = in_pandas(X)
    assert n_zeros(frame.sparse.to_coo()) == N_ZEROS
    assert n_zeros(frame.iloc[:20].sparse.to_coo()) == n_zeros(X[:20]) > 0
    assert n_zeros(frame.iloc[list(range(20))].sparse.to_coo()) == 0
    assert n_zeros(frame[np.arange(N) < 20].sparse.to_coo()) == 0


def test_what_is_learned_differs(X):
    model = WALS(2, random_state=0, regularization=0.1)
    kept, dropped = X, sp.csr_array(X.toarray())
    assert model.fit(kept).loss_ > 1.01 * model.fit(dropped).loss_
