"""Time, memory and accuracy of WALS and of other libraries on one problem, judged by one objective.

    pip install ".[benchmark]"
    python benchmarks/bench.py                          # time per iteration, time to an objective
    python benchmarks/bench.py --study memory threads   # other studies; all of them: --study all
    python benchmarks/bench.py --data X.npz             # on your own matrix

Every measurement is a process of its own, with its threads pinned. The clock is around whole fits;
what is timed was run before, so that it is compiled. Times are the best of `--repeat`, but no new
repetition starts after one minute; and of `--rounds`, in each of which all libraries take turns, so
that a machine that is slow for a while is so for all of them. Seconds per iteration are (time of n
iterations - time of 1) / (n - 1). Objectives are computed outside the clock, in float64, by
`libraries.objective`.

"same V0" says that the library started from the V0 of all others, "own start" that it did not. A
library that fails, or takes longer than `--timeout`, is a row that says so. results.json tells of
every row the load average before it, and how many cores other programs took meanwhile. All this
is for Linux.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import inspect
import itertools
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from libraries import LIBRARIES, REG, W0, objective, projection

N_ITER = 6
CURVE, N_CURVE = (1, 2, 3, 5, 8, 12, 15, 20, 25, 30), 15
WITHIN = 1.001
REFERENCE = "wals exact"
FAST = ("wals auto", "implicit CG(3)", "irspack CG(3)", "irspack iALS++", "cmfrec CG(3)")
DISTRIBUTIONS = "wals numpy scipy scikit-learn numba implicit irspack cmfrec lenskit"
STUDIES = {}


# -------------------------------------------------- tasks: what one process measures of a library


def best_of(repeat, function, *args):
    """Return the least seconds that function(*args) took, and its last result."""
    seconds, started = [], time.perf_counter()
    while len(seconds) < repeat and (not seconds or time.perf_counter() < started + 60):
        start = time.perf_counter()
        result = function(*args)
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def same_start(library):
    """Return the V0 for all libraries, distributed as WALS's own."""
    shape = library.X.shape[1], library.k
    return (np.random.default_rng(0).uniform(size=shape) / np.sqrt(library.k)).astype(np.float32)


def per_iteration(load, repeat):
    """Measure the seconds per iteration, from the same start."""
    library = load()
    V0 = same_start(library)
    library.fit(1, V0)
    one, _ = best_of(repeat, library.fit, 1, V0)
    many, factors = best_of(repeat, library.fit, N_ITER, V0)
    return {"s_one": one, "s_fit": many, "objective": objective(library.X, *factors)}


def whole_fit(load, repeat):
    """Measure 15 iterations from the library's own start, and the first fit of the process."""
    library = load()
    first, _ = best_of(1, library.fit, 1)
    seconds, factors = best_of(repeat, library.fit, 15)
    return {"s_first": first, "s_fit": seconds, "objective": objective(library.X, *factors)}


def curve(load, repeat, target=np.inf):
    """Measure the objective against the seconds of a fit, from the library's own start.

    In one fit, whose clock stops while the objective is computed, if the library shows its factors
    after every iteration; otherwise, in a fit of so many iterations for every point. Ends after
    N_CURVE iterations if the target is reached by then, at the next point where it is otherwise.
    """
    library = load()
    library.fit(1)
    points = {}

    def add(n, seconds, *factors):
        """Add a point, or better its time; return whether it is the last."""
        fewest, value = points.get(n) or (np.inf, objective(library.X, *factors))
        points[n] = min(fewest, seconds), value
        return n >= N_CURVE and value <= target

    def watched_fit():
        n, pause, start = 0, 0.0, time.perf_counter()

        def watch(U, V):
            nonlocal n, pause
            now, n = time.perf_counter(), n + 1
            if n in CURVE and add(n, now - start - pause, U, V):
                raise StopIteration
            pause += time.perf_counter() - now

        with contextlib.suppress(StopIteration):
            library.fit(CURVE[-1], None, watch)

    if library.steps:
        best_of(repeat, watched_fit)
    else:
        for n in CURVE:
            seconds, factors = best_of(repeat, library.fit, n)
            if add(n, seconds, *factors):
                break
    n, seconds, values = zip(*((n, *point) for n, point in points.items()), strict=True)
    seconds = np.minimum.accumulate(seconds[::-1])[::-1]  # fewer iterations do not take longer
    return {
        "curve": list(zip(n, seconds.tolist(), values, strict=True)),
        "objective": points[N_CURVE][1],
    }


