"""Shared utilities: files, storage, formats, locks, flags, programs and random numbers."""
