"""The libraries that are compared, behind one interface, and the objective that judges them.

All of them can minimise, for a matrix A whose stored entries are ones, with p_ij = u_i . v_j,

    L(U, V) = sum over stored ij of (1 + w0) (a_ij - p_ij)^2 + sum over all others of w0 p_ij^2
              + reg (sum_i |u_i|^2 + sum_j |v_j|^2)

The comment of each adapter says how its parameters express L; ``bench.py --study mapping`` checks
it. Spark's ALS is not here: it multiplies reg by the number of entries of each row and column.
"""

import numpy as np

W0 = REG = 0.1


def objective(X, U, V):
    """Return L in float64."""
    U, V = np.asarray(U, dtype=np.float64), np.asarray(V, dtype=np.float64)
    total = W0 * np.sum((U.T @ U) * (V.T @ V)) + REG * (np.sum(U**2) + np.sum(V**2))
    for top in range(0, X.shape[0], 100):  # few enough rows that what is gathered stays in cache
        block = X[top : top + 100].tocoo()
        p = np.einsum("ij,ij->i", U[top + block.row], V[block.col])
        total += np.sum((1 + W0) * (block.data - p) ** 2 - W0 * p**2)
    return total


def projection(rows, V):
    """Return the factors of `rows` that minimise L with V fixed, in float64."""
    V = np.asarray(V, dtype=np.float64)
    base = W0 * V.T @ V + REG * np.eye(V.shape[1])
    stored = [V[columns] for columns in split(rows)]
    return np.array([np.linalg.solve(base + v.T @ v, (1 + W0) * v.sum(axis=0)) for v in stored])


def split(rows):
    """Return the columns of the stored entries of every row."""
    return np.split(rows.indices, rows.indptr[1:-1])


class Library:
    """A library, ready to fit X.

    Parameters
    ----------
    X : csr_matrix of ones, float32
    k, n_threads : int
    **settings
        What tells the entries of `LIBRARIES` apart.
    """

    #: What to import.
    module = ""
    #: Whether `fit` starts from V0; otherwise from a start of its own.
    takes_start = True
    #: Whether `fit` calls ``watch(U, V)`` after every iteration.
    steps = True

    def __init__(self, X, k, n_threads, **settings):
        self.X, self.k, self.n_threads, self.settings = X, k, n_threads, settings

    def fit(self, n_iter, V0=None, watch=None):
        """Return U and V after `n_iter` iterations, from the library's own start if V0 is None."""
        raise NotImplementedError

    def project(self, rows):
        """Return factors of `rows`, with V of the last fit fixed."""
        raise NotImplementedError("no projection of rows that minimises L")

    def zeros(self):
        return np.zeros((self.X.shape[0], self.k), dtype=np.float32)


class Wals(Library):
    # L as it is.
    module = "wals"
    steps = False

    def fit(self, n_iter, V0=None, watch=None):
        from wals import WALS

        self.model = WALS(
            self.k,
            unobserved_weight=W0,
            regularization=REG,
            max_iter=n_iter,
            n_jobs=self.n_threads,
            random_state=0,
            **self.settings,
            **{} if V0 is None else {"init": V0},
        ).fit(self.X)
        return self.model.row_factors_, self.model.col_factors_

    def project(self, rows):
        return self.model.transform(rows)


class Implicit(Library):
    # L / w0: weight 1 where nothing is stored, alpha where something is.
    module = "implicit.cpu.als"

    def fit(self, n_iter, V0=None, watch=None):
        from implicit.cpu.als import AlternatingLeastSquares

        self.model = model = AlternatingLeastSquares(
            self.k,
            regularization=REG / W0,
            alpha=(1 + W0) / W0,
            iterations=n_iter,
            num_threads=self.n_threads,
            random_state=0,
            **self.settings,
        )
        if V0 is not None:
            model.item_factors, model.user_factors = V0.copy(), self.zeros()
        callback = watch and (lambda *_: watch(model.user_factors, model.item_factors))
        model.fit(self.X, show_progress=False, callback=callback)
        return model.user_factors, model.item_factors

    def project(self, rows):
        return self.model.recalculate_user(np.arange(rows.shape[0]), rows)


