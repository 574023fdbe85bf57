"""What the other folders build on: files and storage, locks, flags, logging, random numbers."""
