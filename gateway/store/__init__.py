"""What must not be lost. It knows no protocol and no caller; what only saves time belongs to the cache."""
