"""The near cache of redis-py against a cache node: `redis_py_near.py PORT`."""

import sys
import threading
import time

import redis
from redis.cache import CacheConfig

port = int(sys.argv[1])
near = redis.Redis(port=port, protocol=3, cache_config=CacheConfig(max_size=1000))
plain = redis.Redis(port=port)


def commands():
    return plain.info("stats")["total_commands_processed"]


def until(name, condition):
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"did not happen: {name}")


def read(key, wanted, why):
    until(why, lambda: near.get(key) == wanted)


plain.flushall()
plain.set("k", "1")
read("k", b"1", "first read")
before = commands()
for _ in range(1000):
    assert near.get("k") == b"1"
assert commands() - before < 10, "reads of a key that is kept do not reach the node"

for change, wanted in (
    (lambda: plain.set("k", "2"), b"2"),
    (lambda: plain.incr("k"), b"3"),
    (lambda: plain.append("k", "0"), b"30"),
    (lambda: near.set("k", "own"), b"own"),
    (lambda: plain.delete("k"), None),
    (lambda: plain.execute_command("TC.SET", "k", "tagged", "TAGS", 1, "t"), b"tagged"),
    (lambda: plain.execute_command("TC.INVALIDATE", "t"), None),
    (lambda: plain.set("k", "short", px=150), b"short"),
    (lambda: None, None),
    (lambda: plain.set("k", "last"), b"last"),
    (lambda: plain.flushall(), None),
):
    change()
    read("k", wanted, wanted)

# Threads that read through connections of their own share what the client keeps, while others change it.
keys = [f"key-{number}" for number in range(20)]
stop = threading.Event()


def reader():
    while not stop.is_set():
        for key in keys:
            near.get(key)


def writer(number):
    client = redis.Redis(port=port)
    for round in range(300):
        client.set(keys[(round + number) % len(keys)], f"{number}-{round}")


readers = [threading.Thread(target=reader) for _ in range(4)]
writers = [threading.Thread(target=writer, args=(number,)) for number in range(3)]
for thread in readers + writers:
    thread.start()
for thread in writers:
    thread.join()
stop.set()
for thread in readers:
    thread.join()
for key in keys:
    read(key, plain.get(key), f"the last value of {key}")
print("redis-py", redis.__version__, "keeps nothing that is no longer good")
