// go-redis with its default settings against a cache node, and one that keeps every command as slow:
// `go run . PORT SLOW_PORT`.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

func check(name string, found, wanted any) {
	if !reflect.DeepEqual(found, wanted) {
		log.Fatalf("%s: %v instead of %v", name, found, wanted)
	}
}

// must returns the value of a command that may not fail.
func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func work(client *redis.Client) {
	ctx := context.Background()
	check("ping", must(client.Ping(ctx).Result()), "PONG")
	must(client.FlushAll(ctx).Result())
	check("set", must(client.Set(ctx, "k", "v\r\n", 0).Result()), "OK")
	check("get", must(client.Get(ctx, "k").Result()), "v\r\n")
	check("missing", errors.Is(client.Get(ctx, "missing").Err(), redis.Nil), true)
	check("set ex", must(client.Set(ctx, "k", "w", 100*time.Second).Result()), "OK")
	check("ttl", must(client.TTL(ctx, "k").Result()), 100*time.Second)
	check("persist", must(client.Persist(ctx, "k").Result()), true)
	check("mset", must(client.MSet(ctx, "a", 1, "b", 2).Result()), "OK")
	check("mget", must(client.MGet(ctx, "a", "none", "b").Result()), []any{"1", nil, "2"})
	check("incrby", must(client.IncrBy(ctx, "a", 41).Result()), int64(42))
	check("append", must(client.Append(ctx, "b", "0").Result()), int64(2))
	check("exists", must(client.Exists(ctx, "a", "a", "none").Result()), int64(2))
	check("del", must(client.Del(ctx, "a", "b", "none").Result()), int64(2))
	large := bytes.Repeat([]byte("x"), 5_000_000)
	must(client.Set(ctx, "large", large, 0).Result())
	check("large", bytes.Equal(must(client.Get(ctx, "large").Bytes()), large), true)
	pipeline := client.Pipeline()
	for number := range 1000 {
		pipeline.Set(ctx, fmt.Sprint("p", number), number, 0)
		pipeline.Get(ctx, fmt.Sprint("p", number))
	}
	for index, reply := range must(pipeline.Exec(ctx)) {
		if get, ok := reply.(*redis.StringCmd); ok {
			check("pipeline", get.Val(), fmt.Sprint(index/2))
		}
	}
	// Commands that it does not know, by its generic call.
	check("tc.set", must(client.Do(ctx, "TC.SET", "apple", "1", "PX", 60000, "TAGS", 2, "red", "round").Text()), "OK")
	check("tc.tags", must(client.Do(ctx, "TC.TAGS", "apple").StringSlice()), []string{"red", "round"})
	check("tc.layers", len(must(client.Do(ctx, "TC.LAYERS").Slice())) > 3, true)
	check("tc.invalidate", must(client.Do(ctx, "TC.INVALIDATE", "round").Text()), "OK")
	check("tc gone", errors.Is(client.Get(ctx, "apple").Err(), redis.Nil), true)
	check("error", client.Incr(ctx, "large").Err().Error(), "ERR value is not an integer or out of range")
	check("dbsize", must(client.DBSize(ctx).Result()) > 1000, true)
	check("info", strings.Contains(must(client.Info(ctx).Result()), "redis_version:7.4.0"), true)
	check("command", must(client.Command(ctx).Result())["get"].Arity, int8(2))
	check("config", must(client.ConfigGet(ctx, "save").Result()), map[string]string{"save": ""})
	check("client id", must(client.ClientID(ctx).Result()) > 0, true)
}

func lookAtSlow(client *redis.Client) {
	ctx := context.Background()
	check("slowlog reset", must(client.SlowLogReset(ctx).Result()), "OK")
	check("set", must(client.Set(ctx, "k", "v", 0).Result()), "OK")
	entries := must(client.SlowLogGet(ctx, 10).Result())
	check("slowlog get", len(entries) >= 2, true)
	entry := entries[0]
	check("slowlog time", time.Since(entry.Time).Abs() < time.Minute && entry.Duration >= 0, true)
	check("slowlog address", strings.HasPrefix(entry.ClientAddr, "127.0.0.1:"), true)
	check("slowlog name", entry.ClientName, "tester")
	check("slowlog seventh element", entry.CommandArgc, int64(0))
	// The last argument is what the node says of the command.
	last := len(entry.Args) - 1
	check("slowlog command", entry.Args[:last], []string{"set", "k", "v"})
	remark := entry.Args[last]
	check("slowlog remark", strings.HasPrefix(remark, "# operation ") && strings.HasSuffix(remark, " ms: without I/O"), true)
	check("after slowlog", must(client.Get(ctx, "k").Result()), "v")
}

// each calls use with a client of each protocol to the node at the port.
func each(port string, use func(*redis.Client)) {
	for _, protocol := range []int{0, 2, 3} {
		client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port, Protocol: protocol, ClientName: "tester"})
		use(client)
		must(0, client.Close())
	}
}

func main() {
	each(os.Args[1], work)
	each(os.Args[2], lookAtSlow)
	fmt.Println("go-redis", redis.Version(), "ok")
}
