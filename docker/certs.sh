#!/bin/sh
# Certificates and keys of a federation. Run it again to renew the server's certificate or to add names and nodes;
# the certificate authority, every key that is there already and the certificate's names are kept, so devices need
# nothing new. (To drop names, remove certificates/server.pem first.) A server that runs goes on with the certificate
# that it has read: `make renew` runs this and has it read the new one.
#
#     docker/certs.sh [NAME ...]        names and addresses under which devices reach the server
#     NODES="camera-1 camera-2" docker/certs.sh ...       nodes to make keys for; node-0 to node-2 by default
#     DAYS=825 docker/certs.sh ...      how long the server's certificate is valid
#
# docker/certificates holds what may be seen, docker/private what may not: only its owner can enter it. The keys in
# it can be read once one is inside, because a container's user, 49999, is given single ones of them.
set -eu
cd "$(dirname "$0")"
umask 022
mkdir -p certificates private
chmod 700 private

if [ ! -f private/ca.key ]; then
    openssl ecparam -name secp384r1 -genkey -noout -out private/ca.key
    openssl req -x509 -new -key private/ca.key -sha384 -days 3650 -subj "/CN=gfpl certificate authority" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" -out certificates/ca.crt
fi
names="DNS:localhost,DNS:superlink,DNS:gateway,IP:127.0.0.1"
add() {
    case ",$names," in *",$1,"*) ;; *) names="$names,$1" ;; esac
}
if [ -f certificates/server.pem ]; then
    for name in $(openssl x509 -noout -ext subjectAltName -in certificates/server.pem 2>/dev/null |
        sed -n '2{s/IP Address:/IP:/g;s/[, ]\{1,\}/ /g;p;}'); do
        add "$name"
    done
fi
for name in "$@"; do
    case "$name" in
        *[!0-9.]*) case "$name" in *:*) add "IP:$name" ;; *) add "DNS:$name" ;; esac ;;
        *) add "IP:$name" ;;
    esac
done
extensions=$(mktemp)
trap 'rm -f "$extensions"' EXIT
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' "$names" >"$extensions"
[ -f private/server.key ] || openssl ecparam -name secp384r1 -genkey -noout -out private/server.key
openssl req -new -key private/server.key -subj "/CN=gfpl server" |
    openssl x509 -req -sha384 -days "${DAYS:-825}" -CA certificates/ca.crt -CAkey private/ca.key -CAcreateserial \
        -CAserial private/ca.srl -extfile "$extensions" -out certificates/server.pem 2>/dev/null
for node in ${NODES:-node-0 node-1 node-2}; do
    [ -f "private/$node" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "$node" -f "private/$node"
    mv -f "private/$node.pub" certificates/ 2>/dev/null || true
done
[ -f private/superexec.secret ] || openssl rand -hex 32 >private/superexec.secret
chmod 644 private/*
chmod 600 private/ca.key
echo "certificate for $names, valid until $(openssl x509 -noout -enddate -in certificates/server.pem | cut -d= -f2)"
echo "keys of the nodes $(cd certificates && echo *.pub)"
