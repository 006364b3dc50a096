// Package gso cuts TCP and UDP super-packets into the packets they stand for,
// and joins packets into super-packets, for a program that exchanges packets
// with the kernel through a TUN device and with others by its own means.
//
// A super-packet is how Linux carries up to 64 KiB of one flow through its
// network stack at the cost of one packet (generic segmentation offload, GSO).
// What it stands for is in a virtio-net header in front of it: [Header].
//
// A [Cutter] makes the packets' headers; their payload stays where it is, in the
// super-packet. A [Joiner] collects payload where it lies, too. So neither copies
// what is large, and both are meant for scatter-gather I/O.
//
// Cutting does what the kernel's own segmentation does, byte for byte. Joining is
// its reverse: what a Joiner makes of packets stands for just those packets, in
// the order in which they came, flow by flow. Packets that no super-packet can
// stand for pass through a Joiner as they are, and so does a packet with a wrong
// checksum, for its receiver to see.
//
// Nothing here allocates, once a Joiner is made, or makes a system call.
//
// Start reading at Cutter.Next and Joiner.Add.
package gso
