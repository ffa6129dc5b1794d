#!/bin/sh
# What Flower's own images have and a plain Debian with Python has not: the user, the environment, Flower in it.
set -eu
if ! getent passwd 49999 >/dev/null; then
    groupadd --gid 49999 app
    useradd --uid 49999 --gid 49999 --home-dir /app --create-home --shell /usr/sbin/nologin app
fi
if ! command -v flower-superlink >/dev/null && [ ! -x /python/venv/bin/flower-superlink ]; then
    python3 -m venv /python/venv
    /python/venv/bin/pip install --no-cache-dir --quiet --disable-pip-version-check \
        --require-hashes -r "$(dirname "$0")/requirements-device.lock"
fi
# A volume takes the owner of the folder that it is mounted on.
mkdir -p /app/state
chown 49999:49999 /app /app/state
