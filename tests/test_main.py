"""The command line, mostly in this process."""

import inspect
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.sparse import csr_array, save_npz

import wals
from wals import WALS, storage
from wals.__main__ import _PROG, _clip, _split, main
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
    for heading in ("data:", "model:", "training:", "output:"):
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
    model = joblib.load(tmp_path / "m")
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
    _, train, seen, held_out = _split(X, 20, 0)
    liked = csr_array(held_out.toarray().clip(0))
    text = " ".join(" ".join(lines).split())
    assert f"relevant are the {liked.nnz} of {held_out.nnz} held-out entries whose value is" in text
    model = WALS(4, max_iter=2, random_state=0).fit(train)
    scores = model.transform(seen) @ model.components_
    rows = np.flatnonzero(np.diff(liked.indptr))
    expected = np.mean([recall(scores[row], seen[[row]], liked[[row]], 1) for row in rows])
    assert abs(quality(lines)["WALS"][0] - expected) <= 5e-5
    n_shown = sum(line.endswith("held out") for line in lines)
    assert n_shown <= liked.nnz
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
    storage.write(X, tmp_path / "bare")
    lines, _ = run(["--storage", tmp_path / "bare", *QUICK], capsys)
    assert sum(line.startswith("Row ") for line in lines) == 3
