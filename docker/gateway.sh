#!/bin/sh
# nginx looks the SuperLink's name up when it reads its configuration and never again. One that Docker starts again gets
# another address where a container has taken the old one meanwhile, such as that of `make status`.
address() { getent hosts superlink || true; }

known=$(address)
while sleep 5; do
    now=$(address)
    if [ -n "$now" ] && [ "$now" != "$known" ]; then
        nginx -s reload
        known=$now
    fi
done &
exec nginx -g "daemon off;"
