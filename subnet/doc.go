// Package subnet is about who has which subnet: the network config, leases,
// how a host gets one and keeps it, and the watch that turns what is in the
// store into the set of leases there are. It knows nothing of kernels, and of
// the store only what the Store interface says; each store is a package below
// this one.
//
// Start reading at Lease and Config, which are plain data, then Store, then
// Acquire, Follow and Holder, which use it in this order.
package subnet
