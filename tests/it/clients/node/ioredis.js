// ioredis with its default settings against a cache node: `ioredis.js PORT`.

const assert = require("node:assert");
const Redis = require("ioredis");

async function work(client) {
  assert.strictEqual(await client.ping(), "PONG");
  await client.flushall();
  assert.strictEqual(await client.set("k", "v\r\n"), "OK");
  assert.strictEqual(await client.get("k"), "v\r\n");
  assert.strictEqual(await client.get("missing"), null);
  assert.strictEqual(await client.set("k", "w", "EX", 100, "NX"), null);
  assert.strictEqual(await client.set("k", "w", "EX", 100, "GET"), "v\r\n");
  assert.strictEqual(await client.ttl("k"), 100);
  assert.strictEqual(await client.persist("k"), 1);
  assert.strictEqual(await client.mset({ a: 1, b: 2 }), "OK");
  assert.deepStrictEqual(await client.mget("a", "none", "b"), ["1", null, "2"]);
  assert.strictEqual(await client.incrby("a", 41), 42);
  assert.strictEqual(await client.append("b", "0"), 2);
  assert.strictEqual(await client.exists("a", "a", "none"), 2);
  assert.strictEqual(await client.del("a", "b", "none"), 2);
  const large = Buffer.alloc(5_000_000, 7);
  await client.set("large", large);
  assert.ok(large.equals(await client.getBuffer("large")));
  const pipeline = client.pipeline();
  for (let number = 0; number < 1000; number++) pipeline.set(`p${number}`, number).get(`p${number}`);
  const replies = await pipeline.exec();
  for (let number = 0; number < 1000; number++) assert.deepStrictEqual(replies[2 * number + 1], [null, `${number}`]);
  // Commands that it does not know, by its generic call.
  assert.strictEqual(await client.call("TC.SET", "apple", "1", "PX", 60000, "TAGS", 2, "red", "round"), "OK");
  assert.deepStrictEqual(await client.call("TC.TAGS", "apple"), ["red", "round"]);
  assert.strictEqual((await client.call("TC.LAYERS"))[0][1], "node");
  assert.strictEqual(await client.call("TC.INVALIDATE", "round"), "OK");
  assert.strictEqual(await client.get("apple"), null);
  await assert.rejects(client.incr("large"), /value is not an integer or out of range/);
  assert.match(await client.info("server"), /redis_version:7\.4\.0/);
  assert.ok((await client.command("COUNT")) > 30);
  assert.strictEqual(await client.client("SETNAME", "tester"), "OK");
  assert.strictEqual(await client.client("GETNAME"), "tester");
  assert.deepStrictEqual(await client.config("GET", "appendonly"), ["appendonly", "no"]);
}

async function main() {
  const port = Number(process.argv[2]);
  for (const options of [{}, { connectionName: "tester", enableAutoPipelining: true }]) {
    const client = new Redis(port, options);
    client.on("error", (error) => { throw error; });
    await work(client);
    assert.strictEqual(await client.quit(), "OK");
  }
  console.log("ioredis", require("ioredis/package.json").version, "ok");
}

main();
