#!/bin/sh
# Writes certificates to try TLS with, and the configurations that name them: sh serving/tls.sh FOLDER [HOST...]
#
#   tls.config          tensorflow_model_server --ssl_config_file: clients check the server
#   mutual_tls.config   the same, and the server checks the clients
#
# The private authority (ca.pem, ca.key) and all keys are valid for 30 days. For production, use your own authority.
set -eu
test $# -ge 1 || { echo "usage: sh serving/tls.sh FOLDER [HOST...]" >&2; exit 2; }
folder=$1
shift
names="DNS:localhost,IP:127.0.0.1"
for host in "$@"; do names="$names,DNS:$host"; done
mkdir -p "$folder"
cd "$folder"
umask 077
new_key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1.key"; }

new_key ca
openssl req -x509 -new -key ca.key -subj "/CN=serving test authority" -days 30 -out ca.pem
for role in server client; do
  new_key $role
  openssl req -new -key $role.key -subj "/CN=$role" -out $role.csr
  printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=%sAuth\nsubjectAltName=%s\n' \
    $role "$names" > $role.ext
  openssl x509 -req -in $role.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile $role.ext -out $role.pem
  rm $role.csr $role.ext
done 2> /dev/null
rm -f ca.srl

# Protocol buffers in text form: the files' lines, quoted and joined.
field() { printf '%s:\n' "$1"; sed 's/.*/  "&\\n"/' "$2"; }
{ field server_key server.key; field server_cert server.pem; } > tls.config
{ cat tls.config; field custom_ca ca.pem; echo "client_verify: true"; } > mutual_tls.config
