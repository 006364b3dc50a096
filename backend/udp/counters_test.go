package udp

import "testing"

func TestBatches(t *testing.T) {
	for _, tc := range []struct {
		packets, place int
	}{{1, 0}, {2, 1}, {3, 2}, {4, 2}, {5, 3}, {8, 3}, {9, 4}, {16, 4}, {17, 5}, {32, 5}, {33, 6}, {64, 6}} {
		var b batches
		b.add(tc.packets)
		want := Batches{}
		want[tc.place] = 1
		if got := b.snapshot(); got != want {
			t.Errorf("a batch of %d packets is counted as %v, want %v", tc.packets, got, want)
		}
	}
	if n := (Batches{1, 2, 3, 4, 5, 6, 7}).Total(); n != 28 {
		t.Errorf("the total is %d, want 28", n)
	}
}
