"""redis-py with its default settings against a cache node, and one that keeps every command as slow:
`redis_py.py PORT SLOW_PORT`."""

import faulthandler
import sys
import time

import redis

# Whatever hangs is shown and ends.
faulthandler.dump_traceback_later(90, exit=True)


def check(name, found, wanted):
    if found != wanted:
        sys.exit(f"{name}: {found!r} instead of {wanted!r}")


def work(client):
    check("ping", client.ping(), True)
    client.flushall()
    check("set", client.set("k", b"a\r\n\x00\xff"), True)
    check("get", client.get("k"), b"a\r\n\x00\xff")
    check("missing", client.get("missing"), None)
    check("nx", client.set("k", "b", nx=True), None)
    check("set get", client.set("k", "c", ex=100, get=True), b"a\r\n\x00\xff")
    check("ttl", client.ttl("k"), 100)
    check("expire gt", client.expire("k", 50, gt=True), False)
    check("persist", client.persist("k"), True)
    check("px", client.set("short", "v", px=20), True)
    deadline = time.monotonic() + 10
    while client.exists("short"):
        assert time.monotonic() < deadline, "a key outlives its 20 ms"
    check("mset", client.mset({"m1": "1", "m2": "2"}), True)
    check("mget", client.mget("m1", "none", "m2"), [b"1", None, b"2"])
    check("incrby", client.incrby("m1", 41), 42)
    check("append", client.append("m2", "0"), 2)
    check("strlen", client.strlen("m2"), 2)
    check("exists", client.exists("m1", "m1", "none"), 2)
    check("delete", client.delete("m1", "m2", "none"), 2)
    check("large", client.set("large", b"x" * 5_000_000), True)
    check("large", client.get("large"), b"x" * 5_000_000)
    with client.pipeline(transaction=False) as pipe:
        for number in range(1000):
            pipe.set(f"p{number}", number).get(f"p{number}")
        check("pipeline", pipe.execute()[1::2], [b"%d" % number for number in range(1000)])
    # Commands that it does not know, by its generic call.
    check("tc.set", client.execute_command("TC.SET", "apple", 1, "PX", 60000, "TAGS", 2, "red", "round"), b"OK")
    check("tc.tags", client.execute_command("TC.TAGS", "apple"), [b"red", b"round"])
    check("tc.layers", len(client.execute_command("TC.LAYERS")) > 3, True)
    check("tc.invalidate", client.execute_command("TC.INVALIDATE", "round"), b"OK")
    check("tc gone", client.get("apple"), None)
    try:
        client.incr("large")
        sys.exit("incr of a text was accepted")
    except redis.ResponseError as error:
        check("error", str(error), "value is not an integer or out of range")
    check("dbsize", client.dbsize() > 1000, True)
    check("info", client.info()["redis_version"], "7.4.0")
    check("info", client.info("memory").keys() >= {"used_memory", "maxmemory"}, True)
    check("config", client.config_get("save"), {"save": ""})
    check("command", client.command_count() > 30, True)
    check("command", client.command()["get"]["arity"], 2)
    check("time", abs(client.time()[0] - time.time()) < 60, True)
    check("setname", client.client_setname("tester"), True)
    check("getname", client.client_getname() in ("tester", b"tester"), True)
    check("client info", client.client_info()["lib-name"].startswith("redis-py"), True)


def look_at_slow(client):
    check("slowlog reset", client.slowlog_reset(), True)
    check("set", client.set("k", "v"), True)
    entries = client.slowlog_get(10)
    check("slowlog get", len(entries) >= 2, True)
    entry = entries[0]
    fields = {"id", "start_time", "duration", "command", "client_address", "client_name"}
    check("slowlog fields", set(entry), fields)
    check("slowlog time", abs(entry["start_time"] - time.time()) < 60 and entry["duration"] >= 0, True)
    check("slowlog client", (entry["client_address"][:10], entry["client_name"]), (b"127.0.0.1:", b"tester"))
    # It joins all arguments; the last is what the node says of the command.
    command, _, remark = entry["command"].partition(b" # ")
    check("slowlog command", command, b"SET k v")
    check("slowlog remark", remark.startswith(b"operation ") and remark.endswith(b" ms: without I/O"), True)


port, slow_port = map(int, sys.argv[1:])
work(redis.Redis(port=port))
look_at_slow(redis.Redis(port=slow_port, client_name="tester"))
for protocol in 2, 3:
    work(redis.Redis(port=port, protocol=protocol, client_name="tester"))
    look_at_slow(redis.Redis(port=slow_port, protocol=protocol, client_name="tester"))
print("redis-py", redis.__version__, "ok")
