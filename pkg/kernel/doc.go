// Package kernel keeps the kernel's network state at what it ought to be.
//
// A caller says what that is as a State, plain data, worked out anew from its
// latest input by a function of its own. Run compares the State with what the
// kernel has and sends only the difference: at start, when the input changes,
// when netlink says that something was changed in the kernel, and now and then
// in any case. There is no other way in which anything is added or removed, so
// nothing stale is left behind, whatever happened before.
//
// What the kernel has is read once and then noted, write by write, so that a
// change in the input costs no more than what follows from it. Notifications are
// held against the notes; whatever contradicts them has everything read again.
//
// What is not the caller's is left alone: an Owner says by which marks routes
// and devices are known to be the caller's.
//
// Start reading at State and Run; diff works out what to change, table does it,
// have is what is noted, watch what the kernel tells.
package kernel
