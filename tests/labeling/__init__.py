"""What people write and judge."""
