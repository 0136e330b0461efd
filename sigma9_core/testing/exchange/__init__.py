"""An exchange in a process of its own, which outlives the servers that trade on it, and a broker plugin for it.

`book` matches orders, `faults` garbles what clients hear, `process` serves both over JSON lines, `control` starts
the process for a test, `broker` is the plugin.
"""
