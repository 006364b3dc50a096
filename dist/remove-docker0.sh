#!/bin/sh
# remove-docker0.sh takes away the bridge docker0 when its address does not fit
# the subnet that flanneld has leased. Older dockerds refuse to start with a --bip
# that differs from the address of a docker0 they find, as it is after a start
# without flanneld or when the host got another subnet.
#
# A docker0 that fits stays, with all containers on it, so that this can run
# before each start of flanneld (ExecStartPre=) also while dockerd is up.

set -u
# Bytes are bytes, and messages of ip are in English.
LC_ALL=C
export LC_ALL

usage() {
	cat <<END
Usage: remove-docker0.sh [-f FILE]

Removes the bridge docker0 unless its address is that of flanneld's subnet file.

  -f FILE  the subnet file (default /run/flannel/subnet.env); without such a
           file no docker0 fits
  -h       show this help
END
}

fail() {
	printf 'remove-docker0.sh: %s\n' "$1" >&2
	exit 1
}

misuse() {
	printf 'remove-docker0.sh: %s; see remove-docker0.sh -h\n' "$1" >&2
	exit 2
}

env_file=/run/flannel/subnet.env
OPTIND=1
while getopts :f:h opt; do
	case $opt in
	f) env_file=$OPTARG ;;
	h)
		usage
		exit 0
		;;
	:) misuse "option -$OPTARG needs a value" ;;
	*) misuse "there is no option -$OPTARG" ;;
	esac
done
shift $((OPTIND - 1))
[ $# -eq 0 ] || misuse "what is \"$1\" for? Only options are expected"
[ -n "$env_file" ] || misuse "option -f needs the name of a file"

# What starts programs does not always look where administrators' programs are.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
ip link show dev docker0 >/dev/null 2>&1
case $? in
0) ;;
126 | 127) fail "there is no program ip: install the package iproute2 (or iproute)" ;;
*) exit 0 ;; # No docker0, nothing to do.
esac

# The last FLANNEL_SUBNET counts, and what may be written by hand is what flanneld
# itself understands: quotes, export, comments, a semicolon at the end, the
# carriage returns and the mark at the beginning of editors elsewhere.
subnet=
cr=$(printf '\r')
bom=$(printf '\357\273\277')
if [ -f "$env_file" ] && [ -r "$env_file" ]; then
	while read -r line || [ -n "$line" ]; do
		line=${line#"$bom"}
		line=${line%"$cr"}
		line=${line#export }
		case $line in
		FLANNEL_SUBNET=*) subnet=${line#FLANNEL_SUBNET=} ;;
		esac
	done <"$env_file"
	subnet=${subnet%% #*}
	subnet=${subnet%"${subnet##*[!; 	]}"}
	subnet=${subnet#[\"\']}
	subnet=${subnet%[\"\']}
fi

addresses=$(ip -4 -o addr show dev docker0) || fail "cannot read the addresses of docker0"
# One line for each address: "5: docker0    inet 10.1.74.1/24 brd ..."
if [ -n "$subnet" ]; then
	case $addresses in
	*" inet $subnet "*) exit 0 ;;
	esac
fi

ip link delete dev docker0 || fail "cannot remove docker0: run this as root, in the host's network namespace"
if [ -n "$subnet" ]; then
	printf 'remove-docker0.sh: removed docker0, which did not have the address %.60s\n' "$subnet"
else
	printf 'remove-docker0.sh: removed docker0, as there is no FLANNEL_SUBNET in %s that it could fit\n' "$env_file"
fi
