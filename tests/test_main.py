"""The command line, mostly in this process."""

import inspect
import io
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.sparse import csr_array, save_npz

import wals
from wals import WALS, Recommender, __main__, _format, _output, _progress, load, storage
from wals.__main__ import _PROG, _clip, _split, _split_by_time, main
from wals.datasets import load_msweb, make_interactions
from wals.interactions import read_interactions
from wals.weights import power_law

# Whatever costs no time: the tests are about what is around the training.
QUICK = ["--components", "4", "--iterations", "2"]


def run(argv, capsys, *, code=0):
    """Run main; return its lines on stdout and stderr."""
    try:
        returned = main([str(argument) for argument in argv])
    except SystemExit as exit:
        returned = exit.code
    out, err = capsys.readouterr()
    assert returned == code, err
    return out.splitlines(), err.splitlines()


def quality(lines):
    """Return name -> (recall, NDCG)."""
    found = [re.fullmatch(r"  (\w+) +([\d.]+) +([\d.]+)", line) for line in lines]
    return {m[1]: (float(m[2]), float(m[3])) for m in found if m}


@pytest.fixture
def X():
    return make_interactions(300, 60, 3_000, n_topics=4, random_state=0)


@pytest.fixture
def npz(tmp_path, X):
    save_npz(tmp_path / "data.npz", X)
    return tmp_path / "data.npz"


def test_embedded_data_beat_popularity(capsys):
    lines, err = run([], capsys)
    assert not err
    assert max(map(len, lines)) <= 80
    assert not any(line != line.rstrip() for line in lines)
    assert "          32,711 x 294 matrix, 98,654 stored (1.03%)" in lines
    assert sum(line.startswith("[WALS] iteration") for line in lines) == 21
    scores = quality(lines)
    assert scores.keys() == {"WALS", "popularity"}
    assert scores["WALS"][0] > scores["popularity"][0] + 0.02
    assert scores["WALS"][1] > scores["popularity"][1] + 0.02
    _, titles = load_msweb(return_titles=True)
    recommended = [
        m[1].strip() for m in (re.match(r"   \d\.\d{3}  (.{1,50})", x) for x in lines) if m
    ]
    assert len(recommended) == 15
    assert set(recommended) <= set(titles.tolist())
    timed = [line.split()[-3] for line in lines if re.search(r"\d\.\d\d s$", line)]
    assert "total" in timed


def recall(scores, seen, held_out, sign):
    """Compute Recall@20 of a row; among equals, what was held out comes last (1) or first (-1)."""
    unseen = set(range(scores.size)) - set(seen.indices)
    best = sorted(unseen, key=lambda j: (-scores[j], sign * (j in held_out.indices)))[:20]
    return len(set(best) & set(held_out.indices)) / held_out.nnz


def test_quality_is_that_of_the_library(npz, X, capsys):
    lines, _ = run([npz, *QUICK, "--quiet", "--seed", 5, "--test-rows", 40], capsys)
    test, train, seen, held_out = _split(X, 40, 5)
    model = WALS(4, max_iter=2, random_state=5).fit(train)
    scores = model.transform(seen) @ model.components_
    counts = np.asarray(train.sum(axis=0))
    for name, table in (("WALS", scores), ("popularity", np.tile(counts, (40, 1)))):
        # Ties, which only popularity has, may fall either way.
        low, high = (
            np.mean([recall(table[row], seen[[row]], held_out[[row]], sign) for row in range(40)])
            for sign in (1, -1)
        )
        assert low - 5e-5 <= quality(lines)[name][0] <= high + 5e-5
        assert low == high or name == "popularity"
    assert not any("[WALS]" in line for line in lines)
    first = next(line for line in lines if line.startswith("Row "))
    full = test[np.diff(seen.indptr) >= 3][0]
    assert first.startswith(f"Row {full} has ")


def test_model_is_saved(npz, X, tmp_path, capsys):
    path = tmp_path / "model.joblib"
    options = ["--row-exponent", "-0.5", "--col-exponent", "-0.25", "--unobserved-weight", "0.2"]
    options += ["--observed-weight", "2", "--regularization", "0.3", "--implicit", "--jobs", "1"]
    options += ["--regularization-exponent", "0.5", "--solver", "exact", "--test-rows", "0"]
    lines, _ = run([npz, *QUICK, *options, "--output", path], capsys)
    model = joblib.load(path)
    expected = WALS(
        4,
        max_iter=2,
        unobserved_weight=0.2,
        observed_weight=2.0,
        col_weights=power_law(-0.25),
        regularization=0.3,
        regularization_exponent=0.5,
        implicit=True,
        solver="exact",
        n_jobs=1,
        random_state=0,
    )
    assert repr(model.get_params()) == repr(expected.get_params())
    expected.fit(X, row_weights=power_law(-0.5)(np.diff(X.indptr)))
    assert_array_equal(model.components_, expected.components_)
    assert_array_equal(model.row_factors_, expected.row_factors_)
    text = "\n".join(lines)
    assert "row_weights=power_law(exponent=-0.5)" in text
    assert f"Saved     {path}" in text
    assert "Quality   not measured" in text


