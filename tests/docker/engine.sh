#!/bin/bash
# Run a command with a Docker engine: the one that answers, else one of its own that is gone afterwards.
#
# Images are built on a plain Debian with Python, made here from Debian's packages, so that nothing but the registries
# of Debian and Python is needed. A build of torch without CUDA that lies where pip is told to look for wheels
# (PIP_FIND_LINKS) is used; without one, torch comes from the default registry with all that belongs to it.
set -euo pipefail

missing=()
for program in dockerd docker mmdebstrap iptables; do
    command -v "$program" >/dev/null || missing+=("$program")
done
docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || missing+=(docker-compose)
if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "not here: ${missing[*]}; install them, or run this as root on a Debian" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        docker.io docker-compose mmdebstrap iptables >/dev/null
fi

folder=$(mktemp -d /tmp/gfpl-docker-XXXXXX)
started=()
made=  # the base image, where it is this script's own and not the user's
finish() {
    status=$?
    trap - EXIT INT TERM
    [ -z "$made" ] || docker image rm --force "$made" "$made-raw" >/dev/null 2>&1 || true
    for pid in "${started[@]}"; do
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    done
    # The engine leaves its network namespace mounted, where it has made one.
    { grep -o " $folder[^ ]*" /proc/mounts || true; } | while read -r mounted; do umount -l "$mounted" || true; done
    rm -rf "$folder" || true
    exit "$status"
}
trap finish EXIT INT TERM

if ! docker info >/dev/null 2>&1; then
    export DOCKER_HOST=unix://$folder/docker.sock
    dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/dockerd.pid" \
        --host "$DOCKER_HOST" >"$folder/dockerd.log" 2>&1 &
    started+=("$!")
    for _ in $(seq 300); do docker info >/dev/null 2>&1 && break; sleep 0.1; done
    docker info >/dev/null 2>&1 || { tail -n 20 "$folder/dockerd.log" >&2; exit 1; }
fi

if [ -z "${BASE:-}" ]; then
    made=gfpl-base/debian:$$
    export BASE=$made
    mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
        bookworm "$folder/base.tar"
    docker import "$folder/base.tar" "$BASE-raw" >/dev/null
    rm "$folder/base.tar"
    # A network may have a certificate authority of its own, which this machine trusts and a plain Debian does not.
    mkdir "$folder/base"
    cp /etc/ssl/certs/ca-certificates.crt "$folder/base/"
    printf 'FROM %s\nCOPY ca-certificates.crt /etc/ssl/certs/\nENV SSL_CERT_FILE=%s PIP_CERT=%s\n' "$BASE-raw" \
        /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt >"$folder/base/Dockerfile"
    docker build --quiet --tag "$BASE" "$folder/base" >/dev/null
fi
export BUILD_NETWORK=${BUILD_NETWORK:-host} TORCH_BACKEND=${TORCH_BACKEND-}
for wheel in ${PIP_FIND_LINKS:+"$PIP_FIND_LINKS"/torch-*+cpu-cp311-*"$(uname -m)".whl}; do
    [ -f "$wheel" ] || continue
    python3 -m http.server --bind 127.0.0.1 --directory "$PIP_FIND_LINKS" 0 >"$folder/wheels.log" 2>&1 &
    started+=("$!")
    for _ in $(seq 100); do grep -q 'port [0-9]' "$folder/wheels.log" && break; sleep 0.1; done
    port=$(grep -oE 'port [0-9]+' "$folder/wheels.log" | head -n 1 | cut -d' ' -f2)
    name=$(basename "$wheel")
    version=${name#torch-}
    export TORCH=torch==${version%%-*} TORCH_WHEELS=http://127.0.0.1:$port/
done

"$@"
