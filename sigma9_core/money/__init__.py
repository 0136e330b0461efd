"""The money path: gate, desk, exits, portfolio, journal, latch and kill switch, all on the money lane."""
