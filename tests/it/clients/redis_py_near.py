"""The near cache of redis-py against a cache node: `redis_py_near.py PORT [OTHER]`.

With the port of another node of its fleet, that one makes the changes.
"""

import faulthandler
import sys
import threading
import time

import redis
from redis.cache import CacheConfig

# Whatever hangs is shown and ends.
faulthandler.dump_traceback_later(90, exit=True)
port = int(sys.argv[1])
other = int(sys.argv[2]) if len(sys.argv) > 2 else port
near = redis.Redis(port=port, protocol=3, cache_config=CacheConfig(max_size=1000))
node = redis.Redis(port=port)
plain = redis.Redis(port=other)


def commands():
    return node.info("stats")["total_commands_processed"]


def until(name, condition):
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"did not happen: {name}")


def read(key, wanted, why):
    until(why, lambda: near.get(key) == wanted)


def is_kept():
    before = commands()
    return all(near.get("k") == b"1" for _ in range(1000)) and commands() - before < 10


def set_own():
    near.set("k", "own")
    if other != port:
        # What the node still has in its queue comes after whatever the other one does next.
        until("the queue is empty", lambda: node.execute_command("TC.FLUSH") == b"OK")


plain.flushall()
plain.set("k", "1")
read("k", b"1", "first read")
until("reads of a key that is kept do not reach the node", is_kept)

changes = [
    (lambda: plain.set("k", "2"), b"2"),
    (lambda: plain.incr("k"), b"3"),
    (lambda: plain.append("k", "0"), b"30"),
    (set_own, b"own"),
    (lambda: plain.delete("k"), None),
    (lambda: plain.execute_command("TC.SET", "k", "tagged", "TAGS", 1, "t"), b"tagged"),
    (lambda: plain.execute_command("TC.INVALIDATE", "t"), None),
]
if other == port:
    # A value of another node may come only when its life is over.
    changes += [(lambda: plain.set("k", "short", px=150), b"short"), (lambda: None, None)]
changes += [(lambda: plain.set("k", "last"), b"last"), (lambda: plain.flushall(), None)]
for change, wanted in changes:
    change()
    read("k", wanted, wanted)

# Threads with a near cache each read what others change meanwhile. One that several threads share is left out: redis-py
# takes the locks of a connection and of its pool in either order then, and stops for good once in a while.
keys = [f"key-{number}" for number in range(20)]
stop = threading.Event()


def reader(cache):
    while not stop.is_set():
        for key in keys:
            cache.get(key)


def writer(number):
    client = redis.Redis(port=other)
    for round in range(300):
        client.set(keys[(round + number) % len(keys)], f"{number}-{round}")


caches = [redis.Redis(port=port, protocol=3, cache_config=CacheConfig(max_size=1000)) for _ in range(4)]
readers = [threading.Thread(target=reader, args=(cache,)) for cache in caches]
writers = [threading.Thread(target=writer, args=(number,)) for number in range(3)]
for thread in readers + writers:
    thread.start()
for thread in writers:
    thread.join()
stop.set()
for thread in readers:
    thread.join()
for cache in caches:
    for key in keys:
        until(f"the last value of {key}", lambda: cache.get(key) == plain.get(key))
print("redis-py", redis.__version__, "keeps nothing that is no longer good")