def project(load, repeat):
    """Measure the projection of 20,000 rows, and the relative error of 50 of them."""
    library = load()
    _, V = library.fit(1, same_start(library))
    rows = library.X[:20_000]
    library.project(rows)
    seconds, U = best_of(repeat, library.project, rows)
    sample = np.random.default_rng(0).choice(rows.shape[0], 50, replace=False)
    exact = projection(rows[sample], V)
    return {"s_project": seconds, "error": relative_error(U[sample], exact)}


def relative_error(value, exact):
    return np.linalg.norm(value - exact) / np.linalg.norm(exact)


def converge(load, repeat):
    """Measure how far the factors are from minimising L, each with the other fixed, in the end."""
    library = load()
    U, V = library.fit(1000, same_start(library))
    X, Xt = library.X, library.X.T.tocsr()
    error = relative_error(U, projection(X, V)), relative_error(V, projection(Xt, U))
    return {"objective": objective(X, U, V), "error": max(error)}


def peak_memory(load, repeat):
    """Measure the peak of the resident set during 2 iterations, above the import and a tiny fit.

    The unit is the least that a fit has to hold: X and X^T as CSR, and the factors. What a library
    has to make of X before counts, too. What a tiny fit adds to the import, compiled code and what
    loads it, is the same for all sizes.
    """
    bare = resident("VmRSS")
    library = load()
    X, library.X = library.X, library.X[:100, :100]
    library.fit(2)
    library.X, before = X, X.data.nbytes + X.indices.nbytes + X.indptr.nbytes
    fixed = resident("VmRSS") - bare - before
    library.fit(2)
    peak = resident("VmHWM") - bare
    least = 2 * (X.data.nbytes + X.indices.nbytes) + (8 + 4 * library.k) * sum(X.shape)
    return {
        "mib": peak / 2**20,
        "fixed_mib": fixed / 2**20,
        "least_mib": least / 2**20,
        "units": (peak - fixed) / least,
        "units_with_fixed": peak / least,
    }


def resident(key):
    """Return a line of /proc/self/status in bytes: VmRSS is resident now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def grid_search(load, repeat):
    """Measure GridSearchCV, 20 candidates and 3 folds, against a loop of the same 60 fits."""
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV, KFold, ParameterGrid

    from wals import WALS

    library = load()
    X, model = library.X, WALS(library.k, n_jobs=library.n_threads, random_state=0)
    grid = {"regularization": [0.1, 0.5, 2, 5, 10], "unobserved_weight": [0.01, 0.03, 0.1, 0.3]}

    def plain_fits():
        for train, _ in KFold(3).split(X):
            for parameters in ParameterGrid(grid):
                clone(model).set_params(**parameters).fit(X[train])

    model.fit(X).score(X)
    search, _ = best_of(repeat, GridSearchCV(model, grid, cv=3, refit=False).fit, X)
    fits, _ = best_of(repeat, plain_fits)
    return {"s_search": search, "s_fits": fits, "ratio": search / fits}


# ------------------------------------------------------------------------------------- processes


def perform(task, name, problem, k, n_threads, repeat, settings):
    """Run a task in this process, on the problem of a file."""
    adapter, parameters = LIBRARIES[name]
    seconds, _ = best_of(1, importlib.import_module, adapter.module)

    def load():
        X = sp.csr_matrix(sp.load_npz(problem))
        return adapter(X, k, n_threads, **parameters)

    return {"s_import": seconds, **task(load, repeat, **settings)}


def send(connection, function, args):
    try:
        connection.send(function(*args))
    except BaseException as error:
        connection.send({"failed": f"{type(error).__name__}: {error}"})


def in_process(function, *args, n_threads=1, timeout=None, **environment):
    """Return function(*args) from a new process with pinned threads, or how it failed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(theirs, function, args))
    with pinned(n_threads, **environment):
        process.start()
    theirs.close()
    try:
        result = ours.recv() if ours.poll(timeout) else {"failed": f"no end after {timeout} s"}
    except EOFError:
        process.join()
        result = {"failed": f"died with exit code {process.exitcode}"}
    process.join(10 if "failed" not in result else 0)
    process.kill()
    process.join()
    return result


