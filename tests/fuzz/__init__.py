"""Targets for fuzzing: every parser of files or bytes from outside.

python -m tests.fuzz TARGET --seconds=60
"""
