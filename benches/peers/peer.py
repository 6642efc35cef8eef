"""The Python side of the comparison: reads "workload amount", answers with seconds, line by line."""

import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

try:
    from unsync import unsync
except ImportError:
    unsync = None


def same(n):
    return n


POOL = None
THREADS = None


def pool():
    global POOL
    if POOL is None:
        POOL = ProcessPoolExecutor(2)
    return POOL


def threads():
    global THREADS
    if THREADS is None:
        THREADS = ThreadPoolExecutor()
    return THREADS


def one(start):
    return lambda amount: [start(n).result() for n in range(amount)]


def many(start):
    return lambda amount: [job.result() for job in [start(n) for n in range(amount)]]


WORKLOADS = {
    "executor-cpu-one": one(lambda n: pool().submit(same, n)),
    "executor-cpu-map": lambda amount: list(pool().map(same, range(amount), chunksize=64)),
    "executor-thread-one": one(lambda n: threads().submit(same, n)),
    "executor-thread-many": many(lambda n: threads().submit(same, n)),
}

if unsync is not None:

    @unsync
    async def spawned(n):
        return n

    @unsync
    def threaded(n):
        return n

    @unsync(cpu_bound=True)
    def cpu_bound(n):
        return n

    WORKLOADS.update(
        {
            "spawn-one": one(spawned),
            "spawn-many": many(spawned),
            "thread-one": one(threaded),
            "thread-many": many(threaded),
            "cpu-one": one(cpu_bound),
            "cpu-many": many(cpu_bound),
        }
    )


def versions():
    from importlib.metadata import version

    python = sys.version.split()[0]
    return f"Python {python}" + (f", unsync {version('unsync')}" if unsync else ", without unsync")


def main():
    for line in sys.stdin:
        name, amount = line.split()
        if name == "versions":
            answer = versions()
        elif name in WORKLOADS:
            started = time.perf_counter()
            WORKLOADS[name](int(amount))
            answer = time.perf_counter() - started
        else:
            answer = "missing"
        print(answer, flush=True)


if __name__ == "__main__":
    main()
