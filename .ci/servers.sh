#!/bin/sh
# Real brokers and a browser for the tests. Installs what is missing where root and apt-get can, starts nothing, and
# never fails: tests that find none are skipped and say so.
missing=""
[ -x "$(command -v redis-server)" ] || missing="$missing redis-server"
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing="$missing rabbitmq-server"
[ -x "$(command -v chromium)" ] || missing="$missing chromium"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || [ ! -x "$(command -v apt-get)" ]; then
    echo "The tests on$missing will be skipped: install them to run these too (this needs root and apt-get)."
    exit 0
fi
echo "Installing$missing for the tests ..."
# A package that starts its server at installation would take the default port of somebody else's.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' > $policy && chmod +x $policy
    trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
install() { timeout 300 apt-get install -y -qq --no-install-recommends $missing > /dev/null 2>&1; }
install || { timeout 120 apt-get update -qq > /dev/null 2>&1 && install; } ||
    echo "apt-get could not install$missing: the tests that need them will be skipped."
exit 0
