"""Every setting of `celeryscope dashboards`, once."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, SecretStr

from ..monitor import values
from ..monitor.configuration import Option, Settings
from ..monitor.flower import without_userinfo
from .links import DEFAULT_FLOWER

DEFAULT_FOLDER = "Celery"


def _page(url: str) -> str:
    return values.web_address(url).rstrip("/")


def _grafana(url: str) -> str:
    # Unlike the addresses that links are made of, it may hold a user and a password.
    values.web_address(without_userinfo(url))
    return url.rstrip("/")


def _token(raw: object) -> SecretStr:
    text = str(raw).strip()
    if not text or any(character.isspace() for character in text):
        raise ValueError("must be one word")
    return SecretStr(text)


Url = Annotated[str, Option("URL"), AfterValidator(_page)]


class BuildSettings(Settings):
    """What boards are made from."""

    section: ClassVar[str] = "dashboards"

    flower_url: Url = Field(default=DEFAULT_FLOWER, description="Flower's address, for the boards' links.")


class DashboardsSettings(BuildSettings):
    """What `celeryscope dashboards push` is told as well."""

    grafana_url: Annotated[str, Option("URL"), AfterValidator(_grafana)] = Field(
        default="", repr=False, description="Grafana's address, with the path it is served under."
    )
    grafana_token: Annotated[SecretStr | None, Option("TOKEN", parse=_token, secret=True)] = Field(
        default=None, description="Token of a service account that may write dashboards and folders (role Editor)."
    )
    grafana_folder: Annotated[str, Option("NAME")] = Field(
        default=DEFAULT_FOLDER, description="Title of the folder that the boards go into; made where it is missing."
    )
