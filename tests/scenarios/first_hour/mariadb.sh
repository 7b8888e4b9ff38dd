#!/bin/sh
# A new data folder gets its root password, a database and a user from the environment or from files; then the server takes this process' place.
set -eu
data=/var/lib/mysql
as=
if [ "$(id -u)" = 0 ]; then
    chown -R mysql:mysql "$data" /run/mysqld
    as=--user=mysql
fi
secret() { if [ -n "${2:-}" ]; then cat "$2"; else printf %s "${1:?the password is not set}"; fi; }
if [ ! -d "$data/mysql" ]; then
    root=$(secret "${MARIADB_ROOT_PASSWORD:-}" "${MARIADB_ROOT_PASSWORD_FILE:-}")
    mariadb-install-db $as --datadir="$data" --auth-root-authentication-method=normal --skip-test-db >/dev/null
    {
        echo "ALTER USER root@localhost IDENTIFIED BY '$root';"
        if [ -n "${MARIADB_DATABASE:-}" ]; then
            echo "CREATE DATABASE \`$MARIADB_DATABASE\`;"
            echo "CREATE USER '$MARIADB_USER'@'%' IDENTIFIED BY '$(secret "${MARIADB_PASSWORD:-}" "${MARIADB_PASSWORD_FILE:-}")';"
            echo "GRANT ALL ON \`$MARIADB_DATABASE\`.* TO '$MARIADB_USER'@'%';"
        fi
    } >/tmp/first.sql
    chmod 0644 /tmp/first.sql
    set -- --init-file=/tmp/first.sql "$@"
fi
exec mariadbd $as --datadir="$data" --bind-address=0.0.0.0 --innodb-log-file-size=8M --innodb-flush-method=fsync "$@"
