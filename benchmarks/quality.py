"""How well tuned models rank and predict held-out entries: WALS, implicit and irspack.

    pip install ".[benchmark]"
    python benchmarks/quality.py --data FOLDER                   # everything
    python benchmarks/quality.py --study msweb search metrics    # what needs no FOLDER

FOLDER has what may not be distributed with this project: gowalla_train.npz and gowalla_test.npz
(SciPy CSR; the split of the LightGCN paper) and ml100k.csv.gz (user, item, rating, timestamp). A
study without its data is left out, and said to be.

The protocol is the same for all libraries. 20 % of the entries of every training row are hidden;
`--candidates` random settings of a library are compared on them by NDCG@20, at the smallest k; at
every larger k, the best quarter of those before. The best is fitted to all of the training data
with three seeds, and only then meets the test data. Training entries are not ranked. Beyond
k = 256, where only WALS is run, since the others take hours, `--refined` settings near the best one
before are compared as well. For RMSE, what is predicted are ratings less their mean, with
unobserved_weight = 0, which only WALS has.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from bench import in_process, machine, table
from joblib import Parallel, delayed
from scipy.stats import loguniform
from sklearn.model_selection import ParameterSampler
from threadpoolctl import threadpool_limits

from wals import WALS
from wals.metrics import ndcg_at_k, recall_at_k, rmse
from wals.model_selection import split_entries
from wals.weights import power_law

SEEDS = (0, 1, 2)
#: What the number of settings is divided by, at every larger k.
FEWER = 4
ALL = slice(None)
STUDIES = {}


# ------------------------------------------------------------ libraries: U and V of tuned models


def normalised(exponent, counts):
    """Return weights that are powers of the counts, 1 on average over stored entries."""
    weights = power_law(exponent)(counts)
    mean = weights @ counts / counts.sum()
    return weights / mean


def fit_wals(X, k, seed, row_exponent=0.0, col_exponent=0.0, **parameters):
    col_weights = normalised(col_exponent, np.bincount(X.indices, minlength=X.shape[1]))
    model = WALS(k, col_weights=col_weights, random_state=seed, **parameters)
    model.fit(X, row_weights=normalised(row_exponent, np.diff(X.indptr)))
    return model.row_factors_, model.col_factors_


def fit_implicit(X, k, seed, **parameters):
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(k, random_state=seed, **parameters)
    model.fit(X, show_progress=False)
    return model.user_factors, model.item_factors


def fit_irspack(X, k, seed, **parameters):
    from irspack import IALSRecommender

    model = IALSRecommender(X, n_components=k, random_seed=seed, **parameters)
    model.start_learning()
    for _ in range(model.train_epochs):  # what `learn` does, without its progress bar
        model.run_epoch()
    core = model.trainer.core_trainer
    return core.user, core.item


W0 = loguniform(0.003, 0.3)
ITERATIONS = [5, 10, 15]
PLAIN = {
    "unobserved_weight": W0,
    "regularization": loguniform(0.002, 0.1),
    "regularization_exponent": [1.0],
    "max_iter": ITERATIONS,
}
#: Name -> how to fit, and what to draw the settings from.
LIBRARIES = {
    "wals": (fit_wals, PLAIN),
    "wals, weights": (
        fit_wals,
        PLAIN | {"row_exponent": [0.0, -0.25, -0.5], "col_exponent": [0.0, -0.25, -0.5]},
    ),
    "implicit": (
        fit_implicit,
        {
            "alpha": loguniform(3, 300),
            "regularization": loguniform(0.1, 100),
            "iterations": ITERATIONS,
        },
    ),
    "irspack": (
        fit_irspack,
        {
            "alpha0": W0,
            "reg": loguniform(0.0003, 0.1),
            "nu": [1.0],
            "train_epochs": ITERATIONS,
        },
    ),
}


def near(settings, n):
    """Return n random settings near these."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(n):
        drawn.append({})
        for name, value in settings.items():
            if name in ("row_exponent", "col_exponent"):
                value += rng.uniform(-0.2, 0.2)
            elif isinstance(value, int):
                value = int(rng.choice(ITERATIONS))
            elif name != "regularization_exponent":
                value *= np.exp(rng.normal(scale=0.4))
            drawn[-1][name] = value
    return drawn


