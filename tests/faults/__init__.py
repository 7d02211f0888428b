"""Checkpoints tested to destruction: flipped bits, headers that lie, kills, full disks (tests.faults.checkpoints)."""
