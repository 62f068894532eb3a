"""Run other libraries on one small problem, and keep what they end with for tests/test_peers.py.

Each runs in an environment of its own, where it and NumPy and SciPy are installed:

    pip install implicit==0.7.3               && python -P benchmarks/peers.py implicit
    pip install irspack==0.5.2                && python -P benchmarks/peers.py irspack
    pip install cmfrec==3.5.1 "numpy<2"       && python -P benchmarks/peers.py cmfrec
    pip install lenskit==2025.8.1             && python -P benchmarks/peers.py lenskit
    pip install pyspark==4.3.0 pandas pyarrow && python -P benchmarks/peers.py spark   # and Java 17

A file of tests/peers has the entries (row, col, value) that a library was given, and of each case
its parameters and the item factors V that it ends with; "about" tells the versions. Cases and
values are chosen so that any two readings of what a library minimises end elsewhere.
"""

import argparse
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import scipy.sparse as sp

FOLDER = Path(__file__).parents[1] / "tests" / "peers"
N, M, K, N_ITER = 60, 40, 4, 3000


def make_entries(*, signed=False):
    """Return ratings from 0.5 to 5 in a CSR; if signed, some are negative."""
    rng = np.random.default_rng(0)
    groups = rng.integers(3, size=N)[:, None] == rng.integers(3, size=M)
    row, col = np.nonzero(rng.random((N, M)) < np.where(groups, 0.6, 0.1))
    values = rng.integers(1, 11, row.size) / 2
    if signed:
        values[rng.random(row.size) < 0.2] *= -1
    return sp.csr_matrix((values, (row, col)), (N, M))


def make_ones():
    ones = make_entries()
    ones.data[:] = 1
    return ones


def run_implicit():
    from implicit.cpu.als import AlternatingLeastSquares

    settings = {"factors": K, "regularization": 0.7, "iterations": N_ITER, "dtype": np.float64}
    settings |= {"use_cg": False, "num_threads": 1, "random_state": 0}
    for case, X, alpha in (
        ("values", make_entries(), 4.0),
        ("negative", make_entries(signed=True), 4.0),
        ("ones", make_ones(), 3.0),
    ):
        model = AlternatingLeastSquares(alpha=alpha, **settings)
        model.fit(X, show_progress=False)
        if case == "values":
            model.save(FOLDER / "implicit_model.npz")
        yield case, X, {"alpha": alpha, "regularization": 0.7}, model.item_factors


def run_irspack():
    from irspack import IALSRecommender

    settings = {"n_components": K, "train_epochs": N_ITER, "n_threads": 1}
    for loss_type in ("ORIGINAL", "IALSPP"):
        for kind, X, nu in (
            ("ones", make_ones(), 0.8),
            ("values", make_entries(), 0.0),
            ("values and nu", make_entries(), 0.8),
        ):
            parameters = {"alpha0": 0.3, "reg": 2.0 if nu == 0 else 0.05, "nu": nu}
            parameters["loss_type"] = loss_type
            model = IALSRecommender(X, solver_type="CHOLESKY", **settings, **parameters).learn()
            yield f"{loss_type} {kind}", X, parameters, model.get_item_embedding()


def run_cmfrec():
    from cmfrec import CMF, CMF_implicit

    settings = {"k": K, "niter": N_ITER, "use_cg": False, "finalize_chol": False, "nthreads": 1}
    settings |= {"use_float": False, "random_state": 0, "precompute_for_predictions": False}
    settings["verbose"] = False
    X = make_entries()
    model = CMF_implicit(alpha=0.8, lambda_=1.5, **settings).fit(sp.coo_matrix(X))
    yield "implicit", X, {"alpha": 0.8, "lambda_": 1.5}, model.B_
    plain = {"user_bias": False, "item_bias": False, "center": False}
    weights = sp.csc_matrix(X)
    weights.data = np.random.default_rng(1).uniform(0.5, 2, X.nnz)
    in_columns = sp.coo_matrix(sp.csc_matrix(X))  # in column-major order, or weights are mixed up
    for case, parameters in (
        ("explicit", {"lambda_": 0.9}),
        ("scaled", {"lambda_": 0.2, "scale_lam": True}),
        ("zeros", {"lambda_": 0.9, "NA_as_zero": True}),
        ("weights", {"lambda_": 0.9}),
    ):
        W = weights.data if case == "weights" else None
        model = CMF(**parameters, **plain, **settings).fit(in_columns, W=W)
        extra = {"entry_weights": weights.tocsr().data} if case == "weights" else {}
        yield case, X, parameters | plain, model.B_, extra


