"""Build the site: ``uv run --group docs sphinx-build -nW docs build/docs``.

Sphinx checks references: in docstrings a name between single backticks is a link, and
with ``-nW`` a name that does not exist ends the build. The pages are Markdown (MyST),
so that they can also be read in the repository. Neither the build nor a reader's
browser fetches anything.
"""

import tomllib
from pathlib import Path
from typing import ClassVar

from pygments.lexer import inherit
from pygments.lexers.sql import PostgresLexer
from pygments.token import Name, Operator
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

ROOT = Path(__file__).parents[1]

project = "Tocsin"
author = "The Tocsin authors"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
version = release
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["figures"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(collections|contextlib|datetime|enum|logging|pathlib|psycopg|trio|typing|ssl|types)\..*",
    ),
    (r"py:.*", r"(KeyboardInterrupt|[A-Z]\w*Error|TypedDict|StrEnum|str|ValueError)"),
    (
        r"py:class",
        r"optional|.*\btypes\..*|AbstractContextManager|.*\.EventT",
    ),
    # type variables of tasks, and classes that a program does not name
    (r"py:class", r"P|tocsin\._jobs\..*|tocsin\._queue\.message\.JobData"),
]

html_theme = "furo"
html_title = f"Tocsin {release}"
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"


class Sql(PostgresLexer):
    """PostgreSQL's SQL, with the commands and variables of psql."""

    name = "SQL as in psql"
    aliases = ("sql",)
    tokens: ClassVar = {
        "root": [
            (r"\\\w+", Name.Builtin),
            (r"::", Operator),
            (r":\"?\w+\"?", Name.Variable),
            inherit,
        ]
    }


MADE_BY_USERS = {"tocsin.RateLimit", "tocsin.Roles"}
"""Classes whose constructors are for users; all other objects come from a function or a
method."""


def _without_constructor(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str, returns: str
) -> object:
    return (
        ("", "")
        if signature and what in ("class", "exception") and name not in MADE_BY_USERS
        else None
    )


SECTIONS = Config(napoleon_custom_sections=["Cancellation"])


def _with_sections(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Render the sections of a docstring.

    Of a field's docstring the extension itself would take the text before a colon for a
    type.
    """
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, SECTIONS, app, what, name, thing).lines()


def setup(app: Sphinx) -> None:
    """Connect what is defined here."""
    app.connect("autodoc-process-signature", _without_constructor)
    app.connect("autodoc-process-docstring", _with_sections)
    app.add_lexer("sql", Sql)
