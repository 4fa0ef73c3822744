"""The command line: arguments in, text and exit codes out.

Results go to stdout, progress and messages to stderr. Verbs import what they need when they run, by way of the lazy
names of `vhdkit`, so that `vhdkit --help` answers at once.
"""
