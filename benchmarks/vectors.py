"""Search an index of vectors for the best columns, and compare with the exact ones.

    python benchmarks/vectors.py GOWALLA.npz          # a CSR matrix, for its factors

Recall of the exact top 20 of 5,000 rows, and the time of a row, by a graph of faiss (HNSW with 32
links, efConstruction 200) whose vectors were added by falling norm, as `item_vectors` has them, in
the order of the columns, and by rising norm; and by its exhaustive search. Cosines likewise, of
5,000 columns. All see all columns: nothing is excluded.
"""

import argparse
import os
import time
from pathlib import Path

import faiss
import numpy as np
import scipy.sparse as sp

from wals import WALS

N, ROWS, LINKS, CONSTRUCTION = 20, 5000, 32, 200


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def recall(found, exact):
    hits = [len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)]
    return sum(hits) / np.count_nonzero(exact >= 0)


def measure(name, queries, exact, vectors, columns, seconds):
    print(f"{name}: recommend or similar takes {1e6 * seconds / len(queries):.0f} us a row")
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    (_, found), seconds = timed(flat.search, queries, N)
    print(
        f"  exhaustive: {recall(columns[found], exact):.4f}, {1e6 * seconds / len(queries):.0f} us"
    )
    rank = np.arange(len(columns))
    orders = {"falling norm": rank, "by column": np.argsort(columns), "rising norm": rank[::-1]}
    for order, places in orders.items():
        index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = CONSTRUCTION
        _, built = timed(index.add, np.ascontiguousarray(vectors[places]))
        texts = []
        for ef in (32, 64, 128, 256, 512):
            index.hnsw.efSearch = ef
            (_, found), seconds = timed(index.search, queries, N)
            found = np.where(found >= 0, columns[places][found], -2)
            microseconds = 1e6 * seconds / len(queries)
            texts.append(f"ef {ef} {recall(found, exact):.4f} {microseconds:.0f} us")
        print(f"  {order}, built in {built:.1f} s: " + ", ".join(texts))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("matrix", type=Path)
    parser.add_argument("--components", type=int, default=64)
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.2f}, {faiss.omp_get_max_threads()} threads")
    X = sp.csr_array(sp.load_npz(arguments.matrix)).astype(np.float32)
    model = WALS(arguments.components, max_iter=8, random_state=0).fit(X)
    U = model.row_factors_[:ROWS]
    model.recommend(None, N, factors=U)
    (exact, _), seconds = timed(lambda: model.recommend(None, N, factors=U))
    measure("inner product", U, exact, *model.item_vectors(), seconds)
    vectors, columns = model.item_vectors("cosine")
    some = np.sort(columns[:: len(columns) // ROWS][:ROWS])
    (exact, _), seconds = timed(lambda: model.similar(some, N - 1))
    queries = vectors[np.argsort(columns)[np.searchsorted(np.sort(columns), some)]]
    exact = np.c_[some, exact]  # each is nearest to itself
    measure("cosine", queries, exact, vectors, columns, seconds)


if __name__ == "__main__":
    main()
