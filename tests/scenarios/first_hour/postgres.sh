#!/bin/sh
# A new data folder is made with a password from the environment; then the server takes this process' place. It never runs as root.
set -eu
PATH="$(echo /usr/lib/postgresql/*/bin):$PATH"
export PATH
data=${PGDATA:-/var/lib/postgresql/data}
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$data"
    chown -R postgres:postgres "$data" /run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$data/PG_VERSION" ]; then
    printf %s "${POSTGRES_PASSWORD:?the password is not set}" >/tmp/password
    initdb --pgdata="$data" --username=postgres --pwfile=/tmp/password --auth-host=scram-sha-256 --auth-local=trust --no-sync --no-locale -E UTF8
    echo 'host all all all scram-sha-256' >>"$data/pg_hba.conf"
    rm /tmp/password
fi
exec postgres -D "$data" -c listen_addresses='*' -c jit=off "$@"