def test_options_left_out_are_the_defaults_of_the_estimator(npz, tmp_path, capsys):
    path = tmp_path / "model.joblib"
    run([npz, "--output", path, "--quiet"], capsys)
    expected = {name: p.default for name, p in inspect.signature(WALS).parameters.items()}
    assert joblib.load(path).get_params() == expected | {"random_state": 0}


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n",
        "a,b\na,c\n",
        "a,b\nc,b\n",
        "a,b\na,c\nd,b\n",
        "1,2,0\n1,3,0\n2,3,0\n2,4,-3\n3,5,2\n",
        "1,1\n1,2\n1,3\n2,1\n2,2\n2,3\n",
        "a,an id that is much longer than what fits beside the others in a row of the terminal\n"
        "a,b\nb,c\nb,d\n",
    ],
)
@pytest.mark.parametrize("options", [[], ["--row-exponent", "-1", "--col-exponent", "-1"]])
def test_tiny_files(tmp_path, text, options, capsys):
    (tmp_path / "tiny.csv").write_text(text)
    lines, err = run([tmp_path / "tiny.csv", *QUICK, "--quiet", *options], capsys)
    assert not err
    # Long paths are not broken.
    assert all(len(line) <= 80 or str(tmp_path) in line for line in lines)
    scores = quality(lines)
    users = [line.split(",")[0] for line in text.splitlines()]
    if len(set(users)) > 1 and len(set(users)) < len(users):
        assert all(0 <= value <= 1 for pair in scores.values() for value in pair)
        assert scores
    else:
        assert not scores
        assert any(line.startswith("Quality   not measured") for line in lines)
    assert any(line.startswith("Row ") for line in lines)


def test_options_of_the_file(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("id,1,x\n1,2,y\n")
    _, err = run([tmp_path / "a.csv", *QUICK], capsys, code=2)
    said = "column 2 may be the value or not: say --value 2 or --ignore-values"
    assert err == [f"{_PROG}: error: {tmp_path / 'a.csv'}: {said}"]
    lines, _ = run([tmp_path / "a.csv", *QUICK, "--ignore-values"], capsys)
    assert "          2 x 2 matrix, 2 stored (50.00%)" in lines
    lines, _ = run([tmp_path / "a.csv", *QUICK, "--ignore-values", "--header"], capsys)
    assert "          1 x 1 matrix, 1 stored (100.00%)" in lines


def test_warnings_become_notes_and_losing_a_hint(npz, capsys):
    lines, err = run([npz, *QUICK, "--tol", "1e-9"], capsys)
    assert not err
    assert any(line.startswith("Note      tol=1e-09 was not reached") for line in lines)
    assert quality(lines)["WALS"][1] > quality(lines)["popularity"][1]
    assert not any(line.startswith("Hint ") for line in lines)
    lines, _ = run([npz, *QUICK, "--regularization", "1e9", "--quiet"], capsys)
    assert quality(lines)["WALS"][1] < quality(lines)["popularity"][1]
    assert any(line.startswith("Hint ") for line in lines)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["missing.csv"], "missing.csv: No such file or directory"),
        (["wals.json"], "wals.json: unknown suffix"),
        (["--components", "x"], "argument --components: invalid int value: 'x'"),
        (["--components", "0"], "The 'n_components' parameter of WALS must be"),
        (["--solver", "magic"], "The 'solver' parameter of WALS must be"),
        (["--regularization", "-1"], "The 'regularization' parameter of WALS must be"),
        (["--jobs", "0"], "The 'n_jobs' parameter of WALS must be"),
        (["--seed", "-1"], "The 'random_state' parameter of WALS must be"),
        (["--row-exponent", "nan"], "--row-exponent must be finite, got nan"),
        (["--col-exponent", "inf"], "--col-exponent must be finite, got inf"),
        (["--test-rows", "-1"], "--test-rows must not be negative, got -1"),
        (["--user", "x"], "--user needs a FILE"),
        (["a.csv", "--aggregate", "min"], "aggregate must be one of 'sum', 'mean', 'max', 'last'"),
        (["a.csv", "--decimal", "x"], "decimal must be one of None, '.', ','; got 'x'"),
        (["--magic"], "unrecognized arguments: --magic"),
        (["--iter", "3"], "unrecognized arguments: --iter"),
        (["one.csv", "two.csv"], "unrecognized arguments: two.csv"),
        (["--output", "nowhere/model.joblib"], "--output nowhere/model.joblib: there is no folder"),
        (["--output", "."], "--output .: is a folder"),
        (["--output", ""], "--output : is a folder"),
        (["--recommend", "nowhere/a.csv"], "--recommend nowhere/a.csv: there is no folder nowhere"),
        (["--recommend", "."], "--recommend .: is a folder"),
        (["--recommend", "a.tsv"], "--recommend a.tsv: the suffix must be .csv or .parquet, got"),
        (["--recommend", "csv"], "--recommend csv: the suffix must be .csv or .parquet, got ''"),
        (["--recommend", f"{'a' * 300}.csv"], f"--recommend {'a' * 300}.csv: File name too long"),
        (["a.csv", "--recommend", "./a.csv"], "--recommend ./a.csv: is what is read"),
        ([".", "--recommend", "a.parquet"], "--recommend a.parquet: is what is read, or in the"),
        (["a.csv", "--output", "./a.csv"], "--output ./a.csv: is what is read"),
        (
            ["--storage", ".", "--output", "manifest.json"],
            "--output manifest.json: is what is",
        ),
        (["--storage", ".", "--recommend", "a.csv"], "--recommend a.csv: is what is read"),
        (["a.csv", "--storage", "a", "--output", "./a"], "--output ./a: is what is read"),
        (
            ["recommend", "a.csv", "b.csv", "--output", "./a.csv"],
            "--output ./a.csv: is what is read",
        ),
        (["--recommend", "a.csv", "--output", "./a.csv"], "--recommend a.csv: is the same as"),
        (["--recommend", "a.csv", "--top", "0"], "--top must be at least 1, got 0"),
        (["--top", "3"], "--top needs --recommend"),
        (["--split", "time"], "--split time needs different times: say --time"),
        (["--split", "magic"], "argument --split: invalid choice: 'magic'"),
        ([""], ": unknown suffix"),
    ],
)
def test_bad_options(argv, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(WALS, "fit", lambda *_, **__: pytest.fail("trained before the check"))
    lines, err = run(argv, capsys, code=2)
    assert not lines
    assert len(err) == 1
    assert err[0].startswith(f"{_PROG}: error: {message}")


def test_output_must_be_writable(npz, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    _, err = run([npz, "--output", tmp_path / "m.joblib"], capsys, code=2)
    assert err == [f"{_PROG}: error: --output {tmp_path / 'm.joblib'}: no permission to write"]


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        (KeyboardInterrupt(), 130, []),
        (MemoryError("too\nlarge"), 2, [f"{_PROG}: error: too large"]),
    ],
)
def test_training_is_cut_short(error, code, err, npz, capsys, monkeypatch):
    def fit(*_, **__):
        raise error

    monkeypatch.setattr(WALS, "fit", fit)
    assert run([npz], capsys, code=code)[1] == err


