#!/bin/sh
# Install the programs that some tests need, where that is allowed, all at a time; say what will be skipped where it
# is not.

# The official parser of AsyncAPI, once an environment: some ten seconds, for one test.
parser() {
    parser=.venv/asyncapi
    [ -d "$parser/node_modules/@asyncapi/parser" ] && return
    if ! command -v npm >/dev/null 2>&1; then
        echo "not installed: npm; the test that needs @asyncapi/parser is skipped and says so"
        return
    fi
    echo "installing @asyncapi/parser for the tests, once"
    npm install --prefix "$parser" --ignore-scripts --no-audit --no-fund --silent --fetch-retries=0 @asyncapi/parser@3.6.6 >/dev/null 2>&1 \
        || echo "npm can't install @asyncapi/parser; the test that needs it is skipped and says so"
}

# ib_insync and ib_async both bring a package called eventkit: each library is tested in an environment of its own.
insync() {
    insync=.venv/insync
    [ -x .venv/bin/python ] || return
    [ -f "$insync/.ready" ] && [ ! pyproject.toml -nt "$insync/.ready" ] && return
    echo "making the environment with ib_insync for the tests ($insync), once"
    { [ -x "$insync/bin/python" ] || .venv/bin/python -m venv "$insync"; } \
        && "$insync/bin/pip" install --quiet --disable-pip-version-check -e '.[testkit,ibkr]' \
        && touch "$insync/.ready" \
        || echo "ib_insync can't be installed; the test that needs it is skipped and says so"
}

# Mosquitto, a browser and PostgreSQL, as the system has them.
system() {
    missing=""
    command -v mosquitto >/dev/null 2>&1 || [ -x /usr/sbin/mosquitto ] || missing="$missing mosquitto"
    command -v mosquitto_sub >/dev/null 2>&1 || missing="$missing mosquitto-clients"
    command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || missing="$missing chromium"
    command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
    [ -z "$missing" ] && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing$missing for the tests"
        # shellcheck disable=SC2086
        (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing) >/dev/null && return
    fi
    echo "not installed:$missing; the tests that need it are skipped, each says so"
}

parser &
insync &
system &
wait
exit 0
