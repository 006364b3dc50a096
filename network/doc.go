// Package network is this node of the network: it joins the lease, the backend,
// the firewall and the subnet file into one Run. Start reading there.
package network
