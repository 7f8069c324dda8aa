"""redis-py on one node until standard input ends: the same operations as the program's own clients (plan.rs), each
written down as records.rs says.

    redis_py.py --node 0 --name cache-0 --host HOST --place 1 --clients 6 --seed 7 FILE
"""

import argparse
import random
import sys
import threading
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

KEYS = 4096
BUSY_KEYS = 64
TAGS = 32
LONG_ONE_IN = 37
MULTI = 24
# An answer that takes longer is given up, and the connection with it.
ANSWER_TIMEOUT_SECONDS = 2.5
# Between two batches; the machine belongs to the fleet.
PAUSE_SECONDS = 0.025
# A client that finds no server tries again after this.
RETRY_SECONDS = 0.1
READS_MAX = 12
# Changes of one batch: what a hung node kept it from doing is not made up for.
CHANGES_MAX = 12

now = time.monotonic_ns


def value(number, key):
    """What a write stores: it names itself and its key, and its end shows that nothing is missing."""
    return b"%d:%d:%s." % (number, key, b"x" * (6000 if number % LONG_ONE_IN == 0 else 90))


def written_by(key, found):
    """The field that names the write whose value this is; none if nobody can have stored it."""
    try:
        number = int(found.split(b":", 1)[0])
    except ValueError:
        return ""
    return f'"write":{number},' if value(number, key) == found else ""


class Read:
    def __init__(self, work):
        self.work = work
        self.keys = [work.any_key() for _ in range(MULTI if work.random.random() < 0.5 else 1)]

    def ask(self, pipe):
        names = [f"k{key}" for key in self.keys]
        if len(names) == 1:
            pipe.get(names[0])
        else:
            pipe.mget(names)

    def note(self, answer, invoked, returned):
        if isinstance(answer, Exception):
            self.work.error(answer, len(self.keys))
            return
        span = f'"node":{self.work.node},"invoked":{invoked},"returned":{returned}'
        for key, found in zip(self.keys, answer if len(self.keys) > 1 else [answer], strict=True):
            if found is None:
                self.work.absent += 1
            else:
                self.work.record("read", f'"key":{key},{written_by(key, found)}{span}')

    def silence(self, _invoked):
        self.work.unanswered += len(self.keys)


class Change:
    def __init__(self, work):
        self.work = work

    def note(self, answer, invoked, returned):
        outcome = {b"OK": "ok", b"QUEUED": "queued"}.get(answer, "unknown")
        if isinstance(answer, int) and not isinstance(answer, bool):
            outcome = "ok"
        self.tell(outcome, f'"invoked":{invoked},"returned":{returned}')

    def silence(self, invoked):
        self.tell("unknown", f'"invoked":{invoked}')


class Write(Change):
    def __init__(self, work):
        super().__init__(work)
        self.number, self.key = work.next_number(), work.any_key()
        self.tag = self.key % TAGS if work.random.random() < 0.5 else None
        self.life_ms = work.random.randrange(500, 8000) if work.random.random() < 0.25 else 0

    def ask(self, pipe):
        name, stored = f"k{self.key}", value(self.number, self.key)
        if self.tag is None:
            pipe.set(name, stored, px=self.life_ms or None)
        else:
            life = ("PX", self.life_ms) if self.life_ms else ()
            pipe.execute_command("TC.SET", name, stored, "TAGS", 1, f"t{self.tag}", *life)

    def tell(self, outcome, span):
        tag = "" if self.tag is None else f'"tag":{self.tag},'
        what = f'"id":{self.number},"key":{self.key},{tag}"life":{self.life_ms * 1_000_000}'
        if outcome != "ok":
            # Nothing follows from it.
            span = span.split(",")[0]
        self.work.record("write", f'{what},"node":{self.work.node},"outcome":"{outcome}",{span}')


class Removal(Change):
    def __init__(self, work, target, *command):
        super().__init__(work)
        self.target, self.command = target, command

    def ask(self, pipe):
        pipe.execute_command(*self.command)

    def tell(self, outcome, span):
        target = f'"target":{self.target},"node":{self.work.node},"outcome":"{outcome}"'
        self.work.record("removal", f"{target},{span}")


