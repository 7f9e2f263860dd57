"""What is on this machine, what a run would need, and what to do about the difference."""
