#!/bin/sh
# Installs flanneld, what belongs to it and its unit, and samples of what an
# operator has to decide. "make install" and "make uninstall" run it, from the
# top of the sources, with the directories in the environment.
#
# Usage: DESTDIR=... bindir=... docdir=... unitdir=... install.sh [uninstall]
#
# No file of an operator's is touched: settings in /etc/default and
# /etc/sysconfig, the unit of docker. What the files say is /usr/bin is bindir
# where they are installed.
set -u
LC_ALL=C
export LC_ALL
# Whoever installs may have a umask that would keep others from running it.
umask 022

fail() {
	printf 'install.sh: %s\n' "$1" >&2
	exit 1
}

for directory in "$bindir" "$docdir" "$unitdir"; do
	case $directory in
	/*) ;;
	*) fail "cannot install into \"$directory\": PREFIX, bindir, docdir and unitdir have to begin with /" ;;
	esac
done
case $bindir in
*[!0-9A-Za-z/.+~@_-]*) fail "cannot install into \"$bindir\": units and scripts that name it need a path without blanks and the like" ;;
esac
# cp, mv and the like would take it for an option.
case ${DESTDIR=} in
-*) DESTDIR=./$DESTDIR ;;
esac

# each calls $1 for all there is to install: mode, file here, file there.
each() {
	"$1" 755 bin/flanneld "$bindir/flanneld"
	"$1" 755 dist/mk-docker-opts.sh "$bindir/mk-docker-opts.sh"
	"$1" 755 dist/remove-docker0.sh "$bindir/remove-docker0.sh"
	if [ -f dist/supervisor/flanneld-start.sh ]; then
		"$1" 755 dist/supervisor/flanneld-start.sh "$bindir/flanneld-start.sh"
	fi
	"$1" 644 dist/flanneld.service "$unitdir/flanneld.service"
	"$1" 644 README.md "$docdir/README.md"
	"$1" 644 LICENSE "$docdir/LICENSE"
	for file in dist/TROUBLESHOOTING.md dist/docker-flannel.conf dist/flanneld.env dist/sample_subnet.env dist/config/*.json dist/supervisor/*.ini dist/monitoring/*; do
		[ ! -f "$file" ] || "$1" 644 "$file" "$docdir/${file#dist/}"
	done
}

# put replaces what is there at once: a program that runs stays as it was until
# it ends, and one that starts meanwhile is whole.
put() {
	there=$DESTDIR$3
	[ ! -d "$there" ] || fail "cannot install $there: it is a directory"
	mkdir -p "${there%/*}" || fail "cannot make the directory ${there%/*}: as another user, or with DESTDIR, it may work"
	new=$there.new.$$
	case $2 in
	bin/*) cp "$2" "$new" ;;
	*) sed "$paths" "$2" >"$new" ;;
	esac && chmod "$1" "$new" && mv -f "$new" "$there" ||
		fail "cannot install $there: as another user, or with DESTDIR, it may work"
	new=
	echo "installed $there"
}

take() {
	there=$DESTDIR$3
	[ -e "$there" ] || [ -h "$there" ] || return 0
	rm -f "$there" || fail "cannot remove $there: as another user it may work"
	echo "removed $there"
}

# The programs where an operator's own unit, or that of a package, has them.
paths="s|/usr/bin/flanneld|$bindir/flanneld|g
s|/usr/bin/mk-docker-opts\.sh|$bindir/mk-docker-opts.sh|g
s|/usr/bin/remove-docker0\.sh|$bindir/remove-docker0.sh|g"
new=
trap '[ -z "$new" ] || rm -f "$new"' EXIT
trap 'exit 1' HUP INT TERM

case ${1-} in
'') each put ;;
uninstall)
	each take
	for directory in "$docdir/config" "$docdir/supervisor" "$docdir/monitoring" "$docdir"; do
		# Not if there is something in it that was not installed.
		rmdir "$DESTDIR$directory" 2>/dev/null
	done
	;;
*) fail "what is \"$1\" for? Only uninstall is expected" ;;
esac

# A packager knows what comes next.
[ -z "$DESTDIR" ] || exit 0
echo
for other in /etc/systemd/system /run/systemd/system; do
	if [ "$unitdir" != $other ] && [ -e $other/flanneld.service ]; then
		echo "$other/flanneld.service is there too, and is the one that systemd uses."
	fi
done
dropin=/etc/systemd/system/docker.service.d/flannel.conf
if [ "${1-}" = uninstall ]; then
	echo 'Next: systemctl disable --now flanneld, and daemon-reload. Settings in /etc, and
what flanneld has put into the kernel, are left as they are.'
	[ ! -e $dropin ] ||
		echo "Without flanneld dockerd does not start again while there is $dropin: remove that."
else
	echo "Next: put your settings into /etc/default/flanneld (sample: $docdir/flanneld.env)
and run systemctl daemon-reload. How dockerd gets the subnet, and all else, is in
$docdir/README.md."
fi
