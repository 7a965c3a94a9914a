"""What people read of a job: computed from its topics, nothing rests on it."""
