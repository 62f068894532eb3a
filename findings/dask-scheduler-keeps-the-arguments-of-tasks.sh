#!/usr/bin/env bash
# The scheduler of Dask keeps the arguments of tasks that it has forgotten.
#
# distributed 2026.8.0: what is sent to a worker is kept in a log of the last 1,000 messages (BatchedSend's
# recent_message_log, as long as the setting distributed.admin.low-level-log-length says), with the tasks and whatever
# arrays were among their arguments. So a loop that passes a new array of moderate size to each task makes the memory of
# the scheduler grow for 1,000 messages to each worker, though no task is left. Arrays that are scattered do not.
#
# Seen: 150 tasks, each with an array of 500 kB, none of which is left: the scheduler has grown by 77 MB; when the arrays
# are scattered, by 3 MB.
#
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dask==2026.8.0 distributed==2026.8.0 numpy==2.4.6 psutil==7.1.3
cd "$folder"
cat > grow.py <<'END'
import time

import distributed
import numpy as np
import psutil


def size(array):
    return array.nbytes


def look(dask_scheduler):
    return len(dask_scheduler.tasks), psutil.Process().memory_info().rss / 1e6


def run(client, scattered, n=150):
    """Return by how many MB the scheduler, in a process of its own, has grown."""
    before = client.run_on_scheduler(look)[1]
    for i in range(n):
        array = np.full(62_500, float(i))
        if scattered:
            array = client.scatter(array, direct=True, hash=False)
        client.submit(size, array, pure=False).result()
    del array
    time.sleep(1)
    tasks, after = client.run_on_scheduler(look)
    return tasks, after - before


if __name__ == "__main__":
    print("distributed", distributed.__version__)
    with (
        distributed.SubprocessCluster(
            n_workers=1, threads_per_worker=1, scheduler_kwargs={"dashboard_address": ":0"}
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        run(client, False, 5)
        grown = {}
        for scattered in (True, False):
            tasks, grown[scattered] = run(client, scattered)
            print(f"scattered: {scattered}; tasks left: {tasks}; grown by {grown[scattered]:.0f} MB")
    raise SystemExit(not (grown[True] < 20 < 50 < grown[False]))
END
venv/bin/python grow.py
