"""What a process of ours is to its machine: forked, told to end, and seen. Must know nothing of training."""
