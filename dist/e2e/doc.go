// Package e2e tests flanneld end to end, with the programs that operators run
// around it: systemd, dockerd, supervisord, an etcd with TLS and users, and
// Prometheus' promtool. All of dist/ is tried there as it is installed.
//
// The tests need root and a tree of Debian (tree.sh makes it, in bin/e2e), so
// they hide behind the build tag e2e, and "make e2e" runs them. Like those of
// cmd/flanneld they run on hosts made of network namespaces; see package lab.
//
// Start reading at tree_test.go.
package e2e
