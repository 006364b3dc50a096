#!/bin/sh
# mk-docker-opts.sh turns the subnet file that flanneld writes into options for
# dockerd, as a file of variables that a unit reads (EnvironmentFile=) or a
# shell script sources.
#
# It keeps to POSIX sh, so that it does the same under dash, bash and busybox.

set -u
# Ranges such as 0-9 below mean bytes and not what a locale makes of them.
LC_ALL=C
export LC_ALL

usage() {
	cat <<END
Usage: mk-docker-opts.sh [-f FILE] [-d FILE] [-i] [-c] [-m] [-k NAME]

Writes options for dockerd that fit the subnet flanneld has leased.

  -f FILE  read the subnet from FILE (default /run/flannel/subnet.env)
  -d FILE  write the options to FILE (default /run/docker_opts.env)
  -i       write one variable for each option only: DOCKER_OPT_BIP, ...
  -c       write the one variable with all options only (without -i and -c: both)
  -k NAME  call that variable NAME (default DOCKER_OPTS). What it holds in the
           environment comes first in it
  -m       leave out --ip-masq
  -h       show this help
END
}

fail() {
	printf 'mk-docker-opts.sh: %s\n' "$1" >&2
	exit 1
}

misuse() {
	printf 'mk-docker-opts.sh: %s; see mk-docker-opts.sh -h\n' "$1" >&2
	exit 2
}

env_file=/run/flannel/subnet.env
out_file=/run/docker_opts.env
name=DOCKER_OPTS
each=no
all=no
with_masq=yes

if [ "${1-}" = --help ]; then
	usage
	exit 0
fi
# A variable of this name in the environment would make getopts start elsewhere.
OPTIND=1
while getopts :f:d:ick:mh opt; do
	case $opt in
	f) env_file=$OPTARG ;;
	d) out_file=$OPTARG ;;
	i) each=yes ;;
	c) all=yes ;;
	k) name=$OPTARG ;;
	m) with_masq=no ;;
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
[ -n "$out_file" ] || misuse "option -d needs the name of a file"
case $name in
'' | [0-9]* | *[!A-Za-z0-9_]*) misuse "-k \"$name\": not a name for a variable" ;;
env_file | out_file | name | each | all | with_masq | opt | OPTARG | OPTIND | LC_ALL)
	misuse "-k \"$name\": this script has a variable of that name itself"
	;;
esac
# Before this script has more variables of its own; name was checked to be nothing
# but a name.
eval "before=\${$name-}"
# Between double quotes these four have a meaning, to systemd as to shells.
before=$(printf '%s' "$before" | sed 's/[\\"$`]/\\&/g') || fail "cannot run sed"
if [ $each = no ] && [ $all = no ]; then
	each=yes
	all=yes
fi
# dirname, mv and the like would take it for an option.
case $out_file in
-*) out_file=./$out_file ;;
esac

# The file is read and not sourced: a broken one is an error then, and not
# whatever a shell makes of it. These three are all that is wanted from it, and
# the environment may hold FLANNEL_ variables of its own.
subnet=
mtu=
masq=

[ -e "$env_file" ] || fail "$env_file does not exist: is flanneld running, with that --subnet-file?"
[ ! -d "$env_file" ] || fail "$env_file is a directory and not the file that flanneld writes"
[ -r "$env_file" ] || fail "$env_file cannot be read: run this as root or mend its permissions"

# A disk that was full or a host that crashed leaves NULs, which shells would
# leave out of what they read, each in its own way. Only a file can be read twice.
# And some shells take minutes for a line of megabytes.
if [ -f "$env_file" ]; then
	size=$(wc -c <"$env_file") || fail "reading $env_file failed"
	[ "$size" -le 65536 ] || fail "$env_file is broken: it is much larger than what flanneld writes"
	strange=$(tr -d '\011\012\015\040-\176\200-\377' <"$env_file" | wc -c) || fail "reading $env_file failed"
	[ "$strange" -eq 0 ] || fail "$env_file is broken: there are bytes in it that are no text"
fi

# broken says what is wrong with the file; lines and values that it shows have an
# end.
broken() {
	fail "$env_file is broken: $(printf "$@")"
}

