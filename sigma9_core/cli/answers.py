"""How the answer to a command is told: a sentence, or the response object as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from sigma9_core.cli.output import cell, clean


def tell(answer: Mapping[str, Any], form: str, describe: Callable[[Mapping[str, Any]], str]) -> int:
    """Print a command's answer and give the exit code: 0, or 1 with the server's sentence where it refused."""
    ok = answer.get("ok") is True
    if form == "json":
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    elif ok:
        print(describe(answer.get("result") or {}))
    if not ok:
        error = answer.get("error") or {}
        print(f"sigma9: {clean(str(error.get('message') or 'the server refused'))}", file=sys.stderr)
        for line in _reasons(error.get("details") or {}):
            print(f"  {line}", file=sys.stderr)
    return 0 if ok else 1


def listing(result: Mapping[str, Any]) -> str:
    """Write a result as `name: value, name: value`; `done` where it says nothing."""
    return ", ".join(f"{name.replace('_', ' ')}: {cell(value)}" for name, value in result.items()) or "done"


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """Write what one risk rule said."""
    numbers = (
        f" ({cell(short(verdict.get('used')))} of {cell(short(verdict.get('limit')))})"
        if verdict.get("limit") is not None
        else ""
    )
    reason = f": {clean(str(verdict['reason']))}" if verdict.get("reason") else ""
    return (
        f"{verdict.get('outcome', '?'):<6} {verdict.get('rule', '?')} {verdict.get('code', '')}{numbers}{reason}"
    )


def short(value: Any) -> Any:
    """Round a rule's number for a person: what follows the fourth place says nothing."""
    return round(value, 4) if isinstance(value, float) else value


def _reasons(details: Mapping[str, Any]) -> list[str]:
    verdicts = details.get("verdicts")
    if not isinstance(verdicts, list):
        return []
    lines = [
        verdict_line(entry) for entry in verdicts if isinstance(entry, dict) and entry.get("outcome") != "allow"
    ]
    order_id = details.get("order_id")
    return (
        lines if order_id is None else [*lines, f"every rule's word: sigma9 risk explain {clean(str(order_id))}"]
    )
