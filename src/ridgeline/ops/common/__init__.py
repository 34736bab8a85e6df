"""What two operations share."""
