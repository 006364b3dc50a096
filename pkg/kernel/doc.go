// Package kernel keeps the kernel's network state at what it ought to be.
//
// A caller says what that is as a State, plain data, worked out anew from its
// latest input by a function of its own. Run compares the State with what the
// kernel has and sends only the difference: at start, when the input changes,
// when netlink says that something was changed in the kernel, and now and then
// in any case. There is no other way in which anything is added or removed, so
// nothing stale is left behind, whatever happened before.
//
// What is not the caller's is left alone: an Owner says by which marks routes
// and devices are known to be the caller's.
//
// Start reading at State and Run; diff works out what to change, table does it.
package kernel
