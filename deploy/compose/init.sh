#!/bin/sh
# Makes what all programs share, where it is not there yet: secrets, keys, the registry's tables, the
# first owner. STATE is the folder for it.
set -eu
STATE=${STATE:-/run/tunnelmux}
POSTGRES=${POSTGRES:-postgresql://tunnelmux:tunnelmux@postgres/tunnelmux}
REDIS=${REDIS:-redis://:tunnelmux@redis:6379}
ISSUER=${ISSUER:-http://oidc.localhost:9400}
umask 027
cd "$(dirname "$0")"

once() { # once FILE COMMAND...: what the command prints
    file=$STATE/$1
    shift
    [ -s "$file" ] || { "$@" > "$file.new" && mv "$file.new" "$file"; }
}
once registry.url printf %s "$POSTGRES"
once redis.url printf %s "$REDIS"
once internal.secret python3 -c 'import secrets; print(secrets.token_hex(32))'
once session-keys tunnelmux-api keys new
once authority.key tunnelmux-gateway keys new-authority
tunnelmux-api db upgrade --config api.toml
tunnelmux-api admin grant --config api.toml --issuer "$ISSUER" --email ada@example.com ||
    echo "init: there is an owner already"
# Both gateways show the same host key.
tunnelmux-gateway host-key --config gateway.toml gateway.localhost > "$STATE/gateway.known_hosts"
mkdir -p "$STATE/recordings"
[ "$(id -u)" -ne 0 ] || chown -R 990:990 "$STATE"
