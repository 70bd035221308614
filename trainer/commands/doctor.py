"""`cli doctor`."""

from __future__ import annotations

import click

from schemas.errors import EXIT_CODES


@click.command("doctor", epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help='Print {"ready": ..., "findings": [...]} as JSON.')
def doctor_command(as_json: bool) -> None:
    """Show what this machine has and lacks for training: devices, packages that import, memory, disk.

    The exit code is 0 whatever is found; "ready" in the JSON says whether training can start.

    \b
    Examples:
      cli doctor
      cli doctor --json
    """
    from trainer.doctor import machine

    findings = machine.examine()
    for line in [machine.as_json(findings)] if as_json else machine.lines(findings):
        click.echo(line)
