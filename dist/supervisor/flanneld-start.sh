#!/bin/sh
# flanneld-start.sh starts flanneld with the settings that flanneld.service takes,
# from the same files. It is for supervisord and the like, which read no such files.
#
# It keeps to POSIX sh, and becomes flanneld, so that signals reach that.

set -u
# Ranges such as 0-9 below mean bytes and not what a locale makes of them.
LC_ALL=C

FLANNEL_ETCD_ENDPOINTS=${FLANNEL_ETCD_ENDPOINTS:-http://127.0.0.1:4001,http://127.0.0.1:2379}
FLANNEL_ETCD_PREFIX=${FLANNEL_ETCD_PREFIX:-/coreos.com/network}
FLANNEL_OPTIONS=${FLANNEL_OPTIONS:-}

fail() {
	printf 'flanneld-start.sh: %s\n' "$1" >&2
	# The status of wrong usage: another start does not mend it.
	exit 2
}

# settings puts the variables of a file into the environment, as EnvironmentFile=
# of systemd does. The file is read and not sourced: a value with blanks need not
# have quotes there, and a $ in it is but a $. A line that ends in a backslash goes
# on in the next.
settings() {
	[ -e "$1" ] || return 0
	[ -f "$1" ] && [ -r "$1" ] || fail "reading the settings in $1: it is no file, or may not be read; mend its permissions"
	n=0
	while IFS= read -r line || [ -n "$line" ]; do
		n=$((n + 1))
		while [ "$line" != "${line%\\}" ] && { IFS= read -r next || [ -n "$next" ]; }; do
			n=$((n + 1))
			line=${line%\\}$next
		done
		# Blanks at both ends do not count.
		line=${line#"${line%%[![:space:]]*}"}
		line=${line%"${line##*[![:space:]]}"}
		case $line in
		'' | '#'* | ';'*) continue ;;
		esac
		line=${line#export }
		name=${line%%=*}
		value=${line#*=}
		# What is in the line is not shown: it may be a password.
		case $line in
		*=*) ;;
		*) fail "reading the settings in $1: line $n is not NAME=VALUE" ;;
		esac
		case $name in
		'' | [0-9]* | *[!A-Za-z0-9_]*) fail "reading the settings in $1: line $n does not begin with a name and =" ;;
		# A shell's own would be changed for what follows here.
		PATH | IFS | LC_ALL | n | line | next | name | value) continue ;;
		esac
		case $value in
		\"*\")
			value=${value#\"}
			value=${value%\"}
			;;
		\'*\')
			value=${value#\'}
			value=${value%\'}
			;;
		esac
		export "$name=$value"
	done <"$1"
}

settings /etc/sysconfig/flanneld
settings /etc/default/flanneld

# Options are split at blanks, and a * in one is but a *.
set -f
# shellcheck disable=SC2086
exec /usr/bin/flanneld -etcd-endpoints="$FLANNEL_ETCD_ENDPOINTS" -etcd-prefix="$FLANNEL_ETCD_PREFIX" $FLANNEL_OPTIONS
