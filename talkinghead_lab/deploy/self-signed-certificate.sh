#!/bin/sh
# Make a self-signed certificate for tests and private networks: self-signed-certificate.sh NAME CERTIFICATE KEY
set -eu
[ $# = 3 ] || { echo "usage: $0 NAME CERTIFICATE KEY" >&2; exit 2; }
for file in "$2" "$3"; do
  [ ! -e "$file" ] || { echo "$file exists; remove it first" >&2; exit 1; }
done
umask 077
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 825 -subj "/CN=$1" \
  -addext "subjectAltName=DNS:$1" -out "$2" -keyout "$3" 2>/dev/null
chmod 644 "$2"
echo "$2 is valid for $1 until $(openssl x509 -in "$2" -noout -enddate | cut -d= -f2)"
