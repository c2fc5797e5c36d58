"""What people write: services, targets, windows, and how it is read."""
