"""How `celeryscope control` reaches Flower: its settings, and the credentials among them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, SecretStr

from .configuration import Option, Settings
from .flower_client import FlowerClient
from .values import readable_file

DEFAULT_URL = "http://127.0.0.1:5555"


def credentials(raw: object) -> SecretStr:
    """Read USER:PASSWORD.

    Raises:
        ValueError: Flower cannot hold it: a comma ends it there, and letters beyond ASCII break its check.
    """
    text = str(raw).strip()
    user, colon, password = text.partition(":")
    if not user or not colon or not password:
        raise ValueError("must be USER:PASSWORD")
    if not text.isascii() or not text.isprintable() or "," in text:
        raise ValueError("must be of printable ASCII letters and no comma: Flower understands no others")
    return SecretStr(text)


def _address(raw: object) -> str:
    url = str(raw).strip()
    if not re.match(r"https?://[^/]", url):
        raise ValueError("must be an address that starts with http:// or https://")
    if "@" in url.split("/")[2]:
        raise ValueError("must be without a password; CELERYSCOPE_FLOWER_AUTH takes it")
    return url


class LoginSettings(Settings):
    """The credentials of Flower's basic authentication, in one setting or in two."""

    flower_auth: Annotated[SecretStr | None, Option("USER:PASSWORD", parse=credentials, secret=True)] = Field(
        default=None, description="User and password of Flower's basic authentication."
    )
    flower_user: Annotated[str, Option("NAME")] = Field(default="", description="The user alone, beside the password.")
    flower_password: Annotated[SecretStr, Option("PASSWORD", secret=True)] = Field(
        default=SecretStr(""), description="The password alone, beside the user."
    )

    @property
    def login(self) -> tuple[str, str]:
        """User and password; empty texts where there are none."""
        if self.flower_auth is None:
            return self.flower_user, self.flower_password.get_secret_value()
        user, _, password = self.flower_auth.get_secret_value().partition(":")
        return user, password

    def problems(self) -> Iterator[tuple[str, str]]:
        """Say which settings do not go together."""
        password = self.flower_password.get_secret_value()
        if self.flower_auth is not None and (self.flower_user or password):
            yield "flower_auth", "give it, or the user and the password, not both"
            return
        if bool(self.flower_user) != bool(password):
            yield "flower_user" if password else "flower_password", "the user and the password go together"
        elif password:
            try:
                credentials(f"{self.flower_user}:{password}")
            except ValueError as error:
                yield "flower_password", f"user and password {error}"


class ControlSettings(LoginSettings):
    """What `celeryscope control` is told."""

    section: ClassVar[str] = "control"

    flower_url: Annotated[str, Option("URL", parse=_address)] = Field(
        default=DEFAULT_URL, description="Flower's address, with its url_prefix where it has one."
    )
    flower_ca_file: Annotated[Path | None, Option("FILE", flag="--ca-file", parse=readable_file)] = Field(
        default=None, description="Certificates to trust for https, as PEM."
    )
    flower_timeout: Annotated[float, Option("SECONDS", flag="--timeout"), Field(gt=0, le=600)] = Field(
        default=15.0, description="So long Flower may take to answer."
    )

    def client(self) -> FlowerClient:
        """Return a client of the Flower that is named.

        Raises:
            FlowerError: the address cannot be used.
        """
        user, password = self.login
        return FlowerClient(
            self.flower_url, user=user, password=password, timeout=self.flower_timeout, ca_file=self.flower_ca_file
        )