def rank(U, V, seen, n=20, size=500):
    """Return the n best columns of every row, without those seen, some rows at a time."""

    def rank_rows(rows):
        scores = U[rows] @ V.T
        scores[seen[rows].nonzero()] = -np.inf
        best = np.argpartition(-scores, n, axis=1)[:, :n]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        return np.take_along_axis(best, order, axis=1)

    parts = [slice(top, top + size) for top in range(0, len(U), size)]
    parallel = Parallel(n_jobs=-1, prefer="threads")
    return np.concatenate(parallel(delayed(rank_rows)(rows) for rows in parts))


def ranking(name, train, test, k, seed, settings, rows=ALL):
    """Return Recall@20 and NDCG@20 of a setting in these rows, and the seconds of its fit."""
    start = time.perf_counter()
    U, V = LIBRARIES[name][0](train, k, seed, **settings)
    seconds = time.perf_counter() - start
    ranked = rank(U[rows], V, train[rows])
    return recall_at_k(test[rows], ranked, 20), ndcg_at_k(test[rows], ranked, 20), seconds


def tuned(options, data, splits, ks):
    """Yield a row of results for every k and library.

    `splits` are pairs of training and test data, one for all seeds or one each; settings are chosen
    on the training data of the first, in at most 5,000 rows.
    """
    inner, hidden = split_entries(splits[0][0], 0.2, strategy="per-row", random_state=0)
    rows = np.random.default_rng(0).permutation(inner.shape[0])[:5000]
    splits = splits * len(SEEDS) if len(splits) == 1 else splits
    candidates = {
        name: list(ParameterSampler(space, options.candidates, random_state=0))
        for name, (_, space) in LIBRARIES.items()
    }
    for k, name in itertools.product(ks, options.libraries):
        if k > 256 and not name.startswith("wals"):
            continue
        settings = candidates[name]
        if k > 256:
            settings = settings + near(settings[0], options.refined)
        if len(settings) > 1:
            scores = [ranking(name, inner, hidden, k, 0, one, rows)[1] for one in settings]
            settings = [settings[i] for i in np.argsort(scores)[::-1]]
            candidates[name] = settings[: max(1, len(settings) // FEWER)]
        runs = [ranking(name, *split, k, seed, settings[0]) for seed, split in enumerate(splits)]
        recall, ndcg, seconds = np.transpose(runs)
        yield {
            "data": data,
            "library": name,
            "k": k,
            "recall@20": recall.mean(),
            "ndcg@20": ndcg.mean(),
            "spread": max(np.ptp(recall), np.ptp(ndcg)),
            "s_fit": seconds.mean(),
            "settings": settings[0],
        }


# ---------------------------------------------------------------------------------------- studies


def study(columns, *files):
    """Make a generator of rows a study, which needs these files of FOLDER."""

    def register(generator):
        STUDIES[generator.__name__] = generator, columns, files
        return generator

    return register


RANKED = "library k recall@20:.4f ndcg@20:.4f spread:.4f s_fit:.1f"


def ones(X):
    """Return the pattern of a matrix as float32 ones."""
    X = sp.csr_matrix(X, dtype=np.float32)
    X.data[:] = 1
    return X


@study(RANKED, "gowalla_train.npz", "gowalla_test.npz")
def gowalla(options):
    """Gowalla. Published: LightGCN .1830/.1554, SimpleX .1872/.1557, UltraGCN .1862/.1580."""
    split = [ones(sp.load_npz(options.data / f"gowalla_{part}.npz")) for part in ("train", "test")]
    return tuned(options, "gowalla", [split], options.components or (64, 256, 512, 1024))


def movielens_ratings(options):
    values = np.loadtxt(options.data / "ml100k.csv.gz", delimiter=",", skiprows=1)
    users, items = values[:, :2].astype(int).T - 1
    return sp.csr_matrix((values[:, 2].astype(np.float32), (users, items)))


@study(RANKED, "ml100k.csv.gz")
def movielens(options):
    """MovieLens-100K, all ratings as ones: five random splits."""
    X = ones(movielens_ratings(options))
    splits = [split_entries(X, 0.2, random_state=seed) for seed in range(5)]
    return tuned(options, "movielens", splits, options.components or (16, 64))


@study(RANKED)
def msweb(options):
    """Anonymous Microsoft Web Data: five random splits."""
    from wals.datasets import load_msweb

    X = ones(load_msweb())
    splits = [split_entries(X, 0.2, random_state=seed) for seed in range(5)]
    return tuned(options, "msweb", splits, options.components or (16, 64))


@study("k rmse:.4f spread:.4f", "ml100k.csv.gz")
def ratings(options):
    """MovieLens-100K, RMSE of predicted ratings: five random splits."""
    X = movielens_ratings(options)
    space = {
        "regularization": loguniform(0.03, 0.5),
        "regularization_exponent": [0.75, 1.0],
        "max_iter": ITERATIONS,
    }

    def error(train, test, k, seed, settings):
        mean = train.data.mean()
        train = train.copy()
        train.data -= mean
        model = WALS(k, unobserved_weight=0, random_state=seed, **settings).fit(train)
        predicted = model.inverse_transform(model.row_factors_, pattern=test)
        predicted.data += mean
        return rmse(test, predicted)

    splits = [split_entries(X, 0.2, random_state=seed) for seed in range(5)]
    inner, hidden = split_entries(splits[0][0], 0.2, random_state=0)
    for k in options.components or (8, 64):
        candidates = list(ParameterSampler(space, options.candidates, random_state=0))
        best = min(candidates, key=lambda settings: error(inner, hidden, k, 0, settings))
        errors = [error(*split, k, seed, best) for seed, split in enumerate(splits)]
        yield {"k": k, "rmse": np.mean(errors), "spread": np.ptp(errors), "settings": best}


@study("n_jobs seconds:.1f cores:.2f best:.4f equal", "ml100k.csv.gz")
def search(options):
    """RandomizedSearchCV, 60 candidates and 3 folds, on MovieLens-100K."""
    from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

    from joblib.externals.loky import get_reusable_executor
    from sklearn.model_selection import RandomizedSearchCV

    from wals.model_selection import holdout_scorer

    X = ones(movielens_ratings(options))
    space = {
        "n_components": [8, 16, 32, 64],
        "unobserved_weight": W0,
        "regularization": loguniform(0.3, 30),
    }
    first = None
    for n_jobs in (2, 1):
        searched = RandomizedSearchCV(
            WALS(random_state=0, max_iter=10),
            space,
            n_iter=60,
            scoring=holdout_scorer("ndcg@20"),
            cv=3,
            n_jobs=n_jobs,
            random_state=0,
        )
        before, start = [getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN)], time.time()
        searched.fit(X)
        seconds = time.time() - start
        get_reusable_executor().shutdown()  # so that the time of its workers is known
        after = [getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN)]
        used = sum(
            a.ru_utime + a.ru_stime - b.ru_utime - b.ru_stime
            for a, b in zip(after, before, strict=True)
        )
        scores = searched.cv_results_["mean_test_score"]
        first = scores if first is None else first
        yield {
            "n_jobs": n_jobs,
            "seconds": seconds,
            "cores": used / seconds,
            "best": searched.best_score_,
            "equal": bool((scores == first).all()),
        }


