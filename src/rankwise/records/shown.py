"""Records show themselves in a notebook; how is the business of `report`, imported when a notebook asks."""

from __future__ import annotations


class Shown:
    """A record that a notebook shows as its tables."""

    def _repr_html_(self) -> str:
        from rankwise.report.notebook import html

        return html(self)

    def _repr_markdown_(self) -> str:
        from rankwise.report.notebook import markdown

        return markdown(self)
