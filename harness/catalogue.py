"""What there is, and which of it can run here: models, suites, devices, reports; and `check`, which loads all of it."""

import os
from pathlib import Path

from harness import cards, plugins
from harness.cards import Card
from harness.errors import HarnessError
from harness.machine import backend
from harness.models import weights
from harness.models.card import STEPS, ModelCard, Resolution, check_side, load_model_card
from harness.models.synthesis import routes
from harness.reports.card import ReportCard, load_report_card
from harness.suites import examples
from harness.suites.card import SuiteCard, load_suite_card

DEFAULT_MODEL = "fastvlm-0.5b"


def default_model(asked_weights: str | None, offline: bool) -> tuple[str, str]:
    """Return the model that is measured when none is named, and what the user must be told about that choice.

    Without weights for it, and none asked for, the small model that ships with the package: a first command that ends
    with a score says more than one that cannot.
    """
    small = load_model_card(weights.SHIPPED_MODEL)
    if asked_weights is not None or not weights.present(small):
        return DEFAULT_MODEL, ""
    if weights.resolve(load_model_card(DEFAULT_MODEL), None, offline).trained:
        return DEFAULT_MODEL, ""
    return small.name, (
        f"no model was named and the weights of {DEFAULT_MODEL} cannot be had here: measuring {small.title}, which "
        f"ships with the package and reads generated pages only; next: --model {DEFAULT_MODEL} times the real one"
    )


def tables(kinds: list[str]) -> dict[str, list[dict[str, str]]]:
    """Return the rows of `harness list` by kind."""
    return {kind: ROWS[kind]() for kind in kinds}


def _models() -> list[dict[str, str]]:
    rows = []
    for name in cards.names("models"):
        card = load_model_card(name)
        rows.append(
            {
                "model": name,
                "title": card.title,
                "family": card.adapter,
                "routes": ", ".join(routes(card)),
                "sides": _sides(card.resolution),
                "weights": _where(card),
                "license": card.license,
                "repository": card.hub.repo if card.hub else "",
            }
        )
    return rows


def _sides(rule: Resolution) -> str:
    """Return which sides a model takes, in words."""
    if rule.rule == "choice":
        return ", ".join(map(str, rule.values))
    told = {"multiple": f"multiples of {rule.of}", "fixed": "its own, fixed", "any": "any, in steps"}
    return told.get(rule.rule, f"any{', steps' * (rule.rule in STEPS)} ({rule.rule})")


def _where(card: ModelCard) -> str:
    if weights.present(card):
        return "ships with the package" if card.shipped else "here"
    return "on the Hub" if card.hub else "random only"


def _suites() -> list[dict[str, str]]:
    rows = []
    for name in cards.names("suites"):
        card = load_suite_card(name)
        here = card.origin == "embedded" or examples.present(card)
        rows.append(
            {
                "suite": name,
                "title": card.title,
                "metric": card.unit or card.metric,
                "data": "ships with the package" if card.origin == "embedded" else ("here" if here else "on the Hub"),
                "scored": "needs a judge" if card.judge else "here",
                "stands in": card.stand_in or "",
            }
        )
    return rows


def _devices() -> list[dict[str, str]]:
    return [{"device": name, "here": f"no: {why}" if why else "yes"} for name, why in backend.listed()]


def _reports() -> list[dict[str, str]]:
    rows = []
    for name in cards.names("reports"):
        card = load_report_card(name)
        rows.append({"report": name, "title": card.title, "kind": card.kind})
    return rows


ROWS = {"models": _models, "suites": _suites, "devices": _devices, "reports": _reports}


KINDS: dict[str, type[Card]] = {"models": ModelCard, "suites": SuiteCard, "reports": ReportCard}


def check() -> tuple[list[str], int]:
    """Load every card and plug-in; return what is wrong, a line each, and how many were loaded."""
    problems: list[str] = []
    count = 0
    for kind, struct in KINDS.items():
        for name in cards.names(kind):
            count += 1
            try:
                card = cards.load(kind, name, struct)
                if isinstance(card, ModelCard):
                    if card.adapter not in plugins.names("adapters"):
                        problems.append(f"models/{name}.toml: adapter {card.adapter!r} is not there")
                    check_side(card, card.resolution.default)
                if isinstance(card, SuiteCard) and card.stand_in:
                    load_suite_card(card.stand_in)
            except HarnessError as error:
                problems.append(str(error))
    for group in plugins.GROUPS:
        for name in plugins.names(group):
            count += 1
            try:
                backend.of(name) if group == "devices" else plugins.load(group, name)
            except HarnessError as error:
                problems.append(str(error))
    for folder in ("models", "suites", "reports"):
        strays = [
            path for path in (cards.ROOT / folder).glob("*") if path.suffix not in (".toml", "") and path.is_file()
        ]
        problems += [f"{stray}: not a card" for stray in strays if folder != "reports"]
    if not os.access(Path.cwd(), os.W_OK):
        problems.append(f"{Path.cwd()}: not writable, run logs go to ./results; next: --out elsewhere")
    return problems, count
