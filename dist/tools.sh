#!/bin/sh
# Installs the commands that the tests, the demo and the benchmark call, where they
# are missing and this user may; if not, says how to get them. Does nothing, and
# asks no network, when all are there.
#
# Usage: tools.sh [test | e2e | bench]
#
# With test also what an operator types in the tests, with e2e what the end-to-end
# tests call on the machine itself, with bench what the benchmark does.
set -eu

needed='ip bridge iptables'
case ${1-} in
test) needed="$needed curl ping" ;;
e2e) needed="$needed debootstrap systemd-nspawn" ;;
bench) needed="$needed iperf3 ping" ;;
esac

# The PATH of ordinary users may lack these; the lab looks there as well.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

have() { [ -x "$(command -v "$1" 2>/dev/null)" ]; }

missing() {
	for command in $needed; do
		have "$command" || printf '%s ' "$command"
	done
}

if [ "${1-}" = e2e ] && [ "$(id -u)" != 0 ]; then
	echo "The end-to-end tests boot machines and run dockerd, which only root may: run them as root" >&2
	exit 1
fi

lacks=$(missing)
[ -n "$lacks" ] || exit 0

# The packages' names nearly everywhere.
iproute=iproute2
nspawn=systemd-container
iperf=iperf3
ping=iputils
refresh=
if have apt-get; then
	ping=iputils-ping
	install='env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends'
	refresh='apt-get update'
elif have dnf; then
	install='dnf install -y' iproute=iproute
elif have yum; then
	install='yum install -y' iproute=iproute
elif have zypper; then
	install='zypper --non-interactive install' iperf=iperf
	refresh='zypper --non-interactive refresh'
elif have pacman; then
	install='pacman -S --noconfirm --needed'
	refresh='pacman -Sy'
	nspawn=systemd
elif have apk; then
	install='apk add'
	refresh='apk update'
else
	install=
fi

packages=
case $lacks in *ip\ * | *bridge*) packages=$iproute ;; esac
case $lacks in *iptables*) packages="$packages${packages:+ }iptables" ;; esac
case $lacks in *debootstrap*) packages="$packages${packages:+ }debootstrap" ;; esac
case $lacks in *nspawn*) packages="$packages${packages:+ }$nspawn" ;; esac
case $lacks in *iperf3*) packages="$packages${packages:+ }$iperf" ;; esac
case $lacks in *curl*) packages="$packages${packages:+ }curl" ;; esac
case $lacks in *ping*) packages="$packages${packages:+ }$ping" ;; esac

fail() {
	echo "Tests, demo and benchmark need commands that are missing: $lacks- $1" >&2
	exit 1
}

[ -n "$install" ] || fail "install $packages with this system's package manager"
[ "$(id -u)" = 0 ] || fail "as root, run: ${install#env * } $packages"

echo "Missing: $lacks- running: $install $packages"
# The package lists may be old, or not there yet.
$install $packages || { [ -n "$refresh" ] && $refresh && $install $packages; } ||
	fail "installing $packages did not work, as the lines above tell"
lacks=$(missing)
[ -z "$lacks" ] || fail "they are still missing after installing $packages"
