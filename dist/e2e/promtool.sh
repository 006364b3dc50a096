#!/bin/sh
# Fetches promtool, by which the end-to-end tests check metrics, alerts and the
# dashboard. It comes out of Debian's package prometheus, which is not installed: that
# would start a Prometheus on the machine of whoever runs the tests.
#
# Usage: promtool.sh FILE
#
# A promtool that is there already is kept as it is, and asks no network. Where there
# are no packages of Debian's kind nothing is fetched, and nothing is wrong.
set -eu

promtool=$1
[ ! -x "$promtool" ] || exit 0
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || exit 0

fail() {
	echo "promtool.sh: $1" >&2
	exit 1
}

mkdir -p "$(dirname "$promtool")"
parts=$(mktemp -d "$promtool.XXXXXX")
trap 'rm -rf "$parts"' EXIT
trap 'exit 1' HUP INT TERM

# What apt-get says is for who wants to know why it did not work. As the user _apt it
# could not write here.
download() { (cd "$parts" && apt-get -o APT::Sandbox::User=root download prometheus) >"$parts/log" 2>&1; }

echo "Fetching promtool (the package prometheus) into $promtool"
# The package lists may be old, or not there yet.
download || { apt-get update >/dev/null 2>&1 && download; } || {
	cat "$parts/log" >&2
	fail "fetching the package prometheus did not work, as the lines above tell"
}
dpkg-deb -x "$parts"/prometheus_*.deb "$parts" || fail "the package prometheus cannot be unpacked"
mv "$parts/usr/bin/promtool" "$promtool"