def test_help_shows_every_option_and_default(capsys):
    lines, _ = run(["--help"], capsys)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for heading in ("data:", "model:", "training:", "test:", "output:"):
        assert heading in lines
    parameters = inspect.signature(WALS).parameters
    for option, name in (
        ("--components N", "n_components"),
        ("--unobserved-weight X", "unobserved_weight"),
        ("--regularization X", "regularization"),
        ("--regularization-exponent X", "regularization_exponent"),
        ("--regularization-by NAME", "regularization_by"),
        ("--iterations N", "max_iter"),
        ("--tol X", "tol"),
        ("--solver NAME", "solver"),
    ):
        shown = re.search(rf"{option} [^(]*\(default: ([^)]*)\)", text)
        assert shown[1] == str(parameters[name].default)


@settings(max_examples=100, deadline=None)
@given(
    n_samples=st.integers(1, 30),
    n_features=st.integers(1, 30),
    density=st.sampled_from([0.03, 0.3, 1]),
    n_test=st.integers(0, 30),
    seed=st.integers(0, 1000),
)
def test_split(n_samples, n_features, density, n_test, seed):
    nnz = int(np.ceil(density * n_samples * n_features))
    X = make_interactions(n_samples, n_features, nnz, random_state=seed)
    X.data[:] = np.arange(1, nnz + 1)
    test, train, seen, held_out = _split(X, n_test, seed)
    dense = X.toarray()
    counts = np.count_nonzero(dense, axis=1)
    able = np.count_nonzero(counts > 1)
    assert test.size == min(n_test, able, np.count_nonzero(counts) - 1)
    assert_array_equal(train.toarray(), np.delete(dense, test, axis=0))
    assert_array_equal((seen + held_out).toarray(), dense[test])
    assert seen.nnz + held_out.nnz == counts[test].sum()
    assert_array_equal(np.diff(held_out.indptr), [max(1, c * 20 // 100) for c in counts[test]])


@pytest.mark.parametrize(
    ("text", "clipped"),
    [
        ("ten chars.", "ten chars."),
        ("eleven char", "eleven ..."),
        ("seven chars", "seven ..."),
        ("one-long-word", "one-lo ..."),
    ],
)
def test_clip(text, clipped):
    assert _clip(text, 10) == clipped


def test_as_a_module(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.csv").write_text("1,2,3\n4,5,six\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["wals", "bad.csv"])
    monkeypatch.delitem(sys.modules, "wals.__main__")  # else runpy warns that there are two
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("wals", run_name="__main__", alter_sys=True)
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{_PROG}: error: bad.csv: line 2: value 'six' is not a number\n"


def test_nobody_reads_the_output(tmp_path):
    """As a process of its own: what it returns, and that nothing else is said."""
    (tmp_path / "tiny.csv").write_text("1,2\n")
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "wals", "tiny.csv", *QUICK],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(wals.__file__).parents[1])},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert result.returncode == 141
    assert result.stderr == ""


