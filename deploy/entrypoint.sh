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

# For Prometheus, Alertmanager and Grafana, who may be reading what an earlier run wrote: nothing of it is touched before
# all is made, and then each file is replaced by a rename. Slack's credential is for our group alone.
write_config() {
    from_file CELERYSCOPE_SLACK_TOKEN
    from_file CELERYSCOPE_SLACK_WEBHOOK_URL
    folder=${CONFIG_DIR:-/etc/celeryscope}
    new=$folder/.new
    rm -rf "$new"
    trap 'rm -rf "$new"' EXIT
    mkdir -p "$new/alertmanager"
    secret=${CELERYSCOPE_SLACK_TOKEN:-${CELERYSCOPE_SLACK_WEBHOOK_URL:-}}
    [ -z "$secret" ] || (umask 027 && printf '%s' "$secret" >"$new/alertmanager/slack")
    which=TOKEN
    [ -n "${CELERYSCOPE_SLACK_TOKEN:-}" ] || [ -z "$secret" ] || which=WEBHOOK
    export "CELERYSCOPE_ALERTMANAGER_${which}_FILE=/etc/celeryscope/alertmanager/slack"
    unset CELERYSCOPE_STATE_DIR CELERYSCOPE_SLACK_TOKEN CELERYSCOPE_SLACK_WEBHOOK_URL
    celeryscope rules build --out "$new"
    celeryscope dashboards build --out "$new"
    [ -n "$secret" ] || without_slack "$new/alertmanager/alertmanager.yml"
    take_over
}

without_slack() {  # without_slack FILE: alerts are shown, and nobody is told: a receiver without an address is allowed
    echo "celeryscope image: no way to Slack is given (CELERYSCOPE_SLACK_TOKEN or CELERYSCOPE_SLACK_WEBHOOK_URL):" \
        "Alertmanager shows alerts and sends none to Slack" >&2
    python - "$1" <<'END'
import sys
import yaml

with open(sys.argv[1], encoding="utf-8") as file:
    config = yaml.safe_load(file)
config.pop("global", None)
for receiver in config["receivers"]:
    receiver.pop("slack_configs", None)
with open(sys.argv[1], "w", encoding="utf-8") as file:
    file.write("# Made by the service `config` for a stack without Slack.\n")
    yaml.safe_dump(config, file, sort_keys=False)
END
}

take_over() {  # what is in $new takes the place of what is in $folder
    cd "$new"
    find . -type f >"$folder/.made"
    while read -r file; do
        mkdir -p "$folder/${file%/*}"
        mv -f "$file" "$folder/$file"
    done <"$folder/.made"
    cd "$folder"
    for part in rules alertmanager boards kubernetes; do
        find "./$part" -type f | while read -r file; do
            grep -qxF -e "$file" .made || rm -f "$file"
        done
    done
    rm -f .made
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