@contextlib.contextmanager
def pinned(n_threads, **environment):
    """Pin the threads of a process that is started inside.

    BLAS gets one: implicit asks for that, and all libraries call it from threads of their own. The
    variables that make OpenBLAS use the code of an older processor are dropped.
    """
    before = dict(os.environ)
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    for name in ("OMP", "NUMBA", "RAYON", "LK"):
        os.environ[f"{name}_NUM_THREADS"] = str(n_threads)
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **environment}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def busy_seconds():
    """Return the processor seconds of all other programs since the machine started."""
    user, nice, system, _idle, _wait, *others = Path("/proc/stat").read_text().split()[1:9]
    busy = sum(map(int, (user, nice, system, *others))) / os.sysconf("SC_CLK_TCK")
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy - sum(usage.ru_utime + usage.ru_stime for usage in ours)


def machine():
    """Describe this machine, and what is installed."""
    from threadpoolctl import threadpool_info

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    versions = {
        package.name: package.version
        for package in importlib.metadata.distributions()
        if package.name in DISTRIBUTIONS.split()
    }
    return {
        "processor": next(models, platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "blas": [f"{lib['internal_api']} {lib.get('architecture')}" for lib in threadpool_info()],
    }


# ---------------------------- studies: generators of rows; a docstring is the title of the table


class Bench:
    """What all studies share: the options, the problems on disk, and how to measure a row."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.problem = functools.cache(self.problem)
        self.small = functools.partial(self.problem, 100_000, 943, 1682)

    def problem(self, entries=None, n_samples=None, n_features=None):
        """Return the file of a random problem, by default of the one that the options tell."""
        from wals.datasets import make_interactions

        if entries is None and self.options.data:
            X = sp.csr_matrix(sp.load_npz(self.options.data), dtype=np.float32)
            X.sum_duplicates()
            X.data[:] = 1
            return self.save(X)
        shape = n_samples or self.options.samples, n_features or self.options.features
        X = make_interactions(*shape, entries or self.options.entries, random_state=0)
        return self.save(X)

    def save(self, X):
        _, path = tempfile.mkstemp(".npz", dir=self.folder)
        sp.save_npz(path, X, compressed=False)
        return path

    def k(self, *ks):
        return self.options.components or ks

    def sweep(self, task, names, ks, problem=None, *, threads=(None,), **more):
        """Yield a row for every k, every library that the options allow, and number of threads."""
        names = [name for name in names if name in self.options.libraries]
        for k in ks:
            measured = {case: [] for case in itertools.product(names, threads)}
            for turn in range(1, self.options.rounds + 1):
                for (name, n_threads), rows in measured.items():
                    rows.append(self.measure(task, name, k, problem, n_threads, **more))
                    if turn == self.options.rounds:
                        yield fastest(rows)

    def measure(self, task, name, k, problem=None, n_threads=None, settings=None, environment=None):
        """Return one row."""
        n_threads, problem = n_threads or self.options.threads, problem or self.problem()
        print(f"{task.__name__}, k = {k}, {name}", file=sys.stderr)
        row = {"library": name, "k": k, "threads": n_threads, "load_before": os.getloadavg()[0]}
        busy, start = busy_seconds(), time.perf_counter()
        args = perform, task, name, problem, k, n_threads, self.options.repeat, settings or {}
        row |= in_process(
            *args, n_threads=n_threads, timeout=self.options.timeout, **environment or {}
        )
        row["other_cores"] = (busy_seconds() - busy) / (time.perf_counter() - start)
        own = task in (whole_fit, curve) or not LIBRARIES[name][0].takes_start
        return row | {"note": row.get("failed", "own start" if own else "same V0")}


def fastest(rows):
    """Return one row for those of all rounds, with the least of all seconds."""
    row = dict(rows[-1])
    for key in [key for key in row if key.startswith("s_")]:
        seconds = [other[key] for other in rows if key in other]
        row |= {key: min(seconds), f"rounds_{key}": seconds}
    if "s_one" in row:
        row["s_per_iteration"] = (row["s_fit"] - row["s_one"]) / (N_ITER - 1)
    return row


def study(columns):
    """Make a generator of rows a study; `columns` are those of its table, as key:format."""

    def register(generator):
        STUDIES[generator.__name__.replace("_", "-")] = generator, f"{columns} note"
        return generator

    return register


@study("k library s_per_iteration:.3f s_fit:.2f objective:.5e")
def iteration(bench):
    """Seconds per iteration; seconds and objective of a fit of 6 iterations."""
    return bench.sweep(per_iteration, LIBRARIES, bench.k(64, 128, 256))


@study("k library s_to_target:.2f iterations objective:.5e")
def convergence(bench):
    """Seconds to 1.001 times the objective of 15 exact iterations; objective of 15 of its own.

    Seconds: log-linear between points. Iterations: of the first point that is below.
    """
    for k in bench.k(64, 128):
        reference = bench.measure(curve, REFERENCE, k)
        target = WITHIN * reference.get("objective", np.nan)
        names = [name for name in LIBRARIES if name != REFERENCE]
        others = bench.sweep(curve, names, [k], settings={"target": target})
        for row in itertools.chain([reference], others):
            n, seconds, values = np.array(row.get("curve", [(0, 0, np.inf)])).T
            if values[-1] <= target:
                fallen = -np.log(np.minimum.accumulate(values))
                row["s_to_target"] = np.interp(-np.log(target), fallen, seconds)
                row["iterations"] = int(n[values <= target][0])
            yield row


@study("k library s_per_iteration:.3f objective:.5e")
def scaling_k(bench):
    """Seconds per iteration against k."""
    return bench.sweep(per_iteration, FAST, bench.k(16, 32, 64, 128, 256, 512))


@study("entries k library s_per_iteration:.3f")
def scaling_nnz(bench):
    """Seconds per iteration against entries."""
    for entries in (bench.options.entries // part for part in (8, 4, 2, 1)):
        for row in bench.sweep(per_iteration, FAST, bench.k(64), bench.problem(entries)):
            yield row | {"entries": entries}


@study("threads k library s_per_iteration:.3f s_fit:.2f speedup:.2f objective:.9e")
def threads(bench):
    """Seconds against threads; how much faster the median fit of all rounds is than with one."""
    names, numbers = [*FAST, REFERENCE], (1, bench.options.threads)
    medians = {}
    for row in bench.sweep(per_iteration, names, bench.k(128), threads=numbers):
        median = np.median(row.get("rounds_s_fit", np.nan))
        row["speedup"] = medians.setdefault(row["library"], median) / median
        yield row


@study("cache library s_import:.2f s_first:.2f s_fit:.3f")
def compile(bench):
    """Seconds of import, first fit of a process (1 iteration), later fit (15), on 943 x 1682."""
    environment = {"NUMBA_CACHE_DIR": tempfile.mkdtemp(dir=bench.folder)}
    for cache in ("empty", "filled by a process before"):
        row = bench.measure(whole_fit, FAST[0], 64, bench.small(), environment=environment)
        yield row | {"cache": cache}


@study("k library s_project:.3f error:.1e")
def transform(bench):
    """Seconds to project 20,000 rows, and the relative error against a float64 solve."""
    names = [name for name in LIBRARIES if name not in ("wals cg", REFERENCE, "implicit CG(3)")]
    return bench.sweep(project, names, bench.k(128))


@study("k library mib:.0f fixed_mib:.0f least_mib:.0f units:.2f")
def memory(bench):
    """Peak memory above the import, what is fixed of it, and the rest in X, X^T and factors."""
    wals = [name for name in LIBRARIES if name.startswith("wals")]
    list(bench.sweep(peak_memory, wals, bench.k(64, 128)))  # compiles, into the cache
    yield from bench.sweep(peak_memory, LIBRARIES, bench.k(64, 128))


@study("data k library s_fit:.4f objective:.5e s_search:.2f s_fits:.2f ratio:.3f")
def small(bench):
    """Seconds of a fit of 15 iterations; of GridSearchCV, and of the same 60 fits in a loop."""
    from wals.datasets import load_msweb

    msweb = bench.save(load_msweb())
    for data, problem in {"msweb": msweb, "943x1682": bench.small()}.items():
        for row in bench.sweep(whole_fit, LIBRARIES, bench.k(64), problem):
            yield row | {"data": data}
    yield bench.measure(grid_search, FAST[0], 64, msweb) | {"data": "msweb"}


@study("library objective:.7e error:.1e")
def mapping(bench):
    """Where 1000 iterations end, and how far U and V are from the minimisers given each other."""
    return bench.sweep(converge, LIBRARIES, [8], bench.problem(4000, 300, 150))


# ---------------------------------------------------------------------------------------- output


def table(rows, columns):
    """Return an RST table."""
    columns = [column.partition(":")[::2] for column in columns.split()]
    lines = [[key.replace("s_per_", "s/") for key, _ in columns]]
    for row in rows:
        cells = [format(row[key], style) if key in row else "" for key, style in columns]
        lines.append([cell.split("\n")[0] for cell in cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["=" * width for width in widths]
    lines = [rule, lines[0], rule, *lines[1:], rule]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def plot(rows, path):
    """Draw the curves of the convergence study."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colors = dict(zip(LIBRARIES, colormaps["tab20"].colors, strict=False))
    rows = [row for row in rows if "curve" in row]
    ks = sorted({row["k"] for row in rows})
    figure = Figure(figsize=(6 * len(ks), 5), layout="constrained")
    for k, ax in zip(ks, figure.subplots(1, len(ks), squeeze=False)[0], strict=True):
        drawn = [row for row in rows if row["k"] == k]
        best = min(point[2] for row in drawn for point in row["curve"])
        for row in drawn:
            _, seconds, values = np.array(row["curve"]).T
            name, above = row["library"], np.maximum(values / best - 1, 1e-5)
            style = "o-" if name.startswith("wals") else "x--"
            ax.loglog(seconds, above, style, color=colors[name], label=name)
            if name == REFERENCE:
                ax.axhline(WITHIN * row["objective"] / best - 1, color="gray", linewidth=1)
        ax.set(title=f"k = {k}", xlabel="seconds of fit", ylabel="objective / best - 1")
    ax.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add, here = parser.add_argument, Path(__file__).parent
    add("--study", nargs="+", default=["iteration", "convergence"], choices=[*STUDIES, "all"])
    add("--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    add("--components", type=int, nargs="+", help="k, instead of those of the study")
    add("--data", type=Path, help="a SciPy matrix whose stored entries count as ones, not random")
    add("--samples", type=int, default=136_677, help="of the random matrix")
    add("--features", type=int, default=20_108)
    add("--entries", type=int, default=10_000_000)
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--repeat", type=int, default=3)
    add("--rounds", type=int, default=1)
    add("--timeout", type=float, default=1800, help="seconds that a process may take")
    add("--output", type=Path, default=here, help="where results.json and convergence.png go")
    options = parser.parse_args()

    options.output.mkdir(parents=True, exist_ok=True)
    path, results = options.output / "results.json", {}
    if path.exists():
        results = {key: old for key, old in json.loads(path.read_text()).items() if key in STUDIES}
    described = {key: value for key, value in vars(options).items() if key != "output"}
    described |= {"unobserved_weight": W0, "regularization": REG}
    described["data"] = options.data and options.data.name
    with tempfile.TemporaryDirectory() as folder:
        bench, described_machine = Bench(options, folder), in_process(machine)
        for name in STUDIES if "all" in options.study else options.study:
            generator, columns = STUDIES[name]
            rows = []
            for row in generator(bench):  # writes all there is, after every row
                rows.append(row)
                results[name] = {"machine": described_machine, "options": described, "rows": rows}
                path.write_text(json.dumps(results, indent=1) + "\n")
            print(f"\n{inspect.cleandoc(generator.__doc__)}\n\n{table(rows, columns)}", flush=True)
            if name == "convergence":
                plot(rows, options.output / "convergence.png")


if __name__ == "__main__":
    main()