def test_columns_can_be_said(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("what~who~how~at\n7~ann~3,5~978300760\n8~bob~1,5~978300761\n7~ann~4,5~9\n")
    options = ["--delimiter", "~", "--decimal", ",", "--user", "who", "--item", "0"]
    options += ["--value", "how", "--time", "3", "--aggregate", "last"]
    lines, err = run([path, *QUICK, "--quiet", *options, "--output", tmp_path / "m"], capsys)
    assert not err
    assert "          2 x 2 matrix, 2 stored (50.00%)" in lines
    shown = [line for line in lines if line.startswith("Row ")]
    assert shown == ["Row ann has 7", "Row bob has 8"]
    path.write_text("1\t2\n3\t4\n")
    lines, _ = run([path, *QUICK, "--quiet", "--delimiter", r"\t"], capsys)
    assert "          2 x 2 matrix, 2 stored (50.00%)" in lines


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("user,item,kind\n1,2,3\n", "say --value 'kind' or --ignore-values"),
        ("0,7,103,4\n1,8,103,4\n2,8,104,4\n", "say --user and --item"),
        ("1,10;3\n2,11;4\n", "say --delimiter ';' or --delimiter ','"),
        ("1;10;3,500\n2;11;4,000\n", "say --decimal ',' or --decimal '.'"),
    ],
)
def test_advice_is_that_of_options(tmp_path, text, advice, capsys, monkeypatch):
    monkeypatch.setattr(WALS, "fit", lambda *_, **__: pytest.fail("trained before the check"))
    (tmp_path / "say user=.csv").write_text(text)
    lines, err = run([tmp_path / "say user=.csv"], capsys, code=2)
    assert not lines
    assert len(err) == 1
    assert err[0].startswith(f"{_PROG}: error: {tmp_path / 'say user=.csv'}: ")
    assert err[0].endswith(advice)


