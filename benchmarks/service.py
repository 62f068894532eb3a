"""Time the service of README over loopback.

    python benchmarks/service.py GOWALLA.npz      # a CSR matrix, for the pairs of the model

Two processes of uvicorn answer for users that the model (k = 128) has not seen: 20 of all items,
from the items of a random row. Milliseconds at 1 and at 16 connections; at 16, the file is replaced
twice meanwhile. The client takes part of the same processors.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import wals

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from test_service import COMMANDS, write_service


def client(port, questions, milliseconds, statuses):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for question in questions:
        start = time.perf_counter()
        connection.request("POST", "/recommend", question)
        response = connection.getresponse()
        response.read()
        milliseconds.append(1e3 * (time.perf_counter() - start))
        statuses.append(response.status)
    connection.close()


def measure(port, questions, connections, model=None, path=None):
    milliseconds, statuses, n = [], [], len(questions)
    parts = [questions[i::connections] for i in range(connections)]
    threads = [
        threading.Thread(target=client, args=[port, part, milliseconds, statuses]) for part in parts
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for third in (1, 2):
        while model is not None and 3 * len(statuses) < third * n:
            time.sleep(0.01)
        if model is not None:
            model.save(path)
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    p50, p99 = np.percentile(milliseconds, [50, 99])
    errors = sum(status != 200 for status in statuses)
    print(
        f"{connections} connections: p50 {p50:.1f} ms, p99 {p99:.1f} ms, {n / seconds:.0f} a second"
    )
    print(f"  {errors} errors in {len(statuses)} requests")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("matrix", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--how", choices=COMMANDS, default="spawned")
    arguments = parser.parse_args()
    # Ended from outside, it ends the service, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"load {os.getloadavg()[0]:.2f}")
    X = sp.csr_array(sp.load_npz(arguments.matrix)).astype(np.float32)
    model = wals.Recommender(wals.WALS(128, max_iter=3, random_state=0)).fit(
        np.c_[X.tocoo().row, X.tocoo().col]
    )
    rows = np.random.default_rng(0).integers(0, X.shape[0], arguments.requests)
    questions = [json.dumps({"items": X[[row]].indices.tolist(), "n": 20}) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        write_service(Path(folder))
        path, script = Path(folder) / "pairs.wals", Path(folder) / "run.py"
        model.save(path)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        script.write_text(textwrap.dedent(COMMANDS[arguments.how]).format(port=port))
        paths = os.pathsep.join([folder, str(Path(wals.__file__).parents[1])])
        env = os.environ | {"MODEL": str(path), "PYTHONPATH": paths}
        command = [sys.executable, "-P", script]
        server = subprocess.Popen(command, env=env, cwd=folder, start_new_session=True)
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.1)
            for _ in range(16):  # each process opens the model
                client(port, questions[:2], [], [])
            measure(port, questions[: max(100, arguments.requests // 10)], 1)
            measure(port, questions, 16, model, path)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


if __name__ == "__main__":
    main()
