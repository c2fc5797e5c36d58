#!/bin/sh
# Writes the secrets that docker-compose.yaml asks for into .env (or the file named as argument), readable by its
# owner only. An existing file is left alone: its passwords are in use.
set -eu
file="${1:-$(dirname "$0")/../.env}"
if [ -e "$file" ]; then
    echo "$file exists; nothing written" >&2
    exit 0
fi
random() { od -An -v -tx1 -N "$1" /dev/urandom | tr -d ' \n'; }
umask 077
cat > "$file" <<EOT
POSTGRES_PASSWORD=$(random 24)
REDIS_PASSWORD=$(random 24)
AIRFLOW_ADMIN_PASSWORD=$(random 12)
AIRFLOW_API_SECRET_KEY=$(random 32)
AIRFLOW_JWT_SECRET=$(random 64)
AIRFLOW_FERNET_KEY=$(head -c 32 /dev/urandom | base64 | tr '+/' '-_')
EOT
echo "wrote $file"
