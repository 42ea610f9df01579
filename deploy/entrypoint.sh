#!/bin/sh
# Start the service that MODE names, with what else is given as its options; without MODE, run what is given.
set -eu

refuse() {
    echo "celeryscope image: error: $*" >&2
    exit 2
}

# Celery reads its addresses from the environment alone; a secret may be in a file all the same.
for name in CELERY_BROKER_URL CELERY_RESULT_BACKEND; do
    eval "file=\${${name}_FILE:-}"
    [ -n "$file" ] || continue
    [ -r "$file" ] || refuse "${name}_FILE: cannot read '$file'"
    eval "$name=\$(cat \"\$file\")"
    export "${name?}"
    unset "${name}_FILE"
done

# In a container one listens on all addresses: who may come in is for the container's network to say.
serve() {
    export CELERYSCOPE_LISTEN="${CELERYSCOPE_LISTEN:-$1}"
}

needs_app() {
    [ -n "${APP:-}" ] || refuse "MODE=$MODE needs APP, the module of your Celery app, as in celery -A"
}

export CELERYSCOPE_STATE_DIR="${CELERYSCOPE_STATE_DIR:-/var/lib/celeryscope}"

case ${MODE:-} in
monitor)
    serve :9808
    exec celeryscope monitor "$@"
    ;;
alerter)
    serve :9809
    exec celeryscope alerter "$@"
    ;;
flower)
    export CELERYSCOPE_FLOWER_LISTEN="${CELERYSCOPE_FLOWER_LISTEN:-:5555}"
    [ -z "${APP:-}" ] || export CELERYSCOPE_APP="${CELERYSCOPE_APP:-$APP}"
    exec celeryscope flower "$@"
    ;;
worker)
    needs_app
    exec celery -A "$APP" worker --hostname "${WORKER_NAME:-celery@%h}" --loglevel "${LOG_LEVEL:-INFO}" "$@"
    ;;
beat)
    needs_app
    exec celery -A "$APP" beat --schedule /var/lib/celeryscope/celerybeat-schedule --pidfile= \
        --loglevel "${LOG_LEVEL:-INFO}" "$@"
    ;;
'')
    [ $# -gt 0 ] || refuse "set MODE to monitor, alerter, flower, worker or beat"
    exec "$@"
    ;;
*)
    refuse "MODE must be monitor, alerter, flower, worker or beat (got '$MODE')"
    ;;
esac