class Irspack(Library):
    # L / 2: with the loss "ORIGINAL" the weight of stored entries is 1 + alpha0 (with the default,
    # alpha0 of that pulls towards 0); nu = 0 leaves reg unscaled.
    module = "irspack"

    def fit(self, n_iter, V0=None, watch=None):
        from irspack import IALSRecommender

        self.model = IALSRecommender(
            self.X,
            n_components=self.k,
            alpha0=W0,
            reg=REG,
            nu=0,
            loss_type="ORIGINAL",
            n_threads=self.n_threads,
            **self.settings,
        )
        self.model.start_learning()
        core = self.model.trainer.core_trainer
        if V0 is not None:
            core.item, core.user = V0, self.zeros()
        for _ in range(n_iter):
            self.model.run_epoch()
            if watch:
                watch(core.user, core.item)
        return core.user, core.item

    def project(self, rows):
        return self.model.compute_user_embedding(rows)


class Cmfrec(Library):
    # L / w0: weight 1 where nothing is stored, 1 + alpha where something is. But with use_cg, the
    # right-hand side has the factor alpha and the matrix alpha + 2 (as of 3.5.1, where both should
    # have 1 + alpha). What that minimises is a multiple of L as well, if alpha + 2 = (1 + w0) / w0,
    # of factors that are sqrt(scale) as large.
    module = "cmfrec"
    takes_start = steps = False

    def fit(self, n_iter, V0=None, watch=None):
        from cmfrec import CMF_implicit

        cg = self.settings["use_cg"]
        alpha, scale = ((1 - W0) / W0, (1 - W0) / (1 + W0)) if cg else (1 / W0, 1)
        self.model = model = CMF_implicit(
            self.k,
            lambda_=scale * REG / W0,
            alpha=alpha,
            niter=n_iter,
            nthreads=self.n_threads,
            precompute_for_predictions=False,
            **self.settings,
        ).fit(self.X)
        return model.A_ / np.sqrt(scale), model.B_ / np.sqrt(scale)

    def project(self, rows):
        if self.settings["use_cg"]:  # it would solve for the other alpha, by Cholesky
            return super().project(rows)
        return self.model.factors_multiple(rows)


class LensKit(Library):
    # L / w0: weight 1 where nothing is stored, 1 + weight where something is.
    module = "lenskit.als"

    def __init__(self, X, k, n_threads):
        import pandas as pd
        from lenskit.data import from_interactions_df

        super().__init__(X, k, n_threads)
        users, items = map(np.arange, X.shape)
        entries = pd.DataFrame({"user_id": X.tocoo().row, "item_id": X.indices})
        self.data = from_interactions_df(entries, users=users, items=items)

    def fit(self, n_iter, V0=None, watch=None):
        from lenskit.als import ImplicitMFScorer
        from lenskit.training import TrainingOptions

        self.model = model = ImplicitMFScorer(
            embedding_size=self.k, epochs=n_iter, regularization=REG / W0, weight=1 / W0
        )
        trainer = model.create_trainer(self.data, TrainingOptions(rng=0))
        if V0 is not None:
            U0 = self.zeros()
            trainer.load_parameters({"user_embeddings": U0, "item_embeddings": V0.copy()})
        for _ in range(n_iter):
            trainer.train_epoch()
            if watch:
                watch(model.user_embeddings, model.item_embeddings)
        trainer.finalize()
        return model.user_embeddings, model.item_embeddings

    def project(self, rows):
        from lenskit.data import ItemList

        lists = (ItemList(item_nums=one, vocabulary=self.model.items) for one in split(rows))
        return np.array([self.model.new_user_embedding(None, one)[0] for one in lists])


#: Name -> adapter, and what it passes to the library.
LIBRARIES = {
    "wals auto": (Wals, {"solver": "auto"}),
    "wals cg": (Wals, {"solver": "cg"}),
    "wals exact": (Wals, {"solver": "exact"}),
    "implicit CG(3)": (Implicit, {"use_cg": True}),
    "implicit Cholesky": (Implicit, {"use_cg": False}),
    "irspack CG(3)": (Irspack, {"solver_type": "CG"}),
    "irspack Cholesky": (Irspack, {"solver_type": "CHOLESKY"}),
    "irspack iALS++": (Irspack, {"solver_type": "IALSPP"}),
    "cmfrec CG(3)": (Cmfrec, {"use_cg": True}),
    "cmfrec Cholesky": (Cmfrec, {"use_cg": False}),
    "LensKit Cholesky": (LensKit, {}),
}
