"""What can be derived and measured about objectives."""
