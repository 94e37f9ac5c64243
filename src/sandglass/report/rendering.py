"""Templates filled in: whatever is not Markup is escaped, and a name that is not given is an error."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sandglass.report.copies import copies


def render(template: str, **values: Any) -> str:
    """A file of templates/ with these values."""
    environment = Environment(
        loader=PackageLoader("sandglass.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["copies"] = copies
    return environment.get_template(template).render(**values)
