# Runs one of three Redises. Who the master is, Sentinels write into its configuration, so that lies on the volume.
umask 077
conf=/data/redis.conf
# Only who has a new volume knows nobody yet; the first pod then begins as the master.
if [ ! -s "$conf" ]; then
    if [ "$OWN" = "$FIRST" ]; then echo '# Redis writes this.' >"$conf"; else echo "replicaof $FIRST 6379" >"$conf"; fi
fi
# A file and not an argument, which everybody on the machine could read.
printf 'masterauth %s\n' "$REDISCLI_AUTH" >/data/auth.conf
exec redis-server "$conf" "$@" --replica-announce-ip "$OWN"
