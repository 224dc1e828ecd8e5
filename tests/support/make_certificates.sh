#!/bin/sh
# make_certificates.sh DIRECTORY: what the tests of TLS need.
#
#   ca.pem                     an authority
#   server.pem, server.key     localhost, 127.0.0.1 and ::1, by that authority
#   expired.pem                the same, of yesterday
#   other.pem                  other.test, by that authority
#   stranger.pem               localhost, by an authority that nobody knows
#   other.key                  a key that belongs to none of these
set -eu
cd "$1"

key() {
    openssl ecparam -name prime256v1 -genkey -noout -out "$1"
}

authority() {
    key "$1.key"
    openssl req -x509 -new -key "$1.key" -subj "/CN=$1" -days 3650 \
        -addext basicConstraints=critical,CA:TRUE \
        -addext keyUsage=critical,keyCertSign -out "$1.pem"
}

# certificate NAME AUTHORITY DAYS SUBJECT-ALTERNATIVE-NAMES
certificate() {
    printf 'subjectAltName=%s\n' "$4" >names.cnf
    openssl req -new -key server.key -subj "/CN=side channel" -out request.pem
    openssl x509 -req -in request.pem -CA "$2.pem" -CAkey "$2.key" \
        -CAcreateserial -days "$3" -extfile names.cnf -out "$1.pem" 2>/dev/null
}

here=DNS:localhost,IP:127.0.0.1,IP:::1
authority ca
authority nobody
key server.key
key other.key
certificate server ca 3650 "$here"
certificate expired ca -1 "$here"
certificate other ca 3650 DNS:other.test
certificate stranger nobody 3650 "$here"
