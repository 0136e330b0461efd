"""Where options stand: before or after an action, as one likes; and what is said of words that nobody knows."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

Actions: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001
Chunk = tuple[str, list[str]]
"""An option with the words that belong to it; any other word has the name ''."""


class CommandParser(argparse.ArgumentParser):
    """A parser that wants its options written out: what `--re` stands for may be another one tomorrow."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def format_help(self) -> str:
        """Add to the help of a command with actions where their options are listed."""
        if self.epilog is None and actions_of(self) is not None:
            self.epilog = (
                f"`{self.prog} ACTION --help` lists the options of an action, which go before or after it."
            )
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with 2; where an action is missing or wrong, name those that there are."""
        actions = actions_of(self)
        if actions is not None and str(actions.metavar) in message:
            message = f"say what to do, one of: {', '.join(actions.choices)}"
        super().error(message)


def actions_of(parser: argparse.ArgumentParser) -> Actions | None:
    """Give what a command's actions hang on, such as `list` and `follow` of `journal`; None where it has none."""
    kind = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public way to ask
    return next((action for action in parser._actions if isinstance(action, kind)), None)  # noqa: SLF001


def options_of(parser: argparse.ArgumentParser) -> Mapping[str, argparse.Action]:
    """Give a parser's own options by their names."""
    return parser._option_string_actions  # noqa: SLF001 - argparse has no public way to ask


def placed(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Put options where argparse wants them: the command's before its action, the action's after it.

    `words` is what follows the command. What nobody knows stays where it is.
    """
    actions = actions_of(parser)
    if actions is None:
        return list(words)
    at = _place_of_action(parser, actions, words)
    if at is None:
        return list(words)
    action = actions.choices[words[at]]
    front = list(_chunks(words[:at], (parser, *actions.choices.values())))
    back = list(_chunks(words[at + 1 :], (action, parser)))
    # An option of another action goes to the back as well: there it is told whose it is.
    to_back = [chunk for chunk in front if any(_movable(chunk, parser, each) for each in actions.choices.values())]
    to_front = [chunk for chunk in back if _movable(chunk, action, parser)]
    return [
        *_words(chunk for chunk in front if chunk not in to_back),
        *_words(to_front),
        words[at],
        *_words(to_back),
        *_words(chunk for chunk in back if chunk not in to_front),
    ]


def not_understood(parser: argparse.ArgumentParser, words: Sequence[str], unknown: Sequence[str]) -> str:
    """Say in one sentence what of a command's words is not understood, and where it belongs or what is meant."""
    actions = actions_of(parser)
    at = None if actions is None else _place_of_action(parser, actions, words)
    chosen = parser if actions is None or at is None else actions.choices[words[at]]
    option = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
    if option is None:
        return f"'{unknown[0]}' is one word too many; see `{chosen.prog} --help`"
    others = {} if actions is None else actions.choices
    homes = [f"`{other.prog}`" for other in others.values() if option in options_of(other)]
    if homes:
        return f"{option} is an option of {' and '.join(homes)}, not of `{chosen.prog}`"
    known = [*options_of(chosen), *options_of(parser)]
    near = difflib.get_close_matches(option, known, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"`{chosen.prog}` has no option {option}: {meant}`{chosen.prog} --help` lists them"


def no_such_command(commands: Mapping[str, argparse.ArgumentParser], words: Sequence[str]) -> str:
    """Say that the first word is no command, and what is meant: another one, or an option that goes after it."""
    word = words[0]
    if not word.startswith("-"):
        near = difflib.get_close_matches(word, commands, 1)
        meant = f"did you mean `sigma9 {near[0]}`? " if near else ""
        return f"there is no command '{word}': {meant}`sigma9 --help` lists them"
    option = word.partition("=")[0]
    named = next((each for each in words[1:] if each in commands), None)
    parsers = {name: (parser, *_parsers_below(parser)) for name, parser in commands.items()}
    homes = [name for name, below in parsers.items() if any(option in options_of(parser) for parser in below)]
    if not homes:
        return f"there is no option {option}; `sigma9 --help` lists the commands, which have options of their own"
    return f"options go after the command, such as `sigma9 {named if named in homes else homes[0]} {option} ...`"


def _place_of_action(parser: argparse.ArgumentParser, actions: Actions, words: Sequence[str]) -> int | None:
    """Tell which word is the action; None where it is missing or not one."""
    at = 0
    for name, chunk in _chunks(words, (parser, *actions.choices.values())):
        if not name:
            return at if chunk[0] in actions.choices else None
        at += len(chunk)
    return None


def _parsers_below(parser: argparse.ArgumentParser) -> Iterable[argparse.ArgumentParser]:
    actions = actions_of(parser)
    return () if actions is None else actions.choices.values()


def _chunks(words: Sequence[str], parsers: Sequence[argparse.ArgumentParser]) -> Iterator[Chunk]:
    """Part the words into options with their values, and others; the first parser that knows an option counts."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":  # from here on nothing is an option
            yield "", [word, *rest]
            return
        name, equals, _ = word.partition("=")
        if not word.startswith("-") or word == "-":
            yield "", [word]
            continue
        option = next((options_of(parser)[name] for parser in parsers if name in options_of(parser)), None)
        takes_one = option is not None and option.nargs is None
        yield name, [word, rest.pop(0)] if takes_one and not equals and rest else [word]


def _movable(chunk: Chunk, stands: argparse.ArgumentParser, knows: argparse.ArgumentParser) -> bool:
    """Tell whether an option stands where it is not known, and would be on the other side."""
    name = chunk[0]
    if not name or name in options_of(stands) or name not in options_of(knows):
        return False
    return options_of(knows)[name].nargs in (None, 0)  # else its values could not be told from others


def _words(chunks: Iterable[Chunk]) -> Iterator[str]:
    return (word for _, chunk in chunks for word in chunk)
