"""What the operations and their backends share."""