@study("metric seconds:.3f")
def metrics(options):
    """Seconds of a metric for 100,000 rows at k = 100."""
    from wals import metrics

    rng = np.random.default_rng(0)
    truth = sp.random_array((100_000, 20_000), density=0.001, format="csr", rng=rng)
    ranked = np.argsort(rng.random((100, 20_000)), axis=1)[rng.integers(100, size=100_000), :100]
    for name in sorted(name for name in dir(metrics) if name.endswith("_at_k")):
        start = time.perf_counter()
        getattr(metrics, name)(truth, ranked, 100)
        yield {"metric": name, "seconds": time.perf_counter() - start}


def main():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add, here = parser.add_argument, Path(__file__).parent
    add("--data", type=Path, default=Path("data"), help="FOLDER")
    add("--study", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    add("--libraries", nargs="+", default=list(LIBRARIES), choices=list(LIBRARIES))
    add("--components", type=int, nargs="+", help="k, instead of those of the study")
    add("--candidates", type=int, default=48)
    add("--refined", type=int, default=8)
    add("--output", type=Path, default=here / "quality.json")
    options = parser.parse_args()
    threadpool_limits(1, "blas")  # implicit asks for that; all call it from threads of their own

    described = in_process(machine)
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    for name in options.study:
        generator, columns, files = STUDIES[name]
        missing = [file for file in files if not (options.data / file).exists()]
        if missing:
            print(f"\n{name}: left out, without {', '.join(missing)}")
            continue
        # Libraries that are not run keep the rows that they have.
        rows = results.get(name, {}).get("rows", [])
        rows = [
            row for row in rows if row.get("library", options.libraries[0]) not in options.libraries
        ]
        for row in generator(options):  # writes all there is, after every row
            rows.append(row)
            results[name] = {"machine": described, "candidates": options.candidates, "rows": rows}
            options.output.write_text(json.dumps(results, indent=1, default=float) + "\n")
        print(f"\n{generator.__doc__}\n\n{table(rows, columns)}", flush=True)


if __name__ == "__main__":
    main()
