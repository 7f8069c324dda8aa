# Who there is, by whole names that end in a full stop. Those of a pod that is away lead nowhere, and Redis does nothing else
# while it looks one up. A whole name is asked for once, and the cluster's own DNS answers; a short one would be looked for
# in every other domain too, at last in those outside the cluster.
set -eu
domain=
while read -r what first _; do
    if [ "$what" = search ]; then domain=".$first."; fi
done </etc/resolv.conf
OWN=$POD_NAME$domain
FIRST=$FIRST_POD$domain
