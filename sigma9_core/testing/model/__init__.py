"""A state machine that does to the money path whatever may happen, in any order, and says when money is at risk.

| module | |
|---|---|
| `loop` | time that passes only when somebody says so |
| `exchange` | an exchange that misbehaves on demand, and keeps the truth |
| `room` | the real money path: journal file, latch, gate, desk, exits, kill switch, reconciler |
| `world` | rooms that come and go, a market, and time |
| `checks` | what must be so |
| `machine` | the rules: what may happen |

It needs hypothesis. Give it `gate` to name the risk rules, and run it with `run_state_machine_as_test`.
"""