# What may be written by hand is what flanneld itself understands: quotes, export,
# comments, a semicolon at the end, the carriage returns and the mark at the
# beginning of editors elsewhere.
cr=$(printf '\r')
bom=$(printf '\357\273\277')
n=0
while read -r line || [ -n "$line" ]; do
	n=$((n + 1))
	[ $n -gt 1 ] || line=${line#"$bom"}
	line=${line%"$cr"}
	line=${line#export }
	case $line in
	'' | '#'*) continue ;;
	esac
	key=${line%%=*}
	case $key in
	"$line" | '' | [0-9]* | *[!A-Za-z0-9_]*) broken 'line %d is not NAME=VALUE: %.60s' $n "$line" ;;
	FLANNEL_SUBNET | FLANNEL_MTU | FLANNEL_IPMASQ) ;;
	*) continue ;;
	esac
	value=${line#*=}
	value=${value%% #*}
	value=${value%"${value##*[!; 	]}"}
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
	case $key in
	FLANNEL_SUBNET) subnet=$value ;;
	FLANNEL_MTU) mtu=$value ;;
	FLANNEL_IPMASQ) masq=$value ;;
	esac
done <"$env_file" || fail "reading $env_file failed"

# within reports whether $1 is a whole number, written as such are, up to $2.
within() {
	case $1 in
	'' | *[!0-9]* | 0?* | ??????*) return 1 ;;
	esac
	[ "$1" -le "$2" ]
}

# is_prefix reports whether $1 is an IPv4 address with a length.
is_prefix() {
	case $1 in
	*/*/* | *.*.*.*.* | *[!0-9./]*) return 1 ;;
	*.*.*.*/*) ;;
	*) return 1 ;;
	esac
	rest=${1%/*}.
	while [ -n "$rest" ]; do
		within "${rest%%.*}" 255 || return 1
		rest=${rest#*.}
	done
	within "${1#*/}" 32
}

[ -n "$subnet" ] || broken 'no FLANNEL_SUBNET in it'
is_prefix "$subnet" ||
	broken 'FLANNEL_SUBNET=%.60s has to be an address with a length, such as 10.1.74.1/24' "$subnet"
[ -n "$mtu" ] || broken 'no FLANNEL_MTU in it'
within "$mtu" 65535 && [ "$mtu" -gt 0 ] || broken 'FLANNEL_MTU=%.60s has to be a number of bytes' "$mtu"
# dockerd masquerades when flanneld does not, and the other way round.
case $masq in
true) docker_masq=false ;;
false) docker_masq=true ;;
'')
	# With -m it does not matter.
	[ $with_masq = no ] || broken 'no FLANNEL_IPMASQ in it'
	docker_masq=
	;;
*) broken 'FLANNEL_IPMASQ=%.60s has to be true or false' "$masq" ;;
esac

bip=--bip=$subnet
ip_masq=
if [ $with_masq = yes ]; then
	ip_masq=--ip-masq=$docker_masq
fi
mtu=--mtu=$mtu

options() {
	if [ $each = yes ]; then
		printf '%s="%s"\n' DOCKER_OPT_BIP "$bip"
		[ -z "$ip_masq" ] || printf '%s="%s"\n' DOCKER_OPT_IPMASQ "$ip_masq"
		printf '%s="%s"\n' DOCKER_OPT_MTU "$mtu"
	fi
	if [ $all = yes ]; then
		printf '%s="%s"\n' "$name" "$before $bip${ip_masq:+ $ip_masq} $mtu"
	fi
}

# One write in the end, so that its status tells of all of it.
text=$(options)

[ ! -d "$out_file" ] || fail "cannot write $out_file: it is a directory"
umask 022
case $out_file in
/dev/stdout | /dev/stderr | /dev/fd/* | /proc/self/fd/*)
	# Whatever this stands for, also a file: it is open already.
	printf '%s\n' "$text" >"$out_file" || fail "cannot write $out_file"
	exit 0
	;;
esac
if [ -e "$out_file" ] && [ ! -f "$out_file" ]; then
	# A device or a pipe: nothing to put in its place.
	printf '%s\n' "$text" >"$out_file" || fail "cannot write $out_file"
	exit 0
fi
# The file appears whole or not at all: written beside its place and then moved
# there. A symbolic link stays one.
if [ -h "$out_file" ]; then
	out_file=$(readlink -f "$out_file") || fail "cannot write $out_file: it is a symbolic link that leads nowhere"
fi
dir=$(dirname "$out_file")
mkdir -p "$dir" || fail "cannot make the directory $dir for $out_file"
temp=$out_file.$$.tmp
trap 'rm -f "$temp"' EXIT
trap 'exit 1' HUP INT TERM
rm -f "$temp"
# noclobber: never through a file or link that somebody else has put there.
(set -C && printf '%s\n' "$text" >"$temp") || fail "cannot write $temp: no space, or no permission for $dir?"
mv -f "$temp" "$out_file" || fail "cannot move $temp to $out_file"
