"""`openwafer wafer lint`: findings beyond errors, of a compiled program or of a root file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openwafer.base.errors import OpenwaferError
from openwafer.wafer import image_file
from openwafer.wafer.image import Image
from openwafer.wafer.lint import KINDS, Finding, lint


def findings(target: Path, compile_options: Sequence[str], ignore: Sequence[str]) -> list[Finding]:
    """What lint says about a folder or about a .csl file, which is compiled with the options of cslc."""
    for kind in ignore:
        if kind not in KINDS:
            raise OpenwaferError(f'--ignore: there is no finding "{kind}"; there are {", ".join(KINDS)}')
    if target.suffix == ".csl":
        image = _compiled(target, compile_options)
    elif compile_options:
        raise OpenwaferError(f"{compile_options[0]}: options of cslc go with a .csl file, {target} is none")
    else:
        image = image_file.load(target)
    return [finding for finding in lint(image) if finding.kind not in ignore]


def _compiled(target: Path, compile_options: Sequence[str]) -> Image:
    from openwafer.wafer import cli_cslc
    from openwafer.wafer.csl.driver import compile_file

    args = cli_cslc.parser().parse_args([str(target), *compile_options])
    return compile_file(target, cli_cslc.options(args))
