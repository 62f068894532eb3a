"""The service of README: several processes and threads, and models that are replaced meanwhile."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
import scipy.sparse as sp

import wals
from wals import WALS, Recommender

README = Path(__file__).parents[1] / "README.rst"
COMMANDS = {
    "spawned": """
        import uvicorn

        if __name__ == "__main__":
            uvicorn.run("service:app", port={port}, workers=2, log_level="warning")
    """,
    "forked": """
        import os, socket, uvicorn, service
        service.answer([1, 2])  # kernels ran before the fork
        listening = socket.create_server(("127.0.0.1", {port}))
        server = uvicorn.Server(uvicorn.Config(service.app, log_level="warning"))
        children = [os.fork(), 1]
        children[1] = children[0] and os.fork()
        if all(children):
            os.wait()
        else:
            server.run(sockets=[listening])
    """,
}


def write_service(folder):
    """Write what README shows as service.py."""
    text = README.read_text()
    (code,) = re.findall(r"``service.py``(?:.+\n)+?.*::\n\n((?:    .*\n|\n)+)", text)
    (folder / "service.py").write_text(textwrap.dedent(code))


def ask(connection, **question):
    connection.request("POST", "/recommend", json.dumps(question))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def fitted(seed):
    X = sp.random(60, 40, 0.2, "coo", "float32", random_state=seed)
    pairs = [*zip(X.row.tolist(), X.col.tolist(), strict=True)]
    return Recommender(WALS(4, max_iter=2, random_state=0)).fit(pairs)


@pytest.mark.parametrize("how", COMMANDS)
def test_service(how, tmp_path):
    write_service(tmp_path)
    path = tmp_path / "pairs.wals"
    fitted(0).save(path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(COMMANDS[how]).format(port=port))
    paths = [str(tmp_path), str(Path(wals.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"MODEL": str(path), "PYTHONPATH": os.pathsep.join(paths)}
    with open(tmp_path / "log", "w") as log:
        options = {"stdout": log, "stderr": log, "start_new_session": True}
        server = subprocess.Popen([sys.executable, "-P", script], env=env, **options)
    try:
        check(port, path, server)
    except BaseException:
        print((tmp_path / "log").read_text())
        raise
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    assert "rror" not in (tmp_path / "log").read_text()


def check(port, path, server):
    def answers_calls():
        assert server.poll() is None
        with suppress(OSError):
            return socket.create_connection(("127.0.0.1", port)).close() is None

    wait_for(answers_calls)
    expected = [wals.load(path)]
    answers = []
    stop = threading.Event()

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=100)
        with closing(connection):
            while not stop.is_set():
                answers.append(ask(connection, items=[3, 5, 8], n=4))

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for seed in (1, 2):
        wait_for_more(answers)
        expected.append(fitted(seed))
        expected[-1].save(path)
    wait_for_more(answers)
    stop.set()
    for thread in threads:
        thread.join()
    known = []
    for model in expected:
        table = model.recommend(interactions=[("x", item) for item in (3, 5, 8)], n=4)
        known.append((200, {"items": table["item"].tolist(), "scores": table["score"].tolist()}))
    assert all(answer in known for answer in answers)
    assert answers[0] == known[0]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=100)
    for _ in range(20):
        assert ask(connection, items=[3, 5, 8], n=4) == known[-1]
        connection.close()  # the next one may meet the other process
    for question in ({}, {"items": 3}, {"items": [3], "n": 0}, {"items": [], "n": 3}, {"x": 1}):
        status, answer = ask(connection, **question)
        assert status == 400
        assert set(answer) == {"error"}
    connection.close()


def wait_for_more(answers):
    n = len(answers) + 50
    wait_for(lambda: len(answers) >= n)


def wait_for(condition):
    until = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
