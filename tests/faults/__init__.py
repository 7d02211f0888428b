"""Programs that test to destruction.

checkpoints: flipped bits, headers that lie, kills, full disks. batch: jobs that are killed until they are done.
"""
