#!/bin/sh
# Makes the user and the database of the warehouse's catalog. The PostgreSQL image runs it once, on an empty volume; on an
# older volume run it by hand: docker compose exec postgres sh /docker-entrypoint-initdb.d/catalog_database.sh
set -eu
: "${CATALOG_PASSWORD:?}"
psql --set=ON_ERROR_STOP=1 --quiet --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv password CATALOG_PASSWORD
create role nearline login password :'password';
create database nearline owner nearline;
revoke connect, temporary on database nearline from public;
revoke connect, temporary on database :"DBNAME" from public;
SQL
