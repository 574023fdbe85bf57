"""Shared utilities: files and storage, locks, flags, logging, random numbers."""
