"""The commands that the integrations add to `sigma9`: `mqtt` and `discovery`.

They are people's tools, and the one part of the integrations that uses the core's command line.
"""
