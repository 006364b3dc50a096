#!/bin/sh
# Makes a tree of Debian with what operators run beside flanneld: systemd,
# dockerd, supervisord, and the shells its scripts are for. The end-to-end tests
# run these from the tree, so that none of them gets installed, or even started,
# on the machine of whoever runs the tests.
#
# Usage: tree.sh DIR
#
# A tree that this script has made before is kept as it is, and asks no network.
set -eu

release=bookworm
packages=systemd,systemd-sysv,dbus,iproute2,iptables,docker.io,supervisor,busybox-static

tree=$1
stamp=$tree/.made
wants="$release $packages"
[ "$(cat "$stamp" 2>/dev/null)" != "$wants" ] || exit 0

fail() {
	echo "tree.sh: $1" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || fail "the end-to-end tests boot machines and run dockerd, which only root may: run this as root"
command -v debootstrap >/dev/null || fail "there is no debootstrap: install the package of that name"
# What debootstrap mounts and starts goes with this script, however that ends: by
# setpriv when it is killed, by the trap otherwise, as unshare takes no notice of
# SIGTERM.
if [ -z "${TREE_INSIDE-}" ]; then
	TREE_INSIDE=yes setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc sh "$0" "$@" &
	inside=$!
	trap 'kill -KILL $inside; exit 1' HUP INT TERM
	wait $inside
	exit
fi

echo "Making a tree of Debian $release in $tree (a minute)"
rm -rf "$tree"
mkdir -p "$(dirname "$tree")"
log=$tree.log
debootstrap --variant=minbase --include="$packages" "$release" "$tree" >"$log" 2>&1 || {
	tail -n 20 "$log" >&2
	fail "debootstrap did not work; all it said is in $log"
}
# Packages that are in the tree now are needed no more.
rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
echo "$wants" >"$stamp"