def run_lenskit():
    import pandas as pd
    from lenskit.als import ImplicitMFScorer
    from lenskit.data import from_interactions_df
    from lenskit.training import TrainingOptions

    X = make_entries()
    entries = X.tocoo()
    table = {"user_id": entries.row, "item_id": entries.col, "rating": entries.data}
    data = from_interactions_df(pd.DataFrame(table))
    for case, use_ratings in (("ones", False), ("ratings", True)):
        parameters = {"weight": 3.0, "regularization": 0.7, "use_ratings": use_ratings}
        model = ImplicitMFScorer(embedding_size=K, epochs=N_ITER, **parameters)
        model.train(data, TrainingOptions(rng=0))
        assert list(model.items.ids()) == list(range(M))
        yield case, X, parameters, model.item_embeddings


def run_spark():
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import SparkSession

    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    spark = SparkSession.builder.master("local[1]")
    spark = spark.config("spark.ui.enabled", "false").config("spark.driver.host", "127.0.0.1")
    spark = spark.config("spark.sql.shuffle.partitions", "1").getOrCreate()
    settings = {"rank": K, "userCol": "user", "itemCol": "item", "ratingCol": "value", "seed": 0}
    settings |= {"numUserBlocks": 1, "numItemBlocks": 1, "checkpointInterval": 10}
    with tempfile.TemporaryDirectory() as folder:
        spark.sparkContext.setCheckpointDir(folder)
        zeros = make_entries(signed=True)
        zeros.data[: zeros.indptr[1]] = zeros.data[::5] = 0
        implicit = {"implicitPrefs": True, "alpha": 0.8, "regParam": 0.1}
        for case, X, parameters in (
            ("explicit", make_entries(signed=True), {"regParam": 0.2}),
            ("explicit twice", make_entries(), {"regParam": 0.2}),
            ("implicit", make_entries(), implicit),
            ("implicit signed", zeros, implicit),
        ):
            entries = X.tocoo()
            # Ids need not be dense: those of items are 10, 13, 16 ...
            columns = entries.row, 10 + 3 * entries.col, entries.data
            rows = list(zip(*(column.tolist() for column in columns), strict=True))
            if case == "explicit twice":
                rows += rows[::3]
            table = spark.createDataFrame(rows, "user int, item int, value double").coalesce(1)
            model = ALS(maxIter=N_ITER // 10, **settings, **parameters).fit(table)
            U, V = (
                np.array([row.features for row in factors.orderBy("id").collect()], np.float32)
                for factors in (model.userFactors, model.itemFactors)
            )
            if case == "implicit signed":
                save_spark(model, FOLDER / "spark_model")
            best = model.recommendForAllUsers(3).orderBy("user").collect()
            best = np.array([[item.item for item in row.recommendations] for row in best])
            yield case, X, parameters, V, {"U": U, "best": best.astype(np.uint8)}
    spark.stop()


def save_spark(model, folder):
    """Save a model as Spark does, but for checksums."""
    model.write().overwrite().save(str(folder))
    for path in folder.rglob(".*.crc"):
        path.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=["implicit", "irspack", "cmfrec", "lenskit", "spark"])
    peer = parser.parse_args().peer
    names = "pyspark" if peer == "spark" else peer, "numpy", "scipy"
    FOLDER.mkdir(exist_ok=True)
    about = {"versions": {name: importlib.metadata.version(name) for name in names}, "cases": {}}
    arrays = {}
    for case, X, parameters, V, *extra in globals()[f"run_{peer}"]():
        about["cases"][case] = parameters
        arrays |= {f"{case}/V": V, f"{case}/values": X.data}
        arrays |= {f"{case}/{name}": array for name, array in (extra or [{}])[0].items()}
        arrays |= {"indices": X.indices.astype(np.uint8), "indptr": X.indptr.astype(np.int16)}
        print(peer, case, V.dtype, V.shape, np.linalg.norm(V))
    np.savez_compressed(FOLDER / f"{peer}.npz", about=np.array(json.dumps(about)), **arrays)


if __name__ == "__main__":
    main()
