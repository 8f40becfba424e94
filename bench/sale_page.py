"""The sale on Locust's web page: a tab with what the end of a run tells, and its files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bench.sizes import Sizes
from bench.verdict import Ended, Row, audit_row, missed, rows, text, units_left_csv

if TYPE_CHECKING:
    from flask import Response

_KEY = "sale"
_FILES = (
    ("holdfast/report.txt", "Download the sale's report"),
    ("holdfast/units-left.csv", "Download the units left over time"),
)


class Page:
    """What the tab shows now: a sale that runs, one that is audited, one that is over."""

    def __init__(self) -> None:
        self._rows = [Row("audit", "no sale has begun")]
        self._files = {path: "" for path, _ in _FILES}
        self._auditing = False

    def begin(self, run: str, sizes: Sizes) -> None:
        self._rows = [Row("audit", "at the end"), Row("sale", run), Row("settings", sizes.told())]
        self._files = {path: "" for path, _ in _FILES}

    def audits(self) -> None:
        self._rows[0] = Row("audit", "waiting for the ledger, then auditing")
        self._auditing = True

    def fail(self, why: str) -> None:
        self._rows[0] = Row("audit", why)
        self._auditing = False

    def end(self, ended: Ended) -> None:
        findings = [Row("", finding) for finding in ended.findings]
        gates = [Row("GATE MISSED", gate) for gate in missed(ended)]
        self._rows[:1] = [audit_row(ended), *findings[:20], *gates, *rows(ended)]
        report, units = self._files
        self._files = {report: text(ended) + "\n", units: units_left_csv(ended.trail)}
        self._auditing = False

    def put_on(self, web_ui: Any) -> None:
        """Add the tab, the files and what they show to Locust's page (locust.web.WebUI)."""
        from flask import Blueprint, Response, request

        web_ui.template_args |= {
            "extended_tabs": [{"title": "Sale and audit", "key": _KEY}],
            "extended_tables": [
                {
                    "key": _KEY,
                    "structure": [
                        {"key": "what", "title": ""},
                        {"key": "result", "title": "Result"},
                    ],
                }
            ],
            "extended_csv_files": [{"href": f"./{path}", "title": title} for path, title in _FILES],
        }
        blueprint = Blueprint("holdfast", __name__)

        def files(path: str) -> Response:
            content = self._files.get(f"holdfast/{path}")
            if content is None:
                return Response("no such file\n", 404, mimetype="text/plain")
            kind = "text/csv" if path.endswith(".csv") else "text/plain"
            return Response(content or "no sale has ended yet\n", mimetype=kind)

        blueprint.add_url_rule("/holdfast/<path>", "files", web_ui.auth_required_if_enabled(files))
        app = web_ui.app
        app.register_blueprint(
            blueprint, url_prefix=web_ui.environment.parsed_options.web_base_path
        )

        def add_rows(response: Response) -> Response:
            if not request.path.endswith("/stats/requests") or response.status_code != 200:
                return response
            content = json.loads(response.get_data())
            content["extended_stats"] = [
                {"key": _KEY, "data": [{"what": what, "result": told} for what, told in self._rows]}
            ]
            if self._auditing:
                content["state"] = "running"  # the page asks no more once it reads stopped
            response.set_data(json.dumps(content))
            return response

        app.after_request(add_rows)
