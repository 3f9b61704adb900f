"""What is measured: pure functions on arrays."""
