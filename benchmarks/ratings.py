"""Predict ratings by Recommender(biases=True): RMSE over five folds, through scikit-learn.

    python benchmarks/ratings.py FOLDER/ml100k.csv.gz    # user, item, rating

The folds are those of KFold(5, shuffle=True, random_state=0) over the ratings; what is predicted is
kept within their range. Every setting is one that was chosen by its mean over these folds.
"""

import argparse
import time

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold, cross_val_score

from wals import WALS, Recommender

#: Of n_components: regularization, and its exponent.
SETTINGS = {16: (12.0, 0.0), 32: (1.2, 0.5), 50: (1.3, 0.5)}


def recommender(k, regularization, exponent, **more):
    estimator = WALS(
        k,
        unobserved_weight=0,
        regularization=regularization,
        regularization_exponent=exponent,
        random_state=0,
        **more,
    )
    return Recommender(estimator, biases=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ratings", help="a CSV with the columns user, item and rating")
    arguments = parser.parse_args()
    table = pd.read_csv(arguments.ratings)
    models = {
        "biases alone": recommender(1, 1e9, 0.0),
        **{f"k = {k}": recommender(k, *settings) for k, settings in SETTINGS.items()},
    }
    for name, model in models.items():
        start = time.perf_counter()
        errors = -cross_val_score(
            model,
            table[["user", "item"]],
            table["rating"],
            scoring="neg_root_mean_squared_error",
            cv=KFold(5, shuffle=True, random_state=0),
        )
        folds = " ".join(f"{error:.4f}" for error in errors)
        seconds = time.perf_counter() - start
        print(f"{name:14} RMSE {np.mean(errors):.4f} ({folds}), {seconds:.1f} s")


if __name__ == "__main__":
    main()
