#!/bin/sh
# Make this device a node: a user, a key, its configuration and a service. Nothing is started.
#     sudo devices/join.sh SERVER:PORT SITE CA-FILE
# Run it again to change the server or the name; a key that is there is kept.
set -eu

fail() { echo "error: $1" >&2; exit 2; }
[ $# -eq 3 ] || fail "usage: sudo devices/join.sh SERVER:PORT SITE CA-FILE"
superlink=$1 site=$2 authority=$3
here=$(cd "$(dirname "$0")/.." && pwd)
case "$superlink" in *:*[0-9]) ;; *) fail "server $superlink: must be HOST:PORT" ;; esac
case "$site" in "" | *[!A-Za-z0-9._-]*) fail "site '$site': use letters, digits, dots and dashes" ;; esac
[ "$(id -u)" = 0 ] || fail "this needs root: sudo $0 $*"
[ -f "$authority" ] || fail "no file $authority: copy docker/certificates/ca.crt from the server"
[ -x "$here/.venv/bin/flower-supernode" ] || fail "no environment in $here: make -C $here device"

id gfpl >/dev/null 2>&1 || useradd --system --home-dir /var/lib/gfpl --shell /usr/sbin/nologin gfpl
install -d -o gfpl -g gfpl -m 750 /var/lib/gfpl /var/lib/gfpl/data /var/lib/gfpl/state
install -d -m 755 /etc/gfpl
install -m 644 "$authority" /etc/gfpl/ca.crt
[ -f "/etc/gfpl/$site" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "$site" -f "/etc/gfpl/$site"
chown gfpl: "/etc/gfpl/$site"
chmod 600 "/etc/gfpl/$site"
cat >/etc/gfpl/node.env <<END
GFPL_SUPERLINK=$superlink
GFPL_CA=/etc/gfpl/ca.crt
GFPL_KEY=/etc/gfpl/$site
GFPL_SITE=$site
GFPL_DATA_DIR=/var/lib/gfpl/data
GFPL_STATE_DIR=/var/lib/gfpl/state
END
sed "s|@GFPL@|$here|g" "$here/devices/gfpl-node.service" >/etc/systemd/system/gfpl-node.service
# A node that runs already has the old server and command.
[ ! -d /run/systemd/system ] || { systemctl daemon-reload; systemctl try-restart gfpl-node; }

echo "node $site is ready; its public key, to be registered on the server:"
cat "/etc/gfpl/$site.pub"
