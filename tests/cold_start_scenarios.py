"""Compile one small kernel, and print what happened, as JSON; run by test_cold_start."""

import json
import logging
import sys
import warnings

import numpy as np
import scipy.sparse as sp


def main(dtype):
    with warnings.catch_warnings(record=True) as at_import:
        warnings.simplefilter("always")
        import wals
        from wals._core import cache, passes
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("wals").addHandler(handler)
    cache._PATIENCE = 0.0
    X = sp.csr_array(np.arange(12, dtype=dtype).reshape(3, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            Xt = passes.transpose(X, n_threads=2)
    np.testing.assert_array_equal(Xt.toarray(), X.toarray().T)
    told = {
        "file": wals.__file__,
        "folder": passes._transpose._cache.cache_path,
        "compiled": cache.compiled_seconds() > 0,
        "at_import": [str(warning.message) for warning in at_import],
        "warnings": [str(warning.message) for warning in caught],
        "log": records,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
