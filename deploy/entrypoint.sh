#!/bin/sh
# Start the service that MODE names, with what else is given as its options; without MODE, run what is given.
set -eu

refuse() {
    echo "celeryscope image: error: $*" >&2
    exit 2
}

from_file() {  # from_file NAME: set the variable NAME to what the file holds that NAME_FILE names, if it does
    eval "file=\${${1}_FILE:-}"
    [ -n "$file" ] || return 0
    [ -r "$file" ] || refuse "${1}_FILE: cannot read '$file'"
    eval "$1=\$(cat \"\$file\")"
    export "${1?}"
    unset "${1}_FILE"
}

# Celery reads its addresses from the environment alone; a secret may be in a file all the same.
from_file CELERY_BROKER_URL
from_file CELERY_RESULT_BACKEND

# In a container one listens on all addresses: who may come in is for the container's network to say.
serve() {
    export CELERYSCOPE_LISTEN="${CELERYSCOPE_LISTEN:-$1}"
}

write_config() {  # for Prometheus, Alertmanager and Grafana; Slack's credential is for our group alone
    cd /etc/celeryscope
    rm -rf rules alertmanager boards kubernetes
    from_file CELERYSCOPE_SLACK_TOKEN
    from_file CELERYSCOPE_SLACK_WEBHOOK_URL
    mkdir alertmanager
    secret=${CELERYSCOPE_SLACK_TOKEN:-${CELERYSCOPE_SLACK_WEBHOOK_URL:-}}
    [ -n "$secret" ] || refuse "no way to Slack is given; set CELERYSCOPE_SLACK_TOKEN or CELERYSCOPE_SLACK_WEBHOOK_URL"
    (umask 027 && printf '%s' "$secret" >alertmanager/slack)
    which=TOKEN
    [ -n "${CELERYSCOPE_SLACK_TOKEN:-}" ] || which=WEBHOOK
    export "CELERYSCOPE_ALERTMANAGER_${which}_FILE=/etc/celeryscope/alertmanager/slack"
    unset CELERYSCOPE_STATE_DIR CELERYSCOPE_SLACK_TOKEN CELERYSCOPE_SLACK_WEBHOOK_URL
    celeryscope rules build --out .
    exec celeryscope dashboards build --out .
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
config)
    write_config
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
    [ $# -gt 0 ] || refuse "set MODE to monitor, alerter, flower, worker, beat or config"
    exec "$@"
    ;;
*)
    refuse "MODE must be monitor, alerter, flower, worker, beat or config (got '$MODE')"
    ;;
esac