class Flush(Change):
    def ask(self, pipe):
        pipe.execute_command("TC.FLUSH")

    def tell(self, outcome, span):
        if outcome == "ok":
            self.work.record("flush", f'"node":{self.work.node},{span}')


class Work:
    """A client at work."""

    def __init__(self, arguments, file):
        self.name, self.host, self.port = arguments.name, arguments.host, arguments.port
        self.node, self.next, self.step = arguments.node, arguments.place, arguments.clients
        self.random = random.Random(arguments.seed)
        self.nanos_per_change = 1_000_000_000 // arguments.changes
        self.file = file
        self.absent = self.unanswered = self.changes = 0
        self.started = now()

    def record(self, kind, fields):
        self.file.write(f'{{"{kind}":{{{fields}}}}}\n')

    def error(self, error, reads):
        text = str(error).replace("\\", " ").replace('"', " ")
        self.file.write(f'{{"error":"{text}"}}\n' * reads)

    def next_number(self):
        number = self.next
        self.next += self.step
        return number

    def any_key(self):
        return self.random.randrange(BUSY_KEYS if self.random.random() < 1 / 16 else KEYS)

    def change(self):
        drawn = self.random.randrange(40_000)
        if drawn < 28_000:
            return Write(self)
        if drawn < 28_050:
            tag = self.random.randrange(TAGS)
            return Removal(self, f'{{"tag":{tag}}}', "TC.INVALIDATE", f"t{tag}")
        if drawn < 28_054:
            return Removal(self, '"all"', "FLUSHALL")
        if 28_060 <= drawn < 28_100:
            return Flush(self)
        key = self.any_key()
        return Removal(self, f'{{"key":{key}}}', "TC.DEL", f"k{key}")

    def batch(self):
        batch = [Read(self) for _ in range(self.random.randint(1, READS_MAX))]
        due = (now() - self.started) // self.nanos_per_change
        self.changes = max(self.changes, due - CHANGES_MAX)
        batch += [self.change() for _ in range(self.changes, due)]
        self.changes = due
        return batch

    def connect(self):
        # Nothing is tried again behind our back: a command that comes late would be taken for a later one.
        client = redis.Redis(
            host=self.host,
            port=self.port,
            socket_timeout=ANSWER_TIMEOUT_SECONDS,
            socket_connect_timeout=ANSWER_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        for command in ("SET", "FLUSHALL"):
            # Its own answer tells OK from everything else, but not QUEUED from an error.
            client.set_response_callback(command, lambda answer, **_options: answer)
        return client

    def exchange(self, client):
        """Sends a batch and writes down what came of it."""
        batch = self.batch()
        pipe = client.pipeline(transaction=False)
        # The pool may have made a new connection for this batch: whoever answers says who it is.
        pipe.info("server")
        for asked in batch:
            asked.ask(pipe)
        invoked = now()
        try:
            server, *answers = pipe.execute(raise_on_error=False)
            returned = now()
            if not isinstance(server, dict) or server.get("tieredcache_node") != self.name:
                raise redis.ConnectionError(f"{server} answers")
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            for asked in batch:
                asked.silence(invoked)
            raise
        for asked, answer in zip(batch, answers, strict=True):
            asked.note(answer, invoked, returned)

    def run(self, stop):
        while not stop.is_set():
            client = self.connect()
            try:
                while not stop.is_set():
                    self.exchange(client)
                    time.sleep(PAUSE_SECONDS)
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                client.close()
                time.sleep(RETRY_SECONDS)
        self.file.write(f'{{"absent":{self.absent}}}\n{{"unanswered":{self.unanswered}}}\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("node", "place", "clients", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--name", required=True, help="what the node calls itself; nobody else is listened to")
    parser.add_argument("--host", required=True, help="looked up for every connection")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--changes", type=int, default=200, help="a second")
    parser.add_argument("file", help="where the history is written")
    arguments = parser.parse_args()
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), stop.set()), daemon=True).start()
    with open(arguments.file, "w", encoding="ascii", errors="replace") as file:
        Work(arguments, file).run(stop)


main()
