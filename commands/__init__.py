"""What cli.py offers."""