def test_what_is_skipped_is_noted(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(",user,item\n0,ann,7\n1,bob,8\n")
    lines, err = run([tmp_path / "a.csv", *QUICK, "--quiet"], capsys)
    assert not err
    text = " ".join(" ".join(lines).split())
    assert f"Note {tmp_path / 'a.csv'}: column '' is taken for an index of the rows, and" in text


def test_saved_models_know_their_ids(tmp_path, capsys):
    users = [f"u{number}" for number in range(40)]
    lines = [f"{user},i{(n + k) % 12}\n" for n, user in enumerate(users) for k in range(3)]
    (tmp_path / "a.csv").write_text("".join(lines))
    lines, _ = run([tmp_path / "a.csv", *QUICK, "--quiet", "--output", tmp_path / "m"], capsys)
    assert "ids in row_ids_ and col_ids_" in " ".join(" ".join(lines).split())
    model = load(tmp_path / "m")
    X, row_ids, col_ids = read_interactions(tmp_path / "a.csv")
    assert model.col_ids_.tolist() == col_ids.tolist()
    assert model.row_ids_.size == model.row_factors_.shape[0] == 36
    # The factors are those of the rows that the ids name.
    rows = np.flatnonzero(np.isin(row_ids, model.row_ids_))
    assert_array_equal(model.transform(X[rows]), model.row_factors_)


def test_likes_alone_count_as_found(tmp_path, capsys):
    rng = np.random.default_rng(0)
    values = rng.choice([-1, 1], size=(60, 30))
    values[rng.random((60, 30)) < 0.5] = 0
    X = csr_array(values.astype(np.float32))
    save_npz(tmp_path / "a.npz", X)
    options = [*QUICK, "--quiet", "--test-rows", "20"]
    lines, _ = run([tmp_path / "a.npz", *options], capsys)
    test, train, seen, held_out = _split(X, 20, 0)
    liked = csr_array(held_out.toarray().clip(0))
    text = " ".join(" ".join(lines).split())
    assert f"relevant are the {liked.nnz} of {held_out.nnz} held-out entries whose value is" in text
    model = WALS(4, max_iter=2, random_state=0).fit(train)
    scores = model.transform(seen) @ model.components_
    rows = np.flatnonzero(np.diff(liked.indptr))
    expected = np.mean([recall(scores[row], seen[[row]], liked[[row]], 1) for row in rows])
    assert abs(quality(lines)["WALS"][0] - expected) <= 5e-5
    # What is shown as held out are likes alone.
    row, hits = None, set()
    for line in lines:
        if line.startswith("Row "):
            row = test.tolist().index(int(line.split()[1]))
        elif re.fullmatch(r" +-?\d\.\d{3}  .*  held out", line):
            hits.add((row, int(line.split()[1])))
    assert hits <= set(zip(*map(np.ndarray.tolist, liked.nonzero()), strict=True))
    # Values of one kind are all relevant.
    save_npz(tmp_path / "a.npz", abs(X))
    assert not any(
        "relevant are" in line for line in run([tmp_path / "a.npz", *options], capsys)[0]
    )


def test_held_out_dislikes_give_no_hint(tmp_path, capsys):
    # Every row has two entries, and what is held out is a dislike for this seed or another.
    lines = "".join(f"{user},{user},-1\n{user},{user + 9},-1\n" for user in range(9))
    (tmp_path / "a.csv").write_text(f"{lines}99,99,1\n")
    options = [*QUICK, "--quiet", "--regularization", "1e9"]
    text = " ".join(" ".join(run([tmp_path / "a.csv", *options], capsys)[0]).split())
    assert "no held-out value is above 0: the quality is that of finding dislikes" in text
    assert "Hint" not in text


def test_output_that_cannot_show_an_id(tmp_path):
    (tmp_path / "a.csv").write_text("é,日本\né,b\nü,b\n", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "wals", "a.csv", *QUICK, "--quiet"],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(Path(wals.__file__).parents[1]), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "Row ? has" in result.stdout


# --------------------------------------------------------------------------------- recommendations


READ = {".csv": pd.read_csv, ".parquet": pd.read_parquet}


@pytest.fixture
def orders(tmp_path):
    """A file of orders with times, and its table."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "customer": [f"c{i:02d}" for i in random.integers(50, size=600)],
            "sku": [f'"{i}", {chr(233)}' for i in random.integers(30, size=600)],
            "quantity": random.integers(1, 4, size=600),
            "date": np.datetime64("2024-01-01") + random.integers(100, size=600),
        }
    )
    table.to_csv(tmp_path / "orders.csv", index=False)
    return tmp_path / "orders.csv", table


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("test_rows", ["0", "7"])
@pytest.mark.parametrize("split", ["rows", "time"])
def test_recommendations_are_those_of_the_library(
    suffix, test_rows, split, orders, tmp_path, capsys, monkeypatch
):
    path, table = orders
    out = tmp_path / f"best{suffix}"
    out.write_text("what was there")
    options = ["--test-rows", test_rows, "--row-exponent", "-0.5", "--quiet", "--split", split]
    options += ["--top", "3", "--output", tmp_path / "model", "--recommend", out]
    lines, err = run([path, *QUICK, *options], capsys)
    assert not err
    assert f"{out}, 0.0 MB, 150 recommendations, 3 at most" in " ".join(" ".join(lines).split())
    found = READ[suffix](out)
    assert list(found.columns) == ["customer", "sku", "score", "rank"]
    assert found.dtypes["rank"] == np.int64
    model = load(tmp_path / "model")
    recommender = Recommender(
        WALS(4, max_iter=2, random_state=0),
        user="customer",
        item="sku",
        value="quantity",
        row_weights=power_law(-0.5),
    ).fit(table)
    X = recommender.interactions_
    weights = power_law(-0.5)(np.diff(X.indptr))
    if split == "rows" and test_rows != "0":
        # The test rows are folded in with all of their entries.
        assert model.row_factors_.shape[0] == 43
        recommender.estimator_ = model
        model.row_factors_ = model.transform(X, weights=weights)
    expected = recommender.recommend(n=3)
    assert_array_equal(found[["customer", "sku", "rank"]], expected[["customer", "sku", "rank"]])
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5)
    # Blocks of rows do not matter.
    monkeypatch.setattr(__main__, "_BLOCK", 10)
    again = tmp_path / f"again{suffix}"
    run([path, *QUICK, *options[:-1], again], capsys)
    pd.testing.assert_frame_equal(READ[suffix](again), found, rtol=1e-6)
    assert sorted(x.name for x in tmp_path.iterdir() if x.name.startswith(".")) == []


def test_scores_are_written_by_as_many_digits_as_they_have(tmp_path):
    scores = np.float32([0.1, 1 / 3, -2e-9, 16777216, 0])
    with _output.table_writer(tmp_path / "a.csv") as write:
        write({"a,b": np.array(["x", 'y"', "z\n", "", "\u00e9"], object), "score": scores})
    text = (tmp_path / "a.csv").read_bytes().decode()
    assert text.startswith('"a,b",score\nx,0.1\n"y""",0.33333334\n')
    assert_array_equal(pd.read_csv(tmp_path / "a.csv")["score"].astype(np.float32), scores)


def test_who_has_nothing_or_everything_gets_nothing(tmp_path, capsys):
    X = csr_array(np.float32([[1, 0, 2], [0, 0, 0], [1, 1, 1], [0, 1, 0]]))
    save_npz(tmp_path / "a.npz", X)
    options = [*QUICK, "--quiet", "--test-rows", "0", "--recommend"]
    for suffix, read in READ.items():
        run([tmp_path / "a.npz", *options, tmp_path / f"b{suffix}"], capsys)
        found = read(tmp_path / f"b{suffix}")
        assert found["user"].tolist() == [0, 3, 3]
        assert found["item"][0] == 1
        assert sorted(found["item"][1:]) == [0, 2]
        assert found["rank"].tolist() == [1, 1, 2]


def test_names_that_clash_give_way(tmp_path, capsys):
    for names in ("user,score", "rank,item", "x,x", ",item"):
        (tmp_path / "a.csv").write_text(f"{names}\n1,2\n2,2\n1,3\n")
        options = [*QUICK, "--quiet", "--header", "--recommend", tmp_path / "b.csv"]
        options += ["--test-rows", "0"]
        columns = ["--user", "0", "--item", "1"]
        run([tmp_path / "a.csv", *columns, *options], capsys)
        assert (tmp_path / "b.csv").read_text().startswith("user,item,score,rank\n2,3,")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("failing", ["recommend", "fsync", "interrupt"])
def test_what_fails_leaves_what_was_there(suffix, failing, npz, tmp_path, capsys, monkeypatch):
    out, calls, recommend = tmp_path / f"best{suffix}", [], WALS.recommend
    out.write_text("what was there")
    monkeypatch.setattr(__main__, "_BLOCK", 1000)
    code = 2
    if failing == "fsync":

        def fail(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
    else:
        code, error = (
            (2, MemoryError("full")) if failing == "recommend" else (130, KeyboardInterrupt)
        )

        def fail(self, *args, **more):
            calls.append(args)
            if len(calls) == 3:
                raise error
            return recommend(self, *args, **more)

        monkeypatch.setattr(WALS, "recommend", fail)
    before = sorted(tmp_path.iterdir())
    run([npz, *QUICK, "--quiet", "--recommend", out], capsys, code=code)
    assert out.read_text() == "what was there"
    assert sorted(tmp_path.iterdir()) == before


def test_written_files_have_usual_permissions_and_links_stay(npz, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "there" / "real.csv")
    run([npz, *QUICK, "--quiet", "--recommend", tmp_path / "link.csv"], capsys)
    assert (tmp_path / "link.csv").is_symlink()
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "there" / "real.csv").stat().st_mode == usual
    assert len(list((tmp_path / "there").iterdir())) == 1


def test_parquet_needs_pyarrow_before_the_training(npz, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(WALS, "fit", lambda *_, **__: pytest.fail("trained before the check"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    _, err = run([npz, "--recommend", tmp_path / "a.parquet"], capsys, code=2)
    said = "writing Parquet needs pyarrow (pip install wals[parquet])"
    assert err == [f"{_PROG}: error: --recommend {tmp_path / 'a.parquet'}: {said}"]
    os.mkfifo(tmp_path / "a.csv")
    _, err = run([npz, "--recommend", tmp_path / "a.csv"], capsys, code=2)
    assert err[0].endswith("not a file that can be replaced")
    monkeypatch.setattr(_format, "open", lambda *_: os.rmdir(tmp_path / "x"), raising=False)
    _, err = run([npz, "--recommend", tmp_path / "b.csv"], capsys, code=2)
    assert err == [f"{_PROG}: error: --recommend {tmp_path / 'b.csv'}: No such file or directory"]


# ------------------------------------------------------------------------------------------- times


@settings(max_examples=100, deadline=None)
@given(
    n_samples=st.integers(1, 30),
    n_times=st.sampled_from([2, 3, 10, 10**9]),
    n_test=st.integers(0, 30),
    seed=st.integers(0, 1000),
)
def test_split_by_time(n_samples, n_times, n_test, seed):
    nnz = 4 * n_samples
    X = make_interactions(n_samples, 12, nnz, random_state=seed)
    X.data[:] = np.arange(1, nnz + 1)
    times = np.random.default_rng(seed).integers(n_times, size=nnz)
    times[:2] = 0, 1
    start, test, train, seen, held_out = _split_by_time(X, times, n_test, seed)
    # The time of an entry is that of its value.
    before = {value for value, time in zip(X.data, times, strict=True) if time < start}
    later = set(X.data) - before
    shares = [np.mean(times >= time) for time in np.unique(times)[1:]]
    assert abs(len(later) / nnz - 0.2) <= min(abs(share - 0.2) for share in shares) + 1e-12
    able = [
        row
        for row in range(n_samples)
        if set(X[[row]].data) & before and set(X[[row]].data) & later
    ]
    assert test.size == min(n_test, len(able))
    assert set(test) <= set(able)
    assert_array_equal(
        seen.toarray(), np.where(np.isin(X.toarray(), [*before]), X.toarray(), 0)[test]
    )
    assert_array_equal((seen + held_out).toarray(), X[test].toarray())
    assert train.shape == X.shape
    assert set(train.data) == (before if test.size else set(X.data))


def test_times_split_what_is_trained_on(orders, tmp_path, capsys):
    path, table = orders
    lines, _ = run([path, *QUICK, "--quiet", "--output", tmp_path / "m"], capsys)
    text = " ".join(" ".join(lines).split())
    days = np.sort(table.groupby(["customer", "sku"])["date"].max().to_numpy())
    n = len(days)
    start = min(np.unique(days)[1:], key=lambda day: abs(np.mean(days >= day) - 0.2))
    n_before = np.count_nonzero(days < start)
    assert f"in time: {n_before} entries from before {str(start)[:10]} to train on" in text
    assert f"of the {n - n_before} later ones" in text
    assert "trained anew, on all entries" in text
    content = read_interactions(path)
    assert content.names == ("customer", "sku")
    expected = WALS(4, max_iter=2, random_state=0).fit(content.X)
    model = load(tmp_path / "m")
    assert_array_equal(model.components_, expected.components_)
    assert model.row_ids_.tolist() == content.row_ids.tolist()
    # The quality is that of a model that knows nothing of what came later.
    _, test, train, seen, held_out = _split_by_time(content.X, content.times, 10_000, 0)
    model = WALS(4, max_iter=2, random_state=0).fit(train)
    scores = model.row_factors_[test] @ model.components_
    found = [recall(scores[i], seen[[i]], held_out[[i]], 1) for i in range(test.size)]
    assert abs(quality(lines)["WALS"][0] - np.mean(found)) <= 5e-5
    # Without an output, or times, or a wish for them, it is trained once.
    lines, _ = run([path, *QUICK, "--quiet"], capsys)
    assert not any("anew" in line for line in lines)
    lines, _ = run([path, *QUICK, "--quiet", "--split", "rows", "--output", tmp_path / "m"], capsys)
    assert "Split     45 of 50 rows to train on" in "\n".join(lines)
    assert not any("anew" in line for line in lines)
    table.assign(date="2024-05-31").to_csv(path, index=False)
    lines, _ = run([path, *QUICK, "--quiet"], capsys)
    assert "Split     45 of 50 rows to train on" in "\n".join(lines)
    _, err = run([path, *QUICK, "--split", "time"], capsys, code=2)
    assert err == [f"{_PROG}: error: --split time needs different times: say --time"]


def test_times_without_a_row_on_both_sides(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("user,item,time\n1,1,1\n1,2,1\n2,1,2\n2,3,2\n3,3,3\n")
    out = tmp_path / "b.csv"
    lines, _ = run([tmp_path / "a.csv", *QUICK, "--quiet", "--recommend", out], capsys)
    text = " ".join(" ".join(lines).split())
    assert "Split none, every row is trained on" in text
    assert "it takes a row with entries before 3 and later ones" in text
    assert not quality(lines)
    assert pd.read_csv(out)["user"].tolist() == [1, 2, 3, 3]


# ---------------------------------------------------------------------------------------- progress


def open_terminal(monkeypatch):
    """Make stderr a terminal, and let bars come at once."""
    written = io.StringIO()
    written.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(_progress, "DELAY", 0)
    monkeypatch.setattr(_progress, "PAUSE", 0)
    return written


def test_progress(npz, tmp_path, capsys, monkeypatch):
    terminal = open_terminal(monkeypatch)
    monkeypatch.setattr(__main__, "_BLOCK", 6000)
    options = [npz, *QUICK, "--recommend", tmp_path / "a.csv"]
    lines, _ = run(options, capsys)
    bars = terminal.getvalue().split("\r")
    half = "#" * 20 + "." * 20
    training = [f"Training  {half}  50%", f"Training  {'#' * 40} 100%", " " * 55]
    writing = [f"Writing   {'#' * 40} 100%", " " * 55, ""]
    assert bars == (training if find_spec("sklearn.callback") else []) + writing
    # A line of a sweep hides the bar.
    sweeps = [line for line in lines if line.startswith("[WALS]")]
    assert min(map(len, sweeps)) > max(map(len, bars))
    terminal.truncate(0)
    run([*options, "--quiet"], capsys)
    assert not terminal.getvalue().strip("\0")


def test_no_progress_of_short_work_or_in_a_pipe(npz, tmp_path, capsys, monkeypatch):
    terminal = open_terminal(monkeypatch)
    options = [npz, *QUICK, "--recommend", tmp_path / "a.csv", "--output", tmp_path / "m"]
    monkeypatch.setattr(_progress, "DELAY", 1000)
    run(options, capsys)
    assert not terminal.getvalue()
    assert not hasattr(load(tmp_path / "m"), "_skl_callbacks")
    monkeypatch.setattr(_progress, "DELAY", 0)
    terminal.isatty = lambda: False
    run(options, capsys)
    assert not terminal.getvalue()


def test_storage(tmp_path, capsys):
    path, folder = tmp_path / "log.csv", tmp_path / "matrix"
    path.write_text("user,item,n\n" + "".join(f"u{i},i{i * i % 7},2\n" for i in range(50)))
    lines, _ = run([path, "--storage", folder, "--ignore-values", *QUICK], capsys)
    assert any(line.startswith("Quality") and "every row" in line for line in lines)
    assert storage.open(folder).data.max() == 1
    rows = [line for line in lines if line.startswith("Row u")]
    assert len(rows) == 3
    output = tmp_path / "model.joblib"
    again, _ = run(["--storage", folder, "--output", output, *QUICK], capsys)
    assert [line for line in again if line.startswith("Row u")] == rows
    X, row_ids, col_ids = read_interactions(path, values=False)
    model = joblib.load(output)
    expected = WALS(4, max_iter=2, random_state=0).fit(X)
    assert_array_equal(model.components_, expected.components_)
    assert model.row_ids_.tolist() == row_ids.tolist()
    assert model.col_ids_.tolist() == col_ids.tolist()
    _, err = run([path, "--storage", folder], capsys, code=2)
    assert "exists: remove it" in err[0]
    _, err = run([path, "--storage", folder, "--test-rows", "3"], capsys, code=2)
    assert "every row is trained on" in err[0]
    _, err = run([path, "--storage", folder, "--split", "time"], capsys, code=2)
    assert "--split: with --storage, every row is trained on" in err[0]
    options = [*QUICK, "--row-exponent", "-0.5", "--recommend"]
    run(["--storage", folder, *options, tmp_path / "a.csv"], capsys)
    run([path, "--ignore-values", *options, tmp_path / "b.csv", "--test-rows", "0"], capsys)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    storage.write(X, tmp_path / "bare")
    lines, _ = run(["--storage", tmp_path / "bare", *QUICK], capsys)
    assert sum(line.startswith("Row ") for line in lines) == 3


def test_users_of_another_file(tmp_path, capsys):
    """`recommend MODEL FILE` projects them by their interactions, in the ids of the model."""
    rng = np.random.default_rng(0)
    pairs = {(f"u{rng.integers(60)}", f"item {rng.integers(25)}") for _ in range(500)}
    (tmp_path / "a.csv").write_text("buyer,sku\n" + "".join(f"{u},{i}\n" for u, i in sorted(pairs)))
    path = tmp_path / "model.wals"
    run([tmp_path / "a.csv", *QUICK, "--quiet", "--test-rows", 0, "--output", path], capsys)
    model = load(path)
    new = [("zoe", "item 3"), ("zoe", "item 7"), ("ann", "item 24"), ("ann", "none such")]
    (tmp_path / "new.csv").write_text("buyer,sku\n" + "".join(f"{u},{i}\n" for u, i in new))
    lines, err = run(["recommend", path, tmp_path / "new.csv", "--top", 3], capsys)
    assert lines[0] == "buyer,sku,score,rank"
    X = np.zeros((2, 25), np.float32)
    column = {item: j for j, item in enumerate(model.col_ids_)}
    for user, item in new[:3]:
        X[int(user == "zoe"), column[item]] = 1
    ranked, scores = model.recommend(X, 3)
    expected = [
        f"{user},{model.col_ids_[ranked[i, r]]},{scores[i, r].astype(str)},{r + 1}"
        for i, user in enumerate(("ann", "zoe"))
        for r in range(3)
    ]
    assert lines[1:] == expected
    assert len(err) == 1
    assert "left out" in err[0] or "unknown" in err[0]
    out = tmp_path / "out.parquet"
    lines, err = run(
        ["recommend", path, tmp_path / "new.csv", "--output", out, "--quiet", "--jobs", 1], capsys
    )
    assert (lines, err) == ([], [])
    table = pd.read_parquet(out)
    assert table.columns.tolist() == ["buyer", "sku", "score", "rank"]
    assert (table["rank"].max(), len(table)) == (20, 40)
    assert table["sku"][:3].tolist() == [model.col_ids_[j] for j in ranked[0]]


def test_bad_requests_for_recommendations(npz, X, tmp_path, capsys):
    WALS(2, max_iter=1).fit(X).save(tmp_path / "plain.wals")
    run([npz, *QUICK, "--quiet", "--output", tmp_path / "m.wals"], capsys)
    run([npz, *QUICK, "--quiet", "--output", tmp_path / "m.joblib"], capsys)
    for options, message in (
        (["m.wals"], "the following arguments are required: FILE"),
        (["none.wals", npz], "No such file"),
        (["m.joblib", npz], "is not a file of wals"),
        (["plain.wals", npz], "has no ids of columns"),
        (["m.wals", "none.csv"], "none.csv"),
        (["m.wals", npz, "--top", "0"], "--top must be at least 1"),
        (["m.wals", npz, "--jobs", "0"], "n_jobs"),
        (["m.wals", npz, "--output", "a.txt"], "the suffix must be .csv or .parquet"),
    ):
        options = [
            tmp_path / option if str(option).endswith(".wals") else option for option in options
        ]
        options = [tmp_path / o if o in ("m.joblib", "none.csv", "a.txt") else o for o in options]
        _, err = run(["recommend", *options], capsys, code=2)
        assert len(err) == 1
        assert message in err[0]
