"""What tells the roles apart on amqtt: a login and a topic check, both loaded by amqtt in the child process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from amqtt.contexts import Action, BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from sigma9_integrations.broker.accounts import Access, check_password


@dataclass
class Settings:
    """What both plugins are given."""

    passwords: dict[str, str] = field(default_factory=dict)
    """Hashed, by role."""
    access: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, role: str | None) -> Access | None:
        """Give a role's access; None for nobody."""
        rule = self.access.get(role or "")
        return None if rule is None else Access(tuple(rule["read"]), tuple(rule["write"]))


class Login(BaseAuthPlugin):  # type: ignore[misc] # amqtt has no types
    """Lets in who knows a role's password, with no last will that the role may not publish."""

    Config = Settings

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._settings: Settings = self.config

    async def authenticate(self, *, session: Session) -> bool:
        """Check name and password, and the will: amqtt itself publishes a will without asking."""
        role = session.username
        rule = self._settings.of(role)
        if (
            role is None
            or rule is None
            or not check_password(session.password or "", self._settings.passwords[role])
        ):
            return False
        return not session.will_flag or rule.may_write(session.will_topic or "")


class Topics(BaseTopicPlugin):  # type: ignore[misc] # amqtt has no types
    """Lets a role publish and subscribe where its access says so."""

    Config = Settings

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        settings: Settings = self.config
        self._access = {role: settings.of(role) for role in settings.access}

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        """Check one publish, one subscription, or one delivery."""
        rule = self._access.get(session.username or "") if session is not None else None
        if rule is None or topic is None:
            return False
        return rule.may_write(topic) if action == Action.PUBLISH else rule.may_read(topic)
