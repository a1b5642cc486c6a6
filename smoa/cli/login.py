"""`smoa login`: a profile of where to call and who one is there, which every command then takes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Final

import click

from smoa.cli.options import PROFILE_OF
from smoa.errors import FailedPrecondition
from smoa.plain_files import write_plain

VARIABLE: Final = "SMOA_PROFILE"
DEFAULT: Final = "default"
_VARIABLES: Final = (
    "SMOA_TENANT",
    "SMOA_ROUTER",
    "SMOA_EXECUTOR",
    "SMOA_TLS_CA",
    "SMOA_TLS_CLIENT_CERTIFICATE",
    "SMOA_TLS_CLIENT_KEY",
    "SMOA_TOKEN_FILE",
)


def profiles_folder(environment: Mapping[str, str]) -> Path:
    """Where profiles are kept."""
    return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "smoa"


def take_profile(arguments: Sequence[str], environment: MutableMapping[str, str]) -> str:
    """Put the profile's values where the environment has none; its name, or nothing. Who names a local stack wants that one.

    Raises:
        FailedPrecondition: one that was named is not there, or one is not what `smoa login` writes.
    """
    if environment.get("SMOA_STACK") or any(one == "--stack" or one.startswith("--stack=") for one in arguments):
        return ""
    name = environment.get(VARIABLE, "")
    path = profiles_folder(environment) / f"{name or DEFAULT}.json"
    try:
        said = json.loads(path.read_text())
        values = {key: str(said[key]) for key in _VARIABLES if said.get(key)}
    except FileNotFoundError:
        if name:
            raise FailedPrecondition(f"{VARIABLE}: there is no profile {name!r}; make it with `smoa login --profile {name}`") from None
        return ""
    except (OSError, ValueError, AttributeError) as error:
        raise FailedPrecondition(f"{VARIABLE}: {path} is not what `smoa login` writes ({error}); log in again") from error
    for key, value in values.items():
        if key not in environment:
            environment[key] = value
            PROFILE_OF[key] = name or DEFAULT
    return name or DEFAULT


@click.command("login")
@click.option("--router", required=True, help="Address of the router.")
@click.option("--tenant", default="", help="Your tenant, where commands name none.")
@click.option("--executor", default="", help="Address of the executor, if decisions name none.")
@click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path), help="File of the key or token; else it is asked for.")
@click.option("--certificate", type=click.Path(exists=True, dir_okay=False), help="Your certificate, instead of a key or token.")
@click.option("--certificate-key", type=click.Path(exists=True, dir_okay=False), help="Its private key.")
@click.option("--ca", default="", help="File of who signs the services' certificates, or `system`; left out: no TLS.")
@click.option("--profile", default=DEFAULT, show_default=True, envvar=VARIABLE, help=f"Its name [{VARIABLE}].")
def login_command(
    router: str,
    tenant: str,
    executor: str,
    token_file: Path | None,
    certificate: str | None,
    certificate_key: str | None,
    ca: str,
    profile: str,
) -> None:
    """Keep where to call and who you are there, for every command from now on.

    Only you can read what is kept. Options and variables go before it, and so does --stack. `smoa logout` forgets it.
    """
    if not profile.isidentifier():
        raise click.BadParameter("use letters, digits and _", param_hint="--profile")
    folder = profiles_folder(os.environ)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    kept = folder / f"{profile}.token"
    if not certificate:
        token = token_file.read_text().strip() if token_file else click.prompt("Key or token", hide_input=True)
        write_plain(kept, f"{token}\n".encode(), 0o600)
    own = {"SMOA_TLS_CLIENT_CERTIFICATE": certificate, "SMOA_TLS_CLIENT_KEY": certificate_key}
    files = {key: str(Path(value).absolute()) for key, value in own.items() if value}
    said = {
        "SMOA_TENANT": tenant,
        "SMOA_ROUTER": router,
        "SMOA_EXECUTOR": executor,
        "SMOA_TLS_CA": ca if ca in ("", "system") else str(Path(ca).absolute()),
        "SMOA_TOKEN_FILE": "" if certificate else str(kept),
        **files,
    }
    write_plain(folder / f"{profile}.json", (json.dumps(said, indent=2) + "\n").encode(), 0o600)
    click.echo(f"{folder / f'{profile}.json'} is taken by every command{'' if profile == DEFAULT else f' with {VARIABLE}={profile}'}")


@click.command("logout")
@click.option("--profile", default=DEFAULT, show_default=True, envvar=VARIABLE, help=f"Its name [{VARIABLE}].")
def logout_command(profile: str) -> None:
    """Forget a profile, and its key or token."""
    folder = profiles_folder(os.environ)
    there = [path for path in (folder / f"{profile}.json", folder / f"{profile}.token") if path.exists()]
    for path in there:
        path.unlink()
    click.echo(f"{profile} is forgotten" if there else f"there is no profile {profile}")
