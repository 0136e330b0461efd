"""The command line: one file a command, each with `register(subparsers)` and `run(args) -> int`.

These modules import what is heavy inside their functions, so that `sigma9 --help` answers at once.
"""
