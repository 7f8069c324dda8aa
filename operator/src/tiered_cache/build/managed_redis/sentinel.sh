# Runs the Sentinel beside one of three Redises. It writes what it knows into its configuration, on the same volume.
umask 077
conf=/data/sentinel.conf
if [ ! -s "$conf" ]; then
    # Its own for ever, also with a new volume: the others would count one with another id as a further Sentinel.
    id=$(printf 'sentinel myid %040d' "$((${POD_NAME##*-} + 1))")
    printf '%s\n' "$id" "sentinel monitor main $FIRST 6379 2" >"$conf"
fi
# Of a line that is there already the last one counts, and the startup probe makes it write each once. The password may be
# another than at the last start.
printf '%s\n' "requirepass $REDISCLI_AUTH" "sentinel sentinel-pass $REDISCLI_AUTH" "sentinel auth-pass main $REDISCLI_AUTH" \
    'sentinel resolve-hostnames yes' 'sentinel announce-hostnames yes' "sentinel announce-ip $OWN" \
    'sentinel down-after-milliseconds main 5000' 'sentinel failover-timeout main 10000' >>"$conf"
exec redis-server "$conf" "$@"
